"""A small hand-made product: three units with names in four scripts, twelve events of every status, two years.

Events are squares of whole pixels on one UTM grid, so that areas can be checked by head: 30 m pixels, 0.09 ha each
(planar; the geodesic areas given to the product are those of the polygons).
"""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import from_origin

from pipeline.areas.sources import card_source
from pipeline.areas.tables import adjusted_summary, estimates_table
from pipeline.eudr import eudr_columns
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.models.card import ModelCard
from pipeline.product.write import ProductInputs
from pipeline.units import summary_table

CRS = "EPSG:32748"
TRANSFORM = from_origin(500_010, 9_900_015, 30, 30)
SIZE = 700
UNIT_NAMES = ("Kabupaten 'Indragiri' <Hulu> & co", "大理白族自治州 ถลาง", "Респ. ﺍﻟﻌﺮﺑﻴﺔ")
NAMES = FOREST_LOSS_DRIVERS.names

# column, row, side in pixels, year, status, driver index; every third lies outside any unit
EVENTS = (
    (20, 20, 10, 2021, "classified", 0),
    (60, 20, 20, 2021, "classified", 1),
    (420, 30, 12, 2021, "uncertain", 1),
    (120, 40, 8, 2021, "no_imagery", None),
    (300, 60, 30, 2022, "classified", 2),
    (340, 60, 9, 2022, "classified", 3),
    (420, 300, 9, 2022, "uncertain", 0),
    (500, 400, 16, 2022, "failed", None),
    (60, 500, 24, 2022, "classified", 0),
    (120, 560, 11, 2021, "classified", 0),
    (610, 600, 14, 2022, "no_imagery", None),
    (400, 600, 40, 2021, "classified", 1),
)


def geodesic_ha(shape: shapely.Geometry) -> float:
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shape)[0]) / 1e4


def square(column: int, row: int, width: int, height: int | None = None) -> shapely.Polygon:
    west, north = TRANSFORM @ (column, row)
    return shapely.box(west, north - 30 * (height or width), west + 30 * width, north)


def shapes() -> list[shapely.MultiPolygon]:
    """Squares; the first has a hole, the second is of two parts that touch at a corner."""
    result = [shapely.MultiPolygon([square(c, r, n)]) for c, r, n, *_ in EVENTS]
    result[0] = shapely.MultiPolygon([square(20, 20, 10).difference(square(24, 24, 3))])
    result[1] = shapely.MultiPolygon([square(60, 20, 20), square(80, 40, 5)])
    return result


def make_inputs(folder: Path, count: int = len(EVENTS), crs: str = "EPSG:4326") -> ProductInputs:
    """Return the inputs of the example with its first `count` events; writes the two plain rasters into `folder`."""
    planar = gpd.GeoSeries(shapes()[:count], crs=CRS)
    units = _unit_squares()
    events = _events(planar, units)
    drivers = _rasters(folder, planar)
    patches = events[events["driver"].notna()].explode().reset_index(drop=True)
    patches["area_ha"] = [geodesic_ha(g) for g in patches.geometry]
    summary, estimates = _areas(events)
    return ProductInputs(
        region="Ünïté <b>Test</b>",
        years=(2021, 2022),
        card=card(),
        events=events,
        patches=patches[["event_id", "driver", "driver_code", "area_ha", "confidence", "geometry"]],
        units=_units(units, events),
        scenes=_scenes(),
        blocks=_blocks(),
        summary=summary,
        estimates=estimates,
        run={
            "config": {"output": {"uncertain_below": 0.5}, "years": [2021, 2022]},
            "versions": {"clearcause": "0.1.0"},
            "counts": {"events": count},
            "warnings": ["grid resolution 33 m differs from the model's 30 m <script>alert(1)</script>"],
            "complete": False,
            "simulated": True,
            "timings": {"seconds": 12.5},
        },
        drivers=drivers,
        confidence=drivers.with_name("plain-confidence.tif"),
        crs=crs,
    )


