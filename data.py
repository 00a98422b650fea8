"""Processed recordings: one ``.pt`` file each, and the datasets that cut training crops from them.

A file is a dict of plain types and tensors, readable with ``torch.load(weights_only=True)``. It says
with which settings it was made; one made with other settings is stale and refused. Files are memory
mapped: a crop reads only its own samples, so memory does not grow with the data set.
"""

import dataclasses
import functools
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from config import AudioConfig, Config

FORMAT_VERSION = 1
_EXTRACTION_VERSION = 2  # to be raised whenever features.py or pitch.py measures otherwise; 1 searched whole files
_FRAME_KEYS = ("f0", "loudness", "periodicity")
_KEYS = ("format_version", "instrument", *_FRAME_KEYS, "audio", "source", "extractor")
# What torch's unpickler raises on bytes that are no processed file.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    struct.error,
)
_OPEN_FILES = 128  # memory maps that stay open


@dataclass(frozen=True)
class Recording:
    """One recording, measured; T frames and N == T * hop_length samples."""

    instrument: str
    f0: Tensor  # [1, T, 1] Hz, positive
    loudness: Tensor  # [1, T, 1] dB re full scale
    periodicity: Tensor  # [1, T, 1] 0..1
    audio: Tensor  # [1, N] at the sample rate of the sound
    source: dict[str, str]  # file name and sha256 of the recording
    extractor: dict[str, Any]  # the settings it was measured with

    @property
    def n_frames(self) -> int:
        return self.f0.shape[1]


def extractor_settings(config: Config) -> dict[str, Any]:
    """Return all settings on which a processed file depends."""
    return {
        "version": _EXTRACTION_VERSION,
        "audio": dataclasses.asdict(config.audio),
        "features": dataclasses.asdict(config.features),
    }


