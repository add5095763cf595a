"""Settings that change at run time: which changes count, who sees them, what they do."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.codecs.errors import SettingsError
from aos.codecs.settings import ALL, LIVE, TENANT, Settings, accepted
from aos.streams import allocate
from aos.streams.live import LAWS, TOPIC, RuntimeSettings, in_force, sees_changes
from aos.streams.processor import Views
from aos.streams.topology import PROCESSORS
from aos.streams.views import settings_version
from tests.unit import given_allocate
from tests.unit.given_fleet import beliefs_of, candidate, fleet_of, match_rows, state_rows, task_rows
from tests.unit.given_fleet import views_of as fleet_views
from tests.unit.given_settings import message, runtime_of, with_runtime
from tests.unit.test_compose import composed
from tests.unit.test_match import matched, names

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "candidates_max": 8, "candidates_wanted": 2, "fallback_service": "desk", "confidence_min": 0.5,
    "quality_min": 1, "prefetch": 2.5, "trial_floor": 0.02, "tenant_weights": {"a": 2}, "lane_age_ms": 100,
    "exploration": 0.5, "quota_requests_per_s": {"a": 2.5}, "quota_bytes_per_s": {"*": 1e6},
    "quota_in_flight": {"a": 3}, "quota_burst_s": 1, "waiting_max": 400,
}  # fmt: skip

# what is accepted


def test_every_setting_that_changes_at_run_time_takes_a_good_value_and_that_of_the_start() -> None:
    assert set(GOOD) == set(LIVE)
    for name, value in GOOD.items():
        assert accepted(name, value) == value
        assert accepted(name, None) is None


@pytest.mark.parametrize(
    ("name", "value", "tenant", "code"),
    [
        ("candidate_max", 3, "", "AOS5001"),
        ("timeout_ms", 100, "", "AOS5006"),
        ("partitions", 2, "", "AOS5006"),
        ("timeout_ms", None, "", "AOS5006"),
        ("candidates_max", 3, "acme", "AOS5006"),
        ("candidates_max", 0, "", "AOS5002"),
        ("candidates_max", 65, "", "AOS5002"),
        ("candidates_max", 3.0, "", "AOS5002"),
        ("candidates_max", True, "", "AOS5002"),
        ("candidates_max", "3", "", "AOS5002"),
        ("quality_min", float("nan"), "", "AOS5002"),
        ("quality_min", float("inf"), "", "AOS5002"),
        ("quality_min", -0.1, "acme", "AOS5002"),
        ("fallback_service", 3, "", "AOS5002"),
        ("fallback_service", "x" * 129, "", "AOS5002"),
        ("tenant_weights", {"a": 0}, "", "AOS5002"),
        ("tenant_weights", {"a": "1"}, "", "AOS5002"),
        ("tenant_weights", 2, "", "AOS5002"),
        ("tenant_weights", {"a": 2}, "acme", "AOS5002"),
        ("tenant_weights", 0, "acme", "AOS5002"),
        ("quota_in_flight", {"a": 2.5}, "", "AOS5002"),
        ("quota_in_flight", 2.5, "acme", "AOS5002"),
        ("quota_in_flight", 0, "acme", "AOS5002"),
        ("quota_requests_per_s", {"a": -1}, "", "AOS5002"),
        ("waiting_max", 3, "", "AOS5002"),
    ],
)
def test_what_is_unknown_fixed_or_out_of_range_is_refused(
    name: str, value: Any, tenant: str, code: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        accepted(name, value, tenant)
    assert caught.value.code == code


def test_a_refusal_says_why_a_setting_does_not_change() -> None:
    with pytest.raises(SettingsError, match="decide alike when it reads its log again"):
        accepted("attempts_max", 2)
    with pytest.raises(SettingsError, match="read once, when AOS starts"):
        accepted("gather_ms", 2)


# which changes count


def test_of_two_changes_from_one_version_the_first_in_the_log_counts_and_the_other_nowhere() -> None:
    runtime = runtime_of(("quality_min", "", 0.1))
    assert runtime.apply(b"", message(2, ("quality_min", "", 0.2), change=1))
    assert not runtime.apply(b"", message(2, ("prefetch", "", 2), change=2))
    assert not runtime.apply(
        b"", message(2, ("quality_min", "", 0.2), change=1)
    )  # the producer sent it twice
    assert not runtime.apply(b"", message(4, ("prefetch", "", 2)))
    assert (runtime.version, runtime.values) == (2, {("quality_min", ""): 0.2})


SEEN, VALUES = st.integers(0, 4), st.sampled_from([None, 0.25, 0.5, 9])
CHANGES = st.tuples(SEEN, st.sampled_from(["quality_min", "exploration"]), VALUES)


@given(st.lists(CHANGES, max_size=12), st.data())
def test_every_reader_comes_to_the_same_verdict_whatever_comes_twice(
    changes: list[tuple[int, str, Any]], data: st.DataObject
) -> None:
    """A writer makes its change from a version that it saw: one of those so far, often not the last."""
    once, again = RuntimeSettings(), RuntimeSettings()
    log: list[Any] = []
    counted = []
    for place, (behind, name, value) in enumerate(changes):
        head, made_from = once.version, max(0, once.version - behind)
        log.append(message(made_from + 1, (name, "", value), change=place))
        counted.append(once.apply(b"", log[-1]))
        assert counted[-1] == (made_from == head)
        again.apply(b"", log[-1])
        again.apply(b"", log[data.draw(st.integers(0, place))])
    assert (again.version, again.values, again.refused) == (once.version, once.values, once.refused)
    assert sum(counted) == once.version


def test_a_change_that_this_release_does_not_accept_takes_its_version_and_changes_nothing() -> None:
    runtime = runtime_of(("quality_min", "", 0.1))
    assert runtime.apply(b"", message(2, ("quality_min", "", 0.9), ("from_the_future", "", 1)))
    assert (runtime.version, runtime.values) == (2, {("quality_min", ""): 0.1})
    assert "AOS5001" in runtime.refused[2]
    assert runtime.apply(b"", message(3, ("quality_min", "", 0.2)))
    assert runtime.values == {("quality_min", ""): 0.2}


def test_what_is_no_json_changes_nothing() -> None:
    runtime = RuntimeSettings()
    rows = message(1, ("quality_min", "", 0.5))
    torn = rows.set_column(rows.schema.get_field_index("value"), rows.schema.field("value"), ["{"])
    assert runtime.apply(b"", torn)
    assert (runtime.values, list(runtime.refused)) == ({}, [1])


# what is in force


def test_a_setting_is_in_force_until_it_is_given_the_value_of_the_start_again() -> None:
    start = Settings(quality_min=0.3, tenant_weights={"a": 2.0})
    assert RuntimeSettings().over(start) is start
    runtime = runtime_of(("quality_min", "", 0.5), ("tenant_weights", "b", 3))
    assert runtime.over(start).quality_min == 0.5
    assert runtime.over(start).tenant_weights == {"a": 2.0, "b": 3.0}
    assert runtime.over(start) is runtime.over(start)
    runtime.apply(b"", message(3, ("quality_min", "", None), ("tenant_weights", "b", None)))
    assert runtime.over(start) == start
    assert runtime.version == 3


def test_only_row_and_journal_processors_see_changes() -> None:
    """A fold's state must come out of its log alone, and register and optimise are views."""
    views = Views(settings=Settings(), views={TOPIC: runtime_of(("quality_min", "", 0.5))})
    seeing = {name for name, one in PROCESSORS.items() if in_force(one, views).settings.quality_min == 0.5}
    assert seeing == {"encode", "match", "compose", "allocate"}
    for processor in PROCESSORS.values():
        assert sees_changes(processor) == (TOPIC in processor.views)
        assert processor.law in LAWS or in_force(processor, views) is views


