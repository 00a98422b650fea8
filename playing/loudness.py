"""Loudness normalization without clipping (ITU-R BS.1770).

The gain is the same for all stems, so they still sum to the mix. Where the true peak (4 times oversampled) would exceed
``MAX_TRUE_PEAK``, a limiter reduces peaks by up to ``MAX_LIMITING`` dB. If that is not enough, the gain of the whole
sound is reduced.
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
_MARGIN = 0.1  # dB below the limit, for inter-sample peaks caused by a varying gain
_OVERSAMPLING = 4
_LOOK_AHEAD_SECONDS = 0.005  # half the length of the limiter's gain smoothing
_BLOCK_SAMPLES = 2**15
_CONTEXT = 64  # samples on each side of a block, to avoid edge effects of oversampling
_SHORTEST_SECONDS = 0.5  # shortest input of the meter; shorter audio is padded


def measure_loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of audio [N] in LUFS; minus infinity for silence."""
    missing = round(_SHORTEST_SECONDS * sample_rate) - len(audio)
    meter = pyloudnorm.Meter(sample_rate)
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(np.pad(audio, (0, max(0, missing))).astype(np.float64)))


def measure_true_peak(audio: np.ndarray) -> float:
    """Return the true peak of audio [N] in dB re full scale, including inter-sample peaks."""
    with np.errstate(divide="ignore"):
        return 20 * float(np.log10(_peak_envelope(audio, 0.0).max(initial=0.0)))


def normalizing_gain(audio: np.ndarray, sample_rate: int, loudness: float | None = None) -> np.ndarray | float:
    """Return the linear gain that brings audio [N] to ``TARGET_LOUDNESS``, or as close as its peaks allow.

    The gain is [N] if the limiter is active, else a float. The gain of silence is 1. ``loudness`` is that of the audio
    in LUFS, if it is known.
    """
    loudness = measure_loudness(audio, sample_rate) if loudness is None else loudness
    if not np.isfinite(loudness):
        return 1.0
    limit = 10 ** ((MAX_TRUE_PEAK - _MARGIN) / 20)
    peaks = _peak_envelope(audio, 0.25 * float(np.abs(audio).max()))  # softer blocks cannot reach the limit
    highest = float(peaks.max())
    gain = min(10 ** ((TARGET_LOUDNESS - loudness) / 20), limit * 10 ** (MAX_LIMITING / 20) / highest)
    if gain * highest <= limit:
        return gain
    wanted = np.minimum(1.0, limit / np.maximum(gain * peaks, limit))
    size = 2 * round(_LOOK_AHEAD_SECONDS * sample_rate) + 1
    held = ndimage.minimum_filter1d(wanted, size)  # so that the moving average below never exceeds ``wanted``
    return gain * ndimage.uniform_filter1d(held, size, mode="nearest").astype(np.float32)


def _peak_envelope(audio: np.ndarray, floor: float) -> np.ndarray:
    """Return the oversampled peak around each sample, [N]; blocks below ``floor`` are not oversampled."""
    peaks = np.abs(audio).astype(np.float32)
    for part in block_slices(len(audio), _BLOCK_SAMPLES):
        if peaks[part].max() > floor:
            first = max(0, part.start - _CONTEXT)
            dense = signal.resample_poly(audio[first : part.stop + _CONTEXT].astype(np.float32), _OVERSAMPLING, 1)
            after = np.maximum.reduce([np.abs(dense[n::_OVERSAMPLING]) for n in range(_OVERSAMPLING)])
            around = np.maximum(after, np.append(0, after[:-1]))  # from the sample before until the one after
            peaks[part] = around[part.start - first :][: part.stop - part.start]
    return peaks


def normalize_loudness(result: TransferResult) -> TransferResult:
    """Normalize a result to ``TARGET_LOUDNESS``; add gain, loudness and true peak to its report.

    The whole sound is loaded into memory.
    """
    audio = result.audio
    loudness = measure_loudness(audio, result.sample_rate)
    gain = normalizing_gain(audio, result.sample_rate, loudness)
    stems = tuple(SpooledAudio([stem * gain]) for stem in (result.harmonic, result.noise))
    is_limited = np.ndim(gain) > 0
    loudness = measure_loudness(audio * gain, result.sample_rate) if is_limited else loudness + 20 * np.log10(gain)
    report = result.report | {
        "normalization_gain": 20 * float(np.log10(np.max(gain))),
        "limiting": 20 * float(np.log10(np.max(gain) / np.min(gain))),
        "integrated_loudness": float(loudness),
    }
    return dataclasses.replace(result, stems=stems, gain=1.0, report=report)
