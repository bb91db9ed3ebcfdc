"""The contest: turns of all contestants, and everything worth keeping of them."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured import Usage, run_measured
from benchmarks.peers.agreement import class_shares, product_classes, read_map, share_equal
from benchmarks.peers.case import Case, write_config
from benchmarks.peers.environment import environment, installed, versions
from pipeline.demo import ROOT

WALL, CLUSTERED = "clearcause wall to wall", "clearcause 1 % loss"
FIGURES = ("wall_s", "cpu_s", "peak_mb", "largest_mb")


def case_for(out: Path, size: int) -> Case:
    """The case of a size, made where it is missing."""
    # loads torch, which the process that measures does without
    from benchmarks.peers.prepare import make_case

    return make_case(out, size)


@dataclass
class Contest:
    """The case, where things lie, what the contestants took (a Usage a round), and why some did not run."""

    case: Case
    out: Path
    batch: int
    taken: dict[str, list[Usage]]
    faults: dict[str, str]
    pythons: dict[str, Path]

    def enter(self, peers: Sequence[str]) -> None:
        """Make the peers' environments; one that cannot be installed is out, with its reason."""
        for peer in peers:
            try:
                self.pythons[peer] = installed(peer, self.out / peer)
            except RuntimeError as error:
                self.faults[peer] = f"not installed: {error}"
                print(f"{peer}: {self.faults[peer]}", flush=True)

    def product(self, name: str) -> Path:
        """Folder of the product of one of our two runs."""
        return self.out / f"product-{'wall' if name == WALL else 'clustered'}"

    def run(self, name: str) -> Usage:
        """One turn; raises RuntimeError where it failed."""
        log = self.out / f"{name.replace(' ', '-').replace('%', 'percent')}.log"
        env = environment()
        if name in (WALL, CLUSTERED):
            loss = self.case.everywhere if name == WALL else self.case.province.loss
            config = write_config(self.case, self.product(name), loss, os.cpu_count() or 1)
            line = [sys.executable, "-m", "pipeline.cli", "run", str(config), "--no-prefect"]
            return run_measured(line, ROOT, env | {"CLEARCAUSE_STATE": str(self.out / "state")}, log)
        layout = self.case.layout
        paths = (self.case.scene, self.case.network, self.map_of(name))
        numbers = ("--patch", layout.size, "--stride", layout.stride, "--batch", self.batch)
        line = [str(self.pythons[name]), "-m", f"benchmarks.peers.{name}", *map(str, (*paths, *numbers))]
        return run_measured(line, ROOT, env, log)

    def map_of(self, peer: str) -> Path:
        """The class map a peer writes."""
        return self.out / f"{peer}.tif"

    def turns(self, rounds: int) -> None:
        """All contestants by turns, `rounds` times; a peer that fails is out, with its reason."""
        for number in range(rounds):
            names = [WALL, CLUSTERED, *self.pythons]
            for name in names[:: -1 if number % 2 else 1]:
                if name in self.faults:
                    continue
                try:
                    used = self.run(name)
                except RuntimeError as error:
                    if name in (WALL, CLUSTERED):
                        raise
                    self.faults[name] = str(error)
                    print(f"{name}: {error}", flush=True)
                    continue
                self.taken.setdefault(name, []).append(used)
                print(json.dumps({"round": number, "contestant": name, **_rounded(asdict(used))}), flush=True)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 1) for key, value in figures.items()}


def ratios(peer: Sequence[Usage], ours: Sequence[Usage]) -> dict[str, list[float]]:
    """Of each figure the median over the rounds of peer by ours, the lowest and the highest."""
    found = {}
    for key in FIGURES:
        pairs = [getattr(a, key) / getattr(b, key) for a, b in zip(peer, ours, strict=True)]
        found[key] = [round(f(pairs), 2) for f in (statistics.median, min, max)]
    return found


def counts(product: Path) -> dict[str, int]:
    """Events and blocks of a product, and the patches that went through the model."""
    run = json.loads((product / "run.json").read_text(encoding="utf-8"))
    return {key: run["counts"][key] for key in ("events", "blocks")} | {"patches": run["timings"]["patches"]}


def results(contest: Contest) -> dict[str, Any]:
    """Everything worth keeping."""
    case, reference = contest.case, read_map(contest.case.reference)
    ours = {name: product_classes(case, contest.product(name)) for name in (WALL, CLUSTERED)}
    told: dict[str, Any] = {
        "side": [case.grid.height, case.grid.width], "batch": contest.batch, "class_shares": class_shares(reference),
        "faults": contest.faults, "contestants": {},
    }  # fmt: skip
    for name, taken in contest.taken.items():
        entry: dict[str, Any] = {"rounds": len(taken)}
        entry |= {key: round(statistics.median(getattr(one, key) for one in taken), 1) for key in FIGURES}
        if name in ours:
            entry |= {"same_as_whole_map": share_equal(case, ours[name], reference), **counts(contest.product(name))}
        elif name not in contest.faults:
            classes = read_map(contest.map_of(name))
            entry["same_as_whole_map"] = share_equal(case, classes, reference)
            entry["same_as_product"] = {key: share_equal(case, classes, value) for key, value in ours.items()}
            entry["over"] = {key: ratios(taken, contest.taken[key]) for key in ours}
            entry["versions"] = versions(name, contest.out / name)
        told["contestants"][name] = entry
    return told
