"""Find the notes of a sung melody: onset, end, pitch and level of each.

A note begins where the voice begins, where the loudness rises again after a dip (a consonant, a new syllable on the
same pitch), or where the pitch settles on another level. Vibrato, drift, scoops into a note and falls off its end do
not begin one.

The pitch is segmented by the Potts model: the piecewise constant curve that minimises the summed distance to the sung
pitch plus a cost per step, found exactly by dynamic programming.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from sound.crepe import hz_to_midi

_STEPS_PER_SEMITONE = 4  # resolution of a note's pitch
_MIN_STEP = 0.75  # semitones between successive notes; drift and most vibrato are smaller
_STEP_COST = 0.08  # seconds times semitones: a whole tone is a separate note if it lasts more than 40 ms
_SLIDE_SPEED = 3.0  # semitones per second; drift is slower
_SLIDE_SECONDS = 0.2  # minimum length of a slide; a glide from note to note takes half of it
_DIP_DEPTH = 6.0  # dB below both sides: a consonant; the level of a held vowel varies by less
_DIP_SECONDS = 0.2  # searched on either side of a dip; syllables are rarely closer
_SHORTEST_NOTE = 0.09  # s; a shorter note that glides into a neighbour is its scoop or its fall
_RISE_SECONDS = 0.07  # searched for the onset after a dip or a pause
_ONSET_MARGIN = 8.0  # dB below the highest level in that time, at which a note begins


class SungNote(NamedTuple):
    onset: int  # first frame
    end: int  # the frame after the last
    pitch: float  # median MIDI number, fractional
    level: float  # dB, peak loudness


def find_notes(
    f0: np.ndarray, loudness: np.ndarray, voiced: np.ndarray, frame_rate: float, cut_slides: bool = True
) -> list[SungNote]:
    """Segment a melody into notes.

    Args:
        f0: [T] Hz, positive.
        loudness: [T] dB.
        voiced: bool [T], where something is sung.
        frame_rate: frames per second.
        cut_slides: False treats a slow slide between pitches as one note.

    Returns:
        The notes in order, without overlap; they cover every voiced frame but a few before an onset.
    """
    pitch = hz_to_midi(np.asarray(f0, dtype=np.float64))
    loudness = np.asarray(loudness, dtype=np.float64)
    notes = []
    for (run,) in ndimage.find_objects(ndimage.label(voiced)[0]):
        slides = np.zeros(run.stop - run.start, dtype=bool) if cut_slides else _find_slides(pitch[run], frame_rate)
        notes += _cut_run(pitch[run], loudness[run], slides, run.start, frame_rate)
    return notes


def _cut_run(
    pitch: np.ndarray, loudness: np.ndarray, slides: np.ndarray, first: int, frame_rate: float
) -> list[SungNote]:
    """Return the notes of one voiced run [T] that begins at frame ``first``; pitch steps in ``slides`` are ignored."""
    rise = round(_RISE_SECONDS * frame_rate)
    syllables = [0, *find_dips(loudness, round(_DIP_SECONDS * frame_rate)), len(pitch)]
    notes = []
    for start, stop in pairwise(syllables):
        levels = fit_levels(pitch[start:stop], _STEP_COST * frame_rate)
        changes = start + 1 + np.flatnonzero(np.diff(levels))
        steps = [*changes[~slides[changes]], stop]
        onset = _find_rise(loudness, start, min(start + rise, steps[0]))
        bounds = _join_short(onset, steps, round(_SHORTEST_NOTE * frame_rate))
        if notes:
            notes[-1] = notes[-1]._replace(end=first + onset)
        for begin, end in pairwise(bounds):
            held = slice(begin, end)
            notes.append(
                SungNote(first + begin, first + end, float(np.median(pitch[held])), float(loudness[held].max()))
            )
    return notes


def _find_slides(pitch: np.ndarray, frame_rate: float) -> np.ndarray:
    """Return True where the pitch moves in one direction for longer than a glide between notes: bool [T]."""
    speed = ndimage.gaussian_filter1d(pitch, 0.02 * frame_rate, order=1, mode="nearest") * frame_rate
    slides = np.zeros(len(pitch), dtype=bool)
    for direction in (speed > _SLIDE_SPEED, speed < -_SLIDE_SPEED):
        for (run,) in ndimage.find_objects(ndimage.label(direction)[0]):
            slides[run] = run.stop - run.start >= _SLIDE_SECONDS * frame_rate
    return slides


def find_dips(loudness: np.ndarray, reach: int) -> list[int]:
    """Return the frames of minimal loudness [T] between syllables, more than ``reach // 2`` frames apart."""
    window = reach // 2 * 2 + 1
    lowest = ndimage.minimum_filter1d(loudness, window, mode="nearest") == loudness
    dips: list[int] = []
    for frame in np.flatnonzero(lowest[1:-1]) + 1:
        before, after = loudness[max(0, frame - reach) : frame], loudness[frame + 1 : frame + 1 + reach]
        is_deep = min(before.max(), after.max()) - loudness[frame] >= _DIP_DEPTH
        if is_deep and not (dips and frame - dips[-1] <= reach // 2):
            dips.append(int(frame))
    return dips


def fit_levels(pitch: np.ndarray, step_cost: float) -> np.ndarray:
    """Fit a piecewise constant curve to a pitch.

    Args:
        pitch: [T] MIDI numbers, fractional.
        step_cost: cost of a step, in frames times semitones.

    Returns:
        [T], multiples of a quarter of a semitone.
    """
    low = np.floor(pitch.min() * _STEPS_PER_SEMITONE)
    levels = np.arange(low, np.ceil(pitch.max() * _STEPS_PER_SEMITONE) + 1) / _STEPS_PER_SEMITONE
    apart, n = round(_MIN_STEP * _STEPS_PER_SEMITONE), len(levels)
    came_from = np.empty((len(pitch), n), dtype=np.int32)
    total = np.abs(pitch[0] - levels)
    for t in range(1, len(pitch)):
        origin = _best_far_away(total, apart)
        jumps = (origin >= 0) & (total[origin] + step_cost < total)
        came_from[t] = np.where(jumps, origin, np.arange(n))
        total = np.where(jumps, total[origin] + step_cost, total) + np.abs(pitch[t] - levels)
    path = np.empty(len(pitch), dtype=np.int32)
    path[-1] = total.argmin()
    for t in range(len(pitch) - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return levels[path]


def _best_far_away(total: np.ndarray, apart: int) -> np.ndarray:
    """Return for each entry the index of the minimum at least ``apart`` entries away; -1 where there is none."""
    n = len(total)
    min_before = np.minimum.accumulate(total)
    left = np.maximum.accumulate(np.where(total == min_before, np.arange(n), 0))  # argmin of 0..i
    min_after = np.minimum.accumulate(total[::-1])[::-1]
    right = np.minimum.accumulate(np.where(total == min_after, np.arange(n), n - 1)[::-1])[::-1]  # argmin of i..n-1
    below = np.concatenate([np.full(min(apart, n), -1), left[: max(0, n - apart)]])
    above = np.concatenate([right[apart:], np.full(min(apart, n), -1)])
    take_above = (below < 0) | ((above >= 0) & (total[above] < total[below]))
    return np.where(take_above, above, below)


def _find_rise(loudness: np.ndarray, start: int, stop: int) -> int:
    """Return the first frame in [start, stop) within ``_ONSET_MARGIN`` of the highest level there."""
    level = loudness[start:stop]
    return start + int(np.argmax(level >= level.max() - _ONSET_MARGIN))


def _join_short(onset: int, steps: list[int], shortest: int) -> list[int]:
    """Return the bounds of a syllable's notes; a short one is joined to the note after it, the last to the one before.

    Args:
        onset: first frame of the syllable.
        steps: frames at which the pitch steps, then the end of the syllable.
        shortest: minimum length of a note in frames.
    """
    bounds = [onset]
    for step in steps[:-1]:
        if step - bounds[-1] >= shortest:  # else a scoop, part of the note that it leads into
            bounds.append(int(step))
    if len(bounds) > 1 and steps[-1] - bounds[-1] < shortest:
        bounds.pop()
    return [*bounds, int(steps[-1])]
