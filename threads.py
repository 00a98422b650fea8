"""Independent pieces of one computation on the cores of a CPU, each piece on one of them from its start to its end.

Left to itself PyTorch splits every single operation over its threads and lets them wait for each other after it. A
piece that fits into the cache of a core is too small for that, and where other programs are at work too the waiting
takes ten times as long as the work. So ``alone`` gives a computation a thread in which PyTorch uses no other, and
``for_each`` lets it share out its pieces. Their results do not depend on which thread does what.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def for_each(work: Callable[[Piece], None], pieces: Iterable[Piece], device: torch.device) -> None:
    """Do the work for each piece, on a CPU with as many threads as PyTorch may use; no gradients are recorded.

    The work may write to tensors that the pieces share, each to a part of its own.
    """
    pieces = list(pieces)
    n_threads = count_threads() if device.type == "cpu" and len(pieces) > 1 else 1
    inference = torch.is_inference_mode_enabled()  # a thread begins without

    def plain(piece: Piece) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(piece)

    for _ in (_pool("piece", n_threads).map if n_threads > 1 else map)(plain, pieces):
        pass  # a failure in a piece is raised here


def alone(work: Callable[[], Result], device: torch.device) -> Result:
    """Return what the work returns, on a CPU done in a thread where only ``for_each`` uses several."""
    n_threads = torch.get_num_threads()
    if n_threads == 1 or device.type != "cpu":
        return work()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # a thread begins afresh

    def in_mode_of_caller() -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work()

    return _pool("alone", n_threads).submit(in_mode_of_caller).result()


def count_threads() -> int:
    """Return how many pieces are done at once."""
    return getattr(_own, "n_threads", None) or torch.get_num_threads()


_own = threading.local()  # n_threads, of a thread of ``alone``


@functools.cache
def _pool(role: str, n_threads: int) -> ThreadPoolExecutor:
    """Start threads in each of which PyTorch uses but that one."""
    before = torch.get_num_threads()
    together = threading.Barrier(n_threads)

    def start() -> None:
        torch.get_num_threads()  # a thread takes over the caller's number at its first use of any, which is now
        torch.set_num_threads(1)
        _own.n_threads = n_threads if role == "alone" else None
        together.wait()

    pool = ThreadPoolExecutor(n_threads, role)
    for started in [pool.submit(start) for _ in range(n_threads)]:
        started.result()
    torch.set_num_threads(before)  # the number is the thread's own, but threads to come begin with the last one set
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads are not in the child
