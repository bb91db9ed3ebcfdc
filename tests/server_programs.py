"""Programs that tests start on loopback: a STAC API on PostgreSQL, a web server, a blob server.

They come from Debian (postgresql, postgis, nginx) and from `make servers` (the folder .servers): where one is missing,
its tests are skipped, and fail in CI.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

INSTALLED = Path(__file__).parents[1] / ".servers"


def missing(what: str) -> None:
    """Skip the test, or fail it in CI."""
    told = f"{what} is missing: install it, or run `make servers`"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


def program(*names: str | Path) -> Path:
    """The first of these programs that is there; without any the test is skipped."""
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found)
    missing(str(names[0]))
    raise AssertionError("unreachable")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def workplace(owner: str | None = None) -> Iterator[Path]:
    """A folder that `owner` may use too: pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="clearcause-server-"))
    try:
        if owner and os.geteuid() == 0:
            user = pwd.getpwnam(owner)
            os.chown(folder, user.pw_uid, user.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server until the block ends; it must be ready within three minutes."""
    who = {"user": user, "group": user, "extra_groups": []} if user and os.geteuid() == 0 else {}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})}, cwd=log.parent, **who,
        )  # type: ignore[call-overload]  # fmt: skip
    try:
        end = time.monotonic() + 180
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command[0]} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def answers(url: str) -> Callable[[], bool]:
    """Whether an HTTP server answers at `url`, whatever it says."""

    def ask() -> bool:
        try:
            # no proxy of the environment: the server is on this machine
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    return ask
