"""preprocess.py: measured features, skipped, failed and deleted files, instruments, several processes, memory."""

import dataclasses
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import check_dataset_nans
import preprocess
from config import DEFAULT_CONFIG_PATH, load_config
from data import load_recording
from features import extract_features, load_audio
from sound.swift_tracker import track_f0

ROOT = Path(__file__).parent.parent


def tone(seconds: float = 1.0, rate: int = 16000, f0: float = 440.0) -> np.ndarray:
    time_axis = np.arange(int(seconds * rate)) / rate
    return 0.3 * sum(np.sin(2 * np.pi * f0 * k * time_axis) / k for k in range(1, 6)).astype(np.float32) / 2


def run(*argv):
    return preprocess.main([str(value) for value in argv] + ["--num_workers", "1"])


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    soundfile.write(folder / "rendered_trumpet_0.wav", tone(), 16000)
    return folder


def test_measures_a_tone(raw, tmp_path, capsys):
    assert run("--input_dir", raw, "--output_dir", tmp_path / "out") == 0
    assert capsys.readouterr().out.strip() == "1 written, 0 skipped, 0 failed"
    recording = load_recording(tmp_path / "out" / "rendered_trumpet_0.wav.pt", load_config())
    assert recording.instrument == "trumpet"
    assert recording.f0.shape == (1, 100, 1) and recording.audio.shape == (1, 16000)
    cents = 1200 * torch.log2(recording.f0[0, 10:90, 0] / 440)
    assert cents.abs().max() < 15  # CREPE tiny: its bins are 20 cents wide
    assert recording.periodicity[0, 10:90].min() > 0.8


def test_a_custom_configuration_is_used(raw, tmp_path, caplog):
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["features"]["f0_min"] = 100.0
    (tmp_path / "own.json").write_text(json.dumps(content))
    flags = ["--output_dir", tmp_path / "out", "--config", tmp_path / "own.json"]
    assert run("--input_dir", raw, *flags) == 0
    (path,) = (tmp_path / "out").glob("*.pt")
    assert load_recording(path, load_config(tmp_path / "own.json")).extractor["features"]["f0_min"] == 100.0
    assert check_dataset_nans.main(["--data_dir", str(path.parent)]) == 1
    assert check_dataset_nans.main(["--data_dir", str(path.parent), "--config", str(tmp_path / "own.json")]) == 0
    assert preprocess.main(["--input_dir", str(raw), *map(str, flags[:2]), "--config", str(tmp_path / "no.json")]) == 1
    assert "no.json" in caplog.text


def test_an_instrument_may_select_another_crepe_model(raw, tmp_path):
    config = load_config()
    soundfile.write(raw / "rendered_trumpet_0.wav", tone(0.2), 16000)
    assert run("--input_dir", raw, "--output_dir", tmp_path / "out", "--instrument", "guitar") == 0
    recording = load_recording(tmp_path / "out" / "rendered_trumpet_0.wav.pt", config)
    assert recording.extractor["features"]["crepe_model"] == "full" != config.features.crepe_model
    expected = extract_features(load_audio(raw / "rendered_trumpet_0.wav", 16000), config.for_recordings_of("guitar"))
    assert torch.equal(recording.periodicity[0, :, 0], expected.periodicity)


