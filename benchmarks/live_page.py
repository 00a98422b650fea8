"""Measure the live page in headless Chromium: latency from onset to sound, gaps, memory and time to first sound.

    ./venv/bin/python benchmarks/live_page.py --seconds 300 --output docs/live_page_latency.png

Notes with known onsets replace the microphone at the input of the audio graph. A note sounds when the output first
exceeds a tenth of its later peak (-20 dB), measured to 1 ms. The latency of the audio device is not included. The page
is served on the loopback interface. Chromium and its driver must be installed, and web/live/vendor/ must be populated.
"""

import argparse
import functools
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import matplotlib.figure
import numpy as np
import soundfile
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from measuring import describe_machine, format_table, resident_mb
from sound.console import as_command, command_parser
from web.live_page import write_static_page

_SETTLE = 10.0  # s before the measurement starts
_MEMORY = 20.0  # s between measurements of memory, which falls and rises with garbage collection
_RATE = 48000
_NOTE, _REST = 0.5, 0.3  # s
_NOTES = (147.0, 165.0, 196.0, 220.0, 247.0, 294.0, 330.0, 392.0)  # Hz
_BELOW = 10 ** (-20 / 20)

# Runs in the page: the notes replace the microphone; a probe stores input and output peaks for each millisecond.
_PROBE = """
const [notes, rate] = arguments;
const done = arguments[arguments.length - 1];
const code = `registerProcessor("probe", class extends AudioWorkletProcessor {
  constructor() { super(); this.bin = 0; this.peaks = [0, 0]; this.kept = []; }
  process(inputs) {
    for (let i = 0; i < 128; i++) {
      for (const end of [0, 1]) this.peaks[end] = Math.max(this.peaks[end], Math.abs(inputs[end][0]?.[i] ?? 0));
      const bin = Math.floor((currentFrame + i + 1) * 1000 / sampleRate);
      if (bin === this.bin) continue;
      this.bin = bin;
      this.kept.push(...this.peaks);
      this.peaks = [0, 0];
    }
    if (this.kept.length > 2000) this.port.postMessage(this.kept.splice(0));
    return true;
  }
});`;
const { context, node, input } = live;
const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
context.audioWorklet.addModule(address).then(() => {
  const probe = new AudioWorkletNode(context, "probe", { numberOfInputs: 2, numberOfOutputs: 1 });
  const buffer = context.createBuffer(1, notes.length, rate);
  buffer.copyToChannel(Float32Array.from(notes), 0);
  const source = new AudioBufferSourceNode(context, { buffer, loop: true });
  window.peaks = [];
  probe.port.onmessage = ({ data }) => peaks.push(...data);
  input.disconnect();
  source.connect(node);
  source.connect(probe, 0, 0);
  node.connect(probe, 0, 1);
  probe.connect(context.destination);
  source.start();
  done();
});
"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
    }

    def log_message(self, *_) -> None:
        pass


@contextmanager
def open_page(folder: Path, voice: Path) -> Iterator[webdriver.Chrome]:
    """Serve a folder's ``site`` and open it in Chromium, with a sound file as the microphone."""
    handler = functools.partial(_Handler, directory=folder / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "mute-audio",
        "disable-background-networking",
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
        f"use-file-for-fake-audio-capture={voice}",
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    os.environ["SE_OFFLINE"] = "true"
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        yield driver
    finally:
        driver.quit()
        server.shutdown()


def make_notes() -> np.ndarray:
    """Return voice-like notes, [n] at 48 kHz, with fade-ins of 10 ms."""
    seconds = np.arange(round(_NOTE * _RATE)) / _RATE
    fade = np.clip(np.minimum(seconds / 0.01, (_NOTE - seconds) / 0.05), 0, 1)
    tones = [sum(np.sin(2 * np.pi * k * f0 * seconds) / k for k in range(1, 13)) for f0 in _NOTES]
    return np.concatenate([np.pad(0.1 * tone * fade, (0, round(_REST * _RATE))) for tone in tones]).astype(np.float32)


def wait(driver: webdriver.Chrome, condition: str, seconds: float = 60.0) -> float:
    """Wait until a condition is true in the page; return the waiting time in s."""
    started = time.perf_counter()
    while not driver.execute_script(f"return Boolean({condition})"):
        if time.perf_counter() - started > seconds:
            raise ValueError(f"the page never came to {condition}: {driver.execute_script('return live.state')}")
        time.sleep(0.02)
    return time.perf_counter() - started


def find_latencies(peaks: np.ndarray) -> np.ndarray:
    """Return the latency in ms from each onset to its sound, given peaks [ms, 2] of input and output."""
    microphone, played = peaks.T
    quiet = np.convolve(microphone > 0.003, np.ones(100))[: len(microphone)]
    onsets = np.flatnonzero((microphone[1:] > 0.003) & (quiet[:-1] == 0)) + 1
    latencies = []
    for onset in onsets[1:-1]:
        note = played[onset : onset + round(1000 * _NOTE)]
        latencies.append(int(np.argmax(note > _BELOW * note.max())))
    return np.array(latencies)


def renderer_mb(driver: webdriver.Chrome) -> float:
    """Return the resident memory of Chromium's renderer processes in MB."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    family = {str(driver.service.process.pid)}
    while grown := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= grown
    return sum(resident_mb(int(pid)) for pid, _, words in rows if pid in family and "--type=renderer" in words)


def plot(latencies: np.ndarray) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(latencies, bins=np.arange(0, max(120, latencies.max() + 5), 2), color="tab:orange")
    middle, high = np.percentile(latencies, (50, 95))
    axes.axvline(middle, color="black", linewidth=1, label=f"median {middle:.0f} ms, 95 % under {high:.0f} ms")
    axes.set(xlabel="ms from a note's onset to its sound, inside the page", ylabel="notes")
    axes.set_title("the live page in Chromium")
    axes.legend(loc="upper left")
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Measure the live page in headless Chromium.")
    parser.add_argument("--seconds", type=float, default=300.0, help="of playing (default 300)")
    parser.add_argument("--output", type=Path, help="draw the latencies here (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    if not 10 <= args.seconds <= 36000:
        parser.error("--seconds should be between 10 and 36000")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder, notes = Path(temporary), make_notes()
        write_static_page(folder / "site")
        soundfile.write(folder / "voice.wav", notes, _RATE)
        with open_page(folder, folder / "voice.wav") as driver:
            for _ in range(2):  # the second start has a warm cache
                wait(driver, "!document.getElementById('start').disabled")
                driver.execute_script("document.getElementById('start').click()")
                first = wait(driver, "live.report && live.report.soundPeak > 0.003")
                if _ == 0:
                    driver.refresh()
            rate = driver.execute_script("return live.context.sampleRate")
            driver.execute_async_script(_PROBE, notes.tolist(), _RATE)
            time.sleep(_SETTLE)
            driver.execute_script("peaks.length = 0")
            before, memory = driver.execute_script("return live.report"), [renderer_mb(driver)]
            ends = np.append(np.arange(_MEMORY, args.seconds, _MEMORY), args.seconds)
            for seconds in np.diff(ends, prepend=0):
                time.sleep(seconds)
                memory.append(renderer_mb(driver))
            after, peaks, shown = driver.execute_script("return [live.report, peaks, live.latency]")
    latencies = find_latencies(np.array(peaks).reshape(-1, 2))
    n_blocks, gaps = (after[name] - before[name] for name in ("blocks", "underruns"))
    print(f"{describe_machine()}; Chromium, context at {rate:g} Hz, {len(latencies)} notes")
    print(
        f"{gaps} gaps in {n_blocks} blocks of 10 ms; memory {memory[0]:.0f} MB, at the end {memory[-1]:.0f} MB, "
        f"at most {max(memory):.0f} MB; "
        f"first sound {first:.1f} s after Start; the page shows {shown:.0f} ms\n"
    )
    shares = (50, 90, 95, 99, 100)
    row = ["onset to -20 dB, ms", *(f"{value:.0f}" for value in np.percentile(latencies, shares))]
    print(format_table(["", "median", "90 %", "95 %", "99 %", "worst"], [row]))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot(latencies).savefig(args.output, dpi=150)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
