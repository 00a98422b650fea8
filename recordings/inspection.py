"""Measure defects and coverage of processed recordings, and judge the set for ``inspect_dataset.py``.

All measurements use only the processed file: its 16 kHz sound and its curves. At most a few hundred windows are taken,
evenly over the recording, so that a long one costs no more than a short one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, signal

from config import Config, InstrumentConfig
from data import Recording
from sound.crepe import hz_to_midi, midi_to_hz, note_name
from sound.mains_hum import find_mains_lines

PITCHES = range(21, 109)  # MIDI, rows of the heat map
LEVELS = range(-80, 4, 4)  # dB, lower edges of its columns
_N_FFT = 4096
_MAX_WINDOWS = 300
_FINGERPRINT = 64  # points
_FULL_SCALE = 0.97  # amplitude that a clipped sound reaches many times
_MIN_VOICED_SHARE = 0.3  # of all time; with less, most crops contain no note
_MIN_IN_RANGE = 0.95  # share of the voiced frames inside the instrument's range
_MAX_FULL_SCALE_PEAKS = 4.0  # per second; a clean take at full level has one occasionally, a clipped one hundreds
_SILENCE_LEVEL = -60.0  # dB; a take that never exceeds it is silent
_HUM_SECONDS = 120  # of a take are searched for hum, which is continuous
BLEED_LEVEL = 34.0  # dB below the take's loud frames; pitched sound that starts below it is bleed, not a soft note
BLEED_SHARE = 0.06  # maximum share of time with bleed next to loud frames; 3 of 240 clean takes have 0.03 to 0.05
_MAX_BAND_DROP = 35.0  # dB from 3-3.7 to 4.2-5 kHz; instruments lose up to 20, a telephone filter 60
_MAX_OCTAVE_ERRORS = 0.02  # share of the annotated frames


@dataclass(frozen=True)
class RecordingMeasurement:
    """Measurements of one recording."""

    name: str
    sha256: str
    instrument: str
    seconds: float
    voiced_seconds: float
    voiced_f0: np.ndarray  # [V] Hz
    voiced_loudness: np.ndarray  # [V] dB
    loudest: float  # dB
    polyphony: float  # share of the loud frames with more than one pitch
    full_scale_peaks: float  # per second
    hum: int  # mains frequency in Hz; 0: none
    bleed: float  # share of the time with pitched sound far below the take's level
    ringing_seconds: float  # decay time for 60 dB; NaN if no decay can be measured
    band_drop: float  # dB from 3-3.7 to 4.2-5 kHz
    fingerprint: np.ndarray  # [2, 64] loudness in dB relative to the peak, and pitch in semitones


def measure_for_inspection(path: Path, recording: Recording, config: Config) -> RecordingMeasurement:
    """Measure one processed recording."""
    f0, loudness, periodicity = (
        getattr(recording, name)[0, :, 0].numpy() for name in ("f0", "loudness", "periodicity")
    )
    audio = recording.audio[0].numpy()
    rate = recording.extractor["audio"]["sample_rate"]
    voiced = (periodicity >= config.features.periodicity_threshold) & (loudness > config.features.loudness_floor)
    frame_seconds = len(audio) / rate / len(f0)
    return RecordingMeasurement(
        name=path.name.removesuffix(".pt"),
        sha256=recording.source["sha256"],
        instrument=recording.instrument,
        seconds=len(audio) / rate,
        voiced_seconds=float(voiced.sum()) * frame_seconds,
        voiced_f0=f0[voiced],
        voiced_loudness=loudness[voiced],
        loudest=float(loudness.max()),
        polyphony=measure_polyphony(audio, rate, f0, loudness),
        full_scale_peaks=count_full_scale_peaks(audio) / (len(audio) / rate),
        hum=find_mains_hum(audio, rate),
        bleed=measure_bleed(loudness, voiced, BLEED_LEVEL),
        ringing_seconds=measure_ringing(loudness, frame_seconds),
        band_drop=measure_band_drop(audio, rate, loudness),
        fingerprint=take_fingerprint(f0, loudness, voiced),
    )


def count_notes(recordings: list[RecordingMeasurement]) -> np.ndarray:
    """Return the number of voiced frames by pitch and level: [len(PITCHES), len(LEVELS)]."""
    pitch = np.concatenate([hz_to_midi(each.voiced_f0) for each in recordings])
    loudness = np.concatenate([each.voiced_loudness for each in recordings])
    edges = (np.arange(PITCHES.start, PITCHES.stop + 1) - 0.5, np.arange(LEVELS.start, LEVELS.stop + 1, LEVELS.step))
    return np.histogram2d(pitch, loudness, edges)[0]


# --- windows --------------------------------------------------------------------------------------


def _choose_frames(loudness: np.ndarray, below_peak: float, n_samples: int, n_audio: int) -> np.ndarray:
    """Return loud frames, evenly spaced, whose window of ``n_samples`` lies inside the sound."""
    centres = np.arange(len(loudness)) * (n_audio / len(loudness))
    inside = (centres >= n_samples // 2) & (centres <= n_audio - n_samples // 2)
    frames = np.flatnonzero(inside & (loudness > max(loudness.max() - below_peak, -70.0)))
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), _MAX_WINDOWS)).astype(int)]


def _windows(audio: np.ndarray, frames: np.ndarray, hop_length: float, n_samples: int) -> np.ndarray:
    """Return windows centred on frames: [M, n_samples]."""
    starts = (frames * hop_length).astype(int) - n_samples // 2
    return audio[starts[:, None] + np.arange(n_samples)]


def _spectra(windows: np.ndarray) -> np.ndarray:
    """Return power spectra [M, F] with a Hann window."""
    return np.abs(np.fft.rfft(windows * signal.get_window("hann", windows.shape[1]), axis=1)) ** 2


# --- more than one pitch --------------------------------------------------------------------------


def measure_polyphony(audio: np.ndarray, rate: int, f0: np.ndarray, loudness: np.ndarray) -> float:
    """Return the share of loud windows with strong partials that are not harmonics of one pitch.

    The pitch is the tracked one or the octave below it, whichever fits better, so that an octave error
    does not count as a chord. Only the ten lowest harmonics are used, because a stiff string is inharmonic.
    """
    hop_length = len(audio) / len(f0)
    frames = _choose_frames(loudness, 20.0, _N_FFT, len(audio))
    several = []
    for frame, power in zip(frames, _spectra(_windows(audio, frames, hop_length, _N_FFT))):
        several.append(_has_several_pitches(power, f0[frame], rate))
    return float(np.mean(several)) if several else 0.0


def _has_several_pitches(power: np.ndarray, f0: float, rate: int) -> bool:
    peaks, _ = signal.find_peaks(power, height=power.max() * 10**-2.5, distance=5)
    width = rate / _N_FFT  # Hz per bin
    unexplained = min(_unexplained(peaks * width, power[peaks], pitch, width) for pitch in (f0, f0 / 2))
    return unexplained > 0.15


def _unexplained(frequencies: np.ndarray, power: np.ndarray, f0: float, width: float) -> float:
    """Return the share of the peaks' power that is not at harmonics of f0."""
    number = np.maximum(np.round(frequencies / f0), 1)
    tolerance = np.maximum(np.minimum(0.03 * frequencies, 0.25 * f0), 1.5 * width)
    audible = (frequencies < 10.5 * f0) & (frequencies > 60)  # below: hum, footsteps
    off = audible & (np.abs(frequencies - number * f0) > tolerance)
    return float(power[off].sum() / max(power[audible].sum(), 1e-20))


