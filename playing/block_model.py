"""Stateless functions that play a model frame by frame: curves, noise and state in, audio and next state out.

Controls are interpolated between frames, so the sound is complete up to the centre of the newest frame. The noise
filters need half their length of look-ahead. The sum is the latency: ``hop_length + n_noise_bands - 1`` samples.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model import GruDecoder, NeuralGuitar, Sound
from synth import harmonics_below_nyquist, noise_filters

_GROUP = 16  # harmonics are numbered k = q * _GROUP + p: sin(k x) is computed from q * _GROUP * x and p * x


class PlayState(NamedTuple):
    """State between two frames."""

    model: tuple  # state of the decoder
    phase: Tensor  # [1], float64, cycles of the fundamental at the newest frame
    f0: Tensor  # [1, 1, 1] in Hz; this and the next two: values of the newest frame
    harmonic_amplitudes: Tensor  # [1, 1, H]
    noise_magnitudes: Tensor  # [1, 1, K]
    overlap: Tensor  # [1, taps - 1], tail of the filtered noise, for overlap-add
    delayed: Tensor  # [1, K - 1], harmonic audio, delayed to align with the noise
    room: tuple  # two reverb tails [1, taps], empty if the model has no reverb


class FramePlayer(nn.Module):
    """Player of single frames; the state is an argument and a result.

    It uses only operations that every exporter supports, if the model passes ``require_exportable``.
    """

    def __init__(self, model: NeuralGuitar) -> None:
        super().__init__()
        if model.config.onset_inputs:
            raise ValueError("a model with onset_inputs cannot be exported or played live: plucks are not known there")
        self.model = model
        hop_length, n_bands = model.audio.hop_length, model.config.n_noise_bands
        steps = torch.arange(1, hop_length + 1, dtype=torch.float64)
        self.register_buffer("ramp", torch.arange(hop_length) / hop_length)
        self.register_buffer("elapsed", steps)  # inclusive sums of ones; below, of 0, 1 / hop, 2 / hop, ...
        self.register_buffer("elapsed_ramp", steps * (steps - 1) / (2 * hop_length))
        self.n_groups = model.config.n_harmonics // _GROUP + 1
        # Factors of x in cos and sin: p for p < _GROUP, then q * _GROUP.
        numbers = torch.cat([torch.arange(_GROUP), _GROUP * torch.arange(self.n_groups)])
        self.register_buffer("numbers", numbers.float()[:, None])
        # The filters are linear in the magnitudes, so no complex numbers are needed. Last tap first.
        self.register_buffer("responses", noise_filters(torch.eye(n_bands)).flip(-1))  # (K, taps)

    def initial_state(self) -> PlayState:
        """Return the state before the first frame, which is silence."""
        config = self.model.config
        tail = () if self.model.reverb is None else (torch.zeros(1, len(self.model.reverb.response)),) * 2
        return PlayState(
            model=self.model.initial_state(),
            phase=torch.zeros(1, dtype=torch.float64),
            f0=torch.zeros(1, 1, 1),
            harmonic_amplitudes=torch.zeros(1, 1, config.n_harmonics),
            noise_magnitudes=torch.zeros(1, 1, config.n_noise_bands),
            overlap=torch.zeros(1, 2 * (config.n_noise_bands - 1) - 1),
            delayed=torch.zeros(1, config.n_noise_bands - 1),
            room=tail,
        )

    @property
    def latency(self) -> int:
        """Delay in samples from a frame's centre to its sound at the output, without the block length."""
        return self.model.audio.hop_length + self.model.config.n_noise_bands - 1

    def forward(
        self,
        f0: Tensor,
        loudness: Tensor,
        noise: Tensor,
        state: PlayState,
        gate: Tensor | float = 1.0,
        noise_gain: Tensor | float = 1.0,
    ) -> tuple[Sound, PlayState]:
        """Play the next frame.

        Args:
            f0: [1, 1, 1] in Hz, positive.
            loudness: [1, 1, 1] in dB re full scale.
            noise: [1, hop_length], uniform in -1..1.
            state: state after the previous frame.
            gate: [1, 1, 1], 0..1, linear gain of the frame.
            noise_gain: [1, 1, 1], linear gain of the noise.

        Returns:
            Sound [1, hop_length], delayed by ``latency`` samples, and the next state.
        """
        controls, model_state = self.model.step(f0, loudness, state.model)
        audible = harmonics_below_nyquist(f0, self.model.config.n_harmonics, self.model.audio.sample_rate)
        amplitudes = controls.harmonic_amplitudes * audible * gate
        magnitudes = controls.noise_magnitudes * gate * noise_gain
        cycles, phase = self._cycles(state.f0, f0, state.phase)
        harmonic = self._harmonics(cycles, state.harmonic_amplitudes, amplitudes)
        harmonic = torch.cat([state.delayed, harmonic], dim=1)
        hop = noise * (state.f0.flatten(1) > 0)  # silence before the first frame
        filtered, overlap = self._filter(hop, state.noise_magnitudes, magnitudes, state.overlap)
        n_samples, room = noise.shape[1], state.room
        sound = Sound(harmonic[:, :n_samples], filtered)
        if self.model.reverb is not None:
            parts, room = zip(*(self.model.reverb.step(part, tail) for part, tail in zip(sound, room)))
            sound = Sound(*parts)
        delayed = harmonic[:, n_samples:]
        return sound, PlayState(model_state, phase, f0, amplitudes, magnitudes, overlap, delayed, room)

    def _cycles(self, f0: Tensor, next_f0: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the phase of the fundamental in cycles, 0..1, [hop], and its last value in float64, [1]."""
        here, there = (value.flatten().double() / self.model.audio.sample_rate for value in (f0, next_f0))
        within = phase + (here * self.elapsed + (there - here) * self.elapsed_ramp) * (here > 0)
        wrapped = within - torch.floor(within)
        return wrapped.float(), wrapped[-1:]

    def _harmonics(self, cycles: Tensor, amplitudes: Tensor, next_amplitudes: Tensor) -> Tensor:
        """Return the sum of all harmonics, [1, hop], by sin(a + b) = sin a cos b + cos a sin b, a = q * _GROUP * x."""
        angles = 2 * math.pi * torch.remainder(self.numbers * cycles, 1.0)
        cosines, sines = torch.cos(angles), torch.sin(angles)  # (P + Q, hop)
        both = torch.cat([amplitudes, next_amplitudes], dim=1)[0]  # (2, H)
        padded = nn.functional.pad(both, (1, self.n_groups * _GROUP - both.shape[1] - 1))  # harmonic 0 has amplitude 0
        weights = padded.view(2, self.n_groups, _GROUP)
        here, there = (
            sines[_GROUP:] * (group @ cosines[:_GROUP]) + cosines[_GROUP:] * (group @ sines[:_GROUP])
            for group in weights.unbind(dim=0)
        )
        here, there = here.sum(dim=0, keepdim=True), there.sum(dim=0, keepdim=True)
        return here + (there - here) * self.ramp

    def _filter(
        self, hop: Tensor, magnitudes: Tensor, next_magnitudes: Tensor, overlap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return filtered noise [1, hop], delayed by K - 1 samples, and its tail [1, taps - 1]."""
        fading = torch.stack([hop * (1 - self.ramp), hop * self.ramp], dim=1)  # (1, 2, hop)
        filters = torch.cat([magnitudes, next_magnitudes], dim=1) @ self.responses  # (1, 2, taps)
        sound = nn.functional.conv1d(fading, filters, padding=overlap.shape[1])[0]  # (1, hop + taps - 1)
        sound = sound + nn.functional.pad(overlap, (0, hop.shape[1]))
        return sound[:, : hop.shape[1]], sound[:, hop.shape[1] :]


def require_exportable(model: NeuralGuitar) -> None:
    """Raise ValueError if the decoder is not a GRU or the model has a reverb."""
    if not isinstance(model.decoder, GruDecoder):
        raise ValueError(
            f"a {model.config.decoder} decoder cannot be exported: it remembers whole windows of frames, "
            "not a state of one size; train a preset with a GRU, such as tiny or solo"
        )
    if model.reverb:
        raise ValueError(
            f"a model with a reverb of {model.config.reverb_seconds:g} s cannot be exported; "
            "train without one, and let the host add a room"
        )


class StatePacker(nn.Module):
    """Conversion between nested tuples of tensors and two flat tensors, float32 [n] and float64 [m].

    Both flat tensors are zeros in the initial state.
    """

    def __init__(self, initial: Any) -> None:
        super().__init__()
        self._like = initial
        for name, values in zip(("initial", "initial64"), self._join(initial)):
            self.register_buffer(name, values)

    def pack(self, state: Any) -> tuple[Tensor, Tensor]:
        single, double = self._join(state)
        return single - self.initial, double - self.initial64

    def unpack(self, single: Tensor, double: Tensor) -> Any:
        sizes = {torch.float32: [], torch.float64: []}
        for leaf in _leaves(self._like):
            sizes[leaf.dtype].append(leaf.numel())
        values = {torch.float32: single + self.initial, torch.float64: double + self.initial64}
        return _rebuild(self._like, {dtype: iter(values[dtype].split(each)) for dtype, each in sizes.items()})

    @staticmethod
    def _join(state: Any) -> tuple[Tensor, Tensor]:
        leaves = list(_leaves(state))
        return tuple(
            torch.cat([leaf.flatten() for leaf in leaves if leaf.dtype == dtype])
            for dtype in (torch.float32, torch.float64)
        )


def _leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
    elif state is not None:
        yield state


def _rebuild(like: Any, values: dict[torch.dtype, Iterator[Tensor]]) -> Any:
    if isinstance(like, tuple):
        parts = [_rebuild(part, values) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return None if like is None else next(values[like.dtype]).view(like.shape)


class BlockModel(nn.Module):
    """Exportable model that plays T frames of curves and noise from a packed state.

    Raises:
        ValueError: the decoder is not a GRU, or the model has a reverb or ``onset_inputs``.
    """

    def __init__(self, model: NeuralGuitar) -> None:
        super().__init__()
        require_exportable(model)
        self.model, self.player = model, FramePlayer(model)
        self.packer = StatePacker(self.player.initial_state())
        self.latency = self.player.latency

    def forward(
        self, f0: Tensor, loudness: Tensor, noise: Tensor, state: Tensor, state64: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Play the next T frames.

        Args:
            f0: [1, T, 1] in Hz, positive.
            loudness: [1, T, 1] in dB re full scale.
            noise: [1, T * hop_length], uniform in -1..1.
            state, state64: float32 [n] and float64 [m], initially zeros.

        Returns:
            Audio [1, T * hop_length], and the two state tensors for the next block.
        """
        unpacked, sounds = self.packer.unpack(state, state64), []
        hop_length = self.model.audio.hop_length
        for t in range(f0.shape[1]):
            hop = noise[:, t * hop_length : (t + 1) * hop_length]
            sound, unpacked = self.player(f0[:, t : t + 1], loudness[:, t : t + 1], hop, unpacked)
            sounds.append(sound.audio)
        return torch.cat(sounds, dim=1), *self.packer.pack(unpacked)
