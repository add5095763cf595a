"""One processor's partitions in this process: restores them, runs their loops, settles them, takes snapshots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
import pyarrow as pa
from faust.types import TP

from aos.streams.processor import Batch, Law
from aos.streams.shell.consumer import Bundle
from aos.streams.shell.fatal import BROKEN, STUCK, die, log
from aos.streams.shell.kit import Input, Kit
from aos.streams.shell.loop import Loop
from aos.streams.shell.reader import raw_of
from aos.streams.shell.snapshots import Manifest, Snapshot, Snapshots, pack

REWINDS_MAX = 5  # a minute: more is a processor that fails on everything
Bounds = Mapping[tuple[str, int], tuple[int, int]]  # first offset and end, by topic and partition
LONG_REPLAY_STEPS = 5_000  # worth a snapshot at its end


class Runner:
    """The `Port` of a processor with state or without (all laws but SINK)."""

    def __init__(
        self, kit: Kit, reads: tuple[str, ...], snapshots: Snapshots, ids: Mapping[str, str]
    ) -> None:
        self.kit = kit
        self._reads = reads
        self._snapshots = snapshots
        self._ids = {topic: ids.get(topic, "") for topic in reads}
        self.loops: dict[int, Loop] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._skips: dict[int, set[tuple[str, int]]] = {}
        self._rewound: list[float] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._keeper = Keeper(kit, snapshots, self._ids)

    # what the consumer asks

    def wants(self, tp: TP) -> bool:
        loop = self.loops.get(tp.partition)
        return loop is not None and not loop.stopping and self.kit.wants(loop.inputs[self._name(tp)])

    def wake(self) -> None:
        """An order may have come."""
        for loop in self.loops.values():
            loop.wake()

    async def lost(self, tp: TP, expected: int) -> bool:
        return await self.kit.halt.at_gap(self._name(tp), tp.partition, expected)

    def patience_s(self) -> float:
        waits = [loop.gather.quiet_s for loop in self.loops.values()] if self.kit.processor.edge else []
        return max(waits, default=self.kit.patience_s)

    def feed(self, bundle: Bundle) -> None:
        loop = self.loops.get(bundle.partition)
        if loop is not None and self.kit.consumer.is_current(bundle):
            loop.feed(bundle)

    async def restore(
        self, tps: Iterable[TP], committed: Mapping[TP, int | None], generation: int
    ) -> dict[TP, int]:
        """Make the states of these partitions anew; return where each topic is to be read on."""
        by_partition: dict[int, list[TP]] = {}
        for tp in tps:
            by_partition.setdefault(tp.partition, []).append(tp)
        for partition in by_partition:
            await self._end(partition)
        loaded = [
            await self._load(p, group, committed, generation) for p, group in sorted(by_partition.items())
        ]
        loops = [loop for loop in loaded if loop is not None]
        await self.kit.halt.running({loop.partition for loop in loops})
        for loop in loops:
            self.loops[loop.partition] = loop
            self._tasks[loop.partition] = asyncio.create_task(loop.run(), name=self._label(loop.partition))
        return {item.tp: item.position for loop in loops for item in loop.inputs.values()}

    async def settle(self) -> None:
        """End all loops after their running round and its acks, then snapshot what changed."""
        loops = dict(self.loops)
        try:
            async with asyncio.timeout(self.kit.options.stop_s):
                for partition in loops:
                    await self._end(partition)
        except TimeoutError:
            die(
                STUCK,
                f"{self.kit.processor.name}: the running step did not end in {self.kit.options.stop_s} s",
            )
        await self._keeper.last(loops.values())

    # inside

    async def _end(self, partition: int) -> None:
        loop, task = self.loops.get(partition), self._tasks.get(partition)
        if loop is not None and task is not None:
            loop.stop()
            await task
        self.loops.pop(partition, None)
        self._tasks.pop(partition, None)

    async def _load(
        self, partition: int, tps: Iterable[TP], committed: Mapping[TP, int | None], generation: int
    ) -> Loop | None:
        """The loop of a partition; None when what it has to read is gone."""
        processor = self.kit.processor
        names = {self._name(tp): tp for tp in tps}
        topics = [topic for topic in self._reads if topic in names]
        bounds = await self.kit.reader.bounds([(topic, partition) for topic in topics])
        snapshot, state = await self._restored(partition, topics, bounds)
        if await self._gone(partition, names, bounds, committed, snapshot):
            return None
        inputs = []
        for topic in topics:
            first, end = bounds[(topic, partition)]
            done = committed.get(names[topic])
            inputs.append(self._input(topic, names[topic], first, end, done, snapshot))
        loop = Loop(self.kit, partition, inputs, state)
        # one tick before anything else: what was adopted but maybe not sent goes out, a due time is said
        loop.greet = processor.law in (Law.JOURNAL, Law.VIEW)
        if snapshot is not None:
            loop.now, loop.journal = snapshot.manifest.now, snapshot.manifest.journal
            loop.next_due = snapshot.manifest.due
        skips = self._skips.setdefault(partition, set())
        skips |= loop.skip
        loop.skip = skips
        loop.between = self._keeper.consider
        loop.rewind = self.rewind
        self._keeper.begin(loop, generation, snapshot)
        await self._adopt(loop)
        self.kit.metrics.restores += 1
        log.info(
            "%s: restored at %s", self._label(partition), {i.topic: (i.position, i.committed) for i in inputs}
        )
        return loop

    def _input(
        self, topic: str, tp: TP, first: int, end: int, done: int | None, snapshot: Snapshot | None
    ) -> Input:
        """Where to read on, and up to where outputs are muted."""
        commit = min(max(done if done is not None else first, first), end)
        law = self.kit.processor.law
        if law is Law.ROW:
            return Input(topic, tp, commit, commit)
        position = snapshot.manifest.offsets[topic] if snapshot is not None else first
        position = max(position, first)
        return Input(topic, tp, position, max(commit, position) if law is Law.FOLD else position)

    async def _gone(
        self,
        partition: int,
        names: Mapping[str, TP],
        bounds: Bounds,
        committed: Mapping[TP, int | None],
        snapshot: Snapshot | None,
    ) -> bool:
        """Whether a log that this partition has read before lost what comes next, and nobody accepts it."""
        processor, halt = self.kit.processor, self.kit.halt
        if processor.dump is not None and snapshot is None:
            others = self._snapshots.of_other_topics(processor.name, partition, self._ids)
            for topic, was in others.items():
                if await halt.made_anew(topic, was, self._ids[topic]):
                    return True
        for topic, tp in names.items():
            first, _ = bounds[(topic, partition)]
            done = committed.get(tp)
            if snapshot is not None:
                position = snapshot.manifest.offsets[topic]
            elif processor.dump is not None and done is not None:
                position = 0  # without a snapshot a state is made of the whole log
            else:
                position = first if done is None else done
            if await halt.at_start(topic, partition, position, first):
                return True
        return False

    async def _restored(
        self, partition: int, topics: Sequence[str], bounds: Bounds
    ) -> tuple[Snapshot | None, Any]:
        """The newest snapshot that is a state of these logs, and that state; else none, and the state of nothing."""
        processor = self.kit.processor
        if processor.dump is None:
            return None, processor.initial(partition)
        load = processor.load
        assert load is not None, f"{processor.name} has dump but no load"
        wanted = _schemas(processor.dump(processor.initial(partition)))
        states: list[Any] = []

        def refused(found: Snapshot) -> str | None:
            if not _within(found.manifest.offsets, bounds):
                return "it is of a longer log"
            batches = found.batches()
            if _schemas(batches) != wanted:
                return "it has other parts or columns than this release writes"
            try:
                states.append(load(partition, batches))
            except Exception as error:  # loading is pure: whatever it raises, the bytes are why
                return f"its state does not load: {error!r}"
            return None

        ids = {topic: self._ids[topic] for topic in topics}
        snapshot = await self._snapshots.load(processor.name, partition, ids, refused)
        return snapshot, states[-1] if snapshot is not None else processor.initial(partition)

    async def _adopt(self, loop: Loop) -> None:
        """Hand the decisions made since the snapshot to the state, before any step."""
        processor = self.kit.processor
        if processor.journal is None or processor.adopt is None:
            return
        topic, partition = processor.journal, loop.partition
        if not await self.kit.reader.has(topic, partition):
            return  # somebody added partitions to an input alone: nobody sends there, and nothing was decided
        first, end = (await self.kit.reader.bounds([(topic, partition)]))[(topic, partition)]
        async for record in self.kit.reader.read(topic, partition, max(first, loop.journal), end):
            raw = raw_of(record, self.kit.options.prefix)
            try:
                rows = self.kit.codec.decode(topic, raw.value, raw.headers)
            except Exception as error:  # decode is pure: the bytes are why, and they are none of ours
                log.error("%s: %s %d is no decision: %r", self._label(partition), topic, raw.offset, error)
                continue
            loop.state = processor.adopt(loop.state, Batch(topic, partition, raw.offset, rows))
        loop.journal = max(loop.journal, end)

    def rewind(self, partition: int, topic: str, offset: int) -> None:
        """A step failed half-way: load the state again and skip that message."""
        now = time.monotonic()
        self._rewound = [at for at in self._rewound if at > now - 60] + [now]
        if len(self._rewound) > REWINDS_MAX:
            die(BROKEN, f"{self._label(partition)}: steps failed {len(self._rewound)} times in a minute")
        self.kit.metrics.rewinds += 1
        self._skips.setdefault(partition, set()).add((topic, offset))
        tps = [item.tp for item in self.loops[partition].inputs.values()]
        task = asyncio.create_task(self.kit.consumer.reload(tps))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _name(self, tp: TP) -> str:
        return tp.topic[len(self.kit.options.prefix) :]

    def _label(self, partition: int) -> str:
        return f"{self.kit.processor.name}/{partition}"


class Keeper:
    """Decides when a state is snapshotted; the loop calls it between two rounds, never a timer.

    Only there everything below the positions is in the state *and* its outputs are acknowledged.
    """

    def __init__(self, kit: Kit, snapshots: Snapshots, ids: Mapping[str, str]) -> None:
        self._kit = kit
        self._snapshots = snapshots
        self._ids = ids
        self._last: dict[int, Manifest] = {}
        self._generation: dict[int, int] = {}
        self._taken_at: dict[int, float] = {}
        self._saving: dict[int, asyncio.Task[None]] = {}

    def begin(self, loop: Loop, generation: int, snapshot: Snapshot | None) -> None:
        """A loop starts from `snapshot`; its own snapshots count more than those of earlier owners."""
        before = snapshot.manifest.generation if snapshot is not None else 0
        self._generation[loop.partition] = max(generation, before)
        self._taken_at[loop.partition] = time.monotonic()
        self._last.pop(loop.partition, None)
        if snapshot is not None:
            self._last[loop.partition] = snapshot.manifest

    def consider(self, loop: Loop) -> None:
        """Take a snapshot if it is time."""
        if self._kit.processor.dump is None or not loop.steps_since_snapshot:
            return
        if any(item.replaying for item in loop.inputs.values()) or loop.partition in self._saving:
            return
        options = self._kit.options
        age = time.monotonic() - self._taken_at[loop.partition]
        much = loop.steps_since_snapshot >= min(options.snapshot_rows, LONG_REPLAY_STEPS)
        if age >= options.snapshot_max_s or (much and age >= options.snapshot_min_s):
            self._start(loop)

    def _start(self, loop: Loop) -> asyncio.Task[None]:
        """Copy the state now, write it while the loop goes on."""
        snapshot = self.take(loop)
        task = asyncio.create_task(self._save(loop.partition, snapshot), name=f"snapshot-{loop.partition}")
        self._saving[loop.partition] = task
        return task

    def take(self, loop: Loop) -> Snapshot:
        """The state's bytes and what they are the state of."""
        processor = self._kit.processor
        assert processor.dump is not None
        body, parts = pack(processor.dump(loop.state))
        last = self._last.get(loop.partition)
        offsets = {topic: item.position for topic, item in loop.inputs.items()}
        manifest = Manifest(
            processor.name,
            loop.partition,
            1 - last.slot if last is not None else 0,
            self._generation[loop.partition],
            offsets,
            {topic: self._ids[topic] for topic in offsets},
            loop.now,
            loop.next_due,
            loop.journal,
            parts,
            len(body),
            google_crc32c.value(body),
        )
        loop.steps_since_snapshot = 0
        self._taken_at[loop.partition] = time.monotonic()
        return Snapshot(manifest, body)

    async def _save(self, partition: int, snapshot: Snapshot) -> None:
        try:
            await self._snapshots.save(snapshot)
            self._last[partition] = snapshot.manifest
            self._kit.metrics.snapshots += 1
        except Exception as error:  # the log still has everything: a snapshot only saves time
            log.warning("%s/%d: snapshot failed: %s", self._kit.processor.name, partition, error)
        finally:
            self._saving.pop(partition, None)

    async def last(self, loops: Iterable[Loop]) -> None:
        """At a stop or revocation: snapshot what changed, if that is quick."""
        if self._kit.processor.dump is None:
            return
        try:
            async with asyncio.timeout(self._kit.options.snapshot_stop_s):
                for loop in loops:
                    running = self._saving.get(loop.partition)
                    if running is not None:
                        await asyncio.wait([running])
                    replaying = any(item.replaying for item in loop.inputs.values())
                    if loop.steps_since_snapshot and not replaying:
                        await self._start(loop)
        except TimeoutError:
            log.warning("%s: the last snapshot took too long", self._kit.processor.name)


def _within(offsets: Mapping[str, int], bounds: Bounds) -> bool:
    """Whether a snapshot's offsets lie inside the logs (a topic made anew under the same name is shorter)."""
    return all(topic in offsets and offsets[topic] <= end for (topic, _), (_, end) in bounds.items())


def _schemas(batches: Mapping[str, pa.RecordBatch]) -> dict[str, pa.Schema]:
    """What a state at rest is made of; equal for all states of a processor."""
    return {name: rows.schema for name, rows in batches.items()}
