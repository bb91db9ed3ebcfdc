"""Many products in one table: the summaries of all regions and years, and which regions have none and why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.artifacts import replace_folder
from pipeline.errors import ConfigError, OutputError, ProductError
from pipeline.tables import Product, open_product

SUMMARY_FILE, REGIONS_FILE = "summary.csv", "regions.csv"
_DONE, _FAILED = "done", "failed"
_COUNTS = ("events", "classified", "uncertain", "no_imagery", "failed", "loss_ha")


@dataclass(frozen=True)
class Part:
    """One run: the region, the loss years asked for (none: as configured), its product or the reason why it has none.

    `fault` is empty where the run ended well.
    """

    region: str
    years: tuple[int, ...]
    product: Path
    fault: str = ""


def roll_up(parts: Sequence[Part], out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `summary.csv` (a row for each region, unit, year and driver) and `regions.csv` into folder `out`, whole.

    A part that failed gives no rows of the summary, even where an earlier product of it is there; a product that cannot
    be read counts as failed. Areas in hectares. Returns both tables, regions first.

    Raises:
        OutputError: `out` holds other files, or cannot be written.
    """
    _check(out)
    regions, summaries = [], []
    for part in sorted(parts, key=lambda p: (p.region, p.years)):
        row: dict[str, object] = {"region": part.region, "years": " ".join(map(str, part.years))}
        try:
            if part.fault:
                raise ProductError(part.fault)
            product = open_product(part.product)
            summary = product.read("summary")
        except (ConfigError, ProductError) as error:
            regions.append({**row, "status": _FAILED, "reason": " ".join(str(error).split())})
            continue
        regions.append({**row, **_described(product), "product": _relative(part.product, out)})
        summaries.append(summary.assign(region=part.region))
    columns = ["region", "years", "status", "reason", "complete", *_COUNTS, "model", "product"]
    table = pd.DataFrame(regions).reindex(columns=columns)
    table = table.astype({name: "Int64" for name in _COUNTS if name != "loss_ha"})
    whole = pd.concat(summaries, ignore_index=True) if summaries else pd.DataFrame({"region": []})
    whole = whole[["region", *(name for name in whole.columns if name != "region")]]
    _write(table, whole, out)
    return table, whole


def _described(product: Product) -> dict[str, object]:
    run = product.run
    counts, model = run["counts"], run["model"]
    return {
        "years": " ".join(map(str, run["years"])),
        "status": _DONE,
        "complete": run["complete"],
        **{name: counts[name] for name in _COUNTS},
        "model": f"{model['name']} {model['version']}",
    }


def _relative(product: Path, out: Path) -> str:
    """Where a product lies as seen from the roll-up, so that both may move together."""
    return Path(os.path.relpath(product.resolve(), out.resolve())).as_posix()


def _check(out: Path) -> None:
    strange = out.is_dir() and {path.name for path in out.iterdir()} - {SUMMARY_FILE, REGIONS_FILE}
    if strange or (out.exists() and not out.is_dir()):
        raise OutputError(f"roll-up folder {out}: holds files of someone else; name another folder")


def _write(regions: pd.DataFrame, summary: pd.DataFrame, out: Path) -> None:
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        for name, frame in ((SUMMARY_FILE, summary), (REGIONS_FILE, regions)):
            # with a byte order mark, without which Excel garbles every script but Latin
            frame.to_csv(beside / name, index=False, encoding="utf-8-sig", lineterminator="\n")
        replace_folder(beside, out)
    except OSError as error:
        raise OutputError(f"roll-up folder {out}: cannot be written ({error.strerror}); name another folder") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
