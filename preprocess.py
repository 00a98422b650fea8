"""Turn a folder of recordings into a folder of processed files, one for each.

    ./venv/bin/python preprocess.py --input_dir data/raw/rendered/trumpet --output_dir data/processed/trumpet
    ./venv/bin/python preprocess.py --config_name wide --input_dir data/raw/trumpet --output_dir data/wide/trumpet

Each recording is read as mono, measured (pitch, loudness) and stored with its sound. What is done
already with the same settings is skipped, what is stale is redone. The instrument is guessed from
the names that the data sets use, or given by ``--instrument``; training inherits it. The sound is kept at the
rate of the preset that is to be trained, together with the band up to which the recording really has sound.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, Config, load_config
from data import Recording, extractor_settings, list_recordings, load_recording, save_recording
from features import extract_features
from sound.atomic_files import hash_file
from sound.audio_files import SUFFIXES, find_sound_files, load_audio
from sound.bandwidth import measure_bandwidth
from sound.console import as_command, command_parser, suggest

log = logging.getLogger("preprocess")


class Job(NamedTuple):
    source: Path
    target: Path
    instrument: str


class JobOutcome(NamedTuple):
    job: Job
    status: str  # "written", "skipped" or "failed"
    message: str = ""


def plan_all_jobs(input_dirs: list[Path], output_dir: Path, instrument: str | None, config: Config) -> list[Job]:
    """List what is to be made of the recordings in several folders.

    Raises:
        ValueError: as ``plan_jobs``, or two recordings would become the same file.
    """
    jobs = [job for input_dir in input_dirs for job in plan_jobs(input_dir, output_dir, instrument, config)]
    sources: dict[Path, Path] = {}
    for job in jobs:
        if sources.setdefault(job.target, job.source).resolve() != job.source.resolve():
            raise ValueError(
                f"{sources[job.target]} and {job.source} would both become {job.target}; rename one, or preprocess the "
                "folder that they share"
            )
    return jobs


def plan_jobs(input_dir: Path, output_dir: Path, instrument: str | None, config: Config) -> list[Job]:
    """List what is to be made of the recordings in a folder and its subfolders.

    Raises:
        ValueError: no recordings, or one whose instrument is neither given nor known by its name.
    """
    sources = find_sound_files(input_dir)
    if not sources:
        raise ValueError(f"{input_dir} holds no recordings ({', '.join(sorted(SUFFIXES))})")
    jobs = []
    for source in sources:
        played_by = instrument or config.guess_instrument(source.name)
        if played_by is None:
            raise ValueError(f"which instrument plays in {source}? Give --instrument ({', '.join(config.instruments)})")
        # The suffix stays in the name: take.wav and take.flac are two recordings.
        relative = source.relative_to(input_dir)
        jobs.append(Job(source, output_dir / relative.with_name(relative.name + ".pt"), played_by))
    return jobs


def find_stale(jobs: list[Job], output_dir: Path) -> list[Path]:
    """Return the processed files whose recordings are not, or no longer, among the jobs."""
    targets = {job.target for job in jobs}
    return [path for path in list_recordings(output_dir) if path not in targets]


def process_recording(job: Job, config: Config) -> JobOutcome:
    """Make one processed file, unless it is there and up to date."""
    n_threads = torch.get_num_threads()
    # The order of sums depends on the number of threads: with one, any number of workers gives the same bits.
    torch.set_num_threads(1)
    try:
        digest = hash_file(job.source)
        if _is_up_to_date(job, digest, config):
            return JobOutcome(job, "skipped")
        recording = extract_recording(job, digest, config.for_recordings_of(job.instrument))
        save_recording(job.target, recording)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return JobOutcome(job, "failed", str(error) or "not enough memory")  # of which a MemoryError says nothing
    finally:
        torch.set_num_threads(n_threads)
    return JobOutcome(job, "written")


def extract_recording(job: Job, digest: str, config: Config) -> Recording:
    """Read and measure one recording; its samples are in memory once, everything else only a piece at a time."""
    audio = load_audio(job.source, config.audio.feature_rate)
    features, bandwidth = extract_features(audio, config), None
    if config.audio.sample_rate != config.audio.feature_rate:
        audio = load_audio(job.source, config.audio.sample_rate)
        bandwidth = measure_bandwidth(audio, config.audio.sample_rate, config.audio.feature_rate / 2)
    audio.resize(config.audio.frames_to_samples(len(features.f0)), refcheck=False)  # in place; what is new is 0
    frames = {name: values[None, :, None] for name, values in features._asdict().items()}
    source = {"file": job.source.name, "sha256": digest}
    extractor = extractor_settings(config, job.instrument)
    samples = torch.from_numpy(audio)[None]
    return Recording(job.instrument, **frames, audio=samples, source=source, extractor=extractor, bandwidth=bandwidth)


def _is_up_to_date(job: Job, digest: str, config: Config) -> bool:
    try:
        existing = load_recording(job.target, config)
    except (FileNotFoundError, ValueError):
        return False
    return existing.source["sha256"] == digest and existing.instrument == job.instrument


def run_jobs(jobs: list[Job], config: Config, num_workers: int) -> Iterator[JobOutcome]:
    """Process recordings in ``num_workers`` processes, yielding outcomes as they come.

    Raises:
        ValueError: a worker process died (of memory, most likely).
    """
    if num_workers <= 1:
        yield from (process_recording(job, config) for job in jobs)
        return
    # "spawn": a forked copy of torch's thread pool can hang.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"))
    try:
        futures = [pool.submit(process_recording, job, config) for job in jobs]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        raise ValueError("a worker died, probably for want of memory; try --num_workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def count_outcomes(outcomes: Iterable[JobOutcome], total: int) -> dict[str, int]:
    """Show progress, name each failed file, and return how many were written, skipped and failed."""
    counts = {"written": 0, "skipped": 0, "failed": 0}
    pause = 0.1 if sys.stderr.isatty() else 30.0  # s; a log file needs no more
    for outcome in tqdm(outcomes, total=total, unit="file", desc="preprocess", mininterval=pause):
        counts[outcome.status] += 1
        if outcome.status == "failed":
            tqdm.write(f"failed: {outcome.job.source}: {outcome.message}", file=sys.stderr)
    return counts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure a folder of recordings for training.")
    parser.add_argument(
        "--input_dir", type=Path, required=True, nargs="+", help="folders of recordings; subfolders too"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where the .pt files go")
    parser.add_argument("--instrument", help="who plays; guessed from the data sets' own file names if not given")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="default: config.json")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default {DEFAULT_PRESET})")
    parser.add_argument("--prune", action="store_true", help="delete processed files of recordings that are gone")
    parser.add_argument("--num_workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(argv)
    for folder in args.input_dir:
        if not folder.is_dir():
            parser.error(f"--input_dir {folder} is not a folder")
    if args.num_workers < 1:
        parser.error("--num_workers must be at least 1")
    return args


@as_command("stopped; what is written stays, the same command goes on from here")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args.config, args.config_name)
    if args.instrument is not None:
        config.instrument(args.instrument)
    # Under torchrun every process does its share; they need not talk to each other.
    rank, n_ranks = (int(os.environ.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    all_jobs = plan_all_jobs(args.input_dir, args.output_dir, args.instrument, config)
    jobs = all_jobs[rank::n_ranks]
    counts = count_outcomes(run_jobs(jobs, config, min(args.num_workers, len(jobs))), len(jobs))
    if rank == 0:
        for path in find_stale(all_jobs, args.output_dir):
            if args.prune:
                path.unlink()
            advice = "deleted" if args.prune else "it is trained on all the same; --prune deletes it"
            log.info("%s: its recording is not in %s; %s", path, ", ".join(map(str, args.input_dir)), advice)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if rank == 0 and not counts["failed"]:
        suggest(f"visualize_features.py --all --data_dir {args.output_dir}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
