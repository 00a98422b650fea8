"""model.py: presets, amplitudes and bandwidth, determinism, causality, and learning."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from config import load_config
from features import extract_loudness
from loss import MultiResolutionSTFTLoss
from model import GruDecoder, NeuralGuitar, Vox2Trumpet
from sound.audio_files import prepare_audio

PRESETS = pytest.mark.parametrize("preset", ["tiny", "solo", "wide", "standard", "deep", "transformer"])


def build(preset="tiny", seed=0, **changes):
    config = load_config(preset=preset)
    torch.manual_seed(seed)
    return NeuralGuitar(dataclasses.replace(config.model, **changes), config.audio).eval()


def curves(n_batch=2, n_frames=50, seed=0):
    """Return f0 [B, T, 1] of 60 to 1900 Hz and loudness [B, T, 1] of -80 to 0 dB, at random."""
    generator = torch.Generator().manual_seed(seed)
    f0 = 60 * (1900 / 60) ** torch.rand(n_batch, n_frames, 1, generator=generator)
    return f0, -80 * torch.rand(n_batch, n_frames, 1, generator=generator)


def loudness_gain(loudness, gain=3.0):
    """Return the amplitude of the README's baseline: loudness as amplitude, times the gain it starts with."""
    return 10 ** (loudness / 20) * gain


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@PRESETS
def test_every_preset_runs_forward_and_backward(preset):
    model = build(preset)
    f0, loudness = curves(2, 30)
    controls = model.controls(f0, loudness)
    assert controls.harmonic_amplitudes.shape == (2, 30, 200 if preset == "wide" else 101)
    assert controls.noise_magnitudes.shape == (2, 30, 129 if preset in ("standard", "wide") else 65)
    audio = model(f0, loudness)
    assert audio.shape == (2, 30 * (480 if preset == "wide" else 160))
    audio.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_tiny_is_the_documented_baseline():
    model = build("tiny")
    assert isinstance(model.decoder, GruDecoder)
    gru = model.decoder.gru
    assert (gru.input_size, gru.hidden_size, gru.num_layers, gru.bidirectional) == (2, 512, 1, False)
    assert model.harmonic_head.out_features + model.noise_head.out_features == 166
    # GRU: 3 gates of (2 + 512) * 512 weights and twice 512 biases; heads: 513 * 166; one gain.
    assert count_parameters(model) == 3 * 512 * (2 + 512 + 2) + 513 * 166 + 1


def test_dropout_is_active_only_in_training():
    model, (f0, loudness) = build("tiny", num_layers=2, dropout=0.5), curves(2, 10)

    def play(seed):
        torch.manual_seed(seed)
        return model.controls(f0, loudness).noise_magnitudes

    assert torch.equal(play(0), play(1))
    model.train()
    assert torch.equal(play(0), play(0)) and not torch.allclose(play(0), play(1), rtol=1e-4)


@pytest.mark.parametrize(("f0", "loudness"), [((1, 10, 1), (1, 11, 1)), ((2, 10), (2, 10)), ((2, 9, 3), (2, 9, 3))])
def test_curves_of_wrong_shapes_are_refused(f0, loudness):
    with pytest.raises(ValueError, match=r"\[batch, frames, 1\]") as error:
        build(hidden_size=8).controls(torch.ones(f0), torch.ones(loudness))
    assert str(list(f0)) in str(error.value) and str(list(loudness)) in str(error.value)


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        ("tiny", {"decoder": "lstm"}, "'lstm'.*gru, transformer"),
        ("tiny", {"amplitude": "loud"}, "'loud'.*gain, head, weighted"),
        ("transformer", {"num_heads": 3}, "hidden_size 128 .* 3"),
    ],
)
def test_invalid_settings_are_refused(preset, changes, named):
    with pytest.raises(ValueError, match=named):
        build(preset, **changes)


