"""Seconds of cores of a command and of all that it started, those included that it never waited for.

The kernel adds a process's seconds to its parent's when the parent waits for it. Workers that a server of Python's
multiprocessing forks are waited for by that server, which nobody waits for: it ends when its run has ended. A process
that measures therefore takes in orphans among its descendants, and waits for them itself. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import time

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""Of prctl(2)."""


class Cores:
    """Counts the seconds of a command: made before the command is started."""

    def __init__(self) -> None:
        """Take in orphans from now on; raises OSError where the system cannot."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the kernel does not hand over orphans; their seconds would be lost")
        self._before = self._children()
        self.seconds = 0.0
        """Seconds of cores, whole once `wait` has returned."""

    def wait(self, process: subprocess.Popen[bytes]) -> float:
        """Wait for the command, set its return code, and return the time (perf_counter) of its end."""
        _, status, used = os.wait4(process.pid, 0)
        ended = time.perf_counter()
        process.returncode = os.waitstatus_to_exitcode(status)
        self._add(used)
        while left := self._children() - self._before:
            for pid in left:
                self._add(os.wait4(pid, 0)[2])
        return ended

    def _add(self, used: resource.struct_rusage) -> None:
        self.seconds += used.ru_utime + used.ru_stime

    @staticmethod
    def _children() -> set[int]:
        return {child.pid for child in psutil.Process().children()}
