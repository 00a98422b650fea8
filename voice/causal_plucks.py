"""Pluck the notes of a melody while it comes in.

It does what ``voice.plucked_notes`` does with the whole melody at hand, a frame at a time, in tensor operations that
every exporter knows: it is part of the live graph (``playing/live_graph.py``).
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sound.plucks import CLOSEST, DAMPING_SECONDS, KNOTS, LONGEST_RING, SILENT_POWER, PluckTable
from voice.plucked_notes import MIDDLE_HARDNESS

_LEAD = 0.02  # s from the detection of a note to its onset: what the window sees of a pluck before it
_VELOCITY_SECONDS = 0.03  # after the detection a note's velocity is settled
_STILL_RISING = 2.0  # dB that a voice's level rises after that, in the median
_DIP = 6.0  # dB down and up again: a new syllable, if it is faster than what is forgotten
_FORGETTING = 30.0  # dB/s, at which the last peak and the last dip are forgotten
_STEP = 0.05  # semitones times seconds away from the note's pitch, what lies within _DRIFT not counted
_DRIFT = 0.6  # semitones, of vibrato and drift
_LONG_AGO = 1e6  # frames
_UNPLUCKED = -1000.0  # dB


class PluckedFrame(NamedTuple):
    """What a plucked instrument plays in one frame, [1] each; see ``PluckCurves``."""

    loudness: Tensor  # dB
    time_since_onset: Tensor  # s
    velocity: Tensor  # dB
    ringing: Tensor  # bool


class PluckerState(NamedTuple):
    """What a frame leaves for the next one."""

    strings: Tensor  # [2, 4], newest string and the one before: MIDI pitch, dB, frames since onset and since damping
    voice: Tensor  # [7]: gate, frames since detection, dB reached, MIDI pitch, time off it, last peak and dip in dB


class CausalPlucker(nn.Module):
    """Plucks the notes of a melody while it comes in, frame by frame.

    A note is detected where the gate opens, where the loudness has dipped and rises again, and where the pitch has
    stepped; 20 ms later it is plucked, and after another 10 ms its velocity is settled. Velocity is the level reached
    so far.
    """

    def __init__(
        self,
        table: PluckTable,
        frame_rate: float,
        window_seconds: float,
        floor: float = -80.0,
        repeat_seconds: float | None = None,
    ) -> None:
        """Set up the plucker.

        Args:
            table: of the instrument.
            frame_rate: frames a second.
            window_seconds: of the loudness.
            floor: dB, where nothing sounds.
            repeat_seconds: pluck a held note again after so many seconds; None never does.
        """
        super().__init__()
        self._rate, self._window, self._floor = frame_rate, window_seconds, floor
        repeat = repeat_seconds
        self._n_repeat = _LONG_AGO * 100 if repeat is None else repeat * frame_rate
        self._n_lead, self._n_velocity = round(_LEAD * frame_rate), round(_VELOCITY_SECONDS * frame_rate)
        self._levels = _Interpolation(table.pitches, np.stack([table.soft, table.loud], axis=1))
        self._decays = _Interpolation(table.pitches, np.stack([table.soft_decay, table.loud_decay], axis=1))
        self._knots = _Interpolation(KNOTS, np.zeros(len(KNOTS)))
        inside = torch.linspace(-0.5, 0.5, 65)
        weights = 1 + torch.cos(2 * torch.pi * inside)
        self.register_buffer("_inside", inside * window_seconds)
        self.register_buffer("_weights", weights / weights.sum())

    def initial_state(self) -> PluckerState:
        unplucked = torch.tensor([0, _UNPLUCKED, _LONG_AGO, 0])
        voice = torch.tensor([0, _LONG_AGO, self._floor, 0, 0, self._floor, self._floor])
        return PluckerState(torch.stack([unplucked, unplucked]), voice)

    def forward(
        self, f0: Tensor, loudness: Tensor, gate: Tensor, reference: Tensor, state: PluckerState
    ) -> tuple[PluckedFrame, PluckerState]:
        """Take the next frame of a voice, [1] each.

        Args:
            f0: Hz, as it is to be played.
            loudness: dB, as measured.
            gate: bool, true where the voice sings.
            reference: dB, the peak level of a sung note that is plucked middling hard.
            state: from the frame before.
        """
        pitch = 12 * torch.log2(f0 / 440) + 69
        was_open, detected, reached, note, away, peak, low = state.voice.split(1)
        is_new, detected, followed = self._follow(pitch, loudness, gate, was_open > 0, detected + 1, state.voice)
        away, note, peak, low = followed
        newest, before = state.strings.split(1)  # (1, 4)
        older = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        newest, before = newest + older, before + older
        newest = torch.cat([newest[:, :3], torch.where(gate, 0.0, newest[:, 3])[None]], dim=1)
        before = torch.where(is_new, newest, before)
        fresh = torch.tensor([[0.0, _UNPLUCKED, -self._n_lead, 0.0]])
        newest = torch.where(is_new, fresh, newest)
        detected, reached = torch.where(is_new, 0.0, detected), torch.where(is_new, loudness, reached)
        is_settling = detected <= self._n_velocity
        reached = torch.where(is_settling, torch.maximum(reached, loudness), reached)
        plucked = torch.stack([pitch, self._pluck_level(pitch, reached, reference)], dim=1)  # (1, 2)
        newest = torch.cat([torch.where(is_settling, plucked, newest[:, :2]), newest[:, 2:]], dim=1)
        strings = torch.cat([newest, before])
        voice = torch.cat([gate.float(), detected, reached, note, away, peak, low])
        return self._play(strings), PluckerState(strings, voice)

    def _follow(
        self, pitch: Tensor, loudness: Tensor, gate: Tensor, was_open: Tensor, detected: Tensor, voice: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Follow the voice; return whether a new note is detected in this frame, and what is kept of the voice."""
        *_, note, away, peak, low = voice.split(1)
        forgotten = _FORGETTING / self._rate
        peak, low = torch.maximum(loudness, peak - forgotten), torch.minimum(loudness, low + forgotten)
        is_early = detected < CLOSEST * self._rate  # it scoops and swells, and belongs to the last note
        distance = (pitch - note).abs() - _DRIFT
        drifted = torch.where(distance > 0, away + distance / self._rate, 0.0)
        has_dipped = torch.minimum(peak, loudness) - low > _DIP
        # A step inside a dip waits for its end, where the syllable begins.
        has_stepped = (drifted > _STEP) & (peak - loudness < _DIP)
        opens = ~was_open
        is_due = detected >= self._n_repeat
        begins = is_early & opens & (detected > 2 * self._n_velocity)
        is_new = gate & (begins | ~is_early & (opens | has_dipped | has_stepped | is_due))
        starts = is_early | is_new
        low, peak = torch.where(starts, loudness, low), torch.where(is_new, loudness, peak)
        away = torch.where(is_new, 0.0, torch.where(is_early, away, drifted))
        return is_new, detected, (away, torch.where(starts, pitch, note), peak, low)

    def _pluck_level(self, pitch: Tensor, reached: Tensor, reference: Tensor) -> Tensor:
        soft, loud = self._levels(pitch).split(1, dim=1)
        soft, loud = soft[:, 0], loud[:, 0]
        hardness = MIDDLE_HARDNESS + (reached + _STILL_RISING - reference) / (loud - soft).clamp_min(1e-6)
        return soft + hardness.clamp(0, 1) * (loud - soft)

    def _play(self, strings: Tensor) -> PluckedFrame:
        _, level, age, damped = strings.unbind(dim=1)  # (2,) each
        position = (age[:1] / self._rate / self._window).clamp(-0.5, 0.5)
        share = 0.5 + position + torch.sin(2 * torch.pi * position) / (2 * torch.pi)
        left = torch.where(damped > 0, self._damped_share((damped - 1) / self._rate), 1.0)
        power = 10 ** (self._decay(strings) / 10) * left  # (2,)
        loudness = 10 * torch.log10(share * power[:1] + (1 - share) * power[1:] + SILENT_POWER)
        loudness = loudness.clamp_min(self._floor)
        is_ahead = age[:1] < 0
        time = torch.where(is_ahead, age[1:], age[:1]) / self._rate
        velocity = torch.where(is_ahead, level[1:], level[:1]).clamp_min(self._floor)
        return PluckedFrame(loudness, time.clamp_max(LONGEST_RING), velocity, loudness > self._floor)

    def _decay(self, strings: Tensor) -> Tensor:
        """Return the level in dB of both strings, [2], as ``PluckTable.decay`` does."""
        pitch, level, age, _ = strings.unbind(dim=1)
        soft, loud = self._levels(pitch).unbind(dim=1)
        hardness = ((level - soft) / (loud - soft).clamp_min(1e-9)).clamp(0, 1)[:, None]
        softly, hard = self._decays(pitch).unbind(dim=1)
        knots = (1 - hardness) * softly + hardness * hard  # (2, K)
        slopes = torch.diff(knots, dim=1) / self._knots.steps
        time = age.clamp_min(0) / self._rate
        within = knots[:, 0] + (slopes * self._knots.covered(time)).sum(dim=1)
        return level + within + slopes[:, -1].clamp_max(0) * (time - KNOTS[-1]).clamp_min(0)

    def _damped_share(self, seconds: Tensor) -> Tensor:
        """Return the share of a string's power that the window still sees, [2], as ``sound.plucks`` does."""
        times = seconds[:, None] + self._inside
        left = 0.5 + 0.5 * torch.cos(torch.pi * (times / DAMPING_SECONDS).clamp(0, 1))
        return (left**2 * self._weights).sum(dim=1)


class _Interpolation(nn.Module):
    """Straight lines between points, as ``np.interp``: [n] to [n, ...]. A sum over all lines, without a search."""

    def __init__(self, at: tuple[float, ...], values: np.ndarray) -> None:
        """Take the points' places [P], rising, and their values [P, ...]."""
        super().__init__()
        steps = np.array([after - before for before, after in pairwise(at)])
        slopes = np.diff(values, axis=0) / steps.reshape(-1, *[1] * (values.ndim - 1))
        for name, each in {"starts": at[:-1], "steps": steps, "slopes": slopes, "first": values[0]}.items():
            self.register_buffer(name, torch.tensor(np.asarray(each), dtype=torch.float32))

    def covered(self, places: Tensor) -> Tensor:
        """Return how much of each line lies before some places: [n] to [n, P - 1]."""
        return torch.minimum((places[:, None] - self.starts).clamp_min(0), self.steps)

    def forward(self, places: Tensor) -> Tensor:
        return self.first + torch.tensordot(self.covered(places), self.slopes, dims=1)
