"""supervise: what is first in the ledger counts, and every request ends in one result a round."""

from __future__ import annotations

from typing import Any

import pytest

from aos.streams import supervise
from aos.streams.processor import Batch, Recall
from tests.unit.given_ledger import (
    NOW,
    SECOND,
    World,
    asked,
    assigned,
    candidate,
    id_of,
    outcome,
    planned,
    refused,
    requested,
    row,
)

CHAIN = (asked("first"), asked("second", after=[0]))


def running(world: World | None = None, **said: Any) -> World:
    """A request whose only step is with agent x."""
    world = world or World()
    world.fold(requested(**said))
    world.fold(planned())
    world.fold(assigned())
    return world


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(rows) == 1
    return rows[0]


# one task's way


def test_a_planned_step_goes_to_the_lane_of_its_priority_at_its_cells_partition_with_that_cells_alternatives() -> (
    None
):
    world = World()
    world.fold(requested())
    said = world.fold(planned(agents=[candidate("x", "b"), candidate("y", "a"), candidate("z", "b")]))
    ready = only(said["aos.ready.p1"])
    assert (ready["_partition"], ready["attempt"], ready["running"]) == (1, 1, False)
    assert [a["agent"] for a in ready["alternatives"]] == ["x", "z"]


def test_an_assignment_sends_the_work_with_a_token_and_an_outcome_with_it_ends_the_request() -> None:
    world = World()
    world.fold(requested(payload=None))
    world.fold(planned())
    work = only(world.fold(assigned())["aos.inbox.s-x"])
    assert (work["kind"], work["agent"], work["text"], work["timeout_ms"]) == ("work", "x", "do only", 30_000)
    said = world.fold(outcome(score=0.25, cpu_us=40), after=1)
    result = only(said["aos.results"])
    assert (result["status"], result["payload"], result["agents"], result["attempts"]) == (
        "ok",
        b"done",
        ["x"],
        1,
    )
    assert (result["score"], result["cost_usd_micros"], result["cpu_us"]) == (0.25, 7, 40)
    assert only(said["aos.releases"])["reason"] == "ok"
    attempt, request = said["aos.trails"]
    assert (attempt["kind"], attempt["agent"], attempt["score"], attempt["model_version"]) == (
        "attempt",
        "x",
        0.25,
        4,
    )
    assert attempt["latency_us"] == SECOND
    assert len(attempt["embedding"]) == 256
    assert attempt["surface"][0] == len("only")
    assert (request["kind"], request["status"], request["embedding"]) == ("request", "ok", None)
    assert not world.state.requests


def test_a_step_receives_its_predecessors_outputs_in_the_order_of_after() -> None:
    world = World()
    world.fold(requested(1, asked("a"), asked("b"), asked("c", after=[1, 0])))
    world.fold(*(planned(step=step) for step in range(3)))
    world.fold(assigned(step=0), assigned(step=1))
    assert "aos.ready.p1" not in world.fold(outcome(step=0, payload=b"of a"))
    ready = only(world.fold(outcome(step=1, payload=b"of b"))["aos.ready.p1"])
    assert (ready["step"], ready["running"]) == (2, True)
    work = only(world.fold(assigned(step=2))["aos.inbox.s-x"])
    assert [(i["name"], i["payload"]) for i in work["inputs"]] == [("b", b"of b"), ("a", b"of a")]


def test_inputs_above_256_kib_fail_the_step() -> None:
    world = World()
    steps = [asked(f"s{n}") for n in range(9)]
    world.fold(requested(1, *steps, asked("last", after=list(range(9)))))
    world.fold(*(planned(step=step) for step in range(10)))
    world.fold(*(assigned(step=step) for step in range(9)))
    said = world.fold(*(outcome(step=step, payload=bytes(32 * 1024)) for step in range(9)))
    assert (only(said["aos.results"])["status"], only(said["aos.results"])["code"]) == ("failed", "AOS2004")


def test_inbox_rows_of_a_service_are_dealt_to_its_partitions_in_turn_and_a_cancel_follows_its_work() -> None:
    world = World(inbox_partitions=3)
    world.fold(*(requested(n) for n in range(6)))
    world.fold(*(planned(n) for n in range(6)))
    work = world.fold(*(assigned(n) for n in range(6)))["aos.inbox.s-x"]
    places = {w["request_id"]: w["_partition"] for w in work}
    assert sorted(places.values()) == [0, 0, 1, 1, 2, 2]
    cancels = world.fold(*(row("cancel", n) for n in range(6)))["aos.inbox.s-x"]
    assert {c["request_id"]: c["_partition"] for c in cancels} == places


