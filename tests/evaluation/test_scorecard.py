"""Measures of the scorecard, on curves and sounds with known results."""

import dataclasses

import numpy as np
import pytest

from conftest import harmonic_tone
from evaluation import scorecard, scorecard_tables
from evaluation.scorecard import ExpectedCurves, MeasuredSound
from evaluation.scorecard_tables import RESYNTHESIS, TRANSFER, Column

N_FRAMES = 200


def sound(audio=None, f0=440.0, loudness=-20.0, periodicity=1.0):
    """Return T = 200 frames of sound and curves; those not given are constant."""
    audio = np.zeros(N_FRAMES * 160, dtype=np.float32) if audio is None else audio
    curves = (np.broadcast_to(np.asarray(values, dtype=np.float64), N_FRAMES) for values in (f0, loudness, periodicity))
    return MeasuredSound(audio, *curves, sample_rate=16000, hop_length=160)


def part(first, last, inside, outside):
    """Return [T] with one value in frames first to last - 1, another elsewhere."""
    frames = np.arange(N_FRAMES)
    return np.where((frames >= first) & (frames < last), inside, outside)


def tone(amplitude=0.1, f0=440.0, seconds=2.0):
    return harmonic_tone(f0, seconds, n_harmonics=1, amplitude=amplitude)


def white(level, seed=0):
    """Return noise [N] of an RMS level in dBFS."""
    noise = np.random.default_rng(seed).standard_normal(N_FRAMES * 160)
    return (10 ** (level / 20) * noise).astype(np.float32)


def test_frame_levels_of_a_sine_and_of_silence():
    levels = scorecard.frame_levels(sound(tone(0.1, f0=500.0)))  # 5 whole periods a frame
    assert levels.shape == (N_FRAMES,)
    assert levels[1:] == pytest.approx(np.full(N_FRAMES - 1, -23.01), abs=0.05)
    assert (scorecard.frame_levels(sound()) == -120).all()


def test_frame_levels_are_centred_on_their_frames():
    audio = np.zeros(N_FRAMES * 160, dtype=np.float32)
    audio[160 * 50 - 80 : 160 * 50 + 80] = 1.0
    assert np.flatnonzero(scorecard.frame_levels(sound(audio)) > -120).tolist() == [50]


def test_rests_leave_out_releases_and_attacks():
    rests = scorecard.find_rests(part(50, 60, True, False), 100.0)
    assert np.flatnonzero(~rests).tolist() == list(range(48, 70))


def test_a_copy_of_itself_has_no_error():
    recording = sound(tone() + white(-60))
    figures = scorecard.compare_copies([recording], [recording])
    assert figures["loudness_l1"] == figures["loudness_bias"] == 0


def test_loudness_error_counts_frames_that_sound():
    recording = sound(loudness=part(0, 100, -20.0, -61.0))
    copy = sound(loudness=part(0, 50, -18.0, -24.0))  # + 2 dB, - 4 dB; then + 37 dB in a rest
    figures = scorecard.compare_copies([recording], [copy])
    assert figures["loudness_l1"] == pytest.approx(3) and figures["loudness_bias"] == pytest.approx(-1)


def test_frames_of_all_recordings_count_alike():
    quiet = sound(loudness=part(0, 20, -20.0, -70.0))
    figures = scorecard.compare_copies([sound(), quiet], [sound(loudness=-21.0), sound(loudness=-31.0)])
    assert figures["loudness_l1"] == pytest.approx((200 * 1 + 20 * 11) / 220)


def test_noise_floor_is_measured_only_in_rests():
    recording = sound(loudness=part(0, 100, -20.0, -80.0))
    copy = sound(np.where(np.arange(N_FRAMES * 160) < 108 * 160, tone(0.5), white(-50)).astype(np.float32))
    assert scorecard.compare_copies([recording], [copy])["rest_level"] == pytest.approx(-50, abs=0.3)


def test_missing_frames_are_not_measured():
    silent = sound(loudness=-80.0, periodicity=0.0)
    assert scorecard.compare_copies([silent], [silent])["loudness_l1"] is None
    assert scorecard.compare_copies([sound()], [sound()])["rest_level"] is None


def wanted(f0=440.0, loudness=-30.0, played=(50, 150)):
    curves = (np.broadcast_to(np.asarray(values, dtype=np.float64), N_FRAMES) for values in (f0, loudness))
    return ExpectedCurves(*curves, part(*played, True, False))


