"""One partition's loop, its broker played: what happens in which order, and what never happens."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from faust.types import TP

from aos.streams.dead_letters import DEAD_LETTERS
from aos.streams.processor import Batch, Law, Output, Processor, Step, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.consumer import Bundle
from aos.streams.shell.kit import Gather, Input, Kit, uncrowded
from aos.streams.shell.loop import Loop
from aos.streams.shell.metrics import Metrics
from aos.streams.shell.options import Options
from aos.streams.shell.outgoing import messages_of
from aos.streams.shell.pressure import Pressure
from aos.streams.shell.producer import ByteGate, Message, Undeliverable

ROWS = pa.schema([("id", pa.int64())])


class Codec(WireCodec):
    """One column of ids; ``bad`` is not a message."""

    def encode(self, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
        if topic == DEAD_LETTERS:
            return super().encode(topic, rows)
        return b" ".join(b"%d" % id for id in rows.column(0).to_pylist()), {}

    def decode(self, topic: str, value: bytes, headers: Any) -> pa.RecordBatch:
        return rows(*map(int, value.split()))


def rows(*ids: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(ids, pa.int64())], schema=ROWS)


class Record:
    key = None
    headers = ()

    def __init__(self, topic: str, offset: int, value: bytes, timestamp: int = 0) -> None:
        self.topic, self.partition, self.offset, self.value = topic, 0, offset, value
        self.timestamp = timestamp or offset


class World:
    """Producer and consumer of a loop; `events` is what they were asked, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.sent: list[Message] = []

    async def deliver(self, messages: Sequence[Message]) -> list[int]:
        await asyncio.sleep(0)
        self.events.append(("sent", [m.topic for m in messages]))
        self.sent += messages
        return list(range(len(messages)))

    def finished(self, tp: TP, first: int, end: int) -> None:
        self.events.append(("finished", tp.topic, first, end))

    def is_current(self, bundle: Bundle) -> bool:
        return True

    def in_air(self, tp: TP) -> bool:
        return False

    async def hold(self, tp: TP, offset: int) -> None:
        self.events.append(("hold", tp.topic, offset))

    async def release(self, tp: TP, offset: int) -> None:
        self.events.append(("release", tp.topic, offset))


Given = Callable[..., Loop]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def given(world: World) -> Given:
    def make(
        step: Any, law: Law = Law.FOLD, topics: Sequence[str] = ("in",), c: int = 0, **more: Any
    ) -> Loop:
        edge, views, age = more.pop("edge", False), more.pop("views", ()), more.pop("age", lambda: 0.0)
        tick = (lambda partition, now: rows(-1)) if law is Law.FOLD else None
        processor = Processor("toy", law, tuple(topics), ("out",), lambda p: [], step, views, edge, tick=tick)
        options = Options("", **{"round_s": 5.0, **more})  # time to step all, on a busy machine too
        kit = Kit(
            processor, options, Codec(), world, mock.Mock(), Views(), 7, lambda: world, Metrics(),
            lambda topic: 1 << 20, age,
        )  # type: ignore[arg-type]  # fmt: skip
        loop = Loop(kit, 0, [Input(topic, TP(topic, 0), 0, c) for topic in topics], [])
        loop.between = lambda loop: world.events.append("between")
        loop.rewind = lambda partition, topic, offset: world.events.append(("rewind", topic, offset))
        return loop

    return make


def bundle(topic: str, *values: bytes, first: int = 0) -> Bundle:
    found = [Record(topic, first + n, value) for n, value in enumerate(values)]
    return Bundle(TP(topic, 0), found, 0)


async def turn(loop: Loop, seconds: float = 0.05) -> None:
    """Run the loop for a while, then stop it."""
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(seconds)
    loop.stop()
    await task


def copy(state: list[int], batch: Batch, now: int, views: Views, seed: int) -> Step[list[int]]:
    ids = batch.rows.column(0).to_pylist()
    return Step([*state, *ids], [Output("out", rows(*ids))])


