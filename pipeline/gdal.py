"""GDAL's settings in the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import rasterio

CACHE = 64 << 20
"""Bytes of decoded tiles that GDAL holds; rasterio hands the number on as it is. Tiles lie across the windows that are
read, and serve the next; by itself GDAL takes a twentieth of the machine's memory, and keeps it."""


def small_cache[**P, R](stage: Callable[P, R]) -> Callable[P, R]:
    """Decorate a stage that reads or writes rasters: GDAL holds CACHE bytes of them and no more."""

    @wraps(stage)
    def small(*args: P.args, **kwargs: P.kwargs) -> R:
        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            return stage(*args, **kwargs)

    return small
