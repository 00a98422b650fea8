"""Ablation: train variants of a model on the same data, seed and schedule, and evaluate them.

    ./venv/bin/python benchmarks/ablations.py --data_dir data/processed/trumpet --input examples/hum.wav \\
        --epochs 2 --half_life 250 --output_dir out/ablation --json out/ablation.json

Each row is a separate training by train.py, in its own process and its own folder in ``--output_dir``. Stop it at any
time: the same command resumes, and with more ``--epochs`` all rows train further. Another schedule or other data need
another ``--output_dir``. ``solo:1`` is the row solo with seed 1: a difference must exceed that between seeds to count.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint import LATEST, load_model, read_checkpoint
from config import DEFAULT_CONFIG_PATH, get_device
from evaluation import judging
from evaluation.scorecard_tables import RESYNTHESIS, TRANSFER, Column, format_value
from measuring import format_table
from sound.atomic_files import write_text
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
_WEIGHTED = {"amplitude": "weighted", "initial_gain": 1.0, "noise_bias": -9.0}
_PROJECTED = {**_WEIGHTED, "embed_size": 128, "projection_size": 256}
Changes = dict[str, dict[str, Any]]  # section of config.json to keys and values

VARIANTS: dict[str, tuple[str, str, Changes]] = {  # name: description, base preset, changes
    "tiny": ("`tiny`, the baseline", "tiny", {}),
    "head": ("and an amplitude head", "tiny", {"model": {"amplitude": "head"}}),
    "weighted": ("amplitude by A-weighting instead", "tiny", {"model": _WEIGHTED}),
    "embed": ("and a network of 128 before the GRU", "tiny", {"model": {**_WEIGHTED, "embed_size": 128}}),
    "projection": ("and one of 256 after it: `solo` without the rise", "tiny", {"model": _PROJECTED}),
    "solo": ("and the rise of loudness as input: `solo`", "solo", {}),
    "ema": ("without the rise, weights averaged", "tiny", {"model": _PROJECTED, "train": {"ema_decay": 0.99}}),
    "reverb": ("without the rise, learned reverb", "tiny", {"model": {**_PROJECTED, "reverb_seconds": 0.3}}),
}
# Pitch and pauses are exact by construction in every variant.
_COPIES = ("stft_loss", "log_mel", "loudness_l1", "recognised")
_PLAYED = ("loudness_correlation", "recognised")


class Row(NamedTuple):
    """A training and its seed."""

    variant: str
    seed: int

    @property
    def title(self) -> str:
        """The name in the table."""
        return VARIANTS[self.variant][0] + (f", seed {self.seed}" if self.seed else "")


def read_row(text: str) -> Row:
    """Parse the name of a row, such as "solo" or "solo:1".

    Raises:
        argparse.ArgumentTypeError: there is no such variant, or the seed is not a number.
    """
    variant, _, seed = text.partition(":")
    if variant not in VARIANTS or not (seed or "0").isdigit():
        raise argparse.ArgumentTypeError(f"no row '{text}'; rows are {', '.join(VARIANTS)}, with a seed as solo:1")
    return Row(variant, int(seed or 0))


def configure(variant: str, half_life: int) -> dict[str, Any]:
    """Return the content of a config.json with the preset ``variant`` and the given schedule."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    _, preset, changes = VARIANTS[variant]
    sections = dict(content["presets"][preset])
    for name, values in (*changes.items(), ("train", {"learning_rate_half_life": half_life})):
        sections[name] = {**sections.get(name, {}), **values}
    return {**content, "presets": {"tiny": {}, variant: sections}}


def train(row: Row, folder: Path, args: argparse.Namespace) -> None:
    """Train a row to its last epoch; resume a started training.

    Raises:
        SystemExit: train.py failed or was stopped; its own message says why.
    """
    write_text(folder / "config.json", json.dumps(configure(row.variant, args.half_life), indent=2))
    flags = {
        "config": folder / "config.json",
        "config_name": row.variant,
        "seed": row.seed,
        "data_dir": args.data_dir.resolve(),
        "checkpoint_dir": folder,
        "runs_dir": folder / "runs",
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "device": args.device,
        "wandb_mode": "disabled",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *words])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait()  # Ctrl-C reaches train.py too, which saves
    if code:
        raise SystemExit(f"ablations.py: the training of {row.title} ended with exit code {code}, see above")


def judge(row: Row, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a trained row: mean of the copies, worst of the voices."""
    content, model = read_checkpoint(path), load_model(path, get_device(args.device))
    models, takes = {judging.MODEL: model}, judging.read_takes(args.data_dir, model, content)
    rows, _, real = judging.evaluate_takes(takes, models, seed=0)
    copies = rows[0]
    voices = [
        rows[0]
        for path in judging.expand_folders(args.input)
        for rows, _ in judging.evaluate_voice(path, models, real, None, seed=0)
    ]
    return {
        "row": row.title,
        "variant": row.variant,
        "seed": row.seed,
        "steps": content["step"],
        "copies": {name: copies[name] for name in _COPIES},
        "played": {name: _worst(name, [voice[name] for voice in voices]) for name in _PLAYED},
    }


def _worst(name: str, values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return (min if _figure(TRANSFER, name).at_least else max)(measured, default=None)


def _figure(figures: Sequence[Column], key: str) -> Column:
    return next(figure for figure in figures if figure.key == key)


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table: copies of held-out recordings, then the worst of the voices."""
    columns = [("copies", _figure(RESYNTHESIS, name)) for name in _COPIES]
    columns += [("played", _figure(TRANSFER, name)) for name in _PLAYED]
    heads = ["change", "steps", *(f"{figure.heading}{', voice' * (kind == 'played')}" for kind, figure in columns)]
    cells = [
        [row["row"], f"{row['steps']:,}"]
        + [format_value(row[kind][figure.key], figure.digits) for kind, figure in columns]
        for row in rows
    ]
    return format_table(heads, cells)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Train variants of a model on the same data and schedule, and evaluate them.")
    parser.add_argument("--data_dir", type=Path, required=True, help="processed recordings of the instrument")
    parser.add_argument("--input", type=Path, nargs="+", default=[], help="voices: sound files, or folders of them")
    rows = list(map(Row, VARIANTS, [0] * len(VARIANTS)))
    parser.add_argument("--rows", type=read_row, nargs="+", default=rows, help=f"{', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each training (default: 2)")
    parser.add_argument("--batch_size", type=int, default=16, help="crops per step (default: 16)")
    parser.add_argument(
        "--half_life", type=int, default=250, help="half-life of the learning rate in steps (default: 250)"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="parent folder of the trainings")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    args = parser.parse_args(argv)
    if min(args.epochs, args.batch_size, args.half_life) < 1:
        parser.error("--epochs, --batch_size and --half_life should be at least 1")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    figures = []
    for row in args.rows:
        print(row.title, file=sys.stderr)
        folder = args.output_dir / f"{row.variant}_{row.seed}"
        train(row, folder, args)
        figures.append(judge(row, folder / LATEST, args))
    print(format_rows(figures))
    if args.json:
        write_text(args.json, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
