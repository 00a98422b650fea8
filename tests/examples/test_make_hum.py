"""examples/make_hum.py: it makes the committed hum, whose f0, levels and formants are those of a voice."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf

import make_hum

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = make_hum.SAMPLE_RATE
NOTES = make_hum.schedule()


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return sf.read(EXAMPLES / "hum.wav")[0]


def cut(audio: np.ndarray, start: float, end: float) -> np.ndarray:
    return audio[round(start * RATE) : round(end * RATE)]


def decibels(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(audio**2))


def measure_f0(audio: np.ndarray) -> np.ndarray:
    return librosa.yin(audio, fmin=110, fmax=500, sr=RATE, frame_length=1764, hop_length=441, center=False)


def read_curve(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)


def test_the_script_makes_the_committed_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hum.wav"
    assert make_hum.main(["--output", str(path)]) == 0
    assert sorted(path.parent.iterdir()) == [path, path.with_name("hum_f0.csv")]
    (made, rate), (committed, _) = (sf.read(each, dtype="int16") for each in (path, EXAMPLES / "hum.wav"))
    assert rate == RATE and made.shape == committed.shape
    # Another processor's sine may round differently: one step of 16 bits at most.
    assert np.abs(made.astype(int) - committed).max() <= 1
    assert np.allclose(read_curve(path.with_name("hum_f0.csv")), read_curve(EXAMPLES / "hum_f0.csv"), atol=0.002)


def test_the_committed_f0_is_that_of_the_sound(audio: np.ndarray) -> None:
    seconds, f0 = read_curve(EXAMPLES / "hum_f0.csv").T
    measured = measure_f0(audio)[: len(f0)]  # of a window that begins at the frame, not one centred on it
    expected = np.interp(seconds + 0.02, seconds, f0)[: len(measured)]
    steady = (f0[: len(measured)] > 0) & (np.interp(seconds + 0.04, seconds, f0)[: len(measured)] > 0)
    cents = 1200 * np.abs(np.log2(measured[steady] / expected[steady]))
    assert steady.mean() > 0.5 and np.median(cents) < 15


def test_the_hum_has_the_levels_and_formants_of_a_voice(audio: np.ndarray) -> None:
    assert 8 <= audio.size / RATE <= 12 and -12 < 20 * np.log10(np.abs(audio).max()) < -9
    last = [note for note in NOTES if note.last][-1]
    for start, end in ((0.02, 0.30), (last.end + 0.25, last.end + make_hum.TAIL)):
        assert decibels(cut(audio, start, end)) == pytest.approx(make_hum.NOISE_FLOOR_DB, abs=1.5)
    for note in (note for note in NOTES if note.first):  # breaths
        assert -52 < decibels(cut(audio, note.start - 0.40, note.start - 0.15)) < -42
    note = next(note for note in NOTES if note.is_long)  # on "ah"
    held = cut(audio, note.start + 0.15, note.start + 0.35)
    spectrum = np.abs(np.fft.rfft(held * np.hanning(held.size), 1 << 16))
    harmonic = np.arange(1, 13) * np.median(measure_f0(held)) * (1 << 16) / RATE
    peaks = 20 * np.log10([spectrum[int(h) - 40 : int(h) + 40].max() for h in harmonic])
    assert (peaks > peaks.max() - 50).all()  # twelve harmonics
    assert np.argmax(peaks) == 1  # the first formant, near 620 Hz, lifts the second over the fundamental
    assert peaks[7:10].max() > peaks[4:7].min() + 3  # and the third, near 2500 Hz, the eighth over the fifth


@pytest.mark.parametrize("flags", ["", "--output hum.mp3", "--output .", "--output hum.wav --seed -1"])
def test_invalid_flags_are_refused(flags: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as refused:
        make_hum.main(flags.split())
    assert refused.value.code == 2 and "--output" in capsys.readouterr().err


def test_an_unwritable_output_is_named(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(make_hum, "make_hum", lambda seed: np.zeros(100, np.int16))
    (tmp_path / "file").write_text("not a folder")
    assert make_hum.main(["--output", str(tmp_path / "file" / "hum.wav")]) == 1
    assert str(tmp_path / "file") in caplog.text
