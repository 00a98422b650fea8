"""What ``inspect_dataset.py`` says of a set: size and range, takes with a fault, copies, the pitch tracker's errors.

The thresholds stand in ``config.json`` under ``inspect``, the reasons in ``settings.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from config import Config, InstrumentConfig
from recordings.inspection import PITCHES, Measured, count_notes, find_copies
from sound.note_names import hz_to_midi, midi_to_hz, note_name


@dataclass(frozen=True)
class Finding:
    is_problem: bool  # else advice
    text: str  # what was measured, what is wanted, what follows
    recordings: tuple[str, ...] = ()


# --- the set as a whole ---------------------------------------------------------------------------


def judge_set(recordings: list[Measured], config: Config) -> list[Finding]:
    """Judge how much there is, and what of the instrument it covers."""
    wanted, instrument = config.inspect, config.instrument(recordings[0].instrument)
    seconds, voiced = (sum(getattr(each, name) for each in recordings) for name in ("seconds", "voiced_seconds"))
    minutes, findings = voiced / 60, []
    if minutes < wanted.advised_minutes:
        amount = f"{minutes:.1f} min voiced, {wanted.advised_minutes:g} to {2 * wanted.advised_minutes:g} advised"
        is_problem = minutes < wanted.min_minutes
        findings.append(Finding(is_problem, amount + ("; too little to learn an instrument from" * is_problem)))
    if voiced < wanted.min_voiced_share * seconds:
        share = f"only {voiced / seconds:.0%} of the time has a pitch, {wanted.min_voiced_share:.0%} is wanted"
        findings.append(Finding(False, f"{share}; most of the training would hear rests and noise"))
    if voiced:
        findings += judge_range(recordings, instrument, config) + judge_dynamics(recordings, config)
    return findings


def judge_range(recordings: list[Measured], instrument: InstrumentConfig, config: Config) -> list[Finding]:
    """Judge which of the instrument's notes are played for long enough, and what lies outside."""
    wanted, findings = config.inspect, []
    inside, covered, notes = coverage(recordings, instrument, wanted.min_seconds_per_note, config.audio.frame_rate)
    if inside < wanted.min_in_range:
        span = f"{note_name(instrument.f0_min)} to {note_name(instrument.f0_max)}"
        text = f"{1 - inside:.0%} of the pitched time lies outside the {recordings[0].instrument}'s range, {span}; "
        text += "another instrument, or octave errors?"
        findings.append(Finding(inside < 2 * wanted.min_in_range - 1, text))
    if covered.mean() < wanted.min_coverage:
        text = f"{covered.mean():.0%} of the range's notes sound for {wanted.min_seconds_per_note:g} s or more, "
        findings.append(Finding(False, f"{text}{wanted.min_coverage:.0%} is advised{describe_gaps(covered, notes)}"))
    return findings


