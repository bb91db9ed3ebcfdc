"""Addresses of object stores, as in s3://bucket/prefix: told apart from folders, and where their local part lies."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_cache_dir

SCHEME = "s3://"
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_PART = r"[A-Za-z0-9!_.*'()=-]+"
PATTERN = rf"^s3://{_BUCKET}(/{_PART})+$"
"""Bucket and prefix; no query, no credentials."""


def store_address(place: Path | str) -> str:
    """The address of an object store that a path or a text is, "" for a folder; a path has lost one of the slashes."""
    text = str(place)
    found = re.match(r"^s3:/+(.*)$", text)
    return f"{SCHEME}{found[1].rstrip('/')}" if found else ""


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """Split an address; raises ValueError where it names no bucket or no prefix."""
    if not re.match(PATTERN, address) or any(part in (".", "..") for part in address.split("/")):
        raise ValueError(f"{address} is no address of a product in a store; write s3://bucket/prefix")
    bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
    return bucket, prefix


def local_part(address: str) -> Path:
    """Folder of a store's product on this machine: in $CLEARCAUSE_CACHE/stores, or that of the user's cache folder."""
    bucket, prefix = bucket_and_prefix(address)
    root = Path(os.environ.get("CLEARCAUSE_CACHE") or user_cache_dir("clearcause", appauthor=False))
    return root / "stores" / bucket / prefix / "product"
