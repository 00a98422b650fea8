"""The textbook bank, noise and loss, written to be obviously right: oracles of tests, references of the benchmark.

The bank upsamples f0 and all amplitudes to audio rate, sums f0 up to a phase, takes one sine a harmonic, masks,
adds. The loss is ``torch.stft`` and the formula; autograd finds both gradients.
"""

import math
from collections.abc import Iterable

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


def filter_noise(noise: Tensor, magnitudes: Tensor, hop_length: int) -> Tensor:
    """Filter noise [B, N] by magnitudes [B, T, K]: an FIR filter a frame (window method), grains, their sum."""
    n_taps = 2 * (magnitudes.shape[-1] - 1)
    held = torch.cat([magnitudes, magnitudes[:, -1:]], dim=1)
    responses = torch.fft.irfft(held.to(magnitudes.dtype.to_complex()), n=n_taps).roll(n_taps // 2, dims=-1)
    responses = responses * torch.hann_window(n_taps, dtype=noise.dtype)
    fade = torch.arange(hop_length, dtype=noise.dtype) / hop_length
    padded = torch.nn.functional.pad(noise, (hop_length, hop_length))
    grains = padded.unfold(-1, 2 * hop_length, hop_length) * torch.cat([fade, 1 - fade])
    length = 2 * hop_length + n_taps
    filtered = torch.fft.irfft(torch.fft.rfft(grains, n=length) * torch.fft.rfft(responses, n=length), n=length)
    n_samples = noise.shape[-1] + 2 * hop_length + n_taps  # (T + 1 grains, a hop apart, of 2 hops and the filter)
    audio = torch.nn.functional.fold(filtered.transpose(1, 2), (1, n_samples), (1, length), stride=(1, hop_length))
    start = hop_length + n_taps // 2
    return audio[:, 0, 0, start : start + noise.shape[-1]]


def stft_loss(
    prediction: Tensor, target: Tensor, resolutions: Iterable[tuple[int, int, int]], mag_loss_weight: float, eps: float
) -> Tensor:
    """Return the total loss of [B, N] against [B, N]; a resolution is (n_fft, hop, win_length)."""
    totals = []
    for n_fft, hop, win_length in resolutions:
        window = torch.hann_window(win_length, dtype=prediction.dtype, device=prediction.device)
        predicted, wanted = (_magnitudes(audio, n_fft, hop, window) for audio in (prediction, target))
        floor = 10 ** (-60 / 20) * window.norm() * math.sqrt(wanted[0].numel())
        scale = wanted.norm(dim=(1, 2)).clamp_min(floor)
        convergence = torch.mean((wanted - predicted).norm(dim=(1, 2)) / scale)
        log_magnitude = torch.mean((torch.log(wanted + eps) - torch.log(predicted + eps)).abs())
        totals.append(convergence + mag_loss_weight * log_magnitude)
    return torch.stack(totals).mean()


def _magnitudes(audio: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    spectrum = torch.stft(audio, n_fft, hop, len(window), window, pad_mode="constant", return_complex=True)
    return spectrum.abs()