def card() -> ModelCard:
    score = {"name": "accuracy", "value": 0.81, "low": 0.77, "high": 0.85, "n": 400, "split": "test"}
    return ModelCard.model_validate(
        {
            "name": "fpn-test",
            "version": "1",
            "architecture": "fpn",
            "backbone": {"name": "efficientnet-b2"},
            "neck": {"name": "fpn"},
            "head": {"name": "dense"},
            "bands": ["red", "green"],
            "scaling": {"mean": [0.1, 0.1], "std": [0.1, 0.1]},
            "labels": FOREST_LOSS_DRIVERS.to_list(),
            "scores": [score],
            "error_matrix": {
                "classes": NAMES,
                "counts": [[90, 5, 4, 1], [3, 140, 6, 1], [2, 8, 60, 0], [4, 6, 2, 18]],
                "mapped_shares": [0.3, 0.4, 0.2, 0.1],
                "split": "test",
                "n": 350,
            },
            "training_data": "simulated landscapes",
            "simulated": True,
            "licence": "CC0-1.0",
            "sha256": "0" * 64,
        }
    )


def _probabilities(k: int, driver: int, status: str) -> np.ndarray:
    values = np.full(len(NAMES), 0.1 + 0.001 * k)
    values[driver] = 0
    values[driver] = 1 - values.sum()
    if status == "uncertain":
        values[:] = 0.2
        values[driver] = 0.4
    return values


