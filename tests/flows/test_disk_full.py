"""A disk that is full at any moment: always noticed, told in a line that names the path, the earlier product untouched.

GDAL forgets to report a full disk when it closes a file, so what counts is a real one: a file system in memory, filled
up to so many bytes.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from run_samples import assert_same_results, run, snapshot, write_config

from pipeline import fetching
from pipeline.errors import ClearcauseError
from pipeline.export import ExportParams, export_product
from pipeline.product.inspect import inspect_product, render_text

STEP = 64 << 10
FORMATS = ("geoparquet", "flatgeobuf", "geojson", "pmtiles", "csv", "xlsx", "eudr")


@pytest.fixture
def small(tmp_path):
    """A file system of 48 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"no file system can be mounted: {mounted.stderr}")
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def leave(folder, free):
    """Fill a file system up to `free` bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    room = os.statvfs(folder)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize - free)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_meets_a_full_disk_at_every_step(small, world, tiny_model, tmp_path, cli, monkeypatch):
    config = write_config(tmp_path, world, tiny_model, output={"dir": str(small / "product"), "uncertain_below": 0.4})
    product = run(config).product
    before = snapshot(product)
    # the check before a run would refuse all of this: here the disk fills up after it
    monkeypatch.setattr(fetching, "_check_space", lambda *_: None)
    options = ("output.uncertain_below=0.3", "output.simplify_m=1")
    for step in range(400):
        leave(small, step * STEP)
        ended = cli("run", config, "--no-prefect", "-o", options[0], "-o", options[1])
        if ended.code == 0:
            break
        assert ended.code in (1, 2, 3)
        last = ended.err.splitlines()[-1]
        assert last.startswith("error: "), ended.err
        assert str(small) in last, last
        assert "Traceback" not in ended.err, ended.err
        assert snapshot(product) == before
    assert step > 5
    assert snapshot(product) != before
    report = inspect_product(product)
    assert report.sound, render_text(report)
    calm = write_config(tmp_path / "calm", world, tiny_model)
    assert_same_results(product, run(calm, *options).product)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_that_meets_a_full_disk_at_every_step(kind, small, reference, tmp_path):
    """Steps of 4 KiB: the files are small."""
    layers = ("events",) if kind in ("eudr", "pmtiles") else ("events", "patches")
    params = ExportParams(kind, layers)
    calm = {p.name: p.read_bytes() for p, _, _ in export_product(reference, tmp_path / "calm", params).files}
    for step in range(400):
        leave(small, step * (4 << 10))
        out = small / f"export-{step}"
        try:
            made = export_product(reference, out, params)
        except (ClearcauseError, OSError) as error:
            assert str(small) in str(error), error  # noqa: PT017
            whole = {path.name for path in out.glob("*") if not path.name.startswith(".")} if out.exists() else set()
            assert all((out / name).read_bytes() == calm[name] for name in whole), "a half-written file has its name"
            subprocess.run(["rm", "-rf", out], check=True)
            continue
        assert {path.name: path.read_bytes() for path, _, _ in made.files} == calm
        break
    assert step > 0
