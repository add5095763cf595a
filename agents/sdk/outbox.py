"""Sends rows to topics in batches: at once when nothing is in the air, else gathered until the acknowledgement."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from aos.codecs import rows, wire
from aos.codecs.topics import EDGE_BYTES_MAX, record_of

ROWS_MAX = 512


class Outbox:
    """Rows for one topic; `put` returns when the broker has acknowledged the row.

    Partitions are chosen at random by message: encode and admit re-key what outsiders send.
    """

    def __init__(self, producer: Any, topic: str, name: str) -> None:
        """`topic` with prefix as the broker knows it, `name` without."""
        self._producer = producer
        self._topic = topic
        self._record = record_of(name)
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def put(self, row: dict[str, Any]) -> None:
        """Send one row; raises what the broker said when it was refused."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        self._wake.set()
        await future

    async def close(self) -> None:
        """Wait until all is sent, then stop."""
        while self._waiting:
            await asyncio.sleep(0.005)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._send(self._take())

    def _take(self) -> list[tuple[dict[str, Any], asyncio.Future[None]]]:
        """As many rows as fit a message of the edge; the others stay."""
        size = count = 0
        for row, _ in self._waiting[:ROWS_MAX]:
            size += 512 + sum(len(value) for value in row.values() if isinstance(value, (bytes, str)))
            if count and size > EDGE_BYTES_MAX * 3 // 4:
                break
            count += 1
        return self._waiting[:count]

    async def _send(self, batch: list[tuple[dict[str, Any], asyncio.Future[None]]]) -> None:
        error: BaseException | None = None
        try:
            value, headers = wire.encode(
                rows.from_dicts(self._record.name, [row for row, _ in batch]), self._record
            )
            partitions = sorted(await self._producer.partitions_for(self._topic))
            partition = random.choice(partitions)
            await self._producer.send_and_wait(
                self._topic, value, partition=partition, headers=list(headers.items())
            )
        except asyncio.CancelledError:
            raise
        except Exception as caught:  # handed to whoever waits for these rows
            error = caught
        del self._waiting[: len(batch)]
        for _, future in batch:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
