"""Make a checkpoint fit to be shipped: weights and what loading needs, no optimizer, with a model card beside it.

    ./venv/bin/python scripts/export_checkpoint.py --checkpoint checkpoints/trumpet/best.pth \\
        --output checkpoints/pretrained/trumpet.pth \\
        --data "30 minutes rendered by scripts/render_dataset.py from FluidR3 GM" --licence "MIT (Frank Wen)" \\
        --command "train.py --data_dir data/processed/trumpet --checkpoint_dir checkpoints/trumpet"

The new file is loaded again, and must sound like the source to the bit (with ``--half`` to 50 dB below it), before it
takes the place of an older one. The source itself is never changed.
"""

import argparse
import json
import logging
import math
import shlex
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
from evaluation.scorecard_tables import format_tables, format_targets
from model import NeuralGuitar
from recordings.corpus import split_boundary
from sound.atomic_files import atomic_write, hash_file, write_text

log = logging.getLogger("export_checkpoint")
_HALF_DIFFERENCE = -50.0  # dB, of the power of what weights of 16 bits may change to that of the sound

_CARD = """# {title}

A model that plays {instrument} from a pitch curve and a loudness curve: harmonic oscillators and filtered noise,
controlled by a small network (DDSP, Engel et al., ICLR 2020).

| | |
|---|---|
| instrument | {instrument} |
| preset | `{preset}` |
| parameters | {n_parameters:,} |
| sound | {sample_rate:,} Hz, {frame_rate:g} frames a second |
| file | `{file_name}`, {size:,} bytes |
| sha256 | `{sha256}` |
| trained for | {epoch} epochs, {step:,} steps |
| best validation loss | {best_val_loss} |

## Data and licence

- Training data: {data}
- Licence of the training data: {licence}
- The model heard pitches from {f0_low:.0f} to {f0_high:.0f} Hz and loudness from {loudness_low:.0f} to \
{loudness_high:.0f} dB (A-weighted, re full scale; the middle 98 % of its frames).

## Training

{training}

{scorecard}## Use

```bash
{usage}
```

It is meant for turning a sung, hummed or whistled melody, or curves of one's own, into {instrument} sound.

## Limits

- One note at a time.
- Outside the pitches and levels above it extrapolates.
- Nothing over {nyquist:,} Hz.
- It sounds like its training data, with the players, the room and the faults that are in it.
{note}"""


_SCORECARD = """## Scorecard

Measured by `scripts/evaluate.py` on {date}. The section "Judging a model" of the README says what each figure means.
{baseline}
{tables}

Targets

{targets}

"""


