"""The lattice and the patches that torchgeo's samplers lay on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Block, RunGrid
from pipeline.lattice import Patch, PatchLayout, blend_weights, lattice_window, overlap, starts
from pipeline.patches import CompositeDataset, lay_patches

GRID = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 90, 110, 64)
sizes = st.sampled_from([(8, 8), (8, 6), (8, 4), (10, 7), (32, 24), (64, 48)])
cuts = st.integers(1, 120)
seeds = st.integers(0, 2**32 - 1)


def lattice_patches(block, layout):
    """The lattice patches of a block's window."""
    row0, col0, height, width = lattice_window(block, layout)
    return [
        Patch(row, col)
        for row in range(row0, row0 + height - layout.size + 1, layout.stride)
        for col in range(col0, col0 + width - layout.size + 1, layout.stride)
    ]


def dataset_of(block, layout, grid=GRID, bands=1):
    row0, col0, height, width = lattice_window(block, layout)
    return CompositeDataset(np.zeros((bands, height, width), np.float32), grid.window(row0, col0, height, width))


def lay(block, layout, labels, bounds=None, grid=GRID):
    return lay_patches(dataset_of(block, layout, grid), layout, grid, block, labels, bounds or {})


# ---------------------------------------------------------------------------------------------- the lattice


def test_the_window_of_a_small_block():
    # patches of 8 every 6 pixels that meet rows 10..13: those that start at 6 and 12; columns 0..3: at -6 and 0
    assert lattice_window(Block("b", 10, 0, 4, 4), PatchLayout("grid", 8, 6)) == (6, -6, 14, 14)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 90), st.integers(1, 90), sizes)
def test_the_window_is_all_patches_that_meet_the_block_and_no_others(row0, col0, height, width, size):
    layout, block = PatchLayout("grid", *size), Block("b", row0, col0, height, width)
    top, left, tall, wide = lattice_window(block, layout)
    for first, start, length, window in ((top, row0, height, tall), (left, col0, width, wide)):
        expected = [
            s for s in range(-layout.size * layout.stride, 600, layout.stride)
            if s < start + length and s + layout.size > start
        ]  # fmt: skip
        assert first == expected[0]
        assert window == expected[-1] + layout.size - first


@settings(deadline=None, max_examples=60)
@given(cuts, cuts, sizes, st.integers(0, 89), st.integers(0, 109))
def test_a_pixel_is_covered_by_the_same_patches_however_the_run_is_cut(one, other, size, row, col):
    layout = PatchLayout("grid", *size)

    def covering(cut):
        blocks = dataclasses.replace(GRID, block=cut).blocks()
        mine = next(b for b in blocks if b.row0 <= row < b.row0 + b.height and b.col0 <= col < b.col0 + b.width)
        return {
            p for p in lattice_patches(mine, layout)
            if p.row0 <= row < p.row0 + layout.size and p.col0 <= col < p.col0 + layout.size
        }  # fmt: skip

    assert covering(one) == covering(other) != set()


@given(st.integers(-50, 50), st.integers(1, 200), sizes)
def test_several_patches_of_one_event_cover_it_evenly(first, length, size):
    width, stride = size
    found = starts(first, first + length, width, stride)
    assert found[0] <= first
    assert found[-1] + width >= first + length
    assert set(np.diff(found)) <= {stride}
    assert len(found) == 1 or found[-2] + width < first + length  # no more than needed
    left, right = first - found[0], found[-1] + width - first - length
    assert abs(left - right) <= 1


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_the_overlap_of_a_patch_and_a_block_is_the_same_place_in_both(row, col, size, height, width):
    block = Block("b", 3, 5, height, width)
    outer, inner = overlap(Patch(row, col), size, block)
    rows, cols = np.mgrid[:40, :40] - 20
    in_block = (rows >= 3) & (rows < 3 + height) & (cols >= 5) & (cols < 5 + width)
    in_patch = (rows >= row) & (rows < row + size) & (cols >= col) & (cols < col + size)
    expected = sorted(zip(rows[in_block & in_patch], cols[in_block & in_patch], strict=True))
    block_rows, block_cols = np.mgrid[3 : 3 + height, 5 : 5 + width][:, *outer]
    patch_rows, patch_cols = np.mgrid[row : row + size, col : col + size][:, *inner]
    assert sorted(zip(block_rows.ravel(), block_cols.ravel(), strict=True)) == expected
    assert sorted(zip(patch_rows.ravel(), patch_cols.ravel(), strict=True)) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 32, 256, 1024])
