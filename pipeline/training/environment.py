"""What must stand in the environment before torch is imported; this module therefore imports nothing heavy."""

from __future__ import annotations

import os
import sys

from pipeline.errors import InputError

OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Torch's threads wait by spinning; where another process takes one of the cores, two threads were then ten to a
hundred times slower than one (measured on two cores). Waiting passively costs nothing that could be measured."""


def prepare_environment() -> None:
    """Set OPENMP for this process, keeping what the user has set; raises InputError once torch is imported."""
    if "torch" in sys.modules and any(key not in os.environ for key in OPENMP):
        raise InputError(f"torch is imported already: set {OPENMP} in the environment of the command instead")
    for key, value in OPENMP.items():
        os.environ.setdefault(key, value)
