"""`clearcause`: the program. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import gc
import json
import logging
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import cli_flows, cli_product, cli_state, cli_training
from pipeline.cli_run import Orchestrator, log_file, report, run_config
from pipeline.drawing import Drawing
from pipeline.errors import ClearcauseError, ConfigError
from pipeline.store_address import store_address

if TYPE_CHECKING:
    from pipeline.config import RunConfig

app = typer.Typer(
    help="Why was it cleared? Drivers of forest loss from Landsat, patch by patch, as a GeoPackage.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
models_app = typer.Typer(
    help="Model packages: list, show, verify, import.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
app.add_typer(cli_training.app)
app.add_typer(cli_product.app)
app.add_typer(cli_flows.app)
app.add_typer(cli_state.app)

Config = Annotated[Path, typer.Argument(help="configuration file (YAML)", metavar="CONFIG")]
Options = Annotated[
    list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="override a key, e.g. grid.block=1024")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def main() -> None:
    """Run the program; every error is one readable line, its traceback goes to the log file."""
    try:
        code = app(standalone_mode=False)
    except ClearcauseError as error:
        code = _fail(error, error.exit_code)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # the last line of defence: what nobody foresaw still ends in one line and exit code 1
        code = _fail(error, 1)
    if code == 130:  # typer itself turns Ctrl-C into this code, without a word
        print("interrupted; run the same command again to go on from what is done", file=sys.stderr)
    # the end of the process would look through all it has loaded, again and again; torch's triton counts what is left
    if "torch" not in sys.modules:
        gc.freeze()
    sys.exit(code or 0)


def _fail(error: BaseException, code: int) -> int:
    logging.getLogger("clearcause").debug("%s", "".join(traceback.format_exception(error)))
    kind = "" if isinstance(error, ClearcauseError | OSError) else f"unexpected {type(error).__name__}: "
    print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
    return code


# ---------------------------------------------------------------------------------------------- run


@app.command()
def run(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="output folder instead of output.dir")] = None,
    year: Annotated[list[int] | None, typer.Option(help="loss year instead of loss.years; may be repeated")] = None,
    blocks: Annotated[str, typer.Option(help="only these blocks, separated by commas", metavar="ID,...")] = "",
    executor: Annotated[str | None, typer.Option(help="local | threads | a Dask scheduler address")] = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="run the stages in this process")] = False,
    allow_incomplete: Annotated[bool, typer.Option("--allow-incomplete", help="publish even if blocks failed")] = False,
    replan: Annotated[bool, typer.Option("--replan", help="ask the catalog again")] = False,
    json_: Json = False,
    option: Options = None,
) -> None:
    """Run a region: configuration to product. Running it again does nothing if nothing has changed."""
    # Ten parameters: they are the command line
    parsed = _load(config, option, out=out, year=year, executor=executor)
    names = tuple(block.strip() for block in blocks.split(",") if block.strip())
    with Orchestrator(not no_prefect) as by:
        outcome = run_config(parsed, names, allow_incomplete=allow_incomplete, replan=replan, by=by)
    report(outcome, json_)


def _load(
    path: Path, option: list[str] | None, *, out: Path | None = None, year: list[int] | None = None,
    executor: str | None = None,
) -> RunConfig:  # fmt: skip
    from pipeline.config import load_config

    overrides = [*(option or [])]
    overrides += [f"output.dir={json.dumps(store_address(out) or str(out.resolve()))}"] if out else []
    overrides += [f"loss.years={json.dumps(year)}"] if year else []
    overrides += [f"compute.executor={json.dumps(executor)}"] if executor else []
    return load_config(path, tuple(overrides))


@app.command()
def plan(
    config: Config,
    year: Annotated[list[int] | None, typer.Option(help="loss year instead of loss.years; may be repeated")] = None,
    executor: Annotated[str | None, typer.Option(help="local | threads | a Dask scheduler address")] = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="predict a run with that option")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="measure the model here first: seconds")] = False,
    json_: Json = False,
    option: Options = None,
) -> None:
    """Say what a run would do and take: seconds, bytes, memory. Reads no pixels of imagery."""
    from pipeline import cli_plan

    parsed = _load(config, option, year=year, executor=executor)
    looked = cli_plan.look_ahead(parsed, prefect=not no_prefect, calibrate=calibrate)
    print(json.dumps(looked.record()) if json_ else cli_plan.render(looked))


@app.command()
def fetch(
    config: Config,
    year: Annotated[list[int] | None, typer.Option(help="loss year instead of loss.years; may be repeated")] = None,
    json_: Json = False,
    option: Options = None,
) -> None:
    """Fill imagery.cache ahead of a run: plan, fetch every file of the plan, verify it. A run then needs no network."""
    from pipeline import steps
    from pipeline.artifacts import run_lock
    from pipeline.fetching import fetch_scenes
    from pipeline.request import Request

    parsed = _load(config, option, year=year)
    steps.check_output(parsed)
    with run_lock(parsed.work), log_file(parsed.work):
        request = Request(parsed)
        made = steps.plan_run(request)
        kept = fetch_scenes(request, made)
    told = {r.scene_id: r.reason for r in kept.refused if r not in made.refused}
    lost = sorted((scene, reason) for scene, reason in told.items() if scene not in kept.spare)
    if json_:
        print(json.dumps({"scenes": len(kept.scenes), "lost": dict(lost), "cache": str(parsed.imagery.cache)}))
        return
    print(f"{len(kept.scenes)} scenes at hand, {len(lost)} could not be had; cache: {parsed.imagery.cache}")
    for scene, reason in lost:
        print(f"lost {scene}: {reason}")


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="configuration file (YAML)", metavar="[CONFIG]")] = None,
    json_: Json = False,
    option: Options = None,
) -> None:
    """Check what a run needs: versions, memory, GPU, disk, Prefect, Dask, model, files, archives. Exit 1 on a fault."""
    from flows.doctor import examine

    found = list(examine(_load(config, option) if config else None))
    if json_:
        print(json.dumps([vars(finding) for finding in found]))
    else:
        for finding in found:
            print(f"{finding.state:<5} {finding.check:<16} {finding.text}")
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(1)


@app.command()
def inspect(
    product: Annotated[Path, typer.Argument(help="folder of a product", metavar="PRODUCT")], json_: Json = False
) -> None:
    """Check a product: layers, columns, sums, geometry, COGs, STAC, checksums. Exit code 1 if it is unsound."""
    from pipeline.product.inspect import inspect_product, render_text
    from pipeline.stores.products import at_hand

    product = at_hand(product)
    if not product.is_dir():
        raise ConfigError(f"product {product}: no such folder")
    report = inspect_product(product)
    print(json.dumps(report.to_dict()) if json_ else render_text(report))
    if not report.sound:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the province and the product")] = Path("out/demo"),
    size: Annotated[str, typer.Option(help="small (1,200 px a side) or scene (7,600 px)")] = "small",
    seed: Annotated[int, typer.Option(help="seed of the province; the model was trained on other seeds")] = 20261,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="run the stages in this process")] = False,
) -> None:
    """Simulate a province with known truth, run it, and compare predicted with true area per driver."""
    from pipeline.demo import compare, prepare_demo, render_comparison

    # beside the simulation: where a killed run has left its folder there may be a plan already, and run_config looks
    drawing, new = Drawing(), not (out / "product").exists() and not (out / "product.work").exists()
    with Orchestrator(not no_prefect) as by, drawing if new else nullcontext():
        if new:
            by.begin()
        config, province = prepare_demo(out, size, seed)
        outcome = run_config(config, (), allow_incomplete=False, replan=False, by=by, drawing=drawing)
    report(outcome, False)
    print(render_comparison(compare(outcome.product, province)))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    from pipeline.config import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=1))


# ---------------------------------------------------------------------------------------------- models


@models_app.command("list")
def models_list(
    root: Annotated[Path, typer.Argument(help="folder that holds model packages")] = Path("models"), json_: Json = False
) -> None:
    """List the model packages in a folder."""
    from pipeline.models.store import list_packages

    found = list_packages(root)
    if json_:
        print(
            json.dumps(
                [
                    {"folder": str(item.folder), "name": item.card.name if item.card else None, "fault": item.fault}
                    for item in found
                ]
            )
        )
        return
    for item in found:
        print(f"{item.folder}  {item.card.name if item.card else '-'}  {item.fault or 'sound'}")


@models_app.command("show")
def models_show(
    package: Annotated[Path, typer.Argument(help="folder of a model package")], json_: Json = False
) -> None:
    """Print a model's parts: channels, strides, parameters, GFLOP per megapixel, receptive field. --json: its card."""
    if json_:
        from pipeline.models.card import read_card

        print(read_card(package).model_dump_json(indent=1))
        return
    from pipeline.models.describe import describe, render

    print(render(describe(package)))


@models_app.command("verify")
def models_verify(package: Annotated[Path, typer.Argument(help="folder of a model package")]) -> None:
    """Check that a package's weights are those its card names."""
    from pipeline.models.package import verify_package

    card = verify_package(package)
    print(f"{package}: sound; {card.name} {card.version}, sha256 {card.sha256}")


@models_app.command("import")
def models_import(
    onnx: Annotated[Path, typer.Argument(help="ONNX file", metavar="FILE.onnx")],
    card: Annotated[Path, typer.Option(help="model card (JSON, without sha256)", metavar="CARD.json")],
    out: Annotated[Path | None, typer.Option(help="folder of the new package; default models/<name>")] = None,
) -> None:
    """Make a model package of an ONNX file and a card."""
    from pipeline.models.package import import_onnx

    folder = out or Path("models") / onnx.stem
    made = import_onnx(onnx, card, folder)
    print(f"{folder}: {made.name} {made.version}, sha256 {made.sha256}")


if __name__ == "__main__":
    main()
