"""Controls obey their physics, every preset runs, the Transformer sees no future, and one batch can be learned."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from config import load_config
from features import extract_loudness
from loss import MultiResolutionSTFTLoss
from model import GruDecoder, NeuralGuitar, Vox2Trumpet, build_model, scale_f0, scale_loudness
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


# --- shapes and sizes ---------------------------------------------------------------------------


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


def test_tiny_is_the_baseline():
    model = build("tiny")
    assert isinstance(model.decoder, GruDecoder)
    gru = model.decoder.gru
    assert (gru.input_size, gru.hidden_size, gru.num_layers, gru.bidirectional) == (2, 512, 1, False)
    assert model.harmonic_head.out_features + model.noise_head.out_features == 166
    # GRU: 3 gates of (2 + 512) * 512 weights and twice 512 biases; heads: 513 * 166; one gain.
    assert count_parameters(model) == 3 * 512 * (2 + 512 + 2) + 513 * 166 + 1


def test_deep_has_three_layers_and_dropout():
    gru = build("deep").decoder.gru
    assert (gru.hidden_size, gru.num_layers, gru.dropout) == (1024, 3, 0.1)


def test_dropout_is_heard_in_training_alone():
    model, (f0, loudness) = build("tiny", num_layers=2, dropout=0.5), curves(2, 10)

    def play(seed):
        torch.manual_seed(seed)
        return model.controls(f0, loudness).noise_magnitudes

    assert torch.equal(play(0), play(1))
    model.train()
    assert torch.equal(play(0), play(0)) and not torch.allclose(play(0), play(1), rtol=1e-4)


def test_one_layer_takes_dropout_without_a_warning(recwarn):
    build("tiny", dropout=0.1)  # torch warns of dropout after the only layer
    assert not recwarn


def test_transformer_is_about_tinys_size():
    ratio = count_parameters(build("transformer")) / count_parameters(build("tiny"))
    assert 0.8 < ratio < 1.25  # "about tiny's size": so that a comparison of both compares the kind, not the size


@pytest.mark.parametrize(("instrument", "kind"), [("guitar", NeuralGuitar), ("trumpet", Vox2Trumpet)])
def test_instrument_chooses_the_name(small_config, instrument, kind):
    assert type(build_model(small_config, instrument)) is kind


def test_unknown_decoder_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown decoder 'lstm'; there are gru, transformer"):
        build(decoder="lstm")


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"hidden_size 128 .* 3"):
        build("transformer", num_heads=3)


@pytest.mark.parametrize(("f0", "loudness"), [((1, 10, 1), (1, 11, 1)), ((2, 10), (2, 10)), ((2, 9, 3), (2, 9, 3))])
def test_curves_of_other_shapes_are_refused(f0, loudness):
    with pytest.raises(ValueError, match=r"\[batch, frames, 1\]") as error:
        build(hidden_size=8).controls(torch.ones(f0), torch.ones(loudness))
    assert str(list(f0)) in str(error.value) and str(list(loudness)) in str(error.value)


@pytest.mark.parametrize("kind", [NeuralGuitar, Vox2Trumpet])
def test_without_arguments_the_readmes_baseline_is_built_and_can_be_trained(kind):
    torch.manual_seed(0)
    model, loss = kind(), MultiResolutionSTFTLoss()
    f0, loudness = curves(n_batch=1, n_frames=30)
    controls = model.controls(f0, loudness)
    assert controls.harmonic_amplitudes.shape == (1, 30, 101) and controls.noise_magnitudes.shape == (1, 30, 65)
    result = loss(model(f0, loudness), 0.1 * torch.randn(1, 4800))
    result.backward()
    assert result.total == result.spectral_convergence + result.log_magnitude
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_scaling_is_linear_in_pitch_and_decibels():
    f0 = 32.7 * 2 ** torch.arange(7.0)  # C1 to C7
    assert torch.allclose(scale_f0(f0), torch.arange(7) / 6, atol=1e-6)  # float32 logarithm
    assert scale_loudness(torch.tensor([-80.0, -40.0, 0.0])).tolist() == [0, 0.5, 1]


# --- controls -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("noise_bias", [-8.0, 0.0, 3.0])  # all but no noise, and much
@pytest.mark.parametrize("f0", [110.0, 440.0, 1200.0])
def test_weighted_amplitude_sounds_as_loud_as_it_was_told(config, f0, noise_bias):
    model = build("solo", noise_bias=noise_bias)
    f0, loudness = torch.full((1, 200, 1), f0), torch.full((1, 200, 1), -23.0)
    with torch.no_grad():
        audio = model(f0, loudness, torch.Generator().manual_seed(0))[0].numpy()
    measured = extract_loudness(audio, config)[20:-20]
    assert abs(measured.mean() + 23) < 0.15  # 0.05 dB from the filter's design, the rest the noise's chance


@pytest.mark.parametrize("noise_bias", [-8.0, 0.0, 3.0])
@pytest.mark.parametrize("f0", [110.0, 440.0, 1200.0])
@pytest.mark.parametrize("bandwidth", [None, 15000.0])
def test_full_band_sounds_as_loud_as_it_was_told(f0, noise_bias, bandwidth):
    model, config = build("wide", noise_bias=noise_bias), load_config(preset="wide")
    model.limit_bandwidth(bandwidth)
    f0, loudness = torch.full((1, 200, 1), f0), torch.full((1, 200, 1), -23.0)
    with torch.no_grad():
        audio = model(f0, loudness, torch.Generator().manual_seed(0))[0].numpy()
    measured = extract_loudness(prepare_audio(audio, 48000, 16000), config)[20:-20]
    assert abs(measured.mean() + 23) < 0.15  # as at 16 kHz; both have the edge of the features' band


@pytest.mark.parametrize("bandwidth", [9000.0, 16000.0, 22000.0])
def test_nothing_sounds_above_the_band(bandwidth):
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


def test_the_band_goes_up_to_nyquist_at_most():
    model = build()
    assert model.bandwidth == 8000
    model.limit_bandwidth(22000.0)
    assert model.bandwidth == 8000


def test_learned_factor_starts_at_one_and_has_bounds():
    f0, loudness = curves(1, 20)
    for amplitude in ("head", "weighted"):
        model = build(hidden_size=8, amplitude=amplitude)
        reference = model.controls(f0, loudness).harmonic_amplitudes
        for bias, decibels in ((1e3, 24), (-1e3, -24)):
            torch.nn.init.constant_(model.amplitude_head.bias, bias)
            ratio = model.controls(f0, loudness).harmonic_amplitudes.sum() / reference.sum()
            assert 20 * math.log10(ratio.item()) == pytest.approx(decibels, abs=1e-3)  # float32 rounding


def test_timbre_that_a_weighting_hardly_hears_is_not_raised_without_end():
    model = build("solo", n_harmonics=1)  # a sine of 20 Hz: A-weighting takes 50 dB
    with torch.no_grad():
        audio = model(torch.full((1, 100, 1), 20.0), torch.full((1, 100, 1), -40.0))
    assert audio.abs().max() < 1.1  # -40 dB raised by at most 40


def test_unknown_amplitude_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown amplitude 'loud'; there are gain, head, weighted"):
        build(amplitude="loud")


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
@pytest.mark.parametrize("level", [-80.0, -30.0, 0.0])
def test_untrained_model_does_not_hiss(preset, level):
    model = build(preset)
    f0, loudness = torch.full((1, 50, 1), 440.0), torch.full((1, 50, 1), level)
    with torch.no_grad():
        noise = model.synthesize(f0, model.controls(f0, loudness), torch.Generator().manual_seed(0)).noise
    # Inaudible under a quiet sound. All 65 bands at sigmoid(-8) give -74 dB; random heads move it by a few dB.
    assert 20 * math.log10(noise.std()) < -60


def test_sound_is_the_sum_of_its_parts():
    model = build(hidden_size=8)
    f0, loudness = curves(1, 20)
    sound = model.synthesize(f0, model.controls(f0, loudness), torch.Generator().manual_seed(5))
    assert torch.equal(sound.audio, sound.harmonic + sound.noise)
    assert torch.equal(model(f0, loudness, torch.Generator().manual_seed(5)), sound.audio)


def test_pitch_of_the_sound_is_the_pitch_that_was_asked_for():
    model = build()
    with torch.no_grad():
        audio = model(torch.full((1, 100, 1), 440.0), torch.full((1, 100, 1), -20.0))[0].numpy()
    power = np.abs(np.fft.rfft(audio * np.hanning(16000))) ** 2  # one bin a Hz
    near = np.zeros_like(power, dtype=bool)
    for k in range(1, 19):
        near[k * 440 - 3 : k * 440 + 4] = True
    assert power[near].sum() / power.sum() > 0.999  # all but the noise, which is 45 dB below
    assert abs(int(power[200:660].argmax()) + 200 - 440) <= 1


# --- determinism, batches -----------------------------------------------------------------------


@PRESETS
def test_same_seed_same_bits(preset):
    f0, loudness = curves(1, 20)
    with torch.no_grad():
        models = [build(preset, seed=seed) for seed in (7, 7, 8)]  # first all of them: rendering draws no random
        sounds = [model(f0, loudness, torch.Generator().manual_seed(3)) for model in models]  # numbers but its own
    first, second, other = sounds
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@PRESETS
def test_an_item_does_not_depend_on_its_batch(preset):
    model = build(preset)
    f0, loudness = curves(3, 70)
    with torch.no_grad():
        together = model.controls(f0, loudness)
        alone = [model.controls(f0[i : i + 1], loudness[i : i + 1]) for i in range(3)]
    for name in together._fields:
        apart = torch.cat([getattr(controls, name) for controls in alone])
        # Values up to 3 (the gain); matrix products of another size round differently, by about 1e-6.
        assert (getattr(together, name) - apart).abs().max() <= 1e-5


# --- causality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["tiny", "solo", "transformer"])
@pytest.mark.parametrize("changed", [1, 63, 64, 65, 130, 199])
def test_the_future_changes_no_past_control(preset, changed):
    model = build(preset)
    f0, loudness = curves(1, 200)
    other = loudness.clone()
    other[:, changed:] = -80 - other[:, changed:]
    with torch.no_grad():
        before, after = (model.controls(f0, curve).noise_magnitudes for curve in (loudness, other))
    assert torch.equal(before[:, :changed], after[:, :changed])  # same operations on the same numbers: the same bits
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("n_frames", [1, 2, 63, 64, 65, 127, 128, 129, 150])
def test_transformer_takes_any_length(n_frames):
    model = build("transformer")
    f0, loudness = curves(2, 150)
    with torch.no_grad():
        whole = model.decoder(torch.cat([scale_f0(f0), scale_loudness(loudness)], -1))
        part = model.decoder(torch.cat([scale_f0(f0), scale_loudness(loudness)], -1)[:, :n_frames])
    # Causal, so a beginning is heard as it is within the whole; other matrix sizes round by about 1e-6 of order one.
    assert (whole[:, :n_frames] - part).abs().max() <= 1e-4
    assert part.shape == (2, n_frames, 128)


def test_transformer_attention_is_the_plain_one_with_a_mask():
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


def test_transformer_looks_back_at_least_its_window():
    model = build("transformer", num_layers=1, dropout=0.0)
    f0, loudness = curves(1, 256)
    with torch.no_grad():
        for t in (64, 127, 200):
            other = loudness.clone()
            other[:, t - 64] = -80 - other[:, t - 64]
            one, two = (model.controls(f0, curve).noise_magnitudes[:, t] for curve in (loudness, other))
            assert not torch.equal(one, two)


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["gru", "transformer"])
def test_one_batch_overfits(decoder):
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


# --- options that are off -----------------------------------------------------------------------


def test_the_rise_of_loudness_is_heard():
    loudness = torch.full((1, 9, 1), -20.0)
    loudness[:, 5] = -40.0
    heard = build("tiny", attack_frames=3).encode_inputs(torch.full_like(loudness, 300.0), loudness)
    assert heard.shape == (1, 9, 3)
    # In units of 20 dB, over three frames; before the first frame it was as loud as then.
    assert heard[0, :, 2].tolist() == pytest.approx([0, 0, 0, 0, 0, -1, 0, 0, 1])


@pytest.mark.parametrize("preset", ["tiny", "transformer"])
def test_blocks_of_a_model_that_hears_rises_are_the_whole(preset):
    model, (f0, loudness), state, blocks = build(preset, attack_frames=5), curves(1, 150), None, []
    with torch.no_grad():
        for start, stop in ((0, 1), (1, 3), (3, 90), (90, 150)):
            controls, state = model.step(f0[:, start:stop], loudness[:, start:stop], state)
            blocks.append(controls.noise_magnitudes)
        whole = model.controls(f0, loudness).noise_magnitudes
    assert (torch.cat(blocks, dim=1) - whole).abs().max() <= 1e-5


def test_a_room_is_heard_in_both_parts():
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


def test_options_that_are_off_add_no_weights():
    tiny = build("tiny")
    assert not any("reverb" in name for name, _ in tiny.named_parameters()) and tiny.decoder.gru.input_size == 2
    assert build("tiny", attack_frames=2).decoder.gru.input_size == build("solo").embedding[0].in_features == 3
