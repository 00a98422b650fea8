"""playing/offline_transfer.py: a voice, notes or curves in, an instrument's sound out."""

from pathlib import Path

import mido
import numpy as np
import pytest

import transfer
from conftest import pause, sing, write_notes
from features import extract_features
from playing import offline_transfer
from playing.offline_transfer import render_curves
from voice.curves import Curves, Melody, read_curves, write_curves
from voice.instrument_fit import TransferOptions

ROOT = Path(__file__).parent.parent.parent
RATE = 16000


@pytest.fixture(scope="module")
def model(checkpoint_path: Path):
    return transfer.load_model(checkpoint_path)


def test_the_result_follows_the_tune(model, song: np.ndarray) -> None:
    result = transfer.transfer(song, RATE, model)
    assert len(result.audio) == len(song) and result.sample_rate == RATE
    played = result.curves.gate == 1
    measured = extract_features(result.audio, model.settings)
    cents = 1200 * np.log2(measured.f0.numpy()[played] / result.curves.f0[played])
    assert np.median(np.abs(cents)) < 10  # the oscillator is exact; the rest is the error of CREPE
    for first, f0 in ((0.5, 220), (2.0, 247), (3.5, 196)):
        middle = result.curves.f0[int((first + 0.5) * 100)]
        octaves = result.report["semitones"] / 12
        assert abs(1200 * np.log2(middle / (f0 * 2**octaves))) < 15
    loud, soft = result.curves.loudness[100], result.curves.loudness[250]
    assert 7 < loud - soft < 17  # 12 dB in the voice, the slope lies between 0.7 and 1.3


def test_channels_may_be_either_axis_and_inverted(model, song: np.ndarray) -> None:
    """torchaudio's [2, N] and soundfile's [N, 2] give the same result; an inverted channel cancels nothing."""
    mono, sides = transfer.transfer(song, RATE, model).audio, np.stack([song, -song])
    for stereo in (np.stack([song, song]), sides, sides.T):
        assert np.array_equal(transfer.transfer(stereo, RATE, model).audio, mono)


def test_rests_are_silent(model, song: np.ndarray) -> None:
    result = transfer.transfer(song, RATE, model)
    for rest in (slice(0, 45), slice(164, 195), slice(314, 345)):
        assert np.abs(result.audio.reshape(-1, 160)[rest]).max() < 1e-4
    assert 0.3 < result.report["share_gated"] < 0.5  # 2 s of 5
    assert result.report["share_gated"] == (result.curves.gate == 0).mean()  # fading frames still sound


def test_result_is_deterministic(model, song: np.ndarray) -> None:
    one, other = transfer.transfer(song, RATE, model), transfer.transfer(song, RATE, model)
    assert np.array_equal(one.audio, other.audio)
    assert not np.array_equal(one.noise, transfer.transfer(song, RATE, model, seed=1).noise)


def test_the_stems_add_up(model, song: np.ndarray) -> None:
    result = transfer.transfer(song, RATE, model)
    assert np.allclose(result.harmonic + result.noise, result.audio, atol=1e-6)
    assert np.abs(result.noise).max() > 0


@pytest.mark.parametrize("f0", [65.0, 110.0, 220.0, 440.0, 880.0, 1760.0])
def test_any_register_lands_in_the_range_by_whole_octaves(model, f0: float) -> None:
    result = transfer.transfer(np.concatenate([pause(0.3), sing(f0), pause(0.3)]), RATE, model)
    assert result.report["semitones"] % 12 == 0
    instrument = model.settings.instrument("trumpet")
    assert instrument.f0_min < np.median(result.curves.f0) < instrument.f0_max
    assert result.report["share_out_of_range"] < 0.05


def test_semitones_and_no_fit_are_applied(model, song: np.ndarray) -> None:
    result = transfer.transfer(song, RATE, model, TransferOptions(semitones=7))
    assert result.report["semitones"] == 7
    assert abs(1200 * np.log2(result.curves.f0[100] / (220 * 2 ** (7 / 12)))) < 15
    plain = transfer.transfer(song, RATE, model, TransferOptions(fit=False))
    played = plain.curves.voiced
    assert plain.report["semitones"] == 0
    assert np.allclose(plain.curves.loudness[played], plain.features.loudness.numpy()[played], atol=0.1)


