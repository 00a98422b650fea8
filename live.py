"""Live transfer: plays the voice from the microphone on an instrument in real time.

    ./venv/bin/python live.py --instrument trumpet

onnxruntime runs the live graph (``playing/live_graph.py``); PyTorch runs models that cannot be exported. This file
connects the graph to the sound card and to MIDI. Use headphones, so that the microphone does not pick up the
instrument. Whistling above 1,976 Hz is outside CREPE's range and is not tracked; ``transfer.py`` plays it an octave
lower.
"""

import argparse
import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mido
import numpy as np
import torch

from checkpoint import load_model, pretrained_path
from model import NeuralGuitar
from playing.causal_transfer import StreamingTransfer
from playing.export import cached_live_graph
from playing.live_midi import NoteWriter, open_midi_port
from sound.console import as_command, command_parser
from voice.instrument_fit import TransferOptions

_PRIORITY = 10  # real-time priority, 1 to 99; the kernel's threads have 50
log = logging.getLogger("live")


class AudioDeviceError(ValueError):
    """Error if there is no sound device, or not the requested one."""


def import_sounddevice() -> ModuleType:
    """Return the optional package sounddevice.

    Raises:
        AudioDeviceError: sounddevice or the library PortAudio is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        message = "the package sounddevice is missing; install it by ./venv/bin/python -m pip install sounddevice"
        raise AudioDeviceError(message) from error
    except OSError as error:
        raise AudioDeviceError(f"{error}; on Debian and Ubuntu it is the package libportaudio2") from error
    return sounddevice


class LevelMeter:
    """Level meter of input and output; the audio thread writes the levels, the main thread reads them."""

    def __init__(self) -> None:
        self.input_peak = self.output_peak = 0.0  # since the last ``draw``
        self.n_late = 0  # blocks with an overflow or underflow
        self.peak_gain = 0.0  # dB, lowest limiter gain so far

    def draw(self) -> str:
        """Return one line for the terminal, and reset the peaks."""
        bars = (f"{name} {_bar(peak)}" for name, peak in (("voice", self.input_peak), ("instrument", self.output_peak)))
        self.input_peak = self.output_peak = 0.0
        limited = [f"turned down by up to {-self.peak_gain:.0f} dB"] if self.peak_gain < -0.5 else []
        return "  ".join([*bars, f"late {self.n_late}", *limited])


def _bar(peak: float, width: int = 24) -> str:
    """Return a bar for a linear peak, -60 to 0 dBFS."""
    level = 20 * np.log10(max(peak, 1e-6))
    n_filled = int(np.clip(round(width * (1 + level / 60)), 0, width))
    return f"{'#' * n_filled}{'.' * (width - n_filled)} {level:4.0f} dB"


def play_live(stream: StreamingTransfer, rate: int, args: argparse.Namespace) -> None:
    """Play until Ctrl-C.

    Raises:
        AudioDeviceError: there is no sound device, it cannot be opened, or it has stopped.
    """
    sounddevice, meter = import_sounddevice(), LevelMeter()

    def process(recorded: np.ndarray, played: np.ndarray, n_samples: int, clock: Any, status: Any) -> None:
        voice = np.nan_to_num(recorded[:, 0]).clip(-1, 1)  # a single NaN would silence all later samples
        played[:, 0] = stream.process(voice)
        meter.input_peak, meter.output_peak = (
            max(meter.input_peak, np.abs(voice).max()),
            max(meter.output_peak, np.abs(played).max()),
        )
        meter.n_late, meter.peak_gain = meter.n_late + bool(status), stream.peak_gain

    devices = (_device_name(args.input_device), _device_name(args.output_device))
    block = round(args.block_ms * rate / 1000)
    try:
        with sounddevice.Stream(
            samplerate=rate,
            blocksize=block,
            device=devices,
            channels=1,
            dtype="float32",
            latency="low",
            callback=process,
        ) as opened:
            cards = 1000 * sum(opened.latency)
            own = 1000 * stream.latency / rate
            log.info("latency: %.0f ms here, %.0f ms a block, %.0f ms in the sound card", own, args.block_ms, cards)
            while opened.active:
                time.sleep(0.1)
                print(f"\r{meter.draw()} ", end="", file=sys.stderr, flush=True)
            raise AudioDeviceError("the sound device has stopped; is it still plugged in?")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioDeviceError(f"no sound device can be opened ({error}); see --list_devices") from error
    finally:
        print(file=sys.stderr)  # end the line of the meter


def prepare_graph(checkpoint: Path) -> Path | None:
    """Return the path of a checkpoint's live graph for onnxruntime, or None if it cannot be exported or written."""
    try:
        return cached_live_graph(checkpoint)
    except (ValueError, OSError) as error:
        log.info("using PyTorch, which is slower than onnxruntime: %s", error)
        return None


