"""Data for the model that ships with the project, simulated provinces only: `python -m pipeline.training.demo_model`.

Then `clearcause train configs/training/demo-model.yaml` trains it. It shows that the whole of the pipeline works and
proves nothing about the real world; its card says so. Provinces of separate seeds serve training, validation (and
calibration) and test; the demo runs on yet another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipeline.demo import ROOT, province_config, true_classes, write_province
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.plan import EVENTS_FILE
from pipeline.request import Request
from pipeline.simulate import Province, ProvinceParams
from pipeline.steps import plan_run
from pipeline.training.datasets.write import WriteOptions, write_dataset

SEEDS = {"train": tuple(range(101, 109)), "val": (201, 301), "test": (401, 402)}
_LICENCE = "Apache-2.0; simulated, no satellite saw this land"


def province(scratch: Path, seed: int, size: int) -> Province:
    """Write (or find) the province of a seed; share of loss and cloud vary with the seed, as provinces do."""
    rng = np.random.default_rng(seed)
    params = ProvinceParams(
        size=size,
        seed=seed,
        loss_share=round(float(rng.uniform(0.06, 0.16)), 3),
        cloud=round(float(rng.uniform(0.05, 0.3)), 2),
    )
    return write_province(scratch / f"province-{seed}", params)


def province_dataset(scratch: Path, seed: int, split: str, size: int) -> Path:
    """Write the data set of a province: the events that a run plans, their true drivers, the images it would make."""
    import geopandas as gpd

    folder = scratch / f"data-{seed}"
    if folder.is_dir():
        return folder
    source = province(scratch, seed, size)
    config = province_config(ROOT / "configs" / "demo.yaml", source, scratch / f"run-{seed}")
    plan_run(Request(config))
    events = gpd.read_parquet(config.work / EVENTS_FILE)
    truth = true_classes(events, source)
    names = np.array([*FOREST_LOSS_DRIVERS.names, None], dtype=object)
    corrected = events[["event_id", "loss_year", "geometry"]].assign(driver=names[truth], split=split)
    # provinces lie at the same place, so their events would have the same names
    corrected["event_id"] = f"province-{seed}-" + corrected["event_id"]
    layer = scratch / f"events-{seed}.gpkg"
    corrected.to_file(layer, layer="events", engine="pyogrio")
    write_dataset(config, layer, folder, WriteOptions(licence=_LICENCE, simulated=True))
    return folder


def main() -> None:
    """Simulate the provinces and write their data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=ROOT / "out" / "demo-model", help="folder of the provinces")
    parser.add_argument("--size", type=int, default=1000, help="pixels a side of a province")
    args = parser.parse_args()
    for split, seeds in SEEDS.items():
        for seed in seeds:
            print(f"{split}: {province_dataset(args.scratch, seed, split, args.size)}", flush=True)


if __name__ == "__main__":
    main()
