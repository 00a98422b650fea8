"""Change a model one thing at a time: train each variant on the same data, seed and schedule, and judge them alike.

    ./venv/bin/python scripts/ablate.py --data_dir data/processed/trumpet --other_dir data/processed/guitar \\
        --input examples/hum.wav --epochs 2 --half_life 250 --output_dir out/ablation --json out/ablation.json

Each row is a training of its own, by train.py in a process of its own, in ``--output_dir``. Stop it at any time: the
same command goes on where it was, and with more ``--epochs`` all rows train on. A row that was begun on other
recordings or with other settings is refused, for it would not compare. ``solo:1`` is the row solo with seed 1: what
seeds alone change is what a difference has to exceed.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import LATEST, checkpoint_config, load_model, read_checkpoint
from config import (
    DEFAULT_CONFIG_PATH,
    Config,
    architecture_differences,
    config_from_dict,
    config_to_dict,
    get_device,
    training_changes,
)
from data import list_recordings
from evaluation import judging
from evaluation.scorecard_tables import RESYNTHESIS, TRANSFER, Column, format_value
from sound.atomic_files import hash_file, write_text

ROOT = Path(__file__).parents[1]
log = logging.getLogger("ablate")
_WEIGHTED = {"amplitude": "weighted", "initial_gain": 1.0, "noise_bias": -9.0}
_PROJECTED = {**_WEIGHTED, "embed_size": 128, "projection_size": 256}
Changes = dict[str, dict[str, Any]]  # section of config.json to keys and values

VARIANTS: dict[str, tuple[str, str, Changes]] = {  # name: what it is, the preset it starts from, what is changed
    "tiny": ("`tiny`, the baseline", "tiny", {}),
    "head": ("and an amplitude head", "tiny", {"model": {"amplitude": "head"}}),
    "weighted": ("amplitude by A-weighting instead", "tiny", {"model": _WEIGHTED}),
    "embed": ("and a network of 128 before the GRU", "tiny", {"model": {**_WEIGHTED, "embed_size": 128}}),
    "projection": ("and one of 256 behind it: `solo` without the rise", "tiny", {"model": _PROJECTED}),
    "solo": ("and the rise of loudness is heard: `solo`", "solo", {}),
    "ema": ("without the rise, weights averaged", "tiny", {"model": _PROJECTED, "train": {"ema_decay": 0.99}}),
    "jitter": (
        "without the rise, inputs waver", "tiny",
        {"model": _PROJECTED, "train": {"f0_jitter": 30.0, "loudness_jitter": 2.0}},
    ),
    "smoothing": (
        "without the rise, inputs smoothed", "tiny", {"model": _PROJECTED, "train": {"input_smoothing": 0.05}},
    ),
    "mel": ("without the rise, log-mel loss", "tiny", {"model": _PROJECTED, "loss": {"mel_loss_weight": 0.5}}),
    "reverb": ("without the rise, learned reverb", "tiny", {"model": {**_PROJECTED, "reverb_seconds": 0.3}}),
}  # fmt: skip
# Pitch and pauses are exact by construction: no variant changes them.
_COPIES = ("stft_loss", "log_mel", "loudness_l1", "likeness")
_PLAYED = ("loudness_correlation", "likeness")


@dataclass(frozen=True)
class Row:
    """One training."""

    variant: str
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """What the table calls it."""
        return VARIANTS[self.variant][0] + (f", seed {self.seed}" if self.seed else "")


def read_row(text: str, output_dir: Path) -> Row:
    """Return the row that "solo" or "solo:1" names.

    Raises:
        ValueError: there is no such variant, or the seed is no number.
    """
    variant, _, seed = text.partition(":")
    if variant not in VARIANTS or not (seed or "0").isdigit():
        raise ValueError(f"there is no row '{text}'; rows are {', '.join(VARIANTS)}, with a seed as solo:1")
    return Row(variant, int(seed or 0), output_dir / f"{variant}_{int(seed or 0)}")


# --- training -------------------------------------------------------------------------------------


def configure(variant: str, half_life: int) -> dict[str, Any]:
    """Return the content of a config.json whose preset ``variant`` is that variant, with the given schedule."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    _, preset, changes = VARIANTS[variant]
    sections = dict(content["presets"][preset])
    for name, values in (*changes.items(), ("train", {"learning_rate_half_life": half_life})):
        sections[name] = {**sections.get(name, {}), **values}
    return {**content, "presets": {"tiny": {}, variant: sections}}


def identify(source: Path) -> str:
    """Return what is the same for the same recordings, or voices, whatever they are called, and for no others.

    Raises:
        FileNotFoundError, ValueError: there are none.
    """
    paths = list_recordings(source) or judging.find_sound_files([source])
    return _digest(sorted(map(hash_file, paths)))


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def train_row(row: Row, args: argparse.Namespace) -> None:
    """Train a row to its end, from wherever it stands.

    Raises:
        ValueError: it was begun otherwise, or train.py failed; it has said why.
    """
    latest, recordings = row.folder / LATEST, row.folder / "recordings.sha256"
    if latest.exists():
        _require_same(row, args, recordings)
    write_text(recordings, args.found[args.data_dir])
    if latest.exists() and read_checkpoint(latest)["epoch"] >= args.epochs:
        return
    config = row.folder / "config.json"
    config.write_text(json.dumps(configure(row.variant, args.half_life), indent=2))
    flags = {
        "config": config, "config_name": row.variant, "seed": row.seed, "data_dir": args.data_dir.resolve(),
        "checkpoint_dir": row.folder, "runs_dir": row.folder / "runs", "epochs": args.epochs,
        "batch_size": args.batch_size, "device": args.device, "wandb_mode": "disabled",
    }  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it too: it saves
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"the training of {row.title} failed, see above")


