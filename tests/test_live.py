"""live.py: the command line, and the sound card as far as a machine without one can tell."""

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import live
from checkpoint import load_model
from sound.crepe import load_crepe

ROOT = Path(__file__).parent.parent
# A sound card of ALSA's that plays nothing and hears nothing (what it gives may be any bits), without hardware.
NULL_CARD = "pcm.nothing { type null hint { show on description nothing } }\n"


def has_sounddevice() -> bool:
    with contextlib.suppress(ImportError, OSError):
        return bool(importlib.import_module("sounddevice"))
    return False


def test_without_a_sound_device_it_says_what_is_missing(write_checkpoint, monkeypatch, caplog, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert live.main(["--list_devices"]) == 1 and "pip install sounddevice" in caplog.text
    assert live.main(["--checkpoint", str(write_checkpoint())]) == 1 and len(caplog.messages) == 2
    for flags, message in ((["--block_ms", "0"], "between 1 and 1000"), (["--transpose", "99"], "transpose should be")):
        with pytest.raises(SystemExit):
            live.parse_args(flags)
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not (has_sounddevice() and sys.platform == "linux"), reason="needs sounddevice, and ALSA")
def test_it_plays_through_a_sound_card_until_ctrl_c(write_checkpoint, tmp_path: Path) -> None:
    (tmp_path / ".asoundrc").write_text(NULL_CARD)
    command = [sys.executable, "live.py", "--checkpoint", str(write_checkpoint())]
    shared = {"cwd": ROOT, "env": {**os.environ, "HOME": str(tmp_path)}, "text": True}
    refused = subprocess.run([*command, "--input_device", "flute"], **shared, capture_output=True, check=False)
    assert refused.returncode == 1 and "no sound device can be opened" in refused.stderr
    assert "Traceback" not in refused.stderr
    flags = ["--input_device", "nothing", "--output_device", "0"]
    with subprocess.Popen([*command, *flags], **shared, stderr=subprocess.PIPE) as playing:
        said = ""
        while said.count("late") < 3 and playing.poll() is None:
            said += playing.stderr.read(1)
        playing.send_signal(signal.SIGINT)
        assert playing.wait(60) == 130
    assert "latency: 46 ms here, 10 ms a block" in said and "instrument" in said


def test_after_warming_up_nothing_is_left_to_load(write_checkpoint) -> None:
    load_crepe.cache_clear()
    live.warm_up(load_model(write_checkpoint()))
    assert load_crepe.cache_info().currsize == 1
    gc.unfreeze()


def in_a_thread(work):
    """Return what it returns; the thread takes its priority away with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere sound cards' threads have precedence")
def test_the_players_threads_go_before_other_programs() -> None:
    def policies():
        allowed = live.request_realtime_priority()
        return allowed, os.sched_getscheduler(0), in_a_thread(lambda: os.sched_getscheduler(0))

    before = os.sched_getscheduler(0)
    allowed, own, of_its_thread = in_a_thread(policies)
    assert (own, of_its_thread) == (2 * (os.SCHED_FIFO,) if allowed else (before, before))
    assert os.sched_getscheduler(0) == before


def test_without_precedence_it_plays_and_says_so(write_checkpoint, monkeypatch, caplog) -> None:
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(live, "play_live", lambda *_: None)
    caplog.set_level("INFO")
    assert live.main(["--checkpoint", str(write_checkpoint())]) == 0
    assert "may not have real-time priority" in caplog.text
    gc.unfreeze()


def test_precedence_can_be_declined(write_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(live, "request_realtime_priority", lambda: pytest.fail("it was asked for"))
    monkeypatch.setattr(live, "play_live", lambda *_: None)
    assert live.main(["--checkpoint", str(write_checkpoint()), "--no_realtime"]) == 0
    gc.unfreeze()


def test_the_level_meter() -> None:
    meter = live.LevelMeter()
    meter.input_peak, meter.output_peak = 1.0, 0.0
    line = meter.draw()
    assert "voice ########################    0 dB" in line and "instrument ........................ -120 dB" in line
    assert "#" not in meter.draw() and "turned down" not in line
    meter.peak_gain = -12.0
    assert meter.draw().endswith("turned down by up to 12 dB")
