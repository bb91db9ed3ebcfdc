"""A STAC API as the Planetary Computer runs it: stac-fastapi on pgstac, on a PostgreSQL of its own, on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import requests
import shapely
from server_programs import INSTALLED, answers, free_port, missing, program, running, workplace

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.scene import Scene

_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=40", "shared_buffers=32MB")


@dataclass(frozen=True)
class StacServer:
    """`url` is the API's root."""

    url: str

    def load(self, collection: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
        """Add a collection, and items to it."""
        self._post("/collections", collection)
        rows = {item["id"]: {**item, "collection": collection["id"]} for item in items}
        if not rows:
            return
        self._post(f"/collections/{collection['id']}/bulk_items", {"items": rows, "method": "insert"})

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = requests.post(self.url + path, json=body, timeout=60)
        assert answer.ok, answer.text


@contextmanager
def serve_stac() -> Iterator[StacServer]:
    """Start PostgreSQL with an empty pgstac, and the API."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    initdb, postgres = (program(*(place / name for place in binaries), name) for name in ("initdb", "postgres"))
    if not list(Path("/usr/share/postgresql").glob("*/extension/postgis.control")):
        missing("PostGIS (postgresql-15-postgis-3)")
    uvicorn, migrate = (program(INSTALLED / "venv/bin" / name) for name in ("uvicorn", "pypgstac"))
    # initdb refuses root
    owner = "postgres" if os.geteuid() == 0 else None
    with workplace(owner) as folder, workplace() as mine:
        data, database, port = folder / "data", free_port(), free_port()
        who: dict[str, Any] = {"user": owner, "group": owner, "extra_groups": []} if owner else {}
        subprocess.run(
            [initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"],
            check=True, capture_output=True, cwd=folder, timeout=60, **who,
        )  # fmt: skip
        environment = {
            "PGHOST": "127.0.0.1", "PGPORT": str(database), "PGUSER": "postgres", "PGDATABASE": "postgres",
            "PGPASSWORD": "none", "ENABLE_TRANSACTIONS_EXTENSIONS": "true",
        }  # fmt: skip
        options = [part for setting in _FAST for part in ("-c", setting)]
        command = [postgres, "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(database), *options]
        ready = program(initdb.parent / "pg_isready")

        def up() -> bool:
            return subprocess.run([ready, "-q", "-h", "127.0.0.1", "-p", str(database)], check=False).returncode == 0

        with running(command, mine / "postgres.log", up, user=owner):
            subprocess.run(
                [migrate, "migrate"], env={**os.environ, **environment}, check=True, capture_output=True, timeout=120
            )
            url = f"http://127.0.0.1:{port}"
            application = [
                uvicorn, "--factory", "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1", "--port", str(port),
                "--log-level", "warning",
            ]  # fmt: skip
            with running(application, mine / "api.log", answers(f"{url}/_mgmt/ping"), environment=environment):
                yield StacServer(url)


def collection(identity: str) -> dict[str, Any]:
    """The least that a STAC Collection must say."""
    times = {"interval": [["1982-01-01T00:00:00Z", None]]}
    return {
        "type": "Collection", "stac_version": "1.0.0", "id": identity, "description": identity, "license": "other",
        "links": [], "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": times},
    }  # fmt: skip


def items_of_bundles(folder: Path, base: str, checksums: bool = True) -> list[dict[str, Any]]:
    """STAC Items of the bundles in a folder, in the Planetary Computer's style, with hrefs below `base`."""
    everywhere, ever = shapely.box(-180, -90, 180, 90), (date(1980, 1, 1), date(2040, 1, 1))
    scenes = [scene for scene in BundleFolder(folder).search(everywhere, *ever) if isinstance(scene, Scene)]
    return [_item(scene, folder, base, checksums) for scene in scenes]


def _item(scene: Scene, folder: Path, base: str, checksums: bool) -> dict[str, Any]:
    assets = {}
    for band, asset in scene.assets.items():
        path = Path(asset.href)
        assets[band] = {
            "href": f"{base}/{path.relative_to(folder.resolve()).as_posix()}",
            "raster:bands": [{"scale": asset.scale, "offset": asset.offset, "nodata": asset.nodata}],
        }
        if checksums:
            assets[band]["file:checksum"] = "1340" + hashlib.sha512(path.read_bytes()).hexdigest()
    footprint = shapely.from_wkt(scene.footprint)
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": scene.id, "links": [],
        "assets": assets, "geometry": json.loads(shapely.to_geojson(footprint)), "bbox": list(footprint.bounds),
        "properties": {
            "datetime": scene.datetime.isoformat().replace("+00:00", "Z"), "platform": scene.platform,
            "eo:cloud_cover": scene.cloud_cover, "landsat:wrs_path": f"{scene.path:03d}",
            "landsat:wrs_row": f"{scene.row:03d}", "landsat:correction": "L2SP", "landsat:collection_number": "02",
        },
    }  # fmt: skip
