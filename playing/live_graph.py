"""The live graph: maps a hop of voice, a hop of noise and a state to a hop of the instrument and the next state.

It is the only implementation of causal playing: ``transfer.py --causal`` and ``live.py`` run it, and
``scripts/export.py --live`` exports it for the browser page and other hosts. It has no look-ahead: register and level
are constants, a gate with hysteresis starts and ends notes, f0 is the median of the last three frames, and a limiter
reduces peaks. It uses only tensor operations that every exporter supports.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import signal
from torch import Tensor, nn

from config import Config
from features import a_weighting_sos
from model import NeuralGuitar, Sound
from playing.block_model import FramePlayer, PlayState, StatePacker, require_exportable
from sound.crepe import WINDOW, FrameCrepe, find_peak, load_crepe
from voice.causal_plucks import CausalPlucker, PluckerState
from voice.curves import GATE_FADE_SECONDS
from voice.instrument_fit import LOUDNESS_ANCHOR, InstrumentProfile, TransferOptions

LIMITER_HOLD_SECONDS = 0.03  # hold time; over half a period of the lowest note, to avoid distortion
LIMITER_RELEASE_SECONDS = 0.08  # time constant of the release (to 1/e)
CONTROLS = ("semitones", "loudness_offset", "gate_offset", "noise_balance")
SHOWN = ("f0", "periodicity", "loudness", "voiced", "gate", "played_f0", "played_loudness", "limiter_gain")
_DEFAULTS = TransferOptions()
_SMALLEST = np.finfo(np.float32).tiny


class NoteState(NamedTuple):
    """State of the gate and of the median filter, [1] each."""

    voiced: Tensor  # 0 or 1
    frames_since: Tensor  # frames since the last voiced frame
    gate_position: Tensor  # 0..1
    loudness: Tensor  # dB, fitted loudness at the last voiced frame
    f0: Tensor  # Hz, played
    last_f0: Tensor  # Hz; this and the next: the last two frames, for the median
    before_last_f0: Tensor


class LiveState(NamedTuple):
    """State between two hops."""

    voice: Tensor  # [2 * reach], the newest samples at feature_rate
    power: Tensor  # [2 * reach], A-weighted power of the same samples
    weighting: Tensor  # [n], float64, state of the A-weighting filter
    note: NoteState
    plucks: PluckerState | None
    played: PlayState
    limits: Tensor  # [n], linear, limiter gains that the newest hops require
    limiter_gain: Tensor  # [1], linear, at the newest sample


class LiveGraph(nn.Module):
    """Module that maps a hop of voice to a hop of the instrument.

    The newest frame is centred ``reach`` samples before the end of the voice; ``FramePlayer`` adds the rest of the
    latency. Register and offsets are inputs of each hop; fit and articulation are constants, set from ``options``.
    """

    def __init__(self, model: NeuralGuitar, options: TransferOptions = _DEFAULTS) -> None:
        """Build the graph of a model from ``checkpoint.load_model``."""
        super().__init__()
        profile = InstrumentProfile.of(model)
        config, settings, audio = profile.config, profile.config.transfer, profile.config.audio
        self.options, self.config = options, config
        self.reach = max(WINDOW, config.features.loudness_window) // 2
        self.crepe = FrameCrepe(load_crepe(config.features.crepe_model, "cpu"))
        self.player = FramePlayer(model)
        self.limiter = Limiter(config)
        matrix = _weighting_of_a_hop(audio.feature_rate, audio.feature_hop_length)
        window = signal.get_window("hann", config.features.loudness_window)
        self.register_buffer("weighting", torch.from_numpy(matrix))
        self.register_buffer("window", torch.from_numpy(window / window.sum()).float())
        octaves = round(math.log2(profile.median_f0 / settings.live_f0)) if options.fit else 0
        self.register_semitones = 12.0 * octaves
        self.gain = profile.loudness_quantiles[LOUDNESS_ANCHOR] - settings.live_loudness if options.fit else 0.0  # dB
        self.ceiling = profile.loudness_quantiles[-1] if options.fit else 0.0  # dB
        self.median_f0, self.floor = profile.median_f0, config.features.loudness_floor
        self.n_release = audio.seconds_to_frames(settings.release_seconds)
        self.n_fade = max(1, audio.seconds_to_frames(GATE_FADE_SECONDS))
        self.plucker = None
        if options.plucks(profile):
            window_seconds = config.features.loudness_window / audio.feature_rate
            self.plucker = CausalPlucker(
                profile.plucks, audio.frame_rate, window_seconds, self.floor, options.pluck_repeat
            )

    def controls(self) -> Tensor:
        """Return the values of ``CONTROLS`` set by the options, [4]."""
        options = self.options
        register = self.register_semitones if options.semitones is None else options.semitones
        offsets = options.loudness_offset, options.gate_offset, options.noise_balance
        return torch.tensor([register + options.transpose, *offsets], dtype=torch.float32)

    @property
    def latency(self) -> int:
        """Delay from voice to instrument in samples at the model's rate, without the block length."""
        audio = self.config.audio
        return self.player.latency + self.reach * audio.sample_rate // audio.feature_rate

    def initial_state(self) -> LiveState:
        """Return the state before the first hop, which is silence."""
        n_before = self.weighting.shape[0] - self.config.audio.feature_hop_length
        note = [0.0, self.n_release, 0.0, self.floor, self.median_f0, self.median_f0, self.median_f0]
        return LiveState(
            voice=torch.zeros(2 * self.reach),
            power=torch.zeros(2 * self.reach),
            weighting=torch.zeros(n_before, dtype=torch.float64),
            note=NoteState(*(torch.tensor([float(value)]) for value in note)),
            plucks=self.plucker.initial_state() if self.plucker else None,
            played=self.player.initial_state(),
            limits=torch.ones(self.limiter.n_hold),
            limiter_gain=torch.ones(1),
        )

    def forward(
        self, voice: Tensor, noise: Tensor, controls: Tensor, state: LiveState
    ) -> tuple[Sound, Tensor, LiveState]:
        """Play the next hop.

        Args:
            voice: [feature_hop_length] at feature_rate.
            noise: [hop_length], uniform in -1..1.
            controls: [4], see ``CONTROLS``: total semitones, then dB.
            state: state after the previous hop.

        Returns:
            Sound [1, hop_length], ``SHOWN`` [8], and the next state.
        """
        semitones, loudness_offset, gate_offset, noise_balance = controls.split(1)
        samples, power, weighting, (f0, loudness, periodicity) = self._measure(voice, state)
        note = self._follow(f0, loudness, periodicity, semitones, loudness_offset, gate_offset, state.note)
        sounds, played_loudness = self._release(note)
        plucks = state.plucks
        if self.plucker:
            reference = self.config.transfer.live_loudness - loudness_offset
            plucked, plucks = self.plucker(note.f0, loudness, note.voiced > 0, reference, plucks)
            played_loudness, sounds = plucked.loudness, plucked.ringing
        position = state.note.gate_position
        position = position + (sounds.float() - position).clamp(-1 / self.n_fade, 1 / self.n_fade)
        gate = torch.sin(position * math.pi / 2) ** 2
        played_loudness = played_loudness.clamp_min(self.floor)
        curves = (value.view(1, 1, 1) for value in (note.f0, played_loudness))
        sound, played = self.player(
            *curves, noise[None], state.played, gate.view(1, 1, 1), 10 ** (noise_balance.view(1, 1, 1) / 20)
        )
        # The phase restarts in silence, so that rounding errors accumulate over one phrase at most.
        played = played._replace(phase=torch.where(gate > 0, played.phase, 0.0))
        gains, limits, limiter_gain = self.limiter(sound.audio[0], state.limits, state.limiter_gain)
        sound = Sound(sound.harmonic * gains, sound.noise * gains)
        shown = [f0, periodicity, loudness, note.voiced, gate, note.f0, played_loudness, gains.min().view(1)]
        note = note._replace(gate_position=position)
        next_state = LiveState(samples, power, weighting, note, plucks, played, limits, limiter_gain)
        return sound, torch.cat(shown), next_state

    def _measure(self, voice: Tensor, state: LiveState) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return updated samples, A-weighted power and filter state, and (f0, loudness, periodicity)."""
        settings, hop_length = self.config.features, len(voice)
        weighted = torch.cat([voice.double(), state.weighting])[None] @ self.weighting
        new, weighting = weighted[0, :hop_length], weighted[0, hop_length:]
        samples = torch.cat([state.voice[hop_length:], voice])
        power = torch.cat([state.power[hop_length:], (new**2).float()])
        half = settings.loudness_window // 2
        mean = (power[self.reach - half : self.reach + half] * self.window).sum().view(1)
        loudness = (10 * torch.log10(mean + _SMALLEST)).clamp_min(self.floor)
        frame = samples[self.reach - WINDOW // 2 : self.reach + WINDOW // 2]
        f0, periodicity = find_peak(self.crepe(frame), settings.f0_min, settings.f0_max)
        return samples, power, weighting, (f0, loudness, periodicity)

    def _follow(
        self,
        f0: Tensor,
        loudness: Tensor,
        periodicity: Tensor,
        semitones: Tensor,
        loudness_offset: Tensor,
        gate_offset: Tensor,
        note: NoteState,
    ) -> NoteState:
        """Update the gate, and f0 and loudness while it is open."""
        settings, was_voiced = self.config.transfer, note.voiced > 0
        least = torch.where(was_voiced, settings.sustained_periodicity, settings.voiced_periodicity)
        quietest = settings.live_gate + gate_offset - torch.where(was_voiced, settings.gate_hysteresis, 0.0)
        voiced = (periodicity > least) & (loudness > quietest)
        newest = f0 * 2 ** (semitones / 12)
        last, before = (torch.where(was_voiced, known, newest) for known in (note.last_f0, note.before_last_f0))
        middle = torch.maximum(torch.minimum(last, before), torch.minimum(torch.maximum(last, before), newest))
        level = (loudness + self.gain + loudness_offset).clamp_max(self.ceiling)
        return NoteState(
            voiced=voiced.float(),
            frames_since=torch.where(voiced, 0.0, note.frames_since + 1),
            gate_position=note.gate_position,
            loudness=torch.where(voiced, level, note.loudness),
            f0=torch.where(voiced, middle, note.f0),
            last_f0=newest,
            before_last_f0=last,
        )

    def _release(self, note: NoteState) -> tuple[Tensor, Tensor]:
        """Return whether the note is still audible, and its loudness in dB, including its release."""
        fallen = self.config.transfer.release_fall / max(1, self.n_release) * note.frames_since
        # The gate fades out over the last frames of the release, to avoid a click.
        return note.frames_since <= self.n_release - self.n_fade, note.loudness - fallen


class Limiter(nn.Module):
    """Peak limiter that keeps each hop below ``max_peak`` with a continuous gain, to avoid distortion.

    It adds no latency: the whole hop is known, so the gain decreases linearly to the value that its peaks require. The
    gain is then held for ``LIMITER_HOLD_SECONDS`` before it is released.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        audio = config.audio
        self.ceiling = 10 ** (config.transfer.max_peak / 20) * (1 - 2e-6)  # margin for rounding in the sum of parts
        self.n_hold = 1 + audio.seconds_to_frames(LIMITER_HOLD_SECONDS)  # hops in the hold
        steps = torch.arange(1, audio.hop_length + 1, dtype=torch.float64)
        self.register_buffer("steps", steps.float())
        self.register_buffer("release", torch.exp(-steps / (LIMITER_RELEASE_SECONDS * audio.sample_rate)).float())

    def forward(self, hop: Tensor, limits: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gains [hop_length] for the next hop, and limits [n_hold] and gain [1] after it."""
        allowed = (self.ceiling / hop.abs().clamp_min(1e-9)).clamp_max(1.0)
        limits = torch.cat([limits[1:], allowed.min().view(1)])
        aim = limits.min()
        slope = ((gain - allowed) / self.steps).max()
        falling = torch.maximum(gain - slope * self.steps, aim)
        gains = torch.where(aim < gain, falling, aim - (aim - gain) * self.release)
        return gains, limits, gains[-1:]


class ExportedLiveGraph(nn.Module):
    """``LiveGraph`` with its state packed into two tensors, for other hosts.

    Raises:
        ValueError: the model cannot be exported.
    """

    def __init__(self, graph: LiveGraph) -> None:
        super().__init__()
        require_exportable(graph.player.model)
        self.live, self.packer = graph, StatePacker(graph.initial_state())

    def forward(
        self, voice: Tensor, noise: Tensor, controls: Tensor, state: Tensor, state64: Tensor
    ) -> tuple[Tensor, ...]:
        """Play the next hop: audio [hop_length], ``SHOWN`` [8] and the next state; arguments as in ``LiveGraph``."""
        sound, shown, unpacked = self.live(voice, noise, controls, self.packer.unpack(state, state64))
        return sound.audio[0], shown, *self.packer.pack(unpacked)


def _weighting_of_a_hop(sample_rate: int, hop_length: int) -> np.ndarray:
    """Return the A-weighting filter as a matrix that maps [hop, state] to [weighted hop, next state]."""
    sos = a_weighting_sos(sample_rate)
    given = np.eye(hop_length + sos.shape[0] * 2)  # each row has a single 1, in the hop or in the state
    state = given[:, hop_length:].reshape(-1, len(sos), 2).swapaxes(0, 1)
    weighted, state = signal.sosfilt(sos, given[:, :hop_length], zi=state)
    return np.concatenate([weighted, state.swapaxes(0, 1).reshape(len(given), -1)], axis=1)


def shown_values(shown: Any) -> dict[str, float]:
    """Return the values of ``SHOWN`` as a dict."""
    return dict(zip(SHOWN, map(float, shown)))
