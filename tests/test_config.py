"""The configuration is complete and self-consistent; whatever is mistyped is an error that lists what exists."""

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
    """The shipped config.json, to be spoilt."""
    return json.loads(DEFAULT_CONFIG_PATH.read_text())


@pytest.fixture
def load_spoilt(tmp_path):
    def load(content, preset="tiny"):
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_config(path, preset)

    return load


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_what_other_editors_save_is_read(tmp_path, encoding):
    (tmp_path / "config.json").write_text(DEFAULT_CONFIG_PATH.read_text(encoding="utf-8"), encoding)
    assert load_config(tmp_path / "config.json") == load_config()


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "own.json").write_bytes('{"base": "tïny"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"own\.json is not text in UTF-8"):
        load_config(tmp_path / "own.json")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_with_the_four_resolutions(preset):
    config = load_config(preset=preset)
    assert config.preset == preset
    scale = config.audio.sample_rate // 16000
    assert config.loss.fft_sizes == tuple(scale * size for size in (512, 1024, 2048, 4096))
    assert config.loss.hop_sizes == tuple(size // 4 for size in config.loss.fft_sizes)
    assert config.loss.win_lengths == config.loss.fft_sizes
    assert config.audio.frame_rate == 100 and config.audio.feature_rate == 16000
    assert len(config.loss.fft_sizes) == len(config.loss.hop_sizes) == len(config.loss.win_lengths)


def test_presets_are_what_they_are_named_for(content):
    assert set(content["presets"]) == set(PRESETS)
    models = {name: load_config(preset=name).model for name in PRESETS}
    shapes = {name: (m.decoder, m.hidden_size, m.num_layers, m.dropout) for name, m in models.items()}
    assert shapes["tiny"] == ("gru", 512, 1, 0.0)
    assert shapes["standard"] == ("gru", 1024, 1, 0.0)
    assert shapes["deep"] == ("gru", 1024, 3, 0.1)
    assert models["transformer"].decoder == "transformer"
    assert [models[name].n_noise_bands for name in PRESETS] == [65, 65, 129, 129, 65, 65]
    assert [models[name].amplitude for name in PRESETS] == ["gain", "weighted", "weighted", "gain", "gain", "gain"]


def test_a_preset_changes_only_what_it_names():
    tiny, standard = load_config(preset="tiny"), load_config(preset="standard")
    differences = ["model.hidden_size 512 -> 1024", "model.n_noise_bands 65 -> 129"]
    assert architecture_differences(tiny, standard) == differences
    assert (tiny.audio, tiny.features, tiny.loss, tiny.train) == (
        standard.audio,
        standard.features,
        standard.loss,
        standard.train,
    )


def test_configuration_is_frozen(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.hidden_size = 1


@pytest.mark.parametrize("preset", PRESETS)
def test_dict_round_trip_through_json(preset):
    config = load_config(preset=preset)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


# --- mistakes in config.json --------------------------------------------------------------------


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'huge'.*tiny, solo, wide, standard, deep, transformer"):
        load_config(preset="huge")


def test_missing_file_says_which(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["", "{", "{'single': 'quotes'}"])
def test_invalid_json_is_named(load_spoilt, text):
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_spoilt(text)


def test_unknown_top_level_section(load_spoilt, content):
    with pytest.raises(ValueError, match="unknown key extras; known are base, presets, instruments"):
        load_spoilt({**content, "extras": {}})


@pytest.mark.parametrize("section", ["base", "presets", "instruments"])
def test_missing_top_level_section(load_spoilt, content, section):
    del content[section]
    with pytest.raises(ValueError, match=f"lacks {section}"):
        load_spoilt(content)


def test_unknown_section_in_a_preset(load_spoilt, content):
    content["presets"]["tiny"] = {"modle": {"hidden_size": 8}}
    with pytest.raises(ValueError, match="preset 'tiny' has unknown section modle; known are audio, features, model"):
        load_spoilt(content)


def test_unknown_key_in_a_preset(load_spoilt, content):
    content["presets"]["tiny"] = {"model": {"hiden_size": 8}}
    with pytest.raises(ValueError, match=r"'model' of preset 'tiny' has unknown key hiden_size; .*hidden_size"):
        load_spoilt(content)


def test_unknown_section_in_the_base(load_spoilt, content):
    content["base"]["reverb"] = {}
    with pytest.raises(ValueError, match=r"unknown key reverb; known are .*audio"):
        load_spoilt(content)


def test_unknown_and_missing_keys_in_the_base(load_spoilt, content):
    content["base"]["train"]["lerning_rate"] = content["base"]["train"]["learning_rate"]
    with pytest.raises(ValueError, match=r"section 'train' has unknown key lerning_rate; known are .*learning_rate"):
        load_spoilt(content)
    del content["base"]["train"]["lerning_rate"], content["base"]["train"]["learning_rate"]
    with pytest.raises(ValueError, match="section 'train' lacks learning_rate"):
        load_spoilt(content)


def test_unknown_key_of_an_instrument(load_spoilt, content):
    content["instruments"]["trumpet"]["licens"] = "CC0"
    with pytest.raises(ValueError, match=r"instruments\.trumpet.* unknown key licens; .*licence"):
        load_spoilt(content)


@pytest.mark.parametrize(
    "place",
    [
        ("base",),
        ("presets",),
        ("instruments",),
        ("base", "model"),
        ("presets", "tiny"),
        ("presets", "standard", "model"),
        ("instruments", "trumpet"),
    ],
)
@pytest.mark.parametrize("value", [None, 5, "text", []], ids=repr)
def test_something_else_where_an_object_belongs(load_spoilt, content, place, value):
    inside = content
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    with pytest.raises(ValueError):
        load_spoilt(content, preset="standard" if "standard" in place else "tiny")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "hidden_size", "512"),
        ("model", "hidden_size", None),
        ("audio", "hop_length", "160"),
        ("loss", "fft_sizes", 512),
        ("train", "learning_rate", "fast"),
        ("loss", "fft_sizes", ["512"]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(load_spoilt, content, section, key, value):
    content["base"][section][key] = value
    with pytest.raises(ValueError, match=key):
        load_spoilt(content)


@pytest.mark.parametrize(
    ("section", "key", "value", "limit"),
    [
        ("train", "batch_size", 0, "over 0"),
        ("train", "phrases_every_epochs", 0, "over 0"),
        ("train", "crop_seconds", float("nan"), "over 0"),
        ("train", "val_fraction", 1.0, "at least 0 and less than 1"),
        ("train", "ema_decay", 1.0, "at least 0 and less than 1"),
        ("train", "ema_decay", -0.1, "at least 0"),
        ("model", "attack_frames", -1, "at least 0"),
        ("model", "reverb_seconds", -1.0, "at least 0"),
    ],
)
def test_a_value_that_means_nothing_is_named(load_spoilt, content, section, key, value, limit):
    content["base"][section][key] = value
    with pytest.raises(ValueError, match=rf"^{key} is {value}, it must be {limit}"):
        load_spoilt(content)


@pytest.mark.parametrize("preset", PRESETS)
def test_options_are_off(preset):
    config = load_config(preset=preset)
    assert config.train.ema_decay == (0.999 if preset == "wide" else 0) and config.model.reverb_seconds == 0
    assert config.model.attack_frames == (3 if preset in ("solo", "wide") else 0)


def test_a_whole_number_may_stand_for_a_fraction(load_spoilt, content):
    content["base"]["model"]["noise_bias"] = -8
    assert load_spoilt(content).model.noise_bias == -8


# --- time ---------------------------------------------------------------------------------------


def test_time_conversions():
    assert TIME.frame_rate == 100
    assert TIME.feature_hop_length == 160
    assert TIME.frames_to_samples(100) == 16000
    assert TIME.seconds_to_frames(1.0) == 100
    assert TIME.seconds_to_frames(0.256) == 26  # the nearest


@pytest.mark.parametrize(("n_samples", "n_frames"), [(0, 0), (1, 1), (159, 1), (160, 1), (161, 2), (16000, 100)])
def test_frames_cover_all_samples(n_samples, n_frames):
    assert TIME.samples_to_frames(n_samples) == n_frames
    assert 0 <= TIME.frames_to_samples(n_frames) - n_samples < TIME.hop_length


@pytest.mark.parametrize(("sample_rate", "hop_length"), [(44100, 441), (48000, 480)])
def test_the_sound_may_have_another_rate_than_the_features(sample_rate, hop_length):
    time = AudioConfig(sample_rate, hop_length, feature_rate=16000)
    assert time.frame_rate == 100
    assert time.feature_hop_length == 160


def test_a_hop_that_is_no_whole_number_of_feature_samples():
    with pytest.raises(ValueError, match=r"hop_length 100 at 44100 Hz is not a whole number .* 16000 Hz"):
        AudioConfig(sample_rate=44100, hop_length=100, feature_rate=16000)


@pytest.mark.parametrize("name", ["sample_rate", "hop_length", "feature_rate"])
@pytest.mark.parametrize("value", [0, -16000])
def test_time_runs_forward(name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(TIME, **{name: value})


# --- instruments --------------------------------------------------------------------------------


def test_unknown_instrument_lists_the_known_ones(config):
    with pytest.raises(ValueError, match=r"unknown instrument 'kazoo'; .*guitar, trumpet, oboe"):
        config.instrument("kazoo")


def test_every_instrument_lies_in_the_range_of_the_pitch_tracker(config):
    for instrument in config.instruments.values():
        assert config.features.f0_min <= instrument.f0_min < instrument.f0_max <= config.features.f0_max
        assert instrument.model in ("NeuralGuitar", "Vox2Trumpet")


@pytest.mark.parametrize(
    ("file_name", "instrument"),
    [
        ("00_BN1-129-Eb_solo_mic.wav", "guitar"),  # GuitarSet
        ("00_BN1-129-Eb_comp_mic.wav", "guitar"),
        ("05_Rock2-142-D_solo_mic.wav", "guitar"),
        ("03_Jazz2-187-F#_solo_mic.wav", "guitar"),
        ("AuSep_2_tpt_08_Spring.wav", "trumpet"),  # URMP
        ("AuSep_1_tpt_16_Surprise.wav", "trumpet"),
        ("AuSep_2_ob_13_Hark.wav", "oboe"),
        ("AuSep_1_sax_20_Pavane.wav", "saxophone"),
        ("AuSep_3_bn_40_Miserere.wav", "bassoon"),
        ("AuSep_4_tbn_30_Fugue.wav", "trombone"),
        ("AuSep_3_hn_32_Fugue.wav", "horn"),
        ("AuSep_5_tba_33_Elise.wav", "tuba"),
        ("AuSep_1_vn_01_Jupiter.wav", "violin"),
        ("AuMix_08_Spring_fl_vn.wav", None),  # the mixture of all players
        ("my_trumpet.wav", None),
        ("solo.wav", None),
    ],
)
def test_instrument_guessed_from_the_data_sets_own_names(config, file_name, instrument):
    assert config.guess_instrument(file_name) == instrument


# --- what a checkpoint brings -------------------------------------------------------------------


def test_adopted_settings_are_the_saved_ones_where_weights_depend_on_them(config, small_config):
    adopted = adopt_settings(config_to_dict(small_config), config)
    assert (adopted.audio, adopted.features, adopted.model) == (
        small_config.audio,
        small_config.features,
        small_config.model,
    )
    assert adopted.train == config.train != small_config.train


def test_a_voice_is_heard_by_todays_crepe_whoever_heard_the_recordings(config):
    saved = config_to_dict(config)
    saved["features"]["crepe_model"] = "full"
    assert adopt_settings(saved, config).features.crepe_model == "tiny"


@pytest.mark.parametrize(
    ("base", "own", "heard_by"),
    [("full", None, "full"), ("tiny", "full", "full"), ("full", "tiny", "tiny"), ("full", ..., "full")],
)
def test_recordings_of_a_trained_instrument_are_heard_by_the_crepe_that_heard_them(config, base, own, heard_by):
    saved = config_to_dict(config)
    saved["features"]["crepe_model"], saved["instruments"]["trumpet"]["crepe_model"] = base, own
    if own is ...:  # of an earlier version
        del saved["instruments"]["trumpet"]["crepe_model"]
    adopted = adopt_instrument(saved, "trumpet", config)
    assert adopted.for_recordings_of("trumpet").features.crepe_model == heard_by
    assert adopted.for_recordings_of("oboe") == dataclasses.replace(config, instruments=adopted.instruments)
    assert adopted.instrument("trumpet").f0_max == config.instrument("trumpet").f0_max


def test_an_instrument_that_only_the_saved_configuration_knows(config):
    saved = config_to_dict(config)
    saved["instruments"]["erhu"] = {**saved["instruments"]["trumpet"], "f0_min": 293.0}
    assert adopt_instrument(saved, "erhu", config).instrument("erhu").f0_min == 293.0
    with pytest.raises(ValueError, match="unknown instrument 'kazoo'"):
        adopt_instrument(saved, "kazoo", config)


def test_a_setting_newer_than_the_saved_ones_keeps_its_current_value(config):
    saved = config_to_dict(config)
    del saved["model"]["initial_gain"]
    assert adopt_settings(saved, config) == config


def test_options_that_were_cut_are_no_hindrance(config):
    saved = config_to_dict(config)
    for section, key in (("loss", "mel_bands"), ("train", "f0_jitter"), ("transfer", "max_glide"), ("inspect", "x")):
        saved[section][key] = 1.0
    assert adopt_settings(saved, config) == config and training_changes(saved, config) == {}


def test_a_saved_setting_that_nobody_knows(config):
    saved = config_to_dict(config)
    saved["model"]["n_reverb_taps"] = 7
    with pytest.raises(ValueError, match="section 'model' has unknown key n_reverb_taps"):
        adopt_settings(saved, config)


def test_differences_name_both_values(config, small_config):
    assert architecture_differences(config, config) == []
    assert architecture_differences(config, small_config)[0] == "model.hidden_size 512 -> 32"


# --- device -------------------------------------------------------------------------------------


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(config_module.torch.cuda, "is_available", lambda: True)
    assert get_device("auto") == torch.device("cuda")
    monkeypatch.setattr(config_module.torch.cuda, "is_available", lambda: False)
    assert get_device("auto") == torch.device("cpu")


def test_a_named_device():
    assert get_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_here_is_one_short_sentence(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here.*try auto or cpu") as caught:
        get_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_the_message_is_no_wall_of_text():
    with pytest.raises(ValueError, match="device 'mps' cannot be used here") as caught:
        get_device("mps")
    assert len(str(caught.value)) < 400  # torch lists 50 backends
