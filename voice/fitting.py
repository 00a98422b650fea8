"""A melody is fitted to an instrument: register, key and tuning, range, smoothing and loudness.

``InstrumentProfile`` holds what is known of the instrument, ``TransferOptions`` what a person can choose, and
``fit_melody`` turns a melody into the curves that are played.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from config import Config
from sound.pitch_decoder import hz_to_midi, midi_to_hz
from sound.plucks import CLOSEST, PluckTable, typical_plucks, window_reach
from voice.curves import Curves, Melody, shape_notes
from voice.harmony import MAX_ENSEMBLE, Part, divide_parts, find_key, read_harmonies
from voice.note_finder import SungNote, find_notes
from voice.plucked_notes import fit_levels_to_plucks, hold_pitch, pluck_notes

OPTION_LIMITS = {
    "semitones": (-60, 60),
    "transpose": (-60, 60),
    "autotune": (0, 1),
    "smoothing": (0, 2),
    "loudness_offset": (-60, 60),
    "gate_offset": (-60, 60),
    "noise_balance": (-60, 60),
    "output_rate": (8000, 48000),
    "pluck_repeat": (CLOSEST, 3600),
}
ARTICULATIONS = ("follow", "pluck")
_MAX_OUTSIDE = 0.05  # more of the sung frames may lie out of range than in the best register
_OPTIONAL = ("semitones", "output_rate", "pluck_repeat")
_RANGE_TOLERANCE = 0.5  # semitones beyond the instrument's range that still count as inside
_MAX_OCTAVES = 5  # by which the register is moved
_NOTE_CHANGE_COST = 7.0  # a change of note is as bad as this many frames a semitone off
_VIBRATO_SECONDS = 0.2  # over which a note's pitch is averaged, to see its tuning
_LOUDNESS_FROM = 10  # percent: the quantiles of loudness from here on
_LOUDNESS_TO = 95  # percent; to here they decide how far dynamics are stretched
LOUDNESS_ANCHOR = 75  # percent: the quantile of loudness that is matched exactly


class TrainedModel(Protocol):
    """A model that says what it was trained on, as ``checkpoint.load_model`` returns it."""

    settings: Config | None
    instrument: str | None
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class InstrumentProfile:
    """An instrument as the functions of this package see it."""

    name: str  # such as "trumpet"
    f0_min: float  # Hz, of its range
    f0_max: float  # Hz
    f0_quantiles: tuple[float, ...]  # Hz, of the training data at 0, 1, ... 100 %
    loudness_quantiles: tuple[float, ...]  # dB, likewise
    articulation: str  # "sustained" or "plucked"
    pluck_values: dict[str, Any] | None  # how its strings decay, if that was measured
    config: Config  # settings of features, frames and transfer

    @classmethod
    def of(cls, model: TrainedModel) -> "InstrumentProfile":
        """Return the profile of a trained model.

        Raises:
            ValueError: the model is untrained, or its configuration does not know its instrument.
        """
        if model.settings is None or model.instrument is None or model.statistics is None:
            raise ValueError("this model was not trained; load one with checkpoint.load_model")
        return cls.from_statistics(model.instrument, model.settings, model.statistics)

    @classmethod
    def from_statistics(cls, name: str, config: Config, statistics: dict[str, Any]) -> "InstrumentProfile":
        """Return the profile of an instrument from the statistics in a checkpoint.

        Raises:
            ValueError: ``config`` does not know the instrument.
        """
        instrument = config.instrument(name)
        return cls(
            name=name,
            f0_min=instrument.f0_min,
            f0_max=instrument.f0_max,
            f0_quantiles=tuple(statistics["f0_quantiles"]),
            loudness_quantiles=tuple(statistics["loudness_quantiles"]),
            articulation=instrument.articulation,
            pluck_values=statistics.get("plucks"),
            config=config,
        )

    @functools.cached_property
    def plucks(self) -> PluckTable:
        """How the strings decay; those of a guitar where the training data have no plucks."""
        if self.pluck_values is None:
            return typical_plucks(self.loudness_quantiles[99])
        return PluckTable.from_dict(self.pluck_values)

    @property
    def median_f0(self) -> float:
        """The middle of the training data's pitches, Hz."""
        return self.f0_quantiles[50]


