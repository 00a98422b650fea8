"""transfer.py: the command line, with good and bad input."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import transfer
from conftest import sing, write_notes
from voice.midi import read_midi

ROOT = Path(__file__).parent.parent
RATE = 16000


def run(*argv: object) -> int:
    return transfer.main([str(value) for value in argv] + ["--device", "cpu"])


def test_a_file_with_stems_and_report(checkpoint_path: Path, song: np.ndarray, tmp_path: Path, capsys) -> None:
    soundfile.write(tmp_path / "in.wav", song, RATE)
    out = tmp_path / "out" / "result.wav"
    report = tmp_path / "report.json"
    flags = ("--input", tmp_path / "in.wav", "--checkpoint", checkpoint_path, "--output", out)
    assert run(*flags, "--stems", "--report", report) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "result.wav",
        "result_harmonic.wav",
        "result_noise.wav",
    ]
    line = capsys.readouterr().out
    assert "shifted +" in line and "% gated" in line and "x faster than real time" in line
    (entry,) = json.loads(report.read_text())
    assert entry["instrument"] == "trumpet" and entry["seconds"] == pytest.approx(len(song) / RATE, abs=0.01)
    audio, rate = soundfile.read(out)
    assert rate == RATE and len(audio) == len(song)


def test_a_file_as_live_plays_it(checkpoint_path: Path, song: np.ndarray, tmp_path: Path, caplog, capsys) -> None:
    soundfile.write(tmp_path / "in.wav", song[: 2 * RATE], RATE)
    out = tmp_path / "result.wav"
    flags = ("--input", tmp_path / "in.wav", "--checkpoint", checkpoint_path, "--output", out, "--causal")
    assert run(*flags, "--stems") == 0 and "shifted +12 st" in capsys.readouterr().out
    audio, harmonic, noise = (soundfile.read(out.with_stem(f"result{name}"))[0] for name in ("", "_harmonic", "_noise"))
    assert len(audio) == 2 * RATE and np.abs(audio).max() > 0.01
    assert np.abs(audio - harmonic - noise).max() < 1e-4
    assert run(*flags, "--output_rate", 48000) == 0
    assert (soundfile.info(out).frames, soundfile.info(out).samplerate) == (2 * 48000, 48000)
    before = out.read_bytes()
    soundfile.write(tmp_path / "in.wav", np.zeros(RATE // 10), RATE)
    assert run(*flags) == 1 and caplog.messages == [f"transfer.py: {tmp_path / 'in.wav'}: the recording is silent"]
    assert out.read_bytes() == before


def test_causal_reports_whistling_above_its_range(
    checkpoint_path: Path, song: np.ndarray, tmp_path: Path, capsys, caplog
) -> None:
    whistle = 0.2 * np.sin(2 * np.pi * 2600 * np.arange(RATE) / RATE)
    soundfile.write(tmp_path / "in.wav", np.concatenate([song[: 2 * RATE], whistle]), RATE)
    flags = ("--input", tmp_path / "in.wav", "--checkpoint", checkpoint_path, "--output", tmp_path / "out.wav")
    assert run(*flags, "--causal") == 0 and "% too high for --causal" in capsys.readouterr().out
    assert run(*flags) == 0 and "too high" not in capsys.readouterr().out
    soundfile.write(tmp_path / "in.wav", whistle, RATE)
    assert run(*flags, "--causal") == 1 and "1,975 Hz" in caplog.messages[-1]


def test_folder_plays_all_files_and_names_failures(
    checkpoint_path: Path, song: np.ndarray, tmp_path: Path, caplog
) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    soundfile.write(source / "a.wav", song, RATE)
    soundfile.write(source / "a.flac", song, RATE)
    soundfile.write(source / "sub" / "a.wav", song, RATE)
    (source / "broken.wav").write_text("no sound")
    assert run("--input", source, "--checkpoint", checkpoint_path, "--output", tmp_path / "out") == 1
    assert "broken.wav cannot be read as sound" in caplog.text
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.wav"))
    assert written == ["a.flac_trumpet.wav", "a.wav_trumpet.wav", "sub/a.wav_trumpet.wav"]


def test_unusual_file_names_do_not_stop_a_folder(checkpoint_path: Path, tmp_path: Path) -> None:
    """Names that the console cannot show, that are not UTF-8, of maximum length, or too long for a suffix."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    names = [b"\xe6\xad\x8c.wav", b"caf\xe9.wav", b"x" * 238 + b".wav", b"y" * 247 + b".wav", b"~last.wav"]
    for name in names:
        soundfile.write(os.fsencode(source) + b"/" + name, sing(220.0), RATE, format="WAV")
    flags = ["--input", source, "--output", out, "--checkpoint", checkpoint_path, "--device", "cpu"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "transfer.py", *map(str, flags), "--report", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"y" * 247 in done.stderr and done.stderr.count(b"transfer.py:") == 1
    written = sorted(os.fsencode(path.name) for path in out.iterdir())
    assert written == sorted(name + b"_trumpet.wav" for name in names if not name.startswith(b"y"))
    assert len(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))) == 4


