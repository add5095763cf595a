"""What an agent hands out is a request of its own that cannot outlive, outspend or outnumber the one it came from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aos.agents.ledger_calls import CALLS_MAX
from aos.agents.ledger_family import DEPTH_MAX
from aos.codecs.rows import from_dicts
from aos.streams import supervise
from tests.unit.given_calls import Family, at, delegated, family
from tests.unit.given_ledger import (
    NOW,
    SECOND,
    Row,
    assigned,
    candidate,
    go_on_alike,
    id_of,
    outcome,
    planned,
    requested,
    row,
)


def only(rows: list[Row]) -> Row:
    assert len(rows) == 1
    return rows[0]


def result(said: dict[str, list[Row]], agent: str = "x") -> Row:
    """The one answer in the agent's inbox."""
    return only([one for one in said[f"aos.inbox.s-{agent}"] if one["kind"] == "result"])


# the child and its parent


def test_a_child_is_a_request_of_its_parents_tenant_place_priority_and_limits() -> None:
    world = family(
        tenant="acme", domain="acme/law", priority=0, deadline_at=NOW + 20 * SECOND, policy="round-robin"
    )
    said = world.say(delegated(require=["sum"], task_kind="adding"))
    child = only(said["aos.ledger"])
    assert child["request_id"] == world.child()
    assert (child["tenant"], child["domain"], child["home"], child["priority"]) == ("acme", "acme/law", 0, 0)
    assert (child["policy"], child["task_kind"], child["round"]) == ("round-robin", "adding", 0)
    assert (child["parent_id"], child["depth"], child["agent"]) == (id_of(1), 1, "x")
    assert child["id"] == f"{id_of(1).hex()}/0/1/0"
    task = only(said["aos.tasks"])
    assert (task["request_id"], task["require"], task["match_round"]) == (world.child(), ["sum"], 0)


def test_its_result_reaches_the_inbox_of_the_attempt_that_waits_and_the_topic_of_results() -> None:
    world = family()
    world.say(delegated("sum"))
    world.work(world.child("sum"), "y")
    said = world.answer(world.child("sum"), "y", payload=b"42")
    found = result(said)
    assert (found["request_id"], found["step"], found["attempt"], found["agent"]) == (id_of(1), 0, 1, "x")
    assert (found["call"], found["status"], found["payload"], found["code"]) == ("sum", "ok", b"42", None)
    work = only([one for one in world.said["aos.inbox.s-x"] if one["kind"] == "work"])
    assert (found["token"], found["_partition"]) == (work["token"], work["_partition"])
    assert only(said["aos.results"])["request_id"] == world.child("sum")
    assert only(world.answer(id_of(1), "x")["aos.results"])["status"] == "ok"
    assert not world.state.requests
    assert not world.state.children


def test_the_same_call_said_again_is_the_same_child_before_and_after_it_ended() -> None:
    world = family()
    first = world.fold(delegated())["aos.ledger"]
    assert "aos.ledger" not in world.fold(delegated())  # before supervise has read its own row
    for _ in range(2):  # that row may come twice
        world.say(*({k: v for k, v in child.items() if k != "_partition"} for child in first))
    assert len(world.state.requests) == 2
    assert "aos.ledger" not in world.say(delegated())
    world.work(world.child(), "y")
    world.answer(world.child(), "y")
    assert "aos.ledger" not in world.say(delegated())
    assert len(world.state.requests) == 1


def test_another_attempt_or_round_hands_out_another_child() -> None:
    world = family()
    assert world.child(attempt=1) != world.child(attempt=2)
    assert world.child("0") != world.child("1")
    assert world.child(step=0) != world.child(step=1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"token": bytes(16)}, "AOS3007"),
        ({"token": None}, "AOS3007"),
        ({"agent": "y", "token": bytes(16)}, "AOS3007"),
        ({"attempt": 2}, "AOS3005"),
        ({"of": id_of(9)}, "AOS3011"),
    ],
)
def test_who_does_not_hold_the_attempts_token_hands_out_nothing_and_leaves_a_trace(
    change: dict[str, Any], code: str
) -> None:
    world = family()
    said = world.say(delegated(**change))
    assert "aos.ledger" not in said
    assert only(said["aos.trails"])["code"] == code
    assert len(world.state.requests) == 1


