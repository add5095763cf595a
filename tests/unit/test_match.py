"""match: each step's candidates, row for row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.agents.fleet import Fleet
from aos.codecs.fields import EMBEDDING_SIZE
from aos.codecs.rows import empty, record, take_common
from aos.streams import match
from aos.streams.processor import Batch, Views
from tests.unit.given_fleet import NOW, batch_of, beliefs_of, fleet_of, state_rows, task_rows, teach, views_of


def matched(views: Views, rows: pa.RecordBatch, seed: int = 1) -> pa.RecordBatch:
    """What match says of these tasks."""
    (output,) = match.step(match.initial(1), batch_of(rows, "aos.tasks"), NOW, views, seed).outputs
    assert output.topic == "aos.matches"
    return output.rows


def names(rows: pa.RecordBatch) -> list[list[str]]:
    """Candidates by row."""
    return [[one["agent"] for one in row] for row in rows.column("candidates").to_pylist()]


def test_rows_keep_their_order_and_what_they_carry_and_go_to_their_home() -> None:
    tasks = task_rows(
        [
            {
                "step": 1,
                "step_name": "b",
                "steps_count": 2,
                "after": [0],
                "task_kind": "k",
                "traceparent": "t",
            },
            {
                "priority": 0,
                "policy": "round-robin",
                "budget_usd_micros": 5,
                "deadline_at": NOW,
                "budget_cpu_us": 3,
            },
        ]
    )
    result = match.step(match.initial(1), batch_of(tasks, "aos.tasks"), NOW, views_of(fleet_of({"a": {}})), 1)
    (output,) = result.outputs
    assert output.partition == 1
    assert output.rows.schema == record("match").schema
    output.rows.validate(full=True)
    same = [name for name in tasks.schema.names if name in output.rows.schema.names]
    assert len(same) >= 18
    assert set(take_common(tasks)) <= set(same)
    for name in same:
        assert output.rows.column(name).equals(tasks.column(name)), name


def test_a_candidate_carries_what_fleet_and_beliefs_say() -> None:
    said = {"cell": "north", "cell_partition": 3, "timeout_ms": 900, "capabilities": ["x", "y"]}
    believed = {"score": 0.75, "deviation": 0.1, "count": 3.0, "latency_us": 1234.4, "cost_usd_micros": 6.6}
    views = views_of(fleet_of({"a": said}), beliefs_of({"a": believed}, version=42))
    rows = matched(views, task_rows([{"require": ["x", "y"]}]))
    (one,) = rows.column("candidates")[0].as_py()
    assert one == {
        "agent": "a",
        "service": "crew",
        "cell": "north",
        "cell_partition": 3,
        "score": 0.75,
        "deviation": pytest.approx(0.1),
        "similarity": 0.0,
        "cost_usd_micros": 7,
        "latency_us": 1234,
        "timeout_ms": 900,
        "covers": 0b11,
        "trial": True,
    }
    assert rows.column("model_version").to_pylist() == [42]


def test_similarity_is_that_of_the_row_and_the_agents_past_successes() -> None:
    embedding = np.zeros((2, EMBEDDING_SIZE), np.float16)
    embedding[0, 0] = embedding[1, 1] = 1
    centre = [1.0] + [0.0] * (EMBEDDING_SIZE - 1)
    views = views_of(fleet_of({"a": {}, "b": {}}), beliefs_of({"a": {"centre": centre}, "b": {}}))
    rows = matched(views, task_rows([{"embedding": embedding[0]}, {"embedding": embedding[1]}]))
    found = [
        {one["agent"]: one["similarity"] for one in row} for row in rows.column("candidates").to_pylist()
    ]
    assert found == [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}]


def test_nobody_eligible_is_said_at_once() -> None:
    for fleet in (Fleet(), fleet_of({"a": {"capabilities": ["other"]}})):
        rows = matched(views_of(fleet), task_rows([{}]))
        row = rows.to_pylist()[0]
        assert (row["candidates"], row["shortfall"], row["widened"]) == ([], 3, None)
        assert row["filtered_count"] == len(fleet)


def test_too_few_are_returned_with_the_shortfall() -> None:
    rows = matched(views_of(fleet_of({"a": {}})), task_rows([{}]))
    assert (names(rows), rows.column("shortfall").to_pylist()) == ([["a"]], [2])
    many: dict[str, dict[str, Any]] = {f"agent-{number}": {} for number in range(30)}
    rows = matched(views_of(fleet_of(many)), task_rows([{}]))
    assert (len(names(rows)[0]), rows.column("shortfall").to_pylist()) == (16, [0])


def test_what_was_loosened_is_said() -> None:
    agents: dict[str, dict[str, Any]] = {
        "a": {},
        "s": {"state": "suspected"},
        "dear": {"price_usd_micros": 99},
    }
    tasks = task_rows(
        [{}, {"budget_usd_micros": 5}, {"pin": ["a"]}, {"pin": ["a", "dear"], "budget_usd_micros": 5}]
    )
    rows = matched(views_of(fleet_of(agents)), tasks)
    assert rows.column("widened").to_pylist() == ["health", "health,budget", None, "budget"]
    assert [sorted(row) for row in names(rows)] == [["a", "dear", "s"]] * 2 + [["a"], ["a", "dear"]]


def test_those_over_the_budget_are_named_as_filtered() -> None:
    agents: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {},
        "dear": {"price_usd_micros": 99},
        "off": {"state": "paused"},
    }
    rows = matched(views_of(fleet_of(agents), candidates_wanted=2), task_rows([{"budget_usd_micros": 5}, {}]))
    first, second = rows.to_pylist()
    assert first["filtered"] == [{"agent": "dear", "reason": "budget"}, {"agent": "off", "reason": "health"}]
    assert first["filtered_count"] == 2
    assert second["filtered"] == [{"agent": "off", "reason": "health"}]


def test_low_confidence_goes_to_the_fallback_and_says_so() -> None:
    fleet = fleet_of({"a": {}, "b": {"capabilities": ["other"]}})
    fleet.apply(b"desk/0", state_rows({"human": {"capabilities": []}}, "desk"))
    beliefs = beliefs_of({"a": {"score": 0.3}, "b": {"score": 0.9}})
    asked = task_rows([{}, {"require": ["other"]}, {"require": ["nothing"]}, {"pin": ["a"]}])
    sure = matched(views_of(fleet, beliefs), asked)
    assert names(sure) == [["a"], ["b"], [], ["a"]]
    rows = matched(views_of(fleet, beliefs, fallback_service="desk", confidence_min=0.5), asked)
    assert names(rows) == [["human"], ["b"], ["human"], ["a"]]
    assert rows.column("widened").to_pylist() == ["fallback", None, "fallback", None]
    assert rows.column("degraded").to_pylist() == [True, False, True, False]


def test_beliefs_are_those_of_the_rows_domain_and_kind() -> None:
    beliefs = beliefs_of({"a": {"score": 0.9} | TRIED, "b": {"score": 0.1} | TRIED}, "default", "k", 3)
    teach(beliefs, {"a": {"score": 0.1} | TRIED, "b": {"score": 0.9} | TRIED}, "other", "", 9)
    tasks = task_rows([{"task_kind": "k"}, {"domain": "other"}])
    rows = matched(views_of(fleet_of({"a": {}, "b": {}}), beliefs), tasks)
    assert names(rows) == [["a", "b"], ["b", "a"]]
    assert rows.column("model_version").to_pylist() == [3, 9]


TRIED = {"deviation": 0.01, "count": 50.0}


def test_a_tick_and_an_empty_message_say_nothing() -> None:
    nothing = Batch("aos.tasks", 0, -1, empty("task"), tick=True)
    assert match.step(match.initial(0), nothing, NOW, views_of(), 1).outputs == ()


_task = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["default", "acme"]),
        "domain": st.sampled_from(["default", "other"]),
        "task_kind": st.sampled_from([None, "k"]),
        "require": st.sampled_from([[], ["x"], ["y"], ["x", "y"], ["q"]]),
        "pin": st.sampled_from([[], ["agent-1"], ["agent-1", "agent-2", "nobody"]]),
        "exclude": st.sampled_from([[], ["agent-1"]]),
        "budget_usd_micros": st.sampled_from([None, 0, 5, 50]),
        "match_round": st.integers(0, 2),
    }
)
_fleet = {
    f"agent-{number}": {
        "capabilities": [["x"], ["y"], ["x", "y"]][number % 3],
        "state": ["idle", "idle", "suspected", "paused"][number % 4],
        "tenants": [None, ["acme"]][number % 2],
        "price_usd_micros": number,
    }
    for number in range(40)
}


@cache
def _views() -> Views:
    believed = {name: {"score": (hash_of(name) % 100) / 100, "count": hash_of(name) % 9} for name in _fleet}
    beliefs = beliefs_of(believed)
    teach(beliefs, believed, "default", "k")
    return views_of(fleet_of(_fleet), beliefs, confidence_min=0.3, fallback_service="crew")


def hash_of(name: str) -> int:
    """A number that stays from run to run."""
    return int(name[6:]) * 2_654_435_761 % 1_000


def test_on_stale_views_every_row_is_degraded_and_the_last_beliefs_decide_as_before() -> None:
    views, rows = (
        views_of(fleet_of({"a": {}}), beliefs_of({"a": {}})),
        task_rows([{}, {"require": ["nobody has this"]}]),
    )
    fresh, stale = matched(views, rows), matched(replace(views, stale=True), rows)
    assert fresh.column("degraded").to_pylist() == [False, False]
    assert stale.column("degraded").to_pylist() == [True, True]
    assert stale.column("rung").to_pylist() == ["last-beliefs"] * 2
    said = ["degraded", "rung"]
    assert fresh.drop_columns(said).equals(stale.drop_columns(said))


@settings(deadline=None)
@given(st.lists(_task, min_size=1, max_size=12), st.data())
def test_any_split_of_a_message_gives_the_same_rows(tasks: list[dict[str, Any]], data: st.DataObject) -> None:
    views, rows = _views(), task_rows(tasks)
    whole = matched(views, rows)
    cut = data.draw(st.integers(0, len(tasks)))
    parts = [matched(views, part) for part in (rows.slice(0, cut), rows.slice(cut)) if len(part)]
    assert pa.Table.from_batches(parts).combine_chunks().to_pylist() == whole.to_pylist()


@settings(deadline=None)
@given(st.lists(_task, min_size=1, max_size=8))
def test_what_match_remembers_changes_no_answer(tasks: list[dict[str, Any]]) -> None:
    views, rows, state = _views(), task_rows(tasks), match.initial(1)
    first = match.step(state, batch_of(rows, "aos.tasks"), NOW, views, 1).outputs[0].rows
    again = match.step(state, batch_of(rows, "aos.tasks"), NOW, views, 1).outputs[0].rows
    assert first.equals(again)
    assert first.equals(matched(views, rows))


@settings(deadline=None)
@given(st.lists(_task, min_size=1, max_size=8))
def test_capability_tenant_pin_and_exclusion_hold_for_every_candidate(tasks: list[dict[str, Any]]) -> None:
    views = views_of(_views()["aos.agent-states"])
    rows = matched(views, task_rows(tasks))
    for task, found in zip(tasks, rows.to_pylist(), strict=True):
        covered: set[str] = set()
        for one in found["candidates"]:
            agent = _fleet[one["agent"]]
            covers = [name for bit, name in enumerate(task["require"]) if one["covers"] >> bit & 1]
            assert set(covers) <= set(agent["capabilities"])  # type: ignore[arg-type]
            assert agent["tenants"] is None or task["tenant"] in agent["tenants"]  # type: ignore[operator]
            assert agent["state"] in ("idle", "suspected")
            assert not task["pin"] or one["agent"] in task["pin"]
            assert one["agent"] not in task["exclude"]
            covered |= set(covers)
        assert not found["candidates"] or covered == set(task["require"])
        assert len({one["agent"] for one in found["candidates"]}) == len(found["candidates"])
        assert len(found["candidates"]) <= 16
        assert len(found["filtered"]) <= 8 <= max(8, found["filtered_count"])
