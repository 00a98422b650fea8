"""Measure training steps and CREPE on a GPU against the textbook step and torchcrepe, as Markdown tables.

    ./venv/bin/python benchmarks/gpu.py --json out/gpu.json

Each step waits until the GPU is done. Memory is the peak of a step, its model and its optimizer on the GPU.
In float32 PyTorch lets cuDNN use TF32 in GRUs and in torchcrepe's convolutions, but not in our CREPE.
"""

import argparse
import gc
import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from config import get_device
from measuring import describe_machine, format_table, summarize_ratio, time_in_turns
from sound.atomic_files import write_text
from sound.console import as_command, command_parser
from speed import Workload, build_crepe, build_models, build_textbook_loss, make_batch, make_step
from training.trainer import PRECISIONS, build_loss, compilable_layers, is_compile_error

log = logging.getLogger("gpu")


def build_step(
    load: Workload, device: torch.device, precision: str = "float32", compiled: bool = False, twin: bool = False
) -> Callable[[], torch.Tensor]:
    """Return training steps; each copies the loss to the CPU, so it has ended when the function returns."""
    config = load.config
    model = build_models(config)["textbook" if twin else "ours"].to(device)
    for layer in compilable_layers(model) if compiled else []:
        layer.compile()
    loss = build_textbook_loss(config) if twin else build_loss(config).to(device)
    batch = {name: values.to(device) for name, values in make_batch(load).items()}
    step = make_step(model, loss, config, batch, PRECISIONS[precision])
    return lambda: step().cpu()


def measure_preset(preset: str, load: Workload, device: torch.device, n_rounds: int) -> list[dict]:
    """Measure a preset in both precisions, and compiled if it has layers to compile."""
    load, rows = replace(load, config_name=preset), []
    ways = (False, True) if compilable_layers(build_models(load.config)["ours"]) else (False,)
    for precision, compiled in [(precision, compiled) for precision in PRECISIONS for compiled in ways]:
        try:
            rows.append(measure_step(load, device, n_rounds, precision, compiled))
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or is_compile_error(error)):
                raise
            reason = str(error).strip().splitlines()[0]
            log.warning("%s, %s, compiled %s is left out: %s", preset, precision, compiled, reason)
    return rows


def measure_step(load: Workload, device: torch.device, n_rounds: int, precision: str, compiled: bool) -> dict:
    """Compare a training step with the textbook's in float32."""
    builders = {
        "ours": lambda: build_step(load, device, precision, compiled),
        "textbook": lambda: build_step(load, device, twin=True),
    }
    memory = [measure_memory(build, device) for build in builders.values()]
    seconds = time_in_turns({name: build() for name, build in builders.items()}, n_rounds)
    ours, textbook = map(statistics.median, seconds.values())
    return {
        "preset": load.config_name,
        "precision": precision,
        "compiled": compiled,
        "seconds": ours,
        "samples_a_second": load.batch_size * load.crop_seconds * load.config.audio.sample_rate / ours,
        "textbook_seconds": textbook,
        "ratio": summarize_ratio(*seconds.values()),
        "memory_mb": memory,
    }


def measure_memory(build: Callable[[], Callable], device: torch.device) -> float | None:
    """Return the peak memory in MB of two steps, their model and optimizer on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    build()()  # CUDA libraries allocate memory at their first use and keep it
    gc.collect()  # frees compiled code
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = build()
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def measure_crepe(model: str, load: Workload, device: torch.device, n_rounds: int) -> dict:
    """Compare this project's CREPE with torchcrepe on a voice."""
    works = build_crepe(model, device)(replace(load, crop_seconds=load.render_seconds))
    seconds = time_in_turns(works, n_rounds)
    ours, theirs = map(statistics.median, seconds.values())
    ratio = summarize_ratio(*seconds.values())
    return {"model": model, "seconds": ours, "torchcrepe_seconds": theirs, "ratio": ratio}


def format_report(steps: list[dict], crepe: list[dict]) -> str:
    """Return both tables as Markdown."""
    step_rows = [
        [
            row["preset"],
            row["precision"],
            "yes" if row["compiled"] else "no",
            f"{1000 * row['seconds']:.1f} ms",
            f"{row['samples_a_second']:,.0f}",
            f"{1000 * row['textbook_seconds']:.1f} ms",
            _format_ratio(row),
            "" if row["memory_mb"][0] is None else "{:.0f} / {:.0f} MB".format(*row["memory_mb"]),
        ]
        for row in steps
    ]
    crepe_rows = [
        [
            row["model"],
            f"{1000 * row['seconds']:.1f} ms",
            f"{1000 * row['torchcrepe_seconds']:.1f} ms",
            _format_ratio(row),
        ]
        for row in crepe
    ]
    heads = ["preset", "precision", "compiled", "step", "samples a second", "textbook step", "faster", "peak memory"]
    return f"{format_table(heads, step_rows)}\n\n{format_table(['CREPE', 'ours', 'torchcrepe', 'faster'], crepe_rows)}"


def _format_ratio(row: dict) -> str:
    return "{median:.2f} x ({min:.2f} to {max:.2f})".format(**row["ratio"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure training steps and CREPE on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a dry run (default: cuda)")
    parser.add_argument("--presets", nargs="+", default=["tiny", "solo", "deep"], help="default: tiny solo deep")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each step (default: 15)")
    parser.add_argument("--batch_size", type=int, default=16, help="crops per step (default: 16)")
    parser.add_argument("--crop_seconds", type=float, default=1.0, help="seconds per crop (default: 1)")
    parser.add_argument("--voice_seconds", type=float, default=60.0, help="seconds of voice for CREPE (default: 60)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if min(args.rounds, args.batch_size) < 1 or min(args.crop_seconds, args.voice_seconds) < 0.1:
        parser.error("--rounds and --batch_size should be at least 1, --crop_seconds and --voice_seconds 0.1")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = get_device(args.device)
    load = Workload(batch_size=args.batch_size, crop_seconds=args.crop_seconds, render_seconds=args.voice_seconds)
    presets = tqdm(args.presets, unit="preset", leave=False)
    steps = [row for preset in presets for row in measure_preset(preset, load, device, args.rounds)]
    crepe = [measure_crepe(model, load, device, args.rounds) for model in ("tiny", "full")]
    machine = describe_machine(device)
    print(
        f"{machine}\nbatches of {args.batch_size} x {args.crop_seconds:g} s, {args.voice_seconds:g} s of voice; "
        f"medians of {args.rounds} runs (smallest to largest)\n\n{format_report(steps, crepe)}"
    )
    if args.json:
        write_text(args.json, json.dumps({"machine": machine, "steps": steps, "crepe": crepe}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
