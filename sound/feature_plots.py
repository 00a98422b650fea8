"""Plot waveform, pitch, periodicity, loudness and spectrogram over one time axis, from plain arrays.

Uses none of matplotlib's global state (no pyplot, no rcParams, no mathtext), so several threads can draw at once.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from sound.atomic_files import atomic_write
from sound.crepe import hz_to_midi, midi_to_hz, note_name

SMALL, NORMAL = 8.5, 9.5  # points
_WAVE_COLUMNS = 1600  # about one per pixel
# Of both, the first entry with at most _MAX_TICKS ticks is used. Semitones of the octave, and s.
_TICK_SETS = (range(12), (0, 2, 4, 5, 7, 9, 11), (0, 4, 7), (0, 7), (0,))
_TIME_STEPS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800)
_MAX_TICKS = 12
_MIN_SEMITONES = 12  # minimum range of the pitch axis, so that vibrato is not exaggerated
_N_FFT = 1024  # at 16 kHz; higher rates get longer windows, to resolve harmonics as well
_SPECTRUM_RANGE = 80  # dB below the strongest component
SPECTROGRAM_NOTE = f"kHz, over {_SPECTRUM_RANGE} dB"
_SPECTRUM_TOP = 8000  # Hz; the axis extends above it only as far as there is sound


@dataclass(frozen=True)
class Theme:
    """Colours of plots and of the pages that show them."""

    background: str
    text: str
    muted: str  # labels and ticks
    grid: str
    octave: str  # grid line at every C
    waveform: str
    pitch: str
    second: str  # a second pitch curve, for comparison
    loudness: str


THEMES = {
    "light": Theme(
        background="#ffffff",
        text="#1b1f27",
        muted="#6a7280",
        grid="#eef0f3",
        octave="#d5d9e0",
        waveform="#8592a6",
        pitch="#c2570c",
        second="#7b8698",
        loudness="#0e7c86",
    ),
    "dark": Theme(
        background="#14171d",
        text="#eceef2",
        muted="#929baa",
        grid="#21262f",
        octave="#39414e",
        waveform="#66738a",
        pitch="#f6a83c",
        second="#7d8aa0",
        loudness="#45b8c2",
    ),
}


# --- panels ---------------------------------------------------------------------------------------


def style_axis(axis: Axes, colours: Theme) -> None:
    """Remove frame and ticks; draw a faint grid."""
    axis.set_facecolor(colours.background)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    axis.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=colours.muted, pad=6)
    axis.grid(True, which="major", color=colours.grid, linewidth=0.8)


def label_panel(axis: Axes, name: str, note: str, colours: Theme) -> None:
    """Write the panel's name above its left corner, followed by a note such as a unit."""
    name_text = axis.annotate(
        name,
        (0, 1),
        (0, 5),
        "axes fraction",
        "offset points",
        fontsize=NORMAL,
        fontweight="bold",
        color=colours.text,
        parse_math=False,
    )
    axis.annotate(
        note,
        (1, 0),
        (7, 0),
        name_text,
        "offset points",
        fontsize=SMALL,
        va="bottom",
        color=colours.muted,
        parse_math=False,
    )


def draw_waveform(axis: Axes, audio: np.ndarray, sample_rate: int, colours: Theme) -> None:
    """Draw samples [N]; if they are many, the minimum and maximum of each column, so that no peak is lost."""
    samples = np.nan_to_num(audio, posinf=0.0, neginf=0.0)
    if len(samples) > 2 * _WAVE_COLUMNS:
        seconds, low, high = _envelope(samples, sample_rate)
        axis.fill_between(seconds, low, high, color=colours.waveform, linewidth=0.5)
    else:
        axis.plot(np.arange(len(samples)) / sample_rate, samples, color=colours.waveform, linewidth=0.8)
    peak = float(np.abs(samples).max(initial=0.0))
    limit = 1.05 * peak or 1.0
    axis.set_ylim(-limit, limit)
    axis.yaxis.set_major_locator(FixedLocator([0]))
    axis.tick_params(axis="y", labelleft=False)
    label_panel(axis, "Waveform", _describe_level(audio, peak), colours)


def _describe_level(audio: np.ndarray, peak: float) -> str:
    if not np.isfinite(audio).all():
        return "has non-finite samples (NaN or infinity), drawn as zero"
    return f"peak {20 * math.log10(peak):.1f} dBFS".replace("-", "−") if peak > 0 else "silent"


