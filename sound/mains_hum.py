"""The lines of mains hum in a sound: find them, and take them out with notch filters.

Hum is what stays when all else changes: lines at multiples of 50 or 60 Hz that hold their level and their frequency in
the pauses as well.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import signal

from sound.audio_files import block_slices

MAINS_FREQUENCIES = (50.0, 60.0)  # Hz
_TOLERANCE = 0.25  # Hz, by which the mains are off at most
_SHORTEST_SECONDS = 2.0  # in less, nothing shows that it lasts
_PAUSES = 0.2  # of the frames, the quietest ones, must show the lines alone
_QUIETEST = 1e-4  # amplitude of a line (-80 dBFS); less is nothing to take out
_COHERENCE = 0.9  # of a line's phase from frame to frame, in pauses: a pure line has 1, noise less than 0.5
_NOTCH_WIDTH = 4.0  # Hz: hum swells by up to 1 Hz; a narrower notch also rings longer than a pause, this one for 0.1 s
_WINDOW_SECONDS = 0.2  # that bins lie 5 Hz apart and pauses hold whole windows; the hop is half of it
_SMALLEST = 1e-20


def find_mains_lines(audio: np.ndarray, rate: int) -> np.ndarray:
    """Return the frequencies [K] of steady mains hum, in Hz and rising: of the mains and of the multiples that sound.

    The first or the second harmonic decides: it stands out and holds its level in the pauses, and its phase turns
    there as that of the mains does. Empty without hum.
    """
    if len(audio) < _SHORTEST_SECONDS * rate:
        return np.empty(0)
    for nominal in MAINS_FREQUENCIES:
        spectra = _measure_multiples(audio, rate, nominal / 2)  # [T, 2K]: half way before each line, the line
        level, between = np.abs(spectra[:, 1::2]), np.abs(spectra[:, ::2])
        pauses = np.argsort(np.sum(between**2, axis=1))[: round(_PAUSES * len(spectra))]
        quiet, beside = np.median(level[pauses], axis=0), np.median(between[pauses], axis=0)
        beside = np.maximum(beside, np.append(beside[1:], beside[-1]))
        stands_out = quiet > np.maximum(2 * beside, _QUIETEST)
        for number in (1, 2):
            line = spectra[:, 2 * number - 1]
            lasting = min(quiet[number - 1], np.quantile(level[:, number - 1], _PAUSES))
            turn, coherence = _measure_turn(line, pauses)
            mains = nominal + turn / (np.pi * _WINDOW_SECONDS * number)
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
    for block in block_slices(len(windows), 500):  # so that the memory stays small
        spectra[block] = np.fft.rfft(windows[block] * window)[:, bins]
    return 2 / window.sum() * spectra * (-1.0) ** (np.outer(np.arange(len(windows)), bins))


def _measure_turn(line: np.ndarray, pauses: np.ndarray) -> tuple[float, float]:
    """Return by how much the phase of a complex curve [T] turns a frame in the pauses, and how surely (0 to 1)."""
    first = np.intersect1d(pauses, pauses - 1)
    directions = line / (np.abs(line) + _SMALLEST)
    turn = np.mean(directions[first + 1] * directions[first].conj()) if len(first) else 0.0
    return float(np.angle(turn)), float(np.abs(turn))


def notch(audio: np.ndarray, rate: int, frequencies: np.ndarray) -> np.ndarray:
    """Take narrow bands around some multiples of the first frequency [K] out of audio [N], without a shift in time."""
    sections = np.concatenate(
        [signal.tf2sos(*signal.iirnotch(f, f / _NOTCH_WIDTH, rate)) for f in frequencies if f + _NOTCH_WIDTH < rate / 2]
    )
    cycles = round(round(frequencies[0] / 2) * rate / frequencies[0])  # samples: half a second, at whole cycles
    longer = np.concatenate([audio[:cycles], audio, audio[-cycles:]])  # the hum goes on beyond both ends
    return signal.sosfiltfilt(sections, longer)[cycles : cycles + len(audio)].astype(np.float32)
