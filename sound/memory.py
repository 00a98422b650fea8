"""What becomes of freed memory where the C library is glibc; elsewhere nothing here does anything.

Left to itself glibc learns from what is freed which blocks it keeps for later. For a training it keeps too little, for
a long recording too much.
"""

import ctypes
import functools
import platform

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
