"""voice/note_gate.py: mains hum, the gate, the mending of the pitch, several pitches at once."""

import numpy as np
import pytest

from config import load_config
from conftest import harmonic_tone
from voice import note_gate
from voice.mains_hum import remove_hum_from_stretch

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
    cleaned, hum = remove_hum_from_stretch(song + mains(6.0, frequency, -14), RATE, SETTINGS)
    assert hum is not None and hum.frequency == round(frequency / 10) * 10
    assert power(hum.audio) == pytest.approx(-14, abs=0.5)
    assert power(cleaned - song) < -50  # 36 dB under the hum, and 30 under the tune


def test_hum_of_a_rectifier_has_no_fundamental() -> None:
    song, times = tune(), np.arange(6 * RATE) / RATE
    hum = sum(a * np.sin(2 * np.pi * 100 * k * times + k) for k, a in ((1, 0.2), (2, 0.1), (3, 0.05)))
    cleaned, found = remove_hum_from_stretch(song + hum.astype(np.float32), RATE, SETTINGS)
    assert found is not None and found.frequency == 50.0
    assert power(cleaned - song) < power(hum) - 35


def test_without_hum_not_a_sample_changes() -> None:
    song = tune()
    cleaned, hum = remove_hum_from_stretch(song, RATE, SETTINGS)
    assert hum is None and cleaned is song
    short = mains(1.0, 50.0, -20)
    assert remove_hum_from_stretch(short, RATE, SETTINGS)[1] is None


@pytest.mark.parametrize("f0", [300.0, 98.0, 103.0])
def test_a_held_tone_is_no_hum(f0: float) -> None:
    """300 Hz is a multiple of both mains, but without their fundamental; a low note near 100 Hz is off by more."""
    assert remove_hum_from_stretch(harmonic_tone(f0, 4.0), RATE, SETTINGS)[1] is None


def test_a_note_at_100_hz_between_rests_is_no_hum() -> None:
    note, rest = harmonic_tone(100.0, 1.0), np.zeros(RATE // 2, np.float32)
    assert remove_hum_from_stretch(np.concatenate([note, rest] * 4), RATE, SETTINGS)[1] is None


# --- the gate -------------------------------------------------------------------------------------


def test_clicks_are_dropped_and_short_gaps_closed() -> None:
    gate = np.zeros(100, dtype=bool)
    gate[10:13] = True  # 30 ms: a click
    gate[40:60] = True
    gate[64:80] = True  # 40 ms after: the same note
    cleaned = note_gate._clean_runs(gate, SETTINGS, 100.0)
    assert np.flatnonzero(cleaned).tolist() == list(range(40, 80))


@pytest.mark.parametrize(("n_note", "n_gap", "n_left"), [(6, 20, 0), (7, 20, 7), (20, 5, 25), (20, 6, 20)])
def test_how_long_a_click_and_a_gap_may_be(n_note: int, n_gap: int, n_left: int) -> None:
    """60 ms are a click and 50 ms a gap; silence before the first note and after the last is neither."""
    gate = np.concatenate([np.zeros(3), np.ones(n_note), np.zeros(n_gap), np.ones(20), np.zeros(2)]).astype(bool)
    expected = gate.copy()
    expected[3 : 3 + n_note + n_gap] = np.arange(n_note + n_gap) < n_left
    assert np.array_equal(note_gate._clean_runs(gate, SETTINGS, 100.0), expected)


def test_a_note_may_end_softer_than_it_began() -> None:
    """Noise at -50: a note begins over -40 and ends under -44; what never gets over -40 is not played."""
    loudness, periodicity = np.full(200, -50.0), np.zeros(200)
    loudness[20:100], periodicity[20:100] = np.linspace(-20, -48, 80), 0.9
    loudness[120:180], periodicity[120:180] = -42.0, 0.9
    voiced = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG)
    last = np.flatnonzero(loudness[:100] > -44)[-1]
    assert np.flatnonzero(voiced).tolist() == list(range(20, last + 1))
    lower = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG, gate_offset=-6.0)
    assert lower[120:180].all() and lower[:100].sum() > voiced[:100].sum()