async def test_loop_acks_after_the_outputs_and_snapshots_after_that(given: Given, world: World) -> None:
    """A snapshot of a state whose outputs are not acknowledged loses them at a kill."""
    loop = given(copy)
    loop.feed(bundle("in", b"1", b"2", b"3"))
    await turn(loop)
    assert world.events == [("sent", ["out"]), ("finished", "in", 0, 3), "between"]
    assert loop.state == [1, 2, 3]
    assert world.sent[0].value == b"1 2 3"  # the outputs of a round are joined


async def test_loop_steps_below_the_commit_and_mutes_it(given: Given, world: World) -> None:
    loop = given(copy, c=2)
    loop.feed(bundle("in", b"1", b"2", b"3"))
    await turn(loop)
    assert loop.state == [1, 2, 3]
    assert [message.value for message in world.sent] == [b"3"]


async def test_loop_skips_what_the_state_has_already_seen(given: Given, world: World) -> None:
    loop = given(copy)
    loop.inputs["in"].position = 2
    loop.feed(bundle("in", b"1", b"2", b"3"))
    await turn(loop)
    assert loop.state == [3]


async def test_loop_tells_each_step_whether_its_views_are_stale(given: Given, world: World) -> None:
    """Older than `stale_s` now, not when the loop began; a processor without views is told nothing."""
    ages, said = iter([0.0, 5.0, 5.1, 0.1]), []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        said.append(views.stale)
        return Step(state, [Output("out", batch.rows)])

    loop = given(step, Law.ROW, views=("aos.beliefs",), age=lambda: next(ages))
    loop.feed(bundle("in", b"1", b"2", b"3", b"4"))
    await turn(loop)
    blind = given(step, Law.ROW, age=lambda: 60.0)
    blind.feed(bundle("in", b"1"))
    await turn(blind)
    assert said == [False, False, True, False, False]


async def test_loop_sends_dead_letters_then_the_journal_then_the_rest(given: Given, world: World) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return Step(state, [Output("out", batch.rows)], None, [Output("journal", batch.rows)])

    loop = given(step, Law.JOURNAL)
    loop.feed(bundle("in", b"1", b"bad", b"2"))
    await turn(loop)
    assert world.events[:4] == [
        ("sent", [DEAD_LETTERS]), ("sent", ["journal"]), ("sent", ["out"]), ("finished", "in", 0, 3),
    ]  # fmt: skip


async def test_loop_ends_the_process_when_an_output_is_refused(
    given: Given, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(messages: Sequence[Message]) -> list[int]:
        raise Undeliverable("no")

    ends: list[int] = []
    monkeypatch.setattr("aos.streams.shell.halt.die", lambda code, reason, error: ends.append(code))
    monkeypatch.setattr(world, "deliver", refuse)
    loop = given(copy)
    loop.feed(bundle("in", b"1"))
    await turn(loop)
    assert ends == [70]
    assert world.events == []


async def test_loop_clock_is_the_log_and_never_goes_back(given: Given, world: World) -> None:
    seen = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        seen.append(now)
        return Step(state)

    loop = given(step)
    stamps = [5, 9, 7, 12]
    found = [Record("in", n, b"1", stamp) for n, stamp in enumerate(stamps)]
    loop.feed(Bundle(TP("in", 0), found, 0))
    await turn(loop)
    assert seen == [5000, 9000, 9000, 12000]


async def test_loop_rewinds_a_state_and_skips_the_message_next_time(given: Given, world: World) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        if 2 in batch.rows.column(0).to_pylist():
            raise ValueError("half-way")
        return copy(state, batch, now, views, seed)

    loop = given(step)
    loop.feed(bundle("in", b"1", b"2", b"3"))
    await turn(loop)
    assert world.events == [("rewind", "in", 1)]  # nothing sent, nothing finished
    again = given(step)
    again.skip = {("in", 1)}
    again.feed(bundle("in", b"1", b"2", b"3"))
    await turn(again)
    assert again.state == [1, 3]
    assert [m.topic for m in world.sent] == [DEAD_LETTERS, "out"]


async def test_loop_buries_what_breaks_a_step_without_state(given: Given, world: World) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        raise ValueError("a bug")

    loop = given(step, Law.ROW)
    loop.feed(bundle("in", b"1", b"2"))
    await turn(loop)
    assert world.events == [("sent", [DEAD_LETTERS]), ("finished", "in", 0, 2), "between"]
    assert loop.kit.metrics.dead_letters == 2


async def test_loop_holds_a_topic_and_reads_on_where_the_state_is(given: Given, world: World) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        ids = batch.rows.column(0).to_pylist()
        return Step(state, paused=frozenset({"lane"} if ids == [2] else ()))

    loop = given(step, Law.JOURNAL, ("lane", "free"))
    loop.feed(bundle("lane", b"1", b"2", b"3"))
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.02)
    loop.feed(bundle("lane", b"9"))  # fetched before the hold: dropped
    loop.feed(bundle("free", b"5"))
    await asyncio.sleep(0.02)
    loop.stop()
    await task
    moves = [event for event in world.events if event[0] in ("hold", "release")]
    assert moves == [("hold", "lane", 2), ("release", "lane", 2)]


