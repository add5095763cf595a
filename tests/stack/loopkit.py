"""A whole AOS for a test: topics under a prefix of its own, three workers, a service, a client."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, Producer

from aos.codecs import wire
from aos.codecs.settings import Settings
from aos.codecs.topics import record_of
from aos.infra.up import Up

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
