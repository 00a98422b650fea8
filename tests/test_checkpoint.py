"""A checkpoint describes itself, survives a failing disk, and nothing in a foreign file is run."""

import dataclasses
import errno
import pickle
import random

import numpy as np
import pytest
import torch
from conftest import damaged_pickles, zipped

import checkpoint as checkpoint_module
import files
from checkpoint import (
    FORMAT_VERSION,
    keep_newest,
    load_model,
    load_weights,
    make_checkpoint,
    order_changes,
    pretrained_path,
    random_state,
    read_checkpoint,
    restore_random_state,
    save_checkpoint,
    settings_of,
)
from config import architecture_differences, config_to_dict, load_config
from model import NeuralGuitar, Vox2Trumpet, build_model

KEYS = {
    "format_version", "config", "preset", "instrument", "epoch", "step", "position_in_epoch", "model", "optimizer",
    "schedule", "rng", "average", "wandb_id", "run_name", "statistics", "metrics",
}


@pytest.fixture
def rewrite(write_checkpoint):
    """Return a function that writes a checkpoint after a change to its dict, and returns its path."""

    def write(change):
        path = write_checkpoint()
        content = torch.load(path, weights_only=True)
        torch.save(change(content) or content, path)
        return path

    return write


# --- round trip ---------------------------------------------------------------------------------


def test_a_checkpoint_has_the_agreed_keys(config):
    content = make_checkpoint(config, "trumpet", step=3)
    assert set(content) == KEYS
    assert (content["format_version"], content["preset"], content["step"]) == (FORMAT_VERSION, "tiny", 3)
    assert content["average"] is None
    with pytest.raises(AssertionError, match="colour"):
        make_checkpoint(config, "trumpet", colour="blue")


def test_round_trip(write_checkpoint, small_config):
    path = write_checkpoint(metrics={"best_val_loss": float("inf"), "train_losses": [1.5]}, wandb_id="x1")
    content = read_checkpoint(path)
    assert set(content) == KEYS
    assert content["config"] == config_to_dict(small_config)
    assert content["metrics"] == {"best_val_loss": float("inf"), "train_losses": [1.5]}
    assert (content["epoch"], content["step"], content["wandb_id"]) == (1, 2, "x1")
    assert [found.name for found in path.parent.iterdir()] == ["model.pth"]  # nothing partial stays


def test_model_sounds_the_same_after_the_round_trip(write_checkpoint, small_config):
    torch.manual_seed(0)
    model = build_model(small_config, "trumpet").eval()
    loaded = load_model(write_checkpoint(model=model.state_dict()))
    f0, loudness = torch.full((1, 20, 1), 330.0), torch.full((1, 20, 1), -20.0)
    sounds = [each(f0, loudness, torch.Generator().manual_seed(1)) for each in (model, loaded)]
    assert torch.equal(*sounds)


@pytest.mark.parametrize(("instrument", "kind"), [("guitar", NeuralGuitar), ("trumpet", Vox2Trumpet)])
def test_loaded_model_is_ready_for_use(write_checkpoint, small_config, instrument, kind):
    model = load_model(str(write_checkpoint(instrument=instrument)), "cpu")
    assert type(model) is kind
    assert not model.training
    assert model.instrument == instrument
    assert len(model.statistics["f0_quantiles"]) == len(model.statistics["loudness_quantiles"]) == 101
    assert architecture_differences(model.settings, small_config) == []


@pytest.mark.parametrize("preset", ["standard", "transformer"])
def test_no_preset_name_is_needed(write_checkpoint, preset):
    config = load_config(preset=preset)
    shrunk = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=16))
    model = load_model(write_checkpoint(config=shrunk))
    assert (model.config, model.settings.preset) == (shrunk.model, preset)


