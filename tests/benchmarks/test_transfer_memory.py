"""scripts/measure_memory.py: the picture of a run, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

import transfer_memory as measure_memory


def test_a_run_is_measured_and_drawn(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    picture = tmp_path / "out" / "memory.png"
    assert measure_memory.main(["--minutes", "0.05", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 10_000 and "0.05 min of sound: peak" in caplog.text
    peak = float(caplog.text.split("peak ")[1].split(" MB")[0])
    assert 100 < peak < 1000  # Python and torch, and under the limit


def test_variations_last_as_long_as_wanted() -> None:
    voice = np.ones(4000, np.float32)
    blocks = list(measure_memory.vary(voice, 0.05))
    assert sum(map(len, blocks)) == 48000 and len({len(block) for block in blocks}) > 5
    assert all(block.max() <= 1.2 for block in blocks)


def test_bad_input_is_one_sentence(tmp_path: Path, caplog, capsys) -> None:
    flags = ["--minutes", "0.05", "--output", str(tmp_path / "a.png")]
    assert measure_memory.main([*flags, "--input", str(tmp_path / "none.wav")]) == 1
    assert "there is no file" in caplog.text
    assert measure_memory.main([*flags, "--instrument", "kazoo"]) == 1 and "exit code 1" in caplog.text
    with pytest.raises(SystemExit):
        measure_memory.parse_args(["--minutes", "0", "--output", "a.png"])
    assert "between 0 and 600" in capsys.readouterr().err