def test_a_child_goes_before_new_requests_of_its_priority() -> None:
    world = family()
    world.say(delegated())
    said = world.say(at(world.child(), planned()))
    assert only(said["aos.ready.p1"])["running"] is True


# time


def test_while_a_child_is_in_flight_its_attempts_time_does_not_count_and_afterwards_it_has_all_of_it() -> (
    None
):
    world = family(deadline_at=NOW + 200 * SECOND)
    world.say(delegated(deadline_at=NOW + 100 * SECOND))
    world.work(world.child(), "y", step=0)
    world.tick(29)
    world.tick(31)  # y's 30 s are over: another attempt follows; x waits on
    assert "aos.results" not in world.said
    assert world.state.requests[id_of(1)].steps[0].state == 3
    said = world.say(row("cancel") | {"request_id": world.child()}, after=1)
    assert result(said)["status"] == "cancelled"
    assert result(said)["timeout_ms"] == 30_000
    said = world.tick(30)
    assert only(said["aos.trails"])["status"] == "timeout"


def test_a_child_without_a_deadline_has_one_attempts_time_and_none_has_more_than_its_parent() -> None:
    world = family(deadline_at=NOW + 50 * SECOND)
    assert (
        only(world.fold(delegated("a"))["aos.ledger"])["deadline_at"].timestamp() * 1e6 == NOW + 30 * SECOND
    )
    late = world.fold(delegated("b", deadline_at=NOW + 90 * SECOND))
    assert only(late["aos.ledger"])["deadline_at"].timestamp() * 1e6 == NOW + 50 * SECOND


def test_a_child_that_expires_is_told_to_who_waits() -> None:
    world = family()
    world.say(delegated(deadline_at=NOW + 3 * SECOND))
    found = result(world.tick(3))
    assert (found["status"], found["code"]) == ("expired", "AOS3003")


# an end above ends all below


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "agent gone"])
def test_when_an_attempt_ends_what_it_handed_out_is_cancelled_to_the_last_grandchild(how: str) -> None:
    world = family()
    world.say(delegated())
    world.work(world.child(), "y")
    world.say(delegated("deep", of=world.child(), agent="y"))
    grandchild = world.child("deep", world.child())
    world.work(grandchild, "z")
    said = {
        "answered": lambda: world.answer(id_of(1), "x"),
        "failed": lambda: world.answer(id_of(1), "x", status="failed", payload=None),
        "cancelled": lambda: world.say(row("cancel")),
        "agent gone": lambda: world.say(row("refused", step=0, attempt=1, agent="x", code="AOS3009")),
    }[how]()
    ends = {one["request_id"]: one["status"] for one in said["aos.results"] if one["request_id"] != id_of(1)}
    assert ends == {world.child(): "cancelled", grandchild: "cancelled"}
    assert [one["kind"] for one in said["aos.inbox.s-z"]] == ["cancel"]
    assert "result" not in [one["kind"] for topic in said if "inbox" in topic for one in said[topic]]
    assert not world.state.children


def test_a_child_whose_parent_ends_before_its_own_row_is_read_is_cancelled_and_reaches_no_agent() -> None:
    world = family()
    waiting = world.fold(delegated())["aos.ledger"]
    world.say(row("cancel"))
    said = world.say(*({k: v for k, v in one.items() if k != "_partition"} for one in waiting))
    found = only(said["aos.results"])
    assert (found["request_id"], found["status"], found["code"]) == (world.child(), "cancelled", "AOS3004")
    assert "aos.tasks" not in said
    assert not world.state.requests
    assert not world.state.children


# what is refused


def deep(world: Family, levels: int) -> bytes:
    """Hand out one below the other, each level to another agent; the id of the last."""
    last, agent = id_of(1), "x"
    for level in range(levels):
        world.say(delegated("d", of=last, agent=agent, text=f"level {level}"))
        last, agent = world.child("d", last), f"a{level}"
        world.work(last, agent)
    return last


