"""Makes a case: the province, the scene, the exported network, the patterns of loss, and the map of our own engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import nn

from benchmarks.peers.case import UNSEEN, YEAR, Case
from pipeline.catalog.open import open_catalog
from pipeline.demo import ROOT, province_config, write_province
from pipeline.grid import Block, make_grid, read_region
from pipeline.lattice import BlockLoss, PatchLayout, lattice_window, listed, meeting
from pipeline.models.card import ModelCard, read_card
from pipeline.models.engines import open_segmenter
from pipeline.models.package import load_network, save_package
from pipeline.models.store import load_package
from pipeline.patches import draw_patches
from pipeline.plan import ask_catalog
from pipeline.predict import predict_loss
from pipeline.simulate import ProvinceParams
from pipeline.stack import SceneStack

SQUARE = 4
"""Pixels a side of the loss that is put into every patch: 1.4 ha, more than the smallest event of the demo."""
_STRIP = 8
"""Rows of the lattice in a strip of the reference."""


def make_case(out: Path, size: int) -> Case:
    """Simulate the province, or find it, and write what is missing of the rest; raises RuntimeError as the steps do."""
    params = ProvinceParams(
        size=size, seed=7, loss_years=(YEAR,), dates=1, cloud=0.0, loss_share=0.01, two_zones=False
    )  # fmt: skip
    province = write_province(out / f"province-{size}", params)
    folder = out / f"case-{size}"
    # ftw-tools looks through the folder of the scene
    (folder / "scene").mkdir(parents=True, exist_ok=True)
    model = _uncalibrated(out / "model")
    card = read_card(model)
    case = Case(
        province, make_grid(read_region(province.aoi), "auto", 30.0, size),
        PatchLayout("grid", card.patch.size, card.patch.stride), model, folder / "scene" / "scene.tif",
        out / "network.pt2", folder / "everywhere.tif", folder / "reference.tif",
    )  # fmt: skip
    steps = ((case.scene, _write_scene), (case.everywhere, _write_everywhere), (case.network, _export))
    for path, write in (*steps, (case.reference, _write_reference)):
        if not path.is_file():
            write(case)
    return case


def _uncalibrated(folder: Path) -> Path:
    package = load_package(ROOT / "models" / "fpn-efficientnet-b2")
    if not (folder / "model.json").is_file():
        fields = package.card.model_dump(mode="json", exclude={"sha256"})
        save_package(folder, load_network(package), {**fields, "calibration": {"method": "none"}})
    return folder


def _reflectance(case: Case) -> np.ndarray:
    """The scene as a run sees it: float32 [bands, height, width], NaN = not clear."""
    config = province_config(ROOT / "configs" / "demo.yaml", case.province, case.province.folder / "product")
    catalog = open_catalog(str(case.province.scenes), config.imagery.collections, Path(), config.imagery.allow_hosts)
    scenes, _ = ask_catalog(catalog, read_region(case.province.aoi), (YEAR,), config.imagery)
    if len(scenes) != 1:
        raise RuntimeError(f"{case.province.scenes}: {len(scenes)} scenes where one was simulated")
    with SceneStack(scenes, case.grid, read_card(case.model).bands) as stack:
        return np.asarray(stack.read(0, 0, case.grid.height, case.grid.width)[0])


def _profile(case: Case, count: int, dtype: str) -> dict[str, object]:
    return {
        "driver": "GTiff", "height": case.grid.height, "width": case.grid.width, "count": count, "dtype": dtype,
        "crs": case.grid.crs, "transform": case.grid.geobox.affine, "tiled": True, "blockxsize": 256,
        "blockysize": 256, "compress": "deflate", "zlevel": 1,
    }  # fmt: skip


def _write_scene(case: Case) -> None:
    image, scaling = _reflectance(case), read_card(case.model).scaling
    seen = np.isfinite(image)
    numbers = np.where(seen, np.rint((image - scaling.offset) / scaling.scale), 0).astype(np.uint16)
    with rasterio.open(case.scene, "w", **_profile(case, len(image), "uint16"), predictor=2) as target:
        target.write(numbers)


def _write_everywhere(case: Case) -> None:
    """A square in every cell of the lattice, so that every patch is computed."""
    lost = np.zeros((case.grid.height, case.grid.width), np.uint8)
    for row in range(0, case.grid.height, case.layout.stride):
        for col in range(0, case.grid.width, case.layout.stride):
            lost[row : row + SQUARE, col : col + SQUARE] = YEAR - 2000
    with rasterio.open(case.everywhere, "w", **_profile(case, 1, "uint8")) as target:
        target.write(lost, 1)


class _FromNumbers(nn.Module):
    """Collection 2 numbers, 0 = not clear, to logits: scaling, normalisation and network in one."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        self.scale, self.offset = card.scaling.scale, card.scaling.offset
        self.mean, self.std = (
            nn.Parameter(torch.tensor(values).reshape(1, -1, 1, 1), requires_grad=False)
            for values in (card.scaling.mean, card.scaling.std)
        )

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        inputs = (numbers * self.scale + self.offset - self.mean) / self.std
        clear = (numbers > 0).all(dim=1, keepdim=True)
        logits: torch.Tensor = self.network(torch.where(clear, inputs, torch.zeros_like(inputs)))
        return logits


