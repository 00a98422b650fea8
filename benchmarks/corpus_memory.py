"""Measure how long a training takes to start on very many recordings, and how much memory they take (Linux).

    ./venv/bin/python scripts/measure_corpus.py --recordings 100000

Makes them, small, each a take of its own, in a temporary folder (1.7 GB for 100,000), and does in a fresh process what
train.py does before its first step: once when it has to check each file, and once by the index.
"""

import argparse
import json
import logging
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from config import load_config
from data import Recording, extractor_settings, save_recording
from recordings.corpus import measure_statistics, read_corpus
from recordings.crops import build_dataset, load_batches
from recordings.process_ranks import SINGLE_PROCESS
from sound.atomic_files import write_text

_INSTRUMENT, _SECONDS = "trumpet", 0.2  # of each recording
log = logging.getLogger("measure_corpus")


class Start(NamedTuple):
    """What it took until the first batch was there."""

    processor_seconds: float
    seconds: float
    mebibytes: float  # by which the process grew over its imports, at the most
    n_crops: int  # to train on


def make_recordings(folder: Path, count: int) -> None:
    """Write ``count`` recordings that differ in nothing but the sha256 of their take."""
    config = load_config()
    n_frames = config.audio.seconds_to_frames(_SECONDS)
    values = {"f0": 440.0, "loudness": -20.0, "periodicity": 1.0}
    curves = {name: torch.full((1, n_frames, 1), value) for name, value in values.items()}
    digests = [f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}" for number in range(1, count + 1)]  # spread evenly
    recording = Recording(
        _INSTRUMENT, **curves, audio=torch.zeros(1, config.audio.frames_to_samples(n_frames)),
        source={"file": "made.wav", "sha256": digests[0]}, extractor=extractor_settings(config, _INSTRUMENT),
    )  # fmt: skip
    save_recording(folder / "made.pt", recording)
    content = (folder / "made.pt").rename(folder / "0000000.wav.pt").read_bytes()
    for number, digest in enumerate(tqdm(digests, desc="making recordings", unit="file", disable=None)):
        (folder / f"{number:07}.wav.pt").write_bytes(content.replace(digests[0].encode(), digest.encode()))


def start_training(folder: Path) -> Start:
    """Read a folder up to the first batch, as a training does."""
    config = load_config()
    memory, seconds, processor_seconds = _peak_mebibytes(), time.perf_counter(), time.process_time()
    corpus = read_corpus(folder, config)
    measure_statistics(corpus.training, config)
    training = build_dataset(corpus.training, corpus.instrument, config, seed=0)
    build_dataset(corpus.validation, corpus.instrument, config)
    next(load_batches(training, training.order(), 0, config.train.batch_size, SINGLE_PROCESS, torch.device("cpu")))
    processor_seconds, seconds = time.process_time() - processor_seconds, time.perf_counter() - seconds
    return Start(processor_seconds, seconds, _peak_mebibytes() - memory, len(training))


def _peak_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would begin with the parent's
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def measure(count: int) -> dict[str, Start]:
    """Start twice on ``count`` recordings, each time in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        make_recordings(Path(folder), count)
        return {name: pool.submit(start_training, Path(folder)).result() for name in ("the first time", "again")}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the start of a training on very many recordings.")
    parser.add_argument("--recordings", type=int, default=100_000, help="how many (default 100000)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    if args.recordings < 5:
        parser.error("--recordings must be at least 5")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        starts = measure(args.recordings)
        print(f"{args.recordings} recordings | processor time | by the clock | memory over the imports")
        for name, start in starts.items():
            print(f"{name} | {start.processor_seconds:.1f} s | {start.seconds:.1f} s | {start.mebibytes:.0f} MiB")
        if args.json:
            write_text(args.json, json.dumps({name: start._asdict() for name, start in starts.items()}, indent=2))
    except (ValueError, OSError, BrokenProcessPool) as error:
        log.error("measure_corpus.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("measure_corpus.py: stopped")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
