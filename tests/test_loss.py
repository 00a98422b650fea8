"""loss.py against the published formula in float64: values, gradients, bandwidth, silence, and any length."""

import math

import numpy as np
import pytest
import torch
from scipy import signal

import loss as loss_module
import textbook
from loss import MultiResolutionSTFTLoss

FFT_SIZES, HOP_SIZES, WIN_LENGTHS = (512, 1024, 2048, 4096), (128, 256, 512, 1024), (512, 1024, 2048, 4096)
EPS = 1e-5


def make_loss(fft_sizes=FFT_SIZES, hop_sizes=HOP_SIZES, win_lengths=WIN_LENGTHS, weight=1.0, eps=EPS):
    return MultiResolutionSTFTLoss(fft_sizes, hop_sizes, win_lengths, weight, eps)


def sounds(n_batch=2, n_samples=16000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(n_batch, n_samples, generator=generator)


def magnitudes_by_scipy(audio, n_fft, hop, win_length):
    """Return float64 [F, frames]: frame j centred on sample j * hop, zeros beyond the ends, window centred in n_fft."""
    window = np.zeros(n_fft)
    start = (n_fft - win_length) // 2
    window[start : start + win_length] = signal.get_window("hann", win_length)
    transform = signal.ShortTimeFFT(window, hop, fs=1, mfft=n_fft, scale_to=None)
    return np.abs(transform.stft(audio.astype(np.float64), p0=0, p1=len(audio) // hop + 1))


def loss_by_numpy(prediction, target, weight, eps, resolutions):
    """Return (total, spectral convergence, log magnitude) of [B, N], written from the formula."""
    convergences, log_magnitudes = [], []
    for n_fft, hop, win_length in resolutions:
        floor_power = 1e-3**2 * np.sum(signal.get_window("hann", win_length) ** 2)  # of -60 dBFS white noise, a bin
        for x, y in zip(prediction, target):
            x, y = (magnitudes_by_scipy(sound, n_fft, hop, win_length) for sound in (x, y))
            scale = max(math.sqrt(np.sum(y**2)), math.sqrt(floor_power * y.size))
            convergences.append(math.sqrt(np.sum((y - x) ** 2)) / scale)
            log_magnitudes.append(np.mean(np.abs(np.log(y + eps) - np.log(x + eps))))
    convergence, log_magnitude = np.mean(convergences), np.mean(log_magnitudes)
    return convergence + weight * log_magnitude, convergence, log_magnitude


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("case", ["noise", "quiet target", "one item silent", "length no multiple of a hop"])
def test_the_loss_equals_the_formula_in_float64(case, weight):
    prediction, target = sounds(seed=0), sounds(seed=1)
    if case == "quiet target":
        target = target * 1e-3  # -80 dBFS: below the floor of the denominator
    if case == "one item silent":
        target[1] = 0
    if case == "length no multiple of a hop":
        prediction, target = prediction[:, :9999], target[:, :9999]
    ours = make_loss(weight=weight)(prediction, target)
    exact = loss_by_numpy(prediction.numpy(), target.numpy(), weight, EPS, list(zip(FFT_SIZES, HOP_SIZES, WIN_LENGTHS)))
    # Float32 STFTs are good to about 1e-6 of the loudest bin; measured 7e-8 of the loss.
    assert [value.item() for value in ours] == pytest.approx(exact, rel=1e-4)


def test_the_loss_of_a_sound_against_itself_is_zero():
    same = MultiResolutionSTFTLoss()(sounds().requires_grad_(), sounds())
    assert [value.item() for value in same] == [0, 0, 0]
    assert [value.requires_grad for value in same] == [True, False, False]
    default, explicit = (loss(sounds(seed=1), sounds()).total for loss in (MultiResolutionSTFTLoss(), make_loss()))
    assert torch.equal(default, explicit)


@pytest.mark.parametrize("sizes", [((512, 1024), (128,), (512, 1024)), ((512,), (128,), ()), ((), (), ())])
def test_wrong_numbers_of_resolutions_or_samples_are_refused(sizes):
    with pytest.raises(ValueError, match=f"{len(sizes[0])}, {len(sizes[1])} and {len(sizes[2])}"):
        MultiResolutionSTFTLoss(*sizes)
    with pytest.raises(AssertionError, match=r"\(2, 100\) against \(2, 101\)"):
        make_loss()(torch.zeros(2, 100), torch.zeros(2, 101))


def test_the_loss_against_silence_is_finite_and_of_order_one():
    prediction = 1e-3 * sounds() / sounds().std()  # -60 dBFS, the level of the floor
    result = make_loss()(prediction, torch.zeros_like(prediction))
    # The floor is that of white noise of -60 dBFS, so its convergence is one; the ends, where windows are half
    # empty, take a little. Measured 0.99; without a floor it would be infinite.
    assert result.spectral_convergence.item() == pytest.approx(1, abs=0.1)
    assert torch.isfinite(result.total)


def masked_textbook(prediction, target, shares, resolutions, weight, eps):
    """Return the total loss of [B, N] in float64, of each item over the bins up to its share of Nyquist."""
    totals = []
    for n_fft, hop, win_length in resolutions:
        window = torch.hann_window(win_length, dtype=torch.float64)
        for x, y, share in zip(prediction, target, shares):
            x, y = (
                torch.stft(sound, n_fft, hop, win_length, window, pad_mode="constant", return_complex=True).abs()
                for sound in (x, y)
            )
            n_kept = int(share * (n_fft // 2)) + 1
            x, y = x[:n_kept], y[:n_kept]
            floor = 1e-3 * window.norm() * math.sqrt(y.numel())
            convergence = (y - x).norm() / y.norm().clamp_min(floor)
            totals.append(convergence + weight * ((y + eps).log() - (x + eps).log()).abs().mean())
    return torch.stack(totals).mean()


@pytest.mark.parametrize("block", [1, 10**9])  # one item at a time, all at once
def test_bins_above_the_bandwidth_of_an_item_are_left_out(block, monkeypatch):
    monkeypatch.setattr(loss_module, "_BLOCK_SAMPLES", block)
    prediction, target = sounds(3, seed=0), sounds(3, seed=1)
    target[2] *= 1e-4  # under the floor
    bandwidth = torch.tensor([0.5, 1.0, 0.65])
    ours, theirs = prediction.clone().requires_grad_(), prediction.double().requires_grad_()
    total = make_loss(weight=0.7)(ours, target, bandwidth).total
    resolutions = list(zip(FFT_SIZES, HOP_SIZES, WIN_LENGTHS))
    exact = masked_textbook(theirs, target.double(), bandwidth.tolist(), resolutions, 0.7, EPS)
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)  # float32 sums
    total.backward()
    exact.backward()
    assert torch.allclose(ours.grad, theirs.grad.float(), rtol=1e-3, atol=1e-4 * theirs.grad.abs().max().item())


@pytest.mark.parametrize("n_samples", [1, 160, 511, 5001])
def test_any_length_is_accepted(n_samples):
    prediction, target = sounds(2, n_samples, seed=0), sounds(2, n_samples, seed=1)
    resolutions = list(zip(FFT_SIZES, HOP_SIZES, WIN_LENGTHS))
    exact = textbook.stft_loss(prediction.double(), target.double(), resolutions, 1.0, EPS)
    # Of one sample the spectrum is flat, and float32 logarithms of it are good to 1e-6.
    assert make_loss()(prediction, target).total.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("target", ["silence", "sound"])
@pytest.mark.parametrize("prediction", ["silence", "sound", "the target itself"])
def test_the_gradient_is_finite(prediction, target):
    target = torch.zeros(2, 8000) if target == "silence" else sounds(2, 8000, seed=1)
    starts = {"silence": torch.zeros(2, 8000), "sound": sounds(2, 8000), "the target itself": target.clone()}
    predicted = starts[prediction].requires_grad_()
    make_loss()(predicted, target).total.backward()
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("block", [1, 10**9])  # one item at a time, all at once
@pytest.mark.parametrize("resolution", [(512, 128, 512), (1024, 120, 600), (255, 60, 255)])
@pytest.mark.parametrize("n_samples", [3, 300, 4000])
def test_the_gradient_equals_that_of_the_textbook_version(resolution, n_samples, block, monkeypatch):
    monkeypatch.setattr(loss_module, "_BLOCK_SAMPLES", block)
    prediction, target = sounds(3, n_samples, seed=0), sounds(3, n_samples, seed=1)
    target[2] *= 1e-4  # under the floor
    ours, theirs = prediction.clone().requires_grad_(), prediction.double().requires_grad_()
    total = make_loss(*([size] for size in resolution), weight=0.7)(ours, target).total
    exact = textbook.stft_loss(theirs, target.double(), [resolution], 0.7, EPS)
    (3 * total).backward()
    (3 * exact).backward()
    assert total.item() == pytest.approx(exact.item(), rel=1e-4)
    # Relative to the largest. A magnitude near zero has a steep logarithm, so float32 leaves more than its rounding.
    assert (ours.grad - theirs.grad).abs().max() <= 1e-3 * theirs.grad.abs().max()