@pytest.mark.parametrize(("level", "is_played"), [(-64.0, True), (-66.0, False)])
def test_a_note_much_softer_than_the_others_is_not_meant(level: float, is_played: bool) -> None:
    """However quiet the room: 45 dB under the loud ones is the limit."""
    loudness, periodicity = np.full(200, -79.0), np.zeros(200)
    loudness[20:80], periodicity[20:80] = -20.0, 0.9
    loudness[120:180], periodicity[120:180] = level, 0.9
    voiced = note_gate.find_voiced(loudness, periodicity, np.ones(200, bool), CONFIG)
    assert voiced[20:80].all() and voiced[120:180].all() == voiced[120:180].any() == is_played


def test_the_noise_floor_is_the_level_that_a_fifth_of_the_pauses_stay_under() -> None:
    loudness = np.arange(-100.0, 0.0)
    assert note_gate.noise_floor(loudness, loudness >= -49, CONFIG) == pytest.approx(-100 + 0.2 * 50)
    assert note_gate.noise_floor(loudness, np.ones(100, bool), CONFIG) == CONFIG.features.loudness_floor


@pytest.mark.parametrize(("hertz", "is_too_high"), [(1000, False), (2000, False), (2050, True), (5000, True)])
def test_a_tone_over_the_trackers_range_is_too_high(hertz: float, is_too_high: bool) -> None:
    whistle = 0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE).astype(np.float32)
    found = note_gate.find_above_crepe_range(whistle, CONFIG)
    assert found.shape == (25,) and (found == is_too_high).all()
    others = sum(0.2 * np.sin(2 * np.pi * f0 * np.arange(RATE // 4) / RATE) for f0 in (200, 400, 600, 800))
    with_overtones = whistle + others.astype(np.float32)
    assert not note_gate.find_above_crepe_range(with_overtones, CONFIG)[2:-2].any()  # the overtone of a voice


def test_what_cannot_sound_is_not_voiced() -> None:
    loudness, periodicity, can_sound = np.full(100, -20.0), np.full(100, 0.9), np.ones(100, bool)
    can_sound[:50] = False
    voiced = note_gate.find_voiced(loudness, periodicity, can_sound, CONFIG)
    assert np.flatnonzero(voiced).tolist() == list(range(50, 100))


def test_unsure_pitch_is_never_voiced() -> None:
    voiced = note_gate.find_voiced(np.full(50, -20.0), np.full(50, 0.1), np.ones(50, bool), CONFIG)
    assert not voiced.any()


# --- the pitch ------------------------------------------------------------------------------------


def mend(f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return note_gate.repair_f0(f0.astype(np.float32), np.ones(len(f0), bool), CONFIG)


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
    return note_gate.estimate_polyphony(audio, np.full(n_frames, f0, np.float32), np.ones(n_frames, bool), CONFIG)


def test_a_chord_is_noticed_and_one_voice_is_not() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    root, third, fifth = (harmonic_tone(f0, 1.0) for f0 in (220.0, 277.2, 329.6))
    assert polyphony(root + third + fifth, 220.0) > 0.9
    assert polyphony(root + noise, 220.0) < 0.05  # 20 dB of white noise under it
    assert polyphony(root + 60 * noise, 220.0) < 0.05  # louder than it
    glide = 220 * 2.0 ** np.linspace(0, 4, RATE)
    slide = harmonic_tone(glide, 1.0)  # as it slides, partials are as wide as the gaps between them
    assert note_gate.estimate_polyphony(slide, glide[::160].astype(np.float32), np.ones(100, bool), CONFIG) == 0
    assert polyphony(root, 440.0) < 0.05  # the tracker an octave too high
    assert note_gate.estimate_polyphony(root, np.full(100, 220.0), np.zeros(100, bool), CONFIG) == 0
