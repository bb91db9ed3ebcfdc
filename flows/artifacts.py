"""What a person sees of a run in Prefect: one progress artifact, Dask's dashboard, and a page at the end.

Nothing here can fail a run or hold a block up: what the server does not take is logged and left out.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from flows.outages import API_FAULTS, wait_for_server
from pipeline.blocks import BlockRecord
from pipeline.config import RunConfig
from pipeline.request import Pool, PoolFactory

_log = logging.getLogger("clearcause")
_INTERVAL = 5.0
"""Seconds between two updates of the progress artifact."""
_LAST_WORD = 10.0
"""Seconds that the last update may take."""


class Board:
    """The artifacts of one flow run; their keys start with the region's name, so that Prefect keeps their history."""

    def __init__(self, region: str, flow_run_id: str | None) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", region.lower()).strip("-")
        self._run = UUID(flow_run_id) if flow_run_id else None

    def post(self, what: str, kind: str, data: object, description: str = "") -> UUID | None:
        """Create an artifact of Prefect's type `kind` (markdown, progress); None where the server did not take it."""
        artifact = ArtifactCreate(
            key=f"{self._key}-{what}", type=kind, data=data, description=description, flow_run_id=self._run
        )
        try:
            with get_client(sync_client=True) as client:
                return client.create_artifact(artifact).id
        except API_FAULTS as error:
            _log.warning("artifact %s-%s was not taken: %s", self._key, what, error)
            return None

    def update(self, artifact: UUID, data: object, description: str) -> bool:
        """Change an artifact in place; False where the server did not take it."""
        try:
            with get_client(sync_client=True) as client:
                client.update_artifact(artifact, ArtifactUpdate(data=data, description=description))
        except API_FAULTS as error:
            _log.warning("artifact %s-blocks was not updated: %s", self._key, error)
            return False
        return True


@dataclass(frozen=True)
class Page:
    """A page of Markdown, under the region's name and `what`."""

    what: str
    text: str
    description: str


@contextmanager
def last_page(board: Board, patience: float) -> Iterator[Callable[[Page], None]]:
    """Post the page that the body hands over when the body has ended, well or with an error.

    Up to `patience` seconds are waited for a server that is away, so that it hears how the run ended, too.
    """
    pages: list[Page] = []

    def post() -> None:
        wait_for_server(patience)
        for page in pages:
            board.post(page.what, "markdown", page.text, page.description)

    try:
        yield pages.append
    except Exception:
        post()
        raise
    post()


class Progress:
    """Blocks done so far as one artifact, sent by a thread of its own, at most every five seconds.

    A context manager around the run; `expect` says what there is to do, `record` is told each block.
    """

    def __init__(self, board: Board, interval: float = _INTERVAL) -> None:
        self._board, self._interval = board, interval
        self._total, self._done, self._failed = 0, set[str](), set[str]()
        self._last, self._sent = "", ""
        self._artifact: UUID | None = None
        self._guard, self._over = threading.Lock(), threading.Event()
        # in the context of the run: there stands which server is meant
        inside = contextvars.copy_context().run
        self._thread = threading.Thread(target=inside, args=(self._send_now_and_then,), name="progress", daemon=True)

    def __enter__(self) -> Self:
        """Start sending."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Send the last state, unless the server does not answer in time."""
        self._over.set()
        self._thread.join(_LAST_WORD)

    def expect(self, total: int, found: set[str]) -> None:
        """Say how many blocks there are, and which of them were done by an earlier run."""
        with self._guard:
            self._total, self._done = total, set(found)

    def record(self, record: BlockRecord) -> None:
        """Count a block that has ended."""
        with self._guard:
            (self._failed if record.status == "failed" else self._done).add(record.block)
            self._last = record.block

    def pool(self, factory: PoolFactory) -> PoolFactory:
        """Wrap a factory of pools: the dashboard of the one that is opened becomes a link."""

        @contextmanager
        def shown(config: RunConfig) -> Iterator[Pool]:
            opened: AbstractContextManager[Pool] = factory(config)
            with opened as pool:
                if pool.dashboard:
                    text = f"[{pool.dashboard}]({pool.dashboard}): {pool.name}, on the machine that runs the flow"
                    self._board.post("dask", "markdown", text, "Dask's dashboard, while blocks are computed")
                yield pool

        return shown

    def _send_now_and_then(self) -> None:
        while not self._over.wait(self._interval):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._guard:
            if not self._total:
                return
            percent = round(100 * len(self._done | self._failed) / self._total, 1)
            text = f"{len(self._done)} of {self._total} blocks done"
            text += f", {len(self._failed)} failed" if self._failed else ""
            text += f"; last: {self._last}" if self._last else ""
        if text == self._sent:
            return
        if self._artifact is None:
            self._artifact = self._board.post("blocks", "progress", percent, text)
            self._sent = text if self._artifact else ""
        elif self._board.update(self._artifact, percent, text):
            self._sent = text


Tell = Callable[[BlockRecord], Any]


def both(first: Tell, second: Tell) -> Tell:
    """Tell a block's record to two listeners."""

    def tell(record: BlockRecord) -> None:
        first(record)
        second(record)

    return tell
