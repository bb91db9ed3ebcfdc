"""Carries out a Dockerfile without a container engine: each instruction in order, in a root made by debootstrap.

Needs root, debootstrap and util-linux. What is not in this project's Dockerfile is refused rather than guessed.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dockerfile
import psutil

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AUTHORITIES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_NETWORK = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""How the machine reaches its package index: handed to RUN, as an engine hands its proxies on, and kept nowhere."""


@dataclass
class Image:
    """A root folder and what the Dockerfile said of how to run it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def inside(
        self, argv: Sequence[str], extra: Mapping[str, str] | None = None, room: Room | None = None
    ) -> list[str]:
        """Return the command that runs `argv` in this root as its user, in name spaces of its own.

        Mounts made here and processes left over end with the command; ended from outside, by `end`.
        """
        room = room or Room()
        variables = [f"{key}={value}" for key, value in {**self.environment, **(extra or {})}.items()]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", room.script(self.root), "sh"]
        change = ["chroot", f"--userspec={self.user}", str(self.root), "/usr/bin/env", "-i"]
        start = ["/bin/sh", "-c", 'cd "$1"; shift; exec env -- "$@"', "sh", self.workdir]
        return [*room.network(), *enter, *change, *start, *variables, *argv]


@dataclass(frozen=True)
class Room:
    """What a container has around its root: mounts, and the network name space of a process (0: one of its own)."""

    shares_network_of: int | None = 0
    readonly: bool = False
    tmpfs: tuple[str, ...] = ()
    binds: Mapping[Path, str] = field(default_factory=dict)

    def network(self) -> list[str]:
        """Return the command that enters the network: the machine's (None), another process's, or loopback alone."""
        if self.shares_network_of is None:
            return []
        if self.shares_network_of:
            return ["nsenter", "--net", "--target", str(self.shares_network_of)]
        return ["unshare", "--net", "sh", "-euc", 'ip link set lo up; exec "$@"', "sh"]

    def script(self, root: Path) -> str:
        """Return the shell's lines that mount all this and then run what they are given."""
        inside = functools.partial(_within, root)
        lines = [
            _line("mount", "--bind", root, root),
            _line("mount", "-t", "proc", "proc", inside("proc")),
            _line("mount", "--rbind", "/dev", inside("dev")),
            _line("mount", "-t", "tmpfs", "tmpfs", inside("run")),
        ]
        if authorities := _authorities():
            lines.append(_line("cp", authorities, inside("run/authorities.crt")))
        binds = {Path("/etc/resolv.conf"): "/etc/resolv.conf"} if self.shares_network_of is None else {}
        for source, target in {**binds, **self.binds}.items():
            place = inside(target)
            lines.append(_line("mkdir", "-p", place if source.is_dir() else place.parent))
            lines += [] if source.is_dir() else [_line("touch", place)]
            lines.append(_line("mount", "--bind", source, place))
        for entry in self.tmpfs:
            path, _, options = entry.partition(":")
            lines.append(_line("mkdir", "-p", inside(path)))
            lines.append(_line("mount", "-t", "tmpfs", "-o", options or "mode=1777", "tmpfs", inside(path)))
        lines += [_line("mount", "-o", "remount,bind,ro", root)] if self.readonly else []
        return "\n".join([*lines, 'exec "$@"'])


def end(child: subprocess.Popen[bytes]) -> None:
    """End a command that `Image.inside` made, and everything that it started.

    The kernel forgets to tell a process of its parent's death once that process has changed its user, which is how
    `unshare --kill-child` would do it; so the first process of the name space is ended, and all in it with it.
    """
    for first in psutil.Process(child.pid).children() if child.poll() is None else ():
        first.kill()
    child.kill()
    child.wait()


def _line(*words: object) -> str:
    return shlex.join(map(str, words))


class BuildError(Exception):
    """A step failed; says which, and what it printed."""


def bare_debian(suite: str, root: Path) -> None:
    """Make the root of a bare Debian of this suite."""
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(root)], check=True, capture_output=True, text=True)


def build(file: Path, context: Path, folder: Path, bare: Path, arguments: Mapping[str, str]) -> Image:
    """Carry out every instruction of `file` and return the last stage.

    Args:
        file: the Dockerfile.
        context: folder that COPY takes from, less what its .dockerignore keeps out.
        folder: where the stages' roots are made, each in a folder of its number.
        bare: root that stands in for a base image of Debian.
        arguments: what `--build-arg` would give.

    Raises:
        BuildError: a RUN step failed.
        NotImplementedError: an instruction this knows nothing of.
    """
    stages: dict[str, Image] = {}
    image: Image | None = None
    for step in dockerfile.parse_file(str(file)):
        name, value = step.cmd.upper(), list(step.value)
        if name == "FROM":
            image = _start(value, folder / str(len(stages)), stages, bare)
            stages[value[2] if len(value) == 3 else str(len(stages))] = image
            continue
        if image is None:
            raise NotImplementedError(f"{name} before FROM")
        _carry_out(image, name, value, step, context=context, stages=stages, arguments=arguments)
    if image is None:
        raise NotImplementedError("a Dockerfile without FROM")
    return image


