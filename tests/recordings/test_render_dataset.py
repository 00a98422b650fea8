"""Composition is deterministic, monophonic and covers the instrument; the rendered sound is what was composed."""

import dataclasses
import io
import shutil
from collections import Counter
from pathlib import Path

import librosa
import mido
import numpy as np
import pytest
import soundfile as sf

import render_dataset
from recordings import soundfont as rd

N_FILES = 30  # the default set, five rounds of the six pairings of register and level

composition, timbre = rd.composition, rd.timbre


def why_no_render() -> str:
    try:
        rd.find_program()
        rd.find_soundfont(None)
    except FileNotFoundError as error:
        return str(error)
    return ""


needs_fluidsynth = pytest.mark.skipif(bool(why_no_render()), reason=why_no_render() or "FluidSynth is here")
both = pytest.mark.parametrize("name", sorted(composition.INSTRUMENTS))


@pytest.fixture(scope="module")
def compositions():
    return {
        name: [composition.compose_file(np.random.default_rng((0, i)), ins, i) for i in range(N_FILES)]
        for name, ins in composition.INSTRUMENTS.items()
    }


def make_tone(key, start=0.0, seconds=0.9, velocity=100, offset=0.0, moves=(), vibrato=(0, 5, 0, 0), levels=None):
    levels = levels or [(0.0, 0.0), (seconds - 0.05, 0.0), (seconds, composition.SILENT)]
    return composition.Tone(start, seconds, key, velocity, offset, list(moves), vibrato, levels)


def shape(audio, tones, name):
    return rd.shape_tones(audio, tones, composition.INSTRUMENTS[name], np.random.default_rng(0))


def make_string(level, f0=220.0):
    """Return one tone of 40 harmonics that fall by 6 dB an octave, its level in dB given at each sample."""
    t = np.arange(len(level)) / rd.SAMPLE_RATE
    return 10 ** (level / 20) * sum(np.sin(2 * np.pi * f0 * k * t) / k for k in range(1, 41)) / 10


def share_above_4k(audio):
    """Return the share of energy above 4 kHz in dB."""
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    return 10 * np.log10(power[np.fft.rfftfreq(len(audio), 1 / rd.SAMPLE_RATE) > 4000].sum() / power.sum())


def a_weighted_db(audio):
    frequencies = np.fft.rfftfreq(len(audio), 1 / rd.SAMPLE_RATE)[1:]
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))[1:]) ** 2
    return 10 * np.log10((power * 10 ** (librosa.A_weighting(frequencies, min_db=None) / 10)).sum())


def render(tones, program, seconds):
    midi = composition.write_midi(tones, program, seconds, "")
    return rd.render_midi(midi, seconds, rd.find_program(), rd.find_soundfont(None))


def cut(audio, start, stop):
    return audio[round(start * rd.SAMPLE_RATE) : round(stop * rd.SAMPLE_RATE)]


def measure_pitch(audio):
    """Return the MIDI pitch of a steady sound: its autocorrelation's first high peak, by a parabola."""
    spectrum = np.fft.rfft(audio - audio.mean(), 2 * len(audio))
    n_lags = rd.SAMPLE_RATE // 60
    acf = np.fft.irfft(np.abs(spectrum) ** 2)[:n_lags] / np.arange(len(audio), len(audio) - n_lags, -1)
    peaks = [i for i in range(20, n_lags - 1) if acf[i - 1] < acf[i] >= acf[i + 1]]
    lag = next(i for i in peaks if acf[i] > 0.9 * max(acf[peaks]))
    left, middle, right = acf[lag - 1 : lag + 2]
    lag += 0.5 * (left - right) / (left - 2 * middle + right)
    return 69 + 12 * np.log2(rd.SAMPLE_RATE / lag / 440)


def level_db(audio):
    return 20 * np.log10(np.sqrt(np.mean(audio**2)) + 1e-10)


@both
def test_composition_is_a_function_of_seed_and_index(compositions, name):
    ins = composition.INSTRUMENTS[name]
    again = composition.compose_file(np.random.default_rng((0, 1)), ins, 1)
    assert again == compositions[name][1]
    first, second = (composition.write_midi(tones, ins.program, 30.0, "x") for tones in (again, compositions[name][1]))
    assert first == second
    another = composition.compose_file(np.random.default_rng((1, 1)), ins, 1)
    assert compositions[name][0] != compositions[name][1] != another


