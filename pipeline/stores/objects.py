"""A prefix in a bucket of an S3-compatible store: objects put, got, listed and removed, errors in one readable line.

Credentials, region and endpoint are those of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL ...; AWS_ALLOW_HTTP=true for a store without TLS); a profile (AWS_PROFILE) where boto3 is installed.
They are never read here, so they cannot be told.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError
from pipeline.store_address import bucket_and_prefix

_TIMEOUT, _CONNECT = "120s", "10s"
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Kept:
    """An object's size in bytes and the SHA-256 of its content."""

    bytes: int
    sha256: str


class Store:
    """Objects below an address s3://bucket/prefix; every method raises OutputError where the store fails."""

    def __init__(self, address: str) -> None:
        """Open the store; nothing is asked of it yet."""
        from obstore.store import S3Store

        self.address = address
        try:
            self._bucket, self._prefix = bucket_and_prefix(address)
        except ValueError as error:
            raise OutputError(f"output.dir: {error}") from error
        options: dict[str, Any] = {
            "retry_config": {"max_retries": 6, "retry_timeout": timedelta(seconds=60)},
            "client_options": {
                "timeout": _TIMEOUT,
                "connect_timeout": _CONNECT,
                # options given here hide the environment's, which an S3 server of one's own without TLS needs
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
            },
        }
        if profile := os.environ.get("AWS_PROFILE"):
            options["credential_provider"] = _of_profile(profile, address)
        with self._faults():
            self._store: Any = S3Store(self._bucket, prefix=self._prefix, **options)

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object whole; a store shows it when its last byte is there."""
        import obstore

        with self._faults(key):
            obstore.put(self._store, key, content)

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None where there is none."""
        import obstore

        with self._faults(key):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def fetch(self, key: str, path: Path) -> Kept:
        """Write an object into a file; returns what came."""
        with path.open("wb") as stream:
            return self._read(key, stream)

    def look(self, key: str) -> Kept:
        """Read an object through, and say what it holds."""
        return self._read(key, None)

    def _read(self, key: str, stream: Any) -> Kept:
        import obstore

        total, size = hashlib.sha256(), 0
        with self._faults(key):
            for piece in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK):
                content = bytes(piece)
                total.update(content)
                size += len(content)
                if stream is not None:
                    stream.write(content)
        return Kept(size, total.hexdigest())

    def written(self, key: str) -> Any:
        """When an object was written, None where there is none."""
        import obstore

        with self._faults(key):
            try:
                return obstore.head(self._store, key)["last_modified"]
            except FileNotFoundError:
                return None

    def keys(self, below: str) -> dict[str, Any]:
        """Objects below a key, with the time each was written."""
        import obstore

        with self._faults(below):
            return {
                entry["path"]: entry["last_modified"]
                for batch in obstore.list(self._store, prefix=below)
                for entry in batch
            }

    def remove(self, keys: list[str]) -> None:
        """Remove objects; those that are gone already are fine."""
        import obstore

        with self._faults():
            for key in keys:
                obstore.delete(self._store, key)

    @contextmanager
    def _faults(self, key: str = "") -> Iterator[None]:
        """Say in one line what failed, without what a store or a library says of requests and credentials."""
        from obstore import exceptions

        where = f"{self.address}/{key}" if key else self.address
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError):
            raise OutputError(f"{where}: refused; check the credentials of the environment (AWS_...)") from None
        except FileNotFoundError as error:
            if not key or "NoSuchBucket" in str(error):
                raise OutputError(f"{where}: no such bucket; make it, or name another") from None
            raise OutputError(f"{where}: not there; publish the product again") from None
        except exceptions.BaseError as error:
            raise OutputError(f"{where}: {_told(error)}") from None


def _told(error: Exception) -> str:
    """What failed and the remedy, by what libraries say; their texts may hold requests, so they are not repeated."""
    text = str(error)
    for word, told in {
        "NoSuchBucket": "no such bucket; make it, or name another",
        "InvalidAccessKeyId": "refused; check the credentials of the environment (AWS_...)",
        "SignatureDoesNotMatch": "refused; check the credentials of the environment (AWS_...)",
        "169.254.169.254": "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "BadScheme": "a store without TLS; set AWS_ALLOW_HTTP=true if that is meant",
        "error sending request": "the store does not answer; check AWS_ENDPOINT_URL and the network",
    }.items():
        if word in text:
            return told
    return f"the store failed ({type(error).__name__}); run the same command again"


def _of_profile(profile: str, address: str) -> Any:
    """Credentials of a profile of AWS's own files."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise OutputError(
            f"{address}: AWS_PROFILE needs boto3; pip install 'clearcause[s3]', or set AWS_ACCESS_KEY_ID and its secret"
        ) from None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except BotoCoreError as error:
        raise OutputError(f"{address}: AWS_PROFILE {profile} cannot be used ({type(error).__name__})") from None
