"""Load test of the web page: simultaneous clients, a long series of requests, and abusive visitors.

    ./venv/bin/python benchmarks/page_load.py --clients 32 --requests 200

All clients send different tunes at the same time, and the pitch of each answer is checked. Then the memory of the
server after all requests is compared with that after the first 20 (Linux). Finally one visitor sends 100 uploads at
once, 70 requests whose answers are not read, and 200 connections each with incomplete uploads, JSON bodies and
headers, while another visitor plays a tune. If Chromium is installed, the time from a click to the first sound is
measured for a recording of 30 s and a song of 5 minutes, and the same after a change of octave. The exit code is 1 if
a tune was wrong, the memory grew by more than 10 %, or the other visitor waited for more than 5 s.
"""

import argparse
import concurrent.futures
import contextlib
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

import numpy as np
import requests
import soundfile
from gradio_client import Client, handle_file

from config import load_config
from features import extract_features
from measuring import describe_machine, format_table, resident_mb
from sound.audio_files import load_audio
from sound.console import as_command, command_parser

ROOT = Path(__file__).resolve().parents[1]
_RATE = 16000
_WARM = 20  # requests before the first memory reading
_MAX_GROWTH = 0.1
_MAX_WAIT = 5.0  # s, maximum waiting time of the other visitor
_STRANGER = {"X-Forwarded-For": "203.0.113.7"}  # address of the visitor who overloads the page
_NEAR = 50  # cents; tolerance, less than the difference between any two tunes
Tune = tuple[Path, list[float]]  # a recording and its notes in Hz


def write_tunes(folder: Path, count: int) -> list[Tune]:
    """Write a different tune of three notes for each client."""
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
    """Return True if a sound has these notes in this order and register."""
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
    """Serve a page in a separate process; yield its address and process id."""
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
    """Play all tunes at the same time; return the number of correct answers and each client's waiting time in s."""

    def play(number: int) -> tuple[float, str]:
        started = time.perf_counter()
        visitor = {"X-Forwarded-For": f"10.0.0.{number}"}
        client = Client(address, verbose=False, headers=visitor, download_files=str(folder / f"client_{number}"))
        sound, *_ = client.predict(handle_file(tunes[number][0]), "trumpet", 0, api_name="/transfer")
        return time.perf_counter() - started, sound

    with ThreadPoolExecutor(len(tunes)) as clients:
        answers = list(clients.map(play, range(len(tunes))))
    right = sum(is_tune(sound, notes) for (_, sound), (_, notes) in zip(answers, tunes))
    return right, [seconds for seconds, _ in answers]


def play_in_turn(address: str, tunes: list[Tune], count: int, process: int, folder: Path) -> tuple[float, float]:
    """Send requests one after another; return the server's memory in MB after the first _WARM and after all."""
    client = Client(address, verbose=False, download_files=str(folder / "one"))
    warm = 0.0
    for number in range(count):
        client.predict(handle_file(tunes[number % len(tunes)][0]), "trumpet", 0, api_name="/transfer")
        shutil.rmtree(folder / "one", ignore_errors=True)
        if number < _WARM:
            warm = resident_mb(process)
    return warm, resident_mb(process)


def time_browser(address: str, folder: Path) -> list[list[str]]:
    """Return table rows of the time in s from a click to sound in Chromium; empty without Chromium."""
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        return []
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--mute-audio", "--autoplay-policy=no-user-gesture-required"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path)) as driver:
        driver.get(address)
        wait = WebDriverWait(driver, 300, 0.02)
        wait.until(lambda _: "Play it on" in driver.find_element(By.ID, "play").text)

        def seconds_after(selector: str) -> float:
            note = "(event) => { window.tapped = event.timeStamp; }"
            driver.execute_script(f"addEventListener('pointerdown', {note}, {{capture: true, once: true}})")
            driver.find_element(By.CSS_SELECTOR, selector).click()
            waited = wait.until(lambda _: driver.execute_script("return Math.max(0, vox.startedAt - tapped)"))
            wait.until(lambda _: driver.find_elements(By.ID, "play"))
            return waited / 1000

        rows = []
        for name, seconds in (("30 s of voice", 30), ("a song of 5 minutes", 300)):
            path = folder / f"{seconds}_s.wav"
            notes = [_make_note(220 * 2 ** (step / 12)) for step in (0, 4, 7, 5, 2)]
            soundfile.write(path, np.resize(np.concatenate(notes), seconds * _RATE), _RATE)
            driver.find_element(By.ID, "file").send_keys(str(path))
            wait.until(lambda _, path=path: path.stem in driver.find_element(By.ID, "chosen").text)
            rows.append([f"{name}, from Play to sound", f"{seconds_after('#play'):.2f} s"])
            others = [seconds_after("#octave label:has(input:not(:checked))") for _ in range(5 if seconds < 60 else 1)]
            rows.append([f"{name}, another octave, median of {len(others)}", f"{np.median(others):.2f} s"])
    return rows


