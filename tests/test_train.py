"""train.py on a small synthetic corpus: training, exact resume, changed settings, stopping, and errors."""

import argparse
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kills
import train
import transfer
from checkpoint import load_model, read_checkpoint
from config import DEFAULT_CONFIG_PATH, load_config
from data import Recording, extractor_settings, save_recording
from model import TransformerDecoder
from recordings.corpus import read_corpus
from recordings.crops import SINGLE_PROCESS, read_ranks
from training.experiment_log import read_metrics
from training.trainer import Trainer, TrainingStopped

ROOT = Path(__file__).parent.parent


def make_recording(path, seconds, f0, instrument="trumpet", config_path=DEFAULT_CONFIG_PATH):
    """Write a processed file of a tone that swells and fades."""
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


def arguments(corpus, config, checkpoint_dir, *more):
    values = ["--data_dir", corpus, "--config", config, "--checkpoint_dir", checkpoint_dir, "--device", "cpu"]
    quiet = ["--wandb_mode", "disabled", "--runs_dir", checkpoint_dir.parent / "runs"]
    return [str(value) for value in (*values, *quiet, *more)]


def change(config, section, **values):
    """Change settings of a config.json."""
    content = json.loads(config.read_text())
    content["base"][section] |= values
    config.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with six takes of 2 s, the configuration of a small model, and its training of one epoch."""
    folder = tmp_path_factory.mktemp("template")
    for number in range(6):
        make_recording(folder / "data" / f"{number}.pt", 2.0, 200.0 + 50 * number)
    shutil.copy(DEFAULT_CONFIG_PATH, folder / "config.json")
    change(folder / "config.json", "model", hidden_size=32)
    change(folder / "config.json", "train", batch_size=4, learning_rate=0.01)
    assert train.main(arguments(folder / "data", folder / "config.json", folder / "trained", "--epochs", 1)) == 0
    return folder


@pytest.fixture
def folder(template, tmp_path):
    """A copy of the template; in ``trained`` is a training of one epoch: 5 takes, 10 crops, 3 steps."""
    return shutil.copytree(template, tmp_path / "copy")


@pytest.fixture
def args(folder):
    """Return a function that gives train.py's flags for a checkpoint folder."""
    return lambda name, *more: arguments(folder / "data", folder / "config.json", folder / name, *more)


def build(flags):
    return train.build_trainer(train.parse_args(flags))


def stop_after_one_step(flags):
    """Return the trainer after one step, as a signal stops it."""
    trainer = build(flags)
    trainer.stop_requested = True
    with pytest.raises(TrainingStopped):
        trainer.run(10)
    return trainer


def assert_same_state(one_path, other_path):
    one, other = read_checkpoint(one_path), read_checkpoint(other_path)
    for key in ("epoch", "step", "position_in_epoch", "metrics", "statistics", "rng"):
        assert one[key] == other[key], key
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for number, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer"]["state"][number][name]), name


def test_training_writes_checkpoints_and_a_log_and_the_loss_falls(args, folder, caplog):
    caplog.set_level("INFO")
    out = folder / "out"
    assert train.main(args("out", "--epochs", 5)) == 0
    assert train.main(args("out", "--epochs", 6, "--run_name", "other", "--seed", 1)) == 0
    losses = [float(line.split("train_loss ")[1].split()[0]) for line in caplog.messages if "train_loss" in line]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    names = sorted(path.name for path in out.glob("*.pth"))
    assert names == ["best.pth", "latest.pth", "model_epoch_4.pth", "model_epoch_5.pth", "model_epoch_6.pth"]
    model, checkpoint = load_model(out / "latest.pth"), read_checkpoint(out / "latest.pth")
    assert model.instrument == "trumpet" and not model.training and len(model.statistics["f0_quantiles"]) == 101
    run_name = checkpoint["run_name"]
    assert (
        checkpoint["step"] == 18 and len(checkpoint["wandb_id"]) == 8 and f"keeps its name: {run_name}" in caplog.text
    )
    records = read_metrics(folder / "runs" / run_name)
    assert [record["epoch"] for record in records if record["kind"] == "epoch"] == [1, 2, 3, 4, 5, 6]
    (step,) = [record for record in records if record["kind"] == "step"]  # every tenth
    assert step["step"] == 10 and {"train_loss", "grad_norm", "learning_rate"} < set(step)
    assert [record["epoch"] for record in records if record["kind"] == "phrases"] == [5]
    assert [record["changes"] for record in records if record["kind"] == "start"] == [{}, {"seed": "0 -> 1"}]
    assert str(out / "latest.pth") in (folder / "runs" / run_name / "index.html").read_text()