def test_exact_playing_has_no_error():
    level = part(50, 150, np.linspace(-40, -20, N_FRAMES), -80.0)
    audio = np.where(part(50, 150, True, False).repeat(160), tone(), 0).astype(np.float32)
    output = sound(audio, f0=440 * 2 ** (5 / 1200), loudness=level, periodicity=part(50, 150, 0.9, 0.0))
    figures = scorecard.compare_transfer(wanted(loudness=level - 12), output, 0.5)
    assert figures["f0_median"] == pytest.approx(5) and figures["f0_p95"] == pytest.approx(5)
    assert figures["precision"] == figures["recall"] == 100
    assert figures["loudness_correlation"] == pytest.approx(1)
    assert figures["pause_level"] == -120


def test_wrong_octave_is_detected():
    assert scorecard.compare_transfer(wanted(), sound(f0=880.0), 0.5)["f0_median"] == pytest.approx(1200)


def test_octave_shift_must_be_constant():
    sung = part(20, 120, 220.0, 0.0)
    played_f0 = part(20, 60, 880.0, 880.0 * 1.02)  # two octaves up, here and there a little sharp
    judge = scorecard.percent_in_octave
    assert judge(sung, sound(f0=played_f0)) == 100
    assert judge(sung, sound(f0=np.where(part(40, 50, True, False), played_f0 / 2, played_f0))) == pytest.approx(90)
    assert judge(sung[:150], sound(f0=played_f0, periodicity=part(40, 200, 0.9, 0.2))) == 100
    assert judge(np.zeros(N_FRAMES), sound()) is None and judge(sung, sound(periodicity=0.5)) is None
    assert scorecard.compare_transfer(wanted(), sound(), 0.5)["octave"] is None
    annotated = dataclasses.replace(wanted(), sung=sung)
    assert scorecard.compare_transfer(annotated, sound(f0=440.0), 0.5)["octave"] == 100


def test_precision_and_recall():
    # 80 of 100 wanted frames sound, and 20 in the pause; 10 more ring on in the release, which is allowed.
    periodicity = part(70, 160, 0.9, 0.0)
    periodicity[:20] = 0.9
    figures = scorecard.compare_transfer(wanted(), sound(periodicity=periodicity), 0.5)
    assert figures["recall"] == pytest.approx(80) and figures["precision"] == pytest.approx(80)


def test_pause_level_is_the_95th_percentile():
    audio = white(-65)
    audio[180 * 160 :] *= 10  # a tenth of the recording, a fifth of the pauses
    assert scorecard.compare_transfer(wanted(), sound(audio), 0.5)["pause_level"] == pytest.approx(-45, abs=1)


def test_inaudible_levels_do_not_affect_the_correlation():
    level = np.linspace(-50, -20, N_FRAMES)
    notes = wanted(loudness=level)
    lost = [sound(loudness=np.where(level < -40, lowest, level)) for lowest in (-60.0, -80.0)]
    correlations = [scorecard.compare_transfer(notes, each, 0.5)["loudness_correlation"] for each in lost]
    assert correlations[0] == correlations[1] < 1


def test_a_constant_level_has_no_correlation():
    assert scorecard.compare_transfer(wanted(), sound(), 0.5)["loudness_correlation"] is None


def test_a_longer_release_is_cut_off():
    twice = (np.concatenate([values, values]) for values in dataclasses.astuple(sound(tone()))[:4])
    longer = MeasuredSound(*twice, sample_rate=16000, hop_length=160)
    assert scorecard.compare_transfer(wanted(), longer, 0.5) == scorecard.compare_transfer(wanted(), sound(tone()), 0.5)


def test_peak_and_clipping():
    figures = scorecard.measure_level(np.array([0.5, -0.25], dtype=np.float32))
    assert figures["peak"] == pytest.approx(-6.02, abs=0.01) and figures["clipped"] == 0
    assert scorecard.measure_level(np.array([1.2, -1.0, 0.9999], dtype=np.float32))["clipped"] == 3 - 1
    assert scorecard.measure_level(np.zeros(4))["peak"] == -120


def test_out_of_range(config):
    trumpet = config.instrument("trumpet")
    f0 = part(50, 75, trumpet.f0_max * 2 ** (0.6 / 12), trumpet.f0_max * 2 ** (0.4 / 12))
    assert scorecard.percent_out_of_range(wanted(f0), trumpet) == pytest.approx(25)
    f0 = part(50, 60, trumpet.f0_min / 2 ** (0.6 / 12), trumpet.f0_min)
    assert scorecard.percent_out_of_range(wanted(f0), trumpet) == pytest.approx(10)


