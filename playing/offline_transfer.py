"""Timbre transfer: converts a voice, a MIDI file or curves to the sound of an instrument.

Pitch and loudness of the voice are measured, fitted to the instrument (register by whole octaves, loudness to the
training data), gated (the instrument is silent where there is no singing), and played by the model. ``transfer.py`` is
the command line, and exports ``transfer`` for use in programs.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features import Features
from model import Controls, NeuralGuitar, Sound, State
from playing.causal_transfer import StreamingTransfer, frames_to_curves, require_melody
from sound.audio_files import SpooledAudio, block_slices, mix_channels, prepare_audio, resample_blocks
from sound.plucks import trace_plucks
from synth import elapsed_cycles
from voice.curves import Curves, Melody, shape_notes
from voice.harmony import Part
from voice.instrument_fit import (
    InstrumentProfile,
    TransferOptions,
    assign_parts,
    fit_melody,
    fit_register,
    fraction_out_of_range,
    pluck_curves,
)
from voice.melody import MeasuredVoice, find_melody, measure_voice, trace_whistling
from voice.midi import chord_fraction, make_monophonic, melody_from_notes, read_midi
from voice.note_finder import SungNote, find_notes

_BLOCK_SAMPLES = 2**20  # per part, in memory at once
_BLOCK_FRAMES = 1000  # frames played at once; larger blocks are not faster
_POLYPHONY_WARNING = 0.55  # share of sounding frames above which the user is warned
NO_VOICE = {  # entries of a report if no voice was measured
    "semitones": 0.0,
    "loudness_gain": 0.0,
    "share_too_high": 0.0,
    "share_polyphonic": 0.0,
    "has_backing": False,
    "mains_hum": None,
}
_DEFAULTS = TransferOptions()
ProgressCallback = Callable[[str, float], None]  # name of the step for the user, and the share done, 0..1


@dataclass(frozen=True)
class TransferResult:
    """Result of a transfer: sound at ``sample_rate``, features, curves and report.

    Long sound is stored on disk. ``audio``, ``harmonic`` and ``noise`` read all of it; ``blocks`` reads it in blocks.
    """

    stems: tuple[SpooledAudio, SpooledAudio]  # [N], harmonic and noise part, before ``gain``
    gain: float  # linear gain that limits the peak
    sample_rate: int
    features: Features  # measured in the input
    curves: Curves  # fitted to the instrument
    report: dict[str, Any]
    frame_rate: float
    known_notes: list[SungNote] | None = None  # notes that were plucked or read from a file

    @functools.cached_property
    def notes(self) -> list[SungNote]:
        """The played notes."""
        if self.known_notes is not None:
            return self.known_notes
        return find_notes(self.curves.f0, self.features.loudness.numpy(), self.curves.voiced, self.frame_rate)

    @property
    def harmonic(self) -> np.ndarray:
        """The harmonic part, [N]."""
        return self.stems[0][:] * self.gain

    @property
    def noise(self) -> np.ndarray:
        """The noise part, [N]."""
        return self.stems[1][:] * self.gain

    @property
    def audio(self) -> np.ndarray:
        """The sum of both parts, [N]."""
        return self.harmonic + self.noise

    def blocks(self, *numbers: int) -> Iterator[np.ndarray]:
        """Yield the sum of the given stems (0: harmonic, 1: noise; default: both) in blocks [n]."""
        stems = [self.stems[number] for number in numbers or (0, 1)]
        for part in block_slices(len(stems[0]), _BLOCK_SAMPLES):
            yield sum(stem[part] * self.gain for stem in stems)


def transfer(
    audio: np.ndarray,
    sample_rate: int,
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> TransferResult:
    """Play a voice on the model's instrument.

    Args:
        audio: [N] mono, or [N, C] or [C, N]; the shorter axis is the channels, at most 8, mixed as in a file.
        sample_rate: sample rate of ``audio`` in Hz.
        model: model from ``checkpoint.load_model``.
        options: options chosen by the user.
        seed: seed of the noise. The output is bit-identical for the same input, options and seed.
        progress: called before each step with its name and the share done, 0..1; it may raise to cancel.

    Raises:
        SilentError, NoMelodyError: there is nothing to play.
        ValueError: no samples, or samples that are not finite or far beyond full scale.
    """
    voice = prepare_audio(mix_channels(audio), sample_rate, model.settings.audio.feature_rate)
    return transfer_blocks([voice], model, options, seed, progress)


def transfer_blocks(
    blocks: Iterable[np.ndarray],
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> TransferResult:
    """Play a voice given in blocks, [n] each at the feature rate; memory hardly depends on the length.

    The other arguments, the result and the errors are those of ``transfer``.
    """
    started, report_progress = time.perf_counter(), progress or _ignore_progress
    measured = measure_blocks(blocks, model, report_progress)
    return transfer_measured(measured, model, options, seed, report_progress, started)


def measure_blocks(
    blocks: Iterable[np.ndarray], model: NeuralGuitar, report_progress: ProgressCallback
) -> MeasuredVoice:
    """Measure a voice given in blocks, [n] each, with the feature settings of a model.

    Raises:
        SilentError: the voice is silent.
    """
    config, step = model.settings, "Listening to the voice"
    report_progress(step, 0.0)
    audio = SpooledAudio(blocks)
    audio.append(np.zeros(-len(audio) % config.audio.feature_hop_length))
    device = next(model.parameters()).device
    return measure_voice(audio, config, device, lambda share: report_progress(step, 0.6 * share))


def transfer_measured(
    measured: MeasuredVoice,
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    started: float | None = None,
) -> TransferResult:
    """Play a measured voice; use this to change options without measuring again.

    Raises:
        NoMelodyError: there is nothing to play.
    """
    started, report_progress = started or time.perf_counter(), progress or _ignore_progress
    profile = InstrumentProfile.of(model)
    report_progress(f"Fitting the melody to the {profile.name}", 0.6)
    features, melody, voice_report = find_melody(measured, profile.config, options.gate_offset)
    fitted = fit_melody(melody, profile, options)
    entries = {**fitted.report, **voice_report}
    result = render_curves(
        model, features, fitted.curves, fitted.notes, options, seed, entries, started, report_progress
    )
    report_progress("Done", 1.0)
    return result


def transfer_causal(
    blocks: Iterable[np.ndarray],
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> TransferResult:
    """Play a voice with ``StreamingTransfer``, without look-ahead.

    The arguments are those of ``transfer_blocks``; the latency is removed from the result.

    Raises:
        SilentError, NoMelodyError: nothing was played.
        ValueError: an option that needs look-ahead.
    """
    report_progress, started = progress or _ignore_progress, time.perf_counter()
    stream, frames = StreamingTransfer(model, dataclasses.replace(options, output_rate=None), seed), []
    report_progress(f"Playing the {model.instrument}", 0.0)
    voice, sample_rate = SpooledAudio(blocks), options.output_rate or stream.rate
    hop_length = model.audio.feature_hop_length
    n_frames = -(-len(voice) // hop_length)
    n_late = -(-stream.sound_before // model.audio.hop_length)  # hops
    voice.append(np.zeros((n_frames + n_late) * hop_length - len(voice)))

    def played() -> Iterator[Sound]:
        n_early, n_left = stream.sound_before, model.audio.frames_to_samples(n_frames)
        for part in block_slices(len(voice), stream.feature_rate):  # progress is reported once per second of voice
            for frame, sound in stream.process_frames(voice[part]):
                frames.append(frame)
                sound = Sound(*(each[:, n_early:][:, :n_left] for each in sound))
                n_early, n_left = max(0, n_early - model.audio.hop_length), n_left - sound.harmonic.shape[1]
                if sound.harmonic.shape[1]:
                    yield sound
            report_progress(f"Playing the {model.instrument}", part.stop / len(voice))

    # The stream is limited, but resampling may create new peaks.
    settings = model.settings.transfer
    stems, gain = collect_stems(played(), stream.rate, sample_rate, settings.max_peak)
    frames = frames[stream.frames_before :][:n_frames]
    whistle, too_high = trace_whistling(voice, model.settings)
    share_too_high = float((too_high | (whistle > 0)).mean())
    require_melody(
        frames, model.settings.features.loudness_floor, settings.live_gate + options.gate_offset, share_too_high
    )
    curves = frames_to_curves(frames)
    outside = fraction_out_of_range(curves.f0[curves.voiced], InstrumentProfile.of(model))
    fit_report = {
        "semitones": float(stream.controls[0]),
        "loudness_gain": stream.graph.gain + options.loudness_offset,
        "share_too_high": share_too_high,
    }
    entries = {**NO_VOICE, **fit_report, "share_out_of_range": outside, "causal": True}
    peak_gain = stream.peak_gain + 20 * float(np.log10(gain))
    report = make_report(model.instrument, len(stems[0]) / sample_rate, entries, curves, peak_gain, started)
    features = Features(*map(torch.tensor, zip(*(frame.measured for frame in frames))))
    return TransferResult(stems, gain, sample_rate, features, curves, report, model.audio.frame_rate)


def _ignore_progress(step: str, share: float) -> None:
    pass


def transfer_midi(
    path: Path, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0
) -> TransferResult:
    """Play a MIDI file on the model's instrument, shifted by octaves if more notes are then in range.

    Raises:
        FileNotFoundError, ValueError: see ``voice.midi.read_midi``.
    """
    started, profile = time.perf_counter(), InstrumentProfile.of(model)
    config = profile.config
    notes, bends = read_midi(path)
    played = make_monophonic(notes)
    melody, written = melody_from_notes(played, bends, profile.loudness_quantiles[95], config)
    if options.semitones is None:
        options = dataclasses.replace(options, semitones=_choose_register(melody, profile))
    fitted = fit_melody(melody, profile, dataclasses.replace(options, fit=False, articulation="follow"))
    curves, semitones = fitted.curves, fitted.report["semitones"]
    moved = [note._replace(pitch=note.pitch + semitones) for note in written]
    if options.plucks(profile):
        moved = [
            note._replace(level=float(profile.plucks.level(note.pitch, each.velocity / 127)) + options.loudness_offset)
            for note, each in zip(moved, played)
        ]
        curves = pluck_curves(melody._replace(f0=curves.f0), moved, profile, options.pluck_repeat)
    entries = {**NO_VOICE, **fitted.report, "share_polyphonic": chord_fraction(notes, config.audio.frame_rate)}
    return render_curves(model, _melody_as_features(melody), curves, moved, options, seed, entries, started)


def _choose_register(melody: Melody, profile: InstrumentProfile) -> float:
    """Return the shift of written notes in semitones: 0, unless an octave shift brings more of them into range."""
    f0 = melody.f0[melody.voiced]
    fitted = fit_register(f0, profile)
    is_better = fraction_out_of_range(f0 * 2 ** (fitted / 12), profile) < fraction_out_of_range(f0, profile)
    return fitted if is_better else 0.0


def transfer_curves(
    melody: Melody, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0
) -> TransferResult:
    """Play curves from ``voice.curves.read_curves`` without fitting them to the instrument.

    Only the options ``noise_balance`` and ``output_rate`` are used.
    """
    started = time.perf_counter()
    outside = fraction_out_of_range(melody.f0[melody.voiced], InstrumentProfile.of(model))
    entries, curves = {**NO_VOICE, "share_out_of_range": outside}, shape_notes(melody, model.settings)
    return render_curves(model, _melody_as_features(melody), curves, None, options, seed, entries, started)


def _melody_as_features(melody: Melody) -> Features:
    curves = (melody.f0, melody.loudness, melody.periodicity)
    return Features(*(torch.from_numpy(values.astype(np.float32)) for values in curves))


# --- playing --------------------------------------------------------------------------------------


class BlockPlayer:
    """Player of frames as they arrive, with a delay of ``latency`` frames; memory does not grow with the length.

    The sound does not depend on the size of the blocks. The state between blocks consists of the decoder state, the
    phase of the fundamental in double precision, the noise and the last frames, which are needed because controls are
    interpolated between frames and noise filters overlap. The noise comes from one generator on the CPU, so a seed
    gives the same sound for any block size and device.
    """

    def __init__(self, model: NeuralGuitar, noise_balance: float = 0.0, seed: int = 0) -> None:
        """Store the model; ``noise_balance`` is the gain of the noise in dB."""
        self.model = model
        self.latency = model.noise_synthesizer.context  # frames
        self._noise_gain = 10 ** (noise_balance / 20)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: State | None = None  # state of the model after the last frame
        self._cycles: Tensor | None = None  # (1,) phase of the fundamental before the next frame to render
        self._n_rendered = 0  # number of pending frames that are rendered
        self._pending: list[Tensor] = []  # f0, amplitudes, magnitudes, noise: [1, T, C] each
        self._tails: list[Tensor | None] = [None, None]  # reverb tails of both parts, if the model has a reverb

    def play_block(
        self, f0: Tensor, loudness: Tensor, gate: Tensor, is_last: bool = False, plucks: Tensor | None = None
    ) -> tuple[Sound, Controls]:
        """Play the next frames; gated frames are silent in both parts.

        Args:
            f0: [1, T, 1] in Hz.
            loudness: [1, T, 1] in dB.
            gate: [1, T, 1], 0..1.
            is_last: True if no frames follow; then all pending frames are played.
            plucks: [1, T, 2], time since the onset (s) and velocity (dB), for a model with ``onset_inputs``.

        Returns:
            Sound of the completed frames, and the controls of the given frames.
        """
        return self.render(f0, self.decode(f0, loudness, plucks), gate, is_last)

    @torch.inference_mode()
    def decode(self, f0: Tensor, loudness: Tensor, plucks: Tensor | None = None) -> Controls:
        """Return the controls of the next frames; the arguments are those of ``play_block``."""
        controls, self._state = self.model.step(f0, loudness, self._state, plucks)
        return controls

    @torch.inference_mode()
    def render(self, f0: Tensor, controls: Controls, gate: Tensor, is_last: bool = False) -> tuple[Sound, Controls]:
        """Render decoded frames; the other arguments and the result are those of ``play_block``."""
        controls = Controls(controls.harmonic_amplitudes * gate, controls.noise_magnitudes * gate * self._noise_gain)
        hop_length = self.model.audio.hop_length
        noise = 2 * torch.rand(1, f0.shape[1], hop_length, generator=self._generator).to(f0.device) - 1
        new_frames = [f0, *controls, noise]
        self._pending = (
            [torch.cat(pair, dim=1) for pair in zip(self._pending, new_frames)] if self._pending else new_frames
        )
        n_ready = self._pending[0].shape[1] - self._n_rendered - (0 if is_last else self.latency)
        return self._apply_reverb(self._render(max(0, n_ready))), controls

    def _apply_reverb(self, sound: Sound) -> Sound:
        if not self.model.reverb or not sound.harmonic.shape[1]:
            return sound
        wet, self._tails = zip(*map(self.model.reverb.step, sound, self._tails))
        return Sound(*wet)

    def _render(self, n_frames: int) -> Sound:
        """Render the next frames, and discard frames that are no longer needed."""
        f0, amplitudes, magnitudes, noise = self._pending
        start, end, hop_length = self._n_rendered, self._n_rendered + n_frames, self.model.audio.hop_length
        if not n_frames:
            return Sound(f0.new_zeros(1, 0), f0.new_zeros(1, 0))
        span = slice(start, end + 1)  # with the next frame, for the interpolation
        harmonic = self.model.harmonic_synthesizer(f0[:, span], amplitudes[:, span], self._cycles)
        filtered = self.model.noise_synthesizer.filter(noise.flatten(1), magnitudes)
        elapsed = elapsed_cycles(f0[:, span], self.model.audio.sample_rate, hop_length)[:, :n_frames].sum(dim=1)
        self._cycles = (elapsed if self._cycles is None else self._cycles + elapsed) % 1
        self._n_rendered = min(end, self.latency)
        self._pending = [values[:, end - self._n_rendered :] for values in self._pending]
        return Sound(harmonic[:, : n_frames * hop_length], filtered[:, start * hop_length : end * hop_length])


def play_curves(
    model: NeuralGuitar, curves: Curves, noise_balance: float = 0.0, seed: int = 0, block_frames: int = _BLOCK_FRAMES
) -> Iterator[tuple[Sound, Controls]]:
    """Play curves; yield the sound, [1, n] per part, and the controls of each block.

    Args:
        model: model of the instrument.
        curves: [T] each.
        noise_balance: gain of the noise in dB.
        seed: seed of the noise.
        block_frames: frames per block; the concatenated sound does not depend on it, up to rounding.
    """
    player, device = BlockPlayer(model, noise_balance, seed), next(model.parameters()).device
    n_frames, plucks = len(curves.f0), None
    if model.config.onset_inputs:  # traced on whole curves, as in training
        floor = model.settings.features.loudness_floor
        plucks = torch.from_numpy(trace_plucks(curves.f0, curves.loudness, model.audio.frame_rate, floor)).to(device)

    def place(values: np.ndarray, part: slice) -> Tensor:
        return torch.from_numpy(values[part])[None, :, None].to(device)

    def decode(part: slice) -> Controls:
        here = None if plucks is None else plucks[None, part]
        return player.decode(place(curves.f0, part), place(curves.loudness, part), here)

    # On a CPU a thread decodes a block while the one before is rendered: a quarter less time on two cores.
    parts, coming = list(block_slices(n_frames, block_frames)), None
    with ThreadPoolExecutor(1) as thread:
        for part, following in itertools.zip_longest(parts, parts[1:]):
            controls = coming.result() if coming else decode(part)
            coming = thread.submit(decode, following) if following and device.type == "cpu" else None
            yield player.render(place(curves.f0, part), controls, place(curves.gate, part), following is None)


def render_curves(
    model: NeuralGuitar,
    features: Features,
    curves: Curves,
    notes: list[SungNote] | None,
    options: TransferOptions,
    seed: int,
    entries: dict[str, Any],
    started: float,
    report_progress: ProgressCallback = _ignore_progress,
) -> TransferResult:
    """Play curves on the model and return the result; ``entries`` are added to its report."""
    sample_rate = options.output_rate or model.settings.audio.sample_rate
    parts = assign_parts(curves, options, model.audio.frame_rate)
    played = play_parts(model, parts, options.noise_balance, seed, report_progress)
    stems, gain = collect_stems(played, model.settings.audio.sample_rate, sample_rate, model.settings.transfer.max_peak)
    report = make_report(
        model.instrument, len(stems[0]) / sample_rate, entries, curves, 20 * float(np.log10(gain)), started
    )
    return TransferResult(stems, gain, sample_rate, features, curves, report, model.settings.audio.frame_rate, notes)


def play_parts(
    model: NeuralGuitar, parts: list[Part], noise_balance: float, seed: int, report_progress: ProgressCallback
) -> Iterator[Sound]:
    """Play parts together with ``play_curves``; yield blocks of their sum and report progress."""
    n_samples, n_done = model.settings.audio.frames_to_samples(len(parts[0].curves.f0)), 0
    report_progress(f"Playing the {model.instrument}", 0.65)
    players = [play_curves(model, part.curves, noise_balance, seed + part.seed) for part in parts]
    gains = [10 ** (part.level / 20) for part in parts]
    for blocks in zip(*players):
        stems = zip(*(sound for sound, _ in blocks))
        sound = Sound(*(sum(gain * part for gain, part in zip(gains, stem)) for stem in stems))
        n_done += sound.harmonic.shape[1]
        yield sound
        if n_done < n_samples:
            report_progress(f"Playing the {model.instrument}", 0.65 + 0.35 * n_done / n_samples)


def collect_stems(
    played: Iterable[Sound], from_rate: int, to_rate: int, max_peak: float
) -> tuple[tuple[SpooledAudio, SpooledAudio], float]:
    """Collect played blocks as stems, resampled to ``to_rate``.

    Returns:
        Both stems [N], and the linear gain that keeps the peak of their sum at or below ``max_peak`` dBFS.
    """
    raw = SpooledAudio(), SpooledAudio()
    for sound in played:
        for stem, part in zip(raw, sound):
            stem.append(part[0].cpu().numpy())
    stems = raw if from_rate == to_rate else tuple(_resampled(stem, from_rate, to_rate) for stem in raw)
    parts = block_slices(len(stems[0]), _BLOCK_SAMPLES)
    peak = max((float(np.abs(stems[0][part] + stems[1][part]).max()) for part in parts), default=0.0)
    return stems, min(1.0, 10 ** (max_peak / 20) / max(peak, 1e-9))


def _resampled(stem: SpooledAudio, from_rate: int, to_rate: int) -> SpooledAudio:
    blocks = (stem[part] for part in block_slices(len(stem), _BLOCK_SAMPLES))
    return SpooledAudio(resample_blocks(blocks, from_rate, to_rate))


# --- the report -----------------------------------------------------------------------------------


def make_report(
    instrument: str, seconds: float, entries: dict[str, Any], curves: Curves, peak_gain: float, started: float
) -> dict[str, Any]:
    """Return the report of a transfer.

    Args:
        instrument: name of the played instrument.
        seconds: duration of the result.
        entries: values about the voice and its fit to the instrument; see ``NO_VOICE``.
        curves: played curves.
        peak_gain: gain of the peak limiter in dB.
        started: start of the transfer, from ``time.perf_counter``.
    """
    return {
        "instrument": instrument,
        "seconds": round(seconds, 3),
        **entries,
        "share_gated": float((curves.gate == 0).mean()),
        "peak_gain": peak_gain,
        "times_real_time": seconds / (time.perf_counter() - started),
    }


def is_polyphonic(report: dict[str, Any]) -> bool:
    """Return True if a large part of a recording is polyphonic or has accompaniment."""
    return report["has_backing"] or report["share_polyphonic"] > _POLYPHONY_WARNING


def describe_transfer(report: dict[str, Any]) -> str:
    """Return a one-line description of a transfer."""
    parts = [
        f"shifted {report['semitones']:+g} st",
        f"{100 * report['share_out_of_range']:.0f} % of frames out of range",
        f"{100 * report['share_gated']:.0f} % gated",
        f"loudness {report['loudness_gain']:+.0f} dB",
    ]
    if report["share_too_high"] > 0.01:
        how = (
            "for --causal, which follows no pitch over 1,975 Hz" if report.get("causal") else "to hear and left silent"
        )
        parts.append(f"{100 * report['share_too_high']:.0f} % too high {how}")
    if report["mains_hum"] is not None:
        parts.append("mains hum taken out")
    if is_polyphonic(report):
        parts.append("several notes at once: one line of them is played")
    if report["peak_gain"] < 0:
        by = "by up to " if report.get("causal") else ""
        parts.append(f"turned down {by}{-report['peak_gain']:.1f} dB")
    return ", ".join([*parts, f"{report['times_real_time']:.1f} x faster than real time"])
