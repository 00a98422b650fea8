"""voice/plucked_notes.py: compared with analytic levels and with measured plucks."""

import numpy as np
import pytest

from conftest import harmonic_tone
from features import extract_loudness
from sound.plucks import KNOTS, PluckTable, find_onsets, measure_plucks, melody_plucks, window_share
from voice.note_finder import SungNote, find_notes
from voice.plucked_notes import fit_levels_to_plucks, hold_pitch, pluck_notes

RATE, WINDOW = 100.0, 0.064
DECAY = 20.0  # dB/s
TABLE = PluckTable((60.0,), (-40.0,), (-20.0,), *[(tuple(-DECAY * knot for knot in KNOTS),)] * 2)


def play(notes, n_frames=300, **options):
    return pluck_notes(notes, TABLE, n_frames, RATE, WINDOW, **options)


def test_a_note_rises_rings_and_is_damped():
    curves = play([SungNote(50, 150, 60.0, -20.0)])
    since = np.arange(-3, 80)
    expected = -20 - DECAY * np.maximum(since, 0) / RATE + 10 * np.log10(window_share(since / RATE, WINDOW))
    np.testing.assert_allclose(curves.loudness[50 + since], expected, atol=0.01)
    assert (curves.loudness[:47] == -80).all() and (curves.loudness[160:] == -80).all()
    assert curves.loudness[146] - curves.loudness[156] > 15
    np.testing.assert_array_equal(np.flatnonzero(curves.ringing), np.arange(47, 159))


def test_a_repeated_note_replaces_the_old_one():
    curves = play([SungNote(50, 150, 60.0, -20.0), SungNote(150, 250, 60.0, -20.0)])
    # Powers of the old note (20 dB down after 1 s at 20 dB/s) and of the new one, weighted by the window.
    share = window_share(np.array(0.0), WINDOW)
    old, new = 10 ** ((-20 - DECAY) / 10), 10**-2
    assert curves.loudness[150] == pytest.approx(10 * np.log10(old * (1 - share) + new * share), abs=0.05)
    assert curves.loudness[153] == pytest.approx(-20 - DECAY * 0.03, abs=0.05)


def test_a_held_note_can_be_plucked_again():
    loudness = play([SungNote(50, 250, 60.0, -20.0)], repeat_seconds=0.5).loudness
    assert find_onsets(np.full(300, 261.6), loudness, RATE) == pytest.approx([50, 100, 150, 200], abs=1)


@pytest.mark.parametrize("f0", [110.0, 440.0])
def test_a_measured_pluck_is_reproduced(config, f0):
    """Measure a sound with two slopes and a slow attack; the curve from its table matches its loudness."""
    times = np.arange(2 * 16000) / 16000
    decay = np.minimum(15 * times, 4 + 7 * times) + 25 * np.clip(0.01 - times, 0, 0.01) / 0.01
    sound = harmonic_tone(f0, 2.0) * 10 ** (-decay / 20)
    sound = np.concatenate([np.zeros(3200), sound]).astype(np.float32)
    loudness = extract_loudness(sound, config)
    curves = np.full(len(loudness), f0), loudness, RATE
    (pluck,), (onset,) = melody_plucks(*curves, WINDOW), find_onsets(*curves)
    table = measure_plucks([pluck], RATE, WINDOW)
    note = SungNote(onset, len(loudness), pluck.pitch, float(pluck.loudness.max()))
    built = pluck_notes([note], table, len(loudness), RATE, WINDOW).loudness
    error = np.abs(built - loudness)[onset - 1 : -5]  # the recording is cut off at its end
    assert error.mean() < 0.5 and error.max() < 3  # dB


def test_levels_are_mapped_into_the_instruments_range():
    notes = [SungNote(100 * k, 100 * k + 80, 60.0, level) for k, level in enumerate((-60.0, -50.0, -40.0, -45.0))]
    fitted = [note.level for note in fit_levels_to_plucks(notes, TABLE)]
    assert np.argsort(fitted).tolist() == np.argsort([note.level for note in notes]).tolist()
    assert min(fitted) >= -40 and max(fitted) <= -20
    louder = [note.level for note in fit_levels_to_plucks(notes, TABLE, offset=3.0)]
    assert louder[1] - fitted[1] == pytest.approx(3.0)
    even = [SungNote(100 * k, 100 * k + 80, 60.0, -50.0 + 0.2 * (k % 2)) for k in range(6)]
    assert np.ptp([note.level for note in fit_levels_to_plucks(even, TABLE)]) < 0.5


def test_no_notes_make_silence():
    curves = play([])
    assert (curves.loudness == -80).all() and not curves.ringing.any() and fit_levels_to_plucks([], TABLE) == []


def test_pitch_is_held_outside_the_notes():
    f0 = np.linspace(100, 199, 100)
    held = hold_pitch(f0, [SungNote(20, 40, 0, 0), SungNote(70, 90, 0, 0)], 3)
    np.testing.assert_array_equal(held[:20], f0[20])
    np.testing.assert_array_equal(held[20:40], f0[20:40])
    np.testing.assert_array_equal(held[40:67], f0[39])
    np.testing.assert_array_equal(held[67:70], f0[70])
    np.testing.assert_array_equal(held[90:], f0[89])


def test_a_sung_melody_is_plucked():
    """Two syllables with vibrato, a rest, a note with a slide: three plucks."""
    frames = np.arange(300)
    pitch = np.where(frames < 150, 60 + 0.4 * np.sin(2 * np.pi * 0.055 * frames), 60.0)
    pitch += np.clip((frames - 210) / 30, 0, 1) * 3
    f0 = 440 * 2 ** ((pitch - 69) / 12)
    voiced = (frames >= 20) & (frames < 270) & ~((frames >= 140) & (frames < 180))
    loudness = np.where(voiced, -20.0, -70.0) - 15 * np.clip(1 - np.abs(frames - 80) / 6, 0, 1)
    notes = fit_levels_to_plucks(find_notes(f0, loudness, voiced, RATE, cut_slides=False), TABLE)
    curves = pluck_notes(notes, TABLE, len(f0), RATE, WINDOW)
    onsets = find_onsets(f0, curves.loudness, RATE)
    assert onsets == pytest.approx([20, 80, 180], abs=4)
    assert (curves.loudness[150:170] == -80).all()  # damped in the rest
    ring = slice(onsets[0] + 5, onsets[1] - 5)
    assert np.polyfit(frames[ring] / RATE, curves.loudness[ring], 1)[0] == pytest.approx(-DECAY, abs=0.5)
