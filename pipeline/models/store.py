"""Model packages as files: found, read, and their weights held against the digest on their card. No torch here.

What is parsed later are the very bytes that were compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.card import CARD_FILE, WEIGHTS_FILES, ModelCard, read_card

SAFETENSORS, ONNX = WEIGHTS_FILES


@dataclass(frozen=True)
class Package:
    """A package whose weights were checked against its card: `folder`, `card` and the path of the `weights`."""

    folder: Path
    card: ModelCard
    weights: Path

    @property
    def is_onnx(self) -> bool:
        """Whether the package ships an ONNX graph instead of weights for a network of ours."""
        return self.weights.name == ONNX

    def read(self) -> bytes:
        """Return the bytes of the weights file; raises ModelError where they are not those of the card."""
        try:
            content = self.weights.read_bytes()
        except OSError as error:
            raise ModelError(f"model weights {self.weights} cannot be read: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.card.sha256:
            raise ModelError(
                f"model weights {self.weights}: sha256 is {found}, the card says {self.card.sha256}; the file was "
                "damaged or altered: fetch the package again, or do not use it"
            )
        return content


@dataclass(frozen=True)
class Listed:
    """One folder of `list_packages`: its `card`, or the `fault` that keeps it from being read."""

    folder: Path
    card: ModelCard | None
    fault: str = ""

    @property
    def name(self) -> str:
        """Name and version of the model, or the folder's name where the card cannot be read."""
        return f"{self.card.name} {self.card.version}" if self.card else self.folder.name


def load_package(folder: Path) -> Package:
    """Read a package folder and check its digest; raises ModelError naming the file, both digests and the remedy."""
    card = read_card(folder)
    present = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()]
    if len(present) != 1:
        found = "both" if present else "neither"
        raise ModelError(f"model {folder}: {found} of {' and '.join(WEIGHTS_FILES)} there; a package has exactly one")
    package = Package(folder, card, present[0])
    package.read()
    return package


def list_packages(root: Path) -> list[Listed]:
    """Return every folder in and directly below `root` that holds a card, by name; faults are told, not raised."""
    listed = []
    for folder in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        if (folder / CARD_FILE).is_file():
            try:
                listed.append(Listed(folder, read_card(folder)))
            except ModelError as error:
                listed.append(Listed(folder, None, str(error)))
    return listed