def test_four_delegations_may_follow_one_another_and_a_fifth_is_refused() -> None:
    world = family()
    last = deep(world, DEPTH_MAX)
    assert world.state.requests[last].depth == 4
    said = world.say(delegated("more", of=last, agent="a3", text="too deep"))
    found = result(said, "a3")
    assert (found["status"], found["code"], found["call"]) == ("rejected", "AOS2201", "more")
    assert only(said["aos.results"])["code"] == "AOS2201"
    assert "aos.tasks" not in said


def test_an_attempt_that_delegates_without_end_is_refused() -> None:
    world = family()
    for number in range(CALLS_MAX):
        assert "aos.tasks" in world.say(delegated(str(number), text=f"part {number}"))
    found = result(world.say(delegated("more", text="one more")))
    assert found["code"] == "AOS2202"


def test_work_that_an_agent_hands_on_unchanged_does_not_come_back_to_it() -> None:
    world = family()
    said = world.say(delegated(text="do only"))  # what x was asked itself
    assert only(said["aos.tasks"])["exclude"] == ["x"]
    world.work(world.child(), "y")
    said = world.say(delegated("back", of=world.child(), agent="y", text="do only"))
    assert set(only(said["aos.tasks"])["exclude"]) == {"x", "y"}


def test_work_that_goes_back_and_forth_is_refused_with_a_code() -> None:
    world = family()
    world.say(delegated(text="do only"))
    world.work(world.child(), "y")
    said = world.say(delegated("back", of=world.child(), agent="y", text="do only", pin=["x"]))
    assert result(said, "y")["code"] == "AOS2203"
    world.say(delegated("other", of=world.child(), agent="y", text="in other words"))
    other = world.child("other", world.child())
    world.work(other, "x")
    said = world.say(delegated("again", of=other, text="do only"))
    assert result(said)["code"] == "AOS2203"


def test_what_the_edge_refused_is_told_to_the_agent_with_its_code() -> None:
    world = family()
    said = world.say(delegated() | {"steps": None, "code": "AOS2004", "message": "too large"})
    assert (result(said)["status"], result(said)["code"]) == ("rejected", "AOS2004")


# money


def test_a_child_gets_what_is_left_or_less_and_its_cost_is_its_parents() -> None:
    world = family(budget_usd_micros=100)
    world.say(delegated("a", budget_usd_micros=30))
    assert world.state.requests[world.child("a")].budget_usd_micros == 30
    world.say(delegated("b", text="another"))
    assert world.state.requests[world.child("b")].budget_usd_micros == 70
    refused = result(world.say(delegated("c", text="a third")))
    assert (refused["status"], refused["code"]) == ("rejected", "AOS2006")
    world.work(world.child("a"), "y")
    world.answer(world.child("a"), "y", cost_usd_micros=25)
    assert world.state.requests[id_of(1)].cost_usd_micros == 25
    world.say(delegated("d", text="a fourth"))  # five were promised and not spent
    assert world.state.requests[world.child("d")].budget_usd_micros == 5
    last = world.answer(id_of(1), "x", cost_usd_micros=10)
    assert [one["cost_usd_micros"] for one in last["aos.results"] if one["request_id"] == id_of(1)] == [35]
    ends = [one for one in world.said["aos.trails"] if one["kind"] == "request"]
    assert sum(one["cost_usd_micros"] for one in ends) == 35, (
        "each row its own: sums in SQL count nothing twice"
    )


def test_a_workflow_never_spends_more_than_its_budget_and_one_attempt_whatever_it_hands_out() -> None:
    world = family(budget_usd_micros=50)
    spent = 0
    for number in range(20):
        call = f"c{number}"
        world.say(delegated(call, text=call))
        if world.child(call) not in world.state.requests:
            continue
        world.work(world.child(call), "y")
        world.answer(world.child(call), "y", cost_usd_micros=15)
        spent += 15
    assert spent <= 50 + 15
    assert world.state.requests[id_of(1)].cost_usd_micros == spent


