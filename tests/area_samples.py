"""What tests of areas share: events of a small made-up map with their true drivers, and a filled-in sample."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely

from pipeline.areas.sampling import Product
from pipeline.labels import FOREST_LOSS_DRIVERS

NAMES = FOREST_LOSS_DRIVERS.names
MAPPED_SHARES, TRUE_ERROR = (0.45, 0.3, 0.2, 0.05), 0.15


def made_events(count: int = 1200, seed: int = 1) -> gpd.GeoDataFrame:
    """Events on a lattice of squares; `truth` is the true driver, wrong on the map for about 15 %, 3 % without one."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, count, p=MAPPED_SHARES)
    wrong = rng.random(count) < TRUE_ERROR
    mapped = np.where(wrong, (truth + rng.integers(1, 4, count)) % 4, truth)
    silent, uncertain = rng.random(count) < 0.03, rng.random(count) < 0.3
    area = np.round(0.5 + rng.lognormal(0.5, 0.9, count), 4)
    column, row = np.arange(count) % 40, np.arange(count) // 40
    west, south = 101 + column * 0.01, row * 0.01
    side = np.sqrt(area) * 0.001
    driver = np.array(NAMES, dtype=object)[mapped]
    driver[silent] = None
    status = np.where(silent, "no_imagery", np.where(uncertain, "uncertain", "classified"))
    unit = np.array(["a", "b"])[(column > 36).astype(int)]
    return gpd.GeoDataFrame(
        {
            "event_id": [f"e{k:05d}" for k in range(count)],
            "loss_year": rng.choice([2021, 2022], count, p=[0.7, 0.3]),
            "status": status,
            "driver": driver,
            "confidence": np.where(silent, np.nan, np.where(uncertain, 0.4, 0.9)),
            "area_ha": area,
            "unit_id": unit,
            "unit_name": np.char.upper(unit),
            "lon": west + side / 2,
            "lat": south + side / 2,
            "truth": np.array(NAMES, dtype=object)[truth],
        },
        geometry=shapely.box(west, south, west + side, south + side),
        crs="EPSG:4326",
    )


def made_product(folder: Path, events: gpd.GeoDataFrame, sha256: str = "1" * 64) -> Product:
    """A product that is not on disk: what `read_product` makes of one."""
    run = {"region": "Test", "years": [2021, 2022], "model": {"name": "m", "version": "1"}}
    return Product(folder / "out", run, FOREST_LOSS_DRIVERS, events.drop(columns="truth", errors="ignore"), sha256)


def filled(folder: Path, truth: pd.Series | dict[str, str], **other: str) -> Path:
    """Fill the template in `folder` with the true driver by event_id; `other` overrides some; returns the file."""
    path = folder / "sample.gpkg"
    rows = gpd.read_file(path, layer="sample", engine="pyogrio")
    rows["reference_driver"] = [other.get(event, truth[event]) for event in rows["event_id"]]
    rewrite(path, rows)
    return path


def rewrite(path: Path, rows: gpd.GeoDataFrame) -> None:
    """Replace the layer to fill in, as a GIS would on saving."""
    pyogrio.write_dataframe(
        rows, path, layer="sample", driver="GPKG", geometry_type="MultiPolygon", promote_to_multi=True
    )
