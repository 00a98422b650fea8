"""voice/instrument_fit.py: the options of a transfer and their effect on a melody."""

import numpy as np
import pytest

from checkpoint import load_model
from config import load_config
from model import build_model
from voice.curves import Melody
from voice.instrument_fit import (
    InstrumentProfile,
    TransferOptions,
    fit_loudness,
    fit_melody,
    fit_register,
    key_pitch_classes,
    smooth_within_notes,
    track_notes,
)

FRAMES = np.arange(300)
VIBRATO = 0.4 * np.sin(2 * np.pi * 5.5 * FRAMES / 100)  # semitones


@pytest.fixture
def profile(write_checkpoint):
    """A small trumpet with training data between 200 and 800 Hz, and -45 and -15 dB."""
    return InstrumentProfile.of(load_model(write_checkpoint()))


def melody(pitch: np.ndarray | float, loudness: np.ndarray | float = -25.0, voiced: np.ndarray | None = None) -> Melody:
    """Return a melody of 3 s from MIDI numbers; its first and last 20 frames are silent."""
    if voiced is None:
        voiced = (FRAMES >= 20) & (FRAMES < 280)
    f0 = 440 * 2 ** ((np.broadcast_to(pitch, 300) - 69) / 12)
    return Melody(f0, np.broadcast_to(loudness, 300).astype(float), voiced.astype(float), voiced)


