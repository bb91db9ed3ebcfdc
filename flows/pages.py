"""The pages at the end of a run, as Prefect shows Markdown: what was found, or which blocks failed and what to do."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pipeline.errors import IncompleteError
from pipeline.product import maps
from pipeline.product.record import PRODUCT_FILES, product_title
from pipeline.product.styles import event_categories
from pipeline.request import Outcome
from pipeline.steps import LEDGER_FILE
from pipeline.tables import Product, open_product

_PICTURE_SIDE = 640
_MOST_ROWS = 200
_COUNTS = {
    "events": "events", "classified": "classified", "uncertain": "uncertain", "no_imagery": "no clear imagery",
    "failed": "failed", "loss_ha": "loss (ha)", "blocks": "blocks", "scenes": "scenes",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """How a run was asked for: the `command` that asks for it again, and whether it takes `--blocks`."""

    command: tuple[str, ...]
    deployment: str = ""
    takes_blocks: bool = True

    def again(self, *blocks: str) -> str:
        """Return the shell command that runs it again, or only these blocks of it."""
        some = ("--blocks", ",".join(blocks)) if blocks and self.takes_blocks else ()
        return shlex.join((*self.command, *some))


def summary_page(outcome: Outcome) -> str:
    """Return the page of a run that ended well: counts, areas by driver, the map, where the files lie."""
    if outcome.status == "partial":
        counts = outcome.counts
        return f"{counts['computed']} of {counts['blocks']} blocks are done; the product comes with a run of all blocks"
    product = open_product(outcome.product)
    run = product.run
    said = "Nothing to do, the product was current." if outcome.status == "current" else "The product was published."
    lines = [f"# {_cell(product_title(run))}", "", said, ""]
    if run.get("simulated"):
        lines += ["**The model was trained on simulated scenes: its drivers are no findings about real land.**", ""]
    if not run.get("complete"):
        lines += ["**Incomplete: some blocks have no result; their events count as failed.**", ""]
    lines += [*_counts(outcome.counts), "", *_areas(product), "", *_map(product), ""]
    lines += [*_files(outcome.product), "", *_warnings(run)]
    return "\n".join(lines)


def failure_page(title: str, error: Exception, work: Path, origin: Origin) -> str:
    """Return the page of a run that failed: the error, each failed block with its reason and its command."""
    lines = [f"# {_cell(title)}", "", f"**{_cell(f'{type(error).__name__}: {error}')}**", ""]
    failed = _failed_blocks(work) if isinstance(error, IncompleteError) else []
    if failed:
        lines += ["| block | tries | reason | run it again |", "|---|---:|---|---|"]
        lines += [
            f"| {_cell(r['block'])} | {r.get('attempts', 1)} | {_cell(r.get('reason', ''))} "
            f"| `{origin.again(r['block'])}` |"
            for r in failed[:_MOST_ROWS]
        ]
        if len(failed) > _MOST_ROWS:
            lines.append(f"\nand {len(failed) - _MOST_ROWS} more: see `{work / LEDGER_FILE}`")
    lines += ["", "All that is missing, and then the product (blocks that are done are not computed again):", ""]
    lines += [f"    {origin.again()}"]
    if origin.deployment:
        lines += [f"    prefect deployment run {shlex.quote(origin.deployment)}"]
    if failed:
        lines += ["", "The product without them, which says so:", "", f"    {origin.again()} --allow-incomplete"]
    return "\n".join(lines)


def _failed_blocks(work: Path) -> list[dict[str, Any]]:
    path = work / LEDGER_FILE
    blocks = json.loads(path.read_text(encoding="utf-8"))["blocks"] if path.is_file() else []
    return [record for record in blocks if record["status"] == "failed"]


def _counts(counts: Mapping[str, Any]) -> list[str]:
    shown = {title: counts[key] for key, title in _COUNTS.items() if key in counts}
    values = (f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" for v in shown.values())
    return [_row(shown), _row("---:" for _ in shown), _row(values)]


def _areas(product: Product) -> list[str]:
    """Sums of the table `summary` by driver, beside the region's adjusted areas where they can be estimated."""
    sums = product.read("summary").groupby("driver")[["events", "area_ha"]].sum()
    estimates = product.read("estimates")
    region = estimates[(estimates["scope"] == "region") & (estimates["loss_year"].astype(str) == "all")]
    # each driver's category comes before those of its uncertain events
    categories = reversed(event_categories(product.scheme))
    looks = {dict(c.conditions).get("driver", c.conditions[0][1]): c for c in categories}
    adjusts = ("adjusted (ha), 95 % interval",) if region["adjusted_ha"].notna().any() else ()
    lines = [_row(("", "driver", "events", "mapped (ha)", *adjusts))]
    lines.append(_row(("---", "---", *["---:"] * (2 + len(adjusts)))))
    for row in sums.sort_values("area_ha", ascending=False).itertuples():
        driver = str(row.Index)
        known = region[(region["driver"] == driver) & region["adjusted_ha"].notna()]
        adjusted = [f"{r.adjusted_ha:,.1f} ({r.low_ha:,.1f} to {r.high_ha:,.1f})" for r in known.itertuples()]
        look = looks.get(driver)
        cells = (
            _swatch(look.rgb) if look else "",
            _cell(look.title if look else driver),
            f"{row.events:,}",
            f"{row.area_ha:,.1f}",
        )
        lines.append(_row((*cells, *((adjusted or ["not known"]) if adjusts else ()))))
    note = (product.run.get("areas") or {}).get("note")
    return [*lines, "", _cell(note)] if note else lines


