"""Processed recordings: one ``.pt`` file each, and the datasets that cut training crops from them.

A file is a dict of plain types and tensors, readable with ``torch.load(weights_only=True)``. It says
with which settings it was made; one made with other settings is stale and refused. Files are memory
mapped: a crop reads only its own samples, so memory does not grow with the data set.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from config import AudioConfig, Config
from recordings.augment import disturb, is_wanted
from sound.atomic_files import load_tensors, save_tensors
from training.distributed import Ranks

FORMAT_VERSION = 1
_EXTRACTION_VERSION = 2  # to be raised whenever features.py or pitch.py measures otherwise; 1 searched whole files
_FRAME_KEYS = ("f0", "loudness", "periodicity")
_KEYS = ("format_version", "instrument", *_FRAME_KEYS, "audio", "source", "extractor")
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


def extractor_settings(config: Config, instrument: str) -> dict[str, Any]:
    """Return all settings on which a processed file of an instrument depends."""
    config = config.for_recordings_of(instrument)
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
    content = {field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)}
    save_tensors(path, {"format_version": FORMAT_VERSION, **content})


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
        content = load_tensors(path, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable processed file; run preprocess.py again") from error
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        raise ValueError(f"{path} is not a processed file; preprocess.py makes them")
    if content.pop("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} has another format than version {FORMAT_VERSION}; run preprocess.py again")
    recording = Recording(**content)
    _check_description(path, recording)
    _check_shapes(path, recording)
    if config is not None and recording.extractor != extractor_settings(config, recording.instrument):
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


def list_recordings(data_dir: Path) -> list[Path]:
    """Return the processed files under a folder, sorted; none of hidden folders, where downloads arrive."""
    paths = sorted(data_dir.rglob("*.pt"))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(data_dir).parent.parts)]


def find_recordings(data_dir: Path) -> list[Path]:
    """Return what ``list_recordings`` does.

    Raises:
        ValueError: there are none.
    """
    paths = list_recordings(data_dir)
    if not paths:
        what = "holds no .pt files" if data_dir.is_dir() else "is not a folder"
        raise ValueError(f"{data_dir} {what}; run preprocess.py first")
    return paths


class Span(NamedTuple):
    """A stretch of one recording that may be cropped."""

    path: Path
    first_frame: int
    n_frames: int


class CropDataset(Dataset):
    """Crops of equal length, each ``{"f0": [T, 1], "loudness": [T, 1], "audio": [N]}``.

    Where the configuration disturbs what the decoder hears, random crops also have "heard_f0" and "heard_loudness".
    Random crops are a function of (seed, epoch, index) alone, so that a resumed training sees what an
    undisturbed one would have seen. Without a seed the crops lie one after another, for validation.
    """

    def __init__(self, spans: Sequence[Span], config: Config, seed: int | None = None) -> None:
        self.spans = tuple(spans)
        self.audio: AudioConfig = config.audio
        self.loudness_floor = config.features.loudness_floor
        self.n_frames = config.audio.seconds_to_frames(config.train.crop_seconds)
        self.seed = seed
        self.disturbance = config.train if seed is not None and is_wanted(config.train) else None
        self.epoch = 0
        counts = [self._count_crops(span, config.train.crops_per_recording) for span in self.spans]
        self._ends = np.cumsum(counts)
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(load_recording)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind: a worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=functools.lru_cache(maxsize=_OPEN_FILES)(load_recording))

    def _count_crops(self, span: Span, crops_per_recording: int | None) -> int:
        if self.seed is not None and crops_per_recording is not None:
            return crops_per_recording
        return max(1, span.n_frames // self.n_frames)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops of another epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Return this epoch's order of the crops, [len(self)]."""
        return np.random.default_rng([self.seed or 0, self.epoch]).permutation(len(self))

    def path_of(self, index: int) -> Path:
        """Return the file that a crop is cut from."""
        return self.spans[self._number(index)].path

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        number = self._number(index)
        span = self.spans[number]
        crop = self._crop(self._open(span.path), span, self._first_frame(span, index, number))
        return {**crop, **self._disturbed(crop, index)} if self.disturbance else crop

    def _disturbed(self, crop: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        heard = disturb(crop["f0"], crop["loudness"], self.disturbance, self.audio.frame_rate, rng)
        return dict(zip(("heard_f0", "heard_loudness"), heard))

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


def load_batches(
    crops: CropDataset,
    order: np.ndarray,
    start: int,
    batch_size: int,
    ranks: Ranks,
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[tuple[range, range, dict[str, Tensor]]]:
    """Yield each batch's places in the order, this rank's share of them, and the share's crops on its device."""
    firsts = range(start, len(order), batch_size)
    batches = [range(first, min(first + batch_size, len(order))) for first in firsts]
    # Fewer crops than ranks: somebody repeats one, with weight zero, because all must take part in a step.
    shares = [ranks.share(positions) or positions[:1] for positions in batches]
    # Only out of pinned memory may a copy go on alone: Apple's MPS would read what is freed by then.
    is_pinned = device.type == "cuda"
    loader = DataLoader(
        crops,
        batch_sampler=(order[list(share)].tolist() for share in shares),
        num_workers=num_workers,
        pin_memory=is_pinned,
        generator=torch.Generator(),  # its own: else it would draw from torch's
    )
    for positions, share, batch in zip(batches, shares, loader):
        yield positions, share, {name: value.to(device, non_blocking=is_pinned) for name, value in batch.items()}
