"""Augmentation of a batch of crops (kornia): turned, mirrored, shifted; other light, noise, haze, holes left by clouds.

The published recipe (Irvin et al. 2020): flips, quarter turns, scale .95 to 1.05, shift of 3 percent; haze on visible
bands. What is not observed stays so: a missing pixel is no dark pixel, and none bleeds into its neighbours.
"""

from __future__ import annotations

import kornia.augmentation as kornia_augmentation
import torch
from kornia.contrib import diamond_square
from pydantic import Field
from torch import nn

from pipeline.config import Section
from pipeline.training.datasets.base import IGNORE


class AugmentParams(Section):
    """Which augmentations are on. `light` and `noise` are standard deviations, of a factor and in reflectance.

    `haze` and `cloud` are probabilities per crop. Haze adds up to `haze_reflectance` to the shortest wave and nothing
    to the longest; a cloud hides up to `cloud_share` of a crop.
    """

    spatial: bool = True
    light: float = Field(0.05, ge=0)
    noise: float = Field(0.003, ge=0)
    haze: float = Field(0.2, ge=0, le=1)
    haze_reflectance: float = Field(0.05, ge=0)
    cloud: float = Field(0.4, ge=0, le=1)
    cloud_share: float = Field(0.3, ge=0, lt=1)


class Augment(nn.Module):
    """Crops `image` [N, bands, c, c], `target` and `events` int64 [N, c, c] -> varied; bands by wavelength."""

    def __init__(self, params: AugmentParams) -> None:
        super().__init__()
        self.params = params
        self._spatial = kornia_augmentation.AugmentationSequential(
            kornia_augmentation.RandomHorizontalFlip(p=0.5),
            kornia_augmentation.RandomVerticalFlip(p=0.5),
            kornia_augmentation.RandomRotation90(times=(0, 3), p=1.0, resample="nearest"),
            kornia_augmentation.RandomAffine(
                0.0, translate=(0.03, 0.03), scale=(0.95, 1.05), p=0.5, resample="nearest"
            ),
            data_keys=["input"],
        )

    @torch.no_grad()
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a varied copy of the batch."""
        image, target, events = batch["image"], batch["target"], batch["events"]
        if self.params.spatial:
            image, target, events = self._moved(image, target, events)
        image = self._lit(image)
        if self.params.cloud:
            image = self._clouded(image)
        unseen = ~torch.isfinite(image).any(dim=1)
        return {**batch, "image": image, "target": target.masked_fill(unseen, IGNORE), "events": events}

    def _moved(
        self, image: torch.Tensor, target: torch.Tensor, events: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move image and labels alike; nearest neighbour, so that a class stays a class and a hole a hole."""
        bands = image.shape[1]
        # float32 counts exactly to 16 million; shifting by one lets the zeros of the border mean "nothing"
        labels = torch.stack([target - IGNORE, events], dim=1).to(image.dtype)
        seen = torch.isfinite(image)
        stacked = torch.cat([torch.where(seen, image, 0.0), seen.to(image.dtype), labels], dim=1)
        moved = self._spatial(stacked)
        kept = moved[:, bands : 2 * bands] > 0.5
        labels = moved[:, 2 * bands :].round().long()
        return torch.where(kept, moved[:, :bands], torch.nan), labels[:, 0] + IGNORE, labels[:, 1]

    def _lit(self, image: torch.Tensor) -> torch.Tensor:
        count, bands = image.shape[:2]
        params = self.params
        gain = 1 + params.light * torch.randn(count, 1, 1, 1, device=image.device)
        gain = gain + 0.6 * params.light * torch.randn(count, bands, 1, 1, device=image.device)
        varied = image * gain + params.noise * torch.randn_like(image)
        if params.haze:
            drawn = torch.rand(count, 1, 1, 1, device=image.device)
            strength = params.haze_reflectance * torch.rand_like(drawn) * (drawn < params.haze)
            waves = torch.linspace(1, 0, bands, device=image.device).view(1, -1, 1, 1)
            varied = varied + strength * waves * (0.5 + 0.5 * _plasma(image))
        return varied

    def _clouded(self, image: torch.Tensor) -> torch.Tensor:
        """Hide what a random cloud covers, as QA_PIXEL would."""
        count = len(image)
        share = self.params.cloud_share * torch.rand(count, device=image.device)
        share = share * (torch.rand(count, device=image.device) < self.params.cloud)
        plasma = _plasma(image)
        limit = torch.stack([torch.quantile(one, 1 - part) for one, part in zip(plasma.flatten(1), share, strict=True)])
        hidden = (plasma > limit.view(-1, 1, 1, 1)) & (share > 0).view(-1, 1, 1, 1)
        return image.masked_fill(hidden, torch.nan)


def _plasma(image: torch.Tensor) -> torch.Tensor:
    """Fractal noise [N, 1, c, c] in 0..1, smooth at the scale of clouds."""
    size = (len(image), 1, *image.shape[-2:])
    return diamond_square(size, roughness=0.35, device=image.device, dtype=image.dtype, normalize_range=(0.0, 1.0))