async def test_loop_keeps_records_of_a_topic_paused_and_resumed_within_a_round(
    given: Given, world: World
) -> None:
    """They were dropped once, with nobody to seek back: the lane stood still."""
    seen = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        seen.append((batch.topic, batch.offset))
        return Step(state, paused=frozenset({"lane"} if batch.topic == "lane" and batch.offset == 0 else ()))

    loop = given(step, Law.JOURNAL, ("lane", "free"))
    loop.feed(bundle("lane", b"1", b"2"))
    loop.feed(bundle("free", b"5"))
    await turn(loop)
    assert seen == [("lane", 0), ("free", 0), ("lane", 1)]
    assert [event for event in world.events if event[0] in ("hold", "release")] == []


async def test_loop_ticks_a_fold_by_a_row_of_its_log_and_others_by_a_call(given: Given, world: World) -> None:
    ticks = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        ticks.append(batch.tick)
        return Step(state, next_due=None if batch.tick else now + 1)

    fold = given(step)
    fold.feed(bundle("in", b"1"))
    await turn(fold, 0.03)
    assert (ticks, [(m.topic, m.value) for m in world.sent]) == ([False], [("in", b"-1")])
    ticks.clear()
    view = given(step, Law.VIEW)
    view.greet = True
    view.feed(bundle("in", b"1"))
    await turn(view, 0.03)
    assert ticks == [True, False, True]  # the greeting, the message, the due one


async def test_loop_of_an_edge_gathers_what_comes_while_its_outputs_are_in_the_air(given: Given) -> None:
    sizes = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        sizes.append(len(batch.raws))
        return Step(state)

    loop = given(step, Law.ROW, edge=True, gather_s=0.05, gather_rows=8)
    task = asyncio.create_task(loop.run())
    loop.feed(bundle("in", b"1"))
    await asyncio.sleep(0.01)
    for n in range(1, 4):
        loop.feed(bundle("in", b"1", first=n))
        await asyncio.sleep(0.005)
    assert sizes == [1]  # the first at once, the rest wait
    await asyncio.sleep(0.08)
    assert sizes == [1, 3]
    loop.feed(bundle("in", *[b"1"] * 20, first=4))
    await asyncio.sleep(0.02)
    assert sizes == [1, 3, 8, 8, 4] or sizes[2:4] == [8, 8]  # enough rows do not wait
    loop.stop()
    await task


async def test_loop_of_an_edge_takes_all_topics_in_one_step_and_no_topic_all_of_it(
    given: Given, world: World
) -> None:
    taken = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        taken.append([raw.topic for raw in batch.raws])
        return Step(state)

    loop = given(step, Law.ROW, ("a", "b"), edge=True, gather_rows=8)
    loop.feed(bundle("a", *[b"1"] * 20))
    loop.feed(bundle("b", b"1", b"1"))
    await turn(loop)
    assert taken[0] == ["a"] * 4 + ["b"] * 2
    assert [topic for round in taken for topic in round].count("a") == 20
    assert ("finished", "b", 0, 2) in world.events


async def test_loop_of_an_edge_buries_only_the_message_its_step_fails_on(given: Given, world: World) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        if any(raw.value == b"2" for raw in batch.raws):
            raise ZeroDivisionError
        return Step(state, [Output("out", rows(*[int(raw.value) for raw in batch.raws]))])

    loop = given(step, Law.ROW, ("a", "b"), edge=True)
    loop.feed(bundle("a", b"1", b"2"))
    loop.feed(bundle("b", b"3"))
    await turn(loop)
    dead, *rest = world.sent
    assert dead.topic == "aos.dead-letters"
    assert loop.kit.metrics.dead_letters == 1
    assert loop.kit.metrics.rows_out == 3  # 1, 3 and the dead letter
    assert rest


