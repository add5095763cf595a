"""One partition of a processor: its state, and the loop that decodes, steps, sends, waits for acks, acks.

order: one step at a time for all topics of the partition, each topic in the order of its log. Below the commit C a
    fold's outputs are muted; journals and views say them again: with another order of their topics, or without
    the ticks that came between, they may now say what they did not say then.
errors: bad bytes -> dead letter; a step that raises -> dead letter (row) or rewind and dead letter (stateful);
    outputs refused -> exit 70 without a commit.
cost: one message-hop .4-.8 ms of CPU whatever it holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from aos.codecs.errors import RecordError
from aos.streams.processor import Batch, Law, Output, Raw, Recall, Step
from aos.streams.shell.clock import wall
from aos.streams.shell.consumer import Bundle
from aos.streams.shell.crumbs import deadly, suspicious
from aos.streams.shell.fatal import BROKEN, die, log
from aos.streams.shell.kit import Done, Gather, Input, Kit, runnable
from aos.streams.shell.outgoing import Outgoing, messages_of
from aos.streams.shell.pressure import Pressure
from aos.streams.shell.producer import Undeliverable
from aos.streams.shell.reader import raw_of
from aos.streams.shell.rest import heed

NO_ROWS = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
TICK_S_MIN = 0.005  # a state that is always due must not spin
TICK_PATIENCE = 2.0  # times a processor's patience between two ticks of a fold
SKIPPED = "the step failed on it, or ended the process three times; see the worker's log"
HELD_S = 0.1  # until an edge that was held back looks again
TICK_AGAIN_S = 0.05  # a tick whose append time is still before the due time (clocks differ)


class Loop:
    """State and loop of one partition number; `inputs` in the order of `Processor.reads`."""

    def __init__(self, kit: Kit, partition: int, inputs: Sequence[Input], state: Any) -> None:
        self.kit = kit
        self.partition = partition
        self.inputs = {item.topic: item for item in inputs}
        self.state = state
        self.now = 0
        self.journal = 0  # next offset of the journal
        self.next_due: int | None = None
        self.greet = False  # one tick after the replay, before anything else
        processor = kit.processor.name
        self._crumbs = {item.topic: kit.crumbs.of(processor, item.topic, partition) for item in inputs}
        self.skip = deadly(self._crumbs)
        # messages that an edge takes one by one
        self._careful = kit.options.gather_rows * len(inputs) if suspicious(self._crumbs) else 0
        self.stopping = False
        self.moved_at = time.monotonic()
        self.steps_since_snapshot = 0
        self._wake = asyncio.Event()
        self.gather = Gather(kit.options, kit.processor.edge, Pressure())
        self._ticked_at = float("-inf")
        self._wanted_holds: frozenset[str] = frozenset()
        self.heeded = ""
        self._rewinding = False
        self.between: Callable[[Loop], None] = lambda loop: None  # after a round; takes snapshots
        # (partition, topic, offset): restore, then skip this message
        self.rewind: Callable[[int, str, int], None]

    # from outside

    def feed(self, bundle: Bundle) -> None:
        item = self.inputs[bundle.topic[len(self.kit.options.prefix) :]]
        if self.stopping or item.held:
            return  # it comes again after the seek
        self.gather.came()
        item.queue.extend(bundle.records)
        item.waiting_bytes += sum(len(record.value or b"") for record in bundle.records)
        self._wake.set()

    def wake(self) -> None:
        """Look again what there is to do."""
        self._wake.set()

    def stop(self) -> None:
        self.stopping = True
        for item in self.inputs.values():
            item.drop()
        self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether something was handed out and is not finished; a record that got lost inside counts too."""
        return any(item.queue or self.kit.consumer.in_air(item.tp) for item in self.inputs.values())

    # the loop

    async def run(self) -> None:
        """Until `stop`; whatever escapes ends the process, because an escape would be an acknowledgement."""
        try:
            while await self._work():
                await self._round()
        except Undeliverable as error:
            await self.kit.halt.undelivered(error, self.partition)
        except Exception as error:
            die(BROKEN, f"{self.kit.processor.name}/{self.partition}: the shell failed", error)

    async def _work(self) -> bool:
        """Wait for something to do; False when it is time to stop."""
        while not self.stopping:
            await heed(self)
            delay = self._delay()
            if delay <= 0:
                return True
            self._wake.clear()
            timer = None
            if delay != float("inf"):
                timer = asyncio.get_running_loop().call_later(delay, self._wake.set)
            await self._wake.wait()
            if timer is not None:
                timer.cancel()
        return False

    def _delay(self) -> float:
        """Seconds until the next round may begin."""
        if self.heeded:
            return float("inf")  # who changes the order wakes it
        waiting = 0 if self.kit.held_back() else sum(len(item.queue) for item in self._runnable())
        if waiting:
            return self.gather.delay(waiting)
        if any(item.queue and not item.held for item in self.inputs.values()):
            self.moved_at = time.monotonic()  # not stuck, patient
            return HELD_S
        return self._until_tick()

    def _runnable(self) -> list[Input]:
        return runnable(self.inputs.values(), self.kit.crowded())

    def _until_tick(self) -> float:
        """Seconds until the state is to be called although nothing came."""
        if any(item.replaying for item in self.inputs.values()):
            return float("inf")
        if self.greet:
            return 0.0
        if self.next_due is None:
            return float("inf")
        since = time.monotonic() - self._ticked_at
        again = TICK_S_MIN
        if self.kit.processor.law is Law.FOLD:
            # a tick is a message that all readers of the log pay for, and it is read no sooner than the others
            again = max(TICK_AGAIN_S, TICK_PATIENCE * self.kit.patience_s)
        return max((self.next_due - wall()) / 1e6, again - since)

    async def _round(self) -> None:
        """Some steps, their outputs, their acks, then the ack of what caused them."""
        began = time.perf_counter()
        out = Outgoing()
        items = self._runnable()
        if self._until_tick() <= 0 and not (items and self.kit.processor.law is Law.FOLD):
            await self._tick(out)  # a fold's clock is its log: while something comes it needs no tick
        take = self._take_raws if self.kit.processor.edge else self._take_messages
        done = take(items, out, began)
        if self._rewinding:
            return  # nothing of this round was sent: all of it comes again
        self.gather.goes(sum(output.rows.num_rows for output in out.rest))
        self.kit.metrics.rounds += 1
        self.kit.metrics.step_s += time.perf_counter() - began
        await self.send(out)
        self.gather.acked()
        for item, first, end in done:
            if end > first:
                self.kit.consumer.finished(item.tp, first, end)
        self.moved_at = time.monotonic()
        if not self.stopping:
            await self.hold()
            self.between(self)

    def _take_messages(self, items: Sequence[Input], out: Outgoing, began: float) -> list[Done]:
        """Messages of one topic after the other, until the round is full."""
        done: list[Done] = []
        for item in items:
            first = item.position
            go_on = self._take(item, out, began)
            done.append(Done(item, first, item.position))
            if not go_on:
                break
        return done

    def _take(self, item: Input, out: Outgoing, began: float) -> bool:
        """Step the messages of one topic in order, within the bounds of a round; False to end the round."""
        size = 0
        options = self.kit.options
        while item.queue and item.topic not in self._wanted_holds:
            record = item.queue.popleft()
            size += len(record.value or b"")
            item.waiting_bytes -= len(record.value or b"")
            if record.offset < item.position:
                continue
            was_replaying = record.offset < item.committed
            if not self._one(item, record, out):
                return False
            item.position = record.offset + 1
            full = size >= options.round_bytes or time.perf_counter() - began >= options.round_s
            if full or (was_replaying and not item.replaying):
                return False
        return True

    def _one(self, item: Input, record: Any, out: Outgoing) -> bool:
        """One message through the step; False if the state must be rewound."""
        raw = raw_of(record, self.kit.options.prefix)
        self.now = max(self.now, raw.appended_at)
        muted = record.offset < item.committed
        if (item.topic, record.offset) in self.skip:
            self._bury(raw, "AOS9001", SKIPPED, out, muted)
            return True
        crumb = self._crumbs[item.topic]
        crumb.enter(record.offset)
        going_on = self._decoded(item, raw, out, muted)
        crumb.leave()
        return going_on

    def _decoded(self, item: Input, raw: Raw, out: Outgoing, muted: bool) -> bool:
        try:
            rows = self.kit.codec.decode(item.topic, raw.value, raw.headers)
        except Exception as error:  # decode is pure: whatever it raises, the bytes are why
            self._bury(raw, getattr(error, "code", "AOS1001"), str(error), out, muted)
            return True
        self._count(raw, rows.num_rows)
        return self._step(Batch(item.topic, self.partition, raw.offset, rows), raw, out, muted)

    def _take_raws(self, items: Sequence[Input], out: Outgoing, began: float) -> list[Done]:
        """What waits on all topics of an edge as one batch: a tenant's topic more must not be a step more."""
        raws: list[Raw] = []
        done: list[Done] = []
        for left, item in zip(range(len(items), 0, -1), items, strict=True):
            first = item.position
            raws += self._some_of(item, (self.kit.options.gather_rows - len(raws)) // left)
            done.append(Done(item, first, item.position))
        for raw in [raw for raw in raws if (raw.topic, raw.offset) in self.skip]:
            self._bury(raw, "AOS9001", SKIPPED, out, muted=False)
            raws.remove(raw)
        for group in [[raw] for raw in raws] if self._careful else [raws] if raws else []:
            self.now = max(self.now, max(raw.appended_at for raw in group))
            batch = Batch(group[0].topic, self.partition, group[0].offset, NO_ROWS, group)
            self._crumbs[batch.topic].enter(batch.offset)
            self._step(batch, group[0], out, muted=False)
            self._crumbs[batch.topic].leave()
        self._careful = max(0, self._careful - len(raws))
        return done

    def _some_of(self, item: Input, most: int) -> list[Raw]:
        """At least one and about `most` records of a topic, a topic's share of what a round takes."""
        raws: list[Raw] = []
        size, full = 0, self.kit.options.round_bytes // len(self.inputs)
        while item.queue and len(raws) < max(1, most) and size < full:
            record = item.queue.popleft()
            size += len(record.value or b"")
            if record.offset < item.position:
                continue
            raws.append(raw_of(record, self.kit.options.prefix))
            item.position = record.offset + 1
            self._count(raws[-1], 1)
        item.waiting_bytes = 0 if not item.queue else max(0, item.waiting_bytes - size)
        return raws

    def _count(self, raw: Raw, rows: int) -> None:
        metrics = self.kit.metrics
        metrics.messages_in += 1
        metrics.rows_in += rows
        metrics.bytes_in += len(raw.value)

    def _step(self, batch: Batch, raw: Raw, out: Outgoing, muted: bool) -> bool:
        processor = self.kit.processor
        try:
            result = processor.step(self.state, batch, self.now, self.kit.views, self.kit.seed)
        except RecordError as error:  # raised before the state was touched
            self._bury(raw, error.code, str(error), out, muted)
            return True
        except Exception as error:
            return self._failed(batch, raw, out, muted, error)
        self._accept(result, out, muted)
        return True

    def _accept(self, result: Step[Any], out: Outgoing, muted: bool) -> None:
        self.state = result.state
        self.next_due = result.next_due
        self._wanted_holds = result.paused
        self.steps_since_snapshot += 1
        if muted:
            self.kit.metrics.muted += 1
        else:
            out.add(result)

    def _failed(self, batch: Batch, raw: Raw, out: Outgoing, muted: bool, error: Exception) -> bool:
        """A bug in a step. Without state the message is buried (an edge's messages are tried one by one); with
        state, what the step left behind cannot be trusted: the partition is restored and the message skipped when it
        comes again."""
        name = self.kit.processor.name
        log.error("%s/%d: step failed at %s %d", name, self.partition, raw.topic, raw.offset, exc_info=error)
        if self.kit.processor.law is Law.ROW:
            if len(batch.raws) > 1:  # find the one it fails on: the others must not suffer
                for one in batch.raws:
                    self._step(Batch(one.topic, self.partition, one.offset, NO_ROWS, [one]), one, out, muted)
            else:
                self._bury(raw, "AOS9001", repr(error), out, muted)
            return True
        self._rewinding = True
        self.stop()
        self.rewind(self.partition, raw.topic, raw.offset)
        return False

    def _bury(self, raw: Raw, code: str, message: str, out: Outgoing, muted: bool) -> None:
        self.steps_since_snapshot += 1
        if not muted:
            self.kit.metrics.dead_letters += 1
            out.dead += self.kit.dead_letter(raw, code, message)

    async def send(self, out: Outgoing) -> None:
        """Dead letters, then the journal, then the rest, each acknowledged before the next."""
        if out.empty:
            return
        began = time.perf_counter()
        for recall in out.recalls:
            out.rest += await self._recall(recall)
        for phase in (out.dead, out.first, out.rest):
            if self.kit.options.ack_delay_s and phase:
                await asyncio.sleep(self.kit.options.ack_delay_s)
            offsets = await self._deliver(phase)
            if phase is out.first and offsets and self.kit.processor.journal is not None:
                self.journal = max(self.journal, max(offsets) + 1)
        self.kit.metrics.deliver_s += time.perf_counter() - began
        if self.kit.halt.open:
            await self.kit.halt.delivered(self.partition)

    async def _deliver(self, outputs: Sequence[Output]) -> list[int]:
        if not outputs:
            return []
        messages = messages_of(outputs, self.kit.codec, self.kit.limit)
        metrics = self.kit.metrics
        metrics.messages_out += len(messages)
        metrics.rows_out += sum(output.rows.num_rows for output in outputs)
        metrics.bytes_out += sum(len(message.value) for message in messages)
        return await self.kit.producer.deliver(messages)

    async def _recall(self, recall: Recall) -> Sequence[Output]:
        """Read log records again for the processor (a repeated request's result)."""
        processor = self.kit.processor
        assert processor.recall is not None
        topic = next(iter(self.inputs))
        records = await self.kit.reader.at(topic, recall.partition, recall.offsets)
        return processor.recall(recall, list(self._batches(topic, records)), self.kit.views)

    def _batches(self, topic: str, records: Sequence[Any]) -> Iterator[Batch]:
        for record in records:
            raw = raw_of(record, self.kit.options.prefix)
            if self.kit.processor.edge:
                yield Batch(topic, raw.partition, raw.offset, NO_ROWS, [raw])
            else:
                rows = self.kit.codec.decode(topic, raw.value, raw.headers)
                yield Batch(topic, raw.partition, raw.offset, rows)

    async def _tick(self, out: Outgoing) -> None:
        """Nothing came and the state is due: a fold's tick is a row of its own log, all others' is a call."""
        self._ticked_at = time.monotonic()
        self.greet = False
        self.kit.metrics.ticks += 1
        processor = self.kit.processor
        topic = next(iter(self.inputs))
        if processor.law is Law.FOLD:
            assert processor.tick is not None, f"{processor.name} is due but has no tick"
            out.rest += [self._tick_row(topic)]
            return
        self.now = max(self.now, wall())
        batch = Batch(topic, self.partition, -1, NO_ROWS, tick=True)
        raw = Raw(topic, self.partition, -1, self.now, None, b"", {})
        self._step(batch, raw, out, muted=False)

    def _tick_row(self, topic: str) -> Output:
        assert self.kit.processor.tick is not None
        return Output(topic, self.kit.processor.tick(self.partition, self.now), self.partition)

    async def hold(self, all_of_them: bool = False) -> None:
        """Pause and resume input topics as the last step asked, or pause them all."""
        for item in self.inputs.values():
            wanted = all_of_them or item.topic in self._wanted_holds
            if wanted and not item.held:
                item.held = True
                item.drop()
                self.kit.metrics.holds += 1
                await self.kit.consumer.hold(item.tp, item.position)
            elif item.held and not wanted:
                item.held = False
                await self.kit.consumer.release(item.tp, item.position)
