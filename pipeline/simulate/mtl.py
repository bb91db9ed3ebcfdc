"""MTL files (text and JSON) of simulated Collection 2 Level-2 bundles, with the fields that readers use."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from pyproj import Transformer

from pipeline.simulate.grids import Grid

REFLECTIVE_BANDS = (2, 3, 4, 5, 6, 7)
SOFTWARE = "CLEARCAUSE_SIMULATOR_1.0"
ORIGIN = "Simulated by Clearcause; no satellite saw this land"
_BARE = re.compile(r"-?\d+(\.\d+)?([eE]-?\d+)?|\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Overpass:
    """Who looked, when and where from: `satellite` 8 or 9, WRS-2 `path` and `row`, sun angles in degrees."""

    satellite: int
    path: int
    row: int
    day: date
    seconds: float
    sun_azimuth: float
    sun_elevation: float

    @property
    def processed(self) -> date:
        """Day the product claims to have been made."""
        return self.day + timedelta(days=11 + self.path % 7)

    @property
    def product_id(self) -> str:
        """Collection 2 Level-2 product identifier."""
        days = f"{self.day:%Y%m%d}_{self.processed:%Y%m%d}"
        return f"LC{self.satellite:02d}_L2SP_{self.path:03d}{self.row:03d}_{days}_02_T1"


def write_mtl(folder: Path, overpass: Overpass, grid: Grid, cloud_cover: float) -> None:
    """Write <product>_MTL.txt and _MTL.json; `cloud_cover` in percent of the pixels that are not fill."""
    groups = {
        "PRODUCT_CONTENTS": _contents(overpass.product_id),
        "IMAGE_ATTRIBUTES": _image(overpass, cloud_cover),
        "PROJECTION_ATTRIBUTES": _projection(grid),
        "LEVEL2_PROCESSING_RECORD": _record(overpass),
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": _reflectance(),
    }
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for name, fields in groups.items():
        lines.append(f"  GROUP = {name}")
        lines += [f"    {key} = {_odl(value)}" for key, value in fields.items()]
        lines.append(f"  END_GROUP = {name}")
    lines += ["END_GROUP = LANDSAT_METADATA_FILE", ""]
    stem = folder / overpass.product_id
    Path(f"{stem}_MTL.txt").write_text("\n".join(lines), encoding="ascii")
    Path(f"{stem}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}, indent=2), encoding="ascii")


def _odl(value: str) -> str:
    return value if _BARE.fullmatch(value) else f'"{value}"'


def _contents(product: str) -> dict[str, str]:
    fields = {
        "ORIGIN": ORIGIN,
        "LANDSAT_PRODUCT_ID": product,
        "PROCESSING_LEVEL": "L2SP",
        "COLLECTION_NUMBER": "02",
        "COLLECTION_CATEGORY": "T1",
        "OUTPUT_FORMAT": "GEOTIFF",
    }
    fields |= {f"FILE_NAME_BAND_{b}": f"{product}_SR_B{b}.TIF" for b in REFLECTIVE_BANDS}
    fields["FILE_NAME_QUALITY_L1_PIXEL"] = f"{product}_QA_PIXEL.TIF"
    fields["FILE_NAME_METADATA_ODL"] = f"{product}_MTL.txt"
    fields |= {f"DATA_TYPE_BAND_{b}": "UINT16" for b in REFLECTIVE_BANDS}
    return fields | {"DATA_TYPE_QUALITY_L1_PIXEL": "UINT16"}


def _image(overpass: Overpass, cloud_cover: float) -> dict[str, str]:
    hours, rest = divmod(overpass.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return {
        "SPACECRAFT_ID": f"LANDSAT_{overpass.satellite}",
        "SENSOR_ID": "OLI_TIRS",
        "WRS_TYPE": "2",
        "WRS_PATH": str(overpass.path),
        "WRS_ROW": str(overpass.row),
        "NADIR_OFFNADIR": "NADIR",
        "TARGET_WRS_PATH": str(overpass.path),
        "TARGET_WRS_ROW": str(overpass.row),
        "DATE_ACQUIRED": f"{overpass.day:%Y-%m-%d}",
        "SCENE_CENTER_TIME": f"{int(hours):02d}:{int(minutes):02d}:{seconds:010.7f}Z",
        "CLOUD_COVER": f"{cloud_cover:.2f}",
        "CLOUD_COVER_LAND": f"{cloud_cover:.2f}",
        "IMAGE_QUALITY_OLI": "9",
        "SUN_AZIMUTH": f"{overpass.sun_azimuth:.8f}",
        "SUN_ELEVATION": f"{overpass.sun_elevation:.8f}",
    }


def _projection(grid: Grid) -> dict[str, str]:
    fields = {
        "MAP_PROJECTION": "UTM",
        "DATUM": "WGS84",
        "ELLIPSOID": "WGS84",
        "UTM_ZONE": str(int(grid.crs[-2:])),
        "GRID_CELL_SIZE_REFLECTIVE": f"{grid.pixel:.2f}",
        "REFLECTIVE_LINES": str(grid.height),
        "REFLECTIVE_SAMPLES": str(grid.width),
        "ORIENTATION": "NORTH_UP",
    }
    # USGS gives the corner pixels' centres, half a pixel inside the raster's edge
    west, east = grid.left + grid.pixel / 2, grid.left + grid.pixel * (grid.width - 0.5)
    north, south = grid.top - grid.pixel / 2, grid.top - grid.pixel * (grid.height - 0.5)
    corners = {"UL": (west, north), "UR": (east, north), "LL": (west, south), "LR": (east, south)}
    geographic = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    for name, corner in corners.items():
        lon, lat = geographic.transform(*corner)
        fields |= {f"CORNER_{name}_LAT_PRODUCT": f"{lat:.5f}", f"CORNER_{name}_LON_PRODUCT": f"{lon:.5f}"}
    for name, (x, y) in corners.items():
        fields |= {
            f"CORNER_{name}_PROJECTION_X_PRODUCT": f"{x:.3f}",
            f"CORNER_{name}_PROJECTION_Y_PRODUCT": f"{y:.3f}",
        }
    return fields


def _record(overpass: Overpass) -> dict[str, str]:
    return {
        "ORIGIN": ORIGIN,
        "LANDSAT_PRODUCT_ID": overpass.product_id,
        "PROCESSING_LEVEL": "L2SP",
        "OUTPUT_FORMAT": "GEOTIFF",
        "DATE_PRODUCT_GENERATED": f"{overpass.processed:%Y-%m-%d}T00:00:00Z",
        "PROCESSING_SOFTWARE_VERSION": SOFTWARE,
        "ALGORITHM_SOURCE_SURFACE_REFLECTANCE": SOFTWARE,
    }


def _reflectance() -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in (
        ("REFLECTANCE_MAXIMUM", "1.602213"),
        ("REFLECTANCE_MINIMUM", "-0.199972"),
        ("QUANTIZE_CAL_MAX", "65535"),
        ("QUANTIZE_CAL_MIN", "1"),
        ("REFLECTANCE_MULT", "2.75e-05"),
        ("REFLECTANCE_ADD", "-0.2"),
    ):
        fields |= {f"{name}_BAND_{band}": value for band in REFLECTIVE_BANDS}
    return fields


def sun_position(day: date, utc_hours: float, lon: float, lat: float) -> tuple[float, float]:
    """Sun azimuth and elevation in degrees (Cooper's declination; no equation of time: good to a few degrees)."""
    declination = np.radians(23.45 * np.sin(2 * np.pi * (284 + day.timetuple().tm_yday) / 365))
    hour_angle = np.radians(15 * (utc_hours - 12) + lon)
    phi = np.radians(lat)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour_angle)
    return float(np.degrees(np.arctan2(east, north)) % 360), float(np.degrees(np.arcsin(up)))
