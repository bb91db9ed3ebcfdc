"""What the width of the FPN's decoder costs and brings: decoders of several widths on the shipped model's backbone.

    python -m pipeline.training.demo_model                          # its data, simulated provinces, once
    python -m benchmarks.necks [--steps 300] [--rounds 5]

Each width is trained with the same data, seed and steps: neck and head from random weights, on a backbone that stays
as it is shipped (it was trained with a decoder of 128 and 64 channels). Each is judged on events of provinces that no
training saw, and timed with ONNX Runtime on one core, in turns. A training that is done is not repeated. It tells what
a decoder can make of the same features, and nothing about real land: all of it is simulated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from benchmarks.engines import gflop_per_mpx, in_process
from benchmarks.methods import run_module
from pipeline.demo import ROOT

WIDTHS = ((256, 128), (128, 64), (64, 32))
"""Channels of the pyramid and of the segmentation branches; the first are those of the published FPN."""
BASE = ROOT / "configs" / "training" / "demo-model.yaml"
SHIPPED = ROOT / "models" / "fpn-efficientnet-b2"
_ENCODER = "backbone.encoder."


def backbone_weights(out: Path) -> Path:
    """A file of the shipped model's encoder, float32."""
    path = out / "backbone.safetensors"
    state = load_file(SHIPPED / "model.safetensors")
    own = {key.removeprefix(_ENCODER): value for key, value in state.items() if key.startswith(_ENCODER)}
    save_file({key: value.float() if value.is_floating_point() else value for key, value in own.items()}, path)
    return path


def configuration(package: Path, backbone: Path, width: tuple[int, int], steps: int) -> dict[str, Any]:
    """The demo model's training with another width on given weights, and paths that hold wherever it is written."""
    tree: dict[str, Any] = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    tree["dataset"]["path"] = [str((BASE.parent / path).resolve()) for path in tree["dataset"]["path"]]
    tree["architecture"]["backbone"]["settings"] = {"weights": str(backbone)}
    pyramid, segmentation = width
    tree["architecture"]["neck"]["settings"] = {"pyramid_channels": pyramid, "segmentation_channels": segmentation}
    # small crops first are for a backbone that has learnt nothing yet
    tree["training"] |= {
        "steps": steps, "minutes": 24 * 60, "validations": 4, "patience": 4, "threads": 1, "freeze": "backbone",
        "early": None,
    }  # fmt: skip
    tree["output"] |= {"package": str(package), "name": package.name}
    return tree


def trained(out: Path, width: tuple[int, int], steps: int) -> Path:
    """The package of a width, trained and judged if it is not there."""
    package = out / f"fpn-{width[0]}-{width[1]}-{steps}-steps"
    if not (package / "judgement.json").is_file():
        out.mkdir(parents=True, exist_ok=True)
        config = out / f"{package.name}.yaml"
        tree = configuration(package, backbone_weights(out), width, steps)
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        run_module("pipeline.cli", "train", str(config))
    return package


def speeds(packages: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Megapixels a second of one core for each package: median, lowest and highest, measured in turns."""
    found: list[list[float]] = [[] for _ in packages]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for own, package in zip(found, packages, strict=True):
                told = in_process("--model", package, "--out", Path(folder) / "x.npy", "--case", "onnx", "fp32")
                own.append(told["mpx_per_core_s"])
    return [
        {"mpx_per_core_s": round(statistics.median(own), 3), "lowest_highest": [round(min(own), 3), round(max(own), 3)]}
        for own in found
    ]


def main() -> None:
    """Train what is not there, print a JSON line for each width, then the comparison of their judgements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "necks")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    # the cheapest first
    packages = [trained(args.out, width, args.steps) for width in WIDTHS[::-1]][::-1]
    for width, package, speed in zip(WIDTHS, packages, speeds(packages, args.rounds), strict=True):
        print(json.dumps({"channels": width, "gflop_per_mpx": round(gflop_per_mpx(package), 1), **speed}), flush=True)
    run_module("pipeline.cli", "evaluate", *(w for p in packages for w in ("--compare", str(p / "judgement.json"))))


if __name__ == "__main__":
    main()
