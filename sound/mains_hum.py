"""Detect mains hum and remove it with notch filters.

Hum consists of lines at multiples of 50 or 60 Hz whose level and frequency stay constant, in the pauses too.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import signal

from sound.audio_files import block_slices

MAINS_FREQUENCIES = (50.0, 60.0)  # Hz
_TOLERANCE = 0.25  # Hz, largest deviation of the mains frequency
_SHORTEST_SECONDS = 2.0  # shorter audio does not show that a line is constant
_PAUSES = 0.2  # fraction of the frames, the quietest, that are taken as pauses
_QUIETEST = 1e-4  # amplitude of a line (-80 dBFS); weaker lines are ignored
_COHERENCE = 0.9  # of a line's phase from frame to frame, in pauses: a pure line has 1, noise less than 0.5
_NOTCH_WIDTH = 4.0  # Hz: hum is modulated at up to 1 Hz; this notch rings for 0.1 s, a narrower one longer than a pause
_WINDOW_SECONDS = 0.2  # bins 5 Hz apart, and windows that fit into pauses; the hop is half of it
_SMALLEST = 1e-20


def find_mains_lines(audio: np.ndarray, rate: int) -> np.ndarray:
    """Return the frequencies [K] of steady mains hum in Hz, increasing: the mains and its audible multiples.

    Hum is present if the first or the second harmonic stands out in the pauses, holds its level, and has the phase
    advance of the mains there. Empty without hum.
    """
    if len(audio) < _SHORTEST_SECONDS * rate:
        return np.empty(0)
    for nominal in MAINS_FREQUENCIES:
        spectra = _measure_multiples(audio, rate, nominal / 2)  # [T, 2K]: midpoint before each line, line
        level, between = np.abs(spectra[:, 1::2]), np.abs(spectra[:, ::2])
        pauses = np.argsort(np.sum(between**2, axis=1))[: round(_PAUSES * len(spectra))]
        quiet, nearby = np.median(level[pauses], axis=0), np.median(between[pauses], axis=0)
        nearby = np.maximum(nearby, np.append(nearby[1:], nearby[-1]))
        stands_out = quiet > np.maximum(2 * nearby, _QUIETEST)
        for number in (1, 2):
            line = spectra[:, 2 * number - 1]
            lasting = min(quiet[number - 1], np.quantile(level[:, number - 1], _PAUSES))
            advance, coherence = _measure_phase_advance(line, pauses)
            mains = nominal + advance / (np.pi * _WINDOW_SECONDS * number)
            is_steady = lasting > 0.5 * np.median(level[:, number - 1]) and coherence > _COHERENCE
            if stands_out[number - 1] and is_steady and abs(mains - nominal) < _TOLERANCE:
                return mains * np.union1d([1], 1 + np.flatnonzero(stands_out))
    return np.empty(0)


def _measure_multiples(audio: np.ndarray, rate: int, frequency: float) -> np.ndarray:
    """Return the complex amplitudes of all multiples of a frequency below Nyquist, [T, M], half a window apart."""
    size = round(_WINDOW_SECONDS * rate)
    count = int(rate / 4 / frequency) - 1
    bins = np.arange(1, 2 * count + 1) * round(frequency * size / rate)
    windows = sliding_window_view(audio, size)[:: size // 2]
    window = signal.get_window("hann", size)
    spectra = np.empty((len(windows), len(bins)), complex)
    for block in block_slices(len(windows), 500):  # bounds the memory
        spectra[block] = np.fft.rfft(windows[block] * window)[:, bins]
    return 2 / window.sum() * spectra * (-1.0) ** (np.outer(np.arange(len(windows)), bins))


def _measure_phase_advance(line: np.ndarray, pauses: np.ndarray) -> tuple[float, float]:
    """Return the phase advance per frame of a complex curve [T] in the pauses, in radians, and its coherence, 0..1."""
    first = np.intersect1d(pauses, pauses - 1)
    phasors = line / (np.abs(line) + _SMALLEST)
    advance = np.mean(phasors[first + 1] * phasors[first].conj()) if len(first) else 0.0
    return float(np.angle(advance)), float(np.abs(advance))


def notch(audio: np.ndarray, rate: int, frequencies: np.ndarray) -> np.ndarray:
    """Remove narrow bands around ``frequencies`` [K], multiples of the first, from audio [N], with zero phase shift."""
    sections = np.concatenate(
        [signal.tf2sos(*signal.iirnotch(f, f / _NOTCH_WIDTH, rate)) for f in frequencies if f + _NOTCH_WIDTH < rate / 2]
    )
    margin = round(round(frequencies[0] / 2) * rate / frequencies[0])  # samples: half a second, in whole cycles
    extended = np.concatenate([audio[:margin], audio, audio[-margin:]])  # continues the hum beyond both ends
    return signal.sosfiltfilt(sections, extended)[margin : margin + len(audio)].astype(np.float32)
