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

from config import Config, InstrumentConfig
from data import load_recording
from evaluation import scorecard
from evaluation.distributions import (
    UNITS,
    Measures,
    compare,
    find_onsets,
    high_band_difference,
    log_mel_distance,
    measure_sounds,
)
from evaluation.recogniser import SAMPLE_RATE as RECOGNISER_RATE
from evaluation.recogniser import WINDOW, load_recogniser, recognise
from evaluation.scorecard import ExpectedCurves, MeasuredSound, measure_sound
from evaluation.scorecard_page import Exhibit, Track
from features import extract_loudness
from loss import MultiResolutionSTFTLoss
from model import NeuralGuitar
from playing.offline_transfer import TransferResult, transfer
from recordings.corpus import read_corpus, split_boundary
from recordings.crops import Span
from recordings.pitch_annotations import read_voice_annotation
from sound.audio_files import find_sound_files, load_audio, prepare_audio
from sound.bandwidth import measure_bandwidth
from sound.plucks import trace_plucks
from voice.instrument_fit import TransferOptions

MODEL, UNTRAINED = "this model", "untrained model"  # rows of the tables, beside those of the baselines
RECORDING, VOICE = "the recording itself", "the voice itself"
_AS_THE_INSTRUMENT = TransferOptions()
_COMPARED_RATE = 16000  # Hz: up to half of it models of all rates are compared
Row = dict[str, Any]


@dataclass(frozen=True)
class Take:
    """A recording of an instrument."""

    name: str
    audio: np.ndarray  # [N] at the rate of the model that is judged
    sound: MeasuredSound
    bandwidth: float  # Hz, up to which it has sound


# --- reading --------------------------------------------------------------------------------------


def read_takes(data_dir: Path, model: NeuralGuitar, trained: dict[str, Any] | None = None) -> list[Take]:
    """Read recordings of a model's instrument: of processed ones those that are held out.

    Args:
        data_dir: processed recordings, or plain ones, which are all taken.
        model: to be judged.
        trained: the model's checkpoint, which says how its training divided the recordings.

    Raises:
        FileNotFoundError, ValueError: none, none held out, damaged ones, or of the wrong instrument.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}")
    if not any(data_dir.rglob("*.pt")):
        return [_read_sound(path, model) for path in expand_folders([data_dir])]
    corpus = read_corpus(data_dir, *_training_split(trained, model.settings))
    if corpus.instrument != model.instrument:
        raise ValueError(f"{data_dir} holds {corpus.instrument}, but {model.instrument} is wanted")
    if not corpus.validation:
        raise ValueError(f"{data_dir} holds out no recordings; set val_fraction in config.json above 0")
    return [_read_span(span, model) for span in corpus.validation]


def _training_split(trained: dict[str, Any] | None, config: Config) -> tuple[Config, str | None]:
    """Return a configuration, and a boundary, by which ``read_corpus`` holds out what a training has held out."""
    if trained is None:
        return config, None
    saved = trained["config"].get("train", {})
    train = dataclasses.replace(config.train, val_fraction=saved.get("val_fraction", config.train.val_fraction))
    return dataclasses.replace(config, train=train), split_boundary(trained)


def _read_sound(path: Path, model: NeuralGuitar) -> Take:
    config, settings = model.settings.for_recordings_of(model.instrument), model.settings.audio
    audio = load_audio(path, settings.sample_rate)
    if not np.any(audio):
        raise ValueError(f"{path} is silent; take it out of the recordings")
    audio = np.pad(audio, (0, -len(audio) % settings.hop_length))
    sound = measure_sound(audio, settings.sample_rate, config, _device(model))
    return Take(path.stem, audio, sound, measure_bandwidth(audio, settings.sample_rate, settings.feature_rate / 2))


def _read_span(span: Span, model: NeuralGuitar) -> Take:
    recording, settings = load_recording(span.path), model.settings.audio
    frames = slice(span.first_frame, span.first_frame + span.n_frames)
    first, last = (settings.frames_to_samples(number) for number in (frames.start, frames.stop))
    audio = recording.audio[0, first:last].numpy()
    curves = (getattr(recording, name)[0, frames, 0].numpy() for name in ("f0", "loudness", "periodicity"))
    sound = MeasuredSound(
        resample(audio, settings.sample_rate, settings.feature_rate),
        *curves,
        sample_rate=settings.feature_rate,
        hop_length=settings.feature_hop_length,
    )
    bandwidth = recording.bandwidth or settings.sample_rate / 2
    return Take(span.path.name.removesuffix(".pt"), audio, sound, bandwidth)


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return sound [N] of one rate at another."""
    return audio if rate == wanted else prepare_audio(audio, rate, wanted)


