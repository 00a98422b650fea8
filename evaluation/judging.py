"""Judge models on recordings, which they copy, and on voices, which they play: rows of figures, and what to hear.

``scripts/evaluate.py`` and ``benchmarks/ablations.py`` are the command lines; ``scorecard.py`` measures.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from data import load_recording
from evaluation import likeness, scorecard
from evaluation.likeness import Timbre, describe_timbre
from evaluation.scorecard import ExpectedCurves, MeasuredSound, measure_sound
from evaluation.scorecard_page import Exhibit, Track
from loss import MultiResolutionSTFTLoss
from model import NeuralGuitar
from playing.offline_transfer import TransferResult, transfer
from recordings.corpus import read_corpus, split_boundary
from recordings.crops import Span
from recordings.pitch_annotations import read_voice_annotation
from sound import sound_folders
from sound.audio_files import load_audio, prepare_audio
from sound.plucks import trace_plucks

MODEL, BASELINE, UNTRAINED = "this model", "baseline", "untrained model"  # rows of the tables
RECORDING, VOICE = "the recording itself", "the voice itself"
Row = dict[str, Any]


@dataclass(frozen=True)
class Take:
    """A recording of an instrument."""

    name: str
    audio: np.ndarray  # [N] at the rate of the sound
    sound: MeasuredSound


@dataclass(frozen=True)
class TimbreReference:
    """What timbre is held against."""

    halves: tuple[Timbre, Timbre]
    other: Timbre


# --- reading --------------------------------------------------------------------------------------


def read_takes(data_dir: Path, model: NeuralGuitar, own: bool, trained: dict[str, Any] | None = None) -> list[Take]:
    """Read an instrument's recordings: of processed ones of the model's own instrument, those that are held out.

    Args:
        data_dir: processed recordings, or plain ones, which are all taken.
        model: to be judged.
        own: whether they are of the model's own instrument.
        trained: the model's checkpoint, which says how its training divided the recordings.

    Raises:
        FileNotFoundError, ValueError: none, none held out, damaged ones, or of the wrong instrument.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}")
    if not any(data_dir.rglob("*.pt")):
        return [_read_sound(path, model, own) for path in find_sound_files([data_dir])]
    corpus = read_corpus(data_dir, *_training_split(trained, model.settings))
    if (corpus.instrument == model.instrument) != own:
        wanted = f"{model.instrument} is wanted" if own else f"another instrument than {model.instrument} is wanted"
        raise ValueError(f"{data_dir} holds {corpus.instrument}, but {wanted}")
    spans = corpus.validation if own else (*corpus.training, *corpus.validation)
    if not spans:
        raise ValueError(f"{data_dir} holds out no recordings; set val_fraction in config.json above 0")
    return [_read_span(span, model) for span in spans]


def _training_split(trained: dict[str, Any] | None, config: Config) -> tuple[Config, str | None]:
    """Return a configuration, and a boundary, by which ``read_corpus`` holds out what a training has held out."""
    if trained is None:
        return config, None
    saved = trained["config"].get("train", {})
    train = dataclasses.replace(config.train, val_fraction=saved.get("val_fraction", config.train.val_fraction))
    return dataclasses.replace(config, train=train), split_boundary(trained)


def _read_sound(path: Path, model: NeuralGuitar, own: bool) -> Take:
    config, audio_settings = model.settings, model.settings.audio
    recording_config = config.for_recordings_of(model.instrument if own else config.guess_instrument(path.name))
    audio = load_audio(path, audio_settings.sample_rate)
    audio = np.pad(audio, (0, -len(audio) % audio_settings.hop_length))
    return Take(path.stem, audio, measure_sound(audio, audio_settings.sample_rate, recording_config, _device(model)))


def _read_span(span: Span, model: NeuralGuitar) -> Take:
    recording, settings = load_recording(span.path), model.settings.audio
    frames = slice(span.first_frame, span.first_frame + span.n_frames)
    first, last = (settings.frames_to_samples(number) for number in (frames.start, frames.stop))
    audio = recording.audio[0, first:last].numpy()
    curves = (getattr(recording, name)[0, frames, 0].numpy() for name in ("f0", "loudness", "periodicity"))
    feature_audio = at_feature_rate(audio, model)
    sound = MeasuredSound(
        feature_audio, *curves, sample_rate=settings.feature_rate, hop_length=settings.feature_hop_length
    )
    return Take(span.path.name.removesuffix(".pt"), audio, sound)


