"""scripts/evaluate.py: complete runs with a small model, and input that is refused."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch

import evaluate as ev
from checkpoint import load_model, make_checkpoint, read_checkpoint, save_checkpoint
from config import load_config
from conftest import melody
from data import load_recording, save_recording
from evaluation.judging import MODEL, RECORDING, UNTRAINED, VOICE, read_takes
from model import build_model
from recordings.corpus import RECORDING_ENDS, read_corpus

NOTES = (330.0, 392.0, 440.0, 494.0, 523.3, 587.3)


def evaluate(checkpoint, *flags):
    return ev.main(["--checkpoint", str(checkpoint), "--device", "cpu", *map(str, flags)])


@pytest.fixture
def voices(tmp_path):
    """A folder with two hums, one of them silent."""
    folder = tmp_path / "voices"
    folder.mkdir()
    soundfile.write(folder / "hum.wav", melody(), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    return folder


@pytest.fixture(scope="session")
def takes(make_recording):
    """Return a function that fills a folder with processed recordings of two notes each."""

    def fill(folder, instrument, count):
        folder.mkdir()
        for number in range(count):
            recording = make_recording(melody((NOTES[number], 2 * NOTES[number])), instrument, f"take{number}.wav")
            save_recording(folder / f"take{number}.wav.pt", recording)
        return folder

    return fill


class References(HTMLParser):
    """Collect the links and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.references, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "srcset", "href", "data")]


def test_a_whole_scorecard(write_checkpoint, takes, voices, tmp_path, capsys, caplog):
    checkpoint, same = write_checkpoint(), write_checkpoint("same.pth")
    own, out, page = takes(tmp_path / "own", "trumpet", 6), tmp_path / "out" / "score.json", tmp_path / "score.html"
    (voices / "hum_f0.csv").write_text("seconds,hz\n" + "".join(f"{t / 100},220\n" for t in range(5, 35)))
    flags = ["--input", voices, "--data_dir", own, "--baseline", same, "--snr", 20]
    assert evaluate(checkpoint, *flags, "--json", out, "--html", page) == 1  # one voice could not be evaluated
    assert caplog.messages == [f"evaluate.py: {voices / 'silent.wav'}: the recording is silent"]

    report, printed = json.loads(out.read_text()), capsys.readouterr().out
    held_out = read_corpus(own, load_model(checkpoint).settings).validation
    assert report["recordings"] == [span.path.name.removesuffix(".pt") for span in held_out] and len(held_out) == 1
    assert [row["sound"] for row in report["resynthesis"]] == [MODEL, "same", UNTRAINED, RECORDING]
    assert report["baselines"] == ["same.pth, preset `tiny` after 2 steps"]
    ours, baseline, _, recording = report["resynthesis"]
    assert {**ours, "sound": ""} == {**baseline, "sound": ""}  # the same weights
    for figure in ("log_mel", "log_mel_8k", "stft_loss", "loudness_l1"):
        assert recording[figure] == 0 < ours[figure]
    played = {(row["voice"], row["sound"]): row for row in report["transfer"]}
    assert len(played) == 2 * 4 and {voice for voice, _ in played} == {"hum", "hum, 20 dB SNR"}
    for voice in ("hum", "hum, 20 dB SNR"):
        assert played[voice, MODEL]["f0_median"] < 30 and played[voice, MODEL]["pause_level"] < -80
        assert played[voice, MODEL]["octave"] == played[voice, VOICE]["octave"] == 100
        assert 0 <= played[voice, MODEL]["recognised"] <= 100
    assert played["hum", VOICE]["f0_median"] < 1
    assert "hum, 20 dB SNR" in printed and "Resynthesis, sanity" in printed and "OK" not in printed

    text = page.read_text()
    seen = References()
    seen.feed(text)
    # Three sounds of the take and four of each hum; every one of them is inside the page.
    assert seen.tags.count("audio") == 4 + 2 * 4 and seen.tags.count("picture") == 4 + 2
    assert all(reference.startswith("data:") for reference in seen.references)
    assert "http://" not in text and "https://" not in text and "default-src 'none'" in text
    assert not list(tmp_path.rglob("*.part"))


