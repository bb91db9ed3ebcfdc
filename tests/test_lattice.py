"""The lattice and the patches that torchgeo's samplers lay on it."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Block, RunGrid
from pipeline.lattice import (
    PATCH,
    Patch,
    PatchLayout,
    cells,
    covered_pixels,
    lattice_window,
    listed,
    meeting,
    needed,
    spoken,
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
    rows = range(block.row0 // layout.stride, (block.row0 + block.height - 1) // layout.stride + 1)
    cols = range(block.col0 // layout.stride, (block.col0 + block.width - 1) // layout.stride + 1)
    return [lattice_patch(row, col, layout) for row in rows for col in cols]


def bounds_of(labels):
    """First and last + 1 row and column by event row: of labels from 1, all 0 for one without a pixel."""
    out = np.zeros((labels.max(initial=0), 4), np.int64)
    for label in np.unique(labels[labels > 0]):
        rows, cols = np.nonzero(labels == label)
        out[label - 1] = rows.min(), cols.min(), rows.max() + 1, cols.max() + 1
    return out


def lay(block, layout, labels, drawn):
    return listed(needed(meeting(drawn, layout.size, block), block, labels))


# ---------------------------------------------------------------------------------------------- the lattice


def test_the_window_of_a_small_block():
    # cells of 6 within patches of 8: rows 10..13 lie in cells 6 and 12, columns 0..3 in cell 0
    assert lattice_window(Block("b", 10, 0, 4, 4), PatchLayout("grid", 8, 6)) == (5, -1, 14, 8)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 90), st.integers(1, 90), sizes)
def test_the_window_is_all_patches_whose_cells_meet_the_block_and_no_others(row0, col0, height, width, size):
    layout, block = PatchLayout("grid", *size), Block("b", row0, col0, height, width)
    patches = lattice_patches(block, layout)
    top, left = min(p.row0 for p in patches), min(p.col0 for p in patches)
    bottom, right = (max(getattr(p, side) for p in patches) + layout.size for side in ("row0", "col0"))
    assert lattice_window(block, layout) == (top, left, bottom - top, right - left)


@settings(deadline=None, max_examples=60)
@given(cuts, cuts, sizes, st.integers(0, 89), st.integers(0, 109))
def test_a_pixel_is_spoken_for_by_one_patch_however_the_run_is_cut(one, other, size, row, col):
    layout = PatchLayout("grid", *size)

    def speaking(cut):
        blocks = dataclasses.replace(GRID, block=cut).blocks()
        mine = next(b for b in blocks if b.row0 <= row < b.row0 + b.height and b.col0 <= col < b.col0 + b.width)
        return [p for p in lattice_patches(mine, layout) if p.top <= row < p.bottom and p.left <= col < p.right]

    (patch,) = speaking(one)
    assert speaking(other) == [patch]
    # no other patch of the lattice shows more of its surroundings
    edge = min(row - patch.row0, patch.row0 + layout.size - 1 - row)
    others = (k * layout.stride - layout.margin for k in range(-layout.size, 200))
    assert edge >= max(min(row - start, start + layout.size - 1 - row) for start in others) - 1


@given(cuts, sizes)
def test_a_block_of_whole_cells_shares_no_patch_with_another(cut, size):
    layout = PatchLayout("grid", *size)
    block = layout.whole_cells(cut)
    assert cut <= block < cut + layout.stride
    drawn = draw_patches(layout, dataclasses.replace(GRID, block=block), NO_BOUNDS)
    blocks = list(dataclasses.replace(GRID, block=block).blocks())
    assert sum(len(meeting(drawn, layout.size, b)) for b in blocks) == len(drawn)


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
def test_what_a_patch_says_of_a_block_is_the_same_place_in_both(row, col, size, height, width):
    block, margin = Block("b", 3, 5, height, width), size // 4
    cell = row + margin, col + margin, row + size - margin, col + size - margin
    outer, inner = spoken(Patch(row, col, 0, *cell), block)
    rows, cols = np.mgrid[:50, :50] - 20
    in_block = (rows >= 3) & (rows < 3 + height) & (cols >= 5) & (cols < 5 + width)
    in_cell = (rows >= cell[0]) & (rows < cell[2]) & (cols >= cell[1]) & (cols < cell[3])
    expected = sorted(zip(rows[in_block & in_cell], cols[in_block & in_cell], strict=True))
    block_rows, block_cols = np.mgrid[3 : 3 + height, 5 : 5 + width][:, *outer]
    patch_rows, patch_cols = np.mgrid[row : row + size, col : col + size][:, *inner]
    assert sorted(zip(block_rows.ravel(), block_cols.ravel(), strict=True)) == expected
    assert sorted(zip(patch_rows.ravel(), patch_cols.ravel(), strict=True)) == expected


# ---------------------------------------------------------------------------------------------- patches on it


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from([(32, 32), (32, 24), (32, 17), (64, 48)]), st.sampled_from([30, 64, 200]))
def test_grid_mode_lays_exactly_the_lattice_patches_that_speak_for_loss(seed, size, cut):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((GRID.height, GRID.width)) < 0.0005, 7, 0)
    layout, grid = PatchLayout("grid", *size), dataclasses.replace(GRID, block=cut)
    drawn = draw_patches(layout, grid, bounds_of(labels))
    everywhere = set()
    for block in grid.blocks():
        part = labels[block.row0 : block.row0 + block.height, block.col0 : block.col0 + block.width]
        found = lay(block, layout, part, drawn)
        assert found == [p for p in lattice_patches(block, layout) if part[spoken(p, block)[0]].any()]
        everywhere |= set(found)
    # and over all blocks, exactly those of the lattice of the whole run
    whole = Block("all", 0, 0, GRID.height, GRID.width)
    assert everywhere == {p for p in lattice_patches(whole, layout) if labels[spoken(p, whole)[0]].any()}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_events_mode_speaks_once_for_every_pixel_of_every_event_in_every_cut(data):
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
            for patch in lay(block, layout, labels[window], drawn):
                outer, _ = spoken(patch, block)
                covered[window][outer] += labels[window][outer] == patch.event
                patches.add(patch)
        assert (covered == (labels > 0)).all()
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
        assert lay(block, PatchLayout(mode, 32, 24), np.zeros((64, 64), np.int32), drawn) == []


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
