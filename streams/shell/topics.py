"""Creates and verifies topics, idempotently, from plain specifications."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from aos.codecs.errors import SettingsError
from aos.codecs.topics import Topic
from aos.streams.shell.options import MIB, Options

ALREADY_EXISTS = 36
SEGMENT_BYTES_COMPACTED = 32 * MIB  # views and snapshots are read whole at a start: keep the tail short
COMPACTION_LAG_MS = 60_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as the broker should have it; `name` without prefix."""

    name: str
    partitions: int = 1
    compacted: bool = False
    retention_ms: int = 24 * 3_600_000
    max_bytes: int = 8 * MIB
    fixed: bool = False  # never extended: it may have fewer partitions than the setting says by now

    def config(self) -> dict[str, str]:
        """The broker's settings of this topic."""
        config = {
            "cleanup.policy": "compact" if self.compacted else "delete",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.max_bytes),
        }
        if self.compacted:
            config["segment.bytes"] = str(SEGMENT_BYTES_COMPACTED)
            config["max.compaction.lag.ms"] = str(COMPACTION_LAG_MS)
        else:
            config["retention.ms"] = str(self.retention_ms)
        return config


def spec_of(topic: Topic, partitions: int) -> TopicSpec:
    """The specification of a topic of `codecs.topics`, with as many partitions as the setting says."""
    count = partitions if topic.spread else 1
    return TopicSpec(topic.name, count, topic.compacted, topic.retention_ms, topic.bytes_max, topic.fixed)


class Admin:
    """An admin client for the time of a `with`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._client: Any = None

    async def __aenter__(self) -> Admin:
        self._client = AIOKafkaAdminClient(**self._options.clients())
        await self._client.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def create(self, specs: Iterable[TopicSpec], replication: int = 1) -> None:
        """Create what is missing; what exists is left as it is."""
        prefix = self._options.prefix
        new = [NewTopic(prefix + s.name, s.partitions, replication, topic_configs=s.config()) for s in specs]
        answer = await self._client.create_topics(new, timeout_ms=30_000)
        for topic, code, *message in answer.topic_errors:
            if code not in (0, ALREADY_EXISTS):
                raise SettingsError("AOS5004", f"{topic}: {message[0] if message else code}")

    async def ids(self, wait_s: float = 10.0) -> dict[str, tuple[str, int]]:
        """Id and number of partitions of every topic under the prefix, by name without prefix."""
        answer = await self._client._client.send(self._node(), _Metadata())
        prefix = self._options.prefix
        return {
            name[len(prefix) :]: (bytes(id).hex(), len(partitions))
            for error, name, id, _, partitions, *_ in answer.topics
            if error == 0 and name is not None and name.startswith(prefix)
        }

    async def config(self, name: str) -> dict[str, str]:
        """The settings of one topic as the broker has them."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self._options.prefix + name)
        answers = await self._client.describe_configs([resource])
        return {row[0]: row[1] for answer in answers for result in answer.resources for row in result[4]}

    async def extend(self, counts: Mapping[str, int]) -> None:
        """Give topics so many partitions in all. KafkaError when the broker refuses one."""
        prefix = self._options.prefix
        await self._client.create_partitions(
            {prefix + name: NewPartitions(total_count=count) for name, count in counts.items()}
        )

    async def committed(self, group: str) -> dict[tuple[str, int], int]:
        """What a group has done: its next offset by topic (without prefix) and partition."""
        found = await self._client.list_consumer_group_offsets(group)
        cut = len(self._options.prefix)
        return {(tp.topic[cut:], tp.partition): at.offset for tp, at in found.items()}

    async def delete(self, names: Iterable[str]) -> None:
        """Delete topics (tests)."""
        await self._client.delete_topics([self._options.prefix + name for name in names])

    def _node(self) -> int:
        return int(self._client._client.get_random_node())


async def provision(options: Options, specs: Iterable[TopicSpec], replication: int = 1) -> None:
    """Create the missing topics, wait until the broker lists them, verify all."""
    wanted = list(specs)
    async with Admin(options) as admin:
        there = await admin.ids()
        missing = [spec for spec in wanted if spec.name not in there]
        if missing:
            await admin.create(missing, replication)
            await _listed(admin, {spec.name for spec in missing})
        await verify(admin, wanted)


async def _listed(admin: Admin, names: set[str]) -> None:
    for _ in range(100):
        if names <= set(await admin.ids()):
            return
        await asyncio.sleep(0.1)
    raise SettingsError("AOS5004", f"the broker does not list {', '.join(sorted(names))}")


async def verify(admin: Admin, specs: Iterable[TopicSpec]) -> None:
    """Raise SettingsError that names every topic which is missing or would break a promise."""
    there = await admin.ids()
    wrong = []
    for spec in specs:
        if spec.name not in there:
            wrong.append(f"{spec.name} is missing")
            continue
        if there[spec.name][1] < spec.partitions and not spec.fixed:
            said = (
                f"has {there[spec.name][1]} partitions, not {spec.partitions}: `aos topics extend` adds them"
            )
            wrong.append(f"{spec.name} {said}")
        found = await admin.config(spec.name)
        for key in ("cleanup.policy", "message.timestamp.type"):
            if found.get(key) != spec.config()[key]:
                wrong.append(f"{spec.name}: {key} is {found.get(key)}, not {spec.config()[key]}")
        if int(found.get("max.message.bytes") or 0) < spec.max_bytes:
            wrong.append(f"{spec.name}: max.message.bytes is below {spec.max_bytes}")
    if wrong:
        raise SettingsError("AOS5004", "; ".join(wrong))


def missing(there: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The topics of `names` that the broker does not have."""
    return sorted(set(names) - set(there))


class _Uuid:
    """A topic id on the wire: 16 bytes."""

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(16))

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def repr(cls, value: bytes) -> str:
        return value.hex()


_PARTITION = (
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline", CompactArray(Int32)),
    ("tags", TaggedFields),
)


class _MetadataResponse(Response):  # type: ignore[misc]
    """Metadata v12: the first that aiokafka lacks and that knows topic ids."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("partitions", CompactArray(*_PARTITION)),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(Int8)),  # null: all topics
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_MetadataRequestV12]):  # type: ignore[misc]
    API_KEY = 3

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(None, False, False, {})
