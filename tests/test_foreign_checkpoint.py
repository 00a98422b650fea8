"""Checkpoints of unknown origin, damaged ones, those of other versions, and a full disk."""

import dataclasses
import errno
import pickle
import time

import pytest
import torch

import checkpoint as checkpoint_module
from checkpoint import (
    FORMAT_VERSION,
    checkpoint_config,
    load_model,
    load_weights,
    make_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from conftest import damaged_pickles, zipped
from model import build_model


@pytest.fixture
def rewrite(write_checkpoint):
    """Return a function that writes a checkpoint after a change to its dict, and returns its path."""

    def write(change):
        path = write_checkpoint()
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        return path

    return write


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")],
)
def test_a_full_disk_leaves_the_old_checkpoint(write_checkpoint, monkeypatch, small_config, error):
    def save(content, file):
        file.write(b"half a checkpoint")
        raise error

    path = write_checkpoint()
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    with pytest.raises(OSError, match=r"model\.pth"):
        save_checkpoint(path, make_checkpoint(small_config, "trumpet"))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read", [read_checkpoint, load_model])
def test_missing_files_and_folders_are_named(tmp_path, read):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            read(path)


@pytest.mark.parametrize(
    "content", [0.01, 0.999, *damaged_pickles(), [1], torch.zeros(3), {"state_dict": {}}], ids=repr
)
def test_other_and_damaged_files_are_refused(write_checkpoint, content):
    """The first part of a checkpoint, bytes (also in an archive), and objects saved by torch."""
    path = write_checkpoint()
    whole = path.read_bytes()
    if isinstance(content, float):
        files = [whole[: int(content * len(whole))]]
    elif isinstance(content, bytes):
        files = [content, zipped(content)]
    else:
        torch.save(content, path)
        files = [path.read_bytes()]
    for file_content in files:
        path.write_bytes(file_content)
        with pytest.raises(ValueError, match=r"model\.pth"):
            load_model(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(rewrite, bomb, legacy):
    trap, target = bomb
    path = rewrite(lambda content: content.update(metrics=trap))
    if legacy:
        path.write_bytes(pickle.dumps({"format_version": 1, "metrics": trap}, protocol=2))
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_model(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(trap))
    assert target.exists()  # pickle does execute it


def test_weights_of_another_architecture_are_refused(write_checkpoint, rewrite, small_config):
    wider = dataclasses.replace(small_config, model=dataclasses.replace(small_config.model, hidden_size=48))
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_model(write_checkpoint(model=build_model(wider, "trumpet").state_dict()))
    for weights in (None, {}, 5, {"decoder.gru.weight_ih_l0": 3}):
        with pytest.raises(ValueError, match=r"model\.pth"):
            load_model(rewrite(lambda content, weights=weights: content.update(model=weights)))
    content = read_checkpoint(write_checkpoint())
    content["model"]["reverb.weight"] = torch.zeros(3)  # one too many
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_weights(build_model(small_config, "trumpet"), content["model"], checkpoint_module.PRETRAINED_DIR / "x.pth")


def nested(depth):
    """Return a list whose text doubles with each level, although the file holds only a few bytes for it."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        pytest.param("model", "hidden_size", nested(60), id="nested"),
        *(("model", "hidden_size", value) for value in (12_000, -1, "32", None)),
        *(("model", "n_harmonics", value) for value in (3_000_000, 1.5)),
        ("model", "n_noise_bands", 100_000),
        ("model", "reverb_seconds", 50_000.0),
        *(("model", "num_layers", value) for value in (10**6, 0)),
        ("model", "attention_window", 10**6),
        *(("model", "initial_gain", value) for value in (float("inf"), 0)),
        *(("model", "noise_bias", value) for value in (1e308, None)),
        *(("model", "decoder", value) for value in ("lstm", ["gru"])),
        ("model", "n_reverb_taps", 7),  # of a newer version
        ("audio", "feature_rate", 10**9),
        ("audio", "hop_length", 10**5),
        ("features", "loudness_window", 10**9),
    ],
)
def test_invalid_settings_are_refused_in_a_short_message(rewrite, section, key, value):
    path = rewrite(lambda content: content["config"][section].update({key: value}))
    with pytest.raises(ValueError, match=rf"model\.pth .*{key}|model\.pth .*lstm|model\.pth .*gru") as caught:
        load_model(path)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_a_hundred_thousand_unknown_entries_are_refused_quickly_and_in_a_short_message(rewrite):
    unknown = {"\x1b[2J" * 10**5: 1} | {f"key_{number}": 1 for number in range(10**5)}
    start = time.process_time()
    for change in (
        lambda content: content["config"]["model"].update(unknown),
        lambda content: content["model"].update(dict.fromkeys(map(str, range(10**5)))),
    ):
        with pytest.raises(ValueError, match=r"model\.pth") as caught:
            load_model(rewrite(change))
        assert len(str(caught.value)) < 1500 and "\x1b" not in str(caught.value)
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "the preset", "../../x"),
        (None, "epoch", "x"),
        (None, "step", nested(60)),
        (None, "position_in_epoch", -1),
        (None, "epoch", 10**18),
        (None, "run_name", ["x"]),
        (None, "metrics", nested(60)),
        (None, "rng", "x"),
        ("metrics", "first_val_loss", nested(60)),
        ("metrics", "best_val_loss", "x"),
        ("rng", "seed", torch.ones(3)),
        ("schedule", "boundary", 5),
        ("schedule", "phrases", [["x"]]),
        ("schedule", "phrases", [None]),
        ("schedule", "n_crops", float("nan")),
    ],
)
def test_entries_of_the_wrong_type_are_refused(rewrite, part, key, value):
    path = rewrite(lambda content: content.update({part: {key: value}} if part else {key.split()[-1]: value}))
    with pytest.raises(ValueError, match=rf"model\.pth: {key} is .{{,200}}$"):
        read_checkpoint(path)


@pytest.mark.parametrize("section", ["audio", "features", "model"])
@pytest.mark.parametrize("value", [None, 5, [], ...])
def test_invalid_sections_are_refused(rewrite, section, value):
    path = rewrite(lambda content: content["config"].update({section: value}))
    if value is ...:
        path = rewrite(lambda content: content["config"].pop(section))
    with pytest.raises(ValueError, match=r"model\.pth"):
        checkpoint_config(read_checkpoint(path), path)


def test_a_large_model_is_refused_before_it_takes_memory(rewrite, monkeypatch):
    devices, build = [], checkpoint_module.build_model

    def note_device(*args):
        model = build(*args)
        devices.append(model.log_gain.device.type)
        return model

    monkeypatch.setattr(checkpoint_module, "build_model", note_device)
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_model(rewrite(lambda content: content["config"]["model"].update(hidden_size=4096, num_layers=16)))
    assert devices == ["meta"]


@pytest.mark.parametrize(
    "statistics",
    [
        *({name: [value] * 101} for name in ("f0_quantiles", "loudness_quantiles") for value in (1e308, -1e308)),
        {"loudness_quantiles": [float("nan")] * 101},
        {"loudness_quantiles": None},
        *({"bandwidth": value} for value in (0.0, float("nan"), "wide", 16000)),
    ],
)
def test_invalid_statistics_are_refused(rewrite, statistics):
    with pytest.raises(ValueError, match=r"model\.pth .*(statistics|bandwidth)"):
        load_model(rewrite(lambda content: content["statistics"].update(statistics)))
    for nothing in (None, {}, []):
        with pytest.raises(ValueError, match=r"model\.pth .*statistics"):
            load_model(rewrite(lambda content, nothing=nothing: content.update(statistics=nothing)))


@pytest.mark.parametrize("name", ["/../../x", "Trumpet", "", "x" * 41, "a\nb", 5, nested(9), "kazoo"])
def test_invalid_instruments_are_refused(rewrite, name):
    """Names that are not [a-z0-9_-]{1,40}, and an instrument whose class of model does not exist."""

    def rename(content):
        instruments = content["config"]["instruments"]
        instruments[name if isinstance(name, str) else "x"] = {
            **instruments["trumpet"],
            **({"model": "Kazoo"} if name == "kazoo" else {}),
        }
        content["instrument"] = name

    with pytest.raises(ValueError, match=r"model\.pth.{,250}$"):
        load_model(rewrite(rename))


@pytest.mark.parametrize("crepe", [nested(60), 5])
def test_an_invalid_crepe_model_is_refused(rewrite, crepe):
    path = rewrite(lambda content: content["config"]["instruments"]["trumpet"].update(crepe_model=crepe))
    with pytest.raises(ValueError, match=r"model\.pth .*crepe_model is .{,200}$"):
        load_model(path)


def test_entries_of_other_versions(rewrite, config):
    """A newer format, a missing entry and an unknown instrument are refused; newer settings get their defaults."""
    for change, named in (
        (lambda content: content.update(format_version=FORMAT_VERSION + 1), f"{FORMAT_VERSION + 1}.*{FORMAT_VERSION}"),
        (lambda content: content.pop("statistics"), "statistics"),
        (lambda content: content.update(instrument="kazoo"), "kazoo"),
    ):
        with pytest.raises(ValueError, match=named):
            load_model(rewrite(change))

    def age(content):
        for name in ("initial_gain", "attack_frames", "reverb_seconds"):
            del content["config"]["model"][name]
        del content["config"]["transfer"]
        content["config"]["train"]["removed"] = 1  # no weight depends on it

    model = load_model(rewrite(age))
    assert model.settings.model.initial_gain == config.model.initial_gain
    assert model.settings.transfer == config.transfer
    assert (model.settings.model.attack_frames, model.reverb) == (0, None)
