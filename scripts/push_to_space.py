"""Upload the web page to the Hugging Face Hub as a Space.

    HF_TOKEN=hf_... ./venv/bin/python scripts/push_to_space.py --repo_id user/space

Only files listed here are uploaded: app.py and the modules that it imports, config.json, requirements.txt, README.md
(its front matter tells the Hub how to run the page), the shipped models and the examples. Your training data, models
and recordings, hidden files and links out of this folder are never uploaded. The upload is one commit and needs no git;
unchanged files are not sent again, and nothing on the Hub is deleted.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi

from recordings.hub_client import ask_hub, check_repo_id
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
APP = "app.py"
NEEDED = ("README.md", "config.json", "requirements.txt")
MODELS = ("guitar", "trumpet", "saxophone", "violin", "flute")  # shipped models
ALLOWED = (  # in addition to NEEDED and the modules
    "LICENSE",
    "packages.txt",  # optional, apt packages
    *(f"checkpoints/pretrained/{name}.{ending}" for name in MODELS for ending in ("pth", "md")),
    "checkpoints/pretrained/LICENSE.md",
    "examples/hum.wav",
    *(f"examples/hum_{name}.ogg" for name in MODELS),
    "examples/hum_curves.csv",
    *(f"{folder}/*.{ending}" for folder in ("web", "web/live") for ending in ("html", "css", "js", "mjs", "svg")),
)


def find_modules(root: Path, first: str = APP) -> list[str]:
    """Return the names of a script and of all modules of this project that it imports, directly or indirectly."""
    found, waiting = set(), [first]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [path for module in _imports(root / name) for path in _files_of(root, module)]
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports; for ``from a import b`` both a and a.b, because b may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(root: Path, module: str) -> list[str]:
    """Return the files below ``root`` that run when a dotted name is imported: its packages and the module."""
    parts = module.split(".")
    packages = ["/".join([*parts[:depth], "__init__.py"]) for depth in range(1, len(parts) + 1)]
    return [name for name in (*packages, "/".join(parts) + ".py") if (root / name).is_file()]


def find_files(root: Path) -> list[str]:
    """Return the relative paths of the Space's files below ``root``.

    Raises:
        ValueError: a required file is missing.
    """
    missing = [name for name in (APP, *NEEDED) if not (root / name).is_file()]
    if missing:
        raise ValueError(f"{root} lacks {', '.join(missing)}")
    chosen = [root / name for name in (*find_modules(root), *NEEDED)]
    chosen += [path for pattern in ALLOWED for path in root.glob(pattern) if not path.name.startswith(".")]
    real_root = root.resolve()
    inside = [path for path in chosen if path.is_file() and path.resolve() == real_root / path.relative_to(root)]
    names = sorted({path.relative_to(root).as_posix() for path in inside})
    if not any(name.endswith(".pth") for name in names):
        raise ValueError(f"{root / 'checkpoints/pretrained'} holds no model, but the page needs one")
    return names


def check_front_matter(readme: Path) -> None:
    """Check that the README's front matter tells the Hub how to run the page.

    Raises:
        ValueError: the front matter is missing or wrong.
    """
    head, *rest = readme.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    try:
        matter = yaml.safe_load(head) if rest else None
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter of {readme} is not YAML: {error}") from error
    wanted = {"sdk": "gradio", "app_file": APP}
    if not isinstance(matter, dict) or any(matter.get(key) != value for key, value in wanted.items()):
        lines = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise ValueError(f"{readme} must begin with front matter between two lines '---' that has {lines}")


def push(api: HfApi, repo_id: str, root: Path, private: bool) -> list[str]:
    """Create the Space if it does not exist, update it, and return the names of its files.

    Raises:
        ValueError: a required file is missing, or the Hub refuses.
    """
    names = find_files(root)
    check_front_matter(root / "README.md")
    kind = {"repo_type": "space"}

    def commit() -> None:
        api.create_repo(repo_id, space_sdk="gradio", private=private, exist_ok=True, **kind)
        operations = [CommitOperationAdd(name, root / name) for name in names]
        api.create_commit(repo_id, operations, commit_message="Update the page", **kind)

    ask_hub(commit, f"{api.endpoint}/spaces/{repo_id}")
    return names


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Upload the web page to the Hugging Face Hub as a Space.")
    parser.add_argument("--repo_id", required=True, type=check_repo_id, help="Space, user/name; created if missing")
    parser.add_argument("--public", action="store_true", help="make a new Space public (default: private)")
    parser.add_argument("--dry_run", action="store_true", help="only list the files")
    return parser.parse_args(argv)


@as_command("stopped; run the same command to start again")
def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    args = parse_args(argv)
    if args.dry_run:
        print("\n".join(find_files(root)))
        return 0
    api = HfApi()
    names = push(api, args.repo_id, root, not args.public)
    print(f"{api.endpoint}/spaces/{args.repo_id}: {len(names)} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
