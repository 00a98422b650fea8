"""Recorded notes of real instruments: which files they are, what each may be used for, and melodies strung from them.

A file's name gives its instrument and its pitch, and the pitch gives its role, so that no sound on which an instrument
model is trained or measured also trains the recogniser. The stringer is simple on purpose and is not the one that
renders training data of instrument models: the recogniser must not learn the ways of a sampler.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from sound.audio_files import load_audio

RECOGNISER, HELD_OUT, MODEL = "recogniser", "held_out", "model"  # roles
SUSTAINED = frozenset({"trumpet", "saxophone", "violin", "flute", "clarinet", "oboe", "bassoon", "trombone", "cello"})
MODELLED = frozenset({"trumpet", "saxophone", "violin", "flute"})  # the instruments of models, beside the guitar
SPLIT_RULE = (
    "Philharmonia, by the pitch p (MIDI) of the name: held out if p % 12 == 3; of trumpet, saxophone, violin and flute "
    "the recogniser has p % 6 == 0, and the trumpet's E3, A3, A4, G5 and A5; of the other instruments it has the rest. "
    "Shinyguitar, round robin 4: the recogniser has every second pitch, the others are held out. VSCO 2 and FreePats: "
    "held out."
)
LIBRARY_RATE = 32000  # Hz: twice what is needed, so that bending a note by interpolation does not dull it
# Of the trumpet there is next to nothing at F#: by the rule alone it would not be known below C4 and above C5.
_ALSO_RECOGNISER = {"trumpet": (52, 57, 69, 79, 81)}  # E3, A3, A4, G5, A5
_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_ACCIDENTALS = {"": 0, "s": 1, "#": 1, "sharp": 1, "b": -1}
_NOTE = re.compile(r"([a-g])(sharp|s|#|b|)(\d)", re.IGNORECASE)
_SHINY_PITCHES = (37, 40, 42, 45, 48, 51, 54, 57, 60, 63, 66, 69, 72, 75, 78, 81, 84)  # MIDI, C#2 to C6
_AUDIBLE = 1e-3  # of the peak: what is 60 dB less at either end of a file is cut off
_FARTHEST = 3.5  # semitones from the nearest recording: a pitch beyond is replaced by a recorded one
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10), tuple(range(12)))


@dataclass(frozen=True)
class RecordedNote:
    """A file of one note, or of a phrase."""

    path: Path
    instrument: str
    pitch: int  # MIDI, as sounding
    role: str
    room: str  # recordings of one room have the same
    phrase: bool = False


@dataclass(frozen=True)
class Sound:
    """A recorded note that was read."""

    note: RecordedNote
    audio: np.ndarray  # float32 [N] at LIBRARY_RATE, peak 1


def find_notes(data_dir: Path) -> list[RecordedNote]:
    """Return the recorded notes in a folder and its folders, sorted by path; other files are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no recorded notes.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}")
    notes = [note for path in sorted(data_dir.rglob("*")) if (note := read_name(path))]
    if not notes:
        raise ValueError(f"{data_dir} holds no recorded notes; download them with scripts/download_samples.py")
    return notes


def read_name(path: Path) -> RecordedNote | None:
    """Return what a file's name says, or None if it is not of a note.

    Understood are the names of the Philharmonia's samples, of Shinyguitar (notes, without releases and mutes), of
    VSCO 2's sustained trumpet and of FreePats' classical guitar.
    """
    parts = path.stem.split("_")
    if path.suffix == ".mp3" and len(parts) == 5 and (pitch := read_pitch(parts[1])) is not None:
        role = role_of_pitch(parts[0], pitch)
        return RecordedNote(path, parts[0], pitch, role, "philharmonia", parts[2] == "phrase")
    if path.suffix != ".flac":
        return None
    if len(parts) == 4 and parts[1].startswith("vl") and (pitch := read_pitch(parts[0])) in _SHINY_PITCHES:
        odd = _SHINY_PITCHES.index(pitch) % 2 == 1
        role = MODEL if parts[2] != "rr4" else RECOGNISER if odd else HELD_OUT
        return RecordedNote(path, "guitar", pitch, role, "shiny")
    if len(parts) == 4 and parts[0] == "sus" and (pitch := read_pitch(parts[3])) is not None:
        return RecordedNote(path, "trumpet", pitch + 12, HELD_OUT, "vsco")  # its names are an octave low
    if len(parts) == 1 and (pitch := read_pitch(parts[0])) is not None:
        pitch += 12 if pitch <= 33 else 0  # so are G1, G#1 and A1 of this guitar
        return RecordedNote(path, "guitar", pitch, HELD_OUT, "freepats")
    return None


def read_pitch(name: str) -> int | None:
    """Return the MIDI number of a note's name (C#4, Cs4, csharp4, db4), or None if it is none."""
    match = _NOTE.fullmatch(name)
    if match is None:
        return None
    letter, accidental, octave = match.groups()
    return 12 * (int(octave) + 1) + _SEMITONES[letter.lower()] + _ACCIDENTALS[accidental.lower()]


def role_of_pitch(instrument: str, pitch: int) -> str:
    """Return the role of a Philharmonia file by the pitch that its name gives (SPLIT_RULE)."""
    if pitch % 12 == 3:
        return HELD_OUT
    recognised = instrument not in MODELLED or pitch % 6 == 0 or pitch in _ALSO_RECOGNISER.get(instrument, ())
    return RECOGNISER if recognised else MODEL


