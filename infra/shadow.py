"""A stretch of a processor's log played again in its shadow: what it would write, and whether that was written.

Nothing is written anywhere: the topics are read by assignment, without a group, so that no offset is ever committed,
and no producer and no database connection is made. The state is that of the newest snapshot before the stretch, else
the log's from its beginning; if that is gone, of what is left, and the report says that the state is not exact.

Compared are rows, value by value: how many rows stand in one message depends on what waited, and is promised by nobody.
Each row must stand on its topic, in its partition, from the beginning of the stretch on. Compacted topics are not
compared, because they keep only the last of a key.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError

from aos.codecs.errors import RecordError, SettingsError, StackError
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, base_of
from aos.infra.runtime import options, reads
from aos.infra.shadow_steps import Player, Seen, is_promised
from aos.streams.processor import Law, Output, Processor, Raw, Recall
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.producer import Producer
from aos.streams.shell.reader import Reader, raw_of
from aos.streams.shell.snapshots import Manifest, Snapshots
from aos.streams.shell.topics import Admin, missing
from aos.streams.topology import PROCESSORS


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is to be played: append times from `begin` to before `end`; of some partitions, or of all."""

    processor: str
    begin: datetime.datetime
    end: datetime.datetime
    partitions: tuple[int, ...] = ()


@dataclass(slots=True)
class Report:
    """What came of it. `equal`: whether all that the law promises was written; None when it promises nothing."""

    processor: str
    law: str
    begin: datetime.datetime
    end: datetime.datetime
    messages: int = 0
    rows: int = 0
    states: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)  # rows by topic
    missing: dict[str, int] = field(default_factory=dict)  # of these, rows that were never written
    not_compared: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    promised: bool = True
    equal: bool | None = None


async def replay(settings: Settings, stretch: Stretch, say: Callable[[dict[str, Any]], None]) -> Report:
    """Play it; `say` gets each row that would be written. StackError when the broker does not answer."""
    processor = PROCESSORS.get(stretch.processor)
    if processor is None or processor.law is Law.SINK:
        names = ", ".join(one.name for one in PROCESSORS.values() if one.law is not Law.SINK)
        raise SettingsError("AOS5002", f"{stretch.processor!r} cannot be played", f"choose from {names}")
    if stretch.begin >= stretch.end:
        raise SettingsError("AOS5002", f"from {stretch.begin} to {stretch.end}", "give a time before `to`")
    if processor.name == "supervise" and not settings.secret:
        raise SettingsError(
            "AOS5003", "supervise needs the key of the tokens", "set AOS_SECRET, the workers' own"
        )
    shadow = _Shadow(settings, processor, stretch, say)
    try:
        return await shadow.run()
    except KafkaError as error:
        raise StackError(f"the broker does not answer: {error!r}", "start it", "AOS6002") from error


