"""Exits 0 where the container does its work, 1 with a line of why where it does not; CLEARCAUSE_ROLE says which work.

- program: the working folder can be written and has a GiB to spare
- server: Prefect's server is ready, which includes its database
- runner: Prefect's worker has polled its pool lately
- scheduler, worker: Dask's process answers, so its event loop turns

The standard library only: it runs every half minute beside the work.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

PAGES = {
    "server": "http://127.0.0.1:4200/api/ready",
    "runner": "http://127.0.0.1:8080/health",
    "scheduler": "http://127.0.0.1:8787/health",
    "worker": "http://127.0.0.1:8788/health",
}
_TIMEOUT = 8.0
_SPARE = 2**30


def fault(role: str, folder: Path, page: str | None = None) -> str | None:
    """Return what is wrong with a container of this role, or None; `page` stands in for the role's own address."""
    if role == "program":
        return _folder_fault(folder)
    address = page or PAGES.get(role)
    if address is None:
        return f"CLEARCAUSE_ROLE={role}: must be program, {', '.join(PAGES)}"
    # no proxy of the environment stands between a container and itself
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        return f"{role}: answers {error.code}"
    except OSError as error:
        return f"{role}: no answer ({type(error).__name__})"


def _folder_fault(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder}: cannot be written ({error.strerror})"
    free = shutil.disk_usage(folder).free
    return None if free >= _SPARE else f"{folder}: {free / 2**20:.0f} MiB free; a run needs at least 1 GiB"


if __name__ == "__main__":
    found = fault(os.environ.get("CLEARCAUSE_ROLE", "program"), Path.cwd())
    if found is not None:
        sys.exit(found)
