"""Allocate as a journal: decided once, told as often as needed, capacity exact, whatever crashes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.streams import allocate
from aos.streams.allocate_state import State
from aos.streams.processor import Batch, Step, Views
from tests.unit.given_allocate import (
    adopted,
    alternative,
    bytes_of,
    fleet_of,
    free,
    journal,
    lane,
    ledger,
    number_of,
    ready,
    release,
    restarted,
    run,
    said,
    tell,
    tick,
    views_of,
)

# restart


def test_a_journaled_decision_is_adopted_and_told_again_though_its_row_was_only_in_the_snapshot() -> None:
    views = views_of(fleet_of({"agent": "a", "capacity": 1}))
    state = allocate.initial(0)
    lane(state, views, ready(1, "a"), ready(2, "a"))
    snapshot = allocate.dump(state)
    lost = free(state, views, release(1, "a", 1))  # decides 2, and dies before the ledger has it
    other = adopted(allocate.load(0, snapshot), lost)
    step = free(other, views, release(1, "a", 1))
    assert step.first == []
    assert said(ledger(step)) == said(ledger(lost))
    assert other.load.slots["a"].load == 1
    assert not other.lanes.rows


def test_a_refusal_of_an_agent_that_was_gone_is_adopted_and_told_again() -> None:
    fleet = fleet_of({"agent": "a"})
    state, views = allocate.initial(0), views_of(fleet)
    decided = lane(state, views, ready(1, "a"))
    tell(fleet, {"agent": "a", "state": "gone"})
    lost = tick(state, views)
    other = adopted(allocate.initial(0), decided, lost)
    step = tick(other, views)
    assert step.first == []
    assert said(ledger(step)) == said([*ledger(decided), *ledger(lost)])


def test_each_owner_has_an_epoch_above_all_that_decided() -> None:
    views = views_of(fleet_of({"agent": "a", "capacity": 9}))
    first = allocate.initial(0)
    step = lane(first, views, ready(1, "a"))
    second = adopted(allocate.initial(0), step)
    assert [row["epoch"] for row in journal(lane(second, views, ready(2, "a")))] == [2]
    third = restarted(second)
    assert [row["epoch"] for row in journal(lane(third, views, ready(3, "a")))] == [3]


def test_the_same_decision_adopted_twice_takes_one_slot() -> None:
    views = views_of(fleet_of({"agent": "a", "capacity": 9}))
    step = lane(allocate.initial(0), views, ready(1, "a"))
    state = adopted(allocate.initial(0), step, step)
    assert (len(state.load.attempts), state.load.slots["a"].load) == (1, 1)


def busy_state() -> tuple[State, Views]:
    """Everything a state can hold: running, waiting, ended, refused, gone, adopted, rotation."""
    fleet = fleet_of({"agent": "a"}, {"agent": "b", "capacity": 1}, {"agent": "g"})
    state, views = allocate.initial(0), views_of(fleet)
    lane(state, views, ready(1, "g"), ready(2, "nobody"), ready(3, "b", policy="round-robin"))
    for p in range(4):
        rows = [
            ready(10 * p + i, "a", "b", tenant=f"t{i % 2}", traceparent="x" if i else None)
            for i in range(4, 9)
        ]
        lane(state, views, *rows, priority=p)
    tell(fleet, {"agent": "a"}, {"agent": "b", "capacity": 1}, {"agent": "g", "state": "gone"})
    tick(state, views)
    free(state, views, release(77), release(3, "b", 1))
    free(state, views, release(14))
    decision = lane(allocate.initial(0), views_of(fleet_of({"agent": "a"})), ready(900, "a"))
    return adopted(state, decision), views


def test_a_state_is_the_same_bytes_after_dump_and_load() -> None:
    state, _ = busy_state()
    assert {len(rows) > 0 for name, rows in allocate.dump(state).items() if name != "uncharged"} == {True}
    assert bytes_of(restarted(state)) == bytes_of(state)
    assert bytes_of(restarted(restarted(state))) == bytes_of(state)


def test_a_loaded_state_decides_what_the_old_one_would_have() -> None:
    state, views = busy_state()
    other = restarted(state)
    other.epoch = state.epoch
    for number in (*range(40), 900):
        rows = [release(number, agent, epoch) for agent in ("a", "b") for epoch in (1, 2)]
        one, two = free(state, views, *rows), free(other, views, *rows)
        assert (journal(one), ledger(one)) == (journal(two), ledger(two))
    assert not state.lanes.rows


def test_blocks_most_of_whose_rows_left_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "SPARE_ROWS", 4)
    fleet = fleet_of({"agent": "a"}, {"agent": "b", "state": "paused"})
    state, views = allocate.initial(0), views_of(fleet)
    for i in range(20):
        taken = [ready(100 + 10 * i + j, "a") for j in range(2)]
        lane(state, views, ready(i, "b"), *taken)
        free(state, views, *(release(number_of(row), "a", 1) for row in taken))
    assert len({id(row.block) for row in state.lanes.rows.values()}) < 8
    tell(fleet, {"agent": "a"}, {"agent": "b", "capacity": 100})
    assert sorted(number_of(row) for row in ledger(tick(state, views))) == list(range(20))


# the law of a journal


class World:
    """Supervise and the agents, played by a script: what is true of all assignments ever journaled."""

    def __init__(self, capacities: dict[str, int], scheduler: random.Random) -> None:
        self.capacities = capacities
        self.random = scheduler
        self.views = views_of(fleet_of(*({"agent": a, "capacity": c} for a, c in capacities.items())))
        self.log: list[tuple[str, list[dict[str, Any]]]] = []  # ready and release messages
        self.decisions: list[pa.RecordBatch] = []
        self.state = allocate.initial(0)
        self.saved: tuple[dict[str, pa.RecordBatch] | None, int, int] = (None, 0, 0)
        self.position = 0
        self.running: dict[int, dict[str, Any]] = {}  # assigned in the ledger
        self.journaled: dict[int, tuple[str, int]] = {}
        self.done: set[int] = set()

    def step(self, crash: str) -> None:
        topic, rows = self.log[self.position]
        result = run(self.state, self.views, topic, rows, seed=self.random.randrange(99))
        self.take(result, crash)

    def take(self, result: Step[State], crash: str) -> None:
        for output in result.first:
            self.decisions.append(output.rows)
            for row in output.rows.to_pylist():
                number = number_of(row)
                assert number not in self.journaled, "decided twice"
                self.journaled[number] = (row["agent"], row["epoch"])
        if crash == "between":
            return self.restart()
        for row in ledger(result):
            number = number_of(row)
            assert (row["agent"], row["epoch"]) == self.journaled[number]
            if number not in self.done:
                self.running[number] = row
        held = Counter(self.journaled[number][0] for number in self.journaled if number not in self.done)
        for agent, count in held.items():
            assert count <= self.capacities[agent], "more attempts than slots"
        self.position += 1
        if crash == "after":
            self.restart()
        return None

    def restart(self) -> None:
        snapshot, self.position, journal_at = self.saved
        self.state = allocate.initial(0) if snapshot is None else allocate.load(0, snapshot)
        for rows in self.decisions[journal_at:]:
            self.state = allocate.adopt(self.state, Batch("aos.decisions", 0, 0, rows))

    def finish_one(self) -> None:
        if self.running:
            number = self.random.choice(sorted(self.running))
            row = self.running.pop(number)
            self.done.add(number)
            self.log.append(("aos.releases", [release(number, row["agent"], row["epoch"])]))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_capacity_is_never_exceeded_and_everything_is_decided_once_whatever_crashes(seed: int) -> None:
    scheduler = random.Random(seed)
    capacities = {agent: scheduler.randint(1, 3) for agent in "abc"}
    world, number = World(capacities, scheduler), 0
    for _ in range(60):
        if scheduler.random() < 0.4 and number < 40:
            rows = []
            for _ in range(scheduler.randint(1, 4)):
                agents = scheduler.sample("abc", scheduler.randint(1, 3))
                rows.append(ready(number, *(alternative(a, scheduler.random()) for a in agents)))
                number += 1
            world.log.append((f"aos.ready.p{scheduler.randint(0, 3)}", rows))
        if scheduler.random() < 0.5:
            world.finish_one()
        if world.position < len(world.log):
            world.step(scheduler.choice(["", "", "", "", "between", "after"]))
            if scheduler.random() < 0.15:
                world.saved = (allocate.dump(world.state), world.position, len(world.decisions))
    for _ in range(2_000):
        if world.position < len(world.log):
            world.step("")
        elif world.running:
            world.finish_one()
        else:
            break
    assert set(world.journaled) == world.done == set(range(number))
    assert not world.state.load.attempts
    assert all(slot.load == 0 for slot in world.state.load.slots.values())
