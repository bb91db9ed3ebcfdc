"""Small Landsat bundles and STAC Items with the real products' names, MTL keys, dtypes and grids."""

from __future__ import annotations

import json
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from shapely import box

WORLD = box(-180, -90, 180, 90)
EVER = (date(1980, 1, 1), date(2040, 1, 1))
L7 = "LE07_L2SP_231062_20100723_20200911_02_T1"
L9 = "LC09_L2SP_231062_20230723_20230802_02_T1"
NUMBERS = {"LE07": "123457", "LT05": "123457", "LT04": "123457", "LC08": "1234567", "LC09": "1234567"}
SHAPE = (20, 30)
CENTRE = (672300.0, -344700.0)
"""Centre of the upper-left pixel, as the MTL gives it: UTM zone 20 north, south of the equator."""


def write_tiff(path, *, shape=SHAPE, crs="EPSG:32620", centre=CENTRE, cell=30.0, dtype="uint16", **profile):
    where = (
        {"crs": crs, "transform": Affine(cell, 0, centre[0] - cell / 2, 0, -cell, centre[1] + cell / 2)} if crs else {}
    )
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": dtype} | where | profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # files without CRS are meant
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.arange(shape[0] * shape[1], dtype=dtype).reshape(shape) + 7000, 1)
    return path


def mtl_groups(product=L9, *, level=None, collection="02", shape=SHAPE, centre=CENTRE, zone=20):
    numbers = NUMBERS[product[:4]]
    contents = {
        "LANDSAT_PRODUCT_ID": product,
        "PROCESSING_LEVEL": level or product[5:9],
        "COLLECTION_NUMBER": collection,
        "COLLECTION_CATEGORY": product[-2:],
        **{f"FILE_NAME_BAND_{n}": f"{product}_SR_B{n}.TIF" for n in numbers},
        "FILE_NAME_QUALITY_L1_PIXEL": f"{product}_QA_PIXEL.TIF",
    }
    day = f"{product[17:21]}-{product[21:23]}-{product[23:25]}"
    return {
        "PRODUCT_CONTENTS": contents,
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": f"LANDSAT_{product[3]}",
            "WRS_PATH": "231",
            "WRS_ROW": "62",
            "DATE_ACQUIRED": day,
            "SCENE_CENTER_TIME": "14:12:31.2799059Z",
            "CLOUD_COVER": "12.50",
        },
        "PROJECTION_ATTRIBUTES": {
            "MAP_PROJECTION": "UTM",
            "UTM_ZONE": str(zone),
            "GRID_CELL_SIZE_REFLECTIVE": "30.00",
            "REFLECTIVE_LINES": str(shape[0]),
            "REFLECTIVE_SAMPLES": str(shape[1]),
            "CORNER_UL_PROJECTION_X_PRODUCT": f"{centre[0]:.3f}",
            "CORNER_UL_PROJECTION_Y_PRODUCT": f"{centre[1]:.3f}",
        },
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            **{f"REFLECTANCE_MULT_BAND_{n}": "2.75e-05" for n in numbers},
            **{f"REFLECTANCE_ADD_BAND_{n}": "-0.2" for n in numbers},
        },
    }


def as_text(groups):
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for name, group in groups.items():
        lines += [f"  GROUP = {name}", *(f'    {k} = "{v}"' for k, v in group.items()), f"  END_GROUP = {name}"]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])


def as_json(groups):
    return json.dumps({"LANDSAT_METADATA_FILE": groups})


def as_xml(groups):
    inner = "".join(
        f"<{name}>{''.join(f'<{k}>{v}</{k}>' for k, v in group.items())}</{name}>" for name, group in groups.items()
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>'


def make_bundle(folder: Path, product=L9, *, groups=None, qa=True, crs="EPSG:32620", **tiff):
    folder.mkdir(parents=True, exist_ok=True)
    for number in NUMBERS[product[:4]]:
        write_tiff(folder / f"{product}_SR_B{number}.TIF", crs=crs, **tiff)
    if qa:
        write_tiff(folder / f"{product}_QA_PIXEL.TIF", crs=crs, **tiff)
    (folder / f"{product}_MTL.txt").write_text(as_text(groups or mtl_groups(product)))
    return folder


def make_item(identity="LC09_L2SP_231062_20230723_02_T1", **changes):
    """A STAC 1.0 Item in the Planetary Computer's style; assets lie beside it."""
    assets = {
        name: {
            "href": f"./{name}.tif?sig=secret",
            "eo:bands": [{"name": f"OLI_{name}", "common_name": name}],
            "raster:bands": [{"nodata": 0, "scale": 2.75e-05, "offset": -0.2}],
        }
        for name in ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
    }
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identity,
        "collection": "landsat-c2-l2",
        "geometry": json.loads(json.dumps(box(-61, -4, -59, -2).__geo_interface__)),
        "bbox": [-61, -4, -59, -2],
        "properties": {
            "datetime": "2023-07-23T14:12:31.279906Z",
            "platform": f"landsat-{identity[3]}",
            "eo:cloud_cover": 0.64,
            "landsat:wrs_path": "231",
            "landsat:wrs_row": "062",
            "landsat:correction": "L2SP",
            "landsat:collection_number": "02",
        },
        "assets": {**assets, "qa_pixel": {"href": "./qa_pixel.tif"}},
        "links": [],
    }
    return {**item, **changes}
