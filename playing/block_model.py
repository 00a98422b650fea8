"""A model as one function of a block of curves and noise and of the state before it, without any memory of its own.

A frame's sound fades into that of the next, so a block's sound ends at its newest frame. The noise filters look
half their length ahead. Both together are the latency: ``hop_length + n_noise_bands - 1`` samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import GruDecoder, NeuralGuitar
from synth import harmonics_below_nyquist, noise_filters


class GraphState(NamedTuple):
    """What a block leaves for the next one; zeros at the start."""

    hidden: Tensor  # [layers, 1, hidden_size] of the GRU
    phase: Tensor  # [1], float64, cycles of the fundamental at the newest frame
    loudness: Tensor  # [1, attack_frames, 1] in dB, of the newest frames; of one, if the model does not hear it rise
    f0: Tensor  # [1, 1, 1] in Hz, and the two below: of the newest frame
    harmonic_amplitudes: Tensor  # [1, 1, H]
    noise_magnitudes: Tensor  # [1, 1, K]
    overlap: Tensor  # [1, taps - 1], what is still to come of the filtered noise
    delayed: Tensor  # [1, K - 1], harmonic sound that waits for the noise


class BlockModel(nn.Module):
    """A model as a function of one block and of the state before it, in operations that every exporter knows.

    Raises:
        ValueError: the decoder is no GRU, or the model has a reverb.
    """

    def __init__(self, model: NeuralGuitar) -> None:
        super().__init__()
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
        if model.config.onset_inputs:
            raise ValueError("a model with onset_inputs cannot be exported yet: hosts do not tell it of plucks")
        self.model = model
        hop_length, n_bands = model.audio.hop_length, model.config.n_noise_bands
        n_taps = 2 * (n_bands - 1)
        steps = torch.arange(1, hop_length + 1, dtype=torch.float64)
        self.register_buffer("ramp", torch.arange(hop_length) / hop_length)
        self.register_buffer("elapsed", steps)  # inclusive sums of ones, and of 0, 1 / hop, 2 / hop, ...
        self.register_buffer("elapsed_ramp", steps * (steps - 1) / (2 * hop_length))
        self.register_buffer("numbers", torch.arange(1, model.config.n_harmonics + 1, dtype=torch.float32)[:, None])
        # The design of the filters is linear in the magnitudes: no complex numbers. Last tap first.
        self.register_buffer("responses", noise_filters(torch.eye(n_bands)).flip(-1))  # (K, taps)
        self.register_buffer("window_samples", torch.arange(hop_length + n_taps - 1)[:, None] + torch.arange(n_taps))

    def initial_state(self) -> GraphState:
        """Return the state before the first block."""
        config = self.model.config
        sizes = (config.num_layers, 1, config.hidden_size), (1, 1, config.n_harmonics), (1, 1, config.n_noise_bands)
        return GraphState(
            hidden=torch.zeros(sizes[0]),
            phase=torch.zeros(1, dtype=torch.float64),
            loudness=torch.zeros(1, max(1, config.attack_frames), 1),
            f0=torch.zeros(1, 1, 1),
            harmonic_amplitudes=torch.zeros(sizes[1]),
            noise_magnitudes=torch.zeros(sizes[2]),
            overlap=torch.zeros(1, 2 * (config.n_noise_bands - 1) - 1),
            delayed=torch.zeros(1, config.n_noise_bands - 1),
        )

    @property
    def latency(self) -> int:
        """Samples from a frame's centre to its sound at the output, beside those of the block itself."""
        return self.model.audio.hop_length + self.model.config.n_noise_bands - 1

    def forward(self, f0: Tensor, loudness: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Play the next T frames.

        Args:
            f0: [1, T, 1] in Hz, positive.
            loudness: [1, T, 1] in dB re full scale.
            noise: [1, T * hop_length], uniform in -1..1.
            state: the fields of ``GraphState``.

        Returns:
            Audio [1, T * hop_length] and the fields of the next ``GraphState``.
        """
        previous = GraphState(*state)
        recurrence = _UnrolledGru(self.model.decoder.gru, previous.hidden)
        # Before the first frame it was as loud as then.
        recent_loudness = torch.where(previous.f0 > 0, previous.loudness, loudness[:, :1])
        controls = self.model.controls(
            f0, loudness, recurrence, self.model.encode_inputs(f0, loudness, recent_loudness)
        )
        recent_loudness = torch.cat([recent_loudness, loudness], dim=1)[:, -previous.loudness.shape[1] :]
        audible = harmonics_below_nyquist(f0, self.model.config.n_harmonics, self.model.audio.sample_rate)
        f0s = [previous.f0, *f0.split(1, dim=1)]
        amplitudes = [previous.harmonic_amplitudes, *(controls.harmonic_amplitudes * audible).split(1, dim=1)]
        magnitudes = [previous.noise_magnitudes, *controls.noise_magnitudes.split(1, dim=1)]
        hops = noise.chunk(f0.shape[1], dim=1)
        phase, overlap, harmonic, filtered = previous.phase, previous.overlap, [previous.delayed], []
        for t, hop in enumerate(hops):
            cycles, phase = self._cycles(f0s[t], f0s[t + 1], phase)
            harmonic.append(self._harmonics(cycles, amplitudes[t], amplitudes[t + 1]))
            hop = hop * (f0s[t].flatten(1) > 0)  # nothing sounds before the first frame
            ready, overlap = self._filter(hop, magnitudes[t], magnitudes[t + 1], overlap)
            filtered.append(ready)
        sound = torch.cat(harmonic, dim=1)
        n_samples = noise.shape[1]
        audio = sound[:, :n_samples] + torch.cat(filtered, dim=1)
        newest = (f0s[-1], amplitudes[-1], magnitudes[-1])
        return (audio, *GraphState(recurrence.hidden, phase, recent_loudness, *newest, overlap, sound[:, n_samples:]))

    def _cycles(self, f0: Tensor, next_f0: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fundamental's phase in cycles, 0..1, over a hop, [1, hop], and at its end in double precision."""
        here, there = (value.flatten().double() / self.model.audio.sample_rate for value in (f0, next_f0))
        within = phase + (here * self.elapsed + (there - here) * self.elapsed_ramp) * (here > 0)
        wrapped = within - torch.floor(within)
        return wrapped.float()[None], wrapped[-1:]

    def _harmonics(self, cycles: Tensor, amplitudes: Tensor, next_amplitudes: Tensor) -> Tensor:
        here, there = amplitudes.transpose(1, 2), next_amplitudes.transpose(1, 2)  # (1, H, 1)
        sines = torch.sin(2 * math.pi * torch.remainder(self.numbers * cycles[:, None], 1.0))  # (1, H, hop)
        return (sines * (here + (there - here) * self.ramp)).sum(dim=1)

    def _filter(
        self, hop: Tensor, magnitudes: Tensor, next_magnitudes: Tensor, overlap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return filtered noise [1, hop], K - 1 samples late, and what it leaves for later, [1, taps - 1]."""
        ring = overlap.shape[1]
        fading = torch.stack([hop * (1 - self.ramp), hop * self.ramp], dim=1)  # (1, 2, hop)
        windows = nn.functional.pad(fading, (ring, ring))[..., self.window_samples]  # (1, 2, hop + taps - 1, taps)
        filters = torch.cat([magnitudes, next_magnitudes], dim=1) @ self.responses  # (1, 2, taps)
        sound = (windows @ filters[..., None])[..., 0].sum(dim=1)
        sound = sound + nn.functional.pad(overlap, (0, hop.shape[1]))
        return sound[:, : hop.shape[1]], sound[:, hop.shape[1] :]


class _UnrolledGru:
    """A GRU that goes on from a hidden state, written out a frame at a time; ``hidden`` is its state after a call."""

    def __init__(self, gru: nn.GRU, hidden: Tensor) -> None:
        self.gru = gru
        self.hidden = hidden

    def __call__(self, inputs: Tensor) -> Tensor:
        states = []
        for (weight_in, weight, bias_in, bias), state in zip(self.gru.all_weights, self.hidden.split(1)):
            state, outputs = state[0], []
            for frame in nn.functional.linear(inputs, weight_in, bias_in).unbind(dim=1):
                in_reset, in_update, in_candidate = frame.chunk(3, dim=-1)
                of_reset, of_update, of_candidate = nn.functional.linear(state, weight, bias).chunk(3, dim=-1)
                update = torch.sigmoid(in_update + of_update)
                candidate = torch.tanh(in_candidate + torch.sigmoid(in_reset + of_reset) * of_candidate)
                state = candidate + update * (state - candidate)
                outputs.append(state)
            inputs = torch.stack(outputs, dim=1)
            states.append(state)
        self.hidden = torch.stack(states)
        return inputs
