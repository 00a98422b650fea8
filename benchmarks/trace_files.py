"""Count the files of this project that a command runs: those in which a function is entered after import.

    ./venv/bin/python benchmarks/trace_files.py transfer.py --input examples/hum.wav --output out/hum.wav
    ./venv/bin/python benchmarks/trace_files.py

Without a command the four journeys are traced: wav to wav, preprocessing, one training step (from the batch to the new
weights), and a click on the page (what the button calls, in this process). Threads and child processes that run Python
are included; code that runs on import is not.
"""

import argparse
import contextlib
import inspect
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
JOURNEYS = ("wav to wav", "preprocessing", "training step", "click on the page")
_OUTSIDE = tuple(str(ROOT / name) + os.sep for name in ("venv", "benchmarks", "tests"))
_VARIABLE = "TRACE_FILES_TO"  # tells child processes where to write
_START = "import sys; sys.path.append({!r}); import trace_files; trace_files.start()"


def start() -> None:
    """Trace this thread and those that it starts; append the name of each file to the trace file."""
    target, seen = os.environ[_VARIABLE], set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or name in seen:
            return
        if not name.startswith(str(ROOT) + os.sep) or name.startswith(_OUTSIDE):
            seen.add(name)
        elif frame.f_code.co_flags & inspect.CO_OPTIMIZED and not _is_importing(frame):  # not a class or module body
            seen.add(name)
            with open(target, "a") as file:
                file.write(name + "\n")

    threading.setprofile(profile)
    sys.setprofile(profile)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") not in ("__main__", "__mp_main__"):
            return True
        frame = frame.f_back
    return False


def stop() -> None:
    """Stop tracing."""
    threading.setprofile(None)
    sys.setprofile(None)


@contextlib.contextmanager
def tracing() -> Iterator[set[str]]:
    """Trace this process and the Python processes that it starts; fill the yielded set at the end."""
    files: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "files")
        target.touch()
        # Python imports a module of this name at its start.
        Path(folder, "sitecustomize.py").write_text(_START.format(str(Path(__file__).parent)))
        before = dict(os.environ)
        paths = [folder, *filter(None, [before.get("PYTHONPATH")])]
        os.environ |= {_VARIABLE: str(target), "PYTHONPATH": os.pathsep.join(paths)}
        start()
        try:
            yield files
        finally:
            stop()
            os.environ.clear()
            os.environ |= before
            files |= {str(Path(line).relative_to(ROOT)) for line in target.read_text().splitlines()}


def trace_command(script: Path, arguments: list[str]) -> set[str]:
    """Run a script as ``python script arguments`` does, and return the files that it runs."""
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    with tracing() as files, contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    return files


# --- the four journeys, each in its own process ---------------------------------------------------


def trace_journey(name: str, folder: Path) -> set[str]:
    """Run one of JOURNEYS, writing into ``folder``, and return the files that it runs."""
    hum = ROOT / "examples" / "hum.wav"
    if name == "wav to wav":
        return trace_command(ROOT / "transfer.py", ["--input", str(hum), "--output", str(folder / "out.wav")])
    if name == "preprocessing":
        (folder / "raw").symlink_to(hum.parent)
        return trace_command(ROOT / "preprocess.py", _preprocessing_flags(folder))
    return trace_call(prepare_step(folder) if name == "training step" else prepare_click(folder))


def _preprocessing_flags(folder: Path) -> list[str]:
    return [
        "--input_dir",
        f"{folder}/raw",
        "--output_dir",
        f"{folder}/pt",
        "--instrument",
        "trumpet",
        "--num_workers",
        "1",
    ]


def trace_call(function: Callable[[], Any]) -> set[str]:
    """Return the files that a function call runs."""
    with tracing() as files:
        function()
    return files


def prepare_step(folder: Path) -> Callable[[], Any]:
    """Build a trainer; return a function that loads a batch and does one step."""
    import torch

    import train
    from config import load_config
    from data import Recording, extractor_settings, save_recording

    config = load_config()
    for number in range(2):
        curves = {"f0": 440.0, "loudness": -20.0, "periodicity": 1.0}
        recording = Recording(
            "trumpet",
            **{name: torch.full((1, 300, 1), value) for name, value in curves.items()},
            audio=0.1 * torch.randn(1, config.audio.frames_to_samples(300)),
            source={"file": "noise.wav", "sha256": str(number)},
            extractor=extractor_settings(config, "trumpet"),
        )
        save_recording(folder / f"{number}.pt", recording)
    trainer = train.build_trainer(
        train.parse_args(["--data_dir", str(folder), "--checkpoint_dir", str(folder / "out")])
    )
    assert len(trainer.training) <= config.train.batch_size  # one step per epoch
    return trainer.train_epoch


def prepare_click(folder: Path) -> Callable[[], Any]:
    """Build a page; return a function that does what its button does."""
    import app

    page = app.build_ui(folder)
    (run,) = [function for function in page.fns.values() if function.name == "run"]
    values = [component.value for component in run.inputs]
    values[:2] = [str(ROOT / "examples" / "hum.wav"), "trumpet"]
    return lambda: list(run.fn(*values))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Count the files of this project that a command runs.")
    parser.add_argument("--journey", choices=JOURNEYS, help="trace this journey (default: each, one after another)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script and its arguments")
    return parser.parse_args(argv)


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.command and not args.journey:  # modules stay imported, so each journey needs its own process
        return max(subprocess.run([sys.executable, __file__, "--journey", name]).returncode for name in JOURNEYS)
    if args.command:
        name, files = args.command[0], trace_command(Path(args.command[0]), args.command[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            name, files = args.journey, trace_journey(args.journey, Path(folder))
    print(f"{name}: {len(files)} files\n  {' '.join(sorted(files))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
