"""Ends a process that stands still: Faust and aiokafka only log when a consumer is silently dead.

Three kinds of standing still: the event loop does not turn; a partition has work in hand and does not move; the broker
has more of a partition that is wanted, and nothing of it comes.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from aiokafka.errors import KafkaError

from aos.streams.shell.background import Background
from aos.streams.shell.fatal import BROKEN, STUCK, die, log
from aos.streams.shell.reader import Reader

Place = tuple[str, str, int]  # processor, topic without prefix, partition


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
        self._rested_at: weakref.WeakKeyDictionary[Moving, float] = weakref.WeakKeyDictionary()
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
                bark(f"the event loop did not turn for {now - self._turned_at:.0f} s")
            for loop in self._watched():
                still_s = self.still_s(loop, now)
                if still_s > 2 * self._limit_s:
                    bark(f"{loop} has work and did not move for {still_s:.0f} s")

    def still_s(self, loop: Moving, now: float) -> float:
        """How long it has had work and not moved; to have had nothing to do for an hour is not to stand still."""
        if not loop.busy:
            self._rested_at[loop] = now
            return 0.0
        return now - max(loop.moved_at, self._rested_at.get(loop, loop.moved_at))


def bark(reason: str) -> None:
    """End the process; the log tells what each of its threads was at."""
    faulthandler.dump_traceback(file=sys.stderr)
    die(BROKEN, reason)


class Fetched(Background):
    """Sees that what the broker has of every wanted partition comes, within twice `limit_s`.

    `wanted`: the next offset of each partition that would take more now.
    """

    def __init__(self, limit_s: float, reader: Reader, wanted: Callable[[], Mapping[Place, int]]) -> None:
        self._limit_s, self._reader, self._wanted = limit_s, reader, wanted
        self._since: dict[
            Place, tuple[int, float]
        ] = {}  # next offset, and since when there is more behind it
        super().__init__("fetched")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._limit_s / 4)
            try:
                late = await self.look(time.monotonic())
            except KafkaError as error:
                log.warning("what the broker has is not known: %s", error)
                self._since.clear()  # nothing could come meanwhile
                continue
            if late:
                bark(f"nothing comes of what is there: {late}")

    async def look(self, now: float) -> list[tuple[Place, int]]:
        """Places of which nothing came for too long, with the offset that is there and did not come."""
        wanted = self._wanted()
        bounds = await self._reader.bounds({place[1:] for place in wanted})
        behind = {place: at for place, at in wanted.items() if at < bounds[place[1:]][1]}
        self._since = {
            place: known if (known := self._since.get(place, (-1, now)))[0] == at else (at, now)
            for place, at in behind.items()
        }
        late = [(place, at) for place, (at, since) in self._since.items() if now - since > 2 * self._limit_s]
        return [(place, at) for place, at in late if await self._readable(place, at, bounds[place[1:]][1])]

    async def _readable(self, place: Place, at: int, end: int) -> bool:
        """Whether there is a record: of markers, and of what was compacted away, nothing ever comes."""
        _, topic, partition = place
        async for _ in self._reader.read(topic, partition, at, end):
            return True
        return False
