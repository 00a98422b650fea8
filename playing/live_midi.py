"""What is played live as MIDI notes with bends; the live page does the same (``web/live/midi.js``)."""

import math
from typing import Protocol

import mido

_BEND_RANGE = 2.0  # semitones either way, what synthesizers begin with
_NEW_NOTE = 0.8  # semitones away from the note, over ...
_NEW_NOTE_FRAMES = 3  # frames: another note
_SOFT, _LOUD = -50.0, -10.0  # dB, of velocities 1 and 127


class PlayedNote(Protocol):
    """What is needed of ``causal_transfer.PlayedFrame``."""

    f0: float
    loudness: float
    voiced: bool


class MidiPortError(ValueError):
    """There is no such MIDI port, or nothing to open it with."""


def open_midi_port(name: str) -> mido.ports.BaseOutput:
    """Open a MIDI output by name, or by the beginning of one.

    Raises:
        MidiPortError: it is not there, or python-rtmidi is not installed.
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
    """Turn frames into MIDI messages: a note as long as the voice sings it, bent to the pitch that is played."""

    def __init__(self) -> None:
        self._note: int | None = None
        self._frames_away = 0

    def follow(self, frame: PlayedNote) -> list[mido.Message]:
        """Return the messages of the next frame."""
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
        """Return what ends the note that sounds, if one does."""
        messages = [] if self._note is None else [mido.Message("note_off", note=self._note, velocity=0)]
        self._note, self._frames_away = None, 0
        return messages
