"""Clusters by kind: processes of this machine, its GPUs, SLURM jobs, Kubernetes pods. Dask's own packages do the work.

What a site decides (queue, account, image, memory of a job) stands in Dask's own configuration files, jobqueue.yaml and
kubernetes.yaml, and so do TLS certificates (`distributed.comm.tls`): nothing of it is a key of ours.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.config import Compute
from pipeline.errors import ConfigError

_GIB_PER_WORKER = 2.0
"""A block of 2,048 pixels takes some 1 GiB of a worker on ONNX Runtime, and 1.8 on torch."""
GPU = "GPU"
"""The Dask resource that pins blocks to workers with a GPU; a worker of ours offers one for each of its threads."""
BLOCKS_PER_GPU = 2
"""Threads of a GPU worker: one block is read or written while the other one is in the model."""


@contextmanager
def open_cluster(compute: Compute) -> Iterator[Any]:
    """Start the cluster that `compute.executor` names, and close it at the end.

    Raises:
        ConfigError: a package is missing, or the site has not been configured.
    """
    import dask

    extra, module, name, start = _KINDS[compute.executor]
    # before the settings: what a package adds to Dask's configuration must outlive them
    kind = _class(extra, module, name)
    settings: dict[str, Any] = {
        # a worker that died takes the block with it at once: the ledger decides whether to try again
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        # a nanny is closed for good when its new worker is not there by then, and a busy machine starts one slowly
        "distributed.deploy.lost-worker-timeout": "15 minutes",
        **_one_thread_each(),
    }
    if compute.executor == "local":
        settings["distributed.worker.multiprocessing-method"] = "forkserver" if _can_fork() else "spawn"
    with dask.config.set(settings), start(kind, compute) as cluster:
        yield cluster


def _can_fork() -> bool:
    """Whether workers can be forked from a process that has loaded everything once.

    A worker, and the one that takes the place of a killed worker, is there at once then, and they share those pages.
    Python's own choice on Linux since 3.14; elsewhere system libraries do not bear it. That process listens at a socket
    in the folder for temporary files, whose path may be too long for one: they are started one by one then.
    """
    if sys.platform != "linux":
        return False
    with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as probe:
        try:
            # as long a name as that of multiprocessing
            probe.bind(f"{folder}/listener-12345678")
        except OSError:
            return False
    return True


def _one_thread_each() -> dict[str, Any]:
    """Worker processes whose libraries use one thread: there is a worker for each core."""
    import dask

    single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    key = "distributed.nanny.pre-spawn-environ"
    return {key: {**dask.config.get(key, {}), **single}}


def _local(kind: Any, compute: Compute) -> Any:
    """Processes of one thread each: GDAL handles and model threads do not share a process well.

    Dask's ports run whatever they are sent, so other users of this machine are kept out by a certificate of this run.
    """
    from distributed import Security
    from distributed.utils import get_mp_context

    context = get_mp_context()
    if context.get_start_method() == "forkserver":
        # after Dask, which names modules of its own when it asks for the context first
        context.set_forkserver_preload(["flows.preload"])
    return kind(
        n_workers=worker_count(compute),
        # a fork has the environment of the day that its parent was started
        env=dict(os.environ),
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        security=Security.temporary(),
        dashboard_address="127.0.0.1:0",
        silence_logs="ERROR",
    )


def _cuda(kind: Any, compute: Compute) -> Any:
    """A process for each GPU of this machine, or for the first `compute.workers` of them."""
    try:
        return kind(
            n_workers=None if compute.workers == "auto" else compute.workers,
            threads_per_worker=BLOCKS_PER_GPU,
            # blocks are no Dask data: nothing is ever spilled from the GPU
            device_memory_limit=None,
            resources={GPU: BLOCKS_PER_GPU},
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs="ERROR",
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"compute.executor cuda: no cluster on this machine's GPUs ({' '.join(str(error).split())}); "
            "`clearcause doctor` names the GPUs, executor local needs none"
        ) from error


def _slurm(kind: Any, compute: Compute) -> Any:
    """A SLURM job for each worker; queue, cores, memory and walltime are those of jobqueue.yaml.

    Their connections are encrypted with a certificate of this run, which jobs find in `shared-temp-directory`.
    """
    import dask

    count, shared = _asked(compute), dask.config.get("jobqueue.slurm.shared-temp-directory", None)
    if not shared and not dask.config.get("distributed.comm.tls.ca-file"):
        raise ConfigError(
            "compute.executor slurm: name a folder that every node sees as shared-temp-directory (a run's certificates "
            "lie there) under jobqueue.slurm in Dask's configuration (~/.config/dask/jobqueue.yaml)"
        )
    try:
        made = kind(security=_security(), protocol="tls://", scheduler_options={"dashboard_address": ":0"})
    except ValueError as error:
        raise ConfigError(
            f"compute.executor slurm: {' '.join(str(error).split())} Set it under jobqueue.slurm in Dask's "
            "configuration (~/.config/dask/jobqueue.yaml)"
        ) from error
    made.scale(count)
    return made


def _kubernetes(kind: Any, compute: Compute) -> Any:
    """Pods of Dask's Kubernetes operator; image, resources and namespace are those of kubernetes.yaml."""
    return kind(n_workers=_asked(compute), quiet=True)


def _security() -> Any:
    """The certificates of Dask's configuration where it names some, else temporary ones."""
    import dask
    from distributed import Security

    return Security() if dask.config.get("distributed.comm.tls.ca-file") else Security.temporary()


def _asked(compute: Compute) -> int:
    if compute.workers == "auto":
        raise ConfigError(f"compute.workers: say how many workers {compute.executor} shall start")
    return compute.workers


def _class(extra: str, module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"compute.executor {extra}: {error.name or module} is not installed; pip install 'clearcause[{extra}]'"
        ) from error


_KINDS: dict[str, tuple[str, str, str, Callable[[Any, Compute], Any]]] = {
    "local": ("local", "distributed", "LocalCluster", _local),
    "cuda": ("cuda", "dask_cuda", "LocalCUDACluster", _cuda),
    "slurm": ("slurm", "dask_jobqueue", "SLURMCluster", _slurm),
    "kubernetes": ("kubernetes", "dask_kubernetes.operator", "KubeCluster", _kubernetes),
}
"""By name of `compute.executor`: the extra, the module and its class, and how it is started."""


def worker_count(compute: Compute) -> int:
    """One worker for each core this process may use, as long as each has 2 GiB."""
    if compute.workers != "auto":
        return compute.workers
    from distributed.system import MEMORY_LIMIT

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, int(MEMORY_LIMIT / 2**30 / _GIB_PER_WORKER)), 1)
