"""Export of models for other hosts by ONNX or torch.export, with a check and a description.

Two forms: a function of curves (``block_model.py``), or the whole live graph from voice to sound (``live_graph.py``).
The written file is loaded again and compared with the Python model, each block from the same state. It gets its
final name only if the difference is at most ``TOLERANCE``. A JSON file next to it describes rates, latency, inputs
and outputs.
"""

import hashlib
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
from torch import Tensor, nn

from checkpoint import load_model
from model import NeuralGuitar
from playing.block_model import BlockModel
from playing.live_graph import CONTROLS, SHOWN, ExportedLiveGraph, LiveGraph
from sound.atomic_files import write_text

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4  # largest difference from the Python model; full scale is 1
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vox2trumpet"  # folder of cached live graphs
_MOST_CACHED = 20
_OPSET = 20
_PROOF_BLOCKS = 200
_MAKES_GRAPHS = ("model.py", "synth.py", "playing/*.py", "voice/*.py", "sound/crepe.py")
log = logging.getLogger(__name__)
Run = Callable[..., Sequence[Tensor]]  # (*inputs, state, state64) -> (*outputs, state, state64)


# --- writing and reading --------------------------------------------------------------------------


def write_onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they log each step
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # warnings of the exporter about torch's code
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def write_torch_export(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(module, tuple(inputs.values())), file)


def read_onnx(path: Path) -> Run:
    """Open an exported file in onnxruntime on one core."""
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


# --- exported modules -----------------------------------------------------------------------------


