"""Prefect's server may go away and come back: what of Prefect would end a run then, and what is done instead.

- Polls (for due runs, for cancellations) end for good after three without an answer: here they go on.
- A run is ended where the lease of its deployment's slot is not renewed, and a server that restarts has forgotten its
  leases: here renewing only goes on. Two runs of a region are kept apart by the lock of its folder (`flows.periods`).
- How a run ended would be lost with the server: a served run waits until it can be told.

A run needs no server once it has begun: its state is files.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import anyio
import httpx
from prefect import flow_engine
from prefect._internal import observers
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_logger
from prefect.runner import _scheduled_run_poller
from prefect.utilities.math import clamped_poisson_interval

API_FAULTS = (httpx.HTTPError, PrefectException, OSError, RuntimeError)
"""What a server that is gone, busy or restarting ends in; a RuntimeError is what a temporary one ends in."""
DAY = 24 * 3600.0
_POLL = 5.0
_log = get_logger("clearcause")


def outlive_the_server() -> None:
    """Put the patient kinds of polling and of leases in the places where Prefect looks its own up."""
    for module in (_scheduled_run_poller, observers):
        vars(module)["critical_service_loop"] = keep_polling
    vars(flow_engine)["maintain_concurrency_lease"] = keep_lease


async def keep_polling(
    workload: Callable[[], Awaitable[object]],
    interval: float,
    run_once: bool = False,
    jitter_range: float | None = None,
) -> None:
    """Call `workload` every `interval` seconds, however often there is no answer.

    Raises:
        httpx.HTTPStatusError: the server refuses us (4xx); asking again would not help.
    """
    lost = False
    while True:
        try:
            await workload()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            if not lost:
                _log.warning("Prefect's server does not answer (%s); it is asked until it does", type(error).__name__)
            lost = True
        else:
            if lost:
                _log.warning("Prefect's server answers again")
            lost = False
        if run_once:
            return
        await anyio.sleep(clamped_poisson_interval(interval, jitter_range) if jitter_range else interval)


@contextmanager
def keep_lease(lease_id: UUID, lease_duration: float, **_: bool) -> Iterator[None]:
    """Renew a lease until the body ends; whether that succeeds changes nothing for the body."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_duration / 4):
            try:
                with get_client(sync_client=True) as client:
                    client.renew_concurrency_lease(lease_id, lease_duration)
            except API_FAULTS as error:
                _log.debug("lease %s was not renewed: %s", lease_id, error)

    # in the context of the run: there stands which server is meant
    inside = contextvars.copy_context().run
    threading.Thread(target=inside, args=(renew,), name="lease", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def wait_for_server(patience: float) -> bool:
    """Wait up to `patience` seconds until Prefect's server answers; whether it does."""
    end = time.monotonic() + patience
    lost = False
    while True:
        try:
            with get_client(sync_client=True) as client:
                fault = client.api_healthcheck()
        except API_FAULTS as error:
            fault = error
        if fault is None:
            return True
        if time.monotonic() >= end:
            return False
        if not lost:
            _log.warning("Prefect's server does not answer (%s); this run ends when it can be told", fault)
        lost = True
        time.sleep(_POLL)
