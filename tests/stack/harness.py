"""Drives real workers on the real broker: starts, kills, feeds, and checks what they left behind.

The checker knows nothing of the shell: it replays the topics with the pure steps and compares.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toys
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from aos.streams.processor import Batch, Views
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Producer
from aos.streams.shell.reader import Reader
from aos.streams.shell.snapshots import Snapshot, Snapshots, pack
from aos.streams.shell.topics import Admin, TopicSpec, provision

HERE = Path(__file__).parent
CODEC = toys.ToyCodec()


class Process:
    """One worker process; warm until `go`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, ordinal: int) -> None:
        self.process, self.log, self.ordinal = process, log, ordinal

    async def says(self, word: str, timeout: float = 60.0) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"the worker ended: {await self.process.wait()}\n{self.tail()}"
                if line.decode().strip() == word:
                    return

    async def go(self, ready: bool = True) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        await self.process.stdin.drain()
        if ready:
            await self.says("ready")

    async def end(self, number: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(timeout):
            return await self.process.wait()

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


@dataclass
class Stand:
    """Topics under one prefix, workers in one folder."""

    bootstrap: str
    prefix: str
    folder: Path
    processors: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    program: str = "toyworker.py"
    started: list[Process] = field(default_factory=list)

    @property
    def options(self) -> Options:
        return Options(self.bootstrap, self.prefix)

    async def topics(self, partitions: int = 1, **limits: int) -> None:
        sizes = {name: limits.get(name.replace(".", "_"), 8 << 20) for name in toys.SCHEMAS}
        specs = [TopicSpec(name, partitions, max_bytes=size) for name, size in sizes.items()]
        specs += [
            TopicSpec("aos.snapshots", compacted=True),
            TopicSpec("aos.dead-letters"),
            TopicSpec("aos.alerts"),
            TopicSpec("aos.processors", compacted=True),
        ]
        await provision(self.options, specs)

    async def spare(self, ordinal: int = 0, **settings: Any) -> Process:
        options = {
            "bootstrap": self.bootstrap, "prefix": self.prefix, "ordinal": ordinal,
            "session_timeout_s": 6.0, "heartbeat_s": 1.0, **self.settings, **settings,
        }  # fmt: skip
        given = {"options": options, "processors": self.processors, "folder": str(self.folder), **self.extra}
        log = self.folder / f"worker-{len(self.started)}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / self.program), json.dumps(given),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        self.started.append(Process(process, log, ordinal))
        return self.started[-1]

    async def worker(self, ordinal: int = 0, **settings: Any) -> Process:
        worker = await self.spare(ordinal, **settings)
        await worker.go()
        return worker

    async def close(self) -> None:
        for worker in self.started:
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()

    # what is in the broker

    async def records(self, topic: str) -> list[Any]:
        """All records of a topic, by partition and offset."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            real = self.prefix + topic
            await consumer._client._wait_on_metadata(real)
            tps = [TopicPartition(real, p) for p in sorted(consumer.partitions_for_topic(real))]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            ends = await consumer.end_offsets(tps)
            found: list[Any] = []
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += records
            return sorted(found, key=lambda r: (r.partition, r.offset))
        finally:
            await consumer.stop()

    async def rows(self, topic: str) -> list[tuple[int, ...]]:
        """All rows of a toy topic."""
        found: list[tuple[int, ...]] = []
        for record in await self.records(topic):
            rows = CODEC.decode(topic, record.value, {})
            found += zip(*(column.to_pylist() for column in rows.columns), strict=True)
        return found

    async def committed(self, processor: str) -> dict[tuple[str, int], int]:
        return {tp: offset for tp, (offset, _) in (await self.commits(processor)).items()}

    async def commits(self, processor: str) -> dict[tuple[str, int], tuple[int, str]]:
        """Offset and words of each partition's commit."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(f"{self.prefix}aos.{processor}")
            cut = len(self.prefix)
            return {(tp.topic[cut:], tp.partition): (at.offset, at.metadata) for tp, at in found.items()}
        finally:
            await admin.close()

    async def order(self, processor: str, action: str, timeout: float = 30.0) -> None:
        """Order by plain message, and wait until every partition's commit says so."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")
        await producer.start()
        said = json.dumps({"processor": processor, "action": action}).encode()
        await producer.send_and_wait(f"{self.prefix}aos.processors", said, key=processor.encode())
        await producer.stop()
        ends = time.monotonic() + timeout
        while True:
            words = {word[: len(action)] for _, word in (await self.commits(processor)).values()}
            if words == {action if action != "resume" else ""}:
                return
            assert time.monotonic() < ends, f"{processor} says {words}\n{self.started[-1].tail()}"
            await asyncio.sleep(0.1)

    async def ends(self, topic: str) -> dict[int, int]:
        reader = Reader(self.options)
        await reader.start()
        async with Admin(self.options) as admin:
            count = (await admin.ids())[topic][1]
        found = await reader.bounds([(topic, p) for p in range(count)])
        await reader.stop()
        return {partition: end for (_, partition), (_, end) in found.items()}

    async def caught_up(self, processor: str, topic: str, timeout: float = 60.0) -> float:
        """Wait until the group has committed the whole topic; return the seconds it took."""
        began = time.monotonic()
        while True:
            ends, done = await self.ends(topic), await self.committed(processor)
            if all(done.get((topic, p), 0) >= end for p, end in ends.items()):
                return time.monotonic() - began
            assert time.monotonic() - began < timeout, (
                f"{processor}: {done} of {ends}\n{self.started[-1].tail()}"
            )
            await asyncio.sleep(0.1)

    async def snapshot(self, processor: str, topic: str, partition: int) -> Snapshot | None:
        producer, reader = Producer(self.options), Reader(self.options)
        await reader.start()
        async with Admin(self.options) as admin:
            ids = {name: id for name, (id, _) in (await admin.ids()).items()}
        found = await Snapshots(CODEC, producer, reader).load(processor, partition, {topic: ids[topic]})
        await reader.stop()
        return found

    def read_past_commit(self, ordinal: int, committed: dict[tuple[str, int], int]) -> bool:
        """Whether a killed worker had stepped messages that it had not committed."""
        text = (self.folder / f"progress-{ordinal}").read_text().strip("\x00 ")
        return any(offset >= committed.get((t, p), 0) for t, p, offset in json.loads(text or "[]"))


class Feeder:
    """Produces rows with ids 1, 2, … to a topic's partitions in turn, some messages with several rows."""

    def __init__(self, stand: Stand, topic: str, partitions: int, rate: float = 300) -> None:
        self.stand, self.topic, self.partitions, self.rate = stand, topic, partitions, rate
        self.sent = 0
        self.messages = 0
        self.producer: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Feeder:
        self.producer = AIOKafkaProducer(bootstrap_servers=self.stand.bootstrap, acks="all", linger_ms=2)
        await self.producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.producer.stop()

    async def rows(self, ids: Iterable[int], partition: int | None = None) -> None:
        ids = list(ids)
        value, _ = CODEC.encode(self.topic, toys.batch(toys.IN, ids, [id % 97 for id in ids]))
        await self.raw(value, partition)

    async def raw(self, value: bytes, partition: int | None = None) -> None:
        where = self.messages % self.partitions if partition is None else partition
        self.messages += 1
        await self.producer.send(self.stand.prefix + self.topic, value=value, partition=where)

    async def some(self, seconds: float) -> None:
        """Feed at the rate for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            count = 1 + self.messages % 3
            await self.rows(range(self.sent + 1, self.sent + count + 1))
            self.sent += count
            await asyncio.sleep(1 / self.rate)

    def begin(self) -> None:
        """Feed in the background until `finish`."""
        self._task = asyncio.create_task(self.some(1e9))

    async def finish(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self.producer.flush()


@dataclass
class Verdict:
    """What the checker found of a fold."""

    inputs: int
    lost: int
    duplicates: int
    different: int  # outputs of one id with other contents than the replay's
    state_equal: bool
    dead: int

    @property
    def good(self) -> bool:
        return self.lost == 0 and self.different == 0 and self.state_equal


def replay(records: list[Any]) -> tuple[dict[int, tuple[int, int]], dict[int, Any], int]:
    """Run the fold over the log: outputs by id, states by partition, messages that go to dead letters."""
    states: dict[int, Any] = {}
    outputs: dict[int, tuple[int, int]] = {}
    clocks: dict[int, int] = {}
    dead = 0
    for record in records:
        p = record.partition
        state = states.setdefault(p, toys.fold_initial(p))
        now = clocks[p] = max(clocks.get(p, 0), record.timestamp * 1000)
        try:
            rows = CODEC.decode("toy.in", record.value, {})
            if toys.CRASH in rows.column(0).to_pylist():
                raise toys.BadBytes("the shell must skip it and leave no trace of it in the state")
        except toys.BadBytes:
            dead += 1
            continue
        result = toys.fold_step(state, Batch("toy.in", p, record.offset, rows), now, Views(), 0)
        for output in result.outputs:
            for id, total, chain in zip(*(c.to_pylist() for c in output.rows.columns), strict=True):
                outputs[id] = (total, chain)
    return outputs, states, dead


async def check_fold(stand: Stand, partitions: int) -> Verdict:
    """Compare what the worker left in the broker with a pure replay of its log."""
    records = await stand.records("toy.in")
    expected, states, dead = replay(records)
    seen: dict[int, set[tuple[int, int]]] = {}
    rows = await stand.rows("toy.out")
    for id, total, chain in rows:
        seen.setdefault(id, set()).add((total, chain))
    equal = True
    for partition in range(partitions):
        snapshot = await stand.snapshot("toy-fold", "toy.in", partition)
        body = pack(toys.fold_dump(states.get(partition, toys.fold_initial(partition))))[0]
        equal = equal and snapshot is not None and snapshot.body == body
    return Verdict(
        len(expected),
        len(set(expected) - set(seen)),
        len(rows) - len(seen),
        sum(1 for id, found in seen.items() if found != {expected.get(id)}),
        equal,
        dead,
    )
