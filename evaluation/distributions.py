"""Distributions of time-varying features that separate an instrument from a bad copy, and distances between them.

Pitch and loudness are inputs of the model, so its output matches both by construction, trained or not. The model has
to learn the attack of a note, its decay, and how brightness depends on level and on the time since the onset. Each is
measured on every note or frame. The distributions of the instrument and of the output are compared by the
Wasserstein-1 distance, in the unit of the feature.

    real = measure_sounds(recordings, 44100)
    distances = compare(real, measure_sounds([output], 48000))  # {"attack": 12.3, ...}

``log_mel_distance`` compares an output with the original recording, frame by frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import librosa
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import fftconvolve, find_peaks
from scipy.stats import wasserstein_distance

BAND = 8000.0  # Hz: upper limit of brightness, so that sounds of all sample rates are comparable
SPLIT = 2000.0  # Hz: brightness is the share of the energy above this frequency
AFTER_ONSET = ((0.0, 0.05), (0.05, 0.15), (0.15, 0.4), (0.4, 1.0))  # s after the peak
UNITS = {
    "attack": "ms",
    "early_decay": "dB/s",
    "late_decay": "dB/s",
    "brightness": "dB",
    "brightness_after_onset": "dB",
}
_STEP = 0.001  # s between envelope values
_ATTACK_WINDOW, _DECAY_WINDOW = 0.01, 0.05  # s: smoothing windows of the envelope
_SILENCE = 0.1  # s of silence padded before a sound
_RISE = 20.0  # dB below the peak, where an attack begins
_LONGEST_ATTACK = 0.25  # s after the onset in which the peak is searched
_EARLY, _LATE = (0.05, 0.5, 0.2), (0.5, 2.0, 0.3)  # s after the peak: start, end, and minimum duration
_DAMPED, _DAMPED_WITHIN = 10.0, 0.05  # dB and s: a faster fall means that the note was damped
_AUDIBLE = -40.0  # dB relative to a sound's loud frames: quieter notes and frames are ignored
_FADED = -50.0  # dB relative to a note's peak: the decay is not measured below this
_DARKEST = -70.0  # dB: lower limit of brightness
_ONSET_STEP, _LAG, _APART = 0.005, 4, 16  # s, frames: rises over 20 ms, onsets at least 80 ms apart
_SOFTEST_BAND, _LEAST_RISE = -45.0, 2.5  # dB: floor of a band relative to the loudest; minimum mean rise of an onset
_LEAST_FALL = 6.0  # dB: minimum level drop at an abrupt end
_FRAME, _FRAME_STEP = 0.032, 0.01  # s: frame length and step of the spectra
_LEVEL_BIN, _PITCH_BIN = 6.0, 6.0  # dB and semitones
_MIN_NOTES, _MIN_FRAMES = 8, 20  # per sound: fewer give no reliable distribution
_MEL_FRAME = 0.064  # s
_MELS_TO_8_KHZ = 80


@dataclass(frozen=True)
class Measures:
    """Features of the notes and frames of sounds; NaN where a note is too short or overlaps the previous one."""

    attack: np.ndarray  # [n] ms from 20 dB below the peak to the peak
    early_decay: np.ndarray  # [n] dB/s, from 0.05 to 0.5 s after the peak; positive when the level falls
    late_decay: np.ndarray  # [n] dB/s, from 0.5 to 2 s
    brightness_after_onset: np.ndarray  # [n, len(AFTER_ONSET)] dB
    brightness: np.ndarray  # [T] dB, share of the energy above SPLIT
    level: np.ndarray  # [T] dB, of the same frames, relative to the sound's loud frames
    pitch: np.ndarray  # [T] MIDI, all 0 if no f0 was given


def measure_sounds(
    sounds: Sequence[np.ndarray],
    sample_rate: int,
    onsets: Sequence[np.ndarray] | None = None,
    f0: Sequence[np.ndarray] | None = None,
) -> Measures:
    """Measure several sounds of one instrument.

    Args:
        sounds: [N] each.
        sample_rate: Hz.
        onsets: [n] s, note onsets of each sound; detected if None.
        f0: [T] Hz of each sound at 100 frames a second, to compare brightness at equal pitch; None ignores pitch.

    Raises:
        ValueError: a sound is silent, not finite, or shorter than 0.1 s.
    """
    onsets, f0 = onsets or [None] * len(sounds), f0 or [None] * len(sounds)
    parts = [_measure_sound(*each, sample_rate) for each in zip(sounds, onsets, f0, strict=True)]
    return Measures(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measures)))


def _measure_sound(audio: np.ndarray, onsets: np.ndarray | None, f0: np.ndarray | None, sample_rate: int) -> Measures:
    audio = _checked(audio, sample_rate)
    onsets = find_onsets(audio, sample_rate) if onsets is None else np.sort(np.asarray(onsets, dtype=float))
    brightness, level = measure_brightness(audio, sample_rate)
    padded = np.pad(audio, (round(_SILENCE * sample_rate), 0))  # so that a note at sample 0 has an attack
    attack_level, decay_level = (
        measure_envelope(padded, sample_rate, window) for window in (_ATTACK_WINDOW, _DECAY_WINDOW)
    )
    loud = np.quantile(level, 0.95)
    notes = [
        _measure_note(attack_level, decay_level, brightness, onset, end, loud + _AUDIBLE)
        for onset, end in zip(onsets, np.append(onsets[1:], len(audio) / sample_rate))
    ]
    rows = np.array([note for note in notes if note is not None]).reshape(-1, 3 + len(AFTER_ONSET))
    sounding = level > loud + _AUDIBLE
    pitch = np.zeros(len(level)) if f0 is None else 12 * np.log2(_fit_length(f0, len(level)) / 440) + 69
    return Measures(*rows[:, :3].T, rows[:, 3:], brightness[sounding], (level - loud)[sounding], pitch[sounding])


def _checked(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    if len(audio) < 0.1 * sample_rate:
        raise ValueError(f"the sound lasts {len(audio) / sample_rate:.3f} s, at least 0.1 s are needed")
    if not np.isfinite(audio).all():
        raise ValueError("the sound has samples that are not finite")
    if not np.any(audio):
        raise ValueError("the sound is silent, so nothing can be measured")
    return np.asarray(audio, dtype=np.float64)


def _fit_length(values: np.ndarray, n_frames: int) -> np.ndarray:
    """Crop a curve to T frames, or pad it with its last value."""
    return np.pad(values[:n_frames], (0, max(0, n_frames - len(values))), mode="edge")


def measure_envelope(audio: np.ndarray, sample_rate: int, window: float = _ATTACK_WINDOW) -> np.ndarray:
    """Return the RMS level [T] in dBFS, 1000 values a second, smoothed by a Hann window of ``window`` seconds."""
    shape = np.hanning(max(3, round(window * sample_rate)) + 2)[1:-1]
    power = fftconvolve(np.asarray(audio, dtype=np.float64) ** 2, shape / shape.sum(), mode="same").clip(0)
    positions = np.arange(0, len(audio) - 1, _STEP * sample_rate)
    return 10 * np.log10(np.maximum(np.interp(positions, np.arange(len(power)), power), 1e-14))


def find_onsets(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return note onsets, [n] s: peaks of the mean rise in level over all mel bands."""
    frames = _power_frames(audio, sample_rate, _FRAME, _ONSET_STEP)
    filters = librosa.filters.mel(sr=sample_rate, n_fft=2 * (frames.shape[1] - 1), n_mels=40, fmin=60, fmax=BAND)
    levels = 10 * np.log10(np.maximum(frames @ filters.T, 1e-20))
    levels = np.pad(
        np.maximum(levels - levels.max(), _SOFTEST_BAND), ((_LAG, 0), (0, 0)), constant_values=_SOFTEST_BAND
    )
    rise = np.maximum(levels[_LAG:] - levels[:-_LAG], 0).mean(axis=1)
    peaks, _ = find_peaks(np.pad(rise, (1, 1)), height=_LEAST_RISE, prominence=_LEAST_RISE / 2, distance=_APART)
    peaks -= 1
    level = 10 * np.log10(np.pad(frames.sum(axis=1), (0, 2 * _LAG), mode="edge") + 1e-12)
    fall = level[np.maximum(peaks - 2 * _LAG, 0)] - level[peaks + _LAG]
    peaks = peaks[(fall < _LEAST_FALL) | (peaks < 2 * _LAG)]  # the click at an abrupt end is not an onset
    return np.maximum(peaks - _LAG / 2, 0) * _ONSET_STEP