def read_sound(note: RecordedNote) -> Sound | None:
    """Read a note and cut off the silence at its ends; None if nothing sounds in it."""
    audio = load_audio(note.path, LIBRARY_RATE)
    peak = np.abs(audio).max()
    if peak < 1e-4:
        return None
    sounding = np.flatnonzero(np.abs(audio) > _AUDIBLE * peak)
    return Sound(note, audio[sounding[0] : sounding[-1] + 1] / peak)


def string_melody(
    sounds: Sequence[Sound], seconds: float, rng: np.random.Generator, widest_shift: float = 1.0
) -> np.ndarray:
    """Return a melody on recorded notes of one instrument and room: float32 [N] at LIBRARY_RATE.

    A walk on a random scale, detached or legato, at changing levels, with a little vibrato at times. Sustained notes
    swell and are joined by short cross-fades; plucked ones ring until the next note or the finger damps them.

    Args:
        sounds: to choose from.
        seconds: length.
        rng: where chance comes from.
        widest_shift: semitones; any recording within them may sound for a pitch, else the nearest one.
    """
    sustained = sounds[0].note.instrument in SUSTAINED
    pitches = np.array([sound.note.pitch for sound in sounds])
    legato, tempo = rng.random(), np.exp(rng.uniform(np.log(0.12), np.log(0.8)))  # share of joins, s of a beat
    scale, key, dynamic = _SCALES[rng.integers(len(_SCALES))], rng.integers(12), rng.uniform(-12, 0)
    pitch = int(rng.choice(pitches))
    melody = np.zeros(round((seconds + 4) * LIBRARY_RATE), np.float32)
    at, joined = 0.0, False
    while at < seconds:
        length = tempo * rng.choice([0.5, 1, 1, 1, 2, 3])
        pitch = _next_pitch(pitch, pitches, scale, key, rng)
        near = np.flatnonzero(np.abs(pitches - pitch) <= max(widest_shift, np.abs(pitches - pitch).min()))
        if np.abs(pitches[near] - pitch).min() > _FARTHEST:
            pitch = int(pitches[near[0]])
        sound = sounds[int(rng.choice(near))]
        start = rng.uniform(0.05, 0.1) if joined and sustained else 0.0
        tone = _play(sound, pitch, start, length + 0.03, rng)
        joined = rng.random() < legato
        tone *= _envelope(len(tone), sustained, start > 0, rng)
        tone *= 10 ** ((dynamic + rng.uniform(-4, 4)) / 20)
        first = round(at * LIBRARY_RATE)
        melody[first : first + len(tone)] += tone
        at += length + (0 if joined else rng.uniform(0, 0.3) * tempo) + (tempo if rng.random() < 0.06 else 0)
        dynamic = np.clip(dynamic + rng.normal(0, 2), -18, 0)
    return melody[: round(seconds * LIBRARY_RATE)]


def _next_pitch(pitch: int, pitches: np.ndarray, scale: Sequence[int], key: int, rng: np.random.Generator) -> int:
    """Return a neighbour in the scale, inside the recorded range."""
    step = int(rng.choice([-5, -2, -1, -1, 0, 1, 1, 2, 5]))
    pitch = int(np.clip(pitch + 2 * step, pitches.min() - 2, pitches.max() + 2))
    return min(range(pitch - 2, pitch + 3), key=lambda other: ((other - key) % 12 not in scale, abs(other - pitch)))


def _play(sound: Sound, pitch: int, start: float, length: float, rng: np.random.Generator) -> np.ndarray:
    """Return a recorded note from ``start`` s on, moved to ``pitch``, as long as it was recorded or ``length`` s."""
    time = np.arange(round(length * LIBRARY_RATE)) / LIBRARY_RATE
    cents = rng.normal(0, 8) + 100 * (pitch - sound.note.pitch) * np.ones_like(time)
    if rng.random() < 0.3:
        cents += rng.uniform(5, 40) * np.sin(2 * np.pi * rng.uniform(4, 7) * time) * np.minimum(1, time / 0.3)
    if rng.random() < 0.15:
        cents += rng.uniform(-150, 150) * np.exp(-time / 0.06)
    position = start * LIBRARY_RATE + np.cumsum(2 ** (cents / 1200))
    inside = position < len(sound.audio) - 1
    if inside.sum() < 0.06 * LIBRARY_RATE:  # a note too short to be entered late
        position = position - start * LIBRARY_RATE
        inside = position < len(sound.audio) - 1
    first = int(position[0])
    recorded = sound.audio[first : int(position[inside][-1]) + 8]
    return map_coordinates(recorded, position[inside][None] - first, order=3, mode="nearest").astype(np.float32)


def _envelope(n_samples: int, sustained: bool, entered_late: bool, rng: np.random.Generator) -> np.ndarray:
    """Return gains [N]: the fades at both ends and, of a sustained note, a swell."""
    gains = np.ones(n_samples, np.float32)
    if sustained and n_samples > 0.2 * LIBRARY_RATE:
        points = rng.uniform(-6, 0, rng.integers(2, 5))
        level = np.interp(np.linspace(0, 1, n_samples), np.linspace(0, 1, len(points)), points)
        gains *= 10 ** (level / 20)
    fade_in = min(n_samples, round((0.03 if entered_late else 0.002) * LIBRARY_RATE))
    fade_out = min(n_samples, round(rng.uniform(0.02, 0.06) * LIBRARY_RATE))
    gains[:fade_in] *= np.linspace(0, 1, fade_in)
    gains[n_samples - fade_out :] *= np.linspace(1, 0, fade_out) ** 2
    return gains
