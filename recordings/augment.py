"""Training crops as a voice would ask for them: the curves that the decoder hears are not quite the sound's own.

An instrument's pitch and loudness move as its player and its body let them; a voice's waver. A decoder that has only
met the former takes every wavering for a sign of something. So it hears curves that waver, or that are smoothed, while
the oscillators and the loudness of the sound keep to the true ones: what the crop should sound like stays as it is.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from config import TrainConfig


def is_wanted(settings: TrainConfig) -> bool:
    """Say whether the decoder is to hear anything but the true curves."""
    return max(settings.f0_jitter, settings.loudness_jitter, settings.input_smoothing) > 0


def disturb(
    f0: Tensor, loudness: Tensor, settings: TrainConfig, frame_rate: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return pitch and loudness as the decoder is to hear them.

    How strongly a crop is disturbed is drawn anew for each, from not at all to what the settings allow.

    Args:
        f0: [T, 1] in Hz.
        loudness: [T, 1] in dB.
        settings: how far a curve may be off.
        frame_rate: frames a second.
        rng: source of all that is drawn.
    """
    width = settings.input_smoothing * frame_rate * rng.uniform()
    slowest = max(1.0, settings.jitter_seconds * frame_rate)
    cents, decibels = (
        most * rng.uniform() * _waver(len(f0), slowest, rng) for most in (settings.f0_jitter, settings.loudness_jitter)
    )
    heard = _smooth(f0.log2(), width) + torch.from_numpy(cents)[:, None] / 1200
    return heard.exp2(), _smooth(loudness, width) + torch.from_numpy(decibels)[:, None]


def _waver(n_frames: int, slowest: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 noise [T] of RMS one, as slow as a Gaussian of 1 to ``slowest`` frames makes it."""
    noise = ndimage.gaussian_filter1d(rng.standard_normal(n_frames), slowest ** rng.uniform(), mode="wrap")
    return (noise / max(np.sqrt(np.mean(noise**2)), 1e-9)).astype(np.float32)


def _smooth(curve: Tensor, n_frames: float) -> Tensor:
    if n_frames <= 0:
        return curve
    return torch.from_numpy(ndimage.gaussian_filter1d(curve.numpy(), n_frames, axis=0, mode="nearest"))