def _measure_note(
    attack_level: np.ndarray,
    decay_level: np.ndarray,
    brightness: np.ndarray,
    onset: float,
    end: float,
    audible: float,
) -> list[float] | None:
    """Return attack, both decays and the brightness after the onset; None if the note is too quiet.

    Args:
        attack_level, decay_level: envelopes of the sound, padded with 0.1 s of silence at the start, dB.
        brightness: dB, 100 values a second.
        onset, end: s.
        audible: dB, minimum peak of a note.
    """
    first, last = (round((time + _SILENCE) / _STEP) for time in (onset - 0.03, end))
    searched = attack_level[first : min(last, first + round((0.03 + _LONGEST_ATTACK) / _STEP))]
    if len(searched) == 0 or searched.max() < audible:
        return None
    peak = first + int(np.argmax(searched))
    end_of_decay = _find_end(decay_level, peak, last)
    return [
        _attack_time(attack_level, peak, first - 70),
        _slope(decay_level[peak:end_of_decay], *_EARLY),
        _slope(decay_level[peak:end_of_decay], *_LATE),
        *_brightness_after(brightness, peak * _STEP - _SILENCE, end_of_decay * _STEP - _SILENCE),
    ]


def _attack_time(level: np.ndarray, peak: int, earliest: int) -> float:
    """Return the ms from 20 dB below the peak to the peak; NaN if the sound before it is never that quiet."""
    quiet = np.flatnonzero(level[earliest:peak] < level[peak] - _RISE)
    return 1000 * _STEP * (peak - earliest - quiet[-1]) if len(quiet) else np.nan