def test_optimizer_state_survives(write_checkpoint, small_config):
    model = build_model(small_config, "trumpet")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.full((1, 5, 1), 300.0), torch.zeros(1, 5, 1)).square().sum().backward()
    optimizer.step()
    saved = read_checkpoint(write_checkpoint(optimizer=optimizer.state_dict()))["optimizer"]
    restored = torch.optim.Adam(build_model(small_config, "trumpet").parameters())
    restored.load_state_dict(saved)
    for before, after in zip(optimizer.state.values(), restored.state.values()):
        assert all(torch.equal(before[name], after[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_random_generators_go_on_where_they_were(write_checkpoint):
    def draw():
        drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
        return [*drawn, np.random.randn(), random.gauss(0, 1)]  # the last two keep a second value for later

    draw()
    path = write_checkpoint(rng=random_state())
    drawn = []
    for _ in range(2):
        restore_random_state(read_checkpoint(path)["rng"])
        drawn.append(draw() + draw())
        draw()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("now", "changes"),
    [((0, 10), {}), ((1, 10), {"seed": "0 -> 1"}), ((0, 12), {"crops an epoch": "10 -> 12"})],
)
def test_what_the_order_of_crops_depends_on(now, changes):
    assert order_changes({"rng": {"seed": 0}, "schedule": {"n_crops": 10}}, *now) == changes
    assert order_changes({"rng": {}, "schedule": {}}, *now) == {}  # of an earlier version, which did not say


def test_folder_is_made(tmp_path, small_config):
    path = tmp_path / "new" / "folder" / "model.pth"
    save_checkpoint(path, make_checkpoint(small_config, "trumpet"))
    assert read_checkpoint(path)["instrument"] == "trumpet"


# --- a failing disk -----------------------------------------------------------------------------


def raise_after_some_bytes(error):
    def save(content, file):
        file.write(b"half a checkpoint")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed writing file data/0")])
def test_full_disk_costs_nothing(write_checkpoint, monkeypatch, small_config, error):
    path = write_checkpoint()
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_module.torch, "save", raise_after_some_bytes(error))
    with pytest.raises(OSError, match=r"model\.pth could not be written \(.*\); what was there is untouched"):
        save_checkpoint(path, make_checkpoint(small_config, "trumpet"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_that_fails_at_the_last_moment(write_checkpoint, monkeypatch, small_config, call):
    path = write_checkpoint()
    before = path.read_bytes()

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match=r"Input/output error.*what was there is untouched"):
        save_checkpoint(path, make_checkpoint(small_config, "trumpet"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_leaves_nothing_partial(write_checkpoint, monkeypatch, small_config):
    path = write_checkpoint()
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_module.torch, "save", raise_after_some_bytes(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, make_checkpoint(small_config, "trumpet"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# --- foreign and damaged files ------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_checkpoint, load_model])
def test_missing_file_and_folder(tmp_path, read):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
            read(path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(write_checkpoint, keep):
    path = write_checkpoint()
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"model\.pth is damaged or not a checkpoint; nothing in it was run"):
        load_model(path)


@pytest.mark.parametrize("wrap", [bytes, zipped])
@pytest.mark.parametrize("content", damaged_pickles(), ids=lambda content: repr(content)[:12])
def test_any_other_bytes(tmp_path, content, wrap):
    (tmp_path / "bytes.pth").write_bytes(wrap(content))
    with pytest.raises(ValueError, match=r"bytes\.pth is (damaged or )?not a checkpoint"):
        load_model(tmp_path / "bytes.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_does_not_run(rewrite, bomb, legacy):
    trap, target = bomb
    path = rewrite(lambda content: content.update(metrics=trap))
    if legacy:
        path.write_bytes(pickle.dumps({"format_version": 1, "metrics": trap}, protocol=2))
    with pytest.raises(ValueError, match="nothing in it was run"):
        load_model(path)
    assert not target.exists()
    torch.load(rewrite(lambda content: content.update(metrics=trap)), weights_only=False)
    assert target.exists()  # the trap is live: it was the reader that refused


@pytest.mark.parametrize("content", [[1], torch.zeros(3), {"state_dict": {}}], ids=["list", "tensor", "dict"])
def test_checkpoint_of_another_project(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not a checkpoint of this project"):
        load_model(tmp_path / "other.pth")


def test_newer_format_names_both_versions(rewrite):
    path = rewrite(lambda content: content.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(ValueError, match=f"has format {FORMAT_VERSION + 1}, this version reads {FORMAT_VERSION}"):
        read_checkpoint(path)


def test_missing_entry_is_named(rewrite):
    path = rewrite(lambda content: content.pop("statistics") and None)
    with pytest.raises(ValueError, match="statistics"):
        read_checkpoint(path)


def test_weights_of_another_architecture(write_checkpoint, small_config):
    wider = dataclasses.replace(small_config, model=dataclasses.replace(small_config.model, hidden_size=48))
    path = write_checkpoint(model=build_model(wider, "trumpet").state_dict())
    with pytest.raises(ValueError, match=r"model\.pth holds weights of another architecture: size mismatch"):
        load_model(path)


@pytest.mark.parametrize("weights", [None, {}, 5, {"decoder.gru.weight_ih_l0": 3}], ids=repr)
def test_weights_missing_or_of_the_wrong_kind(rewrite, weights):
    with pytest.raises(ValueError, match=r"model\.pth holds weights of another architecture"):
        load_model(rewrite(lambda content: content.update(model=weights)))


def test_one_weight_too_many_is_not_overlooked(write_checkpoint, small_config):
    content = read_checkpoint(write_checkpoint())
    content["model"]["reverb.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="another architecture"):
        load_weights(build_model(small_config, "trumpet"), content["model"], checkpoint_module.PRETRAINED_DIR / "x.pth")


# --- settings of older and newer versions -------------------------------------------------------


def test_old_checkpoint_that_lacks_a_newer_setting(rewrite, config):
    def age(content):
        for name in ("initial_gain", "attack_frames", "reverb_seconds"):
            del content["config"]["model"][name]
        del content["config"]["transfer"]
        content["config"]["train"]["forgotten"] = 1  # no weight depends on it

    model = load_model(rewrite(age))
    assert model.settings.model.initial_gain == config.model.initial_gain
    assert model.settings.transfer == config.transfer
    assert (model.settings.model.attack_frames, model.reverb) == (0, None)


def test_setting_of_a_newer_version_is_refused(rewrite):
    path = rewrite(lambda content: content["config"]["model"].update(n_reverb_taps=7))
    with pytest.raises(ValueError, match=r"model\.pth cannot be used by this version: .*unknown key n_reverb_taps"):
        load_model(path)


def test_unknown_instrument_is_refused(rewrite):
    path = rewrite(lambda content: content.update(instrument="kazoo"))
    with pytest.raises(ValueError, match=r"model\.pth cannot be used by this version: unknown instrument 'kazoo'"):
        load_model(path)


@pytest.mark.parametrize("section", ["audio", "features", "model"])
@pytest.mark.parametrize("value", [None, 5, [], ...], ids=["none", "number", "list", "missing"])
def test_settings_that_are_none(rewrite, section, value):
    def change(content):
        content["config"][section] = value
        if value is ...:
            del content["config"][section]

    path = rewrite(change)
    with pytest.raises(ValueError, match=r"model\.pth"):
        settings_of(read_checkpoint(path), path)


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_size", "32"), ("hidden_size", -1), ("hidden_size", None), ("decoder", "lstm"), ("decoder", ["gru"]),
    ("num_layers", 0), ("n_harmonics", 1.5), ("initial_gain", 0), ("noise_bias", None),
])
def test_settings_that_make_no_model(rewrite, key, value):
    path = rewrite(lambda content: content["config"]["model"].update({key: value}))
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_model(path)


# --- the folder ---------------------------------------------------------------------------------


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_keep_newest_counts_by_number(tmp_path):
    for epoch in (1, 2, 9, 10, 100):
        (tmp_path / f"model_epoch_{epoch}.pth").touch()
    (tmp_path / "latest.pth").touch()
    keep_newest(tmp_path, 2)
    assert names(tmp_path) == {"model_epoch_10.pth", "model_epoch_100.pth", "latest.pth"}
    keep_newest(tmp_path, 5)
    assert len(names(tmp_path)) == 3


def test_a_file_that_the_user_named_is_left_alone(tmp_path):
    for name in ("model_epoch_1.pth", "model_epoch_2.pth", "model_epoch_best.pth", "model_epoch_2_backup.pth"):
        (tmp_path / name).touch()
    keep_newest(tmp_path, 1)
    assert names(tmp_path) == {"model_epoch_2.pth", "model_epoch_best.pth", "model_epoch_2_backup.pth"}


def test_shipped_model_is_found_or_the_others_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "PRETRAINED_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"no model of 'oboe' is shipped \(there is none\).*--checkpoint"):
        pretrained_path("oboe")
    for name in ("trumpet.pth", "guitar.pth", "trumpet.md"):
        (tmp_path / name).touch()
    assert pretrained_path("trumpet") == tmp_path / "trumpet.pth"
    with pytest.raises(ValueError, match=r"no model of 'oboe' is shipped \(there is guitar, trumpet\)"):
        pretrained_path("oboe")


@pytest.mark.parametrize(
    "statistics",
    [
        None,
        {},
        [],
        {"f0_quantiles": [1.0] * 101},
        {"f0_quantiles": [1.0] * 101, "loudness_quantiles": [float("nan")] * 101},
    ],
)
def test_model_without_usable_statistics_is_refused(write_checkpoint, statistics):
    with pytest.raises(ValueError, match="lacks the statistics of its training data"):
        load_model(write_checkpoint(statistics=statistics))


def test_weights_that_are_not_finite_are_refused(write_checkpoint, small_config):
    weights = build_model(small_config, "trumpet").state_dict()
    weights["log_gain"] = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        load_model(write_checkpoint(model=weights))
