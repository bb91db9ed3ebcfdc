"""Which hosts may be read, and sessions whose connections go to the very addresses that were judged.

A catalog is not trusted: it must not make this machine read from its own network unless the configuration names the
host. A name is resolved and judged again at the moment of connecting, and the connection is made to that address: a
name that resolves to a public address when asked first and to a private one a moment later leads nowhere.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import requests.adapters
import requests.utils
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pipeline.catalog.faults import FetchPolicy, Permanent, Transient, of_request

_CHUNK = 1 << 18
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_host(url: str, allow_hosts: tuple[str, ...]) -> None:
    """Refuse hosts that resolve to loopback, private or link-local addresses, unless the configuration names them.

    Raises:
        Permanent: for such a host, or an address that is not http(s) or holds credentials.
        Transient: the name could not be resolved now.
    """
    parts, host, port = _parts(url)
    if parts.scheme not in ("http", "https") or not host:
        raise Permanent("sent to something that is no http(s) address")
    if parts.username is not None or parts.password is not None:
        raise Permanent("sent to an address with credentials in it")
    if _allowed(host, allow_hosts):
        return
    try:
        _judged(host, port)
    except Transient:
        # behind a proxy a machine may have no names of its own; then the proxy says what can be reached
        if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) is None:
            raise


def _parts(url: str) -> tuple[Any, str, int | None]:
    try:
        parts = urlsplit(url)
        return parts, parts.hostname or "", parts.port
    except ValueError:
        raise Permanent("sent to something that is no http(s) address") from None


def _allowed(host: str, allow_hosts: tuple[str, ...]) -> bool:
    """Whether the configuration names a host: by the very name or address that is asked for, without a port."""
    return host.lower().rstrip(".") in {name.lower().strip("[]").rstrip(".") for name in allow_hosts}


def _judged(host: str, port: int | None) -> list[str]:
    """Return the addresses of a host, none of them on this machine's own network; raises as `check_host` does."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port or 443, proto=socket.IPPROTO_TCP)]
    except (OSError, UnicodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "no host name"
        raise Transient(f"host {ascii(host)[1:-1]} is not known ({told})") from None
    if not found or not all(_is_public(address) for address in found):
        raise Permanent(
            f"host {ascii(host)[1:-1]} is on this machine's own network; name it in imagery.allow_hosts to allow it"
        )
    return found


def _is_public(text: str) -> bool:
    """Whether an address lies on the public internet, whichever way it is written; IPv4 inside IPv6 counts as IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


class _Judging:
    """Makes a connection of urllib3 resolve, judge and connect in one step; see `judging_session`."""

    allow_hosts: tuple[str, ...] = ()
    _dns_host: str
    port: int | None

    def _new_conn(self) -> socket.socket:
        host = self._dns_host
        if _allowed(host, self.allow_hosts):
            return super()._new_conn()  # type: ignore[misc, no-any-return]
        addresses = _judged(host, self.port)
        try:
            for number, address in enumerate(addresses, 1):
                # the socket goes to the address; certificate and Host header still go by the name
                self._dns_host = address
                try:
                    return super()._new_conn()  # type: ignore[misc, no-any-return]
                except urllib3.exceptions.NewConnectionError:
                    if number == len(addresses):
                        raise
        finally:
            self._dns_host = host
        raise AssertionError("unreachable")


class _Adapter(requests.adapters.HTTPAdapter):
    """An adapter without retries of its own, whose direct connections are judged; a proxy is the environment's."""

    def __init__(self, allow_hosts: tuple[str, ...]) -> None:
        super().__init__(max_retries=0)
        named = {"allow_hosts": allow_hosts}
        plain = type("JudgingConnection", (_Judging, HTTPConnection), named)
        secure = type("JudgingSecureConnection", (_Judging, HTTPSConnection), named)
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("JudgingPool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("JudgingSecurePool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }


class _Session(requests.Session):
    """A session that looks at no redirect: to prepare the next request it would read a body of any size."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Tell of none."""


def judging_session(allow_hosts: tuple[str, ...]) -> requests.Session:
    """Return a session that connects to public addresses and to `allow_hosts` only, and retries nothing by itself."""
    session = _Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(allow_hosts))
    return session


def ask(
    session: requests.Session,
    request: requests.Request,
    policy: FetchPolicy,
    allow_hosts: tuple[str, ...],
) -> requests.Response:
    """Send a request and follow its redirects by hand, each one judged; the body is still to be read.

    Raises:
        FetchFault: no answer came, or a host may not be read.
    """
    url = str(request.url)
    for _ in range(policy.most_redirects + 1):
        check_host(url, allow_hosts)
        try:
            response = _send(session, request, url, policy)
            target = response.headers.get("Location") if response.is_redirect else None
        except requests.RequestException as error:
            raise of_request(error) from None
        if target is None:
            return response
        response.close()
        try:
            url = urljoin(url, target)
        except ValueError:
            raise Permanent("redirected to something that is no http(s) address") from None
    raise Permanent(f"redirected more than {policy.most_redirects} times")


def _send(session: requests.Session, request: requests.Request, url: str, policy: FetchPolicy) -> requests.Response:
    # a search that is redirected stays the same search: the method and the body are kept
    prepared = session.prepare_request(
        requests.Request(request.method, url, request.headers, json=request.json, params=_parameters(request, url))
    )
    settings: Mapping[str, Any] = session.merge_environment_settings(str(prepared.url), {}, True, None, None)
    return session.send(
        prepared,
        stream=True,
        timeout=(policy.connect_s, policy.read_s),
        allow_redirects=False,
        verify=settings["verify"],
        cert=settings["cert"],
        proxies=settings["proxies"],
    )


def _parameters(request: requests.Request, url: str) -> Any:
    """The query's parameters: a redirect's address holds its own."""
    return request.params if url == request.url else None


def chunks(response: requests.Response, policy: FetchPolicy, decoded: bool = False) -> Iterator[bytes]:
    """Yield the body; raises Transient where it breaks off or comes too slowly to be worth waiting for."""
    began = time.monotonic()
    since, brought = began, 0
    try:
        # read1 gives what has come: a plain read waits for a full chunk, which a dripping server never completes
        while chunk := response.raw.read1(_CHUNK, decode_content=decoded):
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
