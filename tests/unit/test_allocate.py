"""Allocate as a step: who is chosen, in which order, who is refused, what repeats do."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.rows import record
from aos.streams import allocate
from tests.unit.given_allocate import (
    NOW,
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
    said,
    tell,
    tick,
    views_of,
)

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


def test_an_agent_that_fails_at_once_does_not_get_all_that_the_good_one_has_no_slot_for() -> None:
    state, views = (
        allocate.initial(0),
        views_of(fleet_of({"agent": "good"}, {"agent": "liar", "capacity": 1000})),
    )
    both = (alternative("good", 0.9, 0.02), alternative("liar", 0.0, 0.02))
    step = lane(state, views, *(ready(number, *both) for number in range(5)))
    assert [row["agent"] for row in journal(step)] == ["good", "good"]
    first = number_of(journal(step)[0])
    later = free(step.state, views, release(first, "good", journal(step)[0]["epoch"]))
    assert [row["agent"] for row in journal(later)] == ["good"]


def test_a_release_lets_the_next_row_start() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, ready(1, "a"), ready(2, "a"))
    assert [number_of(row) for row in journal(free(state, views, release(1, "a", 1)))] == [2]
    assert journal(free(state, views, release(1, "a", 1))) == []


def test_a_row_of_priority_0_is_the_next_assignment_after_a_thousand_waiting_of_priority_3() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    step = lane(state, views, *(ready(i, "a", ready_at=NOW) for i in range(1, 1002)), priority=3)
    assert not step.paused
    assert ledger(lane(state, views, ready(5000, "a", ready_at=NOW + 1), priority=0, now=NOW + 1)) == []
    step = free(state, views, release(1, "a", 1), now=NOW + 2)
    assert [number_of(row) for row in ledger(step)] == [5000]


def test_a_small_tenant_does_not_wait_behind_the_thousands_of_a_large_one() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    step = lane(state, views, *(ready(i, "a", tenant="large") for i in range(1, 4002)))
    assert not step.paused, "who waits in the topic waits in the order of its log"
    lane(state, views, ready(5000, "a", tenant="small"))
    first = ledger(free(state, views, release(1, "a", 1)))
    second = ledger(free(state, views, release(number_of(first[0]), "a", 1)))
    assert 5000 in [number_of(row) for row in (*first, *second)], "the small one has had nothing yet"


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
