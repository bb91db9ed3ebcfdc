"""The layers of a finished product as typed tables, for what reads products: exports and comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyogrio
import rasterio
from pyogrio.errors import DataLayerError, DataSourceError

from pipeline.errors import ConfigError, ProductError
from pipeline.labels import LabelScheme
from pipeline.product import record
from pipeline.product.geopackage import prepare
from pipeline.product.layers import Layer, layers


@dataclass(frozen=True)
class Product:
    """A product folder that is whole: its run record and its classes."""

    folder: Path
    run: dict[str, Any]
    scheme: LabelScheme

    @property
    def layers(self) -> dict[str, Layer]:
        """Name to layer."""
        return {layer.name: layer for layer in layers(self.scheme)}

    def read(self, name: str, crs: str | None = None) -> pd.DataFrame:
        """Read a layer with exact types; geometries in `crs`, or as stored.

        Raises:
            ConfigError: the product has no such layer; names those it has.
            ProductError: the GeoPackage cannot be read.
        """
        known = self.layers
        if name not in known:
            raise ConfigError(f"layer {name!r}: a product has {', '.join(known)}")
        path = self.folder / record.VECTOR_FILE
        try:
            frame = pyogrio.read_dataframe(path, layer=name, use_arrow=True)
        except (DataSourceError, DataLayerError) as error:
            raise ProductError(f"{path}: layer {name} cannot be read ({' '.join(str(error).split())})") from error
        stored = crs or (frame.crs.to_string() if known[name].geometry else "EPSG:4326")
        try:
            return prepare(known[name], frame, stored)
        except ProductError as error:
            told = self.run.get("versions")
            version = told.get("clearcause") if isinstance(told, dict) else None
            raise ProductError(f"{path}: {error}; it was written by version {version}, run its region again") from error

    @property
    def grid_crs(self) -> str:
        """CRS of the run's grid, in which metres are metres."""
        with rasterio.open(self.folder / record.DRIVERS_FILE) as raster:
            return str(raster.crs.to_wkt())


def open_product(folder: Path) -> Product:
    """Open a product folder.

    Raises:
        ConfigError: there is no such folder.
        ProductError: it holds no whole product.
    """
    if not folder.is_dir():
        raise ConfigError(f"product {folder}: no such folder")
    run = record.read_run(folder)
    labels = run.get("labels")
    if not isinstance(labels, list):
        raise ProductError(f"{folder / record.RUN_FILE}: says no classes; the product is damaged")
    return Product(folder, run, LabelScheme.from_list(labels))
