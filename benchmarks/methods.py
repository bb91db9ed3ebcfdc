"""`make compare`: the method's parts against each other, on a simulated archive in ForestNet's format.

Rows: random forests on visible bands, and with auxiliary predictors; three networks; then, on the last of them, scene
data augmentation, land-cover pre-training and late fusion with auxiliary predictors, one after the other. Several seeds
each. Everything is simulated: the table shows that the comparison works, not which method is better on real land.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SMALL_FPN = {"name": "fpn", "settings": {"pyramid_channels": 64, "segmentation_channels": 32}}
NETWORKS = {
    "U-Net, ResNet-18": {
        "backbone": {"name": "resnet18"},
        "neck": {"name": "unet", "settings": {"channels": [128, 64, 32, 16, 16]}},
    },
    "DeepLabV3+, ResNet-18": {"backbone": {"name": "resnet18"}, "neck": {"name": "deeplabv3plus"}},
    "FPN, EfficientNet-B0": {"backbone": {"name": "efficientnet-b0"}, "neck": SMALL_FPN},
}
"""Small, so that eighteen of them train on a CPU; backbones start from random weights."""


def rows(archive: Path) -> dict[str, dict[str, Any]]:
    """Return row -> what it changes in the configuration; the last three build on the last network."""
    names = list(NETWORKS)
    out: dict[str, dict[str, Any]] = {name: {"architecture": NETWORKS[name]} for name in names}
    sda = {"architecture": NETWORKS[names[-1]], "training": {"scenes": "random"}}
    cover = {"image": str(archive / "landcover/composite.tif"), "classes": str(archive / "landcover/classes.tif")}
    pretrained = {**sda, "pretraining": {**cover, "steps": 60}}
    out["+ SDA"] = sda
    out["+ pre-training"] = pretrained
    out["+ auxiliary"] = {**pretrained, "fusion": {"enabled": True, "auxiliary": "all"}}
    return out


def configuration(archive: Path, package: Path, seed: int, steps: int, change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole configuration of one training."""
    training = {
        "steps": steps, "validations": 4, "patience": 4, "crop": 96, "batch": 12, "lr": 0.002, "average": 0.98,
        "threads": 1, **change.get("training", {}),
    }  # fmt: skip
    return {
        # one archive for all: it is searched for leaks by the baselines
        "dataset": {"path": str(archive), "resolution": 30, "search_leaks": False},
        "patch": {"size": 96, "stride": 64},
        "seed": seed,
        "output": {"package": str(package), "name": package.parent.name},
        **{key: value for key, value in change.items() if key != "training"},
        "training": training,
    }


def main() -> None:
    """Write the archive where it is not there, train and judge every row and seed that is not done, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "compare")
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()
    archive = args.out / "archive"
    if not archive.is_dir():
        run_module("pipeline.simulate.archive", str(archive), "--events", str(args.events))
    seeds = range(args.seeds)
    judged = [_forest(archive, args.out, features, seed) for features in ("visible", "visible+aux") for seed in seeds]
    packages: dict[str, list[Path]] = {}
    # seeds outside: a table of fewer seeds is whole sooner
    for seed in seeds:
        for name, change in rows(archive).items():
            folder = f"{''.join(c if c.isalnum() else '-' for c in name).strip('-')}"
            package = args.out / folder / f"seed-{seed}"
            packages.setdefault(folder, []).append(package)
            if not (package / "judgement.json").is_file():
                package.parent.mkdir(parents=True, exist_ok=True)
                config = package.with_name(f"seed-{seed}.yaml")
                config.write_text(yaml.safe_dump(configuration(archive, package, seed, args.steps, change)))
                run_module("pipeline.cli", "train", str(config))
    judged += [package / "judgement.json" for own in packages.values() for package in own]
    run_module("pipeline.cli", "evaluate", *(word for path in judged for word in ("--compare", str(path))))


def _forest(archive: Path, out: Path, features: str, seed: int) -> Path:
    """Judge a random forest on the archive's published split."""
    path = out / f"forest-{features}-{seed}.json"
    if not path.is_file():
        command = [sys.executable, "-m", "pipeline.cli", "baseline", str(archive), "--features", features]
        command += ["--split", "published", "--seed", str(seed), "--json"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        # these features' own forest comes last, after the majority class and what needs less
        forest = json.loads(told.stdout)[-1]
        path.write_text(json.dumps(forest))
    return path


def run_module(module: str, *arguments: str) -> None:
    """Run a module of the project in a process of its own, and say so; raises CalledProcessError."""
    print(f"$ {module} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
