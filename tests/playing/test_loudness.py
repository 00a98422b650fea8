"""playing/loudness.py: normalization, true peaks, and stems that add up."""

import numpy as np
import pytest

from playing.loudness import (
    MAX_LIMITING,
    MAX_TRUE_PEAK,
    TARGET_LOUDNESS,
    measure_loudness,
    measure_true_peak,
    normalizing_gain,
)

RATE = 48000


def tone(level: float, seconds: float = 2.0, f0: float = 997.0) -> np.ndarray:
    """Return a sine with a peak of ``level`` dBFS."""
    return 10 ** (level / 20) * np.sin(2 * np.pi * f0 * np.arange(round(seconds * RATE)) / RATE)


def with_peak(level: float) -> np.ndarray:
    """Return a soft tone with a short one in its middle, of ``level`` dB over it."""
    audio = tone(-40.0, 4.0)
    audio[2 * RATE : 2 * RATE + 240] *= 10 ** (level / 20)
    return audio


def test_the_meter_follows_the_standard() -> None:
    assert measure_loudness(tone(-20.0), RATE) == pytest.approx(-23.0, abs=0.1)  # BS.1770: 997 Hz is 3.01 dB less
    assert measure_loudness(np.zeros(RATE), RATE) == -np.inf
    assert measure_loudness(tone(-20.0, 0.1), RATE) < -23  # too short for it: padded


def test_a_peak_between_the_samples_is_found() -> None:
    quarter = np.hanning(4000) * np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4)  # no sample is over 0.71
    assert measure_true_peak(quarter) == pytest.approx(0.0, abs=0.1) and np.abs(quarter).max() < 0.71


@pytest.mark.parametrize("level", [-60.0, -30.0, -5.0, 0.0])
def test_a_steady_sound_reaches_the_target(level: float) -> None:
    audio = tone(level)
    played = audio * normalizing_gain(audio, RATE)
    assert measure_loudness(played, RATE) == pytest.approx(TARGET_LOUDNESS, abs=0.1)
    assert measure_true_peak(played) < MAX_TRUE_PEAK


@pytest.mark.parametrize("peak", [6.0, 13.0, 14.5, 40.0])
def test_peaks_are_limited_by_at_most_3_db(peak: float) -> None:
    audio = with_peak(peak)
    gain = np.broadcast_to(normalizing_gain(audio, RATE), audio.shape)
    assert measure_true_peak(audio * gain) < MAX_TRUE_PEAK
    limiting = 20 * np.log10(gain.max() / gain.min())
    assert limiting < MAX_LIMITING + 0.01
    reached = measure_loudness(audio * gain, RATE)
    if peak > 30:  # the peak wins
        assert reached < TARGET_LOUDNESS - 3 and limiting > MAX_LIMITING - 0.2
    else:
        assert reached == pytest.approx(TARGET_LOUDNESS, abs=1)


def test_silence_is_unchanged() -> None:
    assert normalizing_gain(np.zeros(RATE), RATE) == 1.0 and measure_true_peak(np.zeros(0)) == -np.inf
