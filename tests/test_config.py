"""config.py: presets, mistakes in config.json, time conversions, instruments, and the settings of a checkpoint."""

import dataclasses
import json

import pytest
import torch

import config as config_module
from config import (
    DEFAULT_CONFIG_PATH,
    AudioConfig,
    adopt_instrument,
    adopt_settings,
    architecture_differences,
    config_from_dict,
    config_to_dict,
    get_device,
    load_config,
    training_changes,
)

PRESETS = ("tiny", "solo", "wide", "standard", "deep", "transformer")
TIME = AudioConfig(sample_rate=16000, hop_length=160, feature_rate=16000)


@pytest.fixture
def content():
    """The content of the shipped config.json."""
    return json.loads(DEFAULT_CONFIG_PATH.read_text())


@pytest.fixture
def load_content(tmp_path):
    def load(content, preset="tiny"):
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_config(path, preset)

    return load


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings_of_other_editors_are_read(tmp_path, encoding):
    (tmp_path / "config.json").write_text(DEFAULT_CONFIG_PATH.read_text(encoding="utf-8"), encoding)
    assert load_config(tmp_path / "config.json") == load_config()


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_of_the_presets(preset, content):
    config = load_config(preset=preset)
    assert config.preset == preset and set(content["presets"]) == set(PRESETS)
    assert config.model.dropout == (0.1 if preset in ("deep", "transformer") else 0)
    assert config.model.amplitude == ("weighted" if preset in ("solo", "wide") else "gain")
    scale = config.audio.sample_rate // 16000
    assert config.loss.fft_sizes == tuple(scale * size for size in (512, 1024, 2048, 4096))
    assert config.loss.hop_sizes == tuple(size // 4 for size in config.loss.fft_sizes)
    assert config.loss.win_lengths == config.loss.fft_sizes
    assert config.audio.frame_rate == 100 and config.audio.feature_rate == 16000
    assert config.train.ema_decay == (0.999 if preset == "wide" else 0) and config.model.reverb_seconds == 0
    assert config.model.attack_frames == (3 if preset in ("solo", "wide") else 0)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_a_preset_changes_only_its_own_settings():
    tiny, standard = load_config(preset="tiny"), load_config(preset="standard")
    differences = ["model.hidden_size 512 -> 1024", "model.n_noise_bands 65 -> 129"]
    assert architecture_differences(tiny, standard) == differences and architecture_differences(tiny, tiny) == []
    assert dataclasses.replace(standard, preset="tiny", model=tiny.model) == tiny


def put(*place, value):
    """Return a function that sets a value in a configuration; ... removes it."""

    def change(content):
        for name in place[:-1]:
            content = content[name]
        content[place[-1]] = value
        if value is ...:
            del content[place[-1]]

    return change


SECTIONS = ("base", "presets", "instruments", "base model", "presets tiny", "instruments trumpet")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("extras", value={}), "extras.*base, presets, instruments"),
        (put("base", value=...), "base"),
        (put("instruments", value=...), "instruments"),
        (put("presets", "tiny", value={"modle": {"hidden_size": 8}}), "modle.*audio, features, model"),
        (put("presets", "tiny", value={"model": {"hiden_size": 8}}), r"\.json: .*hiden_size.*hidden_size"),
        (put("base", "reverb", value={}), "reverb.*audio"),
        (put("base", "train", "lerning_rate", value=0.1), "lerning_rate.*learning_rate"),
        (put("base", "train", "learning_rate", value=...), r"\.json: .*learning_rate"),
        (put("instruments", "trumpet", "licens", value="CC0"), "licens.*licence"),
        (put("base", "model", "hidden_size", value="512"), "hidden_size"),
        (put("base", "audio", "hop_length", value=None), "hop_length"),
        *((put("base", "loss", "fft_sizes", value=value), "fft_sizes") for value in (512, ["512"])),
        *(
            (put("base", section, name, value=value), f"{name} is {value}")
            for section, name, value in (
                *(("train", name, 0) for name in ("batch_size", "phrases_every_epochs")),
                *(("train", "ema_decay", value) for value in (1.0, -0.1)),
                *(("train", name, value) for name, value in (("crop_seconds", float("nan")), ("val_fraction", 1.0))),
                *(("model", name, value) for name, value in (("attack_frames", -1), ("reverb_seconds", -1.0))),
            )
        ),
        *((put(*place.split(), value=value), None) for place in SECTIONS for value in (None, 5, [])),
    ],
)
def test_mistakes_are_named_with_the_valid_names(load_content, content, change, named):
    change(content)
    with pytest.raises(ValueError, match=named):
        load_content(content)


def test_invalid_json_unknown_presets_and_missing_files_are_named(tmp_path, load_content, content):
    for text in ("", "{", "{'single': 'quotes'}"):
        with pytest.raises(ValueError, match=r"config\.json"):
            load_content(text)
    content["base"]["model"]["noise_bias"] = -8
    assert load_content(content).model.noise_bias == -8  # an integer may stand for a float
    with pytest.raises(ValueError, match=r"'huge'.*tiny, solo, wide, standard, deep, transformer"):
        load_config(preset="huge")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")


