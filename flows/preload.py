"""Imported by the process that this machine's workers are forked from: what each would load is loaded once.

It opens nothing and starts no thread, as a fork of a process with threads may wait for a lock that nobody holds: no
engine is loaded here, ONNX Runtime starts one. The thread of jemalloc, which pyarrow brings, knows forks.
"""

import atexit
import os

from pipeline.memory import loading

with loading():
    import distributed

    import flows.workers
    import pipeline.models.engines
    from pipeline.blocks import load_libraries

    load_libraries()

__all__ = ["distributed", "flows", "pipeline"]


def _end(owner: int = os.getpid()) -> None:
    """End at once: whoever reads a run's output waits for all that hold it. Workers, being forks, end as they would."""
    if os.getpid() == owner:
        os._exit(0)


atexit.register(_end)
