"""Shape a sampled tone so that it is as bright as it is loud, as real instruments are.

A sound font has one recording of a note for all dynamics: a quiet note is the loud one turned down. Here a spectral
tilt above a corner, another one at each moment of the tone, follows the written level. How far to tilt is found from
the tone's own average spectrum, so that notes of different samples come out alike: with the share of energy above
4 kHz that is asked for. The tone's A-weighted level stays what it was.
"""

from dataclasses import dataclass

import librosa
import numpy as np
from scipy import signal

CORNER = 1200.0  # Hz, where a trumpet's harmonics begin to fall
SPLIT = 4000.0  # Hz, brightness is the share of energy above it
SLOPES = np.linspace(-6, 72, 79)  # dB an octave far above the corner, what a tilt may be; below 0 brightens
WINDOW = 1024  # samples of a frame, 23 ms at 44.1 kHz
HOP = 256
PITCH_SLOPE = 3.0  # dB an octave: a high note has fewer harmonics below SPLIT
MIDDLE = 67  # MIDI pitch that a Brightness is given for


@dataclass(frozen=True)
class Brightness:
    """Share of energy above SPLIT in dB, `shares[i]` where the tone's level is `levels[i]` dB from the loudest."""

    levels: tuple[float, ...]  # ascending, up to 0
    shares: tuple[float, ...]  # ascending


def tilt_gains(slopes: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return linear gains [slopes, frequencies]: 1 at 0 Hz, falling by each slope in dB an octave above CORNER."""
    octaves = 0.5 * np.log2(1 + (frequencies / CORNER) ** 2)
    return 10 ** (-slopes[:, None] * octaves / 20)


def measure_tilts(power: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure what each of SLOPES makes of a power spectrum.

    Args:
        power: [F].
        frequencies: [F] in Hz.

    Returns:
        Share of energy above SPLIT in dB and change of the A-weighted level in dB, both [SLOPES], descending.
    """
    tilted = power * tilt_gains(SLOPES, frequencies) ** 2
    share = tilted[:, frequencies > SPLIT].sum(axis=1) / tilted.sum(axis=1)
    weights = 10 ** (librosa.A_weighting(np.maximum(frequencies, 1), min_db=None) / 10)
    return 10 * np.log10(share + 1e-12), 10 * np.log10(tilted @ weights / (power @ weights))


def choose_slopes(level: np.ndarray, shares: np.ndarray, pitch: float, brightness: Brightness) -> np.ndarray:
    """Return the slope for each level, given what SLOPES make of the tone.

    A sample that is too dull to be made as bright as asked for starts from as bright as it gets, and falls as far.
    """
    asked = np.interp(level, brightness.levels, brightness.shares) + PITCH_SLOPE * (pitch - MIDDLE) / 12
    loudest = brightness.shares[-1] + PITCH_SLOPE * (pitch - MIDDLE) / 12
    return np.interp(loudest - asked, min(loudest, shares[0]) - shares, SLOPES)


def shape_tone(
    audio: np.ndarray, level: np.ndarray, pitch: float, brightness: Brightness, sample_rate: int
) -> np.ndarray:
    """Tilt a tone's spectrum by its level from moment to moment.

    Args:
        audio: [n], one tone.
        level: [m], dB from the loudest, evenly spread over the tone.
        pitch: MIDI.
        brightness: What the instrument sounds like.
        sample_rate: Hz.

    Returns:
        [n].
    """
    if not audio.any():
        return audio
    frequencies, times, frames = signal.stft(audio, sample_rate, nperseg=WINDOW, noverlap=WINDOW - HOP)
    shares, losses = measure_tilts((np.abs(frames) ** 2).sum(axis=1), frequencies)
    level = np.interp(times, np.linspace(0, len(audio) / sample_rate, len(level)), level)
    slopes = choose_slopes(level, shares, pitch, brightness)
    makeup = 10 ** (-np.interp(slopes, SLOPES, losses) / 20)
    frames *= tilt_gains(slopes, frequencies).T * makeup
    return signal.istft(frames, sample_rate, nperseg=WINDOW, noverlap=WINDOW - HOP)[1][: len(audio)]


def make_burst(rng: np.random.Generator, seconds: float, sample_rate: int) -> np.ndarray:
    """Return a burst of breath or finger noise, 1 to 3.5 kHz, that rises fast and dies away; its peak is 1."""
    n = round(seconds * sample_rate)
    sos = signal.butter(2, (1000, 3500), "bandpass", fs=sample_rate, output="sos")
    u = np.arange(n) / n
    burst = signal.sosfilt(sos, rng.standard_normal(n)) * np.sin(np.pi * np.sqrt(u)) ** 2
    return burst / np.abs(burst).max()
