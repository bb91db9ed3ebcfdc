"""The training core on a small world whose classes differ in colour: it must learn, repeat itself, and stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import SMALL_FPN, card_fields, random_package

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS as SCHEME
from pipeline.models.card import ModelCard, Part
from pipeline.models.engines import open_segmenter
from pipeline.models.package import save_package
from pipeline.training.crops import IGNORE, Crop, CropSampler, TrainingImage, augment, list_events
from pipeline.training.fit import FitParams, NetworkParts, _loss, band_statistics, fit
from pipeline.training.scoring import event_logits

PARTS = NetworkParts(Part(name="resnet18"), SMALL_FPN, Part(name="linear"))
QUICK = FitParams(
    steps=40, crop=64, batch=4, early_crop=32, early_batch=8, early_share=0.5, calibration_batches=6, validations=1,
    threads=1, report_every=10,
)  # fmt: skip


def world(seed: int, size: int = 128) -> TrainingImage:
    """Sixteen square events on a grid of cells; the band that is bright tells the class."""
    random = np.random.default_rng(seed)
    image = np.full((6, size, size), 0.1, np.float32)
    drivers, events = np.full((size, size), 255, np.uint8), np.zeros((size, size), np.int32)
    for number in range(16):
        label = int(random.integers(4))
        side = int(random.integers(5, 24))
        top, left = (32 * at + int(random.integers(32 - side)) for at in divmod(number, 4))
        square = (slice(top, top + side), slice(left, left + side))
        image[label, *square] += 0.2
        drivers[square] = SCHEME.codes[label]
        events[square] = number + 1
    image += random.normal(0, 0.01, image.shape).astype(np.float32)
    image[:, :6, :6] = np.nan
    return TrainingImage(image, drivers, events)


def test_learns_and_the_package_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    result = fit([world(1), world(2)], [world(3)], PARTS, SCHEME, QUICK, lines.append)
    fields = card_fields(PARTS.backbone) | {"scaling": {"mean": result.mean, "std": result.std}}
    save_package(tmp_path / "model", result.network, fields)
    told = event_logits(world(4), open_segmenter(tmp_path / "model", "torch", device="cpu"))
    assert (told.logits.argmax(1) == told.labels).mean() >= 0.85  # chance is a quarter
    assert result.steps == 40
    assert len(lines) == 5
    assert result.history[-1].accuracy is not None
    assert result.history[-1].accuracy >= 0.85
    assert result.history[-2].loss < 0.7 * result.history[0].loss
    assert not result.network.training


def test_same_seed_same_weights_and_the_random_state_is_left_alone() -> None:
    params = FitParams(
        steps=3, crop=32, batch=2, early_crop=32, early_batch=2, calibration_batches=1, validations=1, threads=1
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = [fit([world(1)], [], PARTS, SCHEME, params, lambda _: None).network.state_dict() for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    other = fit([world(1)], [], PARTS, SCHEME, FitParams(**{**vars(params), "seed": 1}), lambda _: None)
    assert not torch.equal(other.network.state_dict()["head.conv.weight"], runs[0]["head.conv.weight"])


def test_the_clock_stops_it() -> None:
    params = FitParams(
        steps=10**9, minutes=0.02, crop=32, batch=2, early_crop=32, early_batch=2, calibration_batches=1, threads=1
    )
    result = fit([world(1)], [], PARTS, SCHEME, params, lambda _: None)
    assert result.steps < 10**4
    assert result.seconds < 30  # generous: a busy machine


def test_event_logits_by_hand(tmp_path: Path) -> None:
    """A model that repeats its first four bands must give each event the mean of its observed pixels."""
    card = random_package(tmp_path / "model")

    class Bands:
        """Logits are the first four bands, 0 where not observed."""

        def __init__(self, card: ModelCard) -> None:
            self.card = card

        def logits(self, images: np.ndarray) -> np.ndarray:
            assert images.shape[1:] == (6, 64, 64)
            return np.nan_to_num(images[:, :4])

    image = world(7, 150)
    image.image[:, image.events == 5] = np.nan
    told = event_logits(image, Bands(card))
    assert told.unseen == 1
    assert told.numbers.tolist() == [number for number in range(1, 17) if number != 5]
    for number, label, logits, pixels in zip(told.numbers, told.labels, told.logits, told.pixels, strict=True):
        own = (image.events == number) & np.isfinite(image.image[0])
        np.testing.assert_allclose(logits, image.image[:4, own].mean(1), atol=1e-5)
        assert pixels == own.sum()
        assert set(image.drivers[own]) == {SCHEME.codes[label]}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([16, 32, 160]))
def test_crops_stay_on_one_grid(seed: int, size: int) -> None:
    """Where a crop has a label, the band that tells this class is the bright one: image and labels moved together."""
    sampler = CropSampler([world(1)], SCHEME, seed)
    crop = sampler.draw(size)
    assert crop.image.shape == (6, size, size)
    assert crop.image.dtype == np.float32
    assert crop.target.shape == crop.events.shape == (size, size)
    labelled = crop.target != IGNORE
    assert set(np.unique(crop.target[labelled])) <= {0, 1, 2, 3}
    assert np.isfinite(crop.image[:, labelled]).any(axis=0).all()
    assert (crop.events[labelled] > 0).all()
    if labelled.any():
        assert (np.nan_to_num(crop.image[:4])[:, labelled].argmax(0) == crop.target[labelled]).mean() > 0.95


def test_crops_draw_classes_evenly() -> None:
    """One event of class 0 against nine of class 1: still half of the crops are drawn for each."""
    drivers, events = np.full((100, 40), 255, np.uint8), np.zeros((100, 40), np.int32)
    for number in range(10):
        drivers[number * 10, 5], events[number * 10, 5] = 1 if number == 0 else 2, number + 1
    sampler = CropSampler([TrainingImage(np.zeros((6, 100, 40), np.float32), drivers, events)], SCHEME, 0)
    drawn = [sampler.draw(8).target for _ in range(400)]
    rare = np.mean([(target == 0).any() for target in drawn])
    assert 0.4 < rare < 0.6


def test_augmentation_hides_labels_it_punched_out() -> None:
    crop = Crop(np.full((6, 64, 64), 0.2, np.float32), np.zeros((64, 64), np.int64), np.ones((64, 64), np.int64))
    random = np.random.default_rng(0)
    hidden = 0
    for _ in range(30):
        varied = augment(crop, random)
        unseen = ~np.isfinite(varied.image).any(axis=0)
        np.testing.assert_array_equal(varied.target == IGNORE, unseen)
        hidden += bool(unseen.any())
    assert 3 <= hidden <= 27
    assert np.isfinite(crop.image).all()


def test_loss_by_hand() -> None:
    """Two events of one and three pixels: the pixel term counts pixels, the event term counts events."""
    target = np.array([[0, 1, 1, 1]])
    events = np.array([[1, 2, 2, 2]])
    crop = Crop(np.zeros((6, 1, 4), np.float32), target, events)
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = 2.0
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    expected = (right + 3 * wrong) / 4 + 0.5 * (right + wrong) / 2
    params = FitParams(event_weight=0.5, label_smoothing=0.0)
    assert float(_loss(logits, [crop], params)) == pytest.approx(expected, rel=1e-6)
    nothing = Crop(crop.image, np.full((1, 4), IGNORE), events)
    assert float(_loss(logits, [nothing], params)) == 0


def test_same_event_number_in_two_crops_is_two_events() -> None:
    crops = [Crop(np.zeros((6, 1, 1), np.float32), np.array([[label]]), np.array([[1]])) for label in (0, 1)]
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    right = np.log1p(np.exp(-2.0))
    params = FitParams(event_weight=1.0, label_smoothing=0.0)
    assert float(_loss(logits, crops, params)) == pytest.approx(2 * right, rel=1e-6)


def test_statistics_ignore_what_is_not_observed() -> None:
    image = np.full((2, 9, 9), np.nan, np.float32)
    image[:, :, :3] = 0.1
    image[:, :, 3:6] = 0.3
    blank = np.zeros((9, 9))
    mean, std = band_statistics([TrainingImage(image, blank.astype(np.uint8), blank.astype(np.int32))])
    assert mean == pytest.approx((0.2, 0.2))
    assert std == pytest.approx((0.1, 0.1))


def test_what_cannot_teach_is_refused() -> None:
    blank = np.zeros((8, 8), np.int32)
    image = np.zeros((6, 8, 8), np.float32)
    with pytest.raises(InputError, match="hold no labelled event"):
        CropSampler([TrainingImage(image, np.full((8, 8), 255, np.uint8), blank)], SCHEME, 0)
    with pytest.raises(InputError, match=r"driver codes \[77\] are not in the label scheme"):
        list_events([TrainingImage(image, np.full((8, 8), 77, np.uint8), blank)], SCHEME)
    with pytest.raises(InputError, match="of one grid"):
        TrainingImage(image, np.zeros((8, 9), np.uint8), blank)
    with pytest.raises(InputError, match="band 0 is empty or constant"):
        band_statistics([TrainingImage(image, blank.astype(np.uint8), blank)])
    with pytest.raises(InputError, match="at least one"):
        fit([], [], PARTS, SCHEME, QUICK, lambda _: None)
