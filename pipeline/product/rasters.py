"""Class codes and confidences as Cloud Optimized GeoTIFFs, compared with their sources after writing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what rasterio.shutil.copy raises; it has no public name
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import ProductError
from pipeline.labels import NO_DATA, LabelScheme
from pipeline.product.record import staged, write_file
from pipeline.tiles import inflate, tiles

_WINDOW = 2048
_TILE = 512


@dataclass(frozen=True)
class Band:
    """How a uint8 band is described: `colours` code to #rrggbb, `tags` name to text; `overviews` a GDAL method.

    With `measured` its statistics are written too: QGIS otherwise computes them and leaves a file of its own behind.
    """

    description: str
    overviews: str
    colours: dict[int, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    measured: bool = False


def drivers_band(scheme: LabelScheme) -> Band:
    """Return the description of `drivers.tif`: colour table and class titles of the scheme."""
    colours = {item.code: item.colour for item in scheme}
    tags = {f"class_{item.code}": item.title for item in scheme}
    return Band("Driver of forest loss (class code)", "MODE", colours, {**tags, "class_255": "no data"})


def confidence_band() -> Band:
    """Return the description of `confidence.tif`: percent."""
    return Band("Confidence of the driver (percent)", "AVERAGE", tags={"units": "percent"}, measured=True)


def write_categories(path: Path, scheme: LabelScheme) -> None:
    """Write the class titles of `drivers.tif` as GDAL's side file: category names and a raster attribute table.

    Raises:
        OSError, ProductError: the disk is full; names the path.
    """
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    titles = {item.code: item.title for item in scheme}
    names = ET.SubElement(band, "CategoryNames")  # their place is their code
    for code in range(max(titles) + 1):
        ET.SubElement(names, "Category").text = titles.get(code, "")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # type 0 integer, 2 text; usage 5 the value, 2 its name, 6 to 8 red, green, blue (GDAL's GDALRATFieldUsage)
    fields = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    for index, (name, kind, usage) in enumerate(fields):
        field_ = ET.SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(field_, key).text = str(value)
    for index, item in enumerate(scheme):
        row = ET.SubElement(table, "Row", index=str(index))
        for value in (item.code, item.title, *bytes.fromhex(item.colour[1:])):
            ET.SubElement(row, "F").text = str(value)
    ET.indent(root)
    write_file(path, ET.tostring(root, encoding="utf-8") + b"\n")


def write_cog(source: Path, target: Path, band: Band) -> None:
    """Write a single-band uint8 GeoTIFF (255 = no data) as a COG (deflate, 512 tiles, overviews), windowed.

    Raises:
        ProductError: the disk is full or GDAL fails; names the target. GDAL does not report a full disk at close,
            so the result is decoded again and compared with the source.
    """
    with staged(target) as temporary:
        try:
            with rasterio.open(_described(source, band)) as virtual:
                rasterio.shutil.copy(
                    virtual,
                    temporary,
                    driver="COG",
                    COMPRESS="DEFLATE",
                    BLOCKSIZE=str(_TILE),
                    OVERVIEWS="IGNORE_EXISTING",
                    OVERVIEW_RESAMPLING=band.overviews,
                )
            decode_tiles(temporary)
            _compare(source, temporary)
        except (RasterioError, CPLE_BaseError, ProductError) as error:
            raise ProductError(f"{target}: could not be written whole ({error}); check the free space") from error


def windows(width: int, height: int) -> Iterator[Window]:
    """Yield windows of at most 2048 x 2048 pixels that cover a raster of `width` x `height`, so memory stays flat."""
    for row in range(0, height, _WINDOW):
        for column in range(0, width, _WINDOW):
            yield Window(column, row, min(_WINDOW, width - column), min(_WINDOW, height - row))


def statistics(path: Path) -> dict[str, str]:
    """Return GDAL's statistics of a uint8 band, by GDAL's names, exact over all pixels; empty where all is no data."""
    counts = np.zeros(256, np.int64)
    with rasterio.open(path) as dataset:
        for window in windows(dataset.width, dataset.height):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
    total, known = int(counts.sum()), np.delete(counts, NO_DATA)
    if not known.any():
        return {}
    values = np.arange(256)[np.arange(256) != NO_DATA]
    mean = float(np.average(values, weights=known))
    present = values[known > 0]
    figures = {
        "MINIMUM": float(present[0]),
        "MAXIMUM": float(present[-1]),
        "MEAN": mean,
        "STDDEV": float(np.sqrt(np.average((values - mean) ** 2, weights=known))),
        "VALID_PERCENT": 100 * int(known.sum()) / total,
    }
    return {f"STATISTICS_{name}": f"{value:.6g}" for name, value in figures.items()}


def decode_tiles(path: Path) -> int:
    """Inflate every tile of a deflate GeoTIFF, overviews too, and return their number.

    Raises:
        ProductError: a tile is missing, damaged, cut short or of the wrong length.
        RasterioError: the file cannot be opened.
    """
    found = tiles(path)
    missing = [tile.name for tile in found if tile.offset is None]
    if missing:
        raise ProductError(f"{missing[0]} is missing")
    try:
        inflate(path, found)
    except ValueError as error:
        raise ProductError(str(error)) from error
    return len(found)


def _described(source: Path, band: Band) -> str:
    """Return a GDAL virtual raster (XML) that adds description, tags and colours to `source` without copying it."""
    with rasterio.open(source) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.nodata != NO_DATA:
            raise ProductError(f"{source}: must be one uint8 band with nodata {NO_DATA}")
        root = ET.Element("VRTDataset", rasterXSize=str(dataset.width), rasterYSize=str(dataset.height))
        ET.SubElement(root, "SRS").text = dataset.crs.to_wkt()
        ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, dataset.transform.to_gdal()))
    item = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    ET.SubElement(item, "Description").text = band.description
    metadata = ET.SubElement(item, "Metadata")
    tags = {**band.tags, **(statistics(source) if band.measured else {})}
    for key, value in tags.items():
        ET.SubElement(metadata, "MDI", key=key).text = value
    ET.SubElement(item, "NoDataValue").text = str(NO_DATA)
    if band.colours:
        ET.SubElement(item, "ColorInterp").text = "Palette"
        table = ET.SubElement(item, "ColorTable")
        for code in range(256):
            colour = band.colours.get(code, "#000000")
            parts = {f"c{k}": str(int(colour[2 * k - 1 : 2 * k + 1], 16)) for k in (1, 2, 3)}
            ET.SubElement(table, "Entry", {**parts, "c4": "255" if code in band.colours else "0"})
    simple = ET.SubElement(item, "SimpleSource")
    ET.SubElement(simple, "SourceFilename", relativeToVRT="0").text = str(source.resolve())
    ET.SubElement(simple, "SourceBand").text = "1"
    return ET.tostring(root, encoding="unicode")


def _compare(source: Path, written: Path) -> None:
    with rasterio.open(source) as given, rasterio.open(written) as found:
        if (given.shape, given.transform, given.crs) != (found.shape, found.transform, found.crs):
            raise ProductError("its grid differs from that of the source")
        for window in windows(given.width, given.height):
            if not np.array_equal(given.read(1, window=window), found.read(1, window=window)):
                raise ProductError(f"pixels of {window} differ from the source")