def test_very_quiet_recording_plays_at_the_same_level(model, song: np.ndarray) -> None:
    loud, quiet = transfer.transfer(song, RATE, model), transfer.transfer(song * 0.05, RATE, model)
    played = (loud.curves.gate == 1) & (quiet.curves.gate == 1)
    assert played.sum() > 200
    assert np.abs(loud.curves.loudness - quiet.curves.loudness)[played].max() < 1.0


def test_a_quiet_recording_loses_no_note(model, song: np.ndarray) -> None:
    played = [transfer.transfer(song * gain, RATE, model).curves.gate for gain in (1.0, 0.1, 0.01)]
    assert np.array_equal(played[0], played[1]) and np.array_equal(played[0], played[2])


def test_noise_before_and_after_is_not_played(model) -> None:
    hiss = pause(1.0, level=-45)
    result = transfer.transfer(np.concatenate([hiss, sing(300.0, level=-20), hiss]), RATE, model)
    assert result.curves.gate[:90].max() == 0 and result.curves.gate[215:].max() == 0
    assert result.curves.gate[115:185].min() == 1


def test_whistling_is_played_in_the_instruments_register(model) -> None:
    notes = [0.2 * np.sin(2 * np.pi * hertz * np.arange(RATE // 2) / RATE) for hertz in (2093.0, 2637.0, 3136.0)]
    result = transfer.transfer(np.concatenate([pause(0.3), *notes]).astype(np.float32), RATE, model)
    assert result.report["semitones"] % 12 == 0 and result.report["share_too_high"] == 0
    played = [result.curves.f0[frame] / 2 ** (result.report["semitones"] / 12) for frame in (55, 105, 155)]
    assert played == pytest.approx([2093, 2637, 3136], rel=2e-3)
    assert result.curves.gate[35:175].min() == 1


def test_tones_above_whistling_are_reported(model) -> None:
    whistle = (0.3 * np.sin(2 * np.pi * 6000 * np.arange(RATE) / RATE)).astype(np.float32)
    with pytest.raises(ValueError, match="5200 Hz"):
        transfer.transfer(np.concatenate([pause(0.3), whistle]), RATE, model)
    mixed = transfer.transfer(np.concatenate([sing(300.0), pause(0.3), whistle]), RATE, model)
    assert mixed.report["share_too_high"] > 0.3 and "too high" in transfer.describe_transfer(mixed.report)
    assert mixed.curves.gate[150:].max() == 0
    # A low voice with strong overtones is not a whistle.
    assert transfer.transfer(sing(300.0), RATE, model).report["share_too_high"] == 0


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.full(RATE, np.nan, np.float32), "not finite"),
        (np.full(RATE, 1e30, np.float32), "sound lies within"),
        (sing(220.0, seconds=0.01), "no melody"),
        (pause(2.0, level=-30), "no melody"),
    ],
)
def test_unplayable_audio_is_one_sentence(model, audio: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transfer.transfer(audio, RATE, model)


def test_clipped_stereo_192_khz_and_8_channels_work(model) -> None:
    clipped = np.clip(20 * sing(220.0), -1, 1)
    assert transfer.transfer(clipped, RATE, model).report["share_gated"] < 0.2
    wide = np.stack([sing(220.0, rate=192000)] * 8, axis=1)
    result = transfer.transfer(wide, 192000, model)
    assert len(result.audio) == RATE and np.median(result.curves.f0) == pytest.approx(220, rel=0.01)
    tone = sing(220.0, 0.5)
    one_sided = transfer.transfer(np.stack([np.zeros_like(tone), tone], axis=1), RATE, model)
    assert np.array_equal(one_sided.audio, transfer.transfer(tone / 2, RATE, model).audio)


def test_the_output_never_clips(model) -> None:
    frames = np.ones(100, np.float32)
    loud = Curves(300 * frames, 10 * frames, frames, frames > 0, frames)
    result = render_curves(model, None, loud, [], TransferOptions(), 0, {}, 0.0)
    assert np.abs(result.audio).max() == pytest.approx(10 ** (-1 / 20)) and result.report["peak_gain"] < -1


def test_result_does_not_depend_on_the_block_size(model, song: np.ndarray, tmp_path: Path) -> None:
    """40 s in blocks of 7 s, and read in blocks, give the same curves and sound."""
    long = np.concatenate([song * gain for gain in (1.0, 0.5, 0.8, 0.3, 0.6, 0.9, 1.0, 0.7)])
    blocks = np.split(long, range(7 * RATE, len(long), 7 * RATE))
    one, other = transfer.transfer(long, RATE, model), transfer.transfer_blocks(iter(blocks), model)
    assert np.array_equal(one.curves.f0, other.curves.f0) and np.array_equal(one.curves.gate, other.curves.gate)
    assert len(one.audio) == len(long) and np.abs(one.audio - other.audio).max() < 1e-4
    assert np.array_equal(np.concatenate(list(other.blocks())), other.audio)
    assert np.array_equal(np.concatenate(list(other.blocks(1))), other.noise)
    unequal = {key for key in one.report if one.report[key] != other.report[key]}
    assert unequal <= {"times_real_time"}


def test_storage_on_disk_does_not_change_the_result(model, song: np.ndarray, monkeypatch) -> None:
    """Lower the limits for splitting and for storage on disk from minutes to seconds."""
    expected = transfer.transfer(song, RATE, model, TransferOptions(output_rate=44100))
    monkeypatch.setattr("playing.offline_transfer._BLOCK_SAMPLES", 1000)
    monkeypatch.setattr("voice.melody._BLOCK_SAMPLES", 1000)
    monkeypatch.setattr("voice.melody._BLOCK_FRAMES", 30)
    monkeypatch.setattr("sound.audio_files._IN_MEMORY_BYTES", 1000)
    result = transfer.transfer(song, RATE, model, TransferOptions(output_rate=44100))
    assert np.array_equal(result.curves.gate, expected.curves.gate)
    assert len(result.audio) == len(expected.audio) and np.abs(result.audio - expected.audio).max() < 1e-5
    assert result.report["share_polyphonic"] == expected.report["share_polyphonic"]


def test_options_reach_the_sound(model, song: np.ndarray) -> None:
    plain = transfer.transfer(song, RATE, model, seed=3)
    options = TransferOptions(transpose=3.0, noise_balance=-20.0, output_rate=48000)
    result = transfer.transfer(song, RATE, model, options, seed=3)
    assert result.sample_rate == 48000 and len(result.audio) == len(result.noise) == 3 * len(plain.audio)
    assert result.report["seconds"] == plain.report["seconds"]
    assert result.report["semitones"] == plain.report["semitones"] + 3
    quieter = 20 * np.log10(np.std(result.noise) / np.std(plain.noise))
    assert quieter - result.report["peak_gain"] + plain.report["peak_gain"] == pytest.approx(-20, abs=0.7)
    assert np.abs(result.audio).max() <= 10 ** (-1 / 20) + 1e-6


def test_progress_is_reported_and_can_cancel(model) -> None:
    reported = []
    transfer.transfer(sing(220.0), RATE, model, progress=lambda *step: reported.append(step))
    steps, shares = zip(*reported)
    assert len(set(steps)) == len(steps) >= 4 and "trumpet" in "".join(steps)
    assert shares[0] == 0 and shares[-1] == 1 and list(shares) == sorted(shares)

    def stop(step: str, share: float) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        transfer.transfer(sing(220.0), RATE, model, progress=stop)


def test_note_ends_without_a_click(model) -> None:
    """The level falls over the release; no step of the waveform is larger than inside the note."""
    result = transfer.transfer(np.concatenate([sing(220.0), pause(0.5)]), RATE, model)
    end = np.flatnonzero(result.curves.voiced)[-1] + 1
    level = 10 * np.log10(np.mean(result.audio.reshape(-1, 160) ** 2, axis=1) + 1e-20)
    assert level[end + 4] < level[end - 5] - 6 and level[end + 8] < level[end - 5] - 15
    assert level[end + 13 :].max() < -70
    steps = np.abs(np.diff(result.harmonic))
    assert steps[(end - 3) * 160 :].max() <= steps[: (end - 3) * 160].max()


# --- notes and curves ----------------------------------------------------------------------------


def test_notes_out_of_range_move_by_octaves(checkpoint_path: Path, model, tmp_path: Path) -> None:
    track = mido.MidiTrack([mido.Message("note_on", note=33), mido.Message("note_off", note=33, time=480)])
    mido.MidiFile(tracks=[track]).save(tmp_path / "bass.mid")
    result = transfer.transfer_midi(tmp_path / "bass.mid", model)
    assert result.report["semitones"] in (24, 36, 48) and result.report["share_out_of_range"] == 0
    kept = transfer.transfer_midi(tmp_path / "bass.mid", model, TransferOptions(semitones=0.0))
    assert kept.report["semitones"] == 0 and kept.report["share_out_of_range"] == 1


def test_midi_notes_are_as_loud_as_loud_training_notes(model, tmp_path: Path) -> None:
    played = transfer.transfer_midi(write_notes(tmp_path / "note.mid", [64], velocity=127), model).curves.loudness
    decay = model.settings.transfer.midi_held_decay
    loudest = model.statistics["loudness_quantiles"][95]
    assert played[[4, 14, 24]] == pytest.approx([loudest - decay * seconds for seconds in (0.04, 0.14, 0.24)], abs=0.01)


def test_a_guitar_plucks_what_a_trumpet_holds(write_checkpoint, song: np.ndarray, tmp_path: Path) -> None:
    """Each of the three sung notes is one pluck that decays; MIDI notes are plucked as hard as their velocity says."""
    guitar = transfer.load_model(write_checkpoint(instrument="guitar"))
    plucked = transfer.transfer(song, RATE, guitar)
    followed = transfer.transfer(song, RATE, guitar, TransferOptions(articulation="follow"))
    onsets = [note.onset for note in plucked.notes]
    assert np.array(onsets) / 100 == pytest.approx([0.5, 2.0, 3.5], abs=0.05)
    falls = [plucked.curves.loudness[onset + 20] - plucked.curves.loudness[onset + 80] for onset in onsets]
    held = [followed.curves.loudness[onset + 20] - followed.curves.loudness[onset + 80] for onset in onsets]
    assert min(falls) > 5 and max(np.abs(held)) < 1
    again = transfer.transfer(song, RATE, guitar, TransferOptions(pluck_repeat=0.25))
    assert np.count_nonzero(np.diff(again.curves.loudness) > 1) > np.count_nonzero(np.diff(plucked.curves.loudness) > 1)
    soft, loud = (
        transfer.transfer_midi(write_notes(tmp_path / f"{velocity}.mid", [64], velocity=velocity), guitar)
        for velocity in (30, 120)
    )
    assert loud.notes[0].level - soft.notes[0].level == pytest.approx(20 * 90 / 127, abs=0.1)
    assert loud.curves.loudness[4] - loud.curves.loudness[24] > 3


def test_a_curve_file_of_plucks_plays_the_same_sound(write_checkpoint, song: np.ndarray, tmp_path: Path) -> None:
    guitar = transfer.load_model(write_checkpoint(instrument="guitar"))
    result = transfer.transfer(song, RATE, guitar)
    write_curves(tmp_path / "curves.csv", result.curves, 100.0)
    again = transfer.transfer_curves(read_curves(tmp_path / "curves.csv", guitar.settings), guitar)
    assert np.array_equal(result.audio, again.audio)


def test_transposition_is_added_to_the_written_register(model, tmp_path: Path) -> None:
    high = write_notes(tmp_path / "high.mid", [74, 79])
    for semitones, share in ((1, 0), (6, 0.5), (12, 1)):
        report = transfer.transfer_midi(high, model, TransferOptions(transpose=semitones)).report
        assert report["semitones"] == semitones and report["share_out_of_range"] == pytest.approx(share, abs=0.02)


def test_single_high_note_does_not_shift_the_others(model, tmp_path: Path) -> None:
    """No octave shift brings more of these notes into range."""
    path = write_notes(tmp_path / "stray.mid", [60] * 9 + [86])
    report = transfer.transfer_midi(path, model).report
    assert report["semitones"] == 0 and report["share_out_of_range"] == pytest.approx(0.1, abs=0.02)
    folded = transfer.transfer_midi(path, model, TransferOptions(fold=True)).report
    assert folded["semitones"] == 0 and folded["share_out_of_range"] == 0


def test_curves_and_causal_playing_report_notes_out_of_range(model) -> None:
    frames = np.ones(100)
    for f0, share in ((300.0, 0.0), (3000.0, 1.0)):
        tune = Melody(f0 * frames, -20 * frames, frames, frames > 0)
        assert offline_transfer.transfer_curves(tune, model).report["share_out_of_range"] == share
    for semitones, share in ((12.0, 0.0), (36.0, 1.0)):
        voice = [sing(220.0, 0.3)]
        report = offline_transfer.transfer_causal(voice, model, TransferOptions(semitones=semitones)).report
        assert report["share_out_of_range"] == share
