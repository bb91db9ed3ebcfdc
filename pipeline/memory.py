"""Memory that a process has freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what was freed to the system; where the C library is not glibc nothing happens.

    glibc keeps freed memory for later use: hundreds of megabytes after many arrays of many sizes. That pays within a
    stage, and costs where a process then waits for others that need the memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