@pytest.mark.parametrize("error", [RuntimeError("no kernel for this shape"), MemoryError()])
def test_any_error_fails_only_its_file(checkpoint_path: Path, tmp_path: Path, caplog, monkeypatch, error) -> None:
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", sing(220.0, 0.5), RATE)
    play = transfer.transfer_file

    def fail_at_b(source: Path, *others: object) -> object:
        if source.name == "b.wav":
            raise error
        return play(source, *others)

    monkeypatch.setattr(transfer, "transfer_file", fail_at_b)
    out = tmp_path.parent / f"{tmp_path.name}_out"
    assert run("--input", tmp_path, "--checkpoint", checkpoint_path, "--output", out, "--num_workers", 1) == 1
    assert f"b.wav: {str(error) or 'not enough memory'}" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == ["a.wav_trumpet.wav", "c.wav_trumpet.wav"]


def test_skipped_files_of_a_folder_are_logged(checkpoint_path: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", sing(220.0, 0.5), RATE)
    for name in ("._a.wav", "notes.txt"):
        (tmp_path / "in" / name).write_text("no sound")
    assert run("--input", tmp_path / "in", "--checkpoint", checkpoint_path, "--output", tmp_path / "out") == 0
    assert len(caplog.messages) == 1 and "dot name" in caplog.text and ".txt" in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav_trumpet.wav"]


def test_processes_share_a_folder(checkpoint_path: Path, tmp_path: Path, caplog, capsys) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", sing(200.0 + 20 * number, 0.5), RATE)
    (tmp_path / "2.wav").write_text("no sound")
    for number in (1, 2):
        flags = ("--num_workers", number, "--output", tmp_path.parent / f"out{number}")
        assert run("--input", tmp_path, "--checkpoint", checkpoint_path, *flags) == 1
    assert caplog.text.count("2.wav cannot be read as sound") == 2
    said = [line.split(":")[0].rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == 2 * ["0.wav_trumpet.wav", "1.wav_trumpet.wav", "3.wav_trumpet.wav"]
    for name in said[:3]:
        assert (tmp_path.parent / "out1" / name).read_bytes() == (tmp_path.parent / "out2" / name).read_bytes()


def test_bad_input_is_one_sentence_and_exit_1(checkpoint_path: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "good.wav", sing(220.0), RATE)
    (tmp_path / "half.pth").write_bytes(checkpoint_path.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    good, out = tmp_path / "good.wav", tmp_path / "out.wav"
    cases = [
        (("--input", tmp_path / "none.wav"), "there is no file"),
        (("--input", tmp_path / "text.wav"), "cannot be read as sound"),
        (("--input", tmp_path / "empty"), "holds no sound files"),
        (("--input", good, "--checkpoint", tmp_path / "half.pth"), "is damaged"),
        (("--input", good, "--checkpoint", tmp_path / "none.pth"), "there is no checkpoint"),
        (("--input", good, "--instrument", "kazoo"), "no model of 'kazoo' is shipped"),
    ]
    for flags, message in cases:
        caplog.clear()
        if "--checkpoint" not in flags and "--instrument" not in flags:
            flags = (*flags, "--checkpoint", checkpoint_path)
        assert run(*flags, "--output", out) == 1
        assert message in caplog.text and len(caplog.messages) == 1
    assert run("--input", good, "--checkpoint", checkpoint_path, "--output", tmp_path / "out.xyz") == 1
    assert not out.exists()


def test_failing_write_keeps_the_old_file(checkpoint_path: Path, tmp_path: Path) -> None:
    """A file-size limit simulates a full disk: the write fails halfway."""
    soundfile.write(tmp_path / "in.wav", sing(220.0, 5.0), RATE)
    out = tmp_path / "out.wav"
    out.write_bytes(b"precious")
    flags = ["--input", tmp_path / "in.wav", "--checkpoint", checkpoint_path, "--output", out, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "transfer.py", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "out.wav could not be written" in done.stderr
    assert out.read_bytes() == b"precious" and [path.name for path in tmp_path.glob(".*")] == []


def test_a_recording_is_never_overwritten(checkpoint_path: Path, tmp_path: Path, caplog) -> None:
    voice = tmp_path / "s_harmonic.wav"
    soundfile.write(voice, sing(220.0), RATE)
    before = voice.read_bytes()
    for flags in (
        ("--input", voice, "--output", voice),
        ("--input", voice, "--output", tmp_path / "s.wav", "--stems"),
        ("--input", voice, "--output", tmp_path / "s.wav", "--report", voice),
        ("--input", voice, "--output", tmp_path / "s.wav", "--midi", voice),
        ("--input", voice, "--output", tmp_path / "s.wav", "--export_controls", voice),
    ):
        caplog.clear()
        assert run(*flags, "--checkpoint", checkpoint_path) == 1
        assert "would be overwritten" in caplog.text and voice.read_bytes() == before
    assert run("--input", tmp_path, "--output", tmp_path / "out", "--checkpoint", checkpoint_path) == 1
    assert "the next run would play it too" in caplog.text


def test_exported_curves_and_notes_can_be_played(checkpoint_path: Path, song: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", song, RATE)
    files = {name: tmp_path / name for name in ("a.wav", "b.wav", "c.wav", "a.csv", "a.mid", "c.mid", "c.json")}
    flags = ("--checkpoint", checkpoint_path)
    assert (
        run(
            "--input",
            tmp_path / "in.wav",
            "--output",
            files["a.wav"],
            "--export_controls",
            files["a.csv"],
            "--midi",
            files["a.mid"],
            *flags,
        )
        == 0
    )
    assert run("--controls", files["a.csv"], "--output", files["b.wav"], *flags) == 0
    assert files["a.wav"].read_bytes() == files["b.wav"].read_bytes()
    assert (
        run(
            "--input",
            files["a.mid"],
            "--output",
            files["c.wav"],
            "--midi",
            files["c.mid"],
            *flags,
            "--report",
            files["c.json"],
        )
        == 0
    )
    (one, _), (other, _) = read_midi(files["a.mid"]), read_midi(files["c.mid"])
    assert len(one) == 3 and [note.key for note in one] == [note.key for note in other]
    (report,) = json.loads(files["c.json"].read_text())
    assert report["semitones"] == 0 and report["share_polyphonic"] == 0
    rows = files["a.csv"].read_text().splitlines()
    assert rows[0] == "time,f0,loudness,periodicity,voiced" and len(rows) == len(song) // 160 + 1


def test_midi_files_in_a_folder_are_played_too(checkpoint_path: Path, song: np.ndarray, tmp_path: Path, caplog) -> None:
    (tmp_path / "in" / "more").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "tune.wav", song, RATE)
    tune = write_notes(tmp_path / "in" / "more" / "tune.MID", [60, 64])
    flags = ("--input", tmp_path / "in", "--checkpoint", checkpoint_path, "--num_workers", 1)
    assert run(*flags, "--output", tmp_path / "out") == 0 and caplog.messages == []
    played = tmp_path / "out" / "more" / "tune.MID_trumpet.wav"
    assert played.exists() and (tmp_path / "out" / "tune.wav_trumpet.wav").exists()
    assert run("--input", tune, "--checkpoint", checkpoint_path, "--output", tmp_path / "alone.wav") == 0
    assert (tmp_path / "alone.wav").read_bytes() == played.read_bytes()
    assert run(*flags, "--output", tmp_path / "other", "--gate_offset", 3, "--no_fit") == 0
    assert caplog.messages == ["--no_fit, --gate_offset: for recordings only, without effect on 1 MIDI files here"]


@pytest.mark.parametrize("flags", [["--no_fit"], ["--gate_offset", "3"]])
def test_flags_for_recordings_are_refused_for_midi(flags: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        transfer.parse_args(["--input", "tune.mid", "--output", "out.wav", *flags])
    assert f"{flags[0]}: for recordings only" in capsys.readouterr().err


def test_invalid_flags_are_refused(checkpoint_path: Path, tmp_path: Path, capsys, caplog) -> None:
    cases = [
        (("--input", "a.wav", "--autotune", "2"), "autotune should be between 0 and 1, not 2.0"),
        (("--input", "a.wav", "--key", "H dur"), "'H dur'"),
        (("--input", "a.wav", "--output_rate", "96000"), "output_rate should be between 8000 and 48000"),
        (("--controls", "a.csv", "--autotune", "1"), "only --noise_balance"),
        (("--controls", "a.csv", "--input", "a.wav"), "not allowed with"),
        (("--controls", "a.csv", "--causal"), "--causal plays a recording"),
        (("--controls", tmp_path), "is a folder; name a file of curves"),
        (("--input", "a.mid", "--causal"), "--causal plays a recording"),
        (("--input", "a.wav", "--causal", "--fold"), "fold"),
        (("--input", "a.wav", "--causal", "--smoothing", "0.1"), "smoothing"),
        (("--input", "a.wav", "--num_workers", "0"), "must be at least 1"),
        ((), "one of the arguments --input --controls is required"),
    ]
    for flags, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run(*flags, "--output", "b.wav")
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    soundfile.write(tmp_path / "in.wav", sing(220.0), RATE)
    good = ("--input", tmp_path / "in.wav", "--output", tmp_path / "out.wav", "--checkpoint", checkpoint_path)
    assert run(*good, "--midi", tmp_path / "out.wav") == 1 and "have the same name" in caplog.text
    for flags in (("--output", tmp_path / "a.wav"), ("--report", tmp_path / "a.wav"), ("--midi", tmp_path / "a.wav")):
        (tmp_path / "a.wav").mkdir(exist_ok=True)
        assert run(*good, *flags) == 1 and "a.wav is a folder; name a file to be written" in caplog.messages[-1]
    folder = ("--input", tmp_path, "--output", tmp_path.parent / "o", "--checkpoint", checkpoint_path)
    assert run(*folder, "--midi", tmp_path / "x.mid") == 1 and "take one recording" in caplog.text


def test_checkpoint_and_instrument_exclude_each_other(checkpoint_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("--input", "a", "--output", "b", "--instrument", "trumpet", "--checkpoint", checkpoint_path)
    assert "not both" in capsys.readouterr().err
