"""Fit a melody to an instrument: register, key and tuning, range, smoothing and loudness.

``InstrumentProfile`` describes the instrument, ``TransferOptions`` holds the user's choices, and ``fit_melody`` turns
a melody into the curves that the instrument plays.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from config import Config
from sound.crepe import hz_to_midi, midi_to_hz
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
_MAX_OUTSIDE = 0.05  # extra fraction of sung frames out of range, over that of the best register
_OPTIONAL = ("semitones", "output_rate", "pluck_repeat")
_RANGE_TOLERANCE = 0.5  # semitones beyond the instrument's range that still count as inside
_MAX_OCTAVES = 5  # largest register shift
_NOTE_CHANGE_COST = 7.0  # frames a semitone off that cost as much as a change of note
_VIBRATO_SECONDS = 0.2  # pitch is averaged over this to measure a note's tuning
_LOUDNESS_FROM, _LOUDNESS_TO = 10, 95  # percent: range of the loudness quantiles that set the slope of the dynamics
LOUDNESS_ANCHOR = 75  # percent: the quantile of loudness that is matched exactly


class TrainedModel(Protocol):
    """A model with its training settings and statistics, as ``checkpoint.load_model`` returns it."""

    settings: Config | None
    instrument: str | None
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class InstrumentProfile:
    """Range, training statistics and settings of an instrument."""

    name: str  # such as "trumpet"
    f0_min: float  # Hz, of its range
    f0_max: float  # Hz
    f0_quantiles: tuple[float, ...]  # Hz, of the training data at 0, 1, ... 100 %
    loudness_quantiles: tuple[float, ...]  # dB, likewise
    articulation: str  # "sustained" or "plucked"
    pluck_values: dict[str, Any] | None  # of its PluckTable, if that was measured
    config: Config  # settings of features, frames and transfer

    @classmethod
    def of(cls, model: TrainedModel) -> "InstrumentProfile":
        """Return the profile of a trained model.

        Raises:
            ValueError: the model is untrained, or its instrument is not in its configuration.
        """
        if model.settings is None or model.instrument is None or model.statistics is None:
            raise ValueError("this model is untrained; load a trained one with checkpoint.load_model")
        return cls.from_statistics(model.instrument, model.settings, model.statistics)

    @classmethod
    def from_statistics(cls, name: str, config: Config, statistics: dict[str, Any]) -> "InstrumentProfile":
        """Return the profile of an instrument from the statistics in a checkpoint.

        Raises:
            ValueError: the instrument is not in ``config``.
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
        """The pluck table; a typical guitar's where the training data have no plucks."""
        if self.pluck_values is None:
            return typical_plucks(self.loudness_quantiles[99])
        return PluckTable.from_dict(self.pluck_values)

    @property
    def median_f0(self) -> float:
        """The median pitch of the training data, Hz."""
        return self.f0_quantiles[50]


