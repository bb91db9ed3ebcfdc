"""Bytes of one remote file: over http(s), or from an S3 bucket. Faults come out as those of `faults`.

An address is judged after every redirect: a catalog must not make this machine read from its own network unless the
configuration allows the host. Nothing here knows the cache.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from pipeline.catalog.faults import Expired, FetchPolicy, Permanent, Transient, of_request, of_status
from pipeline.catalog.verify import Digest, of_headers

_CHUNK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class Body:
    """A file's bytes from `start` to its end: `total` size, `version` (a strong ETag) and `digest` where told."""

    start: int
    total: int | None
    version: str | None
    digest: Digest | None
    chunks: Iterator[bytes]


class Reader(Protocol):
    """How the bytes of an address are read; every method raises FetchFault."""

    @contextmanager
    def open(self, href: str, start: int, version: str | None) -> Iterator[Body]:
        """Give the bytes from `start`, or from 0 where the file is no longer that `version`."""
        ...

    def part(self, href: str, first: int, end: int, size: int) -> bytes:
        """Return bytes [first, end) of a file of `size` bytes; raises ValueError where it has another size."""
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
    """Reads http(s) addresses as they are given: signed already where that is needed."""

    def __init__(self, policy: FetchPolicy, allow_hosts: tuple[str, ...]) -> None:
        self._policy, self._allow_hosts = policy, allow_hosts
        self._gates = _Gates(policy.per_host)

    @contextmanager
    def open(self, href: str, start: int, version: str | None) -> Iterator[Body]:
        """Give the bytes from `start`; the server starts anew where its file is another one (If-Range)."""
        headers = {"Range": f"bytes={start}-", "If-Range": version} if start and version else {}
        with self._get(href, headers) as response:
            begin, total = _extent(response, start if headers else None)
            whole = response.status_code == 200
            yield Body(
                begin,
                total,
                _strong(response.headers.get("ETag")),
                of_headers(response.headers) if whole else None,
                self._chunks(response),
            )

    def part(self, href: str, first: int, end: int, size: int) -> bytes:
        """Return bytes [first, end) of a file of `size` bytes; raises Permanent where the server knows no ranges."""
        with self._get(href, {"Range": f"bytes={first}-{end - 1}"}) as response:
            if response.status_code != 206:
                raise Permanent("the server knows no ranges, so what it sends cannot be read a second time in part")
            begin, total = _extent(response, first)
            content = b"".join(self._chunks(response))
        if total != size:
            raise ValueError(f"it is of {total} bytes, and {size} came")
        if begin != first or len(content) != end - first:
            raise Transient("the server sent another range than was asked for")
        return content

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        host = str(urlsplit(url).hostname)
        with self._gates.through(host), requests.Session() as session:
            # a proxy or credentials of the environment stay in force; redirects are followed by hand, each one judged
            response = self._follow(session, url, headers)
            with response:
                if response.status_code not in (200, 206):
                    raise of_status(response.status_code, response.reason or "", response.headers)
                yield response

    def _follow(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        policy = self._policy
        for _ in range(policy.most_redirects):
            check_host(url, self._allow_hosts)
            try:
                response = session.get(
                    url,
                    stream=True,
                    timeout=(policy.connect_s, policy.read_s),
                    allow_redirects=False,
                    headers={"Accept-Encoding": "identity", **headers},
                )
            except requests.RequestException as error:
                raise of_request(error) from None
            if not response.is_redirect:
                return response
            url = urljoin(url, response.headers["Location"])
            response.close()
        raise Permanent(f"redirected more than {policy.most_redirects} times")

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body; raises Transient where it breaks off or comes too slowly to be worth waiting for."""
        policy, began = self._policy, time.monotonic()
        since, brought = began, 0
        try:
            # read1 gives what has come: a plain read waits for a full chunk, which a dripping server never completes
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                yield chunk
                brought += len(chunk)
                now = time.monotonic()
                if now - began > policy.deadline_s:
                    raise Transient(f"not whole after {policy.deadline_s:.0f} s")
                if now - since > policy.low_speed_s:
                    if brought < policy.low_speed_bytes * (now - since):
                        raise Transient(f"too slow: {brought} bytes in {now - since:.0f} s")
                    since, brought = now, 0
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Transient(f"the connection failed ({type(error).__name__})") from None


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


def check_host(url: str, allow_hosts: tuple[str, ...]) -> None:
    """Refuse hosts that resolve to loopback, private or link-local addresses, unless the configuration names them.

    Raises:
        Permanent: for such a host, or an address that is not http(s).
        Transient: the name could not be resolved now.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise Permanent("redirected to something that is no http(s) address")
    if host in allow_hosts:
        return
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, parts.port or 443, proto=socket.IPPROTO_TCP)}
    except OSError as error:
        raise Transient(f"host {host} is not known ({error.strerror})") from None
    if not all(ipaddress.ip_address(address).is_global for address in found):
        raise Permanent(f"host {host} is on this machine's own network; name it in imagery.allow_hosts to allow it")


class S3Reader:
    """Reads s3:// addresses with the credentials of the environment (AWS_...), paid by the bucket or by the reader.

    `requester_pays` is the configuration's choice, never an item's: a hostile item must not spend the user's money.
    """

    def __init__(self, policy: FetchPolicy, requester_pays: bool) -> None:
        self._policy, self._requester_pays = policy, requester_pays
        self._gates = _Gates(policy.per_host)

    @contextmanager
    def open(self, href: str, start: int, version: str | None) -> Iterator[Body]:
        """Give the bytes from `start`, or from 0 where the object's ETag is no longer `version`."""
        import obstore

        bucket, key = _bucket_key(href)
        store = self._store(bucket)
        with self._gates.through(bucket), _s3_faults():
            meta = obstore.head(store, key)
            etag, total = _strong(meta.get("e_tag")), int(meta["size"])
            begin = start if version and version == etag and start < total else 0
            stream = (obstore.get_range(store, key, start=a, end=min(a + 32 * _CHUNK, total)).to_bytes()
                      for a in range(begin, total, 32 * _CHUNK))  # fmt: skip
            yield Body(begin, total, etag, None, _translated(stream))

    def part(self, href: str, first: int, end: int, size: int) -> bytes:
        """Return bytes [first, end) of an object of `size` bytes; raises ValueError where it has another size."""
        import obstore

        bucket, key = _bucket_key(href)
        store = self._store(bucket)
        with self._gates.through(bucket), _s3_faults():
            total = int(obstore.head(store, key)["size"])
            if total != size:
                raise ValueError(f"it is of {total} bytes, and {size} came")
            return bytes(obstore.get_range(store, key, start=first, end=end).to_bytes())

    def _store(self, bucket: str) -> Any:
        from obstore.store import S3Store

        if not self._requester_pays and bucket == "usgs-landsat":
            raise Permanent("the bucket usgs-landsat is paid by its readers; set imagery.requester_pays to agree")
        return S3Store(
            bucket,
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


def _translated(stream: Iterator[bytes]) -> Iterator[bytes]:
    with _s3_faults():
        for chunk in stream:
            yield bytes(chunk)


@contextmanager
def _s3_faults() -> Iterator[None]:
    from obstore import exceptions

    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError):
        raise Expired("the bucket refuses the credentials of the environment (AWS_...)") from None
    except FileNotFoundError:  # what obstore raises in place of its own NotFoundError
        raise Permanent("the bucket holds no such file") from None
    except exceptions.BaseError as error:
        raise Transient(f"the object store failed ({type(error).__name__})") from None
