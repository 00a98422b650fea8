"""Measure speed and memory beside the textbook implementation, torchcrepe and auraloss, in one run.

    ./venv/bin/python scripts/benchmark.py --json out/benchmark.json
    ./venv/bin/python scripts/benchmark.py --quick --threads 2

Ours and the reference take turns (A B A B ...) in one process, so that a busy machine slows both. A
ratio is the median of the ratios of neighbours, with the smallest and the largest behind it. Where
there is a floor (PyTorch's own GRU of the model's size, alone) it takes its turn too.

Memory is the growth of the resident set up to its peak, over what the imports, the inputs and a
miniature run left there, and, where there is a goal for that, over the imports alone. Each variant
is measured in a fresh process of its own, on Linux.

To measure one thing more, add a ``Part`` to ``PARTS`` in ``benchmark_parts.py``, or in ``benchmark_peers.py``.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import speed_parts as benchmark_parts
import speed_peers as benchmark_peers
from sound.atomic_files import write_text
from speed_parts import Part, Workload
from speed_preprocess import measure_preprocessing

PARTS = (*benchmark_parts.PARTS, *benchmark_peers.PARTS)
_QUICK_SECONDS = 2.0  # for the rounds of a part
log = logging.getLogger("benchmark")

# --- measuring ------------------------------------------------------------------------------------


def measure(part: Part, load: Workload, n_rounds: int, budget: float = math.inf) -> dict[str, Any]:
    """Let the variants of a part take turns for ``n_rounds`` rounds, or until so many seconds are spent.

    Returns:
        Seconds of every round and their summary for each variant, the ratios, whether the goal is met
        (None away from the default workload), and the largest difference between the two results.
    """
    works = part.build(load)
    first = {name: work() for name, work in works.items()}  # warms up, and shows that both do the same
    seconds = {name: [] for name in works}
    for _ in tqdm(range(n_rounds), desc=part.key, unit="round", leave=False):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
        if sum(map(sum, seconds.values())) > budget:
            break
    ratio = _summary([theirs / ours for ours, theirs in zip(seconds["ours"], seconds["reference"])])
    result = {
        "key": part.key,
        "name": part.name,
        "reference": part.reference,
        "seconds": {name: {**_summary(values), "rounds": values} for name, values in seconds.items()},
        "ratio": ratio,
        **_judge("goal", part.goal, ratio["median"], load),
        "difference": (first["ours"] - first["reference"]).abs().max().item(),
    }
    if "floor" in seconds:
        result["over_floor"] = _summary([ours / floor for ours, floor in zip(seconds["ours"], seconds["floor"])])
        result |= _judge("floor_goal", part.floor_goal, result["over_floor"]["median"], load, most=True)
    return result


def measure_memory(part: Part, load: Workload, threads: int) -> dict[str, Any]:
    """Return the bytes by which each variant makes a fresh process grow at its peak, and their ratio.

    ``bytes_over_imports`` is the growth over what the imports left there.
    """
    grown, over_imports = {}, {}
    for name in ("ours", "reference"):
        command = [sys.executable, __file__, "--grow", name, "--only", part.key, "--threads", str(threads)]
        flags = [f"--{field}={value}" for field, value in dataclasses.asdict(load).items()]
        answer = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
        grown[name], over_imports[name] = map(int, answer.stdout.split())
    ratio = max(grown["reference"], 2**20) / max(grown["ours"], 2**20)  # what is under 1 MiB is chance
    return {
        "bytes": grown,
        "memory_ratio": ratio,
        **_judge("memory_goal", part.memory_goal, ratio, load),
        "bytes_over_imports": over_imports,
        **_judge("imports_goal", part.imports_goal, over_imports["ours"] / 1e6, load, most=True),
    }


def grow(part: Part, variant: str, load: Workload) -> tuple[int, int]:
    """Run one variant twice in this process, fresh from its imports.

    Returns:
        By how many bytes its resident set grew at its peak: over that before the two runs, and over the imports.
    """
    imports = _resident("VmRSS")
    part.build(dataclasses.replace(load, batch_size=1, crop_seconds=0.1, render_seconds=0.1))[variant]()
    work = part.build(load)[variant]
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak of the imports
    before = _resident("VmRSS")
    for _ in range(2):
        work()
    peak = _resident("VmHWM")
    return peak - before, peak - imports


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"this kernel does not report {field}")


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _judge(name: str, goal: float | None, ratio: float, load: Workload, most: bool = False) -> dict[str, Any]:
    judged = goal is not None and load == Workload()
    return {name: goal, f"{name}_met": (ratio <= goal if most else ratio >= goal) if judged else None}


def describe_machine() -> dict[str, Any]:
    """Say where and when this was measured."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # others at work before us
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- the table ------------------------------------------------------------------------------------


