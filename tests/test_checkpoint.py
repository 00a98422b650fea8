"""A checkpoint describes itself, and what is read is what was written."""

import dataclasses

import pytest
import torch

import checkpoint as checkpoint_module
from checkpoint import (
    FORMAT_VERSION,
    crop_order_changes,
    delete_old_epochs,
    load_model,
    make_checkpoint,
    pretrained_path,
    read_checkpoint,
)
from config import architecture_differences, config_to_dict, load_config
from model import NeuralGuitar, Vox2Trumpet, build_model

KEYS = {
    "format_version",
    "config",
    "preset",
    "instrument",
    "epoch",
    "step",
    "position_in_epoch",
    "model",
    "optimizer",
    "schedule",
    "rng",
    "average",
    "wandb_id",
    "run_name",
    "statistics",
    "metrics",
}


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


@pytest.mark.parametrize(
    ("now", "changes"), [((0, 10), {}), ((1, 10), {"seed": "0 -> 1"}), ((0, 12), {"crops an epoch": "10 -> 12"})]
)
def test_what_the_order_of_crops_depends_on(now, changes):
    assert crop_order_changes({"rng": {"seed": 0}, "schedule": {"n_crops": 10}}, *now) == changes
    assert crop_order_changes({"rng": {}, "schedule": {}}, *now) == {}  # of an earlier version, which did not say


# --- the folder ---------------------------------------------------------------------------------


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_keep_newest_counts_by_number(tmp_path):
    for epoch in (1, 2, 9, 10, 100):
        (tmp_path / f"model_epoch_{epoch}.pth").touch()
    (tmp_path / "latest.pth").touch()
    delete_old_epochs(tmp_path, 2)
    assert names(tmp_path) == {"model_epoch_10.pth", "model_epoch_100.pth", "latest.pth"}
    delete_old_epochs(tmp_path, 5)
    assert len(names(tmp_path)) == 3


def test_a_file_that_the_user_named_is_left_alone(tmp_path):
    for name in ("model_epoch_1.pth", "model_epoch_2.pth", "model_epoch_best.pth", "model_epoch_2_backup.pth"):
        (tmp_path / name).touch()
    delete_old_epochs(tmp_path, 1)
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