class _Export:
    """Module to export, with its inputs, its outputs and its state, which is the last two arguments and results."""

    def __init__(self, module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> None:
        """Store the module and its inputs for the check, [blocks, ...] each."""
        self.module, self.inputs = module.eval(), inputs
        packer = module.packer
        self.state = {"state": torch.zeros_like(packer.initial), "state64": torch.zeros_like(packer.initial64)}
        self.outputs = [*outputs, *(f"next_{name}" for name in self.state)]

    def block(self, number: int) -> dict[str, Tensor]:
        return {name: values[number] for name, values in self.inputs.items()}


def _make_noise(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 1


def _export_curves(model: NeuralGuitar, size: int) -> tuple[_Export, dict[str, Any]]:
    """Return the export of decoder and synthesizer for blocks of ``size`` frames, and its description."""
    module, hop_length = BlockModel(model), model.audio.hop_length
    curves = {  # the range of the training data
        name: torch.linspace(*model.statistics[f"{name}_quantiles"][::100], _PROOF_BLOCKS * size).view(-1, 1, size, 1)
        for name in ("f0", "loudness")
    }
    inputs = {**curves, "noise": _make_noise(_PROOF_BLOCKS, 1, size * hop_length)}
    described = {
        "block_frames": size,
        "latency_samples": module.latency,
        "inputs": {
            "f0": f"Hz, [1, {size}, 1]",
            "loudness": f"dB re full scale, A-weighted, [1, {size}, 1]",
            "noise": f"uniform in -1..1, [1, {size * hop_length}]",
        },
        "outputs": {"audio": f"[1, {size * hop_length}]"},
    }
    return _Export(module, inputs, ["audio"]), described


def _export_live(model: NeuralGuitar) -> tuple[_Export, dict[str, Any]]:
    """Return the export of the live graph, and its description."""
    graph, audio = LiveGraph(model), model.audio
    module, hop = ExportedLiveGraph(graph), audio.feature_hop_length
    time = torch.arange(_PROOF_BLOCKS * hop) / audio.feature_rate  # a test voice with glides, crescendos and pauses
    phase = 2 * torch.pi * torch.cumsum(150 * 2 ** (time / 2), 0) / audio.feature_rate
    voice = 0.3 * torch.sin(3 * time).clamp_min(0) * (torch.sin(phase) + 0.5 * torch.sin(2 * phase))
    inputs = {
        "voice": voice.view(_PROOF_BLOCKS, hop),
        "noise": _make_noise(_PROOF_BLOCKS, audio.hop_length),
        "controls": graph.controls().expand(_PROOF_BLOCKS, -1),
    }
    described = {
        "feature_rate": audio.feature_rate,
        "feature_hop_length": hop,
        "latency_samples": graph.latency,
        "articulation": "plucked" if graph.plucker else "sustained",
        "register_semitones": graph.register_semitones,
        "median_f0": graph.median_f0,
        "live_loudness": graph.config.transfer.live_loudness,
        "controls": CONTROLS,
        "shown": SHOWN,
        "inputs": {
            "voice": f"[{hop}] at {audio.feature_rate} Hz",
            "noise": f"uniform in -1..1, [{audio.hop_length}]",
            "controls": f"[{len(CONTROLS)}], in the order of 'controls': semitones in all, then dB",
        },
        "outputs": {"audio": f"[{audio.hop_length}]", "shown": f"[{len(SHOWN)}], in the order of 'shown'"},
    }
    return _Export(module, inputs, ["audio", "shown"]), described


# --- check ----------------------------------------------------------------------------------------


@torch.inference_mode()
def measure_difference(run: Run, export: _Export) -> tuple[float, dict[str, float]]:
    """Compare an exported file with the Python model, each block from the same state.

    Returns:
        The largest absolute difference of the audio, and the median and 99th percentile of milliseconds per block.
    """
    state, difference, seconds = list(export.state.values()), 0.0, []
    for number in range(_PROOF_BLOCKS):
        inputs = export.block(number).values()
        started = time.perf_counter()
        audio, *_ = run(*inputs, *state)
        seconds.append(time.perf_counter() - started)
        expected, *rest = export.module(*inputs, *state)
        difference = max(difference, (audio - expected).abs().max().item())
        state = rest[-2:]
    high = sorted(seconds)[int(0.99 * len(seconds))]
    return difference, {"median": 1000 * statistics.median(seconds), "p99": 1000 * high}


def export_model(model: NeuralGuitar, kind: str, target: Path, size: int = 1, live: bool = False) -> dict[str, Any]:
    """Write the model, or its live graph, to ``target``; write a JSON description next to it and return it.

    Raises:
        ValueError: the model cannot be exported, or the file differs from it by more than ``TOLERANCE``.
        OSError: the file cannot be written; an existing ``target`` is kept.
    """
    export, described = _export_live(model) if live else _export_curves(model, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    unproven = target.with_name(f".part.{os.getpid()}.{target.name}")
    try:
        with torch.no_grad():
            _WRITERS[kind](export.module, {**export.block(0), **export.state}, export.outputs, unproven)
        difference, took = measure_difference(_READERS[kind](unproven), export)
        if not difference <= TOLERANCE:
            raise ValueError(f"the exported model is {difference:.2g} from the Python model; nothing was written")
        description = {
            "format": kind,
            "instrument": model.instrument,
            "preset": model.settings.preset,
            "sample_rate": model.audio.sample_rate,
            "hop_length": model.audio.hop_length,
            **described,
            "state": {
                name: {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
                for name, value in export.state.items()
            },
            "bytes": unproven.stat().st_size,
            "largest_difference": difference,
            "milliseconds_a_block": took,
        }
        text = json.dumps(description, indent=2) + "\n"
        write_text(target.with_suffix(".json"), text)
        os.replace(unproven, target)
    finally:
        unproven.unlink(missing_ok=True)
    return description


def cached_live_graph(checkpoint: Path, folder: Path = CACHE) -> Path:
    """Return the path of a checkpoint's live graph as an ONNX file; export it if it is not in the cache folder.

    The file name is a hash of the checkpoint and the source code. Only the newest graphs are kept.

    Raises:
        ValueError, OSError: see ``export_model`` and ``checkpoint.load_model``.
    """
    target = _live_graph_path(checkpoint, folder)
    if find_live_graph(checkpoint, folder) is None:
        log.info("preparing %s to be played live; that takes half a minute, once", checkpoint.stem)
        export_model(load_model(checkpoint), "onnx", target, live=True)
        for old in sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)[:-_MOST_CACHED]:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
    return target


def find_live_graph(checkpoint: Path, folder: Path = CACHE) -> Path | None:
    """Return the path of a checkpoint's live graph if it is in the cache folder, else None."""
    target = _live_graph_path(checkpoint, folder)
    return target if target.exists() and target.with_suffix(".json").exists() else None


def _live_graph_path(checkpoint: Path, folder: Path) -> Path:
    digest = hashlib.sha256(checkpoint.read_bytes())
    root = Path(__file__).parents[1]
    for source in sorted(path for name in _MAKES_GRAPHS for path in root.glob(name)):
        digest.update(source.read_bytes())
    return folder / f"{digest.hexdigest()[:32]}.onnx"
