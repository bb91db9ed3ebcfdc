"""A drawn world as an archive: its scenes as STAC Items whose files lie behind an address."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import shapely
from run_samples import World

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.scene import Scene


def found_scenes(world: World) -> list[Scene]:
    aoi = shapely.from_geojson(json.dumps(json.loads(world.aoi.read_text())["features"][0]["geometry"]))
    found = BundleFolder(world.scenes).search(aoi, date(2000, 1, 1), date(2030, 1, 1))
    return [scene for scene in found if isinstance(scene, Scene)]


def item(scene: Scene, root: Path, base: str, checksums: bool) -> dict[str, Any]:
    assets = {}
    for band, asset in scene.assets.items():
        path = Path(asset.href)
        fields: dict[str, Any] = {
            "href": base + path.relative_to(root).as_posix(),
            "raster:bands": [{"scale": asset.scale, "offset": asset.offset, "nodata": asset.nodata}],
        }
        if checksums:
            fields["file:checksum"] = "1340" + hashlib.sha512(path.read_bytes()).hexdigest()
        assets[band] = fields
    properties = {
        "datetime": scene.datetime.isoformat(), "platform": scene.platform, "eo:cloud_cover": scene.cloud_cover,
        "landsat:wrs_path": f"{scene.path:03d}", "landsat:wrs_row": f"{scene.row:03d}", "landsat:correction": "L2SP",
        "landsat:collection_number": "02",
    }  # fmt: skip
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": scene.id, "properties": properties, "assets": assets,
        "geometry": json.loads(shapely.to_geojson(shapely.from_wkt(scene.footprint))), "links": [],
    }  # fmt: skip
