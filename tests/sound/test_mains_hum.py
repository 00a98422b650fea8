"""sound/mains_hum.py: hum is removed, while melodies and held tones stay."""

import numpy as np
import pytest

from config import load_config
from conftest import harmonic_tone
from sound.mains_hum import find_mains_lines, notch
from voice.melody import remove_mains_hum

RATE = 16000


def mains(seconds: float, frequency: float, level: float) -> np.ndarray:
    """Return hum [N] of an RMS level in dBFS, with odd harmonics stronger than even ones."""
    times = np.arange(round(seconds * RATE)) / RATE
    partials = ((1, 1), (2, 0.3), (3, 0.7), (5, 0.4), (9, 0.1))
    hum = sum(a * np.sin(2 * np.pi * k * frequency * times + k) for k, a in partials)
    return (hum / np.sqrt(np.mean(hum**2)) * 10 ** (level / 20)).astype(np.float32)


def tune(seconds: float = 6.0) -> np.ndarray:
    """Return notes of 0.8 s with vibrato and rests of 0.4 s over faint noise; one is at 150 Hz."""
    rest = np.zeros(round(0.4 * RATE), np.float32)
    times = np.arange(round(0.8 * RATE)) / RATE
    vibrato = 1 + 0.01 * np.sin(2 * np.pi * 5.5 * times)
    notes = [harmonic_tone(f0 * vibrato, 0.8, amplitude=0.1) for f0 in (150, 196, 131, 175, 147)]
    song = np.concatenate([part for note in notes for part in (note, rest)])
    return (song + 1e-4 * np.random.default_rng(0).standard_normal(len(song))).astype(np.float32)


def power(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.asarray(audio, dtype=np.float64) ** 2))


@pytest.mark.parametrize("frequency", [50.0, 49.93, 60.0, 60.08])
def test_mains_hum_is_removed_and_the_tune_stays(frequency: float) -> None:
    song, hum = tune(), mains(6.0, frequency, -14)
    lines = find_mains_lines(song + hum, RATE)
    assert lines == pytest.approx(frequency * np.array([1, 2, 3, 5, 9]), abs=0.05)
    cleaned = notch(song + hum, RATE, lines)
    assert power(song + hum - cleaned) == pytest.approx(-14, abs=0.5)
    left = notch(hum, RATE, lines)
    assert power(left) < -60 and max(power(left[:800]), power(left[-800:])) < -54  # 40 dB below the hum at the ends
    # Partials that cross a line are weakened, which is acceptable: the cleaned voice is only measured.
    assert power(cleaned - song) < power(song) - 8


def test_hum_without_its_fundamental_is_removed() -> None:
    song, times = tune(), np.arange(6 * RATE) / RATE
    hum = sum(a * np.sin(2 * np.pi * 100 * k * times + k) for k, a in ((1, 0.2), (2, 0.1), (3, 0.05)))
    lines = find_mains_lines(song + hum, RATE)
    assert lines == pytest.approx([50, 100, 200, 300], abs=0.05)
    assert power(notch(hum, RATE, lines)) < power(hum) - 45


def test_without_hum_no_sample_changes() -> None:
    song, config = tune(), load_config()
    cleaned, hum = remove_mains_hum(song, config)
    assert hum.level is None and np.array_equal(cleaned[:], song)
    assert len(find_mains_lines(mains(1.0, 50.0, -20), RATE)) == 0  # too short to show that it is constant


@pytest.mark.parametrize("f0", [300.0, 98.0, 103.0])
def test_a_held_tone_is_not_hum(f0: float) -> None:
    """300 Hz is a multiple of both mains frequencies; 98 and 103 Hz are too far from twice 50 Hz."""
    assert len(find_mains_lines(harmonic_tone(f0, 4.0), RATE)) == 0


def test_a_note_at_100_hz_between_rests_is_not_hum() -> None:
    note, rest = harmonic_tone(100.0, 1.0), np.zeros(RATE // 2, np.float32)
    noise = 1e-4 * np.random.default_rng(0).standard_normal(6 * RATE).astype(np.float32)
    sung = np.concatenate([note, rest] * 4)
    assert len(find_mains_lines(sung, RATE)) == len(find_mains_lines(sung + noise, RATE)) == 0
    echo = 0.03 * harmonic_tone(100.0, 0.5)  # steady, but its level follows the note's
    assert len(find_mains_lines(np.concatenate([note, echo] * 4) + noise, RATE)) == 0
