"""Measure a sound: pitch (CREPE, see ``pitch.py``) and A-weighted loudness, 100 frames a second.

Reading files lives in ``audio_files.py``; what callers need of it is offered here too.

Loudness is the level after A-weighting (IEC 61672-1), filtered by second-order sections.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import signal
from torch import Tensor

import pitch
from audio_files import SUFFIXES, load_audio, prepare_audio, read_blocks  # noqa: F401  asked for here
from config import Config

_SMALLEST = np.finfo(np.float32).tiny


class Features(NamedTuple):
    f0: Tensor  # [T] Hz, always positive: bridged where there is no pitch
    loudness: Tensor  # [T] dB re full scale, A-weighted
    periodicity: Tensor  # [T] 0..1, how sure CREPE is of f0


def pad_to_frames(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Append zeros until the length is a whole number of frames."""
    return np.pad(audio, (0, -len(audio) % hop_length))


def extract_features(audio: np.ndarray | Tensor, config: Config, device: torch.device | str = "cpu") -> Features:
    """Measure pitch and loudness.

    Args:
        audio: [N] at ``config.audio.feature_rate``.
        config: which CREPE, pitch range, loudness window and floor.
        device: where CREPE runs.

    Returns:
        Features of T = ceil(N / hop) frames; frame t is centred on sample t * hop.

    Raises:
        ValueError: no samples.
    """
    audio = pad_to_frames(np.asarray(audio, dtype=np.float32), config.audio.feature_hop_length)
    if len(audio) == 0:
        raise ValueError("the audio holds no samples")
    f0, periodicity = extract_f0(audio, config, device)
    loudness = extract_loudness(audio, config)
    return Features(torch.from_numpy(f0), torch.from_numpy(loudness), torch.from_numpy(periodicity))


# --- loudness -----------------------------------------------------------------------------------


@functools.cache
def a_weighting_sos(sample_rate: int) -> np.ndarray:
    """Design the A-weighting filter of IEC 61672-1 as second-order sections, 0 dB at 1 kHz.

    The four zeros at 0 Hz and the low poles are mapped by the bilinear transform, which is exact
    enough far below Nyquist. It would misplace the double pole at 12.2 kHz (5.7 dB off at 6.3 kHz
    for 16 kHz), so each of its halves is a first-order section that has the analogue magnitude at
    0, 0.2 and 0.4 times the sample rate.

    Returns:
        [3, 6].
    """
    low_poles = [-2 * math.pi * f for f in (20.598997, 20.598997, 107.65265, 737.86223)]
    zeros, poles, gain = signal.bilinear_zpk([0.0] * 4, low_poles, 1.0, fs=sample_rate)
    zero, pole = _match_lowpass(12194.217 / sample_rate)
    zeros, poles = [*zeros, zero, zero], [*poles, pole, pole]
    _, response = signal.freqz_zpk(zeros, poles, gain, worN=[1000.0], fs=sample_rate)
    return signal.zpk2sos(zeros, poles, gain / abs(response[0]))


def _match_lowpass(cutoff: float) -> tuple[float, float]:
    """Return zero and pole of the first-order section nearest to 1 / (1 + s / cutoff); cutoff in cycles a sample.

    With u = 1 - cos w its squared magnitude is (1 + a u) / (1 + b u), linear in a and b.
    """
    frequency = np.array([0.2, 0.4])
    wanted = 1 / (1 + (frequency / cutoff) ** 2)
    u = 1 - np.cos(2 * np.pi * frequency)
    a, b = np.linalg.solve(np.stack([u, -wanted * u], axis=1), wanted - 1)
    # A section 1 - r z^-1 has the squared magnitude (1 - r)^2 (1 + c u) with c = 2 r / (1 - r)^2.
    return tuple((c + 1 - math.sqrt(2 * c + 1)) / c for c in (a, b))


def extract_loudness(audio: np.ndarray, config: Config) -> np.ndarray:
    """Return the A-weighted RMS level in dB re full scale under a Hann window centred on each frame: float32 [T]."""
    hop_length, window_length = config.audio.feature_hop_length, config.features.loudness_window
    weighted = signal.sosfilt(a_weighting_sos(config.audio.feature_rate), audio.astype(np.float64))
    half = window_length // 2
    padded = np.pad(weighted**2, (half, window_length - half))
    power = np.lib.stride_tricks.sliding_window_view(padded, window_length)[: len(audio) : hop_length]
    window = signal.get_window("hann", window_length)
    # einsum reads the overlapping windows in place; a matrix product would first copy them all.
    level = 10 * np.log10(np.einsum("tw,w->t", power, window / window.sum()) + _SMALLEST)
    return np.maximum(level, config.features.loudness_floor).astype(np.float32)


# --- pitch --------------------------------------------------------------------------------------


def extract_f0(audio: np.ndarray, config: Config, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return f0 in Hz, bridged over frames without a pitch, and periodicity: float32 [T] each.

    Raises:
        ValueError: CREPE needs features at 16 kHz, and the configuration has another rate.
    """
    settings = config.features
    if config.audio.feature_rate != pitch.SAMPLE_RATE:
        raise ValueError(f"CREPE hears {pitch.SAMPLE_RATE} Hz, but feature_rate is {config.audio.feature_rate} Hz")
    activation = pitch.crepe_activation(audio, config.audio.feature_hop_length, settings.crepe_model, device)
    f0, periodicity = pitch.decode_pitch(activation, settings.f0_min, settings.f0_max)
    return bridge_f0(f0, periodicity >= settings.periodicity_threshold), periodicity


def bridge_f0(f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Replace f0 where ``voiced`` is false by a straight line in log frequency between its neighbours: [T]."""
    if not voiced.any():
        return f0
    frames = np.arange(len(f0))
    log_f0 = np.interp(frames, frames[voiced], np.log2(f0[voiced]))
    return np.where(voiced, f0, 2**log_f0).astype(np.float32)