@pytest.mark.parametrize("kind", [NeuralGuitar, Vox2Trumpet])
def test_models_without_arguments_are_the_baseline_and_can_be_trained(kind):
    torch.manual_seed(0)
    model, loss = kind(), MultiResolutionSTFTLoss()
    f0, loudness = curves(n_batch=1, n_frames=30)
    controls = model.controls(f0, loudness)
    assert controls.harmonic_amplitudes.shape == (1, 30, 101) and controls.noise_magnitudes.shape == (1, 30, 65)
    result = loss(model(f0, loudness), 0.1 * torch.randn(1, 4800))
    result.backward()
    assert result.total == result.spectral_convergence + result.log_magnitude
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@PRESETS
def test_distribution_sums_to_one_below_nyquist_and_is_zero_above(preset):
    model = build(preset)
    f0, loudness = curves(2, 80)
    with torch.no_grad():
        amplitudes = model.controls(f0, loudness).harmonic_amplitudes
        is_weighted = model.config.amplitude == "weighted"
        distribution = amplitudes / (amplitudes.sum(-1, keepdim=True) if is_weighted else loudness_gain(loudness))
    assert torch.allclose(distribution.sum(-1), torch.ones(2, 80), rtol=0, atol=1e-5)  # float32 sum of 101 terms
    audible = f0 * torch.arange(1, model.config.n_harmonics + 1) < model.audio.sample_rate / 2
    assert (distribution[~audible] == 0).all()
    assert (distribution[audible] > 0).all()
    assert (~audible).any()


def test_amplitude_follows_loudness_and_gain():
    model = build(hidden_size=8, initial_gain=2.5)
    f0 = torch.full((1, 3, 1), 440.0)
    loudness = torch.tensor([-60.0, -20.0, 0.0])[None, :, None]
    total = model.controls(f0, loudness).harmonic_amplitudes.sum(-1)[0]
    assert total.tolist() == pytest.approx([2.5e-3, 0.25, 2.5], rel=1e-5)  # by definition; float32 rounding


@pytest.mark.parametrize(("f0", "noise_bias"), [(110.0, -8.0), (440.0, 0.0), (1200.0, 3.0), (1200.0, -8.0)])
@pytest.mark.parametrize(("preset", "bandwidth"), [("solo", None), ("wide", None), ("wide", 15000.0)])
def test_weighted_amplitude_gives_the_requested_loudness(preset, bandwidth, f0, noise_bias):
    """With hardly any noise up to much noise, and with the band of the features at both sample rates."""
    model, config = build(preset, noise_bias=noise_bias), load_config(preset=preset)
    model.limit_bandwidth(bandwidth)
    f0, loudness = torch.full((1, 200, 1), f0), torch.full((1, 200, 1), -23.0)
    with torch.no_grad():
        audio = model(f0, loudness, torch.Generator().manual_seed(0))[0].numpy()
    measured = extract_loudness(prepare_audio(audio, config.audio.sample_rate, 16000), config)[20:-20]
    assert abs(measured.mean() + 23) < 0.15  # 0.05 dB from the filter's design, the rest from random noise


@pytest.mark.parametrize("bandwidth", [9000.0, 22000.0])
def test_output_is_silent_above_the_bandwidth(bandwidth):
    model = build("wide", noise_bias=0.0)
    model.limit_bandwidth(bandwidth)
    f0, loudness = torch.linspace(90, 1200, 200)[None, :, None], torch.full((1, 200, 1), -20.0)
    with torch.no_grad():
        controls = model.controls(f0, loudness)
        audio = model.synthesize(f0, controls, torch.Generator().manual_seed(0)).audio[0].numpy()
    sounding = controls.harmonic_amplitudes > 0
    assert sounding.equal(f0 * torch.arange(1, 201) < bandwidth)  # masked before the softmax: the rest is there
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    above = np.fft.rfftfreq(len(audio), 1 / 48000) > bandwidth + 400  # the skirts of the noise filters
    assert 10 * np.log10(power[above].sum() / power.sum()) < -60
    narrow = build()
    narrow.limit_bandwidth(bandwidth)
    assert narrow.bandwidth == 8000  # Nyquist


