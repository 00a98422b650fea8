"""Pluck the notes of a melody: the loudness curve of a guitar that plays a sung melody.

Each note is plucked once, with a hardness that follows its sung level. It decays as ``sound.plucks`` measured on the
instrument, whatever the voice does, and is damped where the voice ends. Pitch follows the voice throughout, so
vibrato, bends and slides are kept.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sound.plucks import (
    CLOSEST,
    DAMPING_SECONDS,
    SILENT_POWER,
    PluckTable,
    damped_share,
    window_reach,
    window_share,
)
from voice.note_finder import SungNote

MIDDLE_HARDNESS = 0.6  # 0..1, hardness of the pluck for a note of median level
_MAX_STRETCH = 1.5  # largest factor by which a voice's dynamics are expanded or compressed


class PluckCurves(NamedTuple):
    """Curves of a plucked instrument, [T] each."""

    loudness: np.ndarray  # dB, as the extractor would measure it; the floor where nothing rings
    ringing: np.ndarray  # bool, from where the loudness window reaches a pluck until it is damped


def pluck_notes(
    notes: Sequence[SungNote],
    table: PluckTable,
    n_frames: int,
    frame_rate: float,
    window_seconds: float,
    floor: float = -80.0,
    repeat_seconds: float | None = None,
) -> PluckCurves:
    """Return the curves of plucked notes.

    Each note is plucked at its onset and decays by the table until it is damped at its end or replaced by the next.

    Args:
        notes: in order, with the peak levels of the instrument, see ``fit_levels_to_plucks``.
        table: the instrument's pluck table.
        n_frames: T.
        frame_rate: frames per second.
        window_seconds: length of the loudness window.
        floor: dB, loudness of silence.
        repeat_seconds: interval at which a held note is plucked again; None disables it.
    """
    notes = _repeat(notes, repeat_seconds, frame_rate)
    power, ringing = np.zeros(n_frames), np.zeros(n_frames, dtype=bool)
    margin = window_reach(window_seconds, frame_rate)
    n_damping = round(DAMPING_SECONDS * frame_rate)
    for note, after in zip(notes, [*(note.onset for note in notes[1:]), n_frames + margin]):
        gone = min(after, note.end + n_damping)
        frames = np.arange(max(0, note.onset - margin), min(n_frames, gone + margin))
        since = (frames - note.onset) / frame_rate
        level = table.decay(note.pitch, note.level, np.maximum(since, 0))
        # The product covers a note that is replaced while it is damped.
        left = damped_share((frames - note.end) / frame_rate, window_seconds)
        left *= 1 - window_share((frames - after) / frame_rate, window_seconds)
        share = window_share(since, window_seconds) * left
        power[frames] += 10 ** (level / 10) * share
        ringing[frames] = True
    loudness = np.maximum(10 * np.log10(power + SILENT_POWER), floor)
    return PluckCurves(loudness.astype(np.float32), ringing)


def hold_pitch(f0: np.ndarray, notes: Sequence[SungNote], n_before: int) -> np.ndarray:
    """Return f0 [T] with the last pitch of each note held after it, and its first pitch for ``n_before`` frames before.

    A string keeps its pitch while it is damped. Inside the notes f0 is unchanged.
    """
    held = np.array(f0)
    for before, after in pairwise([None, *notes, None]):
        start = before.end if before else 0
        end = after.onset if after else len(held)
        middle = max(start, end - n_before) if after and before else (start if after else end)
        if before:
            held[start:middle] = f0[start - 1]
        if after:
            held[middle:end] = f0[end]
    return held


def _repeat(notes: Sequence[SungNote], seconds: float | None, frame_rate: float) -> list[SungNote]:
    """Split held notes, so that each is plucked again every ``seconds``."""
    if seconds is None:
        return list(notes)
    period, cut = round(seconds * frame_rate), []
    for note in notes:
        onsets = range(note.onset, max(note.onset + 1, note.end - round(CLOSEST * frame_rate)), period)
        ends = [*onsets[1:], note.end]
        cut += [note._replace(onset=onset, end=end) for onset, end in zip(onsets, ends)]
    return cut


# --- levels ---------------------------------------------------------------------------------------


def fit_levels_to_plucks(notes: Sequence[SungNote], table: PluckTable, offset: float = 0.0) -> list[SungNote]:
    """Map the levels of sung notes linearly into the instrument's range of plucks.

    The median level maps to ``MIDDLE_HARDNESS``. The spread maps to that of the instrument, with a limited slope, so
    that an even hum stays even. ``offset`` in dB is added to all of them.
    """
    if not notes:
        return []
    level, pitch = (np.array([getattr(note, name) for note in notes]) for name in ("level", "pitch"))
    soft, loud = table.levels(pitch)
    spread = np.quantile(level, 0.9) - np.quantile(level, 0.1)
    slope = np.clip(0.7 * np.median(loud - soft) / max(spread, 1e-6), 1 / _MAX_STRETCH, _MAX_STRETCH)
    hardness = MIDDLE_HARDNESS + (slope * (level - np.median(level)) + offset) / np.maximum(loud - soft, 1e-6)
    return [note._replace(level=float(value)) for note, value in zip(notes, table.level(pitch, hardness))]
