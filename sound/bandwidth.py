"""The band that a recording has: where its sound ends, by its codec, its first sample rate or its microphone.

A file of 48 kHz that was made from MP3 or from 44.1 kHz holds next to nothing over 16 or 22 kHz. A model that learned
from it that nothing sounds there would be dull, so a loss leaves out what is above the band.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage, signal

_N_FFT = 2048
_SMOOTHING = 700.0  # Hz: what is narrower is a line (a screen's 15.7 kHz, a pilot tone), not the recording's band
_EDGE = 12.0  # dB by which the spectrum falls for good within ``_SMOOTHING``; instruments fall by 5 dB per kHz
_CLEARLY = 6.0  # dB over the floor
_QUIETEST = -150.0  # dB, of a bin: less is digital silence
_FRAMES_AT_ONCE = 1000


def measure_bandwidth(audio: np.ndarray, sample_rate: int, lowest: float) -> float:
    """Return the highest frequency at which the long-term spectrum rises clearly above its floor.

    It is looked for over ``lowest``: the first edge, after which the spectrum stays far below (a codec's low-pass,
    above which it leaves a trace), or else the place where it comes down to its lowest level. A spectrum without either
    has no end, so its band is the whole.

    Args:
        audio: [N].
        sample_rate: Hz.
        lowest: Hz, the least that is returned; every recording is taken to fill the band up to here.

    Returns:
        Hz, ``lowest`` to ``sample_rate / 2``.
    """
    power = sum(_powers(audio)) / len(audio)
    frequencies = np.linspace(0, sample_rate / 2, len(power))
    level = 10 * np.log10(power + 10 ** (_QUIETEST / 10))
    width = round(_SMOOTHING / frequencies[1]) | 1
    level = ndimage.median_filter(level, width, mode="nearest")
    level, frequencies = (values[frequencies >= lowest - 2 * _SMOOTHING] for values in (level, frequencies))
    to_come = np.maximum.accumulate(level[::-1])[::-1]  # the most from each frequency on
    edges = np.flatnonzero(level[:-width] - to_come[width:] > _EDGE)
    clear = np.flatnonzero(level[: level.argmin()] > level.min() + _CLEARLY)  # what rises again after it is noise
    if len(edges):
        return max(lowest, float(frequencies[edges[0] + width // 2]))
    if len(clear):
        return max(lowest, float(frequencies[clear[-1] + 1]))
    return sample_rate / 2 if level.max() > _QUIETEST + _CLEARLY else lowest


def _powers(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Yield sums of the power spectra of frames that overlap by half."""
    window, hop = signal.get_window("hann", _N_FFT), _N_FFT // 2
    for start in range(0, len(audio), _FRAMES_AT_ONCE * hop):
        piece = audio[start : start + (_FRAMES_AT_ONCE + 1) * hop]
        piece = np.pad(piece, (0, max(_N_FFT, -(-len(piece) // hop) * hop) - len(piece)))
        frames = np.lib.stride_tricks.sliding_window_view(piece, _N_FFT)[::hop]
        yield (np.abs(np.fft.rfft(frames * window)) ** 2).sum(axis=0) / window.sum()