@dataclass(frozen=True)
class TransferOptions:
    """The user's choices for a transfer."""

    semitones: float | None = None  # the register; None fits it by whole octaves
    transpose: float = 0.0  # semitones, added to the register
    fit: bool = True  # False plays pitch and loudness as measured
    fold: bool = False  # move notes outside the instrument's range into it, by octaves
    autotune: float = 0.0  # 0..1, fraction of the way to the nearest note of the key
    key: str = "chromatic"  # or a major or minor key such as "F# minor"; applies after transposition
    smoothing: float = 0.0  # s, over which the curves are smoothed inside a note
    loudness_offset: float = 0.0  # dB
    gate_offset: float = 0.0  # dB, added to the gate's threshold
    noise_balance: float = 0.0  # dB, added to the noise part: positive gives more breath
    output_rate: int | None = None  # Hz of the result; None keeps the model's rate
    articulation: str | None = None  # "follow" the voice's loudness, or "pluck" each note; None: by instrument
    pluck_repeat: float | None = None  # s after which a held note is plucked again; None disables it
    harmony: str = ""  # added parts, as "third,octave_below"; in ``key``, or in the estimated key
    ensemble: int = 1  # players for each part, a little out of tune and time

    def __post_init__(self) -> None:
        for name, (least, most) in OPTION_LIMITS.items():
            value = getattr(self, name)
            if not (name in _OPTIONAL if value is None else isinstance(value, Real) and least <= value <= most):
                raise ValueError(f"{name} should be between {least} and {most}, not {value}")
        if not isinstance(self.output_rate, int | None):
            raise ValueError(f"output_rate should be a whole number, not {self.output_rate}")
        if self.articulation not in (None, *ARTICULATIONS):
            raise ValueError(f"articulation should be {' or '.join(ARTICULATIONS)}, not {self.articulation}")
        if self.ensemble not in range(1, MAX_ENSEMBLE + 1):
            raise ValueError(f"ensemble should be between 1 and {MAX_ENSEMBLE} players, not {self.ensemble}")
        if self.harmony:
            read_harmonies(self.harmony)
        key_pitch_classes(self.key)

    def plucks(self, profile: InstrumentProfile) -> bool:
        """Return True if the instrument's notes should be plucked."""
        return profile.articulation == "plucked" if self.articulation is None else self.articulation == "pluck"


def key_pitch_classes(key: str) -> tuple[int, ...]:
    """Return the pitch classes of a key, 0 for C: "chromatic", "C major", "f# minor", "Bb major".

    Raises:
        ValueError: the key is unknown.
    """
    if key.strip().lower() == "chromatic":
        return tuple(range(12))
    found = re.fullmatch(r"([A-G])([#b♯♭]?) (major|minor)", key.strip()[:1].upper() + key.strip()[1:].lower())
    if not found:
        raise ValueError(f"unknown key '{key}'; use chromatic, or a major or minor key such as C major or F# minor")
    letter, sign, mode = found.groups()
    tonic = "C D EF G A B".index(letter) + {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}[sign]
    steps = (0, 2, 4, 5, 7, 9, 11) if mode == "major" else (0, 2, 3, 5, 7, 8, 10)
    return tuple(sorted((tonic + step) % 12 for step in steps))


class FittedMelody(NamedTuple):
    """A melody as an instrument plays it."""

    curves: Curves
    notes: list[SungNote] | None  # the plucked notes; None where the instrument follows the voice
    report: dict[str, float]  # register, share out of range, gain


def fit_melody(melody: Melody, profile: InstrumentProfile, options: TransferOptions) -> FittedMelody:
    """Fit a melody's register, tuning, loudness and articulation to an instrument."""
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
        # Notes are found in the measured loudness: fitting also stretches the dips between syllables.
        notes = find_notes(fitted.f0, melody.loudness, voiced, config.audio.frame_rate, cut_slides=False)
        notes = fit_levels_to_plucks(notes, profile.plucks, options.loudness_offset)
        return FittedMelody(pluck_curves(fitted, notes, profile, options.pluck_repeat), notes, report)
    return FittedMelody(shape_notes(fitted, config), None, report)


def assign_parts(curves: Curves, options: TransferOptions, frame_rate: float) -> list[Part]:
    """Return what each player plays of fitted curves: one of them, unless the options ask for more."""
    if not options.harmony and options.ensemble == 1:
        return [Part(curves, 0.0, 0)]
    notes = track_notes(hz_to_midi(curves.f0), curves.voiced, _NOTE_CHANGE_COST)
    is_chromatic = len(key_pitch_classes(options.key)) == 12
    key = find_key(notes[curves.voiced]) if is_chromatic else options.key
    return divide_parts(
        curves, notes, read_harmonies(options.harmony), options.ensemble, key_pitch_classes(key), frame_rate
    )


