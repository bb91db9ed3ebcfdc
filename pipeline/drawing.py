"""Patches are drawn in a process of their own: torchgeo and torch take seconds to load and more memory than a run.

The process is begun when a plan is, or before where somebody knows that there will be one, and loads them while the
loss is read; it is gone before the first block. Whoever begins it loads nothing for it.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

    from pipeline.grid import RunGrid
    from pipeline.lattice import PatchLayout


class Drawing:
    """A process that draws the patches of one run; a context manager, and its process ends with it.

    It may be entered by somebody early and again by the plan: the process is begun by the first.
    """

    def __init__(self) -> None:
        """Begin nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin to load torchgeo; where this process has it already, there is nothing to begin."""
        if self._process is None and "pipeline.patches" not in sys.modules:
            self._process = _begun()
        return self

    def draw(self, layout: PatchLayout, grid: RunGrid, bounds: np.ndarray) -> np.ndarray:
        """Draw the patches, see `pipeline.patches.draw_patches`; raises RuntimeError with what its process said."""
        if self._process is None:
            from pipeline.patches import draw_patches

            return draw_patches(layout, grid, bounds)
        told, said = self._process.communicate(pickle.dumps((layout, grid, bounds)))
        if self._process.returncode:
            last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise RuntimeError(f"the process that draws patches ended with {self._process.returncode}: {last[0]}")
        patches: np.ndarray = pickle.loads(told)
        return patches

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        with self._process as process:
            process.kill()
        self._process = None


def _begun() -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "pipeline.drawing"], stdin=pipe, stdout=pipe, stderr=pipe)


def main() -> None:
    """Draw what standard input asks for: a pickle of the arguments in, one of the patches out."""
    # thousands of modules that all stay: nothing to collect, and nothing to take apart at the end; a third of it all
    gc.disable()
    from pipeline.patches import draw_patches

    asked = pickle.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(pickle.dumps(draw_patches(*asked)))
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
