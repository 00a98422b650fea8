"""What the decoder hears in training wavers as far as the settings say, and nothing else changes."""

import dataclasses

import numpy as np
import pytest
import torch

from data import save_recording
from model import build_model
from recordings.crops import CropDataset, Span, disturb, is_wanted
from training.optimization import build_loss, train_step

OFF = {"f0_jitter": 0.0, "loudness_jitter": 0.0, "input_smoothing": 0.0}


def settings(config, **changes):
    return dataclasses.replace(config.train, **{**OFF, **changes})


def curves(n_frames=400):
    frames = torch.arange(n_frames)[:, None]
    return 300 * 2 ** (frames / 1200), -30 + 5 * torch.sin(frames / 2)


def test_nothing_is_wanted_by_default(config):
    assert not is_wanted(config.train)
    assert all(is_wanted(settings(config, **{name: 0.1})) for name in OFF)


def test_off_is_the_curves_themselves(config):
    f0, loudness = curves()
    heard = disturb(f0, loudness, settings(config), 100.0, np.random.default_rng(0))
    assert torch.allclose(heard[0], f0, rtol=1e-6) and torch.equal(heard[1], loudness)  # f0 went through a logarithm


def test_jitter_has_the_strength_of_the_settings(config):
    """Its RMS is uniform between none and all of it, so over many crops the mean is a half and the highest nearly 1."""
    f0, loudness = curves()
    wanted = settings(config, f0_jitter=30.0, loudness_jitter=2.0)
    strengths = []
    for seed in range(200):
        heard = disturb(f0, loudness, wanted, 100.0, np.random.default_rng(seed))
        cents, decibels = 1200 * torch.log2(heard[0] / f0), heard[1] - loudness
        strengths.append([cents.square().mean().sqrt().item() / 30, decibels.square().mean().sqrt().item() / 2])
    mean, highest = np.mean(strengths, axis=0), np.max(strengths, axis=0)
    assert np.abs(mean - 0.5).max() < 0.08  # four times the standard error of 200 uniform numbers
    assert (highest > 0.9).all() and (highest < 1.001).all()


def test_jitter_is_as_slow_as_the_settings_allow(config):
    """Between two frames a fast one moves by more than its own strength, a slow one by little."""
    f0, loudness = curves()

    def roughness(seconds):
        wanted = settings(config, loudness_jitter=2.0, jitter_seconds=seconds)
        heard = [disturb(f0, loudness, wanted, 100.0, np.random.default_rng(seed))[1] - loudness for seed in range(40)]
        return np.array([(one.diff(dim=0).std() / one.std()).item() for one in heard])

    fast, any_speed = roughness(0.0), roughness(1.0)
    assert fast.mean() > 3 * any_speed.mean()
    assert fast.max() < 1.2 * fast.min() and any_speed.max() > 20 * any_speed.min()  # each crop draws its own


def test_smoothing_takes_the_ripple_and_leaves_the_line(config):
    f0, loudness = curves()
    wanted = settings(config, input_smoothing=0.2)
    heard = [disturb(f0, loudness, wanted, 100.0, np.random.default_rng(seed)) for seed in range(20)]
    left = [one[1][50:-50].std().item() / loudness.std().item() for one in heard]
    assert min(left) < 0.01 and max(left) > 0.5  # of a ripple of 0.13 s: some crops are smoothed, some hardly
    assert all(torch.allclose(one[0][100:-100], f0[100:-100], rtol=1e-4) for one in heard)  # a glide is a line in cents


# --- in the data set ----------------------------------------------------------------------------


@pytest.fixture
def spans(tmp_path, counting_recording):
    save_recording(tmp_path / "take.pt", counting_recording(900))
    return [Span(tmp_path / "take.pt", 0, 900)]


@pytest.fixture
def jittery(config):
    return dataclasses.replace(config, train=settings(config, f0_jitter=30.0, loudness_jitter=2.0))


def test_crops_themselves_stay_as_they_are(spans, config, jittery):
    plain, other = (CropDataset(spans, each, seed=3)[5] for each in (config, jittery))
    assert set(plain) == {"f0", "loudness", "audio"} and set(other) == {*plain, "heard_f0", "heard_loudness"}
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert not torch.equal(other["heard_f0"], other["f0"]) and other["heard_f0"].dtype == torch.float32
    assert other["heard_loudness"].shape == other["loudness"].shape


def test_disturbance_depends_on_seed_epoch_and_index_alone(spans, jittery):
    def heard(seed, epoch, index):
        dataset = CropDataset(spans, jittery, seed)
        dataset.set_epoch(epoch)
        crop = dataset[index]
        return (crop["heard_loudness"] - crop["loudness"]).numpy()

    same = heard(3, 1, 5)
    assert np.array_equal(heard(3, 1, 5), same)
    for other in (heard(4, 1, 5), heard(3, 2, 5), heard(3, 1, 6)):
        assert not np.allclose(other, same, atol=0.01)


def test_what_is_held_out_is_never_disturbed(spans, jittery):
    assert set(CropDataset(spans, jittery)[0]) == {"f0", "loudness", "audio"}


def test_a_training_step_lets_the_decoder_hear_it(spans, jittery, small_config):
    crop = {name: values[None] for name, values in CropDataset(spans, jittery, seed=3)[5].items()}
    plain = {name: crop[name] for name in ("f0", "loudness", "audio")}
    true = {**plain, "heard_f0": crop["f0"], "heard_loudness": crop["loudness"]}

    def loss(batch):
        torch.manual_seed(0)
        model = build_model(small_config, "trumpet")
        optimizer, noise = torch.optim.SGD(model.parameters(), lr=0.0), torch.Generator().manual_seed(0)
        return train_step(model, build_loss(small_config), optimizer, batch, 3.0, noise)["total_loss"].item()

    assert loss(plain) == loss(true) != loss(crop)
