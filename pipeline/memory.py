"""What a process frees goes back to the system, and it does not look for garbage where there is none."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 50_000


def give_back() -> None:
    """Return what was freed to the system; where the C library is not glibc nothing happens.

    glibc keeps freed memory for later use: hundreds of megabytes after many arrays of many sizes. That pays within a
    stage, and costs where a process then waits for others that need the memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def collect_rarely() -> None:
    """Look for garbage after 50,000 new objects, not after each 700: a start makes a million that all stay."""
    gc.set_threshold(_RARELY, *gc.get_threshold()[1:])


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries inside: their objects stay, so that garbage is not looked for meanwhile, and never among them.

    A third of the time of loading, and processes that are forked from this one go on sharing those objects' memory.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
