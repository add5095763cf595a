"""Allocate as a step: one decision an attempt, exact capacity, journal and restart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.agents.fleet import Fleet
from aos.analytics.strategies import Strategies
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.rows import empty, from_dicts, record
from aos.codecs.settings import Settings
from aos.streams import allocate
from aos.streams.allocate_state import State
from aos.streams.processor import Batch, Step, Views

NOW = 1_700_000_000_000_000
HOMES = 3


def fleet_of(*agents: dict[str, Any]) -> Fleet:
    fleet = Fleet()
    tell(fleet, *agents)
    return fleet


def tell(fleet: Fleet, *agents: dict[str, Any]) -> None:
    plain = {
        "service": "s", "state": "idle", "capabilities": [], "cell": "default", "cell_partition": 0, "capacity": 2,
        "replicas": 1, "price_usd_micros": 0, "timeout_ms": 500, "fallback": False, "registered_at": 0, "seen_at": 0,
        "version": 1,
    }  # fmt: skip
    fleet.apply(b"s/0", from_dicts("agent-state", [plain | agent for agent in agents]))


def views_of(fleet: Fleet, **changes: Any) -> Views:
    return Views(
        replace(Settings(), **changes), {}, {"aos.agent-states": fleet, "aos.strategies": Strategies()}
    )


def alternative(agent: str, score: float = 0.5, deviation: float = 0.1, **more: Any) -> dict[str, Any]:
    return {
        "agent": agent, "service": "s", "cell": "default", "cell_partition": 0, "score": score,
        "deviation": deviation, "similarity": 0.0, "cost_usd_micros": 0, "latency_us": 1000, "timeout_ms": 500,
        "covers": 0, "trial": False,
    } | more  # fmt: skip


def common(number: int, **more: Any) -> dict[str, Any]:
    return {
        "tenant": "default", "traceparent": None, "request_id": number.to_bytes(16, "big"), "requested_at": NOW,
        "home": number % HOMES, "domain": "default", "round": 0, "step": 0, "attempt": 1,
    } | more  # fmt: skip


def ready(number: int, *alternatives: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    found = [alternative(item) if isinstance(item, str) else item for item in alternatives]
    return common(number) | {
        "step_name": "main", "task_kind": "kind", "ready_at": NOW, "running": False, "priority": 2,
        "alternatives": found, "filtered": [{"agent": "z", "reason": "tenant"}], "filtered_count": 1, "refusals": 0,
        "model_version": 7, "settings_version": 3, "degraded": False,
    } | more  # fmt: skip


def release(number: int, agent: str = "", epoch: int = 0, **more: Any) -> dict[str, Any]:
    extra = {"agent": agent, "cell": "default", "reason": "ok", "epoch": epoch}
    return common(number) | extra | more


def run(
    state: State, views: Views, topic: str, rows: list[dict[str, Any]], now: int = NOW, seed: int = 1
) -> Step[State]:
    name = "release" if topic == "aos.releases" else "ready"
    batch = from_dicts(name, rows) if rows else empty(name)
    return allocate.step(state, Batch(topic, 0, 0, batch, tick=not rows), now, views, seed)


def lane(state: State, views: Views, *rows: dict[str, Any], priority: int = 2, **more: Any) -> Step[State]:
    return run(state, views, f"aos.ready.p{priority}", list(rows), **more)


def free(state: State, views: Views, *rows: dict[str, Any], **more: Any) -> Step[State]:
    return run(state, views, "aos.releases", list(rows), **more)


def tick(state: State, views: Views, now: int = NOW) -> Step[State]:
    return run(state, views, "aos.ready.p0", [], now)


def journal(step: Step[State]) -> list[dict[str, Any]]:
    return [row for output in step.first for row in output.rows.to_pylist()]


def ledger(step: Step[State]) -> list[dict[str, Any]]:
    for output in step.outputs:
        assert output.topic == "aos.ledger"
        assert set(output.rows.column("home").to_pylist()) == {output.partition}
    return [row for output in step.outputs for row in output.rows.to_pylist()]


def number_of(row: dict[str, Any]) -> int:
    return int.from_bytes(row["request_id"], "big")


def said(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = (
        "kind",
        "agent",
        "epoch",
        "probability",
        "code",
        "message",
        "model_version",
        "cell",
        "timeout_ms",
    )
    return sorted((number_of(row), row["step"], row["attempt"], *(row[n] for n in names)) for row in rows)


def adopted(state: State, *steps: Step[State]) -> State:
    for step in steps:
        for output in step.first:
            assert (output.topic, output.partition) == ("aos.decisions", 0)
            state = allocate.adopt(state, Batch("aos.decisions", 0, 0, output.rows))
    return state


def restarted(state: State) -> State:
    return allocate.load(0, allocate.dump(state))


def bytes_of(state: State) -> dict[str, bytes]:
    found = {}
    for name, rows in allocate.dump(state).items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        found[name] = sink.getvalue().to_pybytes()
    return found


# decisions


def test_a_ready_row_becomes_one_decision_at_the_cell_and_one_assignment_at_home() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}, {"agent": "b"}))
    step = lane(state, views, ready(5, alternative("a", 0.9), alternative("b", 0.4)), now=NOW + 30)
    (decision,), (entry,) = journal(step), ledger(step)
    assert decision["kind"] == entry["kind"] == "assigned"
    assert decision["agent"] == entry["agent"] == "a"
    assert decision["waited_us"] == 30
    assert decision["policy"] == "learned"
    assert decision["score_predicted"] == pytest.approx(0.9)
    assert decision["filtered"] == [{"agent": "z", "reason": "tenant"}]
    assert [item["agent"] for item in decision["candidates"]] == ["a", "b"]
    assert sum(item["chance"] for item in decision["candidates"]) == pytest.approx(1)
    assert decision["probability"] == pytest.approx(decision["candidates"][0]["chance"])
    assert entry["probability"] == decision["probability"]
    assert (entry["epoch"], entry["cell"], entry["timeout_ms"]) == (1, "default", 500)
    for output in (*step.first, *step.outputs):
        wire.encode(output.rows, record("decision" if output in step.first else "entry"))


def test_rows_of_one_batch_see_each_others_load() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}, {"agent": "b"}))
    step = lane(
        state, views, *(ready(i, alternative("a", 0.9, 0.01), alternative("b", 0.1, 0.01)) for i in range(6))
    )
    rows = sorted(journal(step), key=number_of)
    assert [row["agent"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["overridden"] for row in rows] == [False, False, True, True]
    assert [[item["masked"] for item in row["candidates"]] for row in rows[1:3]] == [
        [False, False],
        [True, False],
    ]
    assert rows[3]["probability"] == pytest.approx(1)
    assert len(state.lanes.rows) == 2


def test_prefetch_gives_agents_more_than_their_capacity() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 2}), prefetch=2.0)
    assert len(journal(lane(state, views, *(ready(i, "a") for i in range(9))))) == 4


def test_a_release_lets_the_next_row_start() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, ready(1, "a"), ready(2, "a"))
    assert [number_of(row) for row in journal(free(state, views, release(1, "a", 1)))] == [2]
    assert journal(free(state, views, release(1, "a", 1))) == []


def test_a_row_of_priority_0_is_the_next_assignment_after_a_thousand_waiting_of_priority_3() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    step = lane(state, views, *(ready(i, "a", ready_at=NOW) for i in range(1, 1002)), priority=3)
    assert step.paused == {"aos.ready.p3"}
    assert ledger(lane(state, views, ready(5000, "a", ready_at=NOW + 1), priority=0, now=NOW + 1)) == []
    step = free(state, views, release(1, "a", 1), now=NOW + 2)
    assert [number_of(row) for row in ledger(step)] == [5000]


def test_tenants_share_a_busy_agent_by_weight_within_10_percent() -> None:
    weights = {"a": 1.0, "b": 3.0}
    views = views_of(fleet_of({"agent": "x", "capacity": 10}), tenant_weights=weights)
    state, taken, number = allocate.initial(0), Counter[str](), 0
    running: list[dict[str, Any]] = []
    while sum(taken.values()) < 1_000:
        rows = []
        for _ in range(10):
            for tenant in ("a", "b"):
                number += 1
                rows.append(ready(number, "x", tenant=tenant))
        steps = [
            lane(state, views, *rows),
            free(state, views, *(release(number_of(r), "x", 1) for r in running)),
        ]
        running = [row for step in steps for row in ledger(step)]
        taken.update(row["tenant"] for row in running)
    assert abs(taken["b"] / sum(taken.values()) - 0.75) <= 0.075


def test_round_robin_goes_round_the_alternatives_of_its_kind() -> None:
    views = views_of(fleet_of(*({"agent": name, "capacity": 9} for name in "abc")))
    rows = [ready(i, alternative("c", 0.99), "b", "a", policy="round-robin") for i in range(7)]
    decisions = journal(lane(allocate.initial(0), views, *rows))
    assert [row["agent"] for row in sorted(decisions, key=number_of)] == list("abcabca")
    assert {row["policy"] for row in decisions} == {"round-robin"}
    assert [row["probability"] for row in decisions] == [pytest.approx(1 / 3)] * 7


def test_ten_equal_agents_stay_balanced_over_1000_tasks() -> None:
    names = [f"a{i}" for i in range(10)]
    views = views_of(fleet_of(*({"agent": name, "capacity": 4} for name in names)))
    state, counts, scheduler = allocate.initial(0), Counter[str](), random.Random(2)
    running: list[tuple[int, str]] = []
    for number in range(1_000):
        # what they learned differs by a little, as it does when each has seen other tasks with equal outcomes
        rows = [
            alternative(n, 0.9 + scheduler.uniform(-1e-4, 1e-4), 0.3 / (1 + counts[n] // 4)) for n in names
        ]
        (row,) = journal(lane(state, views, ready(number, *rows)))
        counts[row["agent"]] += 1
        running.append((number, row["agent"]))
        if len(running) > 12:
            done, agent = running.pop(scheduler.randrange(len(running)))
            free(state, views, release(done, agent, 1))
    mean = sum(counts.values()) / 10
    assert (max(counts.values()) - mean) / mean < 0.05


def test_other_seeds_choose_as_often_as_the_logged_probabilities_say() -> None:
    views = views_of(fleet_of(*({"agent": name, "capacity": 10**6} for name in "abc")))
    chosen, logged = Counter[str](), {}
    alternatives = [alternative("a", 0.6), alternative("b", 0.55), alternative("c", 0.4, trial=True)]
    for seed in range(10):
        rows = [ready(i, *alternatives) for i in range(1_000)]
        for row in journal(lane(allocate.initial(0), views, *rows, seed=seed)):
            chosen[row["agent"]] += 1
            logged[row["agent"]] = row["probability"]
    assert set(logged) == set("abc")
    for agent, probability in logged.items():
        assert abs(chosen[agent] / 10_000 - probability) < 0.02


def test_a_posterior_that_is_no_number_is_refused_before_anything_changes() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}))
    before = bytes_of(state)
    with pytest.raises(RecordError, match="AOS1005"):
        lane(state, views, ready(1, alternative("a", float("nan"))))
    assert bytes_of(state) == before


# refusals


@pytest.mark.parametrize(
    "agents", [(), ({"agent": "a", "state": "gone"}, {"agent": "b", "state": "draining"})]
)
def test_a_row_nobody_will_ever_start_here_is_refused_at_once(agents: tuple[dict[str, Any], ...]) -> None:
    step = lane(allocate.initial(0), views_of(fleet_of(*agents)), ready(1, "a", "b"), ready(2))
    rows = sorted(ledger(step), key=number_of)
    assert [(r["kind"], r["code"], r["agent"], r["probability"]) for r in rows] == [
        ("refused", "AOS3010", None, None)
    ] * 2
    assert [row["message"] for row in rows] == [
        "capacity: 0 of 2 alternatives alive",
        "capacity: 0 of 0 alternatives alive",
    ]
    assert [row["violated"] for row in sorted(journal(step), key=number_of)] == [
        row["message"] for row in rows
    ]


def test_a_paused_agents_rows_wait_and_start_when_it_comes_back() -> None:
    fleet = fleet_of({"agent": "a", "state": "paused"})
    state, views = allocate.initial(0), views_of(fleet)
    step = lane(state, views, ready(1, "a"))
    assert (journal(step), step.next_due) == ([], NOW + allocate.WATCH_US)
    tell(fleet, {"agent": "a"})
    assert [row["agent"] for row in ledger(tick(state, views))] == ["a"]


def test_a_waiting_row_is_refused_when_its_last_alternative_goes() -> None:
    fleet = fleet_of({"agent": "a", "capacity": 1})
    state, views = allocate.initial(0), views_of(fleet)
    lane(state, views, ready(1, "a"), ready(2, "a"))
    tell(fleet, {"agent": "a", "state": "gone"})
    rows = sorted(ledger(tick(state, views)), key=number_of)
    assert [(number_of(row), row["code"], row["agent"]) for row in rows] == [
        (1, "AOS3009", "a"),
        (2, "AOS3010", None),
    ]


def test_an_attempt_whose_agent_is_gone_is_refused_once_and_keeps_its_slot_until_the_release() -> None:
    fleet = fleet_of({"agent": "a"}, {"agent": "b"})
    state, views = allocate.initial(0), views_of(fleet)
    lane(state, views, ready(1, "a"))
    tell(fleet, {"agent": "a", "state": "gone"}, {"agent": "b"})
    step = tick(state, views)
    (decision,), (entry,) = journal(step), ledger(step)
    assert (decision["kind"], decision["agent"], decision["violated"]) == ("refused", "a", "agent a is gone")
    assert (entry["kind"], entry["agent"], entry["code"], entry["epoch"]) == ("refused", "a", "AOS3009", 1)
    tell(fleet, {"agent": "a", "state": "gone"}, {"agent": "b"})
    assert ledger(tick(state, views)) == []
    assert state.load.slots["a"].load == 1
    free(state, views, release(1, "a", 1))
    assert state.load.slots["a"].load == 0


# repeats


def test_a_repeated_ready_row_gets_the_same_decision_again_and_no_new_one() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}, {"agent": "b"}))
    rows = [ready(1, "a", "b"), ready(2, "x")]
    step = lane(state, views, *rows)
    again = lane(state, views, *rows, seed=99)
    assert journal(again) == []
    assert said(ledger(again)) == said(ledger(step))


def test_a_row_that_waits_is_not_taken_in_twice() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, ready(1, "a"), ready(2, "a"), ready(2, "a"))
    lane(state, views, ready(2, "a"))
    assert (len(state.lanes.rows), state.lanes.lanes[2].count) == (1, 1)


def test_a_release_of_a_waiting_row_drops_it_for_good() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, ready(1, "a"), ready(2, "a"))
    free(state, views, release(2))
    assert journal(free(state, views, release(1, "a", 1))) == []
    assert ledger(lane(state, views, ready(2, "a"))) == []


def test_a_release_that_comes_before_its_ready_row_keeps_it_from_being_decided() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}))
    free(state, views, release(1))
    step = lane(state, views, ready(1, "a"), ready(1, "a", attempt=2))
    assert [row["attempt"] for row in journal(step)] == [2]


def test_a_released_attempt_is_not_decided_again() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a"}))
    lane(state, views, ready(1, "a"))
    free(state, views, release(1, "a", 1))
    assert lane(state, views, ready(1, "a")).first == []


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
