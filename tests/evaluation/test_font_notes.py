"""evaluation/font_notes.py: notes of sound fonts for the recogniser."""

import io
from pathlib import Path

import mido
import numpy as np
import pytest

from evaluation import font_notes
from evaluation.recorded_notes import LIBRARY_RATE


def play(midi: bytes, seconds: float, program: str, font: Path) -> np.ndarray:
    """Play each note of a MIDI file as a sine, as a replacement for FluidSynth."""
    audio, now, pitch = np.zeros(round(seconds * font_notes.SAMPLE_RATE)), 0.0, None
    for message in mido.MidiFile(file=io.BytesIO(midi)):
        first, now = round(now * font_notes.SAMPLE_RATE), now + message.time
        time = np.arange(first, min(len(audio), round(now * font_notes.SAMPLE_RATE))) / font_notes.SAMPLE_RATE
        if pitch is not None:
            audio[first : first + len(time)] = 0.2 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        if message.type in ("note_on", "note_off"):
            pitch = message.note if message.type == "note_on" else None
    return audio


def test_each_note_of_a_font_is_cut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_notes, "render_midi", play)
    monkeypatch.setattr(font_notes, "find_program", lambda: "fluidsynth")
    font = tmp_path / "own.sf2"
    font.touch()
    sounds = font_notes.render_notes(font, "bassoon")
    assert [sound.note.pitch for sound in sounds[::3]] == list(range(34, 73, 2)) and len(sounds) == 3 * 20
    assert {sound.note.room for sound in sounds} == {"own"}
    for sound in sounds[::7]:
        assert len(sound.audio) == pytest.approx(2 * LIBRARY_RATE, rel=0.02)
        assert np.abs(sound.audio).max() == pytest.approx(1, abs=0.01)
        spectrum = np.abs(np.fft.rfft(sound.audio))
        peak = spectrum.argmax() * LIBRARY_RATE / len(sound.audio)
        assert 12 * np.log2(peak / 440) + 69 == pytest.approx(sound.note.pitch, abs=0.2)


def test_a_missing_font_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.sf2"):
        font_notes.render_notes(tmp_path / "missing.sf2", "flute")