def test_results_go_to_the_tenants_topic() -> None:
    world = World()
    said = world.fold(
        *(requested(n, asked(), tenant=t, deadline_at=NOW) for n, t in enumerate(["acme", "default"]))
    )
    assert [only(said[t])["tenant"] for t in ("aos.results.acme", "aos.results")] == ["acme", "default"]


# what is first counts


def test_the_second_assignment_of_an_attempt_is_released_as_ignored_and_the_first_said_again_is_not() -> None:
    world = running()
    assert world.fold(assigned()) == {}
    release = only(world.fold(assigned(agent="y", epoch=9))["aos.releases"])
    assert (release["agent"], release["reason"], release["epoch"]) == ("y", "ignored", 9)
    assert only(world.fold(outcome())["aos.results"])["agents"] == ["x"]


@pytest.mark.parametrize("known", [True, False], ids=["ended", "unknown"])
def test_an_assignment_after_the_end_is_released(known: bool) -> None:
    world = World()
    if known:
        world.fold(requested())
        world.fold(planned())
        world.fold(row("cancel"))
    release = only(world.fold(assigned(cell_partition=3))["aos.releases"])
    assert (release["reason"], release["_partition"], release["agent"]) == ("ignored", 3, "x")


def test_the_second_plan_of_a_matching_round_changes_nothing() -> None:
    world = World()
    world.fold(requested())
    world.fold(planned())
    before = world.bytes()
    assert world.fold(planned(agents=["z"])) == {}
    assert world.bytes() == before


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (outcome(token=bytes(16)), "AOS3007"),
        (outcome(agent="y"), "AOS3005"),
        (outcome(agent="x", epoch=6), "AOS3005"),
        (outcome(attempt=2), "AOS3005"),
        (outcome(step=3), "AOS3005"),
        (outcome(number=2), "AOS3011"),
        (outcome(token=None), "AOS3007"),
    ],
)
def test_an_answer_that_is_not_the_running_attempts_is_ignored_and_recorded(
    answer: dict[str, Any], code: str
) -> None:
    world = running()
    trail = only(world.fold(answer)["aos.trails"])
    assert (trail["kind"], trail["code"], trail["agent"]) == ("ignored", code, answer["agent"])
    end = world.fold(outcome())
    assert only(end["aos.results"])["status"] == "ok"
    assert end["aos.trails"][-1]["ignored"] == (code != "AOS3011")


def test_the_token_of_an_attempt_does_not_open_the_next_one_nor_is_it_forgotten_by_a_snapshot() -> None:
    world = running()
    world.fold(refused(agent="x"))  # the next attempt waits in its lane, and x was the last at work
    forged = outcome(attempt=2, token=outcome()["token"])
    assert only(world.fold(forged)["aos.trails"])["code"] == "AOS3007"
    assert only(world.fold(outcome())["aos.trails"])["code"] == "AOS3005"
    world.fold(assigned(attempt=2, agent="y"))
    world.reload()
    assert only(world.fold(outcome(attempt=2, agent="y"))["aos.results"])["status"] == "ok"


def test_a_duplicate_answer_is_called_so_and_one_after_the_end_is_late() -> None:
    world = World()
    world.fold(requested(1, *CHAIN))
    world.fold(planned(step=0), planned(step=1))
    world.fold(assigned())
    world.fold(outcome())
    assert only(world.fold(outcome())["aos.trails"])["code"] == "AOS3006"
    world.fold(assigned(step=1))
    world.fold(outcome(step=1))
    late = only(world.fold(outcome())["aos.trails"])
    assert (late["code"], late["requested_at"].timestamp()) == ("AOS3005", NOW / SECOND)


# time


