"""Make a checkpoint fit to be shipped: weights and what loading needs, no optimizer, with a model card beside it.

    ./venv/bin/python scripts/export_checkpoint.py --checkpoint checkpoints/trumpet/best.pth \\
        --output checkpoints/pretrained/trumpet.pth \\
        --data "30 minutes rendered by scripts/render_dataset.py from FluidR3 GM" --licence "MIT (Frank Wen)" \\
        --command "train.py --data_dir data/processed/trumpet --checkpoint_dir checkpoints/trumpet"

The new file is loaded again, and must sound like the source to the bit (with ``--half`` to 50 dB below it), before it
takes the place of an older one. The source itself is never changed.
"""

import argparse
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

_LARGE = 2**14  # numbers of a weight that --half keeps in 16 bits: nearly all, and the first layer stays exact
_HALF_DIFFERENCE = -50.0  # dB, of the power of what weights of 16 bits may change to that of the sound


def strip(source: dict[str, Any], path: Path, half: bool = False) -> dict[str, Any]:
    """Return what loading and judging a model needs of a checkpoint: nothing that only training on would use.

    Args:
        source: the checkpoint.
        path: where it is from, for messages.
        half: keep large weights in 16 bits; loading a model widens them again.
    """
    metrics = source["metrics"] or {}
    is_validation = metrics.get("first_val_loss", 0) is not None  # None: nothing was held out, so it is a training loss
    metrics = {"best_val_loss": metrics.get("best_val_loss") if is_validation else None}
    boundary = split_boundary(source)
    stripped = make_checkpoint(
        checkpoint_config(source, path),
        source["instrument"],
        epoch=source["epoch"],
        step=source["step"],
        # A copy: a tensor that is a part of a larger one would be saved with all of it.
        model={
            name: weight.half() if half and weight.numel() >= _LARGE else weight.clone()
            for name, weight in inference_weights(source).items()
        },
        run_name=source["run_name"],
        schedule=None if boundary is None else {"boundary": boundary},  # which recordings were held out
        statistics=source["statistics"],
        metrics=metrics,
    )
    return {**stripped, "config": source["config"]}  # as it was trained, with the sections that loading passes over


def export(source: Path, target: Path, half: bool = False) -> NeuralGuitar:
    """Write the stripped checkpoint to ``target`` and return its model.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or the written file does not sound like it.
        OSError: it cannot be written; what stood at ``target`` stays.
    """
    content = read_checkpoint(source)
    if content["statistics"] is None:
        raise ValueError(f"{source} has no statistics of its training data, without which no voice can be fitted to it")
    with atomic_write(target) as unproven:
        save_checkpoint(unproven, strip(content, source, half))
        model = load_model(unproven)
        _prove(_sample(model), _sample(load_model(source)), source, half)
    return model


def _prove(exported: Tensor, wanted: Tensor, source: Path, half: bool) -> None:
    difference = (exported - wanted).square().mean() / wanted.square().mean()
    if half and not difference < 10 ** (_HALF_DIFFERENCE / 10):
        raise ValueError(f"{source} does not sound the same with weights of 16 bits; export it without --half")
    if not half and difference != 0:
        raise ValueError(f"the exported model does not equal {source}, which may have changed meanwhile; run again")


@torch.inference_mode()
def _sample(model: NeuralGuitar) -> Tensor:
    """Return 2 s of the model: a glide over the pitches and levels that it has heard."""
    n_frames = model.audio.seconds_to_frames(2.0)
    f0, loudness = (
        torch.linspace(values[0], values[-1], n_frames)[None, :, None]
        for values in (model.statistics["f0_quantiles"], model.statistics["loudness_quantiles"])
    )
    seconds = torch.arange(n_frames)[None, :, None] / model.audio.frame_rate  # one pluck, for a model that hears them
    plucks = torch.cat([seconds, loudness], dim=-1) if model.config.onset_inputs else None
    return model(f0, loudness, torch.Generator().manual_seed(0), plucks=plucks)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Strip a checkpoint for use and write its model card.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="from train.py, such as best.pth")
    parser.add_argument("--output", type=Path, required=True, help="such as checkpoints/pretrained/trumpet.pth")
    parser.add_argument("--data", required=True, help="what it was trained on, for the card")
    parser.add_argument("--licence", required=True, help="of that data, for the card")
    parser.add_argument("--command", help="the exact command that trained it, for the card")
    parser.add_argument("--card_note", help="anything else that a user should know, for the card")
    parser.add_argument("--scorecard", type=Path, help="what scripts/evaluate.py --json wrote on it, or on --output")
    parser.add_argument("--half", action="store_true", help="weights of 16 bits: half the size, and sounds the same")
    parser.add_argument("--replace_shipped", action="store_true", help="allow --output to be a shipped model")
    args = parser.parse_args(argv)
    if args.output.suffix != ".pth":
        parser.error(f"--output should end in .pth, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it")
    if args.output.resolve().parent == PRETRAINED_DIR.resolve() and args.output.exists() and not args.replace_shipped:
        parser.error(f"--output {args.output} is a shipped model; name another file, or add --replace_shipped")
    if args.output.resolve() == args.checkpoint.resolve():
        parser.error("--output is the checkpoint itself; export it under another name")
    for name in ("data", "licence"):
        if not getattr(args, name).strip():
            parser.error(f"--{name} is empty; a model without it cannot be passed on")
    return args


@as_command("stopped; what stood there stays")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    card, replaced = args.output.with_suffix(".md"), args.output.exists()
    judged = [args.checkpoint, *([args.output] if replaced else [])]  # or what it was exported to before
    scorecard = format_scorecard(args.scorecard, judged) if args.scorecard else ""
    model = export(args.checkpoint, args.output, args.half)
    text = format_card(args.output, model, args.data, args.licence, args.command, args.card_note, scorecard)
    write_text(card, text)
    done, size = "replaced" if replaced else "written", args.output.stat().st_size / 1e6
    sounds = f"the difference is over {-_HALF_DIFFERENCE:g} dB below the sound of" if args.half else "sounds equal to"
    print(f"{args.output} {done}: {size:.1f} MB, {sounds} {args.checkpoint}; its card is {card}")
    suggest(f"transfer.py --input examples/hum.wav --checkpoint {args.output} --output out/hum.wav")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
