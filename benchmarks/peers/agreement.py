"""How far class maps say the same, away from the scene's edges, where contestants see surroundings that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

from benchmarks.peers.case import UNSEEN, Case
from pipeline.labels import NO_DATA
from pipeline.models.card import read_card


def read_map(path: Path) -> np.ndarray:
    """A raster's first band."""
    with rasterio.open(path) as raster:
        return np.asarray(raster.read(1))


def product_classes(case: Case, product: Path) -> np.ndarray:
    """Class indices of a product's loss pixels, UNSEEN elsewhere."""
    codes = read_map(product / "drivers.tif")
    table = np.full(256, UNSEEN, np.uint8)
    for index, code in enumerate(read_card(case.model).scheme.codes):
        table[code] = index
    table[NO_DATA] = UNSEEN
    return np.asarray(table[codes])


def share_equal(case: Case, one: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels of the same class, of those that both have seen and that lie a patch inside the scene or more."""
    inner = np.zeros(one.shape, bool)
    edge = case.layout.size
    inner[edge:-edge, edge:-edge] = True
    inner &= (one != UNSEEN) & (other != UNSEEN)
    return float((one[inner] == other[inner]).mean()) if inner.any() else float("nan")


def class_shares(classes: np.ndarray) -> list[float]:
    """Share of each class among the pixels seen: how much agreement comes by itself."""
    counts = np.bincount(classes[classes != UNSEEN].ravel())
    return [round(float(count / counts.sum()), 3) for count in counts]
