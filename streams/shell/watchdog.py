"""Ends a process that stands still: Faust and aiokafka only log when a consumer is silently dead."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from aos.streams.shell.fatal import BROKEN, STUCK, die


class Moving(Protocol):
    """Something with work that must move."""

    moved_at: float

    @property
    def busy(self) -> bool: ...


class Watchdog:
    """A thread that sees the event loop turn, and every loop with waiting records move, within `limit_s`.

    A thread, because a loop that stands still cannot watch itself.
    """

    def __init__(self, limit_s: float, watched: Callable[[], Sequence[Moving]]) -> None:
        self._limit_s = limit_s
        self._watched = watched
        self._turned_at = time.monotonic()
        self._end = threading.Event()
        self._leave_at = float("inf")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._turn(), name="watchdog")
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._task is not None:
            self._task.cancel()

    def leave_within(self, seconds: float) -> None:
        """A stop was asked for: a step that blocks the event loop must not hold it up longer than this."""
        self._leave_at = min(self._leave_at, time.monotonic() + seconds)

    async def _turn(self) -> None:
        while True:
            self._turned_at = time.monotonic()
            await asyncio.sleep(self._limit_s / 20)

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._limit_s / 10)):
            now = time.monotonic()
            if now > self._leave_at:
                die(STUCK, "the running step did not end in time: leaving without a commit")
            if now - self._turned_at > self._limit_s:
                self._bark(f"the event loop did not turn for {now - self._turned_at:.0f} s")
            for loop in self._watched():
                if loop.busy and now - loop.moved_at > 2 * self._limit_s:
                    self._bark(f"{loop} has work and did not move for {now - loop.moved_at:.0f} s")

    def _bark(self, reason: str) -> None:
        faulthandler.dump_traceback(file=sys.stderr)
        die(BROKEN, reason)
