"""The lattice and the patches that torchgeo's samplers lay on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Block, RunGrid
from pipeline.lattice import (
    PATCH,
    BlockLoss,
    Patch,
    PatchLayout,
    blend_weights,
    cells,
    covered_pixels,
    lattice_window,
    listed,
    meeting,
    needed,
    overlap,
    starts,
)
from pipeline.patches import RunWindow, draw_patches

NO_BOUNDS = np.zeros((0, 4), np.int64)
GRID = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 90, 110, 64)
sizes = st.sampled_from([(8, 8), (8, 6), (8, 4), (10, 7), (32, 24), (64, 48)])
cuts = st.integers(1, 120)
seeds = st.integers(0, 2**32 - 1)


def lattice_patch(row, col, layout):
    """The patch of the lattice whose cell is the row-th from the top and the col-th from the left."""
    top, left = row * layout.stride, col * layout.stride
    corner = top - layout.margin, left - layout.margin
    return Patch(*corner, 0, top, left, top + layout.stride, left + layout.stride)


def lattice_patches(block, layout):
    """The lattice patches of a block's window."""
    row0, col0, height, width = lattice_window(block, layout)
    return [
        lattice_patch(row // layout.stride, col // layout.stride, layout)
        for row in range(row0 + layout.margin, row0 + layout.margin + height - layout.size + 1, layout.stride)
        for col in range(col0 + layout.margin, col0 + layout.margin + width - layout.size + 1, layout.stride)
    ]


def loss_of(block, layout, labels):
    """The loss of a block and around it, of labels of the whole grid."""
    row0, col0, height, width = lattice_window(block, layout)
    padded = np.pad(labels, 200)
    return BlockLoss(block, row0, col0, padded[200 + row0 : 200 + row0 + height, 200 + col0 : 200 + col0 + width])


def bounds_of(labels):
    """First and last + 1 row and column by event row: of labels from 1, all 0 for one without a pixel."""
    out = np.zeros((labels.max(initial=0), 4), np.int64)
    for label in np.unique(labels[labels > 0]):
        rows, cols = np.nonzero(labels == label)
        out[label - 1] = rows.min(), cols.min(), rows.max() + 1, cols.max() + 1
    return out


def lay(block, layout, labels, drawn):
    loss = loss_of(block, layout, labels)
    return listed(needed(meeting(drawn, layout.size, block), layout.size, loss))


# ---------------------------------------------------------------------------------------------- the lattice


def test_the_window_of_a_small_block():
    # patches of 8 around cells of 6 that meet rows 10..13: those at 5 and 11; columns 0..3: at -7, -1
    assert lattice_window(Block("b", 10, 0, 4, 4), PatchLayout("grid", 8, 6)) == (5, -7, 14, 14)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 90), st.integers(1, 90), sizes)
