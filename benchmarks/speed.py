"""Compare speed and memory with the textbook implementation, nn.GRU, torchcrepe and auraloss, in one run.

    ./venv/bin/python benchmarks/speed.py
    ./venv/bin/python benchmarks/speed.py --quick --only bank step --threads 2

All implementations take turns in one process. A ratio is the median over neighbouring runs, with minimum and maximum.
Memory is the growth of a new process up to its peak (Linux). The textbook implementation is
``tests/textbook.py``; auraloss is left out where it is not installed.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import DEFAULT_PRESET, Config, load_config
from loss import StftLoss
from measuring import (
    describe_machine,
    format_table,
    measure_growth,
    run_in_fresh_process,
    summarize_ratio,
    time_in_turns,
)
from model import NeuralGuitar, scale_f0, scale_loudness
from sound import crepe
from sound.atomic_files import write_text
from sound.audio_files import load_audio
from sound.console import as_command, command_parser
from synth import harmonic_bank
from tests import textbook
from training.trainer import build_loss, train_step
from training.training_state import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
_FEATURE_RATE, _FEATURE_HOP = 16000, 160
_CREPE_BATCH = 640  # frames; a minute at once takes 12 GB with the full network
_CPU = torch.device("cpu")
Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Workload:
    """Sizes of the computations."""

    config_name: str = DEFAULT_PRESET
    batch_size: int = 16
    crop_seconds: float = 1.0  # of each item of the batch
    render_seconds: float = 10.0  # of inference and Viterbi search

    @property
    def config(self) -> Config:
        return load_config(preset=self.config_name)


# --- the textbook model ---------------------------------------------------------------------------


class TextbookBank(nn.Module):
    """The textbook's harmonic bank, as a replacement for HarmonicSynthesizer."""

    def __init__(self, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.sample_rate, self.hop_length = sample_rate, hop_length

    def forward(self, f0: Tensor, harmonic_amplitudes: Tensor) -> Tensor:
        return textbook.harmonic_bank(f0, harmonic_amplitudes, self.sample_rate, self.hop_length)


class PlainGru(nn.Module):
    """PyTorch's GRU, as a replacement for GruDecoder."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, inputs: Tensor) -> Tensor:
        return self.gru(inputs)[0]


def build_models(config: Config) -> dict[str, NeuralGuitar]:
    """Return our model, and one with the same weights, PyTorch's GRU and the textbook's bank."""
    models = {}
    for name in ("ours", "textbook"):
        torch.manual_seed(0)
        models[name] = NeuralGuitar(config.model, config.audio)
    twin = models["textbook"]
    twin.harmonic_synthesizer = TextbookBank(config.audio.sample_rate, config.audio.hop_length)
    if config.model.decoder == "gru":
        twin.decoder = PlainGru(twin.decoder.gru)
    return models


def build_textbook_loss(config: Config) -> Callable[[Tensor, Tensor], StftLoss]:
    """Return the loss computed with torch.stft and autograd."""
    settings = config.loss
    resolutions = list(zip(settings.fft_sizes, settings.hop_sizes, settings.win_lengths))

    def compare(prediction: Tensor, target: Tensor, bandwidth: None = None) -> StftLoss:
        total = textbook.stft_loss(prediction, target, resolutions, settings.mag_loss_weight, settings.eps)
        return StftLoss(total, total.detach(), total.detach())

    return compare


# --- comparisons: each function returns "ours" and the others, by name ------------------------


def build_bank(load: Workload) -> dict[str, Work]:
    """Compare forward and backward; as in training, f0 needs no gradient."""
    config = load.config
    f0, _ = make_curves(load.batch_size, load.crop_seconds, config)
    amplitudes = torch.rand(*f0.shape[:2], config.model.n_harmonics).softmax(dim=-1).requires_grad_()
    gradient = torch.randn(load.batch_size, f0.shape[1] * config.audio.hop_length)

    def run(bank: Callable[..., Tensor]) -> Tensor:
        amplitudes.grad = None
        audio = bank(f0, amplitudes, config.audio.sample_rate, config.audio.hop_length)
        audio.backward(gradient)
        return audio.detach()

    return {"ours": lambda: run(harmonic_bank), "textbook": lambda: run(textbook.harmonic_bank)}


def build_stft_loss(load: Workload) -> dict[str, Work]:
    """Compare forward and backward, with silence around the sound, because auraloss pads by reflection."""
    config, settings = load.config, load.config.loss
    n_samples = config.audio.seconds_to_frames(load.crop_seconds) * config.audio.hop_length
    sounds = 0.1 * torch.randn(2, load.batch_size, n_samples, generator=torch.Generator().manual_seed(0))
    prediction, target = torch.nn.functional.pad(sounds, 2 * [max(settings.fft_sizes) // 2])
    prediction.requires_grad_()

    def run(compare: Callable[[], Tensor]) -> Tensor:
        prediction.grad = None
        total = compare()
        total.backward()
        return total.detach()

    ours, plain = build_loss(config), build_textbook_loss(config)
    works = {
        "ours": lambda: run(lambda: ours(prediction, target).total),
        "torch.stft, autograd": lambda: run(lambda: plain(prediction, target).total),
    }
    if importlib.util.find_spec("auraloss"):
        from auraloss.freq import MultiResolutionSTFTLoss

        sizes = settings.fft_sizes, settings.hop_sizes, settings.win_lengths
        theirs = MultiResolutionSTFTLoss(*sizes, w_log_mag=settings.mag_loss_weight)
        works["auraloss"] = lambda: run(lambda: theirs(prediction[:, None], target[:, None]))
    return works


def build_step(load: Workload) -> dict[str, Work]:
    """Compare a complete training step, also with forward and backward of PyTorch's GRU only."""
    config, batch = load.config, make_batch(load)
    models = build_models(config)
    gru, inputs = build_gru(config), _decoder_inputs(batch["f0"], batch["loudness"])

    def run_gru() -> Tensor:
        gru.zero_grad(set_to_none=True)
        hidden, _ = gru(inputs)
        hidden.sum().backward()
        return hidden.detach()

    works = {
        "ours": make_step(models["ours"], build_loss(config), config, batch),
        "textbook": make_step(models["textbook"], build_textbook_loss(config), config, batch),
    }
    return works | ({"nn.GRU alone": run_gru} if gru else {})


def build_inference(load: Workload) -> dict[str, Work]:
    """Compare curves to sound, as in transfer.py, also with PyTorch's GRU only."""
    config = load.config
    f0, loudness = make_curves(1, load.render_seconds, config)
    gru, inputs = build_gru(config), _decoder_inputs(f0, loudness)

    def play(model: NeuralGuitar) -> Work:
        return torch.inference_mode()(lambda: model(f0, loudness, torch.Generator().manual_seed(0)))

    works = {name: play(model.eval()) for name, model in build_models(config).items()}
    return works | ({"nn.GRU alone": torch.inference_mode()(lambda: gru(inputs)[0])} if gru else {})


def build_crepe(model: str, device: torch.device = _CPU) -> Callable[[Workload], dict[str, Work]]:
    """Return a function that compares CREPE "tiny" or "full" on ``crop_seconds`` of a voice."""

    def build(load: Workload) -> dict[str, Work]:
        torchcrepe, audio = import_torchcrepe(), read_voice(load.crop_seconds)

        def theirs() -> Tensor:
            sound = torch.from_numpy(audio)[None]
            frames = torchcrepe.preprocess(sound, _FEATURE_RATE, _FEATURE_HOP, _CREPE_BATCH, device)
            return torch.cat([torchcrepe.infer(batch, model, device=device).cpu() for batch in frames])

        def ours() -> Tensor:
            return torch.from_numpy(crepe.crepe_activation(audio, _FEATURE_HOP, model, device))

        return {"ours": ours, "torchcrepe": torch.inference_mode()(theirs)}

    return build


def build_viterbi(load: Workload) -> dict[str, Work]:
    """Compare the Viterbi search through the activations of ``render_seconds`` of a voice."""
    torchcrepe = import_torchcrepe()
    activation = crepe.crepe_activation(read_voice(load.render_seconds), _FEATURE_HOP)
    batched = torch.from_numpy(activation.T[None].copy())
    return {
        "ours": lambda: torch.from_numpy(crepe._best_path(activation)),
        "torchcrepe": lambda: torchcrepe.decode.viterbi(batched)[0][0],
    }


PARTS: dict[str, tuple[str, Callable[[Workload], dict[str, Work]]]] = {
    "bank": ("harmonic bank, forward + backward", build_bank),
    "loss": ("four-resolution loss, forward + backward", build_stft_loss),
    "step": ("training step", build_step),
    "inference": ("model inference", build_inference),
    "crepe_tiny": ("CREPE tiny", build_crepe("tiny")),
    "crepe_full": ("CREPE full", build_crepe("full")),
    "viterbi": ("Viterbi search", build_viterbi),
}


# --- inputs ---------------------------------------------------------------------------------------


def make_curves(n_batch: int, seconds: float, config: Config) -> tuple[Tensor, Tensor]:
    """Return f0 in Hz and loudness in dB (-40 to -10), [B, T, 1] each.

    Each item, or each second of a single one, is a note with vibrato, anywhere in the range of a guitar: the higher it
    is, the fewer harmonics lie below Nyquist.
    """
    generator, guitar = torch.Generator().manual_seed(0), config.instrument("guitar")
    n_frames = config.audio.seconds_to_frames(seconds)
    n_notes = 1 + n_frames // round(config.audio.frame_rate) if n_batch == 1 else 1
    note = guitar.f0_min * (guitar.f0_max / guitar.f0_min) ** torch.rand(n_batch, n_notes, 1, generator=generator)
    note = note.repeat_interleave(-(-n_frames // n_notes), dim=1)[:, :n_frames]
    beat = torch.arange(n_frames)[:, None] / config.audio.frame_rate  # (T, 1) in seconds
    f0 = note * (1 + 0.01 * torch.sin(2 * torch.pi * 5.5 * beat))
    return f0, -40 + 30 * torch.rand(n_batch, n_frames, 1, generator=generator)


def make_batch(load: Workload) -> dict[str, Tensor]:
    """Return a training batch as from the data loader."""
    f0, loudness = make_curves(load.batch_size, load.crop_seconds, load.config)
    n_samples = f0.shape[1] * load.config.audio.hop_length
    audio = 0.1 * torch.randn(load.batch_size, n_samples, generator=torch.Generator().manual_seed(0))
    return {"f0": f0, "loudness": loudness, "audio": audio}


def make_step(
    model: NeuralGuitar,
    loss_function: Callable[[Tensor, Tensor], StftLoss],
    config: Config,
    batch: dict[str, Tensor],
    precision: torch.dtype = torch.float32,
) -> Work:
    """Return a function that does one training step and returns its loss."""
    optimizer, max_grad_norm = build_optimizer(model, config.train), config.train.max_grad_norm

    def step() -> Tensor:
        noise = torch.Generator(batch["f0"].device).manual_seed(0)
        losses = train_step(model, loss_function, optimizer, batch, max_grad_norm, noise, precision=precision)
        return losses["total_loss"]

    return step


def build_gru(config: Config) -> nn.GRU | None:
    """Return PyTorch's GRU of the decoder's size, or None if the decoder is not a GRU."""
    if config.model.decoder != "gru":
        return None
    return nn.GRU(2, config.model.hidden_size, config.model.num_layers, batch_first=True)


def _decoder_inputs(f0: Tensor, loudness: Tensor) -> Tensor:
    return torch.cat([scale_f0(f0), scale_loudness(loudness)], dim=-1)


def read_voice(seconds: float) -> np.ndarray:
    """Return whole frames of the hum, repeated if it is too short: [N] at 16 kHz."""
    hum = load_audio(ROOT / "examples" / "hum.wav", _FEATURE_RATE)
    return np.resize(hum, round(seconds * _FEATURE_RATE) // _FEATURE_HOP * _FEATURE_HOP)


def import_torchcrepe() -> types.ModuleType:
    """Import torchcrepe without torchaudio, which it uses only for files and which may fail to load on a CPU."""
    stand_in = types.ModuleType("torchaudio")
    sys.modules.setdefault("torchaudio", stand_in)
    import torchcrepe

    if sys.modules["torchaudio"] is stand_in:
        del sys.modules["torchaudio"]
    return torchcrepe


# --- measuring ------------------------------------------------------------------------------------


def measure(key: str, load: Workload, args: argparse.Namespace) -> list[dict]:
    """Return a row for each other implementation."""
    title, build = PARTS[key]
    seconds = time_in_turns(build(load), args.rounds, 2.0 if args.quick else math.inf)
    memory = {}
    if not args.quick and Path("/proc/self/clear_refs").exists():
        memory = {name: run_in_fresh_process(grow, key, name, load, args.threads) for name in seconds}
    return [
        {
            "part": title,
            "reference": name,
            "seconds": float(np.median(seconds["ours"])),
            "reference_seconds": float(np.median(others)),
            "ratio": summarize_ratio(seconds["ours"], others),
            "memory_mb": [memory["ours"], memory[name]] if memory else None,
        }
        for name, others in seconds.items()
        if name != "ours"
    ]


def grow(key: str, name: str, load: Workload, threads: int) -> float:
    """Return the peak memory in MB of two runs, after a small run that allocates permanent memory."""
    torch.set_num_threads(threads)
    build = PARTS[key][1]
    build(replace(load, batch_size=1, crop_seconds=0.1, render_seconds=0.1))[name]()
    work = build(load)[name]
    return measure_growth(lambda: (work(), work()))


def measure_preprocessing(minutes: float, num_workers: int) -> str:
    """Run preprocess.py on files of 30 s, including its start; return a description of its speed."""
    n_files = max(1, round(2 * minutes))
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        source, target = Path(folder, "raw"), Path(folder, "processed")
        source.mkdir()
        for number in range(n_files):
            soundfile.write(source / f"{number}.wav", np.roll(read_voice(30.0), 100 * number), _FEATURE_RATE)
        command = [sys.executable, ROOT / "preprocess.py", "--instrument", "trumpet", "--num_workers", str(num_workers)]
        started = time.perf_counter()
        subprocess.run([*command, "--input_dir", source, "--output_dir", target], capture_output=True, check=True)
        seconds = time.perf_counter() - started
    rate = f"{30 * n_files / seconds:.1f} hours of sound an hour"
    return f"preprocess.py: {rate} ({n_files / 2:g} min in {seconds:.0f} s, {num_workers} workers)"


def format_row(row: dict) -> list[str]:
    """Return the cells of a row of the table."""
    low, middle, high = (row["ratio"][name] for name in ("min", "median", "max"))
    ratio = f"{middle:.2f} x ({low:.2f} to {high:.2f})"
    memory = "{:.0f} / {:.0f} MB".format(*row["memory_mb"]) if row["memory_mb"] else ""
    ours, theirs = (f"{1000 * row[name]:.1f} ms" for name in ("seconds", "reference_seconds"))
    return [row["part"], ours, f"{theirs}, {row['reference']}", ratio, memory]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Compare speed and memory with the textbook implementation and peers.")
    parser.add_argument("--quick", action="store_true", help="few rounds, no memory, no preprocessing: under a minute")
    parser.add_argument("--rounds", type=int, help="runs of each implementation (default: 15, with --quick up to 3)")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "preprocess"], help="only these parts")
    parser.add_argument("--preprocess_minutes", type=float, default=4.0, help="of sound (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    for field in fields(Workload):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help="default: %(default)s")
    args = parser.parse_args(argv)
    args.rounds = args.rounds if args.rounds is not None else 3 if args.quick else 15
    if min(args.rounds, args.threads, args.batch_size) < 1:
        parser.error("--rounds, --threads and --batch_size should be at least 1")
    if min(args.crop_seconds, args.render_seconds) < 0.1:
        parser.error("--crop_seconds and --render_seconds should be at least 0.1")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    load = Workload(**{field.name: getattr(args, field.name) for field in fields(Workload)})
    wanted = args.only or [*PARTS, *([] if args.quick else ["preprocess"])]
    rows = [row for key in tqdm(PARTS, leave=False) if key in wanted for row in measure(key, load, args)]
    machine = describe_machine()
    print(
        f"{machine}\npreset {load.config_name}, batch {load.batch_size} x {load.crop_seconds:g} s, inference and "
        f"Viterbi {load.render_seconds:g} s; medians of up to {args.rounds} runs (smallest to largest)\n"
    )
    print(format_table(["part", "ours", "reference", "reference / ours", "peak memory"], map(format_row, rows)))
    if "preprocess" in wanted:
        print(measure_preprocessing(args.preprocess_minutes, args.threads))
    if args.json:
        write_text(args.json, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
