"""voice/melody.py: melodies in hum and noise, whistling, tracking errors and polyphony."""

from pathlib import Path

import numpy as np
import pytest
import torch

from config import load_config
from conftest import harmonic_tone
from sound.audio_files import load_audio
from voice.melody import (
    NoMelodyError,
    SilentError,
    _subtract_noise,
    estimate_polyphony,
    extract_melody,
    has_backing,
    measure_strays,
    repair_f0,
    trace_whistling,
)

CONFIG = load_config()
RATE = 16000
ROOT = Path(__file__).parent.parent.parent


def test_loudness_follows_the_level_of_the_recording() -> None:
    rest = np.zeros(4800, np.float32)
    song = np.concatenate([rest, harmonic_tone(220.0, 0.6, amplitude=0.1), rest])
    song += (1e-4 * np.random.default_rng(0).standard_normal(len(song))).astype(np.float32)
    (loud, melody, _), (soft, softer, _) = extract_melody(song, CONFIG), extract_melody(0.1 * song, CONFIG)
    held = melody.voiced & softer.voiced
    assert held.sum() > 50
    assert np.allclose(softer.loudness[held], melody.loudness[held] - 20, atol=0.01)
    assert np.allclose(soft.loudness[held], loud.loudness[held] - 20, atol=0.01)
    assert np.allclose(melody.loudness[held], loud.loudness[held], atol=0.1)  # 40 dB over the noise


def test_the_gate_offset_drops_soft_notes() -> None:
    rest = np.zeros(4800, np.float32)
    song = np.concatenate([part for a in (0.1, 0.005) for part in (rest, harmonic_tone(220.0, 0.6, amplitude=a))])
    song += (1e-5 * np.random.default_rng(0).standard_normal(len(song))).astype(np.float32)
    both, loud = (extract_melody(song, CONFIG, gate_offset=offset)[1].voiced for offset in (0.0, 25.0))
    assert both[140:170].all() and not loud[125:].any() and loud[45:80].all()


def test_silence_noise_and_a_closed_gate_are_refused(song: np.ndarray) -> None:
    with pytest.raises(NoMelodyError, match="gate"):
        extract_melody(song, CONFIG, gate_offset=60.0)
    with pytest.raises(SilentError):
        extract_melody(np.zeros(16000, np.float32), CONFIG)
    noise = 0.03 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    with pytest.raises(NoMelodyError):
        extract_melody(noise, CONFIG)


@pytest.mark.parametrize(
    ("partials", "swell"), [((1, 0, 0.5), 0.0), ((1, 0.5, 0.5), 0.2), ((0.5, 0, 1), 0.02)]
)  # steady; the residue has the pitch of the mains; the residue is soft and has the pitch of a partial
def test_a_melody_is_found_in_mains_hum(partials, swell: float) -> None:
    rng, rest = np.random.default_rng(0), np.zeros(9600, np.float32)
    notes = [harmonic_tone(f0, 0.6, amplitude=0.1) for f0 in (196.0, 220.0, 175.0)]
    song = np.concatenate([part for note in notes for part in (rest, note)] + [rest])
    song += (1e-4 * rng.standard_normal(len(song))).astype(np.float32)
    times = np.arange(len(song)) / 16000
    hum = sum(a * np.sin(2 * np.pi * 50 * k * times + k) for k, a in enumerate(partials, start=1))
    hum = (0.25 * (1 + swell * np.sin(2 * np.pi * 0.9 * times)) * hum).astype(np.float32)
    features, found, report = extract_melody(song + hum, CONFIG)
    assert report["mains_hum"] == pytest.approx(20 * np.log10(np.sqrt(np.mean(hum**2))), abs=1.0)
    sung = np.repeat([0, 1, 0, 1, 0, 1, 0], 60)[: len(found.voiced)].astype(bool)
    assert (found.voiced == sung).mean() > 0.96
    clean = extract_melody(song, CONFIG)
    both = found.voiced & clean[1].voiced
    assert np.median(np.abs(1200 * np.log2(found.f0[both] / clean[1].f0[both]))) < 2
    assert clean[2]["mains_hum"] is None and clean[2]["share_polyphonic"] < 0.02
    assert features.f0.shape == torch.Size([len(found.f0)])


def test_noise_is_subtracted_from_the_loudness() -> None:
    """A note measured at 6 dB over the noise is 4.7 dB over it without the noise."""
    assert _subtract_noise(np.array([-44.0]), -50.0)[0] == pytest.approx(-50 + 10 * np.log10(10**0.6 - 1))
    assert _subtract_noise(np.array([-50.0, -60.0]), -50.0).tolist() == [-60.0, -70.0]


