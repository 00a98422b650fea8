"""Multi-resolution STFT loss (Yamamoto, Song and Kim, Parallel WaveGAN, ICASSP 2020).

For each FFT size, with X and Y the magnitudes of prediction and target:

    spectral convergence   ||Y - X||_F / ||Y||_F    of each item, then averaged over the batch
    log magnitude          mean |log(Y + eps) - log(X + eps)|

The total is their sum, the second weighted by ``mag_loss_weight``, averaged over the FFT sizes. Each
item has its own spectral convergence, so that the loss is a mean over items; its denominator is
floored at that of a -60 dBFS signal, because a silent target would otherwise give 1e7. Bins above the
target's band are left out of all means and norms.

The gradient is written out and computed together with the value, block by block of items: on a CPU the
spectra of a block then stay in the cache. With autograd the loss takes twice as long.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synth import overlap_add

_SILENCE_RMS = 10 ** (-60 / 20)
_VANISHING = 1e-20  # the square of a smaller number is zero in float32
_BLOCK_SAMPLES = 2**19  # windowed samples at once, of both sounds together
_BLOCK_SAMPLES_GPU = 2**28


class StftLoss(NamedTuple):
    """The loss and its parts; ``backward()`` is that of the total."""

    total: Tensor  # to be minimised; the parts below are for reports and carry no gradient
    spectral_convergence: Tensor  # mean over the resolutions
    log_magnitude: Tensor  # mean over the resolutions, unweighted

    def backward(self) -> None:
        """Compute the gradient of the total."""
        self.total.backward()


class MultiResolutionSTFTLoss(nn.Module):
    """Compare two sounds at several FFT sizes: short windows resolve attacks, long windows resolve partials.

    Args:
        fft_sizes: one for each resolution.
        hop_sizes: likewise, in samples (default: a quarter of each FFT size).
        win_lengths: likewise, in samples (default: the FFT sizes).
        mag_loss_weight: of the log-magnitude distance.
        eps: added to a magnitude before its logarithm.

    Raises:
        ValueError: not one entry for each resolution.
    """

    def __init__(
        self,
        fft_sizes: Sequence[int] = (512, 1024, 2048, 4096),
        hop_sizes: Sequence[int] | None = None,
        win_lengths: Sequence[int] | None = None,
        mag_loss_weight: float = 1.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hop_sizes = [n_fft // 4 for n_fft in fft_sizes] if hop_sizes is None else hop_sizes
        win_lengths = fft_sizes if win_lengths is None else win_lengths
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

    def forward(self, prediction: Tensor, target: Tensor, bandwidth: Tensor | None = None) -> StftLoss:
        """Return the loss between two sounds [B, N]; only the prediction gets a gradient.

        ``bandwidth`` [B] is the fraction of the band up to Nyquist in which each item is compared (None: all of it).
        """
        assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
        parts = [
            _Comparison.apply(
                prediction, target, bandwidth, getattr(self, f"window_{number}"), hop, self.mag_loss_weight, self.eps
            )
            for number, hop in enumerate(self.hop_sizes)
        ]
        return StftLoss(*(torch.stack(values).mean() for values in zip(*parts)))


class _Comparison(torch.autograd.Function):
    """Two sounds [B, N] at one resolution to total loss, spectral convergence and log-magnitude distance."""

    @staticmethod
    def forward(
        ctx,
        prediction: Tensor,
        target: Tensor,
        bandwidth: Tensor | None,
        window: Tensor,
        hop: int,
        mag_loss_weight: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_batch, n_samples = prediction.shape
        n_fft = len(window)
        n_frames, n_bins = 1 + (n_samples - n_fft % 2) // hop, n_fft // 2 + 1
        gradient = torch.empty_like(prediction) if ctx.needs_input_grad[0] else None
        convergence, log_magnitude = prediction.new_empty(2, n_batch)
        # White noise of this RMS has the magnitude RMS * ||window|| in every bin.
        floor = _SILENCE_RMS * window.norm() * (n_frames * n_bins) ** 0.5
        if bandwidth is not None:
            kept = _kept_bins(bandwidth, n_bins)  # (B, 1, F)
            share = kept.mean(dim=(1, 2))  # of the bins, (B)

        for block in _blocks(n_batch, 2 * n_frames * n_fft, prediction.device):
            spectra = _spectra(torch.stack([prediction[block], target[block]]), window, hop)  # (2, b, frames, F)
            predicted, wanted = magnitudes = _magnitudes(spectra)
            if bandwidth is not None:
                magnitudes.mul_(kept[block])  # both are zero there: no difference and no gradient
            difference = predicted - wanted
            norm = torch.linalg.vector_norm(difference, dim=(1, 2))
            scale = torch.linalg.vector_norm(wanted, dim=(1, 2))
            scale = scale.clamp_min(floor if bandwidth is None else floor * share[block].sqrt())
            convergence[block] = norm / scale
            lifted, lifted_target = magnitudes + eps
            log_magnitude[block] = torch.div(lifted, lifted_target, out=lifted_target).log_().abs_().mean(dim=(1, 2))
            if bandwidth is not None:
                log_magnitude[block] /= share[block]
            if gradient is None:
                continue
            slope = torch.sign(difference).div_(lifted).mul_(mag_loss_weight / (n_batch * n_frames * n_bins))
            if bandwidth is not None:
                slope /= share[block, None, None]
            slope.addcmul_(difference, (1 / (n_batch * scale * norm.clamp_min(_VANISHING)))[:, None, None])
            gradient[block] = _push_back(slope, spectra[0], predicted, window, hop, n_samples)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        convergence, log_magnitude = convergence.mean(), log_magnitude.mean()
        ctx.mark_non_differentiable(convergence, log_magnitude)
        return convergence + mag_loss_weight * log_magnitude, convergence, log_magnitude

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None, None, None


def _kept_bins(bandwidth: Tensor, n_bins: int) -> Tensor:
    """Return 1 for each bin of a spectrum that lies within an item's band, else 0: [B, 1, F] for shares [B]."""
    bins = torch.arange(n_bins, device=bandwidth.device) / (n_bins - 1)
    return (bins <= bandwidth[:, None, None]).float()