def test_time_conversions():
    assert (TIME.frame_rate, TIME.feature_hop_length, TIME.frames_to_samples(100)) == (100, 160, 16000)
    assert [TIME.seconds_to_frames(seconds) for seconds in (1.0, 0.256)] == [100, 26]  # the nearest
    assert [TIME.samples_to_frames(n) for n in (0, 1, 159, 160, 161, 16000)] == [0, 1, 1, 1, 2, 100]
    other_rate = AudioConfig(44100, 441, feature_rate=16000)
    assert (other_rate.frame_rate, other_rate.feature_hop_length) == (100, 160)


@pytest.mark.parametrize(
    "changes", [{"sample_rate": 0}, {"hop_length": -1}, {"feature_rate": 0}, {"hop_length": 100, "sample_rate": 44100}]
)
def test_impossible_rates_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(TIME, **changes)


def test_instrument_ranges_are_within_that_of_the_pitch_tracker(config):
    for instrument in config.instruments.values():
        assert config.features.f0_min <= instrument.f0_min < instrument.f0_max <= config.features.f0_max
        assert instrument.model in ("NeuralGuitar", "Vox2Trumpet")


@pytest.mark.parametrize(
    ("file_name", "instrument"),
    [
        ("00_BN1-129-Eb_solo_mic.wav", "guitar"),  # GuitarSet
        ("03_Jazz2-187-F#_solo_mic.wav", "guitar"),
        ("AuSep_2_tpt_08_Spring.wav", "trumpet"),  # URMP
        ("AuSep_2_ob_13_Hark.wav", "oboe"),
        ("AuSep_1_sax_20_Pavane.wav", "saxophone"),
        ("AuSep_3_bn_40_Miserere.wav", "bassoon"),
        ("AuSep_1_vn_01_Jupiter.wav", "violin"),
        ("AuMix_08_Spring_fl_vn.wav", None),  # the mixture of all players
        ("my_trumpet.wav", None),
    ],
)
def test_instruments_are_recognised_from_file_names_of_data_sets(config, file_name, instrument):
    assert config.guess_instrument(file_name) == instrument


def test_adopted_settings_are_the_saved_ones_where_weights_depend_on_them(config, small_config):
    adopted = adopt_settings(config_to_dict(small_config), config)
    assert (adopted.audio, adopted.features, adopted.model) == (
        small_config.audio,
        small_config.features,
        small_config.model,
    )
    assert adopted.train == config.train != small_config.train


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [("full", None, "full"), ("tiny", "full", "full"), ("full", "tiny", "tiny"), ("full", ..., "full")],
)
def test_recordings_keep_the_crepe_model_of_the_training_and_voices_do_not(config, base, own, expected):
    saved = config_to_dict(config)
    saved["features"]["crepe_model"], saved["instruments"]["trumpet"]["crepe_model"] = base, own
    if own is ...:  # of an earlier version
        del saved["instruments"]["trumpet"]["crepe_model"]
    adopted = adopt_instrument(saved, "trumpet", config)
    assert adopted.for_recordings_of("trumpet").features.crepe_model == expected
    assert adopt_settings(saved, config).features.crepe_model == "tiny"
    assert adopted.for_recordings_of("oboe") == dataclasses.replace(config, instruments=adopted.instruments)
    assert adopted.instrument("trumpet").f0_max == config.instrument("trumpet").f0_max


def test_instruments_of_the_saved_configuration_are_adopted(config):
    saved = config_to_dict(config)
    saved["instruments"]["erhu"] = {**saved["instruments"]["trumpet"], "f0_min": 293.0}
    assert adopt_instrument(saved, "erhu", config).instrument("erhu").f0_min == 293.0
    with pytest.raises(ValueError, match="unknown instrument 'kazoo'"):
        adopt_instrument(saved, "kazoo", config)


def test_missing_and_removed_settings_are_accepted_and_unknown_model_settings_refused(config):
    saved = config_to_dict(config)
    del saved["model"]["initial_gain"]  # keeps the current value
    for section, key in (("loss", "mel_bands"), ("train", "f0_jitter"), ("transfer", "max_glide"), ("inspect", "x")):
        saved[section][key] = 1.0
    assert adopt_settings(saved, config) == config and training_changes(saved, config) == {}
    saved["model"]["n_reverb_taps"] = 7
    with pytest.raises(ValueError, match=r"'model'.*n_reverb_taps"):
        adopt_settings(saved, config)


def test_auto_selects_a_gpu_if_there_is_one(monkeypatch):
    for is_there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(config_module.torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert get_device("auto") == torch.device(name)
    assert get_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x"])
def test_unavailable_devices_are_refused_in_one_short_sentence(name):
    with pytest.raises(ValueError, match=f"'{name}'") as caught:
        get_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400  # torch lists 50 backends
