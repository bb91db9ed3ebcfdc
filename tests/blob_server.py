"""Azure's blob store (azurite) on loopback, with a token service like the Planetary Computer's in front of it.

Files lie under the Planetary Computer's own addresses (`http://landsateuwest.blob.core.windows.net/...`): nginx, as the
proxy of the environment, sends them to azurite.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

import pytest
from server_programs import INSTALLED, answers, free_port, program, running, workplace
from web_server import WebServer, serve_proxy

ACCOUNT, CONTAINER = "landsateuwest", "landsat-c2"
_KEY = base64.b64encode(hashlib.sha512(b"only for tests").digest()).decode()
_VERSION = "2018-11-09"


@dataclass
class BlobServer:
    """`base` is the address of the container; `issued` lists the tokens with the time they were given at."""

    proxy: WebServer
    tokens: str
    direct: str
    life_s: float
    issued: list[tuple[float, str]] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://{ACCOUNT}.blob.core.windows.net/{CONTAINER}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process reach it under its name, and ask its token service."""
        monkeypatch.setenv("http_proxy", self.proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("PC_SDK_SAS_URL", self.tokens)

    def upload(self, folder: Path) -> None:
        """Put every file below a folder into the container."""
        self._put("?restype=container")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._put(f"/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def _put(self, what: str, body: bytes = b"") -> None:
        url = f"{self.direct}/{ACCOUNT}/{CONTAINER}{what}{'&' if '?' in what else '?'}{_account_token()}"
        request = urllib.request.Request(url, data=body, method="PUT", headers={"x-ms-blob-type": "BlockBlob"})
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()

    def forget(self) -> None:
        """Begin the counts anew."""
        self.issued.clear()
        self.proxy.access.write_text("")

    def issue(self) -> tuple[str, str]:
        """Return a token to read the container, and the end of its life."""
        end = datetime.now(UTC) + timedelta(seconds=self.life_s)
        token = _container_token(end)
        self.issued.append((time.monotonic(), token))
        return token, f"{end:%Y-%m-%dT%H:%M:%SZ}"


def _sign(*parts: str) -> str:
    digest = hmac.new(base64.b64decode(_KEY), "\n".join(parts).encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _container_token(end: datetime) -> str:
    """A service SAS to read one container (Azure's documentation of the string to sign, version 2018-11-09)."""
    told = f"{end:%Y-%m-%dT%H:%M:%SZ}"
    nothing = [""] * 5  # cache-control and the like
    signature = _sign("r", "", told, f"/blob/{ACCOUNT}/{CONTAINER}", "", "", "", _VERSION, "c", "", *nothing)
    return urlencode({"se": told, "sp": "r", "sv": _VERSION, "sr": "c", "sig": signature})


def _account_token() -> str:
    """An account SAS to write."""
    end = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    signature = _sign(ACCOUNT, "rwc", "b", "co", "", end, "", "", _VERSION, "")
    return urlencode({"se": end, "sp": "rwc", "ss": "b", "srt": "co", "sv": _VERSION, "sig": signature})


class _Tokens(BaseHTTPRequestHandler):
    server: _TokenServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        right = self.path == f"/api/sas/v1/token/{ACCOUNT}/{CONTAINER}"
        token, end = self.server.blobs.issue() if right else ("", "")
        body = json.dumps({"msft:expiry": end, "token": token}).encode()
        self.send_response(200 if right else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _TokenServer(ThreadingHTTPServer):
    daemon_threads = True
    blobs: BlobServer


@contextmanager
def serve_blobs(life_s: float, rate: int = 0) -> Iterator[BlobServer]:
    """Start all three; tokens live `life_s` seconds, and every answer comes at `rate` bytes a second (0: at once)."""
    azurite = program(INSTALLED / "node_modules/.bin/azurite-blob")
    port = free_port()
    direct = f"http://127.0.0.1:{port}"
    command = [
        azurite, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
        "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with workplace() as folder:
        known = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{_KEY}"}
        with (
            running(command, folder / "azurite.log", answers(direct), environment=known),
            serve_proxy(direct, rate) as proxy,
            _TokenServer(("127.0.0.1", 0), _Tokens) as tokens,
        ):
            address = f"http://127.0.0.1:{tokens.server_port}/api/sas/v1/token"
            tokens.blobs = BlobServer(proxy, address, direct, life_s)
            Thread(target=tokens.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            yield tokens.blobs
            tokens.shutdown()