# --- damage ---------------------------------------------------------------------------------------


def count_full_scale_peaks(audio: np.ndarray) -> int:
    """Return how often the sound rises to full scale: rarely in a clean take, constantly in a clipped one.

    Resampling turns flat tops into peaks above full scale, so they still count. Sound that was attenuated
    after clipping is not detected.
    """
    high = np.abs(audio) >= _FULL_SCALE
    return int(np.count_nonzero(high[1:] & ~high[:-1]) + high[0])


def find_mains_hum(audio: np.ndarray, rate: int) -> int:
    """Return the frequency of mains hum, 50 or 60 Hz, in the first two minutes of a take; 0 if there is none."""
    lines = find_mains_lines(audio[: _HUM_SECONDS * rate], rate)
    return 10 * round(lines[0] / 10) if len(lines) else 0


def measure_bleed(loudness: np.ndarray, voiced: np.ndarray, below: float) -> float:
    """Return the share of the time with steady, pitched, quiet sound next to loud frames: bleed of another instrument.

    A note that rings decays by at least 5 dB per second, so quiet sound at a steady level is bleed or a soft note.
    A soft note has silence or other soft notes around it; bleed continues until the loud sound masks it.

    Args:
        loudness: [T] in dB.
        voiced: [T].
        below: dB, how far below the loud frames a frame counts as quiet.
    """
    span, reach, step = 20, 25, 20.0  # frames of steady level; frames around them to search; dB up to loud ones there
    if not voiced.any() or len(loudness) <= span:
        return 0.0
    quiet = voiced & (loudness < np.quantile(loudness[voiced], 0.9) - below)
    starts = np.flatnonzero(quiet[span:] & quiet[:-span] & (loudness[span:] > loudness[:-span] - 1))
    steady = np.zeros(len(loudness), bool)
    steady[starts[:, None] + np.arange(span + 1)] = True
    bleed = 0
    for (section,) in ndimage.find_objects(ndimage.label(steady)[0]):
        nearby = loudness[max(0, section.start - reach) : section.stop + reach]
        if nearby.max() > np.median(loudness[section]) + step:
            bleed += section.stop - section.start
    return bleed / len(loudness)


