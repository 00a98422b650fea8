"""scripts/measure_latency.py: the picture of a run, and what it refuses."""

from pathlib import Path

import pytest
import torch

from scripts import measure_latency


@pytest.fixture(autouse=True)
def _threads_are_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_is_measured_and_drawn(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    picture = tmp_path / "out" / "latency.png"
    assert measure_latency.main(["--seconds", "0.5", "--block_ms", "20", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    assert "latency 51.9 ms and a block" in caplog.text and "work for a block of 20 ms: median" in caplog.text
    before, after = (float(part.split()[-1]) for part in caplog.messages[-1].split(" MB")[:2])
    assert 100 < before <= after + 1 < 2000


def test_bad_input_is_one_sentence(tmp_path: Path, caplog, capsys) -> None:
    flags = ["--output", str(tmp_path / "a.png")]
    assert measure_latency.main([*flags, "--input", str(tmp_path / "none.wav")]) == 1
    assert "there is no file" in caplog.text
    assert measure_latency.main([*flags, "--instrument", "kazoo"]) == 1
    for wrong in ("--seconds", "--block_ms"):
        with pytest.raises(SystemExit):
            measure_latency.parse_args([*flags, wrong, "0"])
        assert "should be between" in capsys.readouterr().err