def pluck_curves(
    melody: Melody, notes: Sequence[SungNote], profile: InstrumentProfile, repeat_seconds: float | None = None
) -> Curves:
    """Return the curves of an instrument that plucks the notes; f0 follows the melody inside them.

    The frames in which a string rings are voiced, including the 30 ms before an onset that the loudness window spans.
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

    Of the registers that leave almost the fewest frames out of range, choose the smallest shift: a melody that fits
    stays where it is sung. Between one up and one down, choose the one nearer to the median of the training data.
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
    """Correct the tuning and fold notes into the range, as the options say.

    Returns:
        Pitch in MIDI numbers [T], and the fraction of the sung frames still out of range.
    """
    low, high = (hz_to_midi(f0) for f0 in (profile.f0_min, profile.f0_max))
    low, high = low - _RANGE_TOLERANCE, high + _RANGE_TOLERANCE
    if options.autotune:
        notes = track_notes(pitch, voiced, _NOTE_CHANGE_COST, key_pitch_classes(options.key))
        # The note's average pitch is moved, so its vibrato is kept.
        centre = smooth_within_notes(pitch, voiced, _VIBRATO_SECONDS * profile.config.audio.frame_rate)
        pitch = pitch + options.autotune * (notes - centre)
    if options.fold:
        notes = track_notes(pitch, voiced, _NOTE_CHANGE_COST)
        pitch = pitch + 12 * (np.ceil(np.maximum(low - notes, 0) / 12) - np.ceil(np.maximum(notes - high, 0) / 12))
    return pitch, fraction_out_of_range(midi_to_hz(pitch[voiced]), profile)


def fraction_out_of_range(f0: np.ndarray, profile: InstrumentProfile) -> float:
    """Return the fraction of f0 [T], in Hz, that lies outside the instrument's range; 0 for no frames."""
    tolerance = 2 ** (_RANGE_TOLERANCE / 12)
    outside = (f0 < profile.f0_min / tolerance) | (f0 > profile.f0_max * tolerance)
    return float(outside.mean()) if len(f0) else 0.0


def track_notes(
    pitch: np.ndarray, voiced: np.ndarray, change_cost: float, pitches: tuple[int, ...] = tuple(range(12))
) -> np.ndarray:
    """Return the intended note in each frame, by Viterbi search.

    The cost of a path is the distance to the pitch in semitones, summed over the frames, plus ``change_cost`` for each
    change of note, so vibrato and glides do not add notes.

    Args:
        pitch: [T] in MIDI numbers, fractional.
        voiced: bool [T]; unvoiced frames cost nothing.
        change_cost: cost of a change, in frames times semitones.
        pitches: the allowed pitch classes, 0 for C.

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
    """Smooth a curve [T] inside each voiced run by a Gaussian about ``n_frames`` wide."""
    if n_frames <= 0:
        return values
    smoothed = values.copy()
    for (run,) in ndimage.find_objects(ndimage.label(voiced)[0]):
        smoothed[run] = ndimage.gaussian_filter1d(values[run], n_frames / 2, mode="nearest")
    return smoothed


def fit_loudness(loudness: np.ndarray, voiced: np.ndarray, profile: InstrumentProfile) -> np.ndarray:
    """Map loudness in dB [T] linearly so that the quantiles of the sung frames match those of the training data.

    A line preserves the order and the shape of the dynamics, which full quantile matching would distort. Its slope is
    limited, so that a steady hum stays steady.
    """
    settings = profile.config.transfer
    wanted = np.asarray(profile.loudness_quantiles)  # at 0, 1, ... 100 %
    percent = np.arange(_LOUDNESS_FROM, _LOUDNESS_TO + 1, 5)
    found = np.quantile(loudness[voiced], percent / 100)
    slope = np.std(wanted[percent]) / max(np.std(found), 1e-3)
    slope = np.clip(slope, 1 / settings.max_loudness_slope, settings.max_loudness_slope)
    # Anchored in the upper half: perceived loudness depends on the notes, not on their decaying ends.
    anchor = np.quantile(loudness[voiced], LOUDNESS_ANCHOR / 100)
    gain = min(wanted[LOUDNESS_ANCHOR] - anchor, settings.max_loudness_gain)
    fitted = anchor + gain + slope * (loudness - anchor)
    return np.clip(fitted, profile.config.features.loudness_floor, wanted[-1])
