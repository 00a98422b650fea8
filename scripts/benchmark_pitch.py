"""Measure CREPE beside torchcrepe on one clip, in one run: time and, on Linux, memory.

    ./venv/bin/python scripts/benchmark_pitch.py --input examples/hum.wav --crepe_model tiny --seconds 4 --threads 1

Both take turns, so that a busy machine slows both; a ratio is that of neighbours. Time is the processor's, which
other programs lengthen least, and that of the clock. torchcrepe runs as its ``predict`` does by default.
"""

import argparse
import json
import logging
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import pitch
from features import load_audio

log = logging.getLogger("benchmark_pitch")
HOP = 160


def import_torchcrepe() -> types.ModuleType:
    """Import torchcrepe without torchaudio: it only reads files, and may not load beside a CPU build of torch."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import torchcrepe

    return torchcrepe


def build(name: str, audio: np.ndarray, model: str) -> dict[str, Callable[[], np.ndarray]]:
    """Return what is measured, ours and torchcrepe's: the activations, or the search for the best path."""
    torchcrepe = import_torchcrepe()
    tensor = torch.from_numpy(audio)[None]
    if name == "network":
        return {
            "ours": lambda: pitch.crepe_activation(audio, HOP, model),
            "reference": lambda: torchcrepe.predict(
                tensor, pitch.SAMPLE_RATE, HOP, 32.7, 1975.5, model, decoder=torchcrepe.decode.argmax, device="cpu"
            ).numpy(),
        }
    activation = pitch.crepe_activation(audio, HOP, model)
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure CREPE beside torchcrepe.")
    parser.add_argument("--input", type=Path, default=Path("examples/hum.wav"), help="default: %(default)s")
    parser.add_argument("--crepe_model", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--part", choices=("network", "viterbi"), default="network")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the input (default 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=("ours", "reference"), help="only this: the growth of a fresh process")
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
    except (ValueError, OSError) as error:
        log.error("benchmark_pitch.py: %s", error)
        return 1
    audio = audio[: round(args.seconds * pitch.SAMPLE_RATE) // HOP * HOP]
    audio = audio[: len(audio) // HOP * HOP]
    works = build(args.part, audio, args.crepe_model)
    if args.memory:
        print(json.dumps({args.memory: measure_memory(works[args.memory])}))
    else:
        seconds = len(audio) / pitch.SAMPLE_RATE
        print(json.dumps({"seconds": seconds, "threads": args.threads, **measure(works, args.rounds)}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