def _swatch(colour: tuple[int, int, int]) -> str:
    """A square in the colour that the map has, as a picture: Prefect's pages take no styles."""
    return f"![]({_data_uri(Image.new('RGB', (16, 16), colour))})"


def _map(product: Product) -> list[str]:
    """The map as a small PNG in a data URI: Prefect's page loads nothing from this machine."""
    events = product.read("events", "EPSG:4326")
    frame = maps.frame_of(events)
    if frame is None:
        return ["There is no loss, and so no map."]
    scale = _PICTURE_SIDE / max(frame.width, frame.height)
    width, height = (max(round(side * scale), 40) for side in (frame.width, frame.height))
    small = dataclasses.replace(frame, width=width, height=height)
    picture = maps.picture(events, event_categories(product.scheme), small)
    return [f"![map]({_on_white(picture)})", "", "Hatched: uncertain."]


def _on_white(picture: str) -> str:
    """A picture with a ground of its own: Prefect's pages are dark or light, as their reader likes."""
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as opened:
        drawn = opened.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return _data_uri(Image.alpha_composite(white, drawn).convert("P", palette=Image.Palette.ADAPTIVE))


def _data_uri(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _files(folder: Path) -> list[str]:
    lines = [f"Product: `{folder}`", ""]
    return lines + [f"- [{name}]({(folder / name).as_uri()})" for name in PRODUCT_FILES if (folder / name).is_file()]


def _warnings(run: Mapping[str, Any]) -> list[str]:
    said = [f"- {_cell(str(text))}" for text in run.get("warnings", [])]
    more = [f"- and {len(said) - 20} more in run.json"] if len(said) > 20 else []
    return ["Warnings:", "", *said[:20], *more] if said else []


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _cell(text: object) -> str:
    """Text that Markdown and HTML leave as it is."""
    plain = " ".join(str(text).split())
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        plain = plain.replace(sign, written)
    return plain


def rollup_page(text: str, regions: pd.DataFrame, summary: pd.DataFrame, out: Path) -> str:
    """Return the page of a run of many regions: how each ended, and the sums of mapped areas by driver."""
    lines = [f"# {_cell(text)}", "", "| region | years | status | events | loss (ha) | reason |", _row(["---"] * 6)]
    shown = regions[["region", "years", "status", "events", "loss_ha", "reason"]].astype(object).fillna("")
    lines += [_row(map(_cell, row)) for row in shown.itertuples(index=False)]
    if len(summary):
        sums = summary.groupby("driver")[["events", "area_ha"]].sum().sort_values("area_ha", ascending=False)
        lines += ["", "| driver | events | mapped (ha) |", "|---|---:|---:|"]
        lines += [_row((_cell(r.Index), f"{r.events:,}", f"{r.area_ha:,.1f}")) for r in sums.itertuples()]
    return "\n".join([*lines, "", f"Tables: `{out}`", ""])
