"""Remote band files to local ones: whole assets in a cache, complete or absent, shared by concurrent runs.

Plain http(s) only, signed by Planetary Computer's SAS tokens where the source is theirs. The archive's own checksums,
object stores and windowed reads are not used yet. An address is judged after every redirect: a catalog must not make
this machine read from its own network unless the configuration allows the host.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from pipeline.catalog.check import REMOTE
from pipeline.catalog.scene import Asset, Scene
from pipeline.errors import SceneError

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_BYTES = 2_000_000_000
_MAX_HOPS = 5
_CHUNK = 1 << 20
Sign = Callable[[str], str]


def cached_path(href: str, cache: Path) -> Path:
    """Where an asset lies on this machine: itself if it is local, else a name in the cache that no href can choose."""
    if not href.lower().startswith(REMOTE):
        return Path(href)
    name = hashlib.sha256(href.encode()).hexdigest()
    return cache / name[:2] / f"{name}.tif"


def localised(scene: Scene, cache: Path) -> Scene:
    """The scene with its assets as local files."""
    assets = {band: replace(asset, href=str(cached_path(asset.href, cache))) for band, asset in scene.assets.items()}
    return replace(scene, assets=assets)


def fetch_scene(scene: Scene, bands: tuple[str, ...], cache: Path, allow_hosts: tuple[str, ...], sign: Sign) -> int:
    """Bring the wanted assets of a scene into the cache; returns the number of bytes that came over the network.

    Raises:
        SceneError: an asset cannot be had whole; nothing half-written stays.
    """
    return sum(_fetch(scene, scene.assets[band], cache, allow_hosts, sign) for band in bands if band in scene.assets)


def signer(source: str) -> Sign:
    """How hrefs of a source are signed, at the moment they are read."""
    if source != "planetary-computer":
        return str
    import planetary_computer

    return lambda href: str(planetary_computer.sign(href))


def _fetch(scene: Scene, asset: Asset, cache: Path, allow_hosts: tuple[str, ...], sign: Sign) -> int:
    path = cached_path(asset.href, cache)
    name = asset.href.rsplit("/", 1)[-1]
    if path.is_file() or not asset.href.lower().startswith(REMOTE):
        return 0
    if asset.href.lower().startswith("s3://"):
        raise SceneError(scene.id, f"{name}: reading from s3:// is not there yet; use a source that serves https")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return 0
        try:
            size = _download(sign(asset.href), part, allow_hosts)
            part.replace(path)
        except (requests.RequestException, ValueError, OSError) as error:
            raise SceneError(scene.id, f"{name}: {_told(error)}") from None
        finally:
            part.unlink(missing_ok=True)
    return size


def _told(error: Exception) -> str:
    """The error in words, without an address: a signed one would carry a token into logs and products."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.RequestException):
        return f"cannot be fetched ({type(error).__name__})"
    return str(error)


def _download(url: str, part: Path, allow_hosts: tuple[str, ...]) -> int:
    """Stream one file to `part`; raises ValueError for what is no whole TIFF or leads where it must not."""
    with _session() as session:
        response = _follow(session, url, allow_hosts)
        with response:
            response.raise_for_status()
            declared = response.headers.get("Content-Length")
            size = 0
            with part.open("wb") as stream:
                for chunk in response.iter_content(_CHUNK):
                    if size == 0 and not chunk.startswith(_TIFF_MAGIC):
                        raise ValueError("what the server sends is no TIFF")
                    size += len(chunk)
                    if size > _MAX_BYTES:
                        raise ValueError(f"larger than {_MAX_BYTES} bytes")
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
    if size == 0:
        raise ValueError("what the server sends is no TIFF but nothing at all")
    if declared is not None and int(declared) != size:
        raise ValueError(f"cut off: {size} of {declared} bytes came")
    return size


def _session() -> requests.Session:
    retry = Retry(
        total=5,
        backoff_factor=0.5,
        backoff_jitter=0.5,
        status_forcelist=(408, 425, 429, 500, 502, 503, 504),
        respect_retry_after_header=True,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _follow(session: requests.Session, url: str, allow_hosts: tuple[str, ...]) -> requests.Response:
    for _ in range(_MAX_HOPS):
        _check_host(url, allow_hosts)
        headers = {"Accept-Encoding": "identity"}
        response = session.get(url, stream=True, timeout=(10, 60), allow_redirects=False, headers=headers)
        if not response.is_redirect:
            return response
        url = urljoin(url, response.headers["Location"])
        response.close()
    raise ValueError(f"redirected more than {_MAX_HOPS} times")


def _check_host(url: str, allow_hosts: tuple[str, ...]) -> None:
    """Refuse hosts that resolve to loopback, private or link-local addresses, unless the configuration names them."""
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("redirected to something that is no http(s) address")
    if host in allow_hosts:
        return
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, parts.port or 443, proto=socket.IPPROTO_TCP)}
    except OSError as error:
        raise ValueError(f"host {host} is not known ({error.strerror})") from error
    if not all(ipaddress.ip_address(address).is_global for address in found):
        raise ValueError(f"host {host} is on this machine's own network; name it in imagery.allow_hosts to allow it")
