"""live.py: the command line, and the sound card as far as a machine without one can tell."""

import sys

import pytest

import live


def test_without_a_sound_device_it_says_what_is_missing(write_checkpoint, monkeypatch, caplog, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert live.main(["--list_devices"]) == 1 and "pip install sounddevice" in caplog.text
    assert live.main(["--checkpoint", str(write_checkpoint())]) == 1 and len(caplog.messages) == 2
    for flags, message in ((["--block_ms", "0"], "between 1 and 1000"), (["--transpose", "99"], "transpose should be")):
        with pytest.raises(SystemExit):
            live.parse_args(flags)
        assert message in capsys.readouterr().err


def test_the_level_meter() -> None:
    meter = live.Meter()
    meter.heard, meter.played = 1.0, 0.0
    line = meter.draw()
    assert "voice ########################    0 dB" in line and "instrument ........................ -120 dB" in line
    assert "#" not in meter.draw()
