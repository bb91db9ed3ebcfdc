"""How the addresses of a source are signed, at the moment they are read. Signed addresses are never stored.

The Planetary Computer keeps its files in Azure containers, read with SAS tokens that its token service gives to anyone
and that live some 45 minutes. `PC_SDK_SUBSCRIPTION_KEY` in the environment makes them last longer, `PC_SDK_SAS_URL`
names another token service; both are the names of Microsoft's own client.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from threading import Lock, local
from urllib.parse import urlsplit, urlunsplit

import requests

from pipeline.catalog.faults import EXPIRED_STATUS, FetchFault, Permanent, Transient, of_request, of_status
from pipeline.catalog.fetch import Sign

_TOKENS = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
_AZURE = ".blob.core.windows.net"
_LANDSAT = "landsateuwest"
"""The account of its Landsat scenes, for catalogs that other sources hold of them."""
_LEFT_S = 600.0
_TIMEOUT = (10.0, 30.0)


@cache
def signer(source: str) -> Sign:
    """Return how hrefs of a source are signed: one signer for all threads of this process."""
    return _PlanetaryComputer(source)


@dataclass(frozen=True)
class _Token:
    text: str
    life: float
    got: float

    def fresh(self) -> bool:
        """A token serves until ten minutes before its end, as a large file takes its time; a short one, half its life.

        A tenth-of-an-hour token would otherwise be asked for at every file.
        """
        return self.life - (time.monotonic() - self.got) > min(_LEFT_S, self.life / 2)


class _PlanetaryComputer:
    """Signs the Planetary Computer's addresses, and returns others as they are.

    One token request for each container and half of a token's life, in all threads of this process. Raises FetchFault
    where the token service gives none.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: dict[str, _Token] = {}
        self._lock = Lock()
        self._given = local()

    def __reduce__(self) -> tuple[object, ...]:
        # tokens stay in their process
        return signer, (self._source,)

    def __call__(self, href: str, anew: bool = False) -> str:
        parts = urlsplit(href)
        account, dot, domain = (parts.hostname or "").partition(".")
        container = parts.path.lstrip("/").partition("/")[0]
        ours = account == _LANDSAT or self._source == "planetary-computer"
        if dot + domain != _AZURE or not container or not ours or parts.query:
            return href
        token = self._token(f"{os.environ.get('PC_SDK_SAS_URL') or _TOKENS}/{account}/{container}", anew)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, token.text, ""))

    def _token(self, url: str, anew: bool) -> _Token:
        with self._lock:
            token = self._tokens.get(url)
            # refused was the token that this thread had; another thread may have brought a new one since
            refused = anew and token is getattr(self._given, "token", None)
            if token is None or refused or not token.fresh():
                token = self._tokens[url] = _ask(url)
            self._given.token = token
            return token


def _ask(url: str) -> _Token:
    """Ask the token service once; raises FetchFault."""
    key = os.environ.get("PC_SDK_SUBSCRIPTION_KEY")
    headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
    try:
        answer = requests.get(url, headers=headers, timeout=_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        raise _told(of_request(error)) from None
    if answer.status_code != 200:
        if answer.status_code in EXPIRED_STATUS:
            told = f"the token service answers {answer.status_code} {answer.reason}; check PC_SDK_SUBSCRIPTION_KEY"
            raise Permanent(told)
        raise _told(of_status(answer.status_code, answer.reason or "", answer.headers))
    try:
        tree = answer.json()
        text, expiry = tree["token"], _utc(datetime.fromisoformat(tree["msft:expiry"]))
        if not isinstance(text, str) or "sig=" not in text:
            raise ValueError("no token")
    except (ValueError, KeyError, TypeError):
        raise Transient("the token service sends no token") from None
    # by the service's own clock: this machine's may be wrong, and a wrong one would make every token look expired
    return _Token(text.lstrip("?"), (expiry - _now(answer)).total_seconds(), time.monotonic())


def _now(answer: requests.Response) -> datetime:
    try:
        return _utc(parsedate_to_datetime(answer.headers["Date"]))
    except (KeyError, ValueError):
        return datetime.now(UTC)


def _utc(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _told(fault: FetchFault) -> FetchFault:
    told = f"the token service cannot be asked: {fault.reason}"
    return Transient(told, fault.retry_after) if isinstance(fault, Transient) else Permanent(told)
