"""Notes of General MIDI sound fonts: more players, rooms and microphones to train the recogniser on.

The notes of a font are recordings of other players. They are used for training only; the recogniser is tested on
plain recordings. Do not use fonts that an instrument model was trained on. MuseScore General is partly derived from
FluidR3 GM, which the models before the shipped ones were trained on.
"""

import io
from pathlib import Path

import mido
import numpy as np
import soxr

from evaluation.recorded_notes import LIBRARY_RATE, RECOGNISER, SUSTAINED, RecordedNote, Sound
from recordings.soundfont import SAMPLE_RATE, find_program, render_midi

_PROGRAMS = (  # instrument, bank, program, lowest and highest pitch (MIDI) in practice
    ("trumpet", 0, 56, 52, 86),
    ("guitar", 0, 24, 40, 84),
    ("guitar", 0, 25, 40, 84),
    ("saxophone", 0, 64, 56, 80),
    ("saxophone", 0, 65, 49, 80),
    ("saxophone", 0, 66, 44, 74),
    ("violin", 0, 40, 55, 96),
    ("flute", 0, 73, 60, 96),
    ("clarinet", 0, 71, 50, 91),
    ("oboe", 0, 68, 58, 88),
    ("bassoon", 0, 70, 34, 72),
    ("trombone", 0, 57, 40, 74),
    ("cello", 0, 42, 36, 80),
    ("banjo", 0, 105, 48, 86),
    ("mandolin", 16, 25, 55, 90),
)
_VELOCITIES = (45, 80, 118)
_SECONDS, _STEP = (2.5, 2.0), 3.5  # s: duration of a plucked and of a sustained note; time between note onsets
_SILENT = 1e-4  # peak: below this the font does not have the instrument


def render_notes(font: Path, instrument: str) -> list[Sound]:
    """Return every second semitone of an instrument at three velocities; empty if the font does not have it.

    Raises:
        FileNotFoundError, OSError: FluidSynth or the font is missing, or FluidSynth failed.
    """
    if not font.is_file():
        raise FileNotFoundError(f"there is no sound font {font}")
    programs, sounds = [row[1:] for row in _PROGRAMS if row[0] == instrument], []
    for bank, program, lowest, highest in programs:
        notes = [(pitch, velocity) for pitch in range(lowest, highest + 1, 2) for velocity in _VELOCITIES]
        notes = notes[:: min(len(programs), 2)]
        midi = _write_midi(bank, program, notes, _SECONDS[instrument in SUSTAINED])
        audio = render_midi(midi, _STEP * len(notes), find_program(), font)
        audio = soxr.resample(audio, SAMPLE_RATE, LIBRARY_RATE).astype(np.float32)
        n_samples = round(_STEP * LIBRARY_RATE)
        for number, (pitch, _) in enumerate(notes):
            sound = audio[number * n_samples : (number + 1) * n_samples - LIBRARY_RATE // 10]  # without next attack
            peak = np.abs(sound).max()
            if peak > _SILENT:
                sounding = np.flatnonzero(np.abs(sound) > 1e-3 * peak)
                note = RecordedNote(font, instrument, pitch, RECOGNISER, font.stem)
                sounds.append(Sound(note, sound[sounding[0] : sounding[-1] + 1] / peak))
    return sounds


def _write_midi(bank: int, program: int, notes: list[tuple[int, int]], seconds: float) -> bytes:
    """Return a MIDI file of notes (pitch, velocity), each held for ``seconds`` s."""
    file, track = mido.MidiFile(ticks_per_beat=1000), mido.MidiTrack()
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=1_000_000))  # one tick is 1 ms
    track.append(mido.Message("control_change", control=0, value=bank))
    track.append(mido.Message("program_change", program=program))
    gap = 0
    for pitch, velocity in notes:
        track.append(mido.Message("note_on", note=pitch, velocity=velocity, time=gap))
        track.append(mido.Message("note_off", note=pitch, time=round(1000 * seconds)))
        gap = round(1000 * (_STEP - seconds))
    content = io.BytesIO()
    file.save(file=content)
    return content.getvalue()
