"""The five systems as programs: each reads a topic, does the same Arrow work, writes, commits what was acknowledged.

    python -m benchmarks.processor.systems NAME '{"bootstrap": ..., "prefix": ..., "name": ..., "source": ..., ...}'

Each is set up as its own documentation says for throughput, all with acks=all, idempotence where it has it, and offsets
committed only when the outputs are acknowledged. `SETTINGS` is what is used and what is printed. One process, one
partition. All run on uvloop where they run on asyncio, with log levels at WARNING.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.processor.rows import ROW, in_order, transform

MESSAGE_BYTES_MAX = 8 << 20
LIBRDKAFKA_PRODUCER = {
    "acks": "all", "enable.idempotence": True, "linger.ms": 5, "batch.size": 1 << 20,
    "message.max.bytes": MESSAGE_BYTES_MAX,
}  # fmt: skip
LIBRDKAFKA_CONSUMER = {
    "auto.offset.reset": "earliest", "fetch.min.bytes": 1, "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 65_536, "max.partition.fetch.bytes": MESSAGE_BYTES_MAX,
}  # fmt: skip
AIOKAFKA_PRODUCER = {
    "acks": "all", "enable_idempotence": True, "linger_ms": 5, "max_batch_size": 1 << 20,
    "max_request_size": MESSAGE_BYTES_MAX,
}  # fmt: skip
AIOKAFKA_CONSUMER = {
    "auto_offset_reset": "earliest", "enable_auto_commit": False, "max_partition_fetch_bytes": MESSAGE_BYTES_MAX,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "aos": {"what": "the shell's own defaults (streams/shell/options.py): one round of steps, acks, commit 0.2 s"},
    "faust": {
        "broker_max_poll_records": 500, "broker_commit_interval": 0.2, "stream_buffer_maxsize": 4096,
        "cython_optimizations": True, "producer_acks": -1, "producer_linger": 0.005,
        "producer_max_batch_size": 1 << 20, "producer_max_request_size": MESSAGE_BYTES_MAX,
        "consumer_max_fetch_size": MESSAGE_BYTES_MAX, "take": {"1": 500, "256": 16}, "take_within": 0.05,
    },
    "quix": {
        "commit_interval": 5.0, "processing_guarantee": "at-least-once",
        "producer_extra_config": LIBRDKAFKA_PRODUCER, "consumer_extra_config": LIBRDKAFKA_CONSUMER,
    },
    "aiokafka": {"producer": AIOKAFKA_PRODUCER, "consumer": AIOKAFKA_CONSUMER, "getmany": 500, "commit_s": 0.2},
    "confluent-kafka": {
        "producer": LIBRDKAFKA_PRODUCER, "consumer": LIBRDKAFKA_CONSUMER, "consume": 500, "commit_s": 0.2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Where to read and write. `group` is the consumer group whose commits say how far it is."""

    bootstrap: str
    prefix: str
    name: str
    source: str
    target: str
    rows: int

    @property
    def group(self) -> str:
        return f"{self.prefix}aos.{self.name}"


