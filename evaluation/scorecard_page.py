"""The scorecard as a page: verdicts, players, pictures, tables. One file that loads nothing from outside."""

import base64
import html
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.image
import numpy as np
import soundfile

from evaluation.scorecard import ExpectedCurves, MeasuredSound, log_mel
from evaluation.scorecard_tables import SECTIONS, Column, format_value
from sound.feature_plots import THEMES, plot_features

_EXCERPT = 8.0  # s of a recording and its copies; voices are there in full
_DPI = 100
_MEL_RANGE = (-75.0, -10.0)  # dBFS, black to white


class Track(NamedTuple):
    """Something to hear."""

    name: str
    audio: np.ndarray  # [N]
    sample_rate: int


@dataclass(frozen=True)
class Exhibit:
    """Sounds that belong together: a voice and what was played, or a recording and its copies."""

    title: str
    tracks: list[Track]
    measured: dict[str, MeasuredSound]  # sounds to be drawn
    expected: ExpectedCurves | None = None  # of a voice: the notes


def build_scorecard_page(report: dict[str, Any], exhibits: list[Exhibit]) -> str:
    """Return the whole page.

    Args:
        report: from ``scripts/evaluate.py``, with ``targets``.
        exhibits: what there is to hear and see.
    """
    voices = [_voice(exhibit) for exhibit in exhibits if exhibit.expected]
    copies = [_copies(exhibit) for exhibit in exhibits if not exhibit.expected]
    sections = [
        ("Targets", "The worst figure of this model, over all voices.", _targets(report["targets"])),
        ("Figures", "The bold rows are the model that is judged; a dot marks a missed target.", _tables(report)),
        ("Voices", "What was sung, and what the instrument makes of it.", "".join(voices)),
        (
            "Copies",
            f"Held-out recordings, and what is made of their pitch and loudness: the first {_EXCERPT:g} s.",
            "".join(copies),
        ),
    ]
    body = "".join(
        f'<section><h2>{title}</h2><p class="lead">{lead}</p>{content}</section>'
        for title, lead, content in sections
        if content
    )
    title = f"{report['instrument'].capitalize()} scorecard"
    return _PAGE.format(title=html.escape(title), style=_style(), facts=_facts(report), body=body)


def _facts(report: dict[str, Any]) -> str:
    facts = [
        f"<code>{html.escape(report['checkpoint'])}</code>",
        f"preset {html.escape(str(report['preset']))}",
        f"{report['parameters'] / 1e6:.1f} M parameters",
        f"{report['epoch']} epochs, {report['step']:,} steps",
        f"sha256 {report['sha256'][:12]}",
        f"{report['date'][:10]}, seed {report['seed']}",
    ]
    return "".join(f"<li>{fact}</li>" for fact in facts)


def _targets(targets: list[dict[str, Any]]) -> str:
    tiles = []
    for target in targets:
        verdict = "ok" if target["met"] else "miss"
        worst = "–" if target["worst"] is None else f"{target['worst']:.3g}"
        tiles.append(
            f'<li class="{verdict}"><span class="verdict">{verdict.upper()}</span><b>{worst}</b>'
            f'<span class="name">{html.escape(target["figure"])}</span>'
            f'<span class="limit">{html.escape(target["section"])}, {html.escape(target["limit"])}</span></li>'
        )
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


# --- exhibits -------------------------------------------------------------------------------------


def _voice(exhibit: Exhibit) -> str:
    (name, sound), expected = next(iter(exhibit.measured.items())), exhibit.expected
    n_frames = min(len(expected.f0), len(sound.f0))
    pictures = {}
    for theme in THEMES:
        figure = plot_features(
            sound.audio,
            sound.sample_rate,
            sound.f0[:n_frames],
            sound.loudness[:n_frames],
            sound.frame_rate,
            voiced=expected.played[:n_frames],
            second_f0=expected.f0[:n_frames],
            f0_labels=("heard", "wanted"),
            title=f"What {name} plays",
            theme=theme,
        )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI)
        pictures[theme] = _data(file, "image/png")
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{pictures["dark"]}">'
        f'<img src="{pictures["light"]}" alt="Pitch and loudness of {html.escape(exhibit.title)}, heard and wanted">'
        "</picture>"
    )
    return _card(exhibit.title, _players(exhibit.tracks), picture)


def _copies(exhibit: Exhibit) -> str:
    tracks = [track._replace(audio=track.audio[: round(_EXCERPT * track.sample_rate)]) for track in exhibit.tracks]
    pictures = {
        name: f'<img src="{_spectrogram(sound)}" alt="Mel spectrogram of {html.escape(name)}">'
        for name, sound in exhibit.measured.items()
    }
    return _card(exhibit.title, _players(tracks, pictures))


def _card(title: str, *parts: str) -> str:
    return f"<article><h3>{html.escape(title)}</h3>{''.join(parts)}</article>"


def _players(tracks: list[Track], pictures: dict[str, str] | None = None) -> str:
    """Return a player for each track, with its picture below it, if any."""
    cells = []
    for track in tracks:
        file = io.BytesIO()
        soundfile.write(file, track.audio, track.sample_rate, format="FLAC")
        name = html.escape(track.name)
        player = f'<audio controls preload="metadata" aria-label="{name}" src="{_data(file, "audio/flac")}"></audio>'
        cells.append(f"<div><span>{name}</span>{player}{(pictures or {}).get(track.name, '')}</div>")
    return f'<div class="players">{"".join(cells)}</div>'


