"""Curves of a voice and of the instrument that plays it, one value per frame, and the CSV file that stores them.

The columns are time (s), f0 (Hz), loudness (dB re full scale), periodicity (0..1) and voiced (1 where a note is held).
The file holds the instrument's curves: written, read and played, they give the same sound.
"""

import codecs
import csv
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from config import Config
from sound.atomic_files import write_text

MAX_SECONDS = 4 * 3600.0  # s, of a curve file or a MIDI file: a longer one is probably an error
_MAX_BYTES = 80_000_000  # of a curve file: more than four hours with a row in every frame
_MAX_SHOWN = 80  # characters of a row that an error quotes
COLUMNS = ("time", "f0", "loudness", "periodicity", "voiced")
GATE_FADE_SECONDS = 0.02  # short enough to keep attacks sharp, long enough to avoid clicks


class Melody(NamedTuple):
    """Curves of the voice, [T] each."""

    f0: np.ndarray  # Hz, interpolated where nothing is sung
    loudness: np.ndarray  # dB re full scale
    periodicity: np.ndarray  # 0..1, confidence of f0
    voiced: np.ndarray  # bool


@dataclass(frozen=True)
class Curves:
    """Curves of the instrument, [T] each."""

    f0: np.ndarray  # Hz
    loudness: np.ndarray  # dB re full scale; the floor where nothing is played
    periodicity: np.ndarray  # 0..1, of the voice
    voiced: np.ndarray  # bool, where a note is held; excludes its release
    gate: np.ndarray  # 0..1, 0 where the instrument is silent


def shape_notes(melody: Melody, config: Config) -> Curves:
    """Add a release to each note: after its last frame the pitch holds and the loudness falls.

    The model darkens the timbre as the loudness falls. Values outside the voiced frames are ignored, so shaping twice
    changes nothing.
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
    """Fade a gate in and out within its runs over ``n_frames``: float32 [T], 0 wherever nothing sounds."""
    if n_frames < 1:
        return sounding.astype(np.float32)
    distance = ndimage.distance_transform_edt(np.pad(sounding, 1))[1:-1]
    return np.sin(np.clip(distance / (n_frames + 1), 0, 1) * np.pi / 2).astype(np.float32) ** 2


# --- files ----------------------------------------------------------------------------------------


def write_curves(path: Path, curves: Curves, frame_rate: float) -> None:
    """Write curves as CSV. Nine digits preserve every float32 exactly."""
    lines = [",".join(COLUMNS)]
    rows = zip(curves.f0, curves.loudness, curves.periodicity, curves.voiced)
    for frame, (f0, loudness, periodicity, voiced) in enumerate(rows):
        lines.append(f"{frame / frame_rate:.4f},{f0:.9g},{loudness:.9g},{periodicity:.9g},{int(voiced)}")
    write_text(path, "\n".join(lines) + "\n")


def read_curves(path: Path, config: Config) -> Melody:
    """Read curves from CSV. Rows may lie at any times; the frames between them are interpolated.

    Accepts what spreadsheets save: commas, semicolons or tabs between the columns, quoted values, a decimal comma,
    UTF-8 or UTF-16.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a curve file, or a value out of range; the message names the row.
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
    """Return the columns in the order of COLUMNS, [rows, 5]; the file may have others, in any order."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB; the limit for curves is {_MAX_BYTES / 1e6:.0f} MB")
    content = path.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # Text in other columns may be in any encoding; digits are the same in all of them.
        lines = content.decode("utf-16" if is_utf16 else "utf-8-sig", "replace").splitlines()
        lines = [line for line in lines if line.strip(" ,;\t")]  # spreadsheets save cleared rows as delimiters
        if lines and lines[0].lower().startswith("sep="):  # Excel's line that names the delimiter
            del lines[0]
        header, *lines = lines
        delimiter = max(",;\t", key=lambda each: len(set(COLUMNS) & set(_split_names(header, each))))
        names = _split_names(header, delimiter)
    except (ValueError, csv.Error) as error:  # empty, or not text
        raise ValueError(f"{path} is not a curve file; write one with --export_controls") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing or not lines:
        problem = f"the column {', '.join(missing)} is missing" if missing else "it has no rows"
        raise ValueError(f"{path} is not a curve file: {problem}; expected the columns {', '.join(COLUMNS)}")
    places, values, row = [names.index(name) for name in COLUMNS], array("d"), []
    try:
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
            values.extend([float(row[place].replace(",", ".")) for place in places])
    except csv.Error as error:
        raise ValueError(f"{path} is not a curve file ({error}); write one with --export_controls") from error
    except (ValueError, IndexError) as error:
        shown = repr(",".join(row))  # escapes control characters
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}...'"
        number = len(values) // len(COLUMNS) + 2
        raise ValueError(f"{path}, row {number}: expected {len(names)} numbers, not {shown}") from error
    return np.array(values).reshape(-1, len(COLUMNS))


def _split_names(header: str, delimiter: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))]


def _check_values(path: Path, values: np.ndarray, config: Config) -> None:
    time, f0, loudness, periodicity, voiced = values.T
    highest = config.audio.sample_rate / 2
    wrong = {
        f"time should increase from row to row, from 0 to {MAX_SECONDS:.0f} s": ~(np.diff(time, prepend=-1e-9) > 0)
        | ~(time <= MAX_SECONDS),
        f"f0 should be between 1 and {highest:.0f} Hz": ~((f0 >= 1) & (f0 <= highest)),
        "loudness should be between -200 and 20 dB": ~(np.abs(loudness + 90) <= 110),
        "periodicity should be between 0 and 1": ~((periodicity >= 0) & (periodicity <= 1)),
        "voiced should be 0 or 1": ~np.isin(voiced, (0, 1)),
    }
    for rule, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{path}, row {rows.argmax() + 2}: {rule}")
