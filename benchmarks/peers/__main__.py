"""Clearcause against other tools for tiled inference: one scene, the same weights and classes, by turns.

    python -m benchmarks.peers --size 2048 --rounds 5 [--peer terratorch torchgeo rslearn rastervision ftw]

Peers run their own inference loops (one program each in this folder says which, and with what options) in environments
of their own, on one GeoTIFF of the scene; they load the same exported network, scaling included, use all cores, and
take `--batch` patches at a time: on a CPU few are fastest. Clearcause runs whole, from the bundle's band files to the
published product, once with a little loss in every patch, so that it computes all of them, and once with the province's
own loss, clustered over 1 % of it. Every turn is a process of its own, start-up included; the order turns round from
one round to the next.

Printed are medians, medians of the ratio of each pair of turns (peer over Clearcause: above 1 Clearcause is the better
one), and the share of pixels that are given the same class, a patch or more from the scene's edges. A product holds
classes of loss pixels only; so that every pixel can be compared, the functions of a run map the whole scene once, and
products are held against that map, too. Calibration is off: a class is the largest logit for everyone. One JSON line is
added to out/bench/peers.jsonl. Each tool lays its lattice from a corner or middle of its own, so that none of them
agrees wholly with another. All imagery is simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.peers.contest import CLUSTERED, FIGURES, WALL, Contest, case_for, results
from benchmarks.peers.environment import PEERS
from benchmarks.run import revision
from pipeline.demo import ROOT


def show(told: dict[str, Any]) -> None:
    """Print both tables."""
    entries = told["contestants"]
    heads = ("wall s", "CPU s", "peak MB", "largest MB", "same class", "on 1 % loss")
    print(f"\n{'medians':<26}" + "".join(f"{head:>13}" for head in heads))
    for name, entry in entries.items():
        alike = [entry["same_as_whole_map"], entry.get("same_as_product", {}).get(CLUSTERED)]
        figures = "".join(f"{entry[key]:>13,.1f}" for key in FIGURES)
        print(f"{name:<26}{figures}" + "".join(f"{'-' if one is None else f'{one:.3%}':>13}" for one in alike))
    for ours in (WALL, CLUSTERED):
        print(f"\n{'times ' + ours:<40}" + "".join(f"{head:>22}" for head in heads[:4]))
        for name, entry in entries.items():
            if "over" in entry:
                cells = [f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in entry["over"][ours].values()]
                print(f"{name:<40}" + "".join(f"{cell:>22}" for cell in cells))
    for name, fault in told["faults"].items():
        print(f"{name}: {fault}")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own: this one stays small, and free of the model's threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Prepare, run the turns, compare and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side of the simulated province")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="patches a peer's network takes at a time")
    parser.add_argument("--peer", nargs="+", default=PEERS, choices=PEERS)
    args = parser.parse_args()
    out = args.out.resolve() / "peers"
    out.mkdir(parents=True, exist_ok=True)
    contest = Contest(apart(case_for, out, args.size), out, args.batch, {}, {}, {})
    contest.enter(args.peer)
    contest.turns(args.rounds)
    told = apart(results, contest)
    show(told)
    stamp = {"commit": revision("HEAD"), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    where = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    with (out.parent / "peers.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**stamp, **where, "size": args.size, "rounds": args.rounds, **told}) + "\n")


if __name__ == "__main__":
    main()
