"""A processor whose input is gone stands still: what it notices, what it says, and how an operator lets it go on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from aos.codecs import wire
from aos.streams.shell.halt import LOOKS, Halt, TopicWatch
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
    watch = TopicWatch(Options(""), ids, [(one, ("a", "b")), (two, ("b", "c"))])
    await watch.judge(ids)
    await watch.judge({"b": "2", "c": "3"})
    await watch.judge(ids)  # a broker that starts may not list all at once
    assert (one.reason, two.reason) == (None, None)
    for _ in range(LOOKS):
        await watch.judge({"b": "2", "c": "3"})
    assert (one.reason, two.reason) == ("a: it was deleted", None)
    await watch.judge({"b": "2", "c": "4"})
    assert two.reason == "c: it was deleted and made anew"


async def test_a_topic_without_messages_read_is_not_gone() -> None:
    halt = halt_on(World(first=0))
    assert not await halt.at_gap("aos.feedback", 0, 0)
    assert halt.reason is None
