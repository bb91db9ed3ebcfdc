"""Alerts as loss, end to end: no image from before the last day of an event's loss says anything about its pixels."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from run_samples import (
    CLEAR,
    LEFT,
    TOP,
    assert_same_results,
    blobs,
    draw_world,
    layer,
    run,
    textures,
    write_bundle,
    write_config,
    write_raster,
)

from pipeline.product.inspect import inspect_product

SHAPE = (96, 96)
LATER = "LC09_L2SP_231062_20230909_20230918_02_T1"
DAYS = [
    date(2023, 7, 10),
    date(2023, 7, 15),
    date(2023, 7, 16),
    date(2023, 7, 23),
    date(2023, 8, 1),
    date(2023, 12, 31),
]
"""Days of the alerts; the scenes are of 15 and 23 July, and a late one of 9 September."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Alerts of 2023 in the layout of Global Forest Watch; each patch of the drawn loss is of one day."""
    folder = tmp_path_factory.mktemp("dated")
    loss = blobs(11, SHAPE, 0.12)
    qa = np.full((2, *SHAPE), CLEAR, np.uint16)
    drawn = draw_world(folder, np.where(loss > 0, 23, 0).astype(np.uint8), qa)
    column = np.indices(SHAPE)[1] // 16
    days = np.array([30_000 + (day - date(2014, 12, 31)).days for day in DAYS], np.uint16)
    write_raster(folder / "alerts.tif", np.where(loss > 0, days[column], 0).astype(np.uint16))
    return drawn


def configured(folder, world, model, **changes):
    alerts = {"source": str(world.folder / "alerts.tif"), "coding": "integrated", "years": [2023], "min_area_ha": 0}
    return write_config(folder, world, model, loss=alerts, output__chips=0, **changes)


def test_images_from_before_the_loss_do_not_serve(world, tiny_model, tmp_path):
    product = run(configured(tmp_path / "one", world, tiny_model, grid__block=128)).product
    assert inspect_product(product).sound
    events = layer(product, "events")
    first, last = (pd.to_datetime(events[name]) for name in ("loss_date", "loss_date_last"))
    assert (first <= last).all()
    assert set(last.dt.date) <= set(DAYS)
    assert (first < last).any(), "some patches reach over two columns of days"
    seen = events["image_count"] > 0
    assert (pd.to_datetime(events["first_image"])[seen] >= last[seen]).all()
    scenes = np.array([date(2023, 7, 15), date(2023, 7, 23)])
    expected = [(scenes >= day.date()).sum() for day in last]
    assert events["image_count"].tolist() == expected
    assert set(expected) == {0, 1, 2}
    assert (events["awaiting"] == ~seen).all()
    # what a patch sees around a block does not depend on where the block ends
    cut = run(configured(tmp_path / "cut", world, tiny_model, grid__block=32)).product
    assert_same_results(product, cut)
    undated = run(write_config(tmp_path / "undated", world, tiny_model, loss__years=[2023], output__chips=0)).product
    plain = layer(undated, "events")
    assert list(plain["event_id"]) == list(events["event_id"])
    assert plain["loss_date"].isna().all()
    assert (plain["image_count"] == 2).all()


def test_a_late_image_serves_events_whose_loss_it_follows(world, tiny_model, tmp_path):
    config = configured(tmp_path, world, tiny_model)
    before = layer(run(config).product, "events").set_index("event_id")
    bundle = write_bundle(world.scenes / LATER, LATER, textures(7, SHAPE), np.full(SHAPE, CLEAR, np.uint16))
    try:
        after = layer(run(config).product, "events").set_index("event_id")
    finally:
        for path in bundle.iterdir():
            path.unlink()
        bundle.rmdir()
    last = pd.to_datetime(before["loss_date_last"])
    waiting, reached = before["awaiting"], last <= pd.Timestamp(2023, 9, 9)
    assert (waiting & reached).any()
    assert (waiting & ~reached).any()
    assert (after["awaiting"] == (waiting & ~reached)).all()
    assert after.loc[~waiting, "confidence"].equals(before.loc[~waiting, "confidence"])
    assert (pd.to_datetime(after.loc[waiting & reached, "first_image"]) == pd.Timestamp(2023, 9, 9)).all()


def test_the_drawn_world_is_where_the_alerts_are(world):
    import rasterio

    with rasterio.open(world.folder / "alerts.tif") as file:
        assert (file.transform.c, file.transform.f) == (LEFT, TOP)
        assert ((file.read(1) > 0) == (world.drawn > 0)).all()
    assert sorted(DAYS) == DAYS
    assert DAYS[1] + timedelta(8) == DAYS[3]
