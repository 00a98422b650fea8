"""Judge models on recordings, which they copy, and on voices, which they play: rows of figures, and what to hear.

``scripts/evaluate.py`` and ``scripts/ablate.py`` are the command lines; what is measured is in ``scorecard.py``.
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
from evaluation.scorecard import Measured, Wanted, measure
from evaluation.scorecard_page import Exhibit, Track
from loss import MultiResolutionSTFTLoss
from model import NeuralGuitar
from playing.offline_transfer import TransferResult, transfer
from recordings.corpus import boundary_of, read_corpus
from recordings.crops import Span
from recordings.pitch_annotations import read_sung
from sound.audio_files import SUFFIXES, load_audio, prepare_audio

MODEL, BASELINE, UNTRAINED = "this model", "baseline", "untrained model"  # rows of the tables
RECORDING, VOICE = "the recording itself", "the voice itself"
Row = dict[str, Any]


@dataclass(frozen=True)
class Take:
    """A recording of an instrument."""

    name: str
    audio: np.ndarray  # [N] at the rate of the sound
    sound: Measured


@dataclass(frozen=True)
class Instrument:
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
        return [_read_sound(path, model, own) for path in find_sounds([data_dir])]
    corpus = read_corpus(data_dir, *_split_of(trained, model.settings))
    if (corpus.instrument == model.instrument) != own:
        wanted = f"{model.instrument} is wanted" if own else f"another instrument than {model.instrument} is wanted"
        raise ValueError(f"{data_dir} holds {corpus.instrument}, but {wanted}")
    spans = corpus.validation if own else (*corpus.training, *corpus.validation)
    if not spans:
        raise ValueError(f"{data_dir} holds out no recordings; set val_fraction in config.json above 0")
    return [_read_span(span, model) for span in spans]


def _split_of(trained: dict[str, Any] | None, config: Config) -> tuple[Config, str | None]:
    """Return a configuration, and a boundary, by which ``read_corpus`` holds out what a training has held out."""
    if trained is None:
        return config, None
    saved = trained["config"].get("train", {})
    train = dataclasses.replace(config.train, val_fraction=saved.get("val_fraction", config.train.val_fraction))
    return dataclasses.replace(config, train=train), boundary_of(trained)


def _read_sound(path: Path, model: NeuralGuitar, own: bool) -> Take:
    config, audio_settings = model.settings, model.settings.audio
    heard_as = config.for_recordings_of(model.instrument if own else config.guess_instrument(path.name))
    audio = load_audio(path, audio_settings.sample_rate)
    audio = np.pad(audio, (0, -len(audio) % audio_settings.hop_length))
    return Take(path.stem, audio, measure(audio, audio_settings.sample_rate, heard_as, _device(model)))


def _read_span(span: Span, model: NeuralGuitar) -> Take:
    recording, settings = load_recording(span.path), model.settings.audio
    frames = slice(span.first_frame, span.first_frame + span.n_frames)
    first, last = (settings.frames_to_samples(number) for number in (frames.start, frames.stop))
    audio = recording.audio[0, first:last].numpy()
    curves = (getattr(recording, name)[0, frames, 0].numpy() for name in ("f0", "loudness", "periodicity"))
    heard = measured_audio(audio, model)
    sound = Measured(heard, *curves, sample_rate=settings.feature_rate, hop_length=settings.feature_hop_length)
    return Take(span.path.name.removesuffix(".pt"), audio, sound)


def measured_audio(audio: np.ndarray, model: NeuralGuitar) -> np.ndarray:
    """Return sound [N] of the model's rate at the rate of the features."""
    settings = model.settings.audio
    if settings.sample_rate == settings.feature_rate:
        return audio
    return prepare_audio(audio, settings.sample_rate, settings.feature_rate)


def find_sounds(sources: Sequence[Path]) -> list[Path]:
    """Return sound files, and those in folders.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a folder without any.
    """
    found = []
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
        inside = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if source.is_dir() and not inside:
            raise ValueError(f"{source} holds no sound files, nor files made by preprocess.py")
        found += inside if source.is_dir() else [source]
    return found


