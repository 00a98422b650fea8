"""Several players for one melody: harmonies in a key, and slightly detuned and delayed doubles.

A harmony moves each note by scale degrees, so that a third is major or minor depending on the key; vibrato and slides
are kept. If no key is given, it is estimated from the note durations (Krumhansl, 1990).
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from sound.crepe import hz_to_midi, midi_to_hz
from voice.curves import Curves

HARMONIES = {  # steps of a scale of seven notes
    "third": 2,
    "sixth": 5,
    "octave": 7,
    "third_below": -2,
    "sixth_below": -5,
    "octave_below": -7,
}
MAX_ENSEMBLE = 6
_DETUNING_CENTS = 9.0  # of the doubles that are farthest apart
_LATENESS_SECONDS = 0.03  # of the last double
_PROFILES = {  # how much each step of the chromatic scale belongs to a key
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
_TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


class Part(NamedTuple):
    """The part of one player."""

    curves: Curves
    level: float  # dB
    seed: int  # added to the seed of the noise


def read_harmonies(text: str) -> tuple[str, ...]:
    """Return the names in "third,octave"; none for an empty text.

    Raises:
        ValueError: an unknown harmony.
    """
    names = tuple(name.strip().lower().replace(" ", "_") for name in text.split(",") if name.strip())
    for name in names:
        if name not in HARMONIES:
            raise ValueError(f"unknown harmony '{name}'; use any of {', '.join(HARMONIES)}, separated by commas")
    return names


def find_key(notes: np.ndarray) -> str:
    """Return the key, as "F# minor", of notes [n]: whole MIDI numbers, one for each sung frame."""
    lengths = np.bincount(notes.astype(int) % 12, minlength=12)
    fits = {
        f"{_TONICS[tonic]} {mode}": np.corrcoef(np.roll(profile, tonic), lengths)[0, 1]
        for mode, profile in _PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda key: np.nan_to_num(fits[key], nan=-1.0))


def move_by_steps(notes: np.ndarray, steps: int, scale: tuple[int, ...]) -> np.ndarray:
    """Return the shift in semitones that moves each note [n] up by ``steps`` degrees of a scale of pitch classes.

    A note outside the scale is shifted like the next lower note of the scale.
    """
    classes = np.array(scale)
    degree = np.searchsorted(classes, notes % 12, side="right") - 1  # -1 is the last of the octave below
    moved = degree + steps
    return classes[moved % 7] + 12 * (moved // 7) - (classes[degree % 7] + 12 * (degree // 7))


def divide_parts(
    curves: Curves, notes: np.ndarray, harmonies: tuple[str, ...], ensemble: int, scale: tuple[int, ...], rate: float
) -> list[Part]:
    """Return the parts of all players.

    Args:
        curves: the melody.
        notes: whole MIDI numbers [T], the intended note in each frame.
        harmonies: names of ``HARMONIES``, each adds a part to the melody.
        ensemble: players for each part.
        scale: seven pitch classes.
        rate: frames a second.
    """
    lines = [(curves, 0.0)]
    for name in harmonies:
        moved = move_by_steps(notes, HARMONIES[name], scale)
        moved = ndimage.uniform_filter1d(moved.astype(float), max(1, round(0.03 * rate)))  # no step clicks
        lines.append((dataclasses.replace(curves, f0=midi_to_hz(hz_to_midi(curves.f0) + moved)), -3.0))
    parts = []
    for line, level in lines:
        for player in range(ensemble):
            place = player / max(1, ensemble - 1)  # 0..1, the first is in time
            cents = _DETUNING_CENTS * (2 * place - 1) if ensemble > 1 else 0.0
            late = round(_LATENESS_SECONDS * place * rate)
            parts.append(Part(_delay(line, cents, late), level, 1000 * len(parts)))
    return parts


def _delay(curves: Curves, cents: float, n_frames: int) -> Curves:
    def later(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.repeat(values[:1], n_frames), values[: len(values) - n_frames]])

    moved = {field.name: later(getattr(curves, field.name)) for field in dataclasses.fields(curves)}
    moved["f0"] = (moved["f0"] * 2 ** (cents / 1200)).astype(np.float32)
    return Curves(**moved)
