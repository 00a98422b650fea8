"""Bring a sound to the level at which people listen, without clipping (ITU-R BS.1770).

The gain is the same for all stems, so that they still add up. Where the true peak (between the samples, 4 times
oversampled) would go beyond its limit, a limiter takes up to ``MAX_LIMITING`` dB off the peaks; beyond that the whole
stays softer.
"""

import dataclasses

import numpy as np
import pyloudnorm
from scipy import ndimage, signal

from playing.offline_transfer import TransferResult
from sound.audio_files import SpooledAudio, block_slices

TARGET_LOUDNESS = -16.0  # LUFS
MAX_TRUE_PEAK = -1.0  # dBTP
MAX_LIMITING = 3.0  # dB
_MARGIN = 0.1  # dB under the limit, for what a moving gain adds between the samples
_OVERSAMPLING = 4
_LOOK_AHEAD_SECONDS = 0.005  # over which the limiter's gain moves
_BLOCK_SAMPLES = 2**18
_CONTEXT = 64  # samples around a block, that its edges are oversampled as the middle is
_SHORTEST_SECONDS = 0.5  # that the meter can measure; what is shorter is padded


def measure_loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of audio [N] in LUFS; minus infinity for silence."""
    missing = round(_SHORTEST_SECONDS * sample_rate) - len(audio)
    meter = pyloudnorm.Meter(sample_rate)
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(np.pad(audio, (0, max(0, missing))).astype(np.float64)))


def measure_true_peak(audio: np.ndarray) -> float:
    """Return the largest absolute value of audio [N] in dB re full scale, also between the samples."""
    with np.errstate(divide="ignore"):
        return 20 * float(np.log10(_peak_envelope(audio, 0.0).max(initial=0.0)))


def normalizing_gain(audio: np.ndarray, sample_rate: int) -> np.ndarray | float:
    """Return the linear gain, [N] where it moves, that brings audio [N] to ``TARGET_LOUDNESS`` as far as peaks let it.

    Silence keeps a gain of one.
    """
    loudness = measure_loudness(audio, sample_rate)
    if not np.isfinite(loudness):
        return 1.0
    limit = 10 ** ((MAX_TRUE_PEAK - _MARGIN) / 20)
    peaks = _peak_envelope(audio, 0.25 * float(np.abs(audio).max()))  # elsewhere no limit is near
    highest = float(peaks.max())
    gain = min(10 ** ((TARGET_LOUDNESS - loudness) / 20), limit * 10 ** (MAX_LIMITING / 20) / highest)
    if gain * highest <= limit:
        return gain
    wanted = np.minimum(1.0, limit / np.maximum(gain * peaks, limit))
    size = 2 * round(_LOOK_AHEAD_SECONDS * sample_rate) + 1
    held = ndimage.minimum_filter1d(wanted, size)  # so early and so long that the mean below never exceeds ``wanted``
    return gain * ndimage.uniform_filter1d(held, size, mode="nearest").astype(np.float32)


def _peak_envelope(audio: np.ndarray, floor: float) -> np.ndarray:
    """Return for each sample of audio [N] the largest absolute value around it; blocks under ``floor`` are left out."""
    peaks = np.abs(audio).astype(np.float32)
    for part in block_slices(len(audio), _BLOCK_SAMPLES):
        if peaks[part].max() > floor:
            first = max(0, part.start - _CONTEXT)
            dense = signal.resample_poly(audio[first : part.stop + _CONTEXT].astype(np.float32), _OVERSAMPLING, 1)
            around = ndimage.maximum_filter1d(np.abs(dense), 2 * _OVERSAMPLING - 1)[::_OVERSAMPLING]
            peaks[part] = around[part.start - first :][: part.stop - part.start]
    return peaks


def normalize_loudness(result: TransferResult) -> TransferResult:
    """Bring a result to ``TARGET_LOUDNESS``; its report says by how much, and what was reached.

    All of the sound is in memory for it.
    """
    audio = result.audio
    gain = normalizing_gain(audio, result.sample_rate)
    stems = tuple(SpooledAudio([stem * gain]) for stem in (result.harmonic, result.noise))
    sound = audio * gain
    report = result.report | {
        "normalization_gain": 20 * float(np.log10(np.max(gain))),
        "limiting": 20 * float(np.log10(np.max(gain) / np.min(gain))),
        "integrated_loudness": measure_loudness(sound, result.sample_rate),
    }
    return dataclasses.replace(result, stems=stems, gain=1.0, report=report)
