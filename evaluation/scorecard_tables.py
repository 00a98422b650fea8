"""The columns of the scorecard, what is to be reached in them, and both as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.scorecard import AUDIBLE_LEVEL, CONFIDENT_PERIODICITY, OUTLIER_SEMITONES, RELEASE_SECONDS


@dataclass(frozen=True)
class Column:
    """A column of the scorecard."""

    key: str
    heading: str
    digits: int
    meaning: str
    limit: float | None = None  # the target
    at_least: bool = False  # the target is a lower limit
    annotated: bool = False  # there only is one where the voice's pitch is annotated

    def is_met(self, value: float | None) -> bool:
        """Return True if a value meets the target; one that could not be measured does not."""
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit


RESYNTHESIS = (
    Column("stft_loss", "STFT loss", 3, "multi-resolution STFT loss, as in training"),
    Column("loudness_l1", "loudness L1 dB", 2, f"mean loudness error, frames over {AUDIBLE_LEVEL:g} dB", 1.5),
    Column("loudness_bias", "bias dB", 2, "mean signed loudness error; below zero the model plays too softly"),
    Column("f0_l1", "f0 L1 cents", 1, f"mean pitch error, frames of periodicity over {CONFIDENT_PERIODICITY:g}", 10.0),
    Column(
        "f0_outliers", "f0 outliers %", 2, f"frames more than {OUTLIER_SEMITONES:g} semitones off; not in the mean", 1.0
    ),
    Column("log_mel", "log-mel dB", 2, "mean difference of 80 mel bands, frames that sound"),
    Column("rest_level", "rests dBFS", 1, "median level where the recording rests: the model's noise floor"),
    Column("likeness", "likeness", 2, "timbre: 0 the instrument's own half, 1 the other instrument"),
)
TRANSFER = (
    Column("f0_median", "f0 median cents", 1, "median pitch error against the pitch fitted to the voice", 10.0),
    Column("f0_p95", "f0 p95 cents", 1, "95th percentile of it", 50.0),
    Column("octave", "octave %", 1, "frames in the octave of the voice's annotated pitch", 99.0, True, annotated=True),
    Column("precision", "precision %", 1, "of the frames that sound, those that should"),
    Column("recall", "recall %", 1, "of the frames that should sound, those that do"),
    Column("loudness_correlation", "loudness corr.", 3, "of A-weighted loudness with the voice, in notes", 0.95, True),
    Column(
        "pause_level", "pauses dBFS", 1, f"95th percentile of the level from {RELEASE_SECONDS:g} s after a note", -70
    ),
    Column("peak", "peak dBFS", 1, "highest sample"),
    Column("clipped", "clipped", 0, "samples at or over full scale", 0),
    Column("out_of_range", "out of range %", 1, "frames asked for outside the instrument's range"),
    Column("likeness", "likeness", 2, "timbre: 0 the instrument's own half, 1 the other instrument", 0.25),
)
SECTIONS = (("resynthesis", ("sound",), RESYNTHESIS), ("transfer", ("voice", "sound"), TRANSFER))  # of a report


def format_tables(report: dict[str, Any]) -> str:
    """Lay a report out as Markdown tables that can also be read as they stand.

    Args:
        report: from ``scripts/evaluate.py``: ``resynthesis`` and ``transfer``, lists of rows of figures.
    """
    parts = []
    for section, labels, columns in SECTIONS:
        if rows := report[section]:
            cells = [[*labels, *(column.heading for column in columns)]]
            cells += [_cells(row, labels, columns) for row in rows]
            parts.append(f"{section.capitalize()}\n\n{_format(cells)}")
    return "\n\n".join(parts)


def _cells(row: dict[str, Any], labels: tuple[str, ...], columns: tuple[Column, ...]) -> list[str]:
    return [*(row[label] for label in labels), *(format_value(row[column.key], column.digits) for column in columns)]


def format_value(value: float | None, digits: int) -> str:
    """Return a figure as the tables show it."""
    return "–" if value is None else f"{value:.{digits}f}"


def _format(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)


def check_targets(report: dict[str, Any], sound: str) -> list[dict[str, Any]]:
    """Hold the worst figure of one model against each target; a figure that was not measured misses it.

    Where no voice has an annotated pitch, there is no target for what needs it.
    """
    judged = []
    for section, _, columns in SECTIONS:
        rows = [row for row in report[section] if row["sound"] == sound]
        for column in columns:
            values = [row[column.key] for row in rows]
            if column.annotated:
                values = [value for value in values if value is not None]
            if column.limit is not None and (values or not column.annotated):
                judged.append(_check_target(section, column, values))
    return judged


def _check_target(section: str, column: Column, values: list[float | None]) -> dict[str, Any]:
    measured = [value for value in values if value is not None]
    worst = (min if column.at_least else max)(measured) if len(measured) == len(values) > 0 else None
    limit = f"{'at least' if column.at_least else 'at most'} {column.limit:g}"
    return {"section": section, "figure": column.heading, "worst": worst, "limit": limit, "met": column.is_met(worst)}


def format_targets(targets: Sequence[dict[str, Any]]) -> str:
    """List the targets, each OK or MISS."""
    rows = [["", "figure", "worst", "target"]]
    for target in targets:
        worst = "not measured" if target["worst"] is None else f"{target['worst']:.4g}"
        verdict = "OK" if target["met"] else "MISS"
        rows.append([verdict, f"{target['section']}: {target['figure']}", worst, target["limit"]])
    return _format(rows)
