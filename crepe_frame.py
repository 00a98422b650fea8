"""CREPE for a frame that comes alone, as live: the weights of ``crepe.py`` in as few operations as it takes.

One frame has no neighbours to share products with, and is so little work that each operation costs more than what it
computes. So the first layer takes the Fourier transform of the whole frame, and each of the others is three products:
there, through the taps, and back.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crepe import Crepe, InnerLayer, load_crepe

_CIRCLE = 320  # positions, over which the first layer may be a circular correlation of a frame


class _Step(NamedTuple):
    """An ``InnerLayer``: [L, C] to [L / 2, C'], in the order that the layer itself takes and leaves."""

    analysis: Tensor  # [R, L]
    kernel: Tensor  # [R, C, C']
    synthesis: Tensor  # [L, R]
    constant: Tensor  # [L, C']
    layer: InnerLayer

    def __call__(self, hidden: Tensor) -> Tensor:
        products = torch.bmm((self.analysis @ hidden)[:, None], self.kernel)[:, 0]  # (R, C')
        sums = torch.addmm(self.constant, self.synthesis, products)
        return self.layer.clamp(torch.maximum(*sums.chunk(2)))


def _step_of(layer: InnerLayer) -> _Step:
    cosines, sines = layer.cosines, layer.sines
    ahead, behind = torch.cat([cosines, sines]), torch.cat([cosines, -sines])
    # The sums of both follow, as in the layer itself.
    analysis = [torch.cat([part, part[1 : len(cosines)] + part[len(cosines) : -1]]) for part in (ahead, behind)]
    return _Step(torch.cat(analysis, dim=1), layer.kernel, layer.synthesis, layer.constant[:, 0], layer)


class FrameCrepe:
    """A frame [1024] to its activation [1, 360], by the weights of a network on the CPU."""

    def __init__(self, network: Crepe) -> None:
        self._first, self._steps = network.first, [_step_of(layer) for layer in network.inner]
        self._spectra = _polyphase_spectra(network.first.kernel.numpy())
        self._order = network.first.order.flip(0).argsort()
        self._classifier, self._bias = network.classifier, network.classifier_bias

    def __call__(self, frame: Tensor) -> Tensor:
        hidden = self._convolve(frame)
        for step in self._steps:
            hidden = step(hidden)
        return torch.sigmoid(torch.addmv(self._bias, self._classifier, hidden.flatten()))[None]

    def _convolve(self, frame: Tensor) -> Tensor:
        """Do what the first layer does, [1024] to [128, C]."""
        deviation, mean = torch.std_mean(frame)
        samples = (frame - mean) / deviation.clamp_min(1e-10)
        spectrum = torch.fft.rfft(samples.view(-1, 4).T, n=_CIRCLE)  # (4, F)
        sums = torch.fft.irfft((self._spectra * spectrum[:, None]).sum(dim=0), n=_CIRCLE)  # (C, positions)
        pooled = torch.maximum(sums[:, :256:2], sums[:, 1:256:2]).T[self._order]
        return self._first.clamp(pooled + self._first.bias)


def _polyphase_spectra(kernel: np.ndarray) -> Tensor:
    """Return the spectra [4, C, F] of taps [512, C], those that meet each fourth sample apart, 64 of them past."""
    parts = np.pad(kernel.astype(np.float64), ((2, 2), (0, 0))).reshape(-1, 4, kernel.shape[1])  # (129, 4, C)
    spread = np.zeros((_CIRCLE, *parts.shape[1:]))
    spread[np.arange(-64, 65)] = parts
    return torch.from_numpy(np.fft.rfft(spread, axis=0).conj().transpose(1, 2, 0).astype(np.complex64, order="C"))


@functools.lru_cache(maxsize=2)
def load_frame_crepe(model: str) -> FrameCrepe:
    """Return the network "tiny" or "full" for single frames; raises what ``load_crepe`` does."""
    return FrameCrepe(load_crepe(model, "cpu"))
