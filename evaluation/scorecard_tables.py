"""Columns of the scorecard, their targets, and formatting of both as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distributions import UNITS
from evaluation.scorecard import AUDIBLE_LEVEL, RELEASE_SECONDS

_RECOGNISED = {"trumpet": 75.0, "guitar": 90.0}  # % of the seconds of voices
_RECOGNISED_OTHERS = 65.0
_OF_RECORDING = 0.8  # relative to the recording's own rate, which is the upper limit for a copy


@dataclass(frozen=True)
class Column:
    """Column of the scorecard."""

    key: str
    heading: str
    digits: int
    meaning: str
    limit: float | None = None  # the target
    at_least: bool = False  # the target is a lower limit
    sanity: bool = False  # holds by construction: an untrained model passes it too
    plucked: bool = False  # target for plucked instruments only

    def limit_in(self, report: dict[str, Any], section: str) -> float | None:
        """Return the target for a report's instrument, or None if there is none."""
        if self.key == "recognised" and section == "transfer":
            return _RECOGNISED.get(report["instrument"], _RECOGNISED_OTHERS)
        if self.key == "recognised":
            recording = report[section][-1]["recognised"]  # the last row
            return None if recording is None else _OF_RECORDING * recording
        return self.limit if report["plucked"] or not self.plucked else None

    def is_met(self, value: float | None, limit: float | None) -> bool:
        """Return True if a value meets the target, or if the value or the target is None."""
        if value is None or limit is None:
            return True
        return value >= limit if self.at_least else value <= limit


_RECOGNITION = Column(
    "recognised", "recognised %", 0, "seconds that the recogniser classifies as the instrument", None, True
)
_OVER_TIME = tuple(
    Column(key, f"{heading} {UNITS[key]}", 1, f"{meaning}: distance of its distribution to the recordings'", limit)
    for key, heading, meaning, limit in (
        ("brightness", "brightness", "energy above 2 kHz at equal level and pitch", 3.0),
        ("brightness_after_onset", "after onset", "energy above 2 kHz in the first second of notes", 3.0),
    )
) + tuple(
    Column(key, f"{heading} {UNITS[key]}", 1, f"{meaning}: distance of its distribution", limit, plucked=True)
    for key, heading, meaning, limit in (
        ("attack", "attack", "time from 20 dB below a note's peak to the peak", 10.0),
        ("early_decay", "decay", "fall from 0.05 to 0.5 s after the peak", 6.0),
        ("late_decay", "late decay", "fall from 0.5 to 2 s after the peak", 6.0),
    )
)
RESYNTHESIS = (
    Column("log_mel", "log-mel dB", 2, "mean difference of mel bands, up to the recording's bandwidth", 4.0),
    Column("log_mel_8k", "to 8 kHz dB", 2, "the same up to 8 kHz, for models of all sample rates"),
    Column("over_8k", "over 8 kHz dB", 1, "difference of the energy above 8 kHz, at equal level", 4.0),
    Column("stft_loss", "STFT loss", 2, "multi-resolution STFT loss, up to the recording's bandwidth", 1.5),
    _RECOGNITION,
    *_OVER_TIME,
    Column(
        "loudness_l1",
        "loudness L1 dB",
        2,
        f"mean absolute error of frames above {AUDIBLE_LEVEL:g} dB",
        1.5,
        sanity=True,
    ),
    Column("loudness_bias", "bias dB", 2, "mean signed error; negative if the model plays too softly", sanity=True),
    Column("rest_level", "rests dBFS", 1, "median level in the rests of the recording: the noise floor", sanity=True),
)
TRANSFER = (
    _RECOGNITION,
    *_OVER_TIME,
    Column("f0_median", "f0 median cents", 1, "median error against the pitch fitted to the voice", 10.0, sanity=True),
    Column("f0_p95", "f0 p95 cents", 1, "95th percentile of this error", 50.0, sanity=True),
    Column("octave", "octave %", 1, "frames in the octave of the voice's annotated pitch", 99.0, True, sanity=True),
    Column("precision", "precision %", 1, "sounding frames that should sound", sanity=True),
    Column("recall", "recall %", 1, "frames that should sound and do", sanity=True),
    Column("loudness_correlation", "loudness corr.", 3, "with the input loudness, in notes", 0.95, True, sanity=True),
    Column(
        "pause_level",
        "pauses dBFS",
        1,
        f"95th percentile of the level from {RELEASE_SECONDS:g} s after a note",
        -70,
        sanity=True,
    ),
    Column("peak", "peak dBFS", 1, "highest sample", sanity=True),
    Column("clipped", "clipped", 0, "samples at or above full scale", 0, sanity=True),
    Column("out_of_range", "out of range %", 1, "input frames outside the instrument's range", sanity=True),
)
SECTIONS = (("resynthesis", ("sound",), RESYNTHESIS), ("transfer", ("voice", "sound"), TRANSFER))  # in a report


