"""An environment of its own for each peer, made from its requirements by uv."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.demo import ROOT

HERE = Path(__file__).parent
PEERS = ("terratorch", "torchgeo", "rslearn", "rastervision", "ftw")
PACKAGES = {"rastervision": "rastervision-pytorch-learner", "ftw": "ftw-tools"}
"""Packages whose names are not their peers'."""


def installed(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment below `folder`, made anew where its requirements have changed.

    Raises RuntimeError with the end of what was said where it cannot be installed or imported.
    """
    requirements = HERE / f"{peer}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    home, stamp = folder / "venv", folder / "venv" / ".requirements"
    python = home / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    _uv("venv", "--clear", "--python", _python(requirements), str(home))
    _uv("pip", "install", "--python", str(python), "--requirement", str(requirements))
    # shows that its program finds what it calls, and compiles what is imported: the first turn is like all others
    _run(str(python), "-c", f"import benchmarks.peers.{peer}")
    stamp.write_text(wanted)
    return python


def versions(peer: str, folder: Path) -> dict[str, str]:
    """Versions of the peer and of what decides its speed, by package."""
    told = _uv("pip", "freeze", "--python", str(folder / "venv" / "bin" / "python"))
    all_of_them = dict(line.split("==", 1) for line in told.splitlines() if "==" in line)
    names = (PACKAGES.get(peer, peer), "torch", "torchgeo", "lightning", "numpy", "rasterio")
    return {name: all_of_them[name] for name in names if name in all_of_them}


def environment() -> dict[str, str]:
    """Environment variables of a peer's processes: bytecode is kept, and nobody asks a hub for weights or news."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "UV_PYTHON_DOWNLOADS": "never", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def _python(requirements: Path) -> str:
    """The interpreter that the first line of the requirements asks for; raises RuntimeError where there is none."""
    wanted = requirements.read_text().splitlines()[0].split()[2].rstrip(":")
    if sys.version_info[:2] == tuple(map(int, wanted.split("."))):
        return sys.executable
    # where pyenv keeps them, its commands on the PATH run none that was not chosen
    kept = sorted(Path.home().glob(f".pyenv/versions/{wanted}*/bin/python{wanted}"))
    if not kept and not shutil.which(f"python{wanted}"):
        raise RuntimeError(f"needs Python {wanted}, which is not here")
    return str(kept[-1]) if kept else f"python{wanted}"


def _uv(*arguments: str) -> str:
    own = ROOT / ".bootstrap" / "bin" / "uv"
    program = str(own) if own.is_file() else shutil.which("uv")
    if program is None:
        raise RuntimeError("uv is not here; `make setup` brings it")
    return _run(program, *arguments)


def _run(*line: str) -> str:
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-600:])
    return done.stdout
