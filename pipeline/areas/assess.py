"""`clearcause assess`: a filled-in sample held against the product it was drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.areas.reference import match_events, read_answers
from pipeline.areas.sampling import Product
from pipeline.areas.shares import accuracy
from pipeline.areas.sources import ReferenceSample, Source, sample_source
from pipeline.areas.stratified import Accuracy, Estimates, Floats
from pipeline.areas.tables import FEW, estimates_table
from pipeline.areas.template import SAMPLE_FILE
from pipeline.artifacts import write_json
from pipeline.errors import ConfigError
from pipeline.models.card import ErrorMatrix

ASSESSMENT_FILE = "assessment.json"


@dataclass(frozen=True)
class Assessment:
    """What a sample says of a product: estimates (see the layer of that name), accuracy by area and by events.

    `counts` [K, K] are labelled events, rows mapped, columns reference. `error_matrix` can go into a model card.
    """

    product: Product
    sample: ReferenceSample
    source: Source
    estimates: pd.DataFrame
    by_area: Accuracy
    by_count: Accuracy
    counts: NDArray[np.int64]
    error_matrix: ErrorMatrix
    about: dict[str, str]


def assess(product: Product, path: Path) -> Assessment:
    """Estimate areas and accuracy of a product from a filled-in sample (its folder or file).

    Raises:
        ConfigError: rows not filled in, unknown names, events twice or not in the product, a sample of another product.
    """
    path = path / SAMPLE_FILE if path.is_dir() else path
    names = product.scheme.names
    answers = read_answers(path, names, key="sample")
    if "drivers_sha256" not in answers.about or answers.strata is None:
        raise ConfigError(
            f"sample {path}: was not drawn by `clearcause sample`; give other labels as `reference: {{path: ...}}` in "
            "the configuration of the run"
        )
    if answers.about["drivers_sha256"] != product.sha256:
        raise ConfigError(
            f"sample {path}: was drawn from another product ({answers.about.get('region')}, "
            f"{answers.about.get('model')}); "
            "to use it for this one, give it as `reference: {path: ...}` in the configuration of the run"
        )
    absent = answers.rows["event_id"][~answers.rows["event_id"].isin(product.events["event_id"].astype(str))]
    if len(absent):
        raise ConfigError(f"sample {path}: {len(absent)} events are not in the product, first {absent.iloc[0]}")
    sample = match_events(answers, product.events, names, key="sample")
    source = sample_source(sample, len(names))
    known = product.events[product.events["driver"].notna()]
    code = known["driver"].map({name: k for k, name in enumerate(names)}).to_numpy(np.int64)
    areas = np.bincount(code, known["area_ha"].to_numpy(float), len(names))
    events = np.bincount(code, minlength=len(names)).astype(float)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (sample.mapped, sample.reference), 1)
    return Assessment(
        product,
        sample,
        source,
        estimates_table(product.events, source, names),
        accuracy(source.shares, areas),
        accuracy(sample.shares(len(names), by_area=False), events),
        counts,
        _error_matrix(product, sample, areas),
        answers.about,
    )


def write_assessment(result: Assessment, folder: Path) -> Path:
    """Write `assessment.json` into a folder, whole or not at all."""
    path = folder / ASSESSMENT_FILE
    write_json(path, to_dict(result))
    return path


def to_dict(result: Assessment) -> dict[str, Any]:
    """The JSON form: what was assessed, accuracy, areas, error matrices, and what they rest on."""
    names = result.product.scheme.names
    return {
        "product": {
            "region": result.product.run["region"],
            "years": result.product.run["years"],
            "model": result.product.run["model"],
            "drivers_sha256": result.product.sha256,
        },
        "sample": {
            **{key: value for key, value in result.about.items() if key not in ("drivers_sha256", "region", "model")},
            "drawn": result.sample.drawn,
            "labelled": len(result.sample.reference),
            "cannot_tell": result.sample.cannot_tell,
            "strata": len(result.sample.design.population),
        },
        "note": result.source.note,
        "accuracy_by_area": _accuracy_dict(result.by_area, names),
        "accuracy_by_events": _accuracy_dict(result.by_count, names),
        "areas": [{k: _plain(v) for k, v in row.items() if k != "note"} for row in result.estimates.to_dict("records")],
        "few": FEW,
        "counts": {"rows": "mapped", "columns": "reference", "classes": names, "counts": result.counts.tolist()},
        "error_matrix": result.error_matrix.model_dump(mode="json"),
        "method": "Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015; Stehman 2014, doi:10.1080/01431161.2014.930207",
    }


def render(result: Assessment) -> str:
    """The assessment as text for a terminal."""
    names = result.product.scheme.names
    titles = {item.name: item.title for item in result.product.scheme}
    sample = result.sample
    lines = [
        f"{sample.drawn} events drawn, {len(sample.reference)} labelled, {sample.cannot_tell} cannot tell",
        f"overall accuracy  by area {_share(result.by_area.overall)}   by events {_share(result.by_count.overall)}",
        "",
        f"{'driver':<36}{'labels':>7}  {'users (by area)':<17}{'producers (by area)':<17}",
    ]
    for k, name in enumerate(names):
        users, producers = (_share(_one(e, k)) for e in (result.by_area.users, result.by_area.producers))
        n = int(result.counts[:, k].sum())
        lines.append(f"{titles[name]:<36}{n:>7}  {users:<17}{producers:<17}{'  few' if n < FEW else ''}".rstrip())
    rows = result.estimates[result.estimates["scope"] == "region"]
    for year in ["all", *sorted(set(rows["loss_year"]) - {"all"})]:
        lines += [
            "",
            f"{'loss of all years' if year == 'all' else f'loss of {year}':<36}{'mapped ha':>12}{'estimate ha':>13}",
        ]
        lines[-1] += f"{'95 % interval':>24}"
        for row in rows[rows["loss_year"] == year].to_dict("records"):
            lines.append(_area_line(row, titles.get(row["driver"], row["driver"])))
    return "\n".join([*lines, "", result.source.note])


def _area_line(row: dict[str, Any], title: str) -> str:
    text = f"{title:<36}{row['mapped_ha']:>12,.1f}"
    if pd.isna(row["adjusted_ha"]):
        return f"{text}{'-':>13}{'-':>24}"
    interval = "-" if pd.isna(row["low_ha"]) else f"{row['low_ha']:,.1f} to {row['high_ha']:,.1f}"
    flags = [str(row["reference_flag"])] if pd.notna(row["reference_flag"]) else []
    flags += ["shares of the region"] if row["interval_source"] == "sample_region" else []
    return f"{text}{row['adjusted_ha']:>13,.1f}{interval:>24}{'  ' + ', '.join(flags) if flags else ''}"


def _error_matrix(product: Product, sample: ReferenceSample, areas: Floats) -> ErrorMatrix:
    """The card's error matrix: labels of each mapped driver shared out as its events are, by the design.

    Where all events of a driver were equally likely to be drawn these are the counts themselves; else counts of a
    sample that prefers large or uncertain events would pass for the model's errors.
    """
    classes = product.scheme.names
    shares = sample.shares(len(classes), by_area=False)
    counts = []
    for n, q in zip(shares.mapped_n, shares.q, strict=True):
        whole = np.floor(n * q + 1e-9).astype(int)
        order = np.argsort(whole - n * q, kind="stable")
        whole[order[: int(n) - int(whole.sum())]] += 1
        counts.append(tuple(int(c) for c in whole))
    years = ", ".join(str(year) for year in product.run["years"])
    return ErrorMatrix(
        classes=classes,
        counts=tuple(counts),
        mapped_shares=tuple((areas / areas.sum()).tolist()),
        split=f"reference sample of {product.run['region']}, loss of {years}",
        n=int(shares.mapped_n.sum()),
        note="stratified random sample of events; counts weighted by the design within each mapped class",
    )


def _accuracy_dict(measured: Accuracy, names: tuple[str, ...]) -> dict[str, Any]:
    classes = {
        name: {"users": _figure(_one(measured.users, k)), "producers": _figure(_one(measured.producers, k))}
        for k, name in enumerate(names)
    }
    return {"overall": _figure(measured.overall), "classes": classes, "matrix": measured.matrix.tolist()}


def _one(estimates: Estimates, k: int) -> Estimates:
    return Estimates(estimates.value[k], estimates.se[k])


def _figure(estimate: Estimates) -> dict[str, float | None]:
    low, high = estimate.interval
    values = {"value": estimate.value, "se": estimate.se, "low": np.maximum(low, 0), "high": np.minimum(high, 1)}
    return {name: _plain(value) for name, value in values.items()}


def _share(estimate: Estimates) -> str:
    if np.isnan(estimate.value):
        return "-"
    return f"{float(estimate.value):.3f} (SE {float(estimate.se):.3f})"


def _plain(value: Any) -> Any:
    """A value of a table as JSON: no numpy types, null for nothing."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    return None if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else value