@pytest.mark.parametrize(
    ("request_", "assignment", "settings", "limit_s"),
    [
        ({}, {}, {}, 30),
        ({}, {}, {"timeout_ms": 4000}, 4),
        ({}, {"timeout_ms": 3000}, {"timeout_ms": 4000}, 3),
        ({"steps": [asked(timeout_ms=2000)]}, {"timeout_ms": 3000}, {"timeout_ms": 4000}, 2),
        ({"deadline_at": NOW + SECOND}, {"timeout_ms": 3000}, {}, 1),
    ],
    ids=["default", "setting", "agent", "step", "deadline"],
)
def test_an_attempt_may_take_the_least_of_all_limits(
    request_: dict[str, Any], assignment: dict[str, Any], settings: dict[str, Any], limit_s: int
) -> None:
    world = World(**settings)
    world.fold(requested() | request_)
    world.fold(planned())
    work = only(world.fold(assigned(**assignment))["aos.inbox.s-x"])
    assert (world.next_due, work["timeout_ms"]) == (NOW + limit_s * SECOND, limit_s * 1000)


def test_a_time_out_frees_the_slot_withdraws_the_work_and_after_two_seconds_another_agent_is_asked() -> None:
    world = running()
    said = world.tick(30)
    assert only(said["aos.releases"])["reason"] == "timeout"
    assert only(said["aos.inbox.s-x"])["kind"] == "cancel"
    trail = only(said["aos.trails"])
    assert (trail["status"], trail["code"], trail["score"]) == ("timeout", "AOS3002", 0.0)
    assert world.next_due is not None
    assert 1.8 * SECOND <= world.next_due - world.now <= 2.2 * SECOND
    ready = only(world.run_to_due()["aos.ready.p1"])
    assert (ready["attempt"], [a["agent"] for a in ready["alternatives"]]) == (2, ["y"])
    late = only(world.fold(outcome())["aos.trails"])
    assert (late["kind"], late["code"]) == ("ignored", "AOS3005")


def test_waits_double_up_to_the_last_and_the_step_fails_after_attempts_max() -> None:
    world = World(attempts_max=3)
    world.fold(requested())
    world.fold(planned(agents=["a0", "a1", "a2", "a3"]))
    waits = []
    for attempt in range(1, 4):
        world.fold(assigned(attempt=attempt, agent=f"a{attempt}"))
        said = world.fold(
            outcome(attempt=attempt, agent=f"a{attempt}", status="failed", code="E1", message="no")
        )
        if attempt < 3:
            assert world.next_due is not None
            waits.append((world.next_due - world.now) / SECOND)
            world.run_to_due()
    assert waits == [pytest.approx(2, rel=0.1), pytest.approx(4, rel=0.1)]
    result = only(said["aos.results"])
    assert (result["status"], result["code"], result["message"], result["attempts"]) == (
        "failed",
        "E1",
        "no",
        3,
    )
    assert (result["score"], only(result["steps"])["status"]) == (0.0, "failed")


def test_a_failure_that_cannot_be_retried_fails_at_once() -> None:
    said = running().fold(outcome(status="failed", retryable=False))
    assert (only(said["aos.results"])["code"], only(said["aos.releases"])["reason"]) == ("AOS3001", "failed")


def test_progress_extends_the_attempt_but_not_beyond_the_deadline() -> None:
    world = running(deadline_at=NOW + 50 * SECOND)
    world.fold(outcome(status="progress"), after=10)
    assert world.next_due == NOW + 40 * SECOND
    world.fold(outcome(status="progress"), after=15)
    assert world.next_due == NOW + 50 * SECOND
    said = world.run_to_due()
    assert only(said["aos.results"])["status"] == "expired"
    assert only(said["aos.releases"])["reason"] == "expired"
    assert [t["status"] for t in said["aos.trails"]] == ["expired", "expired"]


def test_a_deadline_that_passes_in_a_lane_gives_the_place_up() -> None:
    world = World()
    world.fold(requested(deadline_at=NOW + SECOND))
    world.fold(planned())
    said = world.run_to_due()
    release = only(said["aos.releases"])
    assert (release["agent"], release["attempt"], release["reason"]) == ("", 1, "expired")
    result = only(said["aos.results"])
    assert (result["status"], result["code"], only(result["steps"])["status"]) == (
        "expired",
        "AOS3003",
        "expired",
    )
    assert "aos.inbox.s-x" not in said


def test_a_request_without_deadline_expires_after_the_settings_time() -> None:
    world = World(request_timeout_ms=1000, match_waits_ms=())
    world.fold(requested())
    assert only(world.tick(1)["aos.results"])["status"] == "expired"