def test_resume_is_exact_after_an_epoch_and_within_one(args, folder):
    assert train.main(args("straight", "--epochs", 2)) == 0
    assert train.main(args("trained", "--epochs", 2)) == 0
    trainer = stop_after_one_step(args("stopped"))
    assert (trainer.progress.step, trainer.progress.position_in_epoch) == (1, 4)
    assert train.main(args("stopped", "--epochs", 2, "--num_workers", 2)) == 0  # workers do not matter
    for resumed in ("trained", "stopped"):
        assert_same_state(folder / "straight" / "latest.pth", folder / resumed / "latest.pth")
    assert train.main(args("straight", "--epochs", 2)) == 0  # --epochs counts from the beginning
    assert read_checkpoint(folder / "straight" / "latest.pth")["epoch"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_the_step_with_a_checkpoint(args, folder, caplog, monkeypatch, number):
    caplog.set_level("INFO")
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *values: (signal.raise_signal(number), step(*values)))
    assert train.main(args("trained", "--epochs", 9)) == 130
    assert read_checkpoint(folder / "trained" / "latest.pth")["step"] == 4 and not [*folder.rglob("*.part")]
    assert "in epoch 2, at step 4" in caplog.messages[-1]
    build(args("trained"))
    assert "in epoch 2, at step 4" in caplog.messages[-1]


def test_a_killed_training_gives_the_result_of_an_undisturbed_one(tmp_path):
    result, is_same = kills.kill_training(tmp_path, argparse.Namespace(seed=0, kills=1))
    assert is_same, result


