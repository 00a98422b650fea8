"""scripts/stress_app.py: its ear can tell tunes apart, and a small trial with real clients passes."""

import json
import sys

import numpy as np
import pytest
import soundfile

import page_load as stress_app


def test_no_two_tunes_are_alike(tmp_path):
    tunes = [tuple(np.round(notes, 1)) for _, notes in stress_app.sing_tunes(tmp_path, 64)]
    assert len(set(tunes)) == 64


def test_the_ear_knows_its_tune_from_another(tmp_path):
    (own, notes), (other, _), *_ = stress_app.sing_tunes(tmp_path, 3)
    assert stress_app.is_tune(own, notes)
    assert not stress_app.is_tune(other, notes)
    soundfile.write(tmp_path / "silence.wav", np.zeros(33600), 16000)
    assert not stress_app.is_tune(tmp_path / "silence.wav", notes)


def test_growing_memory_and_a_wrong_tune_are_said_and_exit_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stress_app, "running_page", lambda _: stress_app.contextlib.nullcontext(("", 0)))
    good = {"clients": 2, "own_tune": 2, "median_seconds": 1.0, "last": 2.0}
    steady = {"requests": 30, "megabytes_warm": 500.0, "megabytes_end": 510.0, "megabytes_peak": 520.0, "growth": 0.02}
    for crowd, queue, code in (
        (good, steady, 0), ({**good, "own_tune": 1}, steady, 1), (good, {**steady, "growth": 0.11}, 1)
    ):  # fmt: skip
        monkeypatch.setattr(stress_app, "try_at_once", lambda *_, crowd=crowd: crowd)
        monkeypatch.setattr(stress_app, "try_one_by_one", lambda *_, queue=queue: queue)
        assert stress_app.main(["--clients", "2", "--json", str(tmp_path / "a.json")]) == code
    assert "2 got their own tune back" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["one_by_one"]["growth"] == 0.11


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_two_clients_and_three_requests(capsys):
    assert stress_app.main(["--clients", "2", "--requests", "3"]) == 0
    assert capsys.readouterr().out.startswith("2 clients at once: 2 got their own tune back")


@pytest.mark.parametrize("argv", [["--clients", "0"], ["--clients", "65"], ["--requests", "0"]])
def test_numbers_that_make_no_sense_are_refused(argv):
    with pytest.raises(SystemExit):
        stress_app.parse_args(argv)
