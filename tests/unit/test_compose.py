"""compose: rows of the ledger from matches."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.analytics.patterns import Patterns
from aos.codecs.rows import empty, from_dicts, record, take_common
from aos.streams import compose
from aos.streams.processor import Batch, Views
from tests.unit.given_fleet import NOW, batch_of, candidate, match_rows, views_of


def composed(rows: pa.RecordBatch, views: Views | None = None, seed: int = 1) -> list[dict[str, Any]]:
    """Ledger rows, null columns left out; every one is checked against its schema."""
    found = []
    for output in compose.step(None, batch_of(rows, "aos.matches"), NOW, views or views_of(), seed).outputs:
        assert (output.topic, output.partition, output.rows.schema) == (
            "aos.ledger",
            1,
            record("entry").schema,
        )
        output.rows.validate(full=True)
        for row in output.rows.to_pylist():
            found.append({name: value for name, value in row.items() if value is not None})
    return found


def agents(row: dict[str, Any]) -> list[str]:
    """Names of the alternatives."""
    return [one["agent"] for one in row["alternatives"]]


def test_a_single_step_becomes_one_planned_row_with_all_that_was_matched() -> None:
    filtered = [{"agent": "off", "reason": "health"}]
    one = {
        "candidates": [candidate("a", score=0.75, latency_us=20), candidate("b")],
        "filtered": filtered,
        "filtered_count": 4,
        "shortfall": 1,
        "degraded": True,
        "settings_version": 3,
        "traceparent": "t",
    }
    matches = match_rows([one])
    (row,) = composed(matches)
    common = take_common(matches)
    assert {name: row[name] for name in common} == {
        name: column[0].as_py() for name, column in common.items()
    }
    assert row["alternatives"] == one["candidates"]
    expected = {
        "kind": "planned",
        "step": 0,
        "match_round": 0,
        "filtered": filtered,
        "filtered_count": 4,
        "shortfall": 1,
        "degraded": True,
        "model_version": 7,
        "settings_version": 3,
        "topology": "single",
        "quality_predicted": 0.75,
        "duration_predicted_us": 20,
    }
    assert {name: row[name] for name in expected} == expected
    assert set(row) == {*common, *expected, "alternatives", "plan_seed"}


def test_nobody_is_planned_with_no_alternatives() -> None:
    (row,) = composed(match_rows([{}]))
    assert (row["kind"], row["alternatives"]) == ("planned", [])
    assert "quality_predicted" not in row
    (row,) = composed(match_rows([{"require": ["x", "y"], "budget_usd_micros": 0, "deadline_at": NOW}]))
    assert (row["kind"], row["alternatives"]) == ("planned", [])


FLOW = [
    {"step": 0, "steps_count": 2, "candidates": [candidate("a", cost_usd_micros=6, latency_us=50)]},
    {
        "step": 1,
        "steps_count": 2,
        "after": [0],
        "candidates": [candidate("b", cost_usd_micros=6, latency_us=50)],
    },
]


def _flow(**said: Any) -> pa.RecordBatch:
    return match_rows([row | {"request_id": b"f" * 16} | said for row in FLOW])


def test_a_workflow_is_planned_as_a_whole() -> None:
    rows = composed(_flow())
    assert [(row["kind"], row["step"], agents(row), row["topology"]) for row in rows] == [
        ("planned", 0, ["a"], "chain"),
        ("planned", 1, ["b"], "chain"),
    ]
    assert {row["duration_predicted_us"] for row in rows} == {100}
    assert len({row["plan_seed"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"budget_usd_micros": 11}, "AOS2006"),
        ({"budget_usd_micros": 12}, None),
        ({"deadline_at": NOW + 99}, "AOS2007"),
        ({"deadline_at": NOW + 100}, None),
        ({"after": [0]}, "AOS2001"),
    ],
)
def test_what_is_infeasible_is_one_rejected_row(said: dict[str, Any], code: str | None) -> None:
    rows = composed(_flow(**said))
    if code is None:
        assert [row["kind"] for row in rows] == ["planned", "planned"]
    else:
        (row,) = rows
        assert (row["kind"], row["code"], row["match_round"]) == ("rejected", code, 0)
        assert row["message"]
        assert "step" not in row


def test_poor_quality_is_rejected() -> None:
    views = views_of(quality_min=0.6)
    for rows in (_flow(), match_rows([{"candidates": [candidate("a")]}])):
        (row,) = composed(rows, views)
        assert (row["kind"], row["code"]) == ("rejected", "AOS2011")


def test_bad_and_good_requests_of_a_message_do_not_touch_each_other() -> None:
    late = {"deadline_at": NOW - 1, "candidates": [candidate("a")]}
    good = {"candidates": [candidate("a")]}
    matches = match_rows([good, late, good, late | {"deadline_at": NOW + 5_000}])
    rows = composed(matches)
    ids = matches.column("request_id").to_pylist()
    by_id = {row["request_id"]: row["kind"] for row in rows}
    assert by_id == {ids[0]: "planned", ids[1]: "rejected", ids[2]: "planned", ids[3]: "planned"}


def test_a_step_matched_anew_names_itself_when_it_is_rejected() -> None:
    again = {"match_round": 2, "step": 1, "steps_count": 3, "after": [0], "candidates": [candidate("a")]}
    (row,) = composed(match_rows([again]))
    assert (row["kind"], row["match_round"], row["step"]) == ("planned", 2, 1)
    assert "topology" not in row
    (row,) = composed(match_rows([again | {"deadline_at": NOW}]))
    assert (row["kind"], row["code"], row["match_round"], row["step"]) == ("rejected", "AOS2007", 2, 1)


def test_a_team_is_parts_that_stand_for_the_step() -> None:
    options = [candidate("y", covers=2), candidate("x", covers=1)]
    one = {"request_id": b"f" * 16, "steps_count": 2}
    rows = composed(
        match_rows(
            [
                one | {"step_name": "both", "require": ["x", "y"], "candidates": options},
                one | {"step": 1, "after": [0], "candidates": [candidate("z")]},
            ]
        )
    )
    keys = ("step", "parent", "step_name", "require", "after", "topology")
    assert [[row.get(key) for key in keys] for row in rows] == [
        [2, 0, "both.1", ["x"], [], "team"],
        [3, 0, "both.2", ["y"], [2], "team"],
        [1, None, None, None, None, "team"],
    ]
    assert [agents(row) for row in rows] == [["x"], ["y"], ["z"]]


def test_alternatives_over_the_budget_are_dropped_while_one_fits() -> None:
    options = [candidate("dear", cost_usd_micros=9), candidate("cheap", cost_usd_micros=2)]
    (row,) = composed(match_rows([{"candidates": options, "budget_usd_micros": 5}]))
    assert agents(row) == ["cheap"]
    (row,) = composed(match_rows([{"candidates": options[:1], "budget_usd_micros": 5}]))
    assert row["code"] == "AOS2006"


def test_patterns_that_were_mined_move_the_order_and_the_expected_score() -> None:
    patterns = Patterns()
    pattern = {
        "domain": "default",
        "pattern": "p",
        "kind": "pair",
        "members": ["a", "c"],
        "support": 9,
        "score": 0.9,
        "baseline": 0.5,
        "effect": 0.4,
        "error": 0.0,
        "persistence": 0.0,
        "window_from": NOW,
        "window_to": NOW,
        "version": 1,
    }
    patterns.apply(b"default", from_dicts("pattern", [pattern]))
    rows = match_rows(
        [
            FLOW[0] | {"request_id": b"f" * 16},
            FLOW[1] | {"request_id": b"f" * 16, "candidates": [candidate("b"), candidate("c")]},
        ]
    )
    assert agents(composed(rows)[1]) == ["b", "c"]
    second = composed(rows, views_of(patterns=patterns))[1]
    assert agents(second) == ["c", "b"]
    assert second["alternatives"][0]["score"] == pytest.approx(0.7)


@pytest.mark.parametrize("require", [["x"], ["x", "y"]], ids=["workflow", "team"])
def test_a_request_that_is_twice_in_a_message_is_planned_once(require: list[str]) -> None:
    """A crash makes match write again, and the shell joins both into one message."""
    some = [candidate("a", covers=1), candidate("b", covers=2)]
    steps = [
        {"request_id": bytes(16), "step": number, "steps_count": 2, "candidates": some, "require": require}
        for number in range(2)
    ]
    once = composed(match_rows(steps))
    assert composed(match_rows([*steps, *steps])) == once
    assert all("topology" in row for row in once)


def test_the_seed_of_a_plan_is_that_of_the_request_and_its_round() -> None:
    rows = match_rows([{"candidates": [candidate("a")]}] * 2)
    first, second = composed(rows)
    assert first["plan_seed"] != second["plan_seed"]
    assert composed(rows) == composed(rows)
    assert composed(rows, seed=2)[0]["plan_seed"] != first["plan_seed"]


def test_a_tick_and_an_empty_message_say_nothing() -> None:
    nothing = Batch("aos.matches", 0, -1, empty("match"), tick=True)
    assert compose.step(None, nothing, NOW, views_of(), 1).outputs == ()


_candidates = st.lists(
    st.builds(
        candidate,
        st.sampled_from("abcde"),
        score=st.floats(0, 1, width=16),
        cost_usd_micros=st.integers(0, 9),
        latency_us=st.integers(0, 9),
        trial=st.booleans(),
        covers=st.just(1),
    ),
    max_size=4,
    unique_by=lambda one: one["agent"],
)
_single = st.fixed_dictionaries(
    {
        "candidates": _candidates,
        "budget_usd_micros": st.none() | st.integers(0, 9),
        "deadline_at": st.none() | st.integers(NOW - 1, NOW + 9),
        "match_round": st.integers(0, 1),
        "steps_count": st.sampled_from([1, 1, 3]),
    }
)


def _lone(row: dict[str, Any]) -> dict[str, Any]:
    """A step of a workflow stands alone only when it is matched anew."""
    return row | ({"match_round": 1} if row["steps_count"] > 1 else {})


@settings(deadline=None)
@given(st.lists(_single.map(_lone), min_size=1, max_size=6), st.sampled_from([0.0, 0.5]))
def test_whole_columns_and_one_by_one_give_the_same_plans(tasks: list[dict[str, Any]], least: float) -> None:
    views, matches = views_of(quality_min=least), match_rows(tasks)
    sheet = compose._Sheet(matches, NOW, 1)
    plain = sheet.plain()
    fast = compose._columns(sheet, plain, views)
    slow = compose._one_by_one(sheet, plain, views)

    def by_id(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
        return sorted(
            (row for rows in batches for row in rows.to_pylist()), key=lambda row: row["request_id"]
        )

    assert by_id(fast) == by_id(slow)


@settings(deadline=None)
@given(st.lists(_single.map(_lone), min_size=1, max_size=6), st.data())
def test_any_split_between_requests_gives_the_same_rows(
    tasks: list[dict[str, Any]], data: st.DataObject
) -> None:
    matches = match_rows(tasks)
    cut = data.draw(st.integers(0, len(tasks)))
    parts = [composed(part) for part in (matches.slice(0, cut), matches.slice(cut)) if len(part)]

    def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: row["request_id"])

    assert ordered([row for part in parts for row in part]) == ordered(composed(matches))