async def test_an_edge_that_is_held_back_takes_nothing_in_and_is_not_stuck(
    world: World, given: Given
) -> None:
    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return Step(state, [Output("out", rows(len(batch.raws)))])

    loop = given(step, Law.ROW, edge=True)
    held = True
    loop.kit.held_back = lambda: held
    loop.feed(bundle("in", b"1", b"2"))
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.25)
    assert world.sent == []
    assert loop.busy
    assert time.monotonic() - loop.moved_at < 0.2
    held = False
    await asyncio.sleep(0.25)
    assert [message.topic for message in world.sent] == ["out"]
    held = True
    loop.stop()
    await asyncio.wait_for(task, 1)


async def test_while_later_work_is_late_a_topic_that_crowds_others_out_waits_alone(
    world: World, given: Given
) -> None:
    taken: list[str] = []

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        taken.extend(raw.topic for raw in batch.raws)
        return Step(state)

    loop = given(step, Law.ROW, edge=True, topics=("a", "b", "c"))
    late = True
    loop.kit.crowded = lambda: late
    loop.feed(bundle("a", *[b"1"] * 100))
    loop.feed(bundle("b", b"2", b"3"))
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.25)
    assert taken == ["b", "b"]
    assert time.monotonic() - loop.moved_at < 0.2
    loop.feed(bundle("b", b"4", first=2))
    await asyncio.sleep(0.25)
    assert taken == ["b"] * 3
    late = False
    await asyncio.sleep(0.3)
    assert Counter(taken) == {"a": 100, "b": 3}
    loop.stop()
    await asyncio.wait_for(task, 1)


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [
        ((1000,), (True,)),  # alone it crowds nobody
        ((1000, 900), (True, True)),
        ((1000, 10), (False, True)),
        ((30, 0, 0), (True, True, True)),  # so few are no crowd
        ((1000, 1000, 10, 0), (False, False, True, True)),
    ],
)
def test_who_crowds_others_out(waiting: tuple[int, ...], taken: tuple[bool, ...]) -> None:
    inputs = [Input(str(n), TP(str(n), 0), 0, 0, deque([None] * count)) for n, count in enumerate(waiting)]
    found = uncrowded(inputs)
    assert tuple(item in found for item in inputs) == taken


def test_gather_lets_an_idle_edge_go_at_once() -> None:
    now = 0.0
    gather = Gather(Options("", gather_s=0.025, gather_rows=512), clock=lambda: now)
    gather.came()
    assert gather.delay(1) == 0
    gather.goes()
    now = 0.02
    gather.came()
    assert gather.delay(1) == pytest.approx(0.005)
    assert gather.delay(512) == 0


def test_gather_waits_longer_while_the_machine_is_busy_and_shorter_while_it_is_not() -> None:
    now, used = 0.0, 0.0
    pressure = Pressure(lambda: (used, 2 * now), lambda: now)  # of two cores
    options = Options("", gather_s=0.025, gather_max_s=0.4, gather_acks=2.0)
    gather = Gather(options, pressure=pressure, clock=lambda: now)
    inner = Gather(options, False, pressure, lambda: now)

    def live(cores: float, seconds: float) -> float:
        nonlocal now, used
        for _ in range(round(seconds / 0.05)):
            gather.goes()
            inner.goes()
            now, used = now + 0.05, used + 0.05 * cores
            gather.acked()
            inner.acked()
        return gather.wait_s

    assert live(0.5, 5) == pytest.approx(0.1)  # twice the acknowledgement, no more
    rising = live(1.9, 4)
    assert 0.1 < rising < 0.4
    assert live(1.9, 10) == 0.4
    assert live(1.0, 20) == pytest.approx(0.1)
    assert inner.wait_s == 0.05, "only edges set the pace"


