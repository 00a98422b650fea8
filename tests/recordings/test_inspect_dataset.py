"""inspect_dataset.py: faults in recordings, coverage of the set, annotations, and the report."""

import dataclasses
import json
import re
from pathlib import Path

import faulty_takes
import numpy as np
import pytest
import torch

import inspect_dataset
from conftest import harmonic_tone
from data import save_recording
from features import extract_loudness
from recordings import inspection, pitch_annotations

RATE = 16000
NOTES = (220.0, 330.0, 262.0, 440.0, 196.0, 294.0)


@pytest.fixture(scope="module")
def clean():
    """6 s: six notes, each soft or loud, with rests."""
    return faulty_takes.play(list(NOTES), np.random.default_rng(0)).astype(np.float32)


@pytest.fixture(scope="module")
def inspect_audio(make_recording, config):
    def inspect(audio, name="take.wav"):
        return inspection.measure_for_inspection(Path(f"{name}.pt"), make_recording(audio.astype(np.float32)), config)

    return inspect


def faults(measured, config):
    return [name for name, (test, _) in inspection.list_faults(config).items() if test(measured)]


def test_a_clean_take_has_no_faults(clean, inspect_audio, config):
    measured = inspect_audio(clean)
    assert faults(measured, config) == []
    assert measured.seconds == 6 and 2.5 < measured.voiced_seconds < 4.0


@pytest.mark.parametrize("fault", faulty_takes.FAULTS)
def test_each_fault_is_found(fault, clean, inspect_audio, config):
    found = faults(inspect_audio(faulty_takes.FAULTS[fault](clean)), config)
    assert fault in found
    # A hum is a pitch too, and a chord, a room or a tone in the rests leave no rest to judge the others by.
    assert set(found) - {fault} <= {"several pitches at once", "reverb"}


def test_mains_hum_must_last():
    noise = np.random.default_rng(0).standard_normal(24 * RATE)
    audio = noise * np.where(np.arange(len(noise)) < 3 * RATE, 1e-4, 1e-2)
    audio[:RATE] += harmonic_tone(60, 1.0, amplitude=2e-4)
    assert inspection.find_mains_hum(audio, RATE) == 0
    audio[: 3 * RATE] += harmonic_tone(60, 3.0, amplitude=2e-4)
    assert inspection.find_mains_hum(audio, RATE) == 60


def test_soft_notes_are_not_bleed():
    """A soft note after silence, then a crescendo; or a soft note right up to the loud ones, as bleed has it."""
    silence, loud = np.full(100, -80.0), np.full(400, -15.0)
    soft, crescendo = np.full(300, -55.0), np.linspace(-55, -15, 200)
    played = np.concatenate([loud, silence, soft, crescendo, loud, silence])
    others = np.concatenate([loud, soft, loud, silence])
    for loudness, is_bleed in ((played, False), (others, True)):
        share = inspection.measure_bleed(loudness, loudness > -80, inspection.BLEED_LEVEL)
        assert (share > inspection.BLEED_SHARE) == is_bleed, share


def test_copies_are_found(clean, inspect_audio):
    one, other = inspect_audio(clean, "one"), inspect_audio(clean, "other")
    softer, another = inspect_audio(0.5 * clean, "softer"), inspect_audio(clean[::-1].copy(), "another")
    assert one.sha256 == other.sha256 != softer.sha256
    assert [sorted((a.name, b.name)) for a, b in inspection.find_duplicates([one, another, other])] == [
        ["one", "other"]
    ]
    assert inspection.is_same_take(one, softer) and not inspection.is_same_take(one, another)
    (bytewise,), (audible,) = (inspection.judge_duplicates(pair) for pair in ([one, other], [one, softer]))
    assert "byte for byte" in bytewise.text and not bytewise.is_problem
    assert "sound like another" in audible.text and audible.is_problem
    assert inspection.judge_duplicates([one, another]) == []


