"""Names, roles and melodies of recorded notes."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.recorded_notes import (
    HELD_OUT,
    LIBRARY_RATE,
    RECOGNISER,
    RecordedNote,
    Sound,
    find_notes,
    read_name,
    string_melody,
)


@pytest.mark.parametrize(
    ("name", "instrument", "pitch", "role"),
    [
        ("trumpet_C4_1_forte_normal.mp3", "trumpet", 60, RECOGNISER),
        ("trumpet_Fs4_phrase_forte_staccato.mp3", "trumpet", 66, RECOGNISER),
        ("trumpet_A4_1_forte_normal.mp3", "trumpet", 69, RECOGNISER),
        ("trumpet_G4_1_forte_normal.mp3", "trumpet", 67, "model"),
        ("violin_Ds5_05_forte_arco-normal.mp3", "violin", 75, HELD_OUT),
        ("flute_A4_1_forte_normal.mp3", "flute", 69, "model"),
        ("clarinet_A4_1_forte_normal.mp3", "clarinet", 69, RECOGNISER),
        ("cello_Ds3_1_forte_normal.mp3", "cello", 51, HELD_OUT),
        ("db2_vl1_rr4_1.flac", "guitar", 37, HELD_OUT),
        ("e2_vl1_rr4_1.flac", "guitar", 40, RECOGNISER),
        ("e2_vl1_rr3_1.flac", "guitar", 40, "model"),
        ("sus_v3_f_asharp3.flac", "trumpet", 70, HELD_OUT),
        ("C#4.flac", "guitar", 61, HELD_OUT),
        ("A1.flac", "guitar", 45, HELD_OUT),
    ],
)
def test_a_name_gives_instrument_pitch_and_role(name: str, instrument: str, pitch: int, role: str) -> None:
    note = read_name(Path(name))
    assert (note.instrument, note.pitch, note.role) == (instrument, pitch, role)


@pytest.mark.parametrize(
    "name", ["a2_release_rr1_1.flac", "mute_string1_rr1_1.flac", "song.mp3", "C4.wav", "README.md"]
)
def test_other_file_names_are_skipped(name: str) -> None:
    assert read_name(Path(name)) is None


def test_a_folder_without_notes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        find_notes(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        find_notes(tmp_path / "missing")


def make_sounds(instrument: str) -> list[Sound]:
    time = np.arange(LIBRARY_RATE) / LIBRARY_RATE
    pitches = (60, 66, 72)
    return [
        Sound(
            RecordedNote(Path(f"{pitch}"), instrument, pitch, RECOGNISER, "room"),
            np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time).astype(np.float32),
        )
        for pitch in pitches
    ]


@pytest.mark.parametrize("instrument", ["trumpet", "guitar"])
def test_melody_has_its_length_and_depends_on_the_seed(instrument: str) -> None:
    sounds = make_sounds(instrument)
    melody, again, other = (string_melody(sounds, 4.0, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert melody.shape == (4 * LIBRARY_RATE,)
    assert np.array_equal(melody, again)
    assert not np.array_equal(melody, other)
    levels = np.sqrt(np.mean(melody.reshape(-1, LIBRARY_RATE // 2) ** 2, axis=1))
    assert np.mean(levels > 0.01) > 0.8


def test_a_melody_stays_near_the_recorded_pitches() -> None:
    melody = string_melody(make_sounds("trumpet"), 8.0, np.random.default_rng(3))
    spectrum = np.abs(np.fft.rfft(melody)) ** 2
    frequencies = np.fft.rfftfreq(len(melody), 1 / LIBRARY_RATE)
    inside = (frequencies > 261.6 * 2 ** (-5 / 12)) & (frequencies < 523.3 * 2 ** (5 / 12))
    assert spectrum[inside].sum() > 0.98 * spectrum.sum()
