"""Processed recordings: one ``.pt`` file each, and the datasets that cut training crops from them.

A file is a dict of plain types and tensors, readable with ``torch.load(weights_only=True)``. It says
with which settings it was made; one made with other settings is stale and refused. Files are memory
mapped: a crop reads only its own samples, so memory does not grow with the data set.
"""

import dataclasses
import functools
import json
import os
import pickle
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

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
_INDEX = ".index.json"  # what read_corpus learned of a folder, so that it need not open every file again
# Statistics are measured on at most so many recordings and frames, so that neither time nor memory grow with the data.
_STATISTICS_RECORDINGS = 1000
_STATISTICS_FRAMES = 4_000_000


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


def find_recordings(data_dir: Path) -> list[Path]:
    """Return the processed files under a folder, sorted; none of hidden folders, where downloads arrive.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(path for path in data_dir.rglob("*.pt") if not _is_hidden(path.relative_to(data_dir)))
    if not paths:
        raise ValueError(f"{data_dir} holds no .pt files; run preprocess.py first")
    return paths


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parent.parts)


class Span(NamedTuple):
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
    boundary: str | None = None  # takes whose sha256 sorts up to here are held out; None: the ends of all are


class _Entry(NamedTuple):
    """A line of the index: enough to split a file, and to see that it is still the same."""

    stamp: tuple[int, int, int]  # size, time of change, inode
    instrument: str
    sha256: str
    n_frames: int


def read_corpus(data_dir: Path, config: Config, boundary: str | None = None) -> Corpus:
    """Check every processed file of a folder that is new since the last time, and split them all.

    Copies of one take (URMP reuses takes byte for byte) stay on one side. With fewer than five takes
    the end of each is held out instead.

    Args:
        data_dir: the folder; subfolders too.
        config: what the files must have been made with, and the share that is held out.
        boundary: of an earlier corpus, of which this one is the continuation: what was trained on then
            stays on that side, however many recordings have come since.

    Raises:
        ValueError: no files, a bad or stale one, or files of several instruments.
    """
    spans: dict[str, list[Span]] = {}
    instruments: dict[str, Path] = {}
    for path, entry in _read_entries(data_dir, config):
        instruments.setdefault(entry.instrument, path)
        spans.setdefault(entry.sha256, []).append(Span(path, 0, entry.n_frames))
    if len(instruments) > 1:
        named = ", ".join(f"{name} ({path.name})" for name, path in instruments.items())
        raise ValueError(f"{data_dir} mixes instruments: {named}; a model learns one, so use a folder for each")
    return Corpus(next(iter(instruments)), *split_takes(spans, config.train.val_fraction, boundary))


def _read_entries(data_dir: Path, config: Config) -> list[tuple[Path, _Entry]]:
    """Return what is to be known of each file, opening only those that the folder's index does not know."""
    known = _load_index(data_dir / _INDEX, config)
    entries, n_new = [], 0
    for path in tqdm(find_recordings(data_dir), desc="reading recordings", unit="file", delay=2, disable=None):
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        entry = known.get(str(path.relative_to(data_dir)))
        if entry is None or entry.stamp != stamp:
            recording = load_recording(path, config)
            entry = _Entry(stamp, recording.instrument, recording.source["sha256"], recording.n_frames)
            n_new += 1
        entries.append((path, entry))
    if n_new or len(entries) != len(known):
        _save_index(data_dir, config, entries)
    return entries


def _load_index(path: Path, config: Config) -> dict[str, _Entry]:
    """Return the index; an empty one where it is missing, unreadable or of files made with other settings."""
    try:
        content = json.loads(path.read_text())
        entries = {name: _Entry(tuple(stamp), *rest) for name, (stamp, *rest) in content["files"].items()}
        expected = [FORMAT_VERSION, _settings_of(entries.values(), config)]
        return entries if [content["format_version"], content["extractors"]] == expected else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _save_index(data_dir: Path, config: Config, entries: list[tuple[Path, _Entry]]) -> None:
    files = {str(path.relative_to(data_dir)): entry for path, entry in entries}
    content = {"format_version": FORMAT_VERSION, "extractors": _settings_of(files.values(), config), "files": files}
    partial = data_dir / f"{_INDEX}.{os.getpid()}.part"
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, data_dir / _INDEX)
    except OSError:
        # It only saves time: a folder that cannot be written (shared, or a full disk) is read again each time.
        partial.unlink(missing_ok=True)


def _settings_of(entries: Iterable[_Entry], config: Config) -> dict[str, Any]:
    return {name: extractor_settings(config, name) for name in sorted({entry.instrument for entry in entries})}


def split_takes(
    takes: dict[str, list[Span]], val_fraction: float, boundary: str | None
) -> tuple[tuple[Span, ...], tuple[Span, ...], str | None]:
    """Divide recordings, grouped by the sha256 of their take, as ``read_corpus`` says; also return the boundary."""
    # A hash is as good as a coin, and stays the same when recordings are added or renamed.
    digests = sorted(takes)
    if boundary is not None and boundary >= digests[-1]:  # other recordings altogether: nothing would be left to train
        boundary = None
    if boundary is None and len(digests) < 5:
        pairs = [_cut_end(span, val_fraction) for digest in digests for span in takes[digest]]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs if pair[1].n_frames), None
    if boundary is None:
        n_held_out = max(1, round(val_fraction * len(digests))) if val_fraction > 0 else 0
        boundary = digests[n_held_out - 1] if n_held_out else ""
    held_out = [span for digest in digests if digest <= boundary for span in takes[digest]]
    kept = [span for digest in digests if digest > boundary for span in takes[digest]]
    return tuple(kept), tuple(held_out), boundary


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
    """Describe what a model has seen, for fitting a voice to it; of very much data, an even sample.

    Returns:
        ``f0_quantiles`` in Hz and ``loudness_quantiles`` in dB, each at 0, 1, ... 100 % of the frames
        that have a pitch.

    Raises:
        ValueError: no frame has a pitch.
    """
    f0, loudness = [], []
    chosen = spans[:: -(-len(spans) // _STATISTICS_RECORDINGS)]
    every = -(-sum(span.n_frames for span in chosen) // _STATISTICS_FRAMES)
    for span in chosen:
        recording = load_recording(span.path)
        here = slice(span.first_frame, span.first_frame + span.n_frames, every)
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
