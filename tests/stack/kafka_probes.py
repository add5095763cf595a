"""Asks a broker as one of its users, request by request, past every client library that would be polite.

Whether a right is there is told by the code of the answer: everything here is either forbidden or without effect (bytes
that are no batch, a topic that is not there, a check without the change).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import (
    AlterConfigsRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteGroupsRequest,
    DeleteRecordsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    ListGroupsRequest,
)
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.types import Array, Schema
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from aos.infra.security.grants import AlterUsers, CreateRights

FORBIDDEN = {29, 30, 31, 53}  # of topic, group, cluster, transactional id
ABSENT = {3, 15, 16, 24, 69}  # not there, or said not to be
TOPIC = int(ConfigResourceType.TOPIC)


class Prober:
    """One connection of a user; `args`: of an aiokafka client."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._client = AIOKafkaClient(**args)

    async def __aenter__(self) -> Prober:
        await self._client.bootstrap()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: Any) -> dict[str, Any]:
        answer = await self._client.send(self._client.get_random_node(), request)
        return plain(answer.SCHEMA, [answer.get_item(name) for name in answer.SCHEMA.names])

    # a topic each, all in one request: whether the user may

    async def topics(self, operation: str, names: Sequence[str]) -> dict[str, bool]:
        answer = await self.ask(_about_topics(operation, names))
        found = dict(_by_name(answer, set(names)))
        assert set(found) == set(names), f"{operation}: no word on {set(names) - set(found)}"
        return {name: code not in FORBIDDEN for name, code in found.items()}

    async def group(self, operation: str, name: str) -> bool:
        if operation == "Describe":
            request: Any = OffsetFetchRequest(name, [("aos.tasks", [0])])
        else:
            request = OffsetCommitRequest(name, -1, "", -1, [("aos.not-there", [(999, 0, "")])])
        return not FORBIDDEN & {code for code in codes(await self.ask(request)) if code != 29}


def _about_topics(operation: str, names: Sequence[str]) -> Any:
    match operation:
        case "Read":
            return FetchRequest(0, 0, 1024, 0, [(name, [(0, 0, 100)]) for name in names])
        case "Write":
            return ProduceRequest(None, -1, 1000, [(name, [(0, b"")]) for name in names])
        case "Describe":
            return OffsetRequest(-1, 0, [(name, [(0, -1)]) for name in names])
        case "DescribeConfigs":
            return DescribeConfigsRequest([(TOPIC, name, None) for name in names])
        case "Create":
            return CreateTopicsRequest([(name, 1, 1, [], []) for name in names], 1000, True)
        case "Alter":
            return CreatePartitionsRequest([(name, (1, None)) for name in names], 1000, True)
        case "AlterConfigs":
            return AlterConfigsRequest([(TOPIC, name, [("retention.ms", "1")]) for name in names], True)
        case "Delete":
            return DeleteRecordsRequest([(name, [(0, 0)]) for name in names], 1000)
    raise AssertionError(operation)


def plain(schema: Schema, values: Sequence[Any]) -> dict[str, Any]:
    """An answer as dicts and lists; aiokafka's own way ends at a list that is null."""
    found = {}
    for name, kind, value in zip(schema.names, schema.fields, values, strict=False):
        inner = kind.array_of if isinstance(kind, Array) else None
        found[name] = [plain(inner, each) for each in value or ()] if isinstance(inner, Schema) else value
    return found


def _by_name(answer: Any, names: set[str]) -> Iterator[tuple[str, int]]:
    """Pairs of a topic and the code said of it, wherever in the answer they stand."""
    if isinstance(answer, dict):
        own = [value for value in answer.values() if isinstance(value, str) and value in names]
        for name in own:
            yield name, next(codes(answer))
        if not own:
            for value in answer.values():
                yield from _by_name(value, names)
    elif isinstance(answer, (list, tuple)):
        for value in answer:
            yield from _by_name(value, names)


