"""register: who lives, what each agent can take, and what the fleet is told of it and when."""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.streams import register
from tests.unit.given_fleet import beliefs_of
from tests.unit.given_register import NOW, SECOND, Register, beat, order, registered

BLOCK = 1_000


def test_ten_thousand_agents_registered_in_one_go_are_known_within_a_second() -> None:
    log = Register()
    log.say(*(registered(f"agent-{number}") for number in range(10_000)))
    log.wait(1)
    assert len(log.fleet) == 10_000
    assert log.fleet.alive.sum() == 10_000
    assert len(log.published) == 10
    assert all(len(rows) <= BLOCK for _, _, rows in log.published)


def test_an_agent_stays_in_its_block_whatever_happens_to_others() -> None:
    log = Register()
    log.say(*(registered(f"agent-{number}") for number in range(2_500)))
    log.wait(1)
    blocks = {name: key for _, key, rows in log.published for name in rows["agent"].to_pylist()}
    log.say(*(registered(f"agent-{number}", removed=True) for number in range(0, 1_000, 2)))
    log.say(*(registered(f"new-{number}") for number in range(300)))
    log.say(*(registered(f"agent-{number}", capacity=2) for number in range(2_500) if number % 2))
    log.published.clear()
    log.wait(3)
    later = {name: key for _, key, rows in log.published for name in rows["agent"].to_pylist()}
    assert all(later[name] == key for name, key in blocks.items() if name in later)
    assert {later[f"new-{number}"] for number in range(300)} == {"crew/0"}  # the freed places first
    assert len(log.fleet) == 2_300


def test_a_silent_agent_is_suspected_then_gone_and_back_with_the_next_heartbeat() -> None:
    log = Register()
    log.say(registered("a"), beat())
    log.wait(2, [beat()])
    silent_from = log.now
    states: list[tuple[float, str | None]] = []
    while log.now < silent_from + 15 * SECOND:
        log.wait(0.1)
        if not states or states[-1][1] != log.state_of("a"):
            states.append(((log.now - silent_from) / SECOND, log.state_of("a")))
    assert [state for _, state in states] == ["learning", "suspected", "gone"]
    assert states[1][0] == pytest.approx(4, abs=0.3)
    assert states[2][0] == pytest.approx(12, abs=0.3)
    assert log.capacity_of("a") == 0
    log.say(beat())
    log.wait(0.2)
    assert log.state_of("a") == "learning"
    assert log.capacity_of("a") == 1


def test_capacity_is_the_registered_one_times_the_live_replicas() -> None:
    log = Register()
    log.say(registered("a", capacity=3), registered("b"))
    log.say(beat("one"), beat("two", agents=["a"]), beat("other", service="other"))
    log.wait(0.5)
    assert (log.capacity_of("a"), log.capacity_of("b")) == (6, 1)
    log.say(beat("two", agents=["a", "b"]))
    log.wait(0.5)
    assert (log.capacity_of("a"), log.capacity_of("b")) == (6, 2)


def test_a_stopping_replica_counts_no_capacity_at_once() -> None:
    log = Register()
    log.say(registered("a", capacity=3), beat("one"), beat("two"))
    log.wait(1)
    log.say(beat("one", stopping=True))
    log.wait(0.2)
    assert (log.state_of("a"), log.capacity_of("a")) == ("learning", 3)
    log.say(beat("two", stopping=True))
    log.wait(0.2)
    assert (log.state_of("a"), log.capacity_of("a")) == ("draining", 0)
    log.wait(13)
    assert log.state_of("a") == "gone"


def test_a_part_of_the_replicas_silent_is_degraded_with_the_capacity_of_the_rest() -> None:
    log = Register()
    log.say(registered("a", capacity=3), beat("one"), beat("two"))
    log.wait(5, [beat("one")])
    assert (log.state_of("a"), log.capacity_of("a")) == ("degraded", 3)
    log.wait(9, [beat("one")])
    assert (log.state_of("a"), log.capacity_of("a")) == ("learning", 3)