# matching anew


def test_nobody_is_asked_for_again_after_each_wait_and_then_the_request_is_rejected() -> None:
    world = World()
    world.fold(requested())
    for match_round, wait in enumerate([1, 2, 4]):
        assert world.fold(planned(agents=[], match_round=match_round)) == {}
        assert world.next_due == world.now + wait * SECOND
        task = only(world.run_to_due()["aos.tasks"])
        assert (task["match_round"], task["step"], len(task["embedding"])) == (match_round + 1, 0, 256)
    result = only(world.fold(planned(agents=[], match_round=3))["aos.results"])
    assert (result["status"], result["code"]) == ("rejected", "AOS2005")


def test_when_nobody_is_left_the_step_is_matched_anew_without_those_that_failed_and_fails_with_their_code() -> (
    None
):
    world = World(match_waits_ms=(1000,))
    world.fold(requested())
    world.fold(planned(agents=["x"]))
    world.fold(assigned())
    world.fold(outcome(status="failed", code="E7"))
    task = only(world.run_to_due()["aos.tasks"])
    assert (task["match_round"], task["exclude"]) == (1, ["x"])
    world.fold(planned(agents=[], match_round=1))
    world.run_to_due()
    result = only(world.fold(planned(agents=[], match_round=2))["aos.results"])
    assert (result["status"], result["code"]) == ("failed", "E7")


def test_a_refusal_asks_the_next_cell_under_the_next_number_and_all_cells_refusing_matches_anew_after_a_wait() -> (
    None
):
    world = World()
    world.fold(requested())
    world.fold(planned(agents=[candidate("x", "a"), candidate("y", "b"), candidate("z", "a")]))
    ready = only(world.fold(refused(), after=1)["aos.ready.p1"])
    assert (ready["_partition"], ready["attempt"], ready["refusals"]) == (1, 2, 1)
    assert ready["ready_at"].timestamp() == NOW / SECOND
    assert world.fold(refused()) == {}
    assert world.fold(refused(attempt=2, cell="b")) == {}
    assert world.next_due == world.now + SECOND
    assert only(world.run_to_due()["aos.tasks"])["match_round"] == 1


def test_an_agent_that_is_gone_is_replaced_at_once_and_does_not_count_as_a_try() -> None:
    world = World(attempts_max=1)
    world.fold(requested())
    world.fold(planned())
    for attempt in (1, 2):
        world.fold(assigned(attempt=attempt))
        said = world.fold(refused(attempt=attempt, agent="x", code="AOS3009"))
        assert only(said["aos.ready.p1"])["attempt"] == attempt + 1
        assert only(said["aos.releases"])["agent"] == "x"
        assert only(said["aos.trails"])["code"] == "AOS3009"
    world.fold(assigned(attempt=3))
    result = only(world.fold(refused(attempt=3, agent="x", code="AOS3009"))["aos.results"])
    assert (result["status"], result["code"]) == ("failed", "AOS3009")


