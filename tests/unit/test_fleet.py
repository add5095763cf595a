"""The fleet view: what blocks of agent states become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents.fleet import Bitsets, Fleet
from tests.unit.given_fleet import fleet_of, state_rows


def test_an_agent_keeps_its_slot_while_its_block_changes_around_it() -> None:
    fleet = fleet_of({"a": {}, "b": {}, "c": {}})
    slot = fleet.index("c")
    fleet.apply(b"crew/0", state_rows({"c": {"capacity": 5}, "d": {}}))
    assert fleet.index("c") == slot
    assert fleet.capacity[slot] == 5
    assert [fleet.index(name) for name in ("a", "b")] == [-1, -1]


def test_a_slot_is_used_again_and_nothing_of_the_former_agent_stays() -> None:
    fleet = fleet_of({"a": {"capabilities": ["rare"], "tenants": ["acme"], "fallback": True}})
    slot = fleet.index("a")
    fleet.apply(b"crew/0", None)
    assert len(fleet) == 0
    assert not fleet.having("rare").any()
    assert not fleet.known.any()
    assert not fleet.alive.any()
    fleet.apply(b"crew/1", state_rows({"b": {}}))
    assert fleet.index("b") == slot
    assert not fleet.having("rare").any()
    assert fleet.allowing("other")[slot]
    assert not fleet.fallback[slot]


@pytest.mark.parametrize("new_first", [True, False])
def test_an_agent_that_moved_belongs_to_the_block_that_names_it(new_first: bool) -> None:
    fleet = fleet_of({"a": {}, "b": {}})
    moves = [(b"other/0", state_rows({"a": {"capacity": 3}}, "other")), (b"crew/0", state_rows({"b": {}}))]
    for key, rows in moves if new_first else moves[::-1]:
        fleet.apply(key, rows)
    assert fleet.services[fleet.index("a")] == "other"
    assert fleet.capacity[fleet.index("a")] == 3
    assert len(fleet) == 2
    assert fleet.of_service("other").sum() == 1


@pytest.mark.parametrize(
    ("state", "capacity", "alive", "suspected", "gone"),
    [
        ("idle", 1, True, False, False),
        ("running", 1, True, False, False),
        ("degraded", 1, True, False, False),
        ("learning", 1, True, False, False),
        ("suspected", 1, True, True, False),
        ("idle", 0, False, False, False),
        ("paused", 1, False, False, False),
        ("draining", 1, False, False, False),
        ("gone", 0, False, False, True),
        ("a state of a later version", 1, False, False, True),
    ],
)
def test_only_who_may_be_given_work_is_alive(
    state: str, capacity: int, alive: bool, suspected: bool, gone: bool
) -> None:
    fleet = fleet_of({"a": {"state": state, "capacity": capacity}})
    assert (fleet.alive[0], fleet.suspected[0], fleet.gone[0]) == (alive, suspected, gone)


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({}, False),
        ({"state": "running"}, False),
        ({"seen_at": 5, "version": 9}, False),
        ({"capacity": 2}, True),
        ({"state": "paused"}, True),
        ({"state": "draining"}, True),
        ({"capabilities": ["work", "more"]}, True),
        ({"tenants": ["acme"]}, True),
        ({"price_usd_micros": 1}, True),
        ({"cell_partition": 0}, True),
    ],
)
def test_the_version_moves_only_with_what_a_decision_may_rest_on(change: dict[str, Any], moves: bool) -> None:
    fleet = fleet_of({"a": {}})
    before = fleet.version
    fleet.apply(b"crew/0", state_rows({"a": change}))
    assert (fleet.version != before) == moves


def test_the_version_moves_between_states_without_work_too() -> None:
    fleet = fleet_of({"a": {"state": "paused"}})
    before = fleet.version
    fleet.apply(b"crew/0", state_rows({"a": {"state": "draining"}}))
    assert fleet.version != before


def test_arrays_grow_beyond_their_first_room() -> None:
    names = [f"agent-{number}" for number in range(1_500)]
    fleet = Fleet()
    fleet.apply(b"crew/0", state_rows({name: {"capabilities": [name]} for name in names[:1000]}))
    fleet.apply(b"crew/1", state_rows({name: {"capabilities": [name]} for name in names[1000:]}))
    assert len(fleet) == 1_500
    assert fleet.alive.sum() == 1_500
    for name in ("agent-0", "agent-63", "agent-64", "agent-1499"):
        assert fleet.agents[fleet.covering([name])].tolist() == [name]


CAPABILITIES = [f"c{number}" for number in range(70)]  # more than a word holds
_agents = st.dictionaries(
    st.sampled_from("abcdef"),
    st.fixed_dictionaries(
        {
            "capabilities": st.lists(st.sampled_from(CAPABILITIES), max_size=4),
            "tenants": st.none() | st.lists(st.sampled_from(["acme", "default"]), max_size=2),
            "capacity": st.integers(0, 3),
        }
    ),
)


@given(st.lists(st.tuples(st.sampled_from(["x/0", "x/1", "y/0"]), st.none() | _agents), max_size=12))
def test_the_fleet_is_what_the_blocks_say(messages: list[tuple[str, dict[str, Any] | None]]) -> None:
    fleet = Fleet()
    owners: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, agents in messages:
        service = key.partition("/")[0]
        fleet.apply(key.encode(), None if agents is None else state_rows(agents, service))
        owners = {name: owned for name, owned in owners.items() if owned[0] != key}
        owners |= {name: (key, said) for name, said in (agents or {}).items()}
    assert sorted(fleet.agents[fleet.known]) == sorted(owners)
    for name, (_, said) in owners.items():
        slot = fleet.index(name)
        assert fleet.agents[slot] == name
        assert fleet.capacity[slot] == said["capacity"]
        assert [capability for capability in CAPABILITIES if fleet.having(capability)[slot]] == sorted(
            set(said["capabilities"]), key=CAPABILITIES.index
        )
        assert fleet.covering(said["capabilities"])[slot]
        for tenant in ("acme", "default", "nobody"):
            allowed = said["tenants"] is None or tenant in said["tenants"]
            assert fleet.allowing(tenant)[slot] == allowed


def test_a_bit_is_free_again_when_nobody_has_the_name() -> None:
    bits = Bitsets(2)
    for number in range(1_000):
        bits.add(0, [f"name-{number}"])
        bits.remove(0, [f"name-{number}"])
    assert len(bits.words) == 1
    assert not bits.covering(["name-1"]).any()
    assert bits.covering([]).tolist() == [True, True]


def test_the_same_message_twice_changes_nothing() -> None:
    fleet = fleet_of({"a": {"capabilities": ["x"]}, "b": {"tenants": ["acme"]}})
    before = fleet.version
    fleet.apply(b"crew/0", state_rows({"a": {"capabilities": ["x"]}, "b": {"tenants": ["acme"]}}))
    assert fleet.version == before
    assert fleet.size == 2
    assert np.array_equal(fleet.having("x"), [True, False])
