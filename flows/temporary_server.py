"""A Prefect server of a run's own, begun before it is needed, on loopback only.

Where no address is set Prefect starts one itself, but only once the first flow asks, and to do so it imports its server
into the asking process: 20 to 40 seconds in which nothing else happens. This one starts beside what comes before the
flow, and is gone with its owner however that ends. It keeps its records where Prefect keeps them (PREFECT_HOME), so
`prefect server start` shows past runs.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from pipeline.errors import ConfigError
from pipeline.memory import loading

__all__ = ["temporary_server"]

START = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
"""Prefect's name for the longest start of such a server; its own default, 20 seconds, is too short for two cores."""
_START_S = 180.0
_ERROR = re.compile(r"[\w.]+(Error|Exception)\b")
_LOOPBACK = "127.0.0.1"
_LOOK = 2.0
"""Seconds for one look at a server that listens but does not answer yet."""
_GRACE = 8.0
"""Seconds in which a server may put down what it has been told."""


@contextmanager
def temporary_server() -> Iterator[Callable[[], str]]:
    """Start a server; gives a function that waits until it answers and returns the address of its API.

    From here on this process goes to loopback past any proxy of its environment. The function raises ConfigError, with
    the last that the server said, if it ends or takes too long.
    """
    _go_past_proxies()
    with tempfile.TemporaryFile() as said:
        with socket.create_server((_LOOPBACK, 0)) as listening:
            url = f"http://{_LOOPBACK}:{listening.getsockname()[1]}/api"
            descriptor = listening.fileno()
            # a session of its own: Ctrl-C is for the run, which still has to tell the server how it ended
            child = subprocess.Popen(
                [sys.executable, "-m", "flows.temporary_server", str(descriptor)], stdin=subprocess.PIPE, stdout=said,
                stderr=said, pass_fds=[descriptor], start_new_session=True,
            )  # fmt: skip
        try:
            yield lambda: _answering(url, child, said)
        finally:
            _end(child)


def _go_past_proxies() -> None:
    """Programs of a site with a proxy find it in the environment, often without a word on loopback."""
    names = ("no_proxy", "NO_PROXY")
    direct = [place for name in names for place in os.environ.get(name, "").split(",") if place]
    os.environ |= dict.fromkeys(names, ",".join(dict.fromkeys([*direct, _LOOPBACK])))


def _answering(url: str, child: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    patience = float(os.environ.get(START, _START_S))
    end = time.monotonic() + patience
    told = False
    while True:
        if child.poll() is not None:
            raise ConfigError(_lost(f"ended with code {child.returncode}", said))
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_LOOK):
                return url
        except OSError:
            # the socket listens before the server does: a request waits for it, and then asks again
            if time.monotonic() > end:
                raise ConfigError(_lost(f"did not answer within {patience:g} s ({START})", said)) from None
            if not told:
                print("waiting for a temporary Prefect server (set PREFECT_API_URL to use yours)", file=sys.stderr)
            told = True
            time.sleep(0.05)


def _lost(what: str, said: IO[bytes]) -> str:
    """What happened, with the error that the server ended in, else with its last line."""
    said.seek(0)
    lines = [" ".join(line.split()) for line in said.read().decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if _ERROR.match(line)] or lines
    why = f": {told[-1][:200]}" if told else ""
    return f"Prefect: its temporary server {what}{why}; run with --no-prefect, or set PREFECT_API_URL to a server's"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let the server end: it does so when nobody holds its standard input any more."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _serve(descriptor: int) -> None:
    """Be the server, until the owner's end of standard input is closed."""
    threading.Thread(target=_end_with_owner, daemon=True).start()
    with loading():
        import uvicorn
        from prefect.server.api.server import create_app

        app = create_app(ephemeral=True, final=True)
    listening = socket.socket(fileno=descriptor)
    threading.Thread(target=_ask_first, args=(listening.getsockname()[1],), daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    # not `fd`: uvicorn takes that for a UNIX socket, for which nobody asks TCP to send an answer's end at once (40 ms)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(1)


def _ask_first(port: int) -> None:
    """Be the first to ask, once the server answers: it puts its routes together then, which takes a third of a second.

    Its answer to `health`, which says that it is there, does without them.
    """
    with suppress(OSError):
        urllib.request.urlopen(f"http://{_LOOPBACK}:{port}/api/admin/version").close()


def _end_with_owner() -> None:
    # not sys.stdin: an interpreter that ends does not bear a thread that waits in there
    os.read(0, 1)
    last = threading.Timer(_GRACE, os._exit, (1,))
    last.daemon = True
    last.start()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
