"""Measure pitch and loudness of recordings and write one processed file for each.

    ./venv/bin/python preprocess.py --input_dir data/raw/rendered/trumpet --output_dir data/processed/trumpet
    ./venv/bin/python preprocess.py --config_name wide --input_dir data/raw/trumpet --output_dir data/wide/trumpet

Each recording is read as mono, measured and stored with its sound at the sample rate of the preset,
and with the bandwidth of the recording. Files that are up to date are skipped, stale ones replaced.
The instrument is guessed from the file names of the known data sets, or given by ``--instrument``;
training takes it from the files.
"""

import argparse
import filecmp
import json
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
from recordings.crops import read_ranks
from sound.atomic_files import hash_file, write_text
from sound.audio_files import SUFFIXES, find_sound_files, load_audio
from sound.bandwidth import measure_bandwidth
from sound.console import as_command, command_parser, suggest

_MAX_SAMPLES = 2 * 3600 * 16_000  # of a recording: two hours at 16 kHz, 0.5 GB
_SOURCES = ".sources.json"  # in a folder of processed files: the recording of each, relative to the folder
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
    """Return the jobs for the recordings in several folders.

    Raises:
        ValueError: as in ``plan_jobs``, or two recordings, of these folders or of one that was processed before,
            would be written to the same file.
    """
    jobs = [job for input_dir in input_dirs for job in plan_jobs(input_dir, output_dir, instrument, config)]
    planned, before = {}, read_sources(output_dir)
    for job in jobs:
        others = [planned.setdefault(job.target, job.source), before.get(job.target, job.source)]
        for other, is_planned in zip(others, (True, False)):
            is_same = other.resolve() == job.source.resolve() or not other.is_file()
            if not is_same and (is_planned or not filecmp.cmp(other, job.source, shallow=False)):
                raise ValueError(
                    f"{other} and {job.source} would both be written to {job.target}; rename one, give their common "
                    "parent folder as --input_dir, or give another --output_dir"
                )
    return jobs


def plan_jobs(input_dir: Path, output_dir: Path, instrument: str | None, config: Config) -> list[Job]:
    """Return the jobs for the recordings in a folder, searched recursively.

    Raises:
        ValueError: there are no recordings, or the instrument of one is unknown.
    """
    sources = find_sound_files(input_dir)
    if not sources:
        raise ValueError(f"{input_dir} holds no recordings ({', '.join(sorted(SUFFIXES))})")
    jobs = []
    for source in sources:
        played_by = instrument or config.guess_instrument(source.name)
        if played_by is None:
            raise ValueError(
                f"the instrument of {source} is unknown; give --instrument ({', '.join(config.instruments)})"
            )
        # Keep the suffix in the name: take.wav and take.flac are different recordings.
        relative = source.relative_to(input_dir)
        jobs.append(Job(source, output_dir / relative.with_name(relative.name + ".pt"), played_by))
    return jobs


def read_sources(output_dir: Path) -> dict[Path, Path]:
    """Return {processed file: its recording} of a folder, as recorded by ``write_sources``."""
    try:
        noted = json.loads((output_dir / _SOURCES).read_bytes())
        return {output_dir / name: Path(os.path.abspath(output_dir / source)) for name, source in noted.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}


def write_sources(jobs: list[Job], output_dir: Path) -> None:
    """Record the sources of the jobs, and keep those of the other files in ``output_dir``."""
    sources = {target: source for target, source in read_sources(output_dir).items() if target.exists()}
    sources |= {job.target: job.source for job in jobs}
    noted = {str(path.relative_to(output_dir)): os.path.relpath(source, output_dir) for path, source in sources.items()}
    write_text(output_dir / _SOURCES, json.dumps(noted, indent=0) + "\n")


def find_stale(jobs: list[Job], input_dirs: list[Path], output_dir: Path) -> tuple[list[Path], list[Path]]:
    """Return the processed files without a recording: those of the folders, and those of another or unknown origin."""
    targets, sources = {job.target for job in jobs}, read_sources(output_dir)
    others = [path for path in list_recordings(output_dir) if path not in targets]
    folders = [os.path.abspath(folder) for folder in input_dirs]
    stale = [path for path in others if path in sources and any(map(sources[path].is_relative_to, folders))]
    return stale, [path for path in others if path not in stale and not (path in sources and sources[path].is_file())]