@dataclass(frozen=True)
class TransferOptions:
    """What a person can choose about a transfer."""

    semitones: float | None = None  # the register; None fits it by whole octaves
    transpose: float = 0.0  # semitones on top of the register
    fit: bool = True  # False plays pitch and loudness as measured
    fold: bool = False  # move notes outside the instrument's range into it, by octaves
    autotune: float = 0.0  # 0..1, how far a note is moved onto the nearest note of the key
    key: str = "chromatic"  # or a major or minor key, as "F# minor"; of what is played
    smoothing: float = 0.0  # s, over which the curves are smoothed inside a note
    loudness_offset: float = 0.0  # dB
    gate_offset: float = 0.0  # dB on the level under which nothing is played
    noise_balance: float = 0.0  # dB on the noise part: positive gives more breath
    output_rate: int | None = None  # Hz of the result; None is the model's own
    articulation: str | None = None  # "follow" the voice's loudness, or "pluck" each note; None: by instrument
    pluck_repeat: float | None = None  # s after which a held note is plucked again; None never does
    harmony: str = ""  # parts beside the melody, as "third,octave_below"; in ``key``, or in the one that is found
    ensemble: int = 1  # players for each part, a little out of tune and time

    def __post_init__(self) -> None:
        for name, (least, most) in OPTION_LIMITS.items():
            value = getattr(self, name)
            if not (name in _OPTIONAL if value is None else least <= value <= most):
                raise ValueError(f"{name} should be between {least} and {most}, not {value}")
        if not isinstance(self.output_rate, int | None):
            raise ValueError(f"output_rate should be a whole number, not {self.output_rate}")
        if self.articulation not in (None, *ARTICULATIONS):
            raise ValueError(f"articulation should be {' or '.join(ARTICULATIONS)}, not {self.articulation}")
        if self.ensemble not in range(1, MAX_ENSEMBLE + 1):
            raise ValueError(f"ensemble should be between 1 and {MAX_ENSEMBLE} players, not {self.ensemble}")
        read_harmonies(self.harmony)
        key_pitch_classes(self.key)

    def plucks(self, profile: InstrumentProfile) -> bool:
        """Return True if an instrument's notes are to be plucked."""
        return profile.articulation == "plucked" if self.articulation is None else self.articulation == "pluck"


def key_pitch_classes(key: str) -> tuple[int, ...]:
    """Return the pitch classes of a key, 0 for C: "chromatic", "C major", "f# minor", "Bb major".

    Raises:
        ValueError: there is no such key.
    """
    if key.strip().lower() == "chromatic":
        return tuple(range(12))
    found = re.fullmatch(r"([A-G])([#b♯♭]?) (major|minor)", key.strip()[:1].upper() + key.strip()[1:].lower())
    if not found:
        raise ValueError(f"there is no key '{key}'; give chromatic, or a major or minor key such as C major, F# minor")
    letter, sign, mode = found.groups()
    tonic = "C D EF G A B".index(letter) + {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}[sign]
    steps = (0, 2, 4, 5, 7, 9, 11) if mode == "major" else (0, 2, 3, 5, 7, 8, 10)
    return tuple(sorted((tonic + step) % 12 for step in steps))


class FittedMelody(NamedTuple):
    """What an instrument plays of a melody."""

    curves: Curves
    notes: list[SungNote] | None  # that are plucked; None where the instrument follows the voice
    report: dict[str, float]  # what was done


