"""The steady hum of the mains, which is heard under many a recording, and how to take it out.

It is what stays when all else changes: one waveform, repeated 50 or 60 times a second through the whole recording, in
the pauses as well. No voice keeps its phase like that.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal

from config import Config, TransferConfig
from features import extract_loudness
from sound.audio_files import SpooledAudio, block_slices

_SMALLEST = 1e-20
_BLOCK_FRAMES = 500  # looked at in one go, and
_BLOCK_SAMPLES = 2**18  # rebuilt, so that the memory stays small
_LINE_RATE = 50  # values a second of a line's curve
_LINE_FRAMES = 10  # of them in the window that measures each: 0.2 s, so that bins lie 5 Hz apart


class MainsHum(NamedTuple):
    """The mains hum of a recording."""

    loudness: np.ndarray  # [T] dB, A-weighted; minus infinity where there is none
    frequency: np.ndarray  # [T] Hz; NaN where there is none
    level: float | None  # RMS of all of it, dBFS; None if there is none


def remove_mains_hum(audio: np.ndarray | SpooledAudio, config: Config) -> tuple[SpooledAudio, MainsHum]:
    """Take mains hum out of a recording, from one stretch of some minutes after the other."""
    hop_length, n_frames = config.audio.feature_hop_length, len(audio) // config.audio.feature_hop_length
    n_stretches = max(1, round(n_frames / config.audio.seconds_to_frames(config.transfer.mains_stretch_seconds)))
    clean, energy = SpooledAudio(), 0.0
    loudness, frequency = np.full(n_frames, -np.inf), np.full(n_frames, np.nan)
    for frames in block_slices(n_frames, -(-n_frames // n_stretches)):
        part = audio[frames.start * hop_length : frames.stop * hop_length]
        rest, hum = remove_hum_from_stretch(part, config.audio.feature_rate, config.transfer)
        clean.append(rest)
        if hum:
            loudness[frames] = np.median(extract_loudness(hum.audio, config))
            frequency[frames] = hum.frequency
            energy += float(np.sum(hum.audio**2))
    return clean, MainsHum(loudness, frequency, 10 * float(np.log10(energy / len(audio))) if energy else None)


def is_mains_frequency(f0: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return where f0 [T] is the mains frequency or its double, within a quarter of a semitone: bool [T]."""
    return np.any([np.abs(12 * np.log2(f0 / (number * frequency))) < 0.25 for number in (1, 2)], axis=0)


class RemovedHum(NamedTuple):
    frequency: float  # Hz, of the mains: near 50 or 60
    audio: np.ndarray  # [N], what was taken out


def remove_hum_from_stretch(
    audio: np.ndarray, rate: int, settings: TransferConfig
) -> tuple[np.ndarray, RemovedHum | None]:
    """Take steady mains hum out of a recording, so that a pause is a pause and the melody is heard through it.

    Args:
        audio: [N] at ``rate``.

    Returns:
        The audio without the hum, and the hum; None if there is none.
    """
    if len(audio) < 2 * settings.mains_steady_seconds * rate:
        return audio, None
    for nominal in settings.mains_frequencies:
        count = min(settings.mains_harmonics, int(rate / 2 / nominal) - 1)
        lines, between = _measure_lines(audio, rate, nominal, count)
        rest = np.mean(np.abs(between) ** 2, axis=0)
        weight = 1 / (rest / (rest.mean() + _SMALLEST) + 1e-3) ** 2  # of a frame: large in the pauses
        phase = _find_mains_phase(lines, between, weight, settings)
        if phase is not None:
            hum = _synthesize_hum(len(audio), rate, nominal, lines, weight, phase, settings)
            return (audio - hum).astype(np.float32), RemovedHum(nominal, hum)
    return audio, None


