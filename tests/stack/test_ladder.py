"""The ladder on the real stack: learn stands still, its view is poisoned, the database is away; answers say so."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg
from confluent_kafka import Producer

from aos.analytics.beliefs import key_of
from aos.infra.up import Up, worker_name
from tests.stack.loopkit import produce_json, read_topic, running, settings_for, sql_until

LIMIT_S = 60.0  # for a rung to be taken: the bounds are 5 s and 15 s, the rest is for slow machines
KIND = "loud"


@dataclass
class World:
    """The running stack, and requests with names of their own."""

    up: Up
    names: Iterator[int] = field(default_factory=itertools.count)

    def ask(self, **said: Any) -> str:
        name = f"ladder-{next(self.names)}"
        produce_json(self.up, [{"id": name, "text": "hello", "require": ["shout"], "task_kind": KIND} | said])
        return name

    def end(self, name: str) -> dict[str, Any]:
        """The result of a request."""

        def there(rows: list[dict[str, Any]]) -> bool:
            return any(row["id"] == name for row in rows)

        found = [row for row in read_topic(self.up, "aos.results", there) if row["id"] == name]
        assert found, f"{name} never ended"
        return found[0]

    def until(
        self, rung: str | None, before: Callable[[], None] = lambda: None, **said: Any
    ) -> dict[str, Any]:
        """Ask again and again until a result says this rung; that result."""
        ends = time.monotonic() + LIMIT_S
        seen: set[str | None] = set()
        while time.monotonic() < ends:
            before()
            result = self.end(self.ask(**said))
            assert (result["status"], result["degraded"]) == ("ok", result["rung"] is not None), result
            seen.add(result["rung"])
            if result["rung"] == rung:
                return result
        raise AssertionError(f"never on {rung}, only on {seen}")

    def poison(self) -> None:
        """Bytes that are no record, under the key of this kind's beliefs."""
        producer = Producer({"bootstrap.servers": self.up.settings.bootstrap, "acks": "all"})
        producer.produce(self.up.settings.prefix + "aos.beliefs", b"poison", key_of("default", KIND))
        assert producer.flush(30) == 0


@contextmanager
def standing_still(up: Up, group: str) -> Iterator[None]:
    """The worker of a group neither works nor ends."""
    up.stack.children.signal(worker_name(group, 0), signal.SIGSTOP)
    try:
        yield
    finally:
        up.stack.children.signal(worker_name(group, 0), signal.SIGCONT)


@contextmanager
def database_away(url: str) -> Iterator[None]:
    """Nobody gets into the database, and whoever was in it is thrown out."""
    name = urlsplit(url).path[1:]
    elsewhere = urlsplit(url)._replace(path="/postgres").geturl()
    with psycopg.connect(elsewhere, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def test_work_goes_on_on_every_rung_and_each_answer_says_on_which(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    with running(settings_for(bootstrap, database_url, topic_prefix)) as up:
        world = World(up)
        taught = world.until(None)
        sql_until(up, f"SELECT count(*) FROM aos.beliefs WHERE task_kind = '{KIND}'", lambda rows: rows[0][0])
        poisoned = world.until("last-beliefs", before=world.poison)
        world.until(None)  # an outcome teaches, the good record mends
        with standing_still(up, "learning"):
            began = time.monotonic()
            last = world.until("last-beliefs")
            measured(f"learn stood still: answers said last-beliefs after {time.monotonic() - began:.1f} s")
            prior = world.until("prior", task_kind="never taught")
            turn = world.until("round-robin", domain="nobody")
        world.until(None)

        in_flight = world.ask(text="sleep 1", require=["moody"])
        with database_away(database_url):
            assert world.end(in_flight)["status"] == "ok", "what was in flight goes on"
            away = world.end(world.ask())
            assert away["status"] == "ok", "and so does what comes"
        assert away["rung"] is None, "SQL decides nothing"

        wanted = {row["id"]: row["rung"] for row in (taught, poisoned, last, prior, turn, away)}
        query = f"SELECT id, rung, degraded FROM aos.tasks WHERE id IN ({', '.join(map(repr, wanted))})"
        rows = sql_until(
            up, query, lambda rows: len(rows) == len(wanted) and all(r[2] is not None for r in rows)
        )
        assert {id: (rung, degraded) for id, rung, degraded in rows} == {
            id: (rung, rung is not None) for id, rung in wanted.items()
        }
        query = "SELECT DISTINCT rung FROM aos.decisions ORDER BY rung"
        rows = sql_until(up, query, lambda rows: len(rows) == 4)
        assert rows == [("last-beliefs",), ("prior",), ("round-robin",), (None,)]
