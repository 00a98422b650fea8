"""MIDI: the notes of a melody as a file, and a file's notes as a melody.

A voice slides and swings; the notes written follow it with the pitch wheel. Read, a file plays one note at a time,
as the instrument does: a new note ends the one before, and of a chord the highest is heard.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np
from mido.midifiles.meta import KeySignatureError

from config import Config
from sound.atomic_files import atomic_write
from sound.note_names import hz_to_midi, midi_to_hz
from voice.curves import MAX_SECONDS, Curves, Melody
from voice.note_finder import SungNote

_TICKS_PER_BEAT = 500  # at 120 beats a minute a tick is a millisecond
_DRUMS = 9  # the channel that has no pitch
_WHEEL = 8192  # steps of the pitch wheel either way
_WHEEL_RANGE = 2.0  # semitones either way, unless a file says otherwise
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, ZeroDivisionError, KeySignatureError)  # of mido
_CHORD_SECONDS = 0.03  # notes that begin within this are one chord


class MidiNote(NamedTuple):
    start: float  # s
    end: float  # s
    key: int  # MIDI number
    velocity: int  # 1..127
    channel: int = 0


# --- writing --------------------------------------------------------------------------------------


def write_midi(path: Path, notes: Sequence[SungNote], curves: Curves, config: Config) -> int:
    """Write notes, with bends that follow the f0 of the curves; return how many there are."""
    track = mido.MidiTrack()
    loudest = max((note.level for note in notes), default=0.0)
    events = [event for note in notes for event in _note_events(note, loudest, curves, config)]
    setup = [
        ("control_change", {"control": control, "value": value})
        for control, value in ((101, 0), (100, 0), (6, int(_WHEEL_RANGE)), (38, 0))
    ]
    track.extend(mido.Message(kind, time=0, **values) for kind, values in setup)
    now = 0
    for tick, kind, values in sorted(events, key=lambda event: event[0]):  # stable: an end before the next beginning
        track.append(mido.Message(kind, time=tick - now, **values))
        now = tick
    with atomic_write(path) as partial:
        mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_BEAT, tracks=[track]).save(partial)
    return len(notes)


def _note_events(
    note: SungNote, loudest: float, curves: Curves, config: Config
) -> list[tuple[int, str, dict[str, int]]]:
    """Return a note's messages as (tick, kind, values): wheel, note on, moves of the wheel, note off."""
    tick, where, key = 1000 / config.audio.frame_rate, slice(note.onset, note.end), round(note.pitch)
    bends = np.clip((hz_to_midi(curves.f0[where]) - key) / _WHEEL_RANGE, -1, 1) * _WHEEL
    bends = np.clip(np.round(bends), -_WHEEL, _WHEEL - 1).astype(int)
    velocity = round(127 * 10 ** ((note.level - loudest) / 40))
    start = round(where.start * tick)
    events = [(start, "pitchwheel", {"pitch": int(bends[0])})]
    events.append((start, "note_on", {"note": key, "velocity": max(1, velocity)}))
    moved = np.flatnonzero(np.diff(bends)) + 1
    events += [(round((where.start + frame) * tick), "pitchwheel", {"pitch": int(bends[frame])}) for frame in moved]
    return [*events, (round(where.stop * tick), "note_off", {"note": key, "velocity": 0})]


# --- reading --------------------------------------------------------------------------------------


