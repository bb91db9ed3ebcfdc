"""Can this scene serve? Answered from file headers only: no pixel is read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.tiles import ABSENT

REMOTE = ("http://", "https://", "s3://")
UNREADABLE = (RasterioError, OSError, ValueError)
"""What opening a damaged or foreign file may raise."""
_MAX_SIDE = 50_000
_FILTERS = Lock()


@contextmanager
def open_header(path: Path | str) -> Iterator[DatasetReader]:
    """Open a local GeoTIFF for its header; raises one of UNREADABLE. No other driver: a VRT could name any file."""
    # the filters of warnings are the process's: of two threads that set them at once each would undo the other's
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path, driver="GTiff")
    with dataset:
        yield dataset


def wrs_key(scene: Scene) -> str:
    """Return 'path/row' of the scene, '' where unknown."""
    return "" if scene.path is None or scene.row is None else f"{scene.path}/{scene.row}"


def check_scene(scene: Scene, bands: tuple[str, ...]) -> str | None:
    """Return why `scene` cannot serve a model that wants `bands` (common names), or None where it can.

    Local files are looked at: missing, not a TIFF, cut off, without a place on earth, or on different grids. Of remote
    files only the names are known here. A missing `qa_pixel` is no reason: the scene is then masked by its fill only.
    """
    lacking = [band for band in bands if band not in scene.assets]
    if lacking:
        return f"no {', '.join(lacking)} band; it has {', '.join(sorted(set(scene.assets) - {QA_PIXEL})) or 'none'}"
    grids: dict[str, tuple[object, ...]] = {}
    for band in (*bands, *([QA_PIXEL] if QA_PIXEL in scene.assets and QA_PIXEL not in bands else [])):
        href = scene.assets[band].href
        if href.lower().startswith(REMOTE):
            continue
        fault = _fault(Path(href), scene, band, grids)
        if fault:
            return f"{band} file {Path(href).name}: {fault}"
    if len(set(grids.values())) > 1:
        first = next(iter(grids))
        other = next(band for band in grids if grids[band] != grids[first])
        return f"{first} and {other} lie on different grids: {_told(grids[first])} and {_told(grids[other])}"
    return None


def _fault(path: Path, scene: Scene, band: str, grids: dict[str, tuple[object, ...]]) -> str | None:
    """Return the fault of one file; where it has none, note its grid in `grids`."""
    if not os.path.isfile(path):  # unlike Path.is_file, answers False to a name that no file can have
        return "missing"
    try:
        with open_header(path) as dataset:
            if dataset.count != 1:
                return f"{dataset.count} bands in the file where one is expected"
            if max(dataset.shape) > _MAX_SIDE:
                return f"implausible size of {dataset.height} x {dataset.width} pixels"
            if dataset.crs is None and scene.grid is None:
                return "no CRS, and no grid from an MTL either"
            if dataset.crs is not None and dataset.transform.is_identity:
                return "a CRS but no geotransform"
            needed, there = _end_of_data(dataset), path.stat().st_size
            if needed > there:
                return f"truncated: {there} bytes where its blocks reach to {needed}; fetch it again"
            if dataset.crs is None and scene.grid is not None:
                grids[band] = (dataset.shape, scene.grid.crs, scene.grid.transform)
            else:
                grids[band] = (dataset.shape, str(dataset.crs), tuple(dataset.transform)[:6])
    except UNREADABLE as error:
        return f"unreadable: not a TIFF, or damaged ({' '.join(str(error).split())[:120]})"
    return None


def _end_of_data(dataset: DatasetReader) -> int:
    """Return the byte after the last strip or tile of band 1, from the TIFF's own tables; 0 where it has no data."""
    height, width = dataset.block_shapes[0]
    end = 0
    for row in range(-(-dataset.height // height)):
        for column in range(-(-dataset.width // width)):
            offset = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
            size = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
            if offset is None or size is None:  # sparse: all nodata, no bytes
                continue
            if int(offset) != ABSENT:  # a file of windows has not all of its tiles
                end = max(end, int(offset) + int(size))
    return end


def _told(grid: tuple[object, ...]) -> str:
    shape, crs, transform = grid
    return f"{shape} {crs} {transform}"
