"""Measure the bandwidth of a recording, as limited by its codec, its original sample rate or its microphone.

A 48 kHz file made from MP3 or from 44.1 kHz has almost no energy above 16 or 22 kHz. A model trained on it would learn
a dull sound, so the loss excludes frequencies above the bandwidth.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage, signal

_N_FFT = 2048
_SMOOTHING = 700.0  # Hz, width of the median filter that removes lines (a screen's 15.7 kHz, a pilot tone)
_EDGE = 12.0  # dB, lasting fall of the spectrum within ``_SMOOTHING``; instruments fall by 5 dB per kHz
_ABOVE_FLOOR = 6.0  # dB
_QUIETEST = -150.0  # dB per bin; less is digital silence
_FRAMES_AT_ONCE = 1000


def measure_bandwidth(audio: np.ndarray, sample_rate: int, lowest: float) -> float:
    """Return the highest frequency at which the long-term spectrum rises clearly above its floor.

    This is the first edge above ``lowest`` after which the spectrum stays far lower (a codec's low-pass filter, above
    which a trace remains), else the frequency where the spectrum reaches its floor, else the Nyquist frequency.

    Args:
        audio: [N].
        sample_rate: Hz.
        lowest: Hz, lower limit of the result.

    Returns:
        Hz, ``lowest`` to ``sample_rate / 2``.
    """
    power = sum(_powers(audio)) / len(audio)
    frequencies = np.linspace(0, sample_rate / 2, len(power))
    level = 10 * np.log10(power + 10 ** (_QUIETEST / 10))
    width = round(_SMOOTHING / frequencies[1]) | 1
    level = ndimage.median_filter(level, width, mode="nearest")
    level, frequencies = (values[frequencies >= lowest - 2 * _SMOOTHING] for values in (level, frequencies))
    highest_above = np.maximum.accumulate(level[::-1])[::-1]  # the maximum from each frequency up
    edges = np.flatnonzero(level[:-width] - highest_above[width:] > _EDGE)
    clear = np.flatnonzero(level[: level.argmin()] > level.min() + _ABOVE_FLOOR)  # a rise above the minimum is noise
    if len(edges):
        return max(lowest, float(frequencies[edges[0] + width // 2]))
    if len(clear):
        return max(lowest, float(frequencies[clear[-1] + 1]))
    return sample_rate / 2 if level.max() > _QUIETEST + _ABOVE_FLOOR else lowest


def _powers(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Yield block by block the summed power spectra of half-overlapping frames."""
    window, hop = signal.get_window("hann", _N_FFT), _N_FFT // 2
    for start in range(0, len(audio), _FRAMES_AT_ONCE * hop):
        piece = audio[start : start + (_FRAMES_AT_ONCE + 1) * hop]
        piece = np.pad(piece, (0, max(_N_FFT, -(-len(piece) // hop) * hop) - len(piece)))
        frames = np.lib.stride_tricks.sliding_window_view(piece, _N_FFT)[::hop]
        yield (np.abs(np.fft.rfft(frames * window)) ** 2).sum(axis=0) / window.sum()
