"""How AOS is, asked from outside: lag and age of every processor's input, what is in flight, who is alive."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DescribeGroupsRequest_v2
from aiokafka.protocol.api import Request

from aos.codecs.errors import RecordError
from aos.codecs.settings import Settings
from aos.infra import orders
from aos.infra.logs import whole
from aos.infra.runtime import reads
from aos.infra.security.connections import clients
from aos.streams.orders import Order
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.halt import ALERTS, note
from aos.streams.topology import PROCESSORS

READ_S = 5.0


@dataclass(frozen=True)
class Lag:
    """One processor: whether it runs or stands by order, messages it has not done yet, and how old the oldest is."""

    processor: str
    state: str
    members: int
    lag_messages: int
    oldest_age_s: float | None

    def row(self) -> dict[str, Any]:
        return {
            "processor": self.processor,
            "state": self.state,
            "members": self.members,
            "lag_messages": self.lag_messages,
            "oldest_age_s": self.oldest_age_s,
        }


async def lags(settings: Settings) -> list[Lag]:
    """Every processor's state and lag, in the topology's order. KafkaError or StackError when the broker is away."""
    heard = await orders.read(settings)
    common = clients(settings)
    admin = AIOKafkaAdminClient(**common)
    consumer = AIOKafkaConsumer(**common, enable_auto_commit=False)
    await admin.start()
    await consumer.start()
    try:
        groups = [f"{settings.prefix}aos.{name}" for name in PROCESSORS]
        members = await _members(admin, groups)
        last = heard.orders.last
        return [await _lag(settings, admin, consumer, name, members, last.get(name)) for name in PROCESSORS]
    finally:
        await consumer.stop()
        await admin.close()


class _DescribeGroups(Request[DescribeGroupsRequest_v2]):  # type: ignore[misc]
    """Version 2 only: aiokafka 0.14 reads the answer to version 3 as one to version 2 and drops the connection."""

    API_KEY = DescribeGroupsRequest_v2.API_KEY

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: Any) -> Any:
        return DescribeGroupsRequest_v2(self._groups)


async def _members(admin: Any, groups: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for group in groups:
        coordinator = await admin.find_coordinator(group)
        answer = await admin._client.send(coordinator, _DescribeGroups([group]))
        for _, name, _, _, _, people in answer.groups:
            found[name] = len(people)
    return found


async def _lag(
    settings: Settings, admin: Any, consumer: Any, name: str, members: dict[str, int], order: Order | None
) -> Lag:
    group = f"{settings.prefix}aos.{name}"
    committed = await admin.list_consumer_group_offsets(group)
    partitions = []
    for topic in reads(PROCESSORS[name], settings.tenants):
        known = await _partitions(consumer, settings.prefix + topic)
        partitions += [TopicPartition(settings.prefix + topic, partition) for partition in known]
    ends = await consumer.end_offsets(partitions)
    begins = await consumer.beginning_offsets(partitions)
    lag, oldest = 0, None
    for partition in partitions:
        at = committed[partition].offset if partition in committed else -1
        at = max(at, begins[partition])
        if ends[partition] <= at:
            continue
        lag += ends[partition] - at
        age = await _age(consumer, partition, at)
        oldest = age if oldest is None else max(oldest, age or 0.0)
    people = members.get(group, 0)
    marks = [committed[partition].metadata for partition in partitions if partition in committed]
    return Lag(name, orders.state(order, people, marks), people, lag, oldest)


async def _partitions(consumer: Any, topic: str) -> list[int]:
    await consumer._client._wait_on_metadata(topic)
    return sorted(consumer.partitions_for_topic(topic) or ())


async def _age(consumer: Any, partition: TopicPartition, offset: int) -> float | None:
    """Seconds since the broker took the first message not done yet."""
    consumer.assign([partition])
    consumer.seek(partition, offset)
    try:
        async with asyncio.timeout(READ_S):
            message = await consumer.getone()
    except TimeoutError:
        return None
    return round(max(0.0, time.time() - float(message.timestamp) / 1000), 3)


def ended(known: list[Lag], in_flight: int) -> list[Lag]:
    """A processor that is being drained is drained once nothing is in flight, and SQL, which says so, is not behind."""
    behind = sum(lag.lag_messages for lag in known if lag.processor in ("supervise", "store"))
    if in_flight or behind:
        return known
    return [replace(lag, state="drained") if lag.state == "draining" else lag for lag in known]


async def open_alerts(settings: Settings) -> list[dict[str, Any]]:
    """Alerts that are opened and not cleared, by their topic."""
    codec, found = WireCodec(), dict[str, dict[str, Any]]()
    for record in await whole(settings, ALERTS):
        try:
            rows = codec.decode(ALERTS, record.value, dict(record.headers))
        except RecordError:  # outsiders do not write it; what is no alert is a dead letter of store
            continue
        for row in rows.to_pylist():
            note(found, row)
    return list(found.values())


async def topics(settings: Settings) -> list[dict[str, Any]]:
    """Every topic under the prefix with partitions and messages kept."""
    consumer = AIOKafkaConsumer(**clients(settings), enable_auto_commit=False)
    await consumer.start()
    try:
        names = sorted(name for name in await consumer.topics() if name.startswith(settings.prefix + "aos."))
        found = []
        for name in names:
            partitions = [TopicPartition(name, number) for number in await _partitions(consumer, name)]
            ends = await consumer.end_offsets(partitions)
            begins = await consumer.beginning_offsets(partitions)
            kept = sum(ends[p] - begins[p] for p in partitions)
            found.append(
                {"topic": name[len(settings.prefix) :], "partitions": len(partitions), "messages": kept}
            )
        return found
    finally:
        await consumer.stop()
