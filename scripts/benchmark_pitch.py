"""Measure CREPE beside torchcrepe on one clip, in one run: time and, on Linux, memory.

    ./venv/bin/python scripts/benchmark_pitch.py --seconds 2 --rounds 3

Both take turns, so that a busy machine slows both; a ratio is that of neighbours. Time is the processor's, which
other programs lengthen least, and that of the clock. torchcrepe runs as its ``predict`` does by default.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import pitch
from features import load_audio

log = logging.getLogger("benchmark_pitch")
HOP = 160
PARTS = ("tiny", "full", "viterbi")
SIDES = ("ours", "reference")


def import_torchcrepe() -> types.ModuleType:
    """Import torchcrepe without torchaudio: it only reads files, and may not load beside a CPU build of torch."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import torchcrepe

    return torchcrepe


def build(part: str, audio: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Return what is measured, ours and torchcrepe's: a network's activations, or the search for the best path."""
    torchcrepe = import_torchcrepe()
    tensor = torch.from_numpy(audio)[None]
    if part != "viterbi":
        return {
            "ours": lambda: pitch.crepe_activation(audio, HOP, part),
            "reference": lambda: torchcrepe.predict(
                tensor, pitch.SAMPLE_RATE, HOP, 32.7, 1975.5, part, decoder=torchcrepe.decode.argmax, device="cpu"
            ).numpy(),
        }
    activation = pitch.crepe_activation(audio, HOP)
    batched = torch.from_numpy(activation.T[None].copy())
    return {
        "ours": lambda: pitch._best_path(activation),
        "reference": lambda: torchcrepe.decode.viterbi(batched)[0].numpy(),
    }


def measure(works: dict[str, Callable[[], np.ndarray]], n_rounds: int) -> dict[str, dict[str, float]]:
    """Return for the processor's time and the clock's: median seconds of both, and median, least and greatest ratio."""
    rounds = {"processor": [], "clock": []}
    for work in works.values():
        work()
    for _ in range(n_rounds):
        pair = {"processor": [], "clock": []}
        for work in works.values():
            started = time.process_time(), time.perf_counter()
            work()
            pair["processor"].append(time.process_time() - started[0])
            pair["clock"].append(time.perf_counter() - started[1])
        for kind, seconds in pair.items():
            rounds[kind].append(seconds)
    return {kind: _summary(pairs) for kind, pairs in rounds.items()}


def _summary(pairs: list[list[float]]) -> dict[str, float]:
    ratios = [theirs / ours for ours, theirs in pairs]
    ours, theirs = (statistics.median(seconds) for seconds in zip(*pairs))
    median = statistics.median(ratios)
    return {"ours": ours, "reference": theirs, "ratio": median, "least": min(ratios), "greatest": max(ratios)}


def measure_memory(work: Callable[[], np.ndarray]) -> int | None:
    """Return by how many bytes the resident set grows at its peak, or None where the kernel does not tell."""
    forget, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not forget.exists():
        return None

    def resident(field: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return 1024 * int(line.split()[1])

    forget.write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def measure_in_fresh_processes(part: str, argv: list[str]) -> dict[str, int | None]:
    """Return ``measure_memory`` of both sides, each in a process of its own, which has allocated nothing before."""
    grown = {}
    for side in SIDES:
        command = [sys.executable, __file__, *argv, "--parts", part, "--memory", side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[side] = json.loads(done.stdout)
    return grown


def describe(part: str, result: dict[str, Any]) -> str:
    """Return a row of the table."""
    took, memory = result["processor"], result["memory"]
    times = f"{took['ours']:.2f} s against {took['reference']:.2f} s"
    ratios = f"{took['ratio']:.1f} x ({took['least']:.1f} to {took['greatest']:.1f})"
    known = memory and None not in memory.values()
    grown = f"{memory['ours'] / 2**20:.0f} against {memory['reference'] / 2**20:.0f} MiB" if known else "-"
    return f"| {part} | {times} | {ratios} | {result['clock']['ratio']:.1f} x | {grown} |"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure CREPE beside torchcrepe.")
    parser.add_argument("--input", type=Path, default=Path("examples/hum.wav"), help="default: %(default)s")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the input (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    parser.add_argument("--skip_memory", action="store_true", help="time alone, as no fresh processes are needed")
    parser.add_argument("--memory", choices=SIDES, help="only this: by how many bytes a fresh process grows")
    args = parser.parse_args(argv)
    if min(args.rounds, args.threads) < 1 or args.seconds < 0.1:
        parser.error("--rounds and --threads should be at least 1, --seconds at least 0.1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    try:
        audio = load_audio(args.input, pitch.SAMPLE_RATE)
        audio = audio[: round(args.seconds * pitch.SAMPLE_RATE)]
        audio = audio[: len(audio) // HOP * HOP]
        if args.memory:
            print(json.dumps(measure_memory(build(args.parts[0], audio)[args.memory])))
        else:
            compare(audio, args)
    except (ValueError, OSError) as error:
        log.error("benchmark_pitch.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("benchmark_pitch.py: stopped")
        return 130
    return 0


def compare(audio: np.ndarray, args: argparse.Namespace) -> None:
    """Measure part after part and print the table."""
    flags = ["--input", str(args.input), "--seconds", str(args.seconds), "--threads", str(args.threads)]
    print(f"{len(audio) / pitch.SAMPLE_RATE:g} s of sound, {args.threads} thread(s)")
    print("| part | processor time, ours against torchcrepe | faster | by the clock | peak memory |")
    print("|---|---|---|---|---|")
    results = {}
    for part in args.parts:
        results[part] = measure(build(part, audio), args.rounds)
        results[part]["memory"] = {} if args.skip_memory else measure_in_fresh_processes(part, flags)
        print(describe(part, results[part]), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
