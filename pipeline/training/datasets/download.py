"""Fetch the public archives: resumed where a connection broke, held to size and checksum, complete or absent.

torchvision's and torchgeo's own download helpers start anew after every break, which is no way to fetch gigabytes;
so plain `requests` with Range requests is used here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock

from pipeline.artifacts import write_bytes
from pipeline.errors import InputError

_CHUNK = 1 << 16
"""Bytes asked of the network at once: what a break can cost."""
_TIMEOUT = (10, 60)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Archive:
    """A public archive.

    Attributes:
        file: name it is stored by.
        url: where it lies; "" where it is found through `zenodo`.
        licence: of the data.
        md5: as published, "" where none is (then the sha256 seen is written beside the file).
        bytes: size in bytes as published, None where none is.
        zenodo: number of the Zenodo record that lists the file with its size and md5.
        next_step: what to do with the file.
    """

    file: str
    url: str
    licence: str
    next_step: str
    md5: str = ""
    bytes: int | None = None
    zenodo: int | None = None


_CAMEROON = "unpack with `unzip` (Python's zipfile cannot) and put train.csv, val.csv, test.csv beside the folder"
ARCHIVES = {
    "forestnet": Archive(
        "ForestNetDataset.zip", "http://download.cs.stanford.edu/deep/ForestNetDataset.zip", "CC BY 4.0",
        "unpack; the data set is the folder deep/downloads/ForestNetDataset",
    ),
    "camforestnet-15": Archive(
        "my_examples_landsat_final_detailed.zip", "", "CC BY 4.0; cite Debus et al. 2024", _CAMEROON, zenodo=8325259
    ),
    "camforestnet-4": Archive(
        "my_examples_landsat_final.zip", "", "CC BY 4.0; cite Debus et al. 2024", _CAMEROON, zenodo=8325259
    ),
}  # fmt: skip
"""The archives that anyone may fetch. ForestNet publishes no checksum; Zenodo publishes md5 and size of every file."""
ZENODO = "https://zenodo.org"


@dataclass(frozen=True)
class Downloaded:
    """A whole file: where it is, its bytes, its sha256, and whether a published checksum vouches for it."""

    path: Path
    bytes: int
    sha256: str
    vouched: bool


Progress = Callable[[int, int | None], None]


def download(
    name: str, folder: Path, attempts: int = 8, progress: Progress = lambda _done, _total: None
) -> Downloaded:  # fmt: skip
    """Fetch a public archive by name into a folder, going on where an earlier try stopped; see `ARCHIVES`.

    Raises:
        InputError: no such archive, or it cannot be had whole; says what to do by hand.
    """
    if name not in ARCHIVES:
        raise InputError(f"download {name}: not a public archive known here; known are {', '.join(ARCHIVES)}")
    archive = ARCHIVES[name]
    try:
        archive = _looked_up(archive) if archive.zenodo else archive
        return fetch(archive, folder, attempts, progress)
    except (requests.RequestException, OSError) as error:
        place = archive.url or f"{ZENODO}/records/{archive.zenodo}"
        raise InputError(
            f"download {name}: {archive.file} cannot be had ({_told(error)}); run again to go on where it stopped, or "
            f"fetch {place} by other means, put it at {folder / archive.file}, and run again to check it"
        ) from None


def fetch(
    archive: Archive, folder: Path, attempts: int = 8, progress: Progress = lambda _done, _total: None
) -> Downloaded:
    """Fetch one archive; `progress` is told (bytes so far, bytes in all or None).

    Raises:
        InputError: what came is not what was published.
        requests.RequestException: the server cannot be reached or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.file
    part = path.with_name(f"{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            _complete(archive, part, attempts, progress)
            _check(archive, part)
            part.replace(path)
        sha256 = _check(archive, path)
    note = f"{sha256}  {path.name}\n"
    write_bytes(path.with_name(f"{path.name}.sha256"), note.encode())
    return Downloaded(path, path.stat().st_size, sha256, bool(archive.md5))


def _complete(archive: Archive, part: Path, attempts: int, progress: Progress) -> None:
    """Bring `part` to its full length, over as many connections as that takes (at most `attempts` without progress)."""
    idle = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _receive(archive, part, progress):
                return
            broken: Exception = requests.ConnectionError("the connection ended early")
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            broken = error
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in _PASSING:
                raise
            broken = error
        idle = 0 if part.is_file() and part.stat().st_size > before else idle + 1
        if idle >= attempts:
            raise broken
        time.sleep(min(0.5 * 2**idle, 30) if idle else 0)


def _receive(archive: Archive, part: Path, progress: Progress) -> bool:
    """Append what one connection gives; True when the file is whole. A file that changed on the server starts anew."""
    have, tag = _state(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have and tag:
        headers["If-Range"] = tag
    with requests.get(archive.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            total = _total(response)
            if total == have:
                return True
            part.unlink()
            return False
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content or not _starts_at(response, have):
            have = 0
        total = _total(response) or archive.bytes
        if archive.bytes is not None and total != archive.bytes:
            raise InputError(f"{archive.url}: {total} bytes there, {archive.bytes} published; the file has changed")
        _remember(part, response)
        with part.open("ab" if have else "wb") as stream:
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)
                have += len(chunk)
                progress(have, total)
            stream.flush()
            os.fsync(stream.fileno())
    return total is None or have == total


def _state(part: Path) -> tuple[int, str]:
    """Bytes there already, and what the server called that version."""
    tag = _tag_file(part)
    have = part.stat().st_size if part.is_file() else 0
    return have, tag.read_text(encoding="utf-8") if have and tag.is_file() else ""


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _remember(part: Path, response: requests.Response) -> None:
    # a weak tag may not vouch for bytes
    tag = response.headers.get("ETag", "")
    tag = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    _tag_file(part).write_text(tag, encoding="utf-8")


def _total(response: requests.Response) -> int | None:
    """Size of the whole file as the server says, None where it does not."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and response.status_code == requests.codes.ok else None


def _starts_at(response: requests.Response, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _check(archive: Archive, path: Path) -> str:
    """Hold a whole file to what is published; returns its sha256, removes what is not the file."""
    size = path.stat().st_size
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    wrong = ""
    if archive.bytes is not None and size != archive.bytes:
        wrong = f"{size} bytes, published are {archive.bytes}"
    elif archive.md5 and md5.hexdigest() != archive.md5:
        wrong = f"md5 {md5.hexdigest()}, published is {archive.md5}"
    _tag_file(path).unlink(missing_ok=True)
    if wrong:
        path.unlink()
        raise InputError(f"{path}: {wrong}; it was removed, fetch it again")
    return sha256.hexdigest()


def _looked_up(archive: Archive) -> Archive:
    """The archive with address, size and md5 as its Zenodo record says today."""
    answer = requests.get(f"{ZENODO}/api/records/{archive.zenodo}", timeout=_TIMEOUT)
    answer.raise_for_status()
    try:
        files = {entry["key"]: entry for entry in answer.json()["files"]}
        entry = files[archive.file]
        kind, _, checksum = str(entry["checksum"]).partition(":")
        url, size = str(entry["links"]["self"]), int(entry["size"])
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise InputError(
            f"Zenodo record {archive.zenodo}: does not list {archive.file} as expected ({error}); see "
            f"{ZENODO}/records/{archive.zenodo}"
        ) from error
    return Archive(
        archive.file, url, archive.licence, archive.next_step, checksum if kind == "md5" else "", size, archive.zenodo
    )


def _told(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return type(error).__name__
