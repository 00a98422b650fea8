"""Write a melody as MIDI, and read MIDI as a melody.

Pitch bends in the written file follow the f0 of the voice. A file that is read is interpreted as a General MIDI
synthesizer would, but monophonically: a new note ends the previous one, and of a chord only the highest note is kept.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np
from mido.midifiles.meta import KeySignatureError

from config import Config
from sound.atomic_files import atomic_write
from sound.crepe import hz_to_midi, midi_to_hz
from voice.curves import MAX_SECONDS, Curves, Melody
from voice.note_finder import SungNote

_TICKS_PER_BEAT = 500  # at 120 beats per minute a tick is a millisecond
_DRUMS = 9  # channel index of the drums, which have no pitch
_WHEEL = 8192  # steps of the pitch wheel either way
_WHEEL_RANGE = 2.0  # semitones either way, the default
_MEMBER_RANGE = 48.0  # semitones, the default of a member channel in MPE
_BEND_RANGE, _MPE_ZONE = (0, 0), (0, 6)  # registered parameters, selected by CC 101 and 100
_TEMPO = 500_000  # microseconds per beat, the default
_MAX_BYTES = 3_000_000  # a million events: two hours with a bend in every frame
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, ZeroDivisionError, KeySignatureError)  # of mido
_CHORD_SECONDS = 0.03  # notes that begin within this are one chord
_Keys = dict[int, deque[tuple[float, int]]]  # key: start in s and velocity, the oldest first
_ATTACK_SECONDS, _ATTACK_DEPTH = 0.03, 9.0  # s and dB: duration and rise of the attack of a MIDI note
_GAP_SECONDS = 0.03  # between two notes of the same pitch


class MidiNote(NamedTuple):
    start: float  # s
    end: float  # s
    key: int  # MIDI number
    velocity: int  # 1..127
    channel: int = 0


# --- writing --------------------------------------------------------------------------------------


def write_midi(path: Path, notes: Sequence[SungNote], curves: Curves, config: Config) -> int:
    """Write notes, with pitch bends that follow the f0 of the curves; return the number of notes."""
    track = mido.MidiTrack()
    loudest = max((note.level for note in notes), default=0.0)
    events = [event for note in notes for event in _note_events(note, loudest, curves, config)]
    setup = [
        ("control_change", {"control": control, "value": value})
        for control, value in ((101, 0), (100, 0), (6, int(_WHEEL_RANGE)), (38, 0))
    ]
    track.extend(mido.Message(kind, time=0, **values) for kind, values in setup)
    now = 0
    for tick, kind, values in sorted(events, key=lambda event: event[0]):  # stable: note_off before the next note_on
        track.append(mido.Message(kind, time=tick - now, **values))
        now = tick
    with atomic_write(path) as partial:
        mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_BEAT, tracks=[track]).save(partial)
    return len(notes)


def _note_events(
    note: SungNote, loudest: float, curves: Curves, config: Config
) -> list[tuple[int, str, dict[str, int]]]:
    """Return a note's messages as (tick, kind, values): bend, note on, further bends, note off."""
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
    """Read a file's notes, without drums, and its bends as (s, channel, semitones), both in order of time.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a MIDI file, one without notes, or one that is too long.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB; the limit for MIDI is {_MAX_BYTES / 1e6:.0f} MB")
    receiver = _Receiver()
    try:
        for now, message in _time_messages(mido.MidiFile(path, clip=True)):
            receiver.receive(now, message)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as MIDI ({str(error) or 'it ends too early'})") from error
    notes, bends = receiver.finish(), receiver.bends
    if not notes:
        raise ValueError(f"{path} has no notes")
    if (end := max(note.end for note in notes)) > MAX_SECONDS:
        raise ValueError(f"{path} lasts {end / 3600:.0f} hours; the limit is {MAX_SECONDS / 3600:.0f}")
    return notes, bends


def _time_messages(file: mido.MidiFile) -> Iterator[tuple[float, mido.Message]]:
    """Yield the messages of all tracks, each with its time in seconds."""
    if file.type == 2:
        raise ValueError("its tracks are separate pieces; save one of them")
    division, tempo, now, last = file.ticks_per_beat, _TEMPO, 0.0, 0
    each = [zip(accumulate(message.time for message in track), track) for track in file.tracks]
    for tick, message in sorted((event for track in each for event in track), key=itemgetter(0)):
        now, last = now + (tick - last) * _tick_seconds(division, tempo), tick
        yield now, message
        if message.type == "set_tempo":
            tempo = message.tempo or tempo  # with 0 time would stand still


def _tick_seconds(division: int, tempo: int) -> float:
    """Return the length of a tick in seconds: a fraction of a beat, or of a SMPTE frame if ``division`` is negative."""
    if division > 0:
        return tempo / 1e6 / division
    frames = -(division >> 8)
    return 1 / ((30 / 1.001 if frames == 29 else frames) * (division & 0xFF))


class _Receiver:
    """Synthesizer state that turns messages into notes and bends.

    Several note-ons may hold the same key of a channel; each note-off ends the oldest. An MPE zone (RPN 6) has one
    member channel per note, and a manager channel whose bend applies to all of them.
    """

    def __init__(self) -> None:
        self.notes: list[MidiNote] = []
        self.bends: list[tuple[float, int, float]] = []
        self._now = 0.0
        self._held: list[_Keys] = [{} for _ in range(16)]  # by channel
        self._ringing: list[_Keys] = [{} for _ in range(16)]  # released, but held by the pedal
        self._released: dict[tuple[int, int], float] = {}  # (channel, key): time of the last note-off
        self._pedals: set[int] = set()  # channels
        self._wheel, self._range, self._bend = [0.0] * 16, [_WHEEL_RANGE] * 16, [0.0] * 16  # -1..1, semitones, both
        self._parameter: list[dict[int, int]] = [{} for _ in range(16)]  # control: value
        self._is_registered = [False] * 16
        self._zones: dict[int, range] = {}  # manager: members

    def receive(self, now: float, message: mido.Message) -> None:
        self._now, channel = now, getattr(message, "channel", None)
        if channel is None or (channel == _DRUMS and not any(_DRUMS in members for members in self._zones.values())):
            return
        if message.type == "note_on" and message.velocity:
            self._end(self._ringing, channel, message.note)
            self._held[channel].setdefault(message.note, deque()).append((now, message.velocity))
        elif message.type in ("note_on", "note_off"):
            self._release(channel, message.note)
        elif message.type == "pitchwheel":
            self._wheel[channel] = message.pitch / _WHEEL
            self._move(channel)
        elif message.type == "control_change" and message.control in (6, 38, 98, 99, 100, 101):
            self._set_parameter(channel, message.control, message.value)
        elif message.type == "control_change":
            for each in (channel, *self._zones.get(channel, ())):
                self._control(each, message.control, message.value)

    def finish(self) -> list[MidiNote]:
        """Return the notes in order; one without a note-off ends with the last one of its key, or with the file."""
        for channel in range(16):
            for key in list(self._ringing[channel]):
                self._end(self._ringing, channel, key)
            for key, begun in self._held[channel].items():
                for start, velocity in begun:
                    released = self._released.get((channel, key), 0.0)
                    self._add(start, released if released > start else self._now, key, velocity, channel)
        return sorted(self.notes)

    def _add(self, start: float, end: float, key: int, velocity: int, channel: int) -> None:
        if end > start:
            self.notes.append(MidiNote(start, end, key, velocity, channel))

    def _release(self, channel: int, key: int) -> None:
        self._released[channel, key] = self._now
        if begun := self._held[channel].get(key):
            self._ringing[channel].setdefault(key, deque()).append(begun.popleft())
            if not begun:
                del self._held[channel][key]
        if channel not in self._pedals:
            self._end(self._ringing, channel, key)

    def _end(self, keys: list[_Keys], channel: int, key: int) -> None:
        for start, velocity in keys[channel].pop(key, ()):
            self._add(start, self._now, key, velocity, channel)

    def _control(self, channel: int, control: int, value: int) -> None:
        if control == 64 and value >= 64:
            self._pedals.add(channel)
        elif control in (64, 120, 121):  # pedal up, all sound off, reset
            if control != 120:
                self._pedals.discard(channel)
            for key in list(self._ringing[channel]):
                self._end(self._ringing, channel, key)
        elif control >= 123:  # all notes off, which every change of mode implies
            for key, begun in list(self._held[channel].items()):
                for _ in list(begun):
                    self._release(channel, key)
        if control == 120:
            for key in list(self._held[channel]):
                self._end(self._held, channel, key)
        if control == 121:
            self._wheel[channel], self._is_registered[channel] = 0.0, False
            self._move(channel)

    def _set_parameter(self, channel: int, control: int, value: int) -> None:
        """Select a parameter, registered (CC 101, 100) or not (99, 98), or set its value (6, and 38 for cents)."""
        if control >= 98:
            self._parameter[channel][control], self._is_registered[channel] = value, control >= 100
            return
        chosen = tuple(self._parameter[channel].get(which) for which in (101, 100))
        if not self._is_registered[channel]:
            return
        if chosen == _BEND_RANGE:  # sent to one member of a zone, it applies to all
            zone = next((members for members in self._zones.values() if channel in members), (channel,))
            semitones = value if control == 6 else int(self._range[channel]) + value / 100
            for each in zone:
                self._range[each] = float(semitones)
                self._move(each)
        elif chosen == _MPE_ZONE and control == 6 and channel in (0, 15):
            self._zones[channel] = range(1, min(1 + value, 16)) if channel == 0 else range(max(0, 15 - value), 15)
            self._range[channel] = _WHEEL_RANGE
            for each in self._zones[channel]:
                self._range[each] = _MEMBER_RANGE
            self._move(channel)

    def _move(self, channel: int) -> None:
        """Record the bend of a channel and, if it is a manager, of its members."""
        for each in (channel, *self._zones.get(channel, ())):
            managers = [manager for manager, members in self._zones.items() if each in members]
            bend = sum(self._wheel[one] * self._range[one] for one in (each, *managers))
            if bend != self._bend[each]:
                self.bends.append((self._now, each, bend))
                self._bend[each] = bend


def make_monophonic(notes: list[MidiNote], gap: float = _GAP_SECONDS) -> list[MidiNote]:
    """Keep the highest note of each chord, and end each note where the next begins; ``gap`` s earlier if it repeats."""
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
    """Return the fraction of the sounding frames in which more than one note is held."""
    starts, ends = (np.round(np.array([note[side] for note in notes]) * frame_rate).astype(int) for side in (0, 1))
    held = np.cumsum(np.bincount(starts, minlength=ends.max() + 1) - np.bincount(ends, minlength=ends.max() + 1))
    return float((held > 1).sum() / max((held > 0).sum(), 1))


def melody_from_notes(
    notes: list[MidiNote], bends: list[tuple[float, int, float]], top: float, config: Config
) -> tuple[Melody, list[SungNote]]:
    """Convert MIDI notes to the curves of a melody and to its notes in frames.

    Args:
        notes: monophonic, in order.
        bends: (s, channel, semitones), in order.
        top: dB, loudness at the highest velocity; half the velocity is 12 dB less.
        config: frame rate, loudness floor and transfer settings.
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


def _note_loudness(note: MidiNote, seconds: float, config: Config) -> np.ndarray:
    """Return a note's loudness [n] in dB relative to the highest velocity: an attack, then a slow decay."""
    settings = config.transfer
    times = np.arange(round(seconds * config.audio.frame_rate)) / config.audio.frame_rate
    attack = _ATTACK_DEPTH * np.clip(1 - times / _ATTACK_SECONDS, 0, 1)
    return 40 * np.log10(note.velocity / 127) - attack - settings.midi_held_decay * times


def _bend_curve(
    notes: list[MidiNote], begins: list[int], bends: list[tuple[float, int, float]], times: np.ndarray
) -> np.ndarray:
    """Return the bend [T] in semitones of the channel that plays in each frame; each bend holds until the next."""
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
