"""Live: a voice from the microphone in, an instrument out, while it is sung.

    ./venv/bin/python live.py --instrument trumpet

Nothing is known of what comes later, so register and level are fixed beforehand, a note begins and ends by a gate
with hysteresis, and a pitch is the median of the last three. Headphones keep the instrument out of the microphone.
"""

import argparse
import logging
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from checkpoint import load_model, pretrained_path
from conditioning import TransferOptions
from curves import Curves
from features import Ears
from model import NeuralGuitar, Sound
from player import Player

_DEFAULTS = TransferOptions()
# What needs the whole recording, or the notes to come.
WHOLE_ONLY = ("fold", "autotune", "key", "smoothing", "output_rate")
log = logging.getLogger("live")


class Frame(NamedTuple):
    """What was heard in a frame, and what is played."""

    heard: tuple[float, float, float]  # f0 in Hz, loudness in dB, periodicity
    f0: float  # Hz
    loudness: float  # dB
    voiced: bool
    gate: float  # 0..1


def curves_of(frames: list[Frame]) -> Curves:
    """Return what was played as curves."""
    heard, f0, loudness, voiced, gate = zip(*frames)
    periodicity = [each[2] for each in heard]
    f0, loudness, periodicity, gate = (np.array(values, np.float32) for values in (f0, loudness, periodicity, gate))
    return Curves(f0, loudness, periodicity, np.array(voiced), gate)


class CausalFit:
    """Fits frame after frame to the model's instrument, as ``conditioning.fit`` does a whole melody."""

    def __init__(self, model: NeuralGuitar, options: TransferOptions) -> None:
        config, settings = model.settings, model.settings.transfer
        middle = model.statistics["f0_quantiles"][50]
        octaves = round(float(np.log2(middle / settings.live_f0))) if options.fit else 0
        register = 12.0 * octaves if options.semitones is None else options.semitones
        wanted = model.statistics["loudness_quantiles"][settings.loudness_anchor]
        self.semitones = register + options.transpose
        self.gain = (wanted - settings.live_loudness if options.fit else 0.0) + options.loudness_offset  # dB
        self._floor, self._ceiling = config.features.loudness_floor, 0.0
        if options.fit:
            self._ceiling = model.statistics["loudness_quantiles"][-1]
        self._settings, self._opening = settings, settings.live_gate + options.gate_offset
        self._n_release = config.audio.seconds_to_frames(settings.release_seconds)
        self._n_fade = max(1, config.audio.seconds_to_frames(settings.gate_fade_seconds))
        self._last = deque(maxlen=3)  # f0 of the note's newest frames
        self._f0, self._given = middle, self._floor
        self._voiced, self._since, self._openness = False, self._n_release, 0.0

    def fit(self, heard: tuple[float, float, float]) -> Frame:
        """Fit the next frame."""
        f0, loudness, periodicity = heard
        self._voiced = self._is_voiced(loudness, periodicity)
        if self._voiced:
            self._since = 0
            self._last.append(f0 * 2 ** (self.semitones / 12))
            self._f0 = statistics.median(self._last)
            self._given = min(loudness + self.gain, self._ceiling)
        else:
            self._since += 1
            self._last.clear()
        fallen = self._settings.release_fall * self._since / max(1, self._n_release)
        # The gate closes over the last frames of the release, so that nothing is cut off.
        sounds = self._since <= self._n_release - self._n_fade
        self._openness += max(-1 / self._n_fade, min(float(sounds) - self._openness, 1 / self._n_fade))
        gate = math.sin(self._openness * math.pi / 2) ** 2
        return Frame(heard, self._f0, max(self._given - fallen, self._floor), self._voiced, gate)

    def _is_voiced(self, loudness: float, periodicity: float) -> bool:
        settings = self._settings
        if self._voiced:
            below = self._opening - settings.gate_hysteresis
            return periodicity > settings.sustained_periodicity and loudness > below
        return periodicity > settings.voiced_periodicity and loudness > self._opening


