"""Measure and plot the time that live.py needs for each block of sound, on one core.

    ./venv/bin/python benchmarks/live_latency.py --seconds 60 --output docs/live_latency.png

Blocks are processed without a pause. With ``--real_time`` they arrive as from a sound card, and time counts from the
arrival of a block: it includes waking up, and caches may hold other data by then.
"""

import argparse
import logging
import time
from pathlib import Path

import matplotlib.figure
import matplotlib.ticker
import numpy as np
import torch

from checkpoint import load_model, pretrained_path
from live import prepare_graph, request_realtime_priority, warm_up
from measuring import describe_machine, format_table, resident_mb
from playing.causal_transfer import StreamingTransfer
from sound.audio_files import load_audio
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
_CLOCKS = ("by the clock", "of the processor")
log = logging.getLogger("live_latency")


def time_blocks(
    stream: StreamingTransfer, voice: np.ndarray, size: int, n_blocks: int, real_time: bool = False
) -> np.ndarray:
    """Play blocks of ``size`` samples; return wall-clock and processor time in ms, [n_blocks, 2]."""
    n_whole, times = len(voice) // size, np.empty((n_blocks, 2))
    started = time.perf_counter()
    for number in range(n_blocks):
        start = number % n_whole * size
        due = started + (number + 1) * size / stream.rate if real_time else time.perf_counter()
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.thread_time()
        stream.process(voice[start : start + size])
        times[number] = time.perf_counter() - due, time.thread_time() - before
    return 1000 * times


def plot(times: np.ndarray, block_ms: float) -> matplotlib.figure.Figure:
    """Draw a histogram of both times."""
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.geomspace(np.quantile(times, 0.001) / 1.5, times.max() * 1.01, 60)  # the first blocks are silent
    for column, name, colour in zip(times.T, _CLOCKS, ("tab:gray", "tab:orange")):
        middle, high = np.percentile(column, (50, 99.9))
        label = f"{name}: median {middle:.1f} ms, 99.9 % under {high:.1f} ms"
        axes.hist(column, bins=bins, histtype="stepfilled", alpha=0.6, color=colour, label=label)
    axes.axvline(block_ms, color="black", linestyle="--", linewidth=1, label="the length of the block")
    axes.set(xscale="log", yscale="log", xlabel=f"ms for a block of {block_ms:g} ms", ylabel="blocks")
    axes.set_ylim(0.7, 12 * axes.get_ylim()[1])  # room for the legend
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_title("live: work for each block of sound")
    axes.legend(loc="upper right", framealpha=1)
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure the time that live.py takes for each block.")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of sound (default: 60)")
    parser.add_argument("--block_ms", type=float, default=10.0, help="milliseconds per block (default: 10)")
    parser.add_argument("--real_time", action="store_true", help="blocks arrive as from a sound card")
    parser.add_argument("--input", type=Path, default=ROOT / "examples" / "hum.wav", help="the voice")
    parser.add_argument("--instrument", default="trumpet", help="a shipped model (default: trumpet)")
    parser.add_argument("--output", type=Path, help="also write a plot to this file (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    if not (0 < args.seconds <= 36000 and 1 <= args.block_ms <= 1000):
        parser.error("--seconds should be between 0 and 36000, --block_ms between 1 and 1000")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(1)
    checkpoint = pretrained_path(args.instrument)
    model, graph_file = load_model(checkpoint, "cpu"), prepare_graph(checkpoint)
    warm_up(model, graph_file)  # as live.py does
    stream = StreamingTransfer(model, graph_file=graph_file)
    voice, size = load_audio(args.input, stream.rate), round(args.block_ms * stream.rate / 1000)
    if args.real_time and not request_realtime_priority():
        log.info("without real-time priority")
    before = resident_mb()
    n_blocks = max(1, round(args.seconds * 1000 / args.block_ms))
    times = time_blocks(stream, voice, size, n_blocks, args.real_time)
    late = np.count_nonzero(times[:, 0] > args.block_ms)
    print(
        f"{describe_machine()}\nms for a block of {args.block_ms:g} ms; {late} of {n_blocks} blocks late; latency "
        f"{1000 * stream.latency / stream.rate:g} ms and a block; memory {before:.1f} MB, at the end "
        f"{resident_mb():.1f} MB\n"
    )
    rows = [
        [name, *(f"{ms:.1f}" for ms in np.percentile(column, (50, 99, 99.9, 100)))]
        for name, column in zip(_CLOCKS, times.T)
    ]
    print(format_table(["time", "median", "99 %", "99.9 %", "worst"], rows))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot(times, args.block_ms).savefig(args.output, dpi=150)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
