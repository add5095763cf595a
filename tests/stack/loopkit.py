"""A whole AOS for a test: topics under a prefix of its own, three workers, a service, a client."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition

from aos.codecs import wire
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, record_of
from aos.infra.up import Up, worker_name
from aos.streams.topology import GROUPS, PROCESSORS

HERE = Path(__file__).parent


def settings_for(bootstrap: str, database_url: str, prefix: str, **others: Any) -> Settings:
    """Settings on the session's broker and the module's database."""
    return Settings(
        bootstrap=bootstrap, database_url=database_url, prefix=prefix, secret="a test's", **others
    )


@contextmanager
def running(settings: Settings, services: int = 1) -> Iterator[Up]:
    """The workers and `services` services named one, two, …"""
    with Up(settings) as up:
        for name in ("one", "two", "three")[:services]:
            start_service(up, name)
        yield up


def start_service(up: Up, name: str) -> int:
    """The test service as a process; it comes back when it is killed."""
    env = {"AOS_BOOTSTRAP": up.settings.bootstrap, "AOS_PREFIX": up.settings.prefix, "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, str(HERE / "fleet_service.py"), name]
    return up.stack.children.spawn(
        f"service-{name}", argv, env=env, log_path=up.stack.data_dir / f"service-{name}.log", restart=True
    )


def produce_json(up: Up, rows: list[dict[str, Any]], topic: str = "aos.requests") -> None:
    """One JSON object a message by librdkafka, random partitions, all acknowledged."""
    refused: list[Any] = []
    producer = Producer({"bootstrap.servers": up.settings.bootstrap, "acks": "all", "partitioner": "random"})
    for row in rows:
        producer.produce(
            up.settings.prefix + topic,
            json.dumps(row).encode(),
            headers={"content-type": "application/json"},
            on_delivery=lambda error, _: refused.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not refused


def read_topic(
    up: Up, name: str, enough: Any = lambda rows: False, limit_s: float = 30.0
) -> list[dict[str, Any]]:
    """Rows of a topic from its beginning until `enough(rows)` or the time is up."""
    consumer = Consumer(
        {
            "bootstrap.servers": up.settings.bootstrap,
            "group.id": f"t{time.time_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([up.settings.prefix + name])
    rows: list[dict[str, Any]] = []
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends and not enough(rows):
        message = consumer.poll(0.5)
        if message is None or message.error():
            continue
        batch = wire.decode(message.value(), dict(message.headers() or ()), record_of(name))
        rows += batch.to_pylist()
    consumer.close()
    return rows


def sql(up: Up, query: str) -> list[tuple[Any, ...]]:
    """Rows of a query."""
    with psycopg.connect(up.settings.database_url, autocommit=True) as link:
        return link.execute(query.encode()).fetchall()


def sql_until(up: Up, query: str, good: Any, limit_s: float = 20.0) -> list[tuple[Any, ...]]:
    """Ask until `good(rows)`; the last rows in any case."""
    ends = time.monotonic() + limit_s
    while True:
        rows = sql(up, query)
        if good(rows) or time.monotonic() > ends:
            return rows
        time.sleep(0.2)


def run(coroutine: Any) -> Any:
    """Run a coroutine to its end."""
    return asyncio.run(coroutine)


class Killer:
    """Kills a worker only when it has work in hand: it had read past an offset that its group has not committed.

    Seen from outside: the ends of its inputs, then a moment in which an idle worker reads them, then SIGSTOP; what was
    appended before that moment and is not committed now is in its hands. Else it goes on, and is tried again.
    """

    READ_S = 0.05
    TRIES = 40

    def __init__(self, up: Up, group: str) -> None:
        self._up, self._group = up, group
        self._places = {
            name: [
                TopicPartition(up.settings.prefix + topic, number)
                for topic in PROCESSORS[name].reads
                for number in range(up.settings.partitions if TOPICS[topic].spread else 1)
            ]
            for name in GROUPS[group]
        }
        servers = {"bootstrap.servers": up.settings.bootstrap}
        self._groups = {
            name: Consumer({**servers, "group.id": f"{up.settings.prefix}aos.{name}"})
            for name in self._places
        }

    def kill(self) -> bool:
        """SIGKILL at a moment with work in hand; False if there never was one (then nothing is killed)."""
        worker = worker_name(self._group, 0)
        for _ in range(self.TRIES):
            ends = self._ends()
            time.sleep(self.READ_S)
            self._up.stack.children.signal(worker, signal.SIGSTOP)
            if self._in_hand(ends):
                self._up.kill_worker(self._group)
                return True
            self._up.stack.children.signal(worker, signal.SIGCONT)
            time.sleep(0.02)
        return False

    def close(self) -> None:
        for consumer in self._groups.values():
            consumer.close()

    def _ends(self) -> dict[tuple[str, str, int], int]:
        return {
            (name, place.topic, place.partition): self._groups[name].get_watermark_offsets(place, timeout=10)[
                1
            ]
            for name, places in self._places.items()
            for place in places
        }

    def _in_hand(self, ends: dict[tuple[str, str, int], int]) -> bool:
        return any(
            ends[name, place.topic, place.partition] > max(0, place.offset)
            for name, places in self._places.items()
            for place in self._groups[name].committed(places, timeout=10)
        )
