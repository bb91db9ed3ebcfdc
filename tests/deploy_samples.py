"""What tests of the deploy folder share: where things lie, what .env must give, and a reader of the compose file."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
GIVEN = {
    "ACCELERATOR": "cpu", "REGIONS": "/regions", "DASK_TLS": "/tls", "STORE": "/store", "PREFECT_AUTH_STRING": "a:b",
    "DATABASE_PASSWORD": "p", "STORE_ACCESS_KEY": "k", "STORE_SECRET_KEY": "s",
}  # fmt: skip
"""What .env must give; the texts of secrets are marks that can be found again."""


def project() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return parsed


def resolve(folder: Path, given: Mapping[str, str], *profiles: str) -> subprocess.CompletedProcess[str]:
    """Let podman-compose read compose.yaml with these values, none from the environment or from a .env.

    It asks for its engine's version first, although reading takes none: a script in `folder` answers.
    """
    engine = folder / "podman"
    if not engine.exists():
        engine.write_text("#!/bin/sh\necho podman version 5.4.0\n")
        engine.chmod(0o755)
    words = [word for profile in profiles for word in ("--profile", profile)]
    argv = [sys.executable, "-m", "podman_compose", "--podman-path", engine, "--env-file", os.devnull, *words]
    environment = {"PATH": os.environ["PATH"], **given}
    return subprocess.run(
        [*argv, "-f", DEPLOY / "compose.yaml", "config"], env=environment, capture_output=True, text=True
    )


def services(folder: Path, given: Mapping[str, str], *profiles: str) -> dict[str, Any]:
    """Return the compose file with these values put in."""
    done = resolve(folder, given, *profiles)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = yaml.safe_load(done.stdout)
    return parsed
