"""One run of a region at a time, and each period of its schedule once.

A schedule that is deployed again while its run is about to start can start it twice: Prefect knows a run by its
schedule, not by what it makes. Here a run is known by the time it was scheduled for, never by the clock.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from filelock import Timeout

from pipeline.artifacts import run_lock, write_json
from pipeline.config import RunConfig
from pipeline.errors import OutputError

PERIODS_FILE = "periods.json"
_KEPT = 400


@dataclass(frozen=True)
class Period:
    """The time a run was scheduled for, and the run."""

    due: datetime.datetime
    run: str

    @property
    def key(self) -> str:
        """The time in UTC to the second."""
        return self.due.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def held(config: RunConfig, period: Period | None) -> Iterator[str]:
    """Hold the region for this process; yields why the run is to be skipped, or an empty string.

    The period counts as done when the body ends without an error.

    Raises:
        OutputError: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(run_lock(config.work, wait=config.schedule.overlap == "wait"))
        except OutputError as error:
            if not isinstance(error.__cause__, Timeout):
                raise
            yield f"another run of {config.region.name} is going on, and schedule.overlap is skip"
            return
        done = _read(config)
        if period is not None and period.key in done:
            yield f"period {period.key} was done by run {done[period.key]}"
            return
        yield ""
        if period is not None:
            last = dict(sorted({**done, period.key: period.run}.items())[-_KEPT:])
            write_json(config.work / PERIODS_FILE, last)


def _read(config: RunConfig) -> dict[str, str]:
    path = config.work / PERIODS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
