"""The benchmarks start, and two of them run on little."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "measuring")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_to_run(name: str, capsys: pytest.CaptureFixture) -> None:
    module = importlib.import_module(name)
    assert f"./venv/bin/python benchmarks/{name}.py" in module.__doc__
    with pytest.raises(SystemExit) as ended:
        module.parse_args(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


def test_speed_prints_a_ratio_beside_the_processor() -> None:
    flags = ["--quick", "--rounds", "1", "--threads", "1", "--batch_size", "1", "--crop_seconds", "0.1"]
    result = run("speed.py", *flags, "--only", "bank")
    assert "torch " in result.splitlines()[0]
    assert result.count("| harmonic bank, forward + backward |") == 1 and " x (" in result


def test_only_files_whose_functions_run_are_counted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys\nimport data, model\nfrom config import load_config\nload_config()\n"
        "call = 'from sound.crepe import note_name; note_name(440)'\n"
        "subprocess.run([sys.executable, '-c', call], check=True)\n"
    )
    assert run("trace_files.py", str(script)).splitlines()[1:] == ["  config.py sound/crepe.py"]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
