"""Chooses what an image installs: the lock as it is for a GPU, or with CPU wheels of torch in the place of CUDA's.

Runs while the image is built, on a bare Python: the standard library only.

    accelerator.py LOCK gpu
    accelerator.py LOCK cpu "ADDRESS#sha256=DIGEST ADDRESS#sha256=DIGEST"
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote

CUDA = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")
"""Pins that carry CUDA or need it; a CPU image has none of them from the lock."""
WHEEL = re.compile(r"(?P<address>(https?|file)://\S+/(?P<name>torch|torchvision)-(?P<version>[^-/]+)-\S+\.whl)$")


def choose(lock: str, accelerator: str, wheels: str) -> str:
    """Return the pins to install, each with its digest.

    Args:
        lock: text of the lock file, one pin with its digests an entry.
        accelerator: `gpu` or `cpu`.
        wheels: for `cpu`, the addresses of the CPU wheels of torch and torchvision, separated by spaces.

    Raises:
        ValueError: another accelerator, or a wheel that is missing, has no digest, or is not of the lock's version.
    """
    if accelerator == "gpu":
        if wheels.strip():
            raise ValueError("TORCH_WHEELS is for ACCELERATOR=cpu; the GPU image takes torch from the lock")
        return lock
    if accelerator != "cpu":
        raise ValueError(f"ACCELERATOR={accelerator}: must be gpu or cpu")
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    kept = "".join(entry for entry in entries if not CUDA.match(entry))
    given = dict(_wheel(text) for text in wheels.split())
    for name in ("torch", "torchvision"):
        pin = re.search(rf"^{name}==(\S+)", lock, flags=re.MULTILINE)
        if pin is None:
            raise ValueError(f"the lock pins no {name}")
        if name not in given:
            raise ValueError(f"ACCELERATOR=cpu: TORCH_WHEELS lacks a wheel of {name} {pin[1]}")
        if (version := given[name][0]).partition("+")[0] != pin[1]:
            raise ValueError(f"TORCH_WHEELS: {name} {version}, but the lock has {pin[1]}")
    return kept + "".join(f"{name} @ {text}\n" for name, (_, text) in sorted(given.items()))


def _wheel(text: str) -> tuple[str, tuple[str, str]]:
    address, _, digest = text.partition("#")
    found = WHEEL.match(address)
    if found is None:
        raise ValueError(f"TORCH_WHEELS: {address} is no address of a wheel of torch or torchvision")
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", digest):
        raise ValueError(f"TORCH_WHEELS: {address} must end in #sha256= and the wheel's digest")
    return found["name"], (unquote(found["version"]), f"{address} --hash={digest.replace('=', ':')}")


if __name__ == "__main__":
    try:
        print(choose(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2], " ".join(sys.argv[3:])), end="")
    except ValueError as error:
        sys.exit(f"error: {error}")
