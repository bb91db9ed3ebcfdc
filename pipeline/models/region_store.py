"""The region head of a package as a file: `region.safetensors`, held against the digest on the card. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.card import REGION_FILE, RegionSpec


def read_region_bytes(package: Path, spec: RegionSpec) -> bytes:
    """Return the bytes of a package's `region.safetensors`; raises ModelError where they are not those of the card."""
    path = package / REGION_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model {package}: the card has a region head, but {path.name} cannot be read ({error.strerror}); fetch "
            "the package again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != spec.sha256:
        raise ModelError(
            f"region head {path}: sha256 is {found}, the card says {spec.sha256}; the file was damaged or altered: "
            "fetch the package again, or do not use it"
        )
    return content
