"""What patch size and stride cost and bring: provinces no training saw, run with one lattice after the other.

    python -m benchmarks.lattice [--seeds 20261 20262 20263]

Loss is scattered, so most large patches hold some: a larger patch shows the model more land around a loss and computes
more that nobody asks for; with a smaller stride every pixel lies deeper inside its patch. One JSON line for each
lattice: patches and megapixels of them, seconds inside the model, and the share of classified events whose driver is
right, with its 95 % interval (Wilson) as if events were independent, and how many events are right with this lattice
only, and with the model's own only (McNemar's pairs). The model was trained and calibrated with patches
of 256 and a stride of 192, which favours those. Everything is simulated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import yaml

from pipeline.demo import ROOT, province_config, true_classes, write_province
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.simulate import Province, ProvinceParams
from pipeline.training.calibrate import wilson

LATTICES = ((128, 96), (256, 256), (256, 224), (256, 192), (256, 128), (512, 384))
"""Patch and stride in pixels."""
OWN = (256, 192)
"""Those that the model was trained with."""
MODEL = ROOT / "models" / "fpn-efficientnet-b2"


def model_for(out: Path, patch: int, stride: int) -> Path:
    """The shipped model under a card that says another patch: a network of convolutions takes any."""
    folder = out / f"model-{patch}-{stride}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(MODEL, folder)
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    card["patch"] |= {"size": patch, "stride": stride}
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Judged:
    """A lattice over all provinces: patches, seconds inside the model, and whether each classified event is right."""

    patches: int
    forward_s: float
    right: dict[tuple[int, str], bool]


def run_lattice(out: Path, province: Province, patch: int, stride: int) -> tuple[dict[str, Any], dict[str, bool]]:
    """Run a province with a lattice: its run.json, and by id whether each classified event is right.

    Raises CalledProcessError where the run fails.
    """
    product = out / "product"
    for folder in (product, product.with_name("product.work")):
        shutil.rmtree(folder, ignore_errors=True)
    changes = (f"model={model_for(out, patch, stride)}", f"tiling.patch={patch}", f"tiling.overlap={patch - stride}")
    config = province_config(ROOT / "configs" / "demo.yaml", province, product, *changes)
    path = out / "lattice.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--no-prefect"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = gpd.read_file(product / "drivers.gpkg", layer="events", engine="pyogrio")
    # -1 where there is no truth
    names = np.array([*FOREST_LOSS_DRIVERS.names, ""])[true_classes(events, province)]
    classified = events["status"] == "classified"
    right = dict(zip(events["event_id"][classified], (events["driver"] == names)[classified], strict=True))
    return json.loads((product / "run.json").read_text(encoding="utf-8")), right


def judged(out: Path, provinces: list[Province], patch: int, stride: int) -> Judged:
    """Run all provinces with a lattice."""
    runs, results = zip(*(run_lattice(out, province, patch, stride) for province in provinces), strict=True)
    return Judged(
        sum(run["timings"]["patches"] for run in runs),
        sum(run["timings"]["forward_seconds"] for run in runs),
        {(k, event): bool(good) for k, result in enumerate(results) for event, good in result.items()},
    )


def line(patch: int, stride: int, found: Judged, own: Judged) -> dict[str, Any]:
    """One line of the table: a lattice beside the model's own."""
    right, classified = sum(found.right.values()), len(found.right)
    both = found.right.keys() & own.right.keys()
    return {
        "patch": patch, "stride": stride, "patches": found.patches,
        "model_mpx": round(found.patches * patch**2 / 1e6, 1), "forward_s": round(found.forward_s, 1),
        "right": right, "classified": classified, "share_right": round(right / classified, 4),
        "interval": [round(end, 4) for end in wilson(right, classified)],
        "right_here_only": sum(found.right[key] and not own.right[key] for key in both),
        "right_with_own_only": sum(own.right[key] and not found.right[key] for key in both),
    }  # fmt: skip


def main() -> None:
    """Print a line for each lattice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lattice")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20261, 20262, 20263])
    args = parser.parse_args()
    provinces = [
        write_province(args.out / f"province-{seed}", ProvinceParams(size=1200, seed=seed, dates=4, before=1))
        for seed in args.seeds
    ]
    own = judged(args.out, provinces, *OWN)
    for patch, stride in LATTICES:
        found = own if (patch, stride) == OWN else judged(args.out, provinces, patch, stride)
        print(json.dumps(line(patch, stride, found, own)), flush=True)


if __name__ == "__main__":
    main()
