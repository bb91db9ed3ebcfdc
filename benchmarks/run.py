"""`make bench`: speed and memory of the main job on simulated provinces.

For each loss cover: Mpx/s end to end (model pixels over wall time of the run), the share of block time inside the
model's forward pass, and the peak memory of a worker. All imagery is simulated; the arithmetic is the real one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from flows.runtime import open_pool
from pipeline.demo import ROOT, province_config, write_province
from pipeline.graph import run_region
from pipeline.request import Request
from pipeline.simulate import ProvinceParams


def measure(out: Path, size: int, share: float, workers: int, block: int | None = None) -> dict[str, object]:
    """Run one province from its scenes to its product and return the figures."""
    params = ProvinceParams(size=size, seed=7, loss_share=share, dates=3)
    province = write_province(out / f"province-{size}-{share}", params)
    product = out / f"product-{size}-{share}"
    for folder in (product, product.with_name(product.name + ".work")):
        shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"compute.workers={workers}", *([f"grid.block={block}"] if block else [])]
    config = province_config(ROOT / "configs" / "demo.yaml", province, product, *overrides)
    started = time.perf_counter()
    outcome = run_region(Request(config, pool=open_pool))
    wall = time.perf_counter() - started
    timings = json.loads((outcome.product / "run.json").read_text(encoding="utf-8"))["timings"]
    megapixels = outcome.counts["patches"] * 256**2 / 1e6
    return {
        "size": size,
        "loss_share": share,
        "workers": workers,
        "block": config.grid.block,
        "blocks": outcome.counts["blocks"],
        "patches": outcome.counts["patches"],
        "model_mpx": round(megapixels, 1),
        "scene_mpx": round(size**2 / 1e6, 1),
        "wall_s": round(wall, 1),
        "mpx_per_s_end_to_end": round(megapixels / wall, 3),
        "block_s": timings["block_seconds"],
        "forward_share_of_block_time": timings["forward_share"],
        "worker_peak_rss_mb": timings["worker_peak_rss_mb"],
    }


def main() -> None:
    """Measure and print one JSON line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument("--size", type=int, nargs="+", default=[2000])
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.30])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, help="pixels a side of a block; default that of the demo")
    args = parser.parse_args()
    for size in args.size:
        for share in args.share:
            print(json.dumps(measure(args.out, size, share, args.workers, args.block)), flush=True)


if __name__ == "__main__":
    main()
