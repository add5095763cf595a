"""Rows that wait for a free slot, and in which order they may have one.

Decides the order, and when a lane is full (back-pressure): the lane is then not read on until it is half empty.

The order: (1) by level: the lane's number, less one for each `age_us` the row has waited (never below 0);
(2) steps of running workflows before new ones; (3) among lanes that are equal so far, the row that became ready
first, where each lane number counts as `age_us` later; (4) inside a lane the tenant that had least in relation to
its weight, then the older row. So a row of lane p starts no later than one of lane 0, of the same tenant and class,
that becomes ready p x `age_us` after it: it waits at most that much longer. The other side of it: when a low lane's
backlog is older than that, its rows and those of lane 0 are equals.

A row that finds no free slot does not hold up those behind it, but those that want just what it wants
(`Waiting.wants`): of those only the first is asked in a pass. What a pass costs so depends on how many different
wants wait, not on how many rows: a backlog must not make each message dearer.

state: rows by lane, class, tenant and wants in order of arrival; a virtual clock for each lane and tenant.
order: rows of one lane come in the order of `ready_at` (log order); a row out of order ages with those before it.
cost: a pass looks at one row for each decision, and at the head of each (lane, class, tenant, wants): 3 us.
source: start-time fair queueing (Goyal, Vin, Cheng 1996).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

B = TypeVar("B")

LANES_COUNT = 4
# a lane holds at most so many rows (and the rest of the message that filled it): the window in which tenants are fair.
# What does not fit waits in the topic in the order of its log, the small tenants behind the large; about 2 KB a row
ROWS_MAX = 16_384
WEIGHT_MIN = 1e-3  # a tenant of weight 0 gets next to nothing, not nothing
CREDIT_MAX = 64.0  # rows of weight 1 that a tenant may be behind the foremost one when it comes back


class Verdict(enum.Enum):
    """What became of a row that was offered."""

    TAKEN = 0  # it is decided and leaves
    BLOCKED = 1  # it waits on
    FULL = 2  # it waits on, and so will all others: nothing is free


class Waiting(Generic[B]):
    """One row that waits: row `index` of `block` (whatever the owner keeps its rows in). `ready_at` in us.

    `wants`: if one row is blocked, all that want the same are."""

    __slots__ = ("block", "index", "key", "lane", "ready_at", "running", "sequence", "tenant", "wants")

    def __init__(
        self,
        key: bytes,
        lane: int,
        tenant: str,
        running: bool,
        ready_at: int,
        block: B,
        index: int,
        wants: Hashable,
    ) -> None:
        self.key = key
        self.lane = lane
        self.tenant = tenant
        self.running = running
        self.ready_at = ready_at
        self.block = block
        self.index = index
        self.wants = wants
        self.sequence = 0


Queue = dict[bytes, Waiting[B]]  # by key, in order of arrival
# of a queue: level, since when its first row is ready, that row's number, the row itself, the rest
Head = tuple[int, int, int, Waiting[B], Iterator[Waiting[B]]]
# of a tenant and class: level, class, the tenant's clock, then as above of its first row; tenant, heap of queues
Top = tuple[int, int, float, int, int, str, list[Head[B]]]


class Lane(Generic[B]):
    """One lane: queues by class (0 running, 1 new), tenant and wants, the tenants' clocks, and whether it is full."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queues: dict[tuple[int, str], dict[Hashable, Queue[B]]] = {}
        self.clocks: dict[str, float] = {}  # tenant -> rows it had, each divided by its weight
        self.clock = 0.0  # the foremost tenant's
        self.count = 0
        self.full = False
        self._tops: list[Top[B]] = []
        self._now = self._age = 0

    def add(self, row: Waiting[B]) -> None:
        """Append a row; a tenant that had none here starts where the others are: no credit for its absence."""
        at = (0 if row.running else 1, row.tenant)
        queues = self.queues.get(at)
        if queues is None:
            self._begin_clock(row.tenant)
            queues = self.queues[at] = {}
        queue = queues.get(row.wants)
        if queue is None:
            queue = queues[row.wants] = {}
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
        queues = self.queues[at]
        queue = queues[row.wants]
        del queue[row.key]
        if not queue:
            del queues[row.wants]
            if not queues:
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

    def is_full(self) -> bool:
        """Whether it must not be read on: from its limit on, until half of it is left."""
        self.full = self.count >= ROWS_MAX or (self.full and self.count > ROWS_MAX // 2)
        return self.full

    # a pass: begin, then peek and advance or skip by turns; rows must not be added or removed meanwhile

    def begin(self, now: int, age: int, may: Callable[[Waiting[B]], bool]) -> bool:
        """Start a pass at `now` over the queues whose first row `may` start; whether there are any. `age` is the
        waiting time worth one level (both us)."""
        self._now, self._age = now, age
        self._tops = []
        for (group, tenant), queues in self.queues.items():
            heads = []
            for queue in queues.values():
                rows = iter(queue.values())
                first = next(rows)
                if may(first):
                    heads.append(self._head(first, rows))
            if heads:
                heapq.heapify(heads)
                self._tops.append(self._top(group, tenant, heads))
        heapq.heapify(self._tops)
        return bool(self._tops)

    def peek(self) -> tuple[int, int, int, int] | None:
        """What the lane offers next, comparable with other lanes' offers; None when nothing is left."""
        tops = self._tops
        while tops:
            level, group, clock, ready_at, sequence, tenant, heads = tops[0]
            current = self.clocks[tenant]
            if current > clock:  # the tenant had a row since
                heapq.heapreplace(tops, (level, group, current, ready_at, sequence, tenant, heads))
                continue
            return level, group, ready_at + self.number * self._age, sequence
        return None

    @property
    def offered(self) -> Waiting[B]:
        """The row that `peek` spoke of."""
        return self._tops[0][6][0][3]

    def advance(self) -> None:
        """The row offered is taken: the next one of its queue takes its place."""
        _, group, _, _, _, tenant, heads = self._tops[0]
        rows = heads[0][4]
        after = next(rows, None)
        if after is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, self._head(after, rows))
        self._settle(group, tenant, heads)

    def skip(self) -> None:
        """The row offered is blocked, and with it all of its queue."""
        _, group, _, _, _, tenant, heads = self._tops[0]
        heapq.heappop(heads)
        self._settle(group, tenant, heads)

    def _settle(self, group: int, tenant: str, heads: list[Head[B]]) -> None:
        """Put the first tenant, whose queues have changed, where it belongs now."""
        if heads:
            heapq.heapreplace(self._tops, self._top(group, tenant, heads))
        else:
            heapq.heappop(self._tops)

    def _head(self, row: Waiting[B], rows: Iterator[Waiting[B]]) -> Head[B]:
        level = self.number
        if level:
            level = max(0, level - max(0, self._now - row.ready_at) // self._age)
        return level, row.ready_at, row.sequence, row, rows

    def _top(self, group: int, tenant: str, heads: list[Head[B]]) -> Top[B]:
        level, ready_at, sequence, _, _ = heads[0]
        return level, group, self.clocks[tenant], ready_at, sequence, tenant, heads


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
        self,
        now: int,
        age: int,
        weights: Mapping[str, float],
        may: Callable[[Waiting[B]], bool],
        take: Callable[[Waiting[B]], Verdict],
    ) -> None:
        """One pass: offer rows in order to `take` until nothing is free; those taken leave and are charged.

        `may` says cheaply whether a row need not be offered at all."""
        taken: list[Waiting[B]] = []
        lanes = [lane for lane in self.lanes if lane.count and lane.begin(now, age, may)]
        while offers := [(offer, lane.number, lane) for lane in lanes if (offer := lane.peek()) is not None]:
            lane = offers[0][2] if len(offers) == 1 else min(offers)[2]
            row = lane.offered
            verdict = take(row)
            if verdict is Verdict.TAKEN:
                taken.append(row)
                lane.charge(row.tenant, weights.get(row.tenant, 1.0))
                lane.advance()
            elif verdict is Verdict.BLOCKED:
                lane.skip()
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

    def full(self) -> list[int]:
        """Numbers of the lanes that must not be read on."""
        return [lane.number for lane in self.lanes if lane.is_full()]
