"""Training crops: random sections of processed recordings, loaded in batches and divided among processes."""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from config import AudioConfig, Config, load_config
from data import Recording, find_recordings, load_recording
from sound.plucks import trace_plucks

_OPEN_FILES = 1000  # memory maps that stay open; opening one takes longer than cutting a crop


class Span(NamedTuple):
    """Section of one recording that crops are taken from."""

    path: Path
    first_frame: int
    n_frames: int


class CropDataset(Dataset):
    """Crops of equal length, each ``{"f0": [T, 1], "loudness": [T, 1], "audio": [N]}``.

    With ``onset_inputs``, crops also have "plucks", [T, 2]: time since the onset (s) and velocity (dB). Where the sound
    has another rate than the features, crops also have "bandwidth", []: the recording's band as a fraction of the band
    up to Nyquist.

    Args:
        source: a folder of processed recordings, or the spans to crop.
        config: settings the recordings were made with (default: config.json).
        seed: of random crops, which depend on (seed, epoch, index) only, so that a resumed training sees the same crops
            as an uninterrupted one; None cuts adjacent crops, for validation.

    Raises:
        ValueError: the folder holds no recordings, or some made with other settings.
    """

    def __init__(
        self, source: Sequence[Span] | str | Path, config: Config | None = None, seed: int | None = None
    ) -> None:
        config = config or load_config()
        if isinstance(source, str | Path):
            paths = find_recordings(Path(source))
            source = [Span(path, 0, load_recording(path, config).n_frames) for path in paths]
        self.spans = tuple(source)
        self.audio: AudioConfig = config.audio
        self.loudness_floor = config.features.loudness_floor
        self.n_frames = config.audio.seconds_to_frames(config.train.crop_seconds)
        self.seed = seed
        self.epoch = 0
        counts = [self._count_crops(span, config.train.crops_per_recording) for span in self.spans]
        self._ends = np.cumsum(counts)
        self._find_plucks = _PluckFinder(config) if config.model.onset_inputs else None
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(load_recording)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files: each worker process opens its own."""
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
        crop = {
            "f0": torch.cat([f0, f0[-1:].expand(missing, 1)]),
            "loudness": torch.nn.functional.pad(loudness, (0, 0, 0, missing), value=self.loudness_floor),
            "audio": torch.nn.functional.pad(audio, (0, missing * hop_length)),
        }
        if self._find_plucks is not None:
            plucks = self._find_plucks(span.path, recording)[first:last]
            crop["plucks"] = torch.cat([plucks, plucks[-1:].expand(missing, 2)])
        if self.audio.sample_rate != self.audio.feature_rate:
            crop["bandwidth"] = torch.tensor(recording.bandwidth_share)
        return crop


class _PluckFinder:
    """Find the plucks of each recording once, in the whole recording: a crop depends on the pluck before it."""

    def __init__(self, config: Config) -> None:
        self.frame_rate, self.floor = config.audio.frame_rate, config.features.loudness_floor
        self._found: dict[Path, Tensor] = {}  # [T, 2]

    def __call__(self, path: Path, recording: Recording) -> Tensor:
        if path not in self._found:
            f0, loudness = recording.f0[0, :, 0].numpy(), recording.loudness[0, :, 0].numpy()
            self._found[path] = torch.from_numpy(trace_plucks(f0, loudness, self.frame_rate, self.floor))
        return self._found[path]


class NeuralGuitarDataset(CropDataset):
    """Crops of guitar recordings."""


class Vox2TrumpetDataset(CropDataset):
    """Crops of trumpet (or other wind) recordings."""


_DATASETS = {"NeuralGuitar": NeuralGuitarDataset, "Vox2Trumpet": Vox2TrumpetDataset}


def build_dataset(spans: Sequence[Span], instrument: str, config: Config, seed: int | None = None) -> CropDataset:
    """Return a dataset of the class that belongs to the instrument's model."""
    return _DATASETS[config.instrument(instrument).model](spans, config, seed)


# --- several processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessRanks:
    """The rank of this process, as torchrun assigns it."""

    rank: int  # of this process, 0 to size - 1; rank 0 writes files and logs
    local_rank: int  # rank on this machine, the number of its GPU
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device_name(self, device: str) -> str:
        """Return the name of this rank's device: with several ranks, each takes a different GPU.

        Raises:
            ValueError: there are fewer GPUs than ranks on this machine.
        """
        is_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if self.size == 1 or not is_gpu:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"there is no GPU for process {self.local_rank + 1} on this machine, which has "
                f"{torch.cuda.device_count()}; give torchrun that number as --nproc_per_node, or --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def shard(self, items: Any) -> Any:
        """Return this rank's part of a sequence: every ``size``-th entry."""
        return items[self.rank :: self.size]

    def wrap_model(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a model whose gradients are averaged over all ranks."""
        if self.size == 1:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = ProcessRanks(0, 0, 1)


def read_ranks() -> ProcessRanks:
    """Return the ranks that torchrun sets in the environment; empty variables count as unset.

    Raises:
        ValueError: a variable is not a number.
    """
    given = {name: os.environ.get(name) or value for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))}
    for name, value in given.items():
        if not str(value).isdecimal():
            raise ValueError(f"{name} is {value!r}, but should be a number, as torchrun sets it; unset it")
    return ProcessRanks(*map(int, given.values()))


@contextmanager
def process_group(ranks: ProcessRanks, device: torch.device) -> Iterator[None]:
    """Initialise the process group, with nccl on GPUs and gloo elsewhere."""
    if ranks.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)  # without it, a barrier guesses the device and warns
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def load_batches(
    crops: CropDataset,
    order: np.ndarray,
    start: int,
    batch_size: int,
    ranks: ProcessRanks,
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[tuple[range, range, dict[str, Tensor]]]:
    """Yield (positions of the batch in the order, this rank's share of them, the share's crops on its device)."""
    firsts = range(start, len(order), batch_size)
    batches = [range(first, min(first + batch_size, len(order))) for first in firsts]
    # With fewer crops than ranks, some ranks repeat one with weight zero: all must take part in a step.
    shares = [ranks.shard(positions) or positions[:1] for positions in batches]
    # Only a copy from pinned memory may be asynchronous: Apple's MPS would read memory that is already freed.
    is_pinned = device.type == "cuda"
    loader = DataLoader(
        crops,
        batch_sampler=(order[list(share)].tolist() for share in shares),
        num_workers=num_workers,
        pin_memory=is_pinned,
        generator=torch.Generator(),  # without it, the loader draws from torch's global generator
    )
    for positions, share, batch in zip(batches, shares, loader):
        yield positions, share, {name: value.to(device, non_blocking=is_pinned) for name, value in batch.items()}
