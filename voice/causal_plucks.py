"""Pluck the notes of a melody frame by frame: the causal version of ``voice.plucked_notes``, for live playing."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sound.pitch_decoder import hz_to_midi
from sound.plucks import CLOSEST, LONGEST_RING, SILENT_POWER, PluckTable, damped_share, window_share
from voice.plucked_notes import MIDDLE_HARDNESS

_LEAD = 0.02  # s from detecting a note to its onset: the loudness window rises before a pluck
_VELOCITY_SECONDS = 0.03  # s from detecting a note to fixing its velocity
_STILL_RISING = 2.0  # dB, median rise of a voice's level after that
_DIP = 6.0  # dB down and up again: a new syllable
_DECAY_RATE = 30.0  # dB/s, at which the tracked peak and minimum decay towards the level; a slower dip is no syllable
_STEP = 0.05  # semitones times seconds, the integral of the deviation beyond _DRIFT that makes a new note
_DRIFT = 0.6  # semitones, tolerated as vibrato and drift


class PluckedFrame(NamedTuple):
    """One frame of ``PluckCurves``."""

    loudness: float  # dB
    time_since_onset: float  # s
    velocity: float  # dB
    ringing: bool


@dataclass
class _String:
    """A ringing string."""

    pitch: float = 0.0  # MIDI number
    level: float = -np.inf  # dB, of its pluck
    age: int = 10**6  # frames since its onset, negative before it
    damped: int = 0  # frames since damping began


class CausalPlucker:
    """Frame-by-frame plucking of the notes in a melody.

    A note is detected where the gate opens, where the loudness rises again after a dip, or where the pitch steps.
    It is plucked 20 ms later, and 10 ms after that its velocity is fixed at the highest level reached.
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
        """Set up the plucker.

        Args:
            table: the instrument's pluck table.
            frame_rate: frames per second.
            window_seconds: length of the loudness window.
            reference: dB, peak level of a sung note that is plucked with medium hardness.
            floor: dB, loudness of silence.
            repeat_seconds: interval at which a held note is plucked again; None disables it.
        """
        self._table, self._rate, self._window = table, frame_rate, window_seconds
        self._reference, self._floor, self._repeat = reference, floor, repeat_seconds
        self._n_lead, self._n_velocity = round(_LEAD * frame_rate), round(_VELOCITY_SECONDS * frame_rate)
        self._string, self._before = _String(), _String()  # the newest string, and the one that it replaces
        self._is_open = False  # the gate, in the last frame
        self._detected = 10**6  # frames since the last note was detected
        self._reached = floor  # dB, highest level of the sung note until its velocity is fixed
        self._pitch, self._away = 0.0, 0.0  # MIDI number of the sung note; integrated deviation from it, see _STEP
        self._peak, self._low = floor, floor  # dB, tracked peak and minimum of the voice

    def step(self, f0: float, loudness: float, gate: bool) -> PluckedFrame:
        """Return the next frame of the instrument.

        Args:
            f0: Hz, as it is to be played.
            loudness: dB, as measured.
            gate: True where the voice sings.
        """
        pitch = hz_to_midi(f0)
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
        """Update the tracked voice; return True in the frame in which a new note is detected."""
        decay = _DECAY_RATE / self._rate
        self._peak, self._low = max(loudness, self._peak - decay), min(loudness, self._low + decay)
        if self._detected < CLOSEST * self._rate:  # a scoop or swell belongs to the last note
            self._pitch, self._low = pitch, loudness
            return gate and not self._is_open and self._detected > 2 * self._n_velocity
        distance = abs(pitch - self._pitch) - _DRIFT
        self._away = self._away + distance / self._rate if distance > 0 else 0.0
        has_dipped = min(self._peak, loudness) - self._low > _DIP
        is_due = self._repeat is not None and self._detected >= self._repeat * self._rate
        # A pitch step inside a dip counts only at the end of the dip, where the syllable begins.
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
