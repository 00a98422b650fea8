"""voice/midi.py: notes written and read, files of other programs, chords, bends, and invalid files."""

import time

import mido
import numpy as np
import pytest

from config import load_config
from voice.curves import Melody, shape_notes
from voice.midi import MidiNote, _Receiver, chord_fraction, make_monophonic, melody_from_notes, read_midi, write_midi
from voice.note_finder import find_notes

CONFIG = load_config()


def sung(keys: list[int], n_frames: int = 50, rest: int = 20) -> Melody:
    """Return notes of 0.5 s with vibrato; the first two are slurred, rests separate the others."""
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


def test_written_notes_and_bends_are_those_of_the_melody(tmp_path) -> None:
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


def test_a_bend_beyond_the_wheels_range_is_clipped(tmp_path) -> None:
    tune = sung([60])
    tune.f0[20], tune.f0[30] = 440.0, 220.0  # too short for notes; nine semitones up, and three down
    assert write_midi(tmp_path / "tune.mid", notes_of(tune), shape_notes(tune, CONFIG), CONFIG) == 1
    bends = [semitones for _, _, semitones in read_midi(tmp_path / "tune.mid")[1]]
    assert max(bends) == pytest.approx(2.0, abs=1e-3) and min(bends) == -2.0


def test_each_note_follows_the_bends_of_its_channel() -> None:
    notes = [MidiNote(0.0, 0.5, 60, 100, channel=0), MidiNote(0.5, 1.0, 60, 100, channel=1)]
    bends = [(0.1, 0, 1.0), (0.2, 1, -1.5), (0.6, 0, 2.0), (0.8, 1, 0.5)]
    tune, _ = melody_from_notes(notes, bends, -15.0, CONFIG)
    pitch = np.repeat([60.0, 61.0, 58.5, 60.5], [10, 40, 30, 20])
    assert 12 * np.log2(tune.f0[:100] / 440) + 69 == pytest.approx(pitch)