@both
def test_midi_is_monophonic_and_muted_before_each_note(compositions, name):
    for tones in compositions[name][:4]:
        midi = composition.write_midi(tones, composition.INSTRUMENTS[name].program, composition.FILE_SECONDS, "")
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
        assert sounding is None and n_notes == len(tones) and now == pytest.approx(composition.FILE_SECONDS, abs=1e-3)


@both
def test_pitch_stays_in_range(compositions, name):
    ins = composition.INSTRUMENTS[name]
    for tone in (tone for tones in compositions[name] for tone in tones):
        pitch = composition.compute_curves(tone)[1]
        # half a semitone below for vibrato and tuning; above also for the one-sided vibrato of a bent string
        assert ins.low - 0.7 < pitch.min() and pitch.max() < ins.high + 0.7
        assert 0 < tone.velocity < 128 and abs(pitch - tone.key).max() < composition.WHEEL_RANGE


@both
def test_coverage_of_range_and_dynamics(compositions, name):
    ins, seconds, registers = composition.INSTRUMENTS[name], Counter(), np.zeros((3, composition.N_LEVELS))
    for tone in (tone for tones in compositions[name] for tone in tones):
        pitches = np.round(composition.compute_curves(tone)[1]).astype(int)
        counts = zip(*np.unique(pitches, return_counts=True))
        seconds.update({int(pitch): composition.CONTROL_SECONDS * n for pitch, n in counts})
        third = min(3 * (tone.key - ins.low) // (ins.high - ins.low), 2)
        level = -40 * np.log10(tone.velocity / 127) / composition.LEVEL_STEP
        registers[third, min(round(level), composition.N_LEVELS - 1)] += tone.seconds
    mean = sum(seconds.values()) / (ins.high - ins.low + 1)
    assert all(seconds[p] > 0.1 * mean for p in range(ins.low, ins.high + 1)), "a pitch is all but missing"
    assert max(seconds.values()) < 4 * mean
    assert registers.min() > 0.2 * registers.mean(), "some dynamic level is missing in a register"


@both
def test_rests_long_notes_and_short_ones(compositions, name):
    for tones in compositions[name]:
        ends = [tone.start + tone.seconds for tone in tones]
        rests = np.append([tone.start for tone in tones[1:]], composition.FILE_SECONDS) - ends
        assert rests.min() >= 0 and tones[0].start > 0.1
        assert 0.1 < 1 - sum(tone.seconds for tone in tones) / composition.FILE_SECONDS < 0.5
    lengths = [tone.seconds for tones in compositions[name] for tone in tones]
    assert max(lengths) > 2.0 and np.quantile(lengths, 0.2) < 0.3


def test_expression_is_what_the_instrument_can_do(compositions):
    swells, bends = {}, {}
    for name, files in compositions.items():
        tones = [tone for tones in files for tone in tones]
        depths = np.array([tone.vibrato[2] for tone in tones])
        rates = np.array([tone.vibrato[1] for tone in tones])[depths > 0]
        assert len(rates) > 20 and rates.min() < 5.0 and rates.max() > 6.0
        swells[name] = sum(max(lv for _, lv in tone.levels[:-1]) - tone.levels[0][1] > 10 for tone in tones)
        bends[name] = sum(any(abs(semitones) >= 1 for _, semitones, _ in tone.moves[1:]) for tone in tones)
    assert swells["trumpet"] > 10 and swells["guitar"] == 0  # a plucked string cannot swell
    assert min(bends.values()) > 50


def test_curves_of_a_known_tone():
    tone = make_tone(
        60,
        seconds=3.0,
        offset=-2.0,
        moves=[(0.5, 2.0, 0.2)],
        vibrato=(1.0, 5.0, 0.5, 0.0),
        levels=[(0.0, -20.0), (1.0, 0.0), (3.0, 0.0)],
    )
    times, pitch, level = composition.compute_curves(tone)
    assert np.allclose(pitch[times < 0.39], 58) and np.allclose(pitch[(times > 0.61) & (times < 1)], 60)
    swing = pitch[times >= 1.4] - 60
    assert np.abs(swing).max() == pytest.approx(0.5, abs=0.01)
    assert np.sum(np.diff(swing > 1e-9)) == pytest.approx(2 * 5 * 1.6, abs=1)  # two crossings a cycle
    assert level[np.searchsorted(times, 0.5)] == pytest.approx(-10, abs=0.1)
    late = times >= 1.4  # a vibrato's high side is the loud one, and reaches what is written
    assert np.corrcoef(swing, level[late])[0, 1] > 0.99
    assert level[late].max() == pytest.approx(0, abs=0.05) and np.ptp(level[late]) == pytest.approx(4, abs=0.1)


@both
def test_crescendo_inside_a_tone_brightens_as_asked_and_stays_as_loud(name):
    level = np.linspace(-36, 0, 3 * rd.SAMPLE_RATE)
    audio, brightness = make_string(level), composition.INSTRUMENTS[name].brightness
    shaped = timbre.shape_tone(audio, level, timbre.MIDDLE, brightness, rd.SAMPLE_RATE)
    spans = [(a, a + 0.25) for a in np.arange(0, 3, 0.25)]
    shares = [share_above_4k(cut(shaped, *span)) for span in spans]
    asked = np.interp([np.mean(cut(level, *span)) for span in spans], brightness.levels, brightness.shares)
    assert (np.diff(shares) > 0).all() and shares == pytest.approx(asked, abs=1.5)
    steps = [a_weighted_db(cut(shaped, *span)) - a_weighted_db(cut(audio, *span)) for span in spans]
    assert steps == pytest.approx([0] * len(spans), abs=0.5)


def test_dull_sample_starts_from_as_bright_as_it_gets_and_falls_as_far():
    brightness = timbre.Brightness((-60.0, 0.0), (-50.0, -20.0))
    shares = np.linspace(-30.0, -108.0, len(timbre.SLOPES))  # a dB for each dB an octave
    slopes = timbre.choose_slopes(np.array([0.0, -20.0, -40.0]), shares, timbre.MIDDLE, brightness)
    assert slopes == pytest.approx([-6, 4, 14])
    higher = timbre.choose_slopes(np.array([0.0]), shares + 30, timbre.MIDDLE + 12, brightness)
    assert higher == pytest.approx([20 - timbre.PITCH_SLOPE - 6])


def test_silence_stays_silence_and_noise_stays_inside_its_tone():
    tone = dataclasses.replace(make_tone(60, 0.5, 0.9), noise=(0.0, 0.05, -36.0))
    assert not shape(np.zeros(2 * rd.SAMPLE_RATE), [tone], "trumpet").any()
    level = np.zeros(2 * rd.SAMPLE_RATE)
    shaped = shape(make_string(level), [tone], "trumpet")
    assert not cut(shaped, 0, 0.5).any() and not cut(shaped, 1.41, 2).any() and cut(shaped, 0.5, 1.4).all()


def test_breath_is_drawn_from_the_seed_and_is_as_loud_as_asked():
    plain = make_tone(60, 0.0, 0.9)
    blown = dataclasses.replace(plain, noise=(0.1, 0.05, -36.0))
    audio = make_string(np.zeros(rd.SAMPLE_RATE))
    without, breath, again = (shape(audio, [tone], "trumpet") for tone in (plain, blown, blown))
    assert np.array_equal(breath, again)
    assert np.abs(breath - without).max() / np.abs(without).max() == pytest.approx(10 ** (-36 / 20))
    assert np.array_equal(cut(breath, 0.15, 1), cut(without, 0.15, 1)) and share_above_4k(breath - without) < -6
    other = rd.shape_tones(audio, [blown], composition.INSTRUMENTS["trumpet"], np.random.default_rng(1))
    assert not np.array_equal(breath, other)


def test_guitar_mutes_rings_and_squeaks_and_trumpet_breathes(compositions):
    guitar = [tone for tones in compositions["guitar"] for tone in tones]
    muted = [tone for tone in guitar if tone.dark]
    assert 0.05 < len(muted) / len(guitar) < 0.5
    for tone in muted:  # one stroke, and 60 dB in a second or less
        (_, first), (held, last) = tone.levels[0], tone.levels[-2]
        assert (first - last) > min(55 * held, 59)
    ringing = [tone for tone in guitar if not tone.dark and tone.levels[-2][1] < -44]
    assert len(ringing) > 20 and np.mean([tone.seconds for tone in ringing]) > 1.5
    squeaks = [tone for tone in guitar if tone.noise]
    assert len(squeaks) > 100 and all(tone.noise[0] == tone.levels[-2][0] for tone in squeaks)
    trumpet = [tone for tones in compositions["trumpet"] for tone in tones]
    assert all(tone.noise[0] == 0 and not tone.dark for tone in trumpet)


@needs_fluidsynth
@both
def test_louder_is_brighter_at_each_pitch_and_in_tune(name):
    ins = composition.INSTRUMENTS[name]
    for key in np.linspace(ins.low, ins.high, 4).round().astype(int).tolist():
        tones = [make_tone(key, i, velocity=round(127 * 10 ** (db / 40))) for i, db in enumerate((-30, -20, -10, 0))]
        raw = render(tones, ins.program, 4.0)
        shaped = shape(raw, tones, name)
        shares = [share_above_4k(cut(shaped, i, i + 0.85)) for i in range(4)]
        assert np.diff(shares).min() > 1.5, f"{key}: {shares}"
        steps = [a_weighted_db(cut(shaped, i, i + 0.85)) - a_weighted_db(cut(raw, i, i + 0.85)) for i in range(4)]
        assert steps == pytest.approx([0] * 4, abs=1.0)
        heard = [measure_pitch(cut(audio, 3.3, 3.6)) for audio in (raw, shaped)]
        # A string's partials are not quite harmonic: which are the strong ones moves its pitch, by 2.5 cents at most.
        assert heard[1] == pytest.approx(heard[0], abs={"guitar": 0.04, "trumpet": 0.005}[name])


@needs_fluidsynth
@both
def test_sound_has_the_composed_pitch_and_silent_rests(name):
    ins = composition.INSTRUMENTS[name]
    tones = [make_tone(58, 0.1), make_tone(64, 1.1, moves=[(0.45, 3.0, 0.03)]), make_tone(69, 2.1, offset=0.5)]
    audio = render(tones, ins.program, 3.2)
    heard = [measure_pitch(cut(audio, *span)) for span in ((0.4, 0.7), (1.3, 1.5), (1.65, 1.9), (2.4, 2.7))]
    # 15 cents: the font's own samples are up to 5 out of tune here, a semitone's wheel error would be 100
    assert heard == pytest.approx([58, 64, 67, 69.5], abs=0.15)
    assert max(level_db(cut(audio, *span)) for span in ((0, 0.09), (1.01, 1.09), (2.01, 2.09), (3.01, 3.2))) < -100


@needs_fluidsynth
@both
def test_no_note_rings_into_the_next(name):
    first, second = make_tone(60, 0.1, levels=[(0.0, 0.0), (0.9, 0.0)]), make_tone(66, 1.0 + composition.GAP)
    program = composition.INSTRUMENTS[name].program
    audio, alone = (render(tones, program, 2.0) for tones in ([first, second], [second]))
    after = 1.0 + composition.GAP + 5 * 64 / rd.SAMPLE_RATE  # the attack's first blocks take the level over from before
    assert level_db(cut(audio, 0.9, 0.99)) > -50 and level_db(cut(audio, after, 1.8)) > -50
    assert np.array_equal(cut(audio, after, 2.0), cut(alone, after, 2.0))


@needs_fluidsynth
@both
def test_dynamics_span_over_25_db_and_peak_is_3_db_down(name):
    ins = composition.INSTRUMENTS[name]
    gain = rd.measure_gain(ins, rd.find_program(), rd.find_soundfont(None))
    quiet = round(127 * 10 ** (-(composition.N_LEVELS - 1) * composition.LEVEL_STEP / 40))
    pair = [make_tone(67, 0.1, velocity=quiet), make_tone(67, 1.1, velocity=127)]
    audio = gain * shape(render(pair, ins.program, 2.2), pair, name)
    assert level_db(cut(audio, 1.1, 1.9)) - level_db(cut(audio, 0.1, 0.9)) > 25
    assert 20 * np.log10(np.abs(audio).max()) < rd.PEAK + 0.1
    # As long as those that the gain was measured by: how far a tone is tilted depends on its average spectrum, and
    # so on its length (0.25 s: 0.3 dB off).
    loudest = [make_tone(ins.low + i, 0.5 * i, 0.44, velocity=127) for i in range(ins.high - ins.low + 1)]
    everything = gain * shape(render(loudest, ins.program, 0.5 * len(loudest)), loudest, name)
    assert 20 * np.log10(np.abs(everything).max()) == pytest.approx(rd.PEAK, abs=0.05)


@needs_fluidsynth
def test_command_writes_skips_and_repeats_to_the_bit(tmp_path, capsys):
    def run(folder, seed="0"):
        where = ["--output_dir", str(tmp_path / folder)]
        assert render_dataset.main(["--instrument", "trumpet", "--minutes", "0.5", "--seed", seed, *where]) == 0
        return capsys.readouterr().out

    assert run("a").startswith("1 written, 0 skipped: 0.5 minutes of trumpet")
    wav, mid = tmp_path / "a/rendered_trumpet_000.wav", tmp_path / "a/rendered_trumpet_000.mid"
    assert sorted((tmp_path / "a").iterdir()) == [mid, wav]
    info, audio = sf.info(wav), sf.read(wav)[0]
    assert (info.channels, info.samplerate, info.frames) == (1, rd.SAMPLE_RATE, round(30 * rd.SAMPLE_RATE))
    assert 0.1 < np.abs(audio).max() < 0.75
    before = (wav.stat().st_mtime_ns, mid.stat().st_mtime_ns)
    assert run("a").startswith("0 written, 1 skipped")
    assert before == (wav.stat().st_mtime_ns, mid.stat().st_mtime_ns)
    run("b")
    assert wav.read_bytes() == (tmp_path / "b" / wav.name).read_bytes()
    assert mid.read_bytes() == (tmp_path / "b" / mid.name).read_bytes()
    assert run("b", seed="1").startswith("1 written")  # other settings: not taken for done
    assert wav.read_bytes() != (tmp_path / "b" / wav.name).read_bytes()


def test_interruption_leaves_no_half_file(tmp_path, monkeypatch, caplog):
    def write_half(path, *_args, **_kwargs):
        Path(path).write_bytes(b"RIFF")
        raise KeyboardInterrupt

    monkeypatch.setattr(rd, "find_program", lambda: "unused")
    monkeypatch.setattr(rd, "find_soundfont", lambda _: Path(rd.__file__))
    monkeypatch.setattr(rd, "measure_gain", lambda *_: 1.0)
    monkeypatch.setattr(rd, "render_midi", lambda *_: np.zeros(round(composition.FILE_SECONDS * rd.SAMPLE_RATE)))
    monkeypatch.setattr(rd.sf, "write", write_half)
    assert render_dataset.main(["--instrument", "guitar", "--minutes", "1", "--output_dir", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == [] and "stopped" in caplog.text


def test_missing_program_is_said_in_one_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert render_dataset.main(["--instrument", "trumpet", "--output_dir", str(tmp_path / "out")]) == 1
    assert "fluidsynth is missing" in caplog.text and "apt install fluidsynth" in caplog.text
    assert "Traceback" not in caplog.text and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--soundfont", "nowhere/my.sf2"]])
def test_missing_soundfont_is_said_in_one_sentence(tmp_path, monkeypatch, caplog, flags):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(rd, "SOUNDFONT_DIRS", (str(tmp_path),))
    assert render_dataset.main(["--instrument", "trumpet", "--output_dir", str(tmp_path / "out"), *flags]) == 1
    assert (flags[-1] if flags else "FluidR3_GM.sf2") in caplog.text
    assert "apt install fluid-soundfont-gm" in caplog.text and "Traceback" not in caplog.text


def test_failing_program_is_named_with_its_sound_font(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")
    font = tmp_path / "my.sf2"
    font.write_bytes(b"RIFF")
    flags = ["--output_dir", str(tmp_path / "out"), "--soundfont", str(font)]
    assert render_dataset.main(["--instrument", "guitar", *flags]) == 1
    assert "fluidsynth failed with" in caplog.text and str(font) in caplog.text
    assert list((tmp_path / "out").iterdir()) == []


@needs_fluidsynth
def test_file_that_is_no_sound_font_is_refused(tmp_path, caplog):
    font = tmp_path / "junk.sf2"
    font.write_bytes(b"not a sound font")
    flags = ["--output_dir", str(tmp_path / "out"), "--soundfont", str(font)]
    assert render_dataset.main(["--instrument", "guitar", *flags]) == 1
    assert "makes no sound" in caplog.text


@pytest.mark.parametrize("flags", [["--minutes", "0"], ["--minutes", "nan"], ["--seed", "-1"], ["--num_workers", "0"]])
def test_bad_flags_are_refused(tmp_path, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        render_dataset.parse_args(["--instrument", "guitar", "--output_dir", str(tmp_path), *flags])
    assert "must be" in capsys.readouterr().err
