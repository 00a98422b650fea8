"""midi.py: notes to a file and back, files of other programs, chords, bends, and files that are none."""

import mido
import numpy as np
import pytest

from config import load_config
from voice.curves import Melody, shape_notes
from voice.midi import (
    MidiNote,
    chord_fraction,
    make_monophonic,
    melody_from_notes,
    read_midi,
    write_midi,
)
from voice.note_finder import find_notes

CONFIG = load_config()


def sung(keys: list[int], n_frames: int = 50, rest: int = 20) -> Melody:
    """Return notes of 0.5 s with vibrato; the first two are slurred, the others rests apart."""
    pitch, loudness, voiced = [], [], []
    for number, key in enumerate(keys):
        frames = np.arange(n_frames + rest * (number > 0))
        pitch.append(key + 0.3 * np.sin(2 * np.pi * 5 * frames / 100))
        loudness.append(np.full(len(frames), -20.0 - 3 * number))
        voiced.append(frames < n_frames)
    pitch, loudness, voiced = (np.concatenate(parts) for parts in (pitch, loudness, voiced))
    return Melody(440 * 2 ** ((pitch - 69) / 12), loudness, voiced.astype(float), voiced)


def notes_of(tune: Melody):
    return find_notes(tune.f0, tune.loudness, tune.voiced, CONFIG.audio.frame_rate)


def save(path, messages: list[mido.Message], **settings):
    track = mido.MidiTrack(messages)
    mido.MidiFile(tracks=[track], ticks_per_beat=500, **settings).save(path)
    return path


def test_what_is_written_is_what_was_sung(tmp_path) -> None:
    tune = sung([60, 62, 67, 59])
    curves = shape_notes(tune, CONFIG)
    assert write_midi(tmp_path / "tune.mid", notes_of(tune), curves, CONFIG) == 4
    notes, bends = read_midi(tmp_path / "tune.mid")
    assert [note.key for note in notes] == [60, 62, 67, 59]
    assert [note.start for note in notes] == pytest.approx([0, 0.5, 1.2, 1.9], abs=0.02)
    assert [note.end for note in notes] == pytest.approx([0.5, 1.0, 1.7, 2.4], abs=0.02)
    assert notes[0].velocity == 127 and notes[3].velocity == pytest.approx(127 * 10 ** (-9 / 40), abs=1)
    again, written = melody_from_notes(notes, bends, -20.0, CONFIG)
    assert [note.pitch for note in written] == [60, 62, 67, 59]
    both = curves.voiced & again.voiced[: len(curves.voiced)]
    assert both.sum() > 190
    cents = 1200 * np.log2(again.f0[: len(both)][both] / curves.f0[both])
    assert np.percentile(np.abs(cents), 95) < 1  # the wheel's step is 0.02 cents; the notes' borders are the rest


def test_a_short_glide_makes_no_note() -> None:
    tune = sung([60, 64])
    tune.f0[45:55] = np.geomspace(tune.f0[44], tune.f0[55], 10)
    assert [round(note.pitch) for note in notes_of(tune)] == [60, 64]


def test_a_bend_beyond_the_wheels_reach_stays_at_its_end(tmp_path) -> None:
    tune = sung([60])
    tune.f0[20], tune.f0[30] = 440.0, 220.0  # too short for notes; nine semitones up, and three down
    assert write_midi(tmp_path / "tune.mid", notes_of(tune), shape_notes(tune, CONFIG), CONFIG) == 1
    bends = [semitones for _, _, semitones in read_midi(tmp_path / "tune.mid")[1]]
    assert max(bends) == pytest.approx(2.0, abs=1e-3) and min(bends) == -2.0


def test_each_note_is_bent_by_its_own_channel_from_the_frame_on() -> None:
    notes = [MidiNote(0.0, 0.5, 60, 100, channel=0), MidiNote(0.5, 1.0, 60, 100, channel=1)]
    bends = [(0.1, 0, 1.0), (0.2, 1, -1.5), (0.6, 0, 2.0), (0.8, 1, 0.5)]
    tune, _ = melody_from_notes(notes, bends, -15.0, CONFIG)
    pitch = np.repeat([60.0, 61.0, 58.5, 60.5], [10, 40, 30, 20])
    assert 12 * np.log2(tune.f0[:100] / 440) + 69 == pytest.approx(pitch)


