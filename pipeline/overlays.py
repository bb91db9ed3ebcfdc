"""Overlays: the share of each event inside peat, protected areas, concessions or whatever layer the user has.

An overlay that cannot be had, or that says nothing about an event, is never a share of 0: its column is empty there,
and the run record lists it with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import rasterio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError

from pipeline.artifacts import file_sha256
from pipeline.auxiliary.rasters import RasterSampler
from pipeline.auxiliary.vectors import share_inside
from pipeline.config import Overlay
from pipeline.errors import ConfigError
from pipeline.grid import read_vector, reproject

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray

MISSING = "overlays_missing"
"""Column of events: names of the overlays that say nothing about the event."""
KNOWN_ENOUGH = 0.5
"""An overlay speaks about an event if it covers at least this share of it; the share is then that of the known part."""


@dataclass(frozen=True)
class OverlayUse:
    """How an overlay served, for the run record.

    Attributes:
        status: `used` (it speaks about every event), `partial`, or `unavailable`.
        reason: why it is unavailable.
        events_without: number of events that it says nothing about.
        covered_percent: share of the events' area that it speaks about.
    """

    name: str
    title: str
    date: str
    source: str
    file: str
    sha256: str
    status: str
    reason: str
    events_without: int
    covered_percent: float


def add_overlays(events: GeoDataFrame, overlays: Sequence[Overlay]) -> tuple[list[OverlayUse], list[str]]:
    """Add a share (0..1, by area, NaN = not known) per overlay to events in EPSG:4326, in place, and what is missing.

    Returns:
        How each overlay served, and warnings.
    """
    uses: list[OverlayUse] = []
    warnings: list[str] = []
    shapes, area = np.asarray(events.geometry.values), events["area_ha"].to_numpy(float)
    absent: list[list[str]] = [[] for _ in range(len(events))]
    for overlay in overlays:
        share, covered, reason, said = measure_overlay(shapes, overlay)
        events[overlay.name] = share
        without = np.flatnonzero(np.isnan(share))
        for k in without:
            absent[k].append(overlay.name)
        status = "unavailable" if reason else "partial" if len(without) else "used"
        percent = 100 * float((area * covered).sum() / area.sum()) if len(events) and not reason else 0.0
        uses.append(_use(overlay, status, reason, len(without), percent))
        warnings += said
        if status == "partial":
            warnings.append(
                f"overlay {overlay.name}: says nothing about {len(without)} of {len(events)} events "
                f"({area[without].sum():,.1f} ha); their share is empty"
            )
    if overlays:
        events[MISSING] = [", ".join(names) or None for names in absent]
    return uses, warnings


def _use(overlay: Overlay, status: str, reason: str, without: int, percent: float) -> OverlayUse:
    path = overlay.path
    known = file_sha256(path) if path.is_file() and not reason else ""
    return OverlayUse(
        overlay.name, overlay.title or overlay.name, overlay.date, overlay.source, path.name, known, status, reason,
        without, round(percent, 2),
    )  # fmt: skip


def measure_overlay(
    events: NDArray[np.object_], overlay: Overlay
) -> tuple[NDArray[np.float64], NDArray[np.float64], str, list[str]]:
    """Measure one overlay over events [n] in EPSG:4326.

    Returns:
        Share inside [n] (NaN where the overlay does not speak), share covered [n], the reason if the overlay is
        unavailable (else empty), and warnings.

    Raises:
        ConfigError: a column or a band that is named is not there.
    """
    nothing = np.full(len(events), np.nan), np.zeros(len(events))
    reason = fault(overlay)
    said: list[str] = []
    if not reason:
        try:
            raster = _is_raster(overlay.path)
            share, covered = _of_raster(events, overlay) if raster else _of_polygons(events, overlay, said)
            if overlay.covers is not None:
                covered = np.minimum(covered, share_inside(events, _covers(overlay)))
                share = share if raster else np.minimum(share / np.where(covered > 0, covered, 1), 1)
        except (RasterioError, _NothingThere) as error:
            reason = " ".join(str(error).split())
    if reason:
        return *nothing, reason, [f"overlay {overlay.name}: not available ({reason}); its column is empty"]
    share = np.where(covered >= KNOWN_ENOUGH, np.round(share, 6), np.nan)
    return share, covered, "", said


def check_overlays(overlays: Sequence[Overlay]) -> list[str]:
    """Look at the files before anything is done: a warning for each overlay that will not be available.

    Raises:
        ConfigError: a layer, column or band that is named is not in its file, or 0 is declared as no data.
    """
    found = [(overlay, fault(overlay)) for overlay in overlays]
    return [f"overlay {o.name}: not available ({reason}); its column is empty" for o, reason in found if reason]


def fault(overlay: Overlay) -> str:
    """Why an overlay is not available, empty if it is; raises ConfigError for what only the configuration can mend."""
    path, name = overlay.path, f"overlays {overlay.name}"
    if isinstance(overlay.covers, Path) and not overlay.covers.exists():
        raise ConfigError(f"{name}: covers {overlay.covers}: no such file")
    if not path.exists():
        return f"no file {path.name}"
    if _is_raster(path):
        with rasterio.open(path) as raster:
            if overlay.band > raster.count:
                raise ConfigError(f"{name} {path}: band {overlay.band} of {raster.count}")
            if any(isinstance(value, str) for value in overlay.classes):
                raise ConfigError(f"{name} {path}: classes of a raster are numbers, not {list(overlay.classes)}")
            if raster.nodatavals[overlay.band - 1] == 0 and not overlay.nodata_is_outside:
                raise ConfigError(
                    f"{name} {path}: declares 0 as no data, so that 'outside' and 'not known' are the same; "
                    "set nodata_is_outside: true if it means outside"
                )
            return "" if raster.crs else f"{path.name} has no CRS"
    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
        if overlay.layer and overlay.layer not in layers:
            raise ConfigError(f"{name} {path}: no layer {overlay.layer!r}; it has {', '.join(layers)}")
        info = pyogrio.read_info(path, layer=overlay.layer or layers[0])
    except (DataSourceError, DataLayerError) as error:
        return f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})"
    if overlay.column and overlay.column not in info["fields"]:
        raise ConfigError(f"{name} {path}: no column {overlay.column!r}; it has {', '.join(info['fields'])}")
    if not info["geometry_type"]:
        return f"{path.name} has no geometry"
    return "" if info["crs"] else f"{path.name} has no CRS"


class _NothingThere(Exception):
    """Raised when a layer holds nothing that could count."""


def _is_raster(path: Path) -> bool:
    try:
        rasterio.open(path).close()
    except RasterioError:
        return False
    return True


def _of_raster(
    events: NDArray[np.object_], overlay: Overlay
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Share of the known part, and the known share of each event."""
    share, covered = np.full(len(events), np.nan), np.zeros(len(events))
    with rasterio.open(overlay.path) as raster:
        classes = [float(value) for value in overlay.classes]
        sampler = RasterSampler(raster, overlay.band, ["share", "known"], classes)
        for k, shape in enumerate(reproject(events, "EPSG:4326", raster.crs)):
            inside, known = sampler.sample(shape)
            if overlay.nodata_is_outside and np.isfinite(known):
                inside, known = np.nan_to_num(inside) * known, 1.0
            share[k] = inside
            if known > 0:
                covered[k] = min(known * sampler.inside(shape), 1.0)
    return share, covered


