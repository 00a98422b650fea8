"""Multi-resolution STFT loss (Yamamoto, Song and Kim, Parallel WaveGAN, ICASSP 2020).

For each FFT size, with X and Y the magnitudes of prediction and target:

    spectral convergence   ||Y - X||_F / ||Y||_F    of each item, then averaged over the batch
    log magnitude          mean |log(Y + eps) - log(X + eps)|

The total is their sum, the second weighted by ``mag_loss_weight``, averaged over the FFT sizes. Each
item has its own spectral convergence, so that the loss is a mean over items; its denominator is
floored at that of a -60 dBFS signal, because a silent target would otherwise give 1e7.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SILENCE_RMS = 10 ** (-60 / 20)


class StftLoss(NamedTuple):
    total: Tensor  # what is minimised
    spectral_convergence: Tensor  # mean over the resolutions
    log_magnitude: Tensor  # mean over the resolutions, unweighted


class MultiResolutionSTFTLoss(nn.Module):
    """Compare two sounds at several FFT sizes at once: short ones see attacks, long ones see partials."""

    def __init__(
        self,
        fft_sizes: Sequence[int],
        hop_sizes: Sequence[int],
        win_lengths: Sequence[int],
        mag_loss_weight: float = 1.0,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) > 0:
            raise ValueError(
                f"fft_sizes, hop_sizes and win_lengths need one entry a resolution, "
                f"but have {len(fft_sizes)}, {len(hop_sizes)} and {len(win_lengths)}"
            )
        self.resolutions = tuple(zip(fft_sizes, hop_sizes, win_lengths))
        self.mag_loss_weight = mag_loss_weight
        self.eps = eps
        for _, _, win_length in self.resolutions:
            self.register_buffer(f"window_{win_length}", torch.hann_window(win_length), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> StftLoss:
        """Return the loss between two sounds [B, N]."""
        assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
        parts = [self._compare(prediction, target, *resolution) for resolution in self.resolutions]
        convergence = torch.stack([part[0] for part in parts]).mean()
        log_magnitude = torch.stack([part[1] for part in parts]).mean()
        return StftLoss(convergence + self.mag_loss_weight * log_magnitude, convergence, log_magnitude)

    def _compare(
        self, prediction: Tensor, target: Tensor, n_fft: int, hop: int, win_length: int
    ) -> tuple[Tensor, Tensor]:
        window = getattr(self, f"window_{win_length}")
        predicted = _magnitude(prediction, n_fft, hop, window)
        with torch.no_grad():
            wanted = _magnitude(target, n_fft, hop, window)  # (B, F, frames)
            # White noise of this RMS has the magnitude RMS * ||window|| in every bin.
            floor = _SILENCE_RMS * window.norm() * (wanted[0].numel() ** 0.5)
            scale = torch.linalg.vector_norm(wanted, dim=(1, 2)).clamp_min(floor)
            log_wanted = torch.log(wanted + self.eps)
        convergence = torch.mean(torch.linalg.vector_norm(wanted - predicted, dim=(1, 2)) / scale)
        log_magnitude = nn.functional.l1_loss(torch.log(predicted + self.eps), log_wanted)
        return convergence, log_magnitude


def _magnitude(audio: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """Return STFT magnitudes [B, n_fft / 2 + 1, frames]; zeros lie beyond the ends, so any length works."""
    spectrum = torch.stft(
        audio, n_fft, hop, window.shape[0], window, center=True, pad_mode="constant", return_complex=True
    )
    return spectrum.abs()
