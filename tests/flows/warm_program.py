"""The program with its libraries already loaded: a parent that forks a process of `clearcause` for each line it reads.

    python -m warm_program < lines of [[argument, ...], log]

It answers each line with the process's id. A run of many short runs would otherwise spend its time on imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

LOADED = (
    "flows.regions", "pipeline.assemble", "pipeline.late", "pipeline.loss", "pipeline.models.engines",
    "pipeline.product.write", "torch",
)  # fmt: skip
"""Without onnxruntime: it starts a thread, and a forked process has none of its parent's."""


def main() -> None:
    import importlib

    from pipeline.cli_run import _quiet_prefect

    _quiet_prefect()
    for name in LOADED:
        importlib.import_module(name)
    # nobody waits for the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        arguments, log = json.loads(line)
        child = os.fork()
        if not child:
            run(arguments, log)
        print(child, flush=True)


def run(arguments: list[str], log: str) -> None:
    """Be the program: its own group, its own output; how it ended is the last line of its log."""
    from pipeline.cli import main as program

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["clearcause", *arguments]
    code: object = 1
    try:
        program()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    print(f"exit {code}", file=sys.stderr, flush=True)
    sys.exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
