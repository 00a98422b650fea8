"""recordings/sampler.py on recordings of known tones: pitch, onset, level, decay, damping, slurs, and the scores."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
from sample_library import DECAY, hz, write_guitar, write_trumpet

from recordings.rendering import render_samples, string_together
from recordings.sampler import Sampler
from recordings.samples import SAMPLE_RATE, build_index, measure_envelope, measure_f0
from recordings.score import FILE_SECONDS, PLAYING, Note, Playing, compose_file


@pytest.fixture(scope="module")
def guitar(tmp_path_factory) -> Sampler:
    folder = tmp_path_factory.mktemp("samples") / "guitar"
    write_guitar(folder)
    return Sampler(build_index(folder, "guitar"), PLAYING["guitar"])


@pytest.fixture(scope="module")
def trumpet(tmp_path_factory) -> Sampler:
    folder = tmp_path_factory.mktemp("samples") / "trumpet"
    write_trumpet(folder)
    return Sampler(build_index(folder, "trumpet"), PLAYING["trumpet"])


def play(sampler: Sampler, *score: Note, seconds: float = 2.5) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    audio, truth = sampler.play(list(score), seconds, np.random.default_rng(0))
    return audio, truth.f0, truth.notes


def measure_db(audio: np.ndarray, start: float, end: float) -> float:
    part = audio[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    return 20 * np.log10(np.sqrt(np.mean(part.astype(np.float64) ** 2)) + 1e-12)


def cents(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    return 1200 * np.log2(a / b)


@pytest.mark.parametrize("midi", [57.0, 61.3, 64.9])
def test_a_pluck_has_the_requested_pitch_time_and_level(guitar: Sampler, midi: float) -> None:
    audio, f0, notes = play(guitar, Note(0.5, 1.2, midi, -4.0))
    track, _ = measure_f0(audio, hz(midi), 480)
    steady = slice(60, 160)
    assert np.abs(cents(track[steady], hz(midi))).max() < 2
    assert np.abs(cents(f0[steady], hz(midi))).max() < 2
    assert not f0[:50].any()
    assert not audio[: round(0.49 * SAMPLE_RATE)].any()
    envelope = measure_envelope(audio, 24, 96)
    onset = 24 * np.argmax(envelope > 0.1 * envelope.max()) / SAMPLE_RATE
    assert onset == pytest.approx(0.5, abs=0.004)
    peaks = [20 * np.log10(np.abs(play(guitar, Note(0.5, 1.2, midi, level))[0]).max()) for level in (-4.0, -5.0)]
    assert peaks[0] - peaks[1] == pytest.approx(1.0, abs=0.1)
    assert notes[0]["midi"] == pytest.approx(midi, abs=0.02)


def test_a_pluck_decays_and_is_damped(guitar: Sampler) -> None:
    audio, _, notes = play(guitar, Note(0.2, 1.0, 60.0, 0.0, fade=0.06))
    slope = (measure_db(audio, 0.3, 0.35) - measure_db(audio, 1.0, 1.05)) / 0.7
    assert slope == pytest.approx(DECAY, rel=0.02)
    assert measure_db(audio, 1.1, 1.2) > measure_db(audio, 1.2, 1.26) > -120
    assert not audio[round(1.265 * SAMPLE_RATE) :].any()
    assert notes[0]["end"] == pytest.approx(1.2, abs=0.001)


def test_a_new_pluck_damps_the_previous_one(guitar: Sampler) -> None:
    first, second = Note(0.2, 0.776, 57.0, 0.0, fade=0.02), Note(1.0, 0.5, 63.0, 0.0)
    audio, f0, notes = play(guitar, first, second)

    def measure_partial(midi: float, start: float, seconds: float) -> float:
        part = audio[round(start * SAMPLE_RATE) :][: round(seconds * SAMPLE_RATE)]
        wave = np.hanning(len(part)) * np.exp(-2j * np.pi * hz(midi) * np.arange(len(part)) / SAMPLE_RATE)
        return 20 * np.log10(np.abs(part @ wave) / len(part))

    assert measure_partial(57.0, 0.8, 0.19) - measure_partial(57.0, 1.02, 0.3) > 40
    assert measure_partial(57.0, 0.993, 0.02) - measure_partial(57.0, 0.97, 0.02) > -12  # it rings into the attack
    assert np.abs(cents(f0[105:145], hz(63))).max() < 2
    assert 0.98 < notes[0]["end"] < 1.0  # where the damping begins


def test_layers_follow_the_level_and_takes_alternate(guitar: Sampler) -> None:
    score = [Note(0.1 + 0.2 * i, 0.15, 60.0, level) for i, level in enumerate((-18, -9, -3, 0, 0, 0, 0))]
    notes = play(guitar, *score)[2]
    assert [n["files"][0][3:6] for n in notes] == ["vl1", "vl2", "vl3", "vl4", "vl4", "vl4", "vl4"]
    takes = [n["files"][0] for n in notes[3:]]
    assert len(set(takes[:3])) == 3 and takes[3] == takes[0]  # the fourth take is not the model's
    assert not any("rr4" in take for take in takes)


def test_a_pitch_without_a_near_recording_is_named(guitar: Sampler) -> None:
    with pytest.raises(ValueError, match=r"70\.0"):
        play(guitar, Note(0.1, 0.5, 70.0, 0.0))


def test_held_notes_are_looped_in_tune(trumpet: Sampler) -> None:
    audio, f0, _ = play(trumpet, Note(0.3, 3.0, 67.0, 0.0), seconds=4.0)  # three times as long as recorded
    track, strength = measure_f0(audio, hz(67), 480)
    steady = slice(45, 320)
    assert np.abs(cents(track[steady], hz(67))).max() < 2
    assert np.abs(cents(f0[steady], hz(67))).max() < 2
    assert strength[steady].min() > 0.99
    levels = [measure_db(audio, t, t + 0.02) for t in np.arange(0.45, 3.2, 0.02)]
    assert np.ptp(levels) < 1
    assert np.mean(levels) == pytest.approx(0, abs=0.5)  # level 0 is an RMS of 1 before the common gain
    assert measure_db(audio, 3.6, 3.9) < -60


def test_level_and_brightness_follow_the_dynamics(trumpet: Sampler) -> None:
    soft, loud = (play(trumpet, Note(0.3, 0.7, 67.0, level))[0] for level in (-30.0, 0.0))
    assert measure_db(loud, 0.5, 0.8) - measure_db(soft, 0.5, 0.8) == pytest.approx(30, abs=0.5)
    swell = replace(Note(0.3, 2.0, 67.0, 0.0), shape=((0.0, -30.0), (2.0, 0.0)))
    audio, _, notes = play(trumpet, swell, seconds=3.0)
    assert len(notes[0]["files"]) == 2
    assert measure_db(audio, 1.28, 1.32) == pytest.approx(-15, abs=1.5)
    frequency = np.fft.rfftfreq(4800, 1 / SAMPLE_RATE)
    shares = []
    for at in (0.45, 1.3, 2.2):
        power = np.abs(np.fft.rfft(audio[round(at * SAMPLE_RATE) :][:4800] * np.hanning(4800))) ** 2
        shares.append(power[frequency > 1500].sum() / power.sum())
    assert shares[0] < shares[1] < shares[2]


def test_a_slur_has_no_gap_and_glides(trumpet: Sampler) -> None:
    score = (Note(0.3, 0.7, 67.0, 0.0), Note(1.0, 0.7, 71.0, 0.0, joined=True, glide=0.04))
    audio, f0, notes = play(trumpet, *score)
    levels = [measure_db(audio, t, t + 0.01) for t in np.arange(0.5, 1.6, 0.005)]
    assert min(levels) > -1.5
    assert np.abs(cents(f0[40:97], hz(67))).max() < 2
    assert np.abs(cents(f0[104:165], hz(71))).max() < 2
    assert cents(f0[100], hz(69)) == pytest.approx(0, abs=60)
    assert [n["joined"] for n in notes] == [False, True]


@pytest.mark.parametrize("name", sorted(PLAYING))
def test_scores_are_monophonic_and_cover_range_and_levels(name: str) -> None:
    playing: Playing = PLAYING[name]
    notes = []
    for i in range(12):
        score = compose_file(np.random.default_rng(i), playing, i)
        for note, after in pairwise(score):
            assert note.seconds > 0 and note.end <= after.onset + 1e-9
            assert (
                note.end == pytest.approx(after.onset) if after.joined else note.end + note.fade <= after.onset + 1e-9
            )
        assert score[-1].end < FILE_SECONDS
        notes += score
    pitches, levels = np.array([n.midi for n in notes]), np.array([n.level for n in notes])
    assert pitches.min() < playing.low + 3 and pitches.max() > playing.high - 3
    assert levels.max() <= 0 and levels.max() > -2
    assert np.mean(levels < playing.softest + 4) > 0.05
    seconds = np.array([n.seconds for n in notes])
    assert seconds.min() < 0.15 and seconds.max() > 2


def test_a_rendered_set_is_resumed_and_lists_its_sources(guitar: Sampler, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PLAYING, "guitar", replace(PLAYING["guitar"], low=56, high=64))
    output = tmp_path / "rendered"
    assert render_samples(guitar.folder, "guitar", 0.5, output, seed=3) == (1, 0)
    assert render_samples(guitar.folder, "guitar", 0.5, output, seed=3) == (0, 1)
    audio, rate = sf.read(output / "rendered_guitar_000.flac")
    assert rate == SAMPLE_RATE and len(audio) == FILE_SECONDS * SAMPLE_RATE
    assert 0.05 < np.abs(audio).max() < 1
    truth = json.loads((output / "rendered_guitar_000.json").read_text())
    sources = [file for note in truth["notes"] for file in note["files"]]
    assert sources and not any("rr4" in source for source in sources)
    with pytest.raises(ValueError, match="kazoo"):
        render_samples(guitar.folder, "kazoo", 0.5, output)


def test_whole_recordings_do_not_overlap(trumpet: Sampler) -> None:
    parts = string_together(trumpet.notes, np.random.default_rng(0), gain=0.1)
    assert sorted(w.sample.path for part in parts for w in part) == sorted(s.path for s in trumpet.notes)
    for part in parts:
        assert part[-1].onset + part[-1].seconds <= FILE_SECONDS
        assert all(a.onset + a.seconds < b.onset for a, b in pairwise(part))
