"""`python -m benchmarks.survey`: what choosing scenes by their clouds over the loss costs and what it brings.

On a simulated province seen through many clouds, of which the middle is the region. Rows: the choice as the catalog
alone would make it (the `max_scenes` scenes with the least cloud as a whole); the choice by QA_PIXEL over the loss for
several `enough_clear` and `least_gain`; every scene there is. Columns: scenes and the size of their bands, the size of
QA_PIXEL and the seconds spent on it, clear observations of loss pixels, events without any, and with --accuracy how
many events the shipped model gets right. All simulated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.warp import transform_bounds

from pipeline import survey
from pipeline.candidates import cloudiness, wrs_place
from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.config import RunConfig
from pipeline.demo import ROOT, compare, province_config, write_province
from pipeline.graph import run_region
from pipeline.plan import Plan
from pipeline.plan_scenes import with_chosen
from pipeline.request import Request
from pipeline.simulate import Province, ProvinceParams
from pipeline.steps import plan_run


def corner(province: Province, share: float) -> list[float]:
    """Return the bounds [west, south, east, north] in degrees of the middle part of a province, `share` of its side."""
    with rasterio.open(province.truth) as raster:
        left, bottom, right, top = raster.bounds
        margin = (right - left) * (1 - share) / 2
        inner = left + margin, bottom + margin, right - margin, top - margin
        return list(transform_bounds(raster.crs, "EPSG:4326", *inner))


def by_catalog(plan: Plan, most: int) -> dict[int, tuple[str, ...]]:
    """Return the choice without a look at the clouds: the least cloudy scenes as a whole, by loss year."""
    out = {}
    for year, ids in plan.candidates.items():
        taken: Counter[str] = Counter()
        chosen = []
        for scene in sorted((plan.scenes[key] for key in ids), key=lambda s: (cloudiness(s), s.datetime, s.id)):
            if taken[wrs_place(scene)] < most:
                taken[wrs_place(scene)] += 1
                chosen.append(scene.id)
        out[year] = tuple(sorted(chosen))
    return out


def observations(plan: Plan, work: Path, chosen: dict[int, tuple[str, ...]]) -> dict[str, float]:
    """Return the clear observations of loss pixels by a choice, as `survey` counts them."""
    clear: list[np.ndarray] = []
    seen: set[int] = set()
    events: set[int] = set()
    for _, look in survey.look_at_loss(plan, work, lambda scene, _: scene):
        owner = np.concatenate([part.events for part in look.windows])
        for year, scenes in look.group.items():
            inside = look.years == year
            have = np.zeros(int(inside.sum()), np.int64)
            for scene in scenes:
                if scene.id in chosen[year]:
                    have += np.unpackbits(look.sights[year, scene.id].clear)[: len(have)]
            clear.append(have)
            events |= set(owner[inside].tolist())
            seen |= set(owner[inside][have > 0].tolist())
    have = np.concatenate(clear)
    return {
        "loss_pixels": len(have),
        "observations_mean": round(float(have.mean()), 2),
        **{f"pixels_below_{k}_percent": round(float((have < k).mean() * 100), 2) for k in (1, 3, 5)},
        "events_unseen_percent": round(100 * (1 - len(seen) / len(events)), 2),
    }


def megabytes(scenes: Sequence[Scene], bands: Sequence[str]) -> float:
    """Return the size of some bands' files in MB."""
    return round(sum(Path(s.assets[b].href).stat().st_size for s in scenes for b in bands if b in s.assets) / 1e6, 2)


@dataclass(frozen=True)
class Case:
    """A way to choose: `enough` None is by the catalog alone."""

    enough: int | None
    least: float
    most: int

    @property
    def name(self) -> str:
        """What tells it from others."""
        told = "catalog" if self.enough is None else f"enough {self.enough}, least gain {self.least:g}"
        return f"{told}, at most {self.most}"


def choice_row(config: RunConfig, plan: Plan, case: Case) -> tuple[dict[str, Any], Plan]:
    """Make one choice and return its figures and the plan of it."""
    started = time.perf_counter()
    if case.enough is None:
        decided = with_chosen(plan, by_catalog(plan, case.most), [])
    else:
        decided = survey.decide(plan, config.work, config.imagery, lambda scene, _: scene)
    seconds = time.perf_counter() - started
    read = list((plan if case.enough else decided).scenes.values())
    row = {
        "choice": case.name,
        "candidates": len(plan.scenes),
        "scenes": len(decided.scenes),
        "by_year": {year: len(ids) for year, ids in decided.chosen.items()},
        "bands_mb": megabytes(list(decided.scenes.values()), plan.bands),
        "qa_mb": megabytes(read, [QA_PIXEL]),
        "qa_seconds": round(seconds, 1) if case.enough else 0.0,
        **observations(plan, config.work, decided.chosen),
    }
    return row, decided


def measure(province: Province, out: Path, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Plan, choose and, if asked for, predict and compare with the truth."""
    settings = {
        "region.aoi": json.dumps(corner(province, options.share)),
        "imagery.max_scenes": case.most,
        "imagery.enough_clear": case.enough or 1,
        "imagery.least_gain": case.least,
        "imagery.max_cloud": 100,
        "imagery.before_years": 0,
        "output.chips": 0,
        "compute.executor": "threads",
        "compute.workers": options.workers,
    }
    product = out / case.name.replace(", ", "-").replace(" ", "_") / "product"
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config = province_config(ROOT / "configs" / "demo.yaml", province, product, *overrides)
    plan = plan_run(Request(config, replan=True))
    row, decided = choice_row(config, plan, case)
    if options.accuracy:
        decided.save(config.work)
        started = time.perf_counter()
        result = compare(run_region(Request(config)).product, province)
        row |= {
            "events": result.events,
            "classified": result.classified,
            "right": result.right,
            "right_percent": round(100 * result.right / max(result.events, 1), 2),
            "run_seconds": round(time.perf_counter() - started, 1),
        }
    return row


def main() -> None:
    """Measure and print one JSON line for each choice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "survey")
    parser.add_argument("--size", type=int, default=1600, help="pixels a side of the province")
    parser.add_argument("--share", type=float, default=0.5, help="side of the region, of that of the province")
    parser.add_argument("--dates", type=int, default=24)
    parser.add_argument("--cloud", type=float, default=0.45)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--most", type=int, default=12, help="imagery.max_scenes")
    parser.add_argument("--enough", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--least", type=float, nargs="+", default=[0.01], help="imagery.least_gain")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--accuracy", action="store_true", help="run the shipped model too")
    options = parser.parse_args()
    params = ProvinceParams(
        size=options.size, seed=options.seed, dates=options.dates, cloud=options.cloud, two_zones=False
    )
    province = write_province(options.out / "province", params)
    cases = [Case(None, 0, options.most), *(Case(e, g, options.most) for e in options.enough for g in options.least)]
    for case in (*cases, Case(99, 0, options.dates)):
        print(json.dumps(measure(province, options.out, case, options)), flush=True)


if __name__ == "__main__":
    main()
