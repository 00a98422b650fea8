"""voice/note_finder.py: notes of known melodies with syllables, steps, slides, vibrato and rests."""

import numpy as np
import pytest

from voice.note_finder import find_dips, find_notes, fit_levels

RATE = 100.0


def find(pitch, loudness=None, voiced=None, **options):
    """Return the notes of a pitch curve [T] in MIDI numbers."""
    pitch = np.asarray(pitch, dtype=float)
    loudness = np.full(len(pitch), -20.0) if loudness is None else loudness
    voiced = np.ones(len(pitch), dtype=bool) if voiced is None else voiced
    return find_notes(440 * 2 ** ((pitch - 69) / 12), loudness, voiced, RATE, **options)


def dip(loudness, frame, depth):
    """Lower loudness [T] by ``depth`` dB at a frame, linearly less within 60 ms of it."""
    away = np.abs(np.arange(len(loudness)) - frame) / 6
    return loudness - depth * np.clip(1 - away, 0, 1)


def test_steps_are_notes():
    notes = find(np.repeat([60.0, 62.0, 59.0], 40))
    assert [(note.onset, note.end, note.pitch) for note in notes] == [(0, 40, 60.0), (40, 80, 62.0), (80, 120, 59.0)]


@pytest.mark.parametrize(
    "pitch",
    [
        60.3 + 0.5 * np.arange(150) / 150,  # the nearest key changes
        *(60 + depth * np.sin(2 * np.pi * 5.5 * np.arange(200) / RATE) for depth in (0.3, 0.6)),
    ],
)
def test_drift_and_vibrato_are_one_note(pitch):
    (note,) = find(pitch)
    assert note.pitch == pytest.approx(60.3, abs=0.4)


def test_syllables_on_one_pitch_are_notes():
    loudness = dip(dip(np.full(150, -20.0), 50, 15), 100, 8)
    notes = find(np.full(150, 60.0), loudness)
    assert [note.onset for note in notes] == pytest.approx([0, 50, 100], abs=4)
    assert [note.end for note in notes[:-1]] == [note.onset for note in notes[1:]]
    swell = -20 - 4 * np.cos(2 * np.pi * np.arange(150) / 75)
    assert len(find(np.full(150, 60.0), swell)) == 1


def test_a_glide_belongs_to_the_note_that_it_reaches():
    pitch = np.concatenate([np.full(40, 57.0), np.linspace(57, 64, 8), np.full(40, 64.0)])
    notes = find(pitch)
    assert [round(note.pitch) for note in notes] == [57, 64]
    assert 40 <= notes[1].onset <= 48


@pytest.mark.parametrize("seconds, expected", [(0.08, 2), (0.4, 1)])
def test_a_slide_is_one_note_without_cut_slides(seconds, expected):
    pitch = np.concatenate([np.full(60, 57.0), np.linspace(57, 62, round(seconds * RATE)), np.full(60, 62.0)])
    assert len(find(pitch)) >= 2
    assert len(find(pitch, cut_slides=False)) == expected


def test_a_scoop_and_a_fall_are_no_notes():
    pitch = np.concatenate([np.linspace(57, 60, 6), np.full(60, 60.0), np.linspace(60, 56, 7)])
    notes = find(pitch)
    assert [(note.onset, note.end) for note in notes] == [(0, 73)]
    assert notes[0].pitch == pytest.approx(60)


def test_a_rest_separates_notes():
    voiced = np.ones(120, dtype=bool)
    voiced[50:70] = False
    notes = find(np.full(120, 60.0), voiced=voiced)
    assert [(note.onset, note.end) for note in notes] == [(0, 50), (70, 120)]


def test_onset_and_level_of_a_note():
    loudness = np.full(60, -30.0)
    loudness[:8] = np.linspace(-70, -35, 8)  # a slow attack
    loudness[20] = -24.0
    (note,) = find(np.full(60, 60.0), loudness)
    assert note.onset in (5, 6, 7) and note.level == -24.0
    assert find(np.full(50, 60.0), voiced=np.zeros(50, dtype=bool)) == []
    plateau = np.where((np.arange(60) >= 28) & (np.arange(60) < 31), -40.0, -20.0)
    assert len(find_dips(plateau, 20)) == 1


def test_levels_are_optimal():
    """Compare with an exhaustive search over curves of at most one step."""
    rng = np.random.default_rng(0)
    pitch = np.concatenate([np.full(6, 60.0), np.full(6, 61.5)]) + 0.2 * rng.standard_normal(12)
    cost = 1.0
    found = fit_levels(pitch, cost)
    grid = np.arange(59, 63, 0.25)
    best = min(
        np.abs(pitch[:cut] - one).sum() + np.abs(pitch[cut:] - other).sum() + cost * (0 < cut < 12)
        for cut in range(13)
        for one in grid
        for other in grid
        if abs(one - other) >= 0.75
    )
    steps = np.count_nonzero(np.diff(found))
    assert np.abs(pitch - found).sum() + cost * steps <= best + 1e-9
