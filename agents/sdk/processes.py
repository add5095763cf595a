"""Processes for agents that compute: spawned, and gone when their service is gone."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from aos.agents.sdk.work import Work

_PR_SET_PDEATHSIG = 1


def make_pool(size: int) -> ProcessPoolExecutor:
    """A pool of `size` spawned processes (fork would copy the event loop and its sockets)."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        max_workers=size, mp_context=context, initializer=_die_with, initargs=(os.getpid(),)
    )


def _die_with(parent: int) -> None:
    """End with the service even when it is killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def timed(handler: Callable[[Work], Any], work: Work) -> tuple[Any, int]:
    """Run the handler; return its answer and the CPU time of this thread in microseconds."""
    begun = time.thread_time_ns()
    answer = handler(work)
    return answer, (time.thread_time_ns() - begun) // 1000
