"""What is sung in a recording: its steady mains hum taken out, where there are notes, and their pitch mended.

Everything here works on arrays: audio [N], which may be a ``Scratch``, and curves of one value a frame, [T].
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal

from audio_files import Scratch, slices
from config import Config, TransferConfig

_SMALLEST = 1e-20
_BLOCK_FRAMES = 1000  # looked at in one go, and
_BLOCK_SAMPLES = 2**18  # as many, so that the memory stays small


# --- mains hum ------------------------------------------------------------------------------------


class Hum(NamedTuple):
    frequency: float  # Hz, of the mains: near 50 or 60
    audio: np.ndarray  # [N], what was taken out

    @property
    def level(self) -> float:
        """RMS, dBFS."""
        return 10 * float(np.log10(np.mean(self.audio**2) + _SMALLEST))


def remove_mains_hum(audio: np.ndarray, rate: int, settings: TransferConfig) -> tuple[np.ndarray, Hum | None]:
    """Take steady mains hum out of a recording, so that a pause is a pause and the melody is heard through it.

    Mains hum is what stays when all else changes: one waveform, repeated 50 or 60 times a second through
    the whole recording, in the pauses as well. No voice keeps its phase like that.

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
            hum = _rebuild_hum(len(audio), rate, nominal, lines, weight, phase, settings)
            return (audio - hum).astype(np.float32), Hum(nominal, hum)
    return audio, None


