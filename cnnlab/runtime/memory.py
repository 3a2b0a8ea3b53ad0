"""The C library's handling of freed memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
LARGE = 64 << 20  # bytes; images of a whole split are larger, activations of a batch seldom
_ALL = (1 << 31) - 1  # the largest that it takes


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks of up to `LARGE` for the next ones; False where the C library is another.

    By default it returns many of them to the system, and each new block has a page fault every 4 KB: up to a twentieth
    of a small CNN's step, since each step frees what the next allocates. Larger blocks are still returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have none, Windows has no such library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE) and mallopt(_TRIM_THRESHOLD, _ALL))