def _device(model: NeuralGuitar) -> torch.device:
    return next(model.parameters()).device


# --- copies of recordings -------------------------------------------------------------------------


@torch.inference_mode()
def copy_take(take: Take, model: NeuralGuitar, seed: int) -> np.ndarray:
    """Return what a model makes of a recording's own curves: [N]."""
    curves = [torch.from_numpy(values)[None, :, None] for values in (take.sound.f0, take.sound.loudness)]
    curves = [values.to(_device(model)) for values in curves]
    return model(*curves, torch.Generator(_device(model)).manual_seed(seed))[0].cpu().numpy()


def judge_takes(
    takes: list[Take], models: dict[str, NeuralGuitar], instrument: Instrument | None, seed: int
) -> tuple[list[Row], list[Exhibit]]:
    """Judge each model's copies of recordings; return rows, each model's and last the recordings' own, and exhibits."""
    if not takes:
        return [], []
    rate, rows = models[MODEL].settings.audio.sample_rate, []
    config = models[MODEL].settings.for_recordings_of(models[MODEL].instrument)
    exhibits = [Exhibit(take.name, [Track(RECORDING, take.audio, rate)], {RECORDING: take.sound}) for take in takes]
    for name, model in tqdm(models.items(), desc="copies", unit="model", leave=False):
        copies = [copy_take(take, model, seed) for take in takes]
        sounds = [measure(copy, rate, config, _device(model)) for copy in copies]
        rows.append({"sound": name, **judge_copies(takes, copies, sounds, model, instrument, seed)})
        for exhibit, copy, sound in zip(exhibits, copies, sounds):
            exhibit.tracks.append(Track(name, copy, rate))
            exhibit.heard[name] = sound
    rows.append({"sound": RECORDING, **judge_originals(takes, config.features.loudness_floor, instrument, seed)})
    return rows, exhibits


def judge_copies(
    takes: list[Take],
    copies: list[np.ndarray],
    sounds: list[Measured],
    model: NeuralGuitar,
    instrument: Instrument | None,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of one model's copies, as sound [N] each and measured."""
    halves = likeness.split(likeness.join([describe_timbre(sound) for sound in sounds]))
    return {
        "stft_loss": float(np.mean([stft_loss(copy, take.audio, model) for copy, take in zip(copies, takes)])),
        **scorecard.judge_copies([take.sound for take in takes], sounds, model.settings.features.loudness_floor),
        "likeness": _scaled((halves[1], halves[0]), instrument, seed),
    }


def judge_originals(
    takes: list[Take], loudness_floor: float, instrument: Instrument | None, seed: int
) -> dict[str, Any]:
    """Return the figures of recordings held against themselves: what a perfect copy would reach."""
    sounds = [take.sound for take in takes]
    halves = likeness.split(likeness.join([describe_timbre(sound) for sound in sounds]))
    scaled = _scaled((halves[1], halves[0]), instrument, seed)
    return {"stft_loss": 0.0, **scorecard.judge_copies(sounds, sounds, loudness_floor), "likeness": scaled}


@torch.inference_mode()
def stft_loss(prediction: np.ndarray, target: np.ndarray, model: NeuralGuitar) -> float:
    """Return the multi-resolution STFT loss of a sound [N] against another."""
    settings = model.settings.loss
    function = MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )
    return function(*(torch.from_numpy(audio)[None] for audio in (prediction, target))).total.item()


def _scaled(outputs: tuple[Timbre, Timbre], instrument: Instrument | None, seed: int) -> float | None:
    if instrument is None:
        return None
    judged = likeness.judge_likeness(outputs, instrument.halves, instrument.other, seed)
    return judged.scaled if judged else None


def read_instrument(takes: list[Take], others: list[Take]) -> Instrument | None:
    """Return the timbre of the instrument and of the other one, or None where either is not given."""
    if not takes or not others:
        return None
    own, other = (likeness.join([describe_timbre(take.sound) for take in group]) for group in (takes, others))
    return Instrument(likeness.split(own), other)


