"""Quotas and shedding: who comes in, who does not, and that the log alone decides it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.agents.quotas import Accounts, Incoming, Limits
from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.streams import encode, supervise
from tests.unit.given_edges import raw, rows_of, run, views
from tests.unit.given_ledger import (
    NOW,
    SECOND,
    World,
    asked,
    assigned,
    outcome,
    planned,
    requested,
    row,
    state_bytes,
)
from tests.unit.given_settings import with_runtime

QUOTA_CODES = ("AOS2101", "AOS2102", "AOS2103", "AOS2104")


def limited(number: int, *steps: dict[str, Any], **said: Any) -> dict[str, Any]:
    """A request with the limits that the edge wrote into it."""
    return requested(number, *steps) | {"quota_burst_s": 1.0, "quota_shares": 1} | said


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(rows) == 1
    return rows[0]


# buckets


RATES = st.floats(0.5, 500)
GAPS = st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 5_000)), min_size=1, max_size=60)


@given(RATES, st.floats(0.01, 10), GAPS)
def test_over_any_time_no_more_requests_come_in_than_the_burst_and_the_rate_allow(
    rate: float, burst_s: float, gaps: list[tuple[int, int]]
) -> None:
    accounts, now, let_in = Accounts(0), NOW, []
    limits = Limits(requests=rate, burst_s=burst_s, shares=1)
    for gap, _ in gaps:
        now += gap
        refusal = accounts.take(Incoming("t", 2, 1, 0), limits, now)
        if refusal is None:
            let_in.append(now)
        else:
            assert refusal.code == "AOS2101"
            assert refusal.retry_after_ms > 0
    for first, began in enumerate(let_in):
        for count, at in enumerate(let_in[first:], 1):
            assert count <= max(1, rate * burst_s) + rate * (at - began) / SECOND + 1e-3


@given(st.floats(100, 50_000), GAPS)
def test_over_any_time_bytes_exceed_burst_and_rate_by_no_more_than_the_last_request(
    rate: float, gaps: list[tuple[int, int]]
) -> None:
    accounts, now, let_in = Accounts(0), NOW, []
    for gap, size in gaps:
        now += gap
        if accounts.take(Incoming("t", 2, 1, size), Limits(bytes=rate, burst_s=1.0, shares=1), now) is None:
            let_in.append((now, size))
    for first, (began, _) in enumerate(let_in):
        taken = 0
        for at, size in let_in[first:]:
            assert taken <= rate + rate * (at - began) / SECOND + 1
            taken += size


@given(RATES, st.floats(0.01, 10), st.integers(1, 40))
def test_whoever_waits_as_long_as_the_refusal_says_comes_in(rate: float, burst_s: float, tries: int) -> None:
    accounts, limits = Accounts(0), Limits(requests=rate, burst_s=burst_s, shares=1)
    found = None
    for _ in range(tries):
        found = accounts.take(Incoming("t", 2, 1, 0), limits, NOW) or found
    if found is not None:
        later = NOW + found.retry_after_ms * 1000
        assert accounts.take(Incoming("t", 2, 1, 0), limits, later) is None
        assert accounts.take(Incoming("t", 2, 1, 0), limits, later) is not None


def test_what_is_larger_than_a_bucket_passes_when_it_is_full_and_is_paid_for_afterwards() -> None:
    accounts, limits = Accounts(0), Limits(bytes=100.0, burst_s=1.0, shares=1)
    assert accounts.take(Incoming("t", 2, 1, 1_000), limits, NOW) is None
    refusal = accounts.take(Incoming("t", 2, 1, 1), limits, NOW + 8 * SECOND)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_ms) == ("AOS2103", 1_010)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 100))
def test_shares_of_all_partitions_add_up_to_the_quota(limit: int, shares: int, tries: int) -> None:
    let_in = 0
    for partition in range(shares):
        accounts = Accounts(partition)
        for _ in range(tries):
            if accounts.take(Incoming("t", 2, 1, 0), Limits(in_flight=limit, shares=shares), NOW) is None:
                accounts.enter("t", 2, 1)
                let_in += 1
    assert let_in <= limit
    assert let_in == limit or tries * shares < limit or tries < -(-limit // shares)


# shedding

WAITING = st.tuples(*[st.integers(0, 30)] * 4)


@given(WAITING, st.integers(4, 80))
def test_whoever_is_shed_all_that_come_after_it_are_shed_too_and_priority_0_never_is(
    waiting: tuple[int, ...], most: int
) -> None:
    accounts = Accounts(0)
    for priority, count in enumerate(waiting):
        for _ in range(count):
            accounts.enter("other", priority, 1)
    shed = [
        accounts.take(Incoming("t", priority, 1, 0), Limits(waiting=most), NOW) is not None
        for priority in range(4)
    ]
    assert not shed[0]
    assert shed == sorted(shed)
    assert shed[3] == (sum(waiting) >= most // 4)


def test_under_overload_p3_is_shed_before_p2_and_p1_and_p0_waits_with_a_typed_answer() -> None:
    world = World()
    for number in range(8):
        world.fold(limited(number, priority=2, waiting_max=16))
    shed = only(world.fold(limited(20, priority=3, waiting_max=16))["aos.results"])
    assert (shed["status"], shed["code"], shed["retry_after_ms"]) == ("rejected", "AOS2104", 5_000)
    assert only(world.fold(limited(21, priority=2, waiting_max=16))["aos.results"])["code"] == "AOS2104"
    for number in range(22, 38):  # they wait for those of priority 0 and 1 only
        assert "aos.results" not in world.fold(limited(number, priority=1, waiting_max=16))
    assert only(world.fold(limited(39, priority=1, waiting_max=16))["aos.results"])["code"] == "AOS2104"
    for number in range(40, 80):
        assert "aos.results" not in world.fold(limited(number, priority=0, waiting_max=16))
    assert world.fold(limited(81, priority=3, waiting_max=None)) == {}


def test_what_an_agent_has_begun_waits_no_more_and_makes_room() -> None:
    world = World()
    for number in range(4):
        world.fold(limited(number, priority=3, waiting_max=16))
    assert "aos.results" in world.fold(limited(10, priority=3, waiting_max=16))
    world.fold(planned(1))
    world.fold(assigned(1))
    assert "aos.results" not in world.fold(limited(11, priority=3, waiting_max=16))
    assert "aos.results" in world.fold(limited(12, priority=3, waiting_max=16))
    world.fold(outcome(1))  # it waits no more already: its end makes no room
    assert "aos.results" in world.fold(limited(14, priority=3, waiting_max=16))
    world.fold(row("cancel", 2))
    assert "aos.results" not in world.fold(limited(13, priority=3, waiting_max=16))


# in the ledger


def test_a_refused_request_ends_in_one_typed_result_costs_no_agent_and_teaches_nothing() -> None:
    world = World()
    world.fold(limited(1, quota_requests=0.5))
    said = world.fold(limited(2, quota_requests=0.5))
    result = only(said["aos.results"])
    assert (result["status"], result["code"], result["agents"], result["score"]) == (
        "rejected", "AOS2101", [], None,
    )  # fmt: skip
    assert result["retry_after_ms"] == 2_000
    assert result["message"] == "the limit is 0.5 requests a second: try again in 2000 ms"
    assert set(said) == {"aos.results", "aos.trails"}
    trail = only(said["aos.trails"])
    assert (trail["kind"], trail["status"], trail["score"], trail["agent"]) == (
        "request", "rejected", None, None,
    )  # fmt: skip
    assert world.fold(planned(2)) == {}  # match and compose had it already


def test_a_repeated_id_of_a_refused_request_gets_the_same_result_and_takes_nothing() -> None:
    world = World()
    world.fold(limited(1, quota_requests=0.5))
    first = only(world.fold(limited(2, quota_requests=0.5))["aos.results"])
    before = world.bytes()
    again = only(world.fold(limited(2, quota_requests=0.5), after=2)["aos.results"])
    assert {name for name in first if first[name] != again[name]} == {"repeated"}
    assert world.bytes() == before
    assert "aos.results" not in world.fold(limited(3, quota_requests=0.5))


def test_a_repeated_id_of_what_is_in_flight_takes_no_second_place() -> None:
    world = World()
    for _ in range(3):
        assert world.fold(limited(1, quota_in_flight=2, quota_requests=1.0)) == {}
    assert world.fold(limited(2, quota_in_flight=2), after=1) == {}
    code = only(world.fold(limited(3, quota_in_flight=2), after=1)["aos.results"])["code"]
    assert code == "AOS2102"


def test_a_place_is_free_when_a_request_has_ended() -> None:
    world = World()
    world.fold(limited(1, quota_in_flight=1))
    result = only(world.fold(limited(2, quota_in_flight=1))["aos.results"])
    assert (result["code"], result["retry_after_ms"]) == ("AOS2102", 1_000)
    world.fold(planned(1))
    world.fold(assigned(1))
    world.fold(outcome(1))
    assert world.fold(limited(3, quota_in_flight=1)) == {}


def test_bytes_are_those_of_all_texts_and_payloads() -> None:
    world = World()
    steps = [asked("a", text="é" * 10, payload=bytes(30)), asked("b", text=None, payload=bytes(50))]
    world.fold(limited(1, *steps, quota_bytes=100.0))
    refusal = only(world.fold(limited(2, asked(text="x"), quota_bytes=100.0))["aos.results"])
    assert (refusal["code"], refusal["retry_after_ms"]) == ("AOS2103", 10)


def test_another_tenant_is_untouched() -> None:
    world = World()
    for number in range(5):
        world.fold(limited(number, tenant="acme", quota_in_flight=1, quota_requests=0.1, quota_bytes=1.0))
    assert len(world.said["aos.results.acme"]) == 4
    assert world.fold(limited(9, quota_in_flight=1, quota_requests=0.1, quota_bytes=1.0)) == {}


def test_a_redriven_request_asks_its_quota_again() -> None:
    world = World()
    world.fold(limited(1, quota_in_flight=1))
    world.fold(limited(2, quota_in_flight=1))
    again = world.fold(row("redrive", 2, requested_at=world.now + 1), after=1)["aos.ledger"][0]
    assert (again["round"], again["quota_in_flight"]) == (1, 1)
    code = only(world.fold(limited(2, round=1, quota_in_flight=1))["aos.results"])["code"]
    assert code == "AOS2102"
    world.fold(row("cancel", 1, requested_at=world.now + 1), after=1)
    assert "aos.tasks" in world.fold(limited(2, round=2, quota_in_flight=1))


def test_a_state_written_before_there_were_quotas_is_read() -> None:
    world = World()
    world.fold(limited(1, quota_requests=0.5))
    world.fold(limited(2, quota_requests=0.5))
    tables = supervise.dump(world.state)
    del tables["buckets"]
    ended = tables["ended"]
    tables["ended"] = ended.select([name for name in ended.schema.names if name != "retry_after_ms"])
    world.state = supervise.load(0, tables)
    assert world.state.accounts.of("default").in_flight == 1
    assert only(world.fold(limited(2, quota_requests=0.5))["aos.results"])["repeated"]


# whatever comes, in whatever order, however often

TENANTS = ("default", "acme", "beta")
KINDS = ("request", "request", "plan", "serve", "serve", "assign", "cancel", "repeat", "wait", "snapshot")
EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10_000)), min_size=5, max_size=80)
QUOTAS = {"acme": {"quota_in_flight": 3, "quota_requests": 20.0}, "beta": {"quota_bytes": 40.0}}


def happening(kind: str, index: int, numbers: int) -> list[dict[str, Any]]:
    """Rows of the ledger; `serve`: all that a request needs to be done, or to begin."""
    number = 1 + index % max(1, numbers)
    if kind == "request":
        tenant = TENANTS[index % 3]
        said = {"tenant": tenant, "priority": index % 4, "waiting_max": 8, **QUOTAS.get(tenant, {})}
        return [limited(numbers + 1, **said)]
    if kind == "plan":
        return [planned(number)]
    if kind == "assign":
        return [assigned(number)]
    if kind == "serve":
        ends: list[list[dict[str, Any]]] = [[outcome(number)], [outcome(number, status="failed")], []]
        return [planned(number), assigned(number), *ends[index % 3]]
    return [row("cancel", number, requested_at=NOW + 10**9)]


@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_quotas_hold_duplicates_change_nothing_and_the_same_log_gives_the_same_bytes(
    events: list[tuple[str, int]],
) -> None:
    world, twin, log, numbers = World(), World(), [], 0
    owner: dict[bytes, str] = {}
    ends: Counter[tuple[bytes, int]] = Counter()
    for kind, index in events:
        if kind == "snapshot":
            twin.reload()
            continue
        if kind == "wait":
            said, same = world.tick(index / 1e4), twin.tick(index / 1e4)
        else:
            repeated = kind == "repeat"
            if repeated and not log:
                continue
            rows = [log[index % len(log)]] if repeated else happening(kind, index, numbers)
            log += rows
            if kind == "request":
                numbers += 1
                owner[rows[0]["request_id"]] = rows[0]["tenant"]
            said, same = world.fold(*rows, after=0.01), twin.fold(*rows, after=0.01)
        assert said == same
        assert world.bytes() == twin.bytes()
        for topic, answers in said.items():
            for found in answers if topic.startswith("aos.results") else ():
                if not found["repeated"]:
                    ends[found["request_id"], found["round"]] += 1
                if found["code"] in QUOTA_CODES:
                    assert found["retry_after_ms"] > 0
                    assert found["agents"] == []
                    assert found["code"] == "AOS2104" or owner[found["request_id"]] in QUOTAS
                    assert found["code"] != "AOS2104" or number_priority(log, found) > 0
        flying = Counter(request.common.tenant for request in world.state.requests.values())
        assert flying["acme"] <= 3
        accounts = world.state.accounts
        assert all(accounts.of(tenant).in_flight == flying[tenant] for tenant in TENANTS)
        waiting = Counter(r.priority for r in world.state.requests.values() if not r.started)
        assert accounts.waiting == [waiting[priority] for priority in range(4)]
    assert not ends or max(ends.values()) == 1


def number_priority(log: list[dict[str, Any]], result: dict[str, Any]) -> int:
    """The priority of the request that ended so."""
    return next(
        e["priority"] for e in log if e["request_id"] == result["request_id"] and e["kind"] == "requested"
    )


def test_the_same_log_read_again_under_other_settings_gives_the_same_bytes() -> None:
    entries = [limited(n, tenant="acme", quota_in_flight=2, quota_requests=3.0) for n in range(6)]
    found = []
    for given_settings in ({}, {"quota_in_flight": {"*": 1}, "waiting_max": 4}):
        world = World(**given_settings)
        for entry in entries:
            world.fold_rows(from_dicts("entry", [entry]), 0.1)
        found.append(state_bytes(supervise.dump(world.state)))
    assert found[0] == found[1]


# at the edge


def test_the_edge_writes_the_limits_in_force_into_each_row() -> None:
    given_views = views(2, quota_requests_per_s={"acme": 5.0, "*": 50.0}, quota_in_flight={"acme": 4})
    own = only(
        rows_of(run(encode.step, [raw({"text": "x"}, "aos.requests.acme")], given_views), "aos.ledger")
    )
    assert (own["quota_requests"], own["quota_in_flight"], own["quota_bytes"]) == (5.0, 4, None)
    assert (own["quota_burst_s"], own["quota_shares"], own["waiting_max"]) == (2.0, 2, 200_000)
    other = only(rows_of(run(encode.step, [raw({"text": "x"}, "aos.requests")], given_views), "aos.ledger"))
    assert (other["quota_requests"], other["quota_in_flight"]) == (50.0, None)
    changed = with_runtime(
        given_views,
        ("quota_requests_per_s", "acme", 7),
        ("quota_burst_s", "acme", 9),
        ("waiting_max", "", 40),
    )
    own = only(rows_of(run(encode.step, [raw({"text": "x"}, "aos.requests.acme")], changed), "aos.ledger"))
    assert (own["quota_requests"], own["quota_burst_s"], own["waiting_max"]) == (7.0, 9.0, 40)


def test_without_quotas_only_the_bound_of_overload_is_written() -> None:
    entry = only(rows_of(run(encode.step, [raw({"text": "x"}, "aos.requests")]), "aos.ledger"))
    assert entry["waiting_max"] == Settings().waiting_max
    assert all(entry[name] is None for name in entry if name.startswith("quota_"))


@pytest.mark.parametrize("partitions", [1, 3])
def test_what_the_edge_writes_is_what_the_ledger_holds(partitions: int) -> None:
    given_views = views(partitions, quota_in_flight={"acme": 3})
    raws = [raw({"id": str(n), "text": "x"}, "aos.requests.acme", n) for n in range(60)]
    let_in = 0
    for output in run(encode.step, raws, given_views).outputs:
        if output.topic == "aos.ledger":
            world = World()
            world.state = supervise.initial(output.partition)
            world.fold_rows(output.rows)
            let_in += len(world.state.requests)
    assert let_in == 3
