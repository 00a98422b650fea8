"""Extract the melody of a recording: pitch, loudness and voicing, without mains hum, noise and tracking errors.

Functions take audio [N], also as ``SpooledAudio``, and curves of one value per frame, [T].
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal

from config import Config
from features import Features, bridge_f0, extract_feature_blocks, extract_loudness
from sound.audio_files import SpooledAudio, block_slices
from sound.mains_hum import MAINS_FREQUENCIES, find_mains_lines, notch
from voice.curves import Melody
from voice.note_gate import find_voiced, noise_floor

_BLOCK_SAMPLES = 2**20  # of a recording in memory at once: a minute
_BLOCK_FRAMES = 1000  # frames whose spectra are in memory at once
_SMALLEST = 1e-20
_HIGHEST_WHISTLE = 5200.0  # Hz
_WHISTLE_SHARE = 0.8  # median share of a frame's power in the tone of a whistle, 7 dB over the breath
_TONE_N_FFT = 512  # samples: short, for glides and vibrato
_TOO_HIGH_MARGIN = 1.02  # times CREPE's highest pitch
_TOO_HIGH_SHARE = 0.5  # share of a frame's power in a tone above CREPE's range
TOO_HIGH_REPORTED = 0.05  # share of frames above which an error names such tones as the cause
_HUM_RESIDUE = 25.0  # dB: frames this far below the removed hum may be its residue
_HUM_STRETCH_SECONDS = 120.0  # hum is detected per stretch: it is steady, but may be switched on and off
_MAX_GLIDE = 1.0  # semitones per frame; a faster step is a tracking error
_MAX_LEAP = 3.0  # semitones from the notes around it, beyond which a stretch as short as a gap is an error
_OCTAVE_TOLERANCE = 0.7  # semitones around an octave within which a stretch is an octave error
_MAX_GLITCH_SECONDS = 0.15  # a longer stretch between two jumps is no error
_GLITCH_CONTEXT_SECONDS = 0.25  # on either side of a stretch, with which it is compared
_POLYPHONY_N_FFT = 2048  # samples, to resolve several pitches
_POLYPHONY_MAX_FREQUENCY = 1500.0  # Hz, up to which harmonics are resolved
_POLYPHONY_SHARE = 0.1  # share of the power between the melody's harmonics that indicates another pitch
_POLYPHONY_F0 = (110.0, 750.0)  # Hz: of lower notes harmonics are not resolved, of higher ones too few are in range
_FLATNESS_N_FFT = 4096  # samples
_BACKING_SECONDS = 4.0  # shortest recording in which a single ringing note is distinguished from several notes
_MIN_MEASURED = 16  # frames, 0.64 s; over 20 in 60 mixes of 12 s, up to 14 in fluttered and tremolo notes
_MAX_HARMONIC = 6  # that a tracker takes for the pitch; any melody is near some higher ones
_ONE_NOTE_SHARE = 0.95  # of the sung frames at multiples of one f0: over 0.96 in a low string, up to 0.35 in mixes
# dB re the melody: over -13.5 in 60 mixes with a voice at -6 to +6 dB, under -28 in solo singing
_BACKING_LEVEL = -14.0
_BACKING_STRAYS = 0.01  # over 0.016 in these mixes, under it where the tracker loses a single note that sounds on
_BACKING_FLATNESS = 0.025  # under 0.016 in these mixes; over 0.25 where white or pink noise is added to a voice


class SilentError(ValueError):
    """The recording is silent."""


class NoMelodyError(ValueError):
    """The recording has no melody."""


class MeasuredVoice(NamedTuple):
    """Measurements of a recording, before a gate selects the sung frames; [T] each."""

    features: Features  # of the recording amplified by ``gain``, including whistling
    gain: float  # dB
    can_sound: np.ndarray  # bool, False where the pitch is known not to be a note
    too_high: np.ndarray  # bool, True at a tone above the range of whistling
    strays: np.ndarray  # 0..1, share of the power in other pitches; NaN where not measured
    flatness: np.ndarray  # 0..1, spectral flatness; NaN where not measured
    mains_hum: float | None  # dBFS; None if there is none


def extract_melody(
    audio: np.ndarray | SpooledAudio,
    config: Config,
    device: torch.device | str = "cpu",
    gate_offset: float = 0.0,
    report_progress: Callable[[float], None] | None = None,
) -> tuple[Features, Melody, dict[str, Any]]:
    """Measure a voice and find its melody; see ``measure_voice`` and ``find_melody``."""
    return find_melody(measure_voice(audio, config, device, report_progress), config, gate_offset)


def measure_voice(
    audio: np.ndarray | SpooledAudio,
    config: Config,
    device: torch.device | str = "cpu",
    report_progress: Callable[[float], None] | None = None,
) -> MeasuredVoice:
    """Measure a voice. This takes most of the time of a transfer and does not depend on its options.

    Args:
        audio: [N] at the feature rate, N a multiple of the hop. Memory does not grow with N for a SpooledAudio.
        report_progress: called at intervals with the share done, 0..1; it may raise to cancel.

    Raises:
        SilentError: the recording is silent.
    """
    audio, mains_hum = remove_mains_hum(audio, config)
    gain = _find_input_gain(audio, config.transfer.max_loudness_gain)
    parts = extract_feature_blocks(_amplified_blocks(audio, 10 ** (gain / 20), config, report_progress), config, device)
    f0, loudness, periodicity = (torch.cat(values).numpy() for values in zip(*parts))
    if loudness.max() <= config.features.loudness_floor:
        raise SilentError("the recording is silent")
    whistle, too_high = trace_whistling(audio, config)
    is_whistled = whistle > 0
    f0, periodicity = np.where(is_whistled, whistle, f0), np.where(is_whistled, np.float32(1), periodicity)
    # The notch filters leave a residue of the hum, and CREPE finds a pitch in it at any level.
    is_hum = loudness - gain <= mains_hum.loudness - _HUM_RESIDUE
    is_hum |= is_mains_frequency(f0, mains_hum.frequency)
    strays = measure_strays(audio, f0, periodicity > config.transfer.sustained_periodicity, config)
    flatness = measure_flatness(audio, len(f0), config)
    features = Features(*(torch.from_numpy(values) for values in (f0, loudness, periodicity)))
    return MeasuredVoice(features, gain, ~(too_high | is_hum), too_high, strays, flatness, mains_hum.level)


def find_melody(
    measured: MeasuredVoice, config: Config, gate_offset: float = 0.0
) -> tuple[Features, Melody, dict[str, Any]]:
    """Find the melody in a measured voice.

    Args:
        measured: from ``measure_voice``.
        gate_offset: dB added to the gate's threshold.

    Returns:
        The features, the melody, and entries of the report.

    Raises:
        NoMelodyError: there is nothing to play.
    """
    f0, loudness, periodicity = (values.numpy() for values in measured.features)
    gain = measured.gain
    voiced = find_voiced(loudness, periodicity, measured.can_sound, config, gate_offset)
    if not voiced.any():
        is_gated = gate_offset > 0 and find_voiced(loudness, periodicity, measured.can_sound, config).any()
        raise NoMelodyError(_explain_no_melody(measured.too_high, is_gated))
    f0, usable = repair_f0(f0, voiced, config)
    noise = noise_floor(loudness, periodicity >= config.transfer.sustained_periodicity, config)
    melody = Melody(bridge_f0(f0, usable), _subtract_noise(loudness, noise) - gain, periodicity, voiced)
    is_long = len(f0) >= _BACKING_SECONDS * config.audio.frame_rate
    report = {
        "share_too_high": float(measured.too_high.mean()),
        "share_polyphonic": estimate_polyphony(measured.strays, voiced) if is_long else 0.0,
        "has_backing": is_long and has_backing(f0, loudness, measured.flatness, measured.strays, voiced),
        "mains_hum": measured.mains_hum,
    }
    return measured.features._replace(loudness=measured.features.loudness - gain), melody, report


def _amplified_blocks(
    audio: SpooledAudio, gain: float, config: Config, report_progress: Callable[[float], None] | None
) -> Iterator[np.ndarray]:
    """Yield a recording in blocks, multiplied by ``gain``."""
    for part in block_slices(len(audio), _BLOCK_SAMPLES):
        if report_progress and part.start:
            report_progress(part.start / len(audio))
        yield audio[part] * gain


def _find_input_gain(audio: SpooledAudio, most: float) -> float:
    """Return the gain in dB, up to ``most``, that raises a quiet recording to full scale, above the loudness floor."""
    peak = max((float(np.abs(audio[part]).max()) for part in block_slices(len(audio), _BLOCK_SAMPLES)), default=0.0)
    return float(np.clip(-20 * np.log10(peak), 0.0, most)) if peak > 0 else 0.0


def _subtract_noise(loudness: np.ndarray, noise: float) -> np.ndarray:
    """Subtract the noise power from loudness [T], both in dB, by at most 10 dB: beyond that it is uncertain."""
    share = 1 - 10 ** ((noise - loudness) / 10)
    return loudness + 10 * np.log10(np.clip(share, 0.1, 1.0))


def _explain_no_melody(too_high: np.ndarray, is_gated: bool) -> str:
    if is_gated:
        return "the gate silences all of it: no melody is left; lower gate_offset"
    if too_high.mean() > TOO_HIGH_REPORTED:
        return f"the melody is above {_HIGHEST_WHISTLE:.0f} Hz, the highest pitch supported; sing or whistle lower"
    return "no melody found in the recording; sing or hum closer to the microphone"


# --- mains hum ------------------------------------------------------------------------------------


class MainsHum(NamedTuple):
    """The mains hum of a recording."""

    loudness: np.ndarray  # [T] dB, A-weighted; minus infinity where there is none
    frequency: np.ndarray  # [T] Hz; NaN where there is none
    level: float | None  # RMS of all of it, dBFS; None if there is none


def remove_mains_hum(audio: np.ndarray | SpooledAudio, config: Config) -> tuple[SpooledAudio, MainsHum]:
    """Remove mains hum from a recording, in stretches of about ``_HUM_STRETCH_SECONDS``.

    The notch filters also remove the voice at those frequencies, which matters little: only its pitch and loudness are
    used.
    """
    hop_length, n_frames = config.audio.feature_hop_length, len(audio) // config.audio.feature_hop_length
    n_stretches = max(1, round(n_frames / config.audio.seconds_to_frames(_HUM_STRETCH_SECONDS)))
    clean, energy = SpooledAudio(), 0.0
    loudness, frequency = np.full(n_frames, -np.inf), np.full(n_frames, np.nan)
    for frames in block_slices(n_frames, -(-n_frames // n_stretches)):
        part = audio[frames.start * hop_length : frames.stop * hop_length]
        lines = find_mains_lines(part, config.audio.feature_rate)
        rest = notch(part, config.audio.feature_rate, lines) if len(lines) else part
        clean.append(rest)
        if len(lines):
            loudness[frames] = np.median(extract_loudness(part - rest, config))
            frequency[frames] = min(MAINS_FREQUENCIES, key=lambda nominal: abs(nominal - lines[0]))
            energy += float(np.sum((part - rest) ** 2, dtype=np.float64))
    return clean, MainsHum(loudness, frequency, 10 * float(np.log10(energy / len(audio))) if energy else None)


def is_mains_frequency(f0: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return True where f0 [T] is within a quarter of a semitone of the mains frequency or twice that: bool [T]."""
    return np.any([np.abs(12 * np.log2(f0 / (number * frequency))) < 0.25 for number in (1, 2)], axis=0)


