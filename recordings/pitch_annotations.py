"""Read pitch annotations of recordings, to measure the errors of the pitch tracker.

URMP: ``F0s_1_tpt_05_Piece.txt`` for ``AuSep_1_tpt_05_Piece.wav``, rows of seconds and Hz, 0 where nothing plays.
GuitarSet: ``00_BN1-129-Eb_solo.jams`` for ``00_BN1-129-Eb_solo_mic.wav``, JSON with one pitch contour per string;
frames in which several strings sound are ignored. Both are for ``inspect_dataset.py --annotations``.
Voices: ``hum_f0.csv`` next to ``hum.wav``, as in vocadito, rows of seconds and Hz, 0 where nothing is sung; for
``evaluate.py``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

_MAX_DISTANCE = 0.02  # s, maximum distance between a frame and its annotation


def find_annotations(folder: Path) -> dict[str, Path]:
    """Return {recording's file name without suffix: path of its annotation} for a folder, searched recursively."""
    found = {}
    for path in sorted([*folder.rglob("F0s_*.txt"), *folder.rglob("*.jams")]):
        is_urmp = path.suffix == ".txt"
        found[f"AuSep_{path.stem.removeprefix('F0s_')}" if is_urmp else f"{path.stem}_mic"] = path
    return found


def read_annotation(path: Path, n_frames: int, frame_seconds: float) -> np.ndarray:
    """Return the annotated f0 [T] in Hz, 0 in frames with no pitch or several.

    Raises:
        ValueError: the file does not have the format that its suffix implies.
    """
    try:
        contours = _read_jams(path) if path.suffix == ".jams" else [_read_rows(path)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable annotation ({error})") from error
    seconds = np.arange(n_frames) * frame_seconds
    f0 = np.stack([_nearest_values(contour, seconds) for contour in contours])  # (strings, T)
    return np.where((f0 > 0).sum(axis=0) == 1, f0.sum(axis=0), 0.0)


def read_voice_annotation(voice: Path, n_frames: int, frame_seconds: float) -> np.ndarray | None:
    """Return the annotated f0 [T] of a voice in Hz, None if there is no annotation next to it."""
    path = voice.with_name(f"{voice.stem}_f0.csv")
    return read_annotation(path, n_frames, frame_seconds) if path.is_file() else None


def count_octave_errors(annotated: np.ndarray, f0: np.ndarray, voiced: np.ndarray) -> tuple[int, int]:
    """Return (frames with an error of whole octaves, within a semitone; frames compared)."""
    compared = voiced & (annotated > 0)
    octaves = np.log2(f0[compared] / annotated[compared])
    is_wrong = (np.abs(octaves) > 0.5) & (np.abs(octaves - np.round(octaves)) < 1 / 12)
    return int(is_wrong.sum()), int(compared.sum())


def _read_rows(path: Path) -> np.ndarray:
    rows = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    rows = rows[1:] if rows and rows[0].lstrip('"')[:1].isalpha() else rows  # a csv may have a header
    if not rows:
        raise ValueError("no rows of numbers")
    contour = np.loadtxt(rows, ndmin=2)[:, :2]
    if contour.shape[1] < 2:
        raise ValueError("a row has fewer than two numbers")
    if not np.isfinite(contour).all():
        raise ValueError("not all numbers are finite")
    return contour  # (rows, 2) s, Hz


def _read_jams(path: Path) -> list[np.ndarray]:
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    return [_contour(each["data"]) for each in annotations if each["namespace"] == "pitch_contour"] or _no_contour()


def _contour(data: Any) -> np.ndarray:
    if isinstance(data, dict):  # JAMS writes dense data as columns
        times, values = data["time"], data["value"]
    else:
        times, values = [each["time"] for each in data], [each["value"] for each in data]
    hertz = [value["frequency"] if value["voiced"] else 0.0 for value in values]
    return np.array([times, hertz], dtype=np.float64).T.reshape(-1, 2)


def _no_contour() -> list[np.ndarray]:
    raise ValueError("it has no pitch_contour")


def _nearest_values(contour: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return for each frame the value nearest in time, 0 where the nearest is over _MAX_DISTANCE away."""
    if not len(contour):
        return np.zeros(len(seconds))
    contour = contour[np.argsort(contour[:, 0], kind="stable")]
    after = np.clip(np.searchsorted(contour[:, 0], seconds), 1, max(1, len(contour) - 1))
    before = after - 1
    after = np.minimum(after, len(contour) - 1)
    is_before = seconds - contour[before, 0] <= contour[after, 0] - seconds
    nearest = np.where(is_before, before, after)
    return np.where(np.abs(contour[nearest, 0] - seconds) <= _MAX_DISTANCE, contour[nearest, 1], 0.0)
