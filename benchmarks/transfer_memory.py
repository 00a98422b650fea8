"""Measure the memory and the time that transfer.py takes for recordings of different lengths, and draw them (Linux).

    ./venv/bin/python scripts/measure_memory.py --minutes 5 60 --output docs/long_transfer.png

The recordings are made of one voice, repeated at other pitches and levels.
"""

import argparse
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure
import numpy as np
import soundfile
import soxr

ROOT = Path(__file__).resolve().parent.parent
from sound.audio_files import load_audio  # noqa: E402

_RATE = 16000
log = logging.getLogger("measure_memory")


@dataclass(frozen=True)
class Run:
    minutes: float  # of sound
    times: np.ndarray  # [n] s since the start
    memory: np.ndarray  # [n] MB resident

    def describe(self) -> str:
        seconds = self.times[-1]
        return (
            f"{self.minutes:g} min of sound: peak {self.memory.max():.0f} MB, {seconds:.0f} s, "
            f"{seconds / self.minutes:.1f} s a minute of sound"
        )


def vary(voice: np.ndarray, minutes: float, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield a voice [N] again and again, up to four semitones and 10 dB away, until it has lasted so long."""
    rng, n_left = np.random.default_rng(seed), round(minutes * 60 * _RATE)
    while n_left > 0:
        semitones, gain = rng.uniform(-4, 4), 10 ** (rng.uniform(-10, 0) / 20)
        moved = gain * soxr.resample(voice, _RATE, _RATE * 2 ** (semitones / 12))[:n_left]
        n_left -= len(moved)
        yield moved


def measure(command: list[str], minutes: float, interval: float = 0.2) -> Run:
    """Run a command, and read its memory from /proc while it runs.

    Raises:
        ValueError: the command failed.
    """
    started, times, memory = time.perf_counter(), [], []
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            if resident := _resident(process.pid):
                times.append(time.perf_counter() - started)
                memory.append(resident)
            time.sleep(interval)
    if process.returncode:
        raise ValueError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return Run(minutes, np.array(times), np.array(memory))


def _resident(pid: int) -> float | None:
    """Return a process's resident memory in MB; None once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 / 1e6 if found else None


def plot(runs: list[Run]) -> matplotlib.figure.Figure:
    """Draw memory over the share of each run's time."""
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        label = f"{run.minutes:g} min: {run.times[-1] / run.minutes:.1f} s a minute of sound"
        axes.plot(100 * run.times / run.times[-1], run.memory, label=label, linewidth=1.2)
    axes.axhline(1000, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="share of the run, %", ylabel="resident memory, MB", xlim=(0, 100))
    axes.set_ylim(0, 1.1 * max(1000.0, *(run.memory.max() for run in runs)))
    axes.set_title("transfer.py, from the start of Python to the last sample")
    axes.legend(title="length of the recording", loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure memory and time of transfer.py over the length of its input.")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 60.0], help="lengths (default 5 60)")
    parser.add_argument("--input", type=Path, default=ROOT / "examples" / "hum.wav", help="the voice to repeat")
    parser.add_argument("--instrument", default="trumpet", help="a shipped model (default trumpet)")
    parser.add_argument("--output", type=Path, required=True, help="the picture (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    if not all(math.isfinite(minutes) and 0 < minutes <= 600 for minutes in args.minutes):
        parser.error("--minutes should be between 0 and 600")
    return args


def run_transfer(voice: np.ndarray, minutes: float, instrument: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "voice.wav", Path(folder) / "played.wav"
        with soundfile.SoundFile(source, "w", _RATE, channels=1) as file:
            for block in vary(voice, minutes):
                file.write(block)
        flags = ["--input", str(source), "--instrument", instrument, "--output", str(target), "--device", "cpu"]
        return measure([sys.executable, "transfer.py", *flags], minutes)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs = []
    try:
        voice = load_audio(args.input, _RATE)
        for minutes in args.minutes:
            runs.append(run_transfer(voice, minutes, args.instrument))
            log.info("%s", runs[-1].describe())
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot(runs).savefig(args.output, dpi=150)
    except (ValueError, OSError) as error:
        log.error("measure_memory.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("measure_memory.py: stopped")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