def _blocks(n_batch: int, samples_an_item: int, device: torch.device) -> Iterator[slice]:
    most = _BLOCK_SAMPLES if device.type == "cpu" else _BLOCK_SAMPLES_GPU
    size = max(1, most // samples_an_item)
    for start in range(0, n_batch, size):
        yield slice(start, start + size)


def _spectra(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """[..., N] to [..., frames, n_fft / 2 + 1]; the sound is padded with zeros, so any length works."""
    n_fft = len(window)
    padded = nn.functional.pad(audio, (n_fft // 2, n_fft // 2))
    return torch.fft.rfft(padded.unfold(-1, n_fft, hop) * window)


def _magnitudes(spectra: Tensor) -> Tensor:
    squares = torch.view_as_real(spectra).square()  # abs() takes three times as long
    return torch.add(squares[..., 0], squares[..., 1]).sqrt_()


def _push_back(slope: Tensor, spectrum: Tensor, magnitude: Tensor, window: Tensor, hop: int, n_samples: int) -> Tensor:
    """Turn the gradient of the magnitudes [b, frames, F] into that of the sound, [b, N]; overwrites ``slope``."""
    n_fft = len(window)
    # The derivative of |X| is X / |X|, 0 where X is 0. The inverse transform counts inner bins twice.
    slope.div_(magnitude.clamp_min(_VANISHING)).mul_(0.5)
    slope[..., 0] *= 2
    if n_fft % 2 == 0:
        slope[..., -1] *= 2
    frames = torch.fft.irfft(spectrum * slope, n_fft, norm="forward").mul_(window)
    start = n_fft // 2
    return overlap_add(frames, hop)[:, start : start + n_samples]
