"""Plucked strings: their decay, measured in recordings, and the detection of plucks.

``measure_plucks`` measures how an instrument's plucks decay by pitch and level, as a ``PluckTable``. ``find_onsets``
detects the plucks in a recording of a melody, and ``curves_from_onsets`` turns them into additional decoder inputs:
time since the onset, and velocity.

Loudness is measured through a Hann window of 64 ms, so the measured level starts to rise 30 ms before a pluck and is
3 dB low at the onset, where half of the window lies on the sound. A table holds the decay of the sound itself.
``window_share`` and ``damped_share`` model the effect of the window on an onset and an end, so a curve built from a
table is what the extractor would measure.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from config import short_repr
from sound.crepe import hz_to_midi

KNOTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0)  # s; decays are linear between
_PITCH_STEP = 3.0  # semitones between two entries of a table
_KERNEL = 1.0  # semitones, standard deviation of the Gaussian that weights plucks by their distance from an entry
_REST_WEIGHT = 1e-3  # of a distant pluck, so that every entry has a decay
_LEVEL_SPREAD = 3.0  # dB, minimum standard deviation of the levels for a fit of the decay over level
_ABOVE_FLOOR = 12.0  # dB above the floor, below which noise dominates the decay
_STEEPEST = (600.0, 100.0)  # dB/s either way, limit of a rate in the first 50 ms and later
DAMPING_SECONDS = 0.06  # in which a damped string falls silent
LEVEL_SECONDS = 0.12  # from the onset, within which a pluck reaches its level
CLOSEST = 0.08  # s between two plucks
SILENT_POWER = 1e-12  # added before a logarithm
_MAX_NUMBER = 300  # largest magnitude of a MIDI number or a level in dB
LONGEST_RING = 4.0  # s, upper limit of the time since the onset, and its value before the first note


def _read_numbers(values: Any) -> tuple[float, ...]:
    """Return a list of numbers from a file, MIDI numbers or dB, as floats.

    Raises:
        ValueError: it is anything else, or has numbers that are not finite or far too large.
    """
    if not (
        isinstance(values, list)
        and all(isinstance(value, int | float) and abs(value) <= _MAX_NUMBER for value in values)
    ):
        expected = f"lists of numbers between -{_MAX_NUMBER} and {_MAX_NUMBER}"
        raise ValueError(f"a pluck table should have {expected}, not {short_repr(values)}")
    return tuple(map(float, values))


class Pluck(NamedTuple):
    """One measured pluck."""

    pitch: float  # MIDI number
    loudness: np.ndarray  # [n] dB, from the frame of its onset to the last in which the string rings freely


@dataclass(frozen=True)
class PluckTable:
    """Decay of an instrument's plucks by pitch and level, as plain numbers for a checkpoint."""

    pitches: tuple[float, ...]  # [P] MIDI numbers, increasing
    soft: tuple[float, ...]  # [P] dB, the level of the softest plucks
    loud: tuple[float, ...]  # [P] dB, the level of the loudest plucks
    soft_decay: tuple[tuple[float, ...], ...]  # [P, K] dB over the level of the pluck at KNOTS, when plucked softly
    loud_decay: tuple[tuple[float, ...], ...]  # [P, K] when plucked hard

    def __post_init__(self) -> None:
        shape = (len(self.pitches), len(KNOTS))
        if not self.pitches or list(self.pitches) != sorted(set(self.pitches)):
            raise ValueError(f"a pluck table needs one or more increasing pitches, not {short_repr(self.pitches)}")
        for name in ("soft", "loud"):
            if (n_levels := len(getattr(self, name))) != len(self.pitches):
                raise ValueError(f"'{name}' of a pluck table should have {len(self.pitches)} levels, not {n_levels}")
        for name in ("soft_decay", "loud_decay"):
            if np.shape(getattr(self, name)) != shape:
                actual = np.shape(getattr(self, name))
                raise ValueError(f"'{name}' of a pluck table should have the shape {shape}, not {actual}")
        for name, values in vars(self).items():
            if not np.isfinite(values).all():
                raise ValueError(f"'{name}' of a pluck table should be finite")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as lists of numbers."""
        return {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PluckTable":
        """Build a table from the result of ``to_dict``.

        Raises:
            ValueError: an entry is missing, unknown or of the wrong size.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names):
            raise ValueError(f"a pluck table should have {', '.join(names)}, not {short_repr(values)}")
        rows = {name: _read_numbers(values[name]) for name in ("pitches", "soft", "loud")}
        tables = {name: values[name] for name in ("soft_decay", "loud_decay")}
        for name, table in tables.items():
            if not isinstance(table, list) or len(table) != len(rows["pitches"]):
                raise ValueError(f"'{name}' of a pluck table should be a list for each pitch, not {short_repr(table)}")
        return cls(**rows, **{name: tuple(map(_read_numbers, table)) for name, table in tables.items()})

    def levels(self, pitch: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the levels in dB of the softest and the loudest pluck at a pitch (MIDI number)."""
        return np.interp(pitch, self.pitches, self.soft), np.interp(pitch, self.pitches, self.loud)

    def level(self, pitch: np.ndarray | float, hardness: np.ndarray | float) -> np.ndarray:
        """Return the level in dB of a pluck at a pitch, from hardness 0 (softest) to 1 (loudest), clipped.

        The hardness of a MIDI note is its velocity / 127.
        """
        soft, loud = self.levels(pitch)
        return soft + np.clip(hardness, 0, 1) * (loud - soft)

    def decay(self, pitch: float, level: float, times: np.ndarray) -> np.ndarray:
        """Return the level in dB of a string at ``times`` (s) after its onset, without the effect of the window."""
        soft, loud = self.levels(pitch)
        hardness = np.clip((level - soft) / max(loud - soft, 1e-9), 0, 1)
        tables = np.asarray(self.soft_decay), np.asarray(self.loud_decay)
        softly, hard = ([np.interp(pitch, self.pitches, knot) for knot in table.T] for table in tables)
        knots = (1 - hardness) * np.array(softly) + hardness * np.array(hard)
        beyond = (knots[-1] - knots[-2]) / (KNOTS[-1] - KNOTS[-2])
        return level + np.interp(times, KNOTS, knots) + min(beyond, 0.0) * np.maximum(times - KNOTS[-1], 0)


def window_share(seconds: np.ndarray, window_seconds: float) -> np.ndarray:
    """Return the fraction of a Hann window that lies before each time relative to its centre; 0.5 at 0 s."""
    position = np.clip(np.asarray(seconds) / window_seconds, -0.5, 0.5)
    return 0.5 + position + np.sin(2 * np.pi * position) / (2 * np.pi)


def window_reach(window_seconds: float, frame_rate: float) -> int:
    """Return the number of frames before an onset whose window includes it."""
    return int(np.ceil(window_seconds / 2 * frame_rate)) - 1


def damped_share(seconds: np.ndarray, window_seconds: float) -> np.ndarray:
    """Return the fraction of a string's power that remains under a centred Hann window, by the time since its damping.

    The amplitude falls as a half cosine over ``DAMPING_SECONDS``, as if damped by a finger.
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
    """Measure the decay of plucks.

    Between two knots, each pluck that lasts long enough contributes its decay rate, so notes that were damped early
    count for as long as they rang. An entry of the table is a linear fit of the rates over level, weighted by the
    distance in pitch.

    Args:
        plucks: from ``melody_plucks``.
        frame_rate: frames per second of their loudness.
        window_seconds: length of the loudness window.
        floor: dB, loudness of silence.

    Raises:
        ValueError: there are no plucks.
    """
    measured = [(pluck.pitch, *_measure_rates(pluck, frame_rate, window_seconds, floor)) for pluck in plucks]
    if not measured:
        raise ValueError("a pluck table needs at least one pluck, not 0")
    pitch, level, rates = (np.array(values, dtype=np.float64) for values in zip(*measured))
    low, high = np.floor(pitch.min()), np.ceil(pitch.max())
    pitches = np.linspace(low, high, 1 + max(0, round((high - low) / _PITCH_STEP)))
    entries = [_measure_entry(entry, pitch, level, rates) for entry in pitches]
    soft, loud, soft_decay, loud_decay = (np.round(values, 2).tolist() for values in zip(*entries))
    return PluckTable(
        tuple(pitches.tolist()), tuple(soft), tuple(loud), tuple(map(tuple, soft_decay)), tuple(map(tuple, loud_decay))
    )


def typical_plucks(loudest: float) -> PluckTable:
    """Return a typical guitar's table, scaled to a ``loudest`` level in dB, for a model without a table.

    The decays are rounded from 272 notes of an archtop guitar: 10 to 30 dB/s in the first half second, then 6 to 15,
    faster for higher notes. The softest plucks are 20 dB softer.
    """
    times = np.array(KNOTS)
    early, late = np.clip(times - 0.02, 0, 0.5), np.maximum(times - 0.52, 0)
    decays = [tuple(np.round(-fast * early - slow * late, 2).tolist()) for fast, slow in ((15.0, 8.0), (25.0, 14.0))]
    levels = (loudest - 20, loudest - 20), (loudest, loudest)
    return PluckTable((40.0, 84.0), *levels, tuple(decays), tuple(decays))


def _measure_rates(pluck: Pluck, frame_rate: float, window_seconds: float, floor: float) -> tuple[float, np.ndarray]:
    """Return a pluck's level in dB, and [K]: its level at the onset relative to that, then decay rates in dB/s or NaN.

    A rate is NaN where the pluck ends or nears the floor before the knot.
    """
    times = np.arange(len(pluck.loudness)) / frame_rate
    sound = pluck.loudness - 10 * np.log10(window_share(times, window_seconds))
    level = float(pluck.loudness[: round(LEVEL_SECONDS * frame_rate)].max())
    low = np.flatnonzero(pluck.loudness < floor + _ABOVE_FLOOR)
    usable = low[0] if len(low) else len(sound)
    rates = np.full(len(KNOTS), np.nan)
    rates[0] = sound[0] - level
    for number, (start, end) in enumerate(pairwise(KNOTS), start=1):
        first, last = round(start * frame_rate), round(end * frame_rate)
        if last < usable:
            frames = np.arange(first, last + 1)
            rates[number] = np.polyfit(frames / frame_rate, sound[frames], 1)[0]
    steepest = np.where(np.array(KNOTS) <= 0.05, *_STEEPEST)
    return level, np.clip(rates, -steepest, steepest)


def _measure_entry(
    entry: float, pitch: np.ndarray, level: np.ndarray, rates: np.ndarray
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return the softest and the loudest level at pitch ``entry``, and the decays [K] of both."""
    weights = np.exp(-0.5 * ((pitch - entry) / _KERNEL) ** 2) + _REST_WEIGHT
    soft, loud = _weighted_quantiles(level, weights, (0.05, 0.95))
    fitted = np.zeros((2, len(KNOTS)))
    for knot in range(len(KNOTS)):
        known = np.isfinite(rates[:, knot])
        if known.any():
            fitted[:, knot] = _fit_line(level[known], rates[known, knot], weights[known], (soft, loud))
        elif knot:  # later than the longest pluck
            fitted[:, knot] = fitted[:, knot - 1]
    late = np.array(KNOTS) > 0.2
    fitted[:, late] = np.minimum(fitted[:, late], 0)  # a string's level rises only at first
    steps = fitted * np.diff(KNOTS, prepend=KNOTS[0] - 1)
    soft_decay, loud_decay = np.cumsum(steps, axis=1)
    return soft, loud, soft_decay, loud_decay


def _fit_line(
    level: np.ndarray, rate: np.ndarray, weights: np.ndarray, ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the weighted linear fit of rates over levels at both ``ends``; the mean rate if levels hardly differ."""
    centre, mean = np.average(level, weights=weights), np.average(rate, weights=weights)
    variance = np.average((level - centre) ** 2, weights=weights)
    slope = np.average((level - centre) * (rate - mean), weights=weights) / variance if variance else 0.0
    if np.sqrt(variance) < _LEVEL_SPREAD:
        slope = 0.0
    return mean + slope * (ends[0] - centre), mean + slope * (ends[1] - centre)


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the weighted quantiles of ``values`` at ``shares``, 0..1."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return values[order][np.searchsorted(reached, shares)]


def melody_plucks(f0: np.ndarray, loudness: np.ndarray, frame_rate: float, window_seconds: float) -> list[Pluck]:
    """Return the plucks in a recording of a melody, each until the window reaches the next one or the damping.

    Args:
        f0: [T] Hz.
        loudness: [T] dB.
        frame_rate: frames per second.
        window_seconds: length of the loudness window.
    """
    onsets = find_onsets(f0, loudness, frame_rate)
    margin, plucks = int(np.ceil(window_seconds / 2 * frame_rate)), []
    for onset, after in zip(onsets, [*onsets[1:], len(loudness) + margin]):
        free = loudness[onset : max(onset, after - margin)]
        falls = np.flatnonzero(np.diff(free) < -_DAMPED_RATE / frame_rate)
        falls = falls[falls > margin]
        free = free[: falls[0] - margin] if len(falls) else free
        if len(free) > 2 * margin:
            pitch = float(hz_to_midi(np.median(f0[onset : onset + len(free)])))
            plucks.append(Pluck(pitch, free))
    return plucks


# --- the plucks of a recording --------------------------------------------------------------------

_DAMPED_RATE = 150.0  # dB/s, measured through the window; an undamped string decays more slowly
_JUMP = 1.5  # dB over the window, minimum rise of a pluck, even a soft one; partials beat more slowly
_SHARPNESS = 0.15  # minimum fraction of the new power that arrives in 20 ms; 0.58 after silence, 0.17 for a 1.5 dB rise
_PITCH_JUMP = 0.8  # semitones in 40 ms: another string or fret; a bend is slower
_LEAP = 1.6  # semitones in 20 ms; slides are slower
_SLIDE = (0.5, 3.0)  # dB, range of a string's decay within the window; outside it there is a new pluck
_FADE = 5.0  # dB in 40 ms: the end of a note
_AUDIBLE = 20.0  # dB above the floor, minimum level of a pluck


def find_onsets(f0: np.ndarray, loudness: np.ndarray, frame_rate: float, floor: float = -80.0) -> list[int]:
    """Return the frames in which a string is plucked in a recording of a melody.

    A pluck raises the power within the window by more than the beating of partials does, or, if it is softer than the
    note before, changes the pitch abruptly.

    Args:
        f0: [T] Hz, positive.
        loudness: [T] dB.
        frame_rate: frames per second.
        floor: dB, loudness of silence.
    """
    reach, near = round(0.04 * frame_rate), max(1, round(0.01 * frame_rate))
    level = np.pad(np.asarray(loudness, dtype=np.float64), reach, mode="edge")
    level[:reach] = floor  # silence before the recording
    pitch = np.pad(12 * np.log2(np.asarray(f0, dtype=np.float64)), reach, mode="edge")
    power, n = 10 ** (level / 10), len(loudness)
    here = reach + np.arange(n)
    new, old = level[here + reach], level[here - reach]
    change = power[here + near] - power[here - near]
    sharpness = change / np.maximum(power[here + reach], SILENT_POWER)
    is_audible = np.maximum(new, level[here]) > floor + _AUDIBLE
    louder = (new - old > _JUMP) & (sharpness > _SHARPNESS) & is_audible
    moved = np.abs(pitch[here + reach // 2] - pitch[here - reach // 2])
    later = level[np.minimum(here + 2 * reach, len(level) - 1)]
    holds = (np.minimum(new, old) > floor + _AUDIBLE) & (new - later < _FADE)  # does not fade to silence
    breaks = (new - old > -_SLIDE[0]) | (new - old < -_SLIDE[1])  # in a slide the string just decays
    leap = np.abs(pitch[here + near] - pitch[here - near])
    other = holds & (breaks & (moved > _PITCH_JUMP) | (leap > _LEAP))
    strength = np.where(louder, 1 + sharpness, np.where(other, (moved + leap) / 100, 0))
    closest, taken, onsets = round(CLOSEST * frame_rate), np.zeros(n, dtype=bool), []
    candidates = np.flatnonzero(strength)
    for frame in candidates[np.argsort(-strength[candidates], kind="stable")]:
        if not taken[frame]:
            onsets.append(int(frame))
            taken[max(0, frame - closest + 1) : frame + closest] = True
    return sorted(onsets)


def curves_from_onsets(
    onsets: Sequence[int], loudness: np.ndarray, frame_rate: float, floor: float = -80.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return time since the onset (s) and velocity (dB), [T] each, as ``pluck_notes`` does.

    Args:
        onsets: frames, increasing.
        loudness: [T] dB, of the recording.
        frame_rate: frames per second.
        floor: dB, velocity before the first pluck.
    """
    time, velocity = np.full(len(loudness), LONGEST_RING), np.full(len(loudness), floor)
    for onset, after in zip(onsets, [*onsets[1:], len(loudness)]):
        end = min(after, onset + max(1, round(LEVEL_SECONDS * frame_rate)))
        time[onset:after] = np.minimum(np.arange(after - onset) / frame_rate, LONGEST_RING)
        velocity[onset:after] = loudness[onset:end].max()
    return time.astype(np.float32), velocity.astype(np.float32)


def trace_plucks(f0: np.ndarray, loudness: np.ndarray, frame_rate: float, floor: float = -80.0) -> np.ndarray:
    """Detect the plucks in curves [T]; return time since the onset (s) and velocity (dB) as float32 [T, 2]."""
    onsets = find_onsets(f0, loudness, frame_rate, floor)
    return np.stack(curves_from_onsets(onsets, loudness, frame_rate, floor), axis=1)
