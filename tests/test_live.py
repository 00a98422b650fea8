"""live.py: the command line, and playing through ALSA's null device."""

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mido
import numpy as np
import pytest

import live
from checkpoint import load_model
from conftest import melody
from playing.live_midi import NoteWriter
from sound.crepe import load_crepe

ROOT = Path(__file__).parent.parent
# ALSA's null device: it needs no hardware, discards output and returns arbitrary input.
NULL_CARD = "pcm.nothing { type null hint { show on description nothing } }\n"


@pytest.fixture(autouse=True)
def no_export(monkeypatch):
    """Use PyTorch: an export takes seconds, and tests/playing/test_export.py covers it."""
    monkeypatch.setattr(live, "prepare_graph", lambda checkpoint: None)


def has_sounddevice() -> bool:
    with contextlib.suppress(ImportError, OSError):
        return bool(importlib.import_module("sounddevice"))
    return False


def test_missing_sounddevice_is_named(write_checkpoint, monkeypatch, caplog, capsys) -> None:
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


def test_warm_up_loads_everything(write_checkpoint) -> None:
    load_crepe.cache_clear()
    live.warm_up(load_model(write_checkpoint()))
    assert load_crepe.cache_info().currsize == 1
    gc.unfreeze()


def in_a_thread(work):
    """Call ``work`` in a thread, whose priority ends with it; return the result."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems raise the priority of audio threads themselves")
def test_audio_thread_gets_realtime_priority_if_allowed() -> None:
    def policies():
        allowed = live.request_realtime_priority()
        return allowed, os.sched_getscheduler(0), in_a_thread(lambda: os.sched_getscheduler(0))

    before = os.sched_getscheduler(0)
    allowed, own, of_its_thread = in_a_thread(policies)
    assert (own, of_its_thread) == (2 * (os.SCHED_FIFO,) if allowed else (before, before))
    assert os.sched_getscheduler(0) == before


def test_refused_realtime_priority_is_reported(write_checkpoint, monkeypatch, caplog) -> None:
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(live, "play_live", lambda *_: None)
    caplog.set_level("INFO")
    assert live.main(["--checkpoint", str(write_checkpoint())]) == 0
    assert "real-time priority" in caplog.text
    gc.unfreeze()


def test_no_realtime_requests_no_priority(write_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(live, "request_realtime_priority", lambda: pytest.fail("priority was requested"))
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


def test_played_notes_are_sent_to_a_midi_port(write_checkpoint, monkeypatch) -> None:
    sent, port = [], mido.ports.BaseOutput()
    port._send = lambda message: sent.append(message)
    monkeypatch.setattr(mido, "get_output_names", lambda: ["synthesizer 1:0"])
    monkeypatch.setattr(mido, "open_output", lambda name: port)

    def sing(stream, *_) -> None:
        for block in np.split(melody((220.0, 261.6)), 60):
            stream.process(block)

    monkeypatch.setattr(live, "play_live", sing)
    assert live.main(["--checkpoint", str(write_checkpoint()), "--midi_out", "synthesizer"]) == 0
    notes = [message for message in sent if message.type != "pitchwheel"]
    assert [(message.type, message.note) for message in notes] == [
        (kind, note) for note in (69, 72) for kind in ("note_on", "note_off")
    ]  # an octave higher than sung
    assert port.closed and all(abs(message.pitch) < 1500 for message in sent if message.type == "pitchwheel")
    gc.unfreeze()


def test_missing_midi_port_is_one_sentence(monkeypatch, caplog) -> None:
    monkeypatch.setattr(mido, "get_output_names", lambda: ["synthesizer 1:0"])
    assert live.main(["--midi_out", "organ"]) == 1 and "organ" in caplog.text and "synthesizer 1:0" in caplog.text


def test_slur_starts_a_new_note_and_vibrato_bends() -> None:
    writer, sent = NoteWriter(), []
    for semitones in [*0.4 * np.sin(np.arange(40)), *(40 * [2.1])]:
        sent += writer.follow(types.SimpleNamespace(f0=220 * 2 ** (semitones / 12), loudness=-30.0, voiced=True))
    notes = [(message.type, message.note) for message in [*sent, *writer.end()] if message.type != "pitchwheel"]
    assert notes == [("note_on", 57), ("note_off", 57), ("note_on", 59), ("note_off", 59)]
    bends = [message.pitch for message in sent if message.type == "pitchwheel"]
    assert len(bends) == 80 and max(bends[:40]) == pytest.approx(0.4 * 4096, rel=0.01)
    assert bends[-1] == pytest.approx(0.1 * 4096, abs=1)