def format_tables(report: dict[str, Any], sanity: bool = True) -> str:
    """Format a report as aligned Markdown tables, with separate tables for the sanity figures.

    Args:
        report: report of ``scripts/evaluate.py`` with ``resynthesis`` and ``transfer``, lists of rows.
        sanity: include the tables of the figures that an untrained model passes too.
    """
    parts = []
    for title, section, labels, columns in tables_of(report, sanity):
        cells = [[*labels, *(column.heading for column in columns)]]
        cells += [_cells(row, labels, columns) for row in report[section]]
        parts.append(f"{title}\n\n{_format(cells)}")
    return "\n\n".join(parts)


def tables_of(report: dict[str, Any], sanity: bool = True) -> list[tuple[str, str, tuple[str, ...], list[Column]]]:
    """Return title, section, label columns and figure columns of each table of a report."""
    return [
        (f"{section.capitalize()}{', sanity' * kind}", section, labels, [c for c in columns if c.sanity == kind])
        for kind in sorted({False, sanity})
        for section, labels, columns in SECTIONS
        if report[section]
    ]


def _cells(row: dict[str, Any], labels: tuple[str, ...], columns: tuple[Column, ...]) -> list[str]:
    return [*(row[label] for label in labels), *(format_value(row[column.key], column.digits) for column in columns)]


def format_value(value: float | None, digits: int) -> str:
    """Format a figure for the tables."""
    return "–" if value is None else f"{value:.{digits}f}"


def _format(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)


def check_targets(report: dict[str, Any], sound: str) -> list[dict[str, Any]]:
    """Compare one model's figures with each target: the mean over voices, or the worst voice for sanity figures.

    Figures that were not measured, such as pitch without an annotation, do not count as a miss.
    """
    judged = []
    for section, _, columns in SECTIONS:
        rows = [row for row in report[section] if row["sound"] == sound]
        for column in columns:
            limit = column.limit_in(report, section) if rows else None
            values = [row[column.key] for row in rows if row[column.key] is not None]
            if limit is not None:
                judged.append(_check_target(section, column, values, limit))
    return judged


def _check_target(section: str, column: Column, values: list[float], limit: float) -> dict[str, Any]:
    value = None
    if values:
        worst = min if column.at_least else max
        value = float(worst(values)) if column.sanity else sum(values) / len(values)
    return {
        "section": section,
        "figure": column.heading,
        "value": value,
        "limit": f"{'at least' if column.at_least else 'at most'} {limit:.3g}",
        "met": column.is_met(value, limit),
        "sanity": column.sanity,
    }


def format_targets(targets: Sequence[dict[str, Any]]) -> str:
    """Format the targets as a table, each with OK, MISS or not measured."""
    rows = [["", "figure", "value", "target"]]
    for target in targets:
        verdict = "" if target["value"] is None else "OK" if target["met"] else "MISS"
        value = "not measured" if target["value"] is None else f"{target['value']:.4g}"
        kind = "sanity, " * target["sanity"]
        rows.append([verdict, f"{kind}{target['section']}: {target['figure']}", value, target["limit"]])
    return _format(rows)
