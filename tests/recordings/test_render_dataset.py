"""scripts/render_dataset.py with a sound font: MIDI, pitch, level and brightness of the rendered score."""

import io
import json
import shutil

import mido
import numpy as np
import pytest
import soundfile as sf

import render_dataset
from recordings import rendering
from recordings import soundfont as font
from recordings.sampler import Truth
from recordings.samples import SAMPLE_RATE, measure_f0
from recordings.score import FILE_SECONDS, GAP, PLAYING, Note, compose_file
from recordings.soundfont import SILENT, SoundFont


def why_no_render() -> str:
    try:
        SoundFont("trumpet")
    except FileNotFoundError as error:
        return str(error)
    return ""


needs_fluidsynth = pytest.mark.skipif(bool(why_no_render()), reason=why_no_render() or "FluidSynth is here")
both = pytest.mark.parametrize("name", sorted(font.VOICES))
RAMP = np.linspace(-36, 0, 3 * SAMPLE_RATE)  # dB


def cut(audio, start, stop):
    return audio[round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)]


def power_of(audio):
    return np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE), np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2


def share_above_4k(audio):
    """Return the share of energy above 4 kHz in dB."""
    frequencies, power = power_of(audio)
    return 10 * np.log10(power[frequencies > 4000].sum() / power.sum())


def level_db(audio):
    return 20 * np.log10(np.sqrt(np.mean(audio.astype(np.float64) ** 2)) + 1e-10)


@both
def test_midi_is_monophonic_and_muted_before_each_note(name):
    for index in range(2):
        tones = font.group_tones(compose_file(np.random.default_rng(index), PLAYING[name], index))
        midi = font.write_midi(tones, font.VOICES[name].program, FILE_SECONDS)
        assert midi == font.write_midi(tones, font.VOICES[name].program, FILE_SECONDS)
        now, sounding, muted_at, n_notes = 0.0, None, -1.0, 0
        for message in mido.MidiFile(file=io.BytesIO(midi)):
            now += message.time
            if message.type == "note_on":
                assert sounding is None and now - muted_at > 0.002  # more than a block of FluidSynth
                sounding, n_notes = message.note, n_notes + 1
            elif message.type == "note_off":
                assert message.note == sounding
                sounding = None
            elif message.is_cc(120):
                muted_at = now
        assert sounding is None and n_notes == len(tones) and now == pytest.approx(FILE_SECONDS, abs=1e-3)


def test_slurs_are_one_tone_unless_too_wide():
    held = {"seconds": 1.0, "level": 0.0, "fade": 0.0}
    one, two = Note(0.0, midi=60.0, **held), Note(1.0, midi=64.0, joined=True, glide=0.04, **held)
    far = Note(2.0, midi=67.0, joined=True, **{**held, "fade": 0.1})  # seven semitones over the first
    first, second = font.group_tones([one, two, far])
    assert [note.midi for note in first.notes] == [60, 64] and [note.midi for note in second.notes] == [67]
    assert first.start + first.seconds == pytest.approx(2 - GAP) and second.seconds == pytest.approx(1.1)
    times, pitch, level = first.curves
    assert np.allclose(pitch[times < 0.97], 60) and np.allclose(pitch[(times > 1.03) & (times < 1.9)], 64)
    assert pitch[np.searchsorted(times, 1.0)] == pytest.approx(62, abs=0.3)
    assert np.allclose(level[times < 1.9], 0) and level[-1] < SILENT / 2


@needs_fluidsynth
@both
def test_rendered_pitch_level_and_rests_are_those_of_the_score(name):
    player = SoundFont(name)
    score = [
        Note(0.1, 0.8, 58.0, 0.0),
        Note(1.1, 0.8, 64.0, 0.0, moves=((0.45, 3.0, 0.03),)),
        Note(2.1, 0.8, 69.5, -18.0),
    ]
    audio, truth = player.play(score, 3.2)
    for start, stop, midi in ((0.4, 0.7, 58), (1.3, 1.5, 64), (1.65, 1.85, 67), (2.4, 2.7, 69.5)):
        hertz = 440 * 2 ** ((midi - 69) / 12)
        f0 = np.median(measure_f0(cut(audio, start, stop), hertz, 480)[0])
        assert 1200 * abs(np.log2(f0 / hertz)) < 15, midi  # the font's own samples are up to 5 cents out of tune
        assert truth.f0[round(100 * start) : round(100 * stop)] == pytest.approx(hertz, rel=1e-3)
    assert not truth.f0[:9].any() and not truth.f0[100:109].any() and len(truth.notes) == 3
    assert max(np.abs(cut(audio, *span)).max() for span in ((0, 0.09), (1.01, 1.09), (2.01, 2.09), (3.01, 3.2))) == 0
    fall = level_db(cut(audio, 0.2, 0.6)) - level_db(cut(audio, 2.2, 2.6))
    assert 10 < fall < 26  # 18 dB expected; samples of other notes differ
    shares = [share_above_4k(cut(audio, start, start + 0.6)) for start in (0.15, 2.15)]
    assert shares[0] > shares[1] + 3  # louder is brighter


