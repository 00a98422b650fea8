"""The textbook harmonic bank, written to be obviously right: the oracle of the tests, the reference of the benchmark.

Upsample f0 and all amplitudes to audio rate, sum f0 up to a phase, take one sine a harmonic, mask, add.
"""

import math

import torch
from torch import Tensor


def upsample(frames: Tensor, hop_length: int) -> Tensor:
    """Interpolate [B, T, C] linearly to [B, T * hop_length, C], holding the last frame."""
    held = torch.cat([frames, frames[:, -1:]], dim=1).transpose(1, 2)
    n_samples = frames.shape[1] * hop_length
    dense = torch.nn.functional.interpolate(held, size=n_samples + 1, mode="linear", align_corners=True)
    return dense[..., :-1].transpose(1, 2)


def harmonic_bank(f0: Tensor, harmonic_amplitudes: Tensor, sample_rate: int, hop_length: int) -> Tensor:
    """Render [B, T, 1] f0 in Hz and [B, T, H] amplitudes to [B, T * hop_length], in the precision of the input."""
    numbers = torch.arange(1, harmonic_amplitudes.shape[-1] + 1, dtype=f0.dtype, device=f0.device)
    audible = (f0 * numbers < sample_rate / 2).to(f0.dtype)
    amplitudes = upsample(harmonic_amplitudes * audible, hop_length)  # (B, N, H)
    phase = 2 * math.pi * torch.cumsum(upsample(f0, hop_length) / sample_rate, dim=1)  # (B, N, 1)
    return torch.sum(amplitudes * torch.sin(phase * numbers), dim=-1)
