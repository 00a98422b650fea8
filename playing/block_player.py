"""Play curves on a model in blocks: the sound does not depend on the blocks, and memory does not grow with length.

The state between blocks is that of the decoder, the phase of the fundamental in double precision, the noise, and the
last frames: each frame's sound fades into the next one's, and a noise filter reaches a little further.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from model import Controls, NeuralGuitar, Sound, State
from sound.audio_files import block_slices
from sound.plucks import trace_plucks
from synth import elapsed_cycles
from voice.curves import Curves

_BLOCK_FRAMES = 1000  # played at once; more is not faster


class BlockPlayer:
    """Play frames as they arrive, ``latency`` frames late.

    The noise comes from one generator on the CPU, so a seed gives the same sound in blocks of any size, on any device.
    """

    def __init__(self, model: NeuralGuitar, noise_balance: float = 0.0, seed: int = 0) -> None:
        """Take a model; ``noise_balance`` is dB on the noise."""
        self.model = model
        self.latency = model.noise_synthesizer.context  # frames
        self._noise_gain = 10 ** (noise_balance / 20)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: State | None = None  # of the model, after the frames so far
        self._cycles: Tensor | None = None  # (1,) of the fundamental, before the first frame that is to be played
        self._n_rendered = 0  # of the pending frames
        self._pending: list[Tensor] = []  # f0, amplitudes, magnitudes, noise: [1, T, C] each
        self._tails: list[Tensor | None] = [None, None]  # of both parts in the room, if the model has learned one

    @torch.inference_mode()
    def play_block(
        self, f0: Tensor, loudness: Tensor, gate: Tensor, is_last: bool = False, plucks: Tensor | None = None
    ) -> tuple[Sound, Controls]:
        """Play the next frames; gated ones are silent in both parts.

        Args:
            f0: [1, T, 1] in Hz.
            loudness: [1, T, 1] in dB.
            gate: [1, T, 1], 0..1.
            is_last: no frames follow, so play all that are there.
            plucks: [1, T, 2], time since the onset (s) and velocity (dB), for a model with ``onset_inputs``.

        Returns:
            Sound of the frames that are complete, and the controls of those given.
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
        """Render the next frames, and drop what no later frame needs."""
        f0, amplitudes, magnitudes, noise = self._pending
        start, end, hop_length = self._n_rendered, self._n_rendered + n_frames, self.model.audio.hop_length
        if not n_frames:
            return Sound(f0.new_zeros(1, 0), f0.new_zeros(1, 0))
        span = slice(start, end + 1)  # and the frame into which the last one fades
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
    """Play curves; yield their sound, [1, n] a part, and the controls, block by block.

    Args:
        model: the instrument.
        curves: [T] each.
        noise_balance: dB on the noise.
        seed: of the noise.
        block_frames: played at once; the joined sound does not depend on it, to rounding.
    """
    player, device = BlockPlayer(model, noise_balance, seed), next(model.parameters()).device
    n_frames, plucks = len(curves.f0), None
    if model.config.onset_inputs:  # of what is played, whole, as the model was trained on whole recordings
        floor = model.settings.features.loudness_floor
        plucks = torch.from_numpy(trace_plucks(curves.f0, curves.loudness, model.audio.frame_rate, floor)).to(device)
    for part in block_slices(n_frames, block_frames):
        frames = (
            torch.from_numpy(values[part])[None, :, None].to(device)
            for values in (curves.f0, curves.loudness, curves.gate)
        )
        here = None if plucks is None else plucks[None, part]
        yield player.play_block(*frames, is_last=part.stop == n_frames, plucks=here)
