"""A program that submits requests and reads results: the same two topics anybody can use without AOS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from aos.agents.identity import request_id
from aos.agents.sdk.connection import connection, start_client
from aos.agents.sdk.outbox import Outbox
from aos.codecs import wire
from aos.codecs.topics import DEFAULT_TENANT, record_of, tenant_topic

Row = dict[str, Any]


class Client:
    """``async with Client() as client: result = await client.run(text="shout", require=["uppercase"])``.

    `bootstrap`, `prefix` and `kafka` as for `Service`. Results are read from the moment the client opens.
    """

    def __init__(
        self,
        *,
        bootstrap: str | None = None,
        prefix: str = "",
        tenant: str = DEFAULT_TENANT,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self._common = connection(f"{prefix}aos.tenant.{tenant}", bootstrap=bootstrap, kafka=kafka)
        self._prefix = prefix
        self._tenant = tenant
        self._waiting: dict[bytes, asyncio.Future[Row]] = {}
        self._listeners: list[asyncio.Queue[Row]] = []

    async def __aenter__(self) -> Client:
        self._producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, max_request_size=wire.MESSAGE_BYTES_MAX, **self._common
        )
        await start_client(self._producer, self._common)
        self._boxes: dict[str, Outbox] = {}
        self._consumer = await follow(self._common, self._prefix + self._topic("aos.results"))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        for box in self._boxes.values():
            await box.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def submit(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        """Send requests (columns of the `request` record); return their ids when the broker has them all."""
        rows = [{"id": str(uuid.uuid4()), **request} for request in requests]
        await self.send("aos.requests", rows)
        return [str(row["id"]) for row in rows]

    async def send(self, topic: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send rows to an edge topic (the tenant's own where there is one), acknowledged."""
        box = self._boxes.get(topic)
        if box is None:
            box = self._boxes[topic] = Outbox(self._producer, self._prefix + self._topic(topic), topic)
        await asyncio.gather(*(box.put(dict(row)) for row in rows))

    async def run(self, *, timeout: float = 60.0, **request: Any) -> Row:
        """Submit one request and return its result row."""
        request.setdefault("id", str(uuid.uuid4()))
        waiting = self.expect(request["id"])
        await self.submit([request])
        async with asyncio.timeout(timeout):
            return await waiting

    def expect(self, id: str) -> asyncio.Future[Row]:
        """The result of a request with this client id, once it comes; ask before submitting."""
        key = request_id(self._tenant, id)
        return self._waiting.setdefault(key, asyncio.get_running_loop().create_future())

    async def results(self) -> AsyncIterator[Row]:
        """Every result of the tenant from now on (at least once)."""
        queue: asyncio.Queue[Row] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    def _topic(self, name: str) -> str:
        return (
            tenant_topic(name, self._tenant)
            if name in ("aos.requests", "aos.results", "aos.feedback")
            else name
        )

    async def _read(self) -> None:
        async for rows in read(self._consumer, "aos.results"):
            for row in rows:
                for queue in self._listeners:
                    queue.put_nowait(row)
                future = self._waiting.pop(row["request_id"], None)
                if future is not None and not future.done():
                    future.set_result(row)


async def follow(common: Mapping[str, Any], topic: str, *, begin: bool = False) -> Any:
    """A started consumer without group on all partitions of a topic, at its end or its beginning."""
    consumer = AIOKafkaConsumer(
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=wire.MESSAGE_BYTES_MAX,
        **common,
    )
    await start_client(consumer, common)
    consumer.assign([TopicPartition(topic, p) for p in sorted(await _partitions(consumer, topic))])
    await (consumer.seek_to_beginning() if begin else consumer.seek_to_end())
    if not begin:  # seek_to_end is lazy: without this, what is sent next could be jumped over
        for partition in consumer.assignment():
            await consumer.position(partition)
    return consumer


async def _partitions(consumer: Any, topic: str) -> set[int]:
    found = (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic)
    if not found:
        raise LookupError(f"topic {topic} is not there: is AOS running with this prefix?")
    return set(found)


async def read(consumer: Any, name: str) -> AsyncIterator[list[Row]]:
    """The rows of every message, as dicts; `name` is the topic without prefix."""
    record = record_of(name)
    while True:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            for message in records:
                yield wire.decode(message.value, dict(message.headers), record).to_pylist()
