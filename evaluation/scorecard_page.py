"""HTML page of the scorecard: verdicts, audio players, plots and tables in one self-contained file."""

import io
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.scorecard import ExpectedCurves, MeasuredSound
from evaluation.scorecard_tables import format_value, tables_of
from sound.feature_plots import THEMES, draw_spectrogram, plot_features
from sound.report_page import Tile, data_uri, draw_picture, render_page

_EXCERPT = 8.0  # s of a recording and its copies; voices are included in full
_DPI = 100


class Track(NamedTuple):
    """Named audio."""

    name: str
    audio: np.ndarray  # [N]
    sample_rate: int


@dataclass(frozen=True)
class Exhibit:
    """Group of related sounds: a voice and its transfers, or a recording and its copies."""

    title: str
    tracks: list[Track]
    measured: dict[str, MeasuredSound]  # sounds to plot
    expected: ExpectedCurves | None = None  # target curves, for voices only


class _Player(NamedTuple):
    name: str
    source: str
    picture: str = ""  # Markup


class _Card(NamedTuple):
    title: str
    players: list[_Player]
    picture: str = ""  # Markup


def build_scorecard_page(report: dict[str, Any], exhibits: list[Exhibit]) -> str:
    """Return the page as HTML.

    Args:
        report: report of ``scripts/evaluate.py``, with ``targets``.
        exhibits: groups of sounds to play and plot.
    """
    voices = [_voice(exhibit) for exhibit in exhibits if exhibit.expected]
    copies = [_copies(exhibit) for exhibit in exhibits if not exhibit.expected]
    copied = f"Held-out recordings, and what is made of their pitch and loudness: the first {_EXCERPT:g} s."
    return render_page(
        "evaluation/scorecard_page.html",
        f"{report['instrument'].capitalize()} scorecard",
        _facts(report),
        [_tile(target) for target in sorted(report["targets"], key=lambda target: target["sanity"])],
        report=report,
        tables=tables_of(report),
        format_value=format_value,
        exhibits=[
            ("Voices", "What was sung, and what the instrument makes of it.", voices),
            ("Copies", copied, copies),
        ],
    )


def _facts(report: dict[str, Any]) -> list[str]:
    return [
        report["checkpoint"],
        f"preset {report['preset']}",
        f"{report['parameters'] / 1e6:.1f} M parameters",
        f"{report['epoch']} epochs, {report['step']:,} steps",
        f"sha256 {report['sha256'][:12]}",
        f"{report['date'][:10]}, seed {report['seed']}",
    ]


def _tile(target: dict[str, Any]) -> Tile:
    value = "–" if target["value"] is None else f"{target['value']:.3g}"
    verdict = ("OK", "good") if target["met"] else ("MISS", "bad")
    kind = "sanity, " * target["sanity"]
    return Tile(target["figure"], value, f"{kind}{target['section']}, {target['limit']}", *verdict)


def _voice(exhibit: Exhibit) -> _Card:
    (name, sound), expected = next(iter(exhibit.measured.items())), exhibit.expected
    n_frames = min(len(expected.f0), len(sound.f0))
    draw = partial(
        plot_features,
        sound.audio,
        sound.sample_rate,
        sound.f0[:n_frames],
        sound.loudness[:n_frames],
        sound.frame_rate,
        voiced=expected.played[:n_frames],
        second_f0=expected.f0[:n_frames],
        f0_labels=("measured", "target"),
        title=f"What {name} plays",
    )
    alt = f"Pitch and loudness of {exhibit.title}, measured and target"
    picture = draw_picture(lambda theme: draw(theme=theme), alt, _DPI)
    return _Card(exhibit.title, [_player(track) for track in exhibit.tracks], picture)


def _copies(exhibit: Exhibit) -> _Card:
    excerpts = [track._replace(audio=track.audio[: round(_EXCERPT * track.sample_rate)]) for track in exhibit.tracks]
    players = []
    for track in excerpts:
        draw = partial(_draw_spectrogram, track, excerpts[0])
        players.append(_player(track, draw_picture(draw, f"Spectrogram of {track.name}", _DPI)))
    return _Card(exhibit.title, players)


def _draw_spectrogram(track: Track, recording: Track, theme: str) -> Figure:
    """Draw the spectrogram of a track without axes, in the colour scale of the recording."""
    figure = Figure(figsize=(4.8, 2.4), facecolor=THEMES[theme].background)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    draw_spectrogram(axis, track.audio, track.sample_rate, THEMES[theme], scale_to=recording.audio)
    axis.set_ylim(0, track.sample_rate / 2)
    axis.set_axis_off()
    return figure


def _player(track: Track, picture: str = "") -> _Player:
    file = io.BytesIO()
    soundfile.write(file, track.audio, track.sample_rate, format="FLAC")
    return _Player(track.name, data_uri(file.getvalue(), "audio/flac"), picture)
