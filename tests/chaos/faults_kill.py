"""Suite kill: workers, the store in the three phases of its commit, agents, and all workers at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.chaos.faults import Injected, inject_by
from tests.chaos.stand import Stand

STORE = "worker-keeping-0"
CAUGHT_S = 20.0  # how long to lie in wait for a moment
LOOK_S = 0.005
READY_S = 30.0
OF_STORE = "application_name = 'aos.store' AND pid <> pg_backend_pid()"


def kill_one(stand: Stand, random: Random) -> Injected:
    """Fault 1: a worker or an agent; the next one when the chosen one has nothing to do."""
    names = stand.processes()
    random.shuffle(names)
    for name in names:
        if stand.kill(name):
            return killed(stand, name, 1)
    return Injected(time.time(), time.time(), failed=(("I10", "nobody had work in hand"),))


def kill_all(stand: Stand, random: Random) -> Injected:
    """Fault 3: every worker in the same moment, as with their host."""
    count = stand.kill_together(stand.workers())
    if not count:
        return Injected(time.time(), time.time(), failed=(("I10", "nobody had work in hand"),))
    return killed(stand, "all workers", count)


def killed(stand: Stand, target: str, kills: int) -> Injected:
    """A kill heals itself: the children's owner starts it again. Waits until all say that they are ready."""
    at = stand.killed_at
    names = stand.workers() if target == "all workers" else [target]
    ends = time.monotonic() + READY_S
    while not all(stand.ready(name, at) for name in names):
        if time.monotonic() > ends:
            return Injected(
                at, at, target, kills, failed=(("I10", f"{target} is not ready 30 s after its kill"),)
            )
        time.sleep(0.02)
    return Injected(at, at, target, kills, detail=f"ready again after {time.time() - at:.1f} s")


def kill_store(stand: Stand, random: Random) -> Injected:
    """Fault 2: before COMMIT (an INSERT is held by a lock), in COMMIT (held by a missing standby), after COMMIT but
    before the offsets reach the broker; in an order of the seed's."""
    phases = [before_commit, in_commit, after_commit]
    random.shuffle(phases)
    began = time.time()
    hit: list[str] = []
    missed: list[str] = []
    for phase in phases:
        done = phase(stand)
        (hit if done else missed).append(phase.__name__)
        if done:
            killed(stand, STORE, 1)
            time.sleep(random.uniform(0.5, 1.5))
    failed = tuple(("I10", f"the moment of {name} was never met") for name in missed)
    return Injected(began, stand.killed_at, STORE, len(hit), failed=failed, detail=", ".join(hit))


def before_commit(stand: Stand) -> bool:
    """Between INSERT and COMMIT: the store waits in its transaction for a table that somebody else has locked."""
    with connection(stand) as link, link.transaction():
        link.execute("LOCK TABLE aos_data.rollup_hour IN ACCESS EXCLUSIVE MODE")
        with connection(stand) as eyes:
            return caught(
                stand, eyes, f"SELECT 1 FROM pg_stat_activity WHERE {OF_STORE} AND wait_event_type = 'Lock'"
            )


def in_commit(stand: Stand) -> bool:
    """In COMMIT: written, and never answered, because it waits for a standby that does not exist."""
    with connection(stand) as link:
        try:
            standby(link, "nobody")
            return caught(
                stand, link, f"SELECT 1 FROM pg_stat_activity WHERE {OF_STORE} AND wait_event = 'SyncRep'"
            )
        finally:
            standby(link, "")


def standby(link: psycopg.Connection[Any], name: str) -> None:
    """Whose confirmation commits wait for; our own session waits for nobody."""
    link.execute("SET synchronous_commit = local")
    link.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
    link.execute("SELECT pg_reload_conf()")


def caught(stand: Stand, link: psycopg.Connection[Any], query: str) -> bool:
    """SIGKILL of the store as soon as the query has a row."""
    ends = time.monotonic() + CAUGHT_S
    while time.monotonic() < ends:
        if link.execute(query.encode()).fetchall():
            stand.kill_now([STORE], [STORE])
            return True
        time.sleep(LOOK_S)
    return False


def after_commit(stand: Stand) -> bool:
    """After COMMIT, before the offsets are committed to the broker: SQL is ahead of the consumer group."""
    group = f"{stand.settings.prefix}aos.store"
    consumer = Consumer({"bootstrap.servers": stand.settings.bootstrap, "group.id": group})
    try:
        with connection(stand) as link:
            return until(stand, lambda: ahead(stand, link, consumer))
    finally:
        consumer.close()


def ahead(stand: Stand, link: psycopg.Connection[Any], consumer: Consumer) -> bool:
    """Whether SQL has rows of the ledger that the group has not committed; the store must stand still meanwhile."""
    rows = link.execute(
        "SELECT partition, next_offset FROM aos_data.place WHERE topic = 'aos.ledger'"
    ).fetchall()
    places = [TopicPartition(f"{stand.settings.prefix}aos.ledger", partition) for partition, _ in rows]
    told = (
        {place.partition: place.offset for place in consumer.committed(places, timeout=10)} if places else {}
    )
    return any(next_offset > max(0, told[partition]) for partition, next_offset in rows)


def until(stand: Stand, holds: Callable[[], bool]) -> bool:
    """SIGSTOP the store now and then; SIGKILL it when that moment is the one."""
    ends = time.monotonic() + CAUGHT_S
    while time.monotonic() < ends:
        stand.signal(STORE, signal.SIGSTOP)
        if holds():
            stand.kill_now([STORE], [STORE])
            return True
        stand.signal(STORE, signal.SIGCONT)
        time.sleep(0.03)
    return False


@contextmanager
def connection(stand: Stand) -> Iterator[psycopg.Connection[Any]]:
    """The database as an operator sees it."""
    with psycopg.connect(stand.settings.database_url, autocommit=True, application_name="chaos") as link:
        yield link


inject_by(1, kill_one)
inject_by(2, kill_store)
inject_by(3, kill_all)
