"""sound/bandwidth.py: the bandwidth of filtered and resampled noise is that of the filter."""

import numpy as np
import pytest
import soxr
from scipy import signal

from sound.bandwidth import measure_bandwidth

RATE = 48000


def noise(seconds=4.0, rate=RATE, seed=0):
    return (0.05 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def cut_off(audio, frequency):
    return signal.sosfiltfilt(signal.ellip(10, 0.1, 60, frequency, fs=RATE, output="sos"), audio).astype(np.float32)


@pytest.mark.parametrize("frequency", [10000, 19000])
@pytest.mark.parametrize("floor", [0.0, 1.5e-5])  # digital silence; the noise of 16 bits
def test_bandwidth_of_a_low_pass_filter(frequency, floor):
    audio = cut_off(noise(), frequency) + floor * noise(seed=1) / 0.05
    # Tolerance: half of the smoothing width, and the filter's slope.
    assert measure_bandwidth(audio, RATE, 8000) == pytest.approx(frequency, abs=500)


@pytest.mark.parametrize("source_rate", [22050, 32000, 44100])
def test_bandwidth_of_the_original_sample_rate(source_rate):
    audio = soxr.resample(noise(rate=source_rate), source_rate, RATE)
    assert 0.9 <= measure_bandwidth(audio, RATE, 8000) / (source_rate / 2) <= 1.0  # soxr's passband ends at 0.91


def test_bandwidth_of_an_edge_with_a_trace_above_it():
    audio = cut_off(noise(), 16000) + 0.1 * cut_off(noise(seed=1), 21000)  # 20 dB weaker, as in MP3
    assert measure_bandwidth(audio, RATE, 8000) == pytest.approx(16000, abs=500)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 4.0])
def test_white_noise_has_full_bandwidth(seconds):
    assert measure_bandwidth(noise(max(seconds, 0.5)), RATE, 8000) == RATE / 2
    assert 8000 <= measure_bandwidth(noise(seconds), RATE, 8000) <= RATE / 2


def test_a_single_line_is_ignored():
    time = np.arange(4 * RATE) / RATE
    audio = cut_off(noise(), 12000) + 0.01 * np.sin(2 * np.pi * 15734 * time)  # of a screen
    assert measure_bandwidth(audio.astype(np.float32), RATE, 8000) == pytest.approx(12000, abs=500)


@pytest.mark.parametrize("audio", [np.zeros(RATE, np.float32), soxr.resample(noise(rate=16000), 16000, RATE)])
def test_bandwidth_is_at_least_the_lowest(audio):
    assert measure_bandwidth(audio, RATE, 8000) == 8000
