"""playing/blend.py: interpolation of two instruments."""

import dataclasses

import numpy as np
import pytest
import torch

import transfer
from checkpoint import load_model
from playing.blend import BlendedModel
from playing.offline_transfer import BlockPlayer


@pytest.fixture
def models(write_checkpoint):
    """Two untrained models of different weights."""
    first = load_model(write_checkpoint("trumpet.pth"))
    second = load_model(write_checkpoint("oboe.pth", instrument="oboe"))
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return first, second


def controls_of(model):
    curves = torch.full((1, 20, 1), 300.0), torch.linspace(-40, -20, 20)[None, :, None]
    return BlockPlayer(model).play_block(*curves, torch.ones(1, 20, 1), is_last=True)[1]


def test_controls_are_interpolated(models):
    one, two, mixed = (controls_of(model) for model in (*models, BlendedModel(*models, 0.25)))
    for a, b, c in zip(one, two, mixed):
        assert not torch.allclose(a, b) and torch.allclose(c, 0.75 * a + 0.25 * b, atol=1e-6)


def test_shares_0_and_1_are_the_instruments(models, song):
    blended = transfer.transfer(song, 16000, BlendedModel(*models, 0.0))
    assert np.array_equal(blended.audio, transfer.transfer(song, 16000, models[0]).audio)
    assert blended.report["instrument"] == "trumpet"


def test_incompatible_models_are_refused(models, write_checkpoint, small_config, capsys):
    with pytest.raises(ValueError, match="share of a blended instrument"):
        BlendedModel(*models, 1.5)
    fewer = dataclasses.replace(small_config, model=dataclasses.replace(small_config.model, n_harmonics=12))
    with pytest.raises(ValueError, match="cannot be blended"):
        BlendedModel(models[0], load_model(write_checkpoint("few.pth", config=fewer)), 0.5)
    with pytest.raises(SystemExit):
        transfer.parse_args(["--input", "a.wav", "--output", "b.wav", "--blend", "violin"])
    assert "violin:0.4" in capsys.readouterr().err
