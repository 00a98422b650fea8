"""CREPE for a frame that comes alone, as live: the weights of ``crepe.py`` in as few operations as it takes.

One frame has no neighbours to share products with, and is so little work that to fetch the weights and to call an
operation cost more than what it computes. So each layer is a circular correlation by the fast Fourier transform, and
all is done by numpy and scipy, of which one operation costs a third of torch's.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy import fft

from sound.crepe import Crepe, InnerLayer, load_crepe

_CIRCLE = 320  # positions, over which the first layer may be a circular correlation of a frame


class _Step(NamedTuple):
    """An ``InnerLayer``: [C, L] to [C', L / 2]."""

    kernel: np.ndarray  # [F, C, C'], complex
    constant: np.ndarray  # [C', L]
    floor: np.ndarray  # [C', 1]
    ceiling: np.ndarray  # [C', 1]

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        n_fft = 2 * (len(self.kernel) - 1)
        spectrum = fft.rfft(hidden, n=n_fft).T[:, None]  # (F, 1, C)
        products = np.matmul(spectrum, self.kernel)[:, 0]  # (F, C'); too small for BLAS to share among threads
        sums = fft.irfft(products.T, n=n_fft)[:, : self.constant.shape[1]] + self.constant
        return _pool(sums, self.floor, self.ceiling)


def _pool(sums: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    pooled = np.maximum(sums[:, ::2], sums[:, 1::2])
    np.maximum(pooled, floor, out=pooled)
    return np.minimum(pooled, ceiling, out=pooled)


def _step_of(layer: InnerLayer) -> _Step:
    factors, half = layer.kernel.numpy(), len(layer.cosines)
    differences, sums, imaginary = np.split(factors, [half, 2 * half])  # c - d, c + d and d, as in the layer
    imaginary = np.pad(imaginary, ((1, 1), (0, 0), (0, 0)))  # none at 0 and at Nyquist
    real = np.concatenate([differences + imaginary[:-1], sums[-1:]])
    return _Step(real + 1j * imaginary, layer.constant_in_order(), *_limits(layer))


def _limits(layer: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return layer.floor.numpy()[:, None], layer.ceiling.numpy()[:, None]


class FrameCrepe:
    """A frame [1024] to its activation [360], by the weights of a network on the CPU."""

    def __init__(self, network: Crepe) -> None:
        self._spectra = _polyphase_spectra(network.first.kernel.numpy())
        self._bias, self._limits = network.first.bias.numpy()[:, None], _limits(network.first)
        self._steps = [_step_of(layer) for layer in network.inner]
        self._classifier, self._classifier_bias = network.classifier.numpy(), network.classifier_bias.numpy()

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        hidden = self._convolve(frame)
        for step in self._steps:
            hidden = step(hidden)
        # einsum: a matrix product may be shared by threads, which to wake takes longer.
        logits = np.einsum("oc,c->o", self._classifier, hidden.T.ravel()) + self._classifier_bias
        return 1 / (1 + np.exp(-logits))

    def _convolve(self, frame: np.ndarray) -> np.ndarray:
        """Do what the first layer does, [1024] to [C, 128]."""
        samples = (frame - frame.mean()) / max(frame.std(ddof=1), np.float32(1e-10))
        spectrum = fft.rfft(samples.reshape(-1, 4).T, n=_CIRCLE)  # (4, F)
        products = self._spectra[0] * spectrum[0]
        for phase in range(1, 4):
            products += self._spectra[phase] * spectrum[phase]
        return _pool(fft.irfft(products, n=_CIRCLE)[:, :256] + self._bias, *self._limits)


def _polyphase_spectra(kernel: np.ndarray) -> np.ndarray:
    """Return the spectra [4, C, F] of taps [512, C], those that meet each fourth sample apart, 64 of them past."""
    parts = np.pad(kernel.astype(np.float64), ((2, 2), (0, 0))).reshape(-1, 4, kernel.shape[1])  # (129, 4, C)
    spread = np.zeros((_CIRCLE, *parts.shape[1:]))
    spread[np.arange(-64, 65)] = parts
    return np.fft.rfft(spread, axis=0).conj().transpose(1, 2, 0).astype(np.complex64, order="C")


@functools.lru_cache(maxsize=2)
def load_frame_crepe(model: str) -> FrameCrepe:
    """Return the network "tiny" or "full" for single frames; raises what ``load_crepe`` does."""
    return FrameCrepe(load_crepe(model, "cpu"))