def strip(source: dict[str, Any], path: Path, half: bool = False) -> dict[str, Any]:
    """Return what loading and judging a model needs of a checkpoint: nothing that only training on would use.

    Args:
        source: the checkpoint.
        path: where it is from, for messages.
        half: keep weights in 16 bits; loading a model widens them again.
    """
    metrics = {"best_val_loss": (source["metrics"] or {}).get("best_val_loss")}
    boundary = split_boundary(source)
    stripped = make_checkpoint(
        checkpoint_config(source, path),
        source["instrument"],
        epoch=source["epoch"],
        step=source["step"],
        # A copy: a tensor that is a part of a larger one would be saved with all of it.
        model={name: weight.half() if half else weight.clone() for name, weight in inference_weights(source).items()},
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
    return model(f0, loudness, torch.Generator().manual_seed(0))


def format_scorecard(path: Path, checkpoint: Path) -> str:
    """Return the card's section with the figures that scripts/evaluate.py wrote to ``path``.

    Raises:
        OSError: it cannot be read.
        ValueError: no such report, or of another checkpoint than this one.
    """
    try:
        report = json.loads(path.read_text())
        date, judged, name = report["date"][:10], report["sha256"], report["checkpoint"]
        baseline = f"The baseline is {report['baseline']}.\n" if report["baseline"] else ""
        tables, targets = format_tables(report), format_targets(report["targets"])
        text = _SCORECARD.format(date=date, baseline=baseline, tables=tables, targets=targets)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of scripts/evaluate.py --json") from error
    if judged != hash_file(checkpoint):
        raise ValueError(f"{path} judges another file ({name}) than {checkpoint}; run scripts/evaluate.py on this one")
    return text


def format_card(path: Path, model: NeuralGuitar, args: argparse.Namespace, scorecard: str = "") -> str:
    """Describe the exported model at ``path`` in Markdown; ``scorecard`` is the section with its figures."""
    content = read_checkpoint(path)
    best = content["metrics"]["best_val_loss"]
    f0, loudness = model.statistics["f0_quantiles"], model.statistics["loudness_quantiles"]
    command = f"```bash\n{args.command}\n```" if args.command else "The command was not recorded."
    return _CARD.format(
        title=f"{model.instrument.capitalize()}, preset {content['preset']}",
        instrument=model.instrument,
        preset=content["preset"],
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        sample_rate=model.audio.sample_rate,
        frame_rate=model.audio.frame_rate,
        nyquist=model.audio.sample_rate // 2,
        file_name=path.name,
        size=path.stat().st_size,
        sha256=hash_file(path),
        epoch=content["epoch"],
        step=content["step"],
        best_val_loss=f"{best:.4f}" if best is not None and math.isfinite(best) else "not measured",
        data=args.data,
        licence=args.licence,
        f0_low=f0[1],
        f0_high=f0[-2],
        loudness_low=loudness[1],
        loudness_high=loudness[-2],
        training=command,
        scorecard=scorecard,
        usage=_usage(path, model.instrument),
        note=f"\n## Note\n\n{args.card_note}\n" if args.card_note else "",
    )


def _usage(path: Path, instrument: str) -> str:
    shipped = path.resolve() == (PRETRAINED_DIR / f"{instrument}.pth").resolve()
    choice = f"--instrument {instrument}" if shipped else f"--checkpoint {shlex.quote(str(path))}"
    return f"./venv/bin/python transfer.py --input examples/hum.wav {choice} --output out/hum_{instrument}.wav"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strip a checkpoint for use and write its model card.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="from train.py, such as best.pth")
    parser.add_argument("--output", type=Path, required=True, help="such as checkpoints/pretrained/trumpet.pth")
    parser.add_argument("--data", required=True, help="what it was trained on, for the card")
    parser.add_argument("--licence", required=True, help="of that data, for the card")
    parser.add_argument("--command", help="the exact command that trained it, for the card")
    parser.add_argument("--card_note", help="anything else that a user should know, for the card")
    parser.add_argument("--scorecard", type=Path, help="what scripts/evaluate.py --json wrote on this checkpoint")
    parser.add_argument("--half", action="store_true", help="weights of 16 bits: half the size, and sounds the same")
    args = parser.parse_args(argv)
    if args.output.suffix != ".pth":
        parser.error(f"--output should end in .pth, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it")
    if args.output.resolve() == args.checkpoint.resolve():
        parser.error("--output is the checkpoint itself; export it under another name")
    for name in ("data", "licence"):
        if not getattr(args, name).strip():
            parser.error(f"--{name} is empty; a model without it cannot be passed on")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card, replaced = args.output.with_suffix(".md"), args.output.exists()
    try:
        scorecard = format_scorecard(args.scorecard, args.checkpoint) if args.scorecard else ""
        model = export(args.checkpoint, args.output, args.half)
        write_text(card, format_card(args.output, model, args, scorecard))
    except (ValueError, OSError) as error:
        log.error("export_checkpoint.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("export_checkpoint.py: stopped; what stood there stays")
        return 130
    done, size = "replaced" if replaced else "written", args.output.stat().st_size / 1e6
    sounds = f"the difference is over {-_HALF_DIFFERENCE:g} dB below the sound of" if args.half else "sounds equal to"
    print(f"{args.output} {done}: {size:.1f} MB, {sounds} {args.checkpoint}; its card is {card}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