def test_an_untrained_model_misses_half_of_the_targets(tmp_path, config):
    # Many notes of a synthetic instrument, brighter at higher levels, each with an attack and a decay.
    rng = np.random.default_rng(0)
    levels, pitches = 10 ** (rng.uniform(-18, 0, 24) / 20), 220 * 2 ** (rng.integers(0, 12, 24) / 12)
    seconds = np.arange(8000) / 16000
    envelope = np.minimum(seconds / 0.01, 1) * 10 ** (-20 * seconds / 20) * np.minimum((0.5 - seconds) / 0.01, 1)
    partials = [
        [np.sin(2 * np.pi * k * f0 * seconds) * g ** (k / 4) / k for k in range(1, 18)]
        for f0, g in zip(pitches, levels)
    ]
    notes = [0.3 * g * envelope * np.sum(parts, axis=0) for g, parts in zip(levels, partials)]
    folder = tmp_path / "real"
    folder.mkdir()
    soundfile.write(folder / "notes.wav", np.concatenate(notes), 16000)
    for instrument in ("guitar", "trumpet"):
        torch.manual_seed(1)
        statistics = {
            "f0_quantiles": np.geomspace(200, 800, 101).tolist(),
            "loudness_quantiles": np.linspace(-45, -15, 101).tolist(),
        }
        content = {"epoch": 0, "step": 0, "position_in_epoch": 0, "statistics": statistics}
        content["model"] = build_model(config, instrument).state_dict()
        save_checkpoint(tmp_path / "model.pth", make_checkpoint(config, instrument, **content))
        flags = ["--input", "examples/hum.wav", "--data_dir", folder, "--json", tmp_path / "a.json", "--targets"]
        assert evaluate(tmp_path / "model.pth", *flags) == 1
        targets = json.loads((tmp_path / "a.json").read_text())["untrained_targets"]
        sanity_met, learned_met = (
            [target["met"] for target in targets if target["sanity"] == kind] for kind in (True, False)
        )
        assert np.mean(learned_met) <= 0.5 < np.mean(sanity_met), (instrument, targets)


def test_figures_are_reproducible(write_checkpoint, voices, tmp_path):
    reports = []
    for number in range(2):
        out = tmp_path / f"{number}.json"
        assert evaluate(write_checkpoint(), "--input", voices / "hum.wav", "--snr", 10, "--json", out) == 0
        reports.append(json.loads(out.read_text()))
        assert reports[number].pop("date")
    assert reports[0] == reports[1]


def test_all_plain_recordings_are_used(write_checkpoint, voices, tmp_path, caplog):
    flags = ["--data_dir", voices, "--json", tmp_path / "a.json"]
    assert evaluate(write_checkpoint(), *flags) == 1 and "silent.wav is silent" in caplog.text
    (voices / "silent.wav").unlink()
    soundfile.write(voices / "more.wav", melody(NOTES), 16000)
    assert evaluate(write_checkpoint(), *flags) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["recordings"] == ["hum", "more"] and report["transfer"] == []


def test_baseline_of_another_sample_rate_is_in_the_same_tables(write_checkpoint, voices, tmp_path):
    wide = load_config(preset="wide")
    wide = dataclasses.replace(wide, model=dataclasses.replace(wide.model, hidden_size=32))
    flags = ["--input", voices / "hum.wav", "--data_dir", voices, "--json", tmp_path / "a.json"]
    (voices / "silent.wav").unlink()
    baseline, model = write_checkpoint("narrow.pth"), write_checkpoint("wide.pth", config=wide)
    assert evaluate(model, *flags, "--baseline", baseline) == 0
    rows = {row["sound"]: row for row in json.loads((tmp_path / "a.json").read_text())["resynthesis"]}
    assert rows.keys() == {MODEL, "narrow", UNTRAINED, RECORDING}
    assert all(value is not None for row in rows.values() for key, value in row.items() if key.startswith("log_mel"))


def test_evaluated_recordings_are_those_held_out_in_training(write_checkpoint, takes, tmp_path):
    model, folder = load_model(write_checkpoint()), takes(tmp_path / "own", "trumpet", 6)
    digests = sorted(load_recording(path).source["sha256"] for path in folder.glob("*.pt"))
    content = read_checkpoint(write_checkpoint())
    trained = content | {"schedule": {"boundary": digests[3]}}
    assert len(read_takes(folder, model, trained)) == 4
    trained = content | {"schedule": {"boundary": RECORDING_ENDS}}
    assert [len(take.audio) for take in read_takes(folder, model, trained)] == [12 * 160] * 6
    halved = content["config"] | {"train": content["config"]["train"] | {"val_fraction": 0.5}}
    trained = content | {"schedule": None, "config": halved}  # of an earlier version
    assert len(read_takes(folder, model, trained)) == 3