class _Shadow:
    """One replay: its readers, and what was said so far as digests of rows."""

    def __init__(
        self,
        settings: Settings,
        processor: Processor,
        stretch: Stretch,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings, self._processor, self._stretch, self._say = settings, processor, stretch, say
        self._options = options(settings)
        self._topics = reads(processor, settings.tenants)
        self._reader, self._aside = Reader(self._options), Reader(self._options)
        self._codec = WireCodec()
        self._made: dict[tuple[str, int], Counter[bytes]] = {}
        self.report = Report(processor.name, processor.law.value, stretch.begin, stretch.end)

    async def run(self) -> Report:
        async with Admin(self._options) as admin:
            there = await admin.ids()
        self._ids = {name: id for name, (id, _) in there.items()}
        self._counts = {name: count for name, (_, count) in there.items()}
        gone = missing(there, (*self._topics, *self._processor.views))
        if gone:
            raise SettingsError("AOS5004", f"missing: {', '.join(gone)}")
        await asyncio.gather(self._reader.start(), self._aside.start())
        try:
            seen = Seen(
                self._settings, self._settings.secret.encode(), self._counts, await self._view_messages()
            )
            for partition in self._partitions():
                await self._partition(partition, seen)
            await self._compare()
        finally:
            await asyncio.gather(self._reader.stop(), self._aside.stop())
        return self.report

    def _partitions(self) -> list[int]:
        count = max(self._counts[topic] for topic in self._topics)
        wanted = self._stretch.partitions or tuple(range(count))
        if not set(wanted) <= set(range(count)):
            raise SettingsError(
                "AOS5002", f"partitions {wanted}", f"{self._processor.name} has 0 to {count - 1}"
            )
        return sorted(set(wanted))

    async def _view_messages(self) -> list[Raw]:
        """All that the view topics still have, oldest first."""
        found = []
        for topic in self._processor.views:
            for partition in range(self._counts[topic]):
                first, end = (await self._reader.bounds([(topic, partition)]))[topic, partition]
                async for record in self._reader.read(topic, partition, first, end):
                    found.append(raw_of(record, self._settings.prefix))
        return sorted(found, key=lambda raw: raw.appended_at)

    # one partition

    async def _partition(self, partition: int, seen: Seen) -> None:
        topics = [topic for topic in self._topics if partition < self._counts[topic]]
        begins = await self._since(topics, partition, self._stretch.begin)
        ends = await self._since(topics, partition, self._stretch.end)
        state, now, starts, words = await self._state(partition, topics, begins)
        self.report.states[partition] = words
        player = Player(self._processor, partition, state, now, seen, self._said)
        places = {topic: (starts[topic], ends[topic]) for topic in topics}
        log = (
            self._merged(partition, places)
            if self._processor.law is Law.JOURNAL
            else self._one_by_one(partition, places)
        )
        played = await player.play(log, begins, self._recalled)
        self.report.messages += played.messages
        self.report.rows += played.rows
        self.report.failed += played.failed

    async def _since(self, topics: Iterable[str], partition: int, at: datetime.datetime) -> dict[str, int]:
        """The first offset of each topic that is of then or later."""
        places = [(topic, partition) for topic in topics]
        found = await self._reader.since(places, int(at.timestamp() * 1000))
        return {topic: offset for (topic, _), offset in found.items()}

    async def _state(
        self, partition: int, topics: Sequence[str], begins: Mapping[str, int]
    ) -> tuple[Any, int, dict[str, int], str]:
        """The state before the stretch, its clock, where its log goes on, and in words whether it is the real one."""
        processor = self._processor
        if processor.dump is None:
            return processor.initial(partition), 0, dict(begins), "none to keep"
        assert processor.load is not None

        def before(found: Manifest) -> bool:
            return all(found.offsets[topic] <= begins[topic] for topic in topics)

        ids = {topic: self._ids[topic] for topic in topics}
        snapshots = Snapshots(
            self._codec, Producer(self._options), self._reader
        )  # it only reads: never started
        found = await snapshots.load(processor.name, partition, ids, wanted=before)
        if found is not None:
            at = found.manifest.offsets
            words = "a snapshot, " + ", ".join(f"{topic} at {at[topic]}" for topic in topics)
            return processor.load(partition, found.batches()), found.manifest.now, dict(at), words
        bounds = await self._reader.bounds([(topic, partition) for topic in topics])
        firsts = {topic: bounds[topic, partition][0] for topic in topics}
        cut = [topic for topic, first in firsts.items() if first]
        if cut:
            self.report.promised = False
            return processor.initial(partition), 0, firsts, f"not exact: {', '.join(cut)} lost its beginning"
        return processor.initial(partition), 0, firsts, "the log's from its beginning"

    async def _one_by_one(
        self, partition: int, places: Mapping[str, tuple[int, int]], reader: Reader | None = None
    ) -> AsyncIterator[Raw]:
        for topic, (start, end) in places.items():
            async for record in (reader or self._reader).read(topic, partition, start, end):
                yield raw_of(record, self._settings.prefix)

    async def _merged(self, partition: int, places: Mapping[str, tuple[int, int]]) -> AsyncIterator[Raw]:
        """Topics of one state by append time: nothing says in which order the real one took them."""
        readers = {topic: Reader(self._options) for topic in places}
        await asyncio.gather(*(reader.start() for reader in readers.values()))
        logs = {t: self._one_by_one(partition, {t: places[t]}, readers[t]) for t in places}
        try:
            heads = {topic: await anext(log, None) for topic, log in logs.items()}
            while any(head is not None for head in heads.values()):
                first = min(
                    (raw for raw in heads.values() if raw is not None), key=lambda raw: raw.appended_at
                )
                yield first
                heads[first.topic] = await anext(logs[first.topic], None)
        finally:
            for log in logs.values():
                await log.aclose()  # type: ignore[attr-defined]
            await asyncio.gather(*(reader.stop() for reader in readers.values()))

    async def _recalled(self, recall: Recall) -> AsyncIterator[Any]:
        """Records of the processor's own log that it asks for again, while the log itself is being read."""
        for record in await self._aside.at(self._topics[0], recall.partition, recall.offsets):
            yield raw_of(record, self._settings.prefix)

    # what would be written, and what was

    def _said(self, raw: Raw, output: Output) -> None:
        made = self._made.setdefault((output.topic, output.partition), Counter())
        for row in self._encoded(output):
            made[digest(row)] += 1
            place = {"topic": raw.topic, "partition": raw.partition, "offset": raw.offset}
            self._say({"topic": output.topic, "partition": output.partition, "caused_by": place, "row": row})
        rows = output.rows.num_rows
        if rows:
            self.report.outputs[output.topic] = self.report.outputs.get(output.topic, 0) + rows

    def _encoded(self, output: Output) -> list[dict[str, Any]]:
        """The rows as a reader would find them."""
        value, headers = self._codec.encode(output.topic, output.rows)
        rows: list[dict[str, Any]] = self._codec.decode(output.topic, value, headers).to_pylist()
        return rows

    async def _compare(self) -> None:
        """Count the rows that nobody wrote."""
        report = self.report
        exact = report.promised and not report.failed
        report.promised = exact and is_promised(self._processor, exact)
        for (topic, partition), made in sorted(self._made.items()):
            base = base_of(topic)
            if base in TOPICS and TOPICS[base].compacted:
                report.not_compared = sorted({*report.not_compared, topic})
                continue
            left = await self._never_written(topic, partition, made) if topic in self._counts else made
            report.missing[topic] = report.missing.get(topic, 0) + sum(left.values())
        if report.promised:
            report.equal = not any(report.missing.values())

    async def _never_written(self, topic: str, partition: int, made: Counter[bytes]) -> Counter[bytes]:
        """What of `made` does not stand on the topic since the stretch began; a row may stand there several times."""
        wanted = set(made)
        begin = await self._since([topic], partition, self._stretch.begin)
        end = (await self._reader.bounds([(topic, partition)]))[topic, partition][1]
        async for record in self._reader.read(topic, partition, begin[topic], end):
            if not wanted:
                break
            try:
                rows = self._codec.decode(topic, record.value, dict(record.headers))
            except RecordError:  # somebody else's: none of ours
                continue
            wanted -= {digest(row) for row in rows.to_pylist()}
        return Counter({key: made[key] for key in wanted})


def digest(row: Mapping[str, Any]) -> bytes:
    """Equal for rows that are equal in every bit that a value has."""
    return hashlib.blake2b(repr(tuple(row.values())).encode(), digest_size=16).digest()
