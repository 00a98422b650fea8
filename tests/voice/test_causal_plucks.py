"""Causal plucks, compared with those of the whole melody."""

import numpy as np
import pytest
import torch

from sound.plucks import KNOTS, PluckTable
from voice.causal_plucks import CausalPlucker
from voice.note_finder import find_notes
from voice.plucked_notes import MIDDLE_HARDNESS

RATE, WINDOW = 100.0, 0.064
TABLE = PluckTable((40.0, 80.0), (-40.0,) * 2, (-20.0,) * 2, *[(tuple(-20.0 * knot for knot in KNOTS),) * 2] * 2)


def pluck(f0, loudness, voiced, **options):
    """Return loudness, ringing, and the newest pluck's level and frames since its onset, [T] each."""
    plucker, played = CausalPlucker(TABLE, RATE, WINDOW, **options), []
    state, reference = plucker.initial_state(), torch.tensor([-30.0])
    curves = (torch.from_numpy(curve.astype(np.float32)) for curve in (f0, loudness))
    for frame in zip(*(curve.split(1) for curve in curves), torch.from_numpy(voiced).split(1)):
        frame, state = plucker(*frame, reference, state)
        played.append((*frame, *state.strings[0, 1:3].split(1)))
    return tuple(torch.cat(values).numpy() for values in zip(*played))


def onsets_of(f0, loudness, voiced, **options):
    return np.flatnonzero(pluck(f0, loudness, voiced, **options)[3] == 0)


def sing(levels, seed=0):
    """Return f0, loudness, voiced and the notes' first frames: attacks of 60 ms, some notes legato."""
    rng = np.random.default_rng(seed)
    f0, loudness, first = [np.full(20, 220.0)], [np.full(20, -80.0)], []
    for number, level in enumerate(levels):
        first.append(sum(map(len, f0)))
        rise = level - 30 * np.exp(-np.arange(45) / 1.5)
        rise[-5:] -= np.linspace(2, 20, 5)
        f0.append(np.full(45, 220.0 * 2 ** ((number % 3) / 6)))
        loudness.append(rise + 0.3 * rng.standard_normal(45))
        if number % 2:
            f0.append(np.full(15, f0[-1][-1]))
            loudness.append(np.full(15, -80.0))
    f0, loudness = np.concatenate(f0), np.concatenate(loudness)
    return f0, loudness, loudness > -60, first


def test_each_note_is_plucked_once_at_nearly_the_level_of_the_whole_note():
    f0, loudness, voiced, first = sing([-30, -35, -28, -40, -33, -30])
    _, _, velocity, age = pluck(f0, loudness, voiced)
    assert np.flatnonzero(age == 0) == pytest.approx([frame + 3 for frame in first], abs=3)
    notes = find_notes(f0, loudness, voiced, RATE)
    whole = [TABLE.level(note.pitch, MIDDLE_HARDNESS + (note.level + 30) / 20) for note in notes]
    causal = velocity[np.flatnonzero(age == 0) + 2]
    assert len(causal) == len(whole)
    assert np.median(np.abs(causal - whole)) < 4  # dB


def test_a_note_decays_while_the_voice_holds():
    f0, loudness, voiced = np.full(150, 220.0), np.full(150, -30.0), np.arange(150) >= 20
    played, *_, age = pluck(f0, loudness, voiced)
    assert np.count_nonzero(age == 0) == 1
    assert np.polyfit(np.arange(40, 140) / RATE, played[40:140], 1)[0] == pytest.approx(-20, abs=0.5)


def test_a_note_is_damped_where_the_voice_ends():
    f0, loudness = np.full(150, 220.0), np.full(150, -30.0)
    voiced = (np.arange(150) >= 20) & (np.arange(150) < 80)
    played, ringing, *_ = pluck(f0, loudness, voiced)
    assert played[79] > -45 and (played[90:] == -80).all() and not ringing[90:].any()


def test_vibrato_does_not_pluck():
    frames = np.arange(300)
    f0 = 220 * 2 ** (0.5 * np.sin(2 * np.pi * 5.5 * frames / RATE) / 12)
    assert len(onsets_of(f0, np.full(300, -30.0), frames >= 20)) == 1


def test_a_syllable_plucks_again():
    frames = np.arange(200)
    loudness = -30 - 15 * np.clip(1 - np.abs(frames - 100) / 6, 0, 1)
    assert onsets_of(np.full(200, 220.0), loudness, frames >= 20) == pytest.approx([22, 106], abs=3)


def test_a_held_note_can_be_plucked_again():
    frames = np.arange(200)
    onsets = onsets_of(np.full(200, 220.0), np.full(200, -30.0), frames >= 20, repeat_seconds=0.5)
    np.testing.assert_array_equal(onsets, [22, 72, 122, 172])


def test_the_output_is_causal_and_silence_stays_silent():
    f0, loudness, voiced, _ = sing([-30, -35, -28, -40])
    whole, cut = pluck(f0, loudness, voiced), pluck(f0[:130], loudness[:130], voiced[:130])
    for one, other in zip(whole, cut):
        np.testing.assert_array_equal(one[:130], other)
    played, ringing, *_ = pluck(np.full(50, 220.0), np.full(50, -80.0), np.zeros(50, dtype=bool))
    assert (played == -80).all() and not ringing.any()