_LINE_RATE = 50  # values a second of a line's curve
_LINE_FRAMES = 10  # of them in the window that measures each: 0.2 s, so that bins lie 5 Hz apart


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
    for block in slices(n_frames, _BLOCK_FRAMES // 2):
        turning = np.exp(-2j * np.pi * (bins / size) * starts[block])
        # The first and the last windows are partly empty.
        share = (inside[block] @ window)[:, None]
        spectra[block] = np.fft.rfft(windows[block] * window)[:, bins] / share * turning
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
        steady = _steady_part(line * np.exp(-1j * drift), weight, settings.mains_steady_seconds, settings)
        off_frequency = abs(turn) * _LINE_RATE / (2 * np.pi * number)
        if steady is not None and off_frequency < settings.mains_tolerance:
            return (drift + np.unwrap(np.angle(steady))) / number
    return None


def _rebuild_hum(
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
    steady = [_steady_part(line, weight, 4 * settings.mains_steady_seconds, settings) for line in unwound]
    for block in slices(n_samples, _BLOCK_SAMPLES):
        samples = np.arange(block.start, block.stop)
        times = samples * (_LINE_RATE / rate)
        turning = np.exp(1j * (2 * np.pi * nominal / rate * samples + np.interp(times, frames, phase)))
        turned = np.ones(len(samples), complex)
        for amplitudes in steady:
            turned *= turning
            if amplitudes is not None:
                hum[block] += 2 * (np.interp(times, frames, amplitudes) * turned).real
    return hum


def _steady_part(
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


# --- where there are notes ------------------------------------------------------------------------


def find_voiced(
    loudness: np.ndarray, periodicity: np.ndarray, can_sound: np.ndarray, config: Config, gate_offset: float = 0.0
) -> np.ndarray:
    """Decide which frames are sung.

    A note begins where the pitch is sure and goes on while it is likely; it must stand out of the
    recording's own noise floor, at its end less than at its beginning. Clicks are dropped, short gaps closed.

    Args:
        loudness: [T] dB.
        periodicity: [T] 0..1.
        can_sound: bool [T], false where the pitch is known not to be a note.
        gate_offset: dB on the threshold.

    Returns:
        bool [T].
    """
    settings = config.transfer
    pitched = _hysteresis(periodicity, settings.voiced_periodicity, settings.sustained_periodicity) & can_sound
    noise = noise_floor(loudness, pitched, config)
    peak = float(np.quantile(loudness, settings.peak_quantile))
    threshold = max(noise + settings.gate_above_noise, peak - settings.gate_below_peak)
    # However noisy, what is loud is played: a hum over a fan is still a melody.
    threshold = min(threshold, peak - settings.never_gated) + gate_offset
    loud = _hysteresis(loudness, threshold, threshold - settings.gate_hysteresis)
    return _clean_runs(pitched & loud, settings, config.audio.frame_rate)


def noise_floor(loudness: np.ndarray, pitched: np.ndarray, config: Config) -> float:
    """Return the level of the recording's own noise in dB, from the frames without a pitch."""
    unpitched = loudness[~pitched]
    if len(unpitched) == 0:
        return config.features.loudness_floor
    return float(np.quantile(unpitched, config.transfer.noise_quantile))


def _hysteresis(values: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Return bool [T]: runs over ``end`` that somewhere exceed ``begin``."""
    runs, count = ndimage.label(values > end)
    strong = np.unique(runs[values > begin])
    return np.isin(runs, strong[strong > 0]) if count else np.zeros(len(values), dtype=bool)


def _clean_runs(voiced: np.ndarray, settings: TransferConfig, frame_rate: float) -> np.ndarray:
    """Close gaps and drop notes that are too short to be meant: bool [T]."""
    closed = ~_drop_short(~voiced, round(settings.max_gap_seconds * frame_rate), keep_ends=True)
    return _drop_short(closed, round(settings.min_voiced_seconds * frame_rate))


def _drop_short(mask: np.ndarray, n_frames: int, keep_ends: bool = False) -> np.ndarray:
    """Clear runs of true of at most ``n_frames``; ``keep_ends`` spares runs at either end of the recording."""
    runs, count = ndimage.label(mask)
    lengths = np.bincount(runs, minlength=count + 1)
    short = lengths <= n_frames
    if keep_ends:
        short[[runs[0], runs[-1]]] = False
    return mask & ~short[runs]


def find_too_high(audio: np.ndarray | Scratch, config: Config) -> np.ndarray:
    """Find frames that are one tone above CREPE's range, as high whistling is: bool [T].

    CREPE would answer with some lower pitch, sure of itself.
    """
    settings, rate, n_fft = config.transfer, config.audio.feature_rate, config.transfer.too_high_n_fft
    lowest = config.features.f0_max * settings.too_high_margin
    too_high = [np.empty(0, bool)]
    for _, power in _power_spectra(audio, np.arange(len(audio) // config.audio.feature_hop_length), n_fft, config):
        peak = power.argmax(axis=1)
        around = np.clip(peak[:, None] + np.arange(-3, 4), 0, n_fft // 2)
        share = np.take_along_axis(power, around, axis=1).sum(axis=1) / (power.sum(axis=1) + _SMALLEST)
        too_high.append((peak * rate / n_fft > lowest) & (share > settings.too_high_share))
    return np.concatenate(too_high)


def _power_spectra(
    audio: np.ndarray | Scratch, frames: np.ndarray, n_fft: int, config: Config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of the rising frames, [n], and the power [n, n_fft / 2 + 1] under a Hann window centred on each."""
    hop_length, reach = config.audio.feature_hop_length, n_fft // 2
    window = signal.get_window("hann", n_fft).astype(np.float32)
    cuts = range(_BLOCK_FRAMES, frames.max(initial=0) + 1, _BLOCK_FRAMES)
    for here in np.split(frames, np.searchsorted(frames, cuts)):
        if len(here):
            first, end = here[0] * hop_length - reach, here[-1] * hop_length + reach
            padding = (max(0, -first), max(0, end - len(audio)))
            windows = sliding_window_view(np.pad(audio[max(0, first) : end], padding), n_fft)
            yield here, np.abs(np.fft.rfft(windows[(here - here[0]) * hop_length] * window)) ** 2


# --- the pitch of the notes -----------------------------------------------------------------------


def mend_f0(f0: np.ndarray, voiced: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Mend what a pitch tracker gets wrong: a short stretch an octave off is moved back, a spike is left out.

    No voice moves by ``max_glide`` semitones in a frame, so a faster step is the tracker's. Between two
    such steps lies a stretch; a short one is compared with the longer ones around it.

    Args:
        f0: [T] Hz.
        voiced: bool [T].

    Returns:
        f0 [T], and bool [T]: the voiced frames whose f0 can be used; the others are to be bridged.
    """
    settings, audio = config.transfer, config.audio
    pitch, usable = 12 * np.log2(f0), voiced.copy()
    longest, spike = (audio.seconds_to_frames(s) for s in (settings.max_glitch_seconds, settings.max_gap_seconds))
    reach = audio.seconds_to_frames(settings.glitch_context_seconds)
    stretches = _find_stretches(pitch, voiced, settings.max_glide)
    is_sure = np.zeros(len(f0), dtype=bool)
    for stretch in stretches:
        is_sure[stretch] = stretch.stop - stretch.start > longest
    for stretch in stretches:
        around = slice(max(0, stretch.start - reach), stretch.stop + reach)
        context = pitch[around][is_sure[around]]
        if is_sure[stretch.start] or len(context) == 0:
            continue
        off = np.median(pitch[stretch]) - np.median(context)
        octaves = 12 * np.round(off / 12)
        if octaves and abs(off - octaves) <= settings.octave_tolerance:
            pitch[stretch] -= octaves
        elif abs(off) > settings.max_leap and stretch.stop - stretch.start <= spike:
            usable[stretch] = False
    return (2 ** (pitch / 12)).astype(np.float32), usable


def _find_stretches(pitch: np.ndarray, voiced: np.ndarray, max_glide: float) -> list[slice]:
    """Return the runs of voiced frames between steps of more than ``max_glide`` semitones."""
    steps = np.abs(np.diff(pitch, prepend=pitch[:1])) > max_glide
    begins = voiced & (steps | ~np.concatenate([[False], voiced[:-1]]))
    found = ndimage.find_objects(np.where(voiced, np.cumsum(begins), 0))
    return [where for (where,) in found]


# --- several pitches at once ----------------------------------------------------------------------


def share_polyphonic(audio: np.ndarray | Scratch, f0: np.ndarray, voiced: np.ndarray, config: Config) -> float:
    """Estimate the share of the sung frames in which other pitches sound too: a chord, a backing track.

    Measured where f0 holds still: what is tonal and lies between the harmonics of f0 (and of the
    octave below it, which a tracker may have missed) is another pitch. 0 for one voice.
    """
    settings = config.transfer
    steady = voiced & (ndimage.maximum_filter1d(f0, 13) < 2 ** (1 / 24) * ndimage.minimum_filter1d(f0, 13))
    frames = np.flatnonzero(ndimage.binary_erosion(steady, iterations=3))[::4]
    hertz = np.fft.rfftfreq(settings.polyphony_n_fft, 1 / config.audio.feature_rate)
    band = (hertz > 70) & (hertz < settings.polyphony_max_frequency)
    hertz, n_found = hertz[band], 0
    for here, spectra in _power_spectra(audio, frames, settings.polyphony_n_fft, config):
        power = spectra[:, band]
        strays = np.min([_stray_power(power, hertz, f0[here, None] / divisor) for divisor in (1, 2)], axis=0)
        n_found += np.count_nonzero(strays > settings.polyphony_share * power.sum(axis=1))
    return float(n_found / max(1, len(frames)))


def _stray_power(power: np.ndarray, hertz: np.ndarray, f0: np.ndarray) -> np.ndarray:
    """Return the tonal power [n] of spectra [n, F] that lies between the harmonics of f0 [n, 1]."""
    away = np.abs(hertz - f0 * np.maximum(1, np.round(hertz / f0)))
    between = away > 3 * (hertz[1] - hertz[0]) + 0.015 * hertz
    noise = np.ma.median(np.ma.array(power, mask=~between), axis=1).filled(0.0)[:, None]
    return np.where(between & (power > 16 * noise), power, 0.0).sum(axis=1)
