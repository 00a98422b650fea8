"""The harmonic bank of synth.py against the textbook version in float64, forward and backward."""

import math

import numpy as np
import pytest
import torch

import synth
import textbook
from synth import HarmonicSynthesizer

SAMPLE_RATE, HOP, H = 16000, 160, 101


def random_amplitudes(n_batch, n_frames, n_harmonics=H, seed=0):
    """Return [B, T, H] whose sum over harmonics is one."""
    raw = torch.rand(n_batch, n_frames, n_harmonics, generator=torch.Generator().manual_seed(seed))
    return raw / raw.sum(-1, keepdim=True)


def steady(n_frames):
    return torch.full((1, n_frames, 1), 75.3)  # all 101 harmonics are below Nyquist


def vibrato(n_frames):
    seconds = torch.arange(n_frames) / 100
    return (233.1 * 2 ** (0.5 / 12 * torch.sin(2 * math.pi * 5.5 * seconds)))[None, :, None]


def sweep(n_frames):
    """55 to 1760 Hz and back, with vibrato: most harmonics cross Nyquist, many times."""
    seconds = torch.arange(n_frames) / 100
    octaves = 2.5 - 2.5 * torch.cos(2 * math.pi * seconds / 20)
    return (55 * 2 ** (octaves + 0.5 / 12 * torch.sin(2 * math.pi * 5.5 * seconds)))[None, :, None]


CURVES = pytest.mark.parametrize("curve", [steady, vibrato, sweep])


def bank(f0, amplitudes):
    return synth.harmonic_bank(f0, amplitudes, SAMPLE_RATE, HOP)


def oracle(f0, amplitudes):
    return textbook.harmonic_bank(f0.double(), amplitudes.double(), SAMPLE_RATE, HOP)


def spectrum_db(audio):
    """Return the spectrum of 1 s [16000] in dB re a full-scale sine, one bin a Hz."""
    window = np.hanning(len(audio))
    return 20 * np.log10(np.abs(np.fft.rfft(audio * window)) / (window.sum() / 2) + 1e-12)


@CURVES
def test_ten_seconds_equal_the_textbook_version(curve):
    n_frames = 1000
    f0, amplitudes = curve(n_frames), random_amplitudes(1, n_frames)
    audio = bank(f0, amplitudes)
    # Required 1e-3 at unit total amplitude. Measured 2e-5, and 0.1 to 1 with a phase summed in float32.
    assert (audio - oracle(f0, amplitudes)).abs().max() <= 1e-4
    with_gradient = bank(f0[:, :150], amplitudes[:, :150].clone().requires_grad_())
    assert with_gradient.requires_grad and torch.equal(with_gradient, bank(f0[:, :150], amplitudes[:, :150]))


@pytest.mark.parametrize("n_harmonics", [1, 16, 17, 101])  # both sides of the grouping by 16
@pytest.mark.parametrize(("n_frames", "hop_length"), [(1, 160), (2, 1), (65, 64), (30, 441)])
def test_any_number_of_harmonics_frames_and_samples(n_harmonics, n_frames, hop_length):
    f0 = torch.cat([steady(n_frames), vibrato(n_frames), sweep(n_frames) * 8])
    amplitudes = random_amplitudes(3, n_frames, n_harmonics)
    audio = synth.harmonic_bank(f0, amplitudes, SAMPLE_RATE, hop_length)
    assert audio.shape == (3, n_frames * hop_length)
    expected = textbook.harmonic_bank(f0.double(), amplitudes.double(), SAMPLE_RATE, hop_length)
    assert (audio - expected).abs().max() <= 1e-4  # as above


@CURVES
def test_gradients_equal_those_of_the_textbook_version(curve):
    n_frames = 60
    weights = torch.randn(1, n_frames * HOP, generator=torch.Generator().manual_seed(1))
    gradients = []
    for render, dtype in ((bank, torch.float32), (oracle, torch.float64)):
        f0 = curve(n_frames).to(dtype).requires_grad_()
        amplitudes = random_amplitudes(1, n_frames).to(dtype).requires_grad_()
        (render(f0, amplitudes) * weights.to(dtype)).sum().backward()
        gradients.append((f0.grad.double(), amplitudes.grad.double()))
    for ours, exact in zip(*gradients):
        # Relative to the largest: float32 sums of up to 10^4 terms are good to about 1e-5. Measured: 4e-6 (f0) and
        # 9e-6 (amplitudes).
        assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max()
        assert exact.abs().max() > 0