def test_gather_waits_longest_in_a_flood_on_a_busy_machine_only() -> None:
    now, used = 0.0, 0.0
    pressure = Pressure(lambda: (used, 2 * now), lambda: now)
    options = Options("", gather_max_s=0.2, gather_acks=2.0, gather_flood=1e6, gather_flood_s=0.6)
    gather = Gather(options, pressure=pressure, clock=lambda: now)

    def live(cores: float, rows_per_s: float) -> float:
        nonlocal now, used
        for _ in range(200):
            gather.goes(round(0.05 * rows_per_s))
            now, used = now + 0.05, used + 0.05 * cores
            gather.acked()
        return gather.wait_s

    assert live(1.9, 0.5e6) == 0.2
    assert live(1.9, 1.5e6) == pytest.approx(0.45, rel=0.01)
    assert live(1.9, 9e6) == 0.6
    assert live(1.0, 9e6) == pytest.approx(0.1)


def test_pressure_is_told_by_the_counters_of_this_machine() -> None:
    pressure = Pressure()
    assert not pressure.look()  # nothing to compare with
    ends = time.monotonic() + 0.4
    while time.monotonic() < ends:
        sum(range(1000))
    assert pressure.look()
    assert 0 < pressure.busy <= 1
    assert not pressure.look()  # not so soon


def test_gather_does_not_wait_on_after_a_burst() -> None:
    now = 0.0
    options = Options("", gather_s=0.1, gather_acks=2.0)
    gather = Gather(options, clock=lambda: now)
    gather.goes()
    now = 0.01
    gather.came()
    assert gather.delay(1) == pytest.approx(0.025)
    now = 0.03
    gather.came()
    assert gather.delay(2) == pytest.approx(0.025)
    now = 0.056
    assert gather.delay(2) == 0


def test_gather_waits_for_a_multiple_of_what_acknowledgements_take() -> None:
    now = 0.0
    options = Options("", gather_s=0.025, gather_max_s=0.2, gather_acks=2.0)
    gather = Gather(options, clock=lambda: now)

    def batches(ack_s: float) -> float:
        nonlocal now
        for _ in range(40):
            gather.goes()
            now += ack_s
            gather.acked()
            now += gather.delay(1)
        return gather.wait_s

    assert batches(0.005) == 0.025
    assert batches(0.04) == pytest.approx(0.08, rel=0.01)
    assert batches(1.0) == 0.2
    assert batches(0.005) == 0.025


def test_outputs_are_joined_by_target_and_cut_by_size() -> None:
    outputs = [Output("a", rows(1)), Output("b", rows(2)), Output("a", rows(3)), Output("a", rows(4), 1)]
    keyed = [Output("v", rows(5), key=b"k"), Output("v", rows(6), key=b"k")]
    found = messages_of([*outputs, *keyed, Output("a", rows())], Codec(), lambda topic: 100)
    assert sorted((m.topic, m.partition, m.key or b"", m.value) for m in found) == [
        ("a", 0, b"", b"1 3"), ("a", 1, b"", b"4"), ("b", 0, b"", b"2"), ("v", 0, b"k", b"5"), ("v", 0, b"k", b"6"),
    ]  # fmt: skip
    cut = messages_of([Output("a", rows(*range(10, 50)))], Codec(), lambda topic: 40)
    assert b" ".join(m.value for m in cut).split() == [b"%d" % n for n in range(10, 50)]
    assert max(len(m.value) for m in cut) <= 40
    with pytest.raises(Undeliverable):
        messages_of([Output("a", rows(10**15))], Codec(), lambda topic: 3)


def test_outputs_of_two_schemas_to_one_target_are_not_joined() -> None:
    other = pa.record_batch([pa.array([7, 8], pa.int64())], names=["other"])
    outputs = [Output("a", rows(1)), Output("a", other), Output("a", rows(2)), Output("a", other)]
    found = messages_of(outputs, Codec(), lambda topic: 100)
    assert [m.value for m in found] == [b"1 2", b"7 8 7 8"]


async def test_byte_gate_bounds_what_is_in_the_air_but_lets_a_giant_pass_alone() -> None:
    gate = ByteGate(10)
    await gate.enter(25)
    waiting = asyncio.create_task(gate.enter(5))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.leave(25)
    await waiting
    await gate.enter(5)
    third = asyncio.create_task(gate.enter(1))
    await asyncio.sleep(0)
    assert not third.done()
    gate.leave(5)
    await third