# --- whistling ------------------------------------------------------------------------------------


def trace_whistling(audio: np.ndarray | SpooledAudio, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Track whistling above CREPE's range, where CREPE would report a lower pitch with high confidence.

    A whistle is a single tone, so the peak of the spectrum gives its pitch. A glide that reaches above CREPE's range is
    tracked as a whole; one that stays below is left to CREPE.

    Returns:
        f0 [T] Hz, 0 where there is no such whistle; and bool [T], where a tone is higher than any whistle.
    """
    f0, share = _trace_tone(audio, config)
    is_tone, whistle = share > _TOO_HIGH_SHARE, np.zeros_like(f0)
    for stretch in _find_stretches(12 * np.log2(f0), is_tone, 2 * _MAX_GLIDE):  # whistles glide faster than voices
        if f0[stretch].max() > config.features.f0_max / _TOO_HIGH_MARGIN:
            is_pure = np.median(share[stretch]) > _WHISTLE_SHARE
            whistle[stretch] = np.where(is_pure & (f0[stretch] <= _HIGHEST_WHISTLE), f0[stretch], 0)
    return whistle, is_tone & (f0 > config.features.f0_max * _TOO_HIGH_MARGIN) & (whistle == 0)


def _trace_tone(audio: np.ndarray | SpooledAudio, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequency [T] of the highest peak of each frame's spectrum, and its share [T] of the frame's power."""
    rate, n_fft = config.audio.feature_rate, _TONE_N_FFT
    f0, shares = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for _, power in _power_spectra(audio, np.arange(len(audio) // config.audio.feature_hop_length), n_fft, config):
        peak = np.clip(power.argmax(axis=1), 1, n_fft // 2 - 1)[:, None]
        around = np.clip(peak + np.arange(-3, 4), 0, n_fft // 2)
        shares.append(np.take_along_axis(power, around, axis=1).sum(axis=1) / (power.sum(axis=1) + _SMALLEST))
        left, top, right = np.log(np.take_along_axis(power, peak + np.arange(-1, 2), axis=1) + _SMALLEST).T
        bend = np.minimum(left - 2 * top + right, -_SMALLEST)
        # The vertex of the parabola through the three bins.
        f0.append((peak[:, 0] + np.clip((left - right) / (2 * bend), -0.5, 0.5)) * rate / n_fft)
    return np.concatenate(f0).astype(np.float32), np.concatenate(shares)


# --- errors of the pitch tracker -------------------------------------------------------------------


def repair_f0(f0: np.ndarray, voiced: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Fix tracking errors: shift short octave errors back, and mark spikes as unusable.

    A voice moves less than ``_MAX_GLIDE`` semitones per frame, so a larger step is a tracking error. Such steps
    divide f0 into stretches; each short one is compared with the longer ones around it.

    Args:
        f0: [T] Hz.
        voiced: bool [T].

    Returns:
        f0 [T], and bool [T]: the voiced frames with a usable f0; the others should be interpolated.
    """
    settings, audio = config.transfer, config.audio
    pitch, usable = 12 * np.log2(f0), voiced.copy()
    longest, spike = (audio.seconds_to_frames(s) for s in (_MAX_GLITCH_SECONDS, settings.max_gap_seconds))
    reach = audio.seconds_to_frames(_GLITCH_CONTEXT_SECONDS)
    stretches = _find_stretches(pitch, voiced, _MAX_GLIDE)
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
        if octaves and abs(off - octaves) <= _OCTAVE_TOLERANCE:
            pitch[stretch] -= octaves
        elif abs(off) > _MAX_LEAP and stretch.stop - stretch.start <= spike:
            usable[stretch] = False
    return (2 ** (pitch / 12)).astype(np.float32), usable


def _find_stretches(pitch: np.ndarray, voiced: np.ndarray, max_glide: float) -> list[slice]:
    """Return the runs of voiced frames between steps of more than ``max_glide`` semitones."""
    steps = np.abs(np.diff(pitch, prepend=pitch[:1])) > max_glide
    begins = voiced & (steps | ~np.concatenate([[False], voiced[:-1]]))
    found = ndimage.find_objects(np.where(voiced, np.cumsum(begins), 0))
    return [where for (where,) in found]


# --- several pitches at once -----------------------------------------------------------------------


def measure_strays(audio: np.ndarray | SpooledAudio, f0: np.ndarray, sung: np.ndarray, config: Config) -> np.ndarray:
    """Measure the share [T] of the power that is tonal and lies between the harmonics of f0 [T]: another pitch's.

    Measured in some of the sung frames [T] where f0 holds still, and against the octave below it too, which a tracker
    may have missed. 0 where f0 is too low or too high to measure; NaN elsewhere.
    """
    low, high = _POLYPHONY_F0
    steady = sung & (ndimage.maximum_filter1d(f0, 13) < 2 ** (1 / 24) * ndimage.minimum_filter1d(f0, 13))
    frames = np.flatnonzero(ndimage.binary_erosion(steady, iterations=3))[::4]
    hertz = np.fft.rfftfreq(_POLYPHONY_N_FFT, 1 / config.audio.feature_rate)
    band = (hertz > 70) & (hertz < _POLYPHONY_MAX_FREQUENCY)
    hertz, share = hertz[band], np.full(len(f0), np.nan, np.float32)
    share[frames] = 0.0
    frames = frames[(f0[frames] > low) & (f0[frames] < high)]
    for here, spectra in _power_spectra(audio, frames, _POLYPHONY_N_FFT, config):
        power = spectra[:, band]
        strays = np.min([_inharmonic_power(power, hertz, f0[here, None] / divisor) for divisor in (1, 2)], axis=0)
        share[here] = strays / (power.sum(axis=1) + _SMALLEST)
    return share


def estimate_polyphony(strays: np.ndarray, voiced: np.ndarray) -> float:
    """Return the share of the sung frames in which other pitches sound too, as in chords; 0 for one voice.

    Args:
        strays: [T], from ``measure_strays``.
        voiced: bool [T].
    """
    measured = strays[voiced & ~np.isnan(strays)]
    return float(np.mean(measured > _POLYPHONY_SHARE)) if len(measured) else 0.0


def measure_flatness(audio: np.ndarray | SpooledAudio, n_frames: int, config: Config) -> np.ndarray:
    """Measure the spectral flatness [T] of some frames: near 0 for tones, over 0.5 for white noise; NaN elsewhere."""
    hertz = np.fft.rfftfreq(_FLATNESS_N_FFT, 1 / config.audio.feature_rate)
    band, flatness = (hertz > 60) & (hertz < 7000), np.full(n_frames, np.nan, np.float32)
    for here, spectra in _power_spectra(audio, np.arange(0, n_frames, 4), _FLATNESS_N_FFT, config):
        power = spectra[:, band] + _SMALLEST
        flatness[here] = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    return flatness


def has_backing(
    f0: np.ndarray, loudness: np.ndarray, flatness: np.ndarray, strays: np.ndarray, voiced: np.ndarray
) -> bool:
    """Return True if a band seems to play along: the pauses of the melody are loud and tonal.

    Between the notes of an unaccompanied voice, only breath, room and noise remain, which are softer or noise-like. A
    single note that rings has no pauses, but the tracker may lose it, or take one of its harmonics for it.

    Args:
        f0: Hz [T].
        loudness: dB [T].
        flatness: [T], from ``measure_flatness``.
        strays: [T], from ``measure_strays``.
        voiced: bool [T].
    """
    first, last = np.flatnonzero(voiced)[[0, -1]]  # what is outside may be one long note that rings on
    rests = np.flatnonzero(~voiced[first:last]) + first
    measured = rests[~np.isnan(flatness[rests])]
    among = strays[voiced & ~np.isnan(strays)]
    number = f0[voiced] / np.quantile(f0[voiced], 0.05)  # of the harmonic, if the lowest note is the only one
    whole = np.clip(np.round(number), 1, _MAX_HARMONIC)
    is_one = np.mean(np.abs(12 * np.log2(number / whole)) < 0.5) > _ONE_NOTE_SHARE
    if is_one or min(len(measured), len(among)) < _MIN_MEASURED or among.mean() < _BACKING_STRAYS:
        return False
    level = np.median(loudness[rests]) - np.median(loudness[voiced])
    return bool(level > _BACKING_LEVEL and np.median(flatness[measured]) < _BACKING_FLATNESS)


def _inharmonic_power(power: np.ndarray, hertz: np.ndarray, f0: np.ndarray) -> np.ndarray:
    """Return the tonal power [n] between the harmonics of f0 [n, 1] in power spectra [n, F]."""
    away = np.abs(hertz - f0 * np.maximum(1, np.round(hertz / f0)))
    between = away > 3 * (hertz[1] - hertz[0]) + 0.015 * hertz
    noise = np.ma.median(np.ma.array(power, mask=~between), axis=1).filled(0.0)[:, None]
    return np.where(between & (power > 16 * noise), power, 0.0).sum(axis=1)


def _power_spectra(
    audio: np.ndarray | SpooledAudio, frames: np.ndarray, n_fft: int, config: Config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of the increasing ``frames`` [n], with the power spectrum [n, n_fft / 2 + 1] centred on each."""
    hop_length, reach = config.audio.feature_hop_length, n_fft // 2
    window = signal.get_window("hann", n_fft).astype(np.float32)
    cuts = range(_BLOCK_FRAMES, frames.max(initial=0) + 1, _BLOCK_FRAMES)
    for here in np.split(frames, np.searchsorted(frames, cuts)):
        if len(here):
            first, end = here[0] * hop_length - reach, here[-1] * hop_length + reach
            padding = (max(0, -first), max(0, end - len(audio)))
            windows = sliding_window_view(np.pad(audio[max(0, first) : end], padding), n_fft)
            yield here, np.abs(np.fft.rfft(windows[(here - here[0]) * hop_length] * window)) ** 2
