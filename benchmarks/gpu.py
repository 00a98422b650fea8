"""Measure training steps and CREPE on a GPU, beside the textbook step and torchcrepe, as a table for the README.

    ./venv/bin/python scripts/benchmark_gpu.py --json out/gpu.json

Ours and the reference take turns in one process, as in ``benchmark.py``, and each turn waits until the GPU is done.
Memory is what a step takes on the GPU at its peak with its model and optimizer, each variant by itself.

Where float32 is asked for PyTorch lets cuDNN multiply in TF32, three digits: in every GRU, and in the convolutions of
torchcrepe. There are none in ours, so that the two differ by as much.
"""

import argparse
import dataclasses
import gc
import json
import logging
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from config import get_device, load_config
from sound.atomic_files import write_text
from speed import Part, Workload, measure
from speed_parts import PlainGru, Work, build_models, build_textbook_loss, make_batch, make_step
from speed_peers import build_network
from training.optimization import PRECISIONS, build_loss, compilable_layers, is_compile_error

log = logging.getLogger("benchmark_gpu")


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a training step is made."""

    preset: str
    precision: str = "float32"
    compiled: bool = False
    textbook: bool = False

    def build(self, load: Workload, device: torch.device) -> Work:
        """Return training steps on the device; the loss comes back to the CPU, so a step is over when it returns."""
        load = dataclasses.replace(load, config_name=self.preset)
        config = load.config
        model = build_models(config)["reference" if self.textbook else "ours"]
        if self.textbook and config.model.decoder == "gru":
            model.decoder = PlainGru(model.decoder.gru)
        model = model.to(device)
        for layer in compilable_layers(model) if self.compiled else []:
            layer.compile()
        loss = build_textbook_loss(config) if self.textbook else build_loss(config).to(device)
        batch = {name: values.to(device) for name, values in make_batch(load).items()}
        step = make_step(model, loss, config, batch, PRECISIONS[self.precision])
        return lambda: step().cpu()


def list_variants(presets: list[str]) -> list[Variant]:
    """List what is measured of each preset: both precisions, and compiled where there is anything to compile."""
    variants = []
    for preset in presets:
        model = build_models(load_config(preset=preset))["ours"]
        ways = (False, True) if compilable_layers(model) else (False,)
        variants += [Variant(preset, precision, compiled) for precision in PRECISIONS for compiled in ways]
    return variants


def measure_steps(presets: list[str], load: Workload, device: torch.device, n_rounds: int) -> list[dict[str, Any]]:
    """Measure all variants that this machine has a compiler and the memory for; of the others it says why not."""
    rows = []
    for variant in tqdm(list_variants(presets), unit="variant", leave=False):
        try:
            rows.append(measure_step(variant, load, device, n_rounds))
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or is_compile_error(error)):
                raise
            log.warning("%s is left out: %s", variant, str(error).strip().splitlines()[0])
    return rows


def measure_step(variant: Variant, load: Workload, device: torch.device, n_rounds: int) -> dict[str, Any]:
    """Measure a variant beside the textbook's step in float32.

    Returns:
        What ``benchmark.measure`` does, the variant, samples of sound a second, and bytes at the peak (None on a CPU).
    """
    textbook = Variant(variant.preset, textbook=True)
    memory = {name: measure_memory(each, load, device) for name, each in (("ours", variant), ("reference", textbook))}
    part = Part(
        "step", variant.preset, "textbook",
        lambda load: {"ours": variant.build(load, device), "reference": textbook.build(load, device)},
    )  # fmt: skip
    result = measure(part, load, n_rounds)
    audio = load.config.audio
    n_samples = load.batch_size * audio.seconds_to_frames(load.crop_seconds) * audio.hop_length
    rate = n_samples / result["seconds"]["ours"]["median"]
    return {**result, "variant": dataclasses.asdict(variant), "samples_a_second": rate, "bytes": memory}


def measure_memory(variant: Variant, load: Workload, device: torch.device) -> int | None:
    """Return the bytes that two steps, their model and optimizer take on a GPU at their peak."""
    if device.type != "cuda":
        return None
    variant.build(load, device)()  # CUDA's libraries take memory when they are first used, and keep it
    gc.collect()  # what was compiled goes only now
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = variant.build(load, device)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated(device) - before


def measure_crepe(model: str, load: Workload, device: torch.device, n_rounds: int) -> dict[str, Any]:
    """Measure CREPE's network, with the weights "tiny" or "full", beside torchcrepe's."""
    load = dataclasses.replace(load, crop_seconds=load.render_seconds)
    return measure(Part(model, f"CREPE {model}", "torchcrepe", build_network(model, device)), load, n_rounds)


def describe_device(device: torch.device) -> dict[str, str]:
    """Say on what and when this was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat()}