def test_a_setting_changes_at_run_time_only_if_nobody_reads_it_who_does_not_see_changes() -> None:
    """By the text of the program: the modules of the processors that see changes read all of them, all others none."""
    seeing = [ROOT / "streams" / f"{name}.py" for name, one in PROCESSORS.items() if sees_changes(one)]
    others = [
        path for folder in ("streams", "agents", "analytics") for path in (ROOT / folder).rglob("*.py")
        if path not in seeing and path.name != "live.py"
    ]  # fmt: skip
    live = "|".join(LIVE)
    pattern = rf"settings\.({live})\b|(?:by_tenant|ordered)\([\w.]+, \"({live})\""

    def read(paths: list[Path]) -> set[str]:
        return {name for path in paths for pair in re.findall(pattern, path.read_text()) for name in pair}

    assert read(seeing) - {""} == set(LIVE)
    assert read(others) - {""} == set(), "declare it without `live`, or read it in a row or journal processor"


def test_every_setting_that_changes_at_run_time_is_one_that_decides() -> None:
    known = {item.name: item.metadata for item in fields(Settings)}
    assert all(known[name]["decides"] and of in (ALL, TENANT) for name, of in LIVE.items())


# what changes do


def test_compose_rejects_by_the_quality_that_is_set_for_the_tenant() -> None:
    rows = match_rows([{"candidates": [candidate("a")]}, {"candidates": [candidate("a")], "tenant": "acme"}])
    views = with_runtime(fleet_views(), ("quality_min", "acme", 0.6))
    assert [row["kind"] for row in composed(rows, views)] == ["rejected", "planned"]
    views = with_runtime(fleet_views(), ("quality_min", "", 0.6), ("quality_min", "acme", 0.4))
    assert {row["tenant"]: row["kind"] for row in composed(rows, views)} == {
        "default": "rejected", "acme": "planned",
    }  # fmt: skip


