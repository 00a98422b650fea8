"""Export a checkpoint for distribution: weights and settings without the optimizer, and a model card.

    ./venv/bin/python scripts/export_checkpoint.py --checkpoint checkpoints/trumpet/best.pth \\
        --output checkpoints/pretrained/trumpet.pth \\
        --data "30 minutes rendered by scripts/render_dataset.py from FluidR3 GM" --licence "MIT (Frank Wen)" \\
        --command "train.py --data_dir data/processed/trumpet --checkpoint_dir checkpoints/trumpet"

Before the new file replaces an older one, it is loaded and compared with the source: its sound must be equal to the
bit, or with ``--half`` differ by at most -50 dB. The source is never changed.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoint import (
    PRETRAINED_DIR,
    checkpoint_config,
    inference_weights,
    load_model,
    make_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from evaluation.model_card import format_card, format_scorecard
from model import NeuralGuitar
from recordings.corpus import split_boundary
from sound.atomic_files import atomic_write, write_text
from sound.console import as_command, command_parser, suggest

_LARGE = 2**14  # elements of a weight from which --half stores it in 16 bits: nearly all, but not the first layer
_HALF_DIFFERENCE = -50.0  # dB, maximum power of the difference that 16-bit weights make, relative to the sound


def raise_high_noise(bias: Tensor, decibels: float, sample_rate: int) -> Tensor:
    """Return the bias of the noise bands [K] with the bands above 8 kHz raised, by a ramp from 7 to 9 kHz.

    A model learns the mean spectrum, and the clicks and hisses of an instrument exceed it.
    """
    frequencies = torch.linspace(0, sample_rate / 2, len(bias))
    nepers = decibels / 20 * math.log(10)  # quiet bands lie where the sigmoid is an exponential
    return bias + nepers * ((frequencies - 7000) / 2000).clamp(0, 1).to(bias)


def strip(source: dict[str, Any], path: Path, half: bool = False) -> dict[str, Any]:
    """Return the parts of a checkpoint that loading and evaluating a model needs, without those for training.

    Args:
        source: the checkpoint.
        path: its path, for messages.
        half: store large weights in 16 bits; loading converts them to 32.
    """
    metrics = source["metrics"] or {}
    is_validation = metrics.get("first_val_loss", 0) is not None  # None: nothing held out, the best is a training loss
    metrics = {"best_val_loss": metrics.get("best_val_loss") if is_validation else None}
    boundary = split_boundary(source)
    stripped = make_checkpoint(
        checkpoint_config(source, path),
        source["instrument"],
        epoch=source["epoch"],
        step=source["step"],
        # Copies: a view would be saved with its whole storage.
        model={
            name: weight.half() if half and weight.numel() >= _LARGE else weight.clone()
            for name, weight in inference_weights(source).items()
        },
        run_name=source["run_name"],
        schedule=None if boundary is None else {"boundary": boundary},  # which recordings were held out
        statistics=source["statistics"],
        metrics=metrics,
    )
    return {**stripped, "config": source["config"]}  # as trained, with the sections that loading ignores


def export(source: Path, target: Path, half: bool = False, high_noise: float = 0.0) -> NeuralGuitar:
    """Write the stripped checkpoint to ``target`` and return its model.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or the written file does not sound the same.
        OSError: the file cannot be written; an existing ``target`` is unchanged.
    """
    content = read_checkpoint(source)
    if content["statistics"] is None:
        raise ValueError(f"{source} has no statistics of its training data, which are needed to fit a voice to it")
    with atomic_write(target) as unproven:
        stripped, wanted = strip(content, source, half), load_model(source)
        if high_noise:
            rate, name = wanted.audio.sample_rate, "noise_head.bias"
            if rate < 18000:
                raise ValueError(f"{source} makes sound at {rate} Hz: --high_noise raises what is above 8 kHz")
            stripped["model"][name] = raise_high_noise(stripped["model"][name], high_noise, rate)
            wanted.noise_head.bias.data = raise_high_noise(wanted.noise_head.bias.data, high_noise, rate)
        save_checkpoint(unproven, stripped)
        model = load_model(unproven)
        _require_same_sound(_sample(model), _sample(wanted), source, half)
    return model


def _require_same_sound(exported: Tensor, wanted: Tensor, source: Path, half: bool) -> None:
    difference = (exported - wanted).square().mean() / wanted.square().mean()
    if half and not difference < 10 ** (_HALF_DIFFERENCE / 10):
        raise ValueError(f"{source} does not sound the same with 16-bit weights; export it without --half")
    if not half and difference != 0:
        raise ValueError(f"the exported model does not equal {source}, which may have changed; run the command again")


@torch.inference_mode()
def _sample(model: NeuralGuitar) -> Tensor:
    """Return 2 s of the model's sound: a glide over the pitches and levels of its training data."""
    n_frames = model.audio.seconds_to_frames(2.0)
    f0, loudness = (
        torch.linspace(values[0], values[-1], n_frames)[None, :, None]
        for values in (model.statistics["f0_quantiles"], model.statistics["loudness_quantiles"])
    )
    seconds = torch.arange(n_frames)[None, :, None] / model.audio.frame_rate  # one pluck, for onset_inputs
    plucks = torch.cat([seconds, loudness], dim=-1) if model.config.onset_inputs else None
    return model(f0, loudness, torch.Generator().manual_seed(0), plucks=plucks)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Strip a checkpoint for use and write its model card.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of train.py, such as best.pth")
    parser.add_argument("--output", type=Path, required=True, help="such as checkpoints/pretrained/trumpet.pth")
    parser.add_argument("--data", required=True, help="training data, for the card")
    parser.add_argument("--licence", required=True, help="licence of the data, for the card")
    parser.add_argument("--command", help="command that trained the model, for the card")
    parser.add_argument("--card_note", help="further text for the card")
    parser.add_argument("--scorecard", type=Path, help="scripts/evaluate.py --json of this checkpoint or of --output")
    parser.add_argument("--half", action="store_true", help="store weights in 16 bits: half the size, same sound")
    parser.add_argument(
        "--high_noise", type=float, default=0.0, metavar="DB", help="raise the noise above 8 kHz, up to 20 (default: 0)"
    )
    parser.add_argument("--replace_shipped", action="store_true", help="allow --output to be a shipped model")
    args = parser.parse_args(argv)
    if args.output.suffix != ".pth":
        parser.error(f"--output must end in .pth, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; give the name of a file in it")
    if args.output.resolve().parent == PRETRAINED_DIR.resolve() and args.output.exists() and not args.replace_shipped:
        parser.error(f"--output {args.output} is a shipped model; give another name, or add --replace_shipped")
    if args.output.resolve() == args.checkpoint.resolve():
        parser.error("--output is the same file as --checkpoint; give another name")
    if not 0 <= args.high_noise <= 20:
        parser.error(f"--high_noise should be 0 to 20 dB, not {args.high_noise}")
    for name in ("data", "licence"):
        if not getattr(args, name).strip():
            parser.error(f"--{name} is empty; a model cannot be distributed without it")
    return args


@as_command("stopped; existing files are unchanged")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    card, replaced = args.output.with_suffix(".md"), args.output.exists()
    judged = [args.checkpoint, *([args.output] if replaced else [])]  # a scorecard may be of the earlier export
    scorecard = format_scorecard(args.scorecard, judged) if args.scorecard else ""
    model = export(args.checkpoint, args.output, args.half, args.high_noise)
    raised = f"{args.high_noise:g} dB more noise above 8 kHz" if args.high_noise else ""
    note = " ".join(filter(None, (args.card_note, raised and f"Exported with {raised}.")))
    text = format_card(args.output, model, args.data, args.licence, args.command, note or None, scorecard)
    write_text(card, text)
    done, size = "replaced" if replaced else "written", args.output.stat().st_size / 1e6
    sounds = f"differs by less than {_HALF_DIFFERENCE:g} dB from" if args.half else "sounds equal to"
    also = f", with {raised}" if raised else ""
    print(f"{args.output} {done}: {size:.1f} MB, {sounds} {args.checkpoint}{also}; model card: {card}")
    suggest("transfer.py --input examples/hum.wav --checkpoint {} --output out/hum.wav", args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