def _of_polygons(
    events: NDArray[np.object_], overlay: Overlay, said: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Share of each event inside the polygons that count; without `covers` a layer speaks everywhere."""
    frame = read_vector(overlay.path, overlay.layer, f"overlays {overlay.name}")
    if overlay.column:
        wanted = {str(value) for value in overlay.classes}
        frame = frame[[_text(value) in wanted for value in frame[overlay.column]]]
    shapes = np.asarray(frame.to_crs("EPSG:4326").geometry.values)
    share = share_inside(events, shapes)
    solid = shapes[np.isin(shapely.get_type_id(shapes), (3, 6))]
    if not len(solid):
        raise _NothingThere(f"{overlay.path.name} holds no polygon" + (" of these classes" if overlay.column else ""))
    if overlay.covers is None and len(events):
        beyond = int((~shapely.intersects(events, shapely.box(*shapely.total_bounds(solid)))).sum())
        if beyond:
            said.append(
                f"overlay {overlay.name}: {beyond} of {len(events)} events lie outside the box around its polygons and "
                "count as 0; set `covers` to where it speaks, if that is not everywhere"
            )
    return share, np.ones(len(events))


def _text(value: Any) -> str:
    """A cell as it is written in the configuration: 3, not 3.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _covers(overlay: Overlay) -> NDArray[np.object_]:
    if isinstance(overlay.covers, Path):
        frame = read_vector(overlay.covers, None, f"overlays {overlay.name}: covers").to_crs("EPSG:4326")
        return np.asarray(frame.geometry.values)
    return np.array([shapely.box(*overlay.covers)] if overlay.covers else [], dtype=object)


def described(uses: Sequence[OverlayUse]) -> list[dict[str, object]]:
    """Return the JSON form for the run record."""
    return [dataclasses.asdict(use) for use in uses]