@contextlib.contextmanager
def crowd(address: str, what: str, tune: Path) -> Iterator[None]:
    """Overload the page as one visitor while the context is open."""
    port, content = int(address.rpartition(":")[2]), tune.read_bytes()
    with ThreadPoolExecutor(100) as pool, contextlib.ExitStack() as stack:

        def upload(_: int) -> requests.Response:
            files = {"files": ("a.wav", content)}
            return requests.post(f"{address}/gradio_api/upload", files=files, headers=_STRANGER, timeout=60)

        def begin(text: str) -> None:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(text.encode())

        head = f"Host: 127.0.0.1:{port}\r\nX-Forwarded-For: {_STRANGER['X-Forwarded-For']}\r\nContent-Length: 99999\r\n"
        if what == "uploads":
            waiting = [pool.submit(upload, number) for number in range(100)]
        elif what == "silent joins":
            path = upload(0).json()[0]
            body = {"recording": {"path": path, "meta": {"_type": "gradio.FileData"}}, "instrument": "trumpet"}
            join = f"{address}/gradio_api/call/v2/transfer"
            waiting = [pool.submit(requests.post, join, json=body, headers=_STRANGER, timeout=60) for _ in range(70)]
        else:
            form = "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
            requests_begun = {
                "slow uploads": f"POST /gradio_api/upload HTTP/1.1\r\n{head}{form}",
                "slow joins": f"POST /gradio_api/queue/join HTTP/1.1\r\n{head}\r\n{{",
                "slow heads": "GET / HTTP/1.1\r\nHost",
            }
            for _ in range(200):
                begin(requests_begun[what])
            waiting = []
        yield
        concurrent.futures.wait(waiting)


def play_during(address: str, what: str, tune: Tune, stranger: Tune, folder: Path) -> tuple[float, bool]:
    """Return a visitor's waiting time in s while another overloads the page, and whether the tune was correct."""
    with crowd(address, what, stranger[0]):
        time.sleep(0.5)
        started = time.perf_counter()
        client = Client(address, verbose=False, download_files=str(folder / what))
        sound, *_ = client.predict(handle_file(tune[0]), "trumpet", 0, api_name="/transfer")
        waited = time.perf_counter() - started
    return waited, is_tune(sound, tune[1])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Load test of the web page with many clients.")
    parser.add_argument("--clients", type=int, default=32, help="simultaneous clients, 1 to 64 (default: 32)")
    parser.add_argument("--requests", type=int, default=200, help="successive requests (default: 200)")
    args = parser.parse_args(argv)
    if not 1 <= args.clients <= 64 or args.requests < 1:
        parser.error("--clients should be 1 to 64, and --requests at least 1")
    return args


@as_command(level=logging.WARNING)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="page_load_") as name:
        folder = Path(name)
        tunes = write_tunes(folder, args.clients)
        with running_page(folder) as (address, process):
            right, waited = play_at_once(address, tunes, folder)
            warm, end = play_in_turn(address, tunes, args.requests, process, folder)
            seconds = time_browser(address, folder)
            crowds = ("uploads", "silent joins", "slow uploads", "slow joins", "slow heads")
            waits = {what: play_during(address, what, tunes[0], tunes[-1], folder) for what in crowds}
    growth = end / warm - 1
    rows = [
        ["clients at once", args.clients],
        ["got the tune that they sent", right],
        ["answer, median and last", f"{np.median(waited):.1f} s, {max(waited):.1f} s"],
        [f"memory after {min(_WARM, args.requests)} requests", f"{warm:.0f} MB"],
        [f"memory after {args.requests} requests", f"{end:.0f} MB ({100 * growth:+.1f} %)"],
        *seconds,
        *([f"another visitor during {what}", f"{waited:.1f} s"] for what, (waited, _) in waits.items()),
    ]
    print(f"{describe_machine()}\n\n{format_table(['measured', 'value'], rows)}")
    is_served = all(is_right and waited <= _MAX_WAIT for waited, is_right in waits.values())
    return 0 if right == args.clients and growth <= _MAX_GROWTH and is_served else 1


if __name__ == "__main__":
    raise SystemExit(main())