def test_learned_amplitude_factor_starts_at_one_and_is_bounded():
    f0, loudness = curves(1, 20)
    for amplitude in ("head", "weighted"):
        model = build(hidden_size=8, amplitude=amplitude)
        reference = model.controls(f0, loudness).harmonic_amplitudes
        for bias, decibels in ((1e3, 24), (-1e3, -24)):
            torch.nn.init.constant_(model.amplitude_head.bias, bias)
            ratio = model.controls(f0, loudness).harmonic_amplitudes.sum() / reference.sum()
            assert 20 * math.log10(ratio.item()) == pytest.approx(decibels, abs=1e-3)  # float32 rounding


def test_amplification_of_very_low_tones_is_limited():
    model = build("solo", n_harmonics=1)  # a sine of 20 Hz: A-weighting takes 50 dB
    with torch.no_grad():
        audio = model(torch.full((1, 100, 1), 20.0), torch.full((1, 100, 1), -40.0))
    assert audio.abs().max() < 1.1  # -40 dB raised by at most 40


@pytest.mark.parametrize("preset", ["tiny", "solo"])
@pytest.mark.parametrize("f0", [7999.0, 8000.0, 15000.0])
def test_pitch_at_or_above_nyquist_is_silent_not_nan(f0, preset):
    model = build(preset, hidden_size=8)
    f0, loudness = torch.full((1, 10, 1), f0), torch.zeros(1, 10, 1)
    controls = model.controls(f0, loudness)
    assert torch.isfinite(controls.harmonic_amplitudes).all()
    assert (controls.harmonic_amplitudes.sum(-1) > 0).all() == (f0 < 8000).all()
    model(f0, loudness).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@PRESETS
def test_noise_of_an_untrained_model_is_inaudible(preset):
    model, (f0, loudness) = build(preset), curves(2, 50)
    with torch.no_grad():
        sound = model.synthesize(f0, model.controls(f0, loudness), torch.Generator().manual_seed(0))
        assert torch.equal(sound.audio, sound.harmonic + sound.noise)
        assert torch.equal(model(f0, loudness, torch.Generator().manual_seed(0)), sound.audio)
        noise = sound.noise
    # Inaudible under a quiet sound. All 65 bands at sigmoid(-8) give -74 dB; random heads move it by a few dB.
    assert 20 * math.log10(noise.std()) < -60


@PRESETS
def test_output_depends_only_on_the_seeds(preset):
    f0, loudness = curves(1, 20)
    with torch.no_grad():
        models = [build(preset, seed=seed) for seed in (7, 7, 8)]
        sounds = [model(f0, loudness, torch.Generator().manual_seed(3)) for model in models]
    assert torch.equal(sounds[0], sounds[1]) and not torch.equal(sounds[0], sounds[2])


@PRESETS
def test_items_of_a_batch_are_independent(preset):
    model = build(preset)
    f0, loudness = curves(3, 70)
    with torch.no_grad():
        together = model.controls(f0, loudness)
        single = [model.controls(f0[i : i + 1], loudness[i : i + 1]) for i in range(3)]
    for name in together._fields:
        apart = torch.cat([getattr(controls, name) for controls in single])
        # Values up to 3 (the gain); matrix products of another size round differently, by about 1e-6.
        assert (getattr(together, name) - apart).abs().max() <= 1e-5


@pytest.mark.parametrize("preset", ["tiny", "solo", "transformer"])
@pytest.mark.parametrize("changed", [1, 64, 65, 199])
def test_controls_are_causal(preset, changed):
    model = build(preset)
    f0, loudness = curves(1, 200)
    other = loudness.clone()
    other[:, changed:] = -80 - other[:, changed:]
    with torch.no_grad():
        before, after = (model.controls(f0, curve).noise_magnitudes for curve in (loudness, other))
    assert torch.equal(before[:, :changed], after[:, :changed])  # same operations on the same numbers: the same bits
    assert not torch.equal(before[:, changed], after[:, changed])


