"""What patch size and stride cost and bring: provinces no training saw, run with one lattice after the other.

    python -m benchmarks.lattice [--seeds 20261 20262 20263]

Loss is scattered, so most large patches hold some: a larger patch shows the model more land around a loss and computes
more that nobody asks for; with a smaller stride every pixel lies deeper inside its patch. One JSON line for each
lattice: patches and megapixels of them, seconds inside the model, and the share of classified events whose driver is
right, with its 95 % interval (Wilson) as if events were independent. The model was trained and calibrated with patches
of 256 and a stride of 192, which favours those. Everything is simulated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.demo import ROOT, Comparison, compare, province_config, write_province
from pipeline.simulate import Province, ProvinceParams
from pipeline.training.calibrate import wilson

LATTICES = ((128, 96), (256, 256), (256, 224), (256, 192), (256, 128), (512, 384))
"""Patch and stride in pixels."""
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


def run_lattice(out: Path, province: Province, patch: int, stride: int) -> tuple[dict[str, Any], Comparison]:
    """Run a province with a lattice: its run.json, and its events against the truth; raises CalledProcessError."""
    product = out / "product"
    for folder in (product, product.with_name("product.work")):
        shutil.rmtree(folder, ignore_errors=True)
    changes = (f"model={model_for(out, patch, stride)}", f"tiling.patch={patch}", f"tiling.overlap={patch - stride}")
    config = province_config(ROOT / "configs" / "demo.yaml", province, product, *changes)
    path = out / "lattice.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    line = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--no-prefect"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((product / "run.json").read_text(encoding="utf-8")), compare(product, province)


def judged(out: Path, provinces: list[Province], patch: int, stride: int) -> dict[str, Any]:
    """One line of the table: a lattice over all provinces."""
    runs, results = zip(*(run_lattice(out, province, patch, stride) for province in provinces), strict=True)
    patches = sum(run["counts"]["patches"] for run in runs)
    right, classified = sum(r.right for r in results), sum(r.classified for r in results)
    return {
        "patch": patch, "stride": stride, "patches": patches, "model_mpx": round(patches * patch**2 / 1e6, 1),
        "forward_s": round(sum(run["timings"]["forward_seconds"] for run in runs), 1),
        "right": right, "classified": classified, "events": sum(r.events for r in results),
        "share_right": round(right / classified, 4), "interval": [round(end, 4) for end in wilson(right, classified)],
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
    for patch, stride in LATTICES:
        print(json.dumps(judged(args.out, provinces, patch, stride)), flush=True)


if __name__ == "__main__":
    main()
