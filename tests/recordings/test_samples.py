"""recordings/samples.py: names, roles, pitch, copies and mistakes of recordings of known tones."""

import shutil

import numpy as np
import pytest
import soundfile as sf
from sample_library import RATE, hz, make_held, make_pluck, write_trumpet

from recordings.samples import (
    SAMPLE_RATE,
    assign_role,
    build_index,
    find_copies,
    load_sample,
    measure_f0,
    parse_name,
    parse_pitch,
)


def cents(f0: float, midi: float) -> float:
    return 1200 * np.log2(f0 / hz(midi))


@pytest.mark.parametrize(
    ("name", "midi"), [("As4", 70), ("A#3", 58), ("bb3", 58), ("asharp3", 58), ("C4", 60), ("db2", 37), ("E6", 88)]
)
def test_parse_pitch(name: str, midi: int) -> None:
    assert parse_pitch(name) == midi


def test_parse_name() -> None:
    sample = parse_name("trumpet_As4_15_forte_normal.mp3")
    assert (sample.instrument, sample.kind, sample.midi, sample.dynamic, sample.length) == (
        "trumpet",
        "note",
        70,
        "forte",
        "15",
    )
    assert parse_name("violin_G4_phrase_forte_arco-legato.mp3").kind == "phrase"
    assert parse_name("saxophone_G4_long_forte_minor-trill.mp3").kind == "phrase"
    assert parse_name("sus_v1_p_dsharp3.flac").midi == 63  # named one octave low
    pluck = parse_name("gb3_vl2_rr4_1.flac")
    assert (pluck.instrument, pluck.midi, pluck.dynamic, pluck.round_robin) == ("guitar", 54, "layer2", 4)
    assert parse_name("notes.txt") is None


def test_roles_of_the_orchestra() -> None:
    for midi in range(48, 72):
        role = assign_role("flute", "philharmonia", midi)
        assert role == ("recogniser" if midi % 6 == 0 else "held_out" if midi % 12 == 3 else "model")
        assert assign_role("trumpet", "philharmonia", midi) == ("recogniser" if midi in (52, 57, 69) else role)
        assert assign_role("oboe", "philharmonia", midi) == ("held_out" if midi % 12 == 3 else "recogniser")


def test_roles_of_other_collections() -> None:
    assert {assign_role("guitar", "shinyguitar", 37, take) for take in (1, 2, 3)} == {"model"}
    assert assign_role("guitar", "shinyguitar", 37, 4) == "held_out"  # the lowest of the pitches, number 0
    assert assign_role("guitar", "shinyguitar", 40, 4) == "recogniser"
    assert assign_role("trumpet", "vsco", 60) == assign_role("guitar", "freepats", 61) == "held_out"


@pytest.mark.parametrize("midi", [40, 57, 76, 96])
def test_measured_f0_of_a_pluck(midi: int) -> None:
    f0, strength = measure_f0(make_pluck(hz(midi + 0.23)), hz(midi), 480, rate=RATE)
    steady = slice(10, 100)
    assert np.abs(cents(f0[steady], midi + 0.23)).max() < 1.5
    assert strength[steady].min() > 0.9
    octave_below, _ = measure_f0(make_held(hz(57), 1.0, 8), hz(69), 480, rate=RATE)
    assert abs(cents(np.median(octave_below), 57)) < 2


def test_a_loaded_sample_is_mono_without_digital_silence(tmp_path) -> None:
    tone = np.concatenate([np.zeros(5000), np.full(4410, 0.5), np.zeros(7000)])
    sf.write(tmp_path / "a.wav", np.stack([tone, tone], axis=1), RATE)
    audio = load_sample(tmp_path / "a.wav")
    assert audio.dtype == np.float32
    assert len(audio) == pytest.approx(4800, abs=1)
    assert SAMPLE_RATE == 48_000
    sf.write(tmp_path / "b.wav", np.zeros(5000), RATE)
    with pytest.raises(ValueError, match=r"b\.wav"):
        load_sample(tmp_path / "b.wav")
    with pytest.raises(FileNotFoundError, match=r"c\.wav"):
        load_sample(tmp_path / "c.wav")


def test_mislabelled_notes_are_left_out(tmp_path) -> None:
    folder = tmp_path / "trumpet"
    write_trumpet(folder)  # 12 cents sharp
    wrong = {  # name -> actual f0
        "trumpet_A4_15_forte_normal.flac": hz(57),
        "trumpet_G4_15_forte_normal.flac": hz(67.7),
    }
    right = {"trumpet_F4_15_forte_normal.flac": hz(65.55)}  # 55 cents from the name, 43 from the player
    for name, f0 in (wrong | right).items():
        sf.write(folder / name, make_held(f0, 0.6, 6), RATE)
    (folder / "._trumpet_A4_15_forte_normal.flac").write_bytes(b"of macOS, no sound")
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "trumpet").symlink_to(folder)
    index = build_index(folder, "trumpet")
    linked = build_index(tmp_path / "library", "trumpet")
    assert [f"trumpet/{one.path}" for one in index.samples] == [one.path for one in linked.samples]
    assert {path for path, _ in index.left_out} == set(wrong)
    assert all("cents" in reason for _, reason in index.left_out)
    for missing in (tmp_path / "nowhere", tmp_path / "library" / "trumpet" / "oboe"):
        with pytest.raises(FileNotFoundError, match=missing.name):
            build_index(missing, "trumpet")
    a4 = next(s for s in index.samples if s.path == "trumpet_A4_1_fortissimo_normal.flac")
    assert cents(a4.f0, 69.12) == pytest.approx(0, abs=1)
    assert a4.level == pytest.approx(-20, abs=1)


def test_copies_are_found_and_stay_on_the_held_out_side(tmp_path) -> None:
    folder = tmp_path / "trumpet"
    write_trumpet(folder)
    audio = make_held(hz(63), 0.8, 7, take=5)  # D#4, held out
    sf.write(folder / "trumpet_Ds4_15_forte_normal.flac", audio, RATE)
    sf.write(folder / "trumpet_Ds4_1_forte_normal.flac", 0.5 * audio[: round(0.9 * len(audio))], RATE)
    index = build_index(folder, "trumpet")
    assert index.left_out == (("trumpet_Ds4_1_forte_normal.flac", "copy of trumpet_Ds4_15_forte_normal.flac"),)


def test_takes_of_one_note_are_not_copies() -> None:
    rng = np.random.default_rng(0)
    takes = [make_pluck(220.0, 2.0, take=take) + 0.002 * rng.standard_normal(2 * RATE) for take in (0, 1)]
    assert find_copies([*takes, 0.3 * takes[0][:RATE]], RATE) == [(0, 2)]


def test_the_index_is_cached_until_the_files_change(tmp_path) -> None:
    folder, cache = tmp_path / "trumpet", tmp_path / "index.json"
    write_trumpet(folder)
    first = build_index(folder, "trumpet", cache)
    changed = cache.read_text().replace('"model"', '"held_out"')
    cache.write_text(changed)
    assert not build_index(folder, "trumpet", cache).select("model")
    shutil.copy(folder / "trumpet_A4_1_fortissimo_normal.flac", folder / "trumpet_A4_05_fortissimo_normal.flac")
    again = build_index(folder, "trumpet", cache)
    assert len(again.select("model")) == len(first.select("model"))
    assert len(again.left_out) == len(first.left_out) + 1
