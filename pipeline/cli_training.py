"""The commands that make and judge models: train, evaluate, baseline, dataset. Heavy imports stay inside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.training.datasets.base import DriverDataset

app = typer.Typer(rich_markup_mode=None)

Options = Annotated[list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="override a key, e.g. seed=1")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Level = Annotated[Literal["merged", "fine"], typer.Option(help="classes: merged (the four of ForestNet) or fine")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="configuration of a training (YAML)", metavar="CONFIG")],
    json_: Json = False,
    option: Options = None,
) -> None:
    """Train, calibrate and judge a driver model; writes a model package."""
    from pipeline.training.environment import prepare_environment

    prepare_environment()
    from pipeline.training.params import load_training
    from pipeline.training.show import judgement_text
    from pipeline.training.train import train as run

    trained = run(load_training(config, tuple(option or ())))
    if json_:
        print(json.dumps({"package": str(trained.folder), "warnings": trained.warnings}))
        return
    print(judgement_text(trained.judgement))
    print(f"package: {trained.folder}  sha256 {trained.card.sha256}")


@app.command()
def evaluate(
    model: Annotated[Path | None, typer.Argument(help="folder of a model package", metavar="MODEL")] = None,
    dataset: Annotated[Path | None, typer.Argument(help="folder of a data set", metavar="DATASET")] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all")] = "test",
    look: Annotated[str, typer.Option(help="composite, closest_year, least_cloudy or furthest_year")] = "composite",
    resolution: Annotated[float | None, typer.Option(help="metres a pixel to read the data set at")] = None,
    block_km: Annotated[float | None, typer.Option(help="intervals by blocks of land this wide, not by event")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for judgement.json and the plots")] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="judgement.json of a model, in the order of the table; may be repeated")
    ] = None,
    level: Level = "merged",
    json_: Json = False,
) -> None:
    """Judge a model on labelled events, or compare judgements: --compare A.json --compare B.json ..."""
    # Ten parameters: they are the command line
    if compare:
        _compare(compare, json_)
        return
    if model is None or dataset is None:
        raise InputError("evaluate: name a model package and a data set, or give --compare twice or more")
    from pipeline.training.evaluate import EvaluateParams
    from pipeline.training.evaluate import evaluate as run
    from pipeline.training.show import judgement_text

    result = run(model, dataset, EvaluateParams(split, look, level, resolution, block_km, out))
    print(result.to_json() if json_ else judgement_text(result))


@app.command()
def baseline(
    dataset: Annotated[Path, typer.Argument(help="folder of a data set, or of label tables", metavar="DATASET")],
    features: Annotated[str, typer.Option(help="location, location+year, visible or visible+aux")] = "location",
    split: Annotated[
        list[str] | None, typer.Option(help="random, published, or a block size in km; may be repeated")
    ] = None,
    seed: int = 0,
    search: Annotated[bool, typer.Option("--search", help="search the forests' settings as the paper did")] = False,
    level: Level = "merged",
    json_: Json = False,
) -> None:
    """Judge what needs no network: majority class, nearest neighbours and random forests; same JSON as a model."""
    from pipeline.training.baselines import BaselineParams, results_json, run_baseline
    from pipeline.training.datasets.open import open_dataset

    params = BaselineParams(splits=tuple(split) if split else BaselineParams.splits, seed=seed, search=search)
    source = open_dataset(dataset, level=level) if features.startswith("visible") else dataset
    report = run_baseline(source, features, params, level)
    print(results_json(report.results) if json_ else report.text())
    # standard error, so that a pipe of JSON stays JSON
    for warning in _leaks(source, level):
        print(f"warning: {warning}", file=sys.stderr)


@app.command("dataset")
def make_dataset(
    config: Annotated[Path, typer.Argument(help="configuration of the run the events come from", metavar="CONFIG")],
    events: Annotated[Path, typer.Argument(help="GeoPackage with the corrected `events` layer", metavar="EVENTS")],
    out: Annotated[Path, typer.Argument(help="folder of the data set; new", metavar="OUT")],
    licence: Annotated[str, typer.Option(help="of the labels and images")] = "unknown",
    simulated: Annotated[bool, typer.Option("--simulated", help="labels or images were simulated")] = False,
) -> None:
    """Make training data of a run's events, their drivers corrected by hand, and its images."""
    from pipeline.config import load_config
    from pipeline.training.datasets.write import WriteOptions, write_dataset

    made = write_dataset(load_config(config), events, out, WriteOptions(licence=licence, simulated=simulated))
    print(f"{out}: {made.events} events on {made.images} images, {made.scenes} single scenes")
    for fault, count in sorted(made.faults.items()):
        print(f"not usable: {count} ({fault})")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="forestnet, camforestnet-15 or camforestnet-4", metavar="NAME")],
    folder: Annotated[Path, typer.Argument(help="where to put the archive", metavar="FOLDER")],
) -> None:
    """Fetch a public archive of labelled events; goes on where it stopped."""
    from pipeline.training.datasets.download import ARCHIVES
    from pipeline.training.datasets.download import download as fetch

    found = fetch(name, folder)
    vouched = "as its publisher says" if found.vouched else "no checksum is published; keep this one"
    print(f"{found.path}: {found.bytes:,} bytes, sha256 {found.sha256} ({vouched})")
    print(ARCHIVES[name].next_step)


def _leaks(source: Path | DriverDataset, level: Literal["merged", "fine"]) -> tuple[str, ...]:
    from pipeline.training.datasets.tables import read_labels
    from pipeline.training.leaks import find_leaks, find_table_leaks

    if not isinstance(source, Path):
        return find_leaks(source).warnings
    events, scheme = read_labels(source, level)
    return find_table_leaks(events, len(scheme), source.resolve().name).warnings


def _compare(paths: list[Path], as_json: bool) -> None:
    from pipeline.training.compare import compare
    from pipeline.training.results import Judgement

    results = []
    for path in paths:
        file = path / "judgement.json" if path.is_dir() else path
        try:
            results.append(Judgement.from_json(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}; `evaluate` or `train` writes it") from error
    table = compare(results)
    print(table.to_json() if as_json else table.text())
