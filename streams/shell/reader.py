"""Reads stretches of logs outside any group: snapshots, journals, kept results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from aos.streams.processor import Raw
from aos.streams.shell import unpack  # noqa: F401 (bounds what aiokafka unpacks)
from aos.streams.shell.options import Options

ASK_AGAIN_S = 0.1


class Reader:
    """One consumer, used by one caller at a time; idle (no fetches) between calls. Names without prefix."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = asyncio.Lock()
        self._consumer: Any = None

    async def start(self) -> None:
        self._consumer = AIOKafkaConsumer(
            **self._options.clients(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=self._options.partition_fetch_bytes,
            fetch_max_bytes=self._options.fetch_bytes,
        )
        await self._consumer.start()

    async def stop(self) -> None:
        """Leave. aiokafka's fetcher swallows a cancellation that comes while it drops what `read` read last, and its
        consumer would then wait for it for ever: so it is asked until it has ended."""
        if self._consumer is None:
            return
        fetching = self._consumer._fetcher._fetch_task
        while not fetching.done():
            fetching.cancel()
            await asyncio.wait([fetching], timeout=ASK_AGAIN_S)
        await self._consumer.stop()

    async def bounds(self, tps: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """First offset and end of each partition's log."""
        wanted = list(tps)
        real = [self._real(*tp) for tp in wanted]
        async with self._lock:
            for tp in real:
                await self._consumer._client._wait_on_metadata(
                    tp.topic
                )  # else each new topic costs a back-off
            first = await self._consumer.beginning_offsets(real)
            end = await self._consumer.end_offsets(real)
        return {tp: (first[r], end[r]) for tp, r in zip(wanted, real, strict=True)}

    async def has(self, topic: str, partition: int) -> bool:
        """Whether the topic has that partition by now; KafkaError when the broker does not say."""
        client, real = self._consumer._client, self._options.prefix + topic
        if partition not in await client._wait_on_metadata(real):
            await client.force_metadata_update()  # what is known may be minutes old
        return partition in await client._wait_on_metadata(real)

    async def since(self, tps: Iterable[tuple[str, int]], at_ms: int) -> dict[tuple[str, int], int]:
        """The first offset appended at that time (ms since the epoch) or later; the end where there is none."""
        wanted = {tp: self._real(*tp) for tp in tps}
        bounds = await self.bounds(wanted)
        async with self._lock:
            found = await self._consumer.offsets_for_times(dict.fromkeys(wanted.values(), at_ms))
        return {
            tp: found[real].offset if found.get(real) is not None else bounds[tp][1]
            for tp, real in wanted.items()
        }

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Any]:
        """The broker's records from `start` up to (not including) `end`."""
        if start >= end:
            return
        tp = self._real(topic, partition)
        async with self._lock:
            self._consumer.assign([tp])
            self._consumer.seek(tp, start)
            try:
                while await self._consumer.position(tp) < end:
                    found = await self._consumer.getmany(tp, timeout_ms=1000, max_records=256)
                    for record in found.get(tp, ()):
                        if record.offset >= end:
                            return
                        yield record
            finally:
                self._consumer.unsubscribe()

    async def at(self, topic: str, partition: int, offsets: Iterable[int]) -> list[Any]:
        """The records at these offsets that are still there, by offset."""
        found: list[Any] = []
        for first, last in _runs(sorted(set(offsets))):
            found += [record async for record in self.read(topic, partition, first, last + 1)]
        return found

    def _real(self, topic: str, partition: int) -> Any:
        return TopicPartition(self._options.prefix + topic, partition)


def raw_of(record: Any, prefix: str) -> Raw:
    """A broker record as processors see it."""
    return Raw(
        record.topic[len(prefix) :],
        record.partition,
        record.offset,
        record.timestamp * 1000,
        record.key,
        record.value if record.value is not None else b"",
        dict(record.headers),
    )


def _runs(offsets: list[int]) -> list[tuple[int, int]]:
    """Consecutive offsets as (first, last): one read each."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs
