"""Causal transfer: an instrument plays a voice while it comes in, and nothing is known of what follows.

Register and level are fixed beforehand, a note begins and ends by a gate with hysteresis, a pitch is the median
of the last three, and a limiter turns down what would be too loud. ``live.py`` plays the microphone so, and
``transfer.py --causal`` a file.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import signal

from config import Config
from features import FeatureStream
from model import NeuralGuitar, Sound
from playing.block_player import BlockPlayer
from voice.causal_plucks import CausalPlucker
from voice.curves import GATE_FADE_SECONDS, Curves
from voice.fitting import LOUDNESS_ANCHOR, InstrumentProfile, TransferOptions
from voice.melody import NoMelodyError, SilentError

_DEFAULTS = TransferOptions()
_LOOK_AHEAD = ("fold", "autotune", "key", "smoothing", "harmony", "ensemble")
LIMITER_HOLD_SECONDS = 0.03  # what was turned down stays so: over half a cycle of the lowest note, or it hums
LIMITER_RELEASE_SECONDS = 0.08  # and then comes back, to 1/e of the way in so long


class PlayedFrame(NamedTuple):
    """What was measured in a frame, and what is played."""

    measured: tuple[float, float, float]  # f0 in Hz, loudness in dB, periodicity
    f0: float  # Hz
    loudness: float  # dB
    voiced: bool
    gate: float  # 0..1


def frames_to_curves(frames: list[PlayedFrame]) -> Curves:
    """Return what was played as curves."""
    measured, f0, loudness, voiced, gate = zip(*frames)
    periodicity = [each[2] for each in measured]
    f0, loudness, periodicity, gate = (np.array(values, np.float32) for values in (f0, loudness, periodicity, gate))
    return Curves(f0, loudness, periodicity, np.array(voiced), gate)


class CausalFitter:
    """Fit frame after frame to an instrument, as ``voice.fitting.fit_melody`` fits a whole melody."""

    def __init__(self, profile: InstrumentProfile, options: TransferOptions) -> None:
        config, settings, middle = profile.config, profile.config.transfer, profile.median_f0
        octaves = round(float(np.log2(middle / settings.live_f0))) if options.fit else 0
        register = 12.0 * octaves if options.semitones is None else options.semitones
        wanted = profile.loudness_quantiles[LOUDNESS_ANCHOR]
        self.semitones = register + options.transpose
        self.gain = (wanted - settings.live_loudness if options.fit else 0.0) + options.loudness_offset  # dB
        self._floor, self._ceiling = config.features.loudness_floor, 0.0
        if options.fit:
            self._ceiling = profile.loudness_quantiles[-1]
        self._settings, self._gate_level = settings, settings.live_gate + options.gate_offset
        self._n_release = config.audio.seconds_to_frames(settings.release_seconds)
        self._n_fade = max(1, config.audio.seconds_to_frames(GATE_FADE_SECONDS))
        self._recent_f0 = deque(maxlen=3)  # f0 of the note's newest frames
        self._f0, self._note_loudness = middle, self._floor
        self._voiced, self._frames_since_note, self._gate_position = False, self._n_release, 0.0
        self._plucker = None
        if options.plucks(profile):
            self._plucker = CausalPlucker(
                profile.plucks,
                config.audio.frame_rate,
                config.features.loudness_window / config.audio.feature_rate,
                settings.live_loudness - options.loudness_offset,
                self._floor,
                options.pluck_repeat,
            )

    def fit_frame(self, measured: tuple[float, float, float]) -> PlayedFrame:
        """Fit the next frame."""
        f0, loudness, periodicity = measured
        self._voiced = self._is_voiced(loudness, periodicity)
        if self._voiced:
            self._frames_since_note = 0
            self._recent_f0.append(f0 * 2 ** (self.semitones / 12))
            self._f0 = statistics.median(self._recent_f0)
            self._note_loudness = min(loudness + self.gain, self._ceiling)
        else:
            self._frames_since_note += 1
            self._recent_f0.clear()
        fallen = self._settings.release_fall * self._frames_since_note / max(1, self._n_release)
        played = self._note_loudness - fallen
        # The gate closes over the last frames of the release, so that nothing is cut off.
        sounds = self._frames_since_note <= self._n_release - self._n_fade
        if self._plucker:
            plucked = self._plucker.step(self._f0, loudness, self._voiced)
            played, sounds = plucked.loudness, plucked.ringing
        self._gate_position += max(-1 / self._n_fade, min(float(sounds) - self._gate_position, 1 / self._n_fade))
        gate = math.sin(self._gate_position * math.pi / 2) ** 2
        return PlayedFrame(measured, self._f0, max(played, self._floor), self._voiced, gate)

    def require_melody(self, frames: list[PlayedFrame]) -> None:
        """Raise SilentError or NoMelodyError if there is no note in the frames."""
        if any(frame.voiced for frame in frames):
            return
        if all(frame.measured[1] <= self._floor for frame in frames):
            raise SilentError("the recording is silent")
        gate = f"the gate of {self._gate_level:g} dB"
        raise NoMelodyError(f"no melody can be heard over {gate}; sing closer to the microphone, or lower gate_offset")

    def _is_voiced(self, loudness: float, periodicity: float) -> bool:
        settings = self._settings
        if self._voiced:
            below = self._gate_level - settings.gate_hysteresis
            return periodicity > settings.sustained_periodicity and loudness > below
        return periodicity > settings.voiced_periodicity and loudness > self._gate_level


def require_causal_options(options: TransferOptions) -> None:
    """Raise ValueError for an option that needs look-ahead."""
    for name in _LOOK_AHEAD:
        if getattr(options, name) != getattr(_DEFAULTS, name):
            raise ValueError(f"{name} needs the notes that follow; they are not known while the voice comes in")


class Limiter:
    """Keep hop after hop under ``max_peak`` by a gain without jumps, so that a tone that is too loud stays a tone.

    Nothing is delayed: all of a hop is known when it is played, so the gain falls in a straight line that meets the
    hop's peaks, and stays as low for the hold before it comes back. ``min_gain`` is the lowest gain so far.
    """

    def __init__(self, config: Config) -> None:
        audio, settings = config.audio, config.transfer
        self.min_gain = self._gain = 1.0
        self._ceiling = 10 ** (settings.max_peak / 20) * (1 - 1e-6)  # so that no sum of rounded parts is over it
        self._recent_limits = deque(maxlen=1 + audio.seconds_to_frames(LIMITER_HOLD_SECONDS))  # by the newest hops
        self._steps = np.arange(1, audio.hop_length + 1)
        self._release = np.exp(-self._steps / (LIMITER_RELEASE_SECONDS * audio.sample_rate))

    def find_gains(self, hop: np.ndarray) -> np.ndarray:
        """Return the gain of each sample of the next hop [hop_length], in double precision."""
        allowed = np.minimum(self._ceiling / np.maximum(np.abs(hop, dtype=np.float64), 1e-9), 1.0)
        self._recent_limits.append(allowed.min())
        aim = min(self._recent_limits)
        if aim < self._gain:
            slope = ((self._gain - allowed) / self._steps).max()
            gains = np.maximum(self._gain - slope * self._steps, aim)
        else:
            gains = aim - (aim - self._gain) * self._release
        self._gain, self.min_gain = float(gains[-1]), min(self.min_gain, float(gains.min()))
        return gains


class Decimator:
    """Reduce the rate of a stream by a whole factor; the samples do not depend on how it is cut, to the bit."""

    def __init__(self, factor: int) -> None:
        """Take the factor; ``delay`` is that of the low-pass filter, in samples at the higher rate."""
        self.factor, n_taps = factor, 1 if factor == 1 else 32 * factor + 1
        # -6 dB at 0.9 of the lower Nyquist frequency, about -50 dB from it on.
        self._taps = np.ones(1) if factor == 1 else signal.firwin(n_taps, 0.9 / factor)
        self._state, self._offset = np.zeros(n_taps - 1), 0
        self.delay = n_taps // 2

    def process(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples [n], and return those [about n / factor] that are complete."""
        if self.factor == 1:
            return block
        filtered, self._state = signal.lfilter(self._taps, 1.0, block, zi=self._state)
        kept = filtered[self._offset :: self.factor]
        self._offset = (self._offset - len(block)) % self.factor
        return kept.astype(np.float32)


class StreamingTransfer:
    """A voice in, an instrument out, in blocks of any sizes: the sound does not depend on them, to the bit.

    ``latency`` is by how many samples at ``rate`` the output lags behind the input, blocks aside: half of CREPE's
    window, the frames that a ``BlockPlayer`` is behind, and, if the voice comes at a higher rate than the features',
    the delay of the low-pass filter before them.
    """

    def __init__(self, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0) -> None:
        """Take a model from ``checkpoint.load_model``.

        Raises:
            ValueError: an option that needs the notes that follow, or another rate than the model's; or a model whose
                rate is no multiple of the features' rate.
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
        if model.config.onset_inputs:
            raise ValueError("a model with onset_inputs cannot be played live yet: nothing tells it of plucks")
        self.fitter, self._extractor = CausalFitter(InstrumentProfile.of(model), options), FeatureStream(model.settings)
        self._player, self._device = BlockPlayer(model, options.noise_balance, seed), next(model.parameters()).device
        self._limiter = Limiter(model.settings)
        self._decimator = Decimator(ratio)
        self.rate, self.feature_rate = audio.sample_rate, audio.feature_rate
        self.feature_latency = self._extractor.reach - 1 + self._player.latency * audio.feature_hop_length
        self._output = np.zeros(ratio * self.feature_latency, np.float32)
        self.latency = len(self._output) + self._decimator.delay

    def process(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples [n] at ``rate`` and return as many, which belong ``latency`` samples earlier."""
        voice = self._decimator.process(block)
        parts = [sound.audio[0].cpu().numpy() for _, sound in self.process_frames(voice)]
        self._output = np.concatenate([self._output, *parts])
        played, self._output = self._output[: len(block)], self._output[len(block) :]
        return played

    def process_frames(self, block: np.ndarray) -> Iterator[tuple[PlayedFrame, Sound]]:
        """Take the next samples [n] at ``feature_rate``; yield each complete frame, and the sound that it completes."""
        for measured in self._extractor.process(block):
            frame = self.fitter.fit_frame(measured)
            values = (torch.full((1, 1, 1), value, device=self._device) for value in frame[1:3] + frame[4:])
            sound, _ = self._player.play_block(*values)
            yield frame, self._limit(sound)

    @property
    def peak_gain(self) -> float:
        """By how many dB the loudest was turned down so far; 0 or less."""
        return 20 * math.log10(self._limiter.min_gain)

    def _limit(self, sound: Sound) -> Sound:
        if not sound.harmonic.shape[1]:
            return sound
        gains = self._limiter.find_gains(sound.audio[0].cpu().numpy())
        scale = torch.from_numpy(gains).to(sound.harmonic)
        return Sound(sound.harmonic * scale, sound.noise * scale)
