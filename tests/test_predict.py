from __future__ import annotations

import numpy as np
import pytest

from pipeline.grid import Block, RunGrid
from pipeline.lattice import BlockLoss, Patch, PatchLayout, lattice_window, listed, meeting, needed
from pipeline.patches import draw_patches
from pipeline.predict import predict_loss

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
    padded = np.pad(labels, MARGIN)
    for block in grid.blocks():
        window = slice(block.row0, block.row0 + block.height), slice(block.col0, block.col0 + block.width)
        row0, col0, height, width = lattice_window(block, layout)
        around = slice(row0 + MARGIN, row0 + height + MARGIN), slice(col0 + MARGIN, col0 + width + MARGIN)
        loss = BlockLoss(block, row0, col0, padded[around])
        patches = listed(needed(meeting(drawn, layout.size, block), layout.size, loss))
        logits = predict_loss(world[:, *around], patches, loss, loss.inside, model, layout.size, batch)
        if loss.inside.any():
            out[:, *window][:, loss.inside > 0] = logits.T
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


class Counts:
    """Answers with the number of its call."""

    def __init__(self):
        self.calls = 0

    def logits(self, images):
        out = np.full((len(images), 1, 4, 4), self.calls, np.float32)
        self.calls += 1
        return out


PAIR = [Patch(0, 0, 0, 0, 0, 4, 3), Patch(0, 2, 0, 0, 3, 4, 6)]
"""Patches of 4 at columns 0 and 2, whose cells meet at column 3."""


def answers(row):
    labels = np.zeros((4, 6), np.int32)
    labels[0] = row
    loss = BlockLoss(Block("b", 0, 0, 4, 6), 0, 0, labels)
    return predict_loss(np.zeros((1, 4, 6), np.float32), PAIR, loss, labels, Counts(), 4, 1)[:, 0].tolist()


def test_two_patches_are_blended_by_their_weights_over_an_event_that_both_hold():
    # weights along the row: 1 2 2 1 and, two columns on, 1 2 2 1
    assert answers([5, 5, 5, 5, 5, 5]) == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_an_event_in_one_cell_is_spoken_for_by_its_patch_alone():
    assert answers([5, 5, 5, 7, 7, 7]) == [0, 0, 0, 1, 1, 1]
    assert answers([5, 5, 5, 5, 7, 7]) == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_what_no_image_shows_still_says_where_an_event_lies():
    # that a pixel is hidden, another block cannot know
    labels = np.zeros((4, 6), np.int32)
    labels[0] = 5
    clear = labels.copy()
    clear[0, 3:] = 0
    loss = BlockLoss(Block("b", 0, 0, 4, 6), 0, 0, labels)
    found = predict_loss(np.zeros((1, 4, 6), np.float32), PAIR, loss, clear, Counts(), 4, 1)
    assert found[:, 0].tolist() == pytest.approx([0, 0, 1 / 3])


def test_no_patches_no_logits():
    labels, image = np.zeros((4, 6), np.int32), np.zeros((1, 4, 6), np.float32)
    loss = BlockLoss(Block("b", 0, 0, 4, 6), 0, 0, labels)
    assert predict_loss(image, [], loss, labels, Identity(), 4, 1).shape == (0, 0)
