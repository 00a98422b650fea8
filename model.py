"""The model: pitch and loudness curves in, sound out (DDSP, Engel et al., ICLR 2020).

    f0, loudness [B, T, 2] -> decoder -> 166 = 101 + 65
        101: softmax over the harmonics that can sound, times the loudness as an amplitude, times a
             learned gain -> harmonic oscillator bank
         65: sigmoid -> noise-band magnitudes -> filtered noise
    audio = harmonic part + noise part

The decoder is a GRU (Cho et al., EMNLP 2014) or, as a preset, a causal Transformer with windowed
attention. ``NeuralGuitar`` and ``Vox2Trumpet`` are two names for one implementation; what makes a
guitar or a trumpet is the training data.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config import AudioConfig, Config, ModelConfig, load_config
from synth import (
    FilteredNoiseSynthesizer,
    HarmonicSynthesizer,
    Reverb,
    count_noise_bands_within,
    harmonics_below,
    weighted_level,
)


def count_inputs(config: ModelConfig) -> int:
    """Return the number of inputs a frame of the decoder, or of the network before it."""
    return 2 + bool(config.attack_frames) + 2 * config.onset_inputs


class GruDecoder(nn.Module):
    """[B, T, 2] (or embedded) -> [B, T, hidden_size]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dropout = config.dropout if config.num_layers > 1 else 0.0
        n_inputs = config.embed_size or count_inputs(config)
        self.gru = nn.GRU(n_inputs, config.hidden_size, config.num_layers, batch_first=True, dropout=dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.step(inputs, None)[0]

    def initial_state(self) -> Tensor:
        """Return the state before the first frame of one sound."""
        return torch.zeros(self.gru.num_layers, 1, self.gru.hidden_size)

    def step(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decode the frames that follow a state (None: the start); return [B, T, hidden_size] and the new state."""
        if inputs.shape[:2] == (1, 1) and state is not None and not torch.is_grad_enabled():
            return _gru_frame(self.gru, inputs, state)
        # Under autocast cuDNN's GRU runs in float16, in which gradients as small as these underflow.
        with torch.autocast(inputs.device.type, enabled=False):
            return self.gru(inputs.float(), state)


def _gru_frame(gru: nn.GRU, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run a GRU over one frame [1, 1, C] of one sound, in operations that every exporter knows."""
    hidden, states = inputs[0], []
    for (weight_in, weight, bias_in, bias), before in zip(gru.all_weights, state):
        in_reset, in_update, in_candidate = nn.functional.linear(hidden, weight_in, bias_in).chunk(3, dim=-1)
        of_reset, of_update, of_candidate = nn.functional.linear(before, weight, bias).chunk(3, dim=-1)
        update = torch.sigmoid(in_update + of_update)
        candidate = torch.tanh(in_candidate + torch.sigmoid(in_reset + of_reset) * of_candidate)
        hidden = candidate + update * (before - candidate)
        states.append(hidden)
    return hidden[None], torch.stack(states)


class TransformerDecoder(nn.Module):
    """[B, T, 2] (or embedded) -> [B, T, hidden_size] by causal self-attention; time and memory grow linearly with T."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.embed_size or count_inputs(config), config.hidden_size)
        self.window = config.attention_window
        self.layers = nn.ModuleList(_TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def initial_state(self) -> Tensor:
        """Return the state before the first frame of one sound: no inputs."""
        return torch.zeros(1, 0, self.embed.in_features)

    def step(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decode the frames that follow a state: the earlier inputs within reach of attention, in whole windows."""
        known = inputs if state is None else torch.cat([state, inputs], dim=1)
        unseen = max(0, known.shape[1] // self.window - len(self.layers)) * self.window
        return self(known)[:, -inputs.shape[1] :], known[:, unseen:]


class _TransformerLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm = nn.LayerNorm(size)
        self.attention = _WindowedAttention(size, config.num_heads, config.attention_window)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden)))
        return hidden + self.dropout(self.feed_forward(hidden))


