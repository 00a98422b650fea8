"""Playing of curves in blocks: the sound does not depend on the block size, and memory does not grow with length.

The state between blocks consists of the decoder state, the phase of the fundamental in double precision, the noise and
the last frames. The last frames are needed because controls are interpolated between frames and noise filters overlap.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from model import Controls, NeuralGuitar, Sound, State
from sound.audio_files import block_slices
from sound.plucks import trace_plucks
from synth import elapsed_cycles
from voice.curves import Curves

_BLOCK_FRAMES = 1000  # frames per block; larger blocks are not faster


class BlockPlayer:
    """Player of frames as they arrive, with a delay of ``latency`` frames.

    The noise comes from one generator on the CPU, so a seed gives the same sound for any block size and device.
    """

    def __init__(self, model: NeuralGuitar, noise_balance: float = 0.0, seed: int = 0) -> None:
        """Store the model; ``noise_balance`` is the gain of the noise in dB."""
        self.model = model
        self.latency = model.noise_synthesizer.context  # frames
        self._noise_gain = 10 ** (noise_balance / 20)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: State | None = None  # state of the model after the last frame
        self._cycles: Tensor | None = None  # (1,) phase of the fundamental before the next frame to render
        self._n_rendered = 0  # number of pending frames that are rendered
        self._pending: list[Tensor] = []  # f0, amplitudes, magnitudes, noise: [1, T, C] each
        self._tails: list[Tensor | None] = [None, None]  # reverb tails of both parts, if the model has a reverb

    @torch.inference_mode()
    def play_block(
        self, f0: Tensor, loudness: Tensor, gate: Tensor, is_last: bool = False, plucks: Tensor | None = None
    ) -> tuple[Sound, Controls]:
        """Play the next frames; gated frames are silent in both parts.

        Args:
            f0: [1, T, 1] in Hz.
            loudness: [1, T, 1] in dB.
            gate: [1, T, 1], 0..1.
            is_last: True if no frames follow; then all pending frames are played.
            plucks: [1, T, 2], time since the onset (s) and velocity (dB), for a model with ``onset_inputs``.

        Returns:
            Sound of the completed frames, and the controls of the given frames.
        """
        controls, self._state = self.model.step(f0, loudness, self._state, plucks)
        controls = Controls(controls.harmonic_amplitudes * gate, controls.noise_magnitudes * gate * self._noise_gain)
        hop_length = self.model.audio.hop_length
        noise = 2 * torch.rand(1, f0.shape[1], hop_length, generator=self._generator).to(f0.device) - 1
        new_frames = [f0, *controls, noise]
        self._pending = (
            [torch.cat(pair, dim=1) for pair in zip(self._pending, new_frames)] if self._pending else new_frames
        )
        n_ready = self._pending[0].shape[1] - self._n_rendered - (0 if is_last else self.latency)
        return self._apply_reverb(self._render(max(0, n_ready))), controls

    def _apply_reverb(self, sound: Sound) -> Sound:
        if not self.model.reverb or not sound.harmonic.shape[1]:
            return sound
        wet, self._tails = zip(*map(self.model.reverb.step, sound, self._tails))
        return Sound(*wet)

    def _render(self, n_frames: int) -> Sound:
        """Render the next frames, and discard frames that are no longer needed."""
        f0, amplitudes, magnitudes, noise = self._pending
        start, end, hop_length = self._n_rendered, self._n_rendered + n_frames, self.model.audio.hop_length
        if not n_frames:
            return Sound(f0.new_zeros(1, 0), f0.new_zeros(1, 0))
        span = slice(start, end + 1)  # with the next frame, for the interpolation
        harmonic = self.model.harmonic_synthesizer(f0[:, span], amplitudes[:, span], self._cycles)
        filtered = self.model.noise_synthesizer.filter(noise.flatten(1), magnitudes)
        elapsed = elapsed_cycles(f0[:, span], self.model.audio.sample_rate, hop_length)[:, :n_frames].sum(dim=1)
        self._cycles = (elapsed if self._cycles is None else self._cycles + elapsed) % 1
        self._n_rendered = min(end, self.latency)
        self._pending = [values[:, end - self._n_rendered :] for values in self._pending]
        return Sound(harmonic[:, : n_frames * hop_length], filtered[:, start * hop_length : end * hop_length])


def play_curves(
    model: NeuralGuitar, curves: Curves, noise_balance: float = 0.0, seed: int = 0, block_frames: int = _BLOCK_FRAMES
) -> Iterator[tuple[Sound, Controls]]:
    """Play curves; yield the sound, [1, n] per part, and the controls of each block.

    Args:
        model: model of the instrument.
        curves: [T] each.
        noise_balance: gain of the noise in dB.
        seed: seed of the noise.
        block_frames: frames per block; the concatenated sound does not depend on it, up to rounding.
    """
    player, device = BlockPlayer(model, noise_balance, seed), next(model.parameters()).device
    n_frames, plucks = len(curves.f0), None
    if model.config.onset_inputs:  # traced on whole curves, as in training
        floor = model.settings.features.loudness_floor
        plucks = torch.from_numpy(trace_plucks(curves.f0, curves.loudness, model.audio.frame_rate, floor)).to(device)
    for part in block_slices(n_frames, block_frames):
        frames = (
            torch.from_numpy(values[part])[None, :, None].to(device)
            for values in (curves.f0, curves.loudness, curves.gate)
        )
        here = None if plucks is None else plucks[None, part]
        yield player.play_block(*frames, is_last=part.stop == n_frames, plucks=here)
