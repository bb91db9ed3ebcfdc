"""`make bench`: speed and memory of the main job on simulated provinces, and against another commit.

    python -m benchmarks.run                                       # 2,000 px, 1 % and 30 % loss, 2 workers
    python -m benchmarks.run --size 2000 4000 7600 --share 0.01 0.1 0.3 --workers 1 2
    python -m benchmarks.run --size 4000 7600 15000 --share 0.01 --dates 1  # does time grow as a line, and memory not?
    python -m benchmarks.run --against HEAD~20 --rounds 5          # both by turns: the ratio says what the code did

A case is a whole `clearcause run --no-prefect` in processes of its own, start-up included; with --prefect, the run has
its temporary Prefect server, too. One JSON line for each: seconds of the wall and of all cores, of each stage and of
blocks; megapixels of patches a second of the wall, of a core, and of blocks; the share of blocks' time inside the
model; peak memory of a worker, and of all processes; what they read. From three cases with as many
workers on, a line through their seconds over their patches: its slope, and R2. Lines are kept in
out/bench/results.jsonl. A machine is never the same twice, so a stored line is no ruler: `--against` runs the other
commit's code on the same provinces between the runs of this one, and prints medians of the ratio of each pair. All
imagery is simulated; the arithmetic is the real one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.measured import run_measured
from pipeline.demo import ROOT, province_config, write_province
from pipeline.simulate import ProvinceParams

RATIOS = ("wall_s", "cpu_s", "worker_peak_rss_mb", "peak_mb")


@dataclass(frozen=True)
class Case:
    """A simulated province of `size` pixels a side, the share of it that is loss, and how it is run."""

    size: int
    share: float
    workers: int
    block: int | None = None
    dates: int = 3
    prefect: bool = False


def prepared(out: Path, case: Case, name: str) -> Path:
    """The configuration file of a case, its product in a folder that is empty; the province is simulated once."""
    params = ProvinceParams(size=case.size, seed=7, loss_share=case.share, dates=case.dates)
    province = write_province(out / f"province-{case.size}-{case.share}-{case.dates}", params)
    product = out / f"product-{name}"
    for folder in (product, product.with_name(product.name + ".work")):
        shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"compute.workers={case.workers}", *([f"grid.block={case.block}"] if case.block else [])]
    config = province_config(ROOT / "configs" / "demo.yaml", province, product, *overrides)
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def measure(out: Path, case: Case, code: Path = ROOT) -> dict[str, Any]:
    """Run a case with the code of a checkout and return its figures; raises RuntimeError where the run failed."""
    config = prepared(out, case, "bench")
    state = {"PYTHONPATH": str(code), "CLEARCAUSE_STATE": str(out / "state")}
    line = [sys.executable, "-m", "pipeline.cli", "run", str(config), *([] if case.prefect else ["--no-prefect"])]
    used = run_measured(line, code, {**os.environ, **state}, out / "run.log")
    run = json.loads((out / "product-bench" / "run.json").read_text(encoding="utf-8"))
    timings, counts = run["timings"], run["counts"]
    megapixels, wall, cpu = timings["patches"] * 256**2 / 1e6, used.wall_s, used.cpu_s
    return {
        **vars(case), "blocks": counts["blocks"], "planned_patches": counts["patches"],
        "patches": timings["patches"],
        "scene_mpx": round(case.size**2 / 1e6, 1), "model_mpx": round(megapixels, 1),
        "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "stages": timings["stages"],
        "mpx_per_s": round(megapixels / wall, 3), "mpx_per_core_s": round(megapixels / cpu, 3),
        "mpx_per_s_in_blocks": round(megapixels / timings["block_seconds"], 3), "block_s": timings["block_seconds"],
        "forward_share_of_block_time": timings["forward_share"], "worker_peak_rss_mb": timings["worker_peak_rss_mb"],
        "peak_mb": round(used.peak_mb), "read_mb": round(used.read_mb),
    }  # fmt: skip


def keep(out: Path, told: dict[str, Any]) -> None:
    """Print a line and add it to the results, with the machine, the commit and the time."""
    print(json.dumps(told), flush=True)
    where = {"machine": platform.node(), "processor": platform.processor() or platform.machine()}
    stamp = {"commit": revision("HEAD"), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **where}
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**stamp, **told}) + "\n")


def revision(name: str) -> str:
    """The commit of a name, raises CalledProcessError for an unknown one."""
    line = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{name}^{{commit}}"]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def checked_out(out: Path, commit: str) -> Path:
    """The code of a commit in a folder of its own."""
    folder = out / f"code-{commit[:12]}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def compare(out: Path, case: Case, other: Path, rounds: int) -> dict[str, Any]:
    """Ratios of this code to another's, medians over pairs of runs that follow each other, with the extremes."""
    pairs = []
    for number in range(rounds):
        # who is first changes, so that a machine that warms up or tires favours nobody
        order = (other, ROOT) if number % 2 else (ROOT, other)
        found = {code: measure(out, case, code) for code in order}
        pairs.append({key: found[ROOT][key] / found[other][key] for key in RATIOS})
    told: dict[str, Any] = {**vars(case), "against": other.name.removeprefix("code-"), "rounds": rounds}
    for key in RATIOS:
        ratios = [pair[key] for pair in pairs]
        told[key] = {"ratio": round(statistics.median(ratios), 3), "of": [round(f(ratios), 3) for f in (min, max)]}
    return told


def fitted(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The line through the seconds of some cases over their patches, in the wall and in blocks, and how good it is."""
    patches = np.array([line["patches"] for line in lines], float)
    told: dict[str, Any] = {"fit_over": [int(count) for count in patches], "workers": lines[0]["workers"]}
    for key in ("wall_s", "block_s"):
        seconds = np.array([line[key] for line in lines], float)
        slope, start = np.polyfit(patches, seconds, 1)
        told[f"{key}_a_patch"], told[f"{key}_at_0"] = round(float(slope), 4), round(float(start), 1)
        told[f"{key}_r2"] = round(float(np.corrcoef(patches, seconds)[0, 1] ** 2), 4)
    return told


def main() -> None:
    """Measure every case, or compare it with another commit, and print one JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument("--size", type=int, nargs="+", default=[2000])
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.30])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--block", type=int, help="pixels a side of a block; default that of the demo")
    parser.add_argument("--dates", type=int, default=3, help="dates a year of the simulated archive")
    parser.add_argument("--prefect", action="store_true", help="with Prefect, as `clearcause run` does by default")
    parser.add_argument("--against", help="a commit whose code is run by turns with this one")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs, with --against")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    other = checked_out(args.out, revision(args.against)) if args.against else None
    found: dict[int, list[dict[str, Any]]] = {}
    for size, share, workers in itertools.product(args.size, args.share, args.workers):
        case = Case(size, share, workers, args.block, args.dates, args.prefect)
        told = compare(args.out, case, other, args.rounds) if other else measure(args.out, case)
        found.setdefault(workers, []).append(told)
        keep(args.out, told)
    for lines in found.values():
        if len(lines) > 2 and not other:
            keep(args.out, fitted(lines))


if __name__ == "__main__":
    main()
