"""Dead letters and quotas on a running AOS: what is sent back is the request it was, and a limit is told in words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from aos.agents.identity import request_id_at
from aos.codecs.rows import from_dicts
from aos.codecs.topics import record_of
from aos.codecs.wire import encode
from tests.stack.test_commands import Terminal, terminal_in

pytestmark = pytest.mark.stack
TOPIC = "aos.requests"


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with terminal_in(tmp_path_factory.mktemp("up")) as opened:
        yield opened


def put(terminal: Terminal, topic: str, value: bytes, headers: dict[str, bytes] | None = None) -> int:
    """Write one message; its offset."""

    stack = json.loads(Path(terminal.env["AOS_RUN_FILE"]).read_text())

    async def write() -> int:
        producer = AIOKafkaProducer(bootstrap_servers=stack["bootstrap"], acks="all")
        await producer.start()
        try:
            name, said = stack["prefix"] + topic, list((headers or {}).items())
            return int((await producer.send_and_wait(name, value, partition=0, headers=said)).offset)
        finally:
            await producer.stop()

    return asyncio.run(write())


def results_of(terminal: Terminal, request_id: bytes) -> list[dict[str, Any]]:
    lines = terminal.run("results", "-o", "json").stdout.splitlines()
    return [row for row in map(json.loads, lines) if row["request_id"] == request_id.hex()]


def until(found: Callable[[], Any], limit_s: float = 40) -> Any:
    ends = time.monotonic() + limit_s
    while not (now := found()):
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.5)
    return now


def letters(terminal: Terminal, *filters: str) -> list[dict[str, Any]]:
    found = terminal.ask("dead-letters", "list", *filters)
    assert isinstance(found, list)
    return found


def test_what_is_sent_back_is_the_request_it_was_and_is_not_done_twice(terminal: Terminal) -> None:
    """The message was done, and a letter says that encode gave it up: it must be known again by its place."""
    value = json.dumps({"text": "x", "require": ["nobody can"], "deadline_ms": 500}).encode()
    offset = put(terminal, TOPIC, value)
    request_id = request_id_at(TOPIC, 0, offset, 0)
    (first,) = until(lambda: results_of(terminal, request_id))
    letter = {
        "tenant": "default", "processor": "encode", "code": "AOS9001", "message": "it fell", "topic": TOPIC,
        "partition": 0, "offset": offset, "row": -1, "headers": "{}", "body": value, "body_size": len(value),
        "appended_at": time.time_ns() // 1000,
    }  # fmt: skip
    put(
        terminal,
        "aos.dead-letters",
        *encode(from_dicts("dead-letter", [letter]), record_of("aos.dead-letters")),
    )
    place = f"{TOPIC}/0/{offset}"
    (known,) = letters(terminal, "--processor", "encode", "--code", "AOS9001", "--since", "1h")
    assert known["place"] == place
    dry = terminal.ask("dead-letters", "redrive", place, "--dry-run")
    assert dry == [{"place": place, "rows": None, "refused": None, "sent_as": None}]
    (sent,) = terminal.ask("dead-letters", "redrive", "--code", "AOS9001")
    assert sent["sent_as"] > place
    again = until(lambda: results_of(terminal, request_id)[1:])
    assert [row["repeated"] for row in again] == [True]
    assert {name for name in first if first[name] != again[0][name]} == {"repeated"}
    second = terminal.run("dead-letters", "redrive", place, "-o", "json", check=False)
    assert second.returncode == 1
    assert "sent back before" in json.loads(second.stdout)[0]["refused"]


def test_a_letter_that_is_still_wrong_stays_one_of_its_first_place(terminal: Terminal) -> None:
    offset = put(terminal, TOPIC, b"{not json", {"mine": b"\x01"})
    place = f"{TOPIC}/0/{offset}"
    until(lambda: [each for each in letters(terminal) if each["place"] == place])
    shown = terminal.ask("dead-letters", "show", place)
    assert isinstance(shown, dict)
    assert (shown["body"], shown["redrive"]) == ("{not json", "yes")
    before = terminal.ask("topics", "list")
    terminal.run("dead-letters", "redrive", place)
    until(lambda: terminal.ask("topics", "list") != before)
    time.sleep(2)
    assert {each["place"] for each in letters(terminal, "--code", "AOS1007")} == {place}
    assert terminal.run("dead-letters", "show", "aos.requests/0/999999", check=False).returncode == 1
    assert terminal.run("dead-letters", "redrive", check=False).returncode == 2


def test_a_quota_that_is_set_while_aos_runs_refuses_with_a_typed_answer(terminal: Terminal) -> None:
    terminal.run("config", "set", "quota_requests_per_s", "0.1", "--tenant", "default", "--reason", "test")
    terminal.run("config", "set", "quota_burst_s", "1", "--tenant", "default")

    def refused() -> Any:
        done = terminal.run("submit", "x", "--require", "nobody can", "--deadline-ms", "300", "--wait", "-o", "json",
                            check=False)  # fmt: skip
        (row,) = json.loads(done.stdout)
        return row if row["code"] == "AOS2101" else None

    row = until(refused)
    assert (row["status"], row["attempts"], row["agents"]) == ("rejected", 0, [])
    assert 0 < row["retry_after_ms"] <= 10_000
    assert "0.1 requests a second" in row["message"]
    terminal.run("config", "unset", "quota_requests_per_s", "--tenant", "default")
