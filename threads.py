"""Independent pieces of one computation on the cores of a CPU, each piece on one of them from its start to its end.

Left to itself PyTorch splits every single operation over its threads and lets them wait for each other after it. A
piece that fits into the cache of a core is too small for that: two threads took as long as one. Pieces are cut by
their size alone, so that the result is the same to the bit whatever the number of threads.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def for_each(work: Callable[[Piece], None], pieces: Iterable[Piece], device: torch.device) -> None:
    """Do the work for each piece, on a CPU with as many threads as PyTorch would use; no gradients are recorded.

    The work may write to tensors that the pieces share, each to a part of its own.
    """
    pieces = list(pieces)
    n_threads = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    plain = _in_mode_of_caller(work)
    for _ in (_pool(n_threads).map if n_threads > 1 else map)(plain, pieces):
        pass  # a failure in a piece is raised here


def alone(work: Callable[[], Result]) -> Result:
    """Return what the work returns, done on a CPU by one thread, for what is too small to be shared by several."""
    n_threads = torch.get_num_threads()
    plain = _in_mode_of_caller(work)
    return _pool(n_threads).submit(plain).result() if n_threads > 1 else plain()


def _in_mode_of_caller(work: Callable[..., Result]) -> Callable[..., Result]:
    inference = torch.is_inference_mode_enabled()  # a thread begins without

    def plain(*values: Any) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(*values)

    return plain


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Start threads in each of which PyTorch uses but that one."""
    before = torch.get_num_threads()
    together = threading.Barrier(n_threads)

    def start() -> None:
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(n_threads, "piece")
    for started in [pool.submit(start) for _ in range(n_threads)]:
        started.result()
    torch.set_num_threads(before)  # the number is the thread's own, but threads to come begin with the last one set
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads are not in the child
