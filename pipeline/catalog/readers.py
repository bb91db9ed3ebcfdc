"""Bytes of one remote file: over http(s), or from an S3 bucket. Faults come out as those of `faults`.

An address is judged after every redirect: a catalog must not make this machine read from its own network unless the
configuration allows the host. Nothing here knows the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock, local
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests

from pipeline.catalog.faults import Changed, Expired, FetchPolicy, NoRanges, Permanent, Transient, of_status
from pipeline.catalog.hosts import ask, chunks, judging_session
from pipeline.catalog.verify import Digest, of_headers

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHUNK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


_Piece = bytes
"""The type, where a field of that name hides it."""


@dataclass
class Tally:
    """What reading took so far: requests, those that failed or were redirected too, and bytes of bodies."""

    requests: int = 0
    bytes: int = 0

    def add(self, other: Tally) -> None:
        """Add what another reading took."""
        self.requests += other.requests
        self.bytes += other.bytes

    def counted(self, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
        """Pass a body on, and count it."""
        for piece in pieces:
            self.bytes += len(piece)
            yield piece


@dataclass(frozen=True)
class Span:
    """A stretch of a file, the `total` size of that, and what tells its `version`: an ETag, else Last-Modified."""

    content: bytes
    total: int
    version: str | None


@dataclass(frozen=True)
class Body:
    """A file's bytes from `start` to its end: `total` size, `version` (a strong ETag) and `digest` where told."""

    start: int
    total: int | None
    version: str | None
    digest: Digest | None
    chunks: Iterator[bytes]


class Reader(Protocol):
    """How the bytes of an address are read; every method raises FetchFault and adds what it took to a tally."""

    @contextmanager
    def open(self, href: str, start: int, version: str | None, tally: Tally) -> Iterator[Body]:
        """Give the bytes from `start`, or from 0 where the file is no longer that `version`."""
        ...

    def span(self, href: str, first: int, end: int, version: str | None, tally: Tally) -> Span:
        """Return bytes [first, end), fewer where the file ends before; raises Changed where it is another `version`."""
        ...


@dataclass
class _Gates:
    """At most so many open connections to one host, in all threads of this process."""

    most: int
    gates: dict[str, BoundedSemaphore] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @contextmanager
    def through(self, host: str) -> Iterator[None]:
        with self.lock:
            gate = self.gates.setdefault(host, BoundedSemaphore(self.most))
        with gate:
            yield


class HttpReader:
    """Reads http(s) addresses; each is signed when its turn has come, as a token may end while one waits for it."""

    def __init__(self, policy: FetchPolicy, allow_hosts: tuple[str, ...], sign: Callable[[str, bool], str]) -> None:
        self._policy, self._allow_hosts, self._sign = policy, allow_hosts, sign
        self._gates = _Gates(policy.per_host)
        self._local = local()

    @contextmanager
    def open(self, href: str, start: int, version: str | None, tally: Tally) -> Iterator[Body]:
        """Give the bytes from `start`; the server starts anew where its file is another one (If-Range)."""
        headers = {"Range": f"bytes={start}-", "If-Range": version} if start and version else {}
        with self._get(href, headers, tally) as response:
            begin, total = _extent(response, start if headers else None)
            whole = response.status_code == 200
            yield Body(
                begin,
                total,
                _strong(response.headers.get("ETag")),
                of_headers(response.headers) if whole else None,
                tally.counted(chunks(response, self._policy)),
            )

    def span(self, href: str, first: int, end: int, version: str | None, tally: Tally) -> Span:
        """Return bytes [first, end); raises NoRanges where the server knows none, Changed where the file is another."""
        headers = {"Range": f"bytes={first}-{end - 1}"}
        if strong := _strong(version):
            headers["If-Match"] = strong
        with self._get(href, headers, tally) as response:
            if response.status_code != 206:
                start = b"".join(_at_most(4, chunks(response, self._policy)))
                if not start.startswith(TIFF_MAGIC):
                    # a page of an intermediary: the next answer may be the server's own
                    raise Transient("what the server sends is no TIFF")
                raise NoRanges("the server knows no ranges, so what it sends cannot be read in part")
            begin, total = _extent(response, first)
            now = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if version is not None and now != version:
                raise Changed("it changed while it was read")
            most = end - first + 1
            content = b"".join(_at_most(most, tally.counted(chunks(response, self._policy))))
        if total is None or begin != first or len(content) != min(end, total) - first:
            raise Transient("the server sent another range than was asked for")
        return Span(content, total, now)

    @contextmanager
    def _get(self, href: str, headers: dict[str, str], tally: Tally) -> Iterator[requests.Response]:
        host = str(urlsplit(href).hostname)
        if not hasattr(self._local, "session"):
            # one of each thread: its connections are kept, and a window takes many requests
            self._local.session = judging_session(self._allow_hosts)
        with self._gates.through(host):
            tally.requests += 1
            asked = requests.Request("GET", self._sign(href, False), {"Accept-Encoding": "identity", **headers})
            with ask(self._local.session, asked, self._policy, self._allow_hosts) as response:
                if response.status_code not in (200, 206):
                    raise of_status(response.status_code, response.reason or "", response.headers)
                yield response


