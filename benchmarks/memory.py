"""Measure memory and time of a long transfer, or of the start of a training on many recordings (Linux).

    ./venv/bin/python benchmarks/memory.py transfer --minutes 5 60 --output docs/long_transfer.png
    ./venv/bin/python benchmarks/memory.py corpus --recordings 100000

``transfer`` repeats a voice at other pitches and levels up to each length, and draws the resident memory of
transfer.py. ``corpus`` writes small recordings (1.7 GB for 100,000) and does what train.py does before its first step,
first when each file has to be checked, then with the index.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import numpy as np
import soundfile
import soxr
import torch
from tqdm import tqdm

from config import load_config
from data import Recording, extractor_settings, save_recording
from measuring import describe_machine, format_table, measure_growth, resident_mb, run_in_fresh_process
from recordings.corpus import measure_statistics, read_corpus
from recordings.crops import SINGLE_PROCESS, build_dataset, load_batches
from sound.audio_files import load_audio
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
_RATE = 16000


# --- a long transfer ------------------------------------------------------------------------------


def vary(voice: np.ndarray, minutes: float, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield a voice [N] repeatedly, shifted by up to 4 semitones and 10 dB, until ``minutes`` are full."""
    rng, n_left = np.random.default_rng(seed), round(minutes * 60 * _RATE)
    while n_left > 0:
        semitones, gain = rng.uniform(-4, 4), 10 ** (rng.uniform(-10, 0) / 20)
        moved = gain * soxr.resample(voice, _RATE, _RATE * 2 ** (semitones / 12))[:n_left]
        n_left -= len(moved)
        yield moved


def run_transfer(voice: np.ndarray, minutes: float, instrument: str) -> tuple[np.ndarray, np.ndarray]:
    """Run transfer.py on ``minutes`` of voice; return times in s and resident memory in MB, [n] each."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "voice.wav"), Path(folder, "played.wav")
        with soundfile.SoundFile(source, "w", _RATE, channels=1) as file:
            for block in vary(voice, minutes):
                file.write(block)
        command = [sys.executable, ROOT / "transfer.py", "--input", source, "--instrument", instrument]
        started, readings = time.perf_counter(), []
        with subprocess.Popen([*command, "--output", target, "--device", "cpu"]) as process:
            while process.poll() is None:
                try:
                    readings.append((time.perf_counter() - started, resident_mb(process.pid)))
                except FileNotFoundError:  # the process has just ended
                    break
                time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"memory.py: transfer.py failed with exit code {process.returncode}")
    times, memory = np.array(readings).T
    return times, memory


def measure_transfers(args: argparse.Namespace) -> None:
    """Run transfer.py on each length, print time and peak memory, and plot the memory."""
    voice = load_audio(args.input, _RATE)
    runs = {minutes: run_transfer(voice, minutes, args.instrument) for minutes in args.minutes}
    rows = [
        [f"{minutes:g} min", f"{memory.max():.0f} MB", f"{times[-1]:.0f} s", f"{times[-1] / minutes:.1f} s"]
        for minutes, (times, memory) in runs.items()
    ]
    print(format_table(["length", "peak memory", "time", "time for a minute of sound"], rows))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    plot(runs).savefig(args.output, dpi=150)


def plot(runs: dict[float, tuple[np.ndarray, np.ndarray]]) -> matplotlib.figure.Figure:
    """Plot memory over the fraction of each run's time."""
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for minutes, (times, memory) in runs.items():
        label = f"{minutes:g} min: {times[-1] / minutes:.1f} s a minute of sound"
        axes.plot(100 * times / times[-1], memory, label=label, linewidth=1.2)
    axes.axhline(1000, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="share of the run, %", ylabel="resident memory, MB", xlim=(0, 100))
    axes.set_ylim(0, 1.1 * max(1000.0, *(memory.max() for _, memory in runs.values())))
    axes.set_title("transfer.py, from the start of Python to the last sample")
    axes.legend(title="length of the recording", loc="lower right")
    axes.grid(alpha=0.3)
    return figure


# --- a large corpus -------------------------------------------------------------------------------


def write_recordings(folder: Path, count: int) -> None:
    """Write ``count`` recordings of 0.2 s that differ only in the sha256 of their source."""
    config = load_config()
    n_frames = config.audio.seconds_to_frames(0.2)
    values = {"f0": 440.0, "loudness": -20.0, "periodicity": 1.0}
    digests = [f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}" for number in range(1, count + 1)]  # spread evenly
    recording = Recording(
        "trumpet",
        **{name: torch.full((1, n_frames, 1), value) for name, value in values.items()},
        audio=torch.zeros(1, config.audio.frames_to_samples(n_frames)),
        source={"file": "made.wav", "sha256": digests[0]},
        extractor=extractor_settings(config, "trumpet"),
    )
    save_recording(folder / "made.pt", recording)
    content = (folder / "made.pt").read_bytes()
    (folder / "made.pt").unlink()
    for number, digest in enumerate(tqdm(digests, desc="writing recordings", unit="file", disable=None)):
        (folder / f"{number:07}.wav.pt").write_bytes(content.replace(digests[0].encode(), digest.encode()))


def start_training(folder: Path) -> None:
    """Do what a training does up to its first batch."""
    config = load_config()
    corpus = read_corpus(folder, config)
    measure_statistics(corpus.training, config)
    training = build_dataset(corpus.training, corpus.instrument, config, seed=0)
    build_dataset(corpus.validation, corpus.instrument, config)
    next(load_batches(training, training.order(), 0, config.train.batch_size, SINGLE_PROCESS, torch.device("cpu")))


def measure_start(folder: Path) -> list[str]:
    """Return processor time, time and memory of one start."""
    clock, processor = time.perf_counter(), time.process_time()
    growth = measure_growth(lambda: start_training(folder))
    return [f"{time.process_time() - processor:.1f} s", f"{time.perf_counter() - clock:.1f} s", f"{growth:.0f} MB"]


def measure_corpus(args: argparse.Namespace) -> None:
    """Measure two starts on many recordings, each in a new process."""
    with tempfile.TemporaryDirectory() as name:
        write_recordings(Path(name), args.recordings)
        rows = [[start, *run_in_fresh_process(measure_start, Path(name))] for start in ("first", "with the index")]
    print(format_table([f"start on {args.recordings:,} recordings", "processor time", "time", "memory"], rows))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure the memory of a long transfer or of a large corpus.")
    subjects = parser.add_subparsers(dest="subject", required=True)
    transfer = subjects.add_parser("transfer", help="transfer.py on long recordings")
    transfer.add_argument("--minutes", type=float, nargs="+", default=[5.0, 60.0], help="lengths (default: 5 60)")
    transfer.add_argument("--input", type=Path, default=ROOT / "examples" / "hum.wav", help="voice to repeat")
    transfer.add_argument("--instrument", default="trumpet", help="a shipped model (default: trumpet)")
    transfer.add_argument("--output", type=Path, required=True, help="plot (.png, .svg, .pdf)")
    corpus = subjects.add_parser("corpus", help="the start of a training")
    corpus.add_argument("--recordings", type=int, default=100_000, help="number of recordings (default: 100000)")
    args = parser.parse_args(argv)
    if args.subject == "transfer" and not all(0 < minutes <= 600 for minutes in args.minutes):
        parser.error("--minutes should be between 0 and 600")
    if args.subject == "corpus" and args.recordings < 5:
        parser.error("--recordings should be at least 5")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    print(describe_machine())
    measure_transfers(args) if args.subject == "transfer" else measure_corpus(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