def _events(planar: gpd.GeoSeries, units: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    degrees = planar.to_crs("EPSG:4326")
    inside = degrees.representative_point()
    rows = []
    for k, (geometry, point) in enumerate(zip(degrees, inside, strict=True)):
        year, status, driver = EVENTS[k][3:]
        home = units[units.geometry.intersects(point)]
        p = None if driver is None else _probabilities(k, driver, status)
        row = {
            "event_id": f"2021-{k:04d}"[::-1],
            "loss_year": year,
            "loss_date": None,
            "loss_date_last": None,
            "status": status,
            "driver": None if driver is None else NAMES[driver],
            "driver_code": None if driver is None else FOREST_LOSS_DRIVERS.codes[driver],
            "confidence": None if p is None else float(p.max()),
            "uncertain": status == "uncertain",
            "area_ha": geodesic_ha(geometry),
            "pixels": round(planar.iloc[k].area / 900),
            "clear_share": 0.0 if p is None else 0.9,
            "awaiting": status == "no_imagery",
            "first_image": None if p is None else pd.Timestamp(year, 6, 1),
            "last_image": None if p is None else pd.Timestamp(year + 2, 6, 1),
            "image_count": 0 if p is None else 5,
            "years_after_loss": None if p is None else 1.5,
            "unit_id": home["unit_id"].iloc[0] if len(home) else "outside",
            "unit_name": home["unit_name"].iloc[0] if len(home) else "outside any unit",
            "lon": point.x,
            "lat": point.y,
            "model": "fpn-test 1",
            "peat": 0.25,
        }
        row |= {f"p_{name}": None if p is None else float(p[i]) for i, name in enumerate(NAMES)}
        rows.append(row)
    names = ["event_id", "loss_year", "loss_date", "loss_date_last", "status", "driver", "driver_code", "confidence"]
    names += ["uncertain", "area_ha", "pixels", "clear_share", "awaiting"]
    names += ["first_image", "last_image", "image_count", "years_after_loss", "unit_id", "unit_name"]
    names += ["lon", "lat", "model", "peat", *(f"p_{name}" for name in NAMES)]
    table = pd.DataFrame(rows, columns=names)
    table = table.join(eudr_columns(table["loss_year"], table["driver"], FOREST_LOSS_DRIVERS))
    return gpd.GeoDataFrame(table, geometry=list(degrees), crs="EPSG:4326")


def _unit_squares() -> gpd.GeoDataFrame:
    boxes = [square(0, 0, 250, 700), square(250, 0, 150, 700), square(400, 0, 300, 350)]
    degrees = gpd.GeoSeries(boxes, crs=CRS).to_crs("EPSG:4326")
    names = {"unit_id": ["a", "b", "c"], "unit_name": UNIT_NAMES}
    return gpd.GeoDataFrame(names, geometry=list(degrees), crs="EPSG:4326")


def _label(events: pd.DataFrame) -> pd.Series:
    return events["driver"].where(events["driver"].notna(), events["status"])


def _areas(events: gpd.GeoDataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    source = card_source(card())
    assert source is not None
    summary = adjusted_summary(summary_table(events), events, source, NAMES)
    return summary, estimates_table(events, source, NAMES)


def _units(squares: gpd.GeoDataFrame, events: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    rows = [*squares.itertuples(index=False), ("outside", "outside any unit", None)]
    label, result = _label(events), []
    for unit_id, unit_name, _ in rows:
        own = events["unit_id"] == unit_id
        area = {f"{n}_ha": events.loc[own & (label == n), "area_ha"].sum() for n in (*NAMES, "no_imagery", "failed")}
        best = max(NAMES, key=lambda name: area[f"{name}_ha"])
        uncertain = events.loc[own & (events["status"] == "uncertain"), "area_ha"].sum()
        row = {"unit_id": unit_id, "unit_name": unit_name, "loss_ha": sum(area.values()), **area}
        result.append(row | {"uncertain_ha": uncertain, "dominant_driver": best if area[f"{best}_ha"] else None})
    return gpd.GeoDataFrame(pd.DataFrame(result), geometry=[row[2] for row in rows], crs="EPSG:4326")


def _scenes() -> gpd.GeoDataFrame:
    footprint = gpd.GeoSeries([square(-50, -50, 800)], crs=CRS).to_crs("EPSG:4326").iloc[0]
    rows = {
        "scene_id": ["LC09_L2SP_126061_20220601_02_T1", "LC08_L2SP_126061_20220401_02_T1", "LC08_broken"],
        "datetime": [pd.Timestamp("2022-06-01T03:12:10.5Z"), pd.Timestamp("2022-04-01T03:12:10Z"), None],
        "cloud_cover": [12.5, 88.0, None],
        "used": [True, False, False],
        "reason": [None, "cloud cover 88 % > 60 %", "no MTL file <img src=x onerror=alert(1)>"],
        "href": ["https://user:secret@example.org/items/1?sig=secret#x", "https://example.org/2", "/local/scene"],
    }
    return gpd.GeoDataFrame(rows, geometry=[footprint, footprint, None], crs="EPSG:4326")


def _blocks() -> gpd.GeoDataFrame:
    boxes = gpd.GeoSeries([square(0, 0, 350, 700), square(350, 0, 350, 700)], crs=CRS).to_crs("EPSG:4326")
    rows = {
        "block_id": ["r0c0", "r0c1"],
        "status": ["done", "failed"],
        "reason": [None, "out of memory"],
        "events": [6, 6],
        "seconds": [1.25, 2.5],
    }
    return gpd.GeoDataFrame(rows, geometry=list(boxes), crs="EPSG:4326")


def _rasters(folder: Path, planar: gpd.GeoSeries) -> Path:
    known = [
        (shape, FOREST_LOSS_DRIVERS.codes[EVENTS[k][5]])  # type: ignore[index]
        for k, shape in enumerate(planar)
        if EVENTS[k][5] is not None
    ]
    codes = np.full((SIZE, SIZE), NO_DATA, np.uint8)
    if known:
        rasterize(known, out=codes, transform=TRANSFORM)
    percent = np.where(codes == NO_DATA, NO_DATA, 60 + codes).astype(np.uint8)
    for name, values in (("plain-drivers.tif", codes), ("plain-confidence.tif", percent)):
        profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "count": 1, "dtype": "uint8", "nodata": NO_DATA}
        tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "crs": CRS, "transform": TRANSFORM}
        with rasterio.open(folder / name, "w", **profile, **tiles) as dataset:
            dataset.write(values, 1)
    return folder / "plain-drivers.tif"