def codes(answer: Any) -> Iterator[int]:
    """Every error code in an answer."""
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name == "error_code":
                yield int(value)
            else:
                yield from codes(value)
    elif isinstance(answer, (list, tuple)):
        for value in answer:
            yield from codes(value)


def batch(value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """A record batch that any broker takes."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
        batch_size=1 << 20,
    )  # fmt: skip
    builder.append(0, timestamp=1, key=None, value=value, headers=list(headers))
    return bytes(builder.build())


def forgeries(seed: int, topics: Sequence[str], groups: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Without end: a request of a user who has no right to any of these topics and groups, and what it would do."""
    draw = random.Random(seed)
    while True:
        topic, group = draw.choice(topics), draw.choice(groups)
        body = batch(b'{"text": "forged", "id": "forged-%d", "tenant": "acme"}' % draw.randrange(1 << 30),
                     [("content-type", b"application/json"), ("tenant", b"default")])  # fmt: skip
        yield draw.choice(
            (
                ("write", ProduceRequest(None, -1, 1000, [(topic, [(0, body)])])),
                ("write unheard", ProduceRequest(None, 1, 1000, [(topic, [(0, body)])])),
                ("read", FetchRequest(0, 1, 1 << 20, 0, [(topic, [(0, draw.randrange(5), 1 << 20)])])),
                ("see where it ends", OffsetRequest(-1, 0, [(topic, [(0, draw.choice((-1, -2)))])])),
                ("see that it is there", MetadataRequest([topic], False)),
                ("see its settings", DescribeConfigsRequest([(TOPIC, topic, None)])),
                ("change its settings", AlterConfigsRequest([(TOPIC, topic, [("retention.ms", "1")])])),
                ("delete its records", DeleteRecordsRequest([(topic, [(0, -1)])], 1000)),
                ("delete it", DeleteTopicsRequest([topic], 1000)),
                ("make one like it", CreateTopicsRequest([(f"{topic}.x", 1, 1, [], [])], 1000, False)),
                ("give it partitions", CreatePartitionsRequest([(topic, (9, None))], 1000, False)),
                ("commit for others", OffsetCommitRequest(group, -1, "", -1, [(topic, [(0, 10**9, "")])])),
                ("see their commits", OffsetFetchRequest(group, [(topic, [0])])),
                ("find their coordinator", FindCoordinatorRequest(group, 0)),
                ("join them", JoinGroupRequest(group, 10_000, 10_000, "", "x", "consumer", [("range", b"")])),
                ("delete their group", DeleteGroupsRequest([group])),
                ("give itself a right", CreateRights([(2, topic, 3, "User:aos.tenant.acme", "*", 3, 3)])),
                ("make a user", AlterUsers([("aos.operator", 2, 4096, b"s" * 16, b"p" * 64, {})])),
            )
        )


def leak(answer: dict[str, Any]) -> str:
    """What of others an answer gives away or did; empty: nothing."""
    inner = {code for name, value in answer.items() if name != "error_code" for code in codes(value)}
    said = inner or set(
        codes(answer)
    )  # of an answer with parts, the code of the whole says only that it came
    if not said or not said <= FORBIDDEN | ABSENT or any(_bodies(answer)):
        return f"codes {said}: {answer}"
    return ""


def _bodies(answer: Any) -> Iterator[bytes]:
    """Every stretch of a log in an answer."""
    if isinstance(answer, dict):
        for name, value in answer.items():
            yield from (value or b"",) if name == "message_set" else _bodies(value)
    elif isinstance(answer, (list, tuple)):
        for value in answer:
            yield from _bodies(value)


async def visible(prober: Prober) -> set[str]:
    """Names of all topics and groups that the user is shown."""
    shown = await prober.ask(MetadataRequest(None, False))
    groups = await prober.ask(ListGroupsRequest())
    return {topic["topic"] for topic in shown["topics"]} | {group["group"] for group in groups["groups"]}