def coverage(
    recordings: list[Measured], instrument: InstrumentConfig, least_seconds: float, frame_rate: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the share of pitched time in the range, which of its notes sound long enough, and their MIDI numbers."""
    seconds = count_notes(recordings).sum(axis=1) / frame_rate
    low, high = (round(hz_to_midi(hertz)) for hertz in (instrument.f0_min, instrument.f0_max))
    notes = np.arange(low, high + 1)
    f0 = np.concatenate([each.voiced_f0 for each in recordings])
    half = 2 ** (0.5 / 12)  # half a semitone, for who is out of tune
    inside = np.mean((f0 >= instrument.f0_min / half) & (f0 <= instrument.f0_max * half))
    return float(inside), seconds[notes - PITCHES.start] >= least_seconds, notes


def describe_gaps(covered: np.ndarray, notes: np.ndarray) -> str:
    """Say under and over which note nothing is played."""
    played = notes[covered]
    if not len(played):
        return "; no note is"
    names = [note_name(midi_to_hz(note)) for note in (played[0], played[-1])]
    gaps = ((f"under {names[0]}", played[0] > notes[0]), (f"over {names[1]}", played[-1] < notes[-1]))
    ends = [text for text, is_there in gaps if is_there]
    return f"; nothing {' and '.join(ends)}: the model will guess there" if ends else ""


def judge_dynamics(recordings: list[Measured], config: Config) -> list[Finding]:
    """Judge the distance from soft to loud."""
    spread = dynamics(recordings)
    if spread >= config.inspect.min_dynamics:
        return []
    text = f"{spread:.0f} dB from soft to loud, {config.inspect.min_dynamics:g} advised"
    return [Finding(False, f"{text}; play softer and louder, or the model will know one colour")]


def dynamics(recordings: list[Measured]) -> float:
    """Return the dB between the 5th and the 95th percentile of the voiced loudness."""
    loudness = np.concatenate([each.voiced_loudness for each in recordings])
    return float(np.subtract(*np.quantile(loudness, [0.95, 0.05]))) if len(loudness) else 0.0


# --- single takes ---------------------------------------------------------------------------------


def list_faults(config: Config) -> dict[str, tuple[Callable[[Measured], bool], str]]:
    """Return what may be wrong with a take: name -> (test, what to do about it)."""
    limits = config.inspect
    return {
        "silent": (lambda each: each.loudest <= limits.silence_level, "leave it out"),
        "several pitches at once": (
            lambda each: each.polyphony > limits.polyphony_share,
            "chords, or strings that ring on: this model plays one note at a time",
        ),
        "clipped": (lambda each: each.full_scale_peaks > limits.max_full_scale_peaks, "record it again, 10 dB softer"),
        "50 Hz mains hum": (lambda each: each.hum[0] == 50, "mind the cables, or cut it with a notch filter"),
        "60 Hz mains hum": (lambda each: each.hum[0] == 60, "mind the cables, or cut it with a notch filter"),
        "bleed": (  # hum has a pitch as well
            lambda each: each.bleed > limits.bleed_share and not each.hum[0],
            "another instrument is heard in the rests; mute them",
        ),
        "reverb": (
            lambda each: each.ringing_seconds > limits.max_ringing_seconds,
            "or strings never damped; record dry, for what rings on is heard in the next note",
        ),
        "nothing over 4 kHz": (
            lambda each: each.band_drop > limits.max_band_drop,
            "sound of a telephone, or of a file once at 8 kHz: the model would be as dull",
        ),
    }


def judge_takes(recordings: list[Measured], config: Config) -> list[Finding]:
    """Name the takes with a fault; problems if all of them together are a large part of the set."""
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


def judge_copies(recordings: list[Measured]) -> list[Finding]:
    """Name recordings that repeat another."""
    copies = find_copies(recordings)
    bytewise = tuple(f"{one.name} = {other.name}" for one, other in copies if one.sha256 == other.sha256)
    audible = tuple(f"{one.name} = {other.name}" for one, other in copies if one.sha256 != other.sha256)
    findings = []
    if bytewise:
        text = f"copies: {len(bytewise)} of {len(recordings)} recordings are another one, byte for byte"
        findings.append(Finding(False, f"{text}; they count twice, but stay on one side of the split", bytewise))
    if audible:
        text = f"copies: {len(audible)} of {len(recordings)} recordings sound like another one in every moment"
        findings.append(Finding(True, f"{text}; the validation may hear what was trained on: leave one out", audible))
    return findings


def judge_pitch(errors: tuple[int, int], is_asked: bool, config: Config) -> list[Finding]:
    """Judge the tracker's octave errors."""
    n_wrong, n_compared = errors
    if is_asked and not n_compared:
        return [Finding(False, "no annotation belongs to any recording, by its name")]
    if n_compared and n_wrong > config.inspect.max_octave_errors * n_compared:
        share = f"{n_wrong / n_compared:.1%} of {n_compared} annotated frames are octaves off"
        mend = 'set its "crepe_model" to "full", or f0_min and f0_max closer, in config.json'
        return [Finding(True, f"{share}; {mend}")]
    return []
