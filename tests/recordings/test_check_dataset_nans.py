"""scripts/check_dataset_nans.py: invalid values, silence, clipping, and the command line."""

import dataclasses

import numpy as np
import pytest
import torch

import check_dataset_nans as check
from conftest import harmonic_tone, melody
from data import save_recording


@pytest.fixture(scope="session")
def sound(make_recording):
    """A recording in which nothing is wrong."""
    return make_recording(melody())


def changed(recording, name, value, frame=30):
    values = getattr(recording, name).clone()
    values.reshape(-1)[frame] = value
    return dataclasses.replace(recording, **{name: values})


def problems_of(recording, tmp_path, config):
    path = tmp_path / "data" / "take.pt"
    path.parent.mkdir(exist_ok=True)
    save_recording(path, recording)
    return "; ".join(check.find_problems(path, config))


def with_audio(recording, audio):
    padded = np.zeros(recording.audio.shape[1], dtype=np.float32)
    padded[: len(audio)] = audio[: len(padded)]
    return dataclasses.replace(recording, audio=torch.from_numpy(padded)[None])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f0", float("nan")),
        ("f0", 0.0),
        ("loudness", float("-inf")),
        ("loudness", -90.0),
        ("periodicity", 1.5),
        ("audio", float("inf")),
        ("audio", float("nan")),
    ],
)
def test_invalid_values_are_found(sound, tmp_path, config, name, value):
    assert problems_of(sound, tmp_path, config) == ""
    assert name in problems_of(changed(sound, name, value), tmp_path, config)


def test_wrong_shapes_and_other_files_are_found(sound, tmp_path, config):
    short = dataclasses.replace(sound, loudness=sound.loudness[:, 1:])
    assert "shapes" in problems_of(short, tmp_path, config)
    (tmp_path / "data" / "take.pt").write_bytes(b"no recording")
    assert check.find_problems(tmp_path / "data" / "take.pt", config) == ["is not a readable processed file"]


def test_silence_and_clipping_are_found(sound, tmp_path, config):
    def problems(audio):
        return problems_of(with_audio(sound, audio), tmp_path, config)

    assert problems(np.zeros(9)) == "is silent"
    quiet = 0.0009 * harmonic_tone(440, 0.5, n_harmonics=1, amplitude=1)
    assert "-61 dBFS" in problems(quiet) and problems(1.2 * quiet) == ""
    tone = harmonic_tone(440, 1.0, n_harmonics=5, amplitude=1)
    loud = tone / np.abs(tone).max()
    assert "full scale" in problems(np.clip(2 * loud, -1, 1)) and "is clipped" in problems(
        0.5 * np.clip(8 * loud, -1, 1)
    )
    for f0 in (82.4, 440.0, 1000.0):  # normalised; at 1 kHz the samples of each period are the same
        tone = harmonic_tone(f0, 1.5, amplitude=1) * np.hanning(24000)
        assert problems(tone / np.abs(tone).max()) == ""
    assert "is clipped" in problems(0.3 * np.sign(np.sin(2 * np.pi * 440 * np.arange(16000) / 16000 + 0.1)))


def test_bad_files_are_counted_and_moved(sound, tmp_path, capsys):
    data, bad = tmp_path / "data", tmp_path / "bad"
    for name in ("a.pt", "more/b.pt", "more/c.pt"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        save_recording(data / name, sound)
    assert check.main(["--data_dir", str(data)]) == 0
    assert "3 files, 0 bad" in capsys.readouterr().out
    for _ in range(2):
        save_recording(data / "more" / "b.pt", changed(sound, "f0", float("nan")))
        assert check.main(["--data_dir", str(data), "--move_bad", str(bad)]) == 1
        out = capsys.readouterr().out
        assert "b.pt" in out and str(bad) in out and "3 files, 1 bad" in out
    assert sorted(path.name for path in bad.rglob("*.pt")) == ["b.2.pt", "b.pt"]
    assert sorted(path.name for path in data.rglob("*.pt")) == ["a.pt", "c.pt"]
    assert check.main(["--data_dir", str(data)]) == 0


def test_invalid_folders_are_named(tmp_path, capsys, caplog):
    (tmp_path / "empty").mkdir()
    assert check.main(["--data_dir", str(tmp_path / "empty")]) == 1
    assert "holds no .pt files" in caplog.text
    for arguments in (
        ["--data_dir", str(tmp_path / "none")],
        ["--data_dir", str(tmp_path), "--move_bad", str(tmp_path / "bad")],
    ):
        with pytest.raises(SystemExit):
            check.parse_args(arguments)
    assert "is not a folder" in capsys.readouterr().err