def _start(value: list[str], root: Path, stages: Mapping[str, Image], bare: Path) -> Image:
    before = stages.get(value[0])
    if before is None and not value[0].startswith("debian:"):
        raise NotImplementedError(f"base image {value[0]}")
    source = bare if before is None else before.root
    subprocess.run(["cp", "--archive", "--reflink=auto", str(source), str(root)], check=True)
    if before is None:
        return Image(root)
    return replace(before, root=root, environment=dict(before.environment), arguments={})


def _carry_out(
    image: Image, name: str, value: list[str], step: dockerfile.Command, *, context: Path,
    stages: Mapping[str, Image], arguments: Mapping[str, str],
) -> None:  # fmt: skip
    # seven parameters: an instruction, and all that it may speak of
    known = {**image.arguments, **image.environment}
    match name:
        case "ARG":
            key, _, default = value[0].partition("=")
            image.arguments[key] = arguments.get(key, expand(default.strip("\"'"), known))
        case "ENV":
            pairs = zip(value[::2], value[1::2], strict=True)
            image.environment.update({key: expand(text.strip("\"'"), known) for key, text in pairs})
        case "WORKDIR":
            image.workdir = os.path.normpath(os.path.join(image.workdir, expand(value[0], known)))
            _within(image.root, image.workdir).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = expand(value[0], known)
        case "COPY":
            sources = [flag.removeprefix("--from=") for flag in step.flags if flag.startswith("--from=")]
            if len(sources) != len(step.flags):
                raise NotImplementedError(f"COPY {' '.join(step.flags)}")
            _copy(image, [expand(text, known) for text in value], stages[sources[0]].root if sources else None, context)
        case "RUN":
            if step.flags or step.json:
                raise NotImplementedError(f"RUN {' '.join(step.flags)}")
            _run(image, value[0])
        case "HEALTHCHECK":
            image.healthcheck = value[1:] if value[0] == "CMD" else []
        case "ENTRYPOINT":
            image.entrypoint = value
        case "CMD":
            image.command = value
        case "LABEL":
            pass
        case _:
            raise NotImplementedError(name)


def _run(image: Image, line: str) -> None:
    network = {key: os.environ[key] for key in _NETWORK if key in os.environ}
    trusted = dict.fromkeys(_AUTHORITIES, "/run/authorities.crt") if _authorities() else {}
    argv = image.inside(["/bin/sh", "-c", line], {**network, **trusted, **image.arguments}, Room(None))
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"RUN {line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def _copy(image: Image, value: list[str], source: Path | None, context: Path) -> None:
    *names, target = value
    into = _within(image.root, os.path.join(image.workdir, target))
    for name in names:
        origin = _within(source, name) if source else context / name
        keep = None if source else Ignored.read(context)
        place = into / origin.name if origin.is_file() and (target.endswith("/") or into.is_dir()) else into
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_file():
            if keep and keep.ignores(name):
                raise FileNotFoundError(f"COPY {name}: .dockerignore keeps it out")
            shutil.copy2(origin, place)
        else:
            _copy_tree(origin, place, name, keep)


def _copy_tree(origin: Path, place: Path, name: str, keep: Ignored | None) -> None:
    def left_out(folder: str, entries: list[str]) -> set[str]:
        inside = os.path.normpath(os.path.join(name, os.path.relpath(folder, origin)))
        return {entry for entry in entries if keep and keep.ignores(f"{inside}/{entry}")}

    # from another stage: gigabytes, which nothing changes in place
    copy = shutil.copy2 if keep else os.link
    shutil.copytree(origin, place, symlinks=True, ignore=left_out, dirs_exist_ok=True, copy_function=copy)
    for path in [place, *place.rglob("*")]:  # as an engine does: what is copied belongs to root
        os.chown(path, 0, 0, follow_symlinks=False)


@dataclass(frozen=True)
class Ignored:
    """The patterns of a .dockerignore: the last one that matches a path, or a folder above it, decides."""

    patterns: tuple[tuple[re.Pattern[str], bool], ...]

    @classmethod
    def read(cls, context: Path) -> Ignored:
        """Read the patterns of the folder that an image is built from."""
        lines = (line.strip() for line in (context / ".dockerignore").read_text("utf-8").splitlines())
        return cls(tuple(_pattern(line) for line in lines if line and not line.startswith("#")))

    def ignores(self, path: str) -> bool:
        """Whether an image cannot have this path, relative to the context."""
        parts = path.split("/")
        above = ["/".join(parts[: k + 1]) for k in range(len(parts))]
        found = [out for pattern, out in self.patterns if any(pattern.fullmatch(item) for item in above)]
        return bool(found) and found[-1]


def _pattern(line: str) -> tuple[re.Pattern[str], bool]:
    words = re.split(r"(\*\*/|\*)", line.removeprefix("!").strip("/"))
    known = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(known.get(word, re.escape(word)) for word in words)), not line.startswith("!")


def expand(text: str, known: Mapping[str, str]) -> str:
    """Put variables into a Dockerfile's text: `$NAME` and `${NAME}`; an unknown one is empty, as Docker has it."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: known.get(found[1] or found[2], ""), text)


def _within(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _authorities() -> str:
    given = os.environ.get("SSL_CERT_FILE", "")
    return given if given and Path(given).is_file() else ""