@pytest.mark.parametrize("jump", [32, 64, 50, 128])
def test_harmonics_fade_in_from_the_frame_before_they_are_audible(jump, monkeypatch):
    """f0 falls from one frame to the next, also where one block of frames ends: the new harmonics fade in before it."""
    monkeypatch.setattr("synth._BLOCK_FRAMES", 32)
    f0 = torch.cat([torch.full((1, jump, 1), 3000.0), torch.full((1, 20, 1), 80.0)], dim=1)
    amplitudes = random_amplitudes(1, jump + 20)
    ours = amplitudes.clone().requires_grad_()
    theirs = amplitudes.double().requires_grad_()
    rendered, wanted = bank(f0, ours), oracle(f0, theirs)
    assert (rendered - wanted).abs().max() < 1e-4
    rendered.square().sum().backward()
    wanted.square().sum().backward()
    assert (ours.grad - theirs.grad).abs().max() < 1e-3 * theirs.grad.abs().max()


def test_a_sine_has_a_single_peak():
    amplitudes = torch.zeros(1, 100, H)
    amplitudes[..., 0] = 0.5
    spectrum = spectrum_db(bank(torch.full((1, 100, 1), 440.0), amplitudes)[0].numpy())
    assert spectrum.argmax() == 440
    assert spectrum[440] == pytest.approx(-6.02, abs=0.01)  # the exact value; float32 is good to 1e-5 dB
    # Two-sided: below is the sine's own window. The float32 phase leaves -130 dB; an audible flaw begins near -90.
    assert max(spectrum[:430].max(), spectrum[450:].max()) < -100


def test_harmonics_above_nyquist_do_not_alias():
    spectrum = spectrum_db(bank(torch.full((1, 100, 1), 3000.0), torch.ones(1, 100, 5))[0].numpy())
    # 9, 12 and 15 kHz would come back at 7, 4 and 1 kHz.
    assert all(spectrum[hz] > -1 for hz in (3000, 6000))
    assert all(spectrum[hz] < -100 for hz in (7000, 4000, 1000))  # as in the test of the sine
    for f0, is_silent in ((7999.0, False), (8000.0, True), (12345.0, True)):
        assert (bank(torch.full((1, 20, 1), f0), torch.ones(1, 20, 3)) == 0).all() == is_silent
    audible = synth.harmonics_below_nyquist(torch.tensor([[[1000.0], [3999.0], [4000.0]]]), 9, SAMPLE_RATE)
    assert audible.sum(-1).tolist() == [[7, 2, 1]]  # the eighth of 1 kHz is at Nyquist


def test_phase_is_the_inclusive_sum_of_f0():
    audio = bank(torch.full((1, 10, 1), 100.0), torch.ones(1, 10, 1))[0].numpy()
    expected = np.sin(2 * np.pi * 100 * np.arange(1, 1601) / SAMPLE_RATE)  # one step is done at sample 0
    assert np.abs(audio - expected).max() <= 1e-5  # float32 phase of up to 2 pi: 5e-7


@pytest.mark.parametrize("split", [1, 37, 59])
def test_a_continued_bank_equals_the_whole(split):
    f0, amplitudes = vibrato(60), random_amplitudes(1, 60)
    elapsed = synth.elapsed_cycles(f0, SAMPLE_RATE, HOP)
    dense = textbook.upsample(f0.double(), HOP).unflatten(1, (60, HOP)).sum(dim=(2, 3)) / SAMPLE_RATE
    assert elapsed.dtype == torch.float64 and (elapsed - dense).abs().max() <= 1e-9  # sums of 160 doubles
    later = synth.harmonic_bank(f0[:, split:], amplitudes[:, split:], SAMPLE_RATE, HOP, elapsed[:, :split].sum(dim=1))
    # The same phase, rounded to float32 once: harmonic 101 has 101 times its rounding.
    assert (later - bank(f0, amplitudes)[:, split * HOP :]).abs().max() <= 1e-5


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError, match=r"\(1, 9, 1\).*\(1, 10, 101\)"):
        bank(torch.ones(1, 9, 1), torch.ones(1, 10, H))
    with pytest.raises(AssertionError, match=r"\(1, 10, 7\)"):
        HarmonicSynthesizer(H, SAMPLE_RATE, HOP)(torch.ones(1, 10, 1), torch.ones(1, 10, 7))
