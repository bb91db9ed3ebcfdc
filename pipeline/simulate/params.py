"""What a caller may choose about a simulated province, and where its files are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


@dataclass(frozen=True)
class ProvinceParams:
    """A province to simulate.

    Attributes:
        size: pixels of 30 m a side, 128..16000: a scene of Landsat has some 7,600.
        seed: the same seed gives the same pixels.
        loss_years: calendar years of forest loss, 2001..2023.
        dates: overpasses per path/row, spread over the first loss year .. the last one + 2, mostly in the dry season.
        cloud: mean share of a scene under cloud, 0..0.9.
        loss_share: share of the province that is loss, 0.01..0.30; a small province holds more, since every driver has
            at least one object (about 650 pixels in all).
        two_zones: the province straddles a UTM zone border and is seen by two path/rows; otherwise by one.
        before: overpasses per path/row that show the forest still standing, one in each year before the first loss
            year, with a third of the cloud. They change no other file.
    """

    size: int = 1200
    seed: int = 0
    loss_years: tuple[int, ...] = (2020, 2021)
    dates: int = 4
    cloud: float = 0.15
    loss_share: float = 0.08
    two_zones: bool = True
    before: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated; raises InputError."""
        limits = {
            "size": (self.size, 128, 16000),
            "dates": (self.dates, 1, 40),
            "cloud": (self.cloud, 0.0, 0.9),
            "loss_share": (self.loss_share, 0.01, 0.30),
            "seed": (self.seed, 0, 2**32 - 1),
            "before": (self.before, 0, 5),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise InputError(f"simulated province: {name} is {value}; it must be {low} to {high}")
        if not self.loss_years or not all(2001 <= year <= 2023 for year in self.loss_years):
            raise InputError(f"simulated province: loss_years {self.loss_years} must be calendar years 2001 to 2023")

    def record(self) -> dict[str, Any]:
        """The parameters as truth.json keeps them; `before` stands there only where such scenes were asked for."""
        return {key: value for key, value in asdict(self).items() if key != "before" or value}


@dataclass(frozen=True)
class Province:
    """Files of a simulated province.

    Attributes:
        folder: where everything lies.
        scenes: folder of USGS Collection 2 Level-2 bundles, one folder a product.
        loss: Hansen GFC `lossyear` clip, uint8, EPSG:4326, 0 = no loss, k = 2000 + k.
        admin: GeoPackage of units that tile the province, columns ID and NAME, EPSG:4326.
        aoi: GeoPackage with the province's outline, EPSG:4326.
        truth: driver code per home-grid pixel (30 m UTM), uint8, 255 = no loss.
        truth_year: loss year per home-grid pixel, uint8, coded as `loss`.
        truth_table: JSON with the parameters and the true area per driver and year.
    """

    folder: Path
    scenes: Path
    loss: Path
    admin: Path
    aoi: Path
    truth: Path
    truth_year: Path
    truth_table: Path