def read_midi(path: Path) -> tuple[list[MidiNote], list[tuple[float, int, float]]]:
    """Read a file's notes, drums left out, and its bends as (s, channel, semitones), both in the order of time.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a MIDI file, or one without notes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        messages = list(mido.MidiFile(path, clip=True))
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as MIDI ({str(error) or 'it ends too early'})") from error
    notes, bends = _collect_notes(messages)
    if not notes:
        raise ValueError(f"{path} holds no notes")
    if (end := max(note.end for note in notes)) > MAX_SECONDS:
        raise ValueError(f"{path} lasts {end / 3600:.0f} hours, and up to {MAX_SECONDS / 3600:.0f} can be played")
    return notes, bends


def _collect_notes(messages: list[mido.Message]) -> tuple[list[MidiNote], list[tuple[float, int, float]]]:
    """Turn messages, each ``time`` seconds after the one before, into notes and bends."""
    now, notes, bends = 0.0, [], []
    held: dict[tuple[int, int], tuple[float, int]] = {}  # (channel, key) -> start, velocity
    wheel_range: dict[int, float] = {}
    parameter: dict[int, dict[int, int]] = {}
    for message in messages:
        now += message.time
        if message.is_meta or getattr(message, "channel", _DRUMS) == _DRUMS:
            continue
        channel = message.channel
        if message.type in ("note_on", "note_off"):
            begun = held.pop((channel, message.note), None)
            if begun and now > begun[0]:
                notes.append(MidiNote(begun[0], now, message.note, begun[1], channel))
            if message.type == "note_on" and message.velocity:
                held[channel, message.note] = (now, message.velocity)
        elif message.type == "pitchwheel":
            bends.append((now, channel, message.pitch / _WHEEL * wheel_range.get(channel, _WHEEL_RANGE)))
        elif message.type == "control_change":
            chosen = parameter.setdefault(channel, {})
            chosen[message.control] = message.value
            if message.control == 6 and (chosen.get(101), chosen.get(100)) == (0, 0):
                wheel_range[channel] = float(message.value)
    # What is never let go ends with the file.
    notes += [MidiNote(start, now, key, velocity, channel) for (channel, key), (start, velocity) in held.items()]
    return sorted(note for note in notes if note.end > note.start), bends


def make_monophonic(notes: list[MidiNote], gap: float) -> list[MidiNote]:
    """Keep of each chord the highest note, and end each note where the next begins; ``gap`` s before the same note."""
    tops: list[MidiNote] = []
    for note in notes:
        if tops and note.start - tops[-1].start < _CHORD_SECONDS:
            if note.key > tops[-1].key:
                tops[-1] = note._replace(start=tops[-1].start)
        else:
            tops.append(note)
    latest = [after.start - gap * (after.key == note.key) for note, after in pairwise(tops)] + [np.inf]
    return [note._replace(end=min(note.end, end)) for note, end in zip(tops, latest)]


def chord_fraction(notes: list[MidiNote], frame_rate: float) -> float:
    """Return the share of the sounding frames in which more than one note is held."""
    held = np.zeros(round(max(note.end for note in notes) * frame_rate) + 1, dtype=int)
    for note in notes:
        held[round(note.start * frame_rate) : round(note.end * frame_rate)] += 1
    return float((held > 1).sum() / max((held > 0).sum(), 1))


def melody_from_notes(
    notes: list[MidiNote], bends: list[tuple[float, int, float]], top: float, config: Config
) -> tuple[Melody, list[SungNote]]:
    """Turn notes into the curves of a melody, and into its notes in frames.

    Args:
        notes: one at a time, in their order.
        bends: (s, channel, semitones).
        top: dB, the loudness of the highest velocity; half the velocity is 12 dB less.
    """
    settings, frame_rate, floor = config.transfer, config.audio.frame_rate, config.features.loudness_floor
    n_frames = round((notes[-1].end + 2 * settings.release_seconds) * frame_rate) + 1
    begins = [round(note.start * frame_rate) for note in notes]
    pitch, loudness = np.full(n_frames, float(notes[0].key)), np.full(n_frames, floor)
    voiced, written = np.zeros(n_frames, dtype=bool), []
    for note, begin, following in zip(notes, begins, [*begins[1:], n_frames]):
        end = max(begin + 1, min(round(note.end * frame_rate), following))
        held = slice(begin, end)
        loudness[held] = top + _note_loudness(note, (end - begin) / frame_rate, config)[: end - begin]
        pitch[begin:following] = note.key
        voiced[held] = True
        written.append(SungNote(begin, end, float(note.key), float(loudness[held].max())))
    pitch += _bend_curve(notes, begins, bends, np.arange(n_frames) / frame_rate)
    return Melody(midi_to_hz(pitch), np.maximum(loudness, floor), voiced.astype(float), voiced), written


def read_midi_f0(path: Path, n_frames: int, config: Config) -> np.ndarray:
    """Return the f0 in Hz that a MIDI file asks for, 0 between notes: [T].

    The pitch wheel moves it, which is all that bends, slides and vibrato are in what ``render_dataset.py`` writes.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it cannot be read.
    """
    melody, _ = melody_from_notes(*read_midi(path), top=0.0, config=config)
    f0 = np.where(melody.voiced, melody.f0, 0.0)[:n_frames]
    return np.pad(f0, (0, n_frames - len(f0)))


def _note_loudness(note: MidiNote, seconds: float, config: Config) -> np.ndarray:
    """Return a note's loudness in dB below that of the highest velocity: it speaks, then dies away."""
    settings = config.transfer
    times = np.arange(round(seconds * config.audio.frame_rate)) / config.audio.frame_rate
    attack = settings.midi_attack_depth * np.clip(1 - times / settings.midi_attack_seconds, 0, 1)
    return 40 * np.log10(note.velocity / 127) - attack - settings.midi_held_decay * times


def _bend_curve(
    notes: list[MidiNote], begins: list[int], bends: list[tuple[float, int, float]], times: np.ndarray
) -> np.ndarray:
    """Return the bend in semitones [T] of the channel whose note is played; each holds until the next."""
    number = np.clip(np.searchsorted(begins, np.arange(len(times)), side="right") - 1, 0, None)
    playing = np.array([note.channel for note in notes])[number]
    bend = np.zeros(len(times))
    for channel in {note.channel for note in notes}:
        moves = [(time, semitones) for time, of, semitones in bends if of == channel]
        when = np.array([time for time, _ in moves])
        semitones = np.array([0.0, *(value for _, value in moves)])
        is_played = playing == channel
        bend[is_played] = semitones[np.searchsorted(when, times[is_played] + 1e-6)]
    return bend