class StreamingTransfer:
    """A voice in, an instrument out, in blocks of any sizes: the sound does not depend on them, to the bit.

    ``latency`` is by how many samples the output lags behind the input, blocks aside: half of CREPE's window, and
    the frames that a ``Player`` is behind.
    """

    def __init__(self, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0) -> None:
        """Take a model from ``checkpoint.load_model``.

        Raises:
            ValueError: an option that needs the whole recording, or a model that does not play at the features' rate.
        """
        audio = model.settings.audio
        for name in WHOLE_ONLY:
            if getattr(options, name) != getattr(_DEFAULTS, name):
                raise ValueError(f"{name} needs the whole recording; it cannot be had while the voice comes in")
        if audio.feature_rate != audio.sample_rate:
            raise ValueError(f"a model of {audio.sample_rate} Hz cannot be played live, only {audio.feature_rate} Hz")
        self.fitting, self._ears = CausalFit(model, options), Ears(model.settings)
        self._player, self._device = Player(model, options.noise_balance, seed), next(model.parameters()).device
        self._peak = 10 ** (model.settings.transfer.max_peak / 20)
        self.rate = audio.sample_rate
        self.latency = self._ears.reach + self._player.latency * audio.hop_length - 1
        self._ready = np.zeros(self.latency, np.float32)

    def process(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples [n] and return as many, which belong ``latency`` samples earlier."""
        parts = [sound.audio[0].cpu().numpy() for _, sound in self.advance(block)]
        self._ready = np.concatenate([self._ready, *parts])
        played, self._ready = self._ready[: len(block)], self._ready[len(block) :]
        return played

    def advance(self, block: np.ndarray) -> Iterator[tuple[Frame, Sound]]:
        """Take the next samples [n]; yield each frame that is complete, and the sound that it completes."""
        for heard in self._ears.listen(block):
            frame = self.fitting.fit(heard)
            values = (torch.full((1, 1, 1), value, device=self._device) for value in frame[1:3] + frame[4:])
            sound, _ = self._player.play(*values)
            yield frame, self._limit(sound)

    def _limit(self, sound: Sound) -> Sound:
        """Clip what is too loud; how loud it will be nobody knows."""
        scale = (self._peak / sound.audio.abs().clamp(min=1e-9)).clamp(max=1.0)
        return Sound(sound.harmonic * scale, sound.noise * scale)


# --- the microphone -------------------------------------------------------------------------------


class AudioDeviceError(ValueError):
    """There is no sound device, or not the one that was asked for."""


def open_sounddevice() -> ModuleType:
    """Return the package sounddevice, which is no requirement.

    Raises:
        AudioDeviceError: it, or the library PortAudio, is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        message = "the package sounddevice is missing; install it by ./venv/bin/python -m pip install sounddevice"
        raise AudioDeviceError(message) from error
    except OSError as error:
        raise AudioDeviceError(f"{error}; on Debian and Ubuntu it is the package libportaudio2") from error
    return sounddevice


class Meter:
    """What the level meter shows; the sound card's thread writes it, the terminal's reads it."""

    def __init__(self) -> None:
        self.heard = self.played = 0.0  # peaks since the meter was last drawn
        self.n_late = 0  # blocks that came too late

    def draw(self) -> str:
        """Return a line, and begin anew."""
        bars = (f"{name} {_bar(peak)}" for name, peak in (("voice", self.heard), ("instrument", self.played)))
        self.heard = self.played = 0.0
        return "  ".join([*bars, f"late {self.n_late}"])


def _bar(peak: float, width: int = 24) -> str:
    """Draw -60 to 0 dBFS."""
    level = 20 * np.log10(max(peak, 1e-6))
    n_filled = int(np.clip(round(width * (1 + level / 60)), 0, width))
    return f"{'#' * n_filled}{'.' * (width - n_filled)} {level:4.0f} dB"


def play_live(stream: StreamingTransfer, rate: int, args: argparse.Namespace) -> None:
    """Play until Ctrl-C.

    Raises:
        AudioDeviceError: no sound device, or it cannot be opened.
    """
    sounddevice, meter = open_sounddevice(), Meter()

    def process(heard: np.ndarray, played: np.ndarray, n_samples: int, clock: Any, status: Any) -> None:
        played[:, 0] = stream.process(heard[:, 0])
        meter.heard, meter.played = max(meter.heard, np.abs(heard).max()), max(meter.played, np.abs(played).max())
        meter.n_late += bool(status)

    devices = (_device_name(args.input_device), _device_name(args.output_device))
    block = round(args.block_ms * rate / 1000)
    try:
        with sounddevice.Stream(
            samplerate=rate, blocksize=block, device=devices, channels=1, dtype="float32", latency="low",
            callback=process,
        ) as opened:  # fmt: skip
            cards = 1000 * sum(opened.latency)
            own = 1000 * stream.latency / rate
            log.info("latency: %.0f ms here, %.0f ms a block, %.0f ms in the sound card", own, args.block_ms, cards)
            while True:
                time.sleep(0.1)
                print(f"\r{meter.draw()} ", end="", file=sys.stderr, flush=True)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioDeviceError(f"no sound device can be opened ({error}); see --list_devices") from error


def _device_name(name: str | None) -> int | str | None:
    return int(name) if name and name.isdigit() else name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sing, and an instrument plays it at once. Wear headphones.")
    parser.add_argument("--instrument", default="trumpet", help="a shipped model (default trumpet)")
    parser.add_argument("--checkpoint", type=Path, help="your own model instead")
    parser.add_argument("--input_device", help="number or part of the name of the microphone")
    parser.add_argument("--output_device", help="number or part of the name of the headphones")
    parser.add_argument("--list_devices", action="store_true", help="list the sound devices and stop")
    parser.add_argument("--block_ms", type=float, default=10.0, help="milliseconds at a time (default 10)")
    parser.add_argument("--semitones", type=float, help="the register, instead of the one that suits a middle voice")
    parser.add_argument("--transpose", type=float, default=0.0, help="semitones on top of the register")
    parser.add_argument("--loudness_offset", type=float, default=0.0, help="dB louder or softer")
    parser.add_argument("--gate_offset", type=float, default=0.0, help="dB: higher leaves more silent")
    parser.add_argument("--noise_balance", type=float, default=0.0, help="dB: more breath, or less")
    args = parser.parse_args(argv)
    if not 1 <= args.block_ms <= 1000:
        parser.error("--block_ms should be between 1 and 1000")
    names = ("semitones", "transpose", "loudness_offset", "gate_offset", "noise_balance")
    try:
        args.options = TransferOptions(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        parser.error(f"--{error}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # a frame is too small to be shared, and a second thread would wake up too late
    try:
        if args.list_devices:
            print(open_sounddevice().query_devices() or "there are no sound devices")
            return 0
        model = load_model(args.checkpoint or pretrained_path(args.instrument), "cpu")
        stream = StreamingTransfer(model, args.options)
        stream.process(np.zeros(model.audio.sample_rate, np.float32))  # what is loaded at first use, is loaded now
        play_live(stream, model.audio.sample_rate, args)
    except (ValueError, OSError) as error:
        log.error("live.py: %s", error)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
