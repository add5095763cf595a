"""The one producer of a process: idempotent, acks=all, explicit partitions, bounded bytes in the air."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from aos.streams.shell.options import MIB, Options

MESSAGE_OVERHEAD = 512  # record header, batch header and our message headers, above what they really take


class Undeliverable(Exception):
    """The broker refused a message or did not answer in time: the input must not be acknowledged."""


class Message(NamedTuple):
    """One message to send; `topic` without prefix."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


class ByteGate:
    """Bounds the bytes in the air; one message larger than the bound may go alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def enter(self, size: int) -> None:
        while self._used and self._used + size > self._limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._used += size

    def leave(self, size: int) -> None:
        self._used -= size
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


class Producer:
    """Sends and waits for the broker's acknowledgement. `ensure` makes a topic that is sent to the first time."""

    def __init__(self, options: Options, ensure: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._options = options
        self._ensure = ensure
        self._known: set[str] = set()
        self._gate = ByteGate(options.inflight_bytes)
        self._producer: Any = None

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(
            **self._options.clients(),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=MIB // 4,
            max_request_size=self._options.message_bytes + MIB // 4,
            request_timeout_ms=30_000,
            metadata_max_age_ms=30_000,
        )
        await self._producer.start()

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def deliver(self, messages: Sequence[Message]) -> list[int]:
        """Send all, wait for all acks, return their offsets; raise Undeliverable if any is refused."""
        try:
            async with asyncio.timeout(self._options.deliver_s):
                acks = [await self._send(message) for message in messages]
                return [ack.offset for ack in await asyncio.gather(*acks)]
        except (KafkaError, AssertionError, TimeoutError) as error:
            targets = sorted({message.topic for message in messages})
            raise Undeliverable(f"{type(error).__name__} on {', '.join(targets)}: {error}") from error

    async def _learn(self, message: Message) -> None:
        """Ask for the topic's partitions again when one is not known: it was added since the last time."""
        known = self._producer.client.cluster.partitions_for_topic(self._options.prefix + message.topic)
        if known is not None and message.partition not in known:
            await self._producer.client.force_metadata_update()

    async def _send(self, message: Message) -> asyncio.Future[Any]:
        if self._ensure is not None and message.topic not in self._known:
            await self._ensure(message.topic)
            self._known.add(message.topic)
        size = len(message.value) + len(message.key or b"") + MESSAGE_OVERHEAD
        await self._gate.enter(size)
        try:
            await self._learn(message)
            ack: asyncio.Future[Any] = await self._producer.send(
                self._options.prefix + message.topic,
                value=message.value,
                key=message.key,
                partition=message.partition,
                headers=list(message.headers.items()),
            )
        except BaseException:
            self._gate.leave(size)
            raise
        ack.add_done_callback(lambda _: self._gate.leave(size))
        return ack
