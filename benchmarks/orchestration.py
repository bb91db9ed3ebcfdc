"""What orchestration costs: blocks that do nothing, through the ledger and Dask; plans and reruns of many blocks.

    python -m benchmarks.orchestration --blocks 3000 --planned 50000

Seconds a block of overhead on a local cluster, the peak memory of the process that holds client and scheduler, a rerun
of finished blocks (names of checkpoints found on disk), and the size of a plan with the seconds to write and read it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from flows.runtime import open_pool
from pipeline.blocks import META, BlockRecord, BlockTask, checkpoint_name
from pipeline.catalog.scene import Asset, Scene
from pipeline.config import RunConfig, parse_config
from pipeline.demo import ROOT
from pipeline.grid import Block, RunGrid
from pipeline.lattice import PatchLayout
from pipeline.ledger import drive
from pipeline.plan import PLAN_FILE, Plan, PlannedBlock, read_plan
from pipeline.request import Request
from pipeline.steps import predict_blocks

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22", "qa_pixel")
SCENES_OF_A_BLOCK, BLOCKS_OF_A_SCENE = 24, 30


def nothing(task: BlockTask) -> BlockRecord:
    """A block that is done at once."""
    return BlockRecord(task.block, "done", task.block)


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def invented_plan(blocks: int, work: Path) -> Plan:
    """A plan with as many blocks as asked for, each with two loss years of scenes, over a country's worth of scenes."""
    side = int(blocks**0.5) + 1
    count = max(blocks * SCENES_OF_A_BLOCK // BLOCKS_OF_A_SCENE // 8, SCENES_OF_A_BLOCK)
    outline = "POLYGON ((101.0 0.5, 102.7 0.1, 102.3 -1.6, 100.6 -1.2, 101.0 0.5))"
    when = datetime(2022, 7, 1, tzinfo=UTC)
    scenes = {}
    for k in range(count):
        name = f"LC09_L2SP_{k % 233:03}{k // 233:03}_20220701_20220703_02_T1"
        assets = {band: Asset(f"https://example.org/collection02/{name}_{band}.TIF") for band in BANDS}
        scenes[name] = Scene(name, when, "landsat-9", 12.5, k % 233, k // 233, outline, assets)
    names = list(scenes)
    planned = []
    for k in range(blocks):
        row, col = divmod(k, side)
        first = k * 7 % (count - SCENES_OF_A_BLOCK + 1)
        ids = tuple(names[first : first + SCENES_OF_A_BLOCK])
        block = Block(f"r{row:04}c{col:04}", row * 2048, col * 2048, 2048, 2048)
        planned.append(PlannedBlock(block, {2021: ids[:12], 2022: ids[12:]}, 120, 40_000, 150))
    plan = Plan(
        inputs="invented", region="country", years=(2021, 2022), aoi=outline,
        grid=RunGrid("EPSG:32647", 30.0, 0.0, 0.0, side * 2048, side * 2048, 2048),
        layout=PatchLayout("grid", 256, 192), model="invented", bands=BANDS[:6], event_count=blocks * 120,
        event_ha=1.0, below_count=0, below_ha=0.0, loss="invented", scenes=scenes, refused=(), blocks=tuple(planned),
        warnings=(), cache=str(work / "cache"),
    )  # fmt: skip
    plan.save(work)
    return plan


def config_of(folder: Path, workers: int) -> RunConfig:
    """A configuration whose pool is a local cluster."""
    tree = {
        "region": {"name": "bench", "aoi": [0, 0, 1, 1]}, "loss": {"source": "none.tif", "years": [2021]},
        "imagery": {"source": "planetary-computer"}, "model": str(ROOT / "models" / "fpn-efficientnet-b2"),
        "compute": {"executor": "local", "workers": workers}, "output": {"dir": str(folder / "product")},
    }  # fmt: skip
    made = parse_config(tree, folder, "benchmark")
    made.work.mkdir(parents=True, exist_ok=True)
    return made


def measure_blocks(config: RunConfig, blocks: int) -> dict[str, object]:
    """Drive blocks that do nothing through ledger and Dask."""
    tasks = [BlockTask(config.work, "", f"b{k:06}", config.model) for k in range(blocks)]
    opened = time.perf_counter()
    with open_pool(config) as pool:
        before, started = peak_mb(), time.perf_counter()
        ledger = drive(tasks, nothing, pool)
        seconds = time.perf_counter() - started
    return {
        "blocks": len(ledger.records), "workers": config.compute.workers, "start_s": round(started - opened, 1),
        "seconds": round(seconds, 1), "ms_a_block": round(1000 * seconds / blocks, 2),
        "client_and_scheduler_peak_mb": peak_mb(), "before_mb": before,
    }  # fmt: skip


def measure_rerun(config: RunConfig, blocks: int) -> dict[str, object]:
    """Find finished blocks: what a rerun does before it publishes."""
    plan = invented_plan(blocks, config.work)
    states: dict[str, str] = {}
    for planned in plan.blocks:
        folder = config.work / "blocks" / checkpoint_name(plan, planned, states=states)
        folder.mkdir(parents=True)
        record = BlockRecord(planned.block.id, "done", folder.name, seconds=1.0)
        (folder / META).write_text(json.dumps(vars(record)))
    started = time.perf_counter()
    ledger = predict_blocks(Request(config), read_plan(config.work))
    seconds = time.perf_counter() - started
    assert {r.status for r in ledger.records.values()} == {"existing"}
    return {"finished_blocks": len(ledger.records), "rerun_s": round(seconds, 1)}


def measure_plan(config: RunConfig, blocks: int) -> dict[str, object]:
    """Write and read a plan."""
    started = time.perf_counter()
    made = invented_plan(blocks, config.work)
    wrote = time.perf_counter()
    plan = read_plan(config.work)
    read = time.perf_counter()
    states: dict[str, str] = {}
    for planned in plan.blocks[:200]:
        checkpoint_name(plan, planned, states=states)
    named = time.perf_counter()
    assert plan == made
    return {
        "planned_blocks": len(plan.blocks), "scenes": len(plan.scenes),
        "plan_mb": round((config.work / PLAN_FILE).stat().st_size / 1e6, 1), "write_s": round(wrote - started, 1),
        "read_s": round(read - wrote, 1), "ms_a_checkpoint_name": round((named - read) * 1000 / 200, 2),
        "peak_mb": peak_mb(),
    }  # fmt: skip


def main() -> None:
    """Measure and print one JSON line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--planned", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="orchestration-"))
    try:
        for name, measure, count in (
            ("blocks", measure_blocks, args.blocks),
            ("rerun", measure_rerun, args.blocks),
            ("plan", measure_plan, args.planned),
        ):
            print(json.dumps(measure(config_of(folder / name, args.workers), count)), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