def test_the_window_is_all_patches_that_meet_the_block_and_no_others(row0, col0, height, width, size):
    layout, block = PatchLayout("grid", *size), Block("b", row0, col0, height, width)
    top, left, tall, wide = lattice_window(block, layout)
    for first, start, length, window in ((top, row0, height, tall), (left, col0, width, wide)):
        expected = [
            s for s in range(-layout.size * layout.stride - layout.margin, 600, layout.stride)
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
    (home,) = (p for p in covering(one) if p.top <= row < p.bottom and p.left <= col < p.right)
    # no other patch of the lattice shows more of its surroundings
    edge = min(row - home.row0, home.row0 + layout.size - 1 - row)
    assert edge >= max(min(row - p.row0, p.row0 + layout.size - 1 - row) for p in covering(one)) - 1


@settings(deadline=None, max_examples=40)
@given(cuts, sizes, seeds)
def test_blocks_of_whole_cells_share_no_patch_but_those_of_events_that_cross_their_border(cut, size, seed):
    layout = PatchLayout("grid", *size)
    block = layout.whole_cells(cut)
    assert cut <= block < cut + layout.stride
    grid = dataclasses.replace(GRID, block=block)
    # pixels of their own: none crosses anything
    labels = np.zeros((GRID.height, GRID.width), np.int32)
    where = np.random.default_rng(seed).random(labels.shape) < 0.01
    labels[where] = np.arange(1, where.sum() + 1)
    drawn = draw_patches(layout, grid, NO_BOUNDS)
    laid = [patch for b in grid.blocks() for patch in lay(b, layout, labels, drawn)]
    held = {(row // layout.stride, col // layout.stride) for row, col in zip(*np.nonzero(labels), strict=True)}
    assert len(laid) == len(set(laid)) == len(held), "one for each cell that holds loss"


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
    # and their cells follow each other, from the first patch's start to the last one's end
    parts = cells(found, PatchLayout("events", *size))
    assert [parts[0][0], *(end for _, end in parts)] == [*(top for top, _ in parts), found[-1] + width]
    assert all(start <= top < bottom <= start + width for start, (top, bottom) in zip(found, parts, strict=True))


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_the_overlap_of_a_patch_and_a_block_is_the_same_place_in_both(row, col, size, height, width):
    block = Block("b", 3, 5, height, width)
    outer, inner = overlap(Patch(row, col, 0, 0, 0, 0, 0), size, block)
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
def test_grid_mode_lays_the_patches_in_whose_cells_an_event_lies(seed, size, cut):
    rng = np.random.default_rng(seed)
    labels = np.zeros((GRID.height, GRID.width), np.int32)
    for label in range(1, 6):
        row, col, tall, wide = rng.integers(0, (90, 110, 30, 30))
        labels[row : row + tall, col : col + wide] = label
    layout, grid = PatchLayout("grid", *size), dataclasses.replace(GRID, block=cut)
    drawn = draw_patches(layout, grid, bounds_of(labels))
    speaking = {}
    for block in grid.blocks():
        loss = loss_of(block, layout, labels)
        found = lay(block, layout, labels, drawn)
        assert len(found) == len(set(found))
        for patch in listed(meeting(drawn, layout.size, block)):
            outer, _, own = loss.spoken(patch, layout.size, loss.inside)
            assert own.any() == (patch in found)
            rows, cols = np.nonzero(own)
            for row, col in zip(rows + block.row0 + outer[0].start, cols + block.col0 + outer[1].start, strict=True):
                speaking.setdefault((int(row), int(col)), set()).add(patch)
    # whatever the blocks are: the patches that show a pixel, of those in whose cells its event lies
    whole = lattice_patches(Block("all", 0, 0, GRID.height, GRID.width), layout)
    in_cell = {p: set(np.unique(labels[max(p.top, 0) : p.bottom, max(p.left, 0) : p.right]).tolist()) for p in whole}
    expected = {}
    for row, col in zip(*np.nonzero(labels), strict=True):
        expected[int(row), int(col)] = {
            p for p in whole
            if int(labels[row, col]) in in_cell[p]
            and p.row0 <= row < p.row0 + layout.size and p.col0 <= col < p.col0 + layout.size
        }  # fmt: skip
    assert speaking == expected
    assert all(expected.values())


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_events_mode_covers_every_pixel_of_every_event_in_every_cut(data):
    layout = PatchLayout("events", *data.draw(st.sampled_from([(32, 32), (32, 24)])))
    labels = np.zeros((GRID.height, GRID.width), np.int32)
    for label in range(1, data.draw(st.integers(1, 4)) + 1):
        row, col = data.draw(st.integers(0, 89)), data.draw(st.integers(0, 109))
        tall, wide = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
        labels[row : row + tall, col : col + wide] = label
    bounds = bounds_of(labels)
    drawn = draw_patches(layout, GRID, bounds)
    seen = {}
    for cut in (200, 64):
        covered, patches = np.zeros_like(labels), set()
        for block in dataclasses.replace(GRID, block=cut).blocks():
            window = slice(block.row0, block.row0 + block.height), slice(block.col0, block.col0 + block.width)
            loss = loss_of(block, layout, labels)
            for patch in lay(block, layout, labels, drawn):
                outer, _, own = loss.spoken(patch, layout.size, loss.inside)
                assert (loss.inside[outer][own] == patch.event).all()
                covered[window][outer] += own
                patches.add(patch)
        assert ((covered > 0) == (labels > 0)).all()
        seen[cut] = patches
    assert seen[200] == seen[64]
    for label, (r0, c0, r1, c1) in enumerate(bounds.tolist(), start=1):
        mine = [p for p in seen[200] if p.event == label]
        if r1 == 0:  # later events lie over it
            assert mine == []
        elif max(r1 - r0, c1 - c0) <= layout.size:
            row0, col0 = (r0 + r1 - layout.size) // 2, (c0 + c1 - layout.size) // 2
            assert mine == [Patch(row0, col0, label, row0, col0, row0 + layout.size, col0 + layout.size)]


def test_no_loss_no_patches():
    block = Block("b", 0, 0, 64, 64)
    for mode in ("grid", "events"):
        drawn = draw_patches(PatchLayout(mode, 32, 24), GRID, np.zeros((1, 4), np.int64))
        assert (len(drawn) == 0) == (mode == "events")
        nothing = np.zeros((GRID.height, GRID.width), np.int32)
        assert lay(block, PatchLayout(mode, 32, 24), nothing, drawn) == []


@settings(deadline=None)
@given(seeds, sizes, st.integers(0, 30))
def test_covered_pixels_are_those_under_a_patch(seed, size, count):
    rng = np.random.default_rng(seed)
    on_lattice = rng.integers(-5, 9, (count, 2)) * size[1]
    for corners in (on_lattice, rng.integers(-99, 199, (count, 2))):
        seen = np.zeros((1200, 1200), bool)
        for row, col in corners + 400:
            seen[row : row + size[0], col : col + size[0]] = True
        patches = np.column_stack([corners, np.zeros((count, len(PATCH) - 2))]).astype(np.int32)
        assert covered_pixels(patches, size[0]) == seen.sum()


# ---------------------------------------------------------------------------------------------- the dataset


def test_a_sample_of_the_run_tells_its_place():
    query = GRID.slices(11, 22, 3, 2)
    place = RunWindow(GRID.geobox)
    west, east, step, south, north = place[query]["bounds"].numpy()[:5]
    assert (west, east, step) == (GRID.x0 + 22 * 30, GRID.x0 + 24 * 30, 30)
    assert (south, north) == (GRID.y0 - 14 * 30, GRID.y0 - 11 * 30)


@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 90), st.integers(1, 90))
def test_slices_and_pixels_undo_each_other(row0, col0, height, width):
    assert GRID.pixels(*GRID.slices(row0, col0, height, width)) == (row0, col0, row0 + height, col0 + width)
