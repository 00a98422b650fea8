"""train.py: the script that users run, on a small corpus that is made here."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
import transfer
from checkpoint import load_model, read_checkpoint
from config import DEFAULT_CONFIG_PATH, load_config
from data import Recording, extractor_settings, save_recording
from model import TransformerDecoder
from recordings.corpus import read_corpus
from recordings.crops import SINGLE_PROCESS, read_ranks
from training.experiment_log import read_metrics
from training.trainer import TrainingStopped

ROOT = Path(__file__).parent.parent


def make_recording(
    path: Path, seconds: float, f0: float, instrument: str = "trumpet", config_path: Path = DEFAULT_CONFIG_PATH
) -> None:
    """Write a processed file of a tone that swells and dies away."""
    config = load_config(config_path)
    n_frames = config.audio.seconds_to_frames(seconds)
    level = np.interp(np.arange(n_frames), [0, n_frames / 3, n_frames], [-50, -15, -60]).astype(np.float32)
    time_axis = np.arange(config.audio.frames_to_samples(n_frames)) / config.audio.sample_rate
    gain = 10 ** (np.repeat(level, config.audio.hop_length) / 20)
    audio = gain * sum(np.sin(2 * np.pi * f0 * k * time_axis) / k for k in range(1, 8))
    recording = Recording(
        instrument,
        f0=torch.full((1, n_frames, 1), f0),
        loudness=torch.from_numpy(level)[None, :, None],
        periodicity=torch.ones(1, n_frames, 1),
        audio=torch.from_numpy(audio.astype(np.float32))[None],
        source={"file": path.name, "sha256": f"{f0}"},
        extractor=extractor_settings(config, instrument),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_recording(path, recording)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(6):
        make_recording(tmp_path / "data" / f"{number}.pt", 2.0, 200.0 + 50 * number)
    return tmp_path / "data"


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A config.json whose tiny preset is a good deal tinier, so that the tests are quick."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"]["hidden_size"] = 32
    content["base"]["train"] |= {"batch_size": 4, "learning_rate": 0.01}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return path


def arguments(corpus: Path, config: Path, checkpoint_dir: Path, *more: object) -> list[str]:
    values = ["--data_dir", corpus, "--config", config, "--checkpoint_dir", checkpoint_dir, "--device", "cpu"]
    quiet = ["--wandb_mode", "disabled", "--runs_dir", checkpoint_dir.parent / "runs"]
    return [str(value) for value in (*values, *quiet, *more)]


@pytest.fixture
def args(corpus, small_config, tmp_path):
    """Return a function that gives train.py's flags for a checkpoint folder, on the corpus."""
    return lambda name, *more: arguments(corpus, small_config, tmp_path / name, *more)


def build(flags):
    return train.build_trainer(train.parse_args(flags))


def test_trains_saves_and_the_loss_falls(args, tmp_path, caplog):
    caplog.set_level("INFO")
    assert train.main(args("out", "--epochs", 6)) == 0
    losses = [float(line.split("train_loss ")[1].split()[0]) for line in caplog.messages if "train_loss" in line]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    names = sorted(path.name for path in (tmp_path / "out").glob("*.pth"))
    assert names == ["best.pth", "latest.pth", "model_epoch_4.pth", "model_epoch_5.pth", "model_epoch_6.pth"]
    model = load_model(tmp_path / "out" / "latest.pth")
    assert model.instrument == "trumpet" and not model.training
    # 5 takes of 2 s are trained on, one is held out: 10 crops, 3 steps an epoch.
    assert read_checkpoint(tmp_path / "out" / "latest.pth")["step"] == 18
    assert len(model.statistics["f0_quantiles"]) == 101


def test_epochs_is_a_total(args, tmp_path):
    for _ in range(2):
        assert train.main(args("out", "--epochs", 1)) == 0
    assert read_checkpoint(tmp_path / "out" / "latest.pth")["epoch"] == 1


