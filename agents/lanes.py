"""Rows that wait for a free slot, and in which order they may have one.

Decides the order, and when a lane is full (back-pressure): the lane is then not read on until it is half empty.

The order: (1) by level: the lane's number, less one for each `age_us` the row has waited (never below 0);
(2) steps of running workflows before new ones; (3) among lanes that are equal so far, the row that became ready
first, where each lane number counts as `age_us` later; (4) inside a lane the tenant that had least in relation to
its weight, then the older row. So a row of lane p starts no later than one of lane 0, of the same tenant and class,
that becomes ready p x `age_us` after it: it waits at most that much longer. The other side of it: when a low lane's
backlog is older than that, its rows and those of lane 0 are equals.

A row that finds no free slot does not hold up those behind it: a pass goes on to the next one, until SCAN_MAX rows
found none. What stands behind so many waits for them.

state: rows by lane, class and tenant in order of arrival; a virtual clock for each lane and tenant.
order: rows of one lane come in the order of `ready_at` (log order); a row out of order ages with those before it.
cost: a pass looks at one row for each decision, and at the head of each (lane, class, tenant).
source: start-time fair queueing (Goyal, Vin, Cheng 1996).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

B = TypeVar("B")

LANES_COUNT = 4
ROWS_MIN = 64  # a lane holds so many rows even when nothing is free: the window in which tenants are fair
ROWS_MAX = 4_096  # .. and at most so many (and the rest of the message that filled it)
SCAN_MAX = 2_048  # rows without a free slot that one pass looks at: about a millisecond
WEIGHT_MIN = 1e-3  # a tenant of weight 0 gets next to nothing, not nothing
CREDIT_MAX = 64.0  # rows of weight 1 that a tenant may be behind the foremost one when it comes back


class Verdict(enum.Enum):
    """What became of a row that was offered."""

    TAKEN = 0  # it is decided and leaves
    BLOCKED = 1  # it waits on
    FULL = 2  # it waits on, and so will all others: nothing is free


class Waiting(Generic[B]):
    """One row that waits: row `index` of `block` (whatever the owner keeps its rows in). `ready_at` in us."""

    __slots__ = ("block", "index", "key", "lane", "ready_at", "running", "sequence", "tenant")

    def __init__(
        self, key: bytes, lane: int, tenant: str, running: bool, ready_at: int, block: B, index: int
    ) -> None:
        self.key = key
        self.lane = lane
        self.tenant = tenant
        self.running = running
        self.ready_at = ready_at
        self.block = block
        self.index = index
        self.sequence = 0


# of a queue: level, class, its tenant's clock, then the first row: since when it is ready, its number, itself; the rest
Head = tuple[int, int, float, int, int, Waiting[B], Iterator[Waiting[B]]]


class Lane(Generic[B]):
    """One lane: queues by class (0 running, 1 new) and tenant, the tenants' clocks, and whether it is full."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queues: dict[tuple[int, str], dict[bytes, Waiting[B]]] = {}
        self.clocks: dict[str, float] = {}  # tenant -> rows it had, each divided by its weight
        self.clock = 0.0  # the foremost tenant's
        self.count = 0
        self.full = False
        self._heads: list[Head[B]] = []
        self._now = self._age = 0

    def add(self, row: Waiting[B]) -> None:
        """Append a row; a tenant that had none here starts where the others are: no credit for its absence."""
        at = (0 if row.running else 1, row.tenant)
        queue = self.queues.get(at)
        if queue is None:
            self._begin_clock(row.tenant)
            queue = self.queues[at] = {}
        queue[row.key] = row
        self.count += 1

    def _begin_clock(self, tenant: str) -> None:
        if (0, tenant) in self.queues or (1, tenant) in self.queues:
            return
        active = [self.clocks[name] for _, name in self.queues]
        start = max(min(active), max(active) - CREDIT_MAX) if active else self.clock
        self.clocks[tenant] = max(self.clocks.get(tenant, 0.0), start)

    def remove(self, row: Waiting[B]) -> None:
        """Take a row out."""
        at = (0 if row.running else 1, row.tenant)
        queue = self.queues[at]
        del queue[row.key]
        if not queue:
            del self.queues[at]
        self.count -= 1

    def clear(self) -> None:
        """Take all rows out."""
        self.queues.clear()
        self.count = 0

    def charge(self, tenant: str, weight: float) -> None:
        """Count one row to the tenant."""
        clock = self.clocks.get(tenant, self.clock) + 1.0 / max(weight, WEIGHT_MIN)
        self.clocks[tenant] = clock
        self.clock = max(self.clock, clock)

    def is_full(self, limit: int) -> bool:
        """Whether it must not be read on: from its limit on, until half of it is left."""
        self.full = self.count >= limit or (self.full and self.count > limit // 2)
        return self.full

    # a pass: begin, then peek and advance by turns; rows must not be added or removed meanwhile

    def begin(self, now: int, age: int) -> None:
        """Start a pass at `now`; `age` is the waiting time worth one level (both us)."""
        self._now, self._age = now, age
        queues = [(group, iter(queue.values())) for (group, _), queue in self.queues.items()]
        self._heads = [self._head(group, next(rows), rows) for group, rows in queues]
        heapq.heapify(self._heads)

    def peek(self) -> tuple[int, int, int, int] | None:
        """What the lane offers next, comparable with other lanes' offers; None when nothing is left."""
        heads = self._heads
        while heads:
            level, group, clock, ready_at, sequence, row, rows = heads[0]
            current = self.clocks[row.tenant]
            if current > clock:  # the tenant had a row since
                heapq.heapreplace(heads, (level, group, current, ready_at, sequence, row, rows))
                continue
            return level, group, ready_at + self.number * self._age, sequence
        return None

    def advance(self) -> Waiting[B]:
        """The row that `peek` offered; the next one of its queue takes its place."""
        _, group, _, _, _, row, rows = self._heads[0]
        after = next(rows, None)
        if after is None:
            heapq.heappop(self._heads)
        else:
            heapq.heapreplace(self._heads, self._head(group, after, rows))
        return row

    def offers(self) -> Iterator[Waiting[B]]:
        """All rows in order; each must be charged, if it is taken, before the next one is asked for."""
        if len(self.queues) == 1:  # one class of one tenant: in order of arrival
            for queue in self.queues.values():
                yield from queue.values()
            return
        heads, clocks = self._heads, self.clocks
        while heads:
            level, group, clock, ready_at, sequence, row, rows = heads[0]
            current = clocks[row.tenant]
            if current > clock:  # the tenant had a row since
                heapq.heapreplace(heads, (level, group, current, ready_at, sequence, row, rows))
                continue
            yield row
            self.advance()  # after it was charged: its queue's next row then stands where it belongs at once

    def _head(self, group: int, row: Waiting[B], rows: Iterator[Waiting[B]]) -> Head[B]:
        level = self.number
        if level:
            level = max(0, level - max(0, self._now - row.ready_at) // self._age)
        return level, group, self.clocks[row.tenant], row.ready_at, row.sequence, row, rows


class Lanes(Generic[B]):
    """All lanes of one partition."""

    def __init__(self) -> None:
        self.lanes: list[Lane[B]] = [Lane(number) for number in range(LANES_COUNT)]
        self.rows: dict[bytes, Waiting[B]] = {}  # by key, in order of arrival
        self.sequence = 0

    def add(self, row: Waiting[B]) -> None:
        """A row begins to wait; its key must not wait already."""
        self.sequence += 1
        row.sequence = self.sequence
        self.rows[row.key] = row
        self.lanes[row.lane].add(row)

    def drop(self, key: bytes) -> Waiting[B] | None:
        """Take a row out, if it waits."""
        row = self.rows.pop(key, None)
        if row is not None:
            self.lanes[row.lane].remove(row)
        return row

    def offer(
        self, now: int, age: int, weights: Mapping[str, float], take: Callable[[Waiting[B]], Verdict]
    ) -> None:
        """One pass: offer rows in order to `take` until nothing is free; those taken leave and are charged."""
        taken: list[Waiting[B]] = []
        blocked = 0
        open_ = [lane for lane in self.lanes if lane.count]
        for lane in open_:
            lane.begin(now, age)
        for row in open_[0].offers() if len(open_) == 1 else _merged(open_):
            verdict = take(row)
            if verdict is Verdict.TAKEN:
                taken.append(row)
                self.lanes[row.lane].charge(row.tenant, weights.get(row.tenant, 1.0))
            elif verdict is Verdict.BLOCKED:
                blocked += 1
                if blocked >= SCAN_MAX:
                    break
            else:
                break
        self._leave(taken)

    def _leave(self, taken: list[Waiting[B]]) -> None:
        if len(taken) < len(self.rows):
            for row in taken:
                self.drop(row.key)
            return
        self.rows.clear()
        for lane in self.lanes:
            lane.clear()

    def full(self, room: int, free: int) -> list[int]:
        """Numbers of the lanes that must not be read on: each may hold one row for each slot of the cell (`room`) and
        one more for each free one."""
        limit = min(ROWS_MAX, max(ROWS_MIN, room + free))
        return [lane.number for lane in self.lanes if lane.is_full(limit)]


def _merged(lanes: list[Lane[B]]) -> Iterator[Waiting[B]]:
    """What several lanes offer, in order; each row must be charged, if it is taken, before the next is asked for."""
    while offers := [(offer, lane.number, lane) for lane in lanes if (offer := lane.peek()) is not None]:
        yield min(offers)[2].advance()
