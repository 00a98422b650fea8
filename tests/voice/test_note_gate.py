"""voice/note_gate.py: voicing."""

import numpy as np
import pytest

from config import load_config
from voice import note_gate

CONFIG = load_config()


@pytest.mark.parametrize(("n_note", "n_gap", "n_left"), [(6, 20, 0), (7, 20, 7), (20, 5, 25), (20, 6, 20)])
def test_clicks_are_dropped_and_short_gaps_closed(n_note: int, n_gap: int, n_left: int) -> None:
    """60 ms are a click and 50 ms a gap; silence before the first note and after the last is neither."""
    gate = np.concatenate([np.zeros(3), np.ones(n_note), np.zeros(n_gap), np.ones(20), np.zeros(2)]).astype(bool)
    expected = gate.copy()
    expected[3 : 3 + n_note + n_gap] = np.arange(n_note + n_gap) < n_left
    assert np.array_equal(note_gate._clean_runs(gate, CONFIG.transfer, 100.0), expected)


def test_a_note_may_end_softer_than_it_began() -> None:
    """Noise at -50 dB: a note begins above -40 and ends below -44 dB; one that stays below -40 dB is not played."""
    loudness, periodicity = np.full(200, -50.0), np.zeros(200)
    loudness[20:100], periodicity[20:100] = np.linspace(-20, -48, 80), 0.9
    loudness[120:180], periodicity[120:180] = -42.0, 0.9
    voiced = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG)
    last = np.flatnonzero(loudness[:100] > -44)[-1]
    assert np.flatnonzero(voiced).tolist() == list(range(20, last + 1))
    lower = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG, gate_offset=-6.0)
    assert lower[120:180].all() and lower[:100].sum() > voiced[:100].sum()


@pytest.mark.parametrize(("level", "is_played"), [(-64.0, True), (-66.0, False)])
def test_a_note_much_softer_than_the_others_is_not_voiced(level: float, is_played: bool) -> None:
    """At any noise floor the limit is 45 dB below the loud notes."""
    loudness, periodicity = np.full(200, -79.0), np.zeros(200)
    loudness[20:80], periodicity[20:80] = -20.0, 0.9
    loudness[120:180], periodicity[120:180] = level, 0.9
    voiced = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG)
    assert voiced[20:80].all() and voiced[120:180].all() == voiced[120:180].any() == is_played


def test_the_noise_floor_is_a_quantile_of_the_pauses() -> None:
    loudness = np.arange(-100.0, 0.0)
    assert note_gate.noise_floor(loudness, loudness >= -49, CONFIG) == pytest.approx(-100 + 0.2 * 50)
    assert note_gate.noise_floor(loudness, np.ones(100, bool), CONFIG) == CONFIG.features.loudness_floor


def test_silent_and_aperiodic_frames_are_unvoiced() -> None:
    loudness, periodicity, can_sound = np.full(100, -20.0), np.full(100, 0.9), np.ones(100, bool)
    can_sound[:50] = False
    voiced = note_gate.find_voiced(loudness, periodicity, can_sound, CONFIG)
    assert np.flatnonzero(voiced).tolist() == list(range(50, 100))
    voiced = note_gate.find_voiced(np.full(50, -20.0), np.full(50, 0.1), np.ones(50, bool), CONFIG)
    assert not voiced.any()
