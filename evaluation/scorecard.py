"""Measures of how accurately a model copies recordings and plays a voice.

Every measure is a function of curves and audio; ``judging.py`` runs the models. The measures in this module check that
a model follows its inputs, which an untrained model does too. ``distributions.py`` and ``recogniser.py`` measure what
training adds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats

from config import Config, InstrumentConfig
from features import extract_features, pad_to_frames
from sound.audio_files import prepare_audio

AUDIBLE_LEVEL = -60.0  # dB, A-weighted: quieter frames count as rests
CONFIDENT_PERIODICITY = 0.85  # minimum periodicity of frames whose pitch is compared
RELEASE_SECONDS = 0.1  # s after a note, for its release
ATTACK_SECONDS = 0.02  # s before a note, for the fade-in of its first frame
RANGE_TOLERANCE = 0.5  # semitones outside the instrument's range that still count as inside
_FLOOR = -120.0  # dBFS, lowest level that is reported


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredSound:
    """Audio and its curves, at the sample rate of the features."""

    audio: np.ndarray  # [T * hop_length]
    f0: np.ndarray  # [T] Hz
    loudness: np.ndarray  # [T] dB, A-weighted
    periodicity: np.ndarray  # [T] 0..1
    sample_rate: int
    hop_length: int

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length


def measure_sound(audio: np.ndarray, sample_rate: int, config: Config, device: Any = "cpu") -> MeasuredSound:
    """Measure the curves of a sound [N].

    Raises:
        ValueError: the sound is empty or not finite.
    """
    rate, hop_length = config.audio.feature_rate, config.audio.feature_hop_length
    audio = pad_to_frames(prepare_audio(audio, sample_rate, rate), hop_length)
    curves = (values.numpy() for values in extract_features(audio, config, device))
    return MeasuredSound(audio, *curves, sample_rate=rate, hop_length=hop_length)


def frame_levels(sound: MeasuredSound) -> np.ndarray:
    """Return the level [T] in dBFS of one hop of samples centred on each frame; windows do not overlap."""
    hop_length = sound.hop_length
    centred = np.pad(sound.audio, (hop_length // 2, 0))[: len(sound.audio)].astype(np.float64)
    return decibels(np.mean(centred.reshape(-1, hop_length) ** 2, axis=1), _FLOOR)


def find_rests(sounding: np.ndarray, frame_rate: float) -> np.ndarray:
    """Return a mask [T] of frames with no sound, none in the 100 ms before and none in the 20 ms after."""
    before, after = round(RELEASE_SECONDS * frame_rate), round(ATTACK_SECONDS * frame_rate)
    return ~sliding_window_view(np.pad(sounding, (before, after)), before + after + 1).any(axis=1)


def cents_between(f0: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the absolute difference of two pitch curves in cents."""
    return np.abs(1200 * np.log2(f0 / expected))


def decibels(power: np.ndarray, floor: float) -> np.ndarray:
    """Return power in dB, at least ``floor``."""
    return 10 * np.log10(np.maximum(power, 10 ** (floor / 10)))


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _percent(chosen: np.ndarray) -> float | None:
    return 100 * float(np.mean(chosen)) if len(chosen) else None