def _envelope(samples: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return time, minimum and maximum of about ``_WAVE_COLUMNS`` columns."""
    length = -(-len(samples) // _WAVE_COLUMNS)
    columns = np.pad(samples, (0, -len(samples) % length), mode="edge").reshape(-1, length)
    return (np.arange(len(columns)) + 0.5) * length / sample_rate, columns.min(axis=1), columns.max(axis=1)


def draw_pitch(
    axis: Axes, seconds: np.ndarray, pitches: list[np.ndarray], labels: tuple[str, ...], colours: Theme
) -> None:
    """Draw pitch curves [T] in Hz (NaN where there is none), the first in front, on an axis with note names."""
    axis.set_yscale("log", base=2)
    styles = ((colours.pitch, 2.2), (colours.second, 1.4))
    for order, (pitch, label, (colour, width)) in enumerate(zip(pitches, labels, styles)):
        isolated = np.where(_is_isolated(pitch), pitch, np.nan)  # a line through a single point is invisible
        axis.plot(seconds, isolated, "o", color=colour, markersize=width, markeredgewidth=0, zorder=3 - order)
        axis.plot(
            seconds,
            pitch,
            color=colour,
            linewidth=width,
            solid_capstyle="round",
            solid_joinstyle="round",
            zorder=3 - order,
            label=label,
        )
    _set_note_axis(axis, np.concatenate(pitches), colours)
    label_panel(axis, "Pitch", "f0, logarithmic, Hz at the right", colours)
    if len(pitches) > 1:
        draw_legend(axis, colours)
    if np.isnan(pitches[0]).all():
        axis.text(0.5, 0.5, "no pitch found", transform=axis.transAxes, ha="center", va="center", color=colours.muted)


def draw_legend(axis: Axes, colours: Theme) -> None:
    """Draw a legend above the panel's right corner."""
    legend = axis.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderpad=0,
        borderaxespad=0.35,
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        labelcolor=colours.text,
        handlelength=1.6,
        columnspacing=1.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _is_isolated(pitch: np.ndarray) -> np.ndarray:
    gap = np.pad(np.isnan(pitch), 1, constant_values=True)
    return ~gap[1:-1] & gap[:-2] & gap[2:]


def _set_note_axis(axis: Axes, pitch: np.ndarray, colours: Theme) -> None:
    """Scale the axis to the pitches and label its notes; lines at C are stronger."""
    low, high = _note_range(pitch)
    notes = _choose_notes(low, high)
    axis.set_ylim(midi_to_hz(low), midi_to_hz(high))
    hertz = FuncFormatter(lambda f0, _: f"{f0:.0f}")
    right = axis.secondary_yaxis("right")
    right.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=colours.muted, pad=6)
    right.spines[:].set_visible(False)
    for scale, formatter in ((axis.yaxis, FuncFormatter(lambda f0, _: note_name(f0))), (right.yaxis, hertz)):
        scale.set_major_locator(FixedLocator([midi_to_hz(note) for note in notes]))
        scale.set_major_formatter(formatter)
        scale.set_minor_locator(NullLocator())
    for note in (note for note in notes if note % 12 == 0):
        axis.axhline(midi_to_hz(note), color=colours.octave, linewidth=0.9, zorder=0.8)


