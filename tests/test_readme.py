"""README.md: every command in it parses, every file it names exists, its numbers are the configuration's."""

import importlib
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from config import load_config
from model import build_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Return the commands of all bash blocks, one by one."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def python_commands() -> list[str]:
    starts = ("./venv/bin/python", "./venv/bin/torchrun")
    return [command for command in commands() if command.startswith(starts) and ".py" in command]


def test_commands_are_found() -> None:
    assert len(python_commands()) > 12
    others = set(commands()) - set(python_commands())
    assert others == {"./setup_env.sh", "./venv/bin/python -m pytest"}


@pytest.mark.parametrize("command", python_commands())
def test_command_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    script, *arguments = words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]
    module = importlib.import_module(Path(script).stem)
    monkeypatch.chdir(tmp_path)
    for flag, value in pairwise(arguments):  # what an earlier command of the README would have made
        if flag in ("--input_dir", "--data_dir"):
            Path(value).mkdir(parents=True)
        elif flag in ("--input", "--checkpoint"):
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).touch()
    if hasattr(module, "parse_args"):
        module.parse_args(arguments)
    else:
        assert not arguments, f"{script} takes no flags"


def test_files_exist() -> None:
    table = README.split("## Files")[1].split("From Python:")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 18
    assert [name for name in names if not (ROOT / name).exists()] == []
    rooms = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"))]
    assert sorted(set(rooms) - set(names)) == []


def test_preset_sizes_are_true() -> None:
    rows = re.findall(r"^\| `(\w+)`.* \| ([\d.]+) M \|$", README, flags=re.M)
    assert [name for name, _ in rows] == ["tiny", "solo", "standard", "deep", "transformer"]
    for name, millions in rows:
        parameters = build_model(load_config(preset=name), "trumpet").parameters()
        assert sum(map(torch.numel, parameters)) == pytest.approx(1e6 * float(millions), abs=5e4)
