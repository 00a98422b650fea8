"""scripts/benchmark_pitch.py: both sides are measured on the same sound, and bad input is one sentence."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import benchmark_pitch


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_search_is_measured_against_torchcrepes(tmp_path: Path, capsys) -> None:
    target = tmp_path / "out" / "pitch.json"
    flags = ["--parts", "viterbi", "--seconds", "0.3", "--rounds", "2", "--skip_memory", "--json", str(target)]
    assert benchmark_pitch.main(flags) == 0
    figures = json.loads(target.read_text())["viterbi"]
    assert figures["processor"]["least"] <= figures["processor"]["ratio"] <= figures["processor"]["greatest"]
    assert figures["clock"]["ours"] > 0
    assert "0.3 s of sound" in (table := capsys.readouterr().out) and "| viterbi | " in table


def test_what_a_process_grows_by_is_seen() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    grown = benchmark_pitch.measure_memory(lambda: np.ones(2**23))
    assert 60 * 2**20 < grown < 80 * 2**20


def test_bad_input_is_one_sentence(tmp_path: Path, caplog, capsys) -> None:
    assert benchmark_pitch.main(["--input", str(tmp_path / "none.wav")]) == 1 and "there is no file" in caplog.text
    for flags in (["--rounds", "0"], ["--seconds", "0"], ["--parts", "huge"]):
        with pytest.raises(SystemExit):
            benchmark_pitch.parse_args(flags)
    assert "at least 0.1" in capsys.readouterr().err
