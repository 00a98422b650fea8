"""Held-out phrases that a model resynthesises at intervals during training, for comparison with the recording."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from config import Config
from data import load_recording
from features import extract_loudness
from model import NeuralGuitar
from recordings.corpus import Corpus
from recordings.crops import Span
from sound.audio_files import prepare_audio
from sound.feature_plots import (
    SPECTROGRAM_NOTE,
    THEMES,
    draw_legend,
    draw_pitch,
    draw_spectrogram,
    label_panel,
    make_panels,
    share_time_axis,
)
from sound.plucks import trace_plucks

SOUNDS = ("target", "resynthesis", "harmonic", "noise")
_N_PHRASES = 3
_PHRASE_SECONDS = 4.0
_PANELS = {"pitch": 2.3, "loudness": 1.4, "target": 1.9, "resynthesis": 1.9}  # inches


@dataclass(frozen=True)
class HeldOutPhrase:
    """Passage of a recording, with the curves the model needs to resynthesise it."""

    name: str
    f0: torch.Tensor  # [1, T, 1] Hz
    loudness: torch.Tensor  # [1, T, 1] dB
    voiced: np.ndarray  # [T]
    target: np.ndarray  # [N]
    plucks: torch.Tensor | None = None  # [1, T, 2], time since the onset (s) and velocity (dB), if the model needs them


def choose_phrases(corpus: Corpus, previous: Sequence[str] = ()) -> dict[str, Span | None]:
    """Choose a few held-out recordings, or training recordings if none is held out.

    Args:
        corpus: all recordings, including those not downloaded yet.
        previous: names chosen before the training was resumed.

    Returns:
        {path in the folder: span}. The previous choice is kept, with None for missing recordings; if all are missing,
        it is replaced.
    """
    spans = corpus.validation or corpus.training
    named = {span.path.relative_to(corpus.folder).as_posix(): span for span in spans}
    kept = [*previous] if any(name in named for name in previous) else [*named][:: -(-len(named) // _N_PHRASES)]
    return {name: named.get(name) for name in kept}


def load_loudest_passage(span: Span, config: Config) -> HeldOutPhrase:
    """Return the loudest _PHRASE_SECONDS of a recording as a phrase."""
    recording = load_recording(span.path)
    n_frames = min(span.n_frames, config.audio.seconds_to_frames(_PHRASE_SECONDS))
    level = 10 ** (recording.loudness[0, span.first_frame : span.first_frame + span.n_frames, 0].numpy() / 20)
    sums = np.convolve(level, np.ones(n_frames), "valid")
    first = span.first_frame + int(sums.argmax())
    frames, hop_length, plucks = slice(first, first + n_frames), config.audio.hop_length, None
    if config.model.onset_inputs:
        curves = recording.f0[0, :, 0].numpy(), recording.loudness[0, :, 0].numpy()
        traced = trace_plucks(*curves, config.audio.frame_rate, config.features.loudness_floor)
        plucks = torch.from_numpy(traced)[None, frames]
    return HeldOutPhrase(
        span.path.name.removesuffix(".pt"),
        recording.f0[:, frames].clone(),
        recording.loudness[:, frames].clone(),
        recording.periodicity[0, frames, 0].numpy() >= config.features.periodicity_threshold,
        recording.audio[0, first * hop_length : (first + n_frames) * hop_length].numpy().copy(),
        plucks,
    )


@torch.no_grad()
def play_phrase(model: NeuralGuitar, phrase: HeldOutPhrase) -> tuple[dict[str, np.ndarray], float]:
    """Resynthesise a phrase.

    Returns:
        {name in ``SOUNDS``: sound [N]}, with a gain on the model's output that matches the RMS of resynthesis
        and target (and one attenuation for all if any would clip); and that gain in dB.
    """
    model.eval()
    device = next(model.parameters()).device
    f0, loudness = phrase.f0.to(device), phrase.loudness.to(device)
    plucks = None if phrase.plucks is None else phrase.plucks.to(device)
    controls = model.controls(f0, loudness, plucks=plucks)
    sound = model.synthesize(f0, controls, torch.Generator(device).manual_seed(0))
    parts = {name: part[0].cpu().numpy() for name, part in (("harmonic", sound.harmonic), ("noise", sound.noise))}
    resynthesis = parts["harmonic"] + parts["noise"]
    gain = (_rms(phrase.target) + 1e-6) / (_rms(resynthesis) + 1e-6)
    sounds = {"target": phrase.target, "resynthesis": gain * resynthesis}
    sounds |= {name: gain * part for name, part in parts.items()}
    peak = max(1.0, *(float(np.abs(part).max()) for part in sounds.values()))
    return {name: part / peak for name, part in sounds.items()}, 20 * math.log10(gain)


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


def draw_phrase(phrase: HeldOutPhrase, sounds: dict[str, np.ndarray], config: Config, theme: str = "light") -> Figure:
    """Draw pitch and loudness of a phrase, and the spectrograms of target and resynthesis on the same scale."""
    colours = THEMES[theme]
    figure, axes = make_panels(_PANELS, colours, head=0.3)
    seconds = np.arange(len(phrase.voiced)) / config.audio.frame_rate
    f0 = np.where(phrase.voiced, phrase.f0[0, :, 0].numpy(), np.nan)
    draw_pitch(axes["pitch"], seconds, [f0], ("f0",), colours)
    for name, colour, width in (("target", colours.second, 2.4), ("resynthesis", colours.loudness, 1.3)):
        loudness = extract_loudness(_at_feature_rate(sounds[name], config), config)[: len(seconds)]
        axes["loudness"].plot(seconds[: len(loudness)], loudness, color=colour, linewidth=width, label=name)
        draw_spectrogram(axes[name], sounds[name], config.audio.sample_rate, colours, scale_to=sounds["target"])
        axes[name].set_ylim(0, config.audio.sample_rate / 2)
        label_panel(axes[name], name.capitalize(), SPECTROGRAM_NOTE, colours)
    label_panel(axes["loudness"], "Loudness", "A-weighted, dB re full scale", colours)
    draw_legend(axes["loudness"], colours)
    share_time_axis(list(axes.values()), len(phrase.voiced) / config.audio.frame_rate)
    return figure


def _at_feature_rate(audio: np.ndarray, config: Config) -> np.ndarray:
    if config.audio.sample_rate == config.audio.feature_rate:
        return audio
    return prepare_audio(audio, config.audio.sample_rate, config.audio.feature_rate)
