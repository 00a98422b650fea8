"""Measures of notes over time, against sounds whose attack, decay and brightness are known."""

import numpy as np
import pytest

from evaluation.distributions import (
    UNITS,
    compare,
    find_onsets,
    high_band_difference,
    log_mel_distance,
    measure_brightness,
    measure_sounds,
)

RATES = (16000, 48000)


def make_notes(
    sample_rate: int,
    attack: float = 0.02,
    early: float = 20.0,
    late: float = 8.0,
    n_notes: int = 9,
    seconds: float = 2.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Return notes with a linear attack and a decay in dB/s, and their onsets."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    after = np.maximum(time - attack, 0)
    level = -early * np.minimum(after, 0.5) - late * np.maximum(after - 0.5, 0)
    envelope = np.minimum(time / attack, 1) * 10 ** (level / 20) * (time < seconds - 0.1)
    pitches = 220 * 2 ** (np.arange(n_notes) / 12)
    notes = [0.3 * envelope * sum(np.sin(2 * np.pi * k * f0 * time) / k for k in (1, 2, 3, 4)) for f0 in pitches]
    return np.concatenate(notes), seconds * np.arange(n_notes)


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("given", [True, False], ids=["onsets given", "onsets found"])
def test_attack_and_decay_are_those_of_the_notes(sample_rate: int, given: bool) -> None:
    audio, onsets = make_notes(sample_rate, attack=0.06)
    measures = measure_sounds([audio], sample_rate, [onsets] if given else None)
    assert len(measures.attack) == len(onsets)
    # From 0.1 to 1 of 60 ms; the envelope is smoothed over 10 ms.
    np.testing.assert_allclose(measures.attack, 0.9 * 60, atol=6)
    np.testing.assert_allclose(measures.early_decay, 20, atol=0.5)
    np.testing.assert_allclose(measures.late_decay, 8, atol=0.5)


def test_a_sound_that_begins_at_once_has_a_short_attack() -> None:
    audio, onsets = make_notes(16000, attack=0.001)
    assert np.all(measure_sounds([audio], 16000, [onsets]).attack < 15)  # the smoothing, and a period of 220 Hz


def test_decay_is_measured_until_damping() -> None:
    audio, onsets = make_notes(16000)
    time = np.arange(len(audio)) / 16000 % 2.5
    damped = audio * 10 ** (-400 * np.clip(time - 0.8, 0, 0.2) / 20)
    measures = measure_sounds([damped], 16000, [onsets])
    np.testing.assert_allclose(measures.early_decay, 20, atol=1)
    assert np.isnan(measures.late_decay).all()


def test_a_note_that_begins_inside_another_has_no_attack() -> None:
    audio = np.sin(2 * np.pi * 220 * np.arange(32000) / 16000)
    measures = measure_sounds([audio], 16000, [np.array([0.0, 1.0])])
    assert np.isfinite(measures.attack[0])
    assert np.isnan(measures.attack[1])


@pytest.mark.parametrize("sample_rate", RATES)
def test_onsets_are_found(sample_rate: int) -> None:
    audio, onsets = make_notes(sample_rate, seconds=0.5)
    found = find_onsets(audio, sample_rate)
    assert len(found) == len(onsets)
    np.testing.assert_allclose(found, onsets, atol=0.02)


@pytest.mark.parametrize("sample_rate", RATES)
def test_brightness_is_the_share_above_the_split(sample_rate: int) -> None:
    time = np.arange(sample_rate) / sample_rate
    audio = np.sin(2 * np.pi * 500 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    share, level = measure_brightness(audio, sample_rate)
    np.testing.assert_allclose(share[5:-5], -20, atol=0.1)
    np.testing.assert_allclose(level[5:-5], -3, atol=0.1)


def test_energy_above_8_khz_does_not_affect_brightness() -> None:
    time = np.arange(48000) / 48000
    audio = np.sin(2 * np.pi * 500 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    wide = audio + 0.5 * np.sin(2 * np.pi * 12000 * time)
    np.testing.assert_allclose(
        measure_brightness(wide, 48000)[0][5:-5], measure_brightness(audio, 48000)[0][5:-5], atol=0.1
    )


def test_brightness_after_the_onset_follows_the_note() -> None:
    audio, onsets = make_notes(16000)
    time = np.arange(len(audio)) / 16000 % 2.5
    overtone = np.sin(2 * np.pi * 4000 * time) * np.abs(audio) * (time < 0.1)
    measures = measure_sounds([audio + overtone], 16000, [onsets])
    assert np.all(measures.brightness_after_onset[:, 0] > measures.brightness_after_onset[:, 3] + 20)


def test_distance_of_a_sound_to_itself_is_0_and_grows_with_the_difference() -> None:
    real = measure_sounds([make_notes(16000)[0]], 16000)
    assert compare(real, real) == pytest.approx(dict.fromkeys(UNITS, 0.0))
    slow = compare(real, measure_sounds([make_notes(16000, attack=0.1)[0]], 16000))
    slower = compare(real, measure_sounds([make_notes(16000, attack=0.2)[0]], 16000))
    assert slow["attack"] == pytest.approx(0.9 * 80, abs=8)
    assert slower["attack"] == pytest.approx(0.9 * 180, abs=15)
    flat = compare(real, measure_sounds([make_notes(16000, early=0, late=0)[0]], 16000))
    assert flat["early_decay"] == pytest.approx(20, abs=1)
    assert flat["late_decay"] == pytest.approx(8, abs=1)


def test_level_does_not_matter() -> None:
    audio, _ = make_notes(16000)
    distances = compare(measure_sounds([audio], 16000), measure_sounds([0.01 * audio], 16000))
    assert distances == pytest.approx(dict.fromkeys(UNITS, 0.0), abs=0.01)


def test_too_few_notes_give_no_distance() -> None:
    few, many = (measure_sounds([make_notes(16000, n_notes=count)[0]], 16000) for count in (3, 9))
    assert compare(many, few)["attack"] is None


def test_frames_of_equal_pitch_are_compared() -> None:
    time = np.arange(32000) / 16000
    low, high = (np.sin(2 * np.pi * f0 * time) + 0.3 * np.sin(2 * np.pi * 5 * f0 * time) for f0 in (200, 600))
    curves = [np.full(200, 200.0), np.full(200, 600.0)]
    real = measure_sounds([low, high], 16000, f0=curves)
    assert compare(real, measure_sounds([high], 16000, f0=curves[1:]))["brightness"] == pytest.approx(0, abs=0.2)
    assert (
        compare(measure_sounds([low], 16000, f0=curves[:1]), measure_sounds([high], 16000, f0=curves[1:]))["brightness"]
        is None
    )


@pytest.mark.parametrize(
    "audio", [np.zeros(16000), np.full(16000, np.nan), np.ones(100)], ids=["silent", "nan", "short"]
)
def test_unmeasurable_sounds_are_refused(audio: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the sound"):
        measure_sounds([audio], 16000)


@pytest.mark.parametrize("sample_rate", RATES)
def test_log_mel_distance_of_a_quieter_copy_is_its_gain(sample_rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(sample_rate)
    assert log_mel_distance(noise, noise, sample_rate) == 0
    assert log_mel_distance(0.5 * noise, noise, sample_rate) == pytest.approx(6.02, abs=0.01)


def test_log_mel_distance_ignores_levels_below_the_floor_and_bands_above_fmax() -> None:
    time = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 440 * time)
    hiss = 1e-6 * np.random.default_rng(0).standard_normal(48000)
    assert log_mel_distance(tone + hiss, tone, 48000, floor=-60) < 0.1
    whistle = tone + 0.1 * np.sin(2 * np.pi * 12000 * time)
    assert log_mel_distance(whistle, tone, 48000) > 0.2
    assert log_mel_distance(whistle, tone, 48000, fmax=8000) < 0.1


def test_log_mel_distance_refuses_other_lengths_and_too_high_a_band() -> None:
    noise = np.random.default_rng(0).standard_normal(16000)
    with pytest.raises(ValueError, match="8000"):
        log_mel_distance(noise[:8000], noise, 16000)
    with pytest.raises(ValueError, match="9000"):
        log_mel_distance(noise, noise, 16000, fmax=9000)


def test_energy_over_8_khz_is_compared_at_equal_level() -> None:
    time = np.arange(2 * 48000) / 48000
    gain = np.hanning(len(time))  # a step would be heard at all frequencies
    tone, whistle = gain * np.sin(2 * np.pi * 440 * time), 0.1 * gain * np.sin(2 * np.pi * 10000 * time)
    recording, duller = tone + whistle, tone + 0.5 * whistle
    assert high_band_difference([recording], [recording], 48000, [20000]) == pytest.approx(0, abs=1e-6)
    assert high_band_difference([duller], [recording], 48000, [20000]) == pytest.approx(6.02, abs=0.1)
    assert high_band_difference([duller], [recording], 48000, [9000]) < 1  # up to where the recording has sound
    mixed = tone + np.where(gain > 0.3, 2.0, 0.5) * whistle  # more where it is loud, less where it is soft
    assert high_band_difference([mixed], [recording], 48000, [20000]) == pytest.approx(6.02, abs=1)
    assert high_band_difference([duller], [recording], 48000, [8000]) is None
