"""A processor whose input is gone stands still: what it notices, what it says, and how an operator lets it go on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from aos.codecs import wire
from aos.streams.shell import halt as module
from aos.streams.shell.halt import LOOKS, Halt, TopicWatch, open_alerts
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Undeliverable


class World:
    """A broker whose logs begin at `first`; `sent` is what was written."""

    def __init__(self, first: int = 0) -> None:
        self.first, self.sent = first, list[Any]()
        self.refuses = False

    async def bounds(self, tps: Any) -> Any:
        return dict.fromkeys(tps, (self.first, 100))

    async def deliver(self, messages: Any) -> list[int]:
        if self.refuses:
            raise Undeliverable("no")
        self.sent += messages
        return [0]


def halt_on(world: Any, *accepted: str) -> Halt:
    return Halt("admit", Options("", accept_loss=frozenset(accepted)), world, world)


async def test_a_log_that_begins_behind_what_comes_next_halts_its_reader_and_is_alerted() -> None:
    world = World(first=7)
    halt = halt_on(world)
    assert not await halt.at_gap("aos.feedback", 3, 7)
    assert halt.reason is None
    assert await halt.at_gap("aos.feedback", 3, 6)
    assert halt.reason is not None
    assert halt.reason.startswith("aos.feedback: messages were removed")
    (message,) = world.sent
    assert message.topic == "aos.alerts"
    (row,) = wire.decode_by_name(message.value, message.headers, "alert").to_pylist()
    assert (row["kind"], row["source"], row["subject"]) == ("opened", "admit", "aos.feedback")
    assert json.loads(row["evidence"]) == {"partition": 3, "next": 6, "first": 7}
    await halt.made_anew("aos.outcomes", "a", "b")
    assert len(world.sent) == 1, "one reason is enough"


async def test_an_accepted_loss_halts_nobody() -> None:
    halt = halt_on(World(first=7), "aos.feedback")
    assert not await halt.at_gap("aos.feedback", 0, 2)
    assert not await halt.made_anew("aos.feedback", "a", "b")
    assert halt.reason is None
    assert await halt.at_gap("aos.outcomes", 0, 2)


async def test_an_alert_that_nobody_takes_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(first=7)
    world.refuses = True
    with caplog.at_level(logging.ERROR, "aos.shell"):
        assert await halt_on(world).at_gap("aos.feedback", 0, 2)
    assert "AOS9003: admit stands still: aos.feedback" in caplog.text
    assert "the alert was not written" in caplog.text


async def test_topics_that_are_deleted_or_made_anew_halt_their_readers_only() -> None:
    world: Any = World()
    one, two = Halt("one", Options(""), world, world), Halt("two", Options(""), world, world)
    ids = {"a": "1", "b": "2", "c": "3"}
    watch = TopicWatch(world, ids, [(one, ("a", "b")), (two, ("b", "c"))])
    await watch.judge(ids)
    await watch.judge({"b": "2", "c": "3"})
    await watch.judge(ids)  # a broker that starts may not list all at once
    assert (one.reason, two.reason) == (None, None)
    for _ in range(LOOKS):
        await watch.judge({"b": "2", "c": "3"})
    assert (one.reason, two.reason) == ("a: it was deleted", None)
    await watch.judge({"b": "2", "c": "4"})
    assert two.reason == "c: it was deleted and made anew"


async def test_a_deleted_topic_whose_loss_is_accepted_halts_nobody() -> None:
    world: Any = World()
    one = Halt("one", Options("", accept_loss=frozenset({"a"})), world, world)
    watch = TopicWatch(world, {"a": "1"}, [(one, ("a",))])
    for _ in range(LOOKS + 1):
        await watch.judge({})
    assert (one.reason, world.sent) == (None, [])


async def test_a_topic_without_messages_read_is_not_gone() -> None:
    halt = halt_on(World(first=0))
    assert not await halt.at_gap("aos.feedback", 0, 0)
    assert halt.reason is None


# an alert is opened, and cleared by whoever runs again


def said(world: World) -> list[tuple[str, str]]:
    """Kind and id of what was written, in order."""
    rows = [wire.decode_by_name(m.value, m.headers, "alert").to_pylist()[0] for m in world.sent]
    return [(row["kind"], row["alert"]) for row in rows]


GONE, OUTPUTS = "admit/aos.feedback/gone", "admit/admit/outputs"


async def restarted(world: Any) -> Halt:
    """The next process's: it knows what the log of alerts says."""
    fresh = halt_on(world, "aos.feedback")
    fresh.open = await open_alerts(world)
    return fresh


class Log(World):
    """A world whose alerts can be read again."""

    async def bounds(self, tps: Any) -> Any:
        return {tp: (0, len(self.sent)) if tp[0] == "aos.alerts" else (self.first, 100) for tp in tps}

    async def read(self, topic: str, partition: int, first: int, end: int) -> Any:
        for offset, message in enumerate(self.sent[first:end], first):
            yield type("Record", (), {"value": message.value, "headers": list(message.headers.items()),
                                      "offset": offset})  # fmt: skip


async def test_an_alert_is_cleared_under_its_id_when_its_partition_runs_again() -> None:
    world = Log(first=7)
    await halt_on(world).at_gap("aos.feedback", 3, 6)
    fresh = await restarted(world)
    await fresh.running({0, 1})
    assert said(world) == [("opened", GONE)], "partition 3 is somebody else's"
    await fresh.running({3})
    await fresh.running({3})
    assert said(world) == [("opened", GONE), ("cleared", GONE)]
    times = [wire.decode_by_name(m.value, m.headers, "alert").to_pylist()[0]["seen_at"] for m in world.sent]
    assert times[1] > times[0]
    assert await open_alerts(world) == {}  # type: ignore[arg-type]


async def test_who_stands_still_clears_nothing_and_says_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Log(first=7)
    halt = halt_on(world)
    await halt.at_gap("aos.feedback", 3, 6)
    await halt.running({3})
    await halt.again()
    assert said(world) == [("opened", GONE)]
    monkeypatch.setattr(module, "SAY_AGAIN_S", 0.0)
    await halt.again()
    assert said(world) == [("opened", GONE)] * 2


async def test_refused_outputs_end_the_process_and_the_alert_is_cleared_by_the_first_that_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Log()
    ends: list[int] = []
    monkeypatch.setattr(module, "die", lambda code, reason, error: ends.append(code))
    await halt_on(world).undelivered(Undeliverable("too large"), 2)
    assert (ends, said(world)) == ([70], [("opened", OUTPUTS)])
    fresh = await restarted(world)
    await fresh.running({2})
    await fresh.delivered(1)
    assert said(world) == [("opened", OUTPUTS)], "it runs, and nothing says that its outputs are taken"
    await fresh.delivered(2)
    assert said(world) == [("opened", OUTPUTS), ("cleared", OUTPUTS)]


async def test_what_is_no_alert_keeps_no_worker_from_its_start(caplog: pytest.LogCaptureFixture) -> None:
    world = Log(first=7)
    await halt_on(world).at_gap("aos.feedback", 3, 6)
    world.sent.append(type("Message", (), {"value": b"junk", "headers": {}}))
    found = await open_alerts(world)  # type: ignore[arg-type]
    assert list(found) == [GONE]
    assert "is no alert" in caplog.text
    halt = halt_on(world)
    halt.open = {GONE: {**found[GONE], "evidence": "not ours"}}
    await halt.running({0})
    assert "is not ours" in caplog.text
