"""Independent pieces of one computation on the cores of a CPU, each piece on one of them from its start to its end.

Left to itself PyTorch splits every single operation over its threads and lets them wait for each other after it. A
piece that fits into the cache of a core is too small for that, and where other programs are at work too the waiting
takes ten times as long as the work. So ``alone`` gives a computation a thread in which PyTorch uses no other, and
``for_each`` and ``shared`` let it share out its pieces. Their results do not depend on which thread does what.

Between two operations a thread waits for Python's lock (GIL), which another may hold: pieces of few large operations
run side by side, pieces of many small ones get in each other's way.
"""

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_for_next_step() -> None:
    """Keep freed memory for the next step of a training, which asks for as much.

    Else blocks are returned to the kernel and come back page by page: 8000 page faults a step, a tenth of its time.
    """
    _set_limits(mapped=2**25, kept=2**26)  # the most that glibc takes; of each thread's heap


def give_back_large_blocks() -> None:
    """Give large blocks back, however many of which sizes have been freed, so that an hour takes no more than a minute.

    Else they are soon cut from the heap: of ever other sizes, with small ones between them that live on, they leave
    gaps that nothing fits into, and the heap grew by 3 MB with each minute of a recording.
    """
    _set_limits(mapped=2**23, kept=2**24)


@functools.lru_cache(maxsize=1)  # what is set already
def _set_limits(mapped: int, kept: int) -> None:
    """Say from how many bytes on a block is mapped on its own, and how many free ones stay at the end of a heap."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mapped)
        libc.mallopt(_M_TRIM_THRESHOLD, kept)


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
    if device.type != "cpu":
        return work()
    if torch.is_grad_enabled():  # a training; a page that waits for visitors has better uses for memory
        keep_for_next_step()
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        return work()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # a thread begins afresh

    def in_mode_of_caller() -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work()

    return _pool("alone", n_threads).submit(in_mode_of_caller).result()


def shared(work: Callable[..., Sequence[Tensor]], parameters: Iterable[Tensor], *items: Tensor) -> tuple[Tensor, ...]:
    """Return what the work makes of a batch; where gradients are recorded on a CPU, each thread does a share of it.

    Args:
        work: turns tensors [b, ...] into others, without random numbers, each item on its own.
        parameters: what else it uses that needs a gradient.
        items: its arguments, [B, ...].

    Returns:
        Tensors [B, ...].
    """
    parts = shares(len(items[0])) if items[0].device.type == "cpu" and torch.is_grad_enabled() else []
    if len(parts) < 2 or torch.is_autocast_enabled("cpu"):  # a thread would begin without autocast
        return tuple(work(*items))
    return _Shared.apply(work, parts, len(items), *items, *parameters)


class _Shared(torch.autograd.Function):
    """Keeps a graph for each share, made by a thread of its own, which also goes back through it."""

    @staticmethod
    def forward(
        ctx, work: Callable[..., Sequence[Tensor]], parts: list[slice], n_items: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        items, ctx.parameters, ctx.parts = tensors[:n_items], tensors[n_items:], parts
        ctx.runs = [None] * len(parts)

        def proceed(number: int) -> None:
            given = [item[parts[number]].detach().requires_grad_(item.requires_grad) for item in items]
            with torch.enable_grad():
                ctx.runs[number] = given, work(*given)

        for_each(proceed, range(len(parts)), items[0].device)
        return tuple(torch.cat(results) for results in zip(*(results for _, results in ctx.runs)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed, slopes = ctx.needs_input_grad[3:], [None] * len(ctx.parts)
        keep = torch._C._autograd._get_current_graph_task_keep_graph()  # for another pass; has no public name

        def go_back(number: int) -> None:
            given, results = ctx.runs[number]
            sources = [source for source, needs in zip([*given, *ctx.parameters], needed) if needs]
            ends = [grad[ctx.parts[number]] for grad in grads]
            found = torch.autograd.grad(results, sources, ends, retain_graph=keep, materialize_grads=True)
            slopes[number] = iter(found)

        for_each(go_back, range(len(ctx.parts)), grads[0].device)
        n_items = len(needed) - len(ctx.parameters)
        join = [torch.cat] * n_items + [sum] * len(ctx.parameters)
        return None, None, None, *(
            unite([next(share) for share in slopes]) if needs else None for unite, needs in zip(join, needed)
        )


def shares(n_items: int) -> list[slice]:
    """Share items out among the threads."""
    size = -(-n_items // count_threads())
    return [slice(start, start + size) for start in range(0, n_items, size)]


def count_threads() -> int:
    """Return how many pieces are done at once."""
    return getattr(_own, "n_threads", None) or torch.get_num_threads()


_own = threading.local()  # n_threads, of a thread of ``alone``


def _pool(role: str, n_threads: int) -> ThreadPoolExecutor:
    """Return threads in each of which PyTorch uses but that one."""
    with _starting:
        return _start_pool(role, n_threads)


_starting = threading.Lock()  # two that ask at once get the same threads


@functools.cache
def _start_pool(role: str, n_threads: int) -> ThreadPoolExecutor:
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
    os.register_at_fork(after_in_child=_start_pool.cache_clear)  # its threads are not in the child
