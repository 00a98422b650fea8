"""The picture of a sound: waveform, pitch, how sure the pitch is, loudness and spectrum over one time axis.

It is drawn from plain arrays, so that a web page or a training log can use it too, and touches none of matplotlib's
global state (no pyplot, no rcParams, no mathtext): figures may be drawn in several threads at once.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sound.atomic_files import replacing
from sound.note_names import note_name
from sound.panels import (
    NORMAL,
    THEMES,
    Theme,
    draw_loudness,
    draw_periodicity,
    draw_pitch,
    draw_spectrogram,
    draw_waveform,
    format_time,
    share_time_axis,
    style_axis,
)

DPI = 150
_WIDTH = 12.0  # inches
_HEAD, _FOOT, _GAP = 0.97, 0.4, 0.36  # inches: over the first panel, under the last, between two
_LEFT, _RIGHT = 0.058, 0.948  # share of the width that the panels take
_LARGE = 15  # points
_PANELS = {"waveform": 0.98, "pitch": 2.7, "periodicity": 0.29, "loudness": 1.06, "spectrogram": 1.7}  # inches


def plot_features(
    audio: ArrayLike,
    sample_rate: int,
    f0: ArrayLike,
    loudness: ArrayLike,
    frame_rate: float,
    *,
    periodicity: ArrayLike | None = None,
    periodicity_threshold: float = 0.0,
    voiced: ArrayLike | None = None,
    second_f0: ArrayLike | None = None,
    f0_labels: tuple[str, str] = ("f0", "second f0"),
    spectrogram: bool = False,
    title: str = "",
    subtitle: str = "",
    theme: str = "light",
) -> Figure:
    """Draw waveform, pitch, periodicity, loudness and, if wanted, spectrogram over one time axis.

    Arrays may be numpy or CPU tensors; axes of length one are ignored.

    Args:
        audio: [N].
        sample_rate: of ``audio``, Hz.
        f0: [T] in Hz.
        loudness: [T] in dB.
        frame_rate: frames a second; frame t is centred on t / frame_rate.
        periodicity: [T], 0..1; None leaves its panel out.
        periodicity_threshold: f0 is drawn where periodicity reaches it.
        voiced: [T], true where f0 is to be drawn; overrules the threshold.
        second_f0: [T] in Hz, drawn behind f0 in the same frames (the voice behind its transfer, say).
        f0_labels: names of f0 and second_f0 in the legend, shown when there are two.
        spectrogram: also draw which frequencies sound when.
        title: such as the file's name.
        subtitle: written before length, rate, range of pitch and share of voiced frames.
        theme: "light" or "dark".

    Returns:
        A figure with an Agg canvas: ``figure.savefig(path)``, or ``figure.canvas.buffer_rgba()``.

    Raises:
        ValueError: an unknown theme, or curves of different lengths.
    """
    if theme not in THEMES:
        raise ValueError(f"unknown theme '{theme}'; there are {', '.join(THEMES)}")
    colours = THEMES[theme]
    samples = _flat(audio)
    curves = {"f0": f0, "loudness": loudness, "periodicity": periodicity, "voiced": voiced, "second_f0": second_f0}
    frames = {name: _flat(values) for name, values in curves.items() if values is not None}
    _require_equal_lengths(frames)
    shown = _choose_voiced(frames, periodicity_threshold)
    pitches = [np.where(shown, frames[name], np.nan) for name in ("f0", "second_f0") if name in frames]

    wanted = {"periodicity": periodicity is not None, "spectrogram": spectrogram}
    figure, axes = _make_panels([name for name in _PANELS if wanted.get(name, True)], colours)
    seconds = np.arange(len(shown)) / frame_rate
    duration = max(len(samples) / sample_rate, len(shown) / frame_rate, 1 / frame_rate)
    draw_waveform(axes["waveform"], samples, sample_rate, colours)
    draw_pitch(axes["pitch"], seconds, pitches, f0_labels, colours)
    if periodicity is not None:
        draw_periodicity(axes["periodicity"], seconds, frames["periodicity"], periodicity_threshold, colours)
    draw_loudness(axes["loudness"], seconds, frames["loudness"], colours)
    if spectrogram:
        draw_spectrogram(axes["spectrogram"], samples, sample_rate, colours)
    share_time_axis(list(axes.values()), duration)
    summary = [subtitle, *_summarise(duration, sample_rate, pitches[0])]
    _write_header(figure, title, "   ·   ".join(part for part in summary if part), colours)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as PNG.

    Raises:
        OSError: it cannot be written (a full disk, say); what stood there stays.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def _make_panels(names: list[str], colours: Theme) -> tuple[Figure, dict[str, Axes]]:
    heights = [_PANELS[name] for name in names]
    height = _HEAD + sum(heights) + _GAP * (len(names) - 1) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor=colours.background)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(names), 1, height_ratios=heights, hspace=_GAP * len(names) / sum(heights),
        left=_LEFT, right=_RIGHT, top=1 - _HEAD / height, bottom=_FOOT / height,
    )  # fmt: skip
    axes = {name: figure.add_subplot(grid[row]) for row, name in enumerate(names)}
    for axis in axes.values():
        style_axis(axis, colours)
    return figure, axes


def _write_header(figure: Figure, title: str, subtitle: str, colours: Theme) -> None:
    title = title if len(title) <= 80 else f"{title[:50]} … {title[-25:]}"
    style = {"ha": "left", "va": "baseline", "parse_math": False}
    height = figure.get_figheight()
    figure.text(_LEFT, 1 - 0.35 / height, title, fontsize=_LARGE, fontweight="bold", color=colours.text, **style)
    figure.text(_LEFT, 1 - 0.57 / height, subtitle, fontsize=NORMAL, color=colours.muted, **style)


def _summarise(duration: float, sample_rate: int, pitch: np.ndarray) -> list[str]:
    found = pitch[np.isfinite(pitch)]
    length = f"{duration:.3g} s" if duration < 60 else format_time(duration, duration)
    parts = [length, f"{sample_rate / 1000:g} kHz"]
    if len(found):
        lowest, highest = note_name(found.min()), note_name(found.max())
        parts.append(lowest if lowest == highest else f"{lowest} to {highest}")
        parts.append(f"{100 * len(found) / len(pitch):.0f} % voiced")
    return parts


def _flat(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).ravel()


def _require_equal_lengths(frames: dict[str, np.ndarray]) -> None:
    lengths = {name: len(values) for name, values in frames.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curves of one sound have as many frames each, but these have {lengths}")


def _choose_voiced(frames: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """Return where f0 is drawn: bool [T]."""
    drawable = np.isfinite(frames["f0"]) & (frames["f0"] > 0)
    if "voiced" in frames:
        return drawable & (frames["voiced"] > 0)
    if "periodicity" in frames:
        return drawable & (frames["periodicity"] >= threshold)
    return drawable
