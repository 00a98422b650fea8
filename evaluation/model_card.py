"""Model card of an exported model, in Markdown: description, training data, scorecard and limits."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from checkpoint import PRETRAINED_DIR, read_checkpoint
from evaluation.scorecard_tables import format_tables, format_targets
from model import NeuralGuitar
from sound.atomic_files import hash_file

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
- Range of the training data: {f0_low:.0f} to {f0_high:.0f} Hz, {loudness_low:.0f} to {loudness_high:.0f} dB \
(A-weighted, re full scale; the middle 98 % of the frames).

## Training

{training}

{scorecard}## Use

```bash
{usage}
```

It turns a sung, hummed or whistled melody, or curves from a file, into {instrument} sound.

## Limits

- One note at a time.
- It extrapolates outside the range of the training data.
- No sound above {highest:,} Hz.
- It reproduces the players, the room and the faults of its training data.
{note}"""


_SCORECARD = """## Scorecard

Measured by `scripts/evaluate.py` on {date}; docs/judging.md says what each figure means.
{baseline}
{tables}

Targets

{targets}

"""


def format_scorecard(path: Path, checkpoints: Sequence[Path]) -> str:
    """Return the card's section with the main figures of the report at ``path``, written by scripts/evaluate.py.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a report, or not of one of these checkpoints.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        date, judged, name = report["date"][:10], report["sha256"], report["checkpoint"]
        baseline = f"Baselines: {'; '.join(report['baselines'])}.\n" if report["baselines"] else ""
        tables, targets = format_tables(report, sanity=False), format_targets(report["targets"])
        text = _SCORECARD.format(date=date, baseline=baseline, tables=tables, targets=targets)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of scripts/evaluate.py --json") from error
    if judged not in map(hash_file, checkpoints):
        files = " or ".join(map(str, checkpoints))
        raise ValueError(f"{path} judges another file ({name}) than {files}; run scripts/evaluate.py on that")
    return text


def format_card(
    path: Path,
    model: NeuralGuitar,
    data: str,
    licence: str,
    command: str | None = None,
    note: str | None = None,
    scorecard: str = "",
) -> str:
    """Describe the exported model at ``path`` in Markdown.

    Args:
        path: the checkpoint.
        model: the model loaded from it.
        data: description of the training data.
        licence: licence of that data.
        command: the training command.
        note: further information for users.
        scorecard: the section with the figures, from ``format_scorecard``.
    """
    content = read_checkpoint(path)
    best = content["metrics"]["best_val_loss"]
    f0, loudness = model.statistics["f0_quantiles"], model.statistics["loudness_quantiles"]
    training = f"```bash\n{command}\n```" if command else "The command was not recorded."
    return _CARD.format(
        title=f"{model.instrument.capitalize()}, preset {content['preset']}",
        instrument=model.instrument,
        preset=content["preset"],
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        sample_rate=model.audio.sample_rate,
        frame_rate=model.audio.frame_rate,
        highest=round(model.bandwidth),
        file_name=path.name,
        size=path.stat().st_size,
        sha256=hash_file(path),
        epoch=content["epoch"] or 0,
        step=content["step"] or 0,
        best_val_loss=f"{best:.4f}" if best is not None and math.isfinite(best) else "not measured",
        data=data,
        licence=licence,
        f0_low=f0[1],
        f0_high=f0[-2],
        loudness_low=loudness[1],
        loudness_high=loudness[-2],
        training=training,
        scorecard=scorecard,
        usage=_usage(path, model.instrument),
        note=f"\n## Note\n\n{note}\n" if note else "",
    )


def _usage(path: Path, instrument: str) -> str:
    shipped = path.resolve() == (PRETRAINED_DIR / f"{instrument}.pth").resolve()
    choice = f"--instrument {instrument}" if shipped else f"--checkpoint {shlex.quote(str(path))}"
    return f"./venv/bin/python transfer.py --input examples/hum.wav {choice} --output out/hum_{instrument}.wav"
