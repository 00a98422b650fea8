"""The example hum: as composed, as committed, and as a voice is built."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf

import make_hum
from make_hum import N_FFT, glottal_source, lf_pulse, resonance, solve_lf

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = make_hum.SAMPLE_RATE
NOTES = make_hum.schedule()
HELD = [note for note in NOTES if note.end - note.start > 0.4]


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """The hum as the script makes it: int16."""
    return make_hum.make_hum(seed=0)


@pytest.fixture(scope="module")
def audio(samples: np.ndarray) -> np.ndarray:
    """The same, full scale 1."""
    return samples / 32_768


def cut(audio: np.ndarray, start: float, end: float) -> np.ndarray:
    return audio[round(start * RATE) : round(end * RATE)]


def decibels(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(audio**2))


def measure_f0(audio: np.ndarray, frame_length: int = 1764) -> np.ndarray:
    return librosa.yin(audio, fmin=110, fmax=500, sr=RATE, frame_length=frame_length, hop_length=441, center=False)


def measure_periodicity(audio: np.ndarray, shortest: float, longest: float) -> float:
    """Correlate with itself at lags in seconds: 1 repeats exactly, 0 is noise."""
    lags = range(round(shortest * RATE), round(longest * RATE) + 1)
    return max(np.corrcoef(audio[:-lag], audio[lag:])[0, 1] for lag in lags)


def to_cents(f0: np.ndarray, midi: int) -> np.ndarray:
    return 1200 * np.log2(f0 / 440) - 100 * (midi - 69)


def test_same_seed_same_bits_other_seed_other_take() -> None:
    first, again, other = (make_hum.sing(NOTES[:4], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=0.1 * first.std())


def test_committed_file_is_what_the_script_makes(samples: np.ndarray) -> None:
    committed, rate = sf.read(ROOT / "examples" / "hum.wav", dtype="int16")
    assert rate == RATE and committed.shape == samples.shape
    # Another processor's sine may round differently: one step of 16 bits at most.
    assert np.abs(committed.astype(int) - samples).max() <= 1


def test_committed_pitch_is_what_is_sung(tmp_path: Path, audio: np.ndarray) -> None:
    make_hum.save_pitch(tmp_path / "f0.csv", make_hum.sung_pitch(seed=0))
    written, committed = (
        np.loadtxt(path, delimiter=",", skiprows=1) for path in (tmp_path / "f0.csv", ROOT / "examples" / "hum_f0.csv")
    )
    assert np.allclose(written, committed, atol=0.002)
    seconds, f0 = committed.T
    measured = measure_f0(audio)[: len(f0)]  # of a window that begins at the frame, not one centred on it
    sung = np.interp(seconds + 0.02, seconds, f0)[: len(measured)]
    steady = (f0[: len(measured)] > 0) & (np.interp(seconds + 0.04, seconds, f0)[: len(measured)] > 0)
    cents = 1200 * np.abs(np.log2(measured[steady] / sung[steady]))
    assert steady.mean() > 0.5 and np.median(cents) < 15


def test_length_and_level_of_a_quiet_recording(audio: np.ndarray) -> None:
    assert 8 <= audio.size / RATE <= 12
    assert -12 < 20 * np.log10(np.abs(audio).max()) < -9
    assert abs(audio.mean()) < 1e-4


@pytest.mark.parametrize("note", HELD, ids=lambda n: f"{n.start:.2f}s")
def test_held_notes_are_in_tune(audio: np.ndarray, note: object) -> None:
    cents = to_cents(measure_f0(cut(audio, note.start + 0.16, note.end - 0.06)), note.midi)
    # A singer drifts by some 10 cents; a semitone, the smallest mistake in the score, is 100.
    assert abs(np.median(cents)) < 35


@pytest.mark.parametrize("note", [note for note in NOTES if note.is_long], ids=lambda n: f"{n.start:.2f}s")
def test_vibrato_comes_late_to_long_notes(audio: np.ndarray, note: object) -> None:
    early = to_cents(measure_f0(cut(audio, note.start + 0.15, note.start + 0.33)), note.midi)
    late = to_cents(measure_f0(cut(audio, note.start + 0.55, note.end - 0.06)), note.midi)
    late = (late - late.mean()) * np.hanning(late.size)
    rate = np.fft.rfftfreq(4096, 441 / RATE)[np.argmax(np.abs(np.fft.rfft(late, 4096)))]
    assert 5.0 < rate < 6.2
    assert 20 < np.ptp(late) / 2 < 60  # cents either side, somewhat smoothed by yin's frame
    assert np.ptp(early) / 2 < 20


def test_true_f0_can_be_had_without_the_sound(audio: np.ndarray) -> None:
    f0 = make_hum.pitch_curve(NOTES, np.arange(audio.size) / RATE, np.random.default_rng(0))
    note = NOTES[-1]  # with vibrato: a curve of another take would be 50 cents off
    measured = measure_f0(cut(audio, note.start + 0.2, note.end - 0.1))
    centres = round((note.start + 0.2) * RATE) + 441 * np.arange(measured.size) + 882
    cents = 1200 * np.log2(measured / f0[centres])
    assert np.median(np.abs(cents)) < 10


def test_rests_lie_at_the_noise_floor_and_breaths_above(audio: np.ndarray) -> None:
    last = [note for note in NOTES if note.last][-1]
    for start, end in ((0.02, 0.30), (last.end + 0.25, last.end + make_hum.TAIL)):
        assert decibels(cut(audio, start, end)) == pytest.approx(make_hum.NOISE_FLOOR_DB, abs=1.5)
    for note in (note for note in NOTES if note.first):
        breath = cut(audio, note.start - 0.40, note.start - 0.15)
        assert -52 < decibels(breath) < -42
        assert measure_periodicity(breath, 0.002, 0.01) < 0.5  # noise


def test_a_voice_is_not_a_sine(audio: np.ndarray) -> None:
    note = next(note for note in NOTES if note.is_long)  # on "ah"
    held = cut(audio, note.start + 0.15, note.start + 0.35)
    spectrum = np.abs(np.fft.rfft(held * np.hanning(held.size), 1 << 16))
    harmonic = np.arange(1, 13) * np.median(measure_f0(held)) * (1 << 16) / RATE
    peaks = 20 * np.log10([spectrum[int(h) - 40 : int(h) + 40].max() for h in harmonic])
    assert (peaks > peaks.max() - 50).all()  # twelve harmonics
    assert np.argmax(peaks) == 1  # the first formant, near 620 Hz, lifts the second over the fundamental
    assert peaks[7:10].max() > peaks[4:7].min() + 3  # and the third, near 2500 Hz, the eighth over the fifth


def test_harmonics_stand_10_to_27_db_over_the_noise_between(audio: np.ndarray) -> None:
    note = NOTES[1]
    held = cut(audio, note.start + 0.2, note.end - 0.04)
    period = 1 / np.median(measure_f0(held))
    r = measure_periodicity(held, 0.9 * period, 1.1 * period)
    assert 10 < 10 * np.log10(r / (1 - r)) < 27  # harmonics-to-noise ratio (Boersma 1993); a synthesizer's is over 40


def test_glottal_pulse_has_no_net_flow_and_closes_at_minus_one() -> None:
    u = (np.arange(20_000) + 0.5) / 20_000
    for rd in (0.7, 1.0, 1.7, 2.6):
        shape = solve_lf(np.array([rd]))
        pulse = lf_pulse(u, shape)
        assert abs(pulse.mean()) < 1e-6
        closure = shape[0] + np.array([[-1e-9], [1e-9]])  # no jump there, nor between two cycles
        assert lf_pulse(closure, shape) == pytest.approx(-1, abs=1e-6)
        assert lf_pulse(np.array([0.0, 1.0]), shape) == pytest.approx(0, abs=1e-9)
        assert pulse.min() > -1.001


def sing_plainly() -> np.ndarray:
    """The source alone: 0.6 s at 200 Hz, even and modal."""
    steady = np.ones(round(0.6 * RATE))
    return glottal_source(200 * steady, steady, steady, np.random.default_rng(0))


def test_pulses_jitter_and_shimmer_like_a_voice(monkeypatch) -> None:
    monkeypatch.setattr("make_hum.ASPIRATION", 0.0)
    period = RATE / 200
    starts = [round((k + 0.2) * period) for k in range(2, 110)]  # modal pulses close 0.6 of a period after their mark
    flow = sing_plainly()
    pulses = np.stack([flow[start : start + round(period)] for start in starts])
    closures, strengths = np.array(starts) + pulses.argmin(axis=1), -pulses.min(axis=1)
    assert 0.003 < np.diff(closures).std() / period < 0.012
    assert 0.02 < strengths.std() / strengths.mean() < 0.05


def test_aspiration_passes_while_the_glottis_is_open(monkeypatch) -> None:
    voiced = sing_plainly()
    monkeypatch.setattr("make_hum.ASPIRATION", 0.0)
    noise = voiced - sing_plainly()  # drawn last: the pulses are the same
    phase = np.arange(noise.size) * 200 / RATE % 1
    opened, closed = noise[(phase > 0.2) & (phase < 0.4)], noise[(phase > 0.75) & (phase < 0.95)]
    assert decibels(opened) > decibels(closed) + 6
    assert -35 < decibels(noise) < -15  # against a pulse of 1


def test_louder_is_brighter() -> None:
    u = np.arange(2048) / 2048
    lax, tense = (np.abs(np.fft.rfft(lf_pulse(u, solve_lf(np.array([rd]))))) for rd in (2.6, 0.7))
    assert 20 * np.log10(tense[8] / tense[1]) > 20 * np.log10(lax[8] / lax[1]) + 12


def test_resonator_peaks_at_its_centre_with_its_bandwidth() -> None:
    response = np.abs(resonance(np.array([1000.0]), np.array([80.0])))[0]
    frequency = np.arange(response.size) * RATE / N_FFT
    passed = frequency[response > response.max() / np.sqrt(2)]
    assert frequency[response.argmax()] == pytest.approx(1000, abs=RATE / N_FFT)
    assert np.ptp(passed) == pytest.approx(80, abs=2 * RATE / N_FFT)
    assert response[0] == pytest.approx(1)


def test_main_writes_the_sound_and_its_pitch_and_no_other(tmp_path: Path, samples: np.ndarray, monkeypatch) -> None:
    monkeypatch.setattr(make_hum, "make_hum", lambda seed: samples)
    path = tmp_path / "new" / "hum.wav"
    assert make_hum.main(["--output", str(path)]) == 0
    written, _ = sf.read(path, dtype="int16")
    assert sf.info(path).subtype == "PCM_16" and np.array_equal(written, samples)
    assert sorted(path.parent.iterdir()) == [path, path.with_name("hum_f0.csv")]


@pytest.mark.parametrize("flags", ["", "--output hum.mp3", "--output .", "--output hum.wav --seed -1"])
def test_bad_flags_are_refused(flags: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as refused:
        make_hum.main(flags.split())
    assert refused.value.code == 2 and "--output" in capsys.readouterr().err


def test_unwritable_output_is_one_sentence(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(make_hum, "make_hum", lambda seed: np.zeros(100, np.int16))
    (tmp_path / "file").write_text("not a folder")
    assert make_hum.main(["--output", str(tmp_path / "file" / "hum.wav")]) == 1
    assert str(tmp_path / "file") in caplog.text