def test_blend_weights_are_a_positive_pyramid(size):
    weights = blend_weights(size)
    assert weights.shape == (size, size)
    assert weights.min() == weights[0, 0] == 1
    assert weights.max() == ((size + 1) // 2) ** 2 < 2**24
    for turned in (weights[::-1], weights[:, ::-1], weights.T):
        assert (turned == weights).all()


def test_blend_weights_of_four():
    assert blend_weights(4)[1].tolist() == [2, 4, 4, 2]


# ---------------------------------------------------------------------------------------------- patches on it


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from([(32, 32), (32, 24), (32, 17), (64, 48)]), st.sampled_from([30, 64, 200]))
def test_grid_mode_lays_exactly_the_lattice_patches_that_touch_loss(seed, size, cut):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((GRID.height, GRID.width)) < 0.0005, 7, 0)
    layout, grid = PatchLayout("grid", *size), dataclasses.replace(GRID, block=cut)
    everywhere = set()
    for block in grid.blocks():
        part = labels[block.row0 : block.row0 + block.height, block.col0 : block.col0 + block.width]
        found = lay(block, layout, part, grid=grid)
        touching = [p for p in lattice_patches(block, layout) if part[overlap(p, layout.size, block)[0]].any()]
        assert found == touching
        everywhere |= set(found)
    # and over all blocks, exactly those of the lattice of the whole run
    whole = Block("all", 0, 0, GRID.height, GRID.width)
    assert everywhere == {p for p in lattice_patches(whole, layout) if labels[overlap(p, layout.size, whole)[0]].any()}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_events_mode_covers_every_pixel_of_every_event_in_every_cut(data):
    layout = PatchLayout("events", *data.draw(st.sampled_from([(32, 32), (32, 24)])))
    labels, bounds = np.zeros((GRID.height, GRID.width), np.int32), {}
    for label in range(1, data.draw(st.integers(1, 4)) + 1):
        row, col = data.draw(st.integers(0, 89)), data.draw(st.integers(0, 109))
        tall, wide = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
        labels[row : row + tall, col : col + wide] = label
    for label in np.unique(labels[labels > 0]):
        rows, cols = np.nonzero(labels == label)
        bounds[int(label)] = rows.min(), cols.min(), rows.max() + 1, cols.max() + 1
    seen = {}
    for cut in (200, 64):
        covered, patches = np.zeros_like(labels), set()
        for block in dataclasses.replace(GRID, block=cut).blocks():
            window = slice(block.row0, block.row0 + block.height), slice(block.col0, block.col0 + block.width)
            for patch in lay(block, layout, labels[window], bounds):
                outer, _ = overlap(patch, layout.size, block)
                covered[window][outer] += labels[window][outer] == patch.event
                patches.add(patch)
        assert (covered[labels > 0] > 0).all()
        seen[cut] = patches
    assert seen[200] == seen[64]
    for label, (r0, c0, r1, c1) in bounds.items():
        mine = [p for p in seen[200] if p.event == label]
        if max(r1 - r0, c1 - c0) <= layout.size:
            assert mine == [Patch((r0 + r1 - layout.size) // 2, (c0 + c1 - layout.size) // 2, label)]


def test_no_loss_no_patches():
    block = Block("b", 0, 0, 64, 64)
    for mode in ("grid", "events"):
        assert lay(block, PatchLayout(mode, 32, 24), np.zeros((64, 64), np.int32)) == []


# ---------------------------------------------------------------------------------------------- the dataset


def test_the_dataset_gives_what_its_place_says_and_nan_outside():
    image = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)
    dataset = CompositeDataset(image, GRID.window(10, 20, 6, 5))
    assert (dataset.read(1, 2, 3, 2) == image[:, 1:4, 2:4]).all()
    outside = dataset.read(-1, 3, 3, 4)
    assert np.isnan(outside[:, 0]).all()
    assert np.isnan(outside[:, :, 2:]).all()
    assert (outside[:, 1:, :2] == image[:, :2, 3:]).all()
    assert np.isnan(dataset.read(50, 50, 2, 2)).all()
    x, y = GRID.window(11, 22, 3, 2).affine @ (0, 0)
    sample = dataset[slice(x, x + 60), slice(y - 90, y)]
    assert (sample["image"].numpy() == image[:, 1:4, 2:4]).all()