def save_recording(path: Path, recording: Recording) -> None:
    """Write a processed file; at no moment does a half-written one stand under its name.

    Raises:
        OSError: it cannot be written (a full disk, say); what stood there stays.
    """
    partial = path.with_name(path.name + ".part")
    content = {field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)}
    try:
        torch.save({"format_version": FORMAT_VERSION, **content}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as RuntimeError, in words about its own file format.
        reason = error if isinstance(error, OSError) else "is the disk full?"
        raise OSError(f"{path} could not be written ({reason})") from error
    finally:
        partial.unlink(missing_ok=True)


def load_recording(path: Path, config: Config | None = None) -> Recording:
    """Read and check a processed file.

    Args:
        path: the ``.pt`` file.
        config: refuse a file that was made with other settings; None reads any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a processed file, damaged, or stale.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a readable processed file; run preprocess.py again") from error
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        raise ValueError(f"{path} is not a processed file; preprocess.py makes them")
    if content.pop("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} has another format than version {FORMAT_VERSION}; run preprocess.py again")
    recording = Recording(**content)
    _check_description(path, recording)
    _check_shapes(path, recording)
    if config is not None and recording.extractor != extractor_settings(config):
        raise ValueError(f"{path} was made with other settings, or by an earlier version; run preprocess.py again")
    return recording


def _check_description(path: Path, recording: Recording) -> None:
    source, extractor = recording.source, recording.extractor
    described = (
        isinstance(recording.instrument, str)
        and isinstance(source, dict)
        and isinstance(source.get("sha256"), str)
        and isinstance(extractor, dict)
        and isinstance(extractor.get("audio"), dict)
        and isinstance(extractor["audio"].get("hop_length"), int)
    )
    if not described:
        raise ValueError(f"{path} does not say what it was made from; run preprocess.py again")


def _check_shapes(path: Path, recording: Recording) -> None:
    tensors = [getattr(recording, key) for key in (*_FRAME_KEYS, "audio")]
    if not all(isinstance(tensor, Tensor) and tensor.dtype == torch.float32 for tensor in tensors):
        raise ValueError(f"{path} does not hold float32 tensors; run preprocess.py again")
    n_frames = tensors[0].numel()
    n_samples = n_frames * recording.extractor["audio"]["hop_length"]
    if n_frames == 0:
        raise ValueError(f"{path} holds no frames; run preprocess.py again")
    if any(tensor.shape != (1, n_frames, 1) for tensor in tensors[:3]) or tensors[3].shape != (1, n_samples):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{path} holds shapes {shapes} that do not fit together; run preprocess.py again")


def find_recordings(data_dir: Path) -> list[Path]:
    """Return the processed files under a folder, sorted.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(data_dir.rglob("*.pt"))
    if not paths:
        raise ValueError(f"{data_dir} holds no .pt files; run preprocess.py first")
    return paths


@dataclass(frozen=True)
class Span:
    """A stretch of one recording that may be cropped."""

    path: Path
    first_frame: int
    n_frames: int


@dataclass(frozen=True)
class Corpus:
    """Recordings of one instrument, split so that no sound is on both sides."""

    instrument: str
    training: tuple[Span, ...]
    validation: tuple[Span, ...]


def read_corpus(data_dir: Path, config: Config) -> Corpus:
    """Check every processed file of a folder and split them.

    Copies of one take (URMP reuses takes byte for byte) stay on one side. With fewer than five takes
    the end of each is held out instead.

    Raises:
        ValueError: no files, a bad or stale one, or files of several instruments.
    """
    spans: dict[str, list[Span]] = {}
    instruments: dict[str, Path] = {}
    for path in find_recordings(data_dir):
        recording = load_recording(path, config)
        instruments.setdefault(recording.instrument, path)
        spans.setdefault(recording.source["sha256"], []).append(Span(path, 0, recording.n_frames))
    if len(instruments) > 1:
        named = ", ".join(f"{name} ({path.name})" for name, path in instruments.items())
        raise ValueError(f"{data_dir} mixes instruments: {named}; a model learns one, so use a folder for each")
    return Corpus(next(iter(instruments)), *_split(spans, config.train.val_fraction))


def _split(takes: dict[str, list[Span]], val_fraction: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    # A hash is as good as a coin, and stays the same when recordings are added or renamed.
    digests = sorted(takes)
    if len(digests) < 5:
        pairs = [_cut_end(span, val_fraction) for digest in digests for span in takes[digest]]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs if pair[1].n_frames)
    n_held_out = max(1, round(val_fraction * len(digests))) if val_fraction > 0 else 0
    held_out = [span for digest in digests[:n_held_out] for span in takes[digest]]
    kept = [span for digest in digests[n_held_out:] for span in takes[digest]]
    return tuple(kept), tuple(held_out)


def _cut_end(span: Span, fraction: float) -> tuple[Span, Span]:
    n_kept = span.n_frames - round(fraction * span.n_frames)
    return Span(span.path, 0, n_kept), Span(span.path, n_kept, span.n_frames - n_kept)


class CropDataset(Dataset):
    """Crops of equal length, each ``{"f0": [T, 1], "loudness": [T, 1], "audio": [N]}``.

    Random crops are a function of (seed, epoch, index) alone, so that a resumed training sees what an
    undisturbed one would have seen. Without a seed the crops lie one after another, for validation.
    """

    def __init__(self, spans: Sequence[Span], config: Config, seed: int | None = None) -> None:
        self.spans = tuple(spans)
        self.audio: AudioConfig = config.audio
        self.loudness_floor = config.features.loudness_floor
        self.n_frames = config.audio.seconds_to_frames(config.train.crop_seconds)
        self.seed = seed
        self.epoch = 0
        counts = [self._count_crops(span, config.train.crops_per_recording) for span in self.spans]
        self._ends = np.cumsum(counts)
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(load_recording)

    def _count_crops(self, span: Span, crops_per_recording: int | None) -> int:
        if self.seed is not None and crops_per_recording is not None:
            return crops_per_recording
        return max(1, span.n_frames // self.n_frames)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops of another epoch."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return this epoch's order of the crops."""
        return np.random.default_rng([self.seed or 0, self.epoch]).permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        span = self.spans[number]
        return self._crop(self._open(span.path), span, self._first_frame(span, index, number))

    def _first_frame(self, span: Span, index: int, number: int) -> int:
        if self.seed is None:
            return span.first_frame + (index - (self._ends[number - 1] if number else 0)) * self.n_frames
        room = max(0, span.n_frames - self.n_frames)
        return span.first_frame + int(np.random.default_rng([self.seed, self.epoch, index]).integers(room + 1))

    def _crop(self, recording: Recording, span: Span, first: int) -> dict[str, Tensor]:
        last = min(first + self.n_frames, span.first_frame + span.n_frames)
        missing = self.n_frames - (last - first)
        hop_length = self.audio.hop_length
        audio = recording.audio[0, first * hop_length : last * hop_length].clone()
        f0, loudness = recording.f0[0, first:last].clone(), recording.loudness[0, first:last].clone()
        return {
            "f0": torch.cat([f0, f0[-1:].expand(missing, 1)]),
            "loudness": torch.nn.functional.pad(loudness, (0, 0, 0, missing), value=self.loudness_floor),
            "audio": torch.nn.functional.pad(audio, (0, missing * hop_length)),
        }


class NeuralGuitarDataset(CropDataset):
    """Crops of guitar recordings."""


class Vox2TrumpetDataset(CropDataset):
    """Crops of trumpet (or other wind) recordings."""


_DATASETS = {"NeuralGuitar": NeuralGuitarDataset, "Vox2Trumpet": Vox2TrumpetDataset}


def build_dataset(spans: Sequence[Span], instrument: str, config: Config, seed: int | None = None) -> CropDataset:
    """Return the dataset class that belongs to the instrument's model."""
    return _DATASETS[config.instrument(instrument).model](spans, config, seed)


def measure_statistics(spans: Sequence[Span], config: Config) -> dict[str, list[float]]:
    """Describe what a model has seen, for fitting a voice to it.

    Returns:
        ``f0_quantiles`` in Hz and ``loudness_quantiles`` in dB, each at 0, 1, ... 100 % of the frames
        that have a pitch.

    Raises:
        ValueError: no frame has a pitch.
    """
    f0, loudness = [], []
    for span in spans:
        recording = load_recording(span.path)
        here = slice(span.first_frame, span.first_frame + span.n_frames)
        voiced = recording.periodicity[0, here, 0] >= config.features.periodicity_threshold
        voiced &= recording.loudness[0, here, 0] > config.features.loudness_floor
        f0.append(recording.f0[0, here, 0][voiced])
        loudness.append(recording.loudness[0, here, 0][voiced])
    if sum(map(len, f0)) == 0:
        raise ValueError("no frame of the training data has a pitch; is it an instrument playing single notes?")
    steps = np.linspace(0, 1, 101)
    return {
        "f0_quantiles": np.quantile(torch.cat(f0).numpy(), steps).tolist(),
        "loudness_quantiles": np.quantile(torch.cat(loudness).numpy(), steps).tolist(),
    }