def test_match_names_as_many_as_is_set_and_falls_back_by_tenant() -> None:
    fleet = fleet_of({"a": {}, "b": {}, "c": {}})
    fleet.apply(b"desk/0", state_rows({"human": {"capabilities": []}}, "desk"))
    beliefs = beliefs_of({name: {"score": 0.3} for name in "abc"})
    views, asked = fleet_views(fleet, beliefs), task_rows([{}, {"tenant": "acme"}])
    few = matched(with_runtime(views, ("candidates_max", "", 1)), asked)
    assert [len(row) for row in names(few)] == [1, 1]
    changes = (("fallback_service", "", "desk"), ("confidence_min", "acme", 0.9))
    one, other = names(matched(with_runtime(views, *changes), asked))
    assert set(one) == {"a", "b", "c"}
    assert other == ["human"]


def test_exploration_of_a_tenant_changes_who_is_ranked_first() -> None:
    fleet = fleet_of({name: {} for name in "abcdefgh"})
    beliefs = beliefs_of({name: {"score": 0.5 + number / 50} for number, name in enumerate("abcdefgh")})
    asked = task_rows([{"tenant": "acme"} for _ in range(200)])
    few, many = (
        names(matched(with_runtime(fleet_views(fleet, beliefs), ("exploration", "acme", factor)), asked))
        for factor in (0.1, 4)
    )
    assert len({row[0] for row in few}) < len({row[0] for row in many})


def test_what_is_set_for_the_floor_beats_what_was_learned_and_the_decision_names_the_version() -> None:
    views = given_allocate.views_of(given_allocate.fleet_of({"agent": "old"}, {"agent": "new"}))
    arms = (
        given_allocate.alternative("old", 0.9, 0.01),
        given_allocate.alternative("new", 0.1, 0.01, trial=True),
    )
    chances = {}
    for value in (0.0, 0.05):
        changed = with_runtime(views, ("trial_floor", "default", value))
        (row,) = given_allocate.journal(
            given_allocate.lane(allocate.initial(0), changed, given_allocate.ready(1, *arms))
        )
        chances[value] = row["candidates"][1]["chance"]
        assert row["settings_version"] == settings_version(changed)
        assert row["settings_version"] % 2**20 == 1
    assert chances[0.0] == pytest.approx(0, abs=1e-3)
    assert chances[0.05] == pytest.approx(0.05, abs=1e-3)


def test_a_row_that_waits_keeps_chances_and_version_and_a_repeated_one_its_decision() -> None:
    views = given_allocate.views_of(given_allocate.fleet_of({"agent": "x", "capacity": 1}))
    state = allocate.initial(0)
    first = given_allocate.lane(state, views, given_allocate.ready(1, "x"), given_allocate.ready(2, "x"))
    (decided,) = given_allocate.journal(first)
    changed = with_runtime(views, ("exploration", "", 2))
    again = given_allocate.lane(state, changed, given_allocate.ready(1, "x"))
    assert given_allocate.journal(again) == []
    assert given_allocate.said(given_allocate.ledger(again)) == given_allocate.said(
        given_allocate.ledger(first)
    )
    state = given_allocate.restarted(state)
    freed = given_allocate.free(state, changed, given_allocate.release(1, "x", decided["epoch"]))
    (late,) = given_allocate.journal(freed)
    assert late["settings_version"] == decided["settings_version"] == settings_version(views)


def test_more_prefetch_starts_what_waits() -> None:
    views = given_allocate.views_of(given_allocate.fleet_of({"agent": "x", "capacity": 1}))
    state = allocate.initial(0)
    rows = [given_allocate.ready(number, "x") for number in (1, 2)]
    assert len(given_allocate.journal(given_allocate.lane(state, views, *rows))) == 1
    changed = with_runtime(views, ("prefetch", "", 2))
    assert len(given_allocate.journal(given_allocate.tick(state, changed))) == 1
