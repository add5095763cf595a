"""One view service a process: compacted topics as something steps can ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from aos.streams.processor import View
from aos.streams.shell.codec import Codec
from aos.streams.shell.fatal import BROKEN, die, log
from aos.streams.shell.options import Options
from aos.streams.shell.reader import raw_of
from aos.streams.views import Refused


class ViewService:
    """Reads every view topic to its end (`start` returns then), and keeps following.

    `values` is live: a step that runs later sees the later view. Everything is on the event loop's thread, so
    `View.apply` never runs beside a step.
    """

    def __init__(self, options: Options, codec: Codec, views: Sequence[View]) -> None:
        self._options = options
        self._codec = codec
        self._views = {view.topic: view for view in views}
        self.values: dict[str, Any] = {view.topic: view.empty() for view in views}
        self.refused: dict[str, Refused] = {}  # by topic, as long as there is anything
        self.applied = 0
        self.heard: dict[str, Callable[[], None]] = {}  # who wants to know that a view changed, by topic
        self._fresh_at = time.monotonic()
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if not self._views:
            return
        self._consumer = AIOKafkaConsumer(
            **self._options.clients(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=self._options.partition_fetch_bytes,
        )
        await self._consumer.start()
        tps = await self._partitions()
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        ends = await self._consumer.end_offsets(tps)
        while not await self._reached(ends):
            await self._turn(200)
        self._fresh_at = time.monotonic()
        self._task = asyncio.create_task(self._follow(tps), name="views")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()

    def staleness_s(self) -> float:
        """How long ago the views were known to be complete."""
        return time.monotonic() - self._fresh_at if self._views else 0.0

    async def _partitions(self) -> list[Any]:
        found = []
        for topic in self._views:
            real = self._options.prefix + topic
            await self._consumer._client._wait_on_metadata(
                real
            )  # partitions_for_topic alone knows no new topic
            found += [TopicPartition(real, p) for p in self._consumer.partitions_for_topic(real) or ()]
        return found

    async def _reached(self, ends: dict[Any, int]) -> bool:
        positions = [await self._consumer.position(tp) for tp in ends]
        return all(position >= end for position, end in zip(positions, ends.values(), strict=True))

    async def _follow(self, tps: Iterable[Any]) -> None:
        try:
            while True:
                await self._turn(500)
                marks = {tp: self._consumer.highwater(tp) for tp in tps}
                if await self._reached({tp: mark for tp, mark in marks.items() if mark is not None}):
                    self._complete(tps)
        except Exception as error:
            die(BROKEN, "the view service failed", error)

    def _complete(self, tps: Iterable[TopicPartition]) -> None:
        """All that was fetched is applied: complete as of the oldest answer to a fetch. The end of a log that the
        broker named long ago says nothing of now: it may be away."""
        answered = [self._consumer.last_poll_timestamp(tp) for tp in tps]
        if None not in answered:
            age_s = max(0.0, time.time() - min(answered) / 1000)
            self._fresh_at = max(self._fresh_at, time.monotonic() - age_s)

    async def _turn(self, timeout_ms: int) -> None:
        for records in (await self._consumer.getmany(timeout_ms=timeout_ms, max_records=64)).values():
            for record in records:
                self._apply(record)
                await asyncio.sleep(0)  # a long catch-up must not hold the steps up

    def _apply(self, record: Any) -> None:
        raw = raw_of(record, self._options.prefix)
        view = self._views[raw.topic]
        try:
            rows = None if record.value is None else self._codec.decode(raw.topic, raw.value, raw.headers)
            self.values[raw.topic] = view.apply(self.values[raw.topic], raw.key or b"", rows)
        except Exception as error:  # one bad message must not take the view from everybody
            log.warning("view %s, offset %d was left out: %r", raw.topic, raw.offset, error)
            self.refused.setdefault(raw.topic, Refused()).add(raw.key or b"")
            return
        self.applied += 1
        if raw.topic in self.heard:
            self.heard[raw.topic]()
        if raw.topic in self.refused:
            self.refused[raw.topic].mend(raw.key or b"")
            if not self.refused[raw.topic]:
                del self.refused[raw.topic]
