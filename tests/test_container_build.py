"""The Dockerfile's steps, for real, in a bare Debian; then the compose file's services, as it says, in what they made.

Takes minutes, some 9 GB of disk, root, and debootstrap; no container engine.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from container_build import BuildError, Image, Room, bare_debian, build, end
from deploy_samples import DEPLOY, ROOT, services
from run_samples import blobs, draw_world, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
SECRETS = {
    "PREFECT_AUTH_STRING": "keeper:a long:text", "DATABASE_PASSWORD": "p@ss/w:rd", "STORE_ACCESS_KEY": "k",
    "STORE_SECRET_KEY": "s",
}  # fmt: skip
ROLES = ("server", "scheduler", "worker", "runner")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where roots are made; removed at the end, for they are large. Skips where none can be made."""
    lacking = [name for name in ("debootstrap", "unshare", "nsenter", "ip") if shutil.which(name) is None]
    if os.geteuid() != 0:
        lacking = ["root"]
    if lacking:
        if os.environ.get("CI"):
            pytest.fail(f"the Dockerfile cannot be carried out without {', '.join(lacking)}")
        pytest.skip(f"the Dockerfile cannot be carried out without {', '.join(lacking)}")
    made = tmp_path_factory.mktemp("container")
    for parent in (made, *made.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def bare(folder: Path) -> Path:
    (base,) = re.findall(r"^FROM debian:(\w+)-", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    bare_debian(base, folder / "bare")
    return folder / "bare"


def _build(folder: Path, bare: Path, **arguments: str) -> Image:
    folder.mkdir()
    image = build(ROOT / "Dockerfile", ROOT, folder, bare, arguments)
    for stage in folder.iterdir():
        if stage != image.root:
            shutil.rmtree(stage)
    return image


@pytest.fixture(scope="module")
def gpu(folder: Path, bare: Path) -> Image:
    return _build(folder / "gpu", bare)


def _inside(image: Image, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(image.inside(argv, environment), capture_output=True, text=True, timeout=600)


def _assert_sound(image: Image) -> None:
    """What holds for every image: its user, what that user may write, and that the program starts."""
    assert image.user == "1000:1000"
    assert _inside(image, "id", "--user", "--name").stdout == "clearcause\n"
    done = _inside(image, *image.entrypoint, *image.command)
    assert done.returncode == 0, done.stderr
    assert "Why was it cleared?" in done.stdout
    schema = _inside(image, "clearcause", "schema")
    assert json.loads(schema.stdout)["title"] == "RunConfig"
    written = _inside(image, "find", "/", "-xdev", "-writable", "-not", "-type", "l", "-not", "-path", "/proc/*")
    tops = {"/".join(line.split("/")[:3]) for line in written.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(("/dev", "/tmp", "/var/tmp", "/run"))} == {
        "/data", "/prefect", "/home/clearcause"
    }  # fmt: skip
    for tool in ("pip", "uv", "hatchling", "pytest", "moto", "playwright"):
        assert _inside(image, "python", "-c", f"import {tool}").returncode == 1
    assert _inside(image, *image.healthcheck).returncode == 0
    ill = _inside(image, *image.healthcheck, CLEARCAUSE_ROLE="server")
    assert (ill.returncode, ill.stderr) == (1, "server: no answer (URLError)\n")


def test_each_step_makes_the_image_for_a_gpu(gpu: Image) -> None:
    _assert_sound(gpu)
    done = _inside(gpu, "clearcause", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = {finding["check"]: finding["text"] for finding in json.loads(done.stdout)}
    assert re.search(r"torch \d", found["Python"])
    verified = _inside(gpu, "clearcause", "models", "verify", "/opt/clearcause/models/fpn-efficientnet-b2")
    assert "sound" in verified.stdout, verified.stderr
    assert list(gpu.root.glob("opt/clearcause/.venv/lib/python3.13/site-packages/nvidia*"))


# ---------------------------------------------------------------------------------------------- CPU


def _stand_in(folder: Path, name: str, version: str, needs: tuple[str, ...]) -> str:
    """Write a wheel that says it is `name` built for the CPU, and holds nothing; return its file name and digest."""
    full = f"{version}+cpu"
    info = f"{name}-{full}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {full}"]
    texts = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": "\n".join([*metadata, *(f"Requires-Dist: {need}" for need in needs), ""]),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp313-cp313-linux_x86_64\n",
    }
    path = folder / f"{name}-{full}-cp313-cp313-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        rows = []
        for member, text in texts.items():
            wheel.writestr(member, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{member},sha256={digest},{len(text.encode())}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return f"{path.name.replace('+', '%2B')}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(scope="module")
def wheels(folder: Path) -> Iterator[str]:
    """What TORCH_WHEELS may be: torch for the CPU is on no index that tests reach, so wheels of its name stand in."""
    lock = (DEPLOY / "requirements.lock").read_text("utf-8")
    (torch,) = re.findall(r"^torch==(\S+)", lock, re.MULTILINE)
    (vision,) = re.findall(r"^torchvision==(\S+)", lock, re.MULTILINE)
    place = folder / "wheels"
    place.mkdir()
    names = [
        _stand_in(place, "torch", torch, ("sympy", "networkx", "jinja2", "filelock")),
        _stand_in(place, "torchvision", vision, (f"torch=={torch}", "numpy", "pillow")),
    ]
    handler = functools.partial(_Quiet, directory=str(place))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield " ".join(f"http://127.0.0.1:{server.server_port}/{name}" for name in names)
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_each_step_makes_the_image_for_a_cpu(folder: Path, bare: Path, wheels: str) -> None:
    image = _build(folder / "cpu", bare, ACCELERATOR="cpu", TORCH_WHEELS=wheels)
    _assert_sound(image)
    packages = {path.name for path in image.root.glob("opt/clearcause/.venv/lib/python3.13/site-packages/*")}
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    assert any(re.fullmatch(r"torch-[\d.]+\+cpu\.dist-info", name) for name in packages)
    shutil.rmtree(image.root)


def test_wheel_with_another_digest_ends_the_build(folder: Path, bare: Path, wheels: str) -> None:
    spoilt = re.sub(r"[0-9a-f]{64}", "0" * 64, wheels, count=1)
    with pytest.raises(BuildError, match=r"(?i)hash mismatch|mismatched"):
        _build(folder / "spoilt", bare, ACCELERATOR="cpu", TORCH_WHEELS=spoilt)


# ---------------------------------------------------------------------------------------------- services


@dataclass
class Stack:
    """The compose file's services in one network of their own, each in its root with its mounts."""

    image: Image
    database: Image
    services: dict[str, Any]
    folder: Path
    network: int
    stop: ExitStack

    def room(self, name: str) -> tuple[Image, dict[str, str], Room]:
        """What the compose file says of a service: image, environment, mounts."""
        service = self.services[name]
        image = self.database if name == "database" else self.image
        binds = {self.folder / "hosts": "/etc/hosts"}
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            binds[Path(source) if source.startswith("/") else self._volume(source, image)] = target
        files = {"dask_ca": "ca.pem", "dask_certificate": "certificate.pem", "dask_key": "key.pem"}
        binds |= {
            self.folder / "tls" / files[secret]: f"/run/secrets/{secret}" for secret in service.get("secrets", [])
        }
        made = replace(image, workdir=service.get("working_dir", image.workdir))
        room = Room(self.network, service["read_only"], tuple(service["tmpfs"]), binds)
        return made, {key: str(value) for key, value in service["environment"].items()}, room

    def _volume(self, name: str, image: Image) -> Path:
        path = self.folder / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, *map(int, image.user.split(":")))
        return path

    def start(self, name: str, argv: list[str] | None = None) -> subprocess.Popen[bytes]:
        """Start a service with its own command, or with another one, until the stack ends."""
        image, environment, room = self.room(name)
        words = argv or [*image.entrypoint, *map(str, self.services[name]["command"])]
        log = self.stop.enter_context((self.folder / f"{name}.log").open("wb"))
        child = subprocess.Popen(image.inside(words, environment, room), stdout=log, stderr=log)
        self.stop.callback(end, child)
        return child

    def started(self, name: str, well: Callable[[], bool], argv: list[str] | None = None) -> None:
        """Start a service and wait until it is well; fails with what it said where it never is."""
        assert not well()
        child = self.start(name, argv)
        end = time.monotonic() + 300
        while not well():
            if child.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{name}: exit code {child.poll()}\n{self.log(name)[-4000:]}")
            time.sleep(2)

    def ask(self, name: str, *argv: str, timeout: float = 600, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside a service: same root, mounts, environment and network."""
        image, environment, room = self.room(name)
        words = image.inside(argv, {**environment, **extra}, room)
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout)

    def healthy(self, name: str) -> bool:
        """Whether the image's own health check finds the service well."""
        return self.ask(name, *self.image.healthcheck).returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")


@contextmanager
def _network() -> Iterator[int]:
    """A network with loopback alone; yields a process that lives in it."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
                              stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


def _postgres(folder: Path, bare: Path) -> Image:
    """Debian's PostgreSQL in the place of the image of the same major version, which cannot be had here."""
    recipe = folder / "postgres" / "Dockerfile"
    recipe.parent.mkdir()
    (recipe.parent / ".dockerignore").write_text("*\n")
    recipe.write_text(
        "FROM debian:trixie\nENV DEBIAN_FRONTEND=noninteractive\n"
        "RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-17 \\\n"
        " && mkdir -p /var/lib/postgresql/data\n"
    )
    image = build(recipe, recipe.parent, recipe.parent, bare, {})
    entry = next(
        line.split(":") for line in (image.root / "etc/passwd").read_text().splitlines() if line.startswith("postgres:")
    )
    image.user = f"{entry[2]}:{entry[3]}"
    image.environment["PATH"] = f"/usr/lib/postgresql/17/bin:{image.environment['PATH']}"
    return image


_START_DATABASE = """
printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
initdb --pgdata=/var/lib/postgresql/data --username="$POSTGRES_USER" --pwfile=/tmp/password \
    --auth-local=trust --encoding=UTF8 --locale=C.UTF-8 $POSTGRES_INITDB_ARGS
postgres -D /var/lib/postgresql/data -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp &
until createdb --host=/tmp --username="$POSTGRES_USER" "$POSTGRES_DB"; do sleep 1; done
wait
"""


@pytest.fixture(scope="module")
def stack(gpu: Image, bare: Path, folder: Path, tiny_model: Path) -> Iterator[Stack]:
    """Database, server, scheduler, worker and runner, started in the order of their health."""
    home = folder / "stack"
    regions = home / "regions"
    regions.mkdir(parents=True)
    (home / "hosts").write_text("127.0.0.1 localhost database server scheduler store\n")
    subprocess.run([DEPLOY / "certificates.sh", home / "tls"], check=True, capture_output=True)
    _regions(regions, tiny_model)
    given = {
        "ACCELERATOR": "gpu",
        "REGIONS": str(regions),
        "DASK_TLS": str(home / "tls"),
        "STORE": str(home),
        **SECRETS,
    }
    compose = services(home, given | SECRETS, "cpu")["services"]
    with ExitStack() as stop:
        made = Stack(gpu, _postgres(home, bare), compose, home, stop.enter_context(_network()), stop)
        ready = (*compose["database"]["healthcheck"]["test"][1:], "--host=127.0.0.1")
        made.started("database", lambda: made.ask("database", *ready).returncode == 0, ["sh", "-euc", _START_DATABASE])
        for name in ROLES:
            made.started(name, functools.partial(made.healthy, name))
        yield made


def _regions(folder: Path, model: Path) -> None:
    """A region of a drawn world, and the file that deploys it, as whoever keeps the regions writes them."""
    world = draw_world(folder / "world", blobs(3, (144, 144)))
    shutil.copytree(model, folder / "model")
    compute = {"executor": "tls://scheduler:8786", "engine": "torch"}
    path = write_config(folder, world, folder / "model", compute=compute)
    tree = yaml.safe_load(path.read_text().replace(str(folder), "/regions"))
    tree["output"]["dir"] = "/data/sample"
    path.write_text(yaml.safe_dump(tree))
    deployments = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text("utf-8"))
    region = deployments["deployments"][0]
    deployments["deployments"] = [
        {**region, "name": "sample", "parameters": {"config": "/regions/config.yaml"}, "schedules": []}
    ]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(deployments))
    for item in (folder, *folder.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)


def _api(stack: Stack, path: str, user: str = "", body: str = "") -> int:
    """Ask Prefect's server from its own network; returns the code of its answer."""
    code = (
        "import base64, http.client, sys; c = http.client.HTTPConnection('server', 4200, timeout=30); "
        "h = {'Authorization': 'Basic ' + base64.b64encode(sys.argv[2].encode()).decode()} if sys.argv[2] else {}; "
        "c.request('POST' if sys.argv[3] else 'GET', sys.argv[1], sys.argv[3] or None, "
        "{**h, 'Content-Type': 'application/json'}); print(c.getresponse().status)"
    )
    done = stack.ask("runner", "python", "-c", code, path, user, body)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_prefect_answers_to_who_knows_its_secret(stack: Stack) -> None:
    user = SECRETS["PREFECT_AUTH_STRING"]
    assert _api(stack, "/api/health") == 200
    assert _api(stack, "/api/admin/settings") == 401
    assert _api(stack, "/api/flow_runs/filter", body="{}") in {401, 403}
    assert _api(stack, "/api/admin/version", "keeper:guess") == 401
    assert _api(stack, "/api/admin/version", user) == 200
    # a page elsewhere can make a browser send what it remembers, but not the token against forgery
    assert _api(stack, "/api/flow_runs/filter", user, "{}") == 403
    for name in ROLES:
        for secret in (SECRETS["PREFECT_AUTH_STRING"], SECRETS["DATABASE_PASSWORD"]):
            assert secret not in stack.log(name)


def test_dask_answers_to_who_holds_its_certificate(stack: Stack) -> None:
    call = "from distributed import Client; print(Client('{}', timeout='5s').submit(sum, [1, 2]).result())"
    own = stack.ask("runner", "python", "-c", call.format("tls://scheduler:8786"))
    assert own.stdout == "3\n", own.stderr
    bare = "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"
    plain = stack.ask("runner", "python", "-c", call.format("tcp://scheduler:8786"), **{bare: "false"})
    assert plain.returncode == 1
    assert "3" not in plain.stdout


def test_a_region_runs_from_its_deployment_to_its_product(stack: Stack) -> None:
    deployed = stack.ask(
        "runner", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "/regions/prefect.yaml"
    )
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    started = stack.ask("runner", "prefect", "deployment", "run", "clearcause-region/sample", "--watch", timeout=900)
    assert started.returncode == 0, started.stdout + started.stderr + stack.log("runner")
    product = stack.ask("runner", "clearcause", "inspect", "/data/sample")
    assert product.returncode == 0, product.stdout + product.stderr
    record = json.loads((stack.folder / "volumes" / "data" / "sample" / "run.json").read_text("utf-8"))
    assert record["counts"]["events"] > 20
    for name in ROLES:
        assert stack.healthy(name)


def test_told_to_stop_a_service_stops(stack: Stack) -> None:
    """SIGTERM reaches the program through the image's init; without one the first process would not hear it."""
    image, environment, room = stack.room("runner")
    words = image.inside([*image.entrypoint, "sh", "-c", "echo $$; exec sleep 300"], environment, room)
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    (inner,) = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(inner), signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 128 + signal.SIGTERM