class _WindowedAttention(nn.Module):
    """Causal attention over the frame's own window and the window before it.

    Time is cut into windows of W frames, so a frame attends to the last W to 2 W frames whatever the length.
    Distance enters as a learned bias; there is no absolute position, so any length can be decoded.
    """

    def __init__(self, size: int, num_heads: int, window: int) -> None:
        super().__init__()
        if size % num_heads:
            raise ValueError(f"hidden_size {size} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.window = window
        self.project_in = nn.Linear(size, 3 * size)
        self.project_out = nn.Linear(size, size)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, 2 * window))
        distance = torch.arange(window, 2 * window)[:, None] - torch.arange(2 * window)  # (W, 2W) frames back
        self.register_buffer("distance", distance.clamp(min=0), persistent=False)
        self.register_buffer("future", distance < 0, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        n_frames = hidden.shape[1]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -n_frames % self.window))
        query, key, value = self.project_in(hidden).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(
            self._windows(query), self._with_previous(key), self._with_previous(value), attn_mask=self._mask(hidden)
        )  # (B, windows, heads, W, head size)
        return self.project_out(attended.transpose(2, 3).flatten(3).flatten(1, 2)[:, :n_frames])

    def _windows(self, frames: Tensor) -> Tensor:
        """[B, T, C] -> [B, windows, heads, W, C / heads]."""
        return frames.unflatten(1, (-1, self.window)).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)

    def _with_previous(self, frames: Tensor) -> Tensor:
        here = self._windows(frames)
        before = torch.cat([torch.zeros_like(here[:, :1]), here[:, :-1]], dim=1)
        return torch.cat([before, here], dim=3)  # (B, windows, heads, 2W, head size)

    def _mask(self, hidden: Tensor) -> Tensor:
        """Return the distance bias, minus infinity for the future and before the first frame."""
        bias = self.distance_bias[:, self.distance].masked_fill(self.future, -math.inf)  # (heads, W, 2W)
        n_windows = hidden.shape[1] // self.window
        mask = bias.expand(n_windows, -1, -1, -1).clone()
        mask[0, :, :, : self.window] = -math.inf
        return mask


_LOUDNESS_RANGE = 80.0  # dB that are scaled to 0..1
_RISE_RANGE = 20.0  # dB of rise that are scaled to 1
_F0_REFERENCE = 32.7  # Hz, scaled to 0: C1, CREPE's lowest pitch
_F0_OCTAVES = 6.0  # scaled to 1, up to about CREPE's highest
_LONGEST_SINCE_ONSET = 4.0  # s since a pluck, scaled to 1; a string that has rung longer hardly changes
_SINCE_ONSET_UNIT = 0.02  # s, about one attack: linear scale below, logarithmic above
_LEAST_LEVEL = 1e-2  # -40 dB: limits the gain of a timbre that A-weighting almost removes
_Decode = Callable[[Tensor], Tensor]  # [B, T, 2] (or embedded) to [B, T, hidden_size]
NoiseSource = torch.Generator | Sequence[torch.Generator] | None  # for the batch, or one for each item


class Controls(NamedTuple):
    """Controls of the synthesizers, 100 frames a second."""

    harmonic_amplitudes: Tensor  # [B, T, H], linear; zero at and above Nyquist
    noise_magnitudes: Tensor  # [B, T, K], linear gain of each band


class State(NamedTuple):
    """State of the decoder between blocks of frames."""

    memory: Tensor  # of the decoder
    loudness: Tensor | None  # [B, attack_frames, 1], the last frames, if the rise of loudness is an input


class Sound(NamedTuple):
    """The two parts of a sound."""

    harmonic: Tensor  # [B, N]
    noise: Tensor  # [B, N]

    @property
    def audio(self) -> Tensor:
        """The sum, [B, N]."""
        return self.harmonic + self.noise


def scale_f0(f0: Tensor) -> Tensor:
    """Scale Hz to about 0..1, linear in pitch."""
    return torch.log2(f0 / _F0_REFERENCE) / _F0_OCTAVES


def scale_loudness(loudness: Tensor) -> Tensor:
    """Scale dB to 0..1 for -80..0 dB."""
    return loudness / _LOUDNESS_RANGE + 1


def scale_rise(loudness: Tensor, n_frames: int, before: Tensor | None = None) -> Tensor:
    """Scale the rise of loudness [B, T, 1] in dB over ``n_frames``; ``before`` holds the frames before the first."""
    known = torch.cat([loudness[:, :1].expand(-1, n_frames, -1) if before is None else before, loudness], dim=1)
    return (loudness - known[:, : loudness.shape[1]]) / _RISE_RANGE


def scale_since_onset(seconds: Tensor) -> Tensor:
    """Scale the time since a pluck in s to 0..1: fine steps during the attack, coarse steps in the decay."""
    longest = math.log1p(_LONGEST_SINCE_ONSET / _SINCE_ONSET_UNIT)
    return torch.log1p(seconds.clamp(0, _LONGEST_SINCE_ONSET) / _SINCE_ONSET_UNIT) / longest


def build_mlp(n_inputs: int, size: int) -> nn.Sequential:
    """Return a network of two layers, [..., n_inputs] -> [..., size]."""
    layers = [[nn.Linear(n, size), nn.LayerNorm(size), nn.GELU()] for n in (n_inputs, size)]
    return nn.Sequential(*layers[0], *layers[1])


_DECODERS = {"gru": GruDecoder, "transformer": TransformerDecoder}
_AMPLITUDES = ("gain", "head", "weighted")


