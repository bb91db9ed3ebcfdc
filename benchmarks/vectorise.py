"""How fast a class raster becomes polygons in a file: several ways to trace, several ways to write.

    python -m benchmarks.vectorise            # 8,000 x 8,000 pixels, about a million polygons
    python -m benchmarks.vectorise --size 2000 --only compiled rasterio

Every case runs in a process of its own and prints one JSON line: wall and CPU seconds of its steps, polygons, and the
peak memory of the whole process. CPU seconds are what a busy machine does not change. Cases whose program or package
is not there are named with the reason and skipped.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CRS = "EPSG:32748"
CLASSES = 4
SIGMA = 2.7
"""Pixels: about a million patches in 8,000 x 8,000."""


def draw(path: Path, size: int) -> None:
    """Write a raster of classes 1..4: smoothed noise cut at its quartiles, int32 as the pipeline keeps codes."""
    import scipy.ndimage

    noise = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, SIGMA, mode="wrap")
    classes = (np.digitize(smooth, np.quantile(smooth[::7, ::7], np.arange(1, CLASSES) / CLASSES)) + 1).astype(np.int32)
    with _raster(path, size) as raster:
        raster.write(classes, 0, 0)


def _raster(path: Path, size: int) -> Any:
    from rasterio.transform import from_origin

    from pipeline.polygons import CodeRaster

    return CodeRaster(path.parent, path.stem, (size, size), CRS, from_origin(500_010, 9_900_015, 30, 30))


# ---------------------------------------------------------------------------------------------- tracing


def compiled(path: Path, junctions: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The pipeline's own: a compiled sweep (numba), corners to polygons by from_ragged_array."""
    from pipeline.polygons import CodeRaster

    raster = CodeRaster.__new__(CodeRaster)
    raster.codes = path
    return raster.polygons(junctions)


def compiled_junctions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same with a vertex wherever three regions meet, as the layer `patches` is made."""
    return compiled(path, True)


def rasterio_flat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """rasterio.features.shapes, coordinates into flat arrays."""
    import rasterio
    import rasterio.features
    import shapely

    values, coordinates, rings, polygons, points = [], [], [0], [0], 0
    with rasterio.open(path) as raster:
        for geometry, value in rasterio.features.shapes(
            rasterio.band(raster, 1), connectivity=4, transform=raster.transform
        ):
            for ring in geometry["coordinates"]:
                coordinates.extend(ring)
                points += len(ring)
                rings.append(points)
            polygons.append(len(rings) - 1)
            values.append(value)
    flat = np.asarray(coordinates, dtype=np.float64)
    made = shapely.from_ragged_array(shapely.GeometryType.POLYGON, flat, (np.asarray(rings), np.asarray(polygons)))
    return np.asarray(values).astype(np.int64), made


def rasterio_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """rasterio.features.shapes into GeoDataFrame.from_features, as most examples have it."""
    import geopandas as gpd
    import rasterio
    import rasterio.features

    with rasterio.open(path) as raster:
        features = (
            {"type": "Feature", "properties": {"code": value}, "geometry": geometry}
            for geometry, value in rasterio.features.shapes(
                rasterio.band(raster, 1), connectivity=4, transform=raster.transform
            )
        )
        frame = gpd.GeoDataFrame.from_features(features, crs=CRS)
    return frame["code"].to_numpy(np.int64), np.asarray(frame.geometry.values)


def xarray_spatial(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """xarray-spatial's numba kernel, its coordinates through from_ragged_array (package `xarray-spatial`)."""
    import rasterio
    import shapely
    import xarray as xr
    from xrspatial.polygonize import polygonize

    with rasterio.open(path) as raster:
        t = raster.transform
        table = xr.DataArray(raster.read(1), dims=("y", "x"))
    values, found = polygonize(table, transform=np.array([t.a, t.b, t.c, t.d, t.e, t.f]), return_type="numpy")
    rings = np.cumsum([0, *(len(ring) for rings in found for ring in rings)])
    polygons = np.cumsum([0, *(len(rings) for rings in found)])
    flat = np.concatenate([ring for rings in found for ring in rings])
    return np.asarray(values), shapely.from_ragged_array(shapely.GeometryType.POLYGON, flat, (rings, polygons))


TRACERS: dict[str, Callable[[Path], tuple[np.ndarray, np.ndarray]]] = {
    "compiled": compiled,
    "compiled-junctions": compiled_junctions,
    "rasterio": rasterio_flat,
    "rasterio-features": rasterio_features,
    "xarray-spatial": xarray_spatial,
}


