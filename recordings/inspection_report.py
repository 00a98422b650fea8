"""HTML report of ``inspect_dataset.py``: one file with its pictures embedded, light or dark like the system."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

from config import Config
from recordings.inspection import LEVELS, PITCHES, RecordingMeasurement, count_notes
from sound.atomic_files import write_text
from sound.crepe import hz_to_midi, midi_to_hz, note_name
from sound.feature_plots import THEMES, Theme, style_axis
from sound.report_page import Tile, draw_picture, render_page

_DPI = 160


def write_inspection_page(
    path: Path, found: Any, summary: list[tuple[str, str]], marks: dict[str, list[str]], config: Config
) -> None:
    """Write the report atomically.

    Args:
        path: file to write.
        found: the ``Inspection``.
        summary: (name, value) of each measurement of the whole set.
        marks: {recording's name: its faults}.
        config: gives the instrument's range.

    Raises:
        OSError: the file cannot be written.
    """
    recordings, picture = found.recordings, ""
    if count_notes(recordings).any():
        alt = "Seconds by note and level"
        picture = draw_picture(lambda theme: plot_coverage(recordings, config, theme), alt, _DPI)
    page = render_page(
        "recordings/inspection_page.html",
        str(found.data_dir),
        ["Fitness of these recordings for training"],
        [Tile(*row) for row in summary],
        found=found,
        tone="bad" if not found.is_fit else "warn" if found.findings else "good",
        picture=picture,
        recordings=sorted(recordings, key=lambda each: not marks[each.name]),  # those with faults first
        marks=marks,
    )
    write_text(path, page)


# --- the picture ----------------------------------------------------------------------------------


def plot_coverage(recordings: list[RecordingMeasurement], config: Config, theme: str = "light") -> Figure:
    """Draw the seconds per note as bars, above a heat map of notes and levels."""
    colours = THEMES[theme]
    instrument = config.instrument(recordings[0].instrument)
    seconds = count_notes(recordings) / config.audio.frame_rate  # (notes, levels)
    low, high = (round(hz_to_midi(hertz)) for hertz in (instrument.f0_min, instrument.f0_max))
    sounding = np.flatnonzero(seconds.sum(axis=1) >= 0.1) + PITCHES.start
    first, last = min([low, *sounding]) - 1, max([high, *sounding]) + 1
    figure = Figure(figsize=(11, 4.6), facecolor=colours.background)
    FigureCanvasAgg(figure)
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
    figure.subplots_adjust(left=0.07, right=0.985, top=0.97, bottom=0.09, hspace=0.1)
    for axis in (bars, heat):
        style_axis(axis, colours)
        axis.grid(False)
        axis.yaxis.label.set_color(colours.muted)
        axis.axvspan(low - 0.5, high + 0.5, color=colours.grid, zorder=0, linewidth=0)
    notes = np.arange(PITCHES.start, PITCHES.stop)
    _draw_bars(bars, notes, seconds.sum(axis=1), (low, high), config.inspect.min_seconds_per_note, colours)
    _draw_heat(heat, notes, seconds, colours)
    heat.set_xlim(first - 0.5, last + 0.5)
    ticks = sorted(
        {
            low,
            high,
            *(note for note in range(first, last + 1) if note % 12 == 0 and min(abs(note - low), abs(note - high)) > 1),
        }
    )
    heat.set_xticks(ticks, [note_name(midi_to_hz(note)) for note in ticks])
    return figure


def _draw_bars(
    axis: Any, notes: np.ndarray, seconds: np.ndarray, span: tuple[int, int], least: float, colours: Theme
) -> None:
    axis.bar(notes, seconds, width=0.8, color=colours.loudness)
    missing = notes[(notes >= span[0]) & (notes <= span[1]) & (seconds < least)]
    axis.plot(missing, np.zeros(len(missing)), "v", color="#d6453d", markersize=5, clip_on=False)
    axis.set_ylabel("seconds")
    axis.grid(axis="y", color=colours.octave, linewidth=0.6)
    axis.tick_params(labelbottom=False)
    axis.set_ylim(0, max(1.0, 1.08 * seconds.max()))


def _draw_heat(axis: Any, notes: np.ndarray, seconds: np.ndarray, colours: Theme) -> None:
    colour_map = LinearSegmentedColormap.from_list("heat", [colours.octave, colours.pitch])
    edges = (np.append(notes, notes[-1] + 1) - 0.5, np.append(np.array(LEVELS), LEVELS.stop))
    shown = np.ma.masked_less(seconds.T, 0.02)
    axis.pcolormesh(*edges, shown, cmap=colour_map, norm=LogNorm(0.02, max(1.0, seconds.max())), zorder=2)
    levels = np.flatnonzero(seconds.sum(axis=0) > 0.1)
    axis.set_ylim(LEVELS[levels[0]] - 2 if len(levels) else -80, LEVELS[levels[-1]] + 6 if len(levels) else 0)
    axis.set_ylabel("loudness, dB")
