"""Checks of the two rasters of a product; each returns what it found or raises ProductError."""

from __future__ import annotations

from pathlib import Path

import defusedxml.ElementTree as ElementTree
import numpy as np
import rasterio
from rio_cogeo.cogeo import cog_validate

from pipeline.errors import ProductError
from pipeline.labels import NO_DATA, LabelScheme
from pipeline.product.rasters import decode_tiles, windows
from pipeline.product.record import CATEGORIES_FILE, CONFIDENCE_FILE, DRIVERS_FILE


def cog(path: Path) -> str:
    """Check the COG layout, and every tile of every level, which a layout check alone does not look at."""
    if not path.is_file():
        raise ProductError(f"{path}: not there")
    valid, errors, _ = cog_validate(path, quiet=True)
    if not valid:
        raise ProductError("; ".join(errors))
    with rasterio.open(path) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.nodata != NO_DATA or dataset.crs is None:
            raise ProductError(f"must be one uint8 band with a CRS and nodata {NO_DATA}")
    return f"{decode_tiles(path)} tiles decoded"


def titles(folder: Path, scheme: LabelScheme) -> str:
    """Check that GDAL's side file gives each code the title of its class, in both of its forms."""
    root = ElementTree.fromstring((folder / CATEGORIES_FILE).read_bytes())
    names = [item.text or "" for item in root.iter("Category")]
    rows = [[cell.text or "" for cell in row.iter("F")] for row in root.iter("Row")]
    wanted = {item.code: item.title for item in scheme}
    if {code: name for code, name in enumerate(names) if name} != wanted:
        raise ProductError(f"{CATEGORIES_FILE}: category names are not the titles of the label scheme")
    if {int(row[0]): row[1] for row in rows} != wanted:
        raise ProductError(f"{CATEGORIES_FILE}: attribute table does not hold the titles of the label scheme")
    return f"{len(wanted)} classes"


def values(folder: Path, scheme: LabelScheme) -> str:
    """Check that both rasters share a grid, hold only class codes and percents, and no data at the same pixels."""
    codes = np.zeros(256, bool)
    codes[[*scheme.codes, NO_DATA]] = True
    percents = np.zeros(256, bool)
    percents[[*range(101), NO_DATA]] = True
    known = 0
    with rasterio.open(folder / DRIVERS_FILE) as drivers, rasterio.open(folder / CONFIDENCE_FILE) as confidence:
        if (drivers.shape, drivers.transform, drivers.crs) != (confidence.shape, confidence.transform, confidence.crs):
            raise ProductError("the two rasters lie on different grids")
        wanted = {item.code: tuple(bytes.fromhex(item.colour[1:])) for item in scheme}
        found = drivers.colormap(1)
        wrong = [code for code, colour in wanted.items() if found[code][:3] != colour]
        if wrong:
            raise ProductError(f"colour table: codes {wrong} do not have the colours of the label scheme")
        for window in windows(drivers.width, drivers.height):
            code, percent = drivers.read(1, window=window), confidence.read(1, window=window)
            if not codes[code].all() or not percents[percent].all():
                strange = np.unique([*code[~codes[code]], *percent[~percents[percent]]]).tolist()
                raise ProductError(f"values {strange} are neither class codes, percents nor {NO_DATA}")
            if not np.array_equal(code == NO_DATA, percent == NO_DATA):
                raise ProductError(f"pixels with a driver and without confidence, or the reverse, in {window}")
            known += int((code != NO_DATA).sum())
    return f"one grid, {known} pixels with a driver"
