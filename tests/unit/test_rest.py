"""Orders to processors, and how a loop stands still: which order holds, what waits for the resume."""

# ruff: noqa: F811 (the fixtures of the loop's own tests are used here)

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError
from faust.types import TP

from aos.codecs.errors import RecordError
from aos.codecs.rows import from_dicts
from aos.streams import topology
from aos.streams.orders import DRAINS, TOPIC, Order, Orders
from aos.streams.processor import Batch, Law, Step, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.flight import Flight
from aos.streams.shell.loop import Loop
from aos.streams.shell.rest import mark
from tests.unit.test_shell_loop import Given, World, bundle, copy, given, world  # noqa: F401

STAND = Order("toy", "pause").mark


def order(processor: str, action: str, **more: Any) -> Any:
    return from_dicts("processor-order", [{"processor": processor, "action": action, **more}])


# which order holds


def test_the_last_order_of_a_processor_holds_and_a_tombstone_is_none() -> None:
    orders = Orders()
    assert orders.mark("encode") == ""
    orders.apply(b"encode", order("encode", "pause"))
    orders.apply(b"match", order("match", "pause"))
    orders.apply(b"encode", order("encode", "resume"))
    assert (orders.mark("encode"), orders.mark("match")[:5]) == ("", "pause")
    orders.apply(b"match", None)
    assert orders.mark("match") == ""


def test_two_orders_with_the_same_words_have_marks_of_their_own_when_their_times_differ() -> None:
    marks = {Order("encode", "pause", at, "me").mark for at in range(3)}
    assert len(marks) == 3


@pytest.mark.parametrize(
    ("key", "processor", "action", "says"),
    [
        (b"match", "encode", "pause", "under the key 'match'"),
        (b"encode", "encode", "stop", "one of pause, drain, resume"),
        (b"match", "match", "drain", "pause it"),
    ],
)
def test_what_is_no_order_is_refused_with_its_reason_and_changes_nothing(
    key: bytes, processor: str, action: str, says: str
) -> None:
    orders = Orders()
    with pytest.raises(RecordError, match="AOS1014") as refused:
        orders.apply(key, order(processor, action))
    assert says in str(refused.value)
    assert orders.last == {}
    with pytest.raises(RecordError, match="2 orders"):
        orders.apply(
            b"encode", from_dicts("processor-order", [{"processor": "encode", "action": "pause"}] * 2)
        )


def test_an_order_may_be_one_json_object() -> None:
    value = json.dumps({"processor": "encode", "action": "drain", "reason": "a move"}).encode()
    orders = Orders()
    orders.apply(b"encode", WireCodec().decode(TOPIC, value, {}))
    assert orders.last["encode"] == Order("encode", "drain", reason="a move")
    with pytest.raises(RecordError, match="AOS1008"):
        WireCodec().decode(TOPIC, b'{"processor": "encode", "action": "pause", "why": "x"}', {})


def test_what_can_be_drained_is_what_lets_requests_in() -> None:
    assert set(DRAINS) == {p.name for p in topology.PROCESSORS.values() if "aos.requests" in p.reads}


# how a loop stands


class Ordered:
    """What is ordered now; `loop` is woken when that changes."""

    def __init__(self, loop: Loop) -> None:
        self.mark, self.loop = "", loop
        loop.kit.ordered = lambda: self.mark

    async def give(self, mark: str) -> None:
        self.mark = mark
        self.loop.wake()
        await asyncio.sleep(0.05)


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[TP, int], str]]:
    """What the loop committed with a word."""
    found: list[tuple[dict[TP, int], str]] = []

    async def note(consumer: Any, places: dict[TP, int], word: str) -> bool:
        found.append((places, word))
        return True

    monkeypatch.setattr("aos.streams.shell.rest.mark", note)
    return found