def process_recording(job: Job, config: Config) -> JobOutcome:
    """Write one processed file unless it is up to date."""
    n_threads = torch.get_num_threads()
    # The summation order depends on the number of threads; with one, results do not depend on the number of workers.
    torch.set_num_threads(1)
    try:
        digest = hash_file(job.source)
        if _is_up_to_date(job, digest, config):
            return JobOutcome(job, "skipped")
        recording = extract_recording(job, digest, config.for_recordings_of(job.instrument))
        save_recording(job.target, recording)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return JobOutcome(job, "failed", str(error) or "not enough memory")  # a MemoryError has no text
    finally:
        torch.set_num_threads(n_threads)
    return JobOutcome(job, "written")


def extract_recording(job: Job, digest: str, config: Config) -> Recording:
    """Read and measure one recording; only its samples are in memory as a whole, the rest is done in blocks."""
    max_seconds = _MAX_SAMPLES / max(config.audio.sample_rate, config.audio.feature_rate)
    audio = load_audio(job.source, config.audio.feature_rate, max_seconds)
    features, bandwidth = extract_features(audio, config), None
    if config.audio.sample_rate != config.audio.feature_rate:
        del audio  # before the next is loaded
        audio = load_audio(job.source, config.audio.sample_rate, max_seconds)
        bandwidth = measure_bandwidth(audio, config.audio.sample_rate, config.audio.feature_rate / 2)
    audio.resize(config.audio.frames_to_samples(len(features.f0)), refcheck=False)  # in place, padded with 0
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
    """Process recordings in ``num_workers`` processes and yield the outcomes in order of completion.

    Raises:
        ValueError: a worker process died, probably because memory ran out.
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
        raise ValueError("a worker process died, probably out of memory; try --num_workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def count_outcomes(outcomes: Iterable[JobOutcome], total: int) -> dict[str, int]:
    """Show progress, print each failure, and return the numbers of files written, skipped and failed."""
    counts = {"written": 0, "skipped": 0, "failed": 0}
    pause = 0.1 if sys.stderr.isatty() else 30.0  # s, longer in a log file
    for outcome in tqdm(outcomes, total=total, unit="file", desc="preprocess", mininterval=pause):
        counts[outcome.status] += 1
        if outcome.status == "failed":
            tqdm.write(f"failed: {outcome.job.source}: {outcome.message}", file=sys.stderr)
    return counts


def _report_stale(jobs: list[Job], args: argparse.Namespace) -> None:
    """Name the processed files whose recordings are missing; delete those from the input folders with --prune."""
    stale, unknown = find_stale(jobs, args.input_dir, args.output_dir)
    for path in stale:
        if args.prune:
            path.unlink()
        advice = "deleted" if args.prune else "training will still use it; --prune deletes it"
        log.info("%s has no recording in %s: %s", path, ", ".join(map(str, args.input_dir)), advice)
    if unknown:
        log.info(
            "%d files in %s, such as %s, are of recordings in other folders that are gone or unknown; training "
            "will use them: delete what is not wanted",
            len(unknown),
            args.output_dir,
            unknown[0].name,
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure a folder of recordings for training.")
    parser.add_argument(
        "--input_dir", type=Path, required=True, nargs="+", help="folders of recordings, searched recursively"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the processed files (.pt)")
    parser.add_argument("--instrument", help="instrument of all recordings (default: guessed from the file names)")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default: {DEFAULT_PRESET})")
    parser.add_argument("--prune", action="store_true", help="delete processed files whose recordings are missing")
    parser.add_argument("--num_workers", type=int, default=2, help="number of processes (default: 2)")
    args = parser.parse_args(argv)
    for folder in args.input_dir:
        if not folder.is_dir():
            parser.error(f"--input_dir {folder} is not a folder")
    if args.num_workers < 1:
        parser.error("--num_workers must be at least 1")
    return args


@as_command("stopped; the files written so far are kept, the same command continues from here")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args.config, args.config_name)
    if args.instrument is not None:
        config.instrument(args.instrument)
    # Under torchrun, each process takes its share of the jobs.
    ranks = read_ranks()
    all_jobs = plan_all_jobs(args.input_dir, args.output_dir, args.instrument, config)
    jobs = ranks.shard(all_jobs)
    if ranks.is_first:
        write_sources(all_jobs, args.output_dir)
    counts = count_outcomes(run_jobs(jobs, config, min(args.num_workers, len(jobs))), len(jobs))
    if ranks.is_first:
        _report_stale(all_jobs, args)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if ranks.is_first and not counts["failed"]:
        suggest("visualize_features.py --all --data_dir {}", args.output_dir)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
