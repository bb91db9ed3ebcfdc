from __future__ import annotations

import numpy as np
import pytest

from pipeline.grid import Block, RunGrid
from pipeline.lattice import Patch, PatchLayout, lattice_window, listed, meeting, needed
from pipeline.patches import draw_patches
from pipeline.predict import cut_patch, predict_loss

MARGIN = 256
GRID = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 4, 6, 64)


class Identity:
    """Its logits are its input: a pixel that comes from the wrong place shows."""

    def logits(self, images):
        return images


class SeesWholePatch:
    """Adds the mean of its patch: a patch that lies elsewhere shows, as with squeeze-and-excitation."""

    def logits(self, images):
        return images + np.nanmean(images, axis=(2, 3), keepdims=True)


class SeesNeighbours:
    """Adds the pixel to the left, nothing at the patch's border: a seam shows."""

    def logits(self, images):
        out = images.copy()
        out[..., 1:] += images[..., :-1]
        return out


def world_of(height, width, bands=3, seed=0):
    """An image that goes on beyond the grid, as scenes do."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (bands, height + 2 * MARGIN, width + 2 * MARGIN)).astype(np.float32)


def run(world, labels, layout, model, cut, batch=1):
    """Logits [bands, height, width] of a whole grid computed block by block; NaN where there is no loss."""
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, *labels.shape, cut)
    out = np.full((len(world), *labels.shape), np.nan)
    bounds = np.zeros((labels.max(), 4), np.int64)
    for label in np.unique(labels[labels > 0]):
        rows, cols = np.nonzero(labels == label)
        bounds[label - 1] = rows.min(), cols.min(), rows.max() + 1, cols.max() + 1
    drawn = draw_patches(layout, grid, bounds)
    for block in grid.blocks():
        window = slice(block.row0, block.row0 + block.height), slice(block.col0, block.col0 + block.width)
        part = labels[window]
        row0, col0, height, width = lattice_window(block, layout)
        image = world[:, row0 + MARGIN : row0 + height + MARGIN, col0 + MARGIN : col0 + width + MARGIN]
        patches = listed(needed(meeting(drawn, layout.size, block), block, part))
        logits = predict_loss(image, (row0, col0), patches, block, part, model, layout.size, batch)
        if part.any():
            out[:, *window][:, part > 0] = logits.T
    return out


def inner(world, shape):
    return world[:, MARGIN : MARGIN + shape[0], MARGIN : MARGIN + shape[1]]


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (32, 32), (33, 63), (64, 65), (96, 96), (95, 97)])
@pytest.mark.parametrize("stride", [32, 24, 17])
def test_a_model_that_gives_its_input_back_gives_the_image_back_exactly(shape, stride):
    world, labels = world_of(*shape), np.ones(shape, np.int32)
    layout = PatchLayout("grid", 32, stride)
    for cut, batch in ((1000, 1), (1000, 4), (40, 4), (33, 1)):
        assert (run(world, labels, layout, Identity(), cut, batch) == inner(world, shape)).all()


@pytest.mark.parametrize("size", [96, 160, 256])
def test_it_is_exact_for_large_patches_too(size):
    shape = (size + 3, size - 5)
    world, labels = world_of(*shape, bands=1), np.ones(shape, np.int32)
    layout = PatchLayout("grid", size, size * 3 // 4)
    assert (run(world, labels, layout, Identity(), 1000, 4) == inner(world, shape)).all()


def test_events_mode_is_exact_too_and_speaks_for_its_event_only():
    labels = np.zeros((90, 110), np.int32)
    labels[3:80, 5:9], labels[10:14, 9:60], labels[89, 109] = 1, 2, 3
    world, layout = world_of(90, 110), PatchLayout("events", 32, 24)
    for cut, batch in ((1000, 1), (64, 4)):
        out = run(world, labels, layout, Identity(), cut, batch)
        assert (out[:, labels > 0] == inner(world, labels.shape)[:, labels > 0]).all()
        assert np.isnan(out[:, labels == 0]).all()


@pytest.mark.parametrize("model", [SeesWholePatch(), SeesNeighbours()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("mode", ["grid", "events"])
def test_blocks_do_not_matter_to_a_model_that_can_notice(model, mode):
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 3, (16, 16)), np.ones((16, 16), np.int32)).astype(np.int32)
    world, layout = world_of(256, 256), PatchLayout(mode, 64, 48)
    whole = run(world, labels, layout, model, 256)
    for cut, batch in ((128, 1), (64, 4), (100, 3)):
        assert run(world, labels, layout, model, cut, batch).tobytes() == whole.tobytes()


def test_what_is_not_loss_does_not_change_what_is():
    few = np.zeros((100, 100), np.int32)
    few[40:50, 40:70] = 1
    many = few.copy()
    many[90:, :] = 2
    world, layout = world_of(100, 100), PatchLayout("grid", 32, 24)
    one, both = (run(world, labels, layout, SeesWholePatch(), 64) for labels in (few, many))
    assert (one[:, few > 0] == both[:, few > 0]).all()


def test_unobserved_pixels_reach_the_model_as_nan():
    seen = []

    class Listens:
        def logits(self, images):
            seen.append(images.dtype == np.float32 and bool(np.isnan(images).any()))
            return np.nan_to_num(images)

    world, labels = world_of(40, 40), np.ones((40, 40), np.int32)
    world[:, MARGIN + 5, MARGIN + 5] = np.nan
    run(world, labels, PatchLayout("grid", 32, 32), Listens(), 1000, 16)
    assert seen == [True]


def test_each_patch_answers_for_its_own_cell():
    # one row of pixels under two patches of 4 at columns 0 and 2, whose cells meet at column 3; they answer 0 and 1
    class Counts:
        calls = 0

        def logits(self, images):
            out = np.full((len(images), 1, 4, 4), self.calls, np.float32)
            self.calls += 1
            return out

    block = Block("b", 0, 0, 4, 6)
    labels = np.zeros((4, 6), np.int32)
    labels[0] = 5
    image = np.zeros((1, 4, 6), np.float32)
    pair = [Patch(0, 0, 0, 0, 0, 4, 3), Patch(0, 2, 0, 0, 3, 4, 6)]
    found = predict_loss(image, (0, 0), pair, block, labels, Counts(), 4, 1)
    assert found[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_no_patches_no_logits():
    block = Block("b", 0, 0, 4, 6)
    image = np.zeros((1, 4, 6), np.float32)
    assert predict_loss(image, (0, 0), [], block, np.zeros((4, 6), np.int32), Identity(), 4, 1).shape == (0, 0)


def test_a_patch_is_cut_where_it_lies_with_nan_outside():
    image = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)
    assert (cut_patch(image, 1, 2, 3) == image[:, 1:4, 2:5]).all()
    outside = cut_patch(image, -1, 3, 3)
    assert np.isnan(outside[:, 0]).all()
    assert np.isnan(outside[:, :, 2:]).all()
    assert (outside[:, 1:, :2] == image[:, :2, 3:]).all()
    assert np.isnan(cut_patch(image, 50, 50, 2)).all()
