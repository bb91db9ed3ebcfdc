"""An HTTP server in front of files or of a STAC API that misbehaves on request: seeded faults in a share of answers.

What it stands in front of is a source: a folder, items in memory (`StacItems`), another server (`Upstream`), or several
by path (`Mounted`). Threaded, one request a connection, so that every fault is one request's. Which request goes wrong
follows from the seed, the request and how often it was made, not from the order of threads. `log` lists
(path, range, fault), `queries` what stood behind the question mark.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

FAULTS = ("429", "503", "reset", "hang", "cut", "html", "expired", "wrong range", "drip")


@dataclass
class Plan:
    """Which answers go wrong: each of `faults` with probability `share`, at most `most` in all (None: no end).

    `token`: what the query must hold as `sig` to be let in; `hang_s` bounds the slow ones; `retry_after` is what a 429
    asks for, and a 503 too unless it is empty; only paths that begin with `only` fail. A wrong range says so in its
    header, or by every second draw does not.
    """

    seed: int = 0
    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    most: int | None = None
    token: str | None = None
    hang_s: float = 3.0
    etag: bool = True
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    retry_after: str = "0"
    only: str = ""


@dataclass(frozen=True)
class Asked:
    """A request: `query` as it came, `body` of a POST, `headers` with names as they came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An answer; one of `ranged` is a whole file, of which the server cuts the range that was asked for."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranged: bool = False


class Source(Protocol):
    def answer(self, asked: Asked) -> Answer: ...


@dataclass(frozen=True)
class Folder:
    """The files below a folder."""

    root: Path

    def answer(self, asked: Asked) -> Answer:
        path = self.root / asked.path.lstrip("/")
        if not path.is_file():
            return Answer(b"no such file", 404)
        return Answer(path.read_bytes(), headers={"Content-Type": "image/tiff"}, ranged=True)


