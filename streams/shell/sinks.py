"""The law SINK: bundles of all input topics into a store that keeps the offsets itself.

order: a bundle is one transaction of the store; the input is acked after its commit.
errors: `SinkAway` -> the bundle is dropped, all partitions are held, and read on from the store's offsets when it
    is back; bad bytes -> dead letter first; anything else -> exit 70.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa
from faust.types import TP

from aos.streams.shell.consumer import Bundle
from aos.streams.shell.fatal import BROKEN, STUCK, die, log
from aos.streams.shell.kit import Input, Kit
from aos.streams.shell.outgoing import messages_of
from aos.streams.shell.producer import Undeliverable
from aos.streams.shell.reader import raw_of
from aos.streams.shell.rest import heed

AWAY_S_MIN, AWAY_S_MAX = 0.2, 5.0
NOTHING = pa.RecordBatch.from_pylist([], pa.schema([]))


class SinkAway(Exception):
    """The store cannot be reached: try again later."""


class Portion(NamedTuple):
    """One message for the sink; `appended_at` in microseconds, topic without prefix. One that could not be read has
    no rows and no columns: it only moves the place of its partition on."""

    topic: str
    partition: int
    offset: int
    rows: pa.RecordBatch
    appended_at: int


class Sink(Protocol):
    """A store that keeps the offset of what it holds, in the same transaction."""

    async def open(self, partitions: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Take the partitions over (fencing whoever had them); next offset of each that the store knows."""

    async def write(self, batches: Sequence[Portion]) -> None:
        """Write all in one transaction, offsets included, or raise."""


