"""Who has how many slots, which attempt holds one, and which attempts are over.

Decides nothing. A slot is taken at a decision and freed by that attempt's release, exactly once; an attempt that was
decided or released is known for as long as it may come again.

in: the fleet's view; decisions; releases.
key: (request_id, round, step, attempt) as 22 bytes.
state: `slots` by agent; `attempts` that hold a slot, by key; `ended`: keys of the last ENDED_MAX attempts that ended
    or never began, with what a refusal said.
order: any. A release before its ready row keeps that row from being decided; a second one changes nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from aos.agents.fleet import DRAINING, Fleet

ENDED_MAX = 100_000  # at 10,000 tasks/s ten seconds; a replay after a crash repeats less
SLOTS_SPARE = 1_024  # agents that left and hold nothing are forgotten above this number
KEY_BYTES = 22
NOTHING_FREE = math.inf  # the use of an agent without slots
_KEY = struct.Struct(">16shhh")


class Told(NamedTuple):
    """What the ledger was told of one attempt; the last three stand in the journal only. Times are in us."""

    tenant: str
    traceparent: str | None
    request_id: bytes
    requested_at: int
    home: int
    domain: str
    round: int
    kind: str
    step: int
    attempt: int
    agent: str | None
    service: str | None
    cell: str
    cell_partition: int
    epoch: int
    probability: float | None
    score_predicted: float | None
    timeout_ms: int | None
    model_version: int
    settings_version: int
    degraded: bool
    rung: str | None
    code: str | None
    message: str | None
    step_name: str
    task_kind: str | None
    policy: str

    @property
    def key(self) -> bytes:
        """The attempt's key."""
        return key_of(self.request_id, self.round, self.step, self.attempt)


def key_of(request_id: bytes, round: int, step: int, attempt: int) -> bytes:
    """An attempt's key, 22 bytes."""
    return _KEY.pack(request_id, round, step, attempt)


def keys_of(
    request_ids: Sequence[bytes], rounds: Sequence[int], steps: Sequence[int], attempts: Sequence[int]
) -> list[bytes]:
    """The keys of many attempts."""
    return list(map(_KEY.pack, request_ids, rounds, steps, attempts))


class Slot:
    """One agent's slots: `limit` of them, `load` taken, `use` the share that is taken (1 or more: none is free).

    `lost`: it will start no more work here (unknown, gone, draining, or moved to another cell); `gone`: what it has
    will not be finished either. `served`, `turn`: see agents/allocating.py."""

    __slots__ = ("agent", "gone", "limit", "load", "lost", "served", "turn", "use")

    def __init__(self, agent: str, limit: int = 0, load: int = 0) -> None:
        self.agent = agent
        self.lost = True
        self.gone = True
        self.served = 0.0
        self.turn = 0
        self.set(limit, load)

    def set(self, limit: int, load: int) -> None:
        """Say how many slots there are and how many of them are taken."""
        self.limit = limit
        self.load = load
        self.use = load / limit if limit else NOTHING_FREE


class Attempt:
    """A decided attempt that holds a slot. `answers`: what the ledger was told (assigned; refused when its agent went
    away). `adopted`: it was read from the journal and its ready row was not seen yet."""

    __slots__ = ("adopted", "answers", "epoch", "slot")

    def __init__(self, slot: Slot, epoch: int, answers: list[Told], adopted: bool = False) -> None:
        self.slot = slot
        self.epoch = epoch
        self.answers = answers
        self.adopted = adopted