def measure_ringing(loudness: np.ndarray, frame_seconds: float) -> float:
    """Return the decay time for 60 dB in s, from the fastest falls over 0.1 s from loud frames.

    A damped note stops at once in a dry room, and otherwise decays no faster than the room. NaN if the
    sound never falls by 25 dB.
    """
    audible = loudness[loudness > -80]
    span = max(1, round(0.1 / frame_seconds))
    if len(loudness) <= span or not len(audible):
        return float("nan")
    loud = np.quantile(audible, 0.9)
    is_loud = loudness[:-span] > loud - 20
    if not is_loud.any() or loudness[is_loud.argmax() :].min() > loud - 25:
        return float("nan")
    falls = (loudness[:-span] - loudness[span:])[is_loud]
    return float(60 * span * frame_seconds / max(np.quantile(falls, 0.995), 0.1))


def measure_band_drop(audio: np.ndarray, rate: int, loudness: np.ndarray) -> float:
    """Return how far the power falls from 3-3.7 to 4.2-5 kHz, in dB: far, if the source was sampled at 8 kHz."""
    frames = _choose_frames(loudness, 30.0, 1024, len(audio))
    if not len(frames):
        return 0.0
    power = _spectra(_windows(audio, frames, len(audio) / len(loudness), 1024)).mean(axis=0)
    hertz = np.fft.rfftfreq(1024, 1 / rate)
    under, over = (power[(hertz >= low) & (hertz < high)].mean() for low, high in ((3000, 3700), (4200, 5000)))
    return float(10 * np.log10((under + 1e-12) / (over + 1e-12)))


# --- copies ---------------------------------------------------------------------------------------