# ---------------------------------------------------------------------------------------------- writing


def write(path: Path, codes: np.ndarray, polygons: np.ndarray, driver: str, arrow: bool) -> None:
    """Write polygons with a code, an area and a spatial index where the format has one."""
    import geopandas as gpd
    import pyogrio
    import shapely

    frame = gpd.GeoDataFrame({"code": codes, "area_ha": shapely.area(polygons) / 1e4}, geometry=polygons, crs=CRS)
    if driver == "GeoParquet":
        frame.to_parquet(path, compression="zstd")
        return
    options = {"SPATIAL_INDEX": "YES"}
    pyogrio.write_dataframe(
        frame, path, layer="patches", driver=driver, use_arrow=arrow, geometry_type="Polygon", layer_options=options
    )


def style(path: Path) -> None:
    """Put a default style into the GeoPackage, as the product does."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, f_table_name TEXT, styleQML TEXT)")
        database.execute("INSERT INTO layer_styles (f_table_name, styleQML) VALUES ('patches', '<qgis/>')")


# ---------------------------------------------------------------------------------------------- cases


class Clock:
    """Wall and CPU seconds of named steps."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Close a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.steps |= {f"{name}_s": round(wall - self._wall, 2), f"{name}_cpu_s": round(cpu - self._cpu, 2)}
        self._wall, self._cpu = wall, cpu

    def total(self) -> dict[str, float]:
        """All steps together."""
        cpu = sum(seconds for name, seconds in self.steps.items() if name.endswith("_cpu_s"))
        return {"total_s": round(sum(self.steps.values()) - cpu, 2), "total_cpu_s": round(cpu, 2)}


def case(name: str, path: Path) -> dict[str, object]:
    """Run one case `tracer[+driver[+arrow]]` in this process."""
    tracer, _, rest = name.partition("+")
    clock = Clock()
    codes, polygons = TRACERS[tracer](path)
    clock.lap("trace")
    result: dict[str, object] = {"case": name, "polygons": len(polygons)}
    if rest:
        driver, _, arrow = rest.partition("+")
        out = path.with_name("out" + {"GPKG": ".gpkg", "FlatGeobuf": ".fgb", "GeoParquet": ".parquet"}[driver])
        write(out, codes, polygons, driver, bool(arrow))
        if driver == "GPKG":
            style(out)
        clock.lap("write")
        result["megabytes"] = round(out.stat().st_size / 1e6)
        out.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return result | clock.steps | clock.total() | {"peak_gb": round(peak, 2)}


def gdal_case(path: Path) -> dict[str, object]:
    """GDAL's own program, straight into a GeoPackage."""
    program = shutil.which("gdal_polygonize.py") or shutil.which("gdal_polygonize")
    if program is None:
        return {"case": "gdal_polygonize", "skipped": "no such program"}
    out = path.with_name("gdal.gpkg")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [program, "-q", str(path), "-f", "GPKG", str(out), "patches", "code"], capture_output=True, text=True
    )
    if done.returncode:
        return {"case": "gdal_polygonize", "skipped": (done.stderr or done.stdout).strip().splitlines()[-1][:200]}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with sqlite3.connect(out) as database:
        count = database.execute("SELECT count(*) FROM patches").fetchone()[0]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    megabytes = round(out.stat().st_size / 1e6)
    out.unlink()
    wall = round(time.perf_counter() - started, 2)
    peak = round(after.ru_maxrss / 1e6, 2)
    return {
        "case": "gdal_polygonize", "polygons": count, "megabytes": megabytes, "total_s": wall,
        "total_cpu_s": round(cpu, 2), "peak_gb": peak,
    }  # fmt: skip


CASES = (
    "compiled+GPKG", "compiled-junctions+GPKG", "compiled+GPKG+arrow", "compiled+FlatGeobuf", "compiled+GeoParquet",
    "rasterio+GPKG", "rasterio-features", "xarray-spatial", "gdal_polygonize",
)  # fmt: skip


def main() -> None:
    """Run the cases one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--only", nargs="+", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--raster", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.raster:
        try:
            result = gdal_case(args.raster) if args.only == ["gdal_polygonize"] else case(args.only[0], args.raster)
        except ImportError as error:
            result = {"case": args.only[0], "skipped": f"no package {error.name}"}
        print(json.dumps(result), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.tif"
        draw(path, args.size)
        compiled(path)  # compiles once, so that no case pays for it
        for name in args.only:
            command = [sys.executable, "-m", "benchmarks.vectorise", "--raster", str(path), "--only", name]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