def scale(measured, low, high, seconds_each, spread=30.0, instrument="trumpet"):
    """Return a take of every semitone from low to high (MIDI), each for ``seconds_each``, over ``spread`` dB."""
    notes = np.arange(low, high + 1).repeat(round(100 * seconds_each))
    voiced = len(notes) / 100
    return dataclasses.replace(
        measured,
        voiced_f0=440 * 2 ** ((notes - 69) / 12),
        voiced_loudness=np.linspace(-20 - spread, -20, len(notes)),
        voiced_seconds=voiced,
        seconds=1.2 * voiced,
        instrument=instrument,
    )


@pytest.fixture(scope="module")
def measured(clean, inspect_audio):
    return inspect_audio(clean)


def texts(findings):
    return " | ".join(finding.text for finding in findings)


@pytest.mark.parametrize(
    ("changes", "is_problem", "text"),
    [
        ({"seconds_each": 15}, False, "8.2 min"),
        ({"seconds_each": 2}, True, "1.1 min"),
        ({"low": 69, "seconds_each": 40}, False, "A4"),
        ({"low": 60, "high": 75, "seconds_each": 40}, False, "below C4 and above D♯5"),
        ({"low": 50, "seconds_each": 20}, False, "6%"),
        ({"low": 36, "seconds_each": 20}, True, "33%"),
        ({"spread": 8}, False, "7 dB"),
    ],
)
def test_missing_coverage_is_reported(measured, config, changes, is_problem, text):
    complete = scale(measured, 52, 84, 20)
    assert inspection.judge_coverage([complete], config) == inspection.judge_faulty_takes([complete], config) == []
    findings = inspection.judge_coverage(
        [scale(measured, **{"low": 52, "high": 84, "seconds_each": 20} | changes)], config
    )
    assert len(findings) == 1 and text in findings[0].text and findings[0].is_problem == is_problem


def test_few_faulty_takes_are_advice_and_many_a_problem(measured, config):
    good, bad = scale(measured, 52, 84, 20), dataclasses.replace(measured, polyphony=0.5, name="strummed")
    advice, problem = (inspection.judge_faulty_takes(takes, config) for takes in ([good, bad], [measured, bad]))
    assert [finding.is_problem for finding in (*advice, *problem)] == [False, True]
    assert advice[0].recordings == ("strummed",) and "1 of 2 recordings" in advice[0].text


def write_annotation(folder, name, hertz, n_rows=600):
    rows = [(0.01 * i, hertz) for i in range(n_rows)]
    if name.startswith("AuSep"):
        path = folder / f"F0s_{name.removeprefix('AuSep_')}.txt"
        path.write_text("".join(f"{time:.3f}\t{value:.3f}\n" for time, value in rows))
    else:
        value = [{"index": 0, "frequency": f, "voiced": f > 0} for _, f in rows]
        strings = [{"time": [t for t, _ in rows], "duration": [0.0] * len(rows), "value": value}, []]
        notes = {"namespace": "note_midi", "data": []}
        content = {"annotations": [notes, *({"namespace": "pitch_contour", "data": data} for data in strings)]}
        path = folder / f"{name.removesuffix('_mic')}.jams"
        path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["AuSep_1_tpt_05_Song", "00_BN1-129-Eb_solo_mic"])
@pytest.mark.parametrize(("octave", "is_fit"), [(1.0, True), (2.0, False)])
def test_octave_errors_against_annotations(tmp_path, make_recording, config, name, octave, is_fit):
    recording = make_recording(harmonic_tone(330, 2.0), name=f"{name}.wav")
    save_recording(tmp_path / f"{name}.wav.pt", recording)
    write_annotation(tmp_path, name, 330 * octave)
    found = inspect_dataset.inspect(tmp_path, config, tmp_path)
    assert found.octave_errors[1] > 180 and (found.octave_errors[0] == 0) == is_fit
    assert ("frames are octaves off" in texts(found.findings)) != is_fit


