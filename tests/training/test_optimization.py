"""A training step against plain gradient descent, and the average of the weights against its definition."""

import json

import pytest
import torch
from torch import nn

import export_checkpoint
import train
from checkpoint import load_model, read_checkpoint
from config import DEFAULT_CONFIG_PATH
from model import build_model
from test_train import arguments, change, make_recording
from training.trainer import build_loss, train_step
from training.training_state import WeightAverage


@pytest.mark.parametrize(("weight", "share"), [(1.0, None), (0.25, None), (1.0, 0.1), (0.25, 0.1)])
def test_a_step_follows_the_clipped_gradient_of_the_weighted_loss(small_config, weight, share):
    """With plain SGD of rate one a step is the gradient: of the weighted loss, clipped to a norm."""
    audio = 0.1 * torch.randn(2, 3200, generator=torch.Generator().manual_seed(1))
    batch = {"f0": torch.full((2, 20, 1), 300.0), "loudness": torch.full((2, 20, 1), -20.0), "audio": audio}

    def step(max_grad_norm, weight):
        torch.manual_seed(0)
        model = build_model(small_config, "trumpet")
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer, noise = torch.optim.SGD(model.parameters(), lr=1.0), torch.Generator().manual_seed(2)
        reported = train_step(model, build_loss(small_config), optimizer, batch, max_grad_norm, noise, weight)
        return before - nn.utils.parameters_to_vector(model.parameters()).detach(), reported

    gradient, plain = step(1e9, 1.0)
    most = 1e9 if share is None else share * weight * gradient.norm().item()
    taken, reported = step(most, weight)
    assert reported["total_loss"] == plain["total_loss"] and gradient.norm() > 0.1
    # float32 differences of weights of order one
    assert (taken - weight * (share or 1) * gradient).abs().max() <= 1e-6
    assert reported["grad_norm"].item() == pytest.approx(weight * gradient.norm().item(), rel=1e-3)


def test_the_average_equals_the_recursion_in_float64():
    values = [float(step % 7) for step in range(50)]
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, values[0])
    average, expected = WeightAverage(model, decay=0.8), values[0]
    assert not average.model.weight.requires_grad and model.weight.requires_grad
    for number in range(1, 50):
        nn.init.constant_(model.weight, values[number])
        average.update(model, number)
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * values[number]
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)  # up to fifty float32 roundings


@pytest.fixture
def flags(tmp_path):
    """Return a function that gives train.py's flags for a folder, on a corpus of two takes with a small model."""
    for number in range(2):
        make_recording(tmp_path / "data" / f"{number}.pt", 2.0, 200.0 + 50 * number)
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"]["hidden_size"] = 16
    content["base"]["train"] |= {"batch_size": 2, "learning_rate": 0.01, "crop_seconds": 0.5}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(content))

    def give(name, epochs, decay):
        change(config, "train", ema_decay=decay)
        return arguments(tmp_path / "data", config, tmp_path / name, "--epochs", epochs)

    return give


@pytest.fixture
def run(flags, tmp_path):
    """Return a function that trains, and returns the path of the newest checkpoint."""

    def run(name, epochs, decay=0.9):
        assert train.main(flags(name, epochs, decay)) == 0
        return tmp_path / name / "latest.pth"

    return run


def test_resume_is_exact_with_an_average(run):
    straight, _, resumed = (read_checkpoint(run(name, epochs)) for name, epochs in (("a", 3), ("b", 1), ("b", 3)))
    for part in ("model", "average"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in straight[part].items())


def test_the_average_is_what_is_loaded_and_exported(run, tmp_path):
    path, used = run("out", 1), tmp_path / "use.pth"
    average = read_checkpoint(path)["average"]
    assert torch.equal(load_model(path).noise_head.weight, average["noise_head.weight"])
    words = ["--checkpoint", str(path), "--output", str(used), "--data", "x", "--licence", "y"]
    assert export_checkpoint.main(words) == 0
    content = read_checkpoint(used)
    assert content["average"] is None
    assert all(torch.equal(value, average[name]) for name, value in content["model"].items())


def test_the_average_is_validated(flags):
    trainer = train.build_trainer(train.parse_args(flags("out", 1, 0.9)))
    before = trainer.validate().total
    with torch.no_grad():
        trainer.model.noise_head.bias.fill_(-1.0)
    assert trainer.validate().total == before
    trainer.average.update(trainer.model, 10**6)
    assert trainer.validate().total != before


def test_averaging_can_be_switched_on_and_off(run, flags, caplog):
    caplog.set_level("INFO")
    path = run("out", 1, 0.0)
    trainer = train.build_trainer(train.parse_args(flags("out", 2, 0.9)))
    assert torch.equal(trainer.average.model.noise_head.weight, read_checkpoint(path)["model"]["noise_head.weight"])
    run("out", 2, 0.9)
    assert "train.ema_decay 0.0 -> 0.9" in caplog.text and read_checkpoint(path)["average"] is not None
    run("out", 3, 0.0)
    assert "train.ema_decay 0.9 -> 0.0" in caplog.text and read_checkpoint(path)["average"] is None


def test_an_invalid_average_is_refused(run, tmp_path):
    content = read_checkpoint(run("out", 1))
    torch.save({**content, "average": {"x": torch.zeros(1)}}, tmp_path / "invalid.pth")
    with pytest.raises(ValueError, match=r"invalid\.pth holds weights of another architecture"):
        load_model(tmp_path / "invalid.pth")
