"""The ablation: rows are trained and judged by the scripts that users run, and go on where they were."""

import dataclasses
import json

import pytest
import soundfile

import ablations as ablate
from checkpoint import read_checkpoint
from config import load_config
from conftest import melody
from data import save_recording


@pytest.fixture
def flags(tmp_path, make_recording, monkeypatch):
    """Flags for a corpus of two takes of three notes and a hum; the models are small."""
    (tmp_path / "data").mkdir()
    for number, notes in enumerate([(440.0, 523.3, 659.3), (330.0, 392.0, 494.0)]):
        save_recording(tmp_path / "data" / f"{number}.pt", make_recording(melody(notes, 0.8), name=f"{number}.wav"))
    soundfile.write(tmp_path / "hum.wav", melody(), 16000)
    content = json.loads(ablate.DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"] |= {"hidden_size": 16, "n_harmonics": 20}
    content["base"]["train"] |= {"crop_seconds": 0.5, "val_fraction": 0.3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr(ablate, "DEFAULT_CONFIG_PATH", tmp_path / "config.json")
    given = {"data_dir": tmp_path / "data", "input": tmp_path / "hum.wav", "output_dir": tmp_path / "out"}
    return [*(str(word) for name, value in given.items() for word in (f"--{name}", value)), "--batch_size", "4"]


def test_rows_are_trained_judged_and_taken_up_again(flags, tmp_path, capsys, monkeypatch):
    wanted = [*flags, "--epochs", "1", "--half_life", "7", "--rows", "ema:1", "--json", str(tmp_path / "table.json")]
    assert ablate.main(wanted) == 0
    table = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert (row["variant"], row["seed"], row["steps"]) == ("ema", 1, 2)
    assert f"| without the rise, weights averaged, seed 1 | 2 | {row['copies']['stft_loss']:.3f} |" in table
    assert row["copies"]["likeness"] is None and row["played"]["loudness_correlation"] > 0
    path = tmp_path / "out" / "ema_1" / "latest.pth"
    content = read_checkpoint(path)
    assert content["config"]["train"]["ema_decay"] == 0.99 and content["config"]["model"]["embed_size"] == 128
    assert content["config"]["train"]["learning_rate_half_life"] == 7 and content["rng"]["seed"] == 1
    judged, before = [], path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ablate.judging, "evaluate_takes", lambda *_, **__: judged.append(1))
        assert ablate.main(wanted) == 0  # nothing is trained or judged again
    assert capsys.readouterr().out == table and not judged and path.read_bytes() == before
    noted = path.with_name("recordings.sha256").read_text()
    path.with_name("recordings.sha256").unlink()  # of an earlier version, which went on to train
    assert ablate.main([*wanted, "--epochs", "2"]) == 0
    assert "| 4 |" in capsys.readouterr().out and read_checkpoint(path)["step"] == 4
    assert path.with_name("recordings.sha256").read_text() == noted


def test_what_was_changed_is_judged_anew_or_refused(flags, tmp_path, make_recording, config, caplog, monkeypatch):
    wanted = [*flags, "--epochs", "1", "--half_life", "7", "--rows", "tiny"]
    latest, judged, judge = tmp_path / "out" / "tiny_0" / "latest.pth", [], ablate.judging.evaluate_voice
    monkeypatch.setattr(
        ablate.judging, "evaluate_voice", lambda *given, **more: judged.append(1) or judge(*given, **more)
    )

    def judges():
        judged.clear()
        assert ablate.main(wanted) == 0
        return len(judged) == 1

    def play_other(*notes):
        save_recording(tmp_path / "other" / "0.pt", make_recording(melody(notes, 0.8), "guitar"))

    assert judges() and not judges()
    before = latest.read_bytes()
    for more, change in (
        (("--half_life", "8"), "train.learning_rate_half_life 7 -> 8"),
        (("--batch_size", "3", "--epochs", "2"), "train.batch_size 4 -> 3"),
    ):
        assert ablate.main([*wanted, *more]) == 1
        assert f"tiny_0 was begun otherwise, so its figures would not compare: {change}. Give" in caplog.messages[-1]
    with monkeypatch.context() as patch:
        patch.setitem(ablate.VARIANTS, "tiny", ("another", "tiny", {"model": {"hidden_size": 24}}))
        assert ablate.main(wanted) == 1
    assert "compare: model.hidden_size 16 -> 24" in caplog.messages[-1]
    soundfile.write(tmp_path / "hum.wav", melody((262.0, 294.0)), 16000)
    assert judges() and not judges()
    play_other(440.0, 523.3)
    wanted += ["--other_dir", str(tmp_path / "other")]
    assert judges() and not judges()
    play_other(330.0, 392.0)
    assert judges() and not judges()
    changed = dataclasses.replace(config, transfer=dataclasses.replace(config.transfer, gate_fade_seconds=0.1))
    monkeypatch.setattr("checkpoint.load_config", lambda: changed)
    assert judges() and not judges()
    (tmp_path / "data").rename(tmp_path / "moved")
    wanted[1] = str(tmp_path / "moved")
    assert not judges()  # the same recordings
    save_recording(tmp_path / "moved" / "1.pt", make_recording(melody((349.0, 415.0, 494.0), 0.8), name="1.wav"))
    for epochs in ("1", "2"):  # done, and to go on
        assert ablate.main([*wanted, "--epochs", epochs]) == 1
        assert f"{tmp_path / 'moved'} held other recordings" in caplog.messages[-1]
    assert latest.read_bytes() == before


def test_bad_recordings_and_a_failed_training_are_one_sentence(flags, tmp_path, caplog):
    assert ablate.main([*flags[2:], "--data_dir", str(tmp_path / "nothing"), "--rows", "tiny"]) == 1
    assert caplog.messages[-1] == f"ablate.py: there is no file or folder {tmp_path / 'nothing'}"
    (tmp_path / "raw").mkdir()
    soundfile.write(tmp_path / "raw" / "take.wav", melody(), 16000)  # not processed
    assert ablate.main([*flags[2:], "--data_dir", str(tmp_path / "raw"), "--rows", "tiny"]) == 1
    assert "the training of `tiny`, the baseline failed" in caplog.text


@pytest.mark.parametrize("name", list(ablate.VARIANTS))
def test_a_variant_is_its_preset_with_its_change_alone(name, tmp_path):
    _, preset, changes = ablate.VARIANTS[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ablate.configure(name, 250)))
    variant, base = load_config(path, name), load_config(preset=preset)
    assert variant.train.learning_rate_half_life == 250
    for section in ("audio", "features", "model", "loss", "train"):
        now, before = vars(getattr(variant, section)), vars(getattr(base, section))
        differences = {key: value for key, value in now.items() if value != before[key]}
        differences.pop("learning_rate_half_life", None)
        assert differences == changes.get(section, {})


def test_the_last_step_to_solo_is_the_preset():
    """The row before it and what it says it adds make the preset, so the table tells how solo came about."""
    base, (_, _, changes) = load_config(preset="tiny").model, ablate.VARIANTS["projection"]
    assert load_config(preset="solo").model == dataclasses.replace(base, **changes["model"], attack_frames=3)


def test_worst_of_several_voices_counts():
    assert ablate._worst("loudness_correlation", [0.99, 0.9, None]) == 0.9
    assert ablate._worst("likeness", [0.1, 0.3]) == 0.3
    assert ablate._worst("likeness", [None]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rows", "huge"], "there is no row 'huge'; rows are tiny, head"),
        (["--rows", "solo:x"], "there is no row 'solo:x'"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--half_life", "0"], "--half_life must be at least 1"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
    ],
)
def test_bad_flags_are_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        ablate.parse_args(["--data_dir", "x", "--output_dir", "y", *given])
    assert message in capsys.readouterr().err
