"""The columns of the scorecard, what is to be reached in them, and both as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.scorecard import AUDIBLE, CONFIDENT, OUTLIER, RELEASE


@dataclass(frozen=True)
class Figure:
    """A column of the scorecard."""

    key: str
    head: str
    digits: int
    meaning: str
    limit: float | None = None  # the target
    at_least: bool = False  # the target is a lower limit
    annotated: bool = False  # there only is one where the voice's pitch is annotated

    def is_met(self, value: float | None) -> bool:
        """Say whether a value meets the target; one that could not be measured does not."""
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit


RESYNTHESIS = (
    Figure("stft_loss", "STFT loss", 3, "multi-resolution STFT loss, as in training"),
    Figure("loudness_l1", "loudness L1 dB", 2, f"mean loudness error, frames over {AUDIBLE:g} dB", 1.5),
    Figure("loudness_bias", "bias dB", 2, "mean signed loudness error; below zero the model plays too softly"),
    Figure("f0_l1", "f0 L1 cents", 1, f"mean pitch error, frames of periodicity over {CONFIDENT:g}", 10.0),
    Figure("f0_outliers", "f0 outliers %", 2, f"frames more than {OUTLIER:g} semitones off; not in the mean", 1.0),
    Figure("log_mel", "log-mel dB", 2, "mean difference of 80 mel bands, frames that sound"),
    Figure("rest_level", "rests dBFS", 1, "median level where the recording rests: the model's noise floor"),
    Figure("likeness", "likeness", 2, "timbre: 0 the instrument's own half, 1 the other instrument"),
)
TRANSFER = (
    Figure("f0_median", "f0 median cents", 1, "median pitch error against the pitch fitted to the voice", 10.0),
    Figure("f0_p95", "f0 p95 cents", 1, "95th percentile of it", 50.0),
    Figure("octave", "octave %", 1, "frames in the octave of the voice's annotated pitch", 99.0, True, annotated=True),
    Figure("precision", "precision %", 1, "of the frames that sound, those that should"),
    Figure("recall", "recall %", 1, "of the frames that should sound, those that do"),
    Figure("loudness_correlation", "loudness corr.", 3, "of A-weighted loudness with the voice, in notes", 0.95, True),
    Figure("pause_level", "pauses dBFS", 1, f"95th percentile of the level from {RELEASE:g} s after a note", -70),
    Figure("peak", "peak dBFS", 1, "highest sample"),
    Figure("clipped", "clipped", 0, "samples at or over full scale", 0),
    Figure("out_of_range", "out of range %", 1, "frames asked for outside the instrument's range"),
    Figure("likeness", "likeness", 2, "timbre: 0 the instrument's own half, 1 the other instrument", 0.25),
)
SECTIONS = (("resynthesis", ("sound",), RESYNTHESIS), ("transfer", ("voice", "sound"), TRANSFER))  # of a report


def format_tables(report: dict[str, Any]) -> str:
    """Lay a report out as Markdown tables that can also be read as they stand.

    Args:
        report: from ``scripts/evaluate.py``: ``resynthesis`` and ``transfer``, lists of rows of figures.
    """
    parts = []
    for section, labels, figures in SECTIONS:
        if rows := report[section]:
            cells = [[*labels, *(figure.head for figure in figures)]]
            cells += [_cells(row, labels, figures) for row in rows]
            parts.append(f"{section.capitalize()}\n\n{_format(cells)}")
    return "\n\n".join(parts)


def _cells(row: dict[str, Any], labels: tuple[str, ...], figures: tuple[Figure, ...]) -> list[str]:
    return [*(row[label] for label in labels), *(format_value(row[figure.key], figure.digits) for figure in figures)]


def format_value(value: float | None, digits: int) -> str:
    """Return a figure as the tables show it."""
    return "–" if value is None else f"{value:.{digits}f}"


def _format(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)


def judge_targets(report: dict[str, Any], sound: str) -> list[dict[str, Any]]:
    """Hold the worst figure of one model against each target; a figure that was not measured misses it.

    Where no voice has an annotated pitch, there is no target for what needs it.
    """
    judged = []
    for section, _, figures in SECTIONS:
        rows = [row for row in report[section] if row["sound"] == sound]
        for figure in figures:
            values = [row[figure.key] for row in rows]
            if figure.annotated:
                values = [value for value in values if value is not None]
            if figure.limit is not None and (values or not figure.annotated):
                judged.append(_judge_target(section, figure, values))
    return judged


def _judge_target(section: str, figure: Figure, values: list[float | None]) -> dict[str, Any]:
    measured = [value for value in values if value is not None]
    worst = (min if figure.at_least else max)(measured) if len(measured) == len(values) > 0 else None
    limit = f"{'at least' if figure.at_least else 'at most'} {figure.limit:g}"
    return {"section": section, "figure": figure.head, "worst": worst, "limit": limit, "met": figure.is_met(worst)}


def format_targets(targets: Sequence[dict[str, Any]]) -> str:
    """List the targets, each OK or MISS."""
    rows = [["", "figure", "worst", "target"]]
    for target in targets:
        worst = "not measured" if target["worst"] is None else f"{target['worst']:.4g}"
        verdict = "OK" if target["met"] else "MISS"
        rows.append([verdict, f"{target['section']}: {target['figure']}", worst, target["limit"]])
    return _format(rows)
