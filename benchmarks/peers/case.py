"""One scene, one network, two patterns of loss: what all contestants are given, and the map they are held against."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.demo import ROOT, province_config
from pipeline.grid import RunGrid
from pipeline.lattice import PatchLayout
from pipeline.simulate import Province

YEAR = 2021
UNSEEN = 255
"""Class index where no clear pixel was seen."""


@dataclass(frozen=True)
class Case:
    """A simulated province with one date and no clouds meant, and everything made of it.

    Attributes:
        province: its files; its loss is clustered over 1 % of the land.
        grid: the run's grid, which is also that of the scene.
        layout: how patches are laid.
        model: package whose calibration is the identity, so that a product's class is the largest logit, as a peer's.
        scene: GeoTIFF of Collection 2 numbers, uint16, 0 = not clear: one clear composite, which the peers need not
            make and Clearcause makes from the bundle.
        network: exported network, see `given.Scorer`.
        everywhere: loss raster with a square in every cell of the lattice.
        reference: GeoTIFF of class indices of our engine, patches laid as in a run, for every pixel.
    """

    province: Province
    grid: RunGrid
    layout: PatchLayout
    model: Path
    scene: Path
    network: Path
    everywhere: Path
    reference: Path


def write_config(case: Case, product: Path, loss: Path, workers: int) -> Path:
    """Configuration of a run on a pattern of loss, its product in a folder that is empty."""
    for folder in (product, product.with_name(product.name + ".work")):
        shutil.rmtree(folder, ignore_errors=True)
    # as many blocks as keep the workers busy
    block = min(2048, -(-max(case.grid.height, case.grid.width) // workers))
    changes = (
        f"loss.source={loss}", f"loss.years=[{YEAR}]", f"model={case.model}", f"compute.workers={workers}",
        f"grid.block={block}",
    )  # fmt: skip
    config = province_config(ROOT / "configs" / "demo.yaml", case.province, product, *changes)
    path = product.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path
