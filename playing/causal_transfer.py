"""Causal transfer: an instrument plays a voice without look-ahead.

The live graph (``live_graph.py``) computes the sound hop by hop. This module accepts blocks of any size at the model's
rate. ``live.py`` uses it for the microphone, ``transfer.py --causal`` for files.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import signal

from model import NeuralGuitar, Sound
from playing.block_model import StatePacker
from playing.export import read_onnx
from playing.live_graph import LiveGraph, shown_values
from voice.curves import Curves
from voice.instrument_fit import TransferOptions
from voice.melody import TOO_HIGH_REPORTED, NoMelodyError, SilentError

_DEFAULTS = TransferOptions()
_LOOK_AHEAD = ("fold", "autotune", "key", "smoothing", "harmony", "ensemble")


class PlayedFrame(NamedTuple):
    """Measured and played values of one frame."""

    measured: tuple[float, float, float]  # f0 in Hz, loudness in dB, periodicity
    f0: float  # Hz
    loudness: float  # dB
    voiced: bool
    gate: float  # 0..1


def frames_to_curves(frames: list[PlayedFrame]) -> Curves:
    """Return the played values of frames as curves."""
    measured, f0, loudness, voiced, gate = zip(*frames)
    periodicity = [each[2] for each in measured]
    f0, loudness, periodicity, gate = (np.array(values, np.float32) for values in (f0, loudness, periodicity, gate))
    return Curves(f0, loudness, periodicity, np.array(voiced), gate)


def require_melody(frames: list[PlayedFrame], floor: float, gate: float, share_too_high: float) -> None:
    """Raise SilentError or NoMelodyError if no frame is voiced; ``floor`` and ``gate`` are in dB."""
    if any(frame.voiced for frame in frames):
        return
    if all(frame.measured[1] <= floor for frame in frames):
        raise SilentError("the recording is silent")
    if share_too_high > TOO_HIGH_REPORTED:
        raise NoMelodyError(
            "the melody is above 1,975 Hz, the highest pitch that can be followed live and with --causal; "
            "leave --causal out, or whistle lower"
        )
    raise NoMelodyError(
        f"no melody exceeds the gate of {gate:g} dB; sing closer to the microphone, or lower gate_offset"
    )


def require_causal_options(options: TransferOptions) -> None:
    """Raise ValueError for an option that needs look-ahead."""
    for name in _LOOK_AHEAD:
        if getattr(options, name) != getattr(_DEFAULTS, name):
            raise ValueError(f"{name} needs look-ahead, which live playing and --causal do not have")


class Decimator:
    """Decimator of a stream by an integer factor; the output is bit-identical for any block sizes."""

    def __init__(self, factor: int) -> None:
        """Design the low-pass filter; ``delay`` is its delay in samples at the higher rate."""
        self.factor, n_taps = factor, 1 if factor == 1 else 32 * factor + 1
        # -6 dB at 0.9 of the lower Nyquist frequency, about -50 dB from the lower Nyquist frequency up.
        self.taps = np.ones(1) if factor == 1 else signal.firwin(n_taps, 0.9 / factor)
        self._state, self._offset = np.zeros(n_taps - 1), 0
        self.delay = n_taps // 2

    def process(self, block: np.ndarray) -> np.ndarray:
        """Filter the next samples [n] and return the decimated samples [about n / factor]."""
        if self.factor == 1:
            return block
        filtered, self._state = signal.lfilter(self.taps, 1.0, block, zi=self._state)
        kept = filtered[self._offset :: self.factor]
        self._offset = (self._offset - len(block)) % self.factor
        return kept.astype(np.float32)


class StreamingTransfer:
    """Causal transfer of a stream; the output is bit-identical for any block sizes.

    ``latency`` is the delay of the output in samples at ``rate``, without the block length. It is the sum of the
    latency of the live graph, one hop and, if ``rate`` is higher than the feature rate, the delay of the
    decimator.
    """

    def __init__(
        self, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0, graph_file: Path | None = None
    ) -> None:
        """Prepare a model for streaming.

        Args:
            model: model from ``checkpoint.load_model``.
            options: options chosen by the user.
            seed: seed of the noise.
            graph_file: live graph of the model, from ``export.cached_live_graph``. If given, onnxruntime runs it
                instead of PyTorch, which is faster, and harmonics and noise are returned as one sum.

        Raises:
            ValueError: an option needs look-ahead, ``output_rate`` differs from the model's rate, or the model's rate
                is not a multiple of the feature rate.
        """
        audio = model.settings.audio
        require_causal_options(options)
        if options.output_rate not in (None, audio.sample_rate):
            raise ValueError(f"a stream comes at the model's {audio.sample_rate} Hz; resample what it returns")
        ratio, rest = divmod(audio.sample_rate, audio.feature_rate)
        if rest:
            raise ValueError(
                f"a model of {audio.sample_rate} Hz cannot be played live; its rate should be a multiple of "
                f"{audio.feature_rate} Hz"
            )
        on_cpu = next(model.parameters()).device.type == "cpu"  # a frame is too small to benefit from a GPU
        self.graph = LiveGraph(model if on_cpu else copy.deepcopy(model).cpu(), options).eval()
        self.controls, self._state = self.graph.controls(), self.graph.initial_state()
        self._run = None
        if graph_file is not None:
            packer = StatePacker(self._state)
            self._run, self._state = read_onnx(graph_file), [torch.zeros_like(each) for each in packer.buffers()]
        self.rate, self.feature_rate, self._hop_length = audio.sample_rate, audio.feature_rate, audio.feature_hop_length
        self._noise = torch.Generator().manual_seed(seed)
        self._decimator, self._min_gain = Decimator(ratio), 1.0
        self._voice = np.zeros(-self.graph.reach % self._hop_length, np.float32)  # aligns frame 0 with sample 0
        self.frames_before = (self.graph.reach + len(self._voice)) // self._hop_length - 1  # frames before the voice
        self.sound_before = ratio * (self.frames_before + 1) * self._hop_length + self.graph.player.latency
        self.sound_before -= audio.hop_length  # samples of sound before the voice
        self._output = np.zeros(ratio * (self._hop_length - len(self._voice) - 1), np.float32)
        self.latency = self.sound_before + len(self._output) + self._decimator.delay
        self.on_frame: Callable[[PlayedFrame], Any] | None = None  # called by ``process`` with each played frame

    def process(self, block: np.ndarray) -> np.ndarray:
        """Play the next samples [n] at ``rate``; return sound [n], delayed by ``latency`` samples."""
        voice = self._decimator.process(block)
        parts = []
        for frame, sound in self.process_frames(voice):
            parts.append(sound.audio[0].numpy())
            if self.on_frame:
                self.on_frame(frame)
        self._output = np.concatenate([self._output, *parts])
        played, self._output = self._output[: len(block)], self._output[len(block) :]
        return played

    def process_frames(self, block: np.ndarray) -> Iterator[tuple[PlayedFrame, Sound]]:
        """Play the next samples [n] at ``feature_rate``; yield each complete frame and the next hop of sound.

        The first ``frames_before`` frames and ``sound_before`` samples of sound precede the voice.
        """
        self._voice = np.concatenate([self._voice, block], dtype=np.float32)
        while len(self._voice) >= self._hop_length:
            hop, self._voice = self._voice[: self._hop_length], self._voice[self._hop_length :]
            yield self._play(hop)

    @torch.inference_mode()
    def _play(self, hop: np.ndarray) -> tuple[PlayedFrame, Sound]:
        noise = 2 * torch.rand(self.graph.config.audio.hop_length, generator=self._noise) - 1
        voice = torch.from_numpy(hop)
        if self._run:
            audio, shown, *self._state = self._run(voice, noise, self.controls, *self._state)
            sound = Sound(audio[None], torch.zeros_like(audio)[None])
        else:
            sound, shown, self._state = self.graph(voice, noise, self.controls, self._state)
        values = shown_values(shown)
        self._min_gain = min(self._min_gain, values["limiter_gain"])
        measured = values["f0"], values["loudness"], values["periodicity"]
        played = values["played_f0"], values["played_loudness"], values["voiced"] > 0, values["gate"]
        return PlayedFrame(measured, *played), sound

    @property
    def peak_gain(self) -> float:
        """Lowest gain of the limiter so far in dB; 0 or less."""
        return 20 * math.log10(self._min_gain)
