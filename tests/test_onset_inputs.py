"""Onset inputs of the decoder: time since the pluck and its velocity, in training and in a transfer."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from checkpoint import load_model
from config import DEFAULT_CONFIG_PATH
from conftest import melody
from data import save_recording
from evaluation.judging import read_takes, resynthesize_take
from model import build_model, scale_since_onset
from playing.block_model import BlockModel
from playing.causal_transfer import StreamingTransfer
from playing.offline_transfer import play_curves
from recordings.crops import CropDataset, Span
from sound.plucks import LONGEST_RING, trace_plucks
from transfer import transfer
from voice.curves import Curves


def with_onsets(config):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, onset_inputs=True))


def plucked(n_frames: int = 300, onsets: tuple[int, ...] = (20, 130, 220)) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and loudness, float32 [T], of notes that rise at once and fall by 20 dB/s."""
    loudness = np.full(n_frames, -80.0)
    for number, onset in enumerate(onsets):
        loudness[onset:] = -20 - 4 * number - 0.2 * np.arange(n_frames - onset)
    return np.full(n_frames, 220.0, np.float32), loudness.astype(np.float32)


@pytest.fixture
def pluck_file(tmp_path: Path, counting_recording) -> Path:
    f0, loudness = (torch.from_numpy(values)[None, :, None] for values in plucked())
    recording = dataclasses.replace(counting_recording(300), f0=f0, loudness=loudness)
    save_recording(tmp_path / "pluck.pt", recording)
    return tmp_path / "pluck.pt"


def test_time_since_onset_is_scaled_to_one():
    seconds = torch.tensor([0.0, 0.02, 4.0, 60.0])
    expected = [0, np.log(2) / np.log(201), 1, 1]
    assert scale_since_onset(seconds).tolist() == pytest.approx(expected, rel=1e-6)


def test_onset_inputs_are_optional(small_config):
    plain, with_inputs = (build_model(config, "guitar") for config in (small_config, with_onsets(small_config)))
    assert with_inputs.decoder.gru.input_size == plain.decoder.gru.input_size + 2
    f0, loudness = torch.full((1, 10, 1), 220.0), torch.full((1, 10, 1), -20.0)
    soft, hard = (torch.tensor([0.1, level]).expand(1, 10, 2) for level in (-60.0, -10.0))
    one, other = (with_inputs.controls(f0, loudness, plucks=plucks).harmonic_amplitudes for plucks in (soft, hard))
    assert not torch.allclose(one, other)
    assert torch.equal(plain.controls(f0, loudness, plucks=soft)[0], plain.controls(f0, loudness)[0])
    with pytest.raises(ValueError, match="needs plucks"):
        with_inputs(f0, loudness)


@pytest.mark.parametrize("seed", [None, 3])
def test_crops_contain_the_plucks_of_the_whole_recording(pluck_file: Path, small_config, seed: int | None):
    crops = CropDataset([Span(pluck_file, 0, 300)], with_onsets(small_config), seed)
    whole = torch.from_numpy(trace_plucks(*plucked(), 100.0))
    for index in range(len(crops)):
        crop = crops[index]
        # The number of its first frame is the value of its first sample (see counting_recording).
        first = int(crop["audio"][0])
        assert crop["plucks"].equal(whole[first : first + 25])
    assert len(crops) == 12 and crops[7]["plucks"][0, 0] > 0.4  # from frame 175 on, 45 after the second pluck


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_recording) -> Path:
    folder = tmp_path_factory.mktemp("plucks")
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"] |= {"hidden_size": 16, "n_harmonics": 20, "n_noise_bands": 17, "onset_inputs": True}
    content["base"]["train"] |= {"batch_size": 2, "crop_seconds": 0.25, "phrases_every_epochs": 1}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "data").mkdir()
    save_recording(folder / "data" / "melody.pt", make_recording(melody()))
    flags = ["--data_dir", folder / "data", "--config", folder / "config.json", "--checkpoint_dir", folder]
    flags += ["--runs_dir", folder / "runs", "--device", "cpu", "--wandb_mode", "disabled", "--epochs", 1]
    assert train.main([str(flag) for flag in flags]) == 0
    return folder / "latest.pth"


def test_a_trained_model_plays_a_voice(trained: Path):
    result = transfer(melody(), 16000, load_model(trained))
    assert np.abs(result.audio).max() > 1e-3


def test_output_does_not_depend_on_the_blocks(trained: Path):
    f0, loudness = plucked()
    ones = np.ones(300, np.float32)
    curves, model = Curves(f0, loudness, ones, ones > 0, ones), load_model(trained)
    whole, parts = (
        torch.cat([sound.audio for sound, _ in play_curves(model, curves, block_frames=size)], dim=1)
        for size in (300, 70)
    )
    assert torch.allclose(whole, parts, atol=1e-5)
    plucks = torch.from_numpy(trace_plucks(f0, loudness, 100.0))[None]
    assert plucks[0, 0, 0] == LONGEST_RING
    controls = model.controls(
        torch.from_numpy(f0)[None, :, None], torch.from_numpy(loudness)[None, :, None], plucks=plucks
    )
    played = torch.cat([controls.harmonic_amplitudes for _, controls in play_curves(model, curves)], dim=1)
    assert torch.allclose(controls.harmonic_amplitudes, played, atol=1e-6)


def test_resynthesis_uses_the_plucks_of_the_recording(trained: Path):
    model = load_model(trained)
    take = read_takes(trained.parent / "data", model)[0]
    assert np.isfinite(resynthesize_take(take, model, 0)).all()


def test_live_playing_and_hosts_refuse_onset_inputs(trained: Path):
    model = load_model(trained)
    for host in (StreamingTransfer, BlockModel):
        with pytest.raises(ValueError, match="onset_inputs"):
            host(model)
