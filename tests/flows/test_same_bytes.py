"""Same input, same bytes on a CPU: whatever the number of workers, but for the seconds a block took."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from run_samples import ROOT, run, write_config

from flows.runtime import open_pool
from pipeline.export import ExportParams, export_product
from pipeline.request import thread_pool

RAW = ("drivers.tif", "confidence.tif", "drivers.tif.aux.xml", "report.html", "collection.json")


def timeless(product, folder):
    """Every file of a product: `blocks.seconds` set to 0, and what depends on it left out of the JSON files."""
    package = folder / "timeless.gpkg"
    shutil.copy(product / "drivers.gpkg", package)
    with sqlite3.connect(package) as database:
        # the spatial index's triggers call functions that only a geodatabase has
        kept = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'blocks'"
        for (name,) in database.execute(kept).fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE blocks SET seconds = 0")
    database.execute("VACUUM")
    database.close()
    files = {"drivers.gpkg": package.read_bytes(), **{name: (product / name).read_bytes() for name in RAW}}
    item = json.loads((product / "item.json").read_text())
    for asset in item["assets"].values():
        if asset["href"].endswith((".gpkg", "run.json")):
            for key in ("file:checksum", "file:size"):
                asset.pop(key, None)
    record = json.loads((product / "run.json").read_text())
    del record["timings"]
    for name in ("drivers.gpkg", "item.json"):
        del record["files"][name]
    made = export_product(product, folder / "export", ExportParams("geoparquet", ("events", "patches", "units")))
    files |= {path.name: path.read_bytes() for path, _, _ in made.files}
    return {**files, "item.json": item, "run.json": record}


def assert_same_bytes(one, other):
    assert sorted(one) == sorted(other)
    for name in one:
        assert one[name] == other[name], name


def products(world, tiny_model, tmp_path, executor, counts, pool):
    found = []
    for count in counts:
        folder = tmp_path / f"{executor}-{count}"
        changes = {"compute__executor": executor, "compute__workers": count}
        # one name for all: a product names its own folder
        config = write_config(folder, world, tiny_model, **changes)
        found.append(timeless(run(config, pool=pool).product, folder))
    return found


def test_threads_give_the_same_bytes(world, tiny_model, tmp_path):
    one, four = products(world, tiny_model, tmp_path, "threads", (1, 4), thread_pool)
    assert_same_bytes(one, four)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_two_and_four_workers_give_the_same_bytes(world, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plain = products(world, tiny_model, tmp_path, "threads", (1,), thread_pool)[0]
    for other in products(world, tiny_model, tmp_path, "local", (1, 2, 4), open_pool):
        assert_same_bytes(plain, other)
