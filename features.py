"""Measure a sound: pitch (CREPE, see ``sound/crepe.py``) and A-weighted loudness, 100 frames a second.

``load_audio`` of ``sound/audio_files.py`` can be imported from here too.

Loudness is the level after A-weighting (IEC 61672-1), filtered by second-order sections.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from config import Config
from sound import crepe
from sound.audio_files import load_audio  # noqa: F401  re-exported

_SMALLEST = np.finfo(np.float32).tiny
_BLOCK_FRAMES = 6400  # measured at once; a multiple of CREPE's batch, so that results do not depend on the blocks


class Features(NamedTuple):
    f0: Tensor  # [T] Hz, always positive: bridged where there is no pitch
    loudness: Tensor  # [T] dB re full scale, A-weighted
    periodicity: Tensor  # [T] 0..1, how sure the tracker is of f0


def pad_to_frames(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Append zeros until the length is a whole number of frames."""
    return np.pad(audio, (0, -len(audio) % hop_length))


def extract_features(audio: np.ndarray | Tensor, config: Config, device: torch.device | str = "cpu") -> Features:
    """Measure pitch and loudness.

    Args:
        audio: [N] at ``config.audio.feature_rate``.
        config: which CREPE or SwiftF0, pitch range, loudness window and floor.
        device: where CREPE runs.

    Returns:
        Features of T = ceil(N / hop) frames; frame t is centred on sample t * hop.

    Raises:
        ValueError: no samples, or a feature_rate other than CREPE's.
    """
    parts = extract_feature_blocks([np.asarray(audio)], config, device)
    return Features(*map(torch.cat, zip(*parts)))


def extract_feature_blocks(
    blocks: Iterable[np.ndarray], config: Config, device: torch.device | str = "cpu"
) -> Iterator[Features]:
    """Measure a sound that comes in blocks of any sizes, in memory that does not depend on its length.

    The pieces joined equal ``extract_features`` of the blocks joined, bit for bit. A piece is yielded as soon
    as its pitch is certain: at a gap in the sound, or half a minute later at most. Frames without a pitch
    wait for the next note, to which f0 is bridged.

    Args:
        blocks: [n] each, at ``config.audio.feature_rate``; ``audio_files.read_blocks`` makes them of a file.
        config: as in ``extract_features``.
        device: where CREPE runs.

    Yields:
        Features of the next frames.

    Raises:
        ValueError: as ``extract_features``.
    """
    settings = config.features
    if config.audio.feature_rate != crepe.SAMPLE_RATE:
        raise ValueError(f"CREPE needs {crepe.SAMPLE_RATE} Hz, but feature_rate is {config.audio.feature_rate} Hz")
    if settings.crepe_model == "swift-f0":  # small enough for a whole recording
        yield _measure_with_swift_f0(np.concatenate([*blocks]), config)
        return
    loudness = np.empty(0, np.float32)  # of frames whose pitch is not certain yet

    def activations() -> Iterator[np.ndarray]:
        nonlocal loudness
        for sound, power in _frame_blocks(blocks, config):
            loudness = np.concatenate([loudness, _frame_levels(power, config, _margin(config))])
            yield crepe.crepe_activation(
                sound, config.audio.feature_hop_length, settings.crepe_model, device, margin=_margin(config)
            )

    decoded = crepe.decode_blocks(activations(), settings.f0_min, settings.f0_max, settings.periodicity_threshold)
    for f0, periodicity in _bridge_blocks(decoded, settings.periodicity_threshold):
        here, loudness = loudness[: len(f0)], loudness[len(f0) :]
        yield Features(*map(torch.from_numpy, (f0, here, periodicity)))


def _measure_with_swift_f0(audio: np.ndarray, config: Config) -> Features:
    from sound.swift_tracker import track_f0  # optional, and rarely wanted

    settings, hop_length = config.features, config.audio.feature_hop_length
    f0, periodicity = track_f0(audio, hop_length, settings.f0_min, settings.f0_max)
    f0 = bridge_f0(f0, periodicity >= settings.periodicity_threshold)
    return Features(*map(torch.from_numpy, (f0, extract_loudness(audio, config), periodicity)))