def _measure_lines(audio: np.ndarray, rate: int, nominal: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the complex amplitudes of a frequency's first multiples, and of what lies half way: [count, T] each."""
    hop = rate // _LINE_RATE
    size = hop * _LINE_FRAMES
    n_frames = -(-len(audio) // hop)
    starts = np.arange(n_frames)[:, None] * hop - size // 2
    bins = np.round(np.arange(1, 2 * count + 1) * nominal / 2 * size / rate).astype(int)
    padding = (size // 2, size // 2 + hop)
    windows, inside = (
        sliding_window_view(np.pad(values, padding), size)[::hop][:n_frames]
        for values in (audio, np.ones(len(audio), np.float32))
    )
    window = signal.get_window("hann", size)
    spectra = np.empty((n_frames, 2 * count), complex)
    for block in block_slices(n_frames, _BLOCK_FRAMES):
        rotation = np.exp(-2j * np.pi * (bins / size) * starts[block])
        # The first and the last windows are partly empty.
        share = (inside[block] @ window)[:, None]
        spectra[block] = np.fft.rfft(windows[block] * window)[:, bins] / share * rotation
    return spectra[:, 1::2].T, spectra[:, ::2].T


def _find_mains_phase(
    lines: np.ndarray, between: np.ndarray, weight: np.ndarray, settings: TransferConfig
) -> np.ndarray | None:
    """Return the phase [T] by which the mains run off their nominal frequency, or None if they cannot be heard.

    Their first or second harmonic tells: it stands out and holds its level in the pauses, and it keeps its phase.
    """
    pauses = weight >= np.quantile(weight, 1 - settings.mains_line_share)
    for number, line in ((1, lines[0]), (2, lines[1])):
        level = min(np.median(np.abs(line[pauses])), np.quantile(np.abs(line), settings.mains_line_share))
        beside = np.median(np.abs(between[number - 1 : number + 1, pauses]), axis=1).max()
        if level < max(2 * beside, 0.5 * np.median(np.abs(line)), 10 ** (settings.mains_quietest / 20)):
            continue
        directions = line / (np.abs(line) + _SMALLEST)
        turn = np.angle(np.sum(weight[1:] * directions[1:] * directions[:-1].conj()))  # a frame
        drift = turn * np.arange(len(line))
        steady = _steady_component(line * np.exp(-1j * drift), weight, settings.mains_steady_seconds, settings)
        off_frequency = abs(turn) * _LINE_RATE / (2 * np.pi * number)
        if steady is not None and off_frequency < settings.mains_tolerance:
            return (drift + np.unwrap(np.angle(steady))) / number
    return None


def _synthesize_hum(
    n_samples: int,
    rate: int,
    nominal: float,
    lines: np.ndarray,
    weight: np.ndarray,
    phase: np.ndarray,
    settings: TransferConfig,
) -> np.ndarray:
    """Return the hum [N]: every harmonic that follows the phase of the mains."""
    numbers, frames, hum = np.arange(1, len(lines) + 1), np.arange(len(phase)), np.zeros(n_samples)
    unwound = (line * np.exp(-1j * number * phase) for number, line in zip(numbers, lines))
    steady = [_steady_component(line, weight, 4 * settings.mains_steady_seconds, settings) for line in unwound]
    for block in block_slices(n_samples, _BLOCK_SAMPLES):
        samples = np.arange(block.start, block.stop)
        times = samples * (_LINE_RATE / rate)
        rotation = np.exp(1j * (2 * np.pi * nominal / rate * samples + np.interp(times, frames, phase)))
        rotated = np.ones(len(samples), complex)
        for amplitudes in steady:
            rotated *= rotation
            if amplitudes is not None:
                hum[block] += 2 * (np.interp(times, frames, amplitudes) * rotated).real
    return hum


def _steady_component(
    line: np.ndarray, weight: np.ndarray, seconds: float, settings: TransferConfig
) -> np.ndarray | None:
    """Return the slowly moving part of a complex curve [T], blind to what passes over it; None if there is none."""
    width = seconds * _LINE_RATE / 4  # a Gaussian's standard deviation
    trusted = weight
    for _ in range(4):
        total = ndimage.gaussian_filter1d(trusted, width, mode="constant") + _SMALLEST
        steady = ndimage.gaussian_filter1d(trusted * line, width, mode="constant") / total
        deviation = np.abs(line - steady)
        trusted = weight / (deviation**2 + (0.1 * np.abs(steady)) ** 2 + _SMALLEST)
    clean = np.quantile(deviation / (np.abs(steady) + _SMALLEST), settings.mains_line_share)
    return steady if clean < settings.mains_line_deviation else None
