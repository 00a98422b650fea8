"""Conversion of live playing to MIDI notes with pitch bend; ``web/live/midi.js`` does the same on the live page."""

import math
from typing import Protocol

import mido

_BEND_RANGE = 2.0  # semitones in each direction, the default of synthesizers
_NEW_NOTE = 0.8  # semitones from the current note that start a new note, if they last for ...
_NEW_NOTE_FRAMES = 3  # frames
_SOFT, _LOUD = -50.0, -10.0  # dB, loudness of velocities 1 and 127


class PlayedNote(Protocol):
    """Fields of ``causal_transfer.PlayedFrame`` that are used here."""

    f0: float
    loudness: float
    voiced: bool


class MidiPortError(ValueError):
    """Error if a MIDI port does not exist or python-rtmidi is not installed."""


def open_midi_port(name: str) -> mido.ports.BaseOutput:
    """Open the first MIDI output whose name starts with ``name``.

    Raises:
        MidiPortError: there is no such output, or python-rtmidi is not installed.
    """
    try:
        names = mido.get_output_names()
    except ImportError as error:
        message = "the package python-rtmidi is missing; install it by ./venv/bin/python -m pip install python-rtmidi"
        raise MidiPortError(message) from error
    found = next((each for each in names if each.startswith(name)), None)
    if found is None:
        raise MidiPortError(f"there is no MIDI output '{name}'; there is {', '.join(names) or 'none'}")
    return mido.open_output(found)


class NoteWriter:
    """Converter of frames to MIDI messages: one note per sung note, with pitch bend to the played pitch."""

    def __init__(self) -> None:
        self._note: int | None = None
        self._frames_away = 0

    def follow(self, frame: PlayedNote) -> list[mido.Message]:
        """Return the messages for the next frame."""
        if not frame.voiced:
            return self.end()
        pitch = 69 + 12 * math.log2(frame.f0 / 440)
        is_away = self._note is not None and abs(pitch - self._note) > _NEW_NOTE
        self._frames_away = self._frames_away + 1 if is_away else 0
        messages = self.end() if self._frames_away >= _NEW_NOTE_FRAMES else []
        begins = self._note is None
        if begins:
            self._note = min(max(round(pitch), 0), 127)
        bend = round(8192 * (pitch - self._note) / _BEND_RANGE)
        messages.append(mido.Message("pitchwheel", pitch=min(max(bend, -8192), 8191)))
        if begins:
            velocity = round(1 + 126 * (frame.loudness - _SOFT) / (_LOUD - _SOFT))
            messages.append(mido.Message("note_on", note=self._note, velocity=min(max(velocity, 1), 127)))
        return messages

    def end(self) -> list[mido.Message]:
        """Return the note-off message of the current note, or no message if there is none."""
        messages = [] if self._note is None else [mido.Message("note_off", note=self._note, velocity=0)]
        self._note, self._frames_away = None, 0
        return messages
