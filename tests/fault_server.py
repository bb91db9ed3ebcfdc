"""An HTTP server of a folder, with ranges and ETags, that misbehaves on request: seeded faults in a share of answers.

Threaded, one request a connection, so that every fault is one request's. `log` lists (path, range, fault).
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

FAULTS = ("429", "503", "reset", "hang", "cut", "html", "expired", "wrong range", "drip")


@dataclass
class Plan:
    """Which answers go wrong: each of `faults` with probability `share`, at most `most` in all (None: no end).

    `token`: what the query must hold as `sig` to be let in; `hang_s` and `drip_s` bound the slow ones.
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


class FaultServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.plan = folder, plan
        self.log: list[tuple[str, str | None, str]] = []
        self.lock = Lock()
        self.random = random.Random(plan.seed)
        self.thrown = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def next_fault(self) -> str:
        plan = self.plan
        with self.lock:
            if plan.most is not None and self.thrown >= plan.most:
                return ""
            draw = self.random.random()
            if draw >= plan.share * len(plan.faults):
                return ""
            self.thrown += 1
            return plan.faults[int(draw / plan.share)]

    def handle_error(self, request: object, client_address: object) -> None:
        # a client that gave up is no error of the server's
        pass


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        fault, parts = self.server.next_fault(), urlsplit(self.path)
        asked = self.headers.get("Range")
        with self.server.lock:
            self.server.log.append((parts.path, asked, fault))
        plan = self.server.plan
        if plan.token is not None and parse_qs(parts.query).get("sig") != [plan.token]:
            return self._plain(403, b"no")
        if fault in ("429", "503"):
            return self._plain(int(fault), b"later", {"Retry-After": "0"})
        if fault == "expired":
            return self._plain(403, b"expired")
        if fault == "html":
            return self._plain(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if fault == "hang":
            time.sleep(plan.hang_s)
            return None
        if fault == "reset":
            return self._reset()
        path = self.server.folder / parts.path.lstrip("/")
        if not path.is_file():
            return self._plain(404, b"no such file")
        return self._file(path.read_bytes(), asked, fault)

    def _file(self, body: bytes, asked: str | None, fault: str) -> None:
        plan, total = self.server.plan, len(body)
        etag = '"' + hashlib.sha256(body).hexdigest()[:16] + '"'
        headers = {"Content-Type": "image/tiff", **plan.headers, **({"ETag": etag} if plan.etag else {})}
        told = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if told and plan.ranges and self.headers.get("If-Range", etag) == etag:
            first = int(told[1])
            last = min(int(told[2]) if told[2] else total - 1, total - 1)
            if first >= total:
                return self._plain(416, b"", {"Content-Range": f"bytes */{total}"})
            if fault == "wrong range":
                first = max(first - 7, 0)
            body, status = body[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        else:
            status = 200
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
def serve(folder: Path, plan: Plan | None = None) -> Iterator[FaultServer]:
    server = FaultServer(folder, plan or Plan())
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
