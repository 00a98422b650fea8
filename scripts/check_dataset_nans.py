"""Find processed files that are unfit for training.

    ./venv/bin/python scripts/check_dataset_nans.py --data_dir data/processed/trumpet

Reports unreadable files, NaN and infinity, inconsistent shapes, settings that differ from config.json, implausible
pitches and levels, and silent or clipped recordings. ``--move_bad DIR`` moves these files to the same relative paths in
DIR. The exit code is 1 if there are any.
"""

import argparse
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, Config, load_config
from data import extractor_settings, find_recordings, find_wrong_values, load_recording
from sound.console import as_command, command_parser, suggest

SILENCE = -60.0  # dBFS, of the loudest sample; the training loss ignores lower levels
CEILING = 0.999  # of full scale
MAX_AT_CEILING = 0.005  # of the samples in a second; a normalised tone has < 0.003, one clipped by 0.5 dB > 0.006
FLAT_TOP = 4  # consecutive equal samples at the peak: clipped, then attenuated


def find_problems(path: Path, config: Config) -> list[str]:
    """Return the problems of a processed file as short phrases."""
    try:
        recording = load_recording(path)
    except ValueError as error:
        return [str(error).removeprefix(f"{path} ").partition(";")[0]]
    problems = find_wrong_values(recording, ("f0", "loudness", "periodicity", "audio"))
    if (recording.loudness < config.features.loudness_floor).any():
        problems.append(f"loudness falls below {config.features.loudness_floor:g} dB")
    if recording.extractor != extractor_settings(config, recording.instrument):
        problems.append("was processed with settings that differ from config.json")
    audio = recording.audio[0]
    if audio.isfinite().all():
        problems += _find_bad_sound(audio, config.audio.sample_rate)
    return problems


def _find_bad_sound(audio: Tensor, sample_rate: int) -> list[str]:
    level = audio.abs()
    peak = level.max().item()
    if peak < 10 ** (SILENCE / 20):
        return ["is silent" if peak == 0 else f"is silent: its peak is {20 * math.log10(peak):.0f} dBFS"]
    at_ceiling = max(int((second >= CEILING).sum()) for second in level.split(sample_rate))
    if at_ceiling > MAX_AT_CEILING * sample_rate:
        return [f"is clipped: {at_ceiling} samples of one second are at full scale"]
    if (longest := _longest_run(level == peak)) >= FLAT_TOP:
        return [f"is clipped: {longest} consecutive samples are equal to its peak"]
    return []


def _longest_run(marked: Tensor) -> int:
    """Return the length of the longest run of True in ``marked`` [N]."""
    edges = torch.diff(marked.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return int((ends - starts).max()) if len(starts) else 0


def move(path: Path, data_dir: Path, target_dir: Path) -> Path:
    """Move a file to the same relative path in another folder, without overwriting; return its new path."""
    target = target_dir / path.relative_to(data_dir)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.stem}.{number}{path.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return target


def check_folder(data_dir: Path, config: Config, move_bad: Path | None = None) -> dict[Path, list[str]]:
    """Print and return the problems of each bad file; move it if ``move_bad`` is a folder.

    Raises:
        ValueError: there are no processed files.
    """
    bad = {}
    paths = find_recordings(data_dir)
    for path in tqdm(paths, desc="checking", unit="file", disable=None):
        if problems := find_problems(path, config):
            bad[path] = problems
            moved = f" -> {move(path, data_dir, move_bad)}" if move_bad else ""
            tqdm.write(f"{path}: {'; '.join(problems)}{moved}")
    print(f"{len(paths)} files, {len(bad)} bad")
    return bad


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Find processed files that are unfit for training.")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of processed files (.pt)")
    parser.add_argument("--move_bad", type=Path, metavar="DIR", help="folder to move bad files to")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default: {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    if not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir} is not a folder")
    if args.move_bad and args.move_bad.resolve().is_relative_to(args.data_dir.resolve()):
        parser.error(f"--move_bad {args.move_bad} must be outside --data_dir, or training would find the files again")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    bad = check_folder(args.data_dir, load_config(args.config, args.config_name), args.move_bad)
    suggest("scripts/inspect_dataset.py --data_dir {}", args.data_dir)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
