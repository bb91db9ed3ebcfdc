"""GDAL holds few decoded tiles in every stage of a run; by itself it would take a twentieth of the machine's memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from rasterio.env import get_gdal_config
from run_samples import ROOT

from pipeline import fetching, gdal, steps

READ = """
import sys
import rasterio
from pipeline.blocks import peak_rss_mb
from pipeline.gdal import small_cache

def read():
    with rasterio.open(sys.argv[1]) as raster:
        for _, window in raster.block_windows(1):
            raster.read(1, window=window)

if sys.argv[2] == "small":
    read = small_cache(read)
before = peak_rss_mb()
read()
print(peak_rss_mb() - before)
"""


class AskedError(Exception):
    """What a stage's environment was when it asked for something."""


class Asked:
    """Stands for whatever a stage is given, and is the first thing it looks at."""

    def __getattr__(self, name: str) -> Any:
        raise AskedError(get_gdal_config("GDAL_CACHEMAX"))


@pytest.mark.parametrize("stage", [steps.plan_run, fetching.fetch_scenes, steps.merge_blocks, steps.publish_product])
def test_every_stage_that_reads_rasters_has_a_small_cache(stage):
    arguments = [Asked() for _ in range(stage.__wrapped__.__code__.co_argcount)]
    with pytest.raises(AskedError) as asked:
        stage(*arguments)
    assert asked.value.args == (gdal.CACHE,)


def test_it_holds_what_it_says(tmp_path):
    path = tmp_path / "large.tif"
    make = "import sys, rasterio; rasterio.open(sys.argv[1], 'w', driver='GTiff', width=16384, height=12288, count=1, "
    make += "dtype='uint8', tiled=True, sparse_ok=True, blockxsize=512, blockysize=512).close()"
    subprocess.run([sys.executable, "-c", make, path], check=True)

    def grown(how: str) -> int:
        line = [sys.executable, "-c", READ, str(path), how]
        return int(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    small, own = grown("small"), grown("own")
    assert small < (gdal.CACHE >> 20) + 40
    assert own > small + 60, "GDAL's own cache is as small here: this test shows nothing"