def aos(job: Job) -> None:
    """A row-law processor through AOS's shell, with the real wire format."""
    import pyarrow as pa

    from aos.codecs import wire
    from aos.streams.dead_letters import DEAD_LETTERS
    from aos.streams.processor import Batch, Law, Output, Processor, Step, Views
    from aos.streams.shell.codec import WireCodec
    from aos.streams.shell.options import Options
    from aos.streams.shell.worker import Deployment, run

    class Codec(WireCodec):
        """The real one, with the benchmark's record on the benchmark's topics."""

        def encode(self, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
            return super().encode(topic, rows) if topic == DEAD_LETTERS else wire.encode(rows, ROW)

        def decode(self, topic: str, value: bytes, headers: Mapping[str, bytes]) -> pa.RecordBatch:
            return wire.decode(value, headers, ROW)

    def step(state: None, given: Batch, now: int, views: Views, seed: int) -> Step[None]:
        return Step(None, [Output(job.target, in_order(given.rows), given.partition)])

    processor = Processor(job.name, Law.ROW, (job.source,), (job.target,), lambda partition: None, step)
    sys.exit(run(Deployment([processor], Codec()), Options(job.bootstrap, job.prefix)))


def faust(job: Job) -> None:
    """Plain Faust: batches by `take`, all sends of a batch awaited before it is acknowledged."""
    import faust

    from aos.streams.shell.worker import quiet

    settings = dict(SETTINGS["faust"])
    most, within = settings.pop("take")[str(job.rows)], settings.pop("take_within")
    app = faust.App(
        job.group, broker=f"kafka://{job.bootstrap}", store="memory://", key_serializer="raw",
        value_serializer="raw", topic_allow_declare=False, topic_disable_leader=True, web_enabled=False,
        consumer_auto_offset_reset="earliest", datadir=f"/tmp/aos-{os.getuid()}-faust", **settings,
    )  # fmt: skip
    source, target = (
        app.topic(job.prefix + name, value_type=bytes, value_serializer="raw")
        for name in (job.source, job.target)
    )

    @app.agent(source)
    async def process(stream: Any) -> None:
        async for values in stream.take(most, within=within):
            await asyncio.gather(*[await target.send(value=transform(value)) for value in values])

    async def main() -> None:
        await app.start()
        await asyncio.Event().wait()

    quiet()
    uvloop.run(main())


def quix(job: Job) -> None:
    """Quix Streams: a streaming data frame from topic to topic."""
    from quixstreams import Application

    app = Application(
        job.bootstrap, consumer_group=job.group, auto_offset_reset="earliest", auto_create_topics=False,
        loglevel="WARNING", **SETTINGS["quix"],
    )  # fmt: skip
    source = app.topic(job.prefix + job.source, value_deserializer="bytes")
    target = app.topic(job.prefix + job.target, value_serializer="bytes")
    frame = app.dataframe(source)
    frame.apply(transform).to_topic(target)
    app.run()


def aiokafka(job: Job) -> None:
    """Raw aiokafka: many messages at a time, acknowledgements awaited before each commit."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    from aos.streams.shell.worker import quiet

    async def main() -> None:
        settings = SETTINGS["aiokafka"]
        producer = AIOKafkaProducer(bootstrap_servers=job.bootstrap, **settings["producer"])
        consumer = AIOKafkaConsumer(
            job.prefix + job.source,
            bootstrap_servers=job.bootstrap,
            group_id=job.group,
            **settings["consumer"],
        )
        await producer.start()
        await consumer.start()
        acks: list[Any] = []
        committed = time.monotonic()
        while True:
            for records in (await consumer.getmany(timeout_ms=100, max_records=settings["getmany"])).values():
                for record in records:
                    acks.append(await producer.send(job.prefix + job.target, transform(record.value)))
            if acks and time.monotonic() - committed > settings["commit_s"]:
                await asyncio.gather(*acks)
                await consumer.commit()
                acks, committed = [], time.monotonic()

    quiet()
    uvloop.run(main())


def confluent_kafka(job: Job) -> None:
    """Raw confluent-kafka: many messages at a time, all flushed before each commit."""
    from confluent_kafka import Consumer, Producer

    settings = SETTINGS["confluent-kafka"]
    servers = {"bootstrap.servers": job.bootstrap}
    refused: list[Any] = []

    def acked(error: Any, _: Any) -> None:
        if error:
            refused.append(error)

    producer = Producer({**servers, **settings["producer"]})
    consumer = Consumer(
        {**servers, "group.id": job.group, "enable.auto.commit": False, **settings["consumer"]}
    )
    consumer.subscribe([job.prefix + job.source])
    committed = time.monotonic()
    unsaved = 0
    while True:
        for message in consumer.consume(settings["consume"], 0.1):
            if message.error():
                raise RuntimeError(message.error())
            while True:
                try:
                    producer.produce(job.prefix + job.target, transform(message.value()), on_delivery=acked)
                    break
                except BufferError:  # the queue is full: let some be acknowledged
                    producer.poll(0.05)
            producer.poll(0)
            unsaved += 1
        if unsaved and time.monotonic() - committed > settings["commit_s"]:
            producer.flush()
            if refused:
                raise RuntimeError(refused[0])
            consumer.commit(asynchronous=False)
            unsaved, committed = 0, time.monotonic()


SYSTEMS: dict[str, Callable[[Job], None]] = {
    "aos": aos, "faust": faust, "quix": quix, "aiokafka": aiokafka, "confluent-kafka": confluent_kafka,
}  # fmt: skip

if __name__ == "__main__":
    SYSTEMS[sys.argv[1]](Job(**json.loads(sys.argv[2])))
