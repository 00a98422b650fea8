"""Audio at 48 kHz: preprocessing, training, resume, and each way of playing."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

import preprocess
import train
import transfer
from checkpoint import load_model, read_checkpoint
from config import DEFAULT_CONFIG_PATH, load_config
from conftest import harmonic_tone, melody
from data import load_recording, save_recording
from features import extract_loudness
from playing.causal_transfer import StreamingTransfer
from playing.offline_transfer import transfer_causal
from recordings.corpus import measure_statistics, read_corpus
from recordings.crops import CropDataset, Span, build_dataset
from sound.audio_files import load_audio, prepare_audio

RATE = 48000


def tone(seconds: float = 1.0, f0: float = 440.0, highest: float = 14000.0) -> np.ndarray:
    """Return float32 [N] with harmonics up to ``highest`` Hz."""
    fade = np.clip(np.arange(round(seconds * RATE)) / (0.1 * RATE), 0, 1)
    return harmonic_tone(f0, seconds, RATE, int(highest / f0)) * fade * fade[::-1]


@pytest.fixture(scope="module")
def own_config(tmp_path_factory) -> Path:
    """A config.json whose presets are small enough for a test."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["train"] |= {"batch_size": 2, "crop_seconds": 0.5}
    small = {"hidden_size": 16, "embed_size": 8, "projection_size": 16, "n_harmonics": 60, "n_noise_bands": 33}
    content["presets"]["wide"]["model"] |= small
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def processed(tmp_path_factory, own_config: Path) -> Path:
    """A folder of three takes at 48 kHz: tones, and breath, up to 14, 14.5 and 15 kHz."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "raw").mkdir()
    for number, f0 in enumerate((330.0, 440.0, 550.0)):
        low_pass = signal.ellip(10, 0.1, 60, 14000 + 500 * number, fs=RATE, output="sos")
        breath = 3e-3 * np.random.default_rng(number).standard_normal(round(1.5 * RATE))
        take = signal.sosfiltfilt(low_pass, tone(1.5, f0) + breath)
        soundfile.write(folder / "raw" / f"rendered_trumpet_{number}.wav", take, RATE, subtype="FLOAT")
    flags = ["--config", str(own_config), "--config_name", "wide", "--num_workers", "1"]
    assert preprocess.main(["--input_dir", str(folder / "raw"), "--output_dir", str(folder / "pt"), *flags]) == 0
    return folder / "pt"


def training_flags(data: Path, config: Path, out: Path, *more: object) -> list[str]:
    flags = ["--data_dir", data, "--config", config, "--config_name", "wide", "--checkpoint_dir", out]
    quiet = ["--runs_dir", out / "runs", "--device", "cpu", "--wandb_mode", "disabled"]
    return [str(value) for value in (*flags, *quiet, *more)]


@pytest.fixture(scope="module")
def trained(processed: Path, own_config: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("training")
    assert train.main(training_flags(processed, own_config, out, "--epochs", 1)) == 0
    return out / "latest.pth"


def test_audio_has_48_khz_and_features_are_those_of_16_khz(processed: Path, own_config: Path) -> None:
    path = processed / "rendered_trumpet_1.wav.pt"
    recording = load_recording(path, load_config(own_config, "wide"))
    assert recording.audio.shape == (1, round(1.5 * RATE)) and recording.f0.shape == (1, 150, 1)
    source = load_audio(processed.parent / "raw" / "rendered_trumpet_1.wav", RATE)
    assert np.array_equal(recording.audio[0].numpy(), source)
    loudness = extract_loudness(prepare_audio(source, RATE, 16000), load_config())
    # Resampled in blocks when read from a file; float32 rounding.
    assert np.allclose(recording.loudness[0, :, 0], loudness, atol=1e-3)
    cents = 1200 * torch.log2(recording.f0[0, 20:130, 0] / 440)
    assert cents.abs().max() < 15  # CREPE tiny
    assert recording.bandwidth == pytest.approx(14500, abs=500)
    assert recording.bandwidth_share == recording.bandwidth / 24000


def test_bandwidth_survives_saving_and_must_be_a_number(tmp_path: Path, processed: Path, processed_file: Path) -> None:
    narrow = load_recording(processed_file)  # 16 kHz
    assert narrow.bandwidth is None and narrow.bandwidth_share == 1
    recording = dataclasses.replace(load_recording(processed / "rendered_trumpet_0.wav.pt"), bandwidth=16000.5)
    save_recording(tmp_path / "take.pt", recording)
    assert load_recording(tmp_path / "take.pt").bandwidth == 16000.5
    save_recording(tmp_path / "take.pt", dataclasses.replace(recording, bandwidth="wide"))
    with pytest.raises(ValueError, match=r"take\.pt"):
        load_recording(tmp_path / "take.pt")


def test_crops_contain_the_bandwidth_of_their_recording(processed: Path, own_config: Path) -> None:
    config = load_config(own_config, "wide")
    crops = build_dataset(read_corpus(processed, config).training, "trumpet", config, seed=0)
    first = crops[0]
    assert first["audio"].shape == (24000,) and first["f0"].shape == (50, 1)
    assert first["bandwidth"].item() == pytest.approx(load_recording(crops.path_of(0)).bandwidth / 24000)
    narrow = CropDataset([Span(processed / "rendered_trumpet_0.wav.pt", 0, 100)], load_config())
    assert "bandwidth" not in narrow[0]


def test_statistics_contain_the_bandwidth_that_a_tenth_of_the_time_reaches(
    processed: Path, tmp_path: Path, config
) -> None:
    recording = load_recording(processed / "rendered_trumpet_0.wav.pt")
    spans = []
    for number, (bandwidth, n_frames) in enumerate([(22000.0, 9), (21000.0, 3), (16000.0, 60), (15000.0, 48)]):
        path = tmp_path / f"{number}.pt"
        save_recording(path, dataclasses.replace(recording, bandwidth=bandwidth))
        spans.append(Span(path, 40, n_frames))
    assert measure_statistics(spans, config)["bandwidth"] == 21000.0
    assert measure_statistics(spans[1:], config)["bandwidth"] == 16000.0


@pytest.mark.parametrize("preset", ["tiny", "wide"])
def test_training_at_another_rate_names_the_command_to_run(
    preset: str, processed: Path, processed_file: Path, tmp_path: Path, caplog
) -> None:
    data = processed if preset == "tiny" else processed_file.parent
    flags = training_flags(data, DEFAULT_CONFIG_PATH, tmp_path, "--config_name", preset)
    assert train.main(flags) == 1
    (message,) = caplog.messages
    assert "16000 Hz" in message and "48000 Hz" in message
    assert f"preprocess.py --config_name {preset} --input_dir RECORDINGS --output_dir {data}" in message


def test_resume_is_exact_and_the_model_has_the_bandwidth_of_its_data(trained, processed, own_config, tmp_path) -> None:
    assert train.main(training_flags(processed, own_config, tmp_path, "--epochs", 2)) == 0
    shutil.copytree(trained.parent, tmp_path / "resumed")
    assert train.main(training_flags(processed, own_config, tmp_path / "resumed", "--epochs", 2)) == 0
    one, other = (read_checkpoint(folder / "latest.pth")["model"] for folder in (tmp_path, tmp_path / "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    bandwidths, model = [load_recording(path).bandwidth for path in processed.glob("*.pt")], load_model(trained)
    assert read_checkpoint(trained)["statistics"]["bandwidth"] == max(bandwidths)  # each of three is more than a tenth
    assert model.bandwidth == max(bandwidths) and model.audio.sample_rate == RATE


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "voice.wav", tone(1.0, 220.0, 6000.0)[::3], 16000)
    return tmp_path / "voice.wav"


@pytest.mark.parametrize("output_rate", [None, 44100])
def test_transfer_at_any_output_rate(trained: Path, voice: Path, tmp_path: Path, output_rate: int | None) -> None:
    out = tmp_path / "out.wav"
    flags = ["--input", voice, "--checkpoint", trained, "--output", out, "--device", "cpu"]
    flags += ["--output_rate", output_rate] if output_rate else []
    assert transfer.main([str(flag) for flag in flags]) == 0
    info = soundfile.info(out)
    assert info.samplerate == (output_rate or RATE)
    assert info.frames == pytest.approx(info.samplerate * 1.0, abs=info.samplerate / 100)


def test_curves_and_notes_at_48_khz(trained: Path, voice: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", str(trained), "--device", "cpu"]
    curves, notes = tmp_path / "curves.csv", tmp_path / "notes.mid"
    sounds = [tmp_path / name for name in ("voice_out.wav", "curves_out.wav", "notes_out.wav")]
    written = ["--export_controls", str(curves), "--midi", str(notes)]
    assert transfer.main(["--input", str(voice), "--output", str(sounds[0]), *common, *written]) == 0
    assert transfer.main(["--controls", str(curves), "--output", str(sounds[1]), *common]) == 0
    assert transfer.main(["--input", str(notes), "--output", str(sounds[2]), *common]) == 0
    first, again, of_notes = (soundfile.read(path)[0] for path in sounds)
    assert np.array_equal(first, again)
    assert {soundfile.info(path).samplerate for path in sounds} == {RATE} and np.abs(of_notes).max() > 0.01


def test_streaming_equals_the_causal_transfer_for_any_blocks(trained: Path, voice: Path) -> None:
    """A stream of 48 kHz sounds the same in blocks of any size, and like ``transfer_causal`` of the voice at 16 kHz."""
    soundfile.write(voice, melody(), 16000)
    model, sound = load_model(trained), load_audio(voice, RATE)
    played = []
    for size in (480, 777):
        stream = StreamingTransfer(model)
        blocks = [stream.process(sound[start : start + size]) for start in range(0, len(sound), size)]
        played.append(np.concatenate(blocks))
    assert np.array_equal(*played) and len(played[0]) == len(sound)
    whole = transfer_causal([load_audio(voice, 16000)[:16000]], model).audio
    assert len(whole) == RATE
    levels = [
        np.sqrt((audio.reshape(-1, 480) ** 2).mean(axis=1)) for audio in (whole, np.roll(played[0], -stream.latency))
    ]
    both = slice(10, 80)
    assert np.corrcoef(levels[0][both], levels[1][both])[0, 1] > 0.95


def test_live_playing_refuses_other_rates(trained: Path) -> None:
    model = load_model(trained)
    audio = dataclasses.replace(model.settings.audio, sample_rate=44000, hop_length=440)
    model.settings = dataclasses.replace(model.settings, audio=audio)
    with pytest.raises(ValueError, match="44000 Hz cannot be played live"):
        StreamingTransfer(model)
