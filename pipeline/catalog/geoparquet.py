"""Scenes from a stac-geoparquet file: STAC Items as the rows of a GeoParquet file. All of it is untrusted.

Specification: radiantearth/stac-geoparquet-spec, versions 1.0 and 1.1 (the file format; Items inside may be of any STAC
version). Rows are turned back into Items as plain dictionaries and judged like those of any other source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely import Geometry

from pipeline.catalog.hrefs import any_href, shown
from pipeline.catalog.items import Json, scene_from_item
from pipeline.catalog.scene import Refusal, Scene
from pipeline.catalog.select import one_per_acquisition, within
from pipeline.errors import ConfigError

_NEEDED = ("id", "geometry", "assets")
_UNREAD = ("links", "stac_extensions")
_NOT_PROPERTIES = ("type", "stac_version", "id", "geometry", "bbox", "collection", "assets", *_UNREAD)
_MAX_ROWS, _MAX_BYTES = 200_000, 2_000_000_000
_ROWS = 256


@dataclass(frozen=True)
class StacGeoparquet:
    """STAC Items in a local stac-geoparquet file.

    Nothing is fetched, and nothing outside its folder is read. Raises ConfigError from `search` where the file is none,
    is damaged, or holds no item.
    """

    path: Path

    def search(self, aoi: Geometry, first: date, last: date) -> Iterator[Scene | Refusal]:
        """Yield every item as Scene or Refusal (see `Catalog`)."""
        root = self.path.resolve().parent
        resolve = partial(any_href, folder=root, root=root)
        where = f"imagery.source: {self.path}"
        try:
            found = [within(scene_from_item(item, resolve, self.path.name), aoi, first, last) for item in self._items()]
        # a parser of bytes that anybody may have made: Arrow's own errors are subclasses of these
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
            raise ConfigError(f"{where} cannot be read as stac-geoparquet: {shown(str(error))}") from error
        if not found:
            raise ConfigError(f"{where} holds no item")
        return iter(one_per_acquisition(found))

    def _items(self) -> Iterator[Json]:
        """Yield the rows as Items; raises ValueError, or what pyarrow raises for a damaged file."""
        with pq.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            lacking = [name for name in _NEEDED if name not in names]
            if lacking:
                raise ValueError(f"it has no column {lacking[0]}")
            held = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
            if file.metadata.num_rows > _MAX_ROWS or held > _MAX_BYTES:
                raise ValueError(
                    f"{file.metadata.num_rows} items in {held // 1_000_000} MB are too many; keep those of the region"
                )
            # columns are named by their root: names of fields inside assets may hold dots
            wanted = [name for name in names if name not in _UNREAD]
            for batch in file.iter_batches(_ROWS):
                for row in batch.select(wanted).to_pylist():
                    yield _item(row)


def _item(row: Json) -> Json:
    """Return the Item of a row: properties are columns of their own, and what an item lacks is null."""
    properties = {key: value for key, value in row.items() if key not in _NOT_PROPERTIES}
    geometry, bbox = row["geometry"], row.get("bbox")
    if isinstance(bbox, dict):
        # the struct's fields are in the order of STAC's list: minima, then maxima
        bbox = [value for value in bbox.values() if value is not None]
    return {
        "id": row["id"],
        "properties": _bare(properties),
        "assets": _bare(row["assets"]),
        "geometry": _geojson(geometry) if isinstance(geometry, bytes) else None,
        "bbox": bbox,
    }


def _geojson(wkb: bytes) -> object:
    try:
        return json.loads(shapely.to_geojson(shapely.from_wkb(wkb)))
    except (shapely.errors.GEOSException, ValueError, TypeError):
        return None


def _bare(value: Any) -> Any:
    """Return `value` without nulls, which stand for what the item lacks, and with times as text."""
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_bare(inner) for inner in value if inner is not None]
    return value.isoformat() if isinstance(value, datetime) else value