async def test_a_loop_stands_between_two_rounds_and_what_waited_comes_again(
    given: Given,
    world: World,
    marks: list[Any],
) -> None:
    loop = given(copy, topics=("in", "other"))
    running = asyncio.create_task(loop.run())
    ordered = Ordered(loop)
    loop.feed(bundle("in", b"1", b"2"))
    await asyncio.sleep(0.05)
    assert loop.inputs["in"].position == 2
    await ordered.give(STAND)
    assert marks == [({TP("in", 0): 2, TP("other", 0): 0}, STAND)]
    loop.feed(bundle("in", b"3", first=2))
    await asyncio.sleep(0.05)
    assert loop.inputs["in"].position == 2
    assert not loop.inputs["in"].queue, "nothing waits inside: the watchdog sees no work"
    assert not loop.kit.wants(loop.inputs["in"])
    await ordered.give("")
    assert [e for e in world.events if e[0] == "release"] == [("release", "in", 2), ("release", "other", 0)]
    loop.feed(bundle("in", b"3", first=2))
    await asyncio.sleep(0.05)
    assert loop.inputs["in"].position == 3
    loop.stop()
    await running


async def test_a_loop_that_stands_from_its_start_does_not_even_tick(
    given: Given,
    world: World,
    marks: list[Any],
) -> None:
    def due(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        world.events.append("ticked")
        return Step(state, next_due=1)

    loop = given(due, law=Law.JOURNAL)
    loop.greet, loop.next_due = True, 1
    ordered = Ordered(loop)
    ordered.mark = STAND
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(0.1)
    assert "ticked" not in world.events
    await ordered.give("")
    assert "ticked" in world.events
    loop.stop()
    await running


async def test_a_topic_that_the_state_holds_is_not_let_go_by_a_resume(
    given: Given,
    world: World,
    marks: list[Any],
) -> None:
    def holding(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return Step(state, paused=frozenset({"slow"}))

    loop = given(holding, law=Law.JOURNAL, topics=("fast", "slow"))
    running = asyncio.create_task(loop.run())
    ordered = Ordered(loop)
    loop.feed(bundle("fast", b"1"))
    await asyncio.sleep(0.05)
    await ordered.give(STAND)
    await ordered.give("")
    assert (loop.inputs["fast"].held, loop.inputs["slow"].held) == (False, True)
    loop.stop()
    await running


# what the commit says


class Group:
    """A consumer that commits; `takes` says whether the broker does."""

    def __init__(self, **committed: int | None) -> None:
        self.flights = {TP(topic, 0): Flight(at) for topic, at in committed.items()}
        self._committing = asyncio.Lock()
        self.thread: Any = self
        self.takes = True
        self.said: dict[Any, Any] = {}

    def _ensure_consumer(self) -> Any:
        return self

    async def commit(self, offsets: dict[Any, Any]) -> None:
        if not self.takes:
            raise CommitFailedError("another generation")
        self.said |= offsets

    async def here(self, call: Any) -> Any:
        return await call


async def test_the_word_stands_where_the_work_does_and_never_before_what_is_committed() -> None:
    group: Any = Group(done=5, replayed=9, fresh=None, cut=None)
    places = {TP("done", 0): 7, TP("replayed", 0): 3, TP("fresh", 0): 0, TP("cut", 0): 4, TP("revoked", 0): 2}
    assert await mark(group, places, "pause x")
    assert {tp: (at.offset, at.metadata) for tp, at in group.said.items()} == {
        TopicPartition("done", 0): (7, "pause x"),
        TopicPartition("replayed", 0): (9, "pause x"),  # a fold reads again what it has done
        TopicPartition("fresh", 0): (0, "pause x"),
        # nothing before 4 was ever read here: a commit would claim it
    }
    assert group.flights[TP("done", 0)].position() is None, "no later commit takes the word away"


async def test_a_word_that_is_not_taken_is_said_again(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aos.streams.shell.rest.AGAIN_S", 0.01)
    group: Any = Group(done=5)
    group.takes = False
    assert not await mark(group, {TP("done", 0): 7}, "pause x")
    assert group.flights[TP("done", 0)].committed == 5
    tries: list[str] = []

    async def third(consumer: Any, places: Any, word: str) -> bool:
        tries.append(word)
        return len(tries) == 3

    monkeypatch.setattr("aos.streams.shell.rest.mark", third)
    loop = given(copy)
    ordered = Ordered(loop)
    ordered.mark = STAND
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(0.2)
    assert tries == [STAND] * 3
    loop.stop()
    await running
