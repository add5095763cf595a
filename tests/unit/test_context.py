"""Members of a request share a small context: changed by who knew its newest version, told to all who are at work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aos.agents.ledger_calls import CONTEXT_BYTES_MAX
from aos.streams import supervise
from tests.unit.given_calls import Family, delegated, family, shared
from tests.unit.given_ledger import Row, asked, assigned, id_of, outcome, planned, requested, row

BOTH = (asked("left"), asked("right"), asked("last", after=[0, 1]))


def pair() -> Family:
    """A request with two steps at work, x and y, and one that comes after them."""
    world = Family()
    world.say(requested(1, *BOTH))
    world.say(planned(step=0), planned(step=1), planned(step=2, agents=["z"]))
    world.say(assigned(step=0, agent="x"), assigned(step=1, agent="y"))
    return world


def told(said: dict[str, list[Row]], agent: str) -> Row:
    (found,) = [one for one in said.get(f"aos.inbox.s-{agent}", []) if one["kind"] == "context"]
    return found


def test_a_change_is_a_row_of_the_log_and_reaches_who_asked_and_all_who_are_at_work() -> None:
    world = pair()
    said = world.say(shared(b'{"goal": "short", "n": 1}'))
    (kept,) = said["aos.ledger"]
    assert (kept["kind"], kept["context_version"], kept["request_id"]) == ("context", 1, id_of(1))
    assert (kept["step"], kept["attempt"], kept["agent"]) == (0, 1, "x")
    assert kept["payload"] == b'{"goal":"short","n":1}'
    mine, others = told(said, "x"), told(said, "y")
    assert (mine["status"], mine["call"], mine["context_version"]) == ("ok", "s", 1)
    assert (others["status"], others["call"], others["context"]) == (None, None, kept["payload"])
    assert others["step"] == 1


def test_later_steps_parts_and_attempts_begin_with_it() -> None:
    world = pair()
    world.say(shared(b'{"goal": "short"}'))
    world.say(outcome(step=0, agent="x"), outcome(step=1, agent="y"))
    said = world.say(assigned(step=2, agent="z"))
    (work,) = said["aos.inbox.s-z"]
    assert (work["kind"], work["context"], work["context_version"]) == ("work", b'{"goal":"short"}', 1)


def test_a_request_whose_context_nobody_changed_sends_none() -> None:
    (work,) = [one for one in family().said["aos.inbox.s-x"] if one["kind"] == "work"]
    assert (work["context"], work["context_version"]) == (None, None)


def test_keys_are_set_one_by_one_and_null_takes_one_away() -> None:
    world = pair()
    world.say(shared(b'{"a": 1, "b": {"c": [1, 2]}}', 0))
    world.say(shared(b'{"a": null, "d": "\xc3\xa9"}', 1, "t", step=1, agent="y"))
    assert json.loads(world.state.requests[id_of(1)].context or b"") == {"b": {"c": [1, 2]}, "d": "é"}


def test_of_two_changes_from_one_version_the_first_in_the_log_counts_and_the_other_is_told_what_is_there() -> (
    None
):
    world = pair()
    said = world.say(shared(b'{"a": 1}', 0, "mine"), shared(b'{"a": 2}', 0, "yours", step=1, agent="y"))
    refused = [one for one in said["aos.inbox.s-y"] if one["call"] == "yours"]
    assert [(one["status"], one["code"], one["context"], one["context_version"]) for one in refused] == [
        ("failed", "AOS3014", b'{"a":1}', 1)
    ]
    assert world.state.requests[id_of(1)].context_version == 1
    assert len(said["aos.ledger"]) == 1


def test_a_change_that_is_said_again_is_answered_again_and_changes_nothing() -> None:
    world = pair()
    world.say(shared(b'{"a": 1}'))
    said = world.say(shared(b'{"a": 1}'))
    assert (told(said, "x")["status"], told(said, "x")["context_version"]) == ("ok", 1)
    assert "aos.ledger" not in said
    assert "aos.inbox.s-y" not in said


def test_a_context_larger_than_its_bound_is_refused() -> None:
    world = pair()
    world.say(shared(json.dumps({"a": "x" * (CONTEXT_BYTES_MAX - 20)}).encode()))
    found = told(world.say(shared(b'{"b": "twenty characters!!"}', 1, "t")), "x")
    assert (found["status"], found["code"], found["context_version"]) == ("failed", "AOS3015", 1)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"token": bytes(16)}, "AOS3007"), ({"attempt": 2}, "AOS3005"), ({"of": id_of(7)}, "AOS3011")],
)
def test_who_is_not_at_work_on_the_request_changes_nothing(change: dict[str, Any], code: str) -> None:
    world = pair()
    said = world.say(shared(b'{"a": 1}', **change))
    assert [one["code"] for one in said["aos.trails"]] == [code]
    assert world.state.requests[id_of(1)].context_version == 0


def test_a_child_has_a_context_of_its_own() -> None:
    world = family()
    world.say(shared(b'{"a": 1}'))
    world.say(delegated())
    world.work(world.child(), "y")
    (work,) = [one for one in world.said["aos.inbox.s-y"] if one["kind"] == "work"]
    assert work["context"] is None
    world.say(shared(b'{"b": 2}', of=world.child(), agent="y"))
    assert world.state.requests[id_of(1)].context == b'{"a":1}'


def test_the_next_round_begins_without_one_and_a_snapshot_keeps_it() -> None:
    world, other = pair(), pair()
    for one in (world, other):
        one.say(shared(b'{"a": 1}'))
    other.reload()
    assert other.bytes() == world.bytes()
    assert supervise.dump(other.state)["requests"].column("context")[0].as_py() == b'{"a":1}'
    world.say(row("cancel"))
    world.now += 1
    world.say(row("redrive", requested_at=world.now))
    (request,) = world.state.requests.values()
    assert (request.common.round, request.context_version) == (1, 0)
