"""Training end to end on a small world whose classes differ in colour: it must learn, repeat itself, and go on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from memory_samples import BANDS, MemoryDataset, colours
from rasterio.transform import from_origin

from pipeline.errors import ConfigError, InputError
from pipeline.models.card import Scaling
from pipeline.models.engines import open_segmenter
from pipeline.models.package import verify_package
from pipeline.training.answers import answer
from pipeline.training.datasets.base import IGNORE
from pipeline.training.division import divide
from pipeline.training.fit import fit, region_head
from pipeline.training.landcover import LandCover, LandCoverStream
from pipeline.training.module import learning_rate, macro_f1
from pipeline.training.params import Fusion, Pretraining, Split, TrainConfig, load_training
from pipeline.training.results import Judgement
from pipeline.training.train import train_on

SMALL: dict[str, Any] = {
    "backbone": {"name": "tu-mobilenetv3_small_050"},
    "neck": {"name": "fpn", "settings": {"pyramid_channels": 32, "segmentation_channels": 32}},
}


def _config(folder: Path, **changes: Any) -> TrainConfig:
    course = {
        "steps": 30,
        "validations": 3,
        "crop": 64,
        "batch": 8,
        "lr": 0.003,
        "average": 0.9,
        "accelerator": "cpu",
        "threads": 1,
    }
    tree = {
        "dataset": {"path": "memory", "search_leaks": False},
        "architecture": SMALL,
        "patch": {"size": 64, "stride": 48},
        "output": {"package": str(folder / "package"), "name": "small"},
        **changes,
        "training": {**course, **changes.get("training", {})},
    }
    return TrainConfig.model_validate(tree)


def test_a_package_is_trained_calibrated_judged_and_answers_as_a_run_would(tmp_path: Path) -> None:
    data = colours(15)
    trained = train_on(_config(tmp_path), data)
    result = trained.judgement
    assert result.events == result.judged == 12
    assert result.accuracy.value is not None
    assert result.accuracy.value >= 0.9
    card = verify_package(trained.folder)
    assert card.simulated
    assert "proves nothing about the real world" in card.description
    assert card.calibration.method in ("temperature", "vector")
    assert card.error_matrix is not None
    assert card.error_matrix.n == 12
    assert {score.name for score in card.scores} >= {"accuracy", "macro-F1", "recall plantation"}
    assert Judgement.from_json((trained.folder / "judgement.json").read_text()) == result
    # the same answers by hand: mean logits of an event's pixels in a patch round it
    rows = np.flatnonzero(data.events["split"] == "test")
    answers = answer(trained.folder, data, rows)
    segmenter = open_segmenter(trained.folder)
    row = int(rows[0])
    image, number = (int(data.events.loc[row, key]) for key in ("image", "number"))
    logits = segmenter.logits(data.read(image)[None])[0]
    by_hand = logits[:, data.regions(image) == number].mean(axis=1)
    np.testing.assert_allclose(answers.logits[0], by_hand, atol=1e-4)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    data = colours(10)
    split = divide(data.events, Split())
    states = []
    for k, seed in enumerate((1, 1, 2)):
        config = _config(tmp_path / str(k), seed=seed, training={"steps": 6, "validations": 2})
        states.append(fit(config, data, split).network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_an_interrupted_training_goes_on_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = colours(10)
    split = divide(data.events, Split())
    course = {"steps": 9, "validations": 3, "average": 0.0}
    whole = fit(_config(tmp_path / "a", training=course), data, split)
    config = _config(tmp_path / "b", training=course)
    from pipeline.training.module import DriverModule

    step, count = DriverModule.training_step, 0

    def dies(self: DriverModule, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 5:
            raise RuntimeError("power cut")
        return step(self, batch, batch_index)

    monkeypatch.setattr(DriverModule, "training_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(config, data, split)
    monkeypatch.undo()
    resumed = fit(config, data, split)
    assert resumed.steps == 9
    for key, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value, msg=key)


def test_pixels_outside_events_carry_no_loss(tmp_path: Path) -> None:
    from pipeline.models.network import build_network
    from pipeline.training.augment import Augment, AugmentParams
    from pipeline.training.module import DriverModule, Knowledge

    config = _config(tmp_path)
    parts = config.architecture
    network = build_network(parts.backbone, parts.neck, parts.head, 6, 4)
    labels = torch.tensor([1, 2])
    known = Knowledge(Scaling(mean=(0.0,) * 6, std=(1.0,) * 6), labels, torch.zeros(2, 0), torch.ones(4))
    module = DriverModule(network, None, known, config.training, Augment(AugmentParams()))
    target = torch.full((1, 8, 8), IGNORE)
    target[0, 2:4, 2:4] = 2
    events = torch.where(target == IGNORE, 0, 2)
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    module._loss(logits, target, events).backward()
    assert logits.grad is not None
    changed = logits.grad.abs().sum(dim=1)[0] > 0
    assert torch.equal(changed, target[0] != IGNORE)
    nothing = module._loss(logits, torch.full_like(target, IGNORE), torch.zeros_like(events))
    assert nothing.item() == 0.0


@pytest.mark.slow
def test_late_fusion_learns_from_a_predictor_what_pixels_cannot_show(tmp_path: Path) -> None:
    data = colours(20)
    # two classes look alike; only the predictor tells them apart, and it is missing for some
    for k in range(data.images):
        region, own = data.regions(k), data.events[data.events["image"] == k]
        pixels = data.read(k)
        for number, label in zip(own["number"], own["label"], strict=True):
            pixels[:, region == number] = 0.1
            pixels[label // 2, region == number] = 0.5
    told = (data.events["label"] % 2).astype(float) * 10 - 300
    told[::17] = np.nan
    data.auxiliary = pd.DataFrame({"rain": told})
    blind = train_on(_config(tmp_path / "blind", training={"steps": 40}), data).judgement
    fusion = {"enabled": True, "auxiliary": "all", "dropout": 0.0}
    fused = train_on(_config(tmp_path / "fused", fusion=fusion, training={"steps": 60, "event_weight": 2.0}), data)
    assert blind.accuracy.value is not None
    assert fused.judgement.accuracy.value is not None
    assert blind.accuracy.value < 0.7
    assert fused.judgement.accuracy.value > blind.accuracy.value + 0.15
    assert fused.card.region is not None
    assert [column.name for column in fused.card.region.auxiliary] == ["rain"]
    verify_package(fused.folder)


def test_a_predictor_that_is_not_there_or_says_nothing_is_refused() -> None:
    data = colours(5)
    rows = np.arange(12)
    with pytest.raises(InputError, match="no auxiliary predictors"):
        region_head(Fusion(enabled=True, auxiliary=("rain",)), data, rows)
    data.auxiliary = pd.DataFrame({"rain": np.full(20, 3.0)})
    with pytest.raises(InputError, match=r"has no slope; it has rain"):
        region_head(Fusion(enabled=True, auxiliary=("slope",)), data, rows)
    with pytest.raises(InputError, match="no two different values"):
        region_head(Fusion(enabled=True, auxiliary="all"), data, rows)


def _land(folder: Path) -> Pretraining:
    """Three strips of land cover in colours of their own; the last is code 0, which is ignored."""
    random = np.random.default_rng(0)
    classes = np.repeat([5, 9, 0], [40, 40, 16])[:, None].repeat(96, axis=1).astype(np.uint8)
    image = np.full((6, 96, 96), 9000.0)
    image[0][classes == 5] = 20000
    image[3][classes == 9] = 20000
    image = (image + random.normal(0, 200, image.shape)).astype(np.uint16)
    place = {"crs": "EPSG:32748", "transform": from_origin(500_000, 100_000, 30, 30), "width": 96, "height": 96}
    with rasterio.open(folder / "image.tif", "w", driver="GTiff", count=6, dtype="uint16", **place) as raster:
        raster.write(image)
    # half the pixels, a CRS of its own: it is read on the image's grid
    coarse = {**place, "transform": from_origin(500_000, 100_000, 60, 60), "width": 48, "height": 48}
    with rasterio.open(folder / "classes.tif", "w", driver="GTiff", count=1, dtype="uint8", **coarse) as raster:
        raster.write(classes[::2, ::2], 1)
    return Pretraining(image=(folder / "image.tif",), classes=(folder / "classes.tif",), steps=12)


def test_land_cover_is_read_on_the_images_grid_with_codes_as_classes(tmp_path: Path) -> None:
    cover = LandCover(_land(tmp_path), 6)
    assert cover.codes == (5, 9)
    np.testing.assert_array_equal(cover.targets[0][:, 0], np.repeat([0, 1, IGNORE], [40, 40, 16]))
    assert cover.images[0][0, 0, 0] == pytest.approx(20000 * 0.0000275 - 0.2, abs=0.03)
    crop = next(iter(LandCoverStream(cover, 64, (0,))))
    labelled = crop["target"] >= 0
    bright = crop["image"][[0, 3]].argmax(dim=0)
    assert torch.equal(bright[labelled], crop["target"][labelled])
    with pytest.raises(InputError, match="6 bands, CRS EPSG:32748; 4 bands"):
        LandCover(_land(tmp_path), 4)


def test_pre_training_moves_backbone_and_neck_and_not_the_head(tmp_path: Path) -> None:
    from pipeline.models.network import build_network
    from pipeline.training.fit import _pretrain

    told = _land(tmp_path)
    rasters = {"image": [str(p) for p in told.image], "classes": [str(p) for p in told.classes], "steps": 3}
    config = _config(tmp_path, pretraining=rasters)
    parts = config.architecture
    network = build_network(parts.backbone, parts.neck, parts.head, len(BANDS), 4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with warnings.catch_warnings():
        # the caller silences what Lightning says of loops it was told not to run
        warnings.simplefilter("ignore")
        _pretrain(config, network, len(BANDS))
    after = network.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"backbone", "neck"}


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(k / 100, 0.1) for k in range(101)]
    assert rates[10] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_macro_f1_by_hand() -> None:
    labels, best = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    # class 0: 2*1/(2+2), class 1: 2*2/(3+2), class 2: 0; class 3 does not occur
    assert float(macro_f1(best, labels, 4)) == pytest.approx((0.5 + 0.8 + 0.0) / 3)


def test_divisions_cover_every_event_once_and_blocks_are_not_torn() -> None:
    events = colours(40).events
    random = np.random.default_rng(0)
    events["latitude"], events["longitude"] = random.uniform(-3, 3, 160), random.uniform(100, 106, 160)
    for split in (Split(kind="random"), Split(kind="blocks", km=100)):
        made = divide(events, split)
        together = np.concatenate([made.train, made.val, made.test])
        np.testing.assert_array_equal(np.sort(together), np.arange(160))
        assert len(made.train) / 160 == pytest.approx(0.6, abs=0.1)
    events["split"] = "train"
    with pytest.raises(InputError, match="no val events; set split"):
        divide(events, Split())


def test_every_training_configuration_in_the_tree_is_sound(root: Path) -> None:
    found = sorted((root / "configs" / "training").glob("*.yaml"))
    assert found
    for path in found:
        config = load_training(path)
        assert all(p.is_absolute() for p in config.dataset.path)


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("dataset: {path: x}\noutput: {package: p, name: n}\ntraining: {stepps: 3}\n")
    with pytest.raises(ConfigError, match=r"unknown key training.stepps; did you mean 'steps'"):
        load_training(path)


def test_memory_dataset_keeps_the_protocol() -> None:
    sample = colours(1)[0]
    assert sample["image"].shape == (6, 64, 64)
    assert set(torch.unique(sample["mask"]).tolist()) == {IGNORE, 0, 1, 2, 3}
    assert isinstance(colours(1), MemoryDataset)