def test_noise_has_the_requested_snr():
    audio = tone(0.3)
    noisy = scorecard.add_noise(audio, 20.0, seed=3)
    ratio = 10 * np.log10(np.mean(audio**2) / np.mean((noisy - audio) ** 2))
    assert ratio == pytest.approx(20, abs=0.15) and noisy.dtype == np.float32
    assert np.array_equal(noisy, scorecard.add_noise(audio, 20.0, seed=3))
    assert not np.array_equal(noisy, scorecard.add_noise(audio, 20.0, seed=4))


def test_measure_pads_and_resamples(config):
    measured = scorecard.measure_sound(harmonic_tone(440.0, 0.5, 44100), 44100, config)
    assert len(measured.audio) == 160 * len(measured.f0) == 8000 and measured.frame_rate == 100
    assert 1200 * abs(np.log2(np.median(measured.f0) / 440)) < 15


def report(instrument="trumpet", plucked=False, **sections):
    return {"instrument": instrument, "plucked": plucked, "resynthesis": [], "transfer": [], **sections}


def rows(figures, **values):
    return {**{figure.key: 0.0 for figure in figures}, **values}


def targets_of(judged):
    return {(target["section"], target["figure"]): target for target in scorecard_tables.check_targets(judged, "ours")}


def test_targets_are_limits():
    least, most = Column("a", "a", 1, "", 0.95, at_least=True), Column("b", "b", 1, "", 10.0)
    assert least.is_met(0.95, 0.95) and not least.is_met(0.94, 0.95)
    assert most.is_met(10.0, 10.0) and not most.is_met(10.1, 10.0)
    assert most.is_met(None, 10.0) and most.is_met(99.0, None)  # not measured, and no target


def test_targets_apply_to_the_mean_and_sanity_to_the_worst():
    voices = [
        rows(TRANSFER, sound="ours", voice="a", octave=None, pause_level=-90.0, recognised=100.0, brightness=1.0),
        rows(TRANSFER, sound="ours", voice="b", octave=100.0, pause_level=-69.0, recognised=52.0, brightness=6.0),
        rows(TRANSFER, sound="theirs", voice="b", octave=0.0),
    ]
    targets = targets_of(report(transfer=voices))
    assert targets["transfer", "octave %"]["met"]  # voice a has no annotation
    assert targets["transfer", "recognised %"]["value"] == 76 and targets["transfer", "recognised %"]["met"]
    assert targets["transfer", "brightness dB"]["value"] == 3.5 and not targets["transfer", "brightness dB"]["met"]
    assert targets["transfer", "pauses dBFS"]["value"] == -69 and not targets["transfer", "pauses dBFS"]["met"]
    assert ("transfer", "attack ms") not in targets
    assert ("transfer", "attack ms") in targets_of(report("guitar", True, transfer=voices))
    assert not targets_of(report("guitar", True, transfer=voices))["transfer", "recognised %"]["met"]


def test_missing_figures_are_not_misses():
    targets = targets_of(report(resynthesis=[rows(RESYNTHESIS, sound="ours", log_mel=None)]))
    assert targets["resynthesis", "log-mel dB"]["met"]
    assert "not measured" in scorecard_tables.format_targets(list(targets.values()))


def test_recognition_target_of_a_copy_depends_on_its_recording():
    for rate, met in ((40.0, True), (39.0, False)):
        copies = [rows(RESYNTHESIS, sound="ours", recognised=rate), rows(RESYNTHESIS, sound="real", recognised=50.0)]
        assert targets_of(report(resynthesis=copies))["resynthesis", "recognised %"]["met"] == met


def test_tables_are_markdown():
    judged = report(resynthesis=[rows(RESYNTHESIS, sound="ours", log_mel=2.345, recognised=None)])
    title, _, head, rule, row, *sanity = scorecard_tables.format_tables(judged).splitlines()
    assert title == "Resynthesis" and set(rule) == {"|", "-", " "} and "Resynthesis, sanity" in sanity
    cells = dict(zip((cell.strip() for cell in head.split("|")), (cell.strip() for cell in row.split("|"))))
    assert cells["sound"] == "ours" and cells["log-mel dB"] in ("2.34", "2.35") and cells["recognised %"] == "–"
    assert "sanity" not in scorecard_tables.format_tables(judged, sanity=False)