def _quantile(values: np.ndarray, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None


# --- resynthesis ----------------------------------------------------------------------------------


def compare_copies(recordings: Sequence[MeasuredSound], copies: Sequence[MeasuredSound]) -> dict[str, float | None]:
    """Compare recordings with a model's copies of them; all frames have equal weight.

    Args:
        recordings: recordings of the instrument.
        copies: copies of equal length; their pitch is ignored.

    Returns:
        Loudness error and bias where the recordings sound, and the level in rests; None if there are no such frames.
    """
    errors, rests = [], []
    for recording, copy in zip(recordings, copies, strict=True):
        assert len(recording.f0) == len(copy.f0), f"{len(recording.f0)} frames against {len(copy.f0)}"
        sounding = recording.loudness > AUDIBLE_LEVEL
        errors.append((copy.loudness - recording.loudness)[sounding])
        rests.append(frame_levels(copy)[find_rests(sounding, recording.frame_rate)])
    loudness = np.concatenate(errors)
    return {
        "loudness_l1": _mean(np.abs(loudness)),
        "loudness_bias": _mean(loudness),
        "rest_level": _quantile(np.concatenate(rests), 0.5),
    }


# --- transfer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedCurves:
    """Target curves of an instrument, [T] each."""

    f0: np.ndarray  # Hz, fitted to the instrument
    loudness: np.ndarray  # dB, A-weighted, input of the model
    played: np.ndarray  # bool, where there are notes
    sung: np.ndarray | None = None  # Hz, annotated pitch of the voice, 0 where unvoiced


def compare_transfer(expected: ExpectedCurves, output: MeasuredSound, threshold: float) -> dict[str, float | None]:
    """Compare the target curves with the measured output.

    Args:
        expected: target curves.
        output: measured output.
        threshold: minimum periodicity of a pitched frame.
    """
    n_frames = min(len(expected.f0), len(output.f0))  # a release may be longer than the voice
    f0, loudness, played = (values[:n_frames] for values in (expected.f0, expected.loudness, expected.played))
    confident = played & (output.periodicity[:n_frames] >= CONFIDENT_PERIODICITY)
    cents = cents_between(output.f0[:n_frames][confident], f0[confident])
    sounding = (output.periodicity[:n_frames] >= threshold) & (output.loudness[:n_frames] > AUDIBLE_LEVEL)
    rests = find_rests(played, output.frame_rate)
    # Clip both at the audible level, so that inaudible differences do not count.
    audible, wanted = (np.maximum(values[:n_frames], AUDIBLE_LEVEL) for values in (output.loudness, loudness))
    return {
        "f0_median": _quantile(cents, 0.5),
        "f0_p95": _quantile(cents, 0.95),
        "octave": None if expected.sung is None else percent_in_octave(expected.sung, output),
        "precision": _percent(played[sounding & (played | rests)]),
        "recall": _percent(sounding[played]),
        "loudness_correlation": _correlation(audible[played], wanted[played]),
        "pause_level": _quantile(frame_levels(output)[:n_frames][rests], 0.95),
    }


def percent_in_octave(sung: np.ndarray, output: MeasuredSound) -> float | None:
    """Return the percentage of frames at the annotated pitch, shifted by a constant number of octaves.

    Args:
        sung: [T] Hz, annotated pitch, 0 where unvoiced.
        output: measured output.
    """
    n_frames = min(len(sung), len(output.f0))
    compared = (sung[:n_frames] > 0) & (output.periodicity[:n_frames] >= CONFIDENT_PERIODICITY)
    octaves = np.log2(output.f0[:n_frames][compared] / sung[:n_frames][compared])
    return _percent(np.abs(octaves - np.round(np.median(octaves))) < 0.5) if len(octaves) else None


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 2 or min(np.std(one), np.std(other)) == 0:
        return None
    return float(stats.pearsonr(one.astype(np.float64), other).statistic)


def measure_level(audio: np.ndarray) -> dict[str, float]:
    """Return the peak of a sound [N] in dBFS and the number of samples that a 16-bit file would clip."""
    magnitude = np.abs(audio)
    peak = 20 * math.log10(max(float(magnitude.max()), 10 ** (_FLOOR / 20)))
    return {"peak": peak, "clipped": int((magnitude >= 32767 / 32768).sum())}


def percent_out_of_range(expected: ExpectedCurves, instrument: InstrumentConfig) -> float | None:
    """Return the percentage of played frames more than half a semitone outside the instrument's range."""
    f0, tolerance = expected.f0[expected.played], 2 ** (RANGE_TOLERANCE / 12)
    return _percent((f0 < instrument.f0_min / tolerance) | (f0 > instrument.f0_max * tolerance))


def add_noise(audio: np.ndarray, snr: float, seed: int) -> np.ndarray:
    """Return a sound [N] with white noise ``snr`` dB below its mean power."""
    noise = np.random.default_rng(seed).standard_normal(len(audio))
    scale = math.sqrt(float(np.mean(audio.astype(np.float64) ** 2))) * 10 ** (-snr / 20)
    return (audio + scale * noise).astype(np.float32)
