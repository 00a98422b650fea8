"""scripts/export_checkpoint.py: the exported file, its card, refused input, and files that are not replaced."""

import hashlib
import json
import re
import shlex

import pytest
import torch

import export_checkpoint as ex
import transfer
from checkpoint import load_model, read_checkpoint
from config import config_to_dict
from evaluation import model_card
from evaluation.scorecard_tables import RESYNTHESIS, TRANSFER
from model import build_model

TEXTS = ["--data", "20 minutes of Anna's trumpet", "--licence", "CC BY 4.0"]


def export(source, target, *flags):
    return ex.main(["--checkpoint", str(source), "--output", str(target), *TEXTS, *flags])


def adam_state(config):
    model = build_model(config, "trumpet")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.full((1, 4, 1), 300.0), torch.full((1, 4, 1), -20.0)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.fixture
def trained(write_checkpoint, small_config):
    """A checkpoint as train.py leaves it, with all that only training on needs."""
    return write_checkpoint(
        "best.pth",
        epoch=12,
        step=3456,
        optimizer=adam_state(small_config),
        schedule={"learning_rate": 0.001, "boundary": "5" * 64},
        rng={"torch": torch.get_rng_state()},
        metrics={"best_val_loss": 1.23456, "train_losses": [1.0] * 100},
        wandb_id="abc",
    )


@pytest.fixture
def exported(trained, tmp_path):
    target = tmp_path / "out" / "trumpet.pth"
    assert export(trained, target, "--command", "train.py --seed 7", "--card_note", "Best above middle C.") == 0
    return target


def play(path):
    f0, loudness = torch.linspace(200, 900, 50)[None, :, None], torch.linspace(-40, -10, 50)[None, :, None]
    with torch.inference_mode():
        return load_model(path)(f0, loudness, torch.Generator().manual_seed(3))


