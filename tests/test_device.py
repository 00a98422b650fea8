"""No tensor is created on the CPU that belongs on the model's device, shown without a GPU on torch's device "meta".

This device only computes shapes and, as a GPU does, refuses CPU tensors; code that checks ``device.type`` takes the
path of a GPU. Other code for GPUs is tested on the CPU as far as possible.
"""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from checkpoint import read_checkpoint
from config import DEFAULT_CONFIG_PATH, load_config
from model import Vox2Trumpet
from playing.offline_transfer import BlockPlayer
from recordings.crops import SINGLE_PROCESS, ProcessRanks
from sound.crepe import load_crepe
from test_train import arguments, change, make_recording
from training.trainer import TrainingStopped, build_loss, train_step
from training.training_state import WeightAverage

META = torch.device("meta")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Disable autocast, which does not exist on "meta"."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture(params=["solo", "standard", "transformer", "reverb"])
def config(request):
    if request.param != "reverb":
        return load_config(preset=request.param)
    tiny = load_config()
    return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, reverb_seconds=0.1))


@pytest.fixture
def model(config):
    return Vox2Trumpet(config.model, config.audio).to(META)


def plain_adam(model):
    """Return an optimizer that is not fused, since fused ones support only GPUs and CPUs."""
    return torch.optim.Adam(model.parameters())


def make_batch(n_frames):
    shapes = {"f0": (2, n_frames, 1), "loudness": (2, n_frames, 1), "audio": (2, n_frames * 160)}
    return {name: torch.ones(shape, device=META) for name, shape in shapes.items()}


def test_a_training_step_stays_on_the_device(config, model):
    step = train_step(model, build_loss(config).to(META), plain_adam(model), make_batch(100), 1.0)
    assert {values.device for values in step.values()} == {META}
    assert {weight.grad.device for weight in model.parameters()} == {META}
    WeightAverage(model, 0.9).update(model, 1)


def test_inference_stays_on_the_device(model):
    with torch.inference_mode():
        audio = model.eval()(*list(make_batch(50).values())[:2])
    assert (audio.device, audio.shape) == (META, (2, 8000))


def test_playing_in_blocks_stays_on_the_device(model):
    player, n_played = BlockPlayer(model.eval()), 0
    for n_frames in (3, 1, 1, 10):
        f0, loudness = (curve[:1] for curve in list(make_batch(n_frames).values())[:2])
        sound, _ = player.play_block(f0, loudness, gate=loudness)
        assert sound.audio.device == META
        n_played += sound.audio.shape[1]
    assert n_played == (15 - player.latency) * 160


def test_crepe_stays_on_the_device():
    """The frames, and which of them are not silent, come from the CPU, so that it need not wait for a GPU."""
    frames = torch.from_numpy(np.random.default_rng(0).random(8000, np.float32)).unfold(0, 1024, 160)
    sounding = torch.ones(len(frames), dtype=torch.bool)
    for n_silent in (0, 3):
        sounding[:n_silent] = False
        with torch.inference_mode():
            activation = load_crepe("tiny", "meta")(frames, sounding)
        assert (activation.device, activation.shape) == (META, (len(frames) - n_silent, 360))


def test_reading_losses_one_step_late_does_not_change_the_training(tmp_path, caplog):
    """As on a GPU; a stop request then takes effect one step later."""
    caplog.set_level("INFO")
    for number in range(6):
        make_recording(tmp_path / "data" / f"{number}.pt", 2.0, 200.0 + 50 * number)
    config = Path(shutil.copy(DEFAULT_CONFIG_PATH, tmp_path))
    change(config, "model", hidden_size=32)
    flags = ["--epochs", 2, "--batch_size", 4]
    plain, late = (arguments(tmp_path / "data", config, tmp_path / name, *flags) for name in ("plain", "late"))
    assert train.main(plain) == 0
    for is_stopped in (True, False):
        trainer = train.build_trainer(train.parse_args(late))
        trainer._max_pending, trainer.stop_requested = 1, is_stopped
        with pytest.raises(TrainingStopped) if is_stopped else contextlib.nullcontext():
            trainer.run(2)
        assert trainer.progress.step == (2 if is_stopped else 6)
    one, other = (read_checkpoint(tmp_path / name / "latest.pth") for name in ("plain", "late"))
    losses = [line for line in caplog.messages if "train_loss" in line]
    assert len(losses) == 4 and losses[:2] == losses[2:]
    assert all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, last, one_too_many = (ProcessRanks(number, number, 3) for number in range(3))
    assert (first.device_name("auto"), last.device_name("cuda"), one_too_many.device_name("cpu")) == (
        "cuda:0",
        "cuda:1",
        "cpu",
    )
    assert [SINGLE_PROCESS.device_name(name) for name in ("auto", "cuda:1")] == ["auto", "cuda:1"]
    with pytest.raises(ValueError, match=r"process 3 .* 2"):
        one_too_many.device_name("auto")


def test_too_little_gpu_memory_is_reported_in_one_message(monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(train, "build_trainer", fail)
    assert train.main(["--data_dir", ".", "--device", "cpu"]) == 1
    assert [record.getMessage().count("Tried to allocate 2.00 GiB.") for record in caplog.records] == [1]