def test_tempo_bend_range_and_drums(tmp_path) -> None:
    path = save(
        tmp_path / "other.mid",
        [
            mido.MetaMessage("set_tempo", tempo=1_000_000),  # 60 beats per minute: 500 ticks are a second
            mido.Message("control_change", control=101, value=0),
            mido.Message("control_change", control=100, value=0),
            mido.Message("control_change", control=6, value=12),
            mido.Message("note_on", channel=9, note=36, velocity=100),
            mido.Message("note_on", note=60, velocity=100, time=500),
            mido.Message("pitchwheel", pitch=4096, time=250),
            mido.Message("note_on", note=60, velocity=0, time=250),
            mido.Message("note_on", note=64, velocity=50),  # without a note-off, ends with the file
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
    repeated = [MidiNote(0.0, 1.0, 60, 80), MidiNote(1.0, 2.0, 60, 80), MidiNote(2.0, 3.0, 62, 80)]
    assert [note.end for note in make_monophonic(repeated, 0.03)] == [0.97, 2.0, 3.0]  # a gap between equal notes


def test_loudness_follows_velocity_attack_and_decay() -> None:
    notes = [MidiNote(0.0, 1.0, 60, 127), MidiNote(1.5, 2.5, 60, 64)]
    held = melody_from_notes(notes, [], -15.0, CONFIG)[0].loudness
    assert held[3] == pytest.approx(-15, abs=0.1) and held[0] < held[1] < held[3]  # an attack of 30 ms
    assert held[3] - held[153] == pytest.approx(40 * np.log10(127 / 64), abs=0.01)
    assert held[10] - held[60] == pytest.approx(0.5 * CONFIG.transfer.midi_held_decay)


def test_invalid_files_are_refused(tmp_path) -> None:
    good = save(tmp_path / "good.mid", [mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=500)])
    content = good.read_bytes()
    timeless = content[:12] + b"\0\0" + content[14:]  # no ticks per beat
    size = len(content[22:])
    nine_sharps = content.replace(b"\xff\x2f", b"\xff\x59\x02\x09\x00\x00\xff\x2f").replace(
        size.to_bytes(4, "big"), (size + 6).to_bytes(4, "big")
    )
    damaged = (b"", b"RIFF", content[:20], content[:-6], content[:14] + b"\xff" * 20, timeless, nine_sharps)
    for number, file_content in enumerate(damaged):
        path = tmp_path / f"{number}.mid"
        path.write_bytes(file_content)
        with pytest.raises(ValueError, match=rf"{number}\.mid"):
            read_midi(path)
    with pytest.raises(FileNotFoundError, match=r"none\.mid"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(ValueError, match=r"empty\.mid"):
        read_midi(save(tmp_path / "empty.mid", []))
    with pytest.raises(ValueError, match=r"pieces\.mid"):
        read_midi(save(tmp_path / "pieces.mid", [on(), off(time=500)], type=2))


def on(note: int = 60, time: int = 0, **values) -> mido.Message:
    return mido.Message("note_on", note=note, time=time, velocity=100, **values)


def off(note: int = 60, time: int = 0, **values) -> mido.Message:
    return mido.Message("note_off", note=note, time=time, **values)


def control(number: int, value: int, time: int = 0, channel: int = 0) -> mido.Message:
    return mido.Message("control_change", control=number, value=value, time=time, channel=channel)


def parameter(number: int, value: int, channel: int = 0, registered: bool = True) -> list[mido.Message]:
    which = (101, 100) if registered else (99, 98)
    return [control(each, value, channel=channel) for each, value in zip((*which, 6), (0, number, value))]


def wheel(pitch: int, time: int = 250, channel: int = 0) -> mido.Message:
    return mido.Message("pitchwheel", pitch=pitch, time=time, channel=channel)


@pytest.mark.parametrize(
    ("setup", "semitones"),
    [
        (parameter(0, 2) + parameter(8, 64, registered=False), 1.0),  # another parameter's value
        ([*parameter(0, 0), control(38, 50)], 0.25),  # half a semitone either way
        ([*parameter(0, 12), control(38, 50)], 6.25),
        ([*parameter(0, 12), control(38, 50), control(6, 7)], 3.5),  # a new coarse value resets the fine one
        ([*parameter(0, 12), control(101, 127), control(100, 127), control(6, 3)], 6.0),  # no parameter selected
        (
            [*parameter(0, 12), *parameter(1, 64), *parameter(8, 1, registered=False), control(100, 0), control(6, 4)],
            2.0,
        ),
        ([control(6, 12)], 1.0),
    ],
)
def test_bend_range(tmp_path, setup, semitones) -> None:
    _, bends = read_midi(save(tmp_path / "a.mid", [*setup, on(), wheel(4096), off(time=250)]))
    assert bends == [(0.25, 0, pytest.approx(semitones))]


@pytest.mark.parametrize(("manager", "members"), [(0, (1, 2, 9)), (15, (14, 13, 9))])
def test_mpe_members_and_manager(tmp_path, manager, members) -> None:
    one, played, drums = members
    messages = [
        *parameter(6, 15, manager),
        *parameter(0, 24, one),  # sent to one member, applies to all
        on(60, channel=played),
        wheel(1024, 250, played),
        wheel(4096, 250, manager),
        off(60, 250, channel=played),
        on(67, channel=drums),  # no drums within a zone
        off(67, 250, channel=drums),
    ]
    notes, bends = read_midi(save(tmp_path / "a.mid", messages))
    tune, _ = melody_from_notes(notes, bends, -15.0, CONFIG)
    pitch = 12 * np.log2(tune.f0 / 440) + 69
    assert pitch[[10, 30, 60, 90]] == pytest.approx([60, 63, 64, 68])
    closed = [*messages[:6], *parameter(6, 0, manager), *messages[6:]]
    assert [note.key for note in read_midi(save(tmp_path / "b.mid", closed))[0]] == [60]
    without = read_midi(
        save(tmp_path / "c.mid", [*parameter(6, 15, manager), on(channel=played), wheel(1024, 250, played)])
    )
    assert without[1] == [(0.25, played, 6.0)]  # 48 semitones by default


@pytest.mark.parametrize(("frames", "rate"), [(25, 25), (24, 24), (30, 30), (29, 30 / 1.001)])
def test_smpte_time(tmp_path, frames, rate) -> None:
    path = save(tmp_path / "a.mid", [mido.MetaMessage("set_tempo", tempo=100), on(), off(time=1000)])
    content = path.read_bytes()
    path.write_bytes(content[:12] + bytes([256 - frames, 40]) + content[14:])
    assert read_midi(path)[0] == [MidiNote(0.0, pytest.approx(1000 / 40 / rate), 60, 100)]


def tempo(microseconds: int) -> mido.MetaMessage:
    return mido.MetaMessage("set_tempo", tempo=microseconds)


PEDAL, UP, NOTES_OFF, SOUND_OFF, RESET = (64, 127), (64, 0), (123, 0), (120, 0), (121, 0)
UNISON = [on(time=500), off(time=50)], [(60, 0.0, 0.5), (60, 0.5, 1.5), (62, 1.5, 2.0)]
SPANS = {  # events (tuples are control changes), in the second case with another track -> (key, start, end)
    "tempo of zero is ignored": ([tempo(0), on(), tempo(10**6), tempo(0), off(time=1000)], [(60, 0.0, 2.0)]),
    "unison of two tracks": ([on(), off(time=1500), on(62), off(62, 500)], UNISON[1]),
    "key repeated before its note-off": (
        [on(), on(time=500), off(time=100), off(time=900)],
        [(60, 0.0, 0.5), (60, 0.5, 1.5)],
    ),
    "key repeated and released once": (
        [on(), on(time=500), off(time=100), on(64, 400), off(64, 500)],
        [(60, 0.0, 0.5), (60, 0.5, 0.6), (64, 1.0, 1.5)],
    ),
    "pedal": ([PEDAL, on(), off(time=50), (*UP, 950), on(64), off(64, 500)], [(60, 0.0, 1.0), (64, 1.0, 1.5)]),
    "repeated note with the pedal down": (
        [on(), PEDAL, off(time=50), on(time=450), off(time=50), (64, 63, 450)],
        [(60, 0.0, 0.5), (60, 0.5, 1.0)],
    ),
    "pedal below 64 is up": (
        [(64, 40), on(), off(time=50), on(64, 450), off(64, 50)],
        [(60, 0.0, 0.05), (64, 0.5, 0.55)],
    ),
    "all notes off and all sound off": (
        [on(), (*NOTES_OFF, 500), on(64, 500), (*SOUND_OFF, 500), on(65, 500), off(65, 500)],
        [(60, 0.0, 0.5), (64, 1.0, 1.5), (65, 2.0, 2.5)],
    ),
    "all notes off leaves notes to the pedal": (
        [PEDAL, on(), (*NOTES_OFF, 500), (*UP, 500), on(64, 500), off(64, 50)],
        [(60, 0.0, 1.0), (64, 1.5, 1.55)],
    ),
    "all sound off ignores the pedal": (
        [PEDAL, on(), off(time=50), (*SOUND_OFF, 450), on(64, 500), off(64, 500), (*RESET, 500)],
        [(60, 0.0, 0.5), (64, 1.0, 2.0)],
    ),
    "reset releases the pedal": ([PEDAL, (*RESET, 0), on(65), off(65, 50), on(60, 50), off()], [(65, 0.0, 0.05)]),
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_of_notes(tmp_path, name) -> None:
    events, expected = SPANS[name]
    tracks = [[control(*event) if isinstance(event, tuple) else event for event in events]]
    tracks += [UNISON[0]] if name.startswith("unison") else []
    path = tmp_path / "a.mid"
    mido.MidiFile(tracks=[mido.MidiTrack(track) for track in tracks], ticks_per_beat=500).save(path)
    notes = make_monophonic(read_midi(path)[0], 0.0)  # at 120 beats per minute a tick is a millisecond
    assert [(note.key, round(note.start, 3), round(note.end, 3)) for note in notes] == expected


def test_files_that_are_too_large_or_too_long_are_refused(tmp_path) -> None:
    body = bytes([0, 0x90, 60, 64]) + bytes([1, 60, 0, 1, 60, 64]) * 500_000 + b"\0\xff\x2f\0"
    header = b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 1, 0xE0]) + b"MTrk" + len(body).to_bytes(4, "big")
    (tmp_path / "million.mid").write_bytes(header + body)
    with pytest.raises(ValueError, match=r"million\.mid"):
        read_midi(tmp_path / "million.mid")
    with pytest.raises(ValueError, match=r"long\.mid"):
        read_midi(save(tmp_path / "long.mid", [on(), off(time=10**9)]))


def test_many_stacked_notes_take_little_time() -> None:
    receiver, messages = _Receiver(), [on(), off()]
    start = time.process_time()
    for now, message in enumerate(messages):
        for _ in range(200_000):
            receiver.receive(float(now), message)
    assert len(receiver.finish()) == 200_000
    assert chord_fraction([MidiNote(0.0, 14_000.0, key, 64) for key in (60, 61)] * 10_000, 100.0) == 1
    assert time.process_time() - start < 4
