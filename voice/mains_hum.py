"""Take the steady hum of the mains, which is heard under many a recording, out of a voice.

The notch filters also take what the voice has there. That is no loss: the voice is never heard, only its pitch and its
loudness are measured.
"""

from typing import NamedTuple

import numpy as np

from config import Config
from features import extract_loudness
from sound.audio_files import SpooledAudio, block_slices
from sound.mains_lines import MAINS_FREQUENCIES, find_mains_lines, notch

RESIDUE = 25.0  # dB under hum that was taken out: what is quieter may be left of it
_STRETCH_SECONDS = 120.0  # hum is looked for in stretches of about so much: it lasts, and is switched on and off


class MainsHum(NamedTuple):
    """The mains hum of a recording."""

    loudness: np.ndarray  # [T] dB, A-weighted; minus infinity where there is none
    frequency: np.ndarray  # [T] Hz; NaN where there is none
    level: float | None  # RMS of all of it, dBFS; None if there is none


def remove_mains_hum(audio: np.ndarray | SpooledAudio, config: Config) -> tuple[SpooledAudio, MainsHum]:
    """Take mains hum out of a recording, from one stretch of some minutes after the other."""
    hop_length, n_frames = config.audio.feature_hop_length, len(audio) // config.audio.feature_hop_length
    n_stretches = max(1, round(n_frames / config.audio.seconds_to_frames(_STRETCH_SECONDS)))
    clean, energy = SpooledAudio(), 0.0
    loudness, frequency = np.full(n_frames, -np.inf), np.full(n_frames, np.nan)
    for frames in block_slices(n_frames, -(-n_frames // n_stretches)):
        part = audio[frames.start * hop_length : frames.stop * hop_length]
        lines = find_mains_lines(part, config.audio.feature_rate)
        rest = notch(part, config.audio.feature_rate, lines) if len(lines) else part
        clean.append(rest)
        if len(lines):
            loudness[frames] = np.median(extract_loudness(part - rest, config))
            frequency[frames] = min(MAINS_FREQUENCIES, key=lambda nominal: abs(nominal - lines[0]))
            energy += float(np.sum((part - rest) ** 2, dtype=np.float64))
    return clean, MainsHum(loudness, frequency, 10 * float(np.log10(energy / len(audio))) if energy else None)


def is_mains_frequency(f0: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return where f0 [T] is the mains frequency or its double, within a quarter of a semitone: bool [T]."""
    return np.any([np.abs(12 * np.log2(f0 / (number * frequency))) < 0.25 for number in (1, 2)], axis=0)