def play(tune: Melody, profile, **options) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return the played pitch (MIDI numbers) and loudness of the voiced frames, and the report."""
    curves, _, report = fit_melody(tune, profile, TransferOptions(**{"semitones": 0.0, **options}))
    pitch = 12 * np.log2(curves.f0.astype(float) / 440) + 69
    return pitch[curves.voiced], curves.loudness[curves.voiced], report


def test_a_profile_comes_from_a_trained_model(config, write_checkpoint) -> None:
    model = load_model(write_checkpoint())
    profile, instrument = InstrumentProfile.of(model), model.settings.instrument(model.instrument)
    assert (profile.f0_min, profile.f0_max) == (instrument.f0_min, instrument.f0_max)
    assert profile.median_f0 == model.statistics["f0_quantiles"][50]
    assert profile == InstrumentProfile.from_statistics(model.instrument, model.settings, model.statistics)
    with pytest.raises(ValueError, match="load_model"):
        InstrumentProfile.of(build_model(config, "trumpet"))
    with pytest.raises(ValueError, match="kazoo"):
        InstrumentProfile.from_statistics("kazoo", load_config(), model.statistics)


INVALID = {
    "semitones": [61],
    "transpose": [-61, None],
    "autotune": [1.1, -0.1, None],
    "smoothing": [-1, 9],
    "loudness_offset": [100],
    "gate_offset": [float("nan")],
    "noise_balance": [float("inf")],
    "output_rate": [96000, 44100.5],
    "pluck_repeat": [0.01],
    "articulation": ["bow"],
    "key": ["H major", "C", "C dorian", "", "major", "C  major"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in INVALID for value in INVALID[name]])
def test_an_invalid_option_is_named(name: str, value: float | str | None) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        TransferOptions(**{name: value})


def test_names_of_keys() -> None:
    assert key_pitch_classes("C major") == (0, 2, 4, 5, 7, 9, 11) == key_pitch_classes("a minor")
    assert key_pitch_classes("F# minor") == key_pitch_classes("A major") == key_pitch_classes("G♭ minor")
    assert key_pitch_classes("Bb major") == (0, 2, 3, 5, 7, 9, 10)
    assert key_pitch_classes("chromatic") == tuple(range(12))


def test_transpose_is_added_to_the_register(profile) -> None:
    low = melody(45.0)  # 110 Hz
    register = fit_melody(low, profile, TransferOptions()).report["semitones"]
    assert register in (12, 24)
    assert fit_melody(low, profile, TransferOptions(transpose=-2.0)).report["semitones"] == register - 2
    assert fit_melody(low, profile, TransferOptions(fit=False, transpose=3.0)).report["semitones"] == 3
    assert fit_melody(low, profile, TransferOptions(semitones=5.0, transpose=3.0)).report["semitones"] == 8


@pytest.mark.parametrize(
    ("f0", "octaves"),
    [
        ((400.0,), 0),
        ((220.0,), 0),
        ((900.0,), 0),
        ((50.0,), 2),
        ((3200.0,), -2),
        ((12.5,), 4),
        ((10.0,), 5),
        ((400.0, 400.0, 1100.0), -1),
        ((400.0, 400.0, 150.0), 1),  # most are in the middle, but some outside
        ((220.0,) * 90 + (3520.0,) * 10, 0),  # stray frames do not matter
    ],
)
def test_the_register_is_the_nearest_in_range(profile, f0: tuple[float, ...], octaves: int) -> None:
    """A trumpet plays 165 to 1047 Hz; a melody that fits stays, others move by the fewest octaves."""
    assert fit_register(np.array(f0), profile) == 12 * octaves


@pytest.mark.parametrize("offset", [-0.4, 0.3, 0.45])
def test_autotune_moves_a_note_and_keeps_its_vibrato(profile, offset: float) -> None:
    sung = 64 + offset + VIBRATO
    full, half, none = (play(melody(sung), profile, autotune=amount)[0] for amount in (1.0, 0.5, 0.0))
    inner = slice(20, -20)
    assert np.abs(np.mean(full[inner]) - 64) < 0.02
    assert np.abs(np.mean(half[inner]) - 64 - offset / 2) < 0.02
    assert np.allclose(none, sung[20:280], atol=1e-4)
    assert np.std(full[inner]) == pytest.approx(np.std(VIBRATO), rel=0.25)
    for key, note in (("", 66), ("C major", 65)):  # F sharp, a little flat
        tuned = play(melody(65.9), profile, autotune=1.0, **({"key": key} if key else {}))[0]
        assert np.mean(tuned) == pytest.approx(note, abs=0.01)


def test_notes_are_followed_through_vibrato_and_glides() -> None:
    pitch = np.where(FRAMES < 150, 60.0, 64.0) + VIBRATO
    pitch[145:155] = np.linspace(60, 64, 10)
    notes = track_notes(pitch, np.ones(300, bool), 7.0)
    assert set(notes) == {60.0, 64.0} and abs(np.flatnonzero(notes == 64)[0] - 150) <= 2


@pytest.mark.parametrize(("sung", "played"), [(52.0, 52.0), (51.0, 63.0), (84.0, 84.0), (85.0, 73.0), (109.0, 73.0)])
def test_fold_keeps_notes_in_range(profile, sung: float, played: float) -> None:
    assert np.allclose(play(melody(sung), profile, fold=True)[0], played, atol=1e-4)


def test_fold_moves_whole_notes_by_octaves(profile) -> None:
    """A trumpet plays 52 to 84: 45 comes up an octave, 98 down two; 60 stays."""
    sung = np.select([FRAMES < 100, FRAMES < 200], [45.0, 60.0], 98.0) + VIBRATO
    pitch, _, report = play(melody(sung), profile, fold=True)
    moved = np.select([FRAMES < 100, FRAMES < 200], [12.0, 0.0], -24.0)
    assert np.allclose(pitch - sung[20:280], moved[20:280], atol=1e-4)
    assert report["share_out_of_range"] == 0
    assert play(melody(sung), profile)[2]["share_out_of_range"] == pytest.approx(160 / 260, abs=0.01)


def test_smoothing_keeps_notes_apart() -> None:
    voiced = (FRAMES < 100) | (FRAMES >= 150)
    values = np.where(FRAMES < 120, 0.0, 1.0)
    assert np.allclose(smooth_within_notes(values, voiced, 50.0)[voiced], values[voiced])
    rough = np.random.default_rng(0).standard_normal(300)
    assert np.std(smooth_within_notes(rough, voiced, 10.0)[voiced]) < 0.5 * np.std(rough[voiced])
    assert smooth_within_notes(rough, voiced, 0.0) is rough


def test_loudness_offset_is_in_decibels(profile) -> None:
    swell = melody(64.0, -35 + 10 * np.sin(np.pi * FRAMES / 300))
    softer, plain = play(swell, profile, loudness_offset=-6.0), play(swell, profile)
    assert np.allclose(plain[1] - softer[1], 6.0, atol=1e-4)
    assert softer[2]["loudness_gain"] == pytest.approx(plain[2]["loudness_gain"] - 6)


def test_loudness_fit_keeps_the_order(profile) -> None:
    loudness = np.random.default_rng(0).uniform(-70, -30, 500).astype(np.float32)
    fitted = fit_loudness(loudness, np.ones(500, bool), profile)
    assert (np.diff(fitted[np.argsort(loudness)]) >= 0).all()
    assert np.corrcoef(fitted, loudness)[0, 1] > 0.99
    assert np.quantile(fitted, 0.75) == pytest.approx(profile.loudness_quantiles[75], abs=0.5)


@pytest.mark.parametrize(("spread", "slope"), [(0.1, 1.3), (30.0, 1.0), (100.0, 1 / 1.3)])
def test_the_slope_of_the_loudness_fit_is_limited(profile, spread: float, slope: float) -> None:
    """The training data spread evenly over 30 dB."""
    loudness = np.linspace(-60, -60 + spread, 1001)
    fitted = fit_loudness(loudness, np.ones(1001, bool), profile)
    inside = (fitted > profile.config.features.loudness_floor) & (fitted < -15)
    assert np.polyfit(loudness[inside], fitted[inside], 1)[0] == pytest.approx(slope, rel=1e-3)
    assert inside.sum() > 700 and fitted.max() <= -15  # the loudest of the training data
