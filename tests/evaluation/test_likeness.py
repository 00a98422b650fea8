"""Likeness is 0 for the instrument itself, 1 for the other instrument, and cares for timbre alone."""

import numpy as np
import pytest

from evaluation import likeness
from evaluation.likeness import describe_timbre, measure_likeness
from evaluation.scorecard import MeasuredSound

RATE, HOP = 16000, 160


def play(rolloff, seed, seconds=20.0, gain=0.0):
    """Return notes of random pitch (an octave) and level (12 dB), with harmonics falling by ``rolloff`` dB an octave.

    Each note's rolloff differs by some dB, so that an instrument's timbre is a distribution. Curves are known.
    """
    rng = np.random.default_rng(seed)
    n_notes = round(2 * seconds)
    f0 = (220 * 2 ** rng.uniform(0, 1, n_notes)).repeat(50)
    level = rng.uniform(-30, -18, n_notes).repeat(50)
    slope = (rolloff + rng.normal(0, 1.5, n_notes)).repeat(50)
    phase = 2 * np.pi * np.cumsum(f0.repeat(HOP)) / RATE
    order = np.arange(1, 18)[:, None]
    partials = 10 ** (-slope.repeat(HOP) * np.log2(order) / 20) * np.sin(order * phase)
    partials /= np.sqrt(np.sum(10 ** (-slope.repeat(HOP) * np.log2(order) / 10), axis=0) / 2)
    audio = 10 ** (level.repeat(HOP) / 20) * partials.sum(axis=0)
    audio += 1e-4 * rng.standard_normal(len(audio))
    return MeasuredSound((10 ** (gain / 20) * audio).astype(np.float32), f0, level, np.ones(len(f0)), RATE, HOP)


@pytest.fixture(scope="module")
def halves():
    return likeness.split_timbre(describe_timbre(play(6.0, seed=1, seconds=40)))


@pytest.fixture(scope="module")
def other():
    return describe_timbre(play(15.0, seed=2))


def score(sound, halves, other, seed=0):
    timbre = describe_timbre(sound)
    return measure_likeness((timbre, timbre), halves, other, seed)


def test_the_instrument_itself_is_near_zero(halves, other):
    assert abs(score(play(6.0, seed=3), halves, other).scaled) < 0.15


def test_the_other_instrument_is_near_one(halves, other):
    assert score(play(15.0, seed=4), halves, other).scaled == pytest.approx(1, abs=0.15)


def test_between_the_two_lies_between(halves, other):
    scores = [score(play(rolloff, seed=5), halves, other).scaled for rolloff in (6.0, 10.0, 15.0, 24.0)]
    assert scores == sorted(scores) and scores[-1] > 1.2


def test_its_own_halves_are_exactly_zero(halves, other):
    assert measure_likeness((halves[1], halves[0]), halves, other).scaled == pytest.approx(0, abs=0.05)


def test_level_plays_no_part(halves, other):
    loud, soft = (score(play(6.0, seed=3, gain=gain), halves, other).scaled for gain in (0.0, -12.0))
    assert soft == pytest.approx(loud, abs=0.01)


def test_same_seed_same_bits(halves, other):
    one, two, three = (score(play(9.0, seed=6), halves, other, seed) for seed in (0, 0, 1))
    assert one == two != three
    assert three.scaled == pytest.approx(one.scaled, abs=0.1)


def test_pitches_that_the_instrument_has_not_cannot_be_compared(halves, other):
    high = play(6.0, seed=3)
    timbre = describe_timbre(high, f0=4 * high.f0)
    assert measure_likeness((timbre, timbre), halves, other) is None
    timbre = describe_timbre(high, loudness=high.loudness - 60)
    assert measure_likeness((timbre, timbre), halves, other) is None


def test_frames_without_a_sure_pitch_or_sound_are_left_out():
    sound = play(6.0, seed=1, seconds=2)
    sound.periodicity[:40] = 0.8
    sound.loudness[40:50] = -61
    timbre = describe_timbre(sound)
    assert len(timbre.bins) == len(timbre.descriptors) == 150 and timbre.descriptors.shape[1] == 14


def test_halves_take_turns_every_two_seconds():
    timbre = describe_timbre(play(6.0, seed=1, seconds=8))
    assert timbre.halves.tolist() == [0] * 200 + [1] * 200 + [0] * 200 + [1] * 200
    first, second = likeness.split_timbre(likeness.join_timbres([timbre, timbre]))
    assert len(first.bins) == len(second.bins) == 800