def test_an_agent_that_never_sent_a_heartbeat_lives_until_it_would_be_gone() -> None:
    log = Register()
    log.say(registered("a", capacity=2))
    log.wait(11.8)
    assert (log.state_of("a"), log.capacity_of("a")) == ("learning", 2)
    log.say(registered("a", capacity=2))
    log.wait(11.8)
    assert log.state_of("a") == "learning"
    log.wait(0.5)
    assert (log.state_of("a"), log.capacity_of("a")) == ("gone", 0)


def test_a_heartbeat_ends_the_grace_also_when_it_says_stopping() -> None:
    log = Register()
    log.say(registered("a"))
    log.say(beat(stopping=True))
    log.wait(0.2)
    assert log.state_of("a") == "draining"


def test_states_come_in_this_order_of_precedence() -> None:
    log = Register(beliefs_of({"a": {"count": 50.0}}))
    log.say(registered("a"), beat("one"))
    seen = []

    def look() -> None:
        log.wait(2.5, [beat("one", busy=busy)])
        seen.append(log.state_of("a"))

    busy = 0
    look()
    busy = 2
    look()
    log.say(beat("two"))
    log.wait(3, [beat("one", busy=2)])
    look()
    log.say(order("drain", "a"))
    look()
    log.say(order("pause", "a"))
    look()
    log.wait(20)
    seen.append(log.state_of("a"))
    assert seen == ["idle", "running", "degraded", "draining", "paused", "gone"]


def test_an_agent_is_learning_until_enough_of_it_was_learned() -> None:
    log = Register(beliefs_of({"a": {"count": 4.5}, "b": {"count": 5.0}}))
    log.say(registered("a"), registered("b"), beat())
    log.wait(0.5)
    assert (log.state_of("a"), log.state_of("b")) == ("learning", "idle")


def test_of_two_live_registrations_the_last_wins() -> None:
    log = Register()
    log.say(registered("a", "first", capacity=1), registered("b", "first"), beat(service="first"))
    log.wait(1)
    log.say(registered("a", "second", capacity=7), beat(service="second"))
    log.wait(1)
    assert log.fleet.services[log.fleet.index("a")] == "second"
    assert log.capacity_of("a") == 7
    assert len(log.fleet) == 2
    log.say(registered("a", "first", removed=True))  # no longer theirs
    log.wait(1)
    assert log.capacity_of("a") == 7


def test_an_agent_that_moves_is_never_missing_in_between() -> None:
    log = Register()
    log.say(registered("a", "first"), registered("b", "first"))
    log.wait(1)
    log.say(registered("a", "second"))
    for _ in range(10):
        log.wait(0.1)
        assert log.fleet.index("a") >= 0


@pytest.mark.parametrize(("agent", "service"), [("a", ""), (None, "crew")])
def test_orders_hold_and_resume_an_agent_or_a_whole_service(agent: str | None, service: str) -> None:
    log = Register()
    log.say(registered("a"), registered("x", "other"), beat())
    log.say(order("pause", agent, service))
    log.wait(1, [beat()])
    assert log.state_of("a") == "paused"
    assert log.state_of("x") == "learning"
    log.say(registered("a"), registered("later"))  # a repeated registration lifts no order
    log.wait(1, [beat()])
    assert log.state_of("a") == "paused"
    assert log.state_of("later") == ("paused" if agent is None else "learning")
    log.say(order("resume", agent, service))
    log.wait(1, [beat()])
    assert {log.state_of("a"), log.state_of("later")} == {"learning"}
    log.say(order("remove", agent, service))
    log.wait(1)
    assert log.state_of("a") is None
    log.say(registered("a"))
    log.wait(1)
    assert log.state_of("a") == "learning"


def test_orders_for_nobody_are_ignored() -> None:
    log = Register()
    log.say(order("remove", "nobody"), order("pause", None, "none"), order("approve", None, ""))
    log.say(registered("a"))
    log.wait(1)
    assert log.state_of("a") == "learning"


