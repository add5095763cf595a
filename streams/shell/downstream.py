"""Back-pressure: how old the work is that a later processor has not done, so that an edge takes in no more meanwhile.

What waits before the edge waits in its input topic, where it costs nothing and no time-out runs. Measured without it:
30 s behind, attempts time out before their work is sent, and what the machine does is done for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

from aiokafka.errors import KafkaError

from aos.streams.shell.background import Admins, Background
from aos.streams.shell.fatal import log
from aos.streams.shell.options import Options
from aos.streams.shell.reader import Reader
from aos.streams.shell.topics import Admin

LOOK_S = 0.5  # .. of a bound of seconds; a tenth of any bound is often enough


class Backlog:
    """Looks at the ends of a log and at what a group has committed; from both, the age of the oldest undone message.

    The age is too short by at most the time between two looks, and counts from the first look.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[int, deque[tuple[float, int]]] = {}  # by partition: when the log was how long

    def look(self, ends: Mapping[int, int], done: Mapping[int, int]) -> float:
        """Ends and commits by partition now; seconds since the oldest undone message was there."""
        now = self._clock()
        oldest = now
        for partition, end in ends.items():
            seen = self._ends.setdefault(partition, deque())
            if seen and seen[-1][1] > end:  # a log made anew
                seen.clear()
            if not seen or seen[-1][1] < end:
                seen.append((now, end))
            while seen and seen[0][1] <= done.get(partition, 0):
                seen.popleft()
            if seen:
                oldest = min(oldest, seen[0][0])
        return now - oldest


class Downstream(Background):
    """Watches the processor `name` on `topic` (names without prefix); `behind` from `most_s` until half of it, `late`
    from `late_s` of the options on likewise. `said`: what follows from being behind or not, for the log."""

    def __init__(
        self,
        options: Options,
        reader: Reader,
        admins: Admins,
        name: str,
        topic: str,
        partitions: int,
        most_s: float | None = None,
        said: tuple[str, str] = ("held", "let go"),
    ) -> None:
        self._options, self._reader, self._admins = options, reader, admins
        self._most_s = options.behind_s if most_s is None else most_s
        self._said = said
        self._group, self._topic = f"{options.prefix}aos.{name}", topic
        self._partitions = range(partitions)
        self._backlog = Backlog()
        self.behind = self.late = False
        super().__init__(f"downstream {self._group}")

    def judge(self, age_s: float) -> None:
        """Hold or let go, by the age of the oldest undone message."""
        behind = age_s > (self._most_s / 2 if self.behind else self._most_s)
        if behind != self.behind:
            log.warning("%s is %.1f s behind: %s", self._group, age_s, self._said[not behind])
        self.behind = behind
        late_s = self._options.late_s
        self.late = age_s > (late_s / 2 if self.late else late_s)

    async def _watch(self) -> None:
        while True:
            admin = None
            try:
                admin = await self._admins.get()
                self.judge(self._backlog.look(*await self._look(admin)))
            except KafkaError as error:  # what was known stays true until the broker answers again
                log.warning("%s: its lag is not known: %s", self._group, error)
                await self._admins.drop(admin)
            await asyncio.sleep(max(LOOK_S, self._most_s / 10))

    async def _look(self, admin: Admin) -> tuple[dict[int, int], dict[int, int]]:
        """Ends first: what is committed later can only be more."""
        bounds = await self._reader.bounds([(self._topic, partition) for partition in self._partitions])
        done = await admin.committed(self._group)
        return (
            {partition: end for (_, partition), (_, end) in bounds.items()},
            {partition: done.get((self._topic, partition), 0) for partition in self._partitions},
        )
