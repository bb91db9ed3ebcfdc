"""A real Prefect server on loopback, over SQLite or PostgreSQL, and `clearcause serve` against it, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from run_samples import ROOT, command

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
_BINARIES = "/usr/lib/postgresql/*/bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, seconds: float, look: Any) -> Any:
    """Look again and again until there is something; fails with the last that was seen."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < end, f"no {what} within {seconds:g} s"
        time.sleep(0.5)


@dataclass
class Prefect:
    """The REST API of a server, and the environment of those who use it."""

    url: str
    environment: dict[str, str]
    client: httpx.Client
    server: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End the server as a power cut does."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def deployment(self, name: str) -> dict[str, Any]:
        answer = self.client.get(f"/deployments/name/{name}")
        return answer.json() if answer.status_code == 200 else {}

    def start(self, name: str, **parameters: Any) -> httpx.Response:
        """Start a run on demand, as the UI does."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.client.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", json=body)

    def started(self, name: str, **parameters: Any) -> str:
        answer = self.start(name, **parameters)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def run(self, run: str) -> dict[str, Any]:
        return dict(self.client.get(f"/flow_runs/{run}").json())

    def ended(self, run: str, seconds: float = 600) -> dict[str, Any]:
        until(f"end of run {run}", seconds, lambda: self.run(run)["state_type"] in FINAL)
        return self.run(run)

    def runs(self, name: str) -> list[dict[str, Any]]:
        body = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}}
        return list(self.client.post("/flow_runs/filter", json=body).json())

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        found = self.client.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
        return {artifact["key"]: artifact for artifact in found}


@contextmanager
def process(arguments: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all it starts, ended with SIGTERM, at last with SIGKILL."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            arguments, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def prefect_server(
    folder: Path, database: str = "", services: bool = True, port: int = 0, **extra: str
) -> Iterator[Prefect]:
    """A server with its home below `folder`; `database` is an address for SQLAlchemy, SQLite by default."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT),
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3", "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        **extra,
    }  # fmt: skip
    if database:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    arguments = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    arguments += [] if services else ["--no-services"]
    with process(arguments, folder / "server.log", environment) as server, _client(f"{url}/api") as client:
        until("Prefect server", 300, lambda: _answers(client))
        yield Prefect(url, environment, client, server)


class Patient(httpx.HTTPTransport):
    """Asks again where the server says that its database is busy (503), as Prefect's own client does."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for pause in (1, 2, 4, 8, 16):
            answer = super().handle_request(request)
            if answer.status_code != 503:
                return answer
            answer.close()
            time.sleep(pause)
        return super().handle_request(request)


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, transport=Patient(), timeout=60)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def served(prefect: Prefect, log: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """`clearcause serve` against a server, once its deployments are there."""
    with process(command("serve", *arguments), log, prefect.environment) as child:
        until("deployments", 240, lambda: child.poll() is not None or prefect.deployment("clearcause-regions/all"))
        assert child.poll() is None, log.read_text()
        yield child


def postgres_binaries() -> Path:
    """Folder of Debian's PostgreSQL programs; its absence is a failure in CI and a skip elsewhere."""
    found = sorted(Path("/").glob(f"{_BINARIES[1:]}/initdb"))
    if not found or shutil.which("runuser") is None:
        if os.environ.get("CI"):
            pytest.fail("Debian's postgresql is missing: install it")
        pytest.skip("Debian's postgresql is missing")
    return found[-1].parent


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of its own on a free port of loopback; yields its address for SQLAlchemy."""
    binaries, port = postgres_binaries(), free_port()
    folder.mkdir(parents=True)
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with ExitStack() as stack:
        if user:
            # the server refuses to run as root; its user must reach the folder
            shutil.chown(folder, "postgres")
            for parent in folder.parents:
                if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
        data = folder / "data"
        first = [*user, str(binaries / "initdb"), "-D", str(data), "-U", "prefect", "--auth=trust", "--no-sync"]
        subprocess.run(first, check=True, capture_output=True)
        start = [*user, str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1"]
        start += ["-k", str(folder)]
        log = folder.with_name(folder.name + ".log")
        child = stack.enter_context(process(start, log, {}))
        ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        until("PostgreSQL", 60, lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
        assert child.poll() is None, log.read_text()
        create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"]
        subprocess.run(create, check=True, capture_output=True)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
