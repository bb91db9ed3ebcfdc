"""How a STAC API is asked: by the policy of `faults`, through judged connections, with answers of bounded size."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

import requests
from pystac_client.stac_api_io import StacApiIO

from pipeline.catalog.faults import Expired, FetchPolicy, Permanent, Transient, of_status, persist
from pipeline.catalog.hosts import ask, chunks, judging_session

MOST_BYTES = 64_000_000
"""Of one answer. A page of 250 items is of some 5 MB."""
_DOUBTS = 4
_BODIES = ("POST", "PUT", "PATCH")


class PoliteIO(StacApiIO):
    """Asks again after faults, honours Retry-After, and gives up at the policy's deadline for all requests.

    The whole run hangs on a search, so tries are not counted as those of a file are: a server that fails in changing
    ways is asked on. The same fault in a row is believed: a transient one after the policy's `attempts`, an answer that
    is no JSON, a 401 or a 403 (which may be an intermediary's) after four.
    Redirects are followed by hand, each one judged (see `hosts`).

    Raises:
        FetchFault: from every request that brought no answer; its text holds no address.
    """

    def __init__(self, policy: FetchPolicy, allow_hosts: tuple[str, ...]) -> None:
        super().__init__(max_retries=None)
        self.session = judging_session(allow_hosts)
        self._policy, self._allow_hosts = policy, allow_hosts
        self._end = time.monotonic() + policy.deadline_s

    def json_loads(self, txt: str) -> Any:
        """Parse with the parser that has judged the answer, not with another one that may be installed."""
        return json.loads(txt)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """Return the body of an answer, which is JSON; see the class for errors."""
        verb = (method or "GET").upper()
        asked = requests.Request(verb, href, headers)
        if verb in _BODIES:
            asked.json = parameters
        else:
            asked.params = parameters or {}
        told: list[str] = []

        def attempt() -> str:
            if time.monotonic() > self._end:
                raise Permanent(f"not done after {self._policy.deadline_s:.0f} s")
            try:
                return self._once(asked)
            except (Transient, Expired) as fault:
                # what stands behind the colon are figures of this one try
                reason, kind = fault.reason, fault.reason.partition(":")[0]
                most = self._policy.attempts if isinstance(fault, Transient) else _DOUBTS
                again = fault if isinstance(fault, Transient) else Transient(reason)
            except ValueError as error:
                reason = kind = str(error)
                most, again = _DOUBTS, Transient(reason)
            told[:] = [*told, kind] if kind in told else [kind]
            raise again if len(told) < most else Permanent(reason)

        return persist(attempt, replace(self._policy, attempts=sys.maxsize))

    def _once(self, asked: requests.Request) -> str:
        with ask(self.session, asked, self._policy, self._allow_hosts) as response:
            if not 200 <= response.status_code < 300:
                raise of_status(response.status_code, response.reason or "", response.headers)
            body = self._body(response)
        try:
            json.loads(body)
        except RecursionError:
            raise Permanent("its answer is nested too deeply") from None
        except ValueError:
            raise ValueError("its answer is not JSON") from None
        return body.decode("utf-8")

    def _body(self, response: requests.Response) -> bytes:
        """Return the decoded body; raises FetchFault where it is too large, breaks off or does not end in time."""
        content, length = bytearray(), response.headers.get("Content-Length", "")
        for chunk in chunks(response, self._policy, decoded=True):
            content += chunk
            if len(content) > MOST_BYTES:
                raise Permanent(f"its answer is larger than {MOST_BYTES // 1_000_000} MB")
            if time.monotonic() > self._end:
                raise Transient(f"not done after {self._policy.deadline_s:.0f} s")
        if "Content-Encoding" not in response.headers and length.isdigit() and len(content) != int(length):
            raise Transient(f"cut off: {len(content)} of {length} bytes came")
        return bytes(content)