def test_few_takes_are_held_out_by_their_ends(write_checkpoint, takes, tmp_path):
    model = load_model(write_checkpoint())
    folder = takes(tmp_path / "own", "trumpet", 2)
    read = read_takes(folder, model)
    assert [len(take.audio) for take in read] == [12 * 160] * 2  # a tenth of 1.2 s
    assert [len(take.sound.f0) for take in read] == [12] * 2


def test_targets_are_listed_and_a_miss_fails(write_checkpoint, voices, capsys, monkeypatch):
    target = {"section": "transfer", "figure": "x", "value": 3.0, "limit": "at most 2", "met": False, "sanity": False}
    monkeypatch.setattr(ev, "check_targets", lambda *_: [target])
    assert evaluate(write_checkpoint(), "--input", voices / "hum.wav", "--targets") == 1
    out = capsys.readouterr().out
    assert re.search(r"\| MISS \| transfer: x", out) and "misses 1 of 1" in out
    monkeypatch.setattr(ev, "check_targets", lambda *_: [{**target, "value": None, "met": True}])
    assert evaluate(write_checkpoint(), "--input", voices / "hum.wav", "--targets") == 0


def test_failing_voice_does_not_stop_the_run(write_checkpoint, voices, monkeypatch, caplog):
    def fail(path, *rest):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(ev, "evaluate_voice", fail)
    assert evaluate(write_checkpoint(), "--input", voices) == 1
    assert [message.split(":")[1].strip() for message in caplog.messages[:2]] == [
        str(voices / "hum.wav"),
        str(voices / "silent.wav"),
    ]


def test_refused_files_are_one_sentence(write_checkpoint, takes, voices, tmp_path, caplog):
    checkpoint = write_checkpoint()
    (tmp_path / "empty").mkdir()
    own, other = takes(tmp_path / "own", "trumpet", 1), takes(tmp_path / "other", "guitar", 1)
    cases = [
        (["--input", tmp_path / "nowhere"], "there is no file or folder"),
        (["--input", tmp_path / "empty"], "holds no sound files"),
        (["--data_dir", tmp_path / "nowhere"], "there is no folder"),
        (["--data_dir", tmp_path / "empty"], "holds no sound files"),
        (["--data_dir", other], "holds guitar, but trumpet is wanted"),
        (["--data_dir", own, "--baseline", write_checkpoint("g.pth", "guitar")], "g.pth plays guitar"),
        (["--data_dir", own, "--baseline", checkpoint, checkpoint], "two baselines are called model"),
        (["--data_dir", own, "--baseline", tmp_path / "nowhere.pth"], "there is no checkpoint"),
        (["--input", voices, "--device", "cuda:99"], "cannot be used here"),
    ]
    for flags, message in cases:
        caplog.clear()
        assert evaluate(checkpoint, *flags) == 1, flags
        assert message in caplog.text and len(caplog.messages) == 1, flags
    (voices / "hum_f0.csv").write_text("no numbers")
    caplog.clear()
    assert evaluate(checkpoint, "--input", voices / "hum.wav") == 1 and "hum_f0.csv" in caplog.text
    (own / "take0.wav.pt").write_bytes(b"damaged")
    caplog.clear()
    assert evaluate(checkpoint, "--data_dir", own) == 1 and "not a readable processed file" in caplog.text


def test_missing_held_out_recordings_are_an_error(write_checkpoint, takes, tmp_path):
    model = load_model(write_checkpoint())
    model.settings = dataclasses.replace(
        model.settings, train=dataclasses.replace(model.settings.train, val_fraction=0.0)
    )
    with pytest.raises(ValueError, match="holds out no recordings"):
        read_takes(takes(tmp_path / "own", "trumpet", 1), model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data_dir"),
        (["--input", "a", "--articulation", "bow"], "--articulation"),
        (["--input", "a", "--snr", "200"], "--snr"),
        (["--input", "a", "--snr", "nan"], "--snr"),
    ],
)
def test_refused_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        ev.main(["--checkpoint", "c.pth", *flags])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_failed_write_keeps_the_old_file(write_checkpoint, voices, tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    assert evaluate(write_checkpoint(), "--input", voices / "hum.wav", "--json", tmp_path / "file" / "a.json") == 1
    assert "evaluate.py:" in caplog.text and (tmp_path / "file").read_text() == "mine"


def test_interrupt_is_one_sentence(monkeypatch, caplog):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ev, "run", stop)
    assert ev.main(["--checkpoint", "c.pth", "--input", "a"]) == 130 and "stopped" in caplog.text
