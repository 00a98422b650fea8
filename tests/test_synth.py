"""synth.py: filtered noise, A-weighted levels, and reverb, against direct computations."""

import math

import numpy as np
import pytest
import torch

import synth
from synth import FilteredNoiseSynthesizer

SAMPLE_RATE, HOP, K = 16000, 160, 65


def make_noise(magnitudes, seed=0):
    return FilteredNoiseSynthesizer(magnitudes.shape[-1], HOP)(magnitudes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("band", [5, 32, 60])
def test_white_noise_through_one_band_has_energy_only_there(band):
    magnitudes = torch.zeros(1, 400, K)
    magnitudes[..., band] = 1
    power = np.abs(np.fft.rfft(make_noise(magnitudes)[0].numpy() * np.hanning(64000))) ** 2
    hz = np.fft.rfftfreq(64000, 1 / SAMPLE_RATE)
    centre, width = band * 8000 / (K - 1), 8000 / (K - 1)
    inside = np.abs(hz - centre) <= 2 * width
    # The Hann window's main lobe is 2 bands either side, its side lobes begin at -31 dB. Measured: 0.06 % leak.
    assert power[inside].sum() / power.sum() > 0.998
    assert (hz * power).sum() / power.sum() == pytest.approx(centre, abs=width / 10)  # 4 s of noise scatter by 3 Hz


def test_filters_of_ones_leave_the_noise_unchanged():
    noise = torch.rand(2, 20 * HOP, generator=torch.Generator().manual_seed(0)) * 2 - 1
    opened = make_noise(torch.ones(2, 20, K))
    # The filter is then a unit impulse, so that only the transform's rounding remains. Measured 4e-7.
    assert (opened - noise).abs().max() <= 1e-5
    assert opened.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)  # uniform in -1..1; 6400 samples scatter by 1 %


