"""Kill preprocess.py again and again, and see that nothing but time is lost.

    ./venv/bin/python scripts/kill_preprocess.py --kills 50

A folder of synthetic recordings is processed once in peace. Then it is processed into another folder by runs that are
killed (SIGKILL, the workers too) at random moments after their first progress; each goes on where the one before was
killed. After every kill each file that stands under its final name must be whole. When the folder is complete it must
hold the same bits as the undisturbed one; it is emptied, and the next round begins, until there were as many kills as
asked for and a last run in peace. The moments are drawn by ``--seed``; what is going on at them is not repeatable, and
need not be.

The exit code is 0 if all bits were right, 1 if some were not, 2 for wrong flags.
"""

import argparse
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

import preprocess
from data import load_recording

RATE = 44_100  # Hz, so that they must be resampled
log = logging.getLogger("kill_preprocess")


def make_recordings(folder: Path, count: int, seconds: float, rng: np.random.Generator) -> None:
    """Write tones with vibrato, rests and some noise, each another."""
    folder.mkdir(parents=True)
    time_axis = np.arange(round(seconds * RATE)) / RATE
    for number in range(count):
        phase = 2 * np.pi * rng.uniform(150, 900) * (time_axis + 0.002 * np.sin(2 * np.pi * 5 * time_axis))
        tone = sum(np.sin(k * phase) / k for k in range(1, 6)) * (time_axis % 0.8 < 0.6)
        sound = 0.2 * tone + 0.001 * rng.standard_normal(len(tone))
        soundfile.write(folder / f"rendered_trumpet_{number:03}.wav", sound, RATE)


def start(source: Path, target: Path, num_workers: int) -> BaseProcess:
    """Start preprocess.py as the leader of a process group, by a fork, which spares the imports."""
    flags = ["--input_dir", source, "--output_dir", target, "--num_workers", num_workers]
    process = get_context("fork").Process(target=_lead, args=([str(flag) for flag in flags],))
    process.start()
    return process


def _lead(argv: list[str]) -> None:
    os.setsid()
    tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and would stay locked by who is killed
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(preprocess.main(argv))


def run_in_peace(source: Path, target: Path, num_workers: int) -> float:
    """Process everything and return the seconds from the first progress to the end.

    Raises:
        RuntimeError: preprocess.py failed.
    """
    process = start(source, target, num_workers)
    wait_for_progress(process, target)
    began = time.monotonic()
    process.join()
    if process.exitcode:
        raise RuntimeError("preprocess.py fails undisturbed; run it by hand to see why")
    return time.monotonic() - began


def wait_for_progress(process: BaseProcess, target: Path) -> None:
    """Wait until a run writes, under whatever name, or ends."""
    before = set(target.rglob("*"))
    while process.is_alive() and set(target.rglob("*")) <= before:
        time.sleep(0.002)


def run_and_kill(source: Path, target: Path, num_workers: int, after: float) -> bool:
    """Start a run and kill all its processes ``after`` seconds of work; return False if it ended before that."""
    process = start(source, target, num_workers)
    wait_for_progress(process, target)
    process.join(after)
    if not process.is_alive():
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return True


def read_all(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def disturb(
    source: Path, target: Path, expected: dict[str, bytes], args: argparse.Namespace, seconds: float
) -> Counter[str]:
    """Kill runs until there were enough kills; return what was seen.

    Raises:
        ValueError: half a file stands under its final name, or the result has other bits.
    """
    rng, seen = np.random.default_rng(args.seed), Counter()
    with tqdm(total=args.kills, unit="kill") as bar:
        while seen["kills"] < args.kills:
            killed = run_and_kill(source, target, args.num_workers, rng.uniform(0, seconds / 2))
            finished = list(target.rglob("*.pt")) if target.exists() else []
            for path in finished:
                load_recording(path)
            seen["kills"] += killed
            n_wanted = sum(name.endswith(".pt") for name in expected)
            seen["kills between the first file and the last"] += killed and 0 < len(finished) < n_wanted
            seen["kills in the middle of writing"] += killed and any(target.rglob("*.part"))
            if not killed:
                compare(target, expected)
                seen["rounds"] += 1
                shutil.rmtree(target)
            bar.update(killed)
    run_in_peace(source, target, args.num_workers)
    compare(target, expected)
    seen["rounds"] += 1
    return seen


def compare(folder: Path, expected: dict[str, bytes]) -> None:
    """Raise ValueError unless a folder holds exactly these files."""
    found = read_all(folder)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise ValueError(f"not as in the undisturbed run: {', '.join(wrong)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill preprocess.py at random moments and compare the result.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the recordings and of the moments")
    parser.add_argument("--num_workers", type=int, default=2, help="of preprocess.py")
    parser.add_argument("--recordings", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each recording")
    args = parser.parse_args(argv)
    for name in ("kills", "num_workers", "recordings", "seconds"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} must be positive")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # what is forked must not wait for threads that it does not have
    try:
        with tempfile.TemporaryDirectory(prefix="kill_preprocess_") as name:
            source, peace, target = (Path(name, part) for part in ("raw", "undisturbed", "killed"))
            make_recordings(source, args.recordings, args.seconds, np.random.default_rng(args.seed))
            seconds = run_in_peace(source, peace, args.num_workers)
            seen = disturb(source, target, read_all(peace), args, seconds)
    except (ValueError, RuntimeError, OSError) as error:
        log.error("kill_preprocess.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("kill_preprocess.py: stopped")
        return 130
    details = ", ".join(f"{seen[name]} {name.removeprefix('kills ')}" for name in seen if name.startswith("kills "))
    print(f"{seen['kills']} kills ({details}); {seen['rounds']} complete results, all the bits of the undisturbed run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
