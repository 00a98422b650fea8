"""README.md and docs/: commands parse, links and files exist, preset sizes are true."""

import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from config import load_config
from model import build_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def commands(page: Path) -> list[str]:
    """Return the commands of all bash blocks, one by one."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def python_commands() -> list[str]:
    starts = ("./venv/bin/python", "./venv/bin/torchrun")
    found = [command for page in PAGES for command in commands(page)]
    return sorted({command for command in found if command.startswith(starts) and ".py" in command})


def test_commands_are_found() -> None:
    assert len(python_commands()) > 30
    others = {command for command in commands(PAGES[0]) if ".py" not in command}
    assert others == {"./setup_env.sh", "./setup_env.sh --dev", "./venv/bin/python -m pytest"}


@pytest.mark.parametrize("command", python_commands())
def test_command_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    script, *arguments = words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    for flag, value in pairwise(arguments):  # create what earlier commands of the page would have written
        if flag in ("--input_dir", "--data_dir"):
            Path(value).mkdir(parents=True)
        elif flag in ("--input", "--checkpoint"):
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).touch()
    if hasattr(module, "parse_args"):
        module.parse_args(arguments)
    else:
        assert not arguments, f"{script} takes no flags"


def test_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "48000" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_files_in_the_table_exist() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", README.split("## Where things are")[1].split("## Tests")[0], flags=re.M)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert 15 <= len(rows) <= 20 and len(names) > 25
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert len(PAGES[0].read_bytes()) < 15_000


def test_preset_sizes_are_true() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.* \| ([\d.]+) M \|$", text, flags=re.M)
    assert [name for name, _ in rows] == ["tiny", "solo", "wide", "standard", "deep", "transformer"]
    for name, millions in rows:
        parameters = build_model(load_config(preset=name), "trumpet").parameters()
        assert sum(map(torch.numel, parameters)) == pytest.approx(1e6 * float(millions), abs=5e4)
