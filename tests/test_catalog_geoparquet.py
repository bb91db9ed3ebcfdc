"""stac-geoparquet as a source: the same scenes as from the same items in JSON, whoever wrote the file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import stac_geoparquet.arrow
from catalog_samples import EVER, WORLD, make_item
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog.geoparquet import StacGeoparquet
from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import BANDS, Refusal, Scene
from pipeline.catalog.stac import StaticStac
from pipeline.errors import ConfigError


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    """Write items as the reference implementation does."""
    stac_geoparquet.arrow.to_parquet(stac_geoparquet.arrow.parse_stac_items_to_arrow(items), output_path=path)
    return path


def both(folder: Path, items: list[dict[str, Any]]) -> tuple[list[Scene | Refusal], list[Scene | Refusal]]:
    """What the items are found as from Parquet and from JSON."""
    write(folder / "items.parquet", items)
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = [StacGeoparquet(folder / "items.parquet"), StaticStac(folder / "items.json")]
    return tuple(list(catalog.search(WORLD, *EVER)) for catalog in found)  # type: ignore[return-value]


def real_items(shared_data: Path) -> list[dict[str, Any]]:
    """The real items, with assets on a server."""
    folder = shared_data / "landsat-stac-metadata"
    items = [json.loads(path.read_text()) for path in sorted(folder.glob("LC0*_T1.json"))]
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = "https://example.org/" + asset["href"].rpartition("/")[2]
    assert len(items) == 2
    return items


def test_the_real_items_are_the_same_scenes_as_from_json(shared_data: Path, tmp_path: Path) -> None:
    from_parquet, from_json = both(tmp_path, real_items(shared_data))
    assert from_parquet == from_json
    assert [type(scene) for scene in from_parquet] == [Scene, Scene]
    assert all(set(BANDS) < set(scene.assets) for scene in from_parquet if isinstance(scene, Scene))


_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "datetime": st.datetimes().map(lambda when: when.isoformat() + "Z"),
        "platform": st.sampled_from(["landsat-4", "LANDSAT_7", "landsat-9", "sentinel-2a"]),
        "eo:cloud_cover": st.floats(-1, 101),
        "landsat:wrs_path": st.sampled_from(["001", "233", "999"]),
        "landsat:correction": st.sampled_from(["L2SP", "L2SR", "L1TP"]),
    },
)
_BBOX = st.tuples(st.floats(-179, 175), st.floats(-80, 80)).map(lambda at: shapely.box(*at, at[0] + 2, at[1] + 2))


def test_the_same_scenes_as_from_json_whatever_the_items_say(shared_data: Path, tmp_path: Path) -> None:
    real = real_items(shared_data)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        items = []
        for number in range(data.draw(st.integers(1, 5))):
            item = copy.deepcopy(data.draw(st.sampled_from(real)))
            item["id"] = f"{item['id'][:-3]}_{number:02d}"
            item["properties"] |= data.draw(_CHANGES)
            shape = data.draw(_BBOX)
            item["geometry"], item["bbox"] = json.loads(shapely.to_geojson(shape)), list(shape.bounds)
            for name in data.draw(st.sets(st.sampled_from([*BANDS, "qa_pixel"]))):
                del item["assets"][name]
            for asset in item["assets"].values():
                if data.draw(st.integers(0, 9)) == 0:
                    asset["href"] = data.draw(st.sampled_from(["red.tif", "../red.tif", "/etc/passwd", "ftp://h/r"]))
            items.append(item)
        from_parquet, from_json = both(tmp_path, items)
        assert [(r.scene_id, r.reason, r.datetime) if isinstance(r, Refusal) else r for r in from_parquet] == [
            (r.scene_id, r.reason, r.datetime) if isinstance(r, Refusal) else r for r in from_json
        ]

    check()


def test_it_is_a_source_by_the_ending_of_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", [make_item()])
    assert open_catalog("items.parquet", base=tmp_path) == StacGeoparquet(path)
    (scene,) = open_catalog(str(path)).search(WORLD, *EVER)
    assert isinstance(scene, Scene)
    assert scene.assets["qa_pixel"].href == str(tmp_path / "qa_pixel.tif")
    with pytest.raises(ConfigError, match=r"imagery\.source: .*gone\.parquet is not there"):
        open_catalog("gone.parquet", base=tmp_path)
    with pytest.raises(ConfigError, match=r"imagery\.source: https://.*download it"):
        open_catalog("https://example.org/items.parquet")


def test_days_and_area_are_refusals_as_in_json(tmp_path: Path) -> None:
    catalog = StacGeoparquet(write(tmp_path / "items.parquet", [make_item()]))
    (refusal,) = catalog.search(shapely.box(0, 0, 1, 1), *EVER)
    assert "outside the area" in refusal.reason  # type: ignore[union-attr]


def plain(**columns: Any) -> pa.Table:
    """A table that is a right stac-geoparquet but for `columns` (None: left out)."""
    geometry = shapely.to_wkb(shapely.box(-61, -4, -59, -2))
    assets = {"red": {"href": "https://example.org/red.tif"}}
    whole: dict[str, Any] = {
        "id": [make_item()["id"]], "geometry": pa.array([geometry], pa.binary()), "assets": [assets],
        "datetime": pa.array([1_690_000_000_000_000], pa.timestamp("us", "UTC")), "platform": ["landsat-9"],
        "landsat:correction": ["L2SP"], "landsat:collection_number": ["02"],
    }  # fmt: skip
    return pa.table({key: value for key, value in {**whole, **columns}.items() if value is not None})


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": [None]}, "plain id"),
        ({"id": ["../../evil"]}, "plain id"),
        ({"geometry": pa.array([b"no wkb"], pa.binary())}, "no usable geometry"),
        ({"geometry": pa.array([None], pa.binary())}, "no usable geometry"),
        ({"geometry": ["POINT (0 0)"]}, "no usable geometry"),
        ({"assets": ["text"]}, "no usable band"),
        ({"assets": pa.array([None], pa.struct([("red", pa.struct([("href", pa.string())]))]))}, "no usable band"),
        ({"assets": [{"red": {"href": 7}}]}, "band red"),
        ({"datetime": None}, "no usable datetime"),
        ({"datetime": pa.array([3], pa.int64())}, "no usable datetime"),
    ],
)
def test_a_row_that_cannot_serve_says_why(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(plain(), path)
    (scene,) = StacGeoparquet(path).search(WORLD, *EVER)
    assert isinstance(scene, Scene)
    pq.write_table(plain(**columns), path)
    (refusal,) = StacGeoparquet(path).search(WORLD, *EVER)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"assets": None}, "no column assets"),
        ({"geometry": None}, "no column geometry"),
        ({"datetime": pa.array([2**62], pa.timestamp("us"))}, "cannot be read"),
        ({"id": pa.array([], pa.string()), **dict.fromkeys(
            ("geometry", "assets", "datetime", "platform", "landsat:correction", "landsat:collection_number"),
            pa.array([], pa.string()))}, "holds no item"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(plain(**columns), path)
    with pytest.raises(ConfigError, match=reason) as caught:
        StacGeoparquet(path).search(WORLD, *EVER)
    assert str(caught.value).startswith(f"imagery.source: {path}")
    assert "\n" not in str(caught.value)


def one_line(error: ConfigError) -> None:
    assert str(error).isprintable()


def test_damaged_bytes_are_refused_or_read_right(tmp_path: Path, shared_data: Path) -> None:
    path = write(tmp_path / "items.parquet", real_items(shared_data))
    whole, right = path.read_bytes(), list(StacGeoparquet(path).search(WORLD, *EVER))

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=30), st.booleans())
    def check(at: int, junk: bytes, cut: bool) -> None:
        path.write_bytes(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))
        try:
            found = list(StacGeoparquet(path).search(WORLD, *EVER))
        except ConfigError as error:
            one_line(error)
            return
        # a file without checksums says what it says: here only that nothing else is raised, and nothing is made up
        assert len(found) <= len(right)

    check()