def test_two_processes_train_as_one(args, folder):
    """Batches of 3, 3, 3 and 1 crops: the processes' shares are unequal, and in the last step one has no crop."""
    flags = ["--batch_size", "3", "--epochs"]
    assert train.main(args("one", *flags, 1)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    result = subprocess.run([*command, *args("two", *flags, 1)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("train_loss") == 1  # only rank 0 reports
    one, two = (read_checkpoint(folder / name / "latest.pth") for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    assert one["metrics"]["best_val_loss"] == pytest.approx(two["metrics"]["best_val_loss"], abs=1e-5)
    for number, state in one["optimizer"]["state"].items():  # averages of the gradients
        torch.testing.assert_close(two["optimizer"]["state"][number]["exp_avg"], state["exp_avg"], atol=1e-5, rtol=0)
    assert train.main(args("two", *flags, 2)) == 0  # resumed by one process
    assert read_checkpoint(folder / "two" / "latest.pth")["step"] == 8


def test_other_architectures_instruments_and_damaged_checkpoints_are_refused(args, folder, caplog):
    latest = folder / "trained" / "latest.pth"
    before = latest.read_bytes()
    for number in range(6):
        make_recording(folder / "oboes" / f"{number}.pt", 2.0, 300.0 + number, instrument="oboe")
    for flags, named in (
        (["--config_name", "transformer"], "gru -> transformer"),
        (["--config_name", "wide"], "16000 -> 48000"),
        (["--data_dir", folder / "oboes"], "instrument trumpet -> oboe"),
    ):
        assert train.main(args("trained", "--epochs", 2, *flags)) == 1
        assert named in caplog.messages[-1] and "--no_resume" in caplog.messages[-1] and latest.read_bytes() == before
    latest.write_bytes(before[: len(before) // 2])
    assert train.main(args("trained", "--epochs", 2)) == 1 and str(latest) in caplog.messages[-1]
    assert latest.read_bytes() == before[: len(before) // 2]


def test_the_checkpoint_folder_proposed_for_another_training_is_free(args, folder, caplog):
    out = folder / "checkpoints" / "trumpet"
    shutil.copytree(folder / "trained", out)
    for free in ("trumpet_2", "trumpet_3"):
        assert train.main(args(out, "--config_name", "transformer")) == 1
        assert caplog.messages[-1].endswith(f"--checkpoint_dir {out.with_name(free)}")
        out.with_name(free).mkdir()


def test_no_resume_moves_the_old_checkpoints(args, folder):
    out = folder / "trained"
    before, names = (out / "latest.pth").read_bytes(), {path.name for path in out.glob("*.pth")}
    for number in (1, 2):
        assert train.main(args("trained", "--epochs", 1, "--no_resume")) == 0
        assert {path.name for path in (out / f"previous_{number}").iterdir()} == names
    assert read_checkpoint(out / "latest.pth")["epoch"] == 1
    assert (out / "previous_1" / "latest.pth").read_bytes() == before


@pytest.mark.parametrize("flags", [[], ["--debug"]])
@pytest.mark.filterwarnings("ignore:Error detected in")
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_checkpoint(args, folder, caplog, monkeypatch, flags):
    flags = args("trained", "--epochs", 2, *flags)
    before = (folder / "trained" / "latest.pth").read_bytes()
    trainer = build(flags)
    with torch.no_grad():
        trainer.model.log_gain.fill_(float("inf"))
    monkeypatch.setattr(train, "build_trainer", lambda *_: trainer)
    assert train.main(flags) == 1
    names = {trainer.training.path_of(index).name for index in trainer.training.order()[:4]}
    assert "epoch 2, step 4" in caplog.text and all(name in caplog.text for name in names)
    assert ("Backward' returned nan" in caplog.text) == ("--debug" in flags)  # the operation is named
    assert (folder / "trained" / "latest.pth").read_bytes() == before


def test_learning_rate_depends_on_the_step_and_has_a_floor():
    settings = load_config().train
    rates = [settings.learning_rate_at(step) for step in (0, settings.learning_rate_half_life, 10**9)]
    assert rates == [settings.learning_rate, settings.learning_rate / 2, settings.min_learning_rate]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((f"--{name}", "0") for name in ("batch_size", "epochs", "patience", "save_every_minutes")),
        *((f"--{name}", "-1") for name in ("seed", "num_workers")),
        *(("--run_name", name) for name in ("a/b", "..", "a\nb")),
        ("--val_fraction", "1"),
    ],
)
def test_invalid_flags_are_refused(capsys, flag, value):
    with pytest.raises(SystemExit):
        train.parse_args(["--data_dir", "x", flag, value])
    assert flag in capsys.readouterr().err


def test_errors_name_what_is_missing(tmp_path, caplog):
    nowhere, data = str(tmp_path / "nowhere"), ["--data_dir", str(tmp_path), "--checkpoint_dir", str(tmp_path / "out")]
    for flags, named in (
        ([*data, "--data_dir", nowhere], nowhere),
        (data, str(tmp_path)),
        ([*data, "--config_name", "huge"], "huge"),
        ([*data, "--config", nowhere], nowhere),
    ):
        assert train.main(flags) == 1 and named in caplog.messages[-1]


def hold_out_a_copy(folder):
    held_out = read_corpus(folder / "data", load_config(folder / "config.json")).validation[0].path
    shutil.copy(held_out, held_out.with_name(f"copy_{held_out.name}"))


@pytest.mark.parametrize(
    ("edit", "is_reset"),
    [
        (lambda folder: change(folder / "config.json", "train", learning_rate=0.002), False),
        (lambda folder: change(folder / "config.json", "loss", mag_loss_weight=0.5), True),
        (lambda folder: change(folder / "config.json", "train", ema_decay=0.9), True),
        (hold_out_a_copy, True),
    ],
    ids=["learning rate", "loss", "averaged weights", "held-out recordings"],
)
def test_the_best_loss_is_reset_if_losses_are_not_comparable(args, folder, edit, is_reset):
    edit(folder)
    assert (build(args("trained")).progress.best_val_loss == float("inf")) == is_reset


def test_changed_settings_are_reported_and_applied(args, folder, caplog):
    caplog.set_level("INFO")
    change(folder / "config.json", "train", learning_rate=0.002)
    change(folder / "config.json", "loss", mag_loss_weight=0.5)
    trainer = build(args("trained"))
    assert "loss.mag_loss_weight 1.0 -> 0.5, train.learning_rate 0.01 -> 0.002" in caplog.text
    trainer.train_epoch()
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.config.train.learning_rate_at(5) < 0.002
    assert trainer.loss_function.mag_loss_weight == 0.5


def test_a_training_of_a_large_seed_is_resumed(args):
    flags = args("out", "--seed", 2**63)
    stop_after_one_step(flags)
    assert build(flags).progress.step == 1


def test_the_loss_of_an_epoch_does_not_mix_two_losses(args, folder):
    """After a change of the loss within an epoch, the mean is over the crops since the change."""
    flags = args("out", "--epochs", 1)
    stop_after_one_step(flags)
    change(folder / "config.json", "loss", mag_loss_weight=100.0)
    stop_after_one_step(flags)
    trainer = build(flags)
    total, done = trainer.progress.loss_sum, trainer.progress.position_in_epoch
    loss, n_crops = trainer.train_epoch(), len(trainer.training)
    assert loss == pytest.approx((total + trainer.last_loss * (n_crops - done)) / (n_crops - done / 2))
    assert trainer.progress.loss_count == 0


def test_the_rest_of_an_epoch_after_a_change_of_batch_size_or_seed(args, caplog):
    caplog.set_level("INFO")

    def remaining(trainer):
        trainer.training.set_epoch(trainer.progress.epoch)
        order = trainer.training.order()
        batches = trainer._batches(trainer.training, order, trainer.progress.position_in_epoch)
        return [int(order[place]) for positions, _, _ in batches for place in positions]

    flags = args("out")
    seen = stop_after_one_step(flags).training.order()[:4].tolist()
    trainer = build([*flags, "--batch_size", "3"])
    assert sorted(seen + remaining(trainer)) == list(range(10))  # each crop once
    assert "train.batch_size 4 -> 3" in caplog.text and "another order" not in caplog.text
    trainer = build([*flags, "--seed", "1"])
    assert "seed 0 -> 1" in caplog.text and "another order" in caplog.text and len(remaining(trainer)) == 6


def test_a_checkpoint_holds_the_settings_of_a_custom_configuration(folder):
    config, data = folder / "config.json", folder / "erhu"
    change(config, "features", crepe_model="full")
    content = json.loads(config.read_text())
    content["instruments"]["erhu"] = content["instruments"]["trumpet"]
    config.write_text(json.dumps(content))
    for number in range(6):
        make_recording(data / f"{number}.pt", 1.0, 300.0 + 9 * number, "erhu", config)
    for epochs in (1, 2):
        assert train.main(arguments(data, config, folder / "out", "--epochs", epochs)) == 0
    settings = load_model(folder / "out" / "latest.pth").settings
    assert len(read_corpus(data, settings).validation) == 1  # as evaluate.py reads it
    assert settings.features.crepe_model == "tiny"  # the one that tracks voices


def test_recordings_trained_on_are_never_held_out_later(args, folder):
    trained = {span.path for span in build(args("trained")).corpus.training}
    for number in range(6, 30):  # of thirty recordings three would be held out, two of them trained on
        make_recording(folder / "data" / f"{number}.pt", 0.5, 600.0 + number)
    later = build(args("trained")).corpus
    assert trained <= {span.path for span in later.training} and len(later.training) == 29
    assert len(build(args("trained", "--no_resume")).corpus.validation) == 3


def test_the_ends_of_few_recordings_stay_held_out_when_more_are_added(args, folder):
    for path in sorted((folder / "data").glob("*.pt"))[:3]:
        path.unlink()
    train.main(args("out", "--epochs", 1))
    for number in range(6, 40):
        make_recording(folder / "data" / f"{number}.pt", 0.5, 600.0 + number)
    later = build(args("out")).corpus
    assert len(later.training) == 37 and {span.path for span in later.training} == set((folder / "data").glob("*.pt"))
    assert {(span.first_frame, span.n_frames) for span in later.validation} == {(180, 20), (45, 5)}


def nested(depth):
    """Return a list whose text doubles with each level, and takes a few bytes of a file for it."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_a_foreign_checkpoint_is_resumed_or_refused_in_a_sentence(args, folder, caplog):
    latest = folder / "trained" / "latest.pth"
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
        lambda content: content.update(rng=None, schedule={"phrases": None}, metrics=None, position_in_epoch=None),
    )
    for code, changes in ((1, refused), (0, resumed)):
        for change in changes:
            content = torch.load(io.BytesIO(whole), weights_only=True)
            change(content)
            torch.save(content, latest)
            assert train.main(args("trained", "--epochs", 2)) == code
            assert code == 0 or (str(latest) in caplog.messages[-1] and len(caplog.messages[-1]) < 500)


@pytest.mark.parametrize("before", [0.1, 0.0])
def test_a_resumed_training_keeps_its_val_fraction(args, folder, caplog, before):
    caplog.set_level("INFO")
    if before == 0:
        train.main(args("trained", "--epochs", 1, "--no_resume", "--val_fraction", 0))
    first = build(args("trained", "--val_fraction", before)).corpus
    trainer = build(args("trained", "--val_fraction", 0.5))
    assert trainer.corpus == first and f"val_fraction stays {before:g}" in caplog.text
    trainer.save("latest.pth")
    assert read_checkpoint(folder / "trained" / "latest.pth")["config"]["train"]["val_fraction"] == before
    assert len(build(args("trained", "--val_fraction", 0.5, "--no_resume")).corpus.validation) == 3


@pytest.mark.parametrize("flags", [["--run_name", "My.Run-2 é"], []])
def test_a_run_keeps_the_name_that_its_user_gave(args, folder, flags):
    """Also without the flag if its folder exists; without both, such a name could come from an untrusted file."""
    shutil.rmtree(folder / "runs")
    assert train.main(args("out", "--epochs", 1, "--run_name", "My.Run-2 é")) == 0
    assert train.main(args("out", "--epochs", 2, *flags)) == 0
    assert [path.name for path in (folder / "runs").iterdir()] == ["My.Run-2 é"]
    if not flags:
        shutil.rmtree(folder / "runs")
        assert train.main(args("out", "--epochs", 3)) == 1 and not (folder / "runs").exists()


def test_checkpoints_are_saved_at_intervals(args, folder, monkeypatch):
    (folder / "out").mkdir()
    (folder / "out" / "best.pth.part").write_bytes(b"left by a killed training")
    trainer = build(args("out", "--save_every_minutes", 1e-9))
    assert list((folder / "out").iterdir()) == []
    save, saved = trainer.save, []
    monkeypatch.setattr(trainer, "save", lambda *names: (saved.append((trainer.progress.step, names)), save(*names)))
    trainer.run(1)
    assert saved == [(1, ("latest.pth",)), (2, ("latest.pth",)), (3, ("latest.pth", "model_epoch_1.pth", "best.pth"))]


def test_patience_ends_the_training(args, folder, caplog):
    change(folder / "config.json", "train", learning_rate=0.0, min_learning_rate=0.0)  # nothing is learned
    for _ in range(2):  # the second call finds it ended
        assert train.main(args("out", "--epochs", 9, "--patience", 2)) == 0
        assert read_checkpoint(folder / "out" / "latest.pth")["epoch"] == 3
    assert train.main(args("x", "--patience", 2, "--val_fraction", 0)) == 1 and "--patience" in caplog.messages[-1]


def test_recordings_that_arrive_during_the_training_are_used(args, folder):
    trainer = build(args("out"))
    make_recording(folder / "data" / "new.pt", 2.0, 999.0)
    trainer.next_corpus = lambda: read_corpus(folder / "data", trainer.config, trainer.corpus.boundary)
    trainer.run(2)
    assert len(trainer.training) == 12 and trainer.progress.step == 6


def test_bfloat16_trains_and_a_failing_compiler_is_an_error(args, caplog, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(layer):
        raise InvalidCxxCompiler

    flags = ["--epochs", 1, "--precision", "bfloat16", "--compile"]
    assert train.main(args("out", *flags)) == 0
    monkeypatch.setattr(TransformerDecoder, "compile", fail)
    assert train.main(args("other", *flags, "--config_name", "transformer")) == 1
    assert "--compile" in caplog.messages[-1]


def test_a_second_training_in_the_folder_is_refused_until_the_first_is_killed(args, folder, caplog):
    out = folder / "out"
    out.mkdir()
    code = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True)"
    command = [sys.executable, "-c", code + "; time.sleep(600)", out / ".lock"]
    with train.lock_checkpoint_dir(out):
        assert train.main(args("out", "--epochs", 1)) == 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        assert train.main(args("out", "--epochs", 1)) == 1
        assert all(str(out) in message for message in caplog.messages) and not list(out.glob("*.pth"))
        other.kill()
    assert train.main(args("out", "--epochs", 1)) == 0


def test_a_checkpoint_folder_that_cannot_be_written_is_an_error_before_the_first_step(
    args, folder, caplog, monkeypatch
):
    monkeypatch.setattr(train, "build_trainer", lambda *_: pytest.fail("it began"))
    (folder / "file").touch()
    for out in (folder / "file" / "out", Path("/proc/nothing")):
        assert train.main(args(out, "--epochs", 1)) == 1
        assert str(out) in caplog.messages[-1]


def test_the_last_message_names_the_best_checkpoint_and_a_command_that_plays_it(args, folder, caplog):
    caplog.set_level("INFO")
    flags = args("out", "--epochs", 2, "--val_fraction", 0)  # the lowest training loss is the best
    for _ in range(2):  # the second call finds the training complete
        assert train.main(flags) == 0
        sentence, command = caplog.messages[-1].split("; to listen: ")
        best = folder / "out" / "best.pth"
        assert str(best) in sentence and f"epoch {read_checkpoint(best)['epoch']}" in sentence
        program, script, *words = shlex.split(command)
        assert (program, script) == ("./venv/bin/python", "transfer.py")
        assert transfer.parse_args(words).checkpoint == best
    metrics = read_checkpoint(best)["metrics"]
    assert np.isfinite(metrics["best_val_loss"]) and metrics["first_val_loss"] is None and "nan" not in caplog.text


def test_empty_rank_variables_count_as_unset_and_invalid_ones_are_named(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert read_ranks() == SINGLE_PROCESS
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"WORLD_SIZE.*two"):
        read_ranks()
