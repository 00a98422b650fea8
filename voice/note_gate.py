"""What is sung in a recording: where there are notes, and their pitch mended.

Everything here works on arrays: audio [N], which may be a ``Scratch``, and curves of one value a frame, [T].
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal

from config import Config, TransferConfig
from sound.audio_files import Scratch

_SMALLEST = 1e-20
_BLOCK_FRAMES = 1000  # looked at in one go, so that the memory stays small


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


def find_above_crepe_range(audio: np.ndarray | Scratch, config: Config) -> np.ndarray:
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


def repair_f0(f0: np.ndarray, voiced: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
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


def estimate_polyphony(audio: np.ndarray | Scratch, f0: np.ndarray, voiced: np.ndarray, config: Config) -> float:
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
        strays = np.min([_inharmonic_power(power, hertz, f0[here, None] / divisor) for divisor in (1, 2)], axis=0)
        n_found += np.count_nonzero(strays > settings.polyphony_share * power.sum(axis=1))
    return float(n_found / max(1, len(frames)))


def _inharmonic_power(power: np.ndarray, hertz: np.ndarray, f0: np.ndarray) -> np.ndarray:
    """Return the tonal power [n] of spectra [n, F] that lies between the harmonics of f0 [n, 1]."""
    away = np.abs(hertz - f0 * np.maximum(1, np.round(hertz / f0)))
    between = away > 3 * (hertz[1] - hertz[0]) + 0.015 * hertz
    noise = np.ma.median(np.ma.array(power, mask=~between), axis=1).filled(0.0)[:, None]
    return np.where(between & (power > 16 * noise), power, 0.0).sum(axis=1)