def _find_end(level: np.ndarray, peak: int, last: int) -> int:
    """Return the index where a note is damped, has faded out, or is cut off by the next note."""
    last = max(peak + 1, last - 50)  # the smoothing reaches into the next note
    falls, lag = level[peak:last], round(_DAMPED_WITHIN / _STEP)
    damped = np.flatnonzero(falls[:-lag] - falls[lag:] > _DAMPED) if len(falls) > lag else []
    faded = np.flatnonzero(falls < falls[0] + _FADED)
    return peak + min([len(falls), *damped[:1], *faded[:1]])


def _slope(level: np.ndarray, start: float, stop: float, least: float) -> float:
    """Return the fall of a level in dB/s from ``start`` to ``stop`` s; NaN if it is shorter than ``least`` s."""
    part = level[round(start / _STEP) : round(stop / _STEP)]
    if len(part) < least / _STEP:
        return np.nan
    return -float(np.polyfit(np.arange(len(part)) * _STEP, part, 1)[0])


def _brightness_after(brightness: np.ndarray, peak: float, end: float) -> list[float]:
    """Return the mean brightness in each window after the peak; NaN if the note fills less than half of the window."""
    values = []
    for start, stop in AFTER_ONSET:
        part = brightness[round((peak + start) / _FRAME_STEP) : round(min(peak + stop, end) / _FRAME_STEP)]
        values.append(float(np.mean(part)) if len(part) * _FRAME_STEP >= 0.5 * (stop - start) else np.nan)
    return values


