"""The page of ``inspect_dataset.py``: one file with its pictures inside, light or dark as the reader's system is."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

from config import Config
from recordings.inspection import LEVELS, PITCHES, RecordingMeasurement, count_notes
from sound.atomic_files import write_text
from sound.feature_plots import THEMES, Theme
from sound.note_names import hz_to_midi, midi_to_hz, note_name

_DPI = 160
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: LIGHT_BACKGROUND; --text: LIGHT_TEXT; --muted: LIGHT_MUTED;
  --line: LIGHT_OCTAVE; --bad: #b3261e; --bad-soft: #fdeceb; --warn: #8a5a00; --warn-soft: #fdf3df; --good: #17693d;
  --good-soft: #e6f4ec; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0f13; --card: DARK_BACKGROUND; --text: DARK_TEXT;
  --muted: DARK_MUTED; --line: DARK_OCTAVE; --bad: #ff9a91; --bad-soft: #3a1b1a; --warn: #f1c376; --warn-soft: #34270f;
  --good: #7fd6a4; --good-soft: #12301f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
p { margin: 0; } .muted { color: var(--muted); }
.verdict { display: inline-block; margin: 1rem 0 1.5rem; padding: .45rem .9rem; border-radius: .5rem;
  font-weight: 600; }
.good { color: var(--good); background: var(--good-soft); } .bad { color: var(--bad); background: var(--bad-soft); }
.warn { color: var(--warn); background: var(--warn-soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1.25rem;
  margin-bottom: 1.25rem; }
dl { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 1rem 2rem; margin: 0; }
dt { color: var(--muted); font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-weight: 600;
  white-space: nowrap; }
ul { list-style: none; margin: 0; padding: 0; } li { padding: .6rem 0; border-top: 1px solid var(--line); }
li:first-child { border-top: 0; padding-top: 0; } li > .which { margin: .35rem 0 0 4.9rem; color: var(--muted);
  overflow-wrap: anywhere; }
.finding { display: grid; grid-template-columns: 4.4rem 1fr; gap: .5rem; align-items: baseline; }
.tag { font-size: .8rem; font-weight: 600; padding: .1rem .45rem; border-radius: .3rem; text-align: center;
  white-space: nowrap; }
img { width: 100%; height: auto; display: block; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 500; } td, th { padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); white-space: nowrap; } .number { text-align: right; }
"""


def write_inspection_page(
    path: Path, found: Any, summary: list[tuple[str, str]], marks: dict[str, list[str]], config: Config
) -> None:
    """Write the page.

    Args:
        path: of the page; at no moment does half a page stand there.
        found: the ``Inspection``.
        summary: name and value of what is measured of the whole set.
        marks: faults of each recording, by its name.
        config: the instrument's range.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, build_inspection_page(found, summary, marks, config))


def build_inspection_page(
    found: Any, summary: list[tuple[str, str]], marks: dict[str, list[str]], config: Config
) -> str:
    """Return the page as HTML."""
    title = html.escape(str(found.data_dir))
    tone = "bad" if not found.is_fit else "warn" if found.findings else "good"
    tiles = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in summary)
    findings = "".join(map(_finding, found.findings)) or "<li>Nothing stands out.</li>"
    suspects_first = sorted(found.recordings, key=lambda each: not marks[each.name])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {html.escape(found.verdict)}</title><style>{_style()}</style></head><body><main>
<h1>{title}</h1><p class="muted">What a model would learn from these recordings</p>
<p class="verdict {tone}">{html.escape(found.verdict.capitalize())}</p>
<section><dl>{tiles}</dl></section>
<section><h2>Findings</h2><ul>{findings}</ul></section>
{_picture(found.recordings, config)}
<section><h2>Recordings</h2><div class="scroll"><table><thead><tr><th>Recording</th><th class="number">Seconds</th>
<th class="number">Voiced</th><th class="number">Loudest</th><th class="number">Several pitches</th><th>Suspected</th>
</tr></thead><tbody>{"".join(_row(each, marks[each.name]) for each in suspects_first)}</tbody></table></div></section>
</main></body></html>
"""


def _style() -> str:
    style = _STYLE
    for name, theme in THEMES.items():
        for part in ("background", "text", "muted", "octave"):
            style = style.replace(f"{name}_{part}".upper(), getattr(theme, part))
    return style


def _finding(finding: Any) -> str:
    tone, word = ("bad", "problem") if finding.is_problem else ("warn", "advice")
    names = "<br>".join(map(html.escape, finding.recordings))
    if len(finding.recordings) > 3:
        names = f"<details><summary>which</summary>{names}</details>"
    details = f'<div class="which">{names}</div>' if names else ""
    text = f'<span class="tag {tone}">{word}</span><span>{html.escape(finding.text)}</span>'
    return f'<li><div class="finding">{text}</div>{details}</li>'


def _row(each: RecordingMeasurement, marks: list[str]) -> str:
    tags = " ".join(f'<span class="tag warn">{html.escape(mark)}</span>' for mark in marks)
    numbers = (
        f"{each.seconds:.1f}",
        f"{each.voiced_seconds / each.seconds:.0%}",
        f"{each.loudest:.0f} dB",
        f"{each.polyphony:.0%}",
    )
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{html.escape(each.name)}</td>{cells}<td>{tags}</td></tr>"


# --- the picture ----------------------------------------------------------------------------------


def _picture(recordings: list[RecordingMeasurement], config: Config) -> str:
    counts = count_notes(recordings)
    if not counts.any():
        return ""
    light, dark = (_as_data(plot_coverage(recordings, config, theme)) for theme in ("light", "dark"))
    legend = "How long each note sounds, and how loudly. Red: notes of the instrument that are missing or short."
    return f"""<section><h2>Notes and dynamics</h2><picture><source srcset="{dark}"
media="(prefers-color-scheme: dark)"><img src="{light}" alt="Seconds of every note and level"></picture>
<p class="muted">{legend}</p></section>"""


def _as_data(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot_coverage(recordings: list[RecordingMeasurement], config: Config, theme: str = "light") -> Figure:
    """Draw seconds a note as bars over a heat map of its levels."""
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
        _style_axis(axis, colours)
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


def _style_axis(axis: Any, colours: Theme) -> None:
    axis.set_facecolor(colours.background)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=colours.muted, length=0, labelsize=9)
    axis.yaxis.label.set_color(colours.muted)


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