@dataclass
class StacItems:
    """A STAC API over items in memory: it filters nothing and pages by a token. `url` is its own address."""

    items: list[dict[str, Any]]
    url: str = ""
    page: int = 1

    def answer(self, asked: Asked) -> Answer:
        if not asked.path.endswith("/search"):
            return self._json(self._landing())
        given = json.loads(asked.body) if asked.method == "POST" else parse_qs(asked.query)
        start = int(given.get("token", 0))
        page: dict[str, Any] = {
            "type": "FeatureCollection", "features": self.items[start : start + self.page], "links": [],
            "numberMatched": len(self.items),
        }  # fmt: skip
        if start + self.page < len(self.items):
            body = {**given, "token": start + self.page}
            page["links"] = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": body}]
        return self._json(page)

    def _landing(self) -> dict[str, Any]:
        search = {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"}
        return {
            "type": "Catalog", "id": "test", "description": "test", "stac_version": "1.0.0", "links": [search],
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
        }  # fmt: skip

    @staticmethod
    def _json(tree: dict[str, Any]) -> Answer:
        return Answer(json.dumps(tree).encode(), headers={"Content-Type": "application/json"})


@dataclass(frozen=True)
class Upstream:
    """Another HTTP server at `base`; in its JSON, addresses that begin as the keys of `shown` begin as its values."""

    base: str
    shown: dict[str, str] = field(default_factory=dict)

    def answer(self, asked: Asked) -> Answer:
        import requests

        url = f"{self.base}/{asked.path.lstrip('/')}" + (f"?{asked.query}" if asked.query else "")
        kept = {
            k: v for k, v in asked.headers.items() if k.lower() in ("range", "if-range", "if-match", "content-type")
        }
        with requests.Session() as session:
            session.trust_env = False
            got = session.request(
                asked.method, url, data=asked.body or None, timeout=30, allow_redirects=False,
                headers={**kept, "Accept-Encoding": "identity"},
            )  # fmt: skip
        told = ("Content-Type", "ETag", "Content-Range", "Location", "Retry-After", "Accept-Ranges", "Content-MD5")
        headers = {name: got.headers[name] for name in told if name in got.headers}
        body = got.content
        if "json" in headers.get("Content-Type", ""):
            for behind, front in self.shown.items():
                body = body.replace(behind.encode(), front.encode())
        return Answer(body, got.status_code, headers)


@dataclass(frozen=True)
class Mounted:
    """Several sources, each below the first part of the path."""

    parts: dict[str, Source]

    def answer(self, asked: Asked) -> Answer:
        first, _, rest = asked.path.lstrip("/").partition("/")
        source = self.parts.get(first)
        if source is None:
            return Answer(b"nothing here", 404)
        return source.answer(Asked(asked.method, f"/{rest}", asked.query, asked.headers, asked.body))


class FaultServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, source: Source, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.source, self.plan = source, plan
        self.log: list[tuple[str, str | None, str]] = []
        self.queries: list[str] = []
        self.lock = Lock()
        self.times: Counter[tuple[str, ...]] = Counter()
        self.thrown = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def next_fault(self, *request: str) -> tuple[str, random.Random]:
        """The fault of a request, "" for none, and the randomness for its details."""
        plan = self.plan
        with self.lock:
            self.times[request] += 1
            draws = random.Random(f"{plan.seed} {request} {self.times[request]}")
            draw = draws.random()
            if draw >= plan.share * len(plan.faults) or (plan.most is not None and self.thrown >= plan.most):
                return "", draws
            if not request[1].startswith(plan.only):
                return "", draws
            self.thrown += 1
            return plan.faults[int(draw / plan.share)], draws

    def handle_error(self, request: object, client_address: object) -> None:
        # a client that gave up is no error of the server's
        pass


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _handle(self, body: bytes) -> None:
        parts, asked = urlsplit(self.path), self.headers.get("Range")
        fault, draws = self.server.next_fault(self.command, parts.path, asked or "", body.decode("latin-1"))
        with self.server.lock:
            self.server.log.append((parts.path, asked, fault))
            self.server.queries.append(parts.query)
        plan = self.server.plan
        if plan.token is not None and parse_qs(parts.query).get("sig") != [plan.token]:
            return self._plain(403, b"no")
        if fault in ("429", "503"):
            patience = plan.retry_after or ("0" if fault == "429" else "")
            return self._plain(int(fault), b"later", {"Retry-After": patience} if patience else {})
        if fault == "expired":
            return self._plain(403, b"expired")
        if fault == "html":
            return self._plain(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if fault == "hang":
            time.sleep(plan.hang_s)
            return None
        if fault == "reset":
            return self._reset()
        request = Asked(self.command, parts.path, parts.query, dict(self.headers.items()), body)
        return self._give(self.server.source.answer(request), asked, fault, draws)

    def _give(self, answer: Answer, asked: str | None, fault: str, draws: random.Random) -> None:
        plan, body, status, headers = self.server.plan, answer.body, answer.status, dict(answer.headers)
        if answer.ranged:
            total = len(body)
            etag = '"' + hashlib.sha256(body).hexdigest()[:16] + '"'
            headers |= {**plan.headers, **({"ETag": etag} if plan.etag else {})}
            if self.headers.get("If-Match", etag) != etag:
                return self._plain(412, b"another version")
            told = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
            if told and plan.ranges and self.headers.get("If-Range", etag) == etag:
                first = int(told[1])
                last = min(int(told[2]) if told[2] else total - 1, total - 1)
                if first >= total:
                    return self._plain(416, b"", {"Content-Range": f"bytes */{total}"})
                body, status = body[first : last + 1], 206
                headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if fault == "wrong range" and span:
            off = draws.randint(1, 64)
            body = b"\x2a" * min(off, len(body)) + body[: max(len(body) - off, 0)]
            if draws.random() < 0.5 and int(span[1]) >= off:
                headers["Content-Range"] = f"bytes {int(span[1]) - off}-{int(span[2]) - off}/{span[3]}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(body, fault)

    def _send(self, body: bytes, fault: str) -> None:
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
        elif fault == "drip":
            end = time.monotonic() + self.server.plan.hang_s
            for byte in body:
                if time.monotonic() > end:
                    break
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            self.wfile.write(body)
        self.close_connection = True

    def _plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _reset(self) -> None:
        # linger of zero: closing sends RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextmanager
def serve(source: Source | Path, plan: Plan | None = None) -> Iterator[FaultServer]:
    """Serve a source, or the files of a folder, until the end of the block."""
    server = FaultServer(Folder(source) if isinstance(source, Path) else source, plan or Plan())
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