def measure_brightness(audio: np.ndarray, sample_rate: int, split: float = SPLIT) -> tuple[np.ndarray, np.ndarray]:
    """Return the energy from ``split`` to 8 kHz relative to that up to 8 kHz, and the level, both [T] in dB."""
    power = _power_frames(audio, sample_rate, _FRAME, _FRAME_STEP)
    frequencies = np.linspace(0, sample_rate / 2, power.shape[1])
    whole = power[:, frequencies <= BAND].sum(axis=1)
    above = power[:, (frequencies > split) & (frequencies <= BAND)].sum(axis=1)
    share = 10 * np.log10(np.maximum(above / np.maximum(whole, 1e-20), 10 ** (_DARKEST / 10)))
    return share, 10 * np.log10(np.maximum(whole, 1e-14))


def _power_frames(audio: np.ndarray, sample_rate: int, window: float, step: float) -> np.ndarray:
    """Return power spectra [T, F], frame t centred on t * step; a full-scale sine sums to about 0.5."""
    n_fft = 2 * round(window * sample_rate / 2)
    shape = np.hanning(n_fft + 2)[1:-1]
    padded = np.pad(np.asarray(audio, dtype=np.float64), n_fft // 2)
    starts = np.round(np.arange(0, len(audio), step * sample_rate)).astype(int)
    frames = sliding_window_view(padded, n_fft)[np.minimum(starts, len(padded) - n_fft)]
    return 2 * np.abs(np.fft.rfft(frames * shape)) ** 2 / (n_fft * (shape**2).sum())


def compare(instrument: Measures, output: Measures) -> dict[str, float | None]:
    """Return the distances between an output's distributions and an instrument's, in UNITS.

    Brightness is compared within bins of equal level, and of equal pitch if both were measured with f0, and averaged
    over the bins. Brightness after the onset is averaged over its windows.

    Returns:
        A dict with the keys of UNITS; None where a sound has fewer than 8 notes, or no bin has 20 frames of both.
    """
    windows = [
        _distance(one, other, _MIN_NOTES)
        for one, other in zip(instrument.brightness_after_onset.T, output.brightness_after_onset.T)
    ]
    return {
        **{
            name: _distance(getattr(instrument, name), getattr(output, name), _MIN_NOTES)
            for name in ("attack", "early_decay", "late_decay")
        },
        "brightness": _compare_bins(instrument, output),
        "brightness_after_onset": _mean([value for value in windows if value is not None]),
    }


def _distance(one: np.ndarray, other: np.ndarray, least: int) -> float | None:
    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    return float(wasserstein_distance(one, other)) if min(len(one), len(other)) >= least else None


def _compare_bins(instrument: Measures, output: Measures) -> float | None:
    """Return the mean distance of brightness within bins, weighted by the output's frames in each bin."""
    bins = [
        np.floor(each.level / _LEVEL_BIN) + 1000 * np.floor(each.pitch / _PITCH_BIN) for each in (instrument, output)
    ]
    distances, weights = [], []
    for one in np.unique(bins[1]):
        inside = [each.brightness[chosen == one] for each, chosen in zip((instrument, output), bins)]
        distance = _distance(*inside, _MIN_FRAMES)
        if distance is not None:
            distances.append(distance)
            weights.append(len(inside[1]))
    return float(np.average(distances, weights=weights)) if distances else None


def high_band_difference(
    outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], sample_rate: int, fmax: Sequence[float]
) -> float | None:
    """Return the absolute difference in energy above 8 kHz between copies and recordings, at equal level.

    The frames of all recordings are grouped by their level up to 8 kHz into 6 dB bins, from the loud frames down to
    40 dB below them. The differences are averaged over the bins, weighted by frames. Energies are floored at 80 dB
    below the loud frames.

    Args:
        outputs: [N] each.
        targets: [N] each, the recordings.
        sample_rate: Hz, of both.
        fmax: Hz, bandwidth of each recording.

    Returns:
        dB, or None if no recording has energy above 8 kHz.
    """
    level, high = [], []
    for output, target, top in zip(outputs, targets, fmax, strict=True):
        if top > 1.1 * BAND:
            n_samples = min(len(output), len(target))
            powers = [_power_frames(audio[:n_samples], sample_rate, _FRAME, _FRAME_STEP) for audio in (output, target)]
            frequencies = np.linspace(0, sample_rate / 2, powers[0].shape[1])
            level.append(10 * np.log10(np.maximum(powers[1][:, frequencies <= BAND].sum(axis=1), 1e-14)))
            high.append([power[:, (frequencies > BAND) & (frequencies <= top)].sum(axis=1) for power in powers])
    if not level:
        return None
    levels, (of_outputs, of_targets) = np.concatenate(level), np.concatenate(high, axis=1)
    loud = np.quantile(levels, 0.95)
    bins = np.floor((levels - loud) / _LEVEL_BIN)
    differences, weights = [], []
    for one in np.unique(bins[levels > loud + _AUDIBLE]):
        inside = bins == one
        if inside.sum() >= _MIN_FRAMES:
            means = [max(each[inside].mean(), 10 ** (loud / 10 - 8)) for each in (of_outputs, of_targets)]
            differences.append(abs(10 * np.log10(means[0] / means[1])))
            weights.append(inside.sum())
    return float(np.average(differences, weights=weights)) if differences else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def log_mel_distance(
    output: np.ndarray, target: np.ndarray, sample_rate: int, floor: float = -80.0, fmax: float | None = None
) -> float:
    """Return the mean absolute difference of mel bands, in dB, between an output and the original recording.

    Args:
        output: [N]; a length difference of up to one frame to the target is ignored.
        target: [N], the original recording.
        sample_rate: Hz, of both.
        floor: dB relative to the target's loudest band; lower levels are clipped to it.
        fmax: Hz, upper limit of the comparison; half the sample rate if None. The bands are as wide as with 80
            bands up to 8 kHz.

    Returns:
        dB, averaged over the bands and over the frames in which the target's loudest band exceeds the floor.

    Raises:
        ValueError: the lengths differ, the target is silent, or ``fmax`` exceeds half the sample rate.
    """
    if abs(len(output) - len(target)) > sample_rate / 100:
        raise ValueError(f"the output has {len(output)} samples, the target {len(target)}; they must be of one length")
    fmax = sample_rate / 2 if fmax is None else fmax
    if fmax > sample_rate / 2:
        raise ValueError(f"fmax is {fmax:g} Hz, but sound of {sample_rate} samples a second ends at half of that")
    n_samples = min(len(output), len(target))
    target = _checked(target[:n_samples], sample_rate)
    n_mels = round(_MELS_TO_8_KHZ * librosa.hz_to_mel(fmax) / librosa.hz_to_mel(8000))
    bands = [_mel_levels(audio, sample_rate, n_mels, fmax) for audio in (output[:n_samples], target)]
    least = bands[1].max() + floor
    compared, wanted = (np.maximum(levels, least) for levels in bands)
    return float(np.abs(compared - wanted)[wanted.max(axis=1) > least].mean())


def _mel_levels(audio: np.ndarray, sample_rate: int, n_mels: int, fmax: float) -> np.ndarray:
    """Return the levels of mel bands, [T, n_mels] in dB."""
    power = _power_frames(audio, sample_rate, _MEL_FRAME, 0.01)
    filters = librosa.filters.mel(sr=sample_rate, n_fft=2 * (power.shape[1] - 1), n_mels=n_mels, fmax=fmax, norm=None)
    return 10 * np.log10(np.maximum(power @ filters.T, 1e-20))
