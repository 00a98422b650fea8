"""Measure how long live.py's work takes for each block of sound, on one core, and draw it.

    ./venv/bin/python scripts/measure_latency.py --seconds 60 --output docs/live_latency.png

Block follows block at once, unless ``--real_time`` lets them come as from a sound card: then the clock runs from when
a block is there, so that waking up counts too, and caches have had time to fill with other things.
"""

import argparse
import logging
import os
import time
from pathlib import Path

import matplotlib.figure
import matplotlib.ticker
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
from checkpoint import load_model, pretrained_path  # noqa: E402
from live import request_realtime_priority, warm_up  # noqa: E402
from playing.causal_transfer import StreamingTransfer  # noqa: E402
from sound.audio_files import load_audio  # noqa: E402

_BETWEEN_READINGS = 1000  # blocks
log = logging.getLogger("measure_latency")


def measure(
    stream: StreamingTransfer, voice: np.ndarray, size: int, n_blocks: int, real_time: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Play so many blocks of ``size`` samples, at once or as they would come from a microphone.

    Returns:
        Times [n_blocks, 2] in ms: by the clock, and of the processor; and resident memory in MB, [n], read now and
        then (zeros where the system does not tell).
    """
    n_whole = len(voice) // size
    times, memory, started = np.empty((n_blocks, 2)), [resident()], time.perf_counter()
    for number in range(n_blocks):
        start = number % n_whole * size
        due = started + (number + 1) * size / stream.rate if real_time else time.perf_counter()
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.thread_time()
        stream.process(voice[start : start + size])
        times[number] = time.perf_counter() - due, time.thread_time() - before
        if number % _BETWEEN_READINGS == _BETWEEN_READINGS - 1:
            memory.append(resident())
    return 1000 * times, np.array([*memory, resident()])


def resident() -> float:
    """Return this process's resident memory in MB; 0 where there is no /proc."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if status.exists() else 0.0


def describe(times: np.ndarray, memory: np.ndarray, block_ms: float) -> str:
    shares = (50, 99, 99.9, 100)
    clock, processor = (np.percentile(column, shares) for column in times.T)
    names = ("median", "99 %", "99.9 %", "worst")
    rows = [f"{name} {a:.1f} ms ({b:.1f} by the clock)" for name, a, b in zip(names, processor, clock)]
    late = f"{np.count_nonzero(times[:, 0] > block_ms)} of {len(times)} late"
    return f"{', '.join(rows)}; {late}; memory {memory[0]:.1f} MB before, {memory[-1]:.1f} MB after"


def plot(times: np.ndarray, block_ms: float) -> matplotlib.figure.Figure:
    """Draw a histogram of both times."""
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.geomspace(np.quantile(times, 0.001) / 1.5, times.max() * 1.01, 60)  # the first blocks cost nothing
    for column, name, colour in zip(times.T, ("by the clock", "of the processor"), ("tab:gray", "tab:orange")):
        middle, high = np.percentile(column, (50, 99.9))
        label = f"{name}: median {middle:.1f} ms, 99.9 % under {high:.1f} ms"
        axes.hist(column, bins=bins, histtype="stepfilled", alpha=0.6, color=colour, label=label)
    axes.axvline(block_ms, color="black", linestyle="--", linewidth=1, label="the length of the block")
    axes.set(xscale="log", yscale="log", xlabel=f"ms for a block of {block_ms:g} ms", ylabel="blocks")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_xticks([tick for tick in (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100) if bins[0] <= tick <= bins[-1]])
    axes.set_ylim(0.7, 12 * axes.get_ylim()[1])  # room for the legend
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_title("live: work for each block of sound")
    axes.legend(loc="upper right", framealpha=1)
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the time that live.py takes for each block.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of sound (default 60)")
    parser.add_argument("--block_ms", type=float, default=10.0, help="length of a block (default 10)")
    parser.add_argument("--real_time", action="store_true", help="blocks come as from a sound card")
    parser.add_argument("--input", type=Path, default=ROOT / "examples" / "hum.wav", help="the voice")
    parser.add_argument("--instrument", default="trumpet", help="a shipped model (default trumpet)")
    parser.add_argument("--output", type=Path, required=True, help="the picture (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    if not (0 < args.seconds <= 36000 and 1 <= args.block_ms <= 1000):
        parser.error("--seconds should be between 0 and 36000, --block_ms between 1 and 1000")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    try:
        model = load_model(pretrained_path(args.instrument), "cpu")
        warm_up(model)  # as live.py does
        stream = StreamingTransfer(model)
        rate = stream.rate
        voice, size = load_audio(args.input, rate), round(args.block_ms * rate / 1000)
        if args.real_time and not request_realtime_priority():
            log.info("without real-time priority")
        n_blocks = max(1, round(args.seconds * 1000 / args.block_ms))
        times, memory = measure(stream, voice, size, n_blocks, args.real_time)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot(times, args.block_ms).savefig(args.output, dpi=150)
    except (ValueError, OSError) as error:
        log.error("measure_latency.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("measure_latency.py: stopped")
        return 130
    log.info("latency %.1f ms and a block", 1000 * stream.latency / rate)
    log.info("work for a block of %g ms: %s", args.block_ms, describe(times, memory, args.block_ms))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
