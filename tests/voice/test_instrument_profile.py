"""voice/instrument_profile.py: the values of a trained model, and nothing of an untrained one."""

import pytest

from checkpoint import load_model
from config import load_config
from model import build_model
from voice.instrument_profile import InstrumentProfile


def test_a_profile_holds_what_the_checkpoint_says(write_checkpoint) -> None:
    model = load_model(write_checkpoint())
    profile = InstrumentProfile.of(model)
    instrument = model.settings.instrument(model.instrument)
    assert (profile.name, profile.config) == (model.instrument, model.settings)
    assert (profile.f0_min, profile.f0_max) == (instrument.f0_min, instrument.f0_max)
    assert list(profile.f0_quantiles) == model.statistics["f0_quantiles"]
    assert list(profile.loudness_quantiles) == model.statistics["loudness_quantiles"]
    assert profile.median_f0 == model.statistics["f0_quantiles"][50]
    assert profile == InstrumentProfile.from_statistics(model.instrument, model.settings, model.statistics)


def test_an_untrained_model_and_an_unknown_instrument_have_none(config, write_checkpoint) -> None:
    with pytest.raises(ValueError, match="not trained"):
        InstrumentProfile.of(build_model(config, "trumpet"))
    with pytest.raises(ValueError, match="kazoo"):
        InstrumentProfile.from_statistics("kazoo", load_config(), load_model(write_checkpoint()).statistics)