def fit_melody(melody: Melody, profile: InstrumentProfile, options: TransferOptions) -> FittedMelody:
    """Fit a melody to an instrument: its register, tuning and loudness, and how its notes are articulated."""
    config, voiced = profile.config, melody.voiced
    semitones = options.semitones
    if semitones is None:
        semitones = fit_register(melody.f0[voiced], profile) if options.fit else 0.0
    semitones += options.transpose
    pitch = hz_to_midi(melody.f0) + semitones
    pitch, out_of_range = correct_pitch(pitch, voiced, profile, options)
    loudness = fit_loudness(melody.loudness, voiced, profile) if options.fit else melody.loudness
    loudness_gain = float(np.median((loudness - melody.loudness)[voiced]))
    n_frames = options.smoothing * config.audio.frame_rate
    pitch, loudness = smooth_within_notes(pitch, voiced, n_frames), smooth_within_notes(loudness, voiced, n_frames)
    loudness = np.clip(loudness + options.loudness_offset, config.features.loudness_floor, 0.0)
    fitted = melody._replace(f0=midi_to_hz(pitch), loudness=loudness)
    report = {
        "semitones": float(semitones),
        "share_out_of_range": out_of_range,
        "loudness_gain": loudness_gain + options.loudness_offset,
    }
    if options.plucks(profile):
        # Measured loudness: a fitted one is stretched, and so are the dips between syllables.
        notes = find_notes(fitted.f0, melody.loudness, voiced, config.audio.frame_rate, cut_slides=False)
        notes = fit_levels_to_plucks(notes, profile.plucks, options.loudness_offset)
        return FittedMelody(pluck_curves(fitted, notes, profile, options.pluck_repeat), notes, report)
    return FittedMelody(shape_notes(fitted, config), None, report)


def assign_parts(curves: Curves, options: TransferOptions, frame_rate: float) -> list[Part]:
    """Return what each player plays of fitted curves: one of them, unless the options ask for more."""
    harmonies = read_harmonies(options.harmony)
    if not harmonies and options.ensemble == 1:
        return [Part(curves, 0.0, 0)]
    notes = track_notes(hz_to_midi(curves.f0), curves.voiced, _NOTE_CHANGE_COST)
    is_chromatic = len(key_pitch_classes(options.key)) == 12
    key = find_key(notes[curves.voiced]) if is_chromatic else options.key
    return divide_parts(curves, notes, harmonies, options.ensemble, key_pitch_classes(key), frame_rate)


def pluck_curves(
    melody: Melody, notes: Sequence[SungNote], profile: InstrumentProfile, repeat_seconds: float | None = None
) -> Curves:
    """Return the curves of an instrument that plucks notes; f0 follows the melody inside them.

    Where a string rings counts as voiced, from the 30 ms before an onset in which the loudness window sees it already.
    """
    audio, features = profile.config.audio, profile.config.features
    window, n_frames = features.loudness_window / audio.feature_rate, len(melody.f0)
    plucks = pluck_notes(
        notes, profile.plucks, n_frames, audio.frame_rate, window, features.loudness_floor, repeat_seconds
    )
    f0 = hold_pitch(melody.f0, notes, window_reach(window, audio.frame_rate))
    return shape_notes(Melody(f0, plucks.loudness, melody.periodicity, plucks.ringing), profile.config)


def fit_register(f0: np.ndarray, profile: InstrumentProfile) -> float:
    """Return the whole octaves, in semitones, that bring a melody into the instrument's range.

    The melody moves by as few octaves as leave hardly more of it out of range than any register does: it stays where it
    is sung if that fits. One octave up or down alike, the one nearer to the middle of the training data is taken.
    """

    def fraction_outside(octaves: int) -> float:
        return fraction_out_of_range(f0 * 2.0**octaves, profile)

    def distance(octaves: int) -> float:
        return float(abs(np.log2(np.median(f0) * 2.0**octaves / profile.median_f0)))

    octaves = range(-_MAX_OCTAVES, _MAX_OCTAVES + 1)
    outside = {number: fraction_outside(number) for number in octaves}
    fitting = [number for number in octaves if outside[number] <= min(outside.values()) + _MAX_OUTSIDE]
    return 12.0 * min(fitting, key=lambda number: (abs(number), distance(number)))


def correct_pitch(
    pitch: np.ndarray, voiced: np.ndarray, profile: InstrumentProfile, options: TransferOptions
) -> tuple[np.ndarray, float]:
    """Correct the tuning and fold what lies out of range, as far as the options say.

    Returns:
        Pitch in MIDI numbers [T], and the share of the sung frames left out of range.
    """
    low, high = (hz_to_midi(f0) for f0 in (profile.f0_min, profile.f0_max))
    low, high = low - _RANGE_TOLERANCE, high + _RANGE_TOLERANCE
    if options.autotune:
        notes = track_notes(pitch, voiced, _NOTE_CHANGE_COST, key_pitch_classes(options.key))
        # The vibrato is averaged over, so that it stays in a note that is moved.
        centre = smooth_within_notes(pitch, voiced, _VIBRATO_SECONDS * profile.config.audio.frame_rate)
        pitch = pitch + options.autotune * (notes - centre)
    if options.fold:
        notes = track_notes(pitch, voiced, _NOTE_CHANGE_COST)
        pitch = pitch + 12 * (np.ceil(np.maximum(low - notes, 0) / 12) - np.ceil(np.maximum(notes - high, 0) / 12))
    return pitch, fraction_out_of_range(midi_to_hz(pitch[voiced]), profile)


