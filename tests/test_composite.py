from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.composite import median_composite

NAN = np.nan


def stack_of(*values):
    """One pixel, one band, one value a scene."""
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("values", "median", "count"),
    [
        ((0.3, 0.1, 0.2), 0.2, 3),
        ((0.3, 0.1), 0.2, 2),
        ((0.1, NAN, 0.9, 0.2, 0.3), 0.25, 4),
        ((NAN, 0.4, NAN), 0.4, 1),
        ((-0.1, 0.1, 0.1), 0.1, 3),
    ],
)
def test_one_pixel(values, median, count):
    image, clear = median_composite(stack_of(*values))
    assert image[0, 0, 0] == pytest.approx(median, abs=1e-7)
    assert clear[0, 0] == count


def test_what_nobody_saw_stays_unseen():
    image, count = median_composite(stack_of(NAN, NAN))
    assert np.isnan(image).all()
    assert count.tolist() == [[0]]


def test_no_scenes():
    image, count = median_composite(np.empty((0, 6, 4, 5), np.float32))
    assert image.shape == (6, 4, 5)
    assert np.isnan(image).all()
    assert count.shape == (4, 5)
    assert count.sum() == 0


def clouded(seed, scenes, share):
    """Scenes of three bands; a cloud hides all bands of a pixel."""
    rng = np.random.default_rng(seed)
    stack = rng.uniform(-0.2, 1.6, (scenes, 3, 5, 6)).astype(np.float32)
    stack.transpose(0, 2, 3, 1)[rng.random((scenes, 5, 6)) < share] = NAN
    return stack, rng


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 13), st.sampled_from([0, 0.3, 0.8]))
def test_it_is_the_median_of_the_clear_ones_in_any_order_and_by_any_window(seed, scenes, share):
    stack, rng = clouded(seed, scenes, share)
    before = stack.copy()
    image, count = median_composite(stack)
    assert stack.tobytes() == before.tobytes()
    assert image.dtype == np.float32
    assert count.dtype == np.uint16
    for row, col in np.ndindex(count.shape):
        clear = stack[~np.isnan(stack[:, 0, row, col]), :, row, col]
        assert count[row, col] == len(clear)
        if len(clear):
            assert (image[:, row, col] == np.nanmedian(clear, axis=0)).all()
        else:
            assert np.isnan(image[:, row, col]).all()
    shuffled, _ = median_composite(stack[rng.permutation(scenes)])
    assert shuffled.tobytes() == image.tobytes()
    part, _ = median_composite(stack[:, :, 1:4, 2:])
    assert part.tobytes() == image[:, 1:4, 2:].tobytes()


@pytest.mark.parametrize("scenes", [1, 2, 3, 7, 12, 17])
def test_runs_of_pixels_join_without_a_gap(scenes):
    rng = np.random.default_rng(scenes)
    stack = rng.uniform(-0.2, 1.6, (scenes, 2, 3, 701)).astype(np.float32)
    stack.transpose(0, 2, 3, 1)[rng.random((scenes, 3, 701)) < 0.4] = NAN
    image, count = median_composite(stack)
    np.testing.assert_array_equal(count, (~np.isnan(stack[:, 0])).sum(axis=0))
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning) if (count == 0).any() else nullcontext():
        np.testing.assert_allclose(image, np.nanmedian(stack, axis=0), atol=1e-6)
