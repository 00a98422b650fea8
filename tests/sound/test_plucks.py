"""sound/plucks.py: the effect of the loudness window, decay, and detection in a recording."""

import json

import numpy as np
import pytest

from conftest import harmonic_tone
from features import extract_loudness
from sound.plucks import (
    LONGEST_RING,
    PluckTable,
    curves_from_onsets,
    damped_share,
    find_onsets,
    measure_plucks,
    melody_plucks,
    typical_plucks,
    window_share,
)

RATE, WINDOW = 100.0, 0.064


def ringing(f0, seconds, decay, amplitude=0.3):
    """Return a tone, float32 [N] at 16 kHz, that begins abruptly and decays by ``decay`` dB/s."""
    times = np.arange(round(seconds * 16000)) / 16000
    return (harmonic_tone(f0, seconds, amplitude=amplitude) * 10 ** (-decay * times / 20)).astype(np.float32)


def play(notes, seconds):
    """Return float32 [N] of notes (onset s, f0 Hz, amplitude, decay dB/s); each ends where the next begins."""
    sound = np.zeros(round(seconds * 16000), np.float32)
    for (onset, f0, amplitude, decay), end in zip(notes, [*(note[0] for note in notes[1:]), seconds]):
        start, stop = round(onset * 16000), round(end * 16000)
        sound[start:stop] = ringing(f0, (stop - start) / 16000, decay, amplitude)
    return sound


def f0_of(notes, seconds):
    """Return f0 [T] in Hz of the notes of ``play``; before the first note, that of the first note."""
    times = np.arange(round(seconds * RATE)) / RATE
    which = np.searchsorted([note[0] for note in notes], times + 1e-9, side="right") - 1
    return np.array([note[1] for note in notes])[np.maximum(which, 0)]


def test_window_share_is_the_measured_level_of_an_abrupt_onset(config):
    sound = np.concatenate([np.zeros(8000, np.float32), ringing(880.0, 0.5, 0)])
    frames = 50 + np.arange(-2, 4)
    expected = 10 * np.log10(window_share(np.arange(-2, 4) / RATE, WINDOW))
    loudness = extract_loudness(sound, config)
    # Tolerance: the A-weighting filter's transient, and the ripple of a tone's power within its period.
    np.testing.assert_allclose(loudness[frames] - loudness[70], expected, atol=0.5)


def test_damped_share_is_the_measured_level_of_a_damped_tone(config):
    fade = 0.5 + 0.5 * np.cos(np.pi * np.clip((np.arange(16000) - 8000) / (0.06 * 16000), 0, 1))
    loudness = extract_loudness((ringing(880.0, 1.0, 0) * fade).astype(np.float32), config)
    since = np.arange(-4, 6)
    np.testing.assert_allclose(
        loudness[50 + since] - loudness[30], 10 * np.log10(damped_share(since / RATE, WINDOW)), atol=0.5
    )


def test_the_decay_of_single_plucks_is_measured(config):
    """Plucks at two pitches decay by 24 dB/s if soft and by 12 dB/s if loud."""
    plucks = []
    for f0 in (220.0, 440.0):
        for amplitude, decay in ((0.03, 24.0), (0.3, 12.0)):
            sound = np.concatenate([np.zeros(3200, np.float32), ringing(f0, 2.5, decay, amplitude)])
            loudness = extract_loudness(sound, config)
            plucks += melody_plucks(np.full(len(loudness), f0), loudness, RATE, WINDOW)
    assert len(plucks) == 4
    table = measure_plucks(plucks, RATE, WINDOW)
    times = np.array([0.05, 0.3, 1.0])
    for pitch in (57.0, 69.0):
        soft, loud = table.levels(pitch)
        assert loud - soft == pytest.approx(20, abs=1)
        for level, rate in ((soft, -24), (loud, -12)):
            decay = table.decay(pitch, level, np.array([0.0, *times]))
            np.testing.assert_allclose(decay[1:] - decay[0], rate * times, atol=0.6)
            assert decay[0] == pytest.approx(level, abs=1.0)  # the window flattens the peak


def test_a_table_survives_json():
    table = typical_plucks(-12.0)
    assert PluckTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"soft": [1.0]}, "soft"),
        ({"loud_decay": [[0.0]]}, "loud_decay"),
        ({"pitches": [5.0, 4.0]}, "pitches"),
        ({"medium": [1.0]}, "medium"),
        ({"soft": ...}, "soft"),
        *(({"soft": soft}, "pluck table") for soft in (3.0, ["x"], None, [[1.0], [2.0, 3.0]], [float("nan"), 0.0])),
    ],
)
def test_an_invalid_table_is_refused(change, culprit):
    values = {**typical_plucks(-12.0).to_dict(), **change}
    with pytest.raises(ValueError, match=culprit):
        PluckTable.from_dict({name: value for name, value in values.items() if value is not ...})


def nested(depth):
    """Return a list that takes a few bytes of a file for each level, and whose size doubles with each."""
    value = [0.0]
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"soft": nested(60)},
        {"loud_decay": nested(60)},
        {"pitches": [0.0] * 10**6},
        {"soft": [1e308] * len(typical_plucks(-12.0).soft)},
    ],
)
def test_huge_tables_are_refused_in_a_short_message(change):
    values = nested(60) if change is None else {**typical_plucks(-12.0).to_dict(), **change}
    with pytest.raises(ValueError, match=r"^.{,300}$"):
        PluckTable.from_dict(values)


def test_plucks_are_found(config):
    """One after silence, a louder and an equally loud one on the same pitch, and a softer one on another."""
    notes = [(0.3, 220.0, 0.1, 15.0), (0.7, 220.0, 0.3, 15.0), (1.1, 220.0, 0.3, 15.0), (1.5, 330.0, 0.05, 15.0)]
    loudness = extract_loudness(play(notes, 2.2), config)
    assert find_onsets(f0_of(notes, 2.2), loudness, RATE) == pytest.approx([30, 70, 110, 150], abs=1)


def test_a_slide_and_a_vibrato_are_not_plucks(config):
    times = np.arange(2 * 16000) / 16000
    pitch = 57 + 2 * np.clip((times - 0.8) / 0.1, 0, 1) + 0.4 * np.sin(2 * np.pi * 5.5 * times) * (times > 1.1)
    f0 = 440 * 2 ** ((pitch - 69) / 12)
    sound = harmonic_tone(f0, 2.0) * 10 ** (-15 * times / 20) * (times >= 0.3)
    assert find_onsets(f0[::160], extract_loudness(sound.astype(np.float32), config), RATE) == [30]


def test_curves_of_plucks(config):
    notes = [(0.3, 220.0, 0.1, 15.0), (0.7, 220.0, 0.3, 15.0)]
    loudness = extract_loudness(play(notes, 1.2), config)
    time, velocity = curves_from_onsets([30, 70], loudness, RATE)
    np.testing.assert_allclose(time[[0, 29, 30, 69, 70, 119]], [LONGEST_RING, LONGEST_RING, 0, 0.39, 0, 0.49])
    assert velocity[0] == -80
    assert velocity[60] == velocity[30] == loudness[30:42].max()
    assert velocity[70] - velocity[69] == pytest.approx(9.5, abs=0.5)  # 0.3 over 0.1