def filter_directly(noise, magnitudes, hop_length):
    """Filter each sample [N] by the impulse response between its frames, in float64 and one sample at a time."""
    n_taps = 2 * (magnitudes.shape[-1] - 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_taps) / n_taps)
    responses = np.roll(np.fft.irfft(magnitudes, n_taps), n_taps // 2, axis=-1) * window  # (T, taps)
    delay, n_samples = n_taps // 2, len(noise)
    audio = np.zeros(n_samples + n_taps)
    for m in range(n_samples):
        t, part = divmod(m, hop_length)
        following = min(t + 1, len(magnitudes) - 1)
        response = responses[t] + (responses[following] - responses[t]) * part / hop_length
        audio[m : m + n_taps] += noise[m] * response
    return audio[delay : delay + n_samples]


@pytest.mark.parametrize(("n_frames", "n_bands", "hop"), [(12, K, HOP), (1, K, HOP), (7, 129, HOP), (7, 2, 64)])
def test_filters_are_interpolated_between_frames(n_frames, n_bands, hop):
    rng = np.random.default_rng(0)
    noise, magnitudes = rng.uniform(-1, 1, n_frames * hop), rng.uniform(0, 1, (n_frames, n_bands))
    synthesizer = FilteredNoiseSynthesizer(n_bands, hop)
    ours = synthesizer.filter(torch.from_numpy(noise).float()[None], torch.from_numpy(magnitudes).float()[None])
    assert ours.shape == (1, n_frames * hop)
    # Float32 transforms of sums of 128 products of order one. Measured 2e-7.
    assert np.abs(ours[0].numpy() - filter_directly(noise, magnitudes, hop)).max() <= 2e-6


@pytest.mark.parametrize(("n_bands", "hop_length"), [(65, 160), (65, 40), (9, 8)])
def test_a_frame_of_noise_depends_only_on_its_context(n_bands, hop_length):
    """Blocks are cut so: another noise and another filter outside the context change nothing, and inside they do."""
    synthesizer, generator, t = FilteredNoiseSynthesizer(n_bands, hop_length), torch.Generator().manual_seed(0), 10
    noise = torch.rand(1, 21 * hop_length, generator=generator) - 0.5
    magnitudes = torch.rand(1, 21, n_bands, generator=generator)
    frame = slice(t * hop_length, (t + 1) * hop_length)
    plain = synthesizer.filter(noise, magnitudes)[:, frame]
    for context, same in ((synthesizer.context, True), (synthesizer.context - 1, False)):
        here = slice((t - context) * hop_length, (t + context + 1) * hop_length)
        cut = synthesizer.filter(noise[:, here], magnitudes[:, t - context : t + context + 1])
        cut = cut[:, context * hop_length : (context + 1) * hop_length]
        assert ((cut - plain).abs().max() < 1e-5) == same  # float32 transforms of values of order one


def test_the_gradient_of_filtered_noise_is_exact():
    magnitudes = torch.rand(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = torch.rand(1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    synthesizer = FilteredNoiseSynthesizer(5, 8).double()
    assert torch.autograd.gradcheck(lambda values: synthesizer.filter(noise, values), (magnitudes,))


def test_a_weighting_equals_the_standard():
    # IEC 61672-1, table of A-weightings in dB, rounded there to 0.1.
    table = {31.5: -39.4, 63: -26.2, 125: -16.1, 250: -8.6, 500: -3.2, 1000: 0.0, 2000: 1.2, 4000: 1.0, 8000: -1.1}
    gains = synth.a_weighting(torch.tensor([10 ** (round(10 * math.log10(f)) / 10) for f in table]))
    assert (20 * gains.log10()).tolist() == pytest.approx(list(table.values()), abs=0.06)


def test_weighted_level_of_a_sine_and_of_noise():
    f0, silence = torch.full((1, 1, 1), 1000.0), torch.zeros(1, 1, 3)
    assert synth.weighted_level(f0, torch.tensor([[[0.0, 1.0]]]), silence, SAMPLE_RATE).item() == pytest.approx(
        10 ** (1.2 / 20) / math.sqrt(2),
        rel=1e-3,  # a sine of 2 kHz, weighted by 1.2 dB
    )
    flat = torch.ones(1, 1, 501)
    weighted = synth.a_weighting(torch.linspace(0, 8000, 501)).square().mean().sqrt() / math.sqrt(3)
    assert synth.weighted_level(f0, torch.zeros(1, 1, 1), flat, SAMPLE_RATE).item() == pytest.approx(weighted.item())


def test_sound_above_the_band_of_the_features_is_ignored():
    f0, silence = torch.full((1, 1, 1), 1000.0), torch.zeros(1, 1, 129)
    amplitudes = torch.ones(1, 1, 20)
    within = synth.weighted_level(f0, amplitudes[..., :7], silence, 48000)
    assert synth.weighted_level(f0, amplitudes, silence, 48000, 16000).item() == pytest.approx(within.item(), rel=1e-6)
    assert synth.weighted_level(f0, amplitudes, silence, 48000).item() > 1.2 * within.item()
    assert synth.weighted_level(f0, amplitudes, silence, 16000, 16000).equal(
        synth.weighted_level(f0, amplitudes, silence, 16000)
    )


def test_noise_depends_only_on_the_generator_of_the_item():
    magnitudes = torch.rand(3, 20, K, generator=torch.Generator().manual_seed(1))
    synthesizer = synth.FilteredNoiseSynthesizer(K, HOP)

    def sources(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = synthesizer(magnitudes, sources(5, 6, 7))
    assert torch.equal(together[1:], synthesizer(magnitudes[1:], sources(6, 7)))
    assert not torch.equal(together[:1], synthesizer(magnitudes[:1], sources(8)))
    with pytest.raises(AssertionError, match="1 generators for 3 items"):
        synthesizer(magnitudes, sources(5))


def room(n_taps=500):
    reverb = synth.Reverb(n_taps)
    reverb.response.data = 0.1 * torch.randn(n_taps, generator=torch.Generator().manual_seed(0))
    return reverb


@pytest.mark.parametrize("n_samples", [1, 100, 1300])
def test_reverb_is_a_convolution(n_samples):
    reverb, audio = room(), torch.randn(2, n_samples, generator=torch.Generator().manual_seed(1))
    response = np.r_[1.0, reverb.response.detach().double().numpy()]  # the sound itself, then the room
    with torch.no_grad():
        wet = reverb(audio)
    for ours, sound in zip(wet, audio):
        exact = np.convolve(sound.double().numpy(), response)[:n_samples]
        assert np.abs(ours.numpy() - exact).max() < 1e-5  # float32, values of order one


def test_untrained_reverb_is_dry_and_has_a_gradient():
    reverb, audio = synth.Reverb(50), torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(reverb(audio), audio)
    reverb(audio).square().sum().backward()
    assert (reverb.response.grad != 0).all()


@torch.no_grad()
def test_reverb_does_not_depend_on_the_blocks():
    reverb, audio = room(), torch.randn(1, 2000, generator=torch.Generator().manual_seed(1))
    parts, tail = [], None
    for block in audio.split([1, 160, 160, 700, 3, 976], dim=1):
        part, tail = reverb.step(block, tail)
        parts.append(part)
        assert tail.shape == (1, 500)
    assert (torch.cat(parts, dim=1) - reverb(audio)).abs().max() < 1e-5
