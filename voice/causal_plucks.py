"""Pluck the notes of a melody while it comes in.

It does what ``voice.plucked_notes`` does with the whole melody at hand, a frame at a time, as live playing needs it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sound.plucks import CLOSEST, LONGEST_RING, SILENT_POWER, PluckTable, damped_share, window_share
from voice.plucked_notes import MIDDLE_HARDNESS

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
        self._reference, self._floor, self._repeat = reference, floor, repeat_seconds
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
        if self._detected < CLOSEST * self._rate:  # it scoops and swells, and belongs to the last note
            self._pitch, self._low = pitch, loudness
            return gate and not self._is_open and self._detected > 2 * self._n_velocity
        distance = abs(pitch - self._pitch) - _DRIFT
        self._away = self._away + distance / self._rate if distance > 0 else 0.0
        has_dipped = min(self._peak, loudness) - self._low > _DIP
        is_due = self._repeat is not None and self._detected >= self._repeat * self._rate
        # A step inside a dip waits for its end, where the syllable begins.
        has_stepped = self._away > _STEP and self._peak - loudness < _DIP
        return gate and (not self._is_open or has_dipped or has_stepped or is_due)

    def _pluck_level(self, pitch: float) -> float:
        soft, loud = self._table.levels(pitch)
        hardness = MIDDLE_HARDNESS + (self._reached + _STILL_RISING - self._reference) / max(loud - soft, 1e-6)
        return float(self._table.level(pitch, hardness))

    def _play(self) -> PluckedFrame:
        string, before = self._string, self._before
        share = float(window_share(string.age / self._rate, self._window))
        power = share * self._power(string) + (1 - share) * self._power(before)
        loudness = max(10 * np.log10(power + SILENT_POWER), self._floor)
        current = string if string.age >= 0 else before
        time, velocity = min(current.age / self._rate, LONGEST_RING), max(current.level, self._floor)
        return PluckedFrame(float(loudness), time, velocity, bool(loudness > self._floor))

    def _power(self, string: _String) -> float:
        if not np.isfinite(string.level):
            return 0.0
        rings = self._table.decay(string.pitch, string.level, np.array(max(string.age, 0) / self._rate))
        left = damped_share((string.damped - 1) / self._rate, self._window) if string.damped else 1.0
        return float(10 ** (rings / 10) * left)
