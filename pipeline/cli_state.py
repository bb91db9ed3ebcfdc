"""The program's commands about a run that was begun: status, retry."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_run import Orchestrator, report, run_config

app = typer.Typer(rich_markup_mode=None)

Out = Annotated[Path, typer.Argument(help="output folder of a run (output.dir)", metavar="OUT")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def place_of(out: Path) -> Path:
    """The folder of a run on this machine, of an address in a store too; raises ConfigError where that is none."""
    from pipeline.errors import ConfigError
    from pipeline.store_address import local_part, store_address

    try:
        return local_part(store_address(out)) if store_address(out) else out.resolve()
    except ValueError as error:
        raise ConfigError(str(error)) from error


@app.command()
def status(out: Out, json_: Json = False) -> None:
    """Say how a run stands: planned, done and failed blocks, whether it is running, and what goes on with it."""
    from pipeline.status import read_status, render_status

    found = read_status(place_of(out))
    print(json.dumps(dataclasses.asdict(found), ensure_ascii=False) if json_ else render_status(found))


@app.command()
def retry(
    out: Out,
    executor: Annotated[str | None, typer.Option(help="somewhere else: local | threads | ... | ADDRESS")] = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="run the stages in this process")] = False,
    allow_incomplete: Annotated[bool, typer.Option("--allow-incomplete", help="publish even if blocks failed")] = False,
    json_: Json = False,
) -> None:
    """Run again what failed or was never reached, with the configuration that the last run of this folder had."""
    from pipeline.config import Compute, validated
    from pipeline.request import remembered
    from pipeline.status import work_of

    config = remembered(work_of(place_of(out)))
    if executor:
        tree = {**config.compute.model_dump(), "executor": executor}
        config = config.model_copy(update={"compute": validated(Compute, tree, "--executor")})
    with Orchestrator(not no_prefect) as by:
        outcome = run_config(config, (), allow_incomplete=allow_incomplete, replan=False, by=by)
    report(outcome, json_)
