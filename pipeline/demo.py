"""The demo: a simulated province with known truth, run like any region and held against its truth. All simulated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.simulate import Province, ProvinceParams

ROOT = Path(__file__).parents[1]
SIZES = {"small": 1200, "scene": 7600}


@dataclass(frozen=True)
class Comparison:
    """Predicted against true drivers of one product.

    Attributes:
        true_ha: true area by class name, hectares, of all simulated loss.
        predicted_ha: area of the events given that class.
        right: events classified right.
        classified: events with status classified.
        events: all events.
        table: event counts [true class, predicted class] of events with imagery.
    """

    true_ha: dict[str, float]
    predicted_ha: dict[str, float]
    right: int
    classified: int
    events: int
    table: np.ndarray


def prepare_demo(out: Path, size: str, seed: int) -> tuple[RunConfig, Province]:
    """Simulate the province of a demo (or find it) and return its configuration.

    Raises:
        ConfigError: for a size that is not small or scene.
    """
    from pipeline.config_sections import GridSpec
    from pipeline.simulate import ProvinceParams

    if size not in SIZES:
        raise ConfigError(f"--size {size}: choose {' or '.join(SIZES)}")
    dates = 4 if size == "small" else 3
    province = write_province(out / "province", ProvinceParams(size=SIZES[size], seed=seed, dates=dates, before=1))
    # blocks of the small one are small, so that it has some; what they share at their borders is computed twice
    changes = () if size == "small" else (f"grid.block={GridSpec().block}",)
    return province_config(ROOT / "configs" / "demo.yaml", province, out / "product", *changes), province


def write_province(folder: Path, params: ProvinceParams) -> Province:
    """Simulate a province, or return the one already there if it was made from the same parameters."""
    from pipeline.simulate import simulate

    wanted = json.loads(json.dumps(params.record()))
    truth = folder / "truth.json"
    if truth.is_file() and json.loads(truth.read_text(encoding="utf-8"))["params"] == wanted:
        return _found(folder)
    return simulate(folder, params)


def _found(folder: Path) -> Province:
    from pipeline.simulate import Province

    return Province(
        folder=folder,
        scenes=folder / "scenes",
        loss=next((folder / "loss").glob("*.tif")),
        admin=folder / "admin.gpkg",
        aoi=folder / "aoi.gpkg",
        truth=folder / "truth.tif",
        truth_year=folder / "truth_year.tif",
        truth_table=folder / "truth.json",
    )


def province_config(config: Path, province: Province, product: Path, *overrides: str) -> RunConfig:
    """The demo's configuration with its paths set to a province's files."""
    from pipeline.config import load_config

    paths = {
        "region.aoi": province.aoi,
        "region.units.path": province.admin,
        "loss.source": province.loss,
        "imagery.source": province.scenes,
        "output.dir": product,
    }
    return load_config(
        config, (*(f"{key}={json.dumps(str(path.resolve()))}" for key, path in paths.items()), *overrides)
    )


def compare(product: Path, province: Province) -> Comparison:
    """Hold a product's events against the truth of the province they were found in."""
    import geopandas as gpd

    events = gpd.read_file(product / "drivers.gpkg", layer="events", engine="pyogrio")
    names = FOREST_LOSS_DRIVERS.names
    truth = true_classes(events, province)
    seen = events["driver"].notna().to_numpy() & (truth >= 0)
    predicted = np.array([names.index(d) if d in names else -1 for d in events["driver"]])
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, (truth[seen], predicted[seen]), 1)
    classified = (events["status"] == "classified").to_numpy()
    areas = events.groupby("driver")["area_ha"].sum()
    record = json.loads(province.truth_table.read_text(encoding="utf-8"))
    return Comparison(
        true_ha={name: float(record["area_ha_by_driver"].get(name, 0.0)) for name in names},
        predicted_ha={name: float(areas.get(name, 0.0)) for name in names},
        right=int((classified & (truth == predicted)).sum()),
        classified=int(classified.sum()),
        events=len(events),
        table=table,
    )


def true_classes(events: Any, province: Province) -> np.ndarray:
    """True class index of each event: that of most of its pixels in the truth raster, -1 where it has none."""
    import rasterio
    import rasterio.features

    with rasterio.open(province.truth) as raster:
        shapes = events.to_crs(raster.crs).geometry
        truth = raster.read(1)
        pairs = ((shape, k + 1) for k, shape in enumerate(shapes))
        owner = rasterio.features.rasterize(pairs, out_shape=truth.shape, transform=raster.transform, dtype="int32")
    inside = (owner > 0) & (truth != NO_DATA)
    counts = np.zeros((len(events), len(FOREST_LOSS_DRIVERS)), np.int64)
    index = {code: k for k, code in enumerate(FOREST_LOSS_DRIVERS.codes)}
    np.add.at(counts, (owner[inside] - 1, np.vectorize(index.__getitem__, otypes=[np.int64])(truth[inside])), 1)
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)


def render_comparison(result: Comparison) -> str:
    """The comparison as text for a terminal."""
    lines = [
        "",
        "simulated province: predicted against true area",
        f"{'driver':<36}{'true ha':>12}{'predicted ha':>14}{'differs':>10}",
    ]
    for item in FOREST_LOSS_DRIVERS:
        true, predicted = result.true_ha[item.name], result.predicted_ha[item.name]
        differs = f"{predicted / true - 1:+.1%}" if true else "-"
        lines.append(f"{item.title:<36}{true:>12,.1f}{predicted:>14,.1f}{differs:>10}")
    share = result.right / result.classified if result.classified else float("nan")
    lines.append(
        f"{result.right} of {result.classified} classified events are right ({share:.1%}); {result.events} events"
    )
    return "\n".join(lines)
