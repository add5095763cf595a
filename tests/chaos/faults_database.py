"""Faults of the database: killed, away, slow, its disks full, and SQL made anew from the logs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from random import Random
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from psycopg import sql

from aos.codecs import wire
from aos.codecs.topics import record_of
from aos.infra.database import link
from aos.infra.migrate import migrate
from aos.infra.store import TimescaleSink, digests
from aos.streams import store
from aos.streams.shell.sinks import Portion
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import ends_of, restores, results
from tests.chaos.machine import SmallDisk, no_tmpfs
from tests.chaos.proxy import Toxic
from tests.chaos.stand import TO_DATABASE, Stand

STORE = "worker-keeping-0"
AWAY_S = 60.0
SLOW_S = 15.0
LOCKED_S = 30.0
FULL_S = 8.0
SPARE_BYTES = 96 << 20
BUNDLE = 200
Places = dict[tuple[str, int], int]


def killed(stand: Stand, random: Random) -> Injected:
    """Fault 6: SIGKILL to the server and all its backends, thrice, back after a moment."""
    began = time.time()
    for _ in range(3):
        stand.kill_database()
        time.sleep(random.uniform(0.1, 1.5))
        stand.start_database()
        healed = time.time()
        time.sleep(random.uniform(1.0, 3.0))
    return Injected(began, healed, "postgres", recovery_limit_s=10.0, detail="3 kills")


def away(stand: Stand, random: Random) -> Injected:
    """Fault 7: away for a minute, killed or stopped in good order by the seed; routing goes on."""
    began = time.time()
    stop = random.choice([stand.kill_database, stand.stop_database])
    stop()
    before = results(stand)
    time.sleep(AWAY_S / 2)
    half = results(stand)
    time.sleep(AWAY_S / 2)
    after = results(stand)
    stand.start_database()
    failed: tuple[tuple[str, str], ...] = ()
    if half <= before or after <= half:
        failed = (("I8", f"results stood still without SQL: {before}, {half}, {after}"),)
    detail = f"{stop.__name__}; {after - before} result messages meanwhile"
    return Injected(began, time.time(), "postgres", outage=AWAY_S, failed=failed, detail=detail)


def slow(stand: Stand, random: Random) -> Injected:
    """Fault 8: each packet half a second late, then a table locked: no rebalance, only a backlog."""
    began, before = time.time(), restores(stand, STORE)
    stand.proxy.set(TO_DATABASE, Toxic(latency_s=0.25, jitter_s=0.05))
    time.sleep(SLOW_S)
    stand.proxy.heal(TO_DATABASE)
    with psycopg.connect(stand.settings.database_url) as locker:
        locker.execute("LOCK TABLE aos_data.rollup_minute IN ACCESS EXCLUSIVE MODE")
        time.sleep(LOCKED_S)
        locker.rollback()
    healed = time.time()
    time.sleep(2.0)  # the status file is written twice a second
    after = restores(stand, STORE)
    failed = (
        () if after == before else (("I10", f"the store was given its partitions anew: {before}, {after}"),)
    )
    detail = f"500 ms a round trip {SLOW_S:.0f} s, a table locked {LOCKED_S:.0f} s"
    return Injected(began, healed, TO_DATABASE, outage=SLOW_S + LOCKED_S, failed=failed, detail=detail)


def full(stand: Stand, random: Random) -> Injected:
    """Fault 10: the disk of the data, then that of the write-ahead log, is full to the last byte.

    Both lie on small disks of their own for that; the server is stopped in good order to move it there and back.
    """
    began, failed = time.time(), []
    data = SmallDisk(stand.database.data, SPARE_BYTES)
    log = SmallDisk(stand.database.data / "pg_wal", SPARE_BYTES)
    try:
        stand.stop_database()
        data.move_in()
        log.move_in()
        stand.start_database()
        time.sleep(2.0)
        data.fill()
        if not _refused(stand):
            failed.append(("I10", "the full data disk was not felt"))
        time.sleep(FULL_S)
        data.free()
        time.sleep(2.0)
        panicked = _panic(stand, log)
        if not panicked:
            failed.append(("I10", "the full log disk was not felt"))
        time.sleep(2.0)
        log.free()
        _back(stand)
        time.sleep(2.0)
        stand.stop_database()
        log.move_out()
        data.move_out()
        stand.start_database()
    finally:
        log.give_up()
        data.give_up()
    healed = time.time()
    return Injected(
        began, healed, "postgres", outage=healed - began, failed=tuple(failed), detail="data, then WAL: PANIC"
    )


def _refused(stand: Stand) -> bool:
    """Whether a table cannot grow any more."""
    with psycopg.connect(stand.settings.database_url, autocommit=True) as link:
        try:
            link.execute(
                "CREATE TABLE balloon AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 20000)"
            )
        except psycopg.errors.DiskFull:
            return True
        link.execute("DROP TABLE balloon")
    return False


def _panic(stand: Stand, log: SmallDisk) -> bool:
    """Fill the log's disk and ask for the next segment until the server panics."""
    log.fill()
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            with psycopg.connect(stand.settings.database_url, autocommit=True, connect_timeout=5) as link:
                link.execute(
                    "CREATE TEMP TABLE fill AS SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 9000)"
                )
                link.execute("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))")
                link.execute("SELECT pg_switch_wal()")
        except psycopg.Error:
            return "PANIC" in stand.database.log.read_text(errors="replace")
    return False