def format_table(report: dict[str, Any]) -> str:
    """Lay a report out as text."""
    rows = [("part", "ours", "reference", "ratio", "goal")]
    for part in report["parts"]:
        rows += _rows(part)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    machine, load = report["machine"], report["workload"]
    head = (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, "
        f"{machine['date'][:10]}\n"
        f"preset {load['config_name']}, batch {load['batch_size']} x {load['crop_seconds']:g} s, "
        f"inference of {load['render_seconds']:g} s; medians of up to {report['n_rounds']} rounds (smallest to largest)"
    )
    missing = [f"{name}: ./venv/bin/python -m pip install {name}, and it has a row" for name in report["missing"]]
    return "\n".join(
        [head, "", lines[0], "-" * len(lines[0]), *lines[1:], *_preprocessing_line(report), *missing]
    )


def _preprocessing_line(report: dict[str, Any]) -> list[str]:
    if "preprocessing" not in report:
        return []
    found = report["preprocessing"]
    rate = f"{found['hours_an_hour']:.1f} hours of sound an hour"
    return [f"preprocess.py: {rate} ({found['minutes']:g} min in {found['seconds']:.0f} s, {found['workers']} workers)"]


def _rows(part: dict[str, Any]) -> list[tuple[str, ...]]:
    seconds, ratio = part["seconds"], part["ratio"]
    theirs = f"{_milliseconds(seconds['reference'])}, {part['reference']}"
    times = f"{ratio['median']:.1f} x faster ({ratio['min']:.1f} to {ratio['max']:.1f})"
    rows = [(part["name"], _milliseconds(seconds["ours"]), theirs, times, _verdict(part, "goal"))]
    if "bytes" in part:
        ours, theirs = (f"{part['bytes'][name] / 2**20:.0f} MiB" for name in ("ours", "reference"))
        less = f"{part['memory_ratio']:.1f} x less"
        rows.append(("  peak memory", ours, theirs, less, _verdict(part, "memory_goal")))
        if part["imports_goal"] is not None:
            ours, theirs = (f"{part['bytes_over_imports'][name] / 1e6:.0f} MB" for name in ("ours", "reference"))
            rows.append(("  peak over the imports", ours, theirs, "", _verdict(part, "imports_goal", "MB")))
    if "over_floor" in part:
        over = f"{part['over_floor']['median']:.2f} x the floor"
        rows.append(("  floor: its GRU alone", _milliseconds(seconds["floor"]), "", over, _verdict(part, "floor_goal")))
    return rows


def _milliseconds(seconds: dict[str, float]) -> str:
    low, middle, high = (1000 * seconds[name] for name in ("min", "median", "max"))
    digits = 0 if middle >= 10 else 1
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def _verdict(part: dict[str, Any], name: str, unit: str = "x") -> str:
    if part[name] is None:
        return ""
    verdict = {True: "met", False: "NOT met", None: "not judged at this size"}[part[f"{name}_met"]]
    return f"{part[name]:g} {unit}: {verdict}"


# --- command line ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and memory beside the textbook implementation.")
    parser.add_argument("--quick", action="store_true", help="few rounds and no memory, under a minute")
    parser.add_argument("--rounds", type=int, help="turns of each variant (default 15, with --quick up to 3)")
    keys = [*(part.key for part in PARTS), "preprocess"]
    parser.add_argument("--only", nargs="+", choices=keys, help="only these parts")
    parser.add_argument("--preprocess_minutes", type=float, default=4.0, help="of sound for preprocess.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write everything here")
    for field in dataclasses.fields(Workload):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help="default: %(default)s")
    parser.add_argument("--grow", choices=("ours", "reference"), help=argparse.SUPPRESS)  # the fresh process's job
    args = parser.parse_args(argv)
    args.budget = _QUICK_SECONDS if args.quick and args.rounds is None else math.inf
    args.rounds = args.rounds if args.rounds is not None else 3 if args.quick else 15
    for name in ("rounds", "threads", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(args.crop_seconds, args.render_seconds) < 0.05:
        parser.error("--crop_seconds and --render_seconds must be at least 0.05")
    return args


def run(args: argparse.Namespace, load: Workload) -> dict[str, Any]:
    """Measure what the command line asks for."""
    report = {
        "machine": describe_machine(),
        "workload": dataclasses.asdict(load),
        "n_rounds": args.rounds,
        "parts": [],
        "missing": [],
    }
    for part in PARTS:
        if args.only and part.key not in args.only:
            continue
        if package := benchmark_peers.find_missing(part):
            report["missing"].append(package)
            continue
        result = measure(part, load, args.rounds, args.budget)
        if Path("/proc/self/clear_refs").exists() and not args.quick:
            result |= measure_memory(part, load, args.threads)
        report["parts"].append(result)
    if "preprocess" in (args.only or ["preprocess"] * (not args.quick)):
        report["preprocessing"] = measure_preprocessing(args.preprocess_minutes, args.threads)
    return report


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    load = Workload(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Workload)})
    try:
        if args.grow:
            print(*grow(next(part for part in PARTS if part.key in args.only), args.grow, load))
            return 0
        report = run(args, load)
        print(format_table(report))
        if args.json:
            write_text(args.json, json.dumps(report, indent=2) + "\n")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        log.error("benchmark.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("benchmark.py: stopped")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
