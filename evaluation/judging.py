"""Evaluation of models on copies of recordings and on voices: table rows, audio examples and plots.

The commands are ``scripts/evaluate.py`` and ``benchmarks/ablations.py``; the measures are in ``scorecard.py``.
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

MODEL, UNTRAINED = "this model", "untrained model"  # table rows, in addition to the baselines
RECORDING, VOICE = "the recording itself", "the voice itself"
_AS_THE_INSTRUMENT = TransferOptions()
_COMPARED_RATE = 16000  # Hz: models of all sample rates are compared up to half of it
Row = dict[str, Any]


@dataclass(frozen=True)
class Take:
    """Recording of an instrument."""

    name: str
    audio: np.ndarray  # [N] at the evaluated model's sample rate
    sound: MeasuredSound
    bandwidth: float  # Hz


# --- reading --------------------------------------------------------------------------------------


def read_takes(data_dir: Path, model: NeuralGuitar, trained: dict[str, Any] | None = None) -> list[Take]:
    """Read recordings of a model's instrument; of processed recordings, only the held-out ones.

    Args:
        data_dir: processed recordings, or plain sound files, which are all used.
        model: the model to evaluate.
        trained: the model's checkpoint, which stores how the recordings were split for training.

    Raises:
        FileNotFoundError, ValueError: the recordings are missing, damaged, not held out or of another instrument.
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
    """Return the configuration and split boundary with which ``read_corpus`` reproduces a training's held-out set."""
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
    """Resample sound [N] from ``rate`` to ``wanted`` Hz."""
    return audio if rate == wanted else prepare_audio(audio, rate, wanted)


def expand_folders(sources: Sequence[Path]) -> list[Path]:
    """Return sound files, with each folder replaced by its sound files.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or a folder has no sound files.
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
    """Return a model's output for a recording's own f0 and loudness: [N]."""
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
    """Evaluate each model's copies of recordings at the sample rate of the evaluated model.

    Returns:
        Table rows, one per model and last one for the recordings themselves; audio and plots; and the measures of the
        recordings over time, which voices are also compared with. Two empty lists and None without recordings.
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
    """Return the frame-wise distances of copies [N] to the original recordings, and the recognition rate."""
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
    """Return the multi-resolution STFT loss between a sound [N] and a recording, up to the recording's bandwidth."""
    settings = model.settings.loss
    function = MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )
    share = torch.tensor([take.bandwidth / (model.settings.audio.sample_rate / 2)])
    return function(*(torch.from_numpy(each)[None] for each in (audio, take.audio)), share).total.item()


def recognition_rate(audio: np.ndarray, sample_rate: int, instrument: str) -> float | None:
    """Return the percentage of the windows of a sound [N] that are recognised as an instrument.

    None if the recogniser does not know the instrument, or if the sound is shorter than one window.
    """
    recogniser = load_recogniser()
    if instrument not in recogniser.instruments or len(audio) < sample_rate * WINDOW / RECOGNISER_RATE:
        return None
    return 100 * recognise(audio, sample_rate, recogniser).shares[instrument]


# --- voices ---------------------------------------------------------------------------------------


def load_voice_versions(path: Path, rate: int, snr: float | None, seed: int) -> dict[str, np.ndarray]:
    """Return a voice [N] by name and, with ``snr``, a version with white noise ``snr`` dB below its mean power."""
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
    """Evaluate a voice on each model, clean and with noise; the notes fitted to the clean voice are the reference.

    Args:
        path: sound file of the voice.
        models: models by row name.
        real: measures of the instrument's recordings over time, or None.
        snr: dB, for a second version with noise; None skips it.
        seed: seed of the noise.
        options: options of the transfer.

    Returns:
        For each version of the voice: its table rows, one per model and last one for the voice itself, and its audio
        and plots.

    Raises:
        FileNotFoundError, ValueError: the voice or its annotation cannot be read, or no melody is found in it.
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
    """Return the curves that a model was given: the notes without their releases."""
    return ExpectedCurves(result.curves.f0, result.curves.loudness, result.curves.voiced, sung)


def evaluate_sound(
    audio: np.ndarray, sample_rate: int, f0: np.ndarray, model: NeuralGuitar, real: Measures | None
) -> dict[str, float | None]:
    """Return a sound's [N] recognition rate and its distances to the recordings; f0 [T] selects frames by pitch."""
    measures = None if real is None else measure_sounds([audio], sample_rate, f0=[f0])
    distances = dict.fromkeys(UNITS) if real is None else compare(real, measures)
    return {"recognised": recognition_rate(audio, sample_rate, model.instrument), **distances}


def evaluate_obedience(
    audio: np.ndarray, sound: MeasuredSound, expected: ExpectedCurves, model: NeuralGuitar
) -> dict[str, Any]:
    """Return how well a sound [N] follows its curves; ``sound`` holds its measured curves."""
    threshold = model.settings.features.periodicity_threshold
    return {**scorecard.compare_transfer(expected, sound, threshold), **scorecard.measure_level(audio)}


def evaluate_voice_input(
    audio: np.ndarray, result: TransferResult, expected: ExpectedCurves, model: NeuralGuitar, real: Measures | None
) -> dict[str, Any]:
    """Return the same figures for the unprocessed voice: pitch in the sung register, timbre at the fitted pitch."""
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
