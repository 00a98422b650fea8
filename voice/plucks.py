"""Plucked strings: how loud they are from the onset on, measured, and the loudness of notes that are plucked so.

A guitar does not swell with the voice that plays it: each note is plucked once, rings by itself and is damped. Three
things are here:

- ``measure_plucks`` learns from recordings how an instrument's plucks decay, by pitch and level: a ``PluckTable``.
- ``pluck_notes`` builds the curves of notes plucked so: loudness, time since the onset, velocity. ``CausalPlucker``
  does so while the notes come in.
- ``find_onsets`` finds the plucks in a recording of the instrument, so that a decoder can be trained on the same
  curves.

Loudness is measured through a Hann window of 64 ms, so a pluck's measured level rises from 30 ms before its onset: at
the onset half of the window's weight lies on the sound, -3 dB. Decays are kept as rates of the sound itself, and what
the window makes of an onset or an end is put back by ``window_share``. Thus a built curve is what the extractor would
have measured, and sudden onsets, damping and notes that replace each other are exact, to the curvature of the decay.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from voice.note_finder import SungNote, find_notes

KNOTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0)  # s; decays are straight between
_PITCH_STEP = 3.0  # semitones between two entries of a table
_KERNEL = 1.0  # semitones: how near a pluck's pitch has to be to count fully for an entry
_REST_WEIGHT = 1e-3  # of a pluck far away, so that an entry without plucks of its own has a decay too
_LEVEL_SPREAD = 3.0  # dB: plucks whose levels differ by less tell nothing about how the decay depends on level
_ABOVE_FLOOR = 12.0  # dB: nearer to the floor a decay is not measured, the noise is
_STEEPEST = 600.0  # dB/s either way, of a rate
_SILENT = 1e-12  # of power, so that its logarithm exists
DAMPING_SECONDS = 0.06  # in which a string falls silent that is let go
LONGEST_RING = 4.0  # s; time since the onset is not counted further, and is this before the first note


class Pluck(NamedTuple):
    """One measured pluck."""

    pitch: float  # MIDI number
    loudness: np.ndarray  # [n] dB, from the frame of its onset to that in which the string is still free


class PluckCurves(NamedTuple):
    """What a plucked instrument plays, [T] each."""

    loudness: np.ndarray  # dB, as the extractor would measure it; the floor where nothing rings
    time_since_onset: np.ndarray  # s, 0 in the frame of the onset, at most LONGEST_RING
    velocity: np.ndarray  # dB, the level of the pluck that rings; the floor before the first one
    ringing: np.ndarray  # bool, from the first trace of a pluck until it is damped


@dataclass(frozen=True)
class PluckTable:
    """How an instrument's plucks decay, by pitch and level. Plain numbers, so that a checkpoint can hold it."""

    pitches: tuple[float, ...]  # [P] MIDI numbers, rising
    soft: tuple[float, ...]  # [P] dB, the level of the softest plucks
    loud: tuple[float, ...]  # [P] dB, the level of the loudest plucks
    soft_decay: tuple[tuple[float, ...], ...]  # [P, K] dB over the level of the pluck at KNOTS, when plucked softly
    loud_decay: tuple[tuple[float, ...], ...]  # [P, K] when plucked hard

    def __post_init__(self) -> None:
        shape = (len(self.pitches), len(KNOTS))
        if not self.pitches or list(self.pitches) != sorted(set(self.pitches)):
            raise ValueError(f"the pitches of a pluck table should rise, and be at least one, not {self.pitches}")
        for name in ("soft", "loud"):
            if len(getattr(self, name)) != len(self.pitches):
                raise ValueError(f"'{name}' of a pluck table should hold {len(self.pitches)} levels, one a pitch")
        for name in ("soft_decay", "loud_decay"):
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"'{name}' of a pluck table should be {shape}, not {np.shape(getattr(self, name))}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists of numbers."""
        return {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PluckTable":
        """Build a table from what ``to_dict`` returned.

        Raises:
            ValueError: a part is missing, unknown or of another size.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names):
            raise ValueError(f"a pluck table should hold {', '.join(names)}, not {', '.join(map(str, values))}")
        rows = {name: tuple(tuple(row) if isinstance(row, list) else row for row in values[name]) for name in names}
        return cls(**rows)

    def levels(self, pitch: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the levels in dB of the softest and the loudest pluck at a pitch (MIDI number)."""
        return np.interp(pitch, self.pitches, self.soft), np.interp(pitch, self.pitches, self.loud)

    def level(self, pitch: np.ndarray | float, hardness: np.ndarray | float) -> np.ndarray:
        """Return the level in dB of a pluck at a pitch: hardness 0 is the softest, 1 the loudest; others are limited.

        A MIDI note's hardness is its velocity over 127.
        """
        soft, loud = self.levels(pitch)
        return soft + np.clip(hardness, 0, 1) * (loud - soft)

    def decay(self, pitch: float, level: float, times: np.ndarray) -> np.ndarray:
        """Return the level in dB of a string at times (s, from the onset on) after it was plucked.

        It is the sound's own level, not yet seen through the window.
        """
        soft, loud = self.levels(pitch)
        hardness = np.clip((level - soft) / max(loud - soft, 1e-9), 0, 1)
        tables = np.asarray(self.soft_decay), np.asarray(self.loud_decay)
        softly, hard = ([np.interp(pitch, self.pitches, knot) for knot in table.T] for table in tables)
        knots = (1 - hardness) * np.array(softly) + hardness * np.array(hard)
        beyond = (knots[-1] - knots[-2]) / (KNOTS[-1] - KNOTS[-2])
        return level + np.interp(times, KNOTS, knots) + min(beyond, 0.0) * np.maximum(times - KNOTS[-1], 0)


def window_share(seconds: np.ndarray, window_seconds: float) -> np.ndarray:
    """Return which share of a centred Hann window lies before each of some times; 0.5 at its centre."""
    position = np.clip(np.asarray(seconds) / window_seconds, -0.5, 0.5)
    return 0.5 + position + np.sin(2 * np.pi * position) / (2 * np.pi)


def _window_reach(window_seconds: float, frame_rate: float) -> int:
    """Return how many frames before an onset the window sees it."""
    return int(np.ceil(window_seconds / 2 * frame_rate)) - 1


def damped_share(seconds: np.ndarray, window_seconds: float) -> np.ndarray:
    """Return which share of a string's power a centred Hann window still sees, some times after it was let go.

    The amplitude falls as half a cosine wave in ``DAMPING_SECONDS``, as a finger damps a string.
    """
    inside = np.linspace(-0.5, 0.5, 65) * window_seconds
    weights = 1 + np.cos(2 * np.pi * inside / window_seconds)
    times = np.asarray(seconds, dtype=np.float64)[..., None] + inside
    left = 0.5 + 0.5 * np.cos(np.pi * np.clip(times / DAMPING_SECONDS, 0, 1))
    return (left**2 * weights).sum(axis=-1) / weights.sum()


# --- measuring ------------------------------------------------------------------------------------


def measure_plucks(
    plucks: Iterable[Pluck], frame_rate: float, window_seconds: float, floor: float = -80.0
) -> PluckTable:
    """Measure how plucks decay.

    Between two knots the rate of each pluck that reaches so far is a measurement; a table's entry is their mean, near
    pitches counting most, with a straight line over the level. So notes that were damped early count for as long as
    they rang.

    Args:
        plucks: from ``single_pluck`` or ``melody_plucks``.
        frame_rate: frames a second of their loudness.
        window_seconds: of the loudness.
        floor: dB, the least loudness.

    Raises:
        ValueError: there are no plucks.
    """
    measured = [(pluck.pitch, *_measure_rates(pluck, frame_rate, window_seconds, floor)) for pluck in plucks]
    if not measured:
        raise ValueError("a pluck table needs at least one pluck, and there is none")
    pitch, level, rates = (np.array(values, dtype=np.float64) for values in zip(*measured))
    low, high = np.floor(pitch.min()), np.ceil(pitch.max())
    pitches = np.linspace(low, high, 1 + max(0, round((high - low) / _PITCH_STEP)))
    entries = [_measure_entry(entry, pitch, level, rates) for entry in pitches]
    soft, loud, soft_decay, loud_decay = (np.round(values, 2).tolist() for values in zip(*entries))
    return PluckTable(
        tuple(pitches.tolist()), tuple(soft), tuple(loud), tuple(map(tuple, soft_decay)), tuple(map(tuple, loud_decay))
    )


def _measure_rates(pluck: Pluck, frame_rate: float, window_seconds: float, floor: float) -> tuple[float, np.ndarray]:
    """Return a pluck's level in dB, and [K]: its first level over that, then its rates in dB/s; NaN where unknown."""
    times = np.arange(len(pluck.loudness)) / frame_rate
    sound = pluck.loudness - 10 * np.log10(window_share(times, window_seconds))
    level = float(pluck.loudness[: round(KNOTS[7] * frame_rate)].max())
    low = np.flatnonzero(pluck.loudness < floor + _ABOVE_FLOOR)
    usable = low[0] if len(low) else len(sound)
    rates = np.full(len(KNOTS), np.nan)
    rates[0] = sound[0] - level
    for number, (start, end) in enumerate(pairwise(KNOTS), start=1):
        first, last = round(start * frame_rate), round(end * frame_rate)
        if last < usable:
            frames = np.arange(first, last + 1)
            rates[number] = np.polyfit(frames / frame_rate, sound[frames], 1)[0]
    return level, np.clip(rates, -_STEEPEST, _STEEPEST)


def _measure_entry(
    entry: float, pitch: np.ndarray, level: np.ndarray, rates: np.ndarray
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return the softest and the loudest level at a pitch, and the decays [K] of both."""
    weights = np.exp(-0.5 * ((pitch - entry) / _KERNEL) ** 2) + _REST_WEIGHT
    soft, loud = _weighted_quantiles(level, weights, (0.05, 0.95))
    fitted = np.zeros((2, len(KNOTS)))
    for knot in range(len(KNOTS)):
        known = np.isfinite(rates[:, knot])
        if known.any():
            fitted[:, knot] = _fit_line(level[known], rates[known, knot], weights[known], (soft, loud))
        elif knot:
            fitted[:, knot] = np.minimum(fitted[:, knot - 1], 0)  # beyond the longest note: as before
    # Only the first centiseconds of a string may rise.
    fitted[:, 8:] = np.minimum(fitted[:, 8:], 0)
    steps = fitted * np.diff(KNOTS, prepend=KNOTS[0] - 1)
    soft_decay, loud_decay = np.cumsum(steps, axis=1)
    return soft, loud, soft_decay, loud_decay


def _fit_line(
    level: np.ndarray, rate: np.ndarray, weights: np.ndarray, ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the weighted regression of rates on levels at two levels; their mean if the levels hardly differ."""
    centre, mean = np.average(level, weights=weights), np.average(rate, weights=weights)
    variance = np.average((level - centre) ** 2, weights=weights)
    slope = np.average((level - centre) * (rate - mean), weights=weights) / variance if variance else 0.0
    if np.sqrt(variance) < _LEVEL_SPREAD:
        slope = 0.0
    return mean + slope * (ends[0] - centre), mean + slope * (ends[1] - centre)


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return np.interp(shares, (total - weights[order] / 2) / total[-1], values[order])


def single_pluck(loudness: np.ndarray, pitch: float, frame_rate: float) -> Pluck:
    """Return the pluck in the recording of a single note that rings out.

    Args:
        loudness: [T] dB, measured with at least 50 ms of silence before the note.
        pitch: MIDI number.
        frame_rate: frames a second.
    """
    return Pluck(pitch, loudness[_steepest_rise(loudness, 0, int(loudness.argmax()) + 1) :])


def melody_plucks(f0: np.ndarray, loudness: np.ndarray, frame_rate: float, window_seconds: float) -> list[Pluck]:
    """Return the plucks in a recording of a melody: each until the window meets the next one, or the damping.

    Args:
        f0: [T] Hz.
        loudness: [T] dB.
        frame_rate: frames a second.
        window_seconds: of the loudness.
    """
    onsets = find_onsets(f0, loudness, frame_rate)
    margin, plucks = int(np.ceil(window_seconds / 2 * frame_rate)), []
    for onset, after in zip(onsets, [*onsets[1:], len(loudness) + margin]):
        free = loudness[onset : max(onset, after - margin)]
        falls = np.flatnonzero(np.diff(free) < -_DAMPED_RATE / frame_rate)
        falls = falls[falls > margin]
        free = free[: falls[0] - margin] if len(falls) else free
        if len(free) > 2 * margin:
            pitch = 12 * np.log2(np.median(f0[onset : onset + len(free)]) / 440) + 69
            plucks.append(Pluck(float(pitch), free))
    return plucks


# --- the plucks of a recording --------------------------------------------------------------------

_DAMPED_RATE = 150.0  # dB/s: no string decays so fast by itself, through the window
_JUMP = 1.5  # dB over the window: a string plucked again, even as softly; its partials beat more slowly
_SHARPNESS = 0.15  # of the new power: how much of it comes within 20 ms; 0.58 after silence, 0.17 after 1.5 dB less
_PITCH_JUMP = 0.8  # semitones in 40 ms: another string or fret; a bend is slower
_LEAP = 1.6  # semitones in 20 ms: no slide is so fast
_SLIDE = (0.5, 3.0)  # dB by which a string decays within the window; what it does less or more, a new pluck does
_FADE = 5.0  # dB in 40 ms: the end of a note
_CLOSEST = 0.08  # s between two onsets
_AUDIBLE = 20.0  # dB over the floor that a pluck must reach
_LEVEL_SECONDS = 0.12  # after its onset a pluck has reached its level


def find_onsets(f0: np.ndarray, loudness: np.ndarray, frame_rate: float, floor: float = -80.0) -> list[int]:
    """Return the frames in which a string is plucked in a recording of a melody.

    A pluck raises the power within the window's length by more than a string's beating does, or, if it is softer than
    what rang before, brings another pitch at once.

    Args:
        f0: [T] Hz, positive.
        loudness: [T] dB.
        frame_rate: frames a second.
        floor: dB, the least loudness.
    """
    reach, near = round(0.04 * frame_rate), max(1, round(0.01 * frame_rate))
    level = np.pad(np.asarray(loudness, dtype=np.float64), reach, mode="edge")
    level[:reach] = floor  # before the recording there was silence
    pitch = np.pad(12 * np.log2(np.asarray(f0, dtype=np.float64)), reach, mode="edge")
    power, n = 10 ** (level / 10), len(loudness)
    here = reach + np.arange(n)
    new, old = level[here + reach], level[here - reach]
    change = power[here + near] - power[here - near]
    sharpness = change / np.maximum(power[here + reach], _SILENT)
    is_audible = np.maximum(new, level[here]) > floor + _AUDIBLE
    louder = (new - old > _JUMP) & (sharpness > _SHARPNESS) & is_audible
    moved = np.abs(pitch[here + reach // 2] - pitch[here - reach // 2])
    later = level[np.minimum(here + 2 * reach, len(level) - 1)]
    holds = (np.minimum(new, old) > floor + _AUDIBLE) & (new - later < _FADE)  # rather than fades to silence
    breaks = (new - old > -_SLIDE[0]) | (new - old < -_SLIDE[1])  # in a slide the string only decays
    leap = np.abs(pitch[here + near] - pitch[here - near])
    other = holds & (breaks & (moved > _PITCH_JUMP) | (leap > _LEAP))
    strength = np.where(louder, 1 + sharpness, np.where(other, moved / 100, 0))
    closest, taken, onsets = round(_CLOSEST * frame_rate), np.zeros(n, dtype=bool), []
    candidates = np.flatnonzero(strength)
    for frame in candidates[np.argsort(-strength[candidates], kind="stable")]:
        if not taken[frame]:
            onsets.append(int(frame))
            taken[max(0, frame - closest + 1) : frame + closest] = True
    return sorted(onsets)


def curves_from_onsets(
    onsets: Sequence[int], loudness: np.ndarray, frame_rate: float, floor: float = -80.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return time since the onset (s) and velocity (dB), [T] each, of plucks that were found or are known.

    They are what ``pluck_notes`` returns beside the loudness, so a decoder may be trained on them.

    Args:
        onsets: frames, rising.
        loudness: [T] dB, of the recording.
        frame_rate: frames a second.
        floor: dB, velocity before the first pluck.
    """
    time, velocity = np.full(len(loudness), LONGEST_RING), np.full(len(loudness), floor)
    for onset, after in zip(onsets, [*onsets[1:], len(loudness)]):
        end = min(after, onset + max(1, round(_LEVEL_SECONDS * frame_rate)))
        time[onset:after] = np.minimum(np.arange(after - onset) / frame_rate, LONGEST_RING)
        velocity[onset:after] = loudness[onset:end].max()
    return time.astype(np.float32), velocity.astype(np.float32)


def _steepest_rise(loudness: np.ndarray, start: int, stop: int) -> int:
    """Return the frame in [start, stop) about which the power rises most: there the window's centre met the onset."""
    power = np.pad(10 ** (np.asarray(loudness, dtype=np.float64) / 10), 1, mode="edge")
    rise = power[2:] - power[:-2]
    return start + int(rise[start:stop].argmax())


# --- playing notes --------------------------------------------------------------------------------


def pluck_notes(
    notes: Sequence[SungNote],
    table: PluckTable,
    n_frames: int,
    frame_rate: float,
    window_seconds: float,
    floor: float = -80.0,
    repeat_seconds: float | None = None,
) -> PluckCurves:
    """Build the curves of notes that are plucked: each at its onset, as hard as its level says.

    A note rings by the table's decay until its end, where it is damped, or until the next one takes its place.

    Args:
        notes: in their order; their levels are peaks as the instrument plays them, see ``fit_levels_to_plucks``.
        table: of the instrument.
        n_frames: T.
        frame_rate: frames a second.
        window_seconds: of the loudness.
        floor: dB, where nothing sounds.
        repeat_seconds: pluck a held note again after so many seconds; None never does.

    Raises:
        ValueError: ``repeat_seconds`` is too short to be played.
    """
    notes = _repeat(notes, repeat_seconds, frame_rate)
    power, ringing = np.zeros(n_frames), np.zeros(n_frames, dtype=bool)
    time, velocity = np.full(n_frames, LONGEST_RING), np.full(n_frames, floor)
    margin = _window_reach(window_seconds, frame_rate)
    n_damping = round(DAMPING_SECONDS * frame_rate)
    for note, after in zip(notes, [*(note.onset for note in notes[1:]), n_frames + margin]):
        gone = min(after, note.end + n_damping)
        frames = np.arange(max(0, note.onset - margin), min(n_frames, gone + margin))
        since = (frames - note.onset) / frame_rate
        level = table.decay(note.pitch, note.level, np.maximum(since, 0))
        # Both at once where the next note takes its place while it is damped.
        left = damped_share((frames - note.end) / frame_rate, window_seconds)
        left *= 1 - window_share((frames - after) / frame_rate, window_seconds)
        share = window_share(since, window_seconds) * left
        power[frames] += 10 ** (level / 10) * share
        ringing[frames] = True
        held = slice(note.onset, min(after, n_frames))
        time[held] = np.minimum(np.arange(held.stop - held.start) / frame_rate, LONGEST_RING)
        velocity[held] = note.level
    loudness = np.maximum(10 * np.log10(power + _SILENT), floor)
    return PluckCurves(loudness.astype(np.float32), time.astype(np.float32), velocity.astype(np.float32), ringing)


def pluck_melody(
    f0: np.ndarray,
    loudness: np.ndarray,
    voiced: np.ndarray,
    table: PluckTable,
    frame_rate: float,
    window_seconds: float,
    floor: float = -80.0,
    offset: float = 0.0,
    repeat_seconds: float | None = None,
) -> tuple[np.ndarray, PluckCurves]:
    """Pluck a sung melody: find its notes, fit their levels to the instrument, and pluck them.

    Args:
        f0: [T] Hz, as it is to be played.
        loudness: [T] dB, of the voice as measured.
        voiced: bool [T].
        table: of the instrument.
        frame_rate, window_seconds, floor, repeat_seconds: see ``pluck_notes``.
        offset: dB on the level of each note.

    Returns:
        f0 [T], held where a string rings outside the notes, and the curves.
    """
    notes = fit_levels_to_plucks(find_notes(f0, loudness, voiced, frame_rate), table, offset)
    curves = pluck_notes(notes, table, len(f0), frame_rate, window_seconds, floor, repeat_seconds)
    return hold_pitch(f0, notes, _window_reach(window_seconds, frame_rate)), curves


def hold_pitch(f0: np.ndarray, notes: Sequence[SungNote], n_before: int) -> np.ndarray:
    """Return f0 [T] with the pitch of each note's end held after it, and of its onset ``n_before`` frames before it.

    So a string keeps its pitch while it is damped. Inside the notes f0 follows the voice: vibrato and slides are played
    on the string.
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
    """Cut held notes, so that each is plucked anew after so many seconds."""
    if _checked_repeat(seconds) is None:
        return list(notes)
    period, cut = round(seconds * frame_rate), []
    for note in notes:
        onsets = range(note.onset, max(note.onset + 1, note.end - round(_CLOSEST * frame_rate)), period)
        ends = [*onsets[1:], note.end]
        cut += [note._replace(onset=onset, end=end) for onset, end in zip(onsets, ends)]
    return cut


def _checked_repeat(seconds: float | None) -> float | None:
    if seconds is not None and not seconds >= _CLOSEST:
        raise ValueError(f"a held note can be plucked again after {_CLOSEST} s or more, not after {seconds} s")
    return seconds


# --- levels ---------------------------------------------------------------------------------------

_MIDDLE = 0.6  # of an instrument's range: how hard a note of a middling level is plucked
_MOST_STRETCH = 1.5  # a voice's dynamics are stretched and pressed by no more


def fit_levels_to_plucks(notes: Sequence[SungNote], table: PluckTable, offset: float = 0.0) -> list[SungNote]:
    """Move the levels of sung notes into the range in which the instrument is plucked.

    A straight line keeps the order of the notes. The median becomes a middling pluck, and the spread that of the
    instrument's layers if that takes no more than a moderate stretch, so that an even hum stays even. ``offset`` is dB
    on all of them.
    """
    if not notes:
        return []
    level, pitch = (np.array([getattr(note, name) for note in notes]) for name in ("level", "pitch"))
    soft, loud = table.levels(pitch)
    spread = np.quantile(level, 0.9) - np.quantile(level, 0.1)
    slope = np.clip(0.7 * np.median(loud - soft) / max(spread, 1e-6), 1 / _MOST_STRETCH, _MOST_STRETCH)
    hardness = _MIDDLE + (slope * (level - np.median(level)) + offset) / np.maximum(loud - soft, 1e-6)
    return [note._replace(level=float(value)) for note, value in zip(notes, table.level(pitch, hardness))]


# --- without look-ahead ---------------------------------------------------------------------------

_LEAD = 0.02  # s from the detection of a note to its onset: what the window sees of a pluck before it
_VELOCITY_SECONDS = 0.03  # after the detection a note's velocity is settled
_STILL_RISING = 2.0  # dB that a voice's level rises after that, in the median
_DIP = 6.0  # dB down and up again: a new syllable, if it is faster than what is forgotten
_FORGETTING = 30.0  # dB/s, at which the last peak and the last dip are forgotten
_STEP = 0.05  # semitones times seconds away from the note's pitch, what lies within _DRIFT not counted
_DRIFT = 0.6  # semitones, of vibrato and drift


class PluckedFrame(NamedTuple):
    """What a plucked instrument plays in one frame; see ``PluckCurves``."""

    loudness: float  # dB
    time_since_onset: float  # s
    velocity: float  # dB
    ringing: bool


@dataclass
class _String:
    """A string that rings."""

    pitch: float = 0.0  # MIDI number
    level: float = -np.inf  # dB, of its pluck
    age: int = 10**6  # frames since its onset, negative before it
    damped: int = 0  # frames since it was let go


class CausalPlucker:
    """Plucks the notes of a melody while it comes in, frame by frame.

    A note is detected where the gate opens, where the loudness has dipped and rises again, and where the pitch has
    stepped; 20 ms later it is plucked, and after another 10 ms its velocity is settled. Velocity is the level reached
    so far. What is kept from frame to frame is a handful of numbers.
    """

    def __init__(
        self,
        table: PluckTable,
        frame_rate: float,
        window_seconds: float,
        reference: float,
        floor: float = -80.0,
        repeat_seconds: float | None = None,
    ) -> None:
        """Take an instrument's table.

        Args:
            table: of the instrument.
            frame_rate: frames a second.
            window_seconds: of the loudness.
            reference: dB, the peak level of a sung note that is plucked middling hard.
            floor: dB, where nothing sounds.
            repeat_seconds: pluck a held note again after so many seconds; None never does.
        """
        self._table, self._rate, self._window = table, frame_rate, window_seconds
        self._reference, self._floor, self._repeat = reference, floor, _checked_repeat(repeat_seconds)
        self._n_lead, self._n_velocity = round(_LEAD * frame_rate), round(_VELOCITY_SECONDS * frame_rate)
        self._string, self._before = _String(), _String()  # the newest, and the one it takes the place of
        self._is_open = False  # the gate, in the last frame
        self._detected = 10**6  # frames since the last note was detected
        self._reached = floor  # dB, the highest level of the voice's note, while its velocity is not settled
        self._pitch, self._away = 0.0, 0.0  # the voice's note, MIDI number; how far and long the voice has left it
        self._peak, self._low = floor, floor  # dB of the voice, forgotten slowly

    def step(self, f0: float, loudness: float, gate: bool) -> PluckedFrame:
        """Take the next frame of a voice.

        Args:
            f0: Hz, as it is to be played.
            loudness: dB, as measured.
            gate: True where the voice sings.
        """
        pitch = 12 * np.log2(f0 / 440) + 69
        self._detected += 1
        for string in (self._string, self._before):
            string.age += 1
            string.damped = 0 if gate and string is self._string else string.damped + 1
        if self._is_new_note(pitch, loudness, gate):
            self._before, self._string = self._string, _String(age=-self._n_lead)
            self._detected, self._reached, self._away = 0, loudness, 0.0
            self._pitch, self._peak, self._low = pitch, loudness, loudness
        if self._detected <= self._n_velocity:
            self._reached = max(self._reached, loudness)
            self._string.pitch, self._string.level = pitch, self._pluck_level(pitch)
        self._is_open = gate
        return self._play()

    def _is_new_note(self, pitch: float, loudness: float, gate: bool) -> bool:
        """Follow the voice; return True in the frame in which a new note is detected."""
        forgotten = _FORGETTING / self._rate
        self._peak, self._low = max(loudness, self._peak - forgotten), min(loudness, self._low + forgotten)
        if self._detected < _CLOSEST * self._rate:  # it scoops and swells, and belongs to the last note
            self._pitch, self._low = pitch, loudness
            return gate and not self._is_open and self._detected > 2 * self._n_velocity
        distance = abs(pitch - self._pitch) - _DRIFT
        self._away = self._away + distance / self._rate if distance > 0 else 0.0
        has_dipped = min(self._peak, loudness) - self._low > _DIP
        is_due = self._repeat is not None and self._detected >= self._repeat * self._rate
        return gate and (not self._is_open or has_dipped or self._away > _STEP or is_due)

    def _pluck_level(self, pitch: float) -> float:
        soft, loud = self._table.levels(pitch)
        hardness = _MIDDLE + (self._reached + _STILL_RISING - self._reference) / max(loud - soft, 1e-6)
        return float(self._table.level(pitch, hardness))

    def _play(self) -> PluckedFrame:
        string, before = self._string, self._before
        share = float(window_share(string.age / self._rate, self._window))
        power = share * self._power(string) + (1 - share) * self._power(before)
        loudness = max(10 * np.log10(power + _SILENT), self._floor)
        current = string if string.age >= 0 else before
        time, velocity = min(current.age / self._rate, LONGEST_RING), max(current.level, self._floor)
        return PluckedFrame(float(loudness), time, velocity, bool(loudness > self._floor))

    def _power(self, string: _String) -> float:
        if not np.isfinite(string.level):
            return 0.0
        rings = self._table.decay(string.pitch, string.level, np.array(max(string.age, 0) / self._rate))
        left = damped_share((string.damped - 1) / self._rate, self._window) if string.damped else 1.0
        return float(10 ** (rings / 10) * left)