def at_feature_rate(audio: np.ndarray, model: NeuralGuitar) -> np.ndarray:
    """Return sound [N] of the model's rate at the rate of the features."""
    settings = model.settings.audio
    if settings.sample_rate == settings.feature_rate:
        return audio
    return prepare_audio(audio, settings.sample_rate, settings.feature_rate)


def find_sound_files(sources: Sequence[Path]) -> list[Path]:
    """Return sound files, and those in folders.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a folder without any.
    """
    found = []
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
        inside = sound_folders.find_sound_files(source) if source.is_dir() else [source]
        if not inside:
            raise ValueError(f"{source} holds no sound files, nor files made by preprocess.py")
        found += inside
    return found


def _device(model: NeuralGuitar) -> torch.device:
    return next(model.parameters()).device


# --- copies of recordings -------------------------------------------------------------------------


@torch.inference_mode()
def resynthesize_take(take: Take, model: NeuralGuitar, seed: int) -> np.ndarray:
    """Return what a model makes of a recording's own curves: [N]."""
    curves = [torch.from_numpy(values)[None, :, None] for values in (take.sound.f0, take.sound.loudness)]
    curves, plucks = [values.to(_device(model)) for values in curves], None
    if model.config.onset_inputs:
        floor = model.settings.features.loudness_floor
        traced = trace_plucks(take.sound.f0, take.sound.loudness, model.audio.frame_rate, floor)
        plucks = torch.from_numpy(traced)[None].to(_device(model))
    generator = torch.Generator(_device(model)).manual_seed(seed)
    return model(*curves, generator, plucks=plucks)[0].cpu().numpy()


def evaluate_takes(
    takes: list[Take], models: dict[str, NeuralGuitar], reference: TimbreReference | None, seed: int
) -> tuple[list[Row], list[Exhibit]]:
    """Judge each model's copies of recordings; return rows, each model's and last the recordings' own, and exhibits."""
    if not takes:
        return [], []
    rate, rows = models[MODEL].settings.audio.sample_rate, []
    config = models[MODEL].settings.for_recordings_of(models[MODEL].instrument)
    exhibits = [Exhibit(take.name, [Track(RECORDING, take.audio, rate)], {}) for take in takes]
    for name, model in tqdm(models.items(), desc="copies", unit="model", leave=False):
        copies = [resynthesize_take(take, model, seed) for take in takes]
        sounds = [measure_sound(copy, rate, config, _device(model)) for copy in copies]
        rows.append({"sound": name, **evaluate_copies(takes, copies, sounds, model, reference, seed)})
        for exhibit, copy in zip(exhibits, copies):
            exhibit.tracks.append(Track(name, copy, rate))
    rows.append({"sound": RECORDING, **evaluate_originals(takes, config.features.loudness_floor, reference, seed)})
    return rows, exhibits


def evaluate_copies(
    takes: list[Take],
    copies: list[np.ndarray],
    sounds: list[MeasuredSound],
    model: NeuralGuitar,
    reference: TimbreReference | None,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of one model's copies, as sound [N] each and measured."""
    halves = likeness.split_timbre(likeness.join_timbres([describe_timbre(sound) for sound in sounds]))
    return {
        "stft_loss": float(np.mean([stft_loss(copy, take.audio, model) for copy, take in zip(copies, takes)])),
        **scorecard.compare_copies([take.sound for take in takes], sounds, model.settings.features.loudness_floor),
        "likeness": _scaled_likeness((halves[1], halves[0]), reference, seed),
    }


def evaluate_originals(
    takes: list[Take], loudness_floor: float, reference: TimbreReference | None, seed: int
) -> dict[str, Any]:
    """Return the figures of recordings held against themselves: what a perfect copy would reach."""
    sounds = [take.sound for take in takes]
    halves = likeness.split_timbre(likeness.join_timbres([describe_timbre(sound) for sound in sounds]))
    scaled = _scaled_likeness((halves[1], halves[0]), reference, seed)
    return {"stft_loss": 0.0, **scorecard.compare_copies(sounds, sounds, loudness_floor), "likeness": scaled}


@torch.inference_mode()
def stft_loss(prediction: np.ndarray, target: np.ndarray, model: NeuralGuitar) -> float:
    """Return the multi-resolution STFT loss of a sound [N] against another."""
    settings = model.settings.loss
    function = MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )
    return function(*(torch.from_numpy(audio)[None] for audio in (prediction, target))).total.item()


def _scaled_likeness(outputs: tuple[Timbre, Timbre], reference: TimbreReference | None, seed: int) -> float | None:
    if reference is None:
        return None
    judged = likeness.measure_likeness(outputs, reference.halves, reference.other, seed)
    return judged.scaled if judged else None


