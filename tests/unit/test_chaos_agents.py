"""The faults of agents: rogues misbehave as ordered, and each law about answers reports what breaks it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aos.agents import identity, ledger, ledger_doubt, ledger_life
from tests.chaos import bugs_answers, faults, rogue  # noqa: F401  (registers its bugs)
from tests.chaos.asking import assigned, wrong_ends
from tests.chaos.faults_agents import misses, most_open, shares, still_trusted, unrecorded
from tests.chaos.faults_owners import done_twice, ends_of_each, services_of
from tests.chaos.judge_answers import answers_count_once
from tests.chaos.judge_read import Evidence, Row
from tests.chaos.planting import BUGS

CHAOS = Path(rogue.__file__).parent
T0 = 1_000_000.0
REQUEST, OTHER = b"r" * 16, b"s" * 16
LIMIT_MS = 1500
WORK: Row = {
    "request_id": REQUEST, "home": 3, "step": 0, "attempt": 1, "agent": "x-1", "epoch": 7, "token": b"t" * 16,
    "text": "a task", "timeout_ms": LIMIT_MS, "kind": "work",
}  # fmt: skip


def answers(manner: str) -> list[rogue.Said]:
    past = rogue.Past(["x-1", "x-2", "nobody"], "", "seed")
    past.seen.append(OTHER)
    return rogue.MANNERS[manner](dict(WORK), past)


def wrong_in(said: rogue.Said) -> set[str]:
    """What an answer says otherwise than its assignment."""
    return {name for name in rogue.ECHO if said.row[name] != WORK[name]}


@pytest.mark.parametrize("name", ["rogue.py", "judge_answers.py"])
def test_who_plays_against_aos_and_who_judges_it_import_nothing_of_it(name: str) -> None:
    tree = ast.parse((CHAOS / name).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in modules if module.split(".")[0] == "aos"}


def test_all_faults_of_agents_have_hands() -> None:
    registry = faults.load_all()
    assert {number for number in (25, 26, 27, 28, 38) if registry[number].missing() is None} == {
        25, 26, 27, 28, 38,
    }  # fmt: skip


def test_a_good_agent_answers_once_and_a_mute_one_never() -> None:
    assert [(said.delay_s, said.label) for said in answers("good")] == [(0.0, "right")]
    assert answers("good")[0].row["payload"] == b"A TASK"
    assert answers("mute") == []


def test_one_that_answers_twice_says_the_right_thing_first_and_each_with_the_true_token() -> None:
    said = answers("twice")
    assert [one.label for one in said] == ["right", "double", "double"]
    assert [one.row["payload"] for one in said] == [b"A TASK", b"SECOND", b"SECOND"]
    assert all(not wrong_in(one) for one in said)


def test_a_late_one_speaks_after_its_time_and_after_the_next_was_asked() -> None:
    times = [one.delay_s for one in answers("late")]
    assert LIMIT_MS / 1000 < times[0] < LIMIT_MS / 1000 + 2.0 * 0.9
    assert times[1] > LIMIT_MS / 1000 + 2.0 * 1.1


def test_each_forged_answer_is_wrong_in_one_thing_and_all_things_are_tried() -> None:
    forged = [one for one in answers("forge") if one.label != "right"]
    assert [len(wrong_in(one)) for one in forged] == [1] * len(forged)
    assert set().union(*map(wrong_in, forged)) == {"request_id", "step", "attempt", "agent", "epoch", "token"}
    assert OTHER in {one.row["request_id"] for one in forged}
    assert not wrong_in(next(one for one in answers("forge") if one.label == "right"))


def test_answers_are_arrow_that_keeps_their_columns() -> None:
    rows = [one.row for one in answers("forge")]
    import pyarrow as pa

    with pa.ipc.open_stream(rogue.stream(rows)) as reader:
        back = reader.read_all().to_pylist()
    assert [row["token"] for row in back] == [row["token"] for row in rows]
    assert {row["status"] for row in back} == {"ok"}


# the judge


def row(at: float, **what: Any) -> Row:
    """A row of the ledger."""
    nothing = dict.fromkeys(("agent", "epoch", "status", "token", "payload", "id", "attempt", "step"))
    common = {"request_id": REQUEST, "round": 0, "_partition": 0, "_at": T0 + at}
    return {**nothing, **common, **what}


def tried(at: float, number: int, agent: str) -> Row:
    return row(at, kind="assigned", step=0, attempt=number, agent=agent, epoch=1)


def answered(at: float, number: int, agent: str, payload: bytes = b"A", **what: Any) -> Row:
    token = f"token-{number}".encode()
    said = {"status": "ok", "payload": payload, "token": token, "epoch": 1, "step": 0, **what}
    return row(at, kind="outcome", attempt=number, agent=agent, **said)


def given(number: int, agent: str) -> Row:
    return {"request_id": REQUEST, "round": 0, "kind": "work", "step": 0, "attempt": number, "service": "x",
            "agent": agent, "epoch": 1, "token": f"token-{number}".encode(), "timeout_ms": LIMIT_MS}  # fmt: skip


def noted(number: int, agent: str, code: str) -> Row:
    return {
        "request_id": REQUEST,
        "step": 0,
        "attempt": number,
        "agent": agent,
        "kind": "ignored",
        "code": code,
    }


def retried() -> Evidence:
    """x-1 is silent for 1.5 s, answers late; x-2 is asked 2 s later, a forged answer comes, then the right one, then a
    second one."""
    late, forged, second = (
        answered(2.0, 1, "x-1", b"LATE"), answered(3.7, 2, "x-2", b"FORGED", token=b"guessed"),
        answered(4.5, 2, "x-2", b"SECOND"),
    )  # fmt: skip
    ledger = [tried(0.0, 1, "x-1"), late, tried(3.6, 2, "x-2"), forged, answered(4.0, 2, "x-2"), second]
    result = {"request_id": REQUEST, "round": 0, "id": "a", "status": "ok", "payload": b"A", "attempts": 2}
    kept = [noted(1, "x-1", "AOS3005"), noted(2, "x-2", "AOS3007")]
    return Evidence(
        topics={
            "aos.ledger": ledger,
            "aos.inbox": [given(1, "x-1"), given(2, "x-2")],
            "aos.results": [result],
            "aos.experiences": kept,
        }
    )


def test_what_went_well_breaks_no_law_about_answers() -> None:
    assert list(answers_count_once(retried())) == []


def let_win(payload: bytes) -> Callable[[Evidence], None]:
    def change(e: Evidence) -> None:
        e.topics["aos.results"][0]["payload"] = payload

    change.__name__ = f"let_{payload.decode()}_win"
    return change


def hand_to_two(e: Evidence) -> None:
    e.topics["aos.inbox"].append({**given(2, "x-3"), "token": b"another"})


def count_three(e: Evidence) -> None:
    e.topics["aos.results"][0]["attempts"] = 3


def forget_the_late(e: Evidence) -> None:
    e.topics["aos.experiences"].pop(0)


def forget_the_forged(e: Evidence) -> None:
    e.topics["aos.experiences"].pop()


def retry_early(e: Evidence) -> None:
    e.topics["aos.ledger"][2]["_at"] = T0 + 1.5 + 1.7


def retry_with_the_same(e: Evidence) -> None:
    for place in (2, 3, 4, 5):
        e.topics["aos.ledger"][place]["agent"] = "x-1"
    e.topics["aos.inbox"][1]["agent"] = "x-1"
    e.topics["aos.experiences"][1]["agent"] = "x-1"


def go_on_after_the_end(e: Evidence) -> None:
    e.topics["aos.ledger"].append(tried(9.0, 3, "x-3"))
    e.topics["aos.inbox"].append(given(3, "x-3"))
    e.topics["aos.results"][0]["attempts"] = 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (let_win(b"LATE"), "no first valid answer"),
        (let_win(b"FORGED"), "no first valid answer"),
        (let_win(b"SECOND"), "no first valid answer"),
        (hand_to_two, "was handed to x/x-2, x/x-3"),
        (count_three, "says 3 attempts, 2 were handed out"),
        (forget_the_late, "recorded nowhere"),
        (forget_the_forged, "recorded nowhere"),
        (retry_early, "too early"),
        (retry_with_the_same, "which had failed it"),
        (go_on_after_the_end, "began after an answer that counted"),
    ],
)
def test_each_wrong_about_answers_is_reported(wrong: Callable[[Evidence], None], words: str) -> None:
    found = retried()
    wrong(found)
    said = list(answers_count_once(found))
    assert any(words in one for one in said), said
    assert all(words in one for one in said)


def test_a_sign_of_progress_gives_an_attempt_its_time_again() -> None:
    found = retried()
    ledger = found.topics["aos.ledger"]
    ledger[1:1] = [answered(1.0, 1, "x-1", status="progress", payload=None)]
    found.topics["aos.results"][0]["payload"] = b"LATE"  # at 2.0 it is in time now
    assert not [one for one in answers_count_once(found) if "no first valid" in one]


def test_an_answer_at_the_very_end_of_its_time_may_count_or_not() -> None:
    for payload in (b"A", b"LATE"):
        found = retried()
        found.topics["aos.ledger"][1]["_at"] = T0 + LIMIT_MS / 1000 + 0.001
        found.topics["aos.results"][0]["payload"] = payload
        assert list(answers_count_once(found)) == []


def test_after_an_agent_has_gone_the_next_is_asked_at_once() -> None:
    found = retried()
    ledger = found.topics["aos.ledger"]
    ledger[1] = row(0.5, kind="refused", step=0, attempt=1, agent="x-1")
    for place, at in ((2, 0.6), (3, 0.7), (4, 0.8), (5, 0.9)):
        ledger[place]["_at"] = T0 + at
    assert list(answers_count_once(found)) == []


# what the faults themselves say


def test_attempts_that_are_never_answered_come_at_the_documented_times() -> None:
    good = [0.0, 3.5, 9.0, 18.5]
    assert misses(good, 1.5) == []
    assert len(misses([0.0, 3.2, 8.7, 18.2], 1.5)) == 1  # never early
    assert len(misses([0.0, 3.5, 19.0, 28.5], 1.5)) == 1  # nor for ever late


def test_an_end_of_another_kind_or_after_other_attempts_is_told() -> None:
    end = {"id": "a", "status": "failed", "code": "AOS3002", "attempts": 4}
    assert wrong_ends([end], "a", "AOS3002", 4) == []
    for change in ({"status": "ok"}, {"code": "AOS3001"}, {"attempts": 5}):
        assert len(wrong_ends([{**end, **change}], "a", "AOS3002", 4)) == 1


def test_an_attempt_counts_from_its_first_assignment() -> None:
    rows = [row(0, kind="requested", id="a"), tried(1, 1, "x-1"), tried(2, 2, "x-2"), tried(3, 1, "x-9")]
    assert assigned(rows, "a") == ([T0 + 1, T0 + 2], ["x-1", "x-2"])


def test_a_wrong_answer_must_be_kept_with_a_code_that_fits() -> None:
    said = {"label": "forged token", "request_id": REQUEST.hex(), "step": 0, "attempt": 1, "agent": "x-1"}
    assert unrecorded([said], [noted(1, "x-1", "AOS3007")]) == []
    assert len(unrecorded([said], [])) == 1
    assert len(unrecorded([said], [noted(1, "x-1", "AOS3006")])) == 1
    assert len(unrecorded([said], [{**noted(1, "x-1", "AOS3007"), "kind": "attempt"}])) == 1


def chosen(share: Callable[[int], bool]) -> list[Row]:
    return [
        {
            "kind": "assigned",
            "task_kind": "shout",
            "attempt": 1,
            "agent": "liar" if share(at) else "x",
            "_at": at,
        }
        for at in range(300)
    ]


def test_the_share_of_a_liar_must_fall_to_next_to_nothing() -> None:
    learned = shares(chosen(lambda at: at < 40), "liar")
    assert learned[0][0] == 40
    assert still_trusted(learned) == []
    for wrong in (lambda at: at % 7 == 0, lambda at: at < 40 or at > 280, lambda at: False):
        assert len(still_trusted(shares(chosen(wrong), "liar"))) == 1


def test_open_attempts_of_a_silent_agent_are_counted_until_their_time_is_over() -> None:
    assert most_open([0.0, 0.1, 1.5, 1.7], 1.5) == 2
    assert most_open([0.0, 0.1, 1.0], 1.5) == 3
    assert most_open([], 1.5) == 0


def test_work_that_two_copies_did_shows_once() -> None:
    ledger = [row(0, kind="requested", id="a"), answered(1, 1, "x"), answered(2, 1, "x")]
    good = {"id": "a", "status": "ok", "payload": b"A#b", "attempts": 1}
    assert done_twice([good, dict(good)], ledger, ["a"]) == []
    assert done_twice([good], ledger[:2], ["a"])  # only one answered: nothing is proven
    assert done_twice([good, {**good, "payload": b"A#a"}], ledger, ["a"])
    assert done_twice([{**good, "payload": b"A#aA#b"}], ledger, ["a"])
    assert done_twice([{**good, "attempts": 2}], ledger, ["a"])


def test_a_request_that_ends_twice_in_other_words_is_counted_twice() -> None:
    end = {"id": "a", "status": "ok", "code": None, "payload": b"A"}
    assert ends_of_each([end, dict(end)], ["a"]) == {"a": 1}
    assert ends_of_each([end, {**end, "payload": b"B"}], ["a", "b"]) == {"a": 2, "b": 0}


def test_services_are_those_of_a_requests_own_assignments() -> None:
    rows = [row(0, kind="requested", id="a"), {**tried(1, 1, "x"), "service": "new"}]
    other = {**tried(1, 1, "x"), "service": "old", "request_id": OTHER}
    assert services_of([*rows, other], "a") == ["new"]


def test_planted_bugs_about_answers_patch_what_the_product_calls() -> None:
    calls = {
        (ledger, "doubt"), (ledger_doubt, "say_ignored"), (ledger, "attempt_failed"), (identity, "token_is"),
        (ledger_life, "attempt_failed"), (ledger_life, "retry_wait_us"),
    }  # fmt: skip
    for module, name in calls:
        assert callable(getattr(module, name))
        assert f"{name}(" in Path(module.__file__).read_text() or module is identity
    assert "identity.token_is(" in Path(ledger_doubt.__file__).read_text()
    about = {one for one in BUGS if BUGS[one].faults in ("25", "26")}
    assert len(about) == 5