def test_without_any_plan_it_is_asked_again_after_5_10_and_20_seconds_and_not_more_often() -> None:
    world = World()
    world.fold(requested())
    asked_at = []
    for _ in range(3):
        assert only(world.run_to_due()["aos.tasks"])["match_round"] == 0
        asked_at.append((world.now - NOW) // SECOND)
    assert asked_at == [5, 15, 35]
    assert only(world.run_to_due()["aos.results"])["status"] == "expired"
    assert (world.now - NOW) // SECOND == 600


# judges, teams, budgets


JUDGED = (asked("make"), asked("check", after=[0], judges=0))


def judged(world: World, **verdict: Any) -> dict[str, list[dict[str, Any]]]:
    """Both steps run; what the answer of the judge leads to."""
    world.fold(requested(1, *JUDGED))
    world.fold(planned(step=0), planned(step=1))
    world.fold(assigned())
    assert "aos.trails" not in world.fold(outcome(score=0.9, payload=b"made"))
    work = only(world.fold(assigned(step=1, agent="y"))["aos.inbox.s-y"])
    assert [i["payload"] for i in work["inputs"]] == [b"made"]
    return world.fold(outcome(step=1, agent="y", payload=None, **verdict))


def test_a_judged_step_teaches_with_the_verdict_and_the_judge_with_having_judged() -> None:
    said = judged(World(), score=0.25)
    trails = {(t["kind"], t["step"]): t for t in said["aos.trails"]}
    assert (trails["attempt", 0]["score"], trails["attempt", 0]["judged"]) == (0.25, True)
    assert (trails["attempt", 1]["score"], trails["attempt", 1]["judged"]) == (1.0, False)
    result = only(said["aos.results"])
    assert (result["score"], result["payload"]) == (0.25, b"made")
    assert [s["score"] for s in result["steps"]] == [0.25, 1.0]


def test_when_the_judge_fails_the_judged_step_teaches_with_its_own_report() -> None:
    said = judged(World(), status="failed", retryable=False)
    trails = {(t["kind"], t["step"]): t for t in said["aos.trails"]}
    assert trails["attempt", 0]["score"] == pytest.approx(0.9)
    assert not trails["attempt", 0]["judged"]
    assert only(said["aos.results"])["status"] == "failed"


def test_a_held_trail_survives_a_snapshot() -> None:
    world = World()
    world.fold(requested(1, *JUDGED))
    world.fold(planned(step=0), planned(step=1))
    world.fold(assigned())
    world.fold(outcome(score=0.9))
    world.fold(assigned(step=1, agent="y"))
    world.reload()
    said = world.fold(outcome(step=1, agent="y", score=0.25))
    assert [(t["step"], t["score"]) for t in said["aos.trails"]] == [(1, 1.0), (0, 0.25), (-1, 0.25)]


def part(step: int, after: list[int], **said: Any) -> dict[str, Any]:
    return planned(step=step, parent=0, after=after, step_name=f"part {step}", require=[f"r{step}"], **said)


def test_a_team_does_its_parts_in_order_and_the_steps_output_is_the_last_ones() -> None:
    world = World()
    world.fold(requested(1, asked("whole"), asked("next", after=[0])))
    said = world.fold(part(2, []), part(3, [2]), planned(step=1))
    assert only(said["aos.ready.p1"])["step"] == 2
    assert world.fold(part(2, []), part(3, [2]), part(4, [3])) == {}
    world.fold(assigned(step=2))
    assert only(world.fold(outcome(step=2, payload=b"half"))["aos.ready.p1"])["step"] == 3
    work = only(world.fold(assigned(step=3, agent="y"))["aos.inbox.s-y"])
    assert (work["text"], [i["payload"] for i in work["inputs"]]) == ("do whole", [b"half"])
    assert only(world.fold(outcome(step=3, agent="y", payload=b"full"))["aos.ready.p1"])["step"] == 1
    assert only(only(world.fold(assigned(step=1))["aos.inbox.s-x"])["inputs"])["payload"] == b"full"
    result = only(world.fold(outcome(step=1))["aos.results"])
    assert [(s["name"], s["agent"]) for s in result["steps"]] == [
        ("whole", "y"), ("next", "x"), ("part 2", "x"), ("part 3", "y"),
    ]  # fmt: skip
    assert result["attempts"] == 3


def test_the_judge_of_a_team_judges_its_last_part() -> None:
    world = World()
    world.fold(requested(1, *JUDGED))
    world.fold(part(2, []), part(3, [2]), planned(step=1))
    world.fold(assigned(step=2))
    assert len(world.fold(outcome(step=2))["aos.trails"]) == 1
    world.fold(assigned(step=3, agent="y"))
    assert "aos.trails" not in world.fold(outcome(step=3, agent="y"))
    world.fold(assigned(step=1, agent="z"))
    trails = world.fold(outcome(step=1, agent="z", score=0.5))["aos.trails"]
    assert [(t["step"], t["score"], t["judged"]) for t in trails[:2]] == [(1, 1.0, False), (3, 0.5, True)]


def test_a_part_that_comes_after_an_unknown_part_rejects_the_request() -> None:
    world = World()
    world.fold(requested())
    assert only(world.fold(part(1, [5]))["aos.results"])["code"] == "AOS2002"


def test_what_is_left_of_the_budget_travels_and_an_overspent_request_fails_when_work_remains() -> None:
    world = World()
    world.fold(requested(1, *CHAIN, budget_usd_micros=10))
    world.fold(planned(step=0), planned(step=1))
    world.fold(assigned())
    world.fold(outcome(cost_usd_micros=4))
    assert only(world.fold(assigned(step=1))["aos.inbox.s-x"])["budget_usd_micros"] == 6
    said = world.fold(outcome(step=1, status="failed", cost_usd_micros=7))
    assert (only(said["aos.results"])["code"], only(said["aos.results"])["cost_usd_micros"]) == (
        "AOS2006",
        11,
    )


def test_a_request_that_overspends_with_its_last_step_is_ok() -> None:
    world = running(budget_usd_micros=1)
    assert only(world.fold(outcome(cost_usd_micros=9))["aos.results"])["status"] == "ok"


def test_when_a_step_fails_the_others_are_withdrawn() -> None:
    world = World()
    world.fold(requested(1, asked("a"), asked("b"), asked("c")))
    world.fold(*(planned(step=step) for step in range(3)))
    world.fold(assigned(step=0), assigned(step=1, agent="y"))
    said = world.fold(outcome(status="failed", retryable=False))
    assert [(r["step"], r["agent"], r["reason"]) for r in said["aos.releases"]] == [
        (0, "x", "failed"), (1, "y", "cancelled"), (2, "", "cancelled"),
    ]  # fmt: skip
    assert only(said["aos.inbox.s-y"])["kind"] == "cancel"
    assert [s["status"] for s in only(said["aos.results"])["steps"]] == ["failed", "cancelled", "cancelled"]


# how requests end


def test_a_cancelled_request_ends_once_and_a_cancel_of_an_unknown_or_ended_one_is_ignored() -> None:
    world = running()
    said = world.fold(row("cancel", message="enough"))
    assert (only(said["aos.results"])["status"], only(said["aos.results"])["message"]) == (
        "cancelled",
        "enough",
    )
    assert only(said["aos.releases"])["reason"] == "cancelled"
    assert world.fold(row("cancel"), row("cancel", 2)) == {}


def test_a_refusal_by_the_edge_or_by_compose_ends_the_request_rejected() -> None:
    world = World()
    said = world.fold(row("rejected", 1, id="bad", code="AOS2001", message="a cycle"))
    assert (only(said["aos.results"])["status"], only(said["aos.results"])["code"]) == ("rejected", "AOS2001")
    world.fold(requested(2))
    said = world.fold(row("rejected", 2, match_round=0, code="AOS2007"))
    assert only(said["aos.results"])["code"] == "AOS2007"


def test_composes_refusal_of_a_matching_that_was_answered_or_of_an_unknown_request_changes_nothing() -> None:
    world = running()
    assert world.fold(row("rejected", match_round=0, code="AOS2007"), row("rejected", 9, match_round=0)) == {}


def test_a_request_whose_deadline_has_passed_when_it_comes_expires_at_once() -> None:
    assert only(World().fold(requested(deadline_at=NOW))["aos.results"])["code"] == "AOS3003"


def test_a_step_that_names_a_step_that_is_not_there_rejects_the_request() -> None:
    assert only(World().fold(requested(1, asked(after=[4])))["aos.results"])["code"] == "AOS2002"


# again


def done(world: World, *numbers: int) -> None:
    world.fold(*(requested(n) for n in numbers))
    world.fold(*(planned(n) for n in numbers))
    world.fold(*(assigned(n) for n in numbers))
    world.fold(*(outcome(n, payload=b"result %d" % n) for n in numbers))


def test_a_repeated_request_in_flight_waits_for_its_result_and_an_ended_one_gets_it_again() -> None:
    world = running()
    assert world.fold(requested()) == {}
    first = only(world.fold(outcome())["aos.results"])
    world.reload()
    again = only(world.fold(requested(), after=5)["aos.results"])
    assert again == first | {"repeated": True}
    assert (world.recalls[0].offsets, len(world.state.requests)) == ((4,), 0)


def test_a_failed_request_is_answered_again_without_reading_the_log() -> None:
    world = World()
    first = only(world.fold(row("rejected", code="AOS2001"))["aos.results"])
    again = only(world.fold(row("rejected", code="AOS2001"))["aos.results"])
    assert (again, world.recalls) == (first | {"repeated": True}, [])


def test_a_repeat_in_the_same_message_as_the_end_is_answered() -> None:
    world = running()
    rows = world.fold(outcome(), requested())["aos.results"]
    assert [r["repeated"] for r in rows] == [False, True]
    assert rows[1]["payload"] == b"done"


def test_when_the_log_no_longer_has_the_payload_the_repeat_says_so() -> None:
    world = World()
    done(world, 1)
    world.fold(requested())
    answer = supervise.recall(world.recalls[0], [], world.views)[0].rows.to_pylist()[0]
    assert (answer["status"], answer["code"], answer["payload"]) == ("ok", "AOS3012", None)


def test_ended_requests_are_forgotten_by_age_and_by_number() -> None:
    world = World(repeat_window_s=10, repeat_rows=2)
    done(world, 1, 2, 3)
    world.tick(1)
    assert [id_of(n) in world.state.memory for n in (1, 2, 3)] == [False, True, True]
    world.tick(10)
    assert len(world.state.memory) == 0
    assert "aos.results" not in world.fold(requested(2))


def test_a_redrive_runs_an_ended_request_in_its_next_round_with_as_much_time_as_before() -> None:
    world = World()
    world.fold(requested(deadline_at=NOW + 60 * SECOND))
    world.fold(row("cancel"), after=50)
    written = only(world.fold(row("redrive", requested_at=world.now), after=50)["aos.ledger"])
    assert (written["kind"], written["round"], written["_partition"]) == ("requested", 1, 0)
    written.pop("_partition")
    written["requested_at"] = written["requested_at"].timestamp() * SECOND
    written["deadline_at"] = round(written["deadline_at"].timestamp() * SECOND)
    task = only(world.fold(written)["aos.tasks"])
    assert (task["round"], task["match_round"]) == (1, 0)
    assert task["deadline_at"].timestamp() * SECOND == world.now + 60 * SECOND
    world.fold(planned(round=1))
    world.fold(assigned(round=1))
    late = only(world.fold(outcome())["aos.trails"])
    assert (late["kind"], late["code"]) == ("ignored", "AOS3005")
    result = only(world.fold(outcome(token_round=1))["aos.results"])
    assert (result["round"], result["status"]) == (1, "ok")
    assert only(world.fold(requested())["aos.results"])["round"] == 1


def test_a_redrive_of_an_unknown_request_or_one_in_flight_is_ignored() -> None:
    world = running()
    assert world.fold(row("redrive"), row("redrive", 2)) == {}


def test_an_order_that_is_read_again_does_not_count_for_a_round_that_began_after_it() -> None:
    world = World()
    world.fold(requested())
    cancel = row("cancel", requested_at=world.now)
    world.fold(cancel, after=1)
    redrive = row("redrive", requested_at=world.now + 1)
    (written,) = world.fold(redrive, after=1)["aos.ledger"]
    written.pop("_partition")
    written["requested_at"] = NOW
    world.fold(written, after=1)
    assert world.fold(cancel, redrive, after=1) == {}
    (result,) = world.fold(row("cancel", requested_at=world.now))["aos.results"]
    assert (result["round"], result["status"]) == (1, "cancelled")
    assert world.fold(redrive, after=1) == {}


def test_a_redrive_whose_request_is_no_longer_in_the_log_is_rejected() -> None:
    world = World()
    done(world, 1)
    world.fold(row("redrive", requested_at=world.now))
    asked_for = world.recalls[-1]
    found = supervise.recall(asked_for, [], world.views)[0]
    assert found.topic == "aos.ledger"
    world.fold_rows(found.rows)
    result = world.said["aos.results"][-1]
    assert (result["round"], result["status"], result["code"]) == (1, "rejected", "AOS3012")


def test_a_recall_takes_the_row_it_means_and_no_other() -> None:
    world = World()
    done(world, 1, 2, 3)
    assert only(world.fold(requested(2))["aos.results"])["payload"] == b"result 2"
    kept = world.recalls[-1]
    other = [Batch("aos.ledger", 0, kept.offsets[0] + 1, world.log[kept.offsets[0]])]
    assert (
        supervise.recall(Recall(0, kept.offsets, kept.rows), other, world.views)[0].rows["code"][0].as_py()
        == "AOS3012"
    )


def test_a_tick_is_a_row_of_the_ledger_that_belongs_to_nobody() -> None:
    rows = supervise.tick(3, NOW).to_pylist()
    assert (only(rows)["kind"], only(rows)["request_id"], only(rows)["home"]) == ("tick", bytes(16), 3)