def test_at_most_ten_messages_a_second_and_the_last_state_arrives() -> None:
    log = Register(suspect_after_ms=60_000, gone_after_ms=120_000)
    log.say(*(registered(f"agent-{number}", f"service-{number % 20}") for number in range(40)))
    for round in range(50):
        log.say(*(beat(f"replica-{round}", f"service-{number}") for number in range(20)))
        log.wait(0.1)
    times = [when for when, _, _ in log.published]
    assert all(later - sooner >= SECOND // 10 for sooner, later in pairwise(times))
    assert len(log.published) >= 40
    log.wait(2.5)
    assert {log.capacity_of(f"agent-{number}") for number in range(40)} == {50}


def test_a_change_of_liveness_goes_out_at_once_when_nothing_was_just_sent() -> None:
    log = Register()
    log.say(registered("a"))
    log.wait(1, [beat()])
    log.wait(0.3)
    log.say(beat("two"))
    assert log.due is not None
    assert log.due <= log.now
    log.tick()
    assert log.published[-1][0] == log.now
    assert log.capacity_of("a") == 2


def test_busy_and_idle_are_told_at_leisure() -> None:
    log = Register(beliefs_of({"a": {"count": 50.0}}))
    log.say(registered("a"), beat())
    log.wait(1)
    log.published.clear()
    for number in range(100):
        log.say(beat(busy=number % 2))
        log.wait(0.1)
    assert len(log.published) <= 6


def test_a_message_publishes_nothing_so_that_a_muted_replay_loses_nothing() -> None:
    log = Register()
    rows = [registered(f"agent-{number}") for number in range(3)]
    log.say(*rows)
    log.say(beat())
    assert log.published == []
    log.tick()
    assert [len(rows) for _, _, rows in log.published] == [3]


def test_a_registry_that_was_away_does_not_take_its_own_silence_for_theirs() -> None:
    log = Register()
    log.say(registered("a"), beat())
    log.wait(3, [beat()])
    log.restart(away_s=60)
    log.tick()
    assert log.state_of("a") == "learning"
    log.wait(3, [beat()])  # the backlog is read
    assert log.state_of("a") == "learning"
    log.restart(away_s=60)
    log.wait(12.5)  # nobody came back
    assert log.state_of("a") == "gone"


def test_the_cells_partition_is_a_hash_of_its_name() -> None:
    log = Register()
    log.say(registered("a", cell="north"), registered("b"))
    log.wait(1)
    rows = {row["agent"]: row for row in log.published[0][2].to_pylist()}
    assert rows["a"]["cell_partition"] == zlib.crc32(b"north") % 4
    assert (rows["b"]["cell"], rows["b"]["cell_partition"]) == ("default", zlib.crc32(b"default") % 4)


def test_what_is_told_of_an_agent_is_what_it_registered() -> None:
    log = Register()
    said: dict[str, Any] = {
        "capabilities": ["x", "y"],
        "description": "words",
        "cell": "north",
        "price_usd_micros": 12,
        "timeout_ms": 900,
        "tenants": ["acme"],
        "fallback": True,
    }
    log.say(registered("a", capacity=2, **said), beat(service="elsewhere"))
    log.wait(1)
    row = log.published[0][2].to_pylist()[0]
    assert {key: row[key] for key in said} == said
    assert (row["service"], row["capacity"], row["replicas"], row["version"]) == ("crew", 2, 0, 1)


def test_the_last_sign_of_life_is_told_anew_from_time_to_time() -> None:
    log = Register()
    log.say(registered("a"), beat())
    log.wait(60, [beat()])
    last = log.published[-1][2].to_pylist()[0]
    age_us = log.now - round(last["seen_at"].timestamp() * SECOND)
    assert age_us <= 11 * SECOND
    assert len(log.published) <= 9


def test_an_agent_that_is_gone_for_a_day_is_forgotten() -> None:
    log = Register()
    log.say(registered("old"), registered("young"))
    log.wait(20)
    log.say(registered("young"), beat())
    day = 24 * 3600
    for _ in range(25):  # hours with a live replica, without a tick for each second of them
        log.now += 3600 * SECOND
        log.say(beat(agents=["young"]))
    assert log.now - NOW > day * SECOND
    log.wait(1)
    assert log.state_of("old") is None
    assert log.state_of("young") == "learning"


def test_long_descriptions_fill_a_block_by_bytes() -> None:
    log = Register()
    log.say(*(registered(f"agent-{number}", description="d" * 100_000) for number in range(100)))
    log.wait(2)
    assert len(log.fleet) == 100
    assert len(log.published) == 3
    assert all(rows.nbytes < 5_000_000 for _, _, rows in log.published)
    log.say(*(registered(f"agent-{number}", description="d" * 300_000) for number in range(10)))
    log.published.clear()
    log.wait(2)
    assert len(log.fleet) == 100
    assert all(rows.nbytes < 5_000_000 for _, _, rows in log.published)


_names = st.sampled_from([f"agent-{number}" for number in range(6)])
_services = st.sampled_from(["crew", "other"])
_sayings = st.one_of(
    st.builds(
        registered,
        _names,
        _services,
        capacity=st.integers(0, 3),
        removed=st.booleans(),
        tenants=st.none() | st.just(["t"]),
    ),
    st.builds(
        beat,
        st.sampled_from(["one", "two"]),
        _services,
        stopping=st.booleans(),
        busy=st.integers(0, 1),
        agents=st.none() | st.lists(_names, max_size=3),
    ),
    st.builds(order, st.sampled_from(["pause", "drain", "resume", "remove"]), _names),
    st.builds(order, st.sampled_from(["pause", "resume", "remove"]), st.none(), _services),
)
_histories = st.lists(
    st.tuples(st.lists(_sayings, min_size=1, max_size=4), st.sampled_from([0.05, 1, 5, 13])), max_size=12
)


@settings(deadline=None)
@given(_histories)
def test_a_snapshot_is_the_state_byte_for_byte_and_goes_on_alike(
    history: list[tuple[list[Any], float]],
) -> None:
    live, stopped = Register(), Register()
    for sayings, seconds in history:
        for log in (live, stopped):
            log.say(*sayings)
            log.wait(seconds)
        before = register.dump(stopped.state)
        stopped.state = register.load(0, before)
        assert stopped.state == live.state
        after = register.dump(stopped.state)
        assert {name: rows.serialize().to_pybytes() for name, rows in after.items()} == {
            name: rows.serialize().to_pybytes() for name, rows in before.items()
        }
    assert [(when, key, rows.to_pylist()) for when, key, rows in live.published] == [
        (when, key, rows.to_pylist()) for when, key, rows in stopped.published
    ]


@settings(deadline=None)
@given(_histories)
def test_saying_everything_twice_changes_nothing_that_is_told(history: list[tuple[list[Any], float]]) -> None:
    once, twice = Register(), Register()
    for sayings, seconds in history:
        once.say(*sayings)
        twice.say(*(saying for saying in sayings for _ in range(2)))
        twice.say(*sayings[-1:])
        once.wait(seconds)
        twice.wait(seconds)
    told = [
        {row["agent"]: row | {"version": 0} for key, rows in latest.items() for row in rows.to_pylist()}
        for latest in ({key: rows for _, key, rows in log.published} for log in (once, twice))
    ]
    assert told[0] == told[1]


@settings(deadline=None)
@given(_histories)
def test_the_fleet_ends_with_what_the_registry_knows(history: list[tuple[list[Any], float]]) -> None:
    log = Register()
    for sayings, seconds in history:
        log.say(*sayings)
        log.wait(seconds)
    log.wait(2)
    assert sorted(log.fleet.agents[log.fleet.known]) == sorted(log.state.agents)
    for name, agent in log.state.agents.items():
        assert log.fleet.services[log.fleet.index(name)] == agent.service
        assert name in log.state.services[agent.service].blocks[agent.block].names
