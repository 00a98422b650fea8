"""Multi-resolution STFT loss (Yamamoto, Song and Kim, Parallel WaveGAN, ICASSP 2020).

For each FFT size, with X and Y the magnitudes of prediction and target:

    spectral convergence   ||Y - X||_F / ||Y||_F    of each item, then averaged over the batch
    log magnitude          mean |log(Y + eps) - log(X + eps)|

The total is their sum, the second weighted by ``mag_loss_weight``, averaged over the FFT sizes. Each
item has its own spectral convergence, so that the loss is a mean over items; its denominator is
floored at that of a -60 dBFS signal, because a silent target would otherwise give 1e7.

Both steps, sound to magnitudes and magnitudes to the two distances, have their backward pass written
out: derived by autograd they take twice the time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SILENCE_RMS = 10 ** (-60 / 20)
_VANISHING = 1e-20  # the square of anything smaller is zero in float32


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
        self.hop_sizes = tuple(hop_sizes)
        self.mag_loss_weight = mag_loss_weight
        self.eps = eps
        for number, (n_fft, win_length) in enumerate(zip(fft_sizes, win_lengths)):
            before = (n_fft - win_length) // 2
            window = nn.functional.pad(torch.hann_window(win_length), (before, n_fft - win_length - before))
            self.register_buffer(f"window_{number}", window, persistent=False)  # (n_fft)

    def forward(self, prediction: Tensor, target: Tensor) -> StftLoss:
        """Return the loss between two sounds [B, N]."""
        assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
        parts = [
            self._compare(prediction, target, getattr(self, f"window_{number}"), hop)
            for number, hop in enumerate(self.hop_sizes)
        ]
        convergence = torch.stack([part[0] for part in parts]).mean()
        log_magnitude = torch.stack([part[1] for part in parts]).mean()
        return StftLoss(convergence + self.mag_loss_weight * log_magnitude, convergence, log_magnitude)

    def _compare(self, prediction: Tensor, target: Tensor, window: Tensor, hop: int) -> tuple[Tensor, Tensor]:
        predicted = _Magnitude.apply(prediction, window, hop)  # (B, frames, F)
        with torch.no_grad():
            wanted = _Magnitude.apply(target, window, hop)
            # White noise of this RMS has the magnitude RMS * ||window|| in every bin.
            floor = _SILENCE_RMS * window.norm() * (wanted[0].numel() ** 0.5)
            scale = torch.linalg.vector_norm(wanted, dim=(1, 2)).clamp_min(floor)
        return _Distances.apply(predicted, wanted, scale, self.eps)


class _Magnitude(torch.autograd.Function):
    """[B, N] to STFT magnitudes [B, frames, n_fft / 2 + 1]; zeros lie beyond the ends, so any length works."""

    @staticmethod
    def forward(ctx, audio: Tensor, window: Tensor, hop: int) -> Tensor:
        n_fft = len(window)
        padded = nn.functional.pad(audio, (n_fft // 2, n_fft // 2))
        spectrum = torch.fft.rfft(padded.unfold(-1, n_fft, hop) * window)
        magnitude = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag).sqrt_()
        ctx.save_for_backward(spectrum, magnitude, window)
        ctx.hop, ctx.n_samples = hop, audio.shape[-1]
        return magnitude

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        spectrum, magnitude, window = ctx.saved_tensors
        n_fft = len(window)
        # The derivative of |X| is X / |X|, and 0 where X is 0.
        spectrum = spectrum * (grad / magnitude.clamp_min(_VANISHING))
        spectrum[..., 1 : (n_fft + 1) // 2] *= 0.5  # the inverse transform counts these bins twice
        frames = torch.fft.irfft(spectrum, n_fft, norm="forward") * window
        start = n_fft // 2
        return _overlap_add(frames, ctx.hop)[:, start : start + ctx.n_samples], None, None


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add frames [B, T, L], each a hop after the one before: [B, N], with zeros up to a whole number of hops."""
    n_batch, n_frames, length = frames.shape
    n_parts = -(-length // hop)
    parts = nn.functional.pad(frames, (0, n_parts * hop - length)).unflatten(-1, (n_parts, hop)).unbind(dim=2)
    total = frames.new_zeros(n_batch, n_frames + n_parts - 1, hop)
    for number, part in enumerate(parts):
        total[:, number : number + n_frames] += part
    return total.flatten(1)


class _Distances(torch.autograd.Function):
    """Magnitudes [B, frames, F] of prediction and target to spectral convergence and log-magnitude distance."""

    @staticmethod
    def forward(ctx, predicted: Tensor, wanted: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        difference = predicted - wanted
        norm = torch.linalg.vector_norm(difference, dim=(1, 2))  # (B)
        lifted = predicted + eps
        ctx.save_for_backward(difference, norm, scale, lifted)
        return torch.mean(norm / scale), torch.div(lifted, wanted + eps).log_().abs_().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_convergence: Tensor, grad_log: Tensor) -> tuple[Tensor, None, None, None]:
        difference, norm, scale, lifted = ctx.saved_tensors
        grad = torch.sign(difference).div_(lifted).mul_(grad_log / difference.numel())
        weight = grad_convergence / (len(norm) * scale * norm.clamp_min(_VANISHING))
        return grad.addcmul_(difference, weight[:, None, None]), None, None, None
