"""What every engine shares: reflectance becomes network input here, and outputs are held to the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard

REFLECTANCE_LIMIT = 2.0
"""No surface has a median reflectance beyond this; digital numbers do."""


def prepare(images: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """Float32 reflectance [N, bands, H, W], NaN = not observed -> normalised input, the same shape, no NaN.

    input = (reflectance - mean) / std with the card's figures, after its clip; not observed becomes 0, the mean.
    Raises ModelError where the bands, the patch size or the scaling are not those of the card.
    """
    size, bands = card.patch.size, card.bands
    if images.ndim != 4 or images.shape[1:] != (len(bands), size, size):
        raise ModelError(
            f"model {card.name} takes [N, {len(bands)}, {size}, {size}] (bands {', '.join(bands)}), "
            f"got {list(images.shape)}"
        )
    _check_scaling(images, bands)
    mean = np.asarray(card.scaling.mean, np.float32).reshape(1, -1, 1, 1)
    std = np.asarray(card.scaling.std, np.float32).reshape(1, -1, 1, 1)
    images = images.astype(np.float32, copy=False)
    if card.scaling.clip:
        images = np.clip(images, *card.scaling.clip)
    inputs = np.subtract(images, mean, order="C")
    inputs /= std
    np.copyto(inputs, np.float32(0), where=~np.isfinite(inputs))
    return inputs


def _check_scaling(images: NDArray[np.float32], bands: tuple[str, ...]) -> None:
    """Refuse digital numbers, told by a band's median."""
    # every fourth pixel is plenty for a median, and a sixteenth of the work
    sample = images[:, :, ::4, ::4]
    if not np.fmax.reduce(np.abs(sample), axis=None, initial=0.0) > REFLECTANCE_LIMIT:
        return
    for index, band in enumerate(bands):
        values = sample[:, index][np.isfinite(sample[:, index])]
        if values.size and abs(median := float(np.median(values))) > REFLECTANCE_LIMIT:
            raise ModelError(
                f"scaling out of range: band {band} has a median of {median:g} where reflectance lies in 0..1; "
                "apply the scene's scale and offset (Collection 2 Level-2: DN * 0.0000275 - 0.2) first"
            )


def random_patch(card: ModelCard) -> NDArray[np.float32]:
    """Return one patch [1, bands, size, size] of reflectance drawn around the card's mean, the same every time."""
    shape = (1, len(card.bands), card.patch.size, card.patch.size)
    noise = np.random.default_rng(0).normal(size=shape)
    mean, std = (np.asarray(values).reshape(1, -1, 1, 1) for values in (card.scaling.mean, card.scaling.std))
    return (mean + std * noise).astype(np.float32)


def joined(outputs: list[NDArray[np.float32]], images: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """Join the outputs and hold them to the contract: an engine that breaks it must not reach the map."""
    wanted = (len(images), len(card.scheme), *images.shape[2:])
    if not outputs:
        return np.empty(wanted, np.float32)
    logits = np.concatenate(outputs)
    if logits.shape != wanted or logits.dtype != np.float32:
        raise ModelError(
            f"model {card.name}: returns {logits.dtype} {list(logits.shape)}, its card promises float32 {list(wanted)}"
        )
    if not np.isfinite(logits).all():
        raise ModelError(f"model {card.name}: returns values that are not finite; the weights are unusable")
    return logits