def test_finished_files_are_skipped_and_outdated_ones_made_again(raw, tmp_path, capsys, monkeypatch):
    arguments = ("--input_dir", raw, "--output_dir", tmp_path / "out")
    run(*arguments)
    target = tmp_path / "out" / "rendered_trumpet_0.wav.pt"
    first = target.read_bytes()
    run(*arguments)
    assert "0 written, 1 skipped, 0 failed" in capsys.readouterr().out
    run(*arguments, "--instrument", "horn")
    assert load_recording(target).instrument == "horn"
    soundfile.write(raw / "rendered_trumpet_0.wav", tone(f0=660), 16000)  # the recording itself changed
    run(*arguments, "--instrument", "horn")
    assert abs(load_recording(target).f0[0, 50, 0] - 660) < 6
    run(*arguments)
    target.write_bytes(first[: len(first) // 2])  # a half file, as an older tool may have left
    run(*arguments)
    assert load_recording(target).n_frames == 100
    config = load_config()
    quieter = dataclasses.replace(config, features=dataclasses.replace(config.features, loudness_floor=-70.0))
    monkeypatch.setattr(preprocess, "load_config", lambda *_: quieter)
    capsys.readouterr()
    run(*arguments)
    assert "1 written, 0 skipped, 0 failed" in capsys.readouterr().out


def test_failed_files_are_named_and_the_others_processed(raw, tmp_path, capsys):
    (raw / "rendered_trumpet_1.wav").write_text("this is not sound")
    soundfile.write(raw / "rendered_trumpet_2.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(raw / "rendered_trumpet_3.wav", np.append(tone(), np.nan), 16000, subtype="FLOAT")
    for name, audio in {
        "silent.wav": np.zeros(16000),
        "short.wav": tone(0.01),
        "rendered_trumpet_0.flac": tone(),
    }.items():
        soundfile.write(raw / name, audio, 16000)
    command = ["--input_dir", raw, "--output_dir", tmp_path / "out", "--instrument", "tuba", "--num_workers", "2"]
    assert preprocess.main([str(word) for word in command]) == 1
    captured = capsys.readouterr()
    assert captured.out.strip() == "4 written, 0 skipped, 3 failed"
    assert all(f"rendered_trumpet_{number}.wav" in captured.err for number in (1, 2, 3))
    assert len(list((tmp_path / "out").glob("*.pt"))) == 4  # names that differ only in the suffix are kept apart
    silent = load_recording(tmp_path / "out" / "silent.wav.pt")
    assert silent.periodicity.max() == 0 and silent.loudness.max() == -80 and (silent.f0 > 0).all()
    assert load_recording(tmp_path / "out" / "short.wav.pt").n_frames == 1
    for path in (tmp_path / "out").glob("*.pt"):
        one_worker = preprocess.Job(raw / path.stem, tmp_path / path.name, "tuba")
        assert preprocess.process_recording(one_worker, load_config()).status == "written"
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("preset", "seconds", "code"), [("tiny", 0.9, 0), ("tiny", 1.1, 1), ("wide", 0.5, 1)])
def test_a_recording_of_many_hours_fails(tmp_path, monkeypatch, capsys, preset, seconds, code):
    assert preprocess._MAX_SAMPLES * 4 * 9 / 8 < 6e8  # bytes; the packages take 300 MB
    monkeypatch.setattr(preprocess, "_MAX_SAMPLES", 16_000)
    (tmp_path / "raw").mkdir()
    soundfile.write(tmp_path / "raw" / "hours.flac", np.zeros(round(16_000 * seconds)), 16_000)
    flags = ("--input_dir", tmp_path / "raw", "--output_dir", tmp_path / "out", "--instrument", "tuba")
    assert run(*flags, "--config_name", preset) == code
    assert code == 0 or "hours.flac lasts longer" in capsys.readouterr().err


def test_unusual_names_and_runtime_errors_do_not_end_the_run(tmp_path, capsys, monkeypatch):
    """Names that are not UTF-8 or very long; dot names are no recordings; an error of torch is one file's failure."""
    raw = tmp_path / "raw"
    raw.mkdir()
    names = [b"caf\xe9.wav", b"x" * 240 + b".wav", b"sick.wav", b"~last.wav"]
    for name in [*names, b"._take.wav"]:
        soundfile.write(os.fsencode(raw) + b"/" + name, tone(0.2), 16000, format="WAV")
    extract = preprocess.extract_recording

    def fail(job: preprocess.Job, *others: object) -> object:
        if job.source.name == "sick.wav":
            raise RuntimeError("no kernel for this shape")
        return extract(job, *others)

    monkeypatch.setattr(preprocess, "extract_recording", fail)
    assert run("--input_dir", raw, "--output_dir", tmp_path / "out", "--instrument", "tuba") == 1
    assert "3 written, 0 skipped, 1 failed" in (captured := capsys.readouterr()).out
    assert "sick.wav" in captured.err and "no kernel" in captured.err
    assert len(list((tmp_path / "out").glob("*.pt"))) == 3
    assert load_recording(next((tmp_path / "out").glob("caf*"))).source["file"] == os.fsdecode(names[0])


def test_unknown_instruments_are_an_error(tmp_path, caplog):
    raw = tmp_path / "raw"
    raw.mkdir()
    soundfile.write(raw / "mystery.wav", tone(), 16000)
    assert run("--input_dir", raw, "--output_dir", tmp_path / "out") == 1
    assert "mystery.wav" in caplog.text and "--instrument" in caplog.text and "trumpet" in caplog.text
    assert run("--input_dir", raw, "--output_dir", tmp_path / "out", "--instrument", "kazoo") == 1
    assert "unknown instrument 'kazoo'" in caplog.text


def test_the_entry_proposed_for_a_new_instrument_works(raw, tmp_path, caplog):
    flags = ["--input_dir", raw, "--output_dir", tmp_path / "out", "--instrument", "zorgophone"]
    assert run(*flags) == 1
    entry = json.loads("{" + caplog.messages[-1].partition('"zorgophone": ')[2].join(['"zorgophone": ', "}"]))
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["instruments"] |= entry
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert run(*flags, "--config", tmp_path / "own.json") == 0


def test_outputs_of_deleted_recordings_are_named_and_pruned(raw, tmp_path, caplog):
    caplog.set_level("INFO")
    out, gone = tmp_path / "out", raw / "sub" / "rendered_trumpet_1.wav"
    gone.parent.mkdir()
    soundfile.write(gone, tone(f0=300.0), 16000)
    flags = ["--input_dir", raw, "--output_dir", out]
    assert run(*flags) == 0 and caplog.messages == []
    gone.unlink()
    stale = out / "sub" / "rendered_trumpet_1.wav.pt"
    assert run(*flags) == 0
    assert str(stale) in caplog.text and "--prune" in caplog.text and stale.exists()
    assert run(*flags, "--prune") == 0
    assert [path.name for path in out.rglob("*.pt")] == ["rendered_trumpet_0.wav.pt"]


def test_several_folders_are_pruned_together(raw, tmp_path, caplog):
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    soundfile.write(other / "rendered_trumpet_1.wav", tone(f0=300.0), 16000)
    for _ in range(2):
        assert run("--input_dir", raw, other, "--output_dir", out, "--prune") == 0
        assert sorted(path.name for path in out.glob("*.pt")) == [f"rendered_trumpet_{n}.wav.pt" for n in range(2)]
    soundfile.write(other / "rendered_trumpet_0.wav", tone(f0=200.0), 16000)
    assert run("--input_dir", raw, other, "--output_dir", out) == 1
    assert all(str(folder / "rendered_trumpet_0.wav") in caplog.messages[-1] for folder in (raw, other))


def test_pruning_for_one_folder_keeps_the_files_of_another(raw, tmp_path, caplog):
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    for number in (1, 2):
        soundfile.write(other / f"rendered_trumpet_{number}.wav", tone(f0=300.0), 16000)
    assert run("--input_dir", raw, "--output_dir", out) == run("--input_dir", other, "--output_dir", out) == 0
    (out / "copied.wav.pt").write_bytes((out / "rendered_trumpet_0.wav.pt").read_bytes())
    (other / "rendered_trumpet_2.wav").unlink()
    caplog.set_level("INFO")
    assert run("--input_dir", raw, "--output_dir", out, "--prune") == 0
    assert len(list(out.glob("*.pt"))) == 4 and len(caplog.messages) == 1 and "copied.wav.pt" in caplog.text
    assert run("--input_dir", other, "--output_dir", out, "--prune") == 0
    assert sorted(path.name[:-7] for path in out.glob("*.pt")) == ["copied", "rendered_trumpet_0", "rendered_trumpet_1"]


def test_a_recording_of_another_folder_is_not_replaced(raw, tmp_path, caplog):
    other, out = tmp_path / "other", tmp_path / "out"
    assert run("--input_dir", raw, "--output_dir", out) == 0
    shutil.copytree(raw, other)
    assert run("--input_dir", other, "--output_dir", out) == 0  # a copy
    soundfile.write(other / "rendered_trumpet_0.wav", tone(f0=300.0), 16000)
    assert run("--input_dir", raw, "--output_dir", out) == 1
    assert all(str(folder / "rendered_trumpet_0.wav") in caplog.messages[-1] for folder in (raw, other))


def test_an_empty_or_missing_folder_is_an_error(tmp_path, caplog):
    assert run("--input_dir", tmp_path, "--output_dir", tmp_path / "out") == 1
    assert "holds no recordings" in caplog.text
    with pytest.raises(SystemExit) as exit_info:
        run("--input_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "out")
    assert exit_info.value.code == 2


def test_torchrun_shares_the_recordings(raw, tmp_path, capsys, monkeypatch):
    """Three recordings among four processes, by the variables that torchrun sets: each is made once, the last idles."""
    for number in (1, 2):
        soundfile.write(raw / f"rendered_trumpet_{number}.wav", tone(0.2, f0=300 + number), 16000)
    written = []
    for rank in range(4):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 4}.items():
            monkeypatch.setenv(name, str(value))
        before = set((tmp_path / "out").glob("*.pt"))
        assert run("--input_dir", raw, "--output_dir", tmp_path / "out") == 0
        written.append(sorted(path.name for path in set((tmp_path / "out").glob("*.pt")) - before))
    assert written == [[f"rendered_trumpet_{number}.wav.pt"] for number in range(3)] + [[]]
    assert capsys.readouterr().out.splitlines() == ["1 written, 0 skipped, 0 failed"] * 3 + [
        "0 written, 0 skipped, 0 failed"
    ]


def test_memory_does_not_grow_with_the_length(tmp_path, config):
    """Beyond the samples themselves, which must be in memory to be saved; the activation would be 1.4 kB a frame."""
    peaks = []
    for minutes in (4, 7):  # from 2.2 min on, the blocks that are measured at once are full
        soundfile.write(tmp_path / "take.flac", np.zeros(minutes * 60 * 16000, np.int16), 16000)
        tracemalloc.start()
        job = preprocess.Job(tmp_path / "take.flac", tmp_path / "take.pt", "tuba")
        assert preprocess.process_recording(job, config).status == "written"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        (tmp_path / "take.pt").unlink()
    # Measured 1.07 times the samples, 1.125 where they were just grown; whole-file activation would add 2.2.
    assert peaks[1] - peaks[0] < 1.25 * 3 * 60 * 16000 * 4


def test_an_instrument_may_select_swift_f0(raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "swift_f0", None)
        with pytest.raises(ValueError, match="swift-f0"):
            track_f0(np.zeros(16000, np.float32), 160, 50, 1000)
    pytest.importorskip("swift_f0", reason="the package swift-f0 is optional")
    settings = json.loads(DEFAULT_CONFIG_PATH.read_text())
    settings["instruments"]["guitar"]["crepe_model"] = "swift-f0"
    (tmp_path / "own.json").write_text(json.dumps(settings))
    sound = tone(f0=98.0)  # under D3
    sound[len(sound) // 2 :] = 0
    soundfile.write(raw / "rendered_trumpet_0.wav", sound, 16000)
    flags = ("--output_dir", tmp_path / "out", "--instrument", "guitar", "--config", tmp_path / "own.json")
    assert run("--input_dir", raw, *flags) == 0
    recording = load_recording(tmp_path / "out" / "rendered_trumpet_0.wav.pt")
    assert recording.extractor["features"]["crepe_model"] == "swift-f0"
    f0, periodicity = recording.f0[0, :, 0].numpy(), recording.periodicity[0, :, 0].numpy()
    assert np.abs(1200 * np.log2(f0[5:45] / 98)).max() < 15
    assert periodicity[5:45].min() > 0.5 > periodicity[60:].max()
    assert np.allclose(f0[60:], f0[59])  # bridged
