"""An exported model, run by onnxruntime or by torch, equals the Python model over consecutive blocks."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from checkpoint import load_model
from config import load_config
from conftest import melody, shrink
from model import NeuralGuitar
from playing import export as model_export
from playing import live_graph
from playing.block_model import BlockModel
from playing.causal_transfer import Decimator, StreamingTransfer
from playing.live_graph import LiveGraph

ROOT = Path(__file__).parents[2]


def small(preset, **changes):
    config = shrink(load_config(preset=preset))
    model = dataclasses.replace(config.model, noise_bias=-3.0)  # untrained, with audible noise
    if config.model.embed_size:
        model = dataclasses.replace(model, embed_size=8, projection_size=16)
    return dataclasses.replace(config, model=dataclasses.replace(model, **changes))


def whole(model, n_frames, shift):
    """Return what the Python model plays in one piece, and its curves; the noise of block t comes with frame t."""
    f0 = torch.linspace(150, 900, n_frames)[None, :, None]
    loudness = torch.linspace(-50, -10, n_frames)[None, :, None]
    noise = 2 * torch.rand(1, n_frames * 160, generator=torch.Generator().manual_seed(3)) - 1
    with torch.inference_mode():
        before = torch.full((1, 3, 1), -80.0)  # there was silence
        controls = model.controls(f0, loudness, decoder_inputs=model.encode_inputs(f0, loudness, before))
        aligned = torch.cat([noise[:, shift:], torch.zeros(1, shift)], dim=1)
        expected = model.harmonic_synthesizer(f0, controls.harmonic_amplitudes)
        filtered = model.noise_synthesizer.filter(aligned, controls.noise_magnitudes)
    assert filtered.std() > 1e-3 and expected.std() > 1e-3  # both parts count
    return f0, loudness, noise, expected + filtered


@pytest.mark.parametrize(
    ("preset", "kind", "size", "attack_frames"),
    [("tiny", "onnx", 2, 0), ("solo", "onnx", 1, 3), ("solo", "torch_export", 1, 0), ("solo", "torch_export", 2, 3)],
)
def test_blocks_equal_the_model(tmp_path, write_checkpoint, preset, kind, size, attack_frames):
    path = tmp_path / f"exported{export.SUFFIXES[kind]}"
    checkpoint = write_checkpoint(config=small(preset, attack_frames=attack_frames))
    arguments = ["--checkpoint", str(checkpoint), "--format", kind, "--output", str(path), "--block_frames", str(size)]
    assert export.main(arguments) == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted([path.name, "exported.json", checkpoint.name])
    description = json.loads(path.with_suffix(".json").read_text())
    assert description["bytes"] == path.stat().st_size and description["milliseconds_a_block"]["median"] > 0
    run, late = model_export._READERS[kind](path), description["latency_samples"]
    # Using only the description, as a host would: zeros of the shapes it names.
    shapes = [(entry["shape"], getattr(torch, entry["type"])) for entry in description["state"].values()]
    state = [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes]
    f0, loudness, noise, expected = whole(load_model(checkpoint), 60, shift=160)
    blocks = []
    for start in range(0, 60, size):
        frames = slice(start, start + size)
        samples = slice(160 * start, 160 * (start + size))
        audio, *state = run(f0[:, frames], loudness[:, frames], noise[:, samples], *state)
        blocks.append(audio)
    audio = torch.cat(blocks, dim=1)
    assert not audio[:, : late - 16].any()  # silent until the first frame sounds; the filter rings a moment before
    assert (audio[:, late:] - expected[:, :-late]).abs().max() <= 1e-4  # the promise; measured 1e-6


def test_full_size_state_is_that_of_the_preset():
    for preset, layers in (("tiny", 1), ("deep", 3)):
        config = load_config(preset=preset)
        model = BlockModel(NeuralGuitar(config.model, config.audio))
        assert model.player.initial_state().model.memory.shape == (layers, 1, config.model.hidden_size)


def test_transformer_is_refused_with_a_reason(tmp_path, write_checkpoint, caplog):
    config = load_config(preset="transformer")
    model = dataclasses.replace(config.model, hidden_size=16, num_layers=1, n_harmonics=20, n_noise_bands=17)
    checkpoint = write_checkpoint(config=dataclasses.replace(config, model=model))
    target = tmp_path / "t.onnx"
    assert export.main(["--checkpoint", str(checkpoint), "--format", "onnx", "--output", str(target)]) == 1
    assert "a transformer decoder cannot be exported" in caplog.text and not target.exists()


def test_reverb_is_refused_with_a_reason(tmp_path, write_checkpoint, caplog):
    checkpoint, target = write_checkpoint(config=small("tiny", reverb_seconds=0.2)), tmp_path / "t.onnx"
    assert export.main(["--checkpoint", str(checkpoint), "--format", "onnx", "--output", str(target)]) == 1
    assert "a model with a reverb of 0.2 s cannot be exported" in caplog.text and not target.exists()


def test_differing_file_is_not_written(tmp_path, write_checkpoint, caplog, monkeypatch):
    target = tmp_path / "model.pt2"
    target.write_text("an earlier one")
    monkeypatch.setattr(model_export, "TOLERANCE", -1.0)
    arguments = ["--checkpoint", str(write_checkpoint()), "--format", "torch_export", "--output", str(target)]
    assert export.main(arguments) == 1
    assert "from the Python model; nothing was written" in caplog.text
    assert target.read_text() == "an earlier one" and not list(tmp_path.glob(".part*"))


def test_the_live_graph_equals_the_causal_transfer(tmp_path, write_checkpoint):
    """Using only the description, as a host would: docs/export.md's loop."""
    checkpoint, path = write_checkpoint(instrument="guitar", config=small("solo")), tmp_path / "live.onnx"
    assert export.main(["--checkpoint", str(checkpoint), "--format", "onnx", "--live", "--output", str(path)]) == 0
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["largest_difference"] < 1e-5 and described["articulation"] == "plucked"
    voice, noise = melody(), 2 * np.random.default_rng(0).random(16000 * 2, np.float32) - 1
    namespace = {"path": str(path), "voice": voice, "noise": noise, "semitones": described["register_semitones"]}
    text = (ROOT / "docs" / "export.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], namespace)
    graph = LiveGraph(load_model(checkpoint))
    state, expected, shown = graph.initial_state(), [], []
    with torch.inference_mode():
        for hop, hiss in zip(torch.from_numpy(voice).split(160), torch.from_numpy(noise).split(160)):
            sound, frame, state = graph(hop, hiss, graph.controls(), state)
            expected.append(sound.audio[0])
            shown.append(frame)
    played, expected = np.concatenate(namespace["played"]), torch.cat(expected).numpy()
    shown, decided = np.array(shown), np.array(namespace["frames"])
    voiced = live_graph.SHOWN.index("voiced")
    assert 0.3 < shown[:, voiced].mean() < 0.9 and np.abs(expected).max() > 1e-3
    assert (shown[:, voiced] == decided[:, voiced]).all() and np.abs(shown - decided).max() < 0.1
    assert len(played) == len(expected) and np.abs(played - expected).max() < 1e-3
    one, other = (StreamingTransfer(graph.player.model, graph_file=file) for file in (None, path))
    assert np.abs(one.process(voice) - other.process(voice)).max() < 1e-3


def test_a_neutone_model_equals_the_live_graph(tmp_path, write_checkpoint, caplog):
    config = small("solo")
    config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, sample_rate=48000, hop_length=480))
    checkpoint, folder = write_checkpoint(config=config), tmp_path / "model"
    arguments = ["--checkpoint", str(checkpoint), "--format", "neutone", "--output", str(folder)]
    if not importlib.util.find_spec("neutone_sdk"):
        assert export.main(arguments) == 1 and "neutone_sdk" in caplog.text and not folder.exists()
        pytest.skip("neutone_sdk is not installed: see docs/export.md")
    assert export.main(arguments) == 0 and {"model.nm", "metadata.json"} < {path.name for path in folder.iterdir()}
    player, graph = torch.jit.load(folder / "model.nm").w2w_base, LiveGraph(load_model(checkpoint))
    voice, decimator = np.repeat(melody(), 3), Decimator(3)
    for _ in range(2):  # the second time from the beginning again
        player.reset()
        state, played, expected = graph.initial_state(), [], []
        with torch.no_grad():
            for number, block in enumerate(torch.from_numpy(voice).split(480)):
                torch.manual_seed(number)
                played.append(player(block[None], None)[0])
                torch.manual_seed(number)
                hop = torch.from_numpy(decimator.process(block.numpy()))
                sound, _, state = graph(hop, 2 * torch.rand(480) - 1, graph.controls(), state)
                expected.append(sound.audio[0])
        decimator = Decimator(3)
        assert torch.cat(expected).abs().max() > 1e-3
        assert (torch.cat(played) - torch.cat(expected)).abs().max() < 1e-4
    assert player.calc_model_delay_samples() == graph.latency + 48


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "onnx", "--output", "a.pt2"], "a.pt2"),
        (["--format", "onnx", "--output", "a.onnx", "--block_frames", "0"], "between 1 and 100"),
        (["--format", "onnx", "--output", "folder.onnx"], "is a folder"),
        (["--format", "neutone", "--output", "folder.onnx"], "folder.onnx"),
        (["--format", "onnx", "--output", "a.onnx", "--live", "--block_frames", "2"], "--block_frames"),
    ],
)
def test_bad_flags_are_refused(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit) as stopped:
        export.parse_args(["--checkpoint", "model.pth", *flags])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_missing_checkpoint_is_one_sentence(tmp_path, caplog):
    arguments = ["--checkpoint", str(tmp_path / "no.pth"), "--format", "onnx", "--output", str(tmp_path / "a.onnx")]
    assert export.main(arguments) == 1
    assert "there is no checkpoint" in caplog.text
