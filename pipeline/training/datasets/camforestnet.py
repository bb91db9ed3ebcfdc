"""Cam-ForestNet (Debus et al. 2024, Cameroon, CC BY 4.0): ForestNet's layout, with its differences.

Folders are named `<longitude>_<latitude>`, loss regions are polygons in degrees (EPSG:4326), the visible image is
`<loss year>_<longitude>_<latitude>.png` and its infrared `<loss year>_ir_0.npy`. The image is a square of 166 x 15 m
to each side of the label's point; its year is not told (one to five years after the loss). The published code draws
regions with the cosine of degrees and y upwards, which mirrors them; here metres per degree are those of the WGS 84
ellipsoid at the event, and y goes down.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.training.datasets.base import Look
from pipeline.training.datasets.forestnet import RESOLUTION, SIDE, ForestNet, LookFiles
from pipeline.training.datasets.shapes import read_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

_A, _E2 = 6378137.0, 0.0066943799901413165
"""WGS 84: equatorial radius in metres, eccentricity squared."""


class CamForestNet(ForestNet):
    """Cam-ForestNet's Landsat archives: as `ForestNet`, with regions placed from degrees."""

    name = "Cam-ForestNet"
    licence = "CC BY 4.0"

    def _region(self, row: int) -> Any:
        return to_pixels(read_region(self._event_folder(row) / "forest_loss_region.pkl"), self._place(row))

    def _look_files(self, images: Path) -> tuple[LookFiles, ...]:
        """The event's image (its first by name stands as the composite) and any further ones."""
        found: list[LookFiles] = []
        for path in sorted((images / "visible").glob("*.png"), key=lambda p: (p.name != "composite.png", p.name)):
            named = images / "infrared" / f"{path.stem}.npy"
            infrared = named if named.is_file() else images / "infrared" / f"{path.name[:4]}_ir_0.npy"
            if infrared.is_file():
                found.append(LookFiles(Look(path.stem if found else "composite"), path, infrared))
            else:
                self.incomplete.append(path)
        return tuple(found)


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return metres of a degree of latitude and of longitude at a latitude in degrees, on the WGS 84 ellipsoid.

    From the radii of curvature in the meridian and the prime vertical (Snyder 1987, equations 4-18 and 4-20).
    """
    phi = np.radians(latitude)
    root = 1 - _E2 * np.sin(phi) ** 2
    meridian, prime = _A * (1 - _E2) / root**1.5, _A / np.sqrt(root)
    return float(np.radians(meridian)), float(np.radians(prime * np.cos(phi)))


def to_pixels(shape: Any, place: tuple[float, float]) -> Any:
    """Place a shape in degrees (EPSG:4326) on a 15 m image centred at (lat, lon): pixels, x right, y down."""
    north, east = metres_per_degree(place[0])

    def move(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        x = SIDE / 2 + (lonlat[:, 0] - place[1]) * east / RESOLUTION
        y = SIDE / 2 - (lonlat[:, 1] - place[0]) * north / RESOLUTION
        return np.column_stack([x, y])

    return shapely.transform(shape, move)