def _export(case: Case) -> None:
    """Export the network for any batch; raises RuntimeError where a patch of the scene scores unlike in a run."""
    card = read_card(case.model)
    size = card.patch.size
    with rasterio.open(case.scene) as scene:
        numbers = torch.from_numpy(scene.read(window=((0, size), (0, size)), out_dtype="float32"))[None]
    network = _FromNumbers(load_network(load_package(case.model)), card).eval()
    pair = numbers.repeat(2, 1, 1, 1)
    program = torch.export.export(network, (pair,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    partial = case.network.with_name("partial.pt2")
    torch.export.save(program, partial)
    image = numbers.numpy() * np.float32(card.scaling.scale) + np.float32(card.scaling.offset)
    image[(numbers == 0).numpy()] = np.nan
    ours = open_segmenter(case.model, "auto", "cpu").logits(image)
    with torch.inference_mode():
        theirs = torch.export.load(partial).module()(numbers).numpy()
    furthest = float(np.abs(ours - theirs).max())
    if furthest > 1e-2 or (ours.argmax(axis=1) != theirs.argmax(axis=1)).mean() > 1e-4:
        raise RuntimeError(f"the exported network differs from our engine by up to {furthest:g}")
    partial.rename(case.network)


def _write_reference(case: Case) -> None:
    """Class indices of every pixel, strip by strip, by the functions that a run uses for its loss pixels."""
    model, image = open_segmenter(case.model, "auto", "cpu"), _reflectance(case)
    drawn = draw_patches(case.layout, case.grid, np.zeros((0, 4), np.int64))
    size, rows = case.layout.size, _STRIP * case.layout.stride
    padded = np.pad(image, ((0, 0), (size, size), (size, size)), constant_values=np.nan)
    out = np.empty((case.grid.height, case.grid.width), np.uint8)
    for row0 in range(0, case.grid.height, rows):
        block = Block("", row0, 0, min(rows, case.grid.height - row0), case.grid.width)
        patches = listed(meeting(drawn, size, block))
        top, left, height, width = lattice_window(block, case.layout)
        part = padded[:, top + size : top + size + height, left + size : left + size + width]
        everywhere = BlockLoss(block, top, left, np.ones((height, width), np.int32))
        logits = predict_loss(part, patches, everywhere, everywhere.inside, model, size, 1)
        out[row0 : row0 + block.height] = logits.argmax(axis=1).reshape(block.height, block.width)
    out[np.isnan(image).any(axis=0)] = UNSEEN
    partial = case.reference.with_suffix(".partial.tif")
    with rasterio.open(partial, "w", **_profile(case, 1, "uint8")) as target:
        target.write(out, 1)
    partial.rename(case.reference)
