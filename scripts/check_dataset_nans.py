"""Read every processed file of a folder and name those that would spoil a training.

    ./venv/bin/python scripts/check_dataset_nans.py --data_dir data/processed/trumpet

Looked for are: files that cannot be read, NaN and infinity, shapes that do not fit together, settings other than
config.json's, pitches and levels that cannot be, recordings that are silent or clipped. ``--move_bad DIR`` moves what
is found there, under the same names. The exit code is 1 if anything was found.
"""

import argparse
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, Config, load_config
from data import Recording, extractor_settings, find_recordings, load_recording
from sound.console import as_command, command_parser

SILENCE = -60.0  # dBFS, of the loudest sample: below it the training loss has its floor
CEILING = 0.999  # of full scale
MAX_AT_CEILING = 0.005  # share of a second's samples; a normalised tone stays under 0.003, clipped by 0.5 dB over 0.006
FLAT_TOP = 4  # equal samples in a row at the peak: cut off, then made softer


def find_problems(path: Path, config: Config) -> list[str]:
    """Return what is wrong with a processed file, as short phrases; none if it is sound."""
    try:
        recording = load_recording(path)
    except ValueError as error:
        return [str(error).removeprefix(f"{path} ").partition(";")[0]]
    problems = _find_wrong_numbers(recording, config)
    if recording.extractor != extractor_settings(config, recording.instrument):
        problems.append("was made with other settings than config.json has now")
    audio = recording.audio[0]
    if audio.isfinite().all():
        problems += _find_bad_sound(audio, config.audio.sample_rate)
    return problems


def _find_wrong_numbers(recording: Recording, config: Config) -> list[str]:
    problems = []
    for name in ("f0", "loudness", "periodicity", "audio"):
        values = getattr(recording, name)
        for what, count in (("NaN", values.isnan().sum()), ("infinite", values.isinf().sum())):
            if count:
                problems.append(f"{name} holds {count} {what} values")
    if (recording.f0 <= 0).any():
        problems.append("f0 is not positive everywhere")
    if ((recording.periodicity < 0) | (recording.periodicity > 1)).any():
        problems.append("periodicity leaves 0 to 1")
    if (recording.loudness < config.features.loudness_floor).any():
        problems.append(f"loudness falls under {config.features.loudness_floor:g} dB")
    return problems


def _find_bad_sound(audio: Tensor, sample_rate: int) -> list[str]:
    level = audio.abs()
    peak = level.max().item()
    if peak < 10 ** (SILENCE / 20):
        return ["is silent" if peak == 0 else f"is silent: nothing over {20 * math.log10(peak):.0f} dBFS"]
    at_ceiling = max(int((second >= CEILING).sum()) for second in level.split(sample_rate))
    if at_ceiling > MAX_AT_CEILING * sample_rate:
        return [f"is clipped: {at_ceiling} samples of a second at full scale"]
    if (longest := _longest_run(level == peak)) >= FLAT_TOP:
        return [f"is clipped: {longest} equal samples in a row at its peak"]
    return []


def _longest_run(marked: Tensor) -> int:
    """Return the length of the longest stretch of True: [N]."""
    edges = torch.diff(marked.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return int((ends - starts).max()) if len(starts) else 0


def move(path: Path, data_dir: Path, target_dir: Path) -> Path:
    """Move a file to the same place under another folder, never over one that is there; return where it is."""
    target = target_dir / path.relative_to(data_dir)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.stem}.{number}{path.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return target


def check_folder(data_dir: Path, config: Config, move_bad: Path | None = None) -> dict[Path, list[str]]:
    """Name each bad file and what is wrong with it, and move it where that is asked for.

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
    parser = command_parser("Name the processed files that would spoil a training.")
    parser.add_argument("--data_dir", type=Path, required=True, help="processed recordings (.pt)")
    parser.add_argument("--move_bad", type=Path, metavar="DIR", help="move what is bad to this folder")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="default: config.json")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    if not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir} is not a folder")
    if args.move_bad and args.move_bad.resolve().is_relative_to(args.data_dir.resolve()):
        parser.error("--move_bad has to lie outside of --data_dir, or training would find the files again")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    bad = check_folder(args.data_dir, load_config(args.config, args.config_name), args.move_bad)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
