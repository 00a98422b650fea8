"""Export a model for other hosts as ONNX or by torch.export: the graph of ``block_model.py``, proven and described.

The file that was written is loaded again and must equal the Python model over consecutive blocks before it takes the
name asked for. A json file beside it says what a host must know: shapes, state, latency.
"""

import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import NeuralGuitar
from playing.block_model import BlockModel, GraphState
from sound.atomic_files import write_text

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4  # largest difference from the Python model, in samples of full scale 1
_OPSET = 20
Run = Callable[..., Sequence[Tensor]]  # (f0, loudness, noise, *state) -> (audio, *state)


# --- writing and reading --------------------------------------------------------------------------


def write_onnx(block_model: BlockModel, inputs: tuple[Tensor, ...], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # the exporter's remarks on torch's own code
        torch.onnx.export(
            block_model,
            inputs,
            path,
            input_names=["f0", "loudness", "noise", *(f"state_{name}" for name in GraphState._fields)],
            output_names=["audio", *(f"next_{name}" for name in GraphState._fields)],
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def write_torch_export(block_model: BlockModel, inputs: tuple[Tensor, ...], path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(block_model, inputs), file)


def read_onnx(path: Path) -> Run:
    """Open an exported file in onnxruntime, on one core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        results = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors)})
        return [torch.from_numpy(result) for result in results]

    return run


def read_torch_export(path: Path) -> Run:
    with path.open("rb") as file:
        return torch.export.load(file).module()


_WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export}
_READERS = {"onnx": read_onnx, "torch_export": read_torch_export}


# --- proof ----------------------------------------------------------------------------------------


def make_curves(model: NeuralGuitar, n_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return f0 and loudness, [1, T, 1] each, over all that the model has heard, and noise [1, N]."""
    f0, loudness = (
        torch.linspace(values[0], values[-1], n_frames)[None, :, None]
        for values in (model.statistics["f0_quantiles"], model.statistics["loudness_quantiles"])
    )
    generator = torch.Generator().manual_seed(0)
    return f0, loudness, 2 * torch.rand(1, n_frames * model.audio.hop_length, generator=generator) - 1


def play_blocks(run: Run, block_model: BlockModel, f0: Tensor, loudness: Tensor, noise: Tensor, size: int) -> Tensor:
    """Play [1, T, 1] curves in consecutive blocks of ``size`` frames; return the audio [1, N]."""
    hop_length, state, blocks = block_model.model.audio.hop_length, block_model.initial_state(), []
    for start in range(0, f0.shape[1], size):
        frames = slice(start, start + size)
        samples = slice(start * hop_length, (start + size) * hop_length)
        audio, *state = run(f0[:, frames], loudness[:, frames], noise[:, samples], *state)
        blocks.append(audio)
    return torch.cat(blocks, dim=1)


@torch.inference_mode()
def measure_difference(run: Run, block_model: BlockModel, size: int) -> float:
    """Return the largest difference between the blocks and the Python model's sound over two seconds."""
    model, late = block_model.model, block_model.latency
    n_frames = max(4, 200 // size) * size
    f0, loudness, noise = make_curves(model, n_frames)
    controls = model.controls(f0, loudness)
    # A frame's noise comes with the frame that ends it.
    expected = model.harmonic_synthesizer(f0, controls.harmonic_amplitudes) + model.noise_synthesizer.filter(
        noise.roll(-model.audio.hop_length, dims=1), controls.noise_magnitudes
    )
    audio = play_blocks(run, block_model, f0, loudness, noise, size)
    return (audio[:, late:] - expected[:, :-late]).abs().max().item()


@torch.inference_mode()
def measure_latency(run: Run, block_model: BlockModel, size: int, n_blocks: int = 200) -> dict[str, float]:
    """Return milliseconds a block: median, and what 99 of 100 blocks stay under."""
    f0, loudness, noise = make_curves(block_model.model, size)
    state, seconds = block_model.initial_state(), []
    for _ in range(n_blocks):
        started = time.perf_counter()
        _, *state = run(f0, loudness, noise, *state)
        seconds.append(time.perf_counter() - started)
    return {"median": 1000 * statistics.median(seconds), "p99": 1000 * sorted(seconds)[int(0.99 * n_blocks)]}


def export_model(model: NeuralGuitar, kind: str, target: Path, size: int) -> dict[str, Any]:
    """Write the model to ``target`` for blocks of ``size`` frames and a description beside it; return the description.

    Raises:
        ValueError: the decoder is no GRU, or the file does not equal the model.
        OSError: it cannot be written; what stood at ``target`` stays.
    """
    block_model = BlockModel(model).eval()
    inputs = (*make_curves(model, size), *block_model.initial_state())
    target.parent.mkdir(parents=True, exist_ok=True)
    unproven = target.with_name(f".part.{target.name}")
    try:
        with torch.no_grad():
            _WRITERS[kind](block_model, inputs, unproven)
        run = _READERS[kind](unproven)
        difference = measure_difference(run, block_model, size)
        if not difference <= TOLERANCE:
            raise ValueError(f"the exported model is {difference:.2g} from the Python model; nothing was written")
        description = describe(block_model, kind, size) | {
            "bytes": unproven.stat().st_size,
            "largest_difference": difference,
            "milliseconds_a_block": measure_latency(run, block_model, size),
        }
        os.replace(unproven, target)
    finally:
        unproven.unlink(missing_ok=True)
    write_text(target.with_suffix(".json"), json.dumps(description, indent=2) + "\n")
    return description


def describe(block_model: BlockModel, kind: str, size: int) -> dict[str, Any]:
    """Return what a host must know to run the file."""
    model, audio = block_model.model, block_model.model.audio
    return {
        "format": kind,
        "instrument": model.instrument,
        "preset": model.settings.preset,
        "sample_rate": audio.sample_rate,
        "hop_length": audio.hop_length,
        "block_frames": size,
        "latency_samples": block_model.latency,
        "inputs": {
            "f0": f"Hz, [1, {size}, 1]",
            "loudness": f"dB re full scale, A-weighted, [1, {size}, 1]",
            "noise": f"uniform in -1..1, [1, {size * audio.hop_length}]",
        },
        "state": {
            name: {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
            for name, value in block_model.initial_state()._asdict().items()
        },
    }
