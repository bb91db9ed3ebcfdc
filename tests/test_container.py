from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import container_build
import dockerfile
import pytest
from deploy_samples import BIN, DEPLOY, ROOT, project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


accelerator = _load("accelerator")
healthcheck = _load("healthcheck")


# ---------------------------------------------------------------------------------------------- Dockerfile


def _steps(name: str) -> list[dockerfile.Command]:
    return [step for step in dockerfile.parse_file(str(ROOT / "Dockerfile")) if step.cmd.upper() == name]


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_linter_would_find_something(tmp_path: Path) -> None:
    spoilt = tmp_path / "Dockerfile"
    text = (ROOT / "Dockerfile").read_text("utf-8")
    spoilt.write_text(text.replace("--no-install-recommends", "", 1))
    done = subprocess.run([BIN / "hadolint", spoilt], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3015" in done.stdout


def test_images_are_pinned_by_digest_and_run_by_an_unprivileged_user() -> None:
    known: set[str] = set()
    for step in _steps("FROM"):
        assert step.value[0] in known or re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", step.value[0])
        known |= {step.value[2]} if len(step.value) == 3 else set()
    assert [step.value for step in _steps("USER")] == [("1000:1000",)]
    assert _steps("USER")[0].start_line > _steps("FROM")[-1].start_line
    assert not _steps("ADD")


def test_no_host_stands_in_the_image_recipe() -> None:
    for path in (ROOT / "Dockerfile", DEPLOY / "requirements.lock", DEPLOY / "requirements-build.lock"):
        assert "://" not in path.read_text("utf-8")


def test_context_holds_what_is_copied_and_nothing_private() -> None:
    ignored = container_build.Ignored.read(ROOT)
    copied = [source for step in _steps("COPY") if not step.flags for source in step.value[:-1]]
    assert len(copied) > 8
    for source in copied:
        assert (ROOT / source).exists()
        assert not ignored.ignores(source)
    for path in (
        ".git/config", ".env", "deploy/.env", "deploy/tls/key.pem", "tests/conftest.py", "out/x", ".venv/bin/python",
        "pipeline/__pycache__/cli.pyc", "models/x.work/y", "flows/a/__pycache__/b.nbc",
    ):  # fmt: skip
        assert ignored.ignores(path), path


# ---------------------------------------------------------------------------------------------- locks


@functools.cache
def _pins(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and digests of each pin that Linux and Python 3.13 install."""
    found = {}
    for entry in re.split(r"^(?=\S)", path.read_text("utf-8"), flags=re.MULTILINE):
        head = entry.partition("\\")[0]
        if not head.strip() or head.startswith("#"):
            continue
        requirement = Requirement(head)
        if requirement.marker is None or requirement.marker.evaluate(_MACHINE):
            (only,) = requirement.specifier
            found[canonicalize_name(requirement.name)] = (only.version, frozenset(re.findall(r"sha256:\w+", entry)))
    return found


_MACHINE = {
    "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.13",
    "python_full_version": "3.13.5", "os_name": "posix", "platform_python_implementation": "CPython",
    "implementation_name": "cpython", "extra": "",
}  # fmt: skip


@functools.cache
def _needed(name: str, extras: tuple[str, ...] = ()) -> tuple[Requirement, ...]:
    try:
        told = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        # one that only the image's version of Python asks for: what it brings along cannot be told by another
        assert sys.version_info[:2] != (3, 13), f"{name} is not installed"
        told = []
    needs = [Requirement(text) for text in told]
    marks = [{**_MACHINE, "extra": extra} for extra in ("", *extras)]
    return tuple(need for need in needs if not need.marker or any(need.marker.evaluate(mark) for mark in marks))


def _closure(roots: list[Requirement]) -> set[str]:
    """Names of all that these requirements bring along, by the metadata of what is installed here."""
    names: set[str] = set()
    todo = list(roots)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        need = todo.pop()
        key = (canonicalize_name(need.name), tuple(sorted(need.extras)))
        if key in seen:
            continue
        seen.add(key)
        names.add(key[0])
        todo.extend(_needed(*key))
    return names


def test_image_installs_what_the_tests_ran_with() -> None:
    tested, image = _pins(ROOT / "requirements.lock"), _pins(DEPLOY / "requirements.lock")
    assert len(image) > 100
    for name, (version, digests) in image.items():
        assert digests
        assert (name, version) == (name, tested[name][0])
        assert digests <= tested[name][1], name


def test_image_has_all_that_the_program_needs_and_no_tools_of_its_makers() -> None:
    told = project()
    image = _pins(DEPLOY / "requirements.lock")
    needed = _closure([Requirement(text) for text in told["project"]["dependencies"]])
    assert set(image) == needed
    makers = [item for item in told["dependency-groups"]["dev"] if isinstance(item, str)]
    for text in makers:
        name = canonicalize_name(Requirement(text).name)
        assert name in needed or name not in image


def test_lock_of_the_build_has_its_tools() -> None:
    pins = _pins(DEPLOY / "requirements-build.lock")
    assert {"uv", "hatchling", "editables"} <= set(pins)
    assert all(digests for _, digests in pins.values())


# ---------------------------------------------------------------------------------------------- accelerator


def _wheels(lock: str) -> list[str]:
    pins = {name: re.search(rf"^{name}==(\S+)", lock, re.MULTILINE) for name in ("torch", "torchvision")}
    return [
        f"https://wheels.example/{name}-{pin[1]}%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl#sha256={'a' * 64}"
        for name, pin in pins.items()
        if pin is not None
    ]


def test_cpu_image_takes_torch_from_its_wheels_and_nothing_of_cuda() -> None:
    lock = (DEPLOY / "requirements.lock").read_text("utf-8")
    assert accelerator.choose(lock, "gpu", "") == lock
    chosen = accelerator.choose(lock, "cpu", " ".join(_wheels(lock)))
    names = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)(?:==| @ )", chosen, re.MULTILINE)}
    left_out = set(_pins(DEPLOY / "requirements.lock")) - names
    assert {"nvidia-cublas", "triton", "cuda-bindings"} <= left_out
    # whatever else is missing, only torch asks for
    others = [Requirement(text) for text in project()["project"]["dependencies"]]
    cuda = {name for name in left_out if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert left_out == cuda
    assert _closure(others) - cuda <= names
    lines = [line for line in chosen.splitlines() if line.startswith("torch")]
    assert [line for line in lines if "wheels.example" in line] == lines[-2:]
    assert all(line.endswith(f"--hash=sha256:{'a' * 64}") for line in lines[-2:])
    assert not re.search(r"^(torch|torchvision)==", chosen, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("tpu", lambda wheels: "", "must be gpu or cpu"),
        ("gpu", lambda wheels: wheels[0], "is for ACCELERATOR=cpu"),
        ("cpu", lambda wheels: "", "lacks a wheel of torch "),
        ("cpu", lambda wheels: wheels[0], "lacks a wheel of torchvision"),
        ("cpu", lambda wheels: " ".join(wheels).replace("#sha256=", "#md5="), "must end in #sha256="),
        ("cpu", lambda wheels: " ".join(wheels)[:-1], "must end in #sha256="),
        ("cpu", lambda wheels: re.sub(r"torch-[0-9.]+", "torch-1.0.0", " ".join(wheels)), "but the lock has"),
        ("cpu", lambda wheels: " ".join(wheels).replace("torch-", "numpy-"), "no address of a wheel"),
        ("cpu", lambda wheels: " ".join(wheels).replace("https:", "ftp:"), "no address of a wheel"),
    ],
)
def test_wheels_that_are_not_what_the_lock_says_are_refused(kind: str, change: Any, told: str) -> None:
    lock = (DEPLOY / "requirements.lock").read_text("utf-8")
    with pytest.raises(ValueError, match=re.escape(told)):
        accelerator.choose(lock, kind, change(_wheels(lock)))


def test_refusal_ends_the_build_with_one_line() -> None:
    argv = [sys.executable, DEPLOY / "accelerator.py", DEPLOY / "requirements.lock", "cpu", ""]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ACCELERATOR=cpu: TORCH_WHEELS lacks")
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------------------------------- health


@pytest.fixture
def page() -> Iterator[tuple[str, list[int]]]:
    """Address of a server on loopback, and the codes that it answers with, one after another."""
    codes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(codes.pop(0))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/health", codes
        server.shutdown()
        thread.join()


def test_a_role_is_well_while_its_page_says_so(page: tuple[str, list[int]], tmp_path: Path) -> None:
    address, codes = page
    codes += [200, 503, 401]
    assert healthcheck.fault("server", tmp_path, address) is None
    assert healthcheck.fault("server", tmp_path, address) == "server: answers 503"
    assert healthcheck.fault("runner", tmp_path, address) == "runner: answers 401"


def test_a_role_that_does_not_answer_is_unwell(tmp_path: Path) -> None:
    assert healthcheck.fault("worker", tmp_path, "http://127.0.0.1:9/health").startswith("worker: no answer")


def test_a_proxy_is_not_asked(page: tuple[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, codes = page
    codes += [200]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert healthcheck.fault("scheduler", tmp_path, address) is None


def test_the_program_is_well_while_its_folder_can_take_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert healthcheck.fault("program", tmp_path) is None
    assert "cannot be written" in healthcheck.fault("program", Path("/proc"))
    monkeypatch.setattr(healthcheck, "_SPARE", 2**80)
    assert "a run needs at least" in healthcheck.fault("program", tmp_path)


def test_an_unknown_role_is_unwell() -> None:
    done = subprocess.run(
        [sys.executable, DEPLOY / "healthcheck.py"], env={"CLEARCAUSE_ROLE": "x"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "must be program, server, runner, scheduler, worker" in done.stderr