def test_half_precision_halves_the_file_and_hardly_changes_the_sound(trained, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(ex, "_LARGE", 0)
    target = tmp_path / "half.pth"
    assert export(trained, target, "--half") == 0
    n_weights = sum(weight.numel() for weight in load_model(exported).parameters())
    assert exported.stat().st_size - target.stat().st_size > 1.9 * n_weights
    wanted, difference = play(trained), play(target) - play(trained)
    assert 0 < difference.square().mean() < 1e-5 * wanted.square().mean()
    assert all(weight.dtype == torch.float32 for weight in load_model(target).parameters())


def test_an_export_sounds_the_same_and_holds_only_what_loading_needs(trained, exported, small_config):
    assert torch.equal(play(trained), play(exported))
    source, content = read_checkpoint(trained), read_checkpoint(exported)
    assert content["schedule"] == {"boundary": source["schedule"]["boundary"]}
    for key in ("optimizer", "rng", "wandb_id", "position_in_epoch", "average"):
        assert content[key] is None, key
    for key in ("format_version", "preset", "instrument", "epoch", "step", "statistics"):
        assert content[key] == source[key], key
    assert content["config"] == config_to_dict(small_config)  # the training's own, all sections
    assert content["metrics"] == {"best_val_loss": 1.23456}
    assert exported.stat().st_size < 0.5 * trained.stat().st_size


def test_the_card_describes_file_training_and_licence(exported, small_config):
    card = exported.with_suffix(".md").read_text()
    n_parameters = sum(p.numel() for p in build_model(small_config, "trumpet").parameters())
    for text in (
        hashlib.sha256(exported.read_bytes()).hexdigest(),
        f"{exported.stat().st_size:,} bytes",
        f"{n_parameters:,}",
        "`tiny`",
        "12 epochs, 3,456 steps",
        "1.2346",
        "20 minutes of Anna's trumpet",
        "CC BY 4.0",
        "train.py --seed 7",
        "Best above middle C.",
    ):
        assert text in card
    assert "{" not in card and "None" not in card


@pytest.mark.parametrize("shipped", [True, False])
def test_the_command_in_the_card_plays_the_model(trained, tmp_path, monkeypatch, shipped):
    target = tmp_path / "out" / "trumpet.pth"
    monkeypatch.setattr(model_card, "PRETRAINED_DIR", target.parent if shipped else tmp_path)
    assert export(trained, target) == 0
    usage = re.search(r"transfer\.py (.*)", target.with_suffix(".md").read_text()).group(1)
    args = transfer.parse_args(shlex.split(usage))
    assert (args.instrument, args.checkpoint) == (("trumpet", None) if shipped else (None, target))


def scorecard_of(checkpoint, path):
    """Write a report as scripts/evaluate.py does, of any figures."""
    figures = {figure.key: 1.0 for figure in (*RESYNTHESIS, *TRANSFER)}
    report = {
        "baselines": ["a.pth, preset `tiny` after 9 steps"],
        "checkpoint": checkpoint.name,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "date": "2026-01-02T03:04:05+00:00",
        "resynthesis": [{"sound": "this model", **figures, "log_mel": 1.23}],
        "transfer": [{"voice": "hum", "sound": "this model", **figures, "brightness": 45.6}],
        "targets": [
            {"section": "transfer", "figure": "peak", "value": 2.0, "limit": "at most 1", "met": False, "sanity": True}
        ],
    }
    path.write_text(json.dumps(report))
    return path


def test_the_card_contains_the_scorecard(trained, tmp_path):
    score = scorecard_of(trained, tmp_path / "score.json")
    assert export(trained, tmp_path / "out.pth", "--scorecard", str(score)) == 0
    card = (tmp_path / "out.md").read_text()
    section = card[card.index("## Scorecard") : card.index("## Use")]
    assert all(
        text in section for text in ("| 1.23 ", "| 45.6 ", "| hum ", "| MISS | sanity, transfer: peak", "2026-01-02")
    )
    assert "Baselines: a.pth, preset `tiny` after 9 steps." in section
    assert "{" not in card


def test_a_failed_export_replaces_nothing(trained, exported, monkeypatch, caplog):
    before, card = exported.read_bytes(), exported.with_suffix(".md").read_bytes()
    strip = ex.strip

    def change_weight(source, path, half):
        content = strip(source, path, half)
        content["model"]["harmonic_head.bias"][3] += 1e-3
        return content

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert export(trained, exported) == 1
    monkeypatch.setattr(ex, "strip", change_weight)
    assert export(trained, exported) == 1
    assert "No space left" in caplog.messages[0] and str(trained) in caplog.messages[1]
    assert exported.read_bytes() == before and exported.with_suffix(".md").read_bytes() == card
    assert len(list(exported.parent.iterdir())) == 2


def test_invalid_sources_and_scorecards_are_named(trained, write_checkpoint, tmp_path, caplog):
    for name in ("damaged.pth", "text.json", "list.json"):
        (tmp_path / name).write_text("[]" if name == "list.json" else "neither a checkpoint nor JSON")
    write_checkpoint("bare.pth", statistics=None)
    scorecard_of(write_checkpoint("other.pth", model={"a": torch.zeros(1)}), tmp_path / "score.json")
    for name in ("missing.pth", "damaged.pth", "bare.pth"):
        assert export(tmp_path / name, tmp_path / "out.pth") == 1 and name in caplog.messages[-1]
    assert export(tmp_path / "other.pth", tmp_path / "out.pth") == 1  # of another architecture
    for name in ("score.json", "list.json", "text.json", "missing.json"):
        assert export(trained, tmp_path / "out.pth", "--scorecard", str(tmp_path / name)) == 1
        assert name in caplog.messages[-1]
    assert len(caplog.messages) == 8 and not list(tmp_path.glob("*out*"))


def test_invalid_flags_are_refused(trained, tmp_path, capsys):
    (tmp_path / "folder.pth").mkdir()
    source, same = str(trained), str(trained.parent / "." / "x" / ".." / trained.name)
    good = str(tmp_path / "out.pth")
    cases = [
        (["--output", str(tmp_path / "out.pt"), *TEXTS], "out.pt"),
        (["--output", str(tmp_path / "folder.pth"), *TEXTS], "is a folder"),
        (["--output", same, *TEXTS], "--output"),
        (["--output", good, "--licence", "MIT"], "--data"),
        (["--output", good, "--data", "tones"], "--licence"),
        (["--output", good, "--data", " ", "--licence", "MIT"], "--data is empty"),
    ]
    before = trained.read_bytes()
    for flags, message in cases:
        with pytest.raises(SystemExit) as error:
            ex.main(["--checkpoint", source, *flags])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert trained.read_bytes() == before


def test_shipped_models_are_replaced_only_on_request(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ex, "PRETRAINED_DIR", tmp_path)
    shipped = tmp_path / "trumpet.pth"
    shipped.write_bytes(b"shipped")
    with pytest.raises(SystemExit):
        export(trained, shipped)
    assert shipped.read_bytes() == b"shipped"
    assert export(trained, shipped, "--replace_shipped") == 0
    assert load_model(shipped)


def test_high_noise_is_raised_above_8_khz_only(trained, tmp_path):
    raised, frequencies = ex.raise_high_noise(torch.zeros(129), 6.0, 48000), torch.linspace(0, 24000, 129)
    assert not raised[frequencies <= 7000].any()
    assert raised[frequencies >= 9000].numpy() == pytest.approx(0.691, abs=0.001)  # nepers
    assert export(trained, tmp_path / "brighter.pth", "--high_noise", "6") == 1  # a model of 16 kHz
    assert not (tmp_path / "brighter.pth").exists()
