"""Slots: taken at a decision, freed by the release of the very assignment, once."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aos.agents import load as load_module
from aos.agents.fleet import Fleet
from aos.agents.load import Attempt, Load, key_of
from aos.codecs.rows import from_dicts


def fleet_of(*agents: dict[str, Any]) -> Fleet:
    fleet = Fleet()
    tell(fleet, *agents)
    return fleet


def tell(fleet: Fleet, *agents: dict[str, Any]) -> None:
    plain = {
        "service": "s", "state": "idle", "capabilities": [], "cell": "default", "cell_partition": 0, "capacity": 2,
        "replicas": 1, "price_usd_micros": 0, "timeout_ms": 0, "fallback": False, "registered_at": 0, "seen_at": 0,
        "version": 1,
    }  # fmt: skip
    fleet.apply(b"s/0", from_dicts("agent-state", [plain | agent for agent in agents]))


def followed(*agents: dict[str, Any], prefetch: float = 1.0) -> tuple[Load, Fleet]:
    fleet = fleet_of(*agents)
    load = Load(0)
    load.follow(fleet, prefetch)
    load.find([agent["agent"] for agent in agents], fleet, prefetch)
    return load, fleet


def key(number: int) -> bytes:
    return key_of(number.to_bytes(16, "big"), 0, 0, 1)


def test_slots_are_capacity_times_prefetch_rounded_down_but_never_less_than_capacity() -> None:
    load, _ = followed({"agent": "a", "capacity": 3}, {"agent": "b", "capacity": 1}, prefetch=1.5)
    assert (load.slots["a"].limit, load.slots["b"].limit) == (4, 1)
    assert load.free == 5


def test_who_may_start_nothing_here_has_no_slot() -> None:
    agents = [
        {"agent": state, "state": state} for state in ("paused", "draining", "gone", "suspected", "idle")
    ]
    load, fleet = followed(*agents, {"agent": "moved", "cell_partition": 1})
    (unknown,) = load.find(["unknown"], fleet, 1.0)
    found = {name: (slot.limit, slot.lost, slot.gone) for name, slot in load.slots.items()}
    assert found == {
        "paused": (0, False, False),
        "draining": (0, True, False),
        "gone": (0, True, True),
        "suspected": (2, False, False),
        "idle": (2, False, False),
        "moved": (0, True, False),
        "unknown": (0, True, True),
    }
    assert unknown.agent == "unknown"


def test_a_release_frees_the_slot_of_the_very_assignment_once() -> None:
    load, _ = followed({"agent": "a"})
    slot = load.slots["a"]
    load.take(key(1), Attempt(slot, 3, []))
    assert not load.release(key(1), "a", 2)  # another owner's
    assert not load.release(key(1), "b", 3)
    assert (slot.load, load.free) == (1, 1)
    assert load.release(key(1), "a", 3)
    assert not load.release(key(1), "a", 3)
    assert (slot.load, load.free) == (0, 2)


def test_a_release_without_epoch_frees_whatever_the_attempt_holds() -> None:
    load, _ = followed({"agent": "a"})
    load.take(key(1), Attempt(load.slots["a"], 3, []))
    assert load.release(key(1), "", 0)
    assert load.slots["a"].load == 0


def test_a_release_of_an_unknown_attempt_is_remembered() -> None:
    load, _ = followed({"agent": "a"})
    assert not load.release(key(9), "", 0)
    assert key(9) in load.ended


def test_only_so_many_ended_attempts_are_remembered(monkeypatch: Any) -> None:
    monkeypatch.setattr(load_module, "ENDED_MAX", 3)
    load, _ = followed({"agent": "a"})
    for number in range(5):
        load.release(key(number), "", 0)
    assert list(load.ended) == [key(2), key(3), key(4)]


def test_an_agent_that_shrinks_keeps_what_it_has_and_gets_nothing_more() -> None:
    load, fleet = followed({"agent": "a", "capacity": 2})
    slot = load.slots["a"]
    for number in (1, 2):
        load.take(key(number), Attempt(slot, 1, []))
    tell(fleet, {"agent": "a", "capacity": 1})
    assert load.follow(fleet, 1.0)
    assert not load.follow(fleet, 1.0)
    assert (slot.limit, slot.load, load.free) == (1, 2, 0)
    load.release(key(1), "a", 1)
    assert load.free == 0
    load.release(key(2), "a", 1)
    assert load.free == 1


def test_attempts_of_an_agent_that_is_gone_are_stranded_until_they_were_refused() -> None:
    load, fleet = followed({"agent": "a"}, {"agent": "b"})
    told: Any = object()
    load.take(key(1), Attempt(load.slots["a"], 1, [told]))
    load.take(key(2), Attempt(load.slots["b"], 1, [told]))
    tell(fleet, {"agent": "a", "state": "gone"}, {"agent": "b"})
    load.follow(fleet, 1.0)
    ((found, attempt),) = load.stranded()
    assert found == key(1)
    attempt.answers.append(told)
    assert list(load.stranded()) == []
    assert load.slots["a"].load == 1  # its slot is freed by the release, not before


def test_agents_that_left_are_forgotten_unless_they_hold_or_are_needed(monkeypatch: Any) -> None:
    monkeypatch.setattr(load_module, "SLOTS_SPARE", 0)
    load, fleet = followed({"agent": "a"}, {"agent": "b"}, {"agent": "c"}, {"agent": "d"})
    load.take(key(1), Attempt(load.slots["a"], 1, []))
    tell(fleet, {"agent": "d"})
    load.follow(fleet, 1.0)
    load.forget({"b"})
    assert sorted(load.slots) == ["a", "b", "d"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 2)), max_size=80))
def test_the_counters_are_those_of_the_attempts_in_any_order(events: list[tuple[bool, int, int]]) -> None:
    load, _ = followed({"agent": "a"}, {"agent": "b", "capacity": 1}, {"agent": "c", "capacity": 3})
    for takes, number, agent in events:
        slot = load.slots["abc"[agent]]
        if takes and key(number) not in load.attempts and slot.load < slot.limit:
            load.take(key(number), Attempt(slot, 1, []))
        elif not takes:
            load.release(key(number), "abc"[agent], 1)
        for slot in load.slots.values():
            assert slot.load == sum(attempt.slot is slot for attempt in load.attempts.values()) <= slot.limit
        assert load.free == 6 - len(load.attempts)