def _spectrogram(sound: MeasuredSound) -> str:
    n_frames = round(_EXCERPT * sound.frame_rate)
    file, (low, high) = io.BytesIO(), _MEL_RANGE
    matplotlib.image.imsave(
        file, log_mel(sound)[:, :n_frames], cmap="magma", vmin=low, vmax=high, origin="lower", format="png"
    )
    return _data(file, "image/png")


def _data(file: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# --- tables ---------------------------------------------------------------------------------------


def _tables(report: dict[str, Any]) -> str:
    return "".join(
        f"<h3>{section.capitalize()}</h3>{_table(report[section], labels, figures)}{_meanings(figures)}"
        for section, labels, figures in SECTIONS
        if report[section]
    )


def _table(rows: list[dict[str, Any]], labels: tuple[str, ...], figures: tuple[Column, ...]) -> str:
    judged = rows[0]["sound"]  # the model stands first
    heads = [*labels, *(figure.heading for figure in figures)]
    lines = ["<tr>" + "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads) + "</tr>"]
    for row in rows:
        is_model = row["sound"] == judged
        names = "".join(f'<th scope="row">{html.escape(row[label])}</th>' for label in labels)
        cells = "".join(_cell(row[figure.key], figure, is_model) for figure in figures)
        lines.append(f"<tr{' class=model' if is_model else ''}>{names}{cells}</tr>")
    kind = "voices" if "voice" in labels else "recordings"
    return f'<div class="table" tabindex="0"><table class="{kind}">{"".join(lines)}</table></div>'


def _cell(value: float | None, figure: Column, is_model: bool) -> str:
    missed = is_model and figure.limit is not None and not figure.is_met(value)
    return f"<td{' class=missed' if missed else ''}>{format_value(value, figure.digits)}</td>"


def _meanings(figures: tuple[Column, ...]) -> str:
    entries = "".join(f"<dt>{html.escape(f.heading)}</dt><dd>{html.escape(f.meaning)}</dd>" for f in figures)
    return f"<details><summary>What the columns mean</summary><dl>{entries}</dl></details>"


# --- looks ----------------------------------------------------------------------------------------


def _style() -> str:
    light, dark = (
        "".join(f"--{name}: {getattr(theme, name)}; " for name in ("background", "text", "muted", "octave", "pitch"))
        for theme in (THEMES["light"], THEMES["dark"])
    )
    return _STYLE.replace("/*light*/", light).replace("/*dark*/", dark)


_STYLE = """
:root { color-scheme: light dark; /*light*/ --page: #f4f5f7; --ok: #17754a; --miss: #b3261e; }
@media (prefers-color-scheme: dark) { :root { /*dark*/ --page: #0c0e12; --ok: #5fce9a; --miss: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 0; }
h3 { font-size: 15px; margin: 0 0 12px; }
picture { display: block; margin-top: 14px; }
.lead { color: var(--muted); margin: 2px 0 16px; }
.facts { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0; padding: 0; color: var(--muted); }
.tiles { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px;
  margin: 0; padding: 0; }
.tiles li, article, .table { background: var(--background); border: 1px solid var(--octave); border-radius: 10px; }
.tiles li { display: grid; grid-template-columns: 1fr auto; padding: 12px 14px; }
.tiles b { font-size: 24px; font-variant-numeric: tabular-nums; grid-row: 1; }
.tiles .verdict { grid-row: 1; grid-column: 2; align-self: center; font-size: 12px; font-weight: 700;
  letter-spacing: 0.05em; padding: 1px 8px; border: 1px solid; border-radius: 99px; }
.ok .verdict { color: var(--ok); }
.miss .verdict { color: var(--miss); }
.miss b { color: var(--miss); }
.tiles .name, .tiles .limit { grid-column: 1 / -1; }
.tiles .limit { color: var(--muted); font-size: 13px; }
article { padding: 16px; margin-bottom: 16px; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.players span { display: block; color: var(--muted); font-size: 13px; margin-bottom: 3px; }
audio { width: 100%; height: 40px; display: block; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
.players img { height: 150px; margin-top: 8px; }
.table { overflow-x: auto; }
section > h3 { margin-top: 24px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--octave);
  font-weight: 400; }
tr:first-child th { color: var(--muted); font-size: 13px; white-space: normal; vertical-align: bottom; }
tr:last-child th, tr:last-child td { border-bottom: 0; }
th[scope=row], th:first-child, .voices th:nth-child(2) { text-align: left; }
.model th, .model td { font-weight: 650; }
.missed { color: var(--miss); }
.missed::before { content: "● "; font-size: 10px; vertical-align: 1px; }
details { margin-top: 10px; color: var(--muted); }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0 0; }
dt { color: var(--text); }
dd { margin: 0; }
:focus-visible { outline: 2px solid var(--pitch); outline-offset: 2px; }
@media (max-width: 600px) { dl { display: block; } dd { margin-bottom: 6px; } main { padding-top: 24px; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><ul class="facts">{facts}</ul></header>
{body}
</main>
</body>
</html>
"""
