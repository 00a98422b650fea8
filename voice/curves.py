"""What a voice sings and what an instrument plays, as curves of one value a frame, and as a file that can be edited.

A file of curves is CSV with the columns time (s), f0 (Hz), loudness (dB re full scale), periodicity (0..1) and voiced
(1 where a note is held). It holds what the instrument plays: written and read again, it makes the same sound.
"""

import codecs
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from config import Config
from sound.atomic_files import write_text

MAX_SECONDS = 4 * 3600.0  # s, of a file of curves or a MIDI file: what is longer was not meant
_MAX_SHOWN = 80  # characters of a row that an error quotes
COLUMNS = ("time", "f0", "loudness", "periodicity", "voiced")
GATE_FADE_SECONDS = 0.02  # a fade at both ends of a sound, too short to soften an attack and long enough not to click


class Melody(NamedTuple):
    """What is sung, [T] each."""

    f0: np.ndarray  # Hz, bridged where nothing is sung
    loudness: np.ndarray  # dB re full scale
    periodicity: np.ndarray  # 0..1, how sure f0 is
    voiced: np.ndarray  # bool


@dataclass(frozen=True)
class Curves:
    """What the instrument plays, [T] each."""

    f0: np.ndarray  # Hz
    loudness: np.ndarray  # dB re full scale; the floor where nothing is played
    periodicity: np.ndarray  # 0..1, of the voice
    voiced: np.ndarray  # bool, where a note is held; its release comes after
    gate: np.ndarray  # 0..1, 0 where the instrument is silent


def shape_notes(melody: Melody, config: Config) -> Curves:
    """Give notes their ends: after the last frame the pitch holds and the loudness falls, as a player lets go.

    The model hears the fall and darkens as the instrument does. What is given outside the voiced frames
    does not count, so shaping a second time changes nothing.
    """
    settings, floor = config.transfer, config.features.loudness_floor
    f0, given, periodicity = (values.astype(np.float32) for values in melody[:3])
    voiced, frames = melody.voiced, np.arange(len(melody.voiced))
    last = np.maximum.accumulate(np.where(voiced, frames, -1))  # the last voiced frame so far
    since = frames - last
    n_release = config.audio.seconds_to_frames(settings.release_seconds)
    releasing = ~voiced & (last >= 0) & (since <= n_release)
    falling = given[last] - settings.release_fall * since / max(n_release, 1)
    loudness = np.where(voiced, given, np.where(releasing, falling, floor))
    return Curves(
        f0=np.where(releasing, f0[last], f0),
        loudness=np.maximum(loudness, floor).astype(np.float32),
        periodicity=periodicity,
        voiced=voiced,
        gate=_fade_edges(voiced | releasing, config.audio.seconds_to_frames(GATE_FADE_SECONDS)),
    )


def _fade_edges(sounding: np.ndarray, n_frames: int) -> np.ndarray:
    """Round the edges of a gate inward over ``n_frames``: float32 [T], still 0 wherever nothing sounds."""
    if n_frames < 1:
        return sounding.astype(np.float32)
    distance = ndimage.distance_transform_edt(np.pad(sounding, 1))[1:-1]
    return np.sin(np.clip(distance / (n_frames + 1), 0, 1) * np.pi / 2).astype(np.float32) ** 2


# --- files ----------------------------------------------------------------------------------------


def write_curves(path: Path, curves: Curves, frame_rate: float) -> None:
    """Write curves as CSV. Nine digits keep every bit of them."""
    lines = [",".join(COLUMNS)]
    rows = zip(curves.f0, curves.loudness, curves.periodicity, curves.voiced)
    for frame, (f0, loudness, periodicity, voiced) in enumerate(rows):
        lines.append(f"{frame / frame_rate:.4f},{f0:.9g},{loudness:.9g},{periodicity:.9g},{int(voiced)}")
    write_text(path, "\n".join(lines) + "\n")


def read_curves(path: Path, config: Config) -> Melody:
    """Read curves from CSV. Rows may be left out or lie at any times: what is between them is interpolated.

    Spreadsheets save CSV in many ways: with commas, semicolons or tabs between the columns, quotes around them, a
    decimal comma, in UTF-8 or UTF-16. All of them are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, or values that cannot be played; the message names the row.
    """
    values = _read_columns(path)
    _check_values(path, values, config)
    time, f0, loudness, periodicity, voiced = values.T
    frames = np.arange(round(time[-1] * config.audio.frame_rate) + 1) / config.audio.frame_rate
    if len(frames) != len(time) or np.abs(frames - time).max() > 1e-3:
        nearest = np.searchsorted((time[1:] + time[:-1]) / 2, frames)
        f0, voiced = 2 ** np.interp(frames, time, np.log2(f0)), voiced[nearest]
        loudness, periodicity = np.interp(frames, time, loudness), np.interp(frames, time, periodicity)
    return Melody(f0, loudness, periodicity, voiced > 0)


def _read_columns(path: Path) -> np.ndarray:
    """Return the columns in their order, [rows, 5]; the file may have others, and its own order."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = path.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # A note in another column may be in any encoding; the numbers are the same in all of them.
        lines = content.decode("utf-16" if is_utf16 else "utf-8-sig", "replace").splitlines()
        lines = [line for line in lines if line.strip()]
        if lines and lines[0].lower().startswith("sep="):  # by which Excel is told
            del lines[0]
        header, *lines = lines
        delimiter = max(",;\t", key=lambda each: len(set(COLUMNS) & set(_split_names(header, each))))
        names, rows = _split_names(header, delimiter), list(csv.reader(lines, delimiter=delimiter))
    except (ValueError, csv.Error) as error:  # empty, or no text
        raise ValueError(f"{path} is not a file of curves; --export_controls writes one") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing or not rows:
        what = f"lacks the column {', '.join(missing)}" if missing else "has no rows"
        raise ValueError(f"{path} is not a file of curves: it {what}; there are {', '.join(COLUMNS)}")
    values = np.empty((len(rows), len(COLUMNS)))
    for number, row in enumerate(rows):
        try:
            values[number] = [float(row[names.index(name)].replace(",", ".")) for name in COLUMNS]
        except (ValueError, IndexError) as error:
            shown = repr(",".join(row))  # its control characters are escaped
            shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}...'"
            raise ValueError(f"{path}, row {number + 2}: {shown} is not {len(names)} numbers") from error
    return values


def _split_names(header: str, delimiter: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter))]


def _check_values(path: Path, values: np.ndarray, config: Config) -> None:
    time, f0, loudness, periodicity, voiced = values.T
    highest = config.audio.sample_rate / 2
    wrong = {
        f"time should grow from row to row, from 0 to {MAX_SECONDS:.0f} s": ~(np.diff(time, prepend=-1e-9) > 0)
        | ~(time <= MAX_SECONDS),
        f"f0 should be between 1 and {highest:.0f} Hz": ~((f0 >= 1) & (f0 <= highest)),
        "loudness should be between -200 and 20 dB": ~(np.abs(loudness + 90) <= 110),
        "periodicity should be between 0 and 1": ~((periodicity >= 0) & (periodicity <= 1)),
        "voiced should be 0 or 1": ~np.isin(voiced, (0, 1)),
    }
    for rule, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{path}, row {rows.argmax() + 2}: {rule}")
