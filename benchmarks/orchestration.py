"""What orchestration costs: blocks that do nothing, through Prefect, the ledger and Dask; a rerun; a plan of many.

    python -m benchmarks.orchestration --blocks 3000 --planned 50000

One JSON line for each part, each in a process of its own:

    flow    the flow on a Prefect server (that of PREFECT_API_URL, else a temporary one) and a Dask scheduler with
            workers, each a process as users start it: from the first block's end to the last one's, peak memory of
            flow, scheduler and server; then the same flow again, which finds all blocks finished
    blocks  ledger and Dask alone, on a local cluster
    plan    the size of a plan, and the seconds to write and read it

What a flow does before and after its blocks is not measured: the plan is invented, and nothing is merged.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flows.runtime import open_pool
from pipeline import graph, steps
from pipeline.artifacts import committed_folder, write_json
from pipeline.blocks import META, BlockRecord, BlockTask, peak_rss_mb
from pipeline.catalog.scene import Asset, Scene
from pipeline.config import RunConfig, parse_config
from pipeline.demo import ROOT
from pipeline.grid import Block, RunGrid
from pipeline.lattice import PatchLayout
from pipeline.ledger import drive
from pipeline.plan import PLAN_FILE, Plan, PlannedBlock, read_plan
from pipeline.request import Outcome, Request

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22", "qa_pixel")
SCENES_OF_A_BLOCK, BLOCKS_OF_A_SCENE = 24, 30
NAMES = "names.json"


def nothing(task: BlockTask) -> BlockRecord:
    """A block that is done at once."""
    return BlockRecord(task.block, "done", task.block)


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


def config_of(folder: Path, workers: int, executor: str = "local") -> RunConfig:
    """A configuration whose pool is a local cluster, or a scheduler by address."""
    tree = {
        "region": {"name": "bench", "aoi": [0, 0, 1, 1]}, "loss": {"source": "none.tif", "years": [2021]},
        "imagery": {"source": "planetary-computer"}, "model": str(ROOT / "models" / "fpn-efficientnet-b2"),
        "compute": {"executor": executor, "workers": workers}, "output": {"dir": str(folder / "product")},
    }  # fmt: skip
    made = parse_config(tree, folder, "benchmark")
    made.work.mkdir(parents=True, exist_ok=True)
    return made


def measure_blocks(folder: Path, blocks: int, workers: int) -> dict[str, object]:
    """Drive blocks that do nothing through ledger and Dask."""
    config = config_of(folder, workers)
    tasks = [BlockTask(config.work, "", f"b{k:06}", config.model) for k in range(blocks)]
    opened = time.perf_counter()
    with open_pool(config) as pool:
        before, started = peak_rss_mb(), time.perf_counter()
        ledger = drive(tasks, nothing, pool)
        seconds = time.perf_counter() - started
    return {
        "blocks": len(ledger.records), "workers": config.compute.workers, "start_s": round(started - opened, 1),
        "seconds": round(seconds, 1), "ms_a_block": round(1000 * seconds / blocks, 2),
        "client_and_scheduler_peak_mb": peak_rss_mb(), "before_mb": before,
    }  # fmt: skip


def measure_plan(folder: Path, blocks: int, workers: int) -> dict[str, object]:
    """Write and read a plan."""
    config = config_of(folder, workers)
    started = time.perf_counter()
    made = invented_plan(blocks, config.work)
    wrote = time.perf_counter()
    plan = read_plan(config.work)
    read = time.perf_counter()
    states: dict[str, str] = {}
    for planned in plan.blocks[:200]:
        steps.checkpoint_name(plan, planned, states=states)
    named = time.perf_counter()
    assert plan == made
    return {
        "planned_blocks": len(plan.blocks), "scenes": len(plan.scenes),
        "plan_mb": round((config.work / PLAN_FILE).stat().st_size / 1e6, 1), "write_s": round(wrote - started, 1),
        "read_s": round(read - wrote, 1), "ms_a_checkpoint_name": round((named - read) * 1000 / 200, 2),
        "peak_mb": peak_rss_mb(),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- through Prefect


def committed(task: BlockTask) -> BlockRecord:
    """A block that is done at once and leaves a checkpoint, under the name that the flow looks for."""
    names = json.loads((task.work / NAMES).read_bytes())
    record = BlockRecord(task.block, "done", names[task.block], seconds=1.0)
    with committed_folder(task.work / "blocks" / names[task.block]) as folder:
        write_json(folder / META, vars(record))
    return record


def peak_of(process: subprocess.Popen[bytes]) -> int:
    """Peak resident memory of another process in MB (Linux)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def programs(folder: Path, **lines: tuple[object, ...]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Python modules as processes, each with a log of its own; ended together."""
    started = {}
    try:
        for name, line in lines.items():
            with (folder / f"{name}.log").open("wb") as log:
                words = [sys.executable, "-m", *map(str, line)]
                started[name] = subprocess.Popen(words, stdout=log, stderr=log)
        yield started
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(60)


def wait_for_prefect(url: str) -> None:
    import httpx

    deadline = time.monotonic() + 300
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def measure_flow(folder: Path, blocks: int, workers: int) -> dict[str, object]:
    """Run the flow over blocks that do nothing, twice."""
    folder.mkdir(parents=True)
    port, home = free_port(), ("--host", "127.0.0.1")
    address = f"tcp://127.0.0.1:{port}"
    dask = "distributed.cli.dask_"
    lines: dict[str, tuple[object, ...]] = {
        "scheduler": (f"{dask}scheduler", *home, "--port", port, "--no-dashboard"),
        "workers": (f"{dask}worker", address, *home, "--nworkers", workers, "--nthreads", 1, "--no-dashboard"),
    }
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}
    os.environ.update({"DO_NOT_TRACK": "1", **quiet})
    if not os.environ.get("PREFECT_API_URL"):
        here = free_port()
        os.environ.update({"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{here}/api"})
        lines["prefect"] = ("prefect", "server", "start", *home, "--port", here)
    with programs(folder, **lines) as started:
        wait_for_prefect(os.environ["PREFECT_API_URL"])
        config = config_of(folder, workers, address)
        plan = invented_plan(blocks, config.work)
        before = peak_rss_mb()
        first, seconds, apart = flow_over(config, plan)
        peaks = {f"{name}_peak_mb": peak_of(process) for name, process in started.items() if name != "workers"}
        peaks = {"flow_before_mb": before, "flow_peak_mb": peak_rss_mb(), **peaks}
        second, again, _ = flow_over(config, plan)
    assert first.counts == second.counts == {"blocks": blocks, "computed": blocks}
    return {
        "blocks": blocks, "workers": workers, "flow_s": round(seconds, 1),
        "ms_a_block": round(1000 * apart / (blocks - 1), 2), **peaks, "rerun_s": round(again, 1),
    }  # fmt: skip


def flow_over(config: RunConfig, plan: Plan) -> tuple[Outcome, float, float]:
    """The program's flow, with a plan and blocks of ours and no product.

    Returns its outcome, its seconds, and those between the ends of the first and the last block.
    """
    from prefect.logging.handlers import APILogHandler

    from flows import regions

    states: dict[str, str] = {}
    names = {p.block.id: steps.checkpoint_name(plan, p, states=states) for p in plan.blocks}
    write_json(config.work / NAMES, names)

    def plan_run(request: Request) -> Plan:
        return read_plan(request.work)

    def fetch_scenes(_: Request, frozen: Plan) -> Plan:
        return frozen

    def merge_blocks(*_: object) -> None:
        return None

    steps.plan_run, steps.merge_blocks, steps.compute_block = plan_run, merge_blocks, committed
    graph.fetching.fetch_scenes = fetch_scenes
    ends: list[float] = []
    request = Request(config, pool=open_pool, progress=lambda _: ends.append(time.perf_counter()))
    started = time.perf_counter()
    outcome: Outcome = regions.run_request(request, "bench")
    seconds = time.perf_counter() - started
    # while the server is there
    APILogHandler().flush()
    return outcome, seconds, ends[-1] - ends[0] if ends else 0.0


PARTS = {"flow": measure_flow, "blocks": measure_blocks, "plan": measure_plan}


def main() -> None:
    """Measure and print one JSON line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--planned", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    args = parser.parse_args()
    if not args.part:
        for part in PARTS:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.orchestration", *sys.argv[1:], "--part", part], check=True
            )
        return
    folder = Path(tempfile.mkdtemp(prefix="orchestration-"))
    try:
        count = args.planned if args.part == "plan" else args.blocks
        made = PARTS[args.part](folder / args.part, count, args.workers)
        print(json.dumps({"part": args.part, **made}), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