def send_midi(stream: StreamingTransfer, port: mido.ports.BaseOutput) -> contextlib.AbstractContextManager:
    """Return a context manager that sends the played notes of a stream to a MIDI port."""
    writer = NoteWriter()
    stream.on_frame = lambda frame: [port.send(message) for message in writer.follow(frame)]

    @contextlib.contextmanager
    def sending() -> Iterator[None]:
        try:
            yield
        finally:
            for message in writer.end():
                port.send(message)
            port.close()

    return sending()


def warm_up(model: NeuralGuitar, graph_file: Path | None = None) -> None:
    """Run a stream once, so that one-time initialization does not delay the audio thread."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (50, model.audio.hop_length)).astype(np.float32)
    stream = StreamingTransfer(model, graph_file=graph_file)  # separate, so that the real one keeps its state
    for block in noise:  # noise, because silence would not run every step
        stream.process(block)
    gc.collect()
    gc.freeze()  # exclude existing objects from later garbage collections


def request_realtime_priority() -> bool:
    """Give this thread and the threads it starts real-time priority; return True if the system allows it.

    The main thread needs it too, because the audio thread waits while it holds the GIL. macOS and Windows raise the
    priority of audio threads automatically.
    """
    if sys.platform != "linux":
        return True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except PermissionError:
        return False
    return True


def _device_name(name: str | None) -> int | str | None:
    return int(name) if name and name.isdigit() else name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(
        "Sing, and an instrument plays it at once. Wear headphones. Whistling above 1,976 Hz is not followed live."
    )
    parser.add_argument("--instrument", default="trumpet", help="a shipped model (default: trumpet)")
    parser.add_argument("--checkpoint", type=Path, help="your own model instead, such as checkpoints/latest.pth")
    parser.add_argument("--input_device", help="microphone: its number or part of its name")
    parser.add_argument("--output_device", help="headphones: number or part of the name")
    parser.add_argument("--list_devices", action="store_true", help="list the sound devices and exit")
    parser.add_argument("--midi_out", metavar="PORT", help="also send MIDI notes with pitch bend to this port")
    parser.add_argument("--block_ms", type=float, default=10.0, help="milliseconds per block (default: 10)")
    parser.add_argument("--no_realtime", action="store_true", help="do not request real-time priority")
    parser.add_argument("--semitones", type=float, help="shift, instead of the register for a voice of medium pitch")
    parser.add_argument("--transpose", type=float, default=0.0, help="semitones added to the register")
    parser.add_argument(
        "--loudness_offset", type=float, default=0.0, help="dB louder and brighter, or softer and darker"
    )
    parser.add_argument(
        "--gate_offset", type=float, default=0.0, help="dB: higher silences more, lower plays softer notes"
    )
    parser.add_argument("--noise_balance", type=float, default=0.0, help="dB: more or less breath relative to the tone")
    args = parser.parse_args(argv)
    if not 1 <= args.block_ms <= 1000:
        parser.error("--block_ms should be between 1 and 1000")
    names = ("semitones", "transpose", "loudness_offset", "gate_offset", "noise_balance")
    try:
        args.options = TransferOptions(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        parser.error(f"--{error}")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(1)  # a frame is too small for several threads, and waking them takes too long
    if args.list_devices:
        print(import_sounddevice().query_devices() or "there are no sound devices")
        return 0
    port = open_midi_port(args.midi_out) if args.midi_out else None
    checkpoint = args.checkpoint or pretrained_path(args.instrument)
    model, graph_file = load_model(checkpoint, "cpu"), prepare_graph(checkpoint)
    stream = StreamingTransfer(model, args.options, graph_file=graph_file)
    warm_up(model, graph_file)
    if not args.no_realtime and not request_realtime_priority():
        log.info("other programs may cause gaps: this user has no right to real-time priority (see docs/live.md)")
    with send_midi(stream, port) if port else contextlib.nullcontext():
        play_live(stream, model.audio.sample_rate, args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
