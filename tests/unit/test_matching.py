"""Who is eligible, and why the others are not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents.fleet import Fleet
from aos.agents.matching import FILTERED_MAX, Memory, Wish, eligible, fallback
from tests.unit.given_fleet import fleet_of, state_rows


def wish(**said: Any) -> Wish:
    """What a plain task asks for."""
    standard: dict[str, Any] = {
        "tenant": "default",
        "domain": "default",
        "task_kind": None,
        "require": ("work",),
        "pin": (),
        "exclude": (),
        "budgeted": False,
    }
    return Wish(**(standard | said))


@pytest.mark.parametrize(
    ("said", "asked", "reason"),
    [
        ({}, {}, None),
        ({"capabilities": ["other"]}, {}, "capability"),
        ({"tenants": ["acme"]}, {}, "tenant"),
        ({"tenants": ["acme"]}, {"tenant": "acme"}, None),
        ({"tenants": []}, {}, "tenant"),
        ({"state": "paused"}, {}, "health"),
        ({"state": "draining"}, {}, "health"),
        ({"state": "gone", "capacity": 0}, {}, "health"),
        ({"capacity": 0}, {}, "health"),
        ({}, {"exclude": ("a",)}, "excluded"),
        ({}, {"pin": ("b",)}, "pin"),
        ({}, {"pin": ("a",)}, None),
        ({}, {"pin": ("a",), "exclude": ("a",)}, "excluded"),
        ({"capabilities": ["other"], "state": "gone"}, {}, "capability"),
        ({}, {"require": ()}, None),
    ],
)
def test_each_filter_says_its_reason(said: dict[str, Any], asked: dict[str, Any], reason: str | None) -> None:
    found = eligible(fleet_of({"a": said}), wish(**asked), 1)
    if reason is None:
        assert (found.names, found.filtered_count) == (("a",), 0)
    else:
        assert (found.names, found.filtered, found.reasons, found.filtered_count) == (
            (),
            ("a",),
            (reason,),
            1,
        )


def test_suspected_agents_are_let_in_only_when_the_healthy_are_too_few() -> None:
    fleet = fleet_of({"a": {}, "b": {}, "c": {"state": "suspected"}})
    assert eligible(fleet, wish(), 2).names == ("a", "b")
    assert eligible(fleet, wish(), 3).names == ("a", "b", "c")
    assert eligible(fleet, wish(), 3).suspected.tolist() == [False, False, True]
    assert eligible(fleet, wish(budgeted=True), 1).names == (
        "a",
        "b",
        "c",
    )  # ranking sees who fits the budget


def test_agents_that_only_together_have_all_are_named_when_nobody_has() -> None:
    fleet = fleet_of(
        {"a": {"capabilities": ["x", "z"]}, "b": {"capabilities": ["y"]}, "c": {"capabilities": ["q"]}}
    )
    found = eligible(fleet, wish(require=("x", "y", "z")), 1)
    assert found.partial
    assert dict(zip(found.names, found.covers.tolist(), strict=True)) == {"a": 0b101, "b": 0b010}


def test_nobody_is_named_when_together_they_lack_something() -> None:
    fleet = fleet_of({"a": {"capabilities": ["x"]}, "b": {"capabilities": ["y"]}})
    assert len(eligible(fleet, wish(require=("x", "y", "z")), 1)) == 0
    assert len(eligible(fleet, wish(require=("z",)), 1)) == 0


def test_one_who_has_all_is_preferred_to_a_team_even_if_suspected() -> None:
    both = {"capabilities": ["x", "y"], "state": "suspected"}
    fleet = fleet_of({"a": {"capabilities": ["x"]}, "b": {"capabilities": ["y"]}, "both": both})
    found = eligible(fleet, wish(require=("x", "y")), 1)
    assert (found.names, found.partial) == (("both",), False)


def test_a_team_is_made_of_healthy_agents_when_these_suffice() -> None:
    agents: dict[str, dict[str, Any]] = {
        "a": {"capabilities": ["x"]},
        "b": {"capabilities": ["y"]},
        "s": {"capabilities": ["y"], "state": "suspected"},
    }
    assert eligible(fleet_of(agents), wish(require=("x", "y")), 1).names == ("a", "b")
    agents["b"]["state"] = "gone"
    assert eligible(fleet_of(agents), wish(require=("x", "y")), 1).names == ("a", "s")


def test_more_capabilities_than_a_mask_can_tell_need_one_agent_with_all() -> None:
    names = [f"c{number}" for number in range(70)]
    fleet = fleet_of({"all": {"capabilities": names}, "half": {"capabilities": names[:35]}})
    assert eligible(fleet, wish(require=tuple(names)), 1).names == ("all",)
    fleet.apply(
        b"crew/0", state_rows({"half": {"capabilities": names[:35]}, "rest": {"capabilities": names[35:]}})
    )
    assert len(eligible(fleet, wish(require=tuple(names)), 1)) == 0


def test_those_who_came_nearest_are_named_first() -> None:
    agents: dict[str, dict[str, Any]] = {f"far-{number}": {"capabilities": ["q"]} for number in range(20)}
    agents["near"] = {"state": "paused"}
    found = eligible(fleet_of(agents), wish(), 1)
    assert len(found.filtered) == FILTERED_MAX
    assert found.filtered[0] == "near"
    assert found.filtered_count == 21


def test_the_fallback_is_a_living_agent_of_the_service_or_one_flagged_as_such() -> None:
    fleet = Fleet()
    fleet.apply(b"crew/0", state_rows({"a": {}, "flagged": {"fallback": True, "capabilities": []}}))
    fleet.apply(b"desk/0", state_rows({"human": {"capabilities": []}, "away": {"state": "gone"}}, "desk"))
    found = fallback(fleet, wish(require=("x", "y")), "desk")
    assert found.names == ("flagged", "human")
    assert found.covers.tolist() == [0b11, 0b11]
    assert fallback(fleet, wish(), "").names == ("flagged",)
    assert fallback(fleet, wish(pin=("a",)), "desk").names == ()
    assert fallback(fleet, wish(exclude=("human",)), "desk").names == ("flagged",)


def test_what_is_remembered_is_forgotten_with_the_version() -> None:
    memory, fleet = Memory(), fleet_of({"a": {}})
    assert memory.eligible(fleet, wish(), 1) is memory.eligible(fleet, wish(), 1)
    assert memory.texts(fleet, "agents").to_pylist() == ["a"]
    fleet.apply(b"crew/0", state_rows({"a": {"state": "paused"}, "b": {}}))
    assert memory.eligible(fleet, wish(), 1).names == ("b",)
    assert memory.texts(fleet, "agents").to_pylist() == ["a", "b"]
    assert memory.eligible(fleet_of({"c": {}}), wish(), 1).names == ("c",)


_agent = st.fixed_dictionaries(
    {
        "capabilities": st.lists(st.sampled_from("xyz"), max_size=3),
        "tenants": st.none() | st.lists(st.sampled_from(["acme", "default"])),
        "state": st.sampled_from(["idle", "suspected", "paused", "gone"]),
        "capacity": st.integers(0, 2),
    }
)
_wish = st.builds(
    wish,
    tenant=st.sampled_from(["acme", "default"]),
    require=st.lists(st.sampled_from("xyz"), unique=True).map(tuple),
    pin=st.lists(st.sampled_from("abcd")).map(tuple),
    exclude=st.lists(st.sampled_from("abcd"), max_size=2).map(tuple),
    budgeted=st.booleans(),
)


@given(st.dictionaries(st.sampled_from("abcdef"), _agent), _wish, st.integers(1, 3))
def test_no_filter_but_health_is_ever_loosened(agents: dict[str, Any], asked: Wish, wanted: int) -> None:
    found = eligible(fleet_of(agents) if agents else Fleet(), asked, wanted)

    def may(name: str, said: dict[str, Any]) -> bool:
        tenant = said["tenants"] is None or asked.tenant in said["tenants"]
        named = (not asked.pin or name in asked.pin) and name not in asked.exclude
        return tenant and named and said["capacity"] > 0 and said["state"] in ("idle", "suspected")

    able = {
        name
        for name, said in agents.items()
        if may(name, said) and set(asked.require) <= set(said["capabilities"])
    }
    healthy = {name for name in able if agents[name]["state"] == "idle"}
    if able:
        assert set(found.names) == (able if asked.budgeted or len(healthy) < wanted else healthy)
        assert not found.partial
    else:
        assert all(may(name, agents[name]) for name in found.names)
        covered = [name for name in found.names for name in agents[name]["capabilities"]]
        assert not found.names or set(asked.require) <= set(covered)
    assert len(found) + found.filtered_count == len(agents)
