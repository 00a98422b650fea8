"""Export a model for other hosts (a plug-in, a phone, a browser): curves and noise in, sound out, block by block.

    ./venv/bin/python scripts/export.py --checkpoint checkpoints/pretrained/trumpet.pth --format onnx \\
        --output out/trumpet.onnx

The file holds decoder and synthesizer as one function without memory. What must be remembered from block to block
goes out as a tensor and comes back in with the next block: start with zeros, of the shapes in the json file that is
written beside the model. Noise is an input too, uniform in -1..1, so that the host owns the random numbers.

A frame's sound fades into that of the next, so a block's sound ends at its newest frame. The noise filters look
half their length ahead. Both together are the latency: ``hop_length + n_noise_bands - 1`` samples.

The file is loaded again and must equal the Python model over consecutive blocks before it takes the name asked for.
"""

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from checkpoint import load_model
from files import write_text
from model import GruDecoder, NeuralGuitar
from synth import harmonics_below_nyquist, noise_filters

log = logging.getLogger("export")

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4  # largest difference from the Python model, in samples of full scale 1
_OPSET = 20
Run = Callable[..., Sequence[Tensor]]  # (f0, loudness, noise, *state) -> (audio, *state)


class State(NamedTuple):
    """What a block leaves for the next one; zeros at the start."""

    hidden: Tensor  # [layers, 1, hidden_size] of the GRU
    phase: Tensor  # [1], float64, cycles of the fundamental at the newest frame
    loudness: Tensor  # [1, attack_frames, 1] in dB, of the newest frames; of one, if the model does not hear it rise
    f0: Tensor  # [1, 1, 1] in Hz, and the two below: of the newest frame
    harmonic_amplitudes: Tensor  # [1, 1, H]
    noise_magnitudes: Tensor  # [1, 1, K]
    overlap: Tensor  # [1, taps - 1], what is still to come of the filtered noise
    delayed: Tensor  # [1, K - 1], harmonic sound that waits for the noise


