"""Settings of the C library's memory allocator for training on a CPU."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process; returns whether the C library supports it.

    A training step frees and reallocates hundreds of large tensors. By default glibc returns such
    memory to the system at once, and the kernel must clear every page again at its next use.
    Affects the whole process and cannot be undone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