def whistle(f0: np.ndarray, breath: float = 20.0) -> np.ndarray:
    """Return a tone of pitch f0 [N] Hz over white noise, ``breath`` dB below it, with faded ends."""
    fade = np.clip(np.minimum(np.arange(len(f0)), np.arange(len(f0))[::-1]) / (0.02 * RATE), 0, 1)
    noise = np.random.default_rng(0).standard_normal(len(f0)) * 10 ** (-breath / 20)
    return (0.2 * fade * (2**0.5 * np.sin(2 * np.pi * np.cumsum(f0) / RATE) + noise)).astype(np.float32)


def swing(f0: np.ndarray | float, seconds: float = 2.0, semitones: float = 0.5) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    return f0 * 2 ** (semitones / 12 * np.sin(2 * np.pi * 6 * times))


def glide(low: float, high: float, seconds: float) -> np.ndarray:
    return swing(np.geomspace(low, high, round(seconds * RATE)), seconds)


@pytest.mark.parametrize(
    "f0",
    [
        *(swing(hertz) for hertz in (500, 1200, 1950, 1976, 2000, 3500, 4850)),
        *(glide(500, 5000, seconds) for seconds in (4.0, 0.5)),
        *(glide(5000, 500, seconds) for seconds in (4.0, 0.5)),
        swing(1700.0, 0.5) * np.repeat([1, 1.5, 1, 2], RATE // 8),
        np.concatenate([swing(hertz, 0.4) for hertz in (1760, 2093, 1568, 2349, 3136, 1568)]),
    ],
)
def test_whistling_is_tracked_up_to_5_khz(f0: np.ndarray) -> None:
    """At 20 dB over the breath: median error 10 cents, 95 % of the frames within 50 cents and found."""
    _, melody, report = extract_melody(np.pad(whistle(f0), (4800, 4800)), CONFIG)
    inside = slice(32, 32 + len(f0) // 160 - 4)  # without the fades of 20 ms
    cents = 1200 * np.log2(melody.f0[inside] / f0[::160][2:-2])
    found = melody.voiced[inside]
    assert np.median(np.abs(cents[found])) <= 10
    assert found.mean() >= 0.95 and (np.abs(cents[found]) <= 50).mean() >= 0.95
    assert not melody.voiced[:28].any() and not melody.voiced[-26:].any()
    assert report["share_too_high"] < 0.02 and report["share_polyphonic"] < 0.05


@pytest.mark.parametrize(
    ("hertz", "is_whistled", "is_too_high"),
    [(1000, False, False), (1900, False, False), (2050, True, False), (5000, True, False), (6000, False, True)],
)
def test_a_tone_above_crepes_range_is_a_whistle(hertz: float, is_whistled: bool, is_too_high: bool) -> None:
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE).astype(np.float32)
    f0, too_high = trace_whistling(tone, CONFIG)
    assert f0.shape == (25,) and (too_high == is_too_high).all()
    assert f0[2:-2] == pytest.approx(hertz * is_whistled, rel=1e-3)
    others = sum(0.2 * np.sin(2 * np.pi * f0 * np.arange(RATE // 4) / RATE) for f0 in (200, 400, 600, 800))
    f0, too_high = trace_whistling(tone + others.astype(np.float32), CONFIG)
    assert not f0.any() and not too_high[2:-2].any()  # the overtone of a voice


def test_a_voice_is_not_a_whistle() -> None:
    hum = load_audio(ROOT / "examples" / "hum.wav", RATE)
    f0, too_high = trace_whistling(hum[: len(hum) // 160 * 160], CONFIG)
    assert not f0.any() and not too_high.any()


def repair(f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return repair_f0(f0.astype(np.float32), np.ones(len(f0), bool), CONFIG)


def wobble(n_frames: int = 200) -> np.ndarray:
    return 220 * 2 ** (0.5 / 12 * np.sin(2 * np.pi * 5.5 * np.arange(n_frames) / 100))


@pytest.mark.parametrize("octaves", [-2, -1, 1])
@pytest.mark.parametrize("where", [slice(80, 92), slice(0, 10), slice(190, 200)])
def test_a_short_octave_error_is_corrected(octaves: int, where: slice) -> None:
    f0 = wobble()
    wrong = f0.copy()
    wrong[where] *= 2.0**octaves
    repaired, usable = repair(wrong)
    assert usable.all() and np.allclose(repaired, f0, rtol=1e-4)


def test_a_spike_is_unusable() -> None:
    wrong = wobble()
    wrong[80:83] *= 1.5
    usable = repair(wrong)[1]
    assert np.flatnonzero(~usable).tolist() == [80, 81, 82]


def test_a_sung_pitch_is_unchanged() -> None:
    """Vibrato of a semitone, a glide of an octave in 0.3 s, an octave held for 0.2 s, a fourth for 0.1 s."""
    octave, fourth = wobble(), wobble()
    octave[80:100] *= 2
    fourth[80:90] *= 4 / 3
    wide = 220 * 2 ** (1 / 12 * np.sin(2 * np.pi * 6 * np.arange(200) / 100))
    glide = 220 * 2 ** np.clip((np.arange(200) - 80) / 30, 0, 1)
    for f0 in (octave, fourth, wide, glide):
        repaired, usable = repair(f0)
        assert usable.all() and np.allclose(repaired, f0, rtol=1e-5)


def polyphony(audio: np.ndarray, f0: float) -> float:
    n_frames = len(audio) // 160
    sung = np.ones(n_frames, bool)
    return estimate_polyphony(measure_strays(audio, np.full(n_frames, f0, np.float32), sung, CONFIG), sung)


def test_polyphony_of_chords_and_of_single_voices() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    root, third, fifth = (harmonic_tone(f0, 1.0) for f0 in (220.0, 277.2, 329.6))
    assert polyphony(root + third + fifth, 220.0) > 0.9
    assert polyphony(root + noise, 220.0) < 0.05  # white noise 20 dB below the tone
    assert polyphony(root + 60 * noise, 220.0) < 0.05  # white noise louder than the tone
    glide = 220 * 2.0 ** np.linspace(0, 4, RATE)
    slide = harmonic_tone(glide, 1.0)  # its partials are as wide as the gaps between them
    sung = np.ones(100, bool)
    assert estimate_polyphony(measure_strays(slide, glide[::160].astype(np.float32), sung, CONFIG), sung) == 0
    assert polyphony(root, 440.0) < 0.05  # the tracker an octave too high
    assert estimate_polyphony(np.ones(100), ~sung) == 0


def band(seconds: float) -> np.ndarray:
    """Return chords and a bass that change each second, and a drum on each half."""
    time, random = np.arange(RATE) / RATE, np.random.default_rng(0)
    drum = np.tile(random.standard_normal(RATE // 2) * np.exp(-time[: RATE // 2] / 0.05), 2)
    bars = [
        sum(np.sin(2 * np.pi * k * root * ratio * time) / k for ratio in (0.5, 1, 1.26, 1.5, 2.52) for k in range(1, 6))
        for root in 130.8 * 2 ** (np.array([0, 5, 7, 0]) / 12)
    ]
    return np.tile(np.concatenate([bar / 4 + drum / 4 for bar in bars]), round(seconds / 4)).astype(np.float32)


def test_a_band_in_the_background_is_detected() -> None:
    band_audio = band(8.0)
    hum = load_audio(ROOT / "examples" / "hum.wav", RATE)[: len(band_audio)]
    noise = np.random.default_rng(1).standard_normal(len(band_audio))

    def backing(background: np.ndarray, level: float) -> bool:
        gain = 10 ** (level / 20) * hum.std() / background.std()
        audio = hum + (gain * background).astype(np.float32)
        return extract_melody(audio[: len(audio) // 160 * 160], CONFIG)[2]["has_backing"]

    assert all(backing(band_audio, level) for level in (-6.0, 0.0, 6.0))
    assert not any(backing(noise, level) for level in (-60.0, -20.0, -10.0))
    assert not extract_melody(band_audio[: 3 * RATE], CONFIG)[2]["has_backing"]  # too short


@pytest.mark.parametrize(
    ("first", "other", "n_steady", "flagged"), [(69, 79, 99, True), (69, 207, 99, False), (69, 79, 40, False)]
)
def test_one_note_and_notes_that_never_hold_still_are_no_band(first, other, n_steady, flagged) -> None:
    """Two notes with a loud rest between; then one whose third harmonic was tracked, and too few steady frames."""
    voiced = np.arange(600) % 300 < 200
    f0 = np.where(np.arange(600) < 300, first, other).astype(np.float32)
    strays, flatness = (np.where(np.arange(600) % 4 == 0, value, np.nan) for value in (0.05, 0.001))
    strays[n_steady:] = np.nan
    assert has_backing(f0, np.full(600, -20.0), flatness, strays, voiced) == flagged
