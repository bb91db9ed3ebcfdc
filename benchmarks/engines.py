"""Engines on this machine's CPU, one core each: speed, size, and how far they agree with torch in float32.

    python -m benchmarks.engines [--model models/fpn-efficientnet-b2] [--rounds 5] [--patches 8]

One JSON line for each engine and precision, and one for the matrix product of numpy, which no engine can beat by much.
Each engine runs in a process of its own, in turns, so that what else the machine does falls on all of them alike:
figures are medians over the rounds. Patches are drawn as smooth fields around the card's means.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.blocks import peak_rss_mb
from pipeline.demo import ROOT
from pipeline.errors import ModelError
from pipeline.models.agreement import compare_logits
from pipeline.models.card import ModelCard, read_card

CASES = (("torch", "fp32"), ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "fp16"))
SINGLE = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
GEMM = "sgemm"


def drawn_patches(card: ModelCard, count: int) -> np.ndarray:
    """Reflectance [count, bands, size, size], float32: smooth fields with fine grain around the card's means."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    shape = (count, len(card.bands), card.patch.size, card.patch.size)
    smooth = gaussian_filter(rng.normal(size=shape), (0, 0, 8, 8))
    fields = smooth / smooth.std() + 0.3 * rng.normal(size=shape)
    mean, std = (np.asarray(values).reshape(1, -1, 1, 1) for values in (card.scaling.mean, card.scaling.std))
    return np.asarray(mean + std * fields, np.float32)


def measure_engine(model: Path, engine: Any, precision: Any, patches: int, out: Path) -> dict[str, float]:
    """Open an engine and time it on one core; its logits go to `out`."""
    from pipeline.models.engines import open_segmenter

    opened = time.perf_counter()
    segmenter = open_segmenter(model, engine, "cpu", precision)
    opened = time.perf_counter() - opened
    images = drawn_patches(segmenter.card, patches)
    # the first one also makes room
    segmenter.logits(images[:1])
    wall, cpu = time.perf_counter(), time.process_time()
    logits = np.concatenate([segmenter.logits(images[k : k + 1]) for k in range(patches)])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    np.save(out, logits)
    megapixels = patches * images.shape[2] * images.shape[3] / 1e6
    return {"mpx_per_core_s": megapixels / cpu, "mpx_per_s": megapixels / wall, "open_s": opened, "rss": peak_rss_mb()}


def measure_gemm() -> dict[str, float]:
    """GFLOP a second of numpy's float32 matrix product on one core."""
    side = 2048
    a, b = (np.random.default_rng(k).normal(size=(side, side)).astype(np.float32) for k in (0, 1))
    a @ b
    cpu = time.process_time()
    for _ in range(4):
        a @ b
    return {"gflop_per_core_s": 4 * 2 * side**3 / 1e9 / (time.process_time() - cpu)}


def in_process(*arguments: object) -> dict[str, float]:
    """One measurement in a process of its own; raises RuntimeError with what it said where it failed."""
    line = [sys.executable, "-m", "benchmarks.engines", *map(str, arguments)]
    done = subprocess.run(line, env={**os.environ, **SINGLE}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return dict(json.loads(done.stdout))


def gflop_per_mpx(model: Path) -> float:
    """What the network of a package asks for, GFLOP for a megapixel."""
    from pipeline.models.describe import count_flop
    from pipeline.models.package import load_network
    from pipeline.models.store import load_package

    package = load_package(model)
    side = package.card.patch.size
    return count_flop(load_network(package), side) / 1e9 / (side**2 / 1e6)


def compare_all(model: Path, rounds: int, patches: int) -> None:
    """Measure every case in turns and print its medians."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    faults: dict[tuple[str, str], str] = {}
    gemm: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {case: Path(folder) / f"{'-'.join(case)}.npy" for case in CASES}
        for _ in range(rounds):
            gemm.append(in_process("--case", GEMM, "-")["gflop_per_core_s"])
            for case in CASES:
                try:
                    told = in_process("--model", model, "--patches", patches, "--out", files[case], "--case", *case)
                    found.setdefault(case, []).append(told)
                except RuntimeError as error:
                    faults[case] = str(error)
        flop, card = gflop_per_mpx(model), read_card(model)
        peak = statistics.median(gemm)
        print(json.dumps({"engine": GEMM, "gflop_per_core_s": round(peak, 1)}), flush=True)
        reference = np.load(files[CASES[0]])
        for case in CASES:
            if case in faults:
                print(json.dumps({"engine": case[0], "precision": case[1], "fault": faults[case]}))
                continue
            middle = {key: statistics.median(one[key] for one in found[case]) for key in found[case][0]}
            speed = middle["mpx_per_core_s"]
            told = {
                "engine": case[0], "precision": case[1], "mpx_per_core_s": round(speed, 3),
                "lowest_highest": [round(f(one["mpx_per_core_s"] for one in found[case]), 3) for f in (min, max)],
                "gflop_per_core_s": round(speed * flop, 1), "share_of_sgemm": round(speed * flop / peak, 2),
                "open_s": round(middle["open_s"], 1), "rss_mb": round(middle["rss"]),
                **vars(compare_logits(card, np.load(files[case]), reference)),
            }  # fmt: skip
            print(json.dumps(told), flush=True)


def main() -> None:
    """Compare all engines, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "fpn-efficientnet-b2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=2, metavar=("ENGINE", "PRECISION"), help="only this one, in this process")
    args = parser.parse_args()
    if not args.case:
        compare_all(args.model, args.rounds, args.patches)
        return
    try:
        single = args.case[0] == GEMM
        print(json.dumps(measure_gemm() if single else measure_engine(args.model, *args.case, args.patches, args.out)))
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
