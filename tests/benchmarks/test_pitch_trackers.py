"""scripts/compare_trackers.py: known answers, the truth of rendered takes, a run, what it refuses."""

import json
import math
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pitch_trackers as compare_trackers
import trackers as pitch_trackers
from conftest import harmonic_tone
from pitch_trackers import judge, list_parts, main, mix, parse_args
from recordings.composition import Tone, compute_curves, write_midi
from trackers import CONFIG, FRAME, HOP, RATE, TRACKERS, Heard, Tracker, find_installed, to_grid
from voice.midi import read_midi_f0

HUM = Path(__file__).parents[2] / "examples" / "hum.wav"
HELD = [(0.0, 0.0), (2.0, 0.0)]  # level of a tone: s, dB
LOW_TONE = Tone(0.2, 1.6, 45, 100, 0.3, [(1.3, 6.0, 0.3)], (0.5, 5.0, 0.2, 0.0), HELD)  # swings, slides up
HIGH_TONE = Tone(2.2, 1.0, 69, 100, 0.0, [], (0.2, 5.5, 0.3, 0.0), HELD)


@pytest.fixture(autouse=True)
def _threads_are_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A take as render_dataset.py writes it, of two tones; harmonics take the place of the sound font."""
    path = tmp_path / "flute"
    path.mkdir()
    audio = np.zeros(round(3.5 * RATE), np.float32)
    for tone in (LOW_TONE, HIGH_TONE):
        samples = np.arange(round(tone.seconds * RATE)) / RATE
        sound = harmonic_tone(np.interp(samples, *expected_f0(tone)), tone.seconds)
        audio[round(tone.start * RATE) :][: len(sound)] = sound
    soundfile.write(path / "rendered_flute_000.wav", audio, RATE, subtype="PCM_24")
    (path / "rendered_flute_000.mid").write_bytes(write_midi([LOW_TONE, HIGH_TONE], 73, 3.5, ""))
    return path


def expected_f0(tone: Tone) -> tuple[np.ndarray, np.ndarray]:
    times, pitch, _ = compute_curves(tone)
    return times, 440 * 2 ** ((pitch - 69) / 12)


def test_figures_of_known_errors() -> None:
    truth = np.repeat([0.0, 200.0, 330.0], 100)
    silent, sounding = truth == 0, truth > 0

    def at(factor: float) -> compare_trackers.Figures:
        return judge(truth, silent, np.where(sounding, truth * factor, 100.0), sounding)

    assert at(1.0) == compare_trackers.Figures(1.0, 0.0, 0.0, 1.0, 0.0)
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert at(factor) == compare_trackers.Figures(0.0, None, 1.0, 1.0, 0.0)
    assert at(1.5) == compare_trackers.Figures(0.0, None, 0.0, 1.0, 0.0)  # a fifth is no octave
    for cents, share in ((40, 1.0), (-49.9, 1.0), (50.1, 0.0), (-60, 0.0)):
        figures = at(2 ** (cents / 1200))
        assert figures.within_50_cents == share and figures.octave_errors == 0.0
        assert figures.median_cents == (pytest.approx(abs(cents)) if share else None)


def test_figures_count_what_they_say() -> None:
    truth = np.repeat([0.0, 200.0], [60, 40])
    silent = np.arange(100) < 20  # 40 frames are neither silent nor do they count
    f0 = np.full(100, 200.0)
    f0[60:70], f0[70:75], f0[75:80] = 400.0, 210.0, 0.0
    voiced = np.zeros(100, bool)
    voiced[[0, 30, 31, 99]] = True
    figures = judge(truth, silent, f0, voiced)
    assert (figures.within_50_cents, figures.octave_errors) == (0.5, 0.25)
    assert (figures.found, figures.false_alarms) == (1 / 40, 1 / 20)
    nothing = judge(np.zeros(5), np.zeros(5, bool), f0[:5], voiced[:5])
    assert nothing == compare_trackers.Figures(None, None, None, None, None)


def test_the_truth_of_a_take_follows_bends_and_vibrato(folder: Path) -> None:
    n_frames = 400  # longer than the file, whose end is silent
    f0 = read_midi_f0(folder / "rendered_flute_000.mid", n_frames, CONFIG)
    times = np.arange(n_frames) * FRAME
    is_held = np.zeros(n_frames, bool)
    for tone in (LOW_TONE, HIGH_TONE):
        inside = (times > tone.start + FRAME) & (times < tone.start + tone.seconds - FRAME)
        cents = 1200 * np.log2(f0[inside] / np.interp(times[inside] - tone.start, *expected_f0(tone)))
        assert np.abs(cents).max() < 12  # the slide moves 8 between two positions of the wheel
        is_held |= (times > tone.start - FRAME) & (times < tone.start + tone.seconds + 2 * FRAME)
    assert not f0[~is_held].any() and len(f0) == n_frames


def test_soft_frames_of_a_note_do_not_count(folder: Path) -> None:
    path = folder / "rendered_flute_000.wav"
    audio, _ = soundfile.read(path)
    audio[round(2.2 * RATE) :] *= 1e-4
    soundfile.write(path, audio, RATE, subtype="PCM_24")
    [clip] = compare_trackers.read_rendered(folder, 6).clips
    assert clip.f0[100] > 0 and not clip.f0[220:].any()
    assert not clip.silent[230:310].any() and clip.silent[190:215].all() and clip.silent[340:].all()


def test_low_notes_are_a_part_of_their_own(folder: Path) -> None:
    (name, truth, _), (low_name, low, _) = list_parts(compare_trackers.read_rendered(folder, 6))
    assert (name, low_name) == ("flute", "flute under D3")
    assert 100 < np.count_nonzero(low) < np.count_nonzero(truth) and low.max() < 146.9 < 440 < truth.max()


def test_noise_is_as_loud_as_asked_and_never_clips() -> None:
    tone = harmonic_tone(220, 2, amplitude=0.1)
    noise = mix(tone, 10, 1) - tone
    assert 10 * math.log10(np.mean(tone**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.1)
    np.testing.assert_array_equal(mix(tone, 10, 1), mix(tone, 10, 1))
    assert not np.array_equal(mix(tone, 10, 1), mix(tone, 10, 2))
    np.testing.assert_array_equal(mix(tone, None, 1), tone)
    assert np.abs(mix(10 * tone, 0, 1)).max() == pytest.approx(1)


def test_other_frames_are_brought_to_the_grid() -> None:
    glide = 200 + 20 * np.arange(20) * 0.016  # Hz, linear in time
    f0, voiced = to_grid(Heard(0.016, glide, np.arange(20) > 9), 30)
    np.testing.assert_allclose(f0, 200 + 20 * np.arange(30) * FRAME)
    assert not voiced[:15].any() and voiced[16:].all()
    leap, _ = to_grid(Heard(0.016, np.repeat([200.0, 400.0], 10), np.ones(20, bool)), 35)
    assert set(leap) == {200.0, 400.0} and len(leap) == 35
    same, _ = to_grid(Heard(FRAME, np.repeat([200.0, 0.0, 400.0], 10), np.ones(30, bool)), 30)
    np.testing.assert_array_equal(same, np.repeat([200.0, 0.0, 400.0], 10))


@pytest.mark.parametrize("key", [key for key in TRACKERS if key != "crepe_full"])  # built like tiny, in ten seconds
def test_each_tracker_hears_a_glide_without_a_lag(key: str) -> None:
    if not find_spec(TRACKERS[key].module or "numpy"):
        pytest.skip(f"{TRACKERS[key].name} is not installed")
    times = np.arange(2 * RATE) / RATE
    truth = 300 * 2 ** (4 / 12 * np.sin(2 * np.pi * 0.7 * times))  # up to 18 semitones a second: 5 ms are 9 cents
    f0, voiced = to_grid(TRACKERS[key].build()(harmonic_tone(truth, 2)), 200)
    octaves, middle = np.log2(truth[::HOP]), slice(20, 180)
    errors = (np.log2(f0) - octaves)[middle]
    lag = -np.polyfit(np.gradient(octaves)[middle], errors, 1)[0]  # frames
    assert np.median(np.abs(1200 * errors)) < 20 and abs(lag) < 0.5
    assert voiced[middle].mean() > 0.95


def test_a_module_is_imported_without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", sys)
    with pytest.raises(KeyError), pitch_trackers.torchaudio_set_aside():
        import torchaudio
        from torchaudio.transforms import Resample

        assert torchaudio is not sys and Resample is None
        raise KeyError
    assert sys.modules["torchaudio"] is sys and "torchaudio.transforms" not in sys.modules


def test_the_hum_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "out" / "figures.json"
    audio, rate = soundfile.read(HUM, frames=4 * 44100)  # four seconds are enough
    soundfile.write(tmp_path / "hum.wav", audio, rate)
    shutil.copy(HUM.with_name("hum_f0.csv"), tmp_path)
    flags = ["--voice", str(tmp_path / "hum.wav"), "--snr", "10", "--trackers", "crepe_tiny"]
    assert main([*flags, "--json", str(path)]) == 0
    tables = capsys.readouterr().out
    report = json.loads(path.read_text())
    [result] = report["trackers"]
    clean, noisy = result["sounds"]
    assert (clean["snr"], noisy["snr"], report["snrs"]) == (None, 10, [None, 10])
    assert clean["within_50_cents"] > 0.98 and noisy["within_50_cents"] > 0.97 and clean["octave_errors"] < 0.01
    assert clean["median_cents"] < noisy["median_cents"] + 1 < 8 and clean["found"] > 0.95
    assert 2 < report["seconds"]["hum"] < 4 and 0.001 < result["core_seconds"] < 5
    cells = f"{100 * clean['within_50_cents']:.1f} / {100 * noisy['within_50_cents']:.1f}"
    assert f"| CREPE `tiny` | {cells} | {result['core_seconds']:.2g} |" in tables
    assert "within 50 cents, %; clean / 10 dB:\n\n| tracker | hum, 3 s | core s / s |\n| --- | --- | --- |\n" in tables


def test_rendered_takes_are_measured(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert main(["--rendered", str(folder), "--snr", "--trackers", "crepe_tiny", "--json", str(path)]) == 0
    figures = {row["sound"]: row for row in json.loads(path.read_text())["trackers"][0]["sounds"]}
    assert list(figures) == ["flute", "flute under D3"]
    assert all(row["within_50_cents"] > 0.9 and row["false_alarms"] < 0.2 for row in figures.values())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(TRACKERS, "pesto", Tracker("pesto-pitch", pitch_trackers.build_pesto, "no_such_module"))
    assert find_installed(["crepe_tiny", "pesto"]) == [TRACKERS["crepe_tiny"]]
    assert caplog.messages == ["pesto-pitch is missing: install it and it has a row"]
    assert main(["--voice", str(HUM), "--trackers", "pesto"]) == 1
    assert caplog.messages[-1] == "compare_trackers.py: none of the trackers is installed"


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lonely = tmp_path / "lonely.wav"
    soundfile.write(lonely, harmonic_tone(220, 0.2), RATE)
    (tmp_path / "empty").mkdir()

    def complaint(*flags: object) -> str:
        assert main([*map(str, flags), "--trackers", "crepe_tiny"]) == 1
        return caplog.messages[-1]

    assert "there is no file" in complaint("--voice", tmp_path / "none.wav")
    assert "lonely.wav has no annotation beside it: lonely_f0.csv" in complaint("--voice", lonely)
    assert "empty holds no wav files" in complaint("--rendered", tmp_path / "empty")
    assert "of the same name cannot be told apart: hum, hum" in complaint("--voice", HUM, HUM)
    (folder / "rendered_flute_000.mid").unlink()
    assert "there is no file" in complaint("--rendered", folder) and "rendered_flute_000.mid" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a --voice or a --rendered folder"),
        (["--voice", "a.wav", "--takes", "0"], "--takes should be at least 1"),
        (["--voice", "a.wav", "--seed", "-1"], "--seed at least 0"),
        (["--voice", "a.wav", "--snr", "nan"], "--snr between"),
        (["--voice", "a.wav", "--trackers", "yin"], "invalid choice"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert message in capsys.readouterr().err


def test_a_stop_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_trackers, "measure", stop)
    assert main(["--voice", str(HUM), "--trackers", "crepe_tiny"]) == 130
    assert caplog.messages[-1] == "compare_trackers.py: stopped; nothing was written"
