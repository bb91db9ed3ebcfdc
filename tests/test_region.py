from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import random_package

from pipeline.errors import ModelError
from pipeline.events import LogitSums, to_fixed_point
from pipeline.models.card import AuxiliaryColumn, RegionParams, read_card
from pipeline.models.region import (
    RegionHead,
    attach_region,
    fused_logits,
    load_region,
    region_features,
    verify_region,
)
from pipeline.models.store import load_package

ROAD, RAIN = AuxiliaryColumn(name="road_km", mean=10, std=4), AuxiliaryColumn(name="rain", mean=2000, std=500)
FULL = RegionParams(auxiliary=(ROAD, RAIN), hidden=16)


def trained(params=FULL, classes=4, seed=0):
    """A head whose last layer says something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = RegionHead(params, classes)
        for weight in head.parameters():
            torch.nn.init.normal_(weight, 0, 0.3)
    return head.eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "plain"
    random_package(folder)
    return folder


@pytest.fixture
def package(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    statistics = rng.normal(0, 2, (count, 16))
    return statistics, np.column_stack([rng.normal(10, 4, count), rng.normal(2000, 500, count)])


# ---------------------------------------------------------------------------------------------- features


def test_features_of_three_pixels():
    logits = torch.tensor([[1.0, -2], [5, 7], [4, -2]])
    found = region_features(logits, torch.tensor([0, 2, 0]), 3)
    # mean, std, min, max of the two classes
    assert found[0].tolist() == [2.5, -2, 1.5, 0, 1, -2, 4, -2]
    assert found[2].tolist() == [5, 7, 0, 0, 5, 7, 5, 7]
    assert torch.isnan(found[1]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_training_and_the_run_measure_the_same(seed, pixels):
    rng = np.random.default_rng(seed)
    logits, index = rng.normal(0, 5, (pixels, 4)), rng.integers(0, 6, pixels)
    ours = region_features(torch.from_numpy(logits), torch.from_numpy(index), 6).numpy()
    theirs = LogitSums.of_pixels(index, to_fixed_point(logits), 6).statistics()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert (np.isnan(ours).all(axis=1) == ~np.isin(np.arange(6), index)).all()


def test_gradients_flow_through_the_means_only_and_past_empty_events():
    logits = torch.tensor([[1.0, -2], [5, 7], [4, -2]], requires_grad=True)
    features = region_features(logits, torch.tensor([0, 2, 0]), 3)
    features[[0, 2]].sum().backward()
    assert logits.grad.tolist() == [[0.5, 0.5], [1, 1], [0.5, 0.5]]


def test_half_precision_counts_right():
    features = region_features(torch.ones(5000, 1, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.int64), 1)
    assert features.tolist() == [[1, 0, 1, 1]]


# ---------------------------------------------------------------------------------------------- head


def test_an_untrained_head_is_no_fusion():
    statistics, auxiliary = (torch.from_numpy(part) for part in rows(5))
    head = RegionHead(FULL, 4).double().eval()
    assert torch.equal(head(statistics, auxiliary), statistics[:, :4])
    assert not torch.equal(trained().double()(statistics, auxiliary), statistics[:, :4])


def test_a_missing_value_is_the_mean_and_says_so():
    statistics, auxiliary = (torch.from_numpy(part) for part in rows(1))
    head = trained().double()

    def answer(road):
        return head(statistics, torch.tensor([[road, float(auxiliary[0, 1])]]))

    inputs = head._standardised(torch.tensor([[torch.nan, 2500.0]]), torch.float64)
    assert [part.tolist() for part in inputs] == [[[0, 1]], [[1, 0]]]
    assert torch.isfinite(answer(torch.nan)).all()
    assert not torch.equal(answer(torch.nan), answer(ROAD.mean)), "missing is not average"
    assert not torch.equal(answer(torch.nan), answer(0.0)), "and not zero"
    assert torch.equal(answer(1e9), answer(ROAD.mean + 5 * ROAD.std)), "beyond what was learnt is taken as far"


def test_without_statistics_only_means_count():
    statistics, _ = rows(3)
    head = trained(RegionParams(statistics=False, hidden=8)).double()
    other = statistics.copy()
    other[:, 4:] = 99
    assert torch.equal(head(torch.from_numpy(statistics)), head(torch.from_numpy(other)))
    other[:, 0] += 1
    assert not torch.equal(head(torch.from_numpy(statistics)), head(torch.from_numpy(other)))


@pytest.mark.parametrize(("statistics", "auxiliary"), [((2, 15), (2, 2)), ((2, 16), (2, 1)), ((2, 16), None)])
def test_inputs_of_another_shape_are_refused(statistics, auxiliary):
    with pytest.raises(ModelError, match=r"region head of 4 classes and 2 auxiliary columns.*road_km"):
        trained()(torch.zeros(statistics), None if auxiliary is None else torch.zeros(auxiliary))


def test_a_region_head_learns_what_pixels_do_not_show():
    # two classes with equal logits everywhere; the road alone tells them apart
    rng = np.random.default_rng(0)
    road = rng.uniform(0, 20, 200)
    label = torch.from_numpy((road > 10).astype(np.int64))
    params = RegionParams(auxiliary=(ROAD,), hidden=16, dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = RegionHead(params, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    inputs = torch.zeros(200, 8), torch.from_numpy(road).float()[:, None]
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(*inputs), label).backward()
        optimizer.step()
    assert float((head(*inputs).argmax(1) == label).float().mean()) > 0.97


# ---------------------------------------------------------------------------------------------- package


def test_saved_and_loaded_it_says_the_same(package):
    head = trained()
    card = attach_region(package, head)
    assert card == read_card(package) == load_package(package).card
    assert [c.name for c in card.region.auxiliary] == ["road_km", "rain"]
    statistics, auxiliary = rows(7)
    auxiliary[3, 1] = np.nan
    auxiliary.setflags(write=False)
    expected = head.double()(torch.tensor(statistics), torch.tensor(auxiliary.copy())).detach().numpy()
    assert fused_logits(package, card, statistics, auxiliary).tobytes() == expected.tobytes()
    assert fused_logits(package, card, statistics[:0], auxiliary[:0]).shape == (0, 4)
    np.testing.assert_allclose(fused_logits(package, card, statistics[3:4], auxiliary[3:4])[0], expected[3], rtol=1e-12)
    verify_region(package, card)


def test_scores_without_the_head_do_not_stay(package):
    fields = {"calibration": {"method": "temperature", "temperature": 2.0}}
    assert attach_region(package, trained(), fields).calibration.temperature == 2
    assert attach_region(package, trained()).calibration.method == "none"


@pytest.mark.parametrize("spoil", ["altered", "cut", "gone", "pickle"])
def test_another_file_than_the_cards_is_refused_before_it_is_parsed(package, spoil):
    card = attach_region(package, trained())
    path = package / "region.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if spoil == "gone":
        path.unlink()
    else:
        path.write_bytes({"altered": bytes(content), "cut": content[:40], "pickle": b"\x80\x04K\x01."}[spoil])
    with pytest.raises(ModelError, match=r"cannot be read" if spoil == "gone" else r"sha256 is .*altered"):
        load_region(package, card)
    with pytest.raises(ModelError):
        verify_region(package, card)


def test_a_card_that_describes_another_head_is_refused(package):
    card = attach_region(package, trained())
    for change in ({"hidden": 8}, {"statistics": False}, {"auxiliary": (ROAD,)}):
        other = card.model_copy(update={"region": card.region.model_copy(update=change)})
        with pytest.raises(ModelError, match="does not fit the card, first at layers"):
            load_region(package, other)
    before = (package / "region.safetensors").read_bytes()
    with pytest.raises(ModelError, match="has 4 classes, the region head 3"):
        attach_region(package, trained(classes=3))
    with pytest.raises(ModelError, match="model card of"):
        attach_region(package, trained(seed=5), {"version": None})
    assert (package / "region.safetensors").read_bytes() == before, "a refused head leaves the package whole"


def test_a_head_that_is_not_finite_is_refused(package):
    head = trained()
    torch.nn.init.constant_(head.layers[-1].bias, float("nan"))
    card = attach_region(package, head)
    with pytest.raises(ModelError, match="not finite"):
        verify_region(package, card)


def test_columns_are_distinct_and_vary():
    with pytest.raises(ValueError, match="named twice"):
        RegionParams(auxiliary=(ROAD, ROAD))
    with pytest.raises(ValueError, match="greater than 0"):
        AuxiliaryColumn(name="x", mean=0, std=0)