class SinkRunner:
    """The `Port` of a sink: one bundle at a time over all its partitions."""

    def __init__(self, kit: Kit, sink: Sink) -> None:
        self.kit = kit
        self._sink = sink
        self.inputs: dict[TP, Input] = {}
        self._first_at: float | None = None  # when the oldest waiting record came
        self._wake = asyncio.Event()
        self.stopping = False
        self._task: asyncio.Task[None] | None = None
        self._away = False
        self.heeded = ""
        self._pause_s = AWAY_S_MIN
        self.moved_at = time.monotonic()

    # what the consumer asks

    def wants(self, tp: TP) -> bool:
        return self.kit.wants(self.inputs.get(tp))

    def wake(self) -> None:
        """An order may have come."""
        self._wake.set()

    def patience_s(self) -> float:
        return self.kit.patience_s

    def feed(self, bundle: Bundle) -> None:
        item = self.inputs.get(bundle.tp)
        if item is None or item.held or self.stopping or not self.kit.consumer.is_current(bundle):
            return
        item.queue.extend(bundle.records)
        item.waiting_bytes += sum(len(record.value or b"") for record in bundle.records)
        if self._first_at is None:
            self._first_at = time.monotonic()
        self._wake.set()

    async def lost(self, tp: TP, expected: int) -> bool:
        return await self.kit.halt.at_gap(self._name(tp), tp.partition, expected)

    async def restore(
        self, tps: Iterable[TP], committed: Mapping[TP, int | None], generation: int
    ) -> dict[TP, int]:
        await self.settle()
        self.stopping = False
        tps = list(tps)
        bounds = await self.kit.reader.bounds([(self._name(tp), tp.partition) for tp in tps])
        self.inputs = {}
        for tp in tps:
            first, end = bounds[(self._name(tp), tp.partition)]
            done = committed.get(tp)
            await self.kit.halt.at_start(self._name(tp), tp.partition, first if done is None else done, first)
            self.inputs[tp] = Input(self._name(tp), tp, min(max(done or first, first), end), 0)
        await self._open()
        for item in self.inputs.values():
            item.held = self._away
        self.heeded = ""
        await self.kit.halt.running({tp.partition for tp in tps})
        self.kit.metrics.restores += 1
        self._task = asyncio.create_task(self._run(), name=self.kit.processor.name)
        return {tp: item.position for tp, item in self.inputs.items()}

    async def settle(self) -> None:
        self.stopping = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=self.kit.options.stop_s)
            if not done:
                die(STUCK, f"{self.kit.processor.name}: the running write did not end")
        self._task = None
        self.inputs = {}

    # the loop

    async def _run(self) -> None:
        try:
            while not self.stopping:
                await heed(self)
                if self._away:
                    await self._return()
                elif await self._full():
                    await self._bundle()
        except Undeliverable as error:
            await self.kit.halt.undelivered(error)
        except Exception as error:
            die(BROKEN, f"{self.kit.processor.name}: the sink failed", error)

    async def _full(self) -> bool:
        """Wait until a bundle is old or large enough."""
        self._wake.clear()
        if self._first_at is None:
            await self._wake.wait()
            return False
        size = sum(item.waiting_bytes for item in self.inputs.values())
        left = self._first_at + self.kit.options.bundle_s - time.monotonic()
        if left <= 0 or size >= self.kit.options.bundle_bytes:
            return True
        timer = asyncio.get_running_loop().call_later(left, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        return False

    async def _bundle(self) -> None:
        """Decode all that waits, write it, ack it."""
        self._first_at = None
        portions, dead, done = [], [], []
        for item in self.inputs.values():
            first = item.position
            for record in item.queue:
                if record.offset < item.position:
                    continue
                raw = raw_of(record, self.kit.options.prefix)
                item.position = record.offset + 1
                self.kit.metrics.messages_in += 1
                try:
                    rows = self.kit.codec.decode(item.topic, raw.value, raw.headers)
                except Exception as error:  # decode is pure: whatever it raises, the bytes are why
                    code = getattr(error, "code", "AOS1001")
                    dead += self.kit.dead_letter(raw, code, str(error))
                    rows = NOTHING
                self.kit.metrics.rows_in += rows.num_rows
                portions.append(Portion(item.topic, item.tp.partition, raw.offset, rows, raw.appended_at))
            item.drop()
            done.append((item, first))
        if dead:
            self.kit.metrics.dead_letters += len(dead)
            await self.kit.producer.deliver(messages_of(dead, self.kit.codec, self.kit.limit))
        if await self._write(portions):
            for item, first in done:
                if item.position > first:
                    self.kit.consumer.finished(item.tp, first, item.position)
            self.moved_at = time.monotonic()
            if dead and self.kit.halt.open:
                await self.kit.halt.delivered()

    async def _write(self, portions: Sequence[Portion]) -> bool:
        began = time.perf_counter()
        self.kit.metrics.rounds += 1
        try:
            if portions:
                async with asyncio.timeout(self.kit.options.sink_s):
                    await self._sink.write(portions)
        except (SinkAway, TimeoutError) as error:
            log.warning("%s: the store is away: %s", self.kit.processor.name, error or "no answer")
            await self._leave()
            return False
        self.kit.metrics.deliver_s += time.perf_counter() - began
        return True

    async def _leave(self) -> None:
        """Drop what is in hand and read no more: it comes again from the store's offsets."""
        self._away, self._pause_s = True, AWAY_S_MIN
        self.kit.metrics.sink_away += 1
        await self.hold()

    async def hold(self, all_of_them: bool = True) -> None:
        """Drop what is in hand and read no more, or read on where the store is."""
        if not all_of_them:
            await self._release()
            return
        self._first_at = None
        for item in self.inputs.values():
            item.held = True
            item.drop()
            if not self.stopping:
                await self.kit.consumer.hold(item.tp, item.position)

    async def _release(self) -> None:
        if self._away:
            return
        for item in self.inputs.values():
            item.held = False
            await self.kit.consumer.release(item.tp, item.position)
        self.moved_at = time.monotonic()

    async def _return(self) -> None:
        """Ask for the store's offsets and read on from there; wait if it does not answer, longer each time."""
        await self._open()
        if not self._away:
            if not self.heeded:
                await self._release()
            return
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(self._pause_s, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        self._pause_s = min(AWAY_S_MAX, 2 * self._pause_s)

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self.kit.options.sink_s):
                known = await self._sink.open(
                    [(item.topic, item.tp.partition) for item in self.inputs.values()]
                )
        except (SinkAway, TimeoutError) as error:
            log.warning("%s: the store is away: %s", self.kit.processor.name, error or "no answer")
            self._away = True
        else:
            self._away = False
            for item in self.inputs.values():
                item.position = known.get((item.topic, item.tp.partition), item.position)
        for item in self.inputs.values():
            item.drop()

    @property
    def busy(self) -> bool:
        """Whether something was handed out and is not finished; a record that got lost inside counts too."""
        waiting = list(self.inputs.values())
        return not self._away and any(item.queue or self.kit.consumer.in_air(item.tp) for item in waiting)

    def _name(self, tp: TP) -> str:
        return tp.topic[len(self.kit.options.prefix) :]