def take_fingerprint(f0: np.ndarray, loudness: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Return [2, 64]: loudness in dB relative to its peak, and pitch in semitones (0 if unvoiced), over time."""
    edges = np.linspace(0, len(f0), _FINGERPRINT + 1).astype(int)
    pitch = np.where(voiced, 12 * np.log2(f0), 0.0)
    curves = (np.maximum(loudness - loudness.max(), -60.0), pitch)
    return np.array([[curve[a : max(b, a + 1)].mean() for a, b in itertools.pairwise(edges)] for curve in curves])


def is_same_take(one: RecordingMeasurement, other: RecordingMeasurement) -> bool:
    """Return True if two recordings are the same take, perhaps in different formats or at different levels."""
    if max(one.loudest, other.loudest) <= -80 or abs(one.seconds - other.seconds) > 0.01 * one.seconds + 0.1:
        return False
    sounding = np.maximum(one.fingerprint[0], other.fingerprint[0]) > -30  # codecs change rests
    if sounding.sum() < 8:
        return False
    loudness, pitch = np.median(np.abs(one.fingerprint - other.fingerprint)[:, sounding], axis=1)
    return bool(loudness < 0.5 and pitch < 0.5)


def find_duplicates(recordings: list[RecordingMeasurement]) -> list[tuple[RecordingMeasurement, RecordingMeasurement]]:
    """Return (recording, an earlier recording that it repeats) for each duplicate."""
    copies = []
    by_length = sorted(recordings, key=lambda each: each.seconds)
    for i, each in enumerate(by_length):
        for other in reversed(by_length[:i]):
            if each.seconds - other.seconds > 0.01 * each.seconds + 0.1:
                break
            if each.sha256 == other.sha256 or is_same_take(each, other):
                copies.append((each, other))
                break
    return copies


@dataclass(frozen=True)
class Finding:
    is_problem: bool  # False: advice
    text: str  # measured value, wanted value, consequence
    recordings: tuple[str, ...] = ()


# --- the set as a whole ---------------------------------------------------------------------------


def judge_coverage(recordings: list[RecordingMeasurement], config: Config) -> list[Finding]:
    """Judge the amount of sound and how much of the instrument's range and dynamics it covers."""
    wanted, instrument = config.inspect, config.instrument(recordings[0].instrument)
    seconds, voiced = (sum(getattr(each, name) for each in recordings) for name in ("seconds", "voiced_seconds"))
    minutes, findings = voiced / 60, []
    if minutes < wanted.advised_minutes:
        amount = f"{minutes:.1f} min voiced, {wanted.advised_minutes:g} to {2 * wanted.advised_minutes:g} advised"
        is_problem = minutes < wanted.min_minutes
        findings.append(Finding(is_problem, amount + ("; too little to train an instrument" * is_problem)))
    if voiced < _MIN_VOICED_SHARE * seconds:
        share = f"only {voiced / seconds:.0%} of the time has a pitch, {_MIN_VOICED_SHARE:.0%} is advised"
        findings.append(Finding(False, f"{share}; most training crops would be rests and noise"))
    if voiced:
        findings += judge_range(recordings, instrument, config) + judge_dynamics(recordings, config)
    return findings


def judge_range(recordings: list[RecordingMeasurement], instrument: InstrumentConfig, config: Config) -> list[Finding]:
    """Judge which notes of the instrument's range are played long enough, and how much lies outside the range."""
    wanted, findings = config.inspect, []
    inside, covered, notes = measure_coverage(
        recordings, instrument, wanted.min_seconds_per_note, config.audio.frame_rate
    )
    if inside < _MIN_IN_RANGE:
        span = f"{note_name(instrument.f0_min)} to {note_name(instrument.f0_max)}"
        text = f"{1 - inside:.0%} of the pitched time lies outside the {recordings[0].instrument}'s range, {span}; "
        text += "it may be another instrument, or have octave errors"
        findings.append(Finding(inside < 2 * _MIN_IN_RANGE - 1, text))
    if covered.mean() < wanted.min_coverage:
        text = f"{covered.mean():.0%} of the range's notes sound for {wanted.min_seconds_per_note:g} s or more, "
        findings.append(Finding(False, f"{text}{wanted.min_coverage:.0%} is advised{describe_gaps(covered, notes)}"))
    return findings


def measure_coverage(
    recordings: list[RecordingMeasurement], instrument: InstrumentConfig, least_seconds: float, frame_rate: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return (share of voiced time in the range, which notes of the range sound long enough, their MIDI numbers)."""
    seconds = count_notes(recordings).sum(axis=1) / frame_rate
    low, high = (round(hz_to_midi(hertz)) for hertz in (instrument.f0_min, instrument.f0_max))
    notes = np.arange(low, high + 1)
    f0 = np.concatenate([each.voiced_f0 for each in recordings])
    half = 2 ** (0.5 / 12)  # half a semitone, for playing out of tune
    inside = np.mean((f0 >= instrument.f0_min / half) & (f0 <= instrument.f0_max * half))
    return float(inside), seconds[notes - PITCHES.start] >= least_seconds, notes


def describe_gaps(covered: np.ndarray, notes: np.ndarray) -> str:
    """Return text that names the notes below and above which nothing is played."""
    played = notes[covered]
    if not len(played):
        return "; no note does"
    names = [note_name(midi_to_hz(note)) for note in (played[0], played[-1])]
    gaps = ((f"below {names[0]}", played[0] > notes[0]), (f"above {names[1]}", played[-1] < notes[-1]))
    ends = [text for text, is_there in gaps if is_there]
    return f"; nothing {' and '.join(ends)}: the model will guess there" if ends else ""


def judge_dynamics(recordings: list[RecordingMeasurement], config: Config) -> list[Finding]:
    """Judge the dynamic range."""
    spread = measure_dynamics(recordings)
    if spread >= config.inspect.min_dynamics:
        return []
    text = f"{spread:.0f} dB from soft to loud, {config.inspect.min_dynamics:g} advised"
    return [Finding(False, f"{text}; play softer and louder, or the model learns only one timbre")]


def measure_dynamics(recordings: list[RecordingMeasurement]) -> float:
    """Return the difference between the 95th and the 5th percentile of the voiced loudness in dB."""
    loudness = np.concatenate([each.voiced_loudness for each in recordings])
    return float(np.subtract(*np.quantile(loudness, [0.95, 0.05]))) if len(loudness) else 0.0


# --- single takes ---------------------------------------------------------------------------------


def list_faults(config: Config) -> dict[str, tuple[Callable[[RecordingMeasurement], bool], str]]:
    """Return the possible faults of a take: {name: (test, advice)}."""
    limits = config.inspect
    return {
        "silent": (lambda each: each.loudest <= _SILENCE_LEVEL, "leave it out"),
        "several pitches at once": (
            lambda each: each.polyphony > limits.polyphony_share,
            "chords, or strings that ring on; this model plays one note at a time",
        ),
        "clipped": (lambda each: each.full_scale_peaks > _MAX_FULL_SCALE_PEAKS, "record it again, 10 dB softer"),
        "50 Hz mains hum": (lambda each: each.hum == 50, "check the cables, or remove it with a notch filter"),
        "60 Hz mains hum": (lambda each: each.hum == 60, "check the cables, or remove it with a notch filter"),
        "bleed": (  # hum has a pitch as well
            lambda each: each.bleed > BLEED_SHARE and not each.hum,
            "another instrument sounds in the rests; mute them",
        ),
        "reverb": (
            lambda each: each.ringing_seconds > limits.max_ringing_seconds,
            "or strings that are never damped; record dry, so that notes do not overlap",
        ),
        "nothing over 4 kHz": (
            lambda each: each.band_drop > _MAX_BAND_DROP,
            "telephone sound, or a file once sampled at 8 kHz; the model would sound as dull",
        ),
    }


def judge_faulty_takes(recordings: list[RecordingMeasurement], config: Config) -> list[Finding]:
    """Return a finding per fault with its takes: problems if the faulty takes are a large part of the set."""
    faults = list_faults(config)
    suspects = {name: [each for each in recordings if test(each)] for name, (test, _) in faults.items()}
    names = {each.name for takes in suspects.values() for each in takes}
    total = sum(each.seconds for each in recordings)
    faulty = sum(each.seconds for each in recordings if each.name in names)
    is_problem = faulty > config.inspect.max_suspect_share * total
    findings = []
    for fault, takes in suspects.items():
        if takes:
            share = sum(each.seconds for each in takes) / total
            text = f"{fault}: {len(takes)} of {len(recordings)} recordings, {share:.0%} of the time; {faults[fault][1]}"
            findings.append(Finding(is_problem, text, tuple(each.name for each in takes)))
    return findings


def judge_duplicates(recordings: list[RecordingMeasurement]) -> list[Finding]:
    """Return findings that name the recordings that repeat another."""
    copies = find_duplicates(recordings)
    bytewise = tuple(f"{one.name} = {other.name}" for one, other in copies if one.sha256 == other.sha256)
    audible = tuple(f"{one.name} = {other.name}" for one, other in copies if one.sha256 != other.sha256)
    findings = []
    if bytewise:
        text = f"copies: {len(bytewise)} of {len(recordings)} recordings equal another one byte for byte"
        findings.append(Finding(False, f"{text}; they count twice, but stay on one side of the split", bytewise))
    if audible:
        text = f"copies: {len(audible)} of {len(recordings)} recordings sound like another one from start to end"
        findings.append(Finding(True, f"{text}; training and validation may share sound: leave one out", audible))
    return findings


def judge_octave_errors(errors: tuple[int, int], has_annotations: bool, config: Config) -> list[Finding]:
    """Judge the octave errors of the pitch tracker, given as (frames with an error, frames compared)."""
    n_wrong, n_compared = errors
    if has_annotations and not n_compared:
        return [Finding(False, "no annotation has the name of a recording")]
    if n_compared and n_wrong > _MAX_OCTAVE_ERRORS * n_compared:
        share = f"{n_wrong / n_compared:.1%} of {n_compared} annotated frames are octaves off"
        fix = 'set its "crepe_model" to "full", or f0_min and f0_max closer, in config.json'
        return [Finding(True, f"{share}; {fix}")]
    return []
