"""Runs a service: inbox in, handlers, outcomes out, heartbeats.

Rows of an inbox message wait in the queue of their agent's group; an offset is committed when all rows before it are
answered. What expired while it lay in the inbox is skipped (supervise has given it to somebody else).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from aos.agents.sdk.connection import connection, start_client, wait_for_topic
from aos.agents.sdk.desk import Desk, notes
from aos.agents.sdk.offsets import At, Offsets
from aos.agents.sdk.outbox import Outbox
from aos.agents.sdk.processes import make_pool, timed
from aos.agents.sdk.work import Answer, Work, answered, failed, outcome, to_answer, works
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.topics import INBOX, inbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aos.agents.sdk.service import Group, Service

log = logging.getLogger("aos.agents")

BATCH_WAIT_S = 0.002  # how long a batch handler waits for more after the first piece
COMMIT_S = 0.5
OUTCOMES_IN_FLIGHT = 4  # messages of outcomes under way at once


class Item(NamedTuple):
    """A piece of work and where it was read."""

    work: Work
    at: At


class Runner(ConsumerRebalanceListener):  # type: ignore[misc]
    """One life of a service, from registration to goodbye."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._offsets = Offsets()
        self._queues: dict[int, asyncio.Queue[Item]] = {}
        self._group_of: dict[str, int] = {}
        for number, group in enumerate(service.groups):
            self._queues[number] = asyncio.Queue()
            self._group_of.update(dict.fromkeys(group.agents, number))
        self._running: dict[str, asyncio.Task[dict[str, Any] | None]] = {}
        self._desks: dict[bytes, list[Desk]] = {}  # by token; work that is read again has another desk
        self._calls: Outbox | None = None
        self._busy = 0
        self._pool = self._make_pool()

    def _make_pool(self) -> ProcessPoolExecutor | None:
        size = sum(group.slots for group in self._service.groups if group.process)
        return make_pool(size) if size else None

    async def run(self, stopping: asyncio.Event, ready: asyncio.Event) -> None:
        """Serve until `stopping` is set; an error of a loop ends it and is raised."""
        async with self._clients() as (producer, consumer):
            topic = self._service.prefix + inbox(self._service.name)
            await self._register(producer)
            await self._beat()
            beating = asyncio.create_task(self._beat_forever())
            await wait_for_topic(producer, topic)
            consumer.subscribe([topic], listener=self)
            await consumer.start()
            ready.set()
            workers = [asyncio.create_task(self._work(n)) for n in self._lanes()]
            loops = {beating, asyncio.create_task(self._read(consumer)), asyncio.create_task(stopping.wait())}
            done, running = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(workers, running)
            for task in done:
                task.result()
            await self._commit(consumer)

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[tuple[Any, Any]]:
        service = self._service
        user = f"{service.prefix}aos.service.{service.name}"  # its group has the same name
        common = connection(user, bootstrap=service.bootstrap, kafka=service.kafka)
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, max_request_size=wire.MESSAGE_BYTES_MAX, **common
        )
        consumer = AIOKafkaConsumer(
            group_id=user,
            group_instance_id=f"{user}.{service.replica}" if service.stays else None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=500,
            session_timeout_ms=10_000,
            max_partition_fetch_bytes=wire.MESSAGE_BYTES_MAX,
            **common,
        )
        await start_client(producer, common)
        self._producer = producer
        self._outcomes = self._outbox(producer, "aos.outcomes")
        self._beats = self._outbox(producer, "aos.heartbeats")
        try:
            yield producer, consumer
        finally:
            await self._outcomes.close()
            await self._beats.close()
            if self._calls is not None:
                await self._calls.close()
            if service.stays and consumer._coordinator is not None:
                consumer._coordinator._group_instance_id = None  # else aiokafka never leaves the group
            await consumer.stop()
            await producer.stop()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    def _outbox(self, producer: Any, topic: str) -> Outbox:
        return Outbox(producer, self._service.prefix + topic, topic)

    def _lanes(self) -> Iterator[int]:
        """A worker for each attempt that may run at once; one for each batch handler."""
        for number, group in enumerate(self._service.groups):
            yield from [number] * (1 if group.batch else group.slots)

    async def _register(self, producer: Any) -> None:
        box = self._outbox(producer, "aos.agents")
        rows = [
            {"service": self._service.name, "agent": agent, "capabilities": list(group.capabilities)}
            | group.columns
            for group in self._service.groups
            for agent in group.agents
        ]
        await asyncio.gather(*(box.put(row) for row in rows))
        await box.close()

    async def _beat(self, stopping: bool = False) -> None:
        row = {"service": self._service.name, "replica": self._service.replica, "stopping": stopping}
        await self._beats.put(row | {"busy": self._busy, "sent_at": int(time.time() * 1e6)})

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._service.heartbeat_s)
            await self._beat()

    # the inbox

    async def _read(self, consumer: Any) -> None:
        committed = time.monotonic()
        while True:
            for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    self._take_in(At(partition, record.offset), record)
            if time.monotonic() - committed > COMMIT_S:
                committed = time.monotonic()
                await self._commit(consumer)

    def _take_in(self, at: At, record: Any) -> None:
        """Queue a message's work."""
        try:
            batch = wire.decode(record.value, dict(record.headers), INBOX.schema)
        except RecordError as error:
            log.error("inbox message at %s is not read: %s", at, error)
            self._offsets.read(at, 0)
            return
        items = []
        for kind, work in works(batch, record.timestamp / 1000):
            if kind == "cancel":
                self._cancel(work.idempotency_key, work.echo["token"])
            elif work.agent in self._group_of and work.seconds_left > 0:
                items.append(Item(self._with_desk(work), at))
        self._offsets.read(at, len(items))
        for item in items:
            self._queues[self._group_of[item.work.agent]].put_nowait(item)
        for note in notes(batch):
            for desk in self._desks.get(note.token, ()):  # nobody: it was answered, or withdrawn
                desk.take(note)

    def _with_desk(self, work: Work) -> Work:
        """The work with the ways back to the service; what runs in a process of its own has none."""
        if self._service.groups[self._group_of[work.agent]].process:
            return work
        seconds = max(work.expires - time.time(), 0.001)
        desk = Desk(self._call_out, seconds, work.deadline, work.first_context, work.first_version)
        self._desks.setdefault(work.echo["token"], []).append(desk)
        return replace(work, report=self._report, desk=desk)

    async def _call_out(self, row: dict[str, Any]) -> None:
        if self._calls is None:
            self._calls = self._outbox(self._producer, "aos.calls")
        await self._calls.put(row)

    def _done(self, item: Item) -> None:
        """The piece of work needs nothing more."""
        token = item.work.echo["token"]
        desks = [desk for desk in self._desks.pop(token, ()) if desk is not item.work.desk]
        if desks:
            self._desks[token] = desks
        self._offsets.answered(item.at)

    def _cancel(self, key: str, token: bytes) -> None:
        """Cancel a running attempt, or forget one that waits; one of a batch hears no more of what it asked for."""
        task = self._running.get(key)
        if task is not None:
            task.cancel()
            return
        for desk in self._desks.get(token, ()):
            desk.withdraw()
        for queue in self._queues.values():
            for item in _drain(queue):
                if item.work.idempotency_key == key:
                    self._done(item)
                else:
                    queue.put_nowait(item)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing to do: reading begins at the committed offsets."""

    def on_partitions_revoked(self, revoked: Any) -> None:
        """What is read but unanswered may be done twice; supervise counts the first answer."""
        self._offsets.revoked(revoked)

    async def _commit(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        offsets = {p: offset for p, offset in self._offsets.to_commit().items() if p in assigned}
        if not offsets:
            return
        try:
            await consumer.commit(offsets)
        except (
            KafkaError
        ) as error:  # a rebalance, a broker away: work comes again, and attempts are idempotent
            log.warning("inbox offsets were not committed: %s", error)

    # attempts

    async def _work(self, number: int) -> None:
        group, queue = self._service.groups[number], self._queues[number]
        while True:
            item = await queue.get()
            if not group.batch:
                await self._one(group, item)
                continue
            await asyncio.sleep(BATCH_WAIT_S)
            await self._many(group, [item, *_drain(queue)])

    async def _one(self, group: Group, item: Item) -> None:
        key = item.work.idempotency_key
        task = asyncio.create_task(self._attempt(group, item.work))
        self._running[key] = task
        self._busy += 1
        try:
            await asyncio.wait({task})
            if not task.cancelled() and (row := task.result()) is not None:
                await self._outcomes.put(row)
        finally:
            task.cancel()
            self._busy -= 1
            self._running.pop(key, None)
            self._done(item)

    async def _attempt(self, group: Group, work: Work) -> dict[str, Any] | None:
        """Run the handler within the attempt's time; every error becomes a failed outcome."""
        try:
            async with asyncio.timeout(max(work.seconds_left, 0.001)) as clock:
                if work.desk is not None:
                    work.desk.start(clock)
                value = await self._call(group, work)
            return answered(work, to_answer(value), self._service.replica)
        except Exception as error:
            log.debug("agent %s failed", work.agent, exc_info=True)
            return failed(work, error, self._service.replica)

    async def _call(self, group: Group, work: Work) -> Any:
        if not group.process:
            value = group.handler(work)
            return await value if asyncio.iscoroutine(value) else value
        loop = asyncio.get_running_loop()
        try:
            value, cpu_us = await loop.run_in_executor(self._pool, timed, group.handler, work)
        except BrokenProcessPool:
            self._pool = self._make_pool()
            raise
        answer = to_answer(value)
        return answer if answer.cpu_us is not None else Answer(**{**answer.__dict__, "cpu_us": cpu_us})

    async def _many(self, group: Group, items: list[Item]) -> None:
        self._busy += len(items)
        rows = await self._attempts(group, [item.work for item in items])
        await asyncio.gather(*(self._outcomes.put(row) for row in rows))
        self._busy -= len(items)
        for item in items:
            self._done(item)

    async def _attempts(self, group: Group, batch: list[Work]) -> list[dict[str, Any]]:
        replica = self._service.replica
        try:
            async with asyncio.timeout(max(min(work.seconds_left for work in batch), 0.001)) as clock:
                for work in batch:
                    if work.desk is not None:
                        work.desk.start(clock)
                values = await group.handler(batch)
            if len(values) != len(batch):
                raise ValueError(f"{len(values)} answers to {len(batch)} pieces of work")
        except Exception as error:
            log.debug("agents %s failed", group.agents, exc_info=True)
            return [failed(work, error, replica) for work in batch]
        return [
            failed(work, value, replica)
            if isinstance(value, Exception)
            else answered(work, to_answer(value), replica)
            for work, value in zip(batch, values, strict=True)
        ]

    async def _report(self, work: Work, share: float) -> None:
        await self._outcomes.put(outcome(work, "progress", progress=share, replica=self._service.replica))
        if work.desk is not None:
            work.desk.again()

    async def _finish(self, workers: list[asyncio.Task[None]], loops: set[asyncio.Task[Any]]) -> None:
        """Say goodbye, let what is at hand end within the grace time, then cancel."""
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self._beat(stopping=True)
        ends = time.monotonic() + self._service.grace_s
        while time.monotonic() < ends and (self._busy or any(q.qsize() for q in self._queues.values())):
            await asyncio.sleep(0.02)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _drain(queue: asyncio.Queue[Item]) -> list[Item]:
    found: list[Item] = []
    while not queue.empty():
        found.append(queue.get_nowait())
    return found
