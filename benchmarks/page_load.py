"""Play the web page from many clients at once, then from one again and again.

    ./venv/bin/python benchmarks/page_load.py --clients 32 --requests 200

Every client sends a tune of its own at the same moment, and the pitch of what it gets back is checked. Then the memory
of the server after all requests is compared with that after the first 20 (Linux). The exit code is 1 if a tune was
wrong or the memory grew by more than 10 %.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from gradio_client import Client, handle_file

from config import load_config
from features import extract_features
from measuring import describe_machine, format_table, resident_mb
from sound.audio_files import load_audio
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
_RATE = 16000
_WARM = 20  # requests before the memory is first read
_MAX_GROWTH = 0.1
_NEAR = 50  # cents; the tunes of two clients differ by more
Tune = tuple[Path, list[float]]  # a recording, and its notes in Hz


def write_tunes(folder: Path, count: int) -> list[Tune]:
    """Write a tune of three notes for each client, no two alike."""
    tunes = []
    for number in range(count):
        steps = (number % 8, 8 + number // 8, number % 5)  # semitones over A3
        notes = [220 * 2 ** (step / 12) for step in steps]
        path = folder / f"tune_{number}.wav"
        soundfile.write(path, np.concatenate([_make_note(f0) for f0 in notes]), _RATE)
        tunes.append((path, notes))
    return tunes


def _make_note(f0: float) -> np.ndarray:
    seconds = np.arange(_RATE // 2) / _RATE
    tone = 0.05 * sum(np.sin(2 * np.pi * k * f0 * seconds) / k for k in range(1, 13))
    return np.pad(tone * np.clip(np.minimum(seconds, 0.5 - seconds) / 0.02, 0, 1), _RATE // 10)


def is_tune(path: str | Path, notes: list[float]) -> bool:
    """Return True if a sound plays these notes, in this order and register."""
    config = load_config()
    measured = extract_features(load_audio(path, _RATE), config)
    f0 = np.where(measured.periodicity.numpy() > 0.5, measured.f0.numpy(), np.nan)
    length = round(0.7 * config.audio.frame_rate)
    parts = [f0[number * length : (number + 1) * length] for number in range(len(notes))]
    return all(
        np.isfinite(part).any() and abs(1200 * np.log2(np.nanmedian(part) / note)) < _NEAR
        for part, note in zip(parts, notes)
    )


@contextlib.contextmanager
def running_page(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a page from a process of its own; yield its address and the process id."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache")}
    command = [sys.executable, ROOT / "app.py", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"page_load.py: app.py did not start (exit code {process.returncode})")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def play_at_once(address: str, tunes: list[Tune], folder: Path) -> tuple[int, list[float]]:
    """Play all tunes at the same moment; return how many came back right, and the seconds that each client waited."""

    def play(number: int) -> tuple[float, str]:
        started = time.perf_counter()
        client = Client(address, verbose=False, download_files=str(folder / f"client_{number}"))
        sound, *_ = client.predict(handle_file(tunes[number][0]), "trumpet", 0, api_name="/transfer")
        return time.perf_counter() - started, sound

    with ThreadPoolExecutor(len(tunes)) as clients:
        answers = list(clients.map(play, range(len(tunes))))
    right = sum(is_tune(sound, notes) for (_, sound), (_, notes) in zip(answers, tunes))
    return right, [seconds for seconds, _ in answers]


def play_in_turn(address: str, tunes: list[Tune], count: int, process: int, folder: Path) -> tuple[float, float]:
    """Send requests one after another; return the server's memory in MB after the first few and after all."""
    client = Client(address, verbose=False, download_files=str(folder / "one"))
    warm = 0.0
    for number in range(count):
        client.predict(handle_file(tunes[number % len(tunes)][0]), "trumpet", 0, api_name="/transfer")
        shutil.rmtree(folder / "one", ignore_errors=True)
        if number < _WARM:
            warm = resident_mb(process)
    return warm, resident_mb(process)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Play the web page from many clients.")
    parser.add_argument("--clients", type=int, default=32, help="at once, 1 to 64 (default 32)")
    parser.add_argument("--requests", type=int, default=200, help="one after another (default 200)")
    args = parser.parse_args(argv)
    if not 1 <= args.clients <= 64 or args.requests < 1:
        parser.error("--clients should be 1 to 64, and --requests at least 1")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="page_load_") as name:
        folder = Path(name)
        tunes = write_tunes(folder, args.clients)
        with running_page(folder) as (address, process):
            right, waited = play_at_once(address, tunes, folder)
            warm, end = play_in_turn(address, tunes, args.requests, process, folder)
    growth = end / warm - 1
    rows = [
        ["clients at once", args.clients],
        ["got their own tune", right],
        ["answer, median and last", f"{np.median(waited):.1f} s, {max(waited):.1f} s"],
        [f"memory after {min(_WARM, args.requests)} requests", f"{warm:.0f} MB"],
        [f"memory after {args.requests} requests", f"{end:.0f} MB ({100 * growth:+.1f} %)"],
    ]
    print(f"{describe_machine()}\n\n{format_table(['measured', 'value'], rows)}")
    return 0 if right == args.clients and growth <= _MAX_GROWTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
