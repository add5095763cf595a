"""The SDK's side of calls: answers find who asked, before or after; the attempt's clock stands still meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aos.agents import ContextConflict, DelegationFailed, Work
from aos.agents.sdk.desk import Desk, Note, notes
from aos.agents.sdk.work import works
from aos.codecs.rows import from_dicts

TOKEN = b"t" * 16


def note(kind: str, call: str | None, **said: Any) -> Note:
    plain: dict[str, Any] = dict.fromkeys(Note._fields) | {"token": TOKEN, "kind": kind, "call": call}
    return Note(**(plain | said))


class Office:
    """A desk, what it sent, and work that uses it."""

    def __init__(self, seconds: float = 30.0, ends: float | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.desk = Desk(self._send, seconds, ends, None, 0)
        row = {
            "tenant": "default", "request_id": bytes(16), "requested_at": 0, "home": 0, "domain": "default", "round": 0,
            "kind": "work", "step": 0, "step_name": "only", "attempt": 1, "service": "s", "agent": "a", "epoch": 1,
            "token": TOKEN, "inputs": [], "timeout_ms": 30_000,
        }  # fmt: skip
        ((_, work),) = works(from_dicts("assignment", [row]), time.time())
        self.work = Work(**{**work.__dict__, "desk": self.desk})

    async def _send(self, row: dict[str, Any]) -> None:
        self.sent.append(row)
        await asyncio.sleep(0)


async def test_a_childs_output_comes_back_to_the_call_that_asked_for_it() -> None:
    office = Office()
    both = asyncio.gather(office.work.delegate("one", require=["x"]), office.work.delegate("two", budget=5))
    await asyncio.sleep(0.01)
    assert [(row["action"], row["call"], row["text"], row["token"]) for row in office.sent] == [
        ("delegate", "0", "one", TOKEN),
        ("delegate", "1", "two", TOKEN),
    ]
    assert (office.sent[0]["require"], office.sent[1]["budget_usd_micros"]) == (["x"], 5)
    office.desk.take(note("result", "1", status="ok", payload=b"2"))
    office.desk.take(note("result", "0", status="ok", payload=b'{"n": 1}'))
    first, second = await both
    assert (first.json(), second.text) == ({"n": 1}, "2")


async def test_an_answer_that_was_there_before_the_call_is_found_and_nothing_is_sent() -> None:
    office = Office()
    office.desk.take(note("result", "0", status="ok", payload=b"again"))
    assert (await office.work.delegate("one")).text == "again"
    assert office.sent == []


async def test_a_child_that_did_not_end_ok_is_an_error_with_its_code() -> None:
    office = Office()
    office.desk.take(note("result", "part", status="rejected", code="AOS2201", message="too deep"))
    with pytest.raises(DelegationFailed, match="too deep") as caught:
        await office.work.delegate("one", name="part")
    assert (caught.value.status, caught.value.code, caught.value.retryable) == ("rejected", "AOS2201", True)


async def test_two_calls_of_one_name_at_once_are_a_mistake() -> None:
    office = Office()
    first = asyncio.create_task(office.work.delegate("one", name="part"))
    await asyncio.sleep(0.01)
    with pytest.raises(ValueError, match="part"):
        await office.work.delegate("two", name="part")
    first.cancel()


async def test_the_context_is_what_was_heard_last_and_a_change_knows_its_version() -> None:
    office = Office()
    assert (office.work.context, office.work.context_version) == ({}, 0)
    office.desk.take(note("context", None, context=b'{"a":1}', context_version=3))
    office.desk.take(note("context", None, context=b'{"a":0}', context_version=2))  # came late
    assert (office.work.context, office.work.context_version) == ({"a": 1}, 3)
    changing = asyncio.create_task(office.work.update_context({"b": 2}))
    await asyncio.sleep(0.01)
    (row,) = office.sent
    assert (row["action"], row["context"], row["context_version"]) == ("share", b'{"b": 2}', 3)
    office.desk.take(note("context", "0", status="ok", context=b'{"a":1,"b":2}', context_version=4))
    assert await changing == 4
    assert office.work.context == {"a": 1, "b": 2}


async def test_a_change_that_came_second_is_an_error_with_what_is_there_now() -> None:
    office = Office()
    changing = asyncio.create_task(office.work.update_context({"b": 2}, 0))
    await asyncio.sleep(0.01)
    office.desk.take(
        note("context", "0", status="failed", code="AOS3014", context=b'{"a":1}', context_version=1)
    )
    with pytest.raises(ContextConflict) as caught:
        await changing
    assert (caught.value.context, caught.value.version, caught.value.code) == ({"a": 1}, 1, "AOS3014")


async def at_work(office: Office, limit: float, seconds: float) -> None:
    """A handler that works for some seconds, within `limit` at first; its time is counted anew at once."""
    async with asyncio.timeout(limit) as clock:
        office.desk.start(clock)
        office.desk.again()
        await asyncio.sleep(seconds)


async def test_while_a_child_is_open_the_attempts_time_stands_still_and_begins_again_after_it() -> None:
    office = Office(seconds=0.5)
    async with asyncio.timeout(0.5) as clock:
        office.desk.start(clock)
        child = asyncio.create_task(office.work.delegate("one"))
        await asyncio.sleep(0.8)  # longer than the attempt may take
        office.desk.take(note("result", "0", status="ok"))
        await child
    with pytest.raises(TimeoutError):
        await at_work(office, 30, 20)


async def test_progress_gives_the_attempt_its_time_again_but_not_beyond_the_requests_end() -> None:
    office = Office(seconds=0.6)
    async with asyncio.timeout(0.6) as clock:
        office.desk.start(clock)
        for _ in range(3):
            await asyncio.sleep(0.3)
            office.desk.again()
    ends = time.time() + 0.2
    with pytest.raises(TimeoutError):
        await at_work(Office(seconds=30, ends=ends), 30, 20)
    assert time.time() >= ends - 0.05


async def test_who_waits_in_a_batch_hears_that_its_attempt_was_withdrawn() -> None:
    office = Office()
    child = asyncio.create_task(office.work.delegate("one"))
    await asyncio.sleep(0.01)
    office.desk.withdraw()
    with pytest.raises(DelegationFailed) as caught:
        await child
    assert (caught.value.status, caught.value.code) == ("cancelled", "AOS3004")


async def test_work_in_a_process_of_its_own_cannot_call() -> None:
    work = Office().work.plain()
    with pytest.raises(RuntimeError, match="own process"):
        await work.delegate("one")
    assert work.context == {}


def test_of_an_inbox_message_only_what_is_no_work_is_a_note() -> None:
    common: dict[str, Any] = {
        "tenant": "default", "request_id": bytes(16), "requested_at": 0, "home": 0, "domain": "default", "round": 0,
        "step": 0, "step_name": "only", "attempt": 1, "service": "s", "agent": "a", "epoch": 1, "token": TOKEN,
        "inputs": [], "timeout_ms": 1,
    }  # fmt: skip
    rows = [
        common | {"kind": "work"},
        common | {"kind": "result", "call": "0", "status": "ok", "payload": b"p"},
        common | {"kind": "context", "context": b"{}", "context_version": 1},
        common | {"kind": "something new"},
    ]
    batch = from_dicts("assignment", rows)
    assert [(one.kind, one.call, one.payload) for one in notes(batch)] == [
        ("result", "0", b"p"),
        ("context", None, None),
    ]
    assert [kind for kind, _ in works(batch, time.time())] == ["work"]
