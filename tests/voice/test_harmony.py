"""voice/harmony.py: keys, steps of a scale, and the differences between players of an ensemble."""

import numpy as np
import pytest

from sound.crepe import hz_to_midi, midi_to_hz
from voice.curves import Curves
from voice.harmony import find_key, move_by_steps, read_harmonies
from voice.instrument_fit import TransferOptions, assign_parts, key_pitch_classes

C_MAJOR = key_pitch_classes("C major")


def curves_of(notes: list[int]) -> Curves:
    """Return notes of 0.5 s each, with vibrato."""
    pitch = np.repeat(notes, 50) + 0.3 * np.sin(2 * np.pi * 5 * np.arange(50 * len(notes)) / 100)
    ones = np.ones(len(pitch))
    return Curves(midi_to_hz(pitch).astype(np.float32), -20 * ones, ones, ones > 0, ones)


def test_steps_follow_the_key() -> None:
    notes = np.array([60, 62, 64, 65, 67, 69, 71, 72])
    assert move_by_steps(notes, 2, C_MAJOR).tolist() == [4, 3, 3, 4, 4, 3, 3, 4]
    assert move_by_steps(notes, -5, C_MAJOR).tolist() == [-8, -9, -9, -8, -8, -9, -9, -8]
    assert set(move_by_steps(np.arange(40, 80), 7, key_pitch_classes("F# minor")).tolist()) == {12}
    assert set(move_by_steps(np.arange(40, 80), -7, key_pitch_classes("Bb major")).tolist()) == {-12}


@pytest.mark.parametrize(
    ("notes", "key"), [([60, 62, 64, 65, 67, 67, 64, 60, 60], "C major"), ([57, 60, 64, 62, 60, 59, 57, 57], "A minor")]
)
def test_the_key_of_a_tune_is_found(notes: list[int], key: str) -> None:
    assert find_key(np.array(notes)) == key
    tonic, mode = key.split()
    moved = find_key(np.array(notes) + 3)
    assert moved == {"C": "Eb", "A": "C"}[tonic] + f" {mode}"


def test_a_harmony_keeps_the_vibrato() -> None:
    curves = curves_of([60, 62, 64])
    (single,) = assign_parts(curves, TransferOptions(), 100.0)
    assert single.curves is curves and (single.level, single.seed) == (0.0, 0)
    melody, third = assign_parts(curves, TransferOptions(harmony="third", key="C major"), 100.0)
    assert melody.curves is not third.curves and third.seed != melody.seed
    apart = hz_to_midi(third.curves.f0) - hz_to_midi(curves.f0)
    assert np.median(apart[:50]) == pytest.approx(4) and np.median(apart[110:]) == pytest.approx(3)
    assert apart[5:45].std() < 0.01


def test_players_differ_slightly_in_tuning_and_time() -> None:
    curves = curves_of([60, 62])
    parts = assign_parts(curves, TransferOptions(ensemble=3), 100.0)
    tuning = [1200 * np.log2(part.curves.f0[20:40] / curves.f0[20:40]).mean() for part in parts]  # over a vibrato
    assert tuning == pytest.approx([-9, 0, 9], abs=0.5) and len({part.seed for part in parts}) == 3
    late = [int(np.argmax(part.curves.f0 > midi_to_hz(61.0))) - 50 for part in parts]
    assert late[0] <= late[1] <= late[2] <= 4
    assert len({len(part.curves.f0) for part in parts}) == 1


def test_invalid_harmonies_are_refused() -> None:
    assert read_harmonies(" Third, octave below ") == ("third", "octave_below") and read_harmonies("") == ()
    with pytest.raises(ValueError, match="fifth"):
        TransferOptions(harmony="third,fifth")
    for players in (0, 7, 1.5):
        with pytest.raises(ValueError, match=f"ensemble.*{players}"):
            TransferOptions(ensemble=players)
