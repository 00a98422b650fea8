"""training/experiment_log.py: the files of a run, W&B, and the run page."""

import dataclasses
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from conftest import melody
from data import load_recording, save_recording
from loss import StftLoss
from model import build_model
from recordings.corpus import Corpus
from recordings.crops import Span
from training import wandb_run
from training.experiment_log import ExperimentLog, choose_run_name, read_metrics
from training.held_out_phrases import SOUNDS, choose_phrases, load_loudest_passage, play_phrase


@pytest.fixture
def corpus(tmp_path, make_recording):
    """Two recordings of a melody, one of them held out."""
    for name in ("kept", "held"):
        save_recording(tmp_path / f"{name}.wav.pt", make_recording(melody(), name=f"{name}.wav"))
    n_frames = load_recording(tmp_path / "kept.wav.pt").n_frames
    spans = [Span(tmp_path / f"{name}.wav.pt", 0, n_frames) for name in ("kept", "held")]
    return Corpus(tmp_path, "trumpet", (spans[0],), (spans[1],))


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    return build_model(small_config, "trumpet")


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """An environment without a W&B login."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class RecordedRun:
    """A W&B run that records what is logged; ``start`` stands for ``wandb.init``."""

    def __init__(self, settings):
        self.settings, self.axes, self.rows, self.exit_code = settings, {}, [], None
        (settings["dir"] / "wandb" / f"offline-run-{settings['resume']}-{id(self)}-{settings['id']}").mkdir()

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.rows.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


def make_log(folder, config, corpus, resumed_at=0):
    return ExperimentLog(folder, config, corpus, choose_phrases(corpus), resumed_at)


def log_epochs(tracker, epochs, first_step=1):
    for epoch in epochs:
        step = first_step + epoch - 1
        tracker.log_step(epoch - 1, step, {"train_loss": 2.0 / epoch, "grad_norm": 1.0, "learning_rate": 0.001})
        tracker.log_epoch(epoch, step, 2.0 / epoch, StftLoss(3.0 / epoch, 1.0, 0.5))


def test_offline_parts_of_a_resumed_training_are_one_run(
    tmp_path, corpus, model, small_config, no_account, caplog, monkeypatch
):
    caplog.set_level("INFO")
    folder, runs = tmp_path / "runs" / "quiet-echo", []
    monkeypatch.setattr("wandb.init", lambda **settings: runs.append(RecordedRun(settings)) or runs[-1])
    for epochs in ([1, 2], [3]):
        tracker = make_log(folder, small_config, corpus, resumed_at=epochs[0] - 1)
        tracker.start_wandb(None, "some-project", "abcd1234")
        log_epochs(tracker, epochs)
        tracker.log_phrases(epochs[-1], epochs[-1], model, corpus)
        tracker.finish(0)
    assert "offline" in caplog.text and "`./venv/bin/python -m wandb login`" in caplog.text
    upload = f"./venv/bin/python -m wandb sync {folder}/wandb/offline-run-*-abcd1234"
    assert "2 parts" in caplog.text and upload in caplog.text
    for run in runs:
        named = {name: run.settings[name] for name in ("id", "name", "project", "mode")}
        assert named == {"id": "abcd1234", "name": "quiet-echo", "project": "some-project", "mode": "offline"}
        assert run.axes["train_*"] == run.axes["grad_norm"] == "step" and run.axes["val_*"] == "epoch"
        assert run.exit_code == 0
    rows = [row for run in runs for row in run.rows]
    losses = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    assert losses == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert [row["val_loss"] for row in rows if "val_loss" in row] == [3, 1.5, 1]
    media = [row for row in rows if "phrase_1_picture" in row]
    assert len(media) == 2 and all(f"phrase_1_{name}" in row for row in media for name in SOUNDS)


def test_without_a_network_the_run_is_kept_offline(tmp_path, corpus, small_config, no_account, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40 + "\n")
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server
    monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 2)
    tracker = make_log(tmp_path / "run", small_config, corpus)
    tracker.start_wandb(None, "p", "abcd1234")
    log_epochs(tracker, [1])
    tracker.finish(0)
    assert "W&B" in caplog.text and "offline" in caplog.text and "login" not in caplog.text
    assert len(list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))) == 1


def test_the_key_of_wandb_login_is_found(tmp_path, no_account, monkeypatch):
    import wandb  # slow to import
    from wandb.sdk.lib.wbauth import wbnetrc

    assert not wandb_run.has_key() and wandb_run.choose_mode("disabled") == "disabled"
    assert wandb_run.choose_mode(None) == "offline"
    wbnetrc.write_netrc_auth(host=wandb.Settings().base_url, api_key="0" * 40)  # as ``wandb login`` does
    assert wandb_run.has_key() and wandb_run.choose_mode(None) == "online"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert wandb_run.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not wandb_run.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_run.has_key()


def test_repeated_steps_are_recorded_once(tmp_path, corpus, small_config):
    tracker = make_log(tmp_path / "run", small_config, corpus)
    log_epochs(tracker, [1, 2, 3])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # killed in the middle of a line
    log_epochs(make_log(tmp_path / "run", small_config, corpus, resumed_at=2), [3, 4])
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records if record["kind"] == "step"] == [1, 2, 3, 4]
    assert [record["epoch"] for record in records if record["kind"] == "epoch"] == [1, 2, 3, 4]
    assert [record["step"] for record in records if record["kind"] == "start"] == [0, 2]


def test_phrases_have_the_level_of_the_target_and_their_parts_add_up(corpus, model, config):
    (span,) = choose_phrases(corpus).values()
    phrase = load_loudest_passage(span, config)
    assert phrase.name == "held.wav"
    sounds, gain = play_phrase(model, phrase)
    levels = {name: np.sqrt(np.mean(sounds[name] ** 2)) for name in sounds}
    assert levels["resynthesis"] == pytest.approx(levels["target"], rel=1e-3)
    # The parts add up in float32.
    assert sounds["harmonic"] + sounds["noise"] == pytest.approx(sounds["resynthesis"], abs=1e-6)
    sound = model(phrase.f0, phrase.loudness, torch.Generator().manual_seed(0))[0].detach().numpy()
    scale = np.abs(sounds["target"]).max() / np.abs(phrase.target).max()  # less than 1 where a sound would clip
    assert scale * 10 ** (gain / 20) * sound == pytest.approx(sounds["resynthesis"], abs=1e-5)
    assert all(np.abs(part).max() <= 1 for part in sounds.values())
    again, _ = play_phrase(model, phrase)
    assert all(np.array_equal(sounds[name], again[name]) for name in sounds)


def test_up_to_three_phrases_are_chosen_and_kept_on_resume(tmp_path):
    def corpus_of(*names, folder=tmp_path):
        return Corpus(folder, "trumpet", (), tuple(Span(folder / name, 0, 100) for name in names))

    corpus = corpus_of(*(f"{number}/take.pt" for number in range(10)))
    chosen = choose_phrases(corpus)
    assert list(chosen) == ["0/take.pt", "4/take.pt", "8/take.pt"] and chosen["4/take.pt"] == corpus.validation[4]
    nothing_held_out = Corpus(tmp_path, "trumpet", corpus.validation[:1], ())
    assert list(choose_phrases(nothing_held_out)) == ["0/take.pt"]
    more = corpus_of("a", "b", "c", "e", "f", folder=tmp_path / "moved")
    assert choose_phrases(more, ["b", "d", "f"]) == {"b": more.validation[1], "d": None, "f": more.validation[4]}
    assert list(choose_phrases(corpus_of("x", "y"), ["b", "d", "f"])) == ["x", "y"]


def test_a_phrase_is_the_loudest_passage_inside_the_span(tmp_path, config, counting_recording):
    recording = counting_recording(2000)  # 20 s, louder to the end
    save_recording(tmp_path / "take.pt", recording)
    phrase = load_loudest_passage(Span(tmp_path / "take.pt", 100, 1000), config)
    assert phrase.f0.shape == (1, 400, 1) and phrase.f0[0, 0, 0] == 100 + 700 and phrase.f0[0, -1, 0] == 100 + 1099
    assert phrase.target[0] == 700 and len(phrase.target) == 400 * 160


def test_a_failing_log_does_not_stop_a_training(tmp_path, corpus, model, small_config, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    tracker = make_log(tmp_path / "run", small_config, corpus)
    tracker.start_wandb("offline", "p", "abcd1234")
    log_epochs(tracker, [1])
    tracker.log_phrases(1, 1, model, corpus)
    tracker.finish(0)
    assert any(record.levelname == "WARNING" for record in caplog.records) and "Traceback" not in caplog.text


def test_run_names_are_new(tmp_path):
    names = {choose_run_name(tmp_path) for _ in range(20)}
    assert len(names) > 5 and all(len(name.split("-")) == 2 for name in names)
    assert choose_run_name(tmp_path, "mine") == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine-2").mkdir()
    assert choose_run_name(tmp_path, "mine") == "mine-3"


def browse(path):
    """Return the page's DOM after its script has run."""
    command = [
        shutil.which("chromium") or shutil.which("chromium-browser"),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        "--dump-dom",
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


def test_the_page_shows_curves_sounds_and_pictures(tmp_path, corpus, model, small_config):
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("no chromium here")
    folder = tmp_path / "<b>run & more"
    tracker = make_log(folder, small_config, corpus)
    log_epochs(tracker, [1, 2])
    tracker.log_phrases(2, 2, model, corpus)
    page = browse(folder / "index.html")
    assert "<h1>&lt;b&gt;run &amp; more</h1>" in page
    for title in ("Loss, by epoch", "Training loss, by step", "Gradient norm, by step", "Learning rate, by step"):
        assert title in page
    assert page.count("<audio") == 4 and all(f"phrase_1_{name}.wav" in page for name in SOUNDS)
    assert "epoch_0002_phrase_1_dark.png" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere


def data_of(folder):
    """Return what a page's script reads, as a browser would: NaN is no JSON."""

    def refuse(name):
        raise ValueError(name)

    page = (folder / "index.html").read_text()
    return json.loads(page.split('id="data">')[1].split("</script>")[0], parse_constant=refuse)


def test_values_that_are_not_finite_become_null(tmp_path, corpus, model, small_config):
    folder, nan, inf = tmp_path / "run", float("nan"), float("inf")
    tracker = make_log(folder, small_config, corpus)
    tracker.log_step(0, 1, {"train_loss": 1.0, "grad_norm": inf})
    of_earlier_version = '{"kind": "step", "step": 2, "train_loss": NaN, "grad_norm": -Infinity}\n'
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(of_earlier_version)
    with torch.no_grad():
        model.harmonic_head.bias.fill_(nan)
    tracker.log_phrases(1, 2, model, corpus)
    tracker.log_epoch(1, 2, inf, StftLoss(nan, nan, 0.5))
    tracker.finish(0)
    data = data_of(folder)
    assert [(step["train_loss"], step["grad_norm"]) for step in data["steps"]] == [(1, None), (None, None)]
    assert data["phrases"][0]["phrases"][0]["gain"] is None
    epoch = data["epochs"][0]
    assert (epoch["epoch_train_loss"], epoch["val_loss"], epoch["val_log_magnitude"]) == (None, None, 0.5)
    written = (folder / "metrics.jsonl").read_text().replace(of_earlier_version, "")
    assert "NaN" not in written and "Infinity" not in written


def test_the_page_shows_starts_changes_and_the_time_left(tmp_path, corpus, small_config, monkeypatch):
    clock = iter([0, 600, 1200, 86400, 87000, 87600])  # s: three times a start and two epochs of ten minutes
    monkeypatch.setattr("time.time", lambda: next(clock))
    monkeypatch.setenv("TZ", "UTC")
    train = dataclasses.replace(small_config.train, epochs=14)
    config = dataclasses.replace(small_config, train=train)
    folder, phrases = tmp_path / "run", choose_phrases(corpus)
    tracker = ExperimentLog(folder, config, corpus, phrases)
    for epoch in (1, 2):
        tracker.log_epoch(epoch, 3 * epoch, 1.0, StftLoss(1.0, 1.0, 0.5))
    assert "2 h 0 min" in (folder / "index.html").read_text()
    changes = {"train.learning_rate": "0.001 -> <0.0005"}
    tracker = ExperimentLog(folder, config, corpus, phrases, 6, changes, tmp_path / "here" / "latest.pth")
    for epoch in (3, 4):
        tracker.log_epoch(epoch, 3 * epoch, 1.0, StftLoss(1.0, 1.0, 0.5))
    page = (folder / "index.html").read_text()
    assert "1 h 40 min" in page and "started 1970-01-01 00:00" in page
    assert "resumed 1970-01-02 00:00 at step 6" in page and str(tmp_path / "here" / "latest.pth") in page
    assert "train.learning_rate 0.001 → &lt;0.0005" in page and "<dt>crop_seconds</dt><dd>0.25</dd>" in page
    assert data_of(folder)["changes"] == [{"step": 6, "epoch": 2, "text": "train.learning_rate 0.001 → <0.0005"}]
    tracker.finish(0)
    assert "time left" not in (folder / "index.html").read_text()