def expand_folders(sources: Sequence[Path]) -> list[Path]:
    """Return sound files, folders replaced by the sound files in them.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a folder without any.
    """
    found = []
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
        inside = find_sound_files(source) if source.is_dir() else [source]
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
    takes: list[Take], models: dict[str, NeuralGuitar], seed: int
) -> tuple[list[Row], list[Exhibit], Measures | None]:
    """Judge each model's copies of recordings, all at the rate of the one that is judged.

    Returns:
        Rows, each model's and last the recordings' own; what there is to hear and see; and what the recordings measure
        over time, against which voices are held too. Nothing, nothing and None without recordings.
    """
    if not takes:
        return [], [], None
    model, rows = models[MODEL], []
    rate = model.settings.audio.sample_rate
    originals = [take.audio for take in takes]
    onsets, f0 = [find_onsets(audio, rate) for audio in originals], [take.sound.f0 for take in takes]
    real = measure_sounds(originals, rate, onsets, f0)
    exhibits = [Exhibit(take.name, [Track(RECORDING, take.audio, rate)], {}) for take in takes]
    for name, each in tqdm([*models.items(), (RECORDING, None)], desc="copies", unit="model", leave=False):
        copies = originals
        if each is not None:
            played = [resynthesize_take(take, each, seed) for take in takes]
            copies = [resample(copy, each.settings.audio.sample_rate, rate) for copy in played]
            for exhibit, copy in zip(exhibits, copies):
                exhibit.tracks.append(Track(name, copy, rate))
        distances = compare(real, measure_sounds(copies, rate, onsets, f0))
        rows.append({"sound": name, **compare_with_takes(copies, takes, model), **distances})
    return rows, exhibits, real


def compare_with_takes(copies: list[np.ndarray], takes: list[Take], model: NeuralGuitar) -> dict[str, float | None]:
    """Return how near sounds [N] are to the recordings that they copy, frame by frame, and what they are heard as."""
    config, rate = model.settings.for_recordings_of(model.instrument), model.settings.audio.sample_rate
    at_features = [resample(copy, rate, config.audio.feature_rate) for copy in copies]
    sounds = [
        dataclasses.replace(take.sound, audio=audio, loudness=extract_loudness(audio, config))
        for take, audio in zip(takes, at_features)
    ]
    pairs = list(zip(copies, takes))
    return {
        "log_mel": float(np.mean([log_mel_distance(a, t.audio, rate, fmax=t.bandwidth) for a, t in pairs])),
        "log_mel_8k": float(np.mean([log_mel_distance(a, t.audio, rate, fmax=_COMPARED_RATE / 2) for a, t in pairs])),
        "over_8k": high_band_difference(copies, [t.audio for t in takes], rate, [t.bandwidth for t in takes]),
        "stft_loss": float(np.mean([stft_loss(audio, take, model) for audio, take in pairs])),
        "recognised": recognition_rate(np.concatenate(copies), rate, model.instrument),
        **scorecard.compare_copies([take.sound for take in takes], sounds),
    }


@torch.inference_mode()
def stft_loss(audio: np.ndarray, take: Take, model: NeuralGuitar) -> float:
    """Return the multi-resolution STFT loss of a sound [N] against a recording, up to where that has sound."""
    settings = model.settings.loss
    function = MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )
    share = torch.tensor([take.bandwidth / (model.settings.audio.sample_rate / 2)])
    return function(*(torch.from_numpy(each)[None] for each in (audio, take.audio)), share).total.item()


def recognition_rate(audio: np.ndarray, sample_rate: int, instrument: str) -> float | None:
    """Return in how many of its seconds a sound [N] is heard as an instrument, in percent.

    None if the recogniser does not know the instrument, or if less than a second sounds.
    """
    recogniser = load_recogniser()
    if instrument not in recogniser.instruments or len(audio) < sample_rate * WINDOW / RECOGNISER_RATE:
        return None
    return 100 * recognise(audio, sample_rate, recogniser).heard[instrument]


# --- voices ---------------------------------------------------------------------------------------


def load_voice_versions(path: Path, rate: int, snr: float | None, seed: int) -> dict[str, np.ndarray]:
    """Return a voice [N] by its name, and with ``snr`` also with white noise so many dB below its mean power."""
    audio = load_audio(path, rate)
    noisy = {} if snr is None else {f"{path.stem}, {snr:g} dB SNR": scorecard.add_noise(audio, snr, seed)}
    return {path.stem: audio, **noisy}