def test_what_an_agent_delegates_is_let_in_whatever_the_quota_and_counts_as_in_flight() -> None:
    world = Family()
    limits = {
        "quota_in_flight": 1,
        "quota_requests": 0.001,
        "quota_burst_s": 1.0,
        "quota_shares": 1,
        "waiting_max": 1,
    }
    world.say(requested(1, **limits))
    world.work()
    assert "aos.tasks" in world.say(delegated())
    assert world.state.accounts.of("default").in_flight == 2
    assert sum(world.state.accounts.waiting) == 0, "it is part of what has started"
    world.answer(id_of(1), "x")
    assert world.state.accounts.of("default").in_flight == 0


# agents that wait for each other


def circle() -> Family:
    """x waits for what only y may do, y for what only x may do."""
    world = Family()
    for number, agent, other in ((1, "x", "y"), (2, "y", "x")):
        world.say(requested(number))
        world.work(id_of(number), agent)
        world.say(delegated(of=id_of(number), agent=agent, text=f"of {number}"))
        world.say(at(world.child(of=id_of(number)), planned(agents=[candidate(other)])))
    return world


def test_agents_that_wait_for_each_other_are_reported_once_and_a_time_out_ends_it() -> None:
    world = circle()
    said = world.tick(2)
    alert = only(said["aos.alerts"])
    assert (alert["kind"], alert["source"]) == ("opened", "supervise")
    assert json.loads(alert["evidence"])["agents"] == ["x", "y"]
    assert "aos.alerts" not in world.tick(5)
    said = world.tick(24)
    assert {one["code"] for one in said["aos.results"]} == {"AOS3013"}
    assert only(said["aos.alerts"])["alert"] == alert["alert"]
    assert said["aos.alerts"][0]["kind"] == "cleared"
    assert result(said, "x")["code"] == result(said, "y")["code"] == "AOS3013"


def test_who_waits_for_an_agent_that_works_is_in_no_circle() -> None:
    world = circle()
    world.say(requested(3))
    world.work(id_of(3), "y")  # y has another slot, and something to do
    assert "aos.alerts" not in world.tick(2)


def test_a_child_that_another_agent_may_take_is_in_no_circle() -> None:
    world = Family()
    world.say(requested(1))
    world.work(id_of(1), "x")
    world.say(delegated())
    world.say(at(world.child(), planned(agents=[candidate("x"), candidate("z")])))
    assert "aos.alerts" not in world.tick(2)


def test_a_circle_that_opens_again_by_a_free_slot_is_cleared() -> None:
    world = circle()
    alert = only(world.tick(2)["aos.alerts"])
    child = bytes.fromhex(alert["alert"].split("/")[1])
    agent = "y" if child == world.child(of=id_of(1)) else "x"
    said = world.say(at(child, assigned(agent=agent)))
    assert only(said["aos.alerts"])["kind"] == "cleared"


# the fold


def test_a_family_survives_a_snapshot_and_the_same_log_gives_the_same_bytes() -> None:
    world, other = circle(), circle()
    other.reload()
    assert other.state.children == world.state.children
    go_on_alike(world, other, 40)


def test_a_state_of_a_release_without_delegation_is_read() -> None:
    world = family()
    tables = supervise.dump(world.state)
    new = ["parent_id", "parent_step", "parent_attempt", "depth", "giver", "digest", "circle"]
    new += ["below_usd_micros", "below_cpu_us", "below_tokens"]
    new += ["context", "context_version", "context_by"]
    old = {
        **tables,
        "requests": tables["requests"].drop_columns(new),
        "steps": tables["steps"].drop_columns(["calls"]),
    }
    world.state = supervise.load(0, old)
    assert "aos.tasks" in world.say(delegated())


def test_a_kind_that_is_said_in_one_message_with_others_is_read_in_the_order_of_the_log() -> None:
    world = family()
    said = world.fold_rows(from_dicts("entry", [delegated("a"), outcome(), delegated("b")]))
    assert only(said["aos.ledger"])["id"].endswith("/a")
    assert [one["code"] for one in said["aos.trails"] if one["kind"] == "ignored"] == ["AOS3005"]
