"""Products for tests of the report: pictures that name their scene, and as many events as wanted, drawn at random."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from PIL import Image, ImageDraw
from product_example import NAMES, make_inputs

from pipeline.areas.sources import card_source
from pipeline.areas.tables import adjusted_summary, estimates_table
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.pictures import ChipPair, Picture
from pipeline.product.write import ProductInputs
from pipeline.units import summary_table, unit_table

PIXEL = 0.00025  # degrees, a Hansen pixel
CELL = 30  # pixels a side of the cell that each event has for itself
WORDS = ("Kabupaten", "大理州", "Респ.", "محافظة", "Município", "จังหวัด")


def picture(colour: str, day: date, scene: str, side: int = 96) -> Picture:
    image = Image.new("RGB", (side, side), colour)
    ImageDraw.Draw(image).rectangle((side // 4, side // 4, side * 3 // 4, side * 3 // 4), outline=(255, 225, 0))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return Picture(content.getvalue(), side, side, day, scene)


def chips(inputs: ProductInputs, count: int = 6) -> tuple[ChipPair, ...]:
    """Pairs of the first events with a driver; the second lacks its picture before the loss, with a reason."""
    told = inputs.events[inputs.events["driver"].notna()]["event_id"].head(count)
    pairs = []
    for k, name in enumerate(told):
        before = picture("#1b5e20", date(2020, 5, 1 + k), f"LC08_before_{k}") if k != 1 else None
        after = picture("#c8a165", date(2022, 5, 1 + k), f"LC09_after_{k}")
        pairs.append(ChipPair(name, before, after, "" if before else "no clear scene <b>before</b> the loss"))
    return tuple(pairs)


def outlines(random: np.random.Generator, count: int) -> np.ndarray:
    """Stairs of whole pixels, one in each cell of a square lattice: rectangles less their corners, some with a hole."""
    across = int(np.ceil(np.sqrt(count)))
    cell = np.arange(count)
    size = np.clip(random.lognormal(1.0, 0.7, (count, 2)), 2, CELL - 4).astype(int)
    corner = np.column_stack([cell % across, cell // across]) * CELL + random.integers(0, 4, (count, 2))
    wide, tall = (size * PIXEL).T
    west, south = corner.T * PIXEL + np.array([[100.0], [-3.0]])
    step = np.minimum(wide, tall) / 2
    cut = np.floor(step / PIXEL / random.integers(1, 3, count)) * PIXEL
    x = np.stack([west, west + wide, west + wide, west + wide - cut, west + wide - cut, west, west], axis=1)
    y = np.stack([south, south, south + tall - cut, south + tall - cut, south + tall, south + tall, south], axis=1)
    rings = shapely.linearrings(np.stack([x, y], axis=2))
    return np.asarray(shapely.multipolygons(shapely.polygons(rings), indices=np.arange(count)))


def many_inputs(folder: Path, count: int, seed: int = 3) -> ProductInputs:
    """The example's model and rasters with `count` events in 36 units and 20 years; nothing of it is a real place."""
    random = np.random.default_rng(seed)
    shapes = outlines(random, count)
    events = _events(random, shapes)
    units = _units(shapes)
    small = make_inputs(folder, 1)
    source = card_source(small.card)
    assert source is not None
    nearest = shapely.STRtree(np.asarray(units.geometry.array)).query_nearest(
        shapely.points(events["lon"], events["lat"]), all_matches=False
    )[1]
    events["unit_id"] = units["unit_id"].to_numpy()[nearest]
    events["unit_name"] = units["unit_name"].to_numpy()[nearest]
    return replace(
        small,
        region="Many <events>",
        years=tuple(range(2001, 2021)),
        events=events,
        patches=events.head(0)[["event_id", "driver", "driver_code", "area_ha", "confidence", "geometry"]],
        units=unit_table(events, units, small.card.scheme),
        summary=adjusted_summary(summary_table(events), events, source, NAMES),
        estimates=estimates_table(events, source, NAMES),
    )


def _events(random: np.random.Generator, shapes: np.ndarray) -> gpd.GeoDataFrame:
    count = len(shapes)
    middle = shapely.point_on_surface(shapes)
    lon, lat = shapely.get_x(middle).round(6), shapely.get_y(middle).round(6)
    year = random.integers(2001, 2021, count)
    bands = np.sin(lon * 3) + np.cos(lat * 4) + random.normal(0, 0.6, count)
    driver = np.digitize(bands, (-0.9, 0.2, 1.3))
    p = 0.3 + 0.7 * random.beta(4, 1.4, count)
    status = np.where(p < 0.5, "uncertain", "classified").astype(object)
    lost = random.random(count)
    status[lost < 0.04], status[lost > 0.995] = "no_imagery", "failed"
    told = np.isin(status, ("classified", "uncertain"))
    names = np.array(NAMES, dtype=object)
    first = pd.to_datetime(pd.Series(year).astype(str)) + pd.to_timedelta(random.integers(0, 300, count), "D")
    table = {
        "event_id": [
            f"{a}_{'S' if y < 0 else 'N'}{abs(y):09.6f}_E{x:010.6f}" for a, x, y in zip(year, lon, lat, strict=True)
        ],
        "loss_year": year,
        "loss_date": pd.NaT,
        "loss_date_last": pd.NaT,
        "status": status,
        "driver": np.where(told, names[driver], None),
        "driver_code": pd.array(np.where(told, np.array(FOREST_LOSS_DRIVERS.codes)[driver], pd.NA), dtype="Int64"),
        "confidence": np.where(told, p, np.nan),
        "uncertain": status == "uncertain",
        "area_ha": shapely.area(shapes) * np.cos(np.radians(lat)) * 111_320**2 / 1e4,
        "pixels": np.round(shapely.area(shapes) / PIXEL**2).astype(int),
        "clear_share": np.where(told, random.integers(10, 101, count) / 100, 0.0),
        "awaiting": status == "no_imagery",
        "first_image": first.where(told),
        "last_image": (first + pd.to_timedelta(random.integers(0, 900, count), "D")).where(told),
        "image_count": np.where(told, random.integers(1, 13, count), 0),
        "years_after_loss": np.where(told, 1.5, np.nan),
        "lon": lon,
        "lat": lat,
        "model": "fpn-test 1",
    }
    return gpd.GeoDataFrame(table, geometry=shapes, crs="EPSG:4326")


def _units(shapes: np.ndarray) -> gpd.GeoDataFrame:
    west, south, east, north = shapely.total_bounds(shapes)
    x, y = np.linspace(west - 0.01, east + 0.01, 7), np.linspace(south - 0.01, north + 0.01, 7)
    boxes = [shapely.box(x[i], y[j], x[i + 1], y[j + 1]) for j in range(6) for i in range(6)]
    table = {
        "unit_id": [f"{k:02d}" for k in range(36)],
        "unit_name": [f"{WORDS[k % len(WORDS)]} {k + 1}" for k in range(36)],
    }
    return gpd.GeoDataFrame(table, geometry=[shapely.MultiPolygon([box]) for box in boxes], crs="EPSG:4326")
