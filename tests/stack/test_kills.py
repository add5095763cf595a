"""10,000 tasks while every worker is killed in turn: each acknowledged one is once in SQL, at least once in results."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from aos.infra.up import Up
from aos.streams.topology import GROUPS
from tests.stack.loopkit import Killer, read_topic, running, settings_for, sql, sql_until

TASKS = 10_000
TASKS_MAX = 40_000  # it goes on until every worker was killed once with work in hand
RATE = 500  # requests a second: the machine does more, so that faults are tested and not saturation


@pytest.fixture
def up(bootstrap: str, database_url: str, topic_prefix: str) -> Iterator[Up]:
    with running(settings_for(bootstrap, database_url, topic_prefix, snapshot_s=5)) as up:
        yield up


class Load(threading.Thread):
    """Sends requests at a steady rate and keeps which of them the broker acknowledged."""

    def __init__(self, up: Up) -> None:
        super().__init__()
        self._up = up
        self.acknowledged: set[str] = set()
        self.sent = 0
        self.enough = threading.Event()

    def run(self) -> None:
        config = {
            "bootstrap.servers": self._up.settings.bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 2,
        }
        producer = Producer(config)
        began = time.monotonic()
        for number in range(TASKS_MAX):
            if number >= TASKS and self.enough.is_set():
                break
            id = f"kill-{number}"
            body = {"id": id, "text": f"task {number}", "require": ["shout"]}
            producer.produce(
                self._up.settings.prefix + "aos.requests",
                json.dumps(body).encode(),
                on_delivery=lambda error, _, id=id: None if error else self.acknowledged.add(id),
            )
            self.sent += 1
            producer.poll(0)
            ahead = began + number / RATE - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        producer.flush(60)


def test_every_acknowledged_request_ends_once_while_workers_are_killed(
    up: Up, measured: Callable[[str], None]
) -> None:
    load = Load(up)
    load.start()
    killers = {group: Killer(up, group) for group in GROUPS}
    kills: Counter[str] = Counter()
    while load.is_alive():
        for group, killer in killers.items():
            time.sleep(2.5)
            if load.is_alive() and killer.kill():
                kills[group] += 1
        if set(kills) == set(GROUPS):
            load.enough.set()
    load.join()
    assert len(load.acknowledged) == load.sent >= TASKS
    assert set(kills) == set(GROUPS), kills
    ended = "SELECT count(*) FROM aos.tasks WHERE status <> 'open'"
    sql_until(up, ended, lambda rows: rows[0][0] >= load.sent, limit_s=90)
    in_sql = Counter(id for (id,) in sql(up, "SELECT id FROM aos.tasks WHERE status = 'ok'"))
    assert set(in_sql) == load.acknowledged
    assert max(in_sql.values()) == 1
    assert sql(up, "SELECT count(*) FROM aos.unfinished") == [(0,)]
    assert sql(up, "SELECT count(*) FROM aos.doubled") == [(0,)]
    rows = read_topic(up, "aos.results", everything(load.acknowledged))
    assert {row["id"] for row in rows} == load.acknowledged
    assert same_result_each_time(rows)
    measured(
        f"{load.sent} tasks, {kills.total()} kills of workers, lost 0, results topic repeated {len(rows) - load.sent}"
    )


def everything(ids: set[str]) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether all ids are among the rows read so far; looked at only now and then."""
    seen: set[str] = set()
    place = 0

    def enough(rows: list[dict[str, Any]]) -> bool:
        nonlocal place
        seen.update(row["id"] for row in rows[place:])
        place = len(rows)
        return ids <= seen

    return enough


def same_result_each_time(rows: list[dict[str, Any]]) -> bool:
    """A result that stands on the topic twice says the same twice."""
    first: dict[bytes, tuple[Any, ...]] = {}
    return all(
        first.setdefault(row["request_id"], (row["status"], row["payload"]))
        == (row["status"], row["payload"])
        for row in rows
    )
