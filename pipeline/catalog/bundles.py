"""Scenes from a folder of USGS bundles as downloaded: band TIFFs with or without an MTL. All of it is untrusted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path

from shapely import Geometry

from pipeline.catalog.check import UNREADABLE, open_header
from pipeline.catalog.footprint import grid_footprint
from pipeline.catalog.hrefs import shown
from pipeline.catalog.mtl import Mtl, read_mtl
from pipeline.catalog.names import ProductName, parse_product, reflective_bands, refused_level
from pipeline.catalog.scene import BANDS, QA_PIXEL, Asset, Refusal, Scene, SceneGrid
from pipeline.catalog.select import one_per_acquisition, within
from pipeline.errors import ConfigError, SceneError

_MAX_DEPTH = 10
_MTL = re.compile(r"(.+)_MTL\.(txt|json|xml)", re.IGNORECASE)
_TIFF = re.compile(r".+\.tiff?", re.IGNORECASE)
_PACKED = re.compile(r".+\.(tar|tgz|tar\.gz)", re.IGNORECASE)


@dataclass
class _Bundle:
    """One product in one folder: `files` are all names of that folder (lower case) with their paths."""

    stem: str
    folder: Path
    files: dict[str, Path]
    product: ProductName | None
    mtls: list[Path] = field(default_factory=list)
    packed: bool = False


@dataclass(frozen=True)
class BundleFolder:
    """A folder of USGS bundles, searched with its subfolders (links to folders are not followed).

    Raises ConfigError from `search` where it holds no bundle at all.
    """

    root: Path

    def search(self, aoi: Geometry, first: date, last: date) -> Iterator[Scene | Refusal]:
        """Yield every bundle as Scene or Refusal (see `Catalog`); TIFFs that belong to none are refused by folder."""
        root = self.root.resolve()
        bundles, loose = _scan(root)
        if not bundles:
            raise ConfigError(
                f"imagery.source: {self.root} holds no Landsat bundle: no files named like LC08_L2SP_..._SR_B4.TIF "
                "or *_MTL.txt; give the folder that the bundles were unpacked to, or a STAC catalog.json"
            )
        found = [_judge(bundle, root) for bundle in bundles]
        used = {asset.href for scene in found if isinstance(scene, Scene) for asset in scene.assets.values()}
        unused = {folder: [path for path in paths if str(path) not in used] for folder, paths in loose.items()}
        rest = [_refuse_loose(folder, paths, root) for folder, paths in unused.items() if paths]
        return iter(one_per_acquisition(within(item, aoi, first, last) for item in [*found, *rest]))


def _refuse_loose(folder: Path, paths: list[Path], root: Path) -> Refusal:
    name = shown(str(folder.relative_to(root)))
    return Refusal(name, f"no MTL and no recognisable name: {len(paths)} TIFF such as {shown(paths[0].name)}")


def _scan(root: Path) -> tuple[list[_Bundle], dict[Path, list[Path]]]:
    """Return the bundles below `root` and, by folder, the TIFFs whose names say nothing."""
    bundles: list[_Bundle] = []
    loose: dict[Path, list[Path]] = {}
    for folder, subfolders, names in os.walk(root):
        path = Path(folder)
        subfolders.sort()
        if len(path.relative_to(root).parts) >= _MAX_DEPTH:
            subfolders.clear()
        files = {name.lower(): path / name for name in sorted(names)}
        here: dict[str, _Bundle] = {}
        for name in sorted(names):
            mtl, product = _MTL.fullmatch(name), parse_product(name)
            stem = mtl.group(1).upper() if mtl else product.text if product else ""
            if mtl or (product and (_TIFF.fullmatch(name) or _PACKED.fullmatch(name))):
                bundle = here.setdefault(stem, _Bundle(stem, path, files, _fuller(product, path), packed=True))
                bundle.packed &= bool(_PACKED.fullmatch(name))
                if mtl:
                    bundle.mtls.append(path / name)
            elif _TIFF.fullmatch(name):
                loose.setdefault(path, []).append(path / name)
        bundles += here.values()
    unpacked = {bundle.stem for bundle in bundles if not bundle.packed}
    return [b for b in bundles if not (b.packed and b.stem in unpacked)], loose


def _fuller(product: ProductName | None, folder: Path) -> ProductName | None:
    """Return the product of the folder's name where that says the same as the files' and more."""
    named = parse_product(folder.name)
    return named if product and named and named.text.startswith(product.text) else product


def _judge(bundle: _Bundle, root: Path) -> Scene | Refusal:
    try:
        return _scene(bundle, root)
    except SceneError as error:
        product = bundle.product
        when = datetime.combine(product.acquired, time(), UTC) if product else None
        identity = product.text if product else shown(bundle.stem)
        return Refusal(identity, error.reason, when)


def _scene(bundle: _Bundle, root: Path) -> Scene:
    product = bundle.product
    reason = refused_level(product.level, product.collection) if product else None
    if reason or bundle.packed:
        raise SceneError(bundle.stem, reason or "still packed; unpack the archive into a folder of its own")
    mtl = _first_readable(bundle)
    if mtl and product and mtl.product.text != product.text:
        raise SceneError(bundle.stem, f"damaged MTL: it describes {mtl.product.text}, the files are of {product.text}")
    product = mtl.product if mtl else product
    if product is None:
        raise SceneError(bundle.stem, "no MTL and no recognisable name")
    number = mtl.number if mtl else product.number
    paths = _band_paths(bundle, product, number, mtl.files if mtl else {}, root)
    scaling = mtl.scaling if mtl else {}
    assets = {
        band: Asset(str(path), 1.0, 0.0, 1.0) if band == QA_PIXEL else _scaled(path, scaling.get(band))
        for band, path in paths.items()
    }
    grid, footprint = _place(bundle.stem, paths, mtl)
    return Scene(
        id=product.text,
        datetime=mtl.datetime if mtl else datetime.combine(product.acquired, time(), UTC),
        platform=f"landsat-{number}",
        cloud_cover=mtl.cloud_cover if mtl else None,
        path=product.path,
        row=product.row,
        footprint=footprint,
        assets=assets,
        grid=grid,
    )


def _scaled(path: Path, scaling: tuple[float, float] | None) -> Asset:
    return Asset(str(path), *scaling) if scaling else Asset(str(path))


def _first_readable(bundle: _Bundle) -> Mtl | None:
    """Return the first MTL that can be read: the three formats say the same, so one good file is enough."""
    faults: list[SceneError] = []
    for path in sorted(bundle.mtls, key=lambda path: (".txt", ".json", ".xml").index(path.suffix.lower())):
        try:
            return read_mtl(path)
        except SceneError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return None


def _band_paths(
    bundle: _Bundle, product: ProductName, number: int, named: dict[str, str], root: Path
) -> dict[str, Path]:
    """Return band -> file of this folder. Of a name in the MTL only the last part counts, whatever path it claims."""
    usual = {name: f"{product.text}_SR_B{n}" for n, name in reflective_bands(number).items()}
    usual[QA_PIXEL] = f"{product.text}_QA_PIXEL"
    paths: dict[str, Path] = {}
    for band in (*BANDS, QA_PIXEL):
        if band not in usual:
            continue
        claimed = re.split(r"[/\\]", named.get(band, ""))[-1]
        for name in (claimed, f"{usual[band]}.TIF", f"{usual[band]}.TIFF"):
            path = bundle.files.get(name.lower())
            if path is not None and _TIFF.fullmatch(path.name):
                if not path.resolve().is_relative_to(root):
                    raise SceneError(bundle.stem, f"{shown(path.name)} is a link that leads out of the folder")
                paths[band] = path
                break
    if not set(paths) & set(BANDS):
        raise SceneError(bundle.stem, f"no surface reflectance band file, such as {product.text}_SR_B4.TIF")
    return paths


def _place(stem: str, paths: dict[str, Path], mtl: Mtl | None) -> tuple[SceneGrid | None, str]:
    """Return the grid for files without a CRS (None where all have one) and the footprint.

    A file with a CRS of its own wins over the MTL; a file that cannot be opened is left to `check_scene`.
    """
    own: str | None = None
    bare = False
    for path in paths.values():
        try:
            with open_header(path) as dataset:
                if dataset.crs is None:
                    bare = True
                    _same_shape(stem, path.name, dataset.shape, mtl)
                elif own is None:
                    own = grid_footprint(dataset.crs.to_wkt(), tuple(dataset.transform)[:6], dataset.shape)
        except UNREADABLE:
            continue
    grid = mtl.grid if mtl else None
    told = grid_footprint(grid.crs, grid.transform, mtl.shape) if mtl and grid and mtl.shape else None
    footprint = own or told
    if footprint is None:
        raise SceneError(stem, "no place on earth: no readable CRS in its files, and no usable UTM grid in an MTL")
    return (grid if bare else None), footprint


def _same_shape(stem: str, name: str, shape: tuple[int, int], mtl: Mtl | None) -> None:
    if mtl and mtl.shape and mtl.shape != shape:
        told = f"REFLECTIVE_LINES x REFLECTIVE_SAMPLES {mtl.shape[0]} x {mtl.shape[1]}"
        raise SceneError(stem, f"{name} has no CRS and {shape[0]} x {shape[1]} pixels, its MTL says {told}")