def test_tempo_bend_range_and_drums_of_other_programs(tmp_path) -> None:
    path = save(
        tmp_path / "other.mid",
        [
            mido.MetaMessage("set_tempo", tempo=1_000_000),  # 60 beats a minute: 500 ticks are a second
            mido.Message("control_change", control=101, value=0),
            mido.Message("control_change", control=100, value=0),
            mido.Message("control_change", control=6, value=12),
            mido.Message("note_on", channel=9, note=36, velocity=100),
            mido.Message("note_on", note=60, velocity=100, time=500),
            mido.Message("pitchwheel", pitch=4096, time=250),
            mido.Message("note_on", note=60, velocity=0, time=250),
            mido.Message("note_on", note=64, velocity=50),  # never let go: it ends with the file
            mido.MetaMessage("end_of_track", time=500),
        ],
    )
    notes, bends = read_midi(path)
    assert notes == [MidiNote(1.0, 2.0, 60, 100), MidiNote(2.0, 3.0, 64, 50)]
    assert bends == [(1.5, 0, 6.0)]
    tune, _ = melody_from_notes(notes, bends, -15.0, CONFIG)
    pitch = 12 * np.log2(tune.f0 / 440) + 69
    assert pitch[120] == pytest.approx(60) and pitch[180] == pytest.approx(66) and pitch[250] == pytest.approx(70)
    assert not tune.voiced[:100].any() and tune.voiced[100:300].all() and not tune.voiced[300:].any()


def test_chords_and_overlaps_become_one_line() -> None:
    notes = [
        MidiNote(0.0, 1.0, 60, 80),
        MidiNote(0.01, 1.0, 67, 80),
        MidiNote(0.02, 1.0, 64, 80),
        MidiNote(0.8, 2.0, 65, 80),
    ]
    line = make_monophonic(notes, 0.03)
    assert line == [MidiNote(0.0, 0.8, 67, 80), MidiNote(0.8, 2.0, 65, 80)]
    assert chord_fraction(notes, 100.0) == pytest.approx(0.5, abs=0.02)
    assert chord_fraction(line, 100.0) == 0


def test_the_same_note_twice_is_struck_twice() -> None:
    line = make_monophonic([MidiNote(0.0, 1.0, 60, 80), MidiNote(1.0, 2.0, 60, 80), MidiNote(2.0, 3.0, 62, 80)], 0.03)
    assert [note.end for note in line] == [0.97, 2.0, 3.0]


def test_velocity_and_decay_make_the_loudness() -> None:
    notes = [MidiNote(0.0, 1.0, 60, 127), MidiNote(1.5, 2.5, 60, 64)]
    held = melody_from_notes(notes, [], -15.0, CONFIG)[0].loudness
    assert held[3] == pytest.approx(-15, abs=0.1) and held[0] < held[1] < held[3]  # it speaks within 30 ms
    assert held[3] - held[153] == pytest.approx(40 * np.log10(127 / 64), abs=0.01)
    assert held[10] - held[60] == pytest.approx(0.5 * CONFIG.transfer.midi_held_decay)


def test_what_is_no_midi_is_one_sentence(tmp_path) -> None:
    good = save(tmp_path / "good.mid", [mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=500)])
    content = good.read_bytes()
    timeless = content[:12] + b"\0\0" + content[14:]  # no ticks a beat
    for number, damaged in enumerate((b"", b"RIFF", content[:20], content[:-6], content[:14] + b"\xff" * 20, timeless)):
        path = tmp_path / f"{number}.mid"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{number}.mid (cannot be read as MIDI \(.+\)|holds no notes)"):
            read_midi(path)
    sharps = content.replace(b"\xff\x2f", b"\xff\x59\x02\x09\x00\x00\xff\x2f").replace(
        len(content[22:]).to_bytes(4, "big"), (len(content[22:]) + 6).to_bytes(4, "big")
    )
    (tmp_path / "nine sharps.mid").write_bytes(sharps)
    with pytest.raises(ValueError, match=r"sharps\.mid cannot be read as MIDI"):
        read_midi(tmp_path / "nine sharps.mid")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(ValueError, match="holds no notes"):
        read_midi(save(tmp_path / "empty.mid", []))
    late = [mido.Message("note_on", note=60, time=2**27), mido.Message("note_off", note=60, time=2**27)]
    with pytest.raises(ValueError, match=r"lasts \d+ hours"):
        read_midi(save(tmp_path / "late.mid", late))
