"""The program's commands for those who use a product: sample, assess, export, diff."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(rich_markup_mode=None)

Product = Annotated[Path, typer.Argument(help="folder of a product", metavar="PRODUCT")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def sample(
    product: Product,
    size: Annotated[int, typer.Option(min=2, help="events to draw")] = 300,
    out: Annotated[Path | None, typer.Option(help="new folder; default PRODUCT-sample")] = None,
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same events")] = 0,
    allocation: Annotated[
        Literal["area", "events", "equal"], typer.Option(help="how the size is divided among the strata")
    ] = "area",
    minimum: Annotated[int, typer.Option(min=2, help="events of each mapped driver at least")] = 30,
    show_drivers: Annotated[
        bool, typer.Option("--show-drivers", help="tell the interpreter what the map says")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="draw no pictures before and after")] = False,
    json_: Json = False,
) -> None:
    """Draw a stratified random sample of events to interpret: a GeoPackage to fill in, with pictures."""
    # Nine parameters: they are the command line
    from pipeline.areas.draw import DrawParams
    from pipeline.areas.sampling import make_sample, read_product
    from pipeline.stores.products import at_hand, beside

    def say(done: int, total: int) -> None:
        print(f"pictures of {done} of {total} events", file=sys.stderr, flush=True)

    read = read_product(at_hand(product).resolve())
    folder = out or beside(product, "-sample")
    params = DrawParams(size, minimum, allocation, seed)
    drawn = make_sample(read, folder, params, show_drivers, not no_pictures, say)
    if json_:
        rows = drawn.strata.to_dict("records")
        about = {"folder": str(folder), "events": drawn.events, "pictures": drawn.pictures, "remark": drawn.remark}
        print(json.dumps({**about, "strata": rows}))
        return
    print(f"{folder}: {drawn.events} events, {drawn.pictures} with pictures. {drawn.remark}".rstrip())
    print(f"{'stratum':<8}{'mapped driver':<30}{'status':<12}{'sizes':<8}{'events':>8}{'area ha':>12}{'drawn':>7}")
    for r in drawn.strata.to_dict("records"):
        print(
            f"{r['stratum']:<8}{r['driver']:<30}{r['status']:<12}{r['sizes']:<8}"
            f"{r['population']:>8,}{r['area_ha']:>12,.1f}{r['drawn']:>7}"
        )
    hidden = "shows" if show_drivers else "does not tell"
    print(
        f"Fill in reference_driver of the layer sample in sample.gpkg, then: clearcause assess {product} {folder}. "
        f"That layer {hidden} what the map says; the tables strata and key do: keep them from the interpreter."
    )


@app.command()
def assess(
    product: Product,
    labels: Annotated[Path, typer.Argument(help="folder of a filled-in sample, or its sample.gpkg", metavar="SAMPLE")],
    json_: Json = False,
) -> None:
    """Estimate areas and accuracy with intervals from a filled-in sample; writes assessment.json beside it."""
    from pipeline.areas.assess import assess as run
    from pipeline.areas.assess import render, to_dict, write_assessment
    from pipeline.areas.sampling import read_product
    from pipeline.stores.products import at_hand

    result = run(read_product(at_hand(product).resolve()), labels)
    path = write_assessment(result, labels if labels.is_dir() else labels.parent)
    print(json.dumps(to_dict(result)) if json_ else f"{render(result)}\n\nwritten: {path}")


@app.command()
def export(
    product: Product,
    to: Annotated[
        Literal["geoparquet", "flatgeobuf", "geojson", "pmtiles", "csv", "xlsx", "eudr"],
        typer.Option(help="format; eudr is GeoJSON in the rules of the EU's Information System"),
    ],
    layer: Annotated[list[str] | None, typer.Option(help="layer, default events; may be repeated")] = None,
    per_unit: Annotated[bool, typer.Option("--per-unit", help="one file for each unit")] = False,
    out: Annotated[Path | None, typer.Option(help="folder; default PRODUCT-export")] = None,
    simplify: Annotated[
        float, typer.Option(min=0, max=1000, metavar="METRES", help="simplify polygons, shared borders kept")
    ] = 0.0,
    points: Annotated[bool, typer.Option("--points", help="eudr: events below 4 ha as points")] = False,
    country: Annotated[str, typer.Option(metavar="XX", help="eudr: ISO code for ProducerCountry")] = "",
    json_: Json = False,
) -> None:
    """Write layers of a product in another format."""
    # Nine parameters: they are the command line
    from pipeline.export import ExportParams, export_product
    from pipeline.stores.products import at_hand, beside

    params = ExportParams(to, tuple(layer or ["events"]), per_unit, simplify, points, country)
    folder = out or beside(product, "-export")
    done = export_product(at_hand(product), folder, params)
    if json_:
        files = [{"file": str(path), "rows": rows, "unit_id": unit} for path, rows, unit in done.files]
        print(json.dumps({"files": files, "notes": done.notes}, ensure_ascii=False))
        return
    for path, rows, unit in done.files:
        print(f"{path}: {rows:,} rows" + (f" of unit {unit}" if unit else ""))
    for note in done.notes:
        print(f"note: {note}")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="folder of a product", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="folder of a product", metavar="NEW")],
    out: Annotated[Path | None, typer.Option(help="GeoPackage of the events that changed", metavar="FILE")] = None,
    json_: Json = False,
) -> None:
    """Compare two products: events that appeared, are gone or changed driver, and areas by unit."""
    from pipeline.changes import compare_products, render_changes, write_changes
    from pipeline.stores.products import at_hand

    changes = compare_products(at_hand(old), at_hand(new))
    if out:
        write_changes(changes, out)
    print(json.dumps(changes.to_dict(), ensure_ascii=False) if json_ else render_changes(changes))
