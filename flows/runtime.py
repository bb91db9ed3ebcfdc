"""Where blocks are computed: a local Dask cluster of processes, any Dask scheduler by address, or plain threads.

Workers get none of Prefect: with its temporary server every worker that imports a flow starts a server of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pipeline.config import Compute
from pipeline.errors import ConfigError
from pipeline.request import Pool, thread_pool

_GIB_PER_WORKER = 3.0


def open_pool(compute: Compute) -> AbstractContextManager[Pool]:
    """Open the executor that `compute.executor` names; a factory for `Request.pool`."""
    if compute.executor == "threads":
        return thread_pool(compute)
    return _local_cluster(compute) if compute.executor == "local" else _remote_cluster(compute)


@contextmanager
def _local_cluster(compute: Compute) -> Iterator[Pool]:
    """Processes of one thread each: GDAL handles and model threads do not share a process well."""
    import dask
    from distributed import Client, LocalCluster

    # Prefect's logging brings Dask's to the terminal; what matters of it stands in the ledger
    logging.getLogger("distributed").setLevel(logging.ERROR)
    workers = worker_count(compute)
    single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    settings: dict[str, Any] = {
        "distributed.nanny.pre-spawn-environ": {**dask.config.get("distributed.nanny.pre-spawn-environ", {}), **single},
        # a worker that died takes the block with it at once: the ledger decides whether to try again
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs="ERROR",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield Pool(client.get_executor(pure=False, retries=0), workers, f"Dask, {workers} local worker processes")


@contextmanager
def _remote_cluster(compute: Compute) -> Iterator[Pool]:
    """A scheduler that is already there; its workers must have this package and see the same files."""
    from distributed import Client

    try:
        client = Client(compute.executor, timeout="20s")
    except OSError as error:
        raise ConfigError(f"compute.executor {compute.executor}: no Dask scheduler answers there ({error})") from error
    with client:
        client.wait_for_workers(1, timeout=60)
        slots = sum(client.nthreads().values()) if compute.workers == "auto" else compute.workers
        yield Pool(
            client.get_executor(pure=False, retries=0), slots, f"Dask scheduler {compute.executor}, {slots} threads"
        )


def worker_count(compute: Compute) -> int:
    """One worker for each core this process may use, as long as each has 3 GiB."""
    if compute.workers != "auto":
        return compute.workers
    from distributed.system import MEMORY_LIMIT

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, int(MEMORY_LIMIT / 2**30 / _GIB_PER_WORKER)), 1)