def evaluate_voice(
    path: Path,
    models: dict[str, NeuralGuitar],
    real: Measures | None,
    snr: float | None,
    seed: int,
    options: TransferOptions = _AS_THE_INSTRUMENT,
) -> list[tuple[list[Row], Exhibit]]:
    """Judge a voice on each model, without noise and with it; the notes wanted are those fitted to it without noise.

    Args:
        path: of the voice.
        models: by the names of their rows.
        real: what recordings of the instrument measure over time, or None.
        snr: dB, of a second version with noise.
        seed: of the noise.
        options: of the transfer.

    Returns:
        For each version of the voice its rows, each model's and last its own, and what there is to hear and see.

    Raises:
        FileNotFoundError, ValueError: it or its annotation cannot be read, or no melody can be heard in it.
    """
    model = models[MODEL]
    rate, config = model.settings.audio.feature_rate, model.settings.for_recordings_of(model.instrument)
    judged, expected = [], {}
    for name, audio in load_voice_versions(path, rate, snr, seed).items():
        results = {sound: transfer(audio, rate, each, options) for sound, each in models.items()}
        sung = read_voice_annotation(path, len(results[MODEL].curves.f0), 1 / config.audio.frame_rate)
        expected = expected or {sound: expected_curves(result, sung) for sound, result in results.items()}
        measured = {
            sound: measure_sound(result.audio, result.sample_rate, config, _device(model))
            for sound, result in results.items()
        }
        figures = {
            sound: {
                **evaluate_sound(result.audio, result.sample_rate, result.curves.f0, model, real),
                **evaluate_obedience(result.audio, measured[sound], expected[sound], model),
                "out_of_range": scorecard.percent_out_of_range(expected_curves(result), _instrument(model)),
            }
            for sound, result in results.items()
        }
        figures[VOICE] = evaluate_voice_input(audio, results[MODEL], expected[MODEL], model, real)
        tracks = [Track(VOICE, audio, rate), *(Track(sound, r.audio, r.sample_rate) for sound, r in results.items())]
        rows = [{"voice": name, "sound": sound, **values} for sound, values in figures.items()]
        judged.append((rows, Exhibit(name, tracks, measured, expected[MODEL])))
    return judged


def expected_curves(result: TransferResult, sung: np.ndarray | None = None) -> ExpectedCurves:
    """Return what a model was told to play: the notes as they are held, without their releases."""
    return ExpectedCurves(result.curves.f0, result.curves.loudness, result.curves.voiced, sung)


def evaluate_sound(
    audio: np.ndarray, sample_rate: int, f0: np.ndarray, model: NeuralGuitar, real: Measures | None
) -> dict[str, float | None]:
    """Return what a sound [N] is heard as, and its distances to recordings of the instrument; f0 [T] sorts frames."""
    measures = None if real is None else measure_sounds([audio], sample_rate, f0=[f0])
    distances = dict.fromkeys(UNITS) if real is None else compare(real, measures)
    return {"recognised": recognition_rate(audio, sample_rate, model.instrument), **distances}


def evaluate_obedience(
    audio: np.ndarray, sound: MeasuredSound, expected: ExpectedCurves, model: NeuralGuitar
) -> dict[str, Any]:
    """Return whether a sound [N] does as its curves say; ``sound`` is the same, measured."""
    threshold = model.settings.features.periodicity_threshold
    return {**scorecard.compare_transfer(expected, sound, threshold), **scorecard.measure_level(audio)}


def evaluate_voice_input(
    audio: np.ndarray, result: TransferResult, expected: ExpectedCurves, model: NeuralGuitar, real: Measures | None
) -> dict[str, Any]:
    """Return the same figures of the voice as it is: its pitch in its own register, its sound at its fitted one."""
    rate, played = model.settings.audio.feature_rate, expected.played
    sound = measure_sound(audio, rate, model.settings, _device(model))
    ratio = np.median(result.curves.f0[played] / result.features.f0.numpy()[played])
    in_register = dataclasses.replace(expected, f0=expected.f0 / ratio)
    return {
        **evaluate_sound(audio, rate, result.curves.f0, model, real),
        **evaluate_obedience(audio, sound, in_register, model),
        "out_of_range": scorecard.percent_out_of_range(in_register, _instrument(model)),
    }


def _instrument(model: NeuralGuitar) -> InstrumentConfig:
    return model.settings.instrument(model.instrument)