def test_windowed_attention_equals_masked_attention():
    """Windowed attention equals attention over all frames, masked to the own window's past and the window before."""
    model = build("transformer", num_layers=1, attention_window=8, hidden_size=12, num_heads=3)
    attention = model.decoder.layers[0].attention
    torch.nn.init.normal_(attention.distance_bias, generator=torch.Generator().manual_seed(0))
    n_frames, window, size = 29, 8, 12
    hidden = torch.randn(1, n_frames, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = attention(hidden)[0].double().numpy()
        project_in, project_out = attention.project_in.double(), attention.project_out.double()
        query, key, value = (part[0].numpy() for part in project_in(hidden.double()).chunk(3, -1))
        bias = attention.distance_bias.numpy()
        mixed = np.zeros((n_frames, size))
        for t in range(n_frames):
            first = max(0, (t // window - 1) * window)
            for head in range(3):
                here = slice(4 * head, 4 * head + 4)
                past = np.arange(first, t + 1)
                score = key[past, here] @ query[t, here] / 2 + bias[head, t - past]  # 2: root of the head's size
                weight = np.exp(score - score.max())
                mixed[t, here] = weight @ value[past, here] / weight.sum()
        expected = project_out(torch.from_numpy(mixed)).numpy()
    assert np.abs(ours - expected).max() <= 1e-5  # float32 against float64, values of order one


@pytest.mark.parametrize("decoder", ["gru", "transformer"])
def test_one_batch_can_be_overfitted(decoder):
    model = build("tiny", decoder=decoder, hidden_size=64, n_harmonics=30).train()
    n_frames = 30
    frames = torch.arange(n_frames) / n_frames
    f0 = torch.stack([220 + 0 * frames, 330 * 2 ** (frames / 6)])[..., None]
    loudness = torch.stack([-30 + 20 * frames, -12 - 20 * frames])[..., None]
    with torch.no_grad():
        # The target has a distribution over harmonics that the model can express, and another for each note.
        tilt = torch.softmax(-torch.arange(30) * torch.tensor([0.3, 0.9])[:, None], -1)[:, None]
        target = model.harmonic_synthesizer(f0, 2 * 10 ** (loudness / 20) * tilt)
        target = target + 1e-3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    loss_function = MultiResolutionSTFTLoss((512, 1024), (128, 256), (512, 1024), eps=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for step in range(80):
        optimizer.zero_grad()
        loss = loss_function(model(f0, loudness, torch.Generator().manual_seed(step)), target).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Two random noises of equal level differ by about 0.7 in log magnitude: that much of the loss cannot be learned.
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert np.mean(losses[-5:]) < 1.2


def test_attack_input_is_the_rise_of_loudness():
    loudness = torch.full((1, 9, 1), -20.0)
    loudness[:, 5] = -40.0
    inputs = build("tiny", attack_frames=3).encode_inputs(torch.full_like(loudness, 300.0), loudness)
    assert inputs.shape == (1, 9, 3)
    # In units of 20 dB, over three frames; the loudness of the first frame also precedes it.
    assert inputs[0, :, 2].tolist() == pytest.approx([0, 0, 0, 0, 0, -1, 0, 0, 1])


@pytest.mark.parametrize("preset", ["tiny", "transformer"])
def test_blocks_equal_the_whole_with_attack_inputs(preset):
    model, (f0, loudness), state, blocks = build(preset, attack_frames=5), curves(1, 150), None, []
    with torch.no_grad():
        for start, stop in ((0, 1), (1, 3), (3, 90), (90, 150)):
            controls, state = model.step(f0[:, start:stop], loudness[:, start:stop], state)
            blocks.append(controls.noise_magnitudes)
        whole = model.controls(f0, loudness).noise_magnitudes
    assert (torch.cat(blocks, dim=1) - whole).abs().max() <= 1e-5


def test_reverb_applies_to_harmonics_and_noise():
    model, (f0, loudness) = build("tiny", noise_bias=-3.0, reverb_seconds=0.1), curves(1, 30)
    controls = model.controls(f0, loudness)
    dry = model.synthesize(f0, controls, torch.Generator().manual_seed(0))
    assert model.reverb.response.shape == (1600,)
    with torch.no_grad():
        model.reverb.response[159] = 0.5  # one echo, a frame later
        wet = model.synthesize(f0, controls, torch.Generator().manual_seed(0))
    for part, other in zip(wet, dry):
        echo = torch.nn.functional.pad(other, (160, 0))[:, : other.shape[1]]
        assert (part - other - 0.5 * echo).abs().max() < 1e-4 and echo.std() > 1e-3
