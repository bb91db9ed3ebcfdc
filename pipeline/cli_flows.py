"""The program's command that keeps regions running: serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def serve(
    config: Annotated[
        list[Path] | None, typer.Argument(help="configuration files; default configs/*.yaml", metavar="[CONFIG ...]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="regions that run at once")] = 1,
    rollup: Annotated[Path, typer.Option(help="folder of the table over many regions")] = Path("out/rollup"),
) -> None:
    """Serve the Prefect deployments of these configurations: on their schedules, and on demand. Ends with Ctrl-C."""
    configs = config or sorted(Path("configs").glob("*.yaml"))
    if not configs:
        raise ConfigError("no configuration: name some, or run this where configs/ lies")
    for key, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # what the program itself logs is seen beside the run
        "PREFECT_LOGGING_EXTRA_LOGGERS": "clearcause",
    }.items():
        os.environ.setdefault(key, value)
    from flows.deployments import line_of, make_deployments
    from flows.serving import check_server, serve_deployments

    url = check_server()
    deployments = make_deployments(configs, rollup)
    print(f"serving for {url}; start a run with `prefect deployment run NAME`, stop with Ctrl-C", flush=True)
    for deployment in deployments:
        print(line_of(deployment), flush=True)
    serve_deployments(deployments, limit)