@needs_fluidsynth
@both
def test_notes_do_not_ring_into_the_next(name):
    player = SoundFont(name)
    first, second = Note(0.1, 0.9 - GAP, 60.0, 0.0, fade=0.0), Note(1.0, 0.8, 66.0, 0.0)
    audio, single = (player.play(score, 2.0)[0] for score in ([first, second], [second]))
    after = 1.0 + 6 * 64 / SAMPLE_RATE  # the attack's first blocks take the level over from before
    assert level_db(cut(audio, 0.8, 0.9)) > -50 and level_db(cut(audio, after, 1.8)) > -50
    assert np.allclose(cut(audio, after, 2.0), cut(single, after, 2.0), atol=2e-3)  # the tilt looks half a window ahead


@needs_fluidsynth
def test_the_command_skips_existing_files_and_is_deterministic(tmp_path, capsys):
    def run(folder):
        where = ["--output_dir", str(tmp_path / folder)]
        assert render_dataset.main(["--instrument", "trumpet", "--minutes", "0.5", *where]) == 0
        return capsys.readouterr().out

    assert run("a").startswith("1 written, 0 skipped: 0.5 minutes of trumpet")
    sound, truth = tmp_path / "a/rendered_trumpet_000.flac", tmp_path / "a/rendered_trumpet_000.json"
    assert sorted((tmp_path / "a").iterdir()) == [sound, truth]
    audio, rate = sf.read(sound)
    assert rate == SAMPLE_RATE and audio.shape == (FILE_SECONDS * SAMPLE_RATE,) and 0.1 < np.abs(audio).max() < 0.75
    notes = json.loads(truth.read_text())
    assert notes["frames_per_second"] == 100 and len(notes["f0"]) == 3000 and len(notes["notes"]) > 20
    before = sound.stat().st_mtime_ns
    assert run("a").startswith("0 written, 1 skipped") and before == sound.stat().st_mtime_ns
    run("b")
    assert sound.read_bytes() == (tmp_path / "b" / sound.name).read_bytes()


def run(folder, *flags):
    return render_dataset.main(["--instrument", "trumpet", "--output_dir", str(folder / "out"), *flags])


def test_missing_programs_and_fonts_are_named(tmp_path, monkeypatch, caplog):
    my_font = tmp_path / "my.sf2"
    my_font.write_bytes(b"not a sound font")
    if shutil.which("fluidsynth"):
        assert run(tmp_path, "--soundfont", str(my_font)) == 1 and str(my_font) in caplog.messages[-1]
    monkeypatch.setattr(font, "SOUNDFONT_DIRS", (str(tmp_path),))
    for program, flags, named in (
        (None, [], "apt install fluidsynth"),
        ("/usr/bin/fluidsynth", [], "FluidR3_GM.sf2"),
        ("/usr/bin/fluidsynth", ["--soundfont", "nowhere/my.sf2"], "nowhere/my.sf2"),
        ("/bin/false", ["--soundfont", str(my_font)], str(my_font)),
    ):
        monkeypatch.setattr(shutil, "which", lambda _, program=program: program)
        assert run(tmp_path, *flags) == 1 and named in caplog.messages[-1]
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("flags", [["--minutes", "nan"], ["--seed", "-1"], ["--instrument", "flute"]])
def test_invalid_flags_are_refused(tmp_path, flags):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *flags)


def test_clipping_is_an_error(tmp_path):
    job = ("a", lambda: (np.full(4800, 2.0), Truth(np.zeros(10))))
    with pytest.raises(ValueError, match=r"a\.flac"):
        rendering.write_files([job], tmp_path, 1.0, "")
