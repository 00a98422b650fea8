"""Pluck the notes of a melody frame by frame: the causal version of ``voice.plucked_notes``.

Part of the live graph (``playing/live_graph.py``), so it uses only tensor operations that can be exported.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sound.plucks import CLOSEST, DAMPING_SECONDS, KNOTS, SILENT_POWER, PluckTable
from voice.plucked_notes import MIDDLE_HARDNESS

_LEAD = 0.02  # s from detecting a note to its onset: the loudness window rises before a pluck
_VELOCITY_SECONDS = 0.03  # s from detecting a note to fixing its velocity
_STILL_RISING = 2.0  # dB, median rise of a voice's level after that
_DIP = 6.0  # dB down and up again: a new syllable
_DECAY_RATE = 30.0  # dB/s, at which the tracked peak and minimum decay towards the level; a slower dip is no syllable
_STEP = 0.05  # semitones times seconds, the integral of the deviation beyond _DRIFT that makes a new note
_DRIFT = 0.6  # semitones, tolerated as vibrato and drift
_LONG_AGO = 1e6  # frames
_UNPLUCKED = -1000.0  # dB


class PluckedFrame(NamedTuple):
    """One frame of ``PluckCurves``, [1] each."""

    loudness: Tensor  # dB
    ringing: Tensor  # bool


class PluckerState(NamedTuple):
    """State from one frame to the next."""

    strings: Tensor  # [2, 4], newest string and the one before: MIDI pitch, dB, frames since onset and since damping
    voice: Tensor  # [7]: gate, frames since detection, level (dB), MIDI pitch, deviation, tracked peak and minimum (dB)


class CausalPlucker(nn.Module):
    """Frame-by-frame plucking of the notes in a melody.

    A note is detected where the gate opens, where the loudness rises again after a dip, or where the pitch steps.
    It is plucked 20 ms later, and 10 ms after that its velocity is fixed at the highest level reached.
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
            table: the instrument's pluck table.
            frame_rate: frames per second.
            window_seconds: length of the loudness window.
            floor: dB, loudness of silence.
            repeat_seconds: interval at which a held note is plucked again; None disables it.
        """
        super().__init__()
        self._rate, self._window, self._floor = frame_rate, window_seconds, floor
        self._n_repeat = _LONG_AGO * 100 if repeat_seconds is None else repeat_seconds * frame_rate
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
        """Return the next frame of the instrument and the next state.

        Args:
            f0: [1] Hz, as it is to be played.
            loudness: [1] dB, as measured.
            gate: bool [1], True where the voice sings.
            reference: [1] dB, peak level of a sung note that is plucked with medium hardness.
            state: of the previous frame.
        """
        pitch = 12 * torch.log2(f0 / 440) + 69
        was_open, detected, reached, *_ = state.voice.split(1)
        detected = detected + 1
        is_new, (away, note, peak, low) = self._follow(pitch, loudness, gate, was_open > 0, detected, state.voice)
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
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return True if this frame begins a new note, and the tracked voice: deviation, pitch, peak, minimum."""
        *_, note, away, peak, low = voice.split(1)
        decay = _DECAY_RATE / self._rate
        peak, low = torch.maximum(loudness, peak - decay), torch.minimum(loudness, low + decay)
        is_early = detected < CLOSEST * self._rate  # a scoop or swell belongs to the last note
        distance = (pitch - note).abs() - _DRIFT
        drifted = torch.where(distance > 0, away + distance / self._rate, 0.0)
        has_dipped = torch.minimum(peak, loudness) - low > _DIP
        # A pitch step inside a dip counts only at the end of the dip, where the syllable begins.
        has_stepped = (drifted > _STEP) & (peak - loudness < _DIP)
        opens = ~was_open
        is_due = detected >= self._n_repeat
        begins = is_early & opens & (detected > 2 * self._n_velocity)
        is_new = gate & (begins | ~is_early & (opens | has_dipped | has_stepped | is_due))
        starts = is_early | is_new
        low, peak = torch.where(starts, loudness, low), torch.where(is_new, loudness, peak)
        away = torch.where(is_new, 0.0, torch.where(is_early, away, drifted))
        return is_new, (away, torch.where(starts, pitch, note), peak, low)

    def _pluck_level(self, pitch: Tensor, reached: Tensor, reference: Tensor) -> Tensor:
        soft, loud = self._levels(pitch).split(1, dim=1)
        soft, loud = soft[:, 0], loud[:, 0]
        hardness = MIDDLE_HARDNESS + (reached + _STILL_RISING - reference) / (loud - soft).clamp_min(1e-6)
        return soft + hardness.clamp(0, 1) * (loud - soft)

    def _play(self, strings: Tensor) -> PluckedFrame:
        _, _, age, damped = strings.unbind(dim=1)  # (2,) each
        position = (age[:1] / self._rate / self._window).clamp(-0.5, 0.5)
        share = 0.5 + position + torch.sin(2 * torch.pi * position) / (2 * torch.pi)
        left = torch.where(damped > 0, self._damped_share((damped - 1) / self._rate), 1.0)
        power = 10 ** (self._decay(strings) / 10) * left  # (2,)
        loudness = 10 * torch.log10(share * power[:1] + (1 - share) * power[1:] + SILENT_POWER)
        loudness = loudness.clamp_min(self._floor)
        return PluckedFrame(loudness, loudness > self._floor)

    def _decay(self, strings: Tensor) -> Tensor:
        """Return the level in dB of both strings, [2], as ``PluckTable.decay``."""
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
        """Return the fraction [2] of the power that remains under the window, as ``sound.plucks.damped_share``."""
        times = seconds[:, None] + self._inside
        left = 0.5 + 0.5 * torch.cos(torch.pi * (times / DAMPING_SECONDS).clamp(0, 1))
        return (left**2 * self._weights).sum(dim=1)


class _Interpolation(nn.Module):
    """Linear interpolation as ``np.interp``, [n] to [n, ...], as a sum over all segments without a search."""

    def __init__(self, x: tuple[float, ...], values: np.ndarray) -> None:
        """Interpolate between ``values`` [P, ...] at increasing ``x`` [P]."""
        super().__init__()
        steps = np.diff(x)
        slopes = np.diff(values, axis=0) / steps.reshape(-1, *[1] * (values.ndim - 1))
        for name, each in {"starts": x[:-1], "steps": steps, "slopes": slopes, "first": values[0]}.items():
            self.register_buffer(name, torch.tensor(np.asarray(each), dtype=torch.float32))

    def covered(self, x: Tensor) -> Tensor:
        """Return the length of each segment below x: [n] to [n, P - 1]."""
        return torch.minimum((x[:, None] - self.starts).clamp_min(0), self.steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.first + torch.tensordot(self.covered(x), self.slopes, dims=1)
