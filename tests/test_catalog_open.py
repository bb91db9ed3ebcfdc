from __future__ import annotations

import json
import subprocess
import sys

import pytest
from catalog_samples import make_item

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.open import open_catalog
from pipeline.catalog.stac import StacApi, StaticStac
from pipeline.errors import ConfigError


def test_each_kind_of_source(tmp_path):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "catalog.json").write_text(json.dumps(make_item()))
    assert open_catalog("bundles/", base=tmp_path) == BundleFolder(tmp_path / "bundles")
    assert open_catalog(str(tmp_path / "bundles")) == BundleFolder(tmp_path / "bundles")
    assert open_catalog("catalog.json", base=tmp_path) == StaticStac(tmp_path / "catalog.json")
    assert open_catalog("https://example.org/stac", ("a",)) == StacApi("https://example.org/stac", ("a",))
    known = open_catalog("usgs")
    assert isinstance(known, StacApi)
    assert known.collections == ("landsat-c2l2-sr",)
    assert open_catalog("usgs", ("landsat-c2l2-st",)).collections == ("landsat-c2l2-st",)
    for name in ("planetary-computer", "earth-search"):
        assert open_catalog(name).collections == ("landsat-c2-l2",)
        assert open_catalog(name).url.startswith("https://")


@pytest.mark.parametrize(
    "source", ["planetary_computer", "", "ftp://example.org", "s3://b/k", "no/such/folder/", "no.json"]
)
def test_anything_else_names_the_key_and_the_choices(tmp_path, source):
    with pytest.raises(
        ConfigError, match=r"imagery\.source.*planetary-computer, earth-search, usgs.*folder of bundles"
    ):
        open_catalog(source, base=tmp_path)


def test_a_folder_is_read_without_importing_pystac(tmp_path):
    code = f"import sys; from pipeline.catalog.open import open_catalog; open_catalog({str(tmp_path)!r}); "
    subprocess.run([sys.executable, "-c", code + "assert 'pystac_client' not in sys.modules"], check=True)
