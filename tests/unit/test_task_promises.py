"""What users of other task systems read first: the sentences of docs/contract.md about priorities, retries, cancels."""

from __future__ import annotations

import pytest

from aos.codecs.settings import Settings
from aos.streams import allocate
from tests.unit.given_allocate import NOW as THEN
from tests.unit.given_allocate import fleet_of, free, lane, ledger, number_of, ready, release, views_of
from tests.unit.given_ledger import NOW, SECOND, Row, World, assigned, outcome, planned, requested, row

AGE_US = Settings().lane_age_ms * 1000


def only(rows: list[Row]) -> Row:
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("priority", [1, 2, 3])
def test_under_endless_work_of_priority_0_a_row_waits_at_most_its_priority_times_lane_age(
    priority: int,
) -> None:
    """One agent, always busy; each second one ends, and one of priority 0 has come."""
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    running = only(ledger(lane(state, views, ready(1, "a"), priority=0)))
    lane(state, views, ready(2, "a"), priority=priority)
    for second in range(1, 200):
        now = THEN + second * SECOND
        lane(state, views, ready(1_000 + second, "a", ready_at=now), priority=0, now=now)
        step = free(state, views, release(number_of(running), "a", running["epoch"]), now=now)
        running = only(ledger(step))
        if number_of(running) == 2:
            assert second * SECOND <= priority * AGE_US + SECOND
            assert second * SECOND >= priority * AGE_US  # not before: priority 0 goes first until then
            return
    raise AssertionError("it starved")


@pytest.mark.parametrize("waiting", [0, 1, 2, 3])
def test_one_of_priority_0_is_the_next_assignment_whatever_waits_for_less_than_the_age(waiting: int) -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, *(ready(n, "a", ready_at=THEN) for n in range(1, 1_002)), priority=waiting)
    late = THEN + waiting * AGE_US - 1 if waiting else THEN - 1
    lane(state, views, ready(5_000, "a", ready_at=late), priority=0, now=max(late, THEN))
    step = free(state, views, release(1, "a", 1), now=max(late, THEN))
    assert [number_of(one) for one in ledger(step)] == ([5_000] if waiting else [2])


def test_at_equal_priority_a_workflow_that_runs_ends_before_a_new_one_starts() -> None:
    state, views = allocate.initial(0), views_of(fleet_of({"agent": "a", "capacity": 1}))
    lane(state, views, ready(1, "a"))
    lane(state, views, *(ready(n, "a", ready_at=THEN) for n in range(10, 60)))
    for step in range(3):  # the next step of a running workflow comes after all those that are new
        lane(state, views, ready(2 + step, "a", ready_at=THEN + 9, running=True))
    order, running, epoch = [], 1, 1
    for _ in range(5):
        found = only(ledger(free(state, views, release(running, "a", epoch), now=THEN + 10)))
        running, epoch = number_of(found), found["epoch"]
        order.append(running)
    assert order == [2, 3, 4, 10, 11]


def failing(number: int, **said: object) -> list[float]:
    """The waits, in seconds, before the attempts of a request whose agents all fail."""
    world = World()
    world.fold(requested(number))
    world.fold(planned(number, agents=["a1", "a2", "a3", "a4"]))
    waits = []
    for attempt in range(1, 5):
        world.fold(assigned(number, attempt=attempt, agent=f"a{attempt}"))
        before = world.now
        world.fold(outcome(number, attempt=attempt, agent=f"a{attempt}", status="failed", **said))
        if not world.state.requests:
            break
        step = world.state.requests[next(iter(world.state.requests))].steps[0]
        waits.append((step.due - before) / SECOND)
        world.tick(waits[-1])
    return waits


def test_retries_wait_2_4_and_8_seconds_each_10_percent_more_or_less_by_a_hash() -> None:
    found = [failing(number) for number in range(1, 41)]
    for waits in found:
        assert len(waits) == 3  # four attempts in all
        for wait, about in zip(waits, (2, 4, 8), strict=True):
            assert about * 0.9 <= wait <= about * 1.1
    firsts = sorted(waits[0] for waits in found)
    assert firsts[-1] - firsts[0] > 0.2, "a wave of failures must not come back as a wave"
    assert failing(7) == failing(7)


def test_an_error_that_the_agent_classes_as_final_is_not_tried_again_any_other_is() -> None:
    assert failing(1, retryable=False) == []
    assert len(failing(1, retryable=True)) == len(failing(1, retryable=None)) == 3


def test_who_waits_for_a_retry_holds_nobody_up() -> None:
    world = World()
    world.fold(requested(1), planned(1), assigned(1))
    world.fold(outcome(1, status="failed"))
    world.fold(requested(2), planned(2), assigned(2, agent="y"))
    said = world.fold(outcome(2, agent="y"), after=0.5)
    assert only(said["aos.results"])["status"] == "ok"


def test_a_cancel_reaches_the_agent_at_work_and_holds_over_restarts_and_late_answers() -> None:
    world = World()
    world.fold(requested(), planned(), assigned())
    said = world.fold(row("cancel", message="no longer wanted", requested_at=NOW))
    assert only(said["aos.inbox.s-x"])["kind"] == "cancel"
    assert (only(said["aos.results"])["status"], only(said["aos.releases"])["reason"]) == (
        "cancelled",
        "cancelled",
    )
    world.reload()
    late = world.fold(outcome())
    assert [one["code"] for one in late["aos.trails"]] == ["AOS3005"]
    again = world.fold(requested())  # the same id
    assert only(again["aos.results"])["status"] == "cancelled"
    assert only(again["aos.results"])["repeated"]
