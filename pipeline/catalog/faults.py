"""What can go wrong between an archive and the cache, and what is done about it: one table for every reader.

    | seen                                                         | kind      | done                                |
    |--------------------------------------------------------------|-----------|-------------------------------------|
    | timeout, reset, cut body, wrong range, body too slow, 408,    | Transient | asked again, later, until a deadline |
    | 425, 429 (Retry-After is honoured), 5xx                       |           |                                     |
    | 401, 403 (a token that ran out)                               | Expired   | signed anew once, then Permanent    |
    | 412, 416, or another ETag than before (a file read by ranges) | Changed   | begun anew, at last the whole file  |
    | 404, 410, other 4xx, no TIFF, checksum differs                | Permanent | the scene is refused with the reason |
    | a host of this machine's own network, too many redirects      | Permanent | the same                            |

A file whose bytes do not verify is fetched once more from the start, as the fault may have been the way, not the file.
A search of a STAC API goes by the same table, with more patience, as the whole run hangs on it (see `api`).
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import requests
import tenacity

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
EXPIRED_STATUS = frozenset({401, 403})
CHANGED_STATUS = frozenset({412, 416})


@dataclass(frozen=True)
class FetchPolicy:
    """Limits of fetching one file: tries, seconds in all, waits between tries, timeouts, the slowest body, connections.

    `low_speed_bytes` a second over `low_speed_s` seconds is the least a body may bring; `per_host` connections at most
    are open to one host at a time, in all threads of this process.
    """

    attempts: int = 8
    deadline_s: float = 1800.0
    backoff_s: float = 0.5
    most_backoff_s: float = 60.0
    connect_s: float = 10.0
    read_s: float = 60.0
    low_speed_bytes: float = 1000.0
    low_speed_s: float = 30.0
    per_host: int = 4
    most_bytes: int = 2_000_000_000
    most_redirects: int = 5


class FetchFault(Exception):
    """A file could not be had; `reason` is fit for a user: it holds no address, as a signed one carries a secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Transient(FetchFault):
    """Worth another try; after `retry_after` seconds where the server says so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Expired(FetchFault):
    """The server does not accept the signature; worth one try with a new one."""


class Permanent(FetchFault):
    """No try will help."""


class NoRanges(Permanent):
    """The server sends whole files only."""


class Changed(FetchFault):
    """The file is another one than when its reading began; worth beginning anew."""


def of_status(status: int, reason: str, headers: Mapping[str, str]) -> FetchFault:
    """Return the fault of an HTTP status that is not 200 or 206."""
    told = f"the server answers {status} {reason}".rstrip()
    if status in TRANSIENT_STATUS:
        return Transient(told, retry_after(headers.get("Retry-After")))
    if status in CHANGED_STATUS:
        return Changed("it changed while it was read")
    return Expired(told) if status in EXPIRED_STATUS else Permanent(told)


def of_request(error: requests.RequestException) -> FetchFault:
    """Return the fault of a request that brought no answer or broke off, without the address."""
    kind = type(error).__name__
    lasting = (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.SSLError)
    if isinstance(error, lasting):
        return Permanent(f"cannot be fetched ({kind})")
    return Transient(f"the connection failed ({kind})")


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, as a number or a date (RFC 9110); None for neither."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(when.timestamp() - time.time(), 0.0)


def persist[T](attempt: Callable[[], T], policy: FetchPolicy) -> T:
    """Call `attempt` again after transient faults, with exponential backoff and jitter, until tries or time run out.

    Raises:
        FetchFault: the last transient fault, or the first of another kind.
    """
    backoff = tenacity.wait_exponential_jitter(
        multiplier=policy.backoff_s, max=policy.most_backoff_s, jitter=policy.backoff_s
    )

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, Transient) else None
        return backoff(state) if asked is None else asked + 0.1 * policy.backoff_s

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        # `before`: a server that asks for more patience than the deadline leaves is given up at once
        stop=tenacity.stop_after_attempt(policy.attempts) | tenacity.stop_before_delay(policy.deadline_s),
        wait=wait,
        reraise=True,
    )
    return retrying(attempt)