def _at_most(count: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass pieces on until there are `count` bytes: a server may send more than it was asked for."""
    for piece in pieces:
        yield piece
        count -= len(piece)
        if count <= 0:
            return


def _extent(response: requests.Response, start: int | None) -> tuple[int, int | None]:
    """Return (first byte, size of the whole file) of an answer; raises Transient where it is not what was asked for."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdigit() else None
    told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if told is None or start is None or int(told[1]) != start:
        raise Transient("the server sent another range than was asked for")
    return start, int(told[3])


def _strong(etag: str | None) -> str | None:
    """Return an ETag that may be used with ranges: a weak one must not (RFC 9110)."""
    return etag if etag and etag.startswith('"') else None


class S3Reader:
    """Reads s3:// addresses with the credentials of the environment (AWS_...), paid by the bucket or by the reader.

    `requester_pays` is the configuration's choice, never an item's: a hostile item must not spend the user's money.
    """

    def __init__(self, policy: FetchPolicy, requester_pays: bool) -> None:
        self._policy, self._requester_pays = policy, requester_pays
        self._gates = _Gates(policy.per_host)
        self._stores: dict[str, Any] = {}

    @contextmanager
    def open(self, href: str, start: int, version: str | None, tally: Tally) -> Iterator[Body]:
        """Give the bytes from `start`, or from 0 where the object's ETag is no longer `version`."""
        import obstore

        bucket, key = _bucket_key(href)
        store = self._store(bucket)
        with self._gates.through(bucket), _s3_faults():
            tally.requests += 1
            meta = obstore.head(store, key)
            etag, total = _strong(meta.get("e_tag")), int(meta["size"])
            begin = start if version and version == etag and start < total else 0
            pieces = (self._piece(store, key, a, min(a + 32 * _CHUNK, total), etag, tally)[0]
                      for a in range(begin, total, 32 * _CHUNK))  # fmt: skip
            yield Body(begin, total, etag, None, _translated(pieces))

    def span(self, href: str, first: int, end: int, version: str | None, tally: Tally) -> Span:
        """Return bytes [first, end) of an object; raises Changed where it is no longer that version."""
        bucket, key = _bucket_key(href)
        store = self._store(bucket)
        with self._gates.through(bucket), _s3_faults():
            content, meta = self._piece(store, key, first, end, version, tally)
        now, total = meta.get("e_tag"), int(meta["size"])
        if version is not None and now != version:
            raise Changed("it changed while it was read")
        if len(content) != min(end, total) - first:
            raise Transient("the object store sent another range than was asked for")
        return Span(content, total, now)

    def _piece(
        self, store: Any, key: str, first: int, end: int, version: str | None, tally: Tally
    ) -> tuple[bytes, Any]:
        """Bytes [first, end) and what the store says of the object."""
        import obstore

        tally.requests += 1
        strong = _strong(version)
        got = obstore.get(store, key, options={"range": (first, end), **({"if_match": strong} if strong else {})})
        content = bytes(got.bytes())
        tally.bytes += len(content)
        return content, got.meta

    def _store(self, bucket: str) -> Any:
        if bucket not in self._stores:
            self._stores[bucket] = self._opened(bucket)
        return self._stores[bucket]

    def _opened(self, bucket: str) -> Any:
        from obstore.store import S3Store

        if not self._requester_pays and bucket == "usgs-landsat":
            raise Permanent("the bucket usgs-landsat is paid by its readers; set imagery.requester_pays to agree")
        return S3Store(
            bucket,
            config={"region": "us-west-2"} if bucket == "usgs-landsat" else None,
            request_payer=self._requester_pays,
            retry_config={"max_retries": 0},
            client_options={
                "timeout": f"{self._policy.read_s:g}s",
                "connect_timeout": f"{self._policy.connect_s:g}s",
                # options given here hide the environment's, which an S3 server of one's own without TLS needs
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
            },
        )


def _bucket_key(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return str(parts.hostname), parts.path.lstrip("/")


def _translated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    with _s3_faults():
        yield from pieces


@contextmanager
def _s3_faults() -> Iterator[None]:
    from obstore import exceptions

    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError):
        raise Expired("the bucket refuses the credentials of the environment (AWS_...)") from None
    except FileNotFoundError:  # what obstore raises in place of its own NotFoundError
        raise Permanent("the bucket holds no such file") from None
    except exceptions.PreconditionError:
        raise Changed("it changed while it was read") from None
    except exceptions.BaseError as error:
        raise Transient(f"the object store failed ({type(error).__name__})") from None
