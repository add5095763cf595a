"""The ledger's parts: shares of plans, memory of ended requests, reading and writing of the state."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aos.agents.ledger_intake import entries
from aos.agents.ledger_memory import SCHEMA, Memory
from aos.agents.ledger_plans import ALTERNATIVES, FILTERED, RUNS_MAX, Plans, gather
from aos.agents.ledger_state import HEAP_SLACK, Common, Request, State
from aos.codecs.rows import from_dicts
from aos.streams import supervise
from tests.unit.given_ledger import (
    NOW,
    SECOND,
    World,
    asked,
    assigned,
    candidate,
    go_on_alike,
    id_of,
    outcome,
    planned,
    requested,
    row,
    state_bytes,
)

CANDIDATES = st.builds(candidate, st.sampled_from("pqrstuv"), st.sampled_from("abc"))
LISTS = st.lists(st.none() | st.lists(CANDIDATES, max_size=5), min_size=1, max_size=5)


def plans_of(lists: list[Any], start: int = 0) -> Plans:
    """Plans over a slice of a longer column."""
    padded = pa.array([[candidate("0")]] * start + lists, ALTERNATIVES).slice(start)
    return Plans(padded, pa.array([[]] * len(lists), FILTERED))


@given(LISTS, st.integers(0, 2), st.sets(st.sampled_from("pqr")), st.sets(st.sampled_from("ab")))
def test_a_share_is_what_one_row_at_a_time_would_give(
    lists: list[Any], start: int, without: set[str], not_in: set[str]
) -> None:
    plans = plans_of(lists, start)
    for index, found in enumerate(lists):
        left = [c for c in found or [] if c["agent"] not in without and c["cell"] not in not_in]
        share = plans.share(index, sorted(without), sorted(not_in))
        assert plans.size(index) == len(found or [])
        if not left:
            assert share is None
            continue
        assert share is not None
        assert (share.cell, share.cell_partition) == (left[0]["cell"], left[0]["cell_partition"])
        wanted = [c["agent"] for c in left if c["cell"] == left[0]["cell"]]
        assert [c["agent"] for c in share.alternatives[share.row].as_py()] == wanted


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=8 * RUNS_MAX))
@example([(number % 2, number % 3) for number in range(2 * RUNS_MAX)])
@example([(1, number % 2) for number in range(2 * RUNS_MAX)])
def test_gathered_rows_stand_in_the_order_asked_for(places: list[tuple[int, int]]) -> None:
    columns = [pa.array([[10 * c + r] for r in range(3)], pa.list_(pa.int64())) for c in range(3)]
    found = gather([(columns[column], row_) for column, row_ in places], pa.list_(pa.int64()))
    assert found.to_pylist() == [[10 * column + row_] for column, row_ in places]


def ended(number: int, at: int, round: int = 0) -> dict[str, Any]:
    return {
        "tenant": "default", "request_id": id_of(number), "requested_at": NOW, "home": 0, "domain": "default",
        "round": round, "status": "ok", "agents": [], "steps": [], "attempts": 1, "cost_usd_micros": 0, "cpu_us": 0,
        "finished_at": at, "latency_us": 0, "degraded": False, "offset": number, "row": 0, "output_offset": -1,
        "output_row": -1,
    }  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=12),
    st.integers(0, 30),
    st.integers(0, 12),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_memory_holds_the_last_rows_within_age_and_number_however_they_came(
    ends: list[tuple[int, int]], before: int, rows_max: int, size: int, reload: bool
) -> None:
    rows, at = [], 0
    for index, (number, wait) in enumerate(ends):
        at += wait
        rows.append(ended(number, at, index))
    memory = Memory()
    for start in range(0, len(rows), size):
        memory.add(pa.RecordBatch.from_pylist(rows[start : start + size], schema=SCHEMA))
    if reload:
        other = Memory()
        other.add(memory.dump())
        memory = other
    memory.forget(before, rows_max)
    kept = [r for r in rows[max(0, len(rows) - rows_max) :] if r["finished_at"] >= before]
    assert len(memory) == len(kept)
    assert memory.dump().column("round").to_pylist() == [r["round"] for r in kept]
    for number in range(1, 6):
        rounds = [r["round"] for r in kept if r["request_id"] == id_of(number)]
        assert memory.round(id_of(number)) == (rounds[-1] if rounds else None)


def test_a_kind_of_row_that_is_not_known_is_passed_over() -> None:
    rows = from_dicts("entry", [row("assigned-by-vote"), row("cancel"), row("tick")])
    assert [type(entry).__name__ for entry in entries(rows)] == ["Cancel"]


def test_entries_of_mixed_kinds_come_in_the_order_of_the_log() -> None:
    rows = [requested(1), planned(2), requested(3), outcome(4), assigned(5), planned(6)]
    found = entries(from_dicts("entry", rows))
    numbers = [int.from_bytes(getattr(e, "request_id", None) or e.common.request_id, "big") for e in found]  # type: ignore[union-attr]
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_a_sliced_message_reads_like_a_whole_one() -> None:
    steps = [asked("a", require=["p", "q"]), asked("b", after=[0], payload=b"x")]
    rows = [requested(1, *steps), requested(2, asked("c", require=["r"])), requested(3, *steps)]
    whole = entries(from_dicts("entry", rows))
    part = entries(from_dicts("entry", rows).slice(1))
    for one, other in zip(whole[1:], part, strict=True):
        seen = [
            (s.name, list(s.require), list(s.after), s.payload, s.embedding, s.surface) for s in one.steps
        ]  # type: ignore[union-attr]
        assert seen == [
            (s.name, list(s.require), list(s.after), s.payload, s.embedding, s.surface)
            for s in other.steps  # type: ignore[union-attr]
        ]


def busy() -> World:
    """Requests in every state."""
    world = World()
    world.fold(*(requested(n, asked("a"), asked("b", after=[0], judges=0)) for n in range(1, 8)))
    world.fold(*(planned(n, agents=[candidate("x", "a"), candidate("y", "b")]) for n in range(2, 8)))
    world.fold(planned(7, 1, agents=[]), *(assigned(n) for n in range(3, 8)))
    world.fold(*(outcome(n, score=0.3) for n in range(4, 6)), outcome(6, status="failed"), row("cancel", 5))
    return world


def test_a_state_that_was_written_and_read_is_written_with_the_same_bytes_and_goes_on_the_same() -> None:
    world, other = busy(), busy()
    other.reload()
    other.reload()
    go_on_alike(world, other, 12)


def test_every_slot_of_the_state_is_written() -> None:
    world = busy()
    tables = supervise.dump(world.state)
    again = supervise.load(0, tables)
    for request, other in zip(world.state.requests.values(), again.requests.values(), strict=True):
        for slot in type(request).__slots__:
            if slot != "steps":
                assert getattr(other, slot) == getattr(request, slot), slot
        for step, same in zip(request.steps, other.steps, strict=True):
            for slot in type(step).__slots__:
                values = getattr(step, slot), getattr(same, slot)
                if slot == "token":
                    assert values[1] is None  # not state: it follows from the others and the secret
                elif slot == "plan":
                    assert (values[0] is None) == (values[1] is None)
                elif isinstance(values[0], (list, tuple)):
                    assert list(values[0]) == list(values[1]), slot
                else:
                    assert values[0] == values[1], slot
    assert (again.dealt, len(again.memory)) == (world.state.dealt, len(world.state.memory))


def test_an_empty_state_is_written_and_read() -> None:
    empty = supervise.dump(supervise.initial(2))
    assert state_bytes(supervise.dump(supervise.load(2, empty))) == state_bytes(empty)


def test_stale_entries_of_the_heap_are_thrown_away() -> None:
    world = World()
    world.fold(requested())
    request_id = id_of(1)
    for due in range(10 * HEAP_SLACK):
        world.state.wake(NOW + due, request_id, 0)
    assert sum(map(len, world.state._due.values())) == world.state._count <= HEAP_SLACK
    assert world.state.next_due() == NOW + 5 * SECOND


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.booleans()), max_size=60))
def test_what_is_due_comes_by_time_then_request_whenever_it_was_said(
    said: list[tuple[int, int, bool]],
) -> None:
    """Requests come with a deadline, or what is due until a moment is asked for."""
    state, expected = State(0), list[tuple[int, bytes]]()
    for place, (due, number, comes) in enumerate(said):
        if comes:
            id = bytes([number, place]) + bytes(14)
            state.requests[id] = Request(Common("", None, id, 0, 0, "", 0), deadline=due)
            state.wake(due, id, -1)
            expected.append((due, id))
            continue
        while (found := state.pop_due(due)) is not None:
            moment, id = min(expected)
            assert moment <= due
            assert found == (state.requests.pop(id), None)
            expected.remove((moment, id))
        assert state.next_due() == min(expected, default=(None, b""))[0]


@pytest.mark.parametrize("due", [0, 1])
def test_nothing_is_due_for_a_request_that_is_not_there(due: int) -> None:
    state = State(0)
    state.wake(due, id_of(1), -1)
    assert (state.pop_due(5), state.next_due()) == (None, None)
