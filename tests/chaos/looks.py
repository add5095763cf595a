"""What a fault looks at from outside while it holds: results written, partitions given anew, alarms in logs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from aos.codecs.topics import TOPICS, tenant_topic
from tests.chaos.stand import Stand


def ends_of(consumer: Any, topic: str, partition: int) -> tuple[int, int]:
    """First and next offset of a partition."""
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    return low, high


def results(stand: Stand) -> int:
    """Messages of results of all tenants so far."""
    return written(stand, "aos.results", stand.settings.tenants)


def written(stand: Stand, name: str, tenants: Sequence[str] = ("default",)) -> int:
    """Messages of a topic so far, of these tenants."""
    topics = [stand.settings.prefix + tenant_topic(name, tenant) for tenant in tenants]
    count = stand.settings.partitions if TOPICS[name].spread else 1
    consumer = Consumer({"bootstrap.servers": stand.settings.bootstrap, "group.id": "chaos-looks"})
    try:
        return sum(ends_of(consumer, topic, number)[1] for topic in topics for number in range(count))
    finally:
        consumer.close()


def status(stand: Stand, worker: str) -> dict[str, Any]:
    """What a worker says of its processors; empty before it is ready."""
    _, group, ordinal = worker.split("-")
    try:
        said = json.loads(stand.up.status_file(group, int(ordinal)).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    found: dict[str, Any] = said["processors"]
    return found


def restores(stand: Stand, worker: str) -> dict[str, int]:
    """How often each processor of a worker was given its partitions."""
    return {name: metrics["restores"] for name, metrics in status(stand, worker).items()}


def lines(stand: Stand, process: str, pattern: str, after: int = 0) -> list[str]:
    """Lines of a process's log that fit, from byte `after` on."""
    data = stand.log_of(process).read_bytes()[after:].decode(errors="replace")
    return [line for line in data.splitlines() if re.search(pattern, line)]


def log_size(stand: Stand, process: str) -> int:
    """Where a process's log ends now."""
    path = stand.log_of(process)
    return path.stat().st_size if path.exists() else 0


def send_plain(stand: Stand, topic: str, row: dict[str, Any]) -> None:
    """One JSON object to a topic, acknowledged; it is none of the load's and stands in no journal."""
    refused: list[Any] = []
    producer = Producer({"bootstrap.servers": stand.settings.bootstrap, "acks": "all"})
    headers = {"content-type": "application/json"}
    producer.produce(
        stand.settings.prefix + topic, json.dumps(row).encode(), headers=headers,
        on_delivery=lambda error, _: refused.append(error) if error else None,
    )  # fmt: skip
    if producer.flush(30) or refused:
        raise OSError(f"{topic} did not take a message: {refused}")