class NeuralGuitar(nn.Module):
    """Decoder, harmonic bank and filtered noise.

    ``settings``, ``instrument`` and ``statistics`` describe what a trained model was trained with and on;
    ``checkpoint.load_model`` fills them.

    Args:
        config: architecture (default: that of ``config.json``'s base, the README's baseline).
        audio: sample rate and hop (default: likewise).

    Raises:
        ValueError: an unknown decoder or amplitude.
    """

    def __init__(self, config: ModelConfig | None = None, audio: AudioConfig | None = None) -> None:
        super().__init__()
        config, audio = config or load_config().model, audio or load_config().audio
        if config.decoder not in _DECODERS:
            raise ValueError(f"unknown decoder '{config.decoder}'; there are {', '.join(_DECODERS)}")
        if config.amplitude not in _AMPLITUDES:
            raise ValueError(f"unknown amplitude '{config.amplitude}'; there are {', '.join(_AMPLITUDES)}")
        self.config = config
        self.audio = audio
        self.settings: Config | None = None
        self.instrument: str | None = None
        self.statistics: dict[str, Any] | None = None
        self.limit_bandwidth(None)
        n_curves, n_hidden = count_inputs(config), config.projection_size or config.hidden_size
        n_inputs = config.embed_size or n_curves
        self.embedding = build_mlp(n_curves, n_inputs) if config.embed_size else nn.Identity()
        self.decoder = _DECODERS[config.decoder](config)
        if config.projection_size:
            self.projection = build_mlp(config.hidden_size + n_inputs, n_hidden)
        self.harmonic_head = nn.Linear(n_hidden, config.n_harmonics)
        self.noise_head = nn.Linear(n_hidden, config.n_noise_bands)
        nn.init.constant_(self.noise_head.bias, config.noise_bias)
        if config.amplitude != "gain":
            self.amplitude_head = nn.Linear(n_hidden, 1)
            nn.init.zeros_(self.amplitude_head.weight)
            nn.init.zeros_(self.amplitude_head.bias)
        self.log_gain = nn.Parameter(torch.tensor(math.log(config.initial_gain)))
        self.harmonic_synthesizer = HarmonicSynthesizer(config.n_harmonics, audio.sample_rate, audio.hop_length)
        self.noise_synthesizer = FilteredNoiseSynthesizer(config.n_noise_bands, audio.hop_length)
        n_taps = round(config.reverb_seconds * audio.sample_rate)
        self.reverb = Reverb(n_taps) if n_taps else None

    def limit_bandwidth(self, bandwidth: float | None) -> None:
        """Silence everything above a frequency in Hz, the end of the training data's band (None: Nyquist)."""
        nyquist = self.audio.sample_rate / 2
        self.bandwidth = nyquist if bandwidth is None else min(bandwidth, nyquist)

    def encode_inputs(
        self, f0: Tensor, loudness: Tensor, before: Tensor | None = None, plucks: Tensor | None = None
    ) -> Tensor:
        """Scale curves [B, T, 1] to the decoder's inputs, [B, T, 2 to 5].

        Args:
            f0: Hz.
            loudness: dB.
            before: see ``scale_rise``.
            plucks: [B, T, 2], time since the last onset in s and its velocity in dB (see ``sound.plucks``), which a
                model with ``onset_inputs`` needs, and others ignore.
        """
        curves = [scale_f0(f0), scale_loudness(loudness)]
        if self.config.attack_frames:
            curves.append(scale_rise(loudness, self.config.attack_frames, before))
        if self.config.onset_inputs:
            if plucks is None:
                raise ValueError("a model with onset_inputs needs plucks: time since the onset (s) and velocity (dB)")
            curves += [scale_since_onset(plucks[..., :1]), scale_loudness(plucks[..., 1:])]
        return torch.cat(curves, dim=-1)

    def controls(
        self,
        f0: Tensor,
        loudness: Tensor,
        decoder: _Decode | None = None,
        decoder_inputs: Tensor | None = None,
        plucks: Tensor | None = None,
    ) -> Controls:
        """Return the controls of the synthesizers.

        Args:
            f0: [B, T, 1] in Hz, positive.
            loudness: [B, T, 1] in dB re full scale.
            decoder: used instead of the model's own, for example one that continues from a state.
            decoder_inputs: from ``encode_inputs``, if frames came before these curves.
            plucks: [B, T, 2], see ``encode_inputs``.

        Raises:
            ValueError: f0 and loudness of other shapes.
        """
        if f0.ndim != 3 or f0.shape[-1] != 1 or f0.shape != loudness.shape:
            raise ValueError(
                f"expected [batch, frames, 1] for f0 and loudness, not {list(f0.shape)} and {list(loudness.shape)}"
            )
        embedded = self.embedding(
            self.encode_inputs(f0, loudness, plucks=plucks) if decoder_inputs is None else decoder_inputs
        )
        hidden = (decoder or self.decoder)(embedded)
        return self._decide(hidden, embedded, f0, loudness)

    def _decide(self, hidden: Tensor, embedded: Tensor, f0: Tensor, loudness: Tensor) -> Controls:
        """Return the controls from the decoder's output [B, T, hidden_size] and its inputs."""
        if self.config.projection_size:
            hidden = self.projection(torch.cat([hidden, embedded], dim=-1))
        # Masked before the softmax: the audible harmonics still sum to one.
        audible = harmonics_below(self.bandwidth, f0, self.config.n_harmonics)
        # Minus infinity would give NaN where no harmonic is audible (f0 above Nyquist).
        logits = self.harmonic_head(hidden).float().masked_fill(~audible, -1e9)
        harmonic_distribution = torch.softmax(logits, dim=-1) * audible
        noise_magnitudes = torch.sigmoid(self.noise_head(hidden).float())
        if self.bandwidth < self.audio.sample_rate / 2:
            n_all = self.config.n_noise_bands
            n_bands = count_noise_bands_within(self.bandwidth, n_all, self.audio.sample_rate)
            noise_magnitudes = nn.functional.pad(noise_magnitudes[..., :n_bands], (0, n_all - n_bands))
        amplitude = 10 ** (loudness / 20) * self.log_gain.exp() * self._learned_factor(hidden)
        if self.config.amplitude != "weighted":
            return Controls(harmonic_distribution * amplitude, noise_magnitudes)
        level = weighted_level(
            f0, harmonic_distribution, noise_magnitudes, self.audio.sample_rate, self.audio.feature_rate
        )
        amplitude = amplitude / level.clamp(min=_LEAST_LEVEL)
        return Controls(harmonic_distribution * amplitude, noise_magnitudes * amplitude)

    def initial_state(self) -> State:
        """Return the state of ``step`` before the first frame of one sound: there was silence."""
        n_frames = self.config.attack_frames
        before = torch.full((1, n_frames, 1), -_LOUDNESS_RANGE) if n_frames else None
        return State(self.decoder.initial_state(), before)

    def step(
        self, f0: Tensor, loudness: Tensor, state: State | None, plucks: Tensor | None = None
    ) -> tuple[Controls, State]:
        """Return the controls of the frames that follow a state (None: the start), in blocks of any length.

        Returns:
            The same as ``controls`` over all frames at once, and the state after them.
        """
        memory, before = state or (None, None)

        def decode(inputs: Tensor) -> Tensor:
            nonlocal memory
            hidden, memory = self.decoder.step(inputs, memory)
            return hidden

        controls = self.controls(f0, loudness, decode, self.encode_inputs(f0, loudness, before, plucks))
        if n_frames := self.config.attack_frames:
            before = loudness[:, :1].expand(-1, n_frames, -1) if before is None else before
            before = torch.cat([before, loudness], dim=1)[:, -n_frames:]
        return controls, State(memory, before)

    def _learned_factor(self, hidden: Tensor) -> Tensor | float:
        """Return the decoder's factor on the amplitude, [B, T, 1], within ``amplitude_range`` dB either way."""
        if self.config.amplitude == "gain":
            return 1.0
        return 10 ** (self.config.amplitude_range / 20 * torch.tanh(self.amplitude_head(hidden).float()))

    def synthesize(self, f0: Tensor, controls: Controls, generator: NoiseSource = None) -> Sound:
        """Synthesize controls at f0 [B, T, 1]; ``generator`` is the source of the noise."""
        with torch.autocast(f0.device.type, enabled=False):  # synthesis needs float32
            harmonic = self.harmonic_synthesizer(f0, controls.harmonic_amplitudes)
            noise = self.noise_synthesizer(controls.noise_magnitudes, generator)
            return Sound(*map(self.reverb, (harmonic, noise))) if self.reverb else Sound(harmonic, noise)

    def forward(
        self, f0: Tensor, loudness: Tensor, generator: NoiseSource = None, plucks: Tensor | None = None
    ) -> Tensor:
        """Turn f0 [B, T, 1] in Hz and loudness [B, T, 1] in dB into audio [B, T * hop_length].

        ``plucks`` [B, T, 2]: see ``encode_inputs``.
        """
        return self.synthesize(f0, self.controls(f0, loudness, plucks=plucks), generator).audio


class Vox2Trumpet(NeuralGuitar):
    """The same model, for the trumpet and the other winds."""


_MODELS = {"NeuralGuitar": NeuralGuitar, "Vox2Trumpet": Vox2Trumpet}


def build_model(config: Config, instrument: str) -> NeuralGuitar:
    """Build an untrained model of the instrument's class, as named in ``config.json``."""
    return _MODELS[config.instrument(instrument).model](config.model, config.audio)
