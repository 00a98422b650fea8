"""Benchmarks show their help, and one runs on small input."""

import importlib
from pathlib import Path

import pytest

import speed

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "measuring")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_to_run(name: str, capsys: pytest.CaptureFixture) -> None:
    module = importlib.import_module(name)
    assert f"./venv/bin/python benchmarks/{name}.py" in module.__doc__
    with pytest.raises(SystemExit) as ended:
        module.parse_args(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


def test_speed_prints_a_ratio(capsys: pytest.CaptureFixture) -> None:
    flags = ["--quick", "--rounds", "1", "--threads", "1", "--batch_size", "1", "--crop_seconds", "0.1"]
    assert speed.main([*flags, "--only", "bank"]) == 0
    assert "| harmonic bank, forward + backward |" in (result := capsys.readouterr().out) and " x (" in result