def _require_same(row: Row, args: argparse.Namespace, recordings: Path) -> None:
    """Raise ValueError if a training was begun on other recordings, or with other settings, than are asked for now."""
    path, wanted = row.folder / LATEST, _settings(row.variant, args.half_life)
    wanted = dataclasses.replace(wanted, train=dataclasses.replace(wanted.train, batch_size=args.batch_size))
    content = read_checkpoint(path)
    changes = architecture_differences(checkpoint_config(content, path, wanted), wanted)
    changes += [f"{name} {change}" for name, change in training_changes(content["config"], wanted).items()]
    if recordings.exists() and recordings.read_text() != args.found[args.data_dir]:
        changes.append(f"{args.data_dir} held other recordings")
    if changes:
        raise ValueError(
            f"{row.folder} was begun otherwise, so its figures would not compare: {'; '.join(changes)}. "
            f"Give another --output_dir, or delete that folder to train it anew"
        )


def _settings(variant: str, half_life: int) -> Config:
    content = configure(variant, half_life)
    changes = content["presets"][variant]
    sections = {name: {**values, **changes.get(name, {})} for name, values in content["base"].items()}
    return config_from_dict({"preset": variant, "instruments": content["instruments"], **sections})


# --- judging --------------------------------------------------------------------------------------


def judge_row(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a trained row, from its last judgement where nothing has changed since."""
    path, kept = row.folder / LATEST, row.folder / "figures.json"
    content = read_checkpoint(path)
    sources = [args.found.get(source) for source in (args.data_dir, args.other_dir, *args.input)]
    asked = _digest([hash_file(path), config_to_dict(checkpoint_config(content, path)), *sources])
    if kept.exists() and (known := json.loads(kept.read_text()))["asked"] == asked:
        return known
    model = load_model(path, get_device(args.device))
    models, takes = {judging.MODEL: model}, judging.read_takes(args.data_dir, model, own=True, trained=content)
    others = judging.read_takes(args.other_dir, model, own=False) if args.other_dir else []
    instrument = judging.build_timbre_reference(takes, others)
    copies = judging.evaluate_takes(takes, models, instrument, seed=0)[0][0]
    voices = [
        rows[0]
        for path in judging.find_sound_files(args.input)
        for rows, _ in judging.evaluate_voice(path, models, instrument, None, seed=0)
    ]
    figures = {
        "asked": asked,
        "row": row.title,
        "variant": row.variant,
        "seed": row.seed,
        "steps": content["step"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "copies": {name: copies[name] for name in _COPIES},
        "played": {name: _worst(name, [voice[name] for voice in voices]) for name in _PLAYED},
    }
    write_text(kept, json.dumps(figures, indent=2))
    return figures


def _worst(name: str, values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return min(measured) if _figure(TRANSFER, name).at_least else max(measured)


def _figure(figures: Sequence[Column], key: str) -> Column:
    return next(figure for figure in figures if figure.key == key)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table: copies of held-out recordings, then the voices, each row's worst."""
    columns = [("copies", _figure(RESYNTHESIS, name)) for name in _COPIES]
    columns += [("played", _figure(TRANSFER, name)) for name in _PLAYED]
    heads = ["change", "steps", *(f"{figure.heading}{', voice' * (kind == 'played')}" for kind, figure in columns)]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        values = (format_value(row[kind][figure.key], figure.digits) for kind, figure in columns)
        lines.append([row["row"], f"{row['steps']:,}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- command line ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train variants of a model alike, and judge them alike.")
    parser.add_argument("--data_dir", type=Path, required=True, help="processed recordings of the instrument")
    parser.add_argument("--other_dir", type=Path, help="of another instrument, the 1 of likeness")
    parser.add_argument("--input", type=Path, nargs="+", default=[], help="voices: sound files, or folders of them")
    parser.add_argument("--rows", nargs="+", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default 2)")
    parser.add_argument("--batch_size", type=int, default=16, help="crops a step (default 16)")
    parser.add_argument("--half_life", type=int, default=250, help="steps that halve the learning rate (default 250)")
    parser.add_argument("--output_dir", type=Path, required=True, help="the trainings, each in a folder of its own")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "half_life"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    try:
        args.rows = [read_row(text, args.output_dir) for text in args.rows]
    except ValueError as error:
        parser.error(f"--rows: {error}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.found = {source: identify(source) for source in (args.data_dir, args.other_dir, *args.input) if source}
        figures = []
        for row in args.rows:
            log.info("%s", row.title)
            train_row(row, args)
            figures.append(judge_row(row, args))
        print(format_table(figures))
        if args.json:
            write_text(args.json, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        log.error("ablate.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("ablate.py: stopped; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
