"""The report of a transfer: figures for programs, and one line of them for people."""

import time
from typing import Any

from voice.curves import Curves

_POLYPHONY_WARNING = 0.3  # share of the sounding frames from which a person should be told
NO_VOICE = {  # what a report says where no voice was measured
    "semitones": 0.0,
    "loudness_gain": 0.0,
    "share_too_high": 0.0,
    "share_polyphonic": 0.0,
    "has_backing": False,
    "mains_hum": None,
}


def make_report(
    instrument: str, seconds: float, entries: dict[str, Any], curves: Curves, peak_gain: float, started: float
) -> dict[str, Any]:
    """Return what a transfer did.

    Args:
        instrument: that was played.
        seconds: of the result.
        entries: what is known of the voice and of its fitting to the instrument; see ``NO_VOICE``.
        curves: as played.
        peak_gain: dB, by which the peak was limited.
        started: when the transfer began, by ``time.perf_counter``.
    """
    return {
        "instrument": instrument,
        "seconds": round(seconds, 3),
        **entries,
        "share_gated": float((curves.gate == 0).mean()),
        "peak_gain": peak_gain,
        "times_real_time": seconds / (time.perf_counter() - started),
    }


def is_polyphonic(report: dict[str, Any]) -> bool:
    """Return True if much of a recording holds several notes at once, or a band plays along."""
    return report["has_backing"] or report["share_polyphonic"] > _POLYPHONY_WARNING


def describe_transfer(report: dict[str, Any]) -> str:
    """Describe in one line what a transfer did."""
    parts = [
        f"shifted {report['semitones']:+g} st",
        f"{100 * report['share_out_of_range']:.0f} % of frames out of range",
        f"{100 * report['share_gated']:.0f} % gated",
        f"loudness {report['loudness_gain']:+.0f} dB",
    ]
    if report["share_too_high"] > 0.01:
        how = (
            "for --causal, which follows no pitch over 1,975 Hz" if report.get("causal") else "to hear and left silent"
        )
        parts.append(f"{100 * report['share_too_high']:.0f} % too high {how}")
    if report["mains_hum"] is not None:
        parts.append("mains hum taken out")
    if is_polyphonic(report):
        parts.append("several notes at once: one line of them is played")
    if report["peak_gain"] < 0:
        by = "by up to " if report.get("causal") else ""
        parts.append(f"turned down {by}{-report['peak_gain']:.1f} dB")
    return ", ".join([*parts, f"{report['times_real_time']:.1f} x faster than real time"])
