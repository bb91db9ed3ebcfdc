from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_samples import MemoryDataset, colours

from pipeline.errors import InputError
from pipeline.training.crops import CropStream, Images
from pipeline.training.datasets.base import IGNORE
from pipeline.training.windows import EventWindows, plan_windows


def _draws(stream: CropStream, count: int) -> list:
    random = np.random.default_rng(5)
    return [stream.draw(random) for _ in range(count)]


def test_every_crop_shows_a_labelled_event_and_its_class() -> None:
    data = colours(3)
    images = Images(data, range(len(data.events)))
    for crop in _draws(CropStream(images, 32, (0,)), 40):
        labelled = crop.target != IGNORE
        assert labelled.any()
        np.testing.assert_array_equal(labelled, crop.events > 0)
        # the class is the band that is bright
        np.testing.assert_array_equal(crop.image[:, labelled].argmax(axis=0), crop.target[labelled])


def test_the_same_seed_gives_the_same_crops_and_another_seed_others() -> None:
    images = Images(colours(3), range(12))
    one, same, other = (
        [item["image"].numpy() for item in itertools.islice(iter(CropStream(images, 32, seed)), 3)]
        for seed in ((1, 2), (1, 2), (1, 3))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_events_of_other_splits_lend_no_label() -> None:
    data = colours(2)
    images = Images(data, [0, 1, 5])
    seen = {int(n) - 1 for crop in _draws(CropStream(images, 32, (0,)), 60) for n in np.unique(crop.events) if n}
    assert seen == {0, 1, 5}


def test_events_at_fault_are_not_drawn() -> None:
    data = colours(1)
    data.events.loc[[0, 2], "fault"] = "no image"
    images = Images(data, range(4))
    assert images.rows.tolist() == [1, 3]
    data.events["fault"] = "no image"
    with pytest.raises(InputError, match="no usable event"):
        CropStream(Images(data, range(4)), 32, (0,))


def test_scene_data_augmentation_draws_every_look_and_the_composite_alone_otherwise() -> None:
    stack = np.stack([np.full((6, 32, 32), k / 10, np.float32) for k in range(4)])
    region = np.zeros((32, 32), np.int32)
    region[10:20, 10:20] = 1
    images = Images(MemoryDataset([stack], [region], [[2]]), [0])
    levels = {round(float(crop.image[0, 0, 0]), 1) for crop in _draws(CropStream(images, 32, (0,), "random"), 60)}
    assert levels == {0.0, 0.1, 0.2, 0.3}
    assert {float(crop.image.max()) for crop in _draws(CropStream(images, 32, (0,)), 20)} == {0.0}


def test_even_sampling_draws_each_class_as_often() -> None:
    region = np.zeros((200, 200), np.int32)
    for k in range(9):
        region[(k // 3) * 70 : (k // 3) * 70 + 4, (k % 3) * 70 : (k % 3) * 70 + 4] = k + 1
    data = MemoryDataset([np.zeros((1, 6, 200, 200), np.float32)], [region], [[0] * 8 + [1]])
    images = Images(data, range(9))
    shares = [
        np.mean([bool((crop.target == 1).any()) for crop in _draws(CropStream(images, 32, (0,), sampling=how), 300)])
        for how in ("even", "natural")
    ]
    assert shares[0] == pytest.approx(1 / 2, abs=0.1)
    assert shares[1] == pytest.approx(1 / 9, abs=0.07)


def test_beyond_the_image_and_under_clouds_there_is_no_label() -> None:
    data = colours(1, size=48)
    data._stacks[0][:, :, :24] = np.nan
    images = Images(data, range(4))
    crop = images.cut(0, 0, (0, 0), 64)
    assert crop.image.shape == (6, 64, 64)
    assert np.isnan(crop.image[:, 48:]).all()
    assert (crop.target[:24] == IGNORE).all()
    assert (crop.target[24:48] != IGNORE).any()


boxes = st.lists(
    st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=150)
@given(boxes, st.sampled_from([32, 64]))
def test_windows_show_every_pixel_of_every_event_exactly_once(rectangles: list, size: int) -> None:
    region = np.zeros((100, 90), np.int32)
    for k, (top, left, height, width) in enumerate(rectangles):
        region[top : top + height, left : left + width] = k + 1
    labels = [0] * len(rectangles)
    data = MemoryDataset([np.zeros((1, 6, 100, 90), np.float32)], [region], [labels])
    images = Images(data, range(len(labels)))
    windows = EventWindows(images, size)
    seen = np.zeros(len(labels), int)
    for k in range(len(windows)):
        found, counts = np.unique(windows[k]["events"].numpy(), return_counts=True)
        for row, count in zip(found, counts, strict=True):
            if row:
                seen[row - 1] += count
    np.testing.assert_array_equal(seen, np.bincount(region.ravel(), minlength=len(labels) + 1)[1 : len(labels) + 1])


def test_neighbouring_events_share_a_window_and_a_large_one_gets_several() -> None:
    near = {0: (slice(40, 44), slice(40, 44)), 1: (slice(50, 54), slice(46, 50))}
    assert [w.rows for w in plan_windows(0, near, (100, 100), 64)] == [(0, 1)]
    large = plan_windows(0, {7: (slice(0, 100), slice(0, 50))}, (100, 100), 64)
    assert len(large) == 6
    assert {w.rows for w in large} == {(7,)}