class Load:
    """The load of the agents of one partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.slots: dict[str, Slot] = {}
        self.attempts: dict[bytes, Attempt] = {}
        self.ended: dict[bytes, Told | None] = {}
        self.free = 0  # free slots of the agents in `slots`
        self._seen: tuple[int, float] | None = None

    def follow(self, fleet: Fleet, prefetch: float) -> bool:
        """Bring the limits up to date; whether the fleet changed since the last call."""
        if self._seen == (fleet.version, prefetch):
            return False
        self._seen = (fleet.version, prefetch)
        self._fill(self.slots.values(), fleet, prefetch)
        self.free = sum(max(0, slot.limit - slot.load) for slot in self.slots.values())
        return True

    def find(self, agents: Sequence[str], fleet: Fleet, prefetch: float) -> list[Slot]:
        """The slots of these agents, in their order; unseen agents are looked up in the fleet."""
        known = self.slots
        new = [self._new(agent) for agent in dict.fromkeys(agents) if agent not in known]
        if new:
            self._fill(new, fleet, prefetch)
            self.free += sum(slot.limit for slot in new)
        return [known[agent] for agent in agents]

    def slot(self, agent: str) -> Slot:
        """The agent's slot; that of an unseen agent is filled at the next `follow`."""
        if agent not in self.slots:
            self._seen = None
            return self._new(agent)
        return self.slots[agent]

    def _new(self, agent: str) -> Slot:
        slot = self.slots[agent] = Slot(agent)
        return slot

    def _fill(self, slots: Iterable[Slot], fleet: Fleet, prefetch: float) -> None:
        slots = list(slots)
        for slot in slots:
            slot.set(0, slot.load)
            slot.lost = slot.gone = True
        index = fleet.indices([slot.agent for slot in slots])
        found = np.nonzero(index >= 0)[0]
        at = index[found]
        here = fleet.cell_partition[at] == self.partition
        limits = np.where(here & fleet.alive[at], _limits(fleet.capacity[at], prefetch), 0).tolist()
        gone = fleet.gone[at]
        lost = (gone | ~here | (fleet.state[at] == DRAINING)).tolist()
        for position, limit, is_lost, is_gone in zip(
            found.tolist(), limits, lost, gone.tolist(), strict=True
        ):
            slot = slots[position]
            slot.set(limit, slot.load)
            slot.lost, slot.gone = is_lost, is_gone

    def take(self, key: bytes, attempt: Attempt) -> None:
        """The attempt takes a slot of its agent."""
        slot = attempt.slot
        self.attempts[key] = attempt
        if slot.load < slot.limit:
            self.free -= 1
        slot.set(slot.limit, slot.load + 1)

    def release(self, key: bytes, agent: str, epoch: int) -> bool:
        """End an attempt; whether a slot became free.

        Only the release of the very assignment frees its slot: `epoch` 0 means whichever there is. An attempt that
        was not decided is remembered, so that its ready row is not decided later.
        """
        attempt = self.attempts.get(key)
        if attempt is None:
            if key not in self.ended:
                self.end(key, None)
            return False
        if epoch and (epoch != attempt.epoch or agent != attempt.slot.agent):
            return False
        del self.attempts[key]
        slot = attempt.slot
        slot.set(slot.limit, slot.load - 1)
        if slot.load < slot.limit:
            self.free += 1
        self.end(key, None)
        return True

    def end(self, key: bytes, refusal: Told | None) -> None:
        """Remember an attempt that holds no slot; `refusal` is what the ledger was told, if it was refused."""
        self.ended.pop(key, None)
        self.ended[key] = refusal
        if len(self.ended) > ENDED_MAX:
            del self.ended[next(iter(self.ended))]

    def stranded(self) -> Iterator[tuple[bytes, Attempt]]:
        """Attempts whose agent is gone and that were not refused yet."""
        if not any(slot.gone and slot.load for slot in self.slots.values()):
            return
        for key, attempt in self.attempts.items():
            if attempt.slot.gone and len(attempt.answers) == 1:
                yield key, attempt

    def forget(self, needed: set[str]) -> None:
        """Drop agents that left and hold nothing, but those `needed` by waiting rows, when they are many."""
        idle = [
            agent for agent, slot in self.slots.items() if slot.lost and not slot.load and agent not in needed
        ]
        for agent in idle[: max(0, len(idle) - SLOTS_SPARE)]:
            del self.slots[agent]


def _limits(capacity: np.ndarray, prefetch: float) -> np.ndarray:
    """Slots from capacity: times prefetch, rounded down, at least the capacity: int64 [n]."""
    found: np.ndarray = np.maximum(capacity, np.floor(capacity * prefetch + 1e-9)).astype(np.int64)
    return found