def test_resumed_training_is_the_same_training_to_the_bit(args, tmp_path):
    assert train.main(args("straight", "--epochs", 4)) == 0
    for epochs in (2, 4):
        assert train.main(args("resumed", "--epochs", epochs)) == 0
    _assert_same_state(tmp_path / "straight" / "latest.pth", tmp_path / "resumed" / "latest.pth")


def test_stopping_in_the_middle_of_an_epoch_changes_nothing(args, tmp_path):
    assert train.main(args("straight", "--epochs", 2)) == 0
    trainer = build(args("stopped", "--epochs", 2))
    trainer.stop_requested = True  # as the signal handler sets it
    with pytest.raises(TrainingStopped):
        trainer.run(2)
    trainer.save("latest.pth")
    assert (trainer.progress.step, trainer.progress.position_in_epoch) == (1, 4)
    assert train.main(args("stopped", "--epochs", 2)) == 0
    _assert_same_state(tmp_path / "straight" / "latest.pth", tmp_path / "stopped" / "latest.pth")


def _assert_same_state(one_path: Path, other_path: Path) -> None:
    one, other = read_checkpoint(one_path), read_checkpoint(other_path)
    for key in ("epoch", "step", "position_in_epoch", "metrics", "statistics"):
        assert one[key] == other[key], key
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for number, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer"]["state"][number][name]), name
    assert one["rng"] == other["rng"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(args, tmp_path, number):
    command = [sys.executable, "train.py", *args("out", "--epochs", 10**6)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "latest.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in messages
    step = read_checkpoint(tmp_path / "out" / "latest.pth")["step"]
    assert f"at step {step}, and saved" in messages
    assert not list((tmp_path / "out").glob("*.part"))


def test_another_architecture_or_instrument_is_refused_and_nothing_lost(args, small_config, tmp_path, caplog):
    out = tmp_path / "out"
    train.main(args("out", "--epochs", 1))
    before = (out / "latest.pth").read_bytes()
    for preset, change in (("transformer", "gru -> transformer"), ("wide", "16000 -> 48000")):
        assert train.main(args("out", "--epochs", 2, "--config_name", preset)) == 1
        assert change in caplog.messages[-1] and "--no_resume" in caplog.messages[-1]
    for number in range(6):
        make_recording(tmp_path / "oboes" / f"{number}.pt", 2.0, 300.0 + number, instrument="oboe")
    assert train.main(arguments(tmp_path / "oboes", small_config, out, "--epochs", 2)) == 1
    assert "instrument trumpet -> oboe" in caplog.text
    (out / "latest.pth").write_bytes(before[: len(before) // 2])
    assert train.main(args("out", "--epochs", 2)) == 1
    assert str(out / "latest.pth") in caplog.messages[-1]
    assert (out / "latest.pth").read_bytes() == before[: len(before) // 2]


def test_no_resume_keeps_the_old_checkpoint(args, tmp_path):
    out = tmp_path / "out"
    train.main(args("out", "--epochs", 2))
    before = (out / "latest.pth").read_bytes()
    old = {path.name for path in out.glob("*.pth")}
    assert {"best.pth", "model_epoch_2.pth"} < old
    assert train.main(args("out", "--epochs", 1, "--no_resume")) == 0
    assert read_checkpoint(out / "latest.pth")["epoch"] == 1
    assert (out / "previous_1" / "latest.pth").read_bytes() == before
    assert {path.name for path in (out / "previous_1").iterdir()} == old
    train.main(args("out", "--epochs", 1, "--no_resume"))
    assert (out / "previous_2" / "latest.pth").is_file()


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_intact(args, tmp_path, caplog, monkeypatch):
    out = tmp_path / "out"
    train.main(args("out", "--epochs", 1))
    before = (out / "latest.pth").read_bytes()
    trainer = build(args("out", "--epochs", 2))
    with torch.no_grad():
        trainer.model.log_gain.fill_(float("inf"))
    monkeypatch.setattr(train, "build_trainer", lambda *_: trainer)
    assert train.main(args("out", "--epochs", 2)) == 1
    assert "epoch 2, step 4" in caplog.text
    batch = trainer.training.order()[:4]
    assert all(trainer.training.path_of(index).name in caplog.text for index in batch)
    assert (out / "latest.pth").read_bytes() == before


def test_learning_rate_depends_on_the_step_and_has_a_floor():
    settings = load_config().train
    assert settings.learning_rate_at(0) == settings.learning_rate
    assert settings.learning_rate_at(settings.learning_rate_half_life) == settings.learning_rate / 2
    assert settings.learning_rate_at(10**9) == settings.min_learning_rate


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--" + name, "0") for name in ("batch_size", "epochs", "patience", "save_every_minutes")),
        ("--seed", "-1"),
        ("--val_fraction", "1"),
        ("--run_name", "a/b"),
        ("--run_name", ".."),
        ("--run_name", "a\nb"),
        ("--num_workers", "-1"),
    ],
)
def test_flags_are_checked(capsys, flag, value):
    with pytest.raises(SystemExit):
        train.parse_args(["--data_dir", "x", flag, value])
    assert flag in capsys.readouterr().err


def test_user_errors_name_the_culprit(tmp_path, caplog):
    nowhere, data = str(tmp_path / "nowhere"), ["--data_dir", str(tmp_path), "--checkpoint_dir", str(tmp_path / "out")]
    for flags, named in (
        ([*data, "--data_dir", nowhere], nowhere),
        (data, str(tmp_path)),
        ([*data, "--config_name", "huge"], "huge"),
        ([*data, "--config", nowhere], nowhere),
    ):
        assert train.main(flags) == 1 and named in caplog.messages[-1]


# --- changes between two runs -------------------------------------------------------------------


def change(config: Path, section: str, **values: object) -> None:
    content = json.loads(config.read_text())
    content["base"][section] |= values
    config.write_text(json.dumps(content))


def test_losses_over_other_held_out_sound_are_not_compared(corpus, small_config, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.copytree(corpus, tmp_path / "held" / "data")
    given = arguments(tmp_path / "held" / "data", small_config, tmp_path / "out", "--epochs", 1)
    train.main(given)
    trainer = build(given)
    assert trainer.progress.best_val_loss < float("inf") and "the best loss is reset" not in caplog.text
    held_out = trainer.corpus.validation[0].path
    shutil.copy(held_out, held_out.with_name(f"again_{held_out.name}"))  # the same take, so it is held out too
    trainer = build(given)
    assert trainer.progress.best_val_loss == float("inf") and "the best loss is reset" in caplog.text


def test_changed_settings_are_said_and_applied(args, small_config, caplog):
    caplog.set_level("INFO")
    train.main(args("out", "--epochs", 1))
    change(small_config, "train", learning_rate=0.002)
    change(small_config, "loss", mag_loss_weight=0.5)
    trainer = build(args("out", "--epochs", 2))
    assert "loss.mag_loss_weight 1.0 -> 0.5, train.learning_rate 0.01 -> 0.002" in caplog.text
    assert "the best loss is reset" in caplog.text and trainer.progress.best_val_loss == float("inf")
    trainer.train_epoch()
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.config.train.learning_rate_at(5) < 0.002
    assert trainer.loss_function.mag_loss_weight == 0.5


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.9)])
def test_losses_of_averaged_and_of_raw_weights_do_not_compare(args, small_config, before, now):
    flags = args("out", "--epochs", 1)
    change(small_config, "train", ema_decay=before)
    train.main(flags)
    change(small_config, "train", ema_decay=now)
    trainer = build(flags)
    assert (trainer.progress.best_val_loss == float("inf")) == (before != now)


def stopped_after_a_step(flags):
    trainer = build(flags)
    trainer.stop_requested = True
    with pytest.raises(TrainingStopped):
        trainer.run(1)
    return trainer


def seen_in_the_rest(trainer: train.Trainer) -> list[int]:
    trainer.training.set_epoch(trainer.progress.epoch)
    order = trainer.training.order()
    batches = trainer._batches(trainer.training, order, trainer.progress.position_in_epoch)
    return [int(order[place]) for positions, _, _ in batches for place in positions]


def test_another_batch_size_goes_on_with_the_crops_not_yet_seen(args, caplog):
    caplog.set_level("INFO")
    flags = args("out", "--epochs", 1)
    seen = stopped_after_a_step(flags).training.order()[:4].tolist()
    trainer = build([*flags, "--batch_size", "3"])
    assert sorted(seen + seen_in_the_rest(trainer)) == list(range(10))
    assert "train.batch_size 4 -> 3" in caplog.text and "another order" not in caplog.text


def test_another_seed_reorders_the_rest_and_says_so(args, caplog):
    caplog.set_level("INFO")
    flags = args("out", "--epochs", 1)
    stopped_after_a_step(flags)
    trainer = build([*flags, "--seed", "1"])
    assert "seed 0 -> 1" in caplog.text and "another order" in caplog.text
    assert len(seen_in_the_rest(trainer)) == 6


def test_a_configuration_of_ones_own_is_all_that_a_resume_and_the_model_need(small_config, tmp_path, caplog):
    change(small_config, "features", crepe_model="full")
    content = json.loads(small_config.read_text())
    content["instruments"]["erhu"] = content["instruments"]["trumpet"]
    small_config.write_text(json.dumps(content))
    for number in range(6):
        make_recording(tmp_path / "data" / f"{number}.pt", 1.0, 300.0 + 9 * number, "erhu", small_config)
    for epochs in (1, 2):
        flags = arguments(tmp_path / "data", small_config, tmp_path / "out", "--epochs", epochs)
        assert train.main(flags) == 0, caplog.text
    settings = load_model(tmp_path / "out" / "latest.pth").settings
    assert len(read_corpus(tmp_path / "data", settings).validation) == 1  # as evaluate.py reads it
    assert settings.features.crepe_model == "tiny"  # which hears voices


def test_what_was_trained_on_is_never_held_out_later(args, corpus):
    flags = args("out", "--epochs", 1)
    train.main(flags)
    trained = {span.path for span in build(flags).corpus.training}
    for number in range(6, 30):  # three would be held out of thirty, the two more from what was trained on
        make_recording(corpus / f"{number}.pt", 0.5, 600.0 + number)
    later = build(flags).corpus
    assert trained <= {span.path for span in later.training} and len(later.training) == 29
    fresh = build([*flags, "--no_resume"]).corpus
    assert len(fresh.validation) == 3


def test_few_recordings_that_become_many_keep_what_was_held_out(args, corpus, caplog):
    caplog.set_level("INFO")
    for path in sorted(corpus.iterdir())[:3]:
        path.unlink()
    flags = args("out", "--epochs", 1)
    train.main(flags)
    assert "stays held out" not in caplog.text
    for number in range(6, 40):
        make_recording(corpus / f"{number}.pt", 0.5, 600.0 + number)
    later = build(flags).corpus
    assert "the end of each recording stays held out" in caplog.text
    assert len(later.training) == 37 and {span.path for span in later.training} == set(corpus.glob("*.pt"))
    assert {(span.first_frame, span.n_frames) for span in later.validation} == {(180, 20), (45, 5)}


def nested(depth):
    """Return a list whose text doubles with each level, and takes a few bytes of a file for it."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_a_foreign_checkpoint_is_resumed_or_refused_in_a_sentence(args, tmp_path, caplog):
    latest = tmp_path / "out" / "latest.pth"
    assert train.main(args("out", "--epochs", 1)) == 0
    whole = latest.read_bytes()

    def spoil_moments(content):
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)

    refused = (
        spoil_moments,
        lambda content: content.update(optimizer=nested(60)),
        lambda content: content["optimizer"].update(state={0: nested(60)}),
        lambda content: content["config"]["train"].update(val_fraction=nested(60)),
        lambda content: content["config"]["train"].update(val_fraction=float("nan")),
        lambda content: content["config"].update(loss=None),
    )
    resumed = (
        lambda content: content["config"]["train"].update(patience=nested(60)),
        lambda content: content["optimizer"]["param_groups"][0].update(betas=nested(60), eps=-1.0),
        lambda content: content.update(rng=None, schedule=None, metrics=None, position_in_epoch=None),
    )
    for code, changes in ((1, refused), (0, resumed)):
        for change in changes:
            content = torch.load(io.BytesIO(whole), weights_only=True)
            change(content)
            torch.save(content, latest)
            assert train.main(args("out", "--epochs", 2)) == code
            assert code == 0 or (str(latest) in caplog.messages[-1] and len(caplog.messages[-1]) < 500)


@pytest.mark.parametrize(("before", "now"), [(0.2, 0.5), (0.5, 0.2), (0.0, 0.5)])
def test_another_share_to_hold_out_is_for_another_training(args, tmp_path, caplog, before, now):
    caplog.set_level("INFO")
    flags = args("out", "--epochs", 1)
    train.main([*flags, "--val_fraction", str(before)])
    first = build([*flags, "--val_fraction", str(before)]).corpus
    assert "val_fraction" not in caplog.text
    trainer = build([*flags, "--val_fraction", str(now)])
    assert trainer.corpus == first and f"val_fraction stays {before:g}" in caplog.text
    trainer.save("latest.pth")
    assert read_checkpoint(tmp_path / "out" / "latest.pth")["config"]["train"]["val_fraction"] == before
    assert "changed since" not in caplog.text
    fresh = build([*flags, "--val_fraction", str(now), "--no_resume"]).corpus
    assert len(fresh.validation) == round(6 * now)


# --- saving, stopping, failing ------------------------------------------------------------------


def test_saves_by_the_clock(args, monkeypatch):
    trainer = build(args("out", "--epochs", 1, "--save_every_minutes", 1e-9))
    save, saved = trainer.save, []
    monkeypatch.setattr(trainer, "save", lambda *names: (saved.append((trainer.progress.step, names)), save(*names)))
    trainer.run(1)
    assert saved == [(1, ("latest.pth",)), (2, ("latest.pth",)), (3, ("latest.pth", "model_epoch_1.pth", "best.pth"))]


def test_patience(args, small_config, tmp_path, caplog):
    caplog.set_level("INFO")
    change(small_config, "train", learning_rate=0.0, min_learning_rate=0.0)  # nothing is learned
    flags = args("out", "--epochs", 9, "--patience", 2)
    assert train.main(flags) == 0
    assert read_checkpoint(tmp_path / "out" / "latest.pth")["epoch"] == 3
    assert train.main(flags) == 0  # and again: it is known to be over
    assert read_checkpoint(tmp_path / "out" / "latest.pth")["epoch"] == 3
    assert train.main(args("x", "--patience", 2, "--val_fraction", 0)) == 1
    assert "--patience" in caplog.messages[-1]


def test_debug_names_the_operation(args, caplog, monkeypatch):
    flags = args("out", "--debug")
    trainer = build(flags)
    with torch.no_grad():
        trainer.model.log_gain.fill_(float("inf"))
    monkeypatch.setattr(train, "build_trainer", lambda *_: trainer)
    with pytest.warns(UserWarning, match="Error detected in"):
        assert train.main(flags) == 1
    assert "Backward' returned nan values" in caplog.text and "at epoch 1, step 1, in a batch of " in caplog.text


def test_half_a_file_of_a_killed_run_goes(args, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.pth.part").write_bytes(b"half")
    build(args("out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_killed_trainings_come_to_the_same_end():
    command = [sys.executable, "benchmarks/kills.py", "train", "--kills", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "2 kills" in result.stdout and "files left: 0" in result.stdout and "optimizer equal those" in result.stdout


def test_workers_change_nothing(args, tmp_path):
    for name, n_workers in (("none", 0), ("two", 2)):
        flags = args(name, "--epochs", 1, "--num_workers", n_workers)
        assert train.main(flags) == 0
    _assert_same_state(tmp_path / "none" / "latest.pth", tmp_path / "two" / "latest.pth")


def test_recordings_that_arrive_later_are_trained_on(args, corpus):
    trainer = build(args("out", "--epochs", 2))
    make_recording(corpus / "new.pt", 2.0, 999.0)
    trainer.next_corpus = lambda: read_corpus(corpus, trainer.config, trainer.corpus.boundary)
    trainer.run(2)
    assert len(trainer.training) == 12 and trainer.progress.step == 6


def test_a_run_is_watched_under_one_name(args, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    train.main(args("out", "--epochs", 5))
    (folder,) = (tmp_path / "runs").iterdir()
    train.main(args("out", "--epochs", 6, "--run_name", "other", "--seed", 1))
    assert f"keeps its name: {folder.name}" in caplog.text and list((tmp_path / "runs").iterdir()) == [folder]
    records = read_metrics(folder)
    assert [record["epoch"] for record in records if record["kind"] == "epoch"] == [1, 2, 3, 4, 5, 6]
    (step,) = [record for record in records if record["kind"] == "step"]  # every tenth
    assert step["step"] == 10 and {"train_loss", "grad_norm", "learning_rate"} < set(step)
    assert [record["epoch"] for record in records if record["kind"] == "phrases"] == [5]
    assert [record["changes"] for record in records if record["kind"] == "start"] == [{}, {"seed": "0 -> 1"}]
    assert str(out / "latest.pth") in (folder / "index.html").read_text()
    checkpoint = read_checkpoint(out / "latest.pth")
    assert checkpoint["run_name"] == folder.name and len(checkpoint["wandb_id"]) == 8


@pytest.mark.parametrize("flags", [["--run_name", "My.Run-2 é"], []])
def test_a_run_is_resumed_under_the_name_that_its_user_gave(corpus: Path, small_config: Path, tmp_path, flags) -> None:
    """Also without the flag, while its folder is there; a name like it in a stranger's file is refused."""
    out, epochs = tmp_path / "out", iter(("1", "2", "3"))
    first = [*arguments(corpus, small_config, out, "--epochs", next(epochs)), "--run_name", "My.Run-2 é"]
    assert train.main(first) == 0
    again = [*arguments(corpus, small_config, out, "--epochs", next(epochs)), *flags]
    assert train.main(again) == 0 and [path.name for path in (tmp_path / "runs").iterdir()] == ["My.Run-2 é"]
    if not flags:
        shutil.rmtree(tmp_path / "runs")
        assert train.main([*arguments(corpus, small_config, out, "--epochs", next(epochs))]) == 1
        assert not (tmp_path / "runs").exists()


# --- several processes --------------------------------------------------------------------------


def test_two_processes_train_as_one(args, tmp_path):
    """Batches of 3, 3, 3 and 1 crops: shares are unequal, and in the last step one process has none."""
    flags = ["--batch_size", "3", "--epochs"]
    alone = args("alone", *flags, 1)
    assert train.main(alone) == 0
    together = args("together", *flags, 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    result = subprocess.run([*command, *together], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("train_loss") == 1  # one speaks for both
    one, other = (read_checkpoint(tmp_path / name / "latest.pth") for name in ("alone", "together"))
    assert one["step"] == other["step"] == 4
    assert one["metrics"]["best_val_loss"] == pytest.approx(other["metrics"]["best_val_loss"], abs=1e-5)
    for number, state in one["optimizer"]["state"].items():  # averages of the gradients
        torch.testing.assert_close(other["optimizer"]["state"][number]["exp_avg"], state["exp_avg"], atol=1e-5, rtol=0)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert train.main(args("together", *flags, 2)) == 0  # goes on with one
    assert read_checkpoint(tmp_path / "together" / "latest.pth")["step"] == 8


def test_trains_in_bfloat16(args, caplog):
    caplog.set_level("INFO")
    flags = ["--epochs", 1, "--precision", "bfloat16", "--compile"]
    assert train.main(args("out", *flags)) == 0
    assert "--compile" in caplog.text


def test_a_failing_compiler_is_one_sentence(args, caplog, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(layer) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(TransformerDecoder, "compile", fail)
    flags = ["--epochs", 1, "--config_name", "transformer", "--compile"]
    assert train.main(args("out", *flags)) == 1
    assert "--compile" in caplog.text and "Traceback" not in caplog.text


# --- the folder, and what is said ---------------------------------------------------------------


def test_a_second_training_in_the_folder_is_one_sentence_and_a_killed_one_leaves_no_lock(args, tmp_path, caplog):
    out = tmp_path / "out"
    code = f"import time, pathlib, train\nwith train.lock_checkpoint_dir(pathlib.Path({str(out)!r})):\n    "
    code += "print('locked', flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        assert train.main(args("out", "--epochs", 1)) == 1
        assert len(caplog.messages) == 1 and str(out) in caplog.text and not list(out.glob("*.pth"))
        other.kill()
    assert train.main(args("out", "--epochs", 1)) == 0


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_step(args, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(train, "build_trainer", lambda *_: pytest.fail("it began"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", Path("/proc/nothing")):
        assert train.main(args(out, "--epochs", 1)) == 1
        assert str(out) in caplog.messages[-1]


def test_the_folder_proposed_for_another_training_is_free(args, tmp_path, caplog):
    out = tmp_path / "checkpoints" / "trumpet"
    train.main(args(out, "--epochs", 1))
    other = args(out, "--epochs", 2, "--config_name", "transformer")
    for free in ("trumpet_2", "trumpet_3"):
        assert train.main(other) == 1
        assert caplog.messages[-1].endswith(f"--checkpoint_dir {out.with_name(free)}")
        out.with_name(free).mkdir()


def test_with_nothing_held_out_the_best_is_that_of_the_lowest_training_loss(args, tmp_path, caplog):
    caplog.set_level("INFO")
    none = ("--val_fraction", 0)
    assert train.main(args("out", "--epochs", 2, *none)) == 0
    metrics = read_checkpoint(tmp_path / "out" / "best.pth")["metrics"]
    assert np.isfinite(metrics["best_val_loss"]) and metrics["first_val_loss"] is None
    assert "lowest training loss" in caplog.text


def test_the_end_names_the_best_and_the_line_that_plays_it(args, tmp_path, caplog):
    caplog.set_level("INFO")
    best = tmp_path / "out" / "best.pth"
    for _ in range(2):  # the second finds it done
        assert train.main(args("out", "--epochs", 2)) == 0
        said, line = caplog.messages[-1].split("; to listen: ")
        assert str(best) in said and f"epoch {read_checkpoint(best)['epoch']}" in said
        program, script, *flags = shlex.split(line)
        assert (program, script) == ("./venv/bin/python", "transfer.py")
        assert transfer.parse_args(flags).checkpoint == best


def test_a_stop_and_a_resume_count_epochs_alike(args, caplog):
    caplog.set_level("INFO")
    flags = args("out", "--epochs", 3)
    train.main(args("out", "--epochs", 1))
    trainer = build(flags)
    assert "after epoch 1, at step 3" in caplog.messages[-1]
    trainer.stop_requested = True
    assert train.run_training(trainer, train.parse_args(flags)) == 130
    assert "in epoch 2, at step 4" in caplog.messages[-1]
    build(flags)
    assert "in epoch 2, at step 4" in caplog.messages[-1]


def test_empty_variables_are_as_unset(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert read_ranks() == SINGLE_PROCESS