class BlockModel(nn.Module):
    """A model as a function of one block and of the state before it, in operations that every exporter knows.

    Raises:
        ValueError: the decoder is no GRU, or the model has a reverb.
    """

    def __init__(self, model: NeuralGuitar) -> None:
        super().__init__()
        if not isinstance(model.decoder, GruDecoder):
            raise ValueError(
                f"a {model.config.decoder} decoder cannot be exported: it remembers whole windows of frames, "
                "not a state of one size; train a preset with a GRU, such as tiny or solo"
            )
        if model.reverb:
            raise ValueError(
                f"a model with a reverb of {model.config.reverb_seconds:g} s cannot be exported; "
                "train without one, and let the host add a room"
            )
        self.model = model
        hop_length, n_bands = model.audio.hop_length, model.config.n_noise_bands
        n_taps = 2 * (n_bands - 1)
        steps = torch.arange(1, hop_length + 1, dtype=torch.float64)
        self.register_buffer("ramp", torch.arange(hop_length) / hop_length)
        self.register_buffer("held", steps)  # inclusive sums of ones, and of 0, 1 / hop, 2 / hop, ...
        self.register_buffer("rising", steps * (steps - 1) / (2 * hop_length))
        self.register_buffer("numbers", torch.arange(1, model.config.n_harmonics + 1, dtype=torch.float32)[:, None])
        # The design of the filters is linear in the magnitudes: no complex numbers. Last tap first.
        self.register_buffer("responses", noise_filters(torch.eye(n_bands)).flip(-1))  # (K, taps)
        self.register_buffer("heard", torch.arange(hop_length + n_taps - 1)[:, None] + torch.arange(n_taps))

    def start(self) -> State:
        """Return the state before the first block."""
        config = self.model.config
        sizes = (config.num_layers, 1, config.hidden_size), (1, 1, config.n_harmonics), (1, 1, config.n_noise_bands)
        return State(
            hidden=torch.zeros(sizes[0]),
            phase=torch.zeros(1, dtype=torch.float64),
            loudness=torch.zeros(1, max(1, config.attack_frames), 1),
            f0=torch.zeros(1, 1, 1),
            harmonic_amplitudes=torch.zeros(sizes[1]),
            noise_magnitudes=torch.zeros(sizes[2]),
            overlap=torch.zeros(1, 2 * (config.n_noise_bands - 1) - 1),
            delayed=torch.zeros(1, config.n_noise_bands - 1),
        )

    @property
    def latency(self) -> int:
        """Samples from a frame's centre to its sound at the output, beside those of the block itself."""
        return self.model.audio.hop_length + self.model.config.n_noise_bands - 1

    def forward(self, f0: Tensor, loudness: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Play the next T frames.

        Args:
            f0: [1, T, 1] in Hz, positive.
            loudness: [1, T, 1] in dB re full scale.
            noise: [1, T * hop_length], uniform in -1..1.
            state: the fields of ``State``.

        Returns:
            Audio [1, T * hop_length] and the fields of the next ``State``.
        """
        before = State(*state)
        recurrence = _Recurrence(self.model.decoder.gru, before.hidden)
        # Before the first frame it was as loud as then.
        known = torch.where(before.f0 > 0, before.loudness, loudness[:, :1])
        controls = self.model.controls(f0, loudness, recurrence, self.model.hear(f0, loudness, known))
        known = torch.cat([known, loudness], dim=1)[:, -before.loudness.shape[1] :]
        audible = harmonics_below_nyquist(f0, self.model.config.n_harmonics, self.model.audio.sample_rate)
        f0s = [before.f0, *f0.split(1, dim=1)]
        amplitudes = [before.harmonic_amplitudes, *(controls.harmonic_amplitudes * audible).split(1, dim=1)]
        magnitudes = [before.noise_magnitudes, *controls.noise_magnitudes.split(1, dim=1)]
        hops = noise.chunk(f0.shape[1], dim=1)
        phase, overlap, harmonic, filtered = before.phase, before.overlap, [before.delayed], []
        for t, hop in enumerate(hops):
            cycles, phase = self._cycles(f0s[t], f0s[t + 1], phase)
            harmonic.append(self._harmonics(cycles, amplitudes[t], amplitudes[t + 1]))
            hop = hop * (f0s[t].flatten(1) > 0)  # nothing sounds before the first frame
            ready, overlap = self._filter(hop, magnitudes[t], magnitudes[t + 1], overlap)
            filtered.append(ready)
        sound = torch.cat(harmonic, dim=1)
        n_samples = noise.shape[1]
        audio = sound[:, :n_samples] + torch.cat(filtered, dim=1)
        newest = (f0s[-1], amplitudes[-1], magnitudes[-1])
        return (audio, *State(recurrence.hidden, phase, known, *newest, overlap, sound[:, n_samples:]))

    def _cycles(self, f0: Tensor, next_f0: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fundamental's phase in cycles, 0..1, over a hop, [1, hop], and at its end in double precision."""
        here, there = (value.flatten().double() / self.model.audio.sample_rate for value in (f0, next_f0))
        within = phase + (here * self.held + (there - here) * self.rising) * (here > 0)
        wrapped = within - torch.floor(within)
        return wrapped.float()[None], wrapped[-1:]

    def _harmonics(self, cycles: Tensor, amplitudes: Tensor, next_amplitudes: Tensor) -> Tensor:
        here, there = amplitudes.transpose(1, 2), next_amplitudes.transpose(1, 2)  # (1, H, 1)
        sines = torch.sin(2 * math.pi * torch.remainder(self.numbers * cycles[:, None], 1.0))  # (1, H, hop)
        return (sines * (here + (there - here) * self.ramp)).sum(dim=1)

    def _filter(
        self, hop: Tensor, magnitudes: Tensor, next_magnitudes: Tensor, overlap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return filtered noise [1, hop], K - 1 samples late, and what it leaves for later, [1, taps - 1]."""
        ring = overlap.shape[1]
        fading = torch.stack([hop * (1 - self.ramp), hop * self.ramp], dim=1)  # (1, 2, hop)
        heard = nn.functional.pad(fading, (ring, ring))[..., self.heard]  # (1, 2, hop + taps - 1, taps)
        filters = torch.cat([magnitudes, next_magnitudes], dim=1) @ self.responses  # (1, 2, taps)
        sound = (heard @ filters[..., None])[..., 0].sum(dim=1)
        sound = sound + nn.functional.pad(overlap, (0, hop.shape[1]))
        return sound[:, : hop.shape[1]], sound[:, hop.shape[1] :]


class _Recurrence:
    """A GRU that goes on from a hidden state, written out a frame at a time; ``hidden`` is its state after a call."""

    def __init__(self, gru: nn.GRU, hidden: Tensor) -> None:
        self.gru = gru
        self.hidden = hidden

    def __call__(self, inputs: Tensor) -> Tensor:
        states = []
        for (weight_in, weight, bias_in, bias), state in zip(self.gru.all_weights, self.hidden.split(1)):
            state, outputs = state[0], []
            for frame in nn.functional.linear(inputs, weight_in, bias_in).unbind(dim=1):
                in_reset, in_update, in_candidate = frame.chunk(3, dim=-1)
                of_reset, of_update, of_candidate = nn.functional.linear(state, weight, bias).chunk(3, dim=-1)
                update = torch.sigmoid(in_update + of_update)
                candidate = torch.tanh(in_candidate + torch.sigmoid(in_reset + of_reset) * of_candidate)
                state = candidate + update * (state - candidate)
                outputs.append(state)
            inputs = torch.stack(outputs, dim=1)
            states.append(state)
        self.hidden = torch.stack(states)
        return inputs


# --- writing and reading --------------------------------------------------------------------------


def write_onnx(block_model: BlockModel, inputs: tuple[Tensor, ...], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # the exporter's remarks on torch's own code
        torch.onnx.export(
            block_model,
            inputs,
            path,
            input_names=["f0", "loudness", "noise", *(f"state_{name}" for name in State._fields)],
            output_names=["audio", *(f"next_{name}" for name in State._fields)],
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
    hop_length, state, blocks = block_model.model.audio.hop_length, block_model.start(), []
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
    state, seconds = block_model.start(), []
    for _ in range(n_blocks):
        started = time.perf_counter()
        _, *state = run(f0, loudness, noise, *state)
        seconds.append(time.perf_counter() - started)
    return {"median": 1000 * statistics.median(seconds), "p99": 1000 * sorted(seconds)[int(0.99 * n_blocks)]}


def export(model: NeuralGuitar, kind: str, target: Path, size: int) -> dict[str, Any]:
    """Write the model to ``target`` for blocks of ``size`` frames and a description beside it; return the description.

    Raises:
        ValueError: the decoder is no GRU, or the file does not equal the model.
        OSError: it cannot be written; what stood at ``target`` stays.
    """
    block_model = BlockModel(model).eval()
    inputs = (*make_curves(model, size), *block_model.start())
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
            for name, value in block_model.start()._asdict().items()
        },
    }


# --- command line ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export a model, with explicit state, for other hosts.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="shipped or from train.py")
    parser.add_argument("--format", choices=tuple(SUFFIXES), required=True)
    parser.add_argument("--output", type=Path, required=True, help="ends in .onnx or .pt2")
    parser.add_argument("--block_frames", type=int, default=1, help="frames of 10 ms a block (default 1)")
    args = parser.parse_args(argv)
    if args.output.suffix != SUFFIXES[args.format]:
        parser.error(f"--output should end in {SUFFIXES[args.format]}, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it")
    if not 1 <= args.block_frames <= 100:
        parser.error("--block_frames should be between 1 and 100")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        done = export(load_model(args.checkpoint), args.format, args.output, args.block_frames)
    except ModuleNotFoundError as error:
        log.error("export.py: the package %s is missing; run ./setup_env.sh", error.name)
        return 1
    except (ValueError, OSError) as error:
        log.error("export.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("export.py: stopped; nothing was replaced")
        return 130
    took, block = done["milliseconds_a_block"], 1000 * args.block_frames * done["hop_length"] / done["sample_rate"]
    print(
        f"{args.output}: {done['bytes'] / 1e6:.1f} MB, equals the Python model to {done['largest_difference']:.1g}, "
        f"{took['median']:.2f} ms a block of {block:g} ms (99 of 100: {took['p99']:.2f} ms), "
        f"{1000 * done['latency_samples'] / done['sample_rate']:g} ms of latency"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
