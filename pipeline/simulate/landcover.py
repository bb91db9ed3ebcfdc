"""A land-cover map of a simulated province and a composite of the same pixels, for pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from pipeline.labels import NO_DATA
from pipeline.simulate.appearance import KINDS
from pipeline.simulate.bundles import OFFSET, SCALE
from pipeline.simulate.spectra import SIMULATED_BANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.simulate.archive_land import Land

CLASSES = ("unknown", "forest", "plantation", "fields", "grass", "bare", "water")
"""Names of the codes 0..6."""
_COVER = {
    "forest": "forest", "palm": "plantation", "terraced_palm": "plantation", "acacia": "plantation",
    "field": "fields", "wet_field": "fields", "garden": "fields", "grassland": "grass", "burnt_grass": "grass",
    "road": "bare", "village": "bare", "river": "water", "lake": "water",
}  # fmt: skip
"""What old land is; kinds that only fresh loss has stay unknown."""


def write_landcover(folder: Path, land: Land) -> None:
    """Write `composite.tif` (uint16 [6 bands], Collection 2 coding, 0 = not observed) and `classes.tif` (uint8).

    Both lie on the province's own grid. Fresh loss is unknown (0) in the classes: they must not give drivers away.
    """
    from pipeline.simulate.archive_land import PAD

    folder.mkdir(parents=True)
    lookup = np.array([CLASSES.index(_COVER.get(kind, "unknown")) for kind in KINDS], np.uint8)
    classes = np.where(land.drivers == NO_DATA, lookup[land.kinds], 0).astype(np.uint8)
    inner = slice(PAD, PAD + len(classes))
    image = land.composites[max(land.composites)][:, inner, inner]
    numbers = np.rint((image - np.float32(OFFSET)) / np.float32(SCALE))
    coded = np.where(np.isnan(image), 0, np.clip(numbers, 1, 65535)).astype(np.uint16)
    names = {str(code): name for code, name in enumerate(CLASSES)}
    _write(folder / "composite.tif", land, coded, SIMULATED_BANDS, {"simulated": "yes"})
    _write(folder / "classes.tif", land, classes[None], ("class",), {"simulated": "yes", **names})


def _write(
    path: Path, land: Land, bands: NDArray[Any], names: tuple[str, ...], tags: dict[str, str]
) -> None:  # fmt: skip
    profile = {
        "driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "dtype": bands.dtype.name, "crs": land.grid.crs, "transform": land.grid.geobox.affine, "nodata": 0,
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)
        file.update_tags(**tags)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
