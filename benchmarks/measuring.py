"""Measure time and memory, and print a table, for all benchmarks."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def time_in_turns(
    works: dict[str, Callable[[], Any]], n_rounds: int, budget: float = float("inf")
) -> dict[str, list[float]]:
    """Run each function once to warm up, then all in turn (A B A B ...), so that a busy machine slows all equally.

    Args:
        works: functions without arguments, by name.
        n_rounds: timed runs of each.
        budget: seconds after which no further round begins.

    Returns:
        Seconds of each run, by name.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(n_rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
        if sum(map(sum, seconds.values())) > budget:
            break
    return seconds


def summarize_ratio(times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the ratios others / times of neighbouring runs."""
    ratios = [other / own for own, other in zip(times, others)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def resident_mb(process: int | str = "self", peak: bool = False) -> float:
    """Return the resident memory of a process in MB (10^6 bytes), now or at its peak (Linux).

    Raises:
        FileNotFoundError: the process has ended, or the system has no /proc.
    """
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise FileNotFoundError(f"process {process} has ended")


def measure_growth(work: Callable[[], Any]) -> float:
    """Return the growth in MB of this process's peak resident memory during ``work`` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak that the kernel records
    before = resident_mb()
    work()
    return resident_mb(peak=True) - before


def run_in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function of a module in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def describe_machine(device: torch.device | None = None) -> str:
    """Return the processor, or the GPU, the number of threads, the versions and the date."""
    if device is not None and device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor() or platform.machine()
        processor = f"{name}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{processor}; torch {torch.__version__}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"


def format_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in cells)
