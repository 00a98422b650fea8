"""Annotated pitches beside the raw recordings: ``inspect_dataset.py --annotations`` compares the tracker with them.

URMP: ``F0s_1_tpt_05_Piece.txt`` beside ``AuSep_1_tpt_05_Piece.wav``, rows of seconds and Hz, 0 where nothing plays.
GuitarSet: ``00_BN1-129-Eb_solo.jams`` for ``00_BN1-129-Eb_solo_mic.wav``, JSON with a pitch contour for each string;
only moments count at which one string alone sounds. A voice: ``hum_f0.csv`` beside ``hum.wav``, as vocadito has them,
rows of seconds and Hz, 0 where nothing is sung; ``evaluate.py`` compares with it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

_CLOSEST = 0.02  # s, between a frame and the annotation that speaks for it


def find_annotations(folder: Path) -> dict[str, Path]:
    """Map the file names of recordings, without their suffix, to the annotations in a folder and its subfolders."""
    found = {}
    for path in sorted([*folder.rglob("F0s_*.txt"), *folder.rglob("*.jams")]):
        is_urmp = path.suffix == ".txt"
        found[f"AuSep_{path.stem.removeprefix('F0s_')}" if is_urmp else f"{path.stem}_mic"] = path
    return found


def read_annotation(path: Path, n_frames: int, frame_seconds: float) -> np.ndarray:
    """Return the annotated f0 in Hz, 0 where there is none or more than one: [T].

    Raises:
        ValueError: the file is not what its name says.
    """
    try:
        contours = _read_jams(path) if path.suffix == ".jams" else [_read_rows(path)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an annotation that can be read ({error})") from error
    seconds = np.arange(n_frames) * frame_seconds
    f0 = np.stack([_nearest_values(contour, seconds) for contour in contours])  # (strings, T)
    return np.where((f0 > 0).sum(axis=0) == 1, f0.sum(axis=0), 0.0)


def read_voice_annotation(voice: Path, n_frames: int, frame_seconds: float) -> np.ndarray | None:
    """Return the annotated f0 of a voice as ``read_annotation`` does, None where no annotation lies beside it."""
    path = voice.with_name(f"{voice.stem}_f0.csv")
    return read_annotation(path, n_frames, frame_seconds) if path.is_file() else None


def count_octave_errors(annotated: np.ndarray, f0: np.ndarray, voiced: np.ndarray) -> tuple[int, int]:
    """Return the frames in which f0 is whole octaves (within a semitone) off, and those that can be compared."""
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
        raise ValueError("rows of less than two numbers")
    if not np.isfinite(contour).all():
        raise ValueError("numbers that are not finite")
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
    raise ValueError("no pitch_contour in it")


def _nearest_values(contour: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the value nearest in time for each frame, 0 where the annotation is silent about it."""
    if not len(contour):
        return np.zeros(len(seconds))
    contour = contour[np.argsort(contour[:, 0], kind="stable")]
    after = np.clip(np.searchsorted(contour[:, 0], seconds), 1, max(1, len(contour) - 1))
    before = after - 1
    after = np.minimum(after, len(contour) - 1)
    is_before = seconds - contour[before, 0] <= contour[after, 0] - seconds
    nearest = np.where(is_before, before, after)
    return np.where(np.abs(contour[nearest, 0] - seconds) <= _CLOSEST, contour[nearest, 1], 0.0)
