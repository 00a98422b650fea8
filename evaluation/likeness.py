"""How like an instrument a sound is: the distance between two distributions of timbre.

Each sounding frame is described by its timbre, level aside: MFCCs, spectral centroid and tilt. Frames of two sounds are
compared inside bins of equal pitch and loudness, in equal numbers, by the sliced Wasserstein distance (Rabin, Peyre,
Delon and Bernot, SSVM 2011): project on random directions, sort, subtract. It is in standard deviations of the
instrument's own descriptors, and grows as fast as the timbre moves away. Scaled, 0 is the distance of the instrument's
own half from its other half, and 1 that of another instrument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import librosa
import numpy as np

from evaluation.scorecard import AUDIBLE_LEVEL, CONFIDENT_PERIODICITY, N_FFT, MeasuredSound, decibels, power_spectrum

_PITCH_BIN, _LOUDNESS_BIN = 6.0, 6.0  # semitones and dB
_BLOCK = 2.0  # s: blocks of recordings go to the two halves in turn
_MIN_FRAMES, _MAX_FRAMES = 20, 200  # of a bin and sound: fewer say nothing, more say no more
_N_DIRECTIONS = 128
_DYNAMIC_RANGE = -80.0  # dB of a mel band against the whole frame: what is below does not count


@dataclass(frozen=True)
class Timbre:
    """The frames of a sound that have a pitch."""

    descriptors: np.ndarray  # [n, 14]: MFCC 1 to 12, centroid in octaves, tilt in dB an octave
    bins: np.ndarray  # int [n], the same for frames of like pitch and loudness
    halves: np.ndarray  # int [n], 0 or 1


class Likeness(NamedTuple):
    scaled: float  # 0: as like as the instrument's halves; 1: as unlike as the other instrument
    distance: float  # in standard deviations of the instrument's descriptors
    own: float  # of the instrument's halves
    other: float  # of the other instrument
    n_bins: int  # in which all sounds have frames


def describe_timbre(sound: MeasuredSound, f0: np.ndarray | None = None, loudness: np.ndarray | None = None) -> Timbre:
    """Describe the frames that sound with a sure pitch.

    Args:
        sound: any sound of T frames.
        f0: [T] Hz, by which to sort frames into bins; None takes the sound's own.
        loudness: [T] dB, likewise.
    """
    f0 = sound.f0 if f0 is None else f0
    loudness = sound.loudness if loudness is None else loudness
    chosen = np.flatnonzero((sound.periodicity >= CONFIDENT_PERIODICITY) & (sound.loudness > AUDIBLE_LEVEL))
    pitch_bins = np.floor(12 * np.log2(f0[chosen]) / _PITCH_BIN).astype(int)
    loudness_bins = np.floor(loudness[chosen] / _LOUDNESS_BIN).astype(int)
    halves = chosen // round(_BLOCK * sound.frame_rate) % 2
    return Timbre(_descriptors(sound)[chosen], 1000 * pitch_bins + loudness_bins, halves)


def _descriptors(sound: MeasuredSound) -> np.ndarray:
    """Return [T, 14]. The power of each frame is scaled to 1, so that level plays no part."""
    power = power_spectrum(sound)
    power = power / (power.sum(axis=0) + 1e-20)
    bands = librosa.feature.melspectrogram(S=power, sr=sound.sample_rate, n_mels=40, norm=None)
    bands = decibels(bands, _DYNAMIC_RANGE)  # (40, T)
    centres = np.log2(librosa.mel_frequencies(42, fmax=sound.sample_rate / 2)[1:-1])
    tilt = np.polyfit(centres, bands, 1)[0]
    centroid = np.log2(librosa.fft_frequencies(sr=sound.sample_rate, n_fft=N_FFT) @ power + 1)
    return np.vstack([librosa.feature.mfcc(S=bands, n_mfcc=13)[1:], centroid, tilt]).T


def join_timbres(timbres: Sequence[Timbre]) -> Timbre:
    """Return the frames of several sounds as one."""
    names = ("descriptors", "bins", "halves")
    return Timbre(*(np.concatenate([getattr(timbre, name) for timbre in timbres]) for name in names))


def split_timbre(timbre: Timbre) -> tuple[Timbre, Timbre]:
    """Return both halves: blocks of 2 s in turn, the same blocks in a recording and in its copy."""
    parts = [timbre.halves == half for half in (0, 1)]
    return tuple(Timbre(timbre.descriptors[part], timbre.bins[part], timbre.halves[part]) for part in parts)


def measure_likeness(
    outputs: tuple[Timbre, Timbre], halves: tuple[Timbre, Timbre], other: Timbre, seed: int = 0
) -> Likeness | None:
    """Measure how like an instrument a sound is.

    Args:
        outputs: what is held against the first half and against the second: twice the same for a transferred voice;
            the copy of a recording is held against the half that it was not made from.
        halves: of the instrument's own sound.
        other: another instrument's.
        seed: of the frames that are drawn and of the directions. Same input and seed, same bits.

    Returns:
        None if there is no bin of pitch and loudness in which all have 20 frames.
    """
    sounds = (*halves, *outputs, other)
    bins = sorted(set.intersection(*(_filled_bins(timbre) for timbre in sounds)))
    if not bins:
        return None
    rng = np.random.default_rng(seed)
    scale = np.concatenate([half.descriptors for half in halves]).std(axis=0)
    directions = rng.standard_normal((len(scale), _N_DIRECTIONS))
    projection = directions / np.linalg.norm(directions, axis=0) / (scale[:, None] + 1e-9)
    projected = ([timbre.descriptors[timbre.bins == one] @ projection for timbre in sounds] for one in bins)
    distance, own, far = np.mean([_compare_frames(frames, rng) for frames in projected], axis=0).tolist()
    return Likeness((distance - own) / (far - own), distance, own, far, len(bins))


def _filled_bins(timbre: Timbre) -> set[int]:
    bins, counts = np.unique(timbre.bins, return_counts=True)
    return set(bins[counts >= _MIN_FRAMES].tolist())


def _compare_frames(projected: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the distances of output, own half and other instrument, from as many frames [n, directions] of each."""
    n_frames = min(_MAX_FRAMES, *map(len, projected))
    drawn = [np.sort(rng.permutation(frames)[:n_frames], axis=0) for frames in projected]
    first, second, for_first, for_second, other = drawn
    return (
        (_distance(for_first, first) + _distance(for_second, second)) / 2,
        _distance(first, second),
        (_distance(other, first) + _distance(other, second)) / 2,
    )


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    """Return the mean distance of sorted projections: the Wasserstein distance, averaged over the directions."""
    return float(np.mean(np.abs(one - two)))
