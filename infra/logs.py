"""Topics of one partition that a command reads whole or writes one message to: settings, orders, alerts."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from aos.agents.sdk.connection import start_client
from aos.codecs.errors import StackError
from aos.codecs.settings import Settings
from aos.infra.security.connections import clients
from aos.streams.shell.codec import WireCodec

ANSWER_S = 30.0  # for the broker


async def whole(settings: Settings, topic: str) -> list[Any]:
    """Every record there is now, oldest first. StackError when the broker does not answer."""
    place = TopicPartition(settings.prefix + topic, 0)
    consumer = AIOKafkaConsumer(**clients(settings), enable_auto_commit=False)
    found: list[Any] = []
    try:
        async with asyncio.timeout(ANSWER_S):
            await start_client(consumer, clients(settings))
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                found += (await consumer.getmany(place, timeout_ms=500)).get(place, ())
    except (KafkaError, TimeoutError) as error:
        raise StackError(f"the broker does not answer: {error!r}", "start it", "AOS6002") from error
    finally:
        await consumer.stop()
    return found


async def append(settings: Settings, topic: str, rows: Any, key: bytes, hint: str) -> int:
    """Write one message and return its offset. StackError with `hint` when the broker does not acknowledge it."""
    value, headers = WireCodec().encode(topic, rows)
    producer = AIOKafkaProducer(**clients(settings), acks="all", enable_idempotence=True)
    try:
        async with asyncio.timeout(ANSWER_S):
            await start_client(producer, clients(settings))
            sent = await producer.send_and_wait(
                settings.prefix + topic, value, key, partition=0, headers=list(headers.items())
            )
            return int(sent.offset)
    except (KafkaError, TimeoutError) as error:
        raise StackError(f"the broker did not acknowledge it: {error!r}", hint, "AOS6002") from error
    finally:
        await producer.stop()
