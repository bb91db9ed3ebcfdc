"""A simulated archive in ForestNet's format: `python -m pipeline.simulate.archive OUT --events 400 --seed 0`.

Everything in it is simulated and says so. The chips are cut from provinces with known truth, each province serving one
split; auxiliary predictors are plausible and only partly informative. It shows that training and judging work; scores
on it say nothing about the real world.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, OutputError
from pipeline.simulate import Province, ProvinceParams, simulate
from pipeline.simulate.archive_files import Naming, write_look, write_region, write_surroundings
from pipeline.simulate.archive_land import CHIP, Event, Land, open_land
from pipeline.simulate.landcover import write_landcover

SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}
"""Shares of ForestNet's own splits."""
_MIX = {"plantation": 0.43, "smallholder_agriculture": 0.33, "grassland_shrubland": 0.10, "other": 0.14}
"""ForestNet's shares of its merged classes, as far as the provinces have them."""
_APART = 0.5
"""Degrees between provinces on paper: they are all simulated at one place."""


@dataclass(frozen=True)
class ArchiveParams:
    """`events`: how many at most; `naming`: of auxiliary files; `scenes`: most single scenes an event; `seed`."""

    events: int = 400
    naming: Naming = "tudelft"
    scenes: int = 2
    seed: int = 0


@dataclass
class _Table:
    rows: dict[str, list[list[object]]] = field(default_factory=lambda: {split: [] for split in SPLITS})


def write_forestnet_archive(
    folder: Path, provinces: Sequence[Province], params: ArchiveParams = ArchiveParams()
) -> dict[str, int]:  # fmt: skip
    """Write an archive from at least three provinces into a new folder; returns the number of events by split.

    Raises:
        InputError: fewer than three provinces, so that two splits would share one.
        OutputError: the folder is there and holds something.
    """
    if len(provinces) < len(SPLITS):
        raise InputError(f"simulated archive: {len(provinces)} provinces; at least {len(SPLITS)} are needed")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"simulated archive {folder}: is there and not empty; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_notes(folder, params, len(provinces))
    table = _Table()
    for number, (province, split) in enumerate(zip(provinces, _shared_out(len(provinces)), strict=True)):
        land = open_land(province, shift=(number % 8 * _APART, -(number // 8) * _APART), seed=params.seed)
        count = round(params.events * SPLITS[split] / _shared_out(len(provinces)).count(split))
        random = np.random.default_rng([params.seed, 31, number])
        for event in _choose(land, count, random):
            table.rows[split].append(_write_event(folder, land, event, params))
        if number == 0:
            write_landcover(folder / "landcover", land)
    for split, rows in table.rows.items():
        _write_table(folder / f"{split}.csv", rows)
    return {split: len(rows) for split, rows in table.rows.items()}


def _shared_out(count: int) -> list[str]:
    """The split of each province: every split has one, the rest goes by the splits' shares."""
    out = list(SPLITS)
    while len(out) < count:
        out.append(max(SPLITS, key=lambda split: SPLITS[split] / (out.count(split) + 1)))
    return sorted(out, key=list(SPLITS).index)


def _choose(land: Land, count: int, random: np.random.Generator) -> list[Event]:
    """At most `count` events: each class up to its share, then whatever is left, at random."""
    order: NDArray[np.int64] = random.permutation(len(land.events))
    shuffled = [land.events[k] for k in order]
    chosen: list[Event] = []
    for name, share in _MIX.items():
        own = [event for event in shuffled if event.driver == name]
        chosen += own[: round(share * count)]
    taken = {id(event) for event in chosen}
    chosen += [event for event in shuffled if id(event) not in taken][: max(count - len(chosen), 0)]
    return sorted(chosen[:count], key=lambda event: (event.row, event.column, event.year))


def _write_event(folder: Path, land: Land, event: Event, params: ArchiveParams) -> list[object]:
    """Write one event's folder; returns its row of the label table."""
    latitude, longitude = land.place(event.row, event.column)
    path = f"examples/{latitude!r}_{longitude!r}"
    images = folder / path / "images"
    for kind in ("visible", "infrared"):
        (images / kind).mkdir(parents=True)
    write_region(folder / path / "forest_loss_region.pkl", event.region)
    write_look(images, "composite", land.composite(event))
    for scene in land.clearest(event, params.scenes):
        name = f"{scene.day:%Y_%m_%d}_cloud_{round(scene.cloud)}"
        write_look(images, name, land.scene(event, scene.index))
    write_surroundings(folder / path / "auxiliary", land.surroundings(event), params.naming)
    return [event.title, event.merged, latitude, longitude, event.year, path]


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["label", "merged_label", "latitude", "longitude", "year", "example_path"])
        table.writerows(rows)


def _write_notes(folder: Path, params: ArchiveParams, provinces: int) -> None:
    told = f"Simulated by Clearcause: {provinces} provinces, seed {params.seed}. No satellite saw this land.\n"
    (folder / "SIMULATED.txt").write_text(told, encoding="utf-8")
    (folder / "README.md").write_text(
        f"# A simulated archive in ForestNet's format\n\n{told}\n"
        "Format, names and units are those of ForestNet (Irvin et al. 2020); pixels, labels, places and auxiliary\n"
        "values are made up. Each province belongs to one split, so no chips of two splits overlap; coordinates are\n"
        f"moved so that provinces lie apart. A chip is {CHIP} pixels of 30 m, doubled to 15 m. Titles follow what was\n"
        "simulated (palm or acacia, field or garden, mine, pond, logging). Altitude is a little lower where\n"
        "plantations are and higher where grass is; climate says nothing; forest gain knows the answer and is there\n"
        "only because the real archive has it. `landcover/` holds a composite (uint16, Collection 2 coding) and a\n"
        "class raster of old land use, in which loss is unknown (0). Loss regions are pickled as shapely 1.8 does.\n",
        encoding="utf-8",
    )


def simulate_provinces(folder: Path, events: int, seed: int) -> list[Province]:
    """Simulate enough provinces (each 512 pixels, one path/row) for an archive of so many events."""
    count = max(len(SPLITS) + 1, -(-events // 75))
    random = np.random.default_rng([seed, 30])
    out = []
    for number in range(count):
        params = ProvinceParams(
            size=512,
            seed=1000 * (seed + 1) + number,
            dates=6,
            cloud=round(float(random.uniform(0.05, 0.25)), 2),
            loss_share=round(float(random.uniform(0.12, 0.2)), 3),
            two_zones=False,
        )
        out.append(simulate(folder / f"province-{number}", params))
    return out


def main() -> None:
    """Simulate provinces and write an archive from them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the archive; new or empty")
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=2, help="most single scenes of an event")
    parser.add_argument("--naming", choices=("tudelft", "irvin"), default="tudelft")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        provinces = simulate_provinces(Path(scratch), args.events, args.seed)
        params = ArchiveParams(args.events, args.naming, args.scenes, args.seed)
        counts = write_forestnet_archive(args.out, provinces, params)
    print(f"{args.out}: simulated, {', '.join(f'{count} {split}' for split, count in counts.items())}")


if __name__ == "__main__":
    main()