# --- voices ---------------------------------------------------------------------------------------


def read_voice(path: Path, rate: int, snr: float | None, seed: int) -> dict[str, np.ndarray]:
    """Return a voice [N] by its name, and with ``snr`` also with white noise so many dB below its mean power."""
    audio = load_audio(path, rate)
    noisy = {} if snr is None else {f"{path.stem}, {snr:g} dB SNR": scorecard.add_noise(audio, snr, seed)}
    return {path.stem: audio, **noisy}


def judge_voice(
    path: Path, models: dict[str, NeuralGuitar], instrument: Instrument | None, snr: float | None, seed: int
) -> list[tuple[list[Row], Exhibit]]:
    """Judge a voice on each model, without noise and with it; the notes wanted are those fitted to it without noise.

    Returns:
        For each version of the voice its rows, each model's and last its own, and what there is to hear and see.

    Raises:
        FileNotFoundError, ValueError: it or its annotation cannot be read, or no melody can be heard in it.
    """
    model = models[MODEL]
    rate, config = model.settings.audio.feature_rate, model.settings.for_recordings_of(model.instrument)
    judged, wanted = [], {}
    for name, audio in read_voice(path, rate, snr, seed).items():
        results = {sound: transfer(audio, rate, each) for sound, each in models.items()}
        sung = read_sung(path, len(results[MODEL].curves.f0), 1 / config.audio.frame_rate)
        wanted = wanted or {sound: what_is_wanted(result, sung) for sound, result in results.items()}
        heard = {
            sound: measure(result.audio, result.sample_rate, config, _device(model))
            for sound, result in results.items()
        }
        figures = {
            sound: judge_transfer(result, heard[sound], wanted[sound], model, instrument, seed)
            for sound, result in results.items()
        }
        figures[VOICE] = judge_input(audio, results[MODEL], wanted[MODEL], model, instrument, seed)
        tracks = [Track(VOICE, audio, rate), *(Track(sound, r.audio, r.sample_rate) for sound, r in results.items())]
        rows = [{"voice": name, "sound": sound, **values} for sound, values in figures.items()]
        judged.append((rows, Exhibit(name, tracks, heard, wanted[MODEL])))
    return judged


def what_is_wanted(result: TransferResult, sung: np.ndarray | None = None) -> Wanted:
    """Return what a transfer was to play: the notes as they are held, without their releases."""
    return Wanted(result.curves.f0, result.features.loudness.numpy(), result.curves.voiced, sung)


def judge_transfer(
    result: TransferResult,
    sound: Measured,
    wanted: Wanted,
    model: NeuralGuitar,
    instrument: Instrument | None,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of one voice played by one model; ``sound`` is the result, measured."""
    timbre, own = describe_timbre(sound), model.settings.instrument(model.instrument)
    return {
        **scorecard.judge_playing(wanted, sound, model.settings.features.periodicity_threshold),
        **scorecard.judge_level(result.audio),
        "out_of_range": scorecard.share_out_of_range(what_is_wanted(result), own),
        "likeness": _scaled((timbre, timbre), instrument, seed),
    }


def judge_input(
    audio: np.ndarray,
    result: TransferResult,
    wanted: Wanted,
    model: NeuralGuitar,
    instrument: Instrument | None,
    seed: int,
) -> dict[str, Any]:
    """Return the same figures of the voice as it is: its pitch in its own register, its timbre at its fitted level."""
    sound = measure(audio, model.settings.audio.feature_rate, model.settings, _device(model))
    played = wanted.played
    ratio = np.median(result.curves.f0[played] / result.features.f0.numpy()[played])
    in_register = dataclasses.replace(wanted, f0=wanted.f0 / ratio)
    timbre = describe_timbre(sound, result.curves.f0, result.curves.loudness)
    return {
        **scorecard.judge_playing(in_register, sound, model.settings.features.periodicity_threshold),
        **scorecard.judge_level(audio),
        "out_of_range": scorecard.share_out_of_range(in_register, model.settings.instrument(model.instrument)),
        "likeness": _scaled((timbre, timbre), instrument, seed),
    }
