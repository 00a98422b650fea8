"""How the web page bears many people: it starts a page of its own and plays it from many clients at once.

    ./venv/bin/python scripts/stress_app.py --clients 32 --requests 200

First every client sends a tune of its own at the same moment, and the pitch of what it gets back is checked: nobody
may get another's. Then the requests come one after another, and the memory of the server after all of them is held
against that after the first 20. It ends with exit code 1 if a tune was wrong or the memory grew by more than 10 %.
"""

import argparse
import contextlib
import json
import logging
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
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parent.parent
from gradio_client import Client, handle_file  # noqa: E402

from config import load_config  # noqa: E402
from features import extract_features  # noqa: E402
from sound.audio_files import load_audio  # noqa: E402

RATE = 16000
WARM = 20  # requests before the memory is first looked at
MAX_GROWTH = 0.1
_NEAR = 50  # cents; the tunes of two clients differ by more
log = logging.getLogger("stress_app")


# --- tunes ----------------------------------------------------------------------------------------


def sing_tunes(folder: Path, count: int) -> list[tuple[Path, list[float]]]:
    """Write a tune of three notes for each client; return the files and their notes in Hz."""
    tunes = []
    for number in range(count):
        steps = (number % 8, 8 + number // 8, number % 5)  # semitones over A3; no two clients have the same three
        notes = [220 * 2 ** (step / 12) for step in steps]
        path = folder / f"tune_{number}.wav"
        soundfile.write(path, np.concatenate([_sing_note(f0) for f0 in notes]), RATE)
        tunes.append((path, notes))
    return tunes


def _sing_note(f0: float) -> np.ndarray:
    time_axis = np.arange(int(0.5 * RATE)) / RATE
    tone = 0.05 * sum(np.sin(2 * np.pi * k * f0 * time_axis) / k for k in range(1, 13))
    fade = np.clip(np.minimum(time_axis, 0.5 - time_axis) / 0.02, 0, 1)
    return np.pad(tone * fade, RATE // 10)


def is_tune(path: str | Path, notes: list[float]) -> bool:
    """Say whether a sound plays these notes, in this order and register."""
    config = load_config()
    heard = extract_features(load_audio(path, RATE), config)
    f0 = np.where(heard.periodicity.numpy() > 0.5, heard.f0.numpy(), np.nan)
    length = round(0.7 * config.audio.frame_rate)
    parts = [f0[number * length : (number + 1) * length] for number in range(len(notes))]
    return all(
        np.isfinite(part).any() and abs(1200 * np.log2(np.nanmedian(part) / note)) < _NEAR
        for part, note in zip(parts, notes)
    )


# --- the server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def running_page(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a page in a process of its own; yield its address and the process's number."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()  # not Ctrl-C, which a command in the background of a shell ignores
        process.wait(timeout=60)


def _wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise ChildProcessError(f"app.py ended with exit code {process.returncode}")
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("app.py did not come up within two minutes")


def resident_megabytes(process: int) -> float:
    """Return the memory that a process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- the two trials -------------------------------------------------------------------------------


def try_at_once(address: str, tunes: list[tuple[Path, list[float]]], folder: Path) -> dict[str, Any]:
    """Let every client play its tune at the same moment."""

    def play(number: int) -> tuple[float, str]:
        started = time.perf_counter()
        client = Client(address, verbose=False, download_files=str(folder / f"client_{number}"))
        sound, *_ = client.predict(handle_file(tunes[number][0]), "trumpet", 0, api_name="/transfer")
        return time.perf_counter() - started, sound

    with ThreadPoolExecutor(len(tunes)) as clients:
        answers = list(clients.map(play, range(len(tunes))))
    right = sum(is_tune(sound, notes) for (_, sound), (_, notes) in zip(answers, tunes))
    waited = [seconds for seconds, _ in answers]
    return {"clients": len(tunes), "own_tune": right, "median_seconds": float(np.median(waited)), "last": max(waited)}


def try_one_by_one(
    address: str, tunes: list[tuple[Path, list[float]]], count: int, process: int, folder: Path
) -> dict[str, Any]:
    """Send requests one after another, and look at the memory after the first few and after all."""
    client = Client(address, verbose=False, download_files=str(folder / "one"))
    warm = peak = 0.0
    for number in range(count):
        client.predict(handle_file(tunes[number % len(tunes)][0]), "trumpet", 0, api_name="/transfer")
        shutil.rmtree(folder / "one", ignore_errors=True)
        now = resident_megabytes(process)
        warm, peak = (now if number < WARM else warm), max(peak, now)
        log.info("request %d of %d: %.0f MB", number + 1, count, now)
    return {"requests": count, "megabytes_warm": warm, "megabytes_end": now, "megabytes_peak": peak,
            "growth": now / warm - 1}  # fmt: skip


def describe(crowd: dict[str, Any], queue: dict[str, Any]) -> str:
    return (
        f"{crowd['clients']} clients at once: {crowd['own_tune']} got their own tune back, "
        f"the median after {crowd['median_seconds']:.1f} s, the last after {crowd['last']:.1f} s\n"
        f"{queue['requests']} requests: {queue['megabytes_warm']:.0f} MB after {min(WARM, queue['requests'])}, "
        f"{queue['megabytes_end']:.0f} MB at the end ({100 * queue['growth']:+.1f} %)"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Play the web page from many clients.")
    parser.add_argument("--clients", type=int, default=32, help="at once, 1 to 64 (default 32)")
    parser.add_argument("--requests", type=int, default=200, help="one after another (default 200)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    if not 1 <= args.clients <= 64 or args.requests < 1:
        parser.error("--clients should be 1 to 64, and --requests at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="stress-app-") as name:
        folder = Path(name)
        tunes = sing_tunes(folder, args.clients)
        try:
            with running_page(folder) as (address, process):
                crowd = try_at_once(address, tunes, folder)
                queue = try_one_by_one(address, tunes, args.requests, process, folder)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("stress_app.py: %s", error)
            return 1
        except KeyboardInterrupt:
            log.error("stress_app.py: stopped")
            return 130
    print(describe(crowd, queue))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"at_once": crowd, "one_by_one": queue}, indent=2) + "\n")
    return 0 if crowd["own_tune"] == crowd["clients"] and queue["growth"] <= MAX_GROWTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