def build_timbre_reference(takes: list[Take], others: list[Take]) -> TimbreReference | None:
    """Return the timbre of the instrument and of the other one, or None where either is not given."""
    if not takes or not others:
        return None
    own, other = (likeness.join_timbres([describe_timbre(take.sound) for take in group]) for group in (takes, others))
    return TimbreReference(likeness.split_timbre(own), other)


# --- voices ---------------------------------------------------------------------------------------


def load_voice_versions(path: Path, rate: int, snr: float | None, seed: int) -> dict[str, np.ndarray]:
    """Return a voice [N] by its name, and with ``snr`` also with white noise so many dB below its mean power."""
    audio = load_audio(path, rate)
    noisy = {} if snr is None else {f"{path.stem}, {snr:g} dB SNR": scorecard.add_noise(audio, snr, seed)}
    return {path.stem: audio, **noisy}


def evaluate_voice(
    path: Path, models: dict[str, NeuralGuitar], reference: TimbreReference | None, snr: float | None, seed: int
) -> list[tuple[list[Row], Exhibit]]:
    """Judge a voice on each model, without noise and with it; the notes wanted are those fitted to it without noise.

    Returns:
        For each version of the voice its rows, each model's and last its own, and what there is to hear and see.

    Raises:
        FileNotFoundError, ValueError: it or its annotation cannot be read, or no melody can be heard in it.
    """
    model = models[MODEL]
    rate, config = model.settings.audio.feature_rate, model.settings.for_recordings_of(model.instrument)
    judged, expected = [], {}
    for name, audio in load_voice_versions(path, rate, snr, seed).items():
        results = {sound: transfer(audio, rate, each) for sound, each in models.items()}
        sung = read_voice_annotation(path, len(results[MODEL].curves.f0), 1 / config.audio.frame_rate)
        expected = expected or {sound: expected_curves(result, sung) for sound, result in results.items()}
        measured = {
            sound: measure_sound(result.audio, result.sample_rate, config, _device(model))
            for sound, result in results.items()
        }
        figures = {
            sound: evaluate_transfer(result, measured[sound], expected[sound], model, reference, seed)
            for sound, result in results.items()
        }
        figures[VOICE] = evaluate_voice_input(audio, results[MODEL], expected[MODEL], model, reference, seed)
        tracks = [Track(VOICE, audio, rate), *(Track(sound, r.audio, r.sample_rate) for sound, r in results.items())]
        rows = [{"voice": name, "sound": sound, **values} for sound, values in figures.items()]
        judged.append((rows, Exhibit(name, tracks, measured, expected[MODEL])))
    return judged


def expected_curves(result: TransferResult, sung: np.ndarray | None = None) -> ExpectedCurves:
    """Return what a transfer was to play: the notes as they are held, without their releases."""
    return ExpectedCurves(result.curves.f0, result.features.loudness.numpy(), result.curves.voiced, sung)


def evaluate_transfer(
    result: TransferResult,
    sound: MeasuredSound,
    expected: ExpectedCurves,
    model: NeuralGuitar,
    reference: TimbreReference | None,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of one voice played by one model; ``sound`` is the result, measured."""
    timbre, own = describe_timbre(sound), model.settings.instrument(model.instrument)
    return {
        **scorecard.compare_transfer(expected, sound, model.settings.features.periodicity_threshold),
        **scorecard.measure_level(result.audio),
        "out_of_range": scorecard.percent_out_of_range(expected_curves(result), own),
        "likeness": _scaled_likeness((timbre, timbre), reference, seed),
    }


def evaluate_voice_input(
    audio: np.ndarray,
    result: TransferResult,
    expected: ExpectedCurves,
    model: NeuralGuitar,
    reference: TimbreReference | None,
    seed: int,
) -> dict[str, Any]:
    """Return the same figures of the voice as it is: its pitch in its own register, its timbre at its fitted level."""
    sound = measure_sound(audio, model.settings.audio.feature_rate, model.settings, _device(model))
    played = expected.played
    ratio = np.median(result.curves.f0[played] / result.features.f0.numpy()[played])
    in_register = dataclasses.replace(expected, f0=expected.f0 / ratio)
    timbre = describe_timbre(sound, result.curves.f0, result.curves.loudness)
    return {
        **scorecard.compare_transfer(in_register, sound, model.settings.features.periodicity_threshold),
        **scorecard.measure_level(audio),
        "out_of_range": scorecard.percent_out_of_range(in_register, model.settings.instrument(model.instrument)),
        "likeness": _scaled_likeness((timbre, timbre), reference, seed),
    }
