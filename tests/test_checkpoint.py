"""checkpoint.py: a checkpoint describes its model completely and survives saving; files in the checkpoint folder."""

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

KEYS = "format_version config preset instrument epoch step position_in_epoch model optimizer schedule rng average"
KEYS = {*KEYS.split(), "wandb_id", "run_name", "statistics", "metrics"}


def test_keys_of_a_checkpoint(config):
    content = make_checkpoint(config, "trumpet", step=3)
    assert set(content) == KEYS and content["average"] is None
    assert (content["format_version"], content["preset"], content["step"]) == (FORMAT_VERSION, "tiny", 3)
    with pytest.raises(AssertionError, match="colour"):
        make_checkpoint(config, "trumpet", colour="blue")


def test_a_checkpoint_and_its_sound_survive_saving_and_loading(write_checkpoint, small_config):
    torch.manual_seed(0)
    model, metrics = build_model(small_config, "trumpet").eval(), {"best_val_loss": float("inf"), "train_losses": [1.5]}
    path = write_checkpoint(metrics=metrics, wandb_id="x1", model=model.state_dict())
    content = read_checkpoint(path)
    assert set(content) == KEYS and content["config"] == config_to_dict(small_config)
    assert (content["epoch"], content["step"], content["wandb_id"], content["metrics"]) == (1, 2, "x1", metrics)
    assert [found.name for found in path.parent.iterdir()] == ["model.pth"]  # no temporary file is left
    f0, loudness = torch.full((1, 20, 1), 330.0), torch.full((1, 20, 1), -20.0)
    sounds = [each(f0, loudness, torch.Generator().manual_seed(1)) for each in (model, load_model(path))]
    assert torch.equal(*sounds)


@pytest.mark.parametrize(
    ("instrument", "kind", "preset"),
    [("guitar", NeuralGuitar, "tiny"), ("trumpet", Vox2Trumpet, "standard"), ("trumpet", Vox2Trumpet, "transformer")],
)
def test_a_loaded_model_knows_its_instrument_and_preset(write_checkpoint, instrument, kind, preset):
    config = load_config(preset=preset)
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=16))
    model = load_model(str(write_checkpoint(instrument=instrument, config=small)), "cpu")
    assert type(model) is kind and not model.training and model.instrument == instrument
    assert len(model.statistics["f0_quantiles"]) == len(model.statistics["loudness_quantiles"]) == 101
    assert model.settings.preset == preset and architecture_differences(model.settings, small) == []


@pytest.mark.parametrize(
    ("now", "changes"), [((0, 10), {}), ((1, 10), {"seed": "0 -> 1"}), ((0, 12), {"crops an epoch": "10 -> 12"})]
)
def test_changes_that_alter_the_order_of_crops(now, changes):
    assert crop_order_changes({"rng": {"seed": 0}, "schedule": {"n_crops": 10}}, *now) == changes
    assert crop_order_changes({"rng": {}, "schedule": {}}, *now) == {}  # of an earlier version


def test_the_newest_epochs_and_files_with_other_names_are_kept(tmp_path):
    others = {"latest.pth", "model_epoch_best.pth", "model_epoch_2_backup.pth"}
    for name in (*others, *(f"model_epoch_{epoch}.pth" for epoch in (1, 2, 9, 10, 100))):
        (tmp_path / name).touch()
    for count in (2, 5):
        delete_old_epochs(tmp_path, count)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"model_epoch_10.pth", "model_epoch_100.pth", *others}


def test_a_shipped_model_is_found_or_the_others_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "PRETRAINED_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"'oboe'.*none.*--checkpoint"):
        pretrained_path("oboe")
    for name in ("trumpet.pth", "guitar.pth", "trumpet.md"):
        (tmp_path / name).touch()
    assert pretrained_path("trumpet") == tmp_path / "trumpet.pth"
    with pytest.raises(ValueError, match=r"'oboe'.*guitar, trumpet\)"):
        pretrained_path("oboe")


def test_weights_that_are_not_finite_are_refused(write_checkpoint, small_config):
    weights = build_model(small_config, "trumpet").state_dict()
    weights["log_gain"] = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        load_model(write_checkpoint(model=weights))