def _back(stand: Stand) -> None:
    """Start the server unless it came back by itself."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if stand.pid(stand.database.name) is None:
            stand.start_database()
            return
        try:
            with psycopg.connect(stand.settings.database_url, connect_timeout=5):
                stand.note("database-back")
                return
        except psycopg.OperationalError:
            time.sleep(0.2)
    raise TimeoutError("the database did not come back when its disk had room again")


def rebuilt(stand: Stand, random: Random) -> Injected:
    """Fault 39: while the store rests, note what SQL holds; then read the logs up to there into an empty database.

    The digest of every table must be equal. The store stands still only for the looking.
    """
    began = time.time()
    stand.up.stack.children.stop(STORE, 30)
    places, ours = _places(stand), digests(stand.settings.database_url)
    stand.up.start_worker("keeping")
    healed = time.time()
    shadow = stand.settings.database_url.rpartition("/")[0] + "/shadow"
    with psycopg.connect(stand.settings.database_url, autocommit=True) as link:
        link.execute("DROP DATABASE IF EXISTS shadow")
        link.execute("CREATE DATABASE shadow")
    try:
        migrate(shadow)
        count = asyncio.run(_replay(stand, shadow, places))
        theirs = digests(shadow)
    finally:
        with psycopg.connect(stand.settings.database_url, autocommit=True) as link:
            link.execute(sql.SQL("DROP DATABASE shadow WITH (FORCE)"))
    differ = [name for name, digest in ours.items() if theirs[name] != digest]
    failed = tuple(("I4", f"{name}: {ours[name][0]} rows, rebuilt {theirs[name][0]}") for name in differ)
    detail = f"{count} messages, {sum(rows for rows, _ in ours.values())} rows, {len(ours)} tables"
    return Injected(began, healed, STORE, outage=healed - began, failed=failed, detail=detail)


def _places(stand: Stand) -> Places:
    """Next offsets of the store, by topic and partition."""
    with link(stand.settings.database_url) as connection:
        rows = connection.execute("SELECT topic, partition, next_offset FROM aos_data.place").fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


async def _replay(stand: Stand, url: str, places: Places) -> int:
    """Write the logs below `places` into an empty database, as the store would; how many messages."""
    ids: Mapping[str, str] = await _topic_ids(stand)

    async def topic_ids() -> Mapping[str, str]:
        return ids

    sink, count = TimescaleSink(url, topic_ids, stand.settings), 0
    await sink.open(sorted(places))
    try:
        for topic in store.READS:
            waiting: list[Portion] = []
            for portion in _portions(
                stand, {place: end for place, end in places.items() if place[0] == topic}
            ):
                waiting.append(portion)
                count += 1
                if len(waiting) == BUNDLE:
                    await sink.write(waiting)
                    waiting = []
            if waiting:
                await sink.write(waiting)
    finally:
        await sink.close()
    return count


async def _topic_ids(stand: Stand) -> dict[str, str]:
    from aos.infra.runtime import options
    from aos.streams.shell.topics import Admin

    async with Admin(options(stand.settings)) as admin:
        return {name: id for name, (id, _) in (await admin.ids()).items()}


def _portions(stand: Stand, places: Places) -> list[Portion]:
    """Messages of one topic below the places, in log order."""
    prefix, found = stand.settings.prefix, []
    config: dict[str, Any] = {
        "bootstrap.servers": stand.settings.bootstrap, "group.id": "chaos-rebuild", "enable.auto.commit": False,
    }  # fmt: skip
    consumer = Consumer(config)
    try:
        for (topic, partition), end in sorted(places.items()):
            real = prefix + topic
            if end <= ends_of(consumer, real, partition)[0]:
                continue
            consumer.assign([TopicPartition(real, partition, OFFSET_BEGINNING)])
            while True:
                message = consumer.poll(10)
                if message is None or message.offset() >= end:
                    break
                if message.error():
                    raise OSError(str(message.error()))
                rows = wire.decode(message.value(), dict(message.headers() or ()), record_of(topic))
                found.append(Portion(topic, partition, message.offset(), rows, message.timestamp()[1] * 1000))
                if message.offset() == end - 1:
                    break
    finally:
        consumer.close()
    return found


inject_by(6, killed)
inject_by(7, away)
inject_by(8, slow, needs=frozenset({"links"}))
inject_by(10, full, missing=no_tmpfs)
inject_by(39, rebuilt)