def format_report(report: dict[str, Any]) -> str:
    """Lay a report out as Markdown."""
    load, machine = report["workload"], report["machine"]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, {machine['date']}: batches of {load['batch_size']} x "
        f"{load['crop_seconds']:g} s, medians of {report['n_rounds']} rounds (smallest to largest)",
        "",
        "| preset | precision | compiled | step | samples a second | textbook step | faster | peak memory |",
        "|---|---|---|---|---|---|---|---|",
        *map(_step_row, report["steps"]),
        "",
        f"| CREPE, {load['render_seconds']:g} s of voice | ours | torchcrepe | faster | largest difference |",
        "|---|---|---|---|---|",
        *map(_crepe_row, report["crepe"]),
    ]
    return "\n".join(lines)


def _step_row(row: dict[str, Any]) -> str:
    variant, memory = row["variant"], row["bytes"]
    names = (variant["preset"], variant["precision"], "yes" if variant["compiled"] else "no")
    spent = "-" if memory["ours"] is None else " against ".join(f"{value / 2**20:.0f}" for value in memory.values())
    times = (_milliseconds(row, "ours"), f"{row['samples_a_second']:,.0f}", _milliseconds(row, "reference"))
    return f"| {' | '.join((*names, *times, _faster(row), spent))} |"


def _crepe_row(row: dict[str, Any]) -> str:
    cells = (row["key"], _milliseconds(row, "ours"), _milliseconds(row, "reference"), _faster(row))
    return f"| {' | '.join(cells)} | {row['difference']:.0e} |"


def _milliseconds(row: dict[str, Any], name: str) -> str:
    return f"{1000 * row['seconds'][name]['median']:.1f} ms"


def _faster(row: dict[str, Any]) -> str:
    return "{median:.1f} x ({min:.1f} to {max:.1f})".format(**row["ratio"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure training steps and CREPE on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try it out (default cuda)")
    parser.add_argument("--presets", nargs="+", default=["tiny", "solo", "deep"], help="default: tiny solo deep")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant (default 15)")
    parser.add_argument("--batch_size", type=int, default=16, help="crops a step (default 16)")
    parser.add_argument("--crop_seconds", type=float, default=1.0, help="of each crop (default 1)")
    parser.add_argument("--voice_seconds", type=float, default=60.0, help="for CREPE (default 60)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args(argv)
    if min(args.rounds, args.batch_size) < 1:
        parser.error("--rounds and --batch_size must be at least 1")
    if min(args.crop_seconds, args.voice_seconds) < 0.05:
        parser.error("--crop_seconds and --voice_seconds must be at least 0.05")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for."""
    device = get_device(args.device)
    load = Workload(batch_size=args.batch_size, crop_seconds=args.crop_seconds, render_seconds=args.voice_seconds)
    return {
        "machine": describe_device(device),
        "workload": dataclasses.asdict(load),
        "n_rounds": args.rounds,
        "steps": measure_steps(args.presets, load, device, args.rounds),
        "crepe": [measure_crepe(model, load, device, args.rounds) for model in ("tiny", "full")],
    }


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = run(args)
        print(format_report(report))
        if args.json:
            write_text(args.json, json.dumps(report, indent=2) + "\n")
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        log.error("benchmark_gpu.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("benchmark_gpu.py: stopped")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