def _note_range(pitch: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest MIDI number of the axis."""
    found = pitch[np.isfinite(pitch)]
    if len(found) == 0:
        return 47.5, 84.5  # C3 to C6, the range of most melodies
    low, high = (hz_to_midi(limit) for limit in (found.min(), found.max()))
    margin = max(1.0, (_MIN_SEMITONES - (high - low)) / 2)
    return low - margin, high + margin


def _choose_notes(low: float, high: float) -> list[int]:
    """Return the MIDI numbers that get a tick."""
    inside = range(math.ceil(low), math.floor(high) + 1)
    sets = ([note for note in inside if note % 12 in names] for names in _TICK_SETS)
    return next((notes for notes in sets if len(notes) <= _MAX_TICKS), [note for note in inside if note % 12 == 0])


def draw_periodicity(
    axis: Axes, seconds: np.ndarray, periodicity: np.ndarray, threshold: float, colours: Theme
) -> None:
    """Draw periodicity [T] and the threshold above which pitch is shown."""
    axis.fill_between(seconds, 0, periodicity, color=colours.pitch, alpha=0.28, linewidth=0)
    axis.axhline(threshold, color=colours.muted, linewidth=0.8, dashes=(4, 3))
    axis.set_ylim(0, 1)
    axis.grid(False, axis="y")
    axis.yaxis.set_major_locator(NullLocator())
    label_panel(axis, "Periodicity", f"0 to 1, pitch is shown from {threshold:g}", colours)


def draw_loudness(axis: Axes, seconds: np.ndarray, loudness: np.ndarray, colours: Theme) -> None:
    """Draw loudness [T] in dB."""
    floor = min(-80.0, float(np.min(loudness[np.isfinite(loudness)], initial=0.0)))
    axis.fill_between(seconds, floor, loudness, color=colours.loudness, alpha=0.16, linewidth=0)
    axis.plot(seconds, loudness, color=colours.loudness, linewidth=1.3, solid_joinstyle="round")
    axis.set_ylim(floor, 3)
    axis.yaxis.set_major_locator(FixedLocator(range(0, math.floor(floor) - 1, -20)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda level, _: f"{level:.0f}".replace("-", "−")))
    label_panel(axis, "Loudness", "A-weighted, dB re full scale", colours)


def draw_spectrogram(
    axis: Axes, audio: np.ndarray, sample_rate: int, colours: Theme, scale_to: np.ndarray | None = None
) -> None:
    """Draw a spectrogram of samples [N].

    The strongest component of ``scale_to``, by default ``audio``, is 0 dB, so that several plots can share a scale.
    """
    n_fft = _N_FFT * max(1, round(sample_rate / 16000))
    length = max(len(audio), n_fft)
    hop_length = max(n_fft // 8, -(-length // _WAVE_COLUMNS))
    transform = ShortTimeFFT(hann(n_fft, sym=False), hop_length, sample_rate)

    def magnitudes(samples: np.ndarray) -> np.ndarray:  # (F, T)
        finite = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        padded = np.pad(finite, (0, max(0, n_fft - len(finite))))
        return np.abs(transform.stft(padded, padding="even"))  # an excerpt shows no click at its ends

    shown = magnitudes(audio)
    strongest = max((shown if scale_to is None else magnitudes(scale_to)).max(), 1e-9)
    level = 20 * np.log10(np.maximum(shown / strongest, 10 ** (-_SPECTRUM_RANGE / 20)))
    shades = LinearSegmentedColormap.from_list("spectrum", [colours.background, colours.pitch, colours.text])
    axis.imshow(
        level,
        cmap=shades,
        vmin=-_SPECTRUM_RANGE,
        vmax=0,
        aspect="auto",
        origin="lower",
        interpolation="bilinear",
        extent=transform.extent(length, center_bins=True),
    )
    axis.grid(False)
    axis.set_xlim(0, length / sample_rate)
    sounding = transform.f[(level > -_SPECTRUM_RANGE).any(axis=1)]
    top = min(max(_SPECTRUM_TOP, sounding.max(initial=0.0)), sample_rate / 2)
    axis.set_ylim(0, top)
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 4, 5, 10]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda frequency, _: f"{frequency / 1000:g}"))


def share_time_axis(axes: list[Axes], duration: float) -> None:
    """Set the time axis of all panels to 0 to ``duration`` s; label only the last."""
    step = next((step for step in _TIME_STEPS if duration / step <= _MAX_TICKS), duration)
    for axis in axes:
        axis.set_xlim(0, duration)
        axis.xaxis.set_major_locator(FixedLocator(np.arange(0, duration * (1 + 1e-6), step)))
        axis.tick_params(axis="x", pad=9, labelbottom=axis is axes[-1])
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_time(seconds, duration)))


def format_time(seconds: float, duration: float) -> str:
    """Format a time in a sound of length ``duration``: "2.5 s", or "1:05" from a minute on."""
    if duration < 60:
        return f"{seconds:.4g} s"
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


DPI = 150
_WIDTH = 12.0  # inches
_HEAD, _FOOT, _GAP = 0.97, 0.4, 0.36  # inches: above the first panel, below the last, between two
_LEFT, _RIGHT = 0.058, 0.948  # edges of the panels, as fractions of the width
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
    """Draw waveform, pitch, periodicity, loudness and optionally a spectrogram over one time axis.

    Arrays may be numpy arrays or CPU tensors; axes of length one are ignored.

    Args:
        audio: [N].
        sample_rate: of ``audio``, Hz.
        f0: [T] in Hz.
        loudness: [T] in dB.
        frame_rate: frames per second; frame t is centred on t / frame_rate.
        periodicity: [T], 0..1; None omits its panel.
        periodicity_threshold: f0 is drawn where periodicity reaches it.
        voiced: [T], True where f0 is drawn; overrides the threshold.
        second_f0: [T] in Hz, drawn behind f0 in the same frames, such as the voice behind its transfer.
        f0_labels: names of f0 and second_f0 in the legend, shown when there are two.
        spectrogram: also draw a spectrogram.
        title: such as the file's name.
        subtitle: text before the length, sample rate, pitch range and percentage of voiced frames.
        theme: "light" or "dark".

    Returns:
        A figure with an Agg canvas, for ``figure.savefig(path)`` or ``figure.canvas.buffer_rgba()``.

    Raises:
        ValueError: an unknown theme, or curves of different lengths.
    """
    if theme not in THEMES:
        raise ValueError(f"unknown theme '{theme}'; choose {' or '.join(THEMES)}")
    colours = THEMES[theme]
    samples = _flat(audio)
    curves = {"f0": f0, "loudness": loudness, "periodicity": periodicity, "voiced": voiced, "second_f0": second_f0}
    frames = {name: _flat(values) for name, values in curves.items() if values is not None}
    _require_equal_lengths(frames)
    shown = _choose_voiced(frames, periodicity_threshold)
    pitches = [np.where(shown, frames[name], np.nan) for name in ("f0", "second_f0") if name in frames]

    wanted = {"periodicity": periodicity is not None, "spectrogram": spectrogram}
    heights = {name: height for name, height in _PANELS.items() if wanted.get(name, True)}
    figure, axes = make_panels(heights, colours)
    seconds = np.arange(len(shown)) / frame_rate
    duration = max(len(samples) / sample_rate, len(shown) / frame_rate, 1 / frame_rate)
    draw_waveform(axes["waveform"], samples, sample_rate, colours)
    draw_pitch(axes["pitch"], seconds, pitches, f0_labels, colours)
    if periodicity is not None:
        draw_periodicity(axes["periodicity"], seconds, frames["periodicity"], periodicity_threshold, colours)
    draw_loudness(axes["loudness"], seconds, frames["loudness"], colours)
    if spectrogram:
        draw_spectrogram(axes["spectrogram"], samples, sample_rate, colours)
        label_panel(axes["spectrogram"], "Spectrogram", SPECTROGRAM_NOTE, colours)
    share_time_axis(list(axes.values()), duration)
    summary = [subtitle, *_summarise(duration, sample_rate, pitches[0])]
    _write_header(figure, title, "   ·   ".join(part for part in summary if part), colours)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file stays.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def make_panels(heights: dict[str, float], colours: Theme, head: float = _HEAD) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure and its panels by name; ``heights`` of the panels and space above them (``head``) in inches."""
    height = head + sum(heights.values()) + _GAP * (len(heights) - 1) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor=colours.background)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=list(heights.values()),
        hspace=_GAP * len(heights) / sum(heights.values()),
        left=_LEFT,
        right=_RIGHT,
        top=1 - head / height,
        bottom=_FOOT / height,
    )
    axes = {name: figure.add_subplot(grid[row]) for row, name in enumerate(heights)}
    for axis in axes.values():
        style_axis(axis, colours)
    return figure, axes


def _write_header(figure: Figure, title: str, subtitle: str, colours: Theme) -> None:
    title = title.encode("utf-8", "backslashreplace").decode()  # the name of a file may not be valid UTF-8
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
        raise ValueError(f"curves of one sound should have the same number of frames, not {lengths}")


def _choose_voiced(frames: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """Return True where f0 is drawn: bool [T]."""
    drawable = np.isfinite(frames["f0"]) & (frames["f0"] > 0)
    if "voiced" in frames:
        return drawable & (frames["voiced"] > 0)
    if "periodicity" in frames:
        return drawable & (frames["periodicity"] >= threshold)
    return drawable
