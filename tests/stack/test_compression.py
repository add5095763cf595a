"""Batches compressed with each of Kafka's codecs by another client (librdkafka) are read by AOS's own consumer."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from confluent_kafka import Producer

from aos.streams.shell import unpack
from aos.streams.shell.options import Options
from aos.streams.shell.reader import Reader
from aos.streams.shell.topics import TopicSpec, provision

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.mark.parametrize("codec", CODECS)
async def test_a_batch_of_each_codec_is_read(
    codec: str, bootstrap: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(bootstrap, topic_prefix)
    await provision(options, [TopicSpec("packed")])
    values = [bytes([number % 7]) * 2_000 for number in range(200)]
    producer = Producer(
        {"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 100, "acks": "all"}
    )
    for value in values:
        producer.produce(topic_prefix + "packed", value)
    assert producer.flush(30) == 0
    calls: list[int] = []
    module: Any = sys.modules[DefaultRecordBatch.__module__]
    real = getattr(unpack, codec)
    monkeypatch.setattr(module, f"{codec}_decode", lambda data: calls.append(len(data)) or real(data))
    reader = Reader(options)
    await reader.start()
    try:
        bounds = (await reader.bounds([("packed", 0)]))["packed", 0]
        found = [record.value async for record in reader.read("packed", 0, *bounds)]
    finally:
        await reader.stop()
    assert found == values
    assert calls, "the batches did not come compressed"
    assert sum(calls) < sum(map(len, values))