@pytest.mark.parametrize("header", ["", "seconds,f0_hz (0 = unvoiced)\n", '\ufeff"time","f0"\n'])
def test_f0_files_of_voices_are_read(tmp_path, header):
    assert pitch_annotations.read_voice_annotation(tmp_path / "hum.wav", 4, 0.01) is None
    (tmp_path / "hum_f0.csv").write_text(f"{header}0.0,0\n0.011,220.5\n0.02,221\n")
    assert pitch_annotations.read_voice_annotation(tmp_path / "hum.wav", 4, 0.01).tolist() == [0, 220.5, 221, 221]


@pytest.mark.parametrize(
    "content", ["no numbers", '{"annotations": []}', '{"annotations": 3}', "[", "0.0 nan", "0.0\n0.1"]
)
@pytest.mark.parametrize("name", ["F0s_1_tpt_05_Song.txt", "00_solo.jams", "hum_f0.csv"])
def test_damaged_annotations_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        pitch_annotations.read_annotation(tmp_path / name, 100, 0.01)


@pytest.fixture
def folder(tmp_path, make_recording, clean):
    (tmp_path / "set").mkdir()
    save_recording(tmp_path / "set" / "a <b> & c.wav.pt", make_recording(clean))
    return tmp_path / "set"


def test_the_command_writes_a_self_contained_report(folder, tmp_path, capsys):
    page = tmp_path / "out" / "report.html"
    assert inspect_dataset.main(["--data_dir", str(folder), "--html", str(page)]) == 1
    printed = capsys.readouterr().out
    assert "problem: 0.1 min voiced" in printed and "verdict: not fit" in printed
    content = page.read_text()
    assert content.count("data:image/webp;base64,") == 2 and "a &lt;b&gt; &amp; c.wav" in content
    # Nothing is loaded from outside, and nothing runs.
    assert not re.search(r"https?://|<script|@import|url\(|<link", content)
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_outdated_damaged_and_mixed_sets(folder, config, make_recording, clean):
    path = next(folder.iterdir())
    content = torch.load(path, weights_only=True)
    content["extractor"]["version"] = 1
    torch.save(content, path)
    (folder / "half.pt").write_bytes(b"half")
    found = texts(inspect_dataset.inspect(folder, config).findings)
    assert "1 of 1 recordings were made with other settings" in found and "half.pt is not a readable" in found
    save_recording(folder / "half.pt", make_recording(clean, instrument="tuba"))
    with pytest.raises(ValueError, match="trumpet, tuba"):
        inspect_dataset.inspect(folder, config)


def test_invalid_folders_are_named(tmp_path, folder, caplog):
    (tmp_path / "empty").mkdir()
    for flags in (["--data_dir", folder, "--annotations", folder], ["--data_dir", tmp_path / "empty"]):
        assert inspect_dataset.main(list(map(str, flags))) == 2 and str(flags[-1]) in caplog.messages[-1]
    next(folder.iterdir()).write_bytes(b"no recording")
    assert inspect_dataset.main(["--data_dir", str(folder)]) == 2 and str(folder) in caplog.messages[-1]
    for flag in ("--data_dir", "--annotations"):
        with pytest.raises(SystemExit, match="2"):
            inspect_dataset.main(["--data_dir", str(folder), flag, str(tmp_path / "nowhere")])


def test_a_report_of_silence(tmp_path, make_recording, config):
    save_recording(tmp_path / "silent.wav.pt", make_recording(np.zeros(RATE, np.float32)))
    page = tmp_path / "report.html"
    assert inspect_dataset.main(["--data_dir", str(tmp_path), "--html", str(page)]) == 1
    assert "data:image" not in page.read_text()
    assert np.isnan(inspection.measure_ringing(extract_loudness(np.zeros(RATE, np.float32), config), 0.01))
