"""Is the forecast true? Runs teach this machine's speeds, then others are predicted and held against what they took.

    python -m benchmarks.prediction --teach province:1200:0.01 --check province:1200:0.30 config:configs/manaus.yaml

A case is `province:SIDE:SHARE[:BLOCK]` (simulated, SHARE of it loss), `demo`, or `config:FILE`. Each is planned and run
by the program in processes of its own, as a user would; the forecast is what `clearcause plan` said before the run,
and the seconds are those of the whole `clearcause run`. The speeds lie in a folder of this benchmark's own, which
starts empty: what is checked was predicted from the taught runs, and with --learn from the checked ones before it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import load_config
from pipeline.costs.speeds import STATE_VARIABLE
from pipeline.demo import ROOT, prepare_demo, province_config, write_province
from pipeline.simulate import ProvinceParams

LIMIT = 0.3


@dataclass(frozen=True)
class Row:
    """A case: what was predicted before the run, and what it took."""

    case: str
    predicted: dict[str, Any]
    seconds: float
    timings: dict[str, Any]
    disk_bytes: int

    @property
    def off(self) -> float:
        """Share by which the prediction differs from the run."""
        return float(self.predicted["seconds"]) / self.seconds - 1


def prepared(case: str, out: Path) -> Path:
    """The configuration file of a case, its product below `out`; files of a simulated province are kept."""
    kind, _, rest = case.partition(":")
    folder = out / case.replace(":", "-").replace("/", "-")
    if kind == "config":
        config = load_config(ROOT / rest, (f"output.dir={folder / 'product'}",))
    elif kind == "demo":
        config, _ = prepare_demo(folder, "small", 20261)
    else:
        side, share, *block = rest.split(":")
        params = ProvinceParams(size=int(side), seed=7, loss_share=float(share), dates=3)
        province = write_province(folder / "province", params)
        changes = [f"grid.block={block[0]}"] if block else []
        config = province_config(ROOT / "configs" / "demo.yaml", province, folder / "product", *changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


def program(state: Path, *arguments: object) -> str:
    """Call the program; its own words on an error."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    environment = {**os.environ, STATE_VARIABLE: str(state)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def measure(case: str, out: Path, state: Path, options: list[str]) -> Row:
    """Plan a case, run it, and say both."""
    config = prepared(case, out)
    product = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["output"]["dir"])
    for folder in (product, product.with_name(product.name + ".work")):
        shutil.rmtree(folder, ignore_errors=True)
    predicted = json.loads(program(state, "plan", config, "--json", *options))
    started = time.perf_counter()
    program(state, "run", config, "--json", *options)
    seconds = time.perf_counter() - started
    timings = json.loads((product / "run.json").read_text(encoding="utf-8"))["timings"]
    folders = (product, product.with_name(product.name + ".work"))
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    return Row(case, predicted, seconds, timings, size)


def told(row: Row) -> str:
    """A row of the table."""
    expected, worker = row.predicted, row.timings["worker_peak_rss_mb"]
    span = f"{expected['seconds_low']:,.0f} to {expected['seconds_high']:,.0f}"
    return (
        f"{row.case:<32}{expected['seconds']:>9,.0f}{span:>16}{row.seconds:>8,.0f}{row.off:>+8.0%}"
        f"{expected['worker_mb']:>10,}{worker:>8,}{expected['disk_bytes'] / 1e6:>9,.1f}{row.disk_bytes / 1e6:>8,.1f}"
    )


def main() -> None:
    """Teach, then check; exit code 1 where a checked run was off by more than 30 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "prediction")
    parser.add_argument("--teach", nargs="*", default=["province:1200:0.01"])
    parser.add_argument("--check", nargs="*", default=["demo", "province:2000:0.30", "config:configs/manaus.yaml"])
    parser.add_argument("--learn", action="store_true", help="checked runs teach those after them")
    parser.add_argument("--no-prefect", action="store_true", help="run the stages without an orchestrator")
    parser.add_argument("--executor", help="instead of the configuration's")
    parser.add_argument("--stages", action="store_true", help="also print each stage, predicted and taken")
    args = parser.parse_args()
    options = ["--no-prefect"] if args.no_prefect else []
    options += ["--executor", args.executor] if args.executor else []
    args.out = args.out.resolve()
    state = args.out / "speeds"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    head = f"{'case':<32}{'predicted':>9}{'range':>16}{'took':>8}{'off':>8}"
    print(f"{head}{'MB told':>10}{'took':>8}{'disk MB':>9}{'took':>8}")
    rows = []
    for checked, case in [*((False, c) for c in args.teach), *((True, c) for c in args.check)]:
        kept = args.out / "before"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(state, kept)
        row = measure(case, args.out, state, options)
        print(told(row) + ("" if checked else "  (teaches)"), flush=True)
        if args.stages:
            print(f"  predicted {row.predicted['stages']}\n  took {row.timings['stages']}", flush=True)
        if checked:
            rows.append(row)
            if not args.learn:
                shutil.rmtree(state)
                shutil.copytree(kept, state)
    worst = max((abs(row.off) for row in rows), default=0.0)
    print(f"off by {worst:.0%} at most in {len(rows)} checked runs; the limit is {LIMIT:.0%}")
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
