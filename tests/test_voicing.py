"""voicing.py: mains hum, the gate, the mending of the pitch, several pitches at once."""

import numpy as np
import pytest
from conftest import harmonic_tone

import voicing
from config import load_config
from hum import remove_mains_hum

CONFIG = load_config()
SETTINGS = CONFIG.transfer
RATE = 16000


def mains(seconds: float, frequency: float, level: float) -> np.ndarray:
    """Return hum [N] of an RMS level in dBFS, with odd harmonics stronger than even ones."""
    times = np.arange(round(seconds * RATE)) / RATE
    partials = ((1, 1), (2, 0.3), (3, 0.7), (5, 0.4), (9, 0.1))
    hum = sum(a * np.sin(2 * np.pi * k * frequency * times + k) for k, a in partials)
    return (hum / np.sqrt(np.mean(hum**2)) * 10 ** (level / 20)).astype(np.float32)


def tune(seconds: float = 6.0) -> np.ndarray:
    """Return notes of 0.8 s with vibrato and rests of 0.4 s over faint noise; one lies at 150 Hz."""
    rest = np.zeros(round(0.4 * RATE), np.float32)
    times = np.arange(round(0.8 * RATE)) / RATE
    vibrato = 1 + 0.01 * np.sin(2 * np.pi * 5.5 * times)
    notes = [harmonic_tone(f0 * vibrato, 0.8, amplitude=0.1) for f0 in (150, 196, 131, 175, 147)]
    song = np.concatenate([part for note in notes for part in (note, rest)])
    return (song + 1e-4 * np.random.default_rng(0).standard_normal(len(song))).astype(np.float32)


def power(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.asarray(audio, dtype=np.float64) ** 2))


@pytest.mark.parametrize("frequency", [50.0, 49.93, 60.0, 60.08])
def test_mains_hum_is_taken_out_and_the_tune_stays(frequency: float) -> None:
    song = tune()
    cleaned, hum = remove_mains_hum(song + mains(6.0, frequency, -14), RATE, SETTINGS)
    assert hum is not None and hum.frequency == round(frequency / 10) * 10
    assert power(hum.audio) == pytest.approx(-14, abs=0.5)
    assert power(cleaned - song) < -50  # 36 dB under the hum, and 30 under the tune


def test_without_hum_not_a_sample_changes() -> None:
    song = tune()
    cleaned, hum = remove_mains_hum(song, RATE, SETTINGS)
    assert hum is None and cleaned is song
    short = mains(1.0, 50.0, -20)
    assert remove_mains_hum(short, RATE, SETTINGS)[1] is None


@pytest.mark.parametrize("f0", [300.0, 98.0, 103.0])
def test_a_held_tone_is_no_hum(f0: float) -> None:
    """300 Hz is a multiple of both mains, but without their fundamental; a low note near 100 Hz is off by more."""
    assert remove_mains_hum(harmonic_tone(f0, 4.0), RATE, SETTINGS)[1] is None


def test_a_note_at_100_hz_between_rests_is_no_hum() -> None:
    note, rest = harmonic_tone(100.0, 1.0), np.zeros(RATE // 2, np.float32)
    assert remove_mains_hum(np.concatenate([note, rest] * 4), RATE, SETTINGS)[1] is None


# --- the gate -------------------------------------------------------------------------------------


def test_clicks_are_dropped_and_short_gaps_closed() -> None:
    gate = np.zeros(100, dtype=bool)
    gate[10:13] = True  # 30 ms: a click
    gate[40:60] = True
    gate[64:80] = True  # 40 ms after: the same note
    cleaned = voicing._clean_runs(gate, SETTINGS, 100.0)
    assert np.flatnonzero(cleaned).tolist() == list(range(40, 80))


def test_a_note_may_end_softer_than_it_began() -> None:
    """Noise at -50: a note begins over -40 and ends under -44; what never gets over -40 is not played."""
    loudness, periodicity = np.full(200, -50.0), np.zeros(200)
    loudness[20:100], periodicity[20:100] = np.linspace(-20, -48, 80), 0.9
    loudness[120:180], periodicity[120:180] = -42.0, 0.9
    voiced = voicing.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG)
    last = np.flatnonzero(loudness[:100] > -44)[-1]
    assert np.flatnonzero(voiced).tolist() == list(range(20, last + 1))
    lower = voicing.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG, gate_offset=-6.0)
    assert lower[120:180].all() and lower[:100].sum() > voiced[:100].sum()


def test_what_cannot_sound_is_not_voiced() -> None:
    loudness, periodicity, can_sound = np.full(100, -20.0), np.full(100, 0.9), np.ones(100, bool)
    can_sound[:50] = False
    voiced = voicing.find_voiced(loudness, periodicity, can_sound, CONFIG)
    assert np.flatnonzero(voiced).tolist() == list(range(50, 100))


def test_unsure_pitch_is_never_voiced() -> None:
    voiced = voicing.find_voiced(np.full(50, -20.0), np.full(50, 0.1), np.ones(50, bool), CONFIG)
    assert not voiced.any()


# --- the pitch ------------------------------------------------------------------------------------


def mend(f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return voicing.mend_f0(f0.astype(np.float32), np.ones(len(f0), bool), CONFIG)


def wobble(n_frames: int = 200) -> np.ndarray:
    return 220 * 2 ** (0.5 / 12 * np.sin(2 * np.pi * 5.5 * np.arange(n_frames) / 100))


@pytest.mark.parametrize("octaves", [-2, -1, 1])
@pytest.mark.parametrize("where", [slice(80, 92), slice(0, 10), slice(190, 200)])
def test_a_short_octave_error_is_moved_back(octaves: int, where: slice) -> None:
    f0 = wobble()
    wrong = f0.copy()
    wrong[where] *= 2.0**octaves
    mended, usable = mend(wrong)
    assert usable.all() and np.allclose(mended, f0, rtol=1e-4)


def test_a_spike_is_left_out() -> None:
    wrong = wobble()
    wrong[80:83] *= 1.5
    usable = mend(wrong)[1]
    assert np.flatnonzero(~usable).tolist() == [80, 81, 82]


def test_what_is_meant_stays() -> None:
    """Vibrato of a semitone, a glide of an octave in 0.3 s, an octave held for 0.2 s, a fourth for 0.1 s."""
    octave, fourth = wobble(), wobble()
    octave[80:100] *= 2
    fourth[80:90] *= 4 / 3
    wide = 220 * 2 ** (1 / 12 * np.sin(2 * np.pi * 6 * np.arange(200) / 100))
    glide = 220 * 2 ** np.clip((np.arange(200) - 80) / 30, 0, 1)
    for f0 in (octave, fourth, wide, glide):
        mended, usable = mend(f0)
        assert usable.all() and np.allclose(mended, f0, rtol=1e-5)


# --- several pitches ------------------------------------------------------------------------------


def polyphony(audio: np.ndarray, f0: float) -> float:
    n_frames = len(audio) // 160
    return voicing.share_polyphonic(audio, np.full(n_frames, f0, np.float32), np.ones(n_frames, bool), CONFIG)


def test_a_chord_is_noticed_and_one_voice_is_not() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    root, third, fifth = (harmonic_tone(f0, 1.0) for f0 in (220.0, 277.2, 329.6))
    assert polyphony(root + third + fifth, 220.0) > 0.9
    assert polyphony(root + noise, 220.0) < 0.05  # 20 dB of white noise under it
    assert polyphony(root, 440.0) < 0.05  # the tracker an octave too high
    assert voicing.share_polyphonic(root, np.full(100, 220.0), np.zeros(100, bool), CONFIG) == 0
