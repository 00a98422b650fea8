"""scripts/measure_latency.py: the picture of a run, and what it refuses."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import live_latency as measure_latency


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


def test_in_real_time_each_block_waits_until_it_is_there() -> None:
    class Stream:
        rate, began = 1000, []

        def process(self, block):
            self.began.append(time.perf_counter())
            time.sleep(0.015 if len(self.began) == 2 else 0)

    started, stream = time.perf_counter(), Stream()
    times, _ = measure_latency.measure(stream, np.zeros(100), 10, 5, real_time=True)
    assert all(began >= started + 0.01 * (number + 1) for number, began in enumerate(stream.began))
    # The second took half a block too long, so the third began late, and is counted from when it was there.
    assert times[1, 0] >= 15 and times[2, 0] >= 5 and times[1, 1] < 15
    assert "of 5 late" in measure_latency.describe(times, np.zeros(2), 10)
    assert "0 of 5 late" not in measure_latency.describe(times, np.zeros(2), 10)


def test_at_once_nothing_waits() -> None:
    class Stream:
        rate = 0.001  # a block would last for hours

        def process(self, block):
            pass

    times, _ = measure_latency.measure(Stream(), np.zeros(100), 10, 5)
    assert times.shape == (5, 2)


def test_bad_input_is_one_sentence(tmp_path: Path, caplog, capsys) -> None:
    flags = ["--output", str(tmp_path / "a.png")]
    assert measure_latency.main([*flags, "--input", str(tmp_path / "none.wav")]) == 1
    assert "there is no file" in caplog.text
    assert measure_latency.main([*flags, "--instrument", "kazoo"]) == 1
    for wrong in ("--seconds", "--block_ms"):
        with pytest.raises(SystemExit):
            measure_latency.parse_args([*flags, wrong, "0"])
        assert "should be between" in capsys.readouterr().err