def fraction_out_of_range(f0: np.ndarray, profile: InstrumentProfile) -> float:
    """Return the fraction of the pitches [T] in Hz that lie outside the instrument's range; 0 if there are none."""
    tolerance = 2 ** (_RANGE_TOLERANCE / 12)
    outside = (f0 < profile.f0_min / tolerance) | (f0 > profile.f0_max * tolerance)
    return float(outside.mean()) if len(f0) else 0.0


def track_notes(
    pitch: np.ndarray, voiced: np.ndarray, change_cost: float, pitches: tuple[int, ...] = tuple(range(12))
) -> np.ndarray:
    """Return the note that is meant in every frame: the path with the least distance and the fewest changes.

    Vibrato and a glide between two notes make no notes of their own, for a change costs as much as
    ``change_cost`` frames a semitone away.

    Args:
        pitch: [T] in MIDI numbers, fractional.
        voiced: bool [T]; elsewhere any note will do.
        pitches: the pitch classes that are allowed, 0 for C.

    Returns:
        float [T], whole MIDI numbers.
    """
    notes = np.array([note for note in range(128) if note % 12 in pitches])
    back = np.zeros((len(pitch), len(notes)), dtype=np.int8)
    total = np.abs(pitch[0] - notes) * voiced[0]
    for t in range(1, len(pitch)):
        best = int(total.argmin())
        stays = total <= total[best] + change_cost
        back[t] = np.where(stays, np.arange(len(notes)), best)
        total = np.where(stays, total, total[best] + change_cost) + np.abs(pitch[t] - notes) * voiced[t]
    path = np.empty(len(pitch), dtype=np.int64)
    path[-1] = total.argmin()
    for t in range(len(pitch) - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return notes[path].astype(float)


def smooth_within_notes(values: np.ndarray, voiced: np.ndarray, n_frames: float) -> np.ndarray:
    """Smooth a curve [T] inside each note by a Gaussian about ``n_frames`` wide; nothing leaks across a pause."""
    if n_frames <= 0:
        return values
    smoothed = values.copy()
    for (run,) in ndimage.find_objects(ndimage.label(voiced)[0]):
        smoothed[run] = ndimage.gaussian_filter1d(values[run], n_frames / 2, mode="nearest")
    return smoothed


def fit_loudness(loudness: np.ndarray, voiced: np.ndarray, profile: InstrumentProfile) -> np.ndarray:
    """Map loudness in dB [T] so that the quantiles of the sung frames match those of the training data.

    A straight line through the quantiles: it keeps the order and the shape of the dynamics, which a
    full quantile match would bend. Its slope stays near one, so that a steady hum is not torn apart.
    """
    settings = profile.config.transfer
    wanted = np.asarray(profile.loudness_quantiles)  # at 0, 1, ... 100 %
    percent = np.arange(_LOUDNESS_FROM, _LOUDNESS_TO + 1, 5)
    found = np.quantile(loudness[voiced], percent / 100)
    slope = np.std(wanted[percent]) / max(np.std(found), 1e-3)
    slope = np.clip(slope, 1 / settings.max_loudness_slope, settings.max_loudness_slope)
    # Anchored in the upper half: notes, not their fading ends, decide how loud a player seems.
    anchor = np.quantile(loudness[voiced], LOUDNESS_ANCHOR / 100)
    gain = min(wanted[LOUDNESS_ANCHOR] - anchor, settings.max_loudness_gain)
    fitted = anchor + gain + slope * (loudness - anchor)
    return np.clip(fitted, profile.config.features.loudness_floor, wanted[-1])
