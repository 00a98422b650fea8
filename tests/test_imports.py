"""Layout of the repository: imports point one way, the root and scripts/ stay small, each name has one import path."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL = {"features", "data", "model", "synth", "loss", "checkpoint"}
BASE = {"config", "sound", "model"}  # every package may import these; "model" is all of MODEL
MAY_IMPORT = {
    "config": set(),
    "sound": {"config"},
    "model": {"config", "sound"},
    "voice": BASE,
    "playing": BASE | {"voice"},
    "recordings": BASE,
    "training": BASE | {"recordings"},
    "evaluation": BASE | {"voice", "playing", "recordings"},
    "web": BASE | {"voice", "playing"},
}
TOOLS = {"scripts", "benchmarks", "examples", "tests"}


def group(module: str) -> str:
    """Return the layer of a module: its package, "model", "config" or "commands"."""
    top = module.partition(".")[0]
    if top in MODEL:
        return "model"
    return top if top in MAY_IMPORT or top in TOOLS else "commands"


def own_imports(path: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or "."] if isinstance(node, ast.ImportFrom) else names
        for name in names:
            top = name.partition(".")[0]
            if (ROOT / top).is_dir() or (ROOT / f"{top}.py").is_file() or any(tool_files(top)):
                yield name


def tool_files(name: str) -> Iterator[Path]:
    return (path for tool in TOOLS for path in (ROOT / tool).glob(f"{name}.py"))


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_one_way(layer: str) -> None:
    if layer in ("config", "model"):
        paths = [ROOT / f"{name}.py" for name in (MODEL if layer == "model" else ["config"])]
    else:
        paths = sorted((ROOT / layer).rglob("*.py"))
    assert paths
    arrows = {(path.relative_to(ROOT).as_posix(), name) for path in paths for name in own_imports(path)}
    upward = [
        f"{path} imports {name}" for path, name in sorted(arrows) if group(name) not in MAY_IMPORT[layer] | {layer}
    ]
    assert not upward


def test_voice_does_not_import_the_model() -> None:
    assert not [path.name for path in (ROOT / "voice").glob("*.py") if "model" in own_imports(path)]


def test_only_tools_and_tests_import_commands() -> None:
    commands = [path for path in ROOT.glob("*.py") if group(path.stem) == "commands"]
    imported = {name for path in commands for name in own_imports(path)}
    assert not [name for name in imported if group(name) in TOOLS]
    assert not imported & {path.stem for path in commands} - {"transfer"}  # test_e2e.py calls it from Python


def test_the_root_and_the_scripts_stay_small() -> None:
    assert len([*ROOT.glob("*.py")]) <= 20
    assert len([*(ROOT / "scripts").glob("*.py")]) <= 14


def test_a_package_exports_nothing() -> None:
    for path in ROOT.glob("*/__init__.py"):
        (docstring,) = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), f"{path} should hold a docstring and nothing else"


def test_text_is_utf8_whatever_the_locale() -> None:
    """Text may hold any letter, and the locale may support none, so every text file is opened as UTF-8."""
    forgotten = []
    for path in [
        *ROOT.glob("*.py"),
        *(ROOT / "scripts").glob("*.py"),
        *(p for layer in MAY_IMPORT for p in (ROOT / layer).glob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            opens_text = node.func.attr == "open" and any(mode in ("r", "w", "a", "x") for mode in texts)
            reads_text = node.func.attr == "read_text" and not node.args
            if (reads_text or opens_text) and "encoding" not in {keyword.arg for keyword in node.keywords}:
                forgotten.append(f"{path.name}:{node.lineno}")
    assert not [place for place in forgotten if not place.startswith(("hub_", "test_"))]  # the Hub's files are JSON
