from __future__ import annotations

import pytest
import torch

from pipeline.training.augment import Augment, AugmentParams
from pipeline.training.datasets.base import IGNORE

OFF = {"light": 0.0, "noise": 0.0, "haze": 0.0, "cloud": 0.0}


def _batch(count: int = 12, size: int = 32) -> dict[str, torch.Tensor]:
    """Labels that can be read off the image: band 0 holds the class, band 1 the event's row."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, 4, (count, size, size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORE
    events = torch.where(target == IGNORE, 0, torch.randint(1, 70_000, target.shape, generator=generator))
    image = torch.zeros(count, 6, size, size)
    image[:, 0] = torch.where(target == IGNORE, -1.0, target.float())
    image[:, 1] = events.float()
    return {"image": image, "target": target, "events": events}


def test_labels_move_with_their_pixels() -> None:
    batch = _batch()
    torch.manual_seed(0)
    out = Augment(AugmentParams(**OFF))(batch)
    assert not torch.equal(out["image"], batch["image"])
    inside = (out["events"] > 0) & (out["target"] != IGNORE)
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(out["image"][:, 0][inside], out["target"][inside].float())
    torch.testing.assert_close(out["image"][:, 1][inside], out["events"][inside].float())


def test_without_augmentation_nothing_changes() -> None:
    batch = _batch()
    out = Augment(AugmentParams(spatial=False, **OFF))(batch)
    for key, value in batch.items():
        torch.testing.assert_close(out[key], value)


def test_what_is_not_observed_stays_so_and_lends_no_value_and_no_label() -> None:
    batch = _batch()
    batch["image"][:, :, 8:20, 8:20] = torch.nan
    share = torch.isnan(batch["image"]).float().mean()
    torch.manual_seed(0)
    out = Augment(AugmentParams(light=0.0, noise=0.0, haze=0.0, cloud=0.0))(batch)
    unseen = torch.isnan(out["image"][:, 0])
    assert (out["target"][unseen] == IGNORE).all()
    # moved by at most a few percent; what comes in from beyond the crop is not observed either
    assert 0.8 * share < unseen.float().mean() < 1.5 * share
    kept = out["image"][:, 0][~unseen]
    assert torch.equal(kept, kept.round())


def test_clouds_hide_pixels_in_all_bands_and_their_labels() -> None:
    batch = _batch()
    torch.manual_seed(0)
    out = Augment(AugmentParams(spatial=False, **(OFF | {"cloud": 1.0, "cloud_share": 0.5})))(batch)
    hidden = torch.isnan(out["image"])
    assert torch.equal(hidden.all(dim=1), hidden.any(dim=1))
    shares = hidden[:, 0].float().mean(dim=(1, 2))
    assert shares.min() > 0
    assert shares.max() <= 0.51
    assert (out["target"][hidden[:, 0]] == IGNORE).all()


def test_haze_brightens_short_waves_most_and_some_crops_only() -> None:
    batch = {
        "image": torch.full((200, 6, 32, 32), 0.1),
        "target": torch.zeros(200, 32, 32).long(),
        "events": torch.ones(200, 32, 32).long(),
    }
    torch.manual_seed(0)
    out = Augment(AugmentParams(spatial=False, **(OFF | {"haze": 0.3})))(batch)["image"] - 0.1
    by_band = out.mean(dim=(0, 2, 3))
    assert (by_band.diff() < 0).all()
    assert by_band[-1] == pytest.approx(0, abs=1e-6)
    hazy = (out[:, 0].amax(dim=(1, 2)) > 0).float().mean()
    assert 0.15 < hazy < 0.45


def test_the_same_seed_gives_the_same_batch() -> None:
    batch = _batch()
    augment = Augment(AugmentParams())
    outs = []
    for _ in range(2):
        torch.manual_seed(4)
        outs.append(augment(batch))
    torch.testing.assert_close(outs[0]["image"], outs[1]["image"], equal_nan=True)
