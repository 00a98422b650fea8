"""Several processes working as one, as torchrun starts them; without torchrun, one that is alone.

Only a few plain operations are needed: who am I, which share of the work is mine, sum a tensor or the
gradients over all, wait for the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_VARIABLES = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))


@dataclass(frozen=True)
class ProcessRanks:
    """This process among those that work together."""

    rank: int  # of this process, 0 to size - 1; rank 0 writes and speaks for all
    local_rank: int  # the same, counted on this machine: the number of its GPU
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device_name(self, device: str) -> str:
        """Return the name of this rank's device, given that for all: where several work, each takes a GPU of its own.

        Raises:
            ValueError: there are fewer GPUs than ranks on this machine.
        """
        is_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if self.size == 1 or not is_gpu:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local_rank + 1} on this machine finds no GPU of its own, there are "
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
        """Wait until every rank has come here."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = ProcessRanks(0, 0, 1)


def read_ranks() -> ProcessRanks:
    """Return what torchrun has put into the environment."""
    return ProcessRanks(*(int(os.environ.get(name) or alone) for name, alone in _VARIABLES))


@contextmanager
def process_group(ranks: ProcessRanks, device: torch.device) -> Iterator[None]:
    """Join the other ranks, by nccl on GPUs and by gloo elsewhere."""
    if ranks.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)  # else a barrier would guess it, and warn
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
