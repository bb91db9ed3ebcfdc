from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from memory_samples import MemoryDataset, colours

from pipeline.errors import InputError
from pipeline.training.datasets.views import Coarser, Joined, at_resolution


def test_joined_data_sets_keep_their_images_events_and_predictors() -> None:
    a, b = colours(2, seed=1), colours(3, seed=2)
    b.events["event_id"] = "b-" + b.events["event_id"]
    for part in (a, b):
        part.auxiliary = pd.DataFrame({"slope": np.arange(len(part.events), dtype=float)})
    both = Joined([a, b])
    assert both.images == 5
    assert both.events["image"].tolist() == [k // 4 for k in range(20)]
    np.testing.assert_array_equal(both.read(3), b.read(1))
    np.testing.assert_array_equal(both.regions(1), a.regions(1))
    assert both.auxiliary is not None
    assert both.auxiliary["slope"].tolist() == [*range(8), *range(12)]


def test_data_sets_that_differ_are_not_joined() -> None:
    a, b = colours(1), colours(1)
    b.bands = b.bands[::-1]
    with pytest.raises(InputError, match="differ in bands"):
        Joined([a, b])
    with pytest.raises(InputError, match="is there twice"):
        Joined([a, colours(1)])


def test_a_coarser_pixel_is_the_mean_of_what_was_observed_and_belongs_to_whom_half_of_it_does() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4).repeat(6, axis=1)
    image[:, :, 0, 0] = np.nan
    image[:, :, 2:, 2:] = np.nan
    region = np.array([[1, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0]], np.int32)
    view = at_resolution(MemoryDataset([image], [region], [[0, 1, 2]]), 60.0)
    assert isinstance(view, Coarser)
    assert view.resolution == 60.0
    np.testing.assert_allclose(view.read(0)[0], [[(1 + 4 + 5) / 3, 4.5], [10.5, np.nan]])
    np.testing.assert_array_equal(view.regions(0), [[1, 0], [0, 0]])


def test_a_resolution_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(InputError, match="no multiple of its 30 m"):
        at_resolution(colours(1), 50.0)
    data = colours(1)
    assert at_resolution(data, None) is data
    assert at_resolution(data, 30.0) is data
