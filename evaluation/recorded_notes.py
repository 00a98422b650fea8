"""Recorded notes of real instruments: files, roles, and melodies concatenated from them.

A file's name gives its instrument, pitch and role by the rule in ``recordings/samples.py``, so that no sound used to
train or evaluate an instrument model also trains the recogniser. ``string_melody`` is deliberately simple and separate
from the renderer of the instrument models' training data, so that the recogniser does not learn artefacts of that
renderer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from recordings.samples import parse_name
from sound.audio_files import load_audio

RECOGNISER, HELD_OUT = "recogniser", "held_out"  # roles
SUSTAINED = frozenset({"trumpet", "saxophone", "violin", "flute", "clarinet", "oboe", "bassoon", "trombone", "cello"})
LIBRARY_RATE = 32000  # Hz: twice the required rate, so that pitch shifts by interpolation keep the highs
_AUDIBLE = 1e-3  # relative to the peak: both ends of a file are trimmed at -60 dB
_FARTHEST = 3.5  # semitones from the nearest recording: beyond this the recorded pitch is used
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10), tuple(range(12)))


@dataclass(frozen=True)
class RecordedNote:
    """File with one note or one phrase."""

    path: Path
    instrument: str
    pitch: int  # MIDI, sounding pitch
    role: str
    room: str  # label of the recording room
    phrase: bool = False


@dataclass(frozen=True)
class Sound:
    """Recorded note with its audio."""

    note: RecordedNote
    audio: np.ndarray  # float32 [N] at LIBRARY_RATE, peak 1


def find_notes(data_dir: Path) -> list[RecordedNote]:
    """Return the recorded notes in a folder and its subfolders, sorted by path; other files are skipped.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder has no recorded notes.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}")
    notes = [note for path in sorted(data_dir.rglob("*")) if (note := read_name(path))]
    if not notes:
        raise ValueError(f"{data_dir} holds no recorded notes; download them with scripts/download_samples.py")
    return notes


def read_name(path: Path) -> RecordedNote | None:
    """Parse a file's name; return None if it is not a note or phrase of a known collection."""
    sample = parse_name(path.name) if path.suffix in (".mp3", ".flac") else None
    if sample is None or sample.kind not in ("note", "phrase"):
        return None
    if path.suffix == ".mp3":
        room = "philharmonia"
    elif sample.instrument == "trumpet":
        room = "vsco"
    else:
        room = "shiny" if "_" in path.stem else "freepats"
    pitch = sample.midi + 12 * (room == "freepats" and sample.midi <= 33)  # its lowest notes are named an octave low
    return RecordedNote(path, sample.instrument, pitch, sample.role, room, sample.length == "phrase")


def read_sound(note: RecordedNote) -> Sound | None:
    """Read a note and trim the silence at both ends; return None if it is silent."""
    audio = load_audio(note.path, LIBRARY_RATE)
    peak = np.abs(audio).max()
    if peak < 1e-4:
        return None
    sounding = np.flatnonzero(np.abs(audio) > _AUDIBLE * peak)
    return Sound(note, audio[sounding[0] : sounding[-1] + 1] / peak)


def string_melody(
    sounds: Sequence[Sound], seconds: float, rng: np.random.Generator, widest_shift: float = 1.0
) -> np.ndarray:
    """Return a melody of recorded notes of one instrument and room: float32 [N] at LIBRARY_RATE.

    The melody is a random walk on a random scale, detached or legato, with varying levels and occasional vibrato.
    Sustained notes have a swell and are joined by short cross-fades; plucked notes ring until they are damped or the
    next note starts.

    Args:
        sounds: recorded notes to draw from.
        seconds: length of the melody in s.
        rng: random generator.
        widest_shift: semitones; a pitch is played by a random recording within this distance, or by the nearest.
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
    """Return a nearby pitch in the scale, inside the recorded range."""
    step = int(rng.choice([-5, -2, -1, -1, 0, 1, 1, 2, 5]))
    pitch = int(np.clip(pitch + 2 * step, pitches.min() - 2, pitches.max() + 2))
    return min(range(pitch - 2, pitch + 3), key=lambda other: ((other - key) % 12 not in scale, abs(other - pitch)))


def _play(sound: Sound, pitch: int, start: float, length: float, rng: np.random.Generator) -> np.ndarray:
    """Return a recorded note from ``start`` s on, shifted to ``pitch``, of at most ``length`` s."""
    time = np.arange(round(length * LIBRARY_RATE)) / LIBRARY_RATE
    cents = rng.normal(0, 8) + 100 * (pitch - sound.note.pitch) * np.ones_like(time)
    if rng.random() < 0.3:
        cents += rng.uniform(5, 40) * np.sin(2 * np.pi * rng.uniform(4, 7) * time) * np.minimum(1, time / 0.3)
    if rng.random() < 0.15:
        cents += rng.uniform(-150, 150) * np.exp(-time / 0.06)
    position = start * LIBRARY_RATE + np.cumsum(2 ** (cents / 1200))
    inside = position < len(sound.audio) - 1
    if inside.sum() < 0.06 * LIBRARY_RATE:  # too short to skip its start
        position = position - start * LIBRARY_RATE
        inside = position < len(sound.audio) - 1
    first = int(position[0])
    recorded = sound.audio[first : int(position[inside][-1]) + 8]
    return map_coordinates(recorded, position[inside][None] - first, order=3, mode="nearest").astype(np.float32)


def _envelope(n_samples: int, sustained: bool, entered_late: bool, rng: np.random.Generator) -> np.ndarray:
    """Return gains [N]: fades at both ends and, for sustained notes, a swell."""
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