def _frame_blocks(blocks: Iterable[np.ndarray], config: Config) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a sound into runs of whole frames, and apply A-weighting.

    Yields:
        Samples (float32) and A-weighted power (float64) of the next ``_BLOCK_FRAMES`` frames, or of the
        last ones, with ``_margin`` more samples at both ends: neighbours, or zeros outside the sound.
    """
    margin, size = _margin(config), _BLOCK_FRAMES * config.audio.feature_hop_length
    held = np.zeros((margin, 2))
    is_empty = True
    for piece in _weigh(_whole_frames(blocks, size, config.audio.feature_hop_length), config):
        held, is_empty = np.concatenate([held, piece]), False
        while len(held) >= size + 2 * margin:
            yield _split(held[: size + 2 * margin])
            held = held[size:]
    if is_empty:
        raise ValueError("the audio holds no samples")
    held = np.pad(held, ((0, margin), (0, 0)))
    while len(held) > 2 * margin:
        yield _split(held[: size + 2 * margin])
        held = held[size:]


def _margin(config: Config) -> int:
    return max(crepe.MARGIN, config.features.loudness_window)


def _split(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return columns[:, 0].astype(np.float32), np.ascontiguousarray(columns[:, 1])


def _whole_frames(blocks: Iterable[np.ndarray], most: int, hop_length: int) -> Iterator[np.ndarray]:
    """Yield a sound in pieces of at most ``most`` samples, its last frame padded with zeros."""
    n_samples = 0
    for block in blocks:
        n_samples += len(block)
        for start in range(0, len(block), most):
            yield np.asarray(block[start : start + most], dtype=np.float32)
    if n_samples % hop_length:
        yield np.zeros(-n_samples % hop_length, np.float32)


# --- loudness -------------------------------------------------------------------------------------


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
    margin = _margin(config)
    return np.concatenate([_frame_levels(power, config, margin) for _, power in _frame_blocks([audio], config)])


def _weigh(blocks: Iterable[np.ndarray], config: Config) -> Iterator[np.ndarray]:
    """Yield float64 [n, 2]: samples, and their square after A-weighting; the filter's state is kept between blocks."""
    sos = a_weighting_sos(config.audio.feature_rate)
    state = np.zeros((len(sos), 2))
    for block in blocks:
        weighted, state = signal.sosfilt(sos, block.astype(np.float64), zi=state)
        yield np.stack([block, weighted**2], axis=1)


def _frame_levels(power: np.ndarray, config: Config, margin: int) -> np.ndarray:
    """Return dB, float32 [T], of weighted power with margins at both ends."""
    hop_length, window_length = config.audio.feature_hop_length, config.features.loudness_window
    windows = np.lib.stride_tricks.sliding_window_view(power[margin - window_length // 2 :], window_length)
    return _level(windows[: len(power) - 2 * margin : hop_length], config)


def _level(frames: np.ndarray, config: Config) -> np.ndarray:
    """Return dB, float32 [T], of windows [T, loudness_window] of weighted power."""
    # einsum reads overlapping windows in place; a matrix product would copy them first.
    level = 10 * np.log10(np.einsum("tw,w->t", frames, _hann(frames.shape[1])) + _SMALLEST)
    return np.maximum(level, config.features.loudness_floor).astype(np.float32)


@functools.cache
def _hann(length: int) -> np.ndarray:
    """Return a Hann window whose sum is one."""
    window = signal.get_window("hann", length)
    return window / window.sum()


# --- pitch ----------------------------------------------------------------------------------------


def _bridge_blocks(
    decoded: Iterable[tuple[np.ndarray, np.ndarray]], threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bridge f0 as ``bridge_f0`` does, block by block; frames after the last pitch wait for the next one."""
    held = (np.empty(0, np.float32), np.empty(0, np.float32))
    for block in decoded:
        held = tuple(map(np.concatenate, zip(held, block)))
        voiced = np.flatnonzero(held[1] >= threshold)
        if len(voiced):
            last = voiced[-1]  # it stays, as the near end of the next bridge
            f0 = bridge_f0(held[0], held[1] >= threshold)
            yield f0[:last], held[1][:last]
            held = (f0[last:], held[1][last:])
    if len(held[0]):
        yield bridge_f0(held[0], held[1] >= threshold), held[1]


def bridge_f0(f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Replace f0 where ``voiced`` is false by a straight line in log frequency between its neighbours: [T]."""
    if not voiced.any():
        return f0
    frames = np.arange(len(f0))
    log_f0 = np.interp(frames, frames[voiced], np.log2(f0[voiced]))
    return np.where(voiced, f0, 2**log_f0).astype(np.float32)
