"""The sink: rows, rollups and log offsets in one transaction, so that SQL holds every log record exactly once.

order: messages below the stored offset are dropped; gaps in offsets are normal. Topics do not wait for each other.
errors: `SinkAway` when the database is away (a COMMIT without answer too: `open` reads what is true);
    `Fenced` when another sink has opened a partition since; deadlocks and serialisation failures are tried again;
    a message that SQL refuses all the same is written to aos_data.unwritable, alone.
cost: docs/sql.md. fsync and synchronous_commit stay on: an offset that is stored is stored with its rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.copying import columns_of, copied
from aos.infra.database import first_line, link, link_async
from aos.infra.rollups import write_sql
from aos.streams import store
from aos.streams.shell.sinks import Portion, SinkAway
from aos.streams.store_tables import TABLES

TRIES_MAX = 6  # of a transaction that lost against another one
TRY_WAIT_S = 0.02  # doubles
COPY_BYTES = 1 << 20  # what is handed to COPY at once

# What a transaction may lose against another one: try again. What means "not now": the runner waits and reopens.
LOST = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction)
REFUSED = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)

TopicIds = Callable[[], Awaitable[Mapping[str, str]]]


class Fenced(Exception):
    """Another sink has taken the partition over: this one must stop."""


@dataclass(slots=True)
class Place:
    """Where the sink stands in a partition, and the generation that lets it write."""

    topic_id: str
    generation: int


class TimescaleSink:
    """`Sink` of the shell over one connection. `topic_ids` tells each topic's creation id (name without prefix):
    a topic that was deleted and made anew begins at 0 again."""

    def __init__(self, url: str, topic_ids: TopicIds, settings: Settings | None = None) -> None:
        self._url = url
        self._topic_ids = topic_ids
        self._payloads = bool(settings is not None and settings.store_payloads)
        self._link: psycopg.AsyncConnection[Any] | None = None
        self._places: dict[tuple[str, int], Place] = {}
        self._staged: set[str] = set()  # tables that the connection has a temporary table for

    async def open(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Take the partitions over, fencing whoever had them; the next offset of each, 0 for new ones."""
        ids = await self._topic_ids()
        wanted = sorted((ids[topic], partition, topic) for topic, partition in partitions)
        await self.close()
        try:
            self._link, self._staged = await link_async(self._url, "aos.store"), set()
            async with self._link.transaction():
                found = await self._taken(wanted)
        except errors.UndefinedTable as error:
            await self.close()
            raise SettingsError("AOS5005", first_line(error)) from error
        except AWAY as error:
            await self.close()
            raise SinkAway(first_line(error)) from error
        self._places = {
            (topic, part): Place(id, generation) for (id, part, topic), (_, generation) in found.items()
        }
        return {(topic, partition): offset for (_, partition, topic), (offset, _) in found.items()}

    async def write(self, batches: Sequence[Portion]) -> None:
        """Write all in one transaction, offsets included."""
        try:
            await self._write_patiently(batches)
        except REFUSED:
            for portion in batches:  # find the message that SQL refuses; the others must not wait for it
                try:
                    await self._write_patiently([portion])
                except REFUSED as error:
                    await self._write_patiently([portion], refused=first_line(error))

    async def close(self) -> None:
        """Drop the connection; a transaction that is open is rolled back by the server."""
        if self._link is not None:
            connection, self._link = self._link, None
            await connection.close()

    async def _taken(
        self, wanted: Sequence[tuple[str, int, str]]
    ) -> dict[tuple[str, int, str], tuple[int, int]]:
        """Next offset and new generation by (topic id, partition, topic); rows in sorted order, so no deadlock."""
        assert self._link is not None
        cursor = await self._link.execute(
            "INSERT INTO aos_data.place AS p (topic_id, partition, topic, generation) "
            "SELECT topic_id, partition, topic, 1 FROM unnest(%s::text[], %s::int[], %s::text[]) "
            "AS w (topic_id, partition, topic) ORDER BY topic_id, partition "
            "ON CONFLICT (topic_id, partition) DO UPDATE SET generation = p.generation + 1 "
            "RETURNING topic_id, partition, topic, next_offset, generation",
            tuple(list(column) for column in zip(*wanted, strict=True)),
        )
        return {(row[0], row[1], row[2]): (row[3], row[4]) for row in await cursor.fetchall()}

    async def _write_patiently(self, batches: Sequence[Portion], refused: str | None = None) -> None:
        for attempt in range(TRIES_MAX):
            try:
                return await self._write_once(batches, refused)
            except LOST as error:
                if attempt == TRIES_MAX - 1:
                    await self.close()
                    raise SinkAway(first_line(error)) from error
                await asyncio.sleep(TRY_WAIT_S * 2**attempt)
            except REFUSED:
                raise
            except AWAY as error:
                await self.close()
                raise SinkAway(first_line(error)) from error
            except BaseException:
                await self.close()  # cancelled or a bug: the connection may be in the middle of something
                raise
        raise AssertionError("unreachable")

    async def _write_once(self, batches: Sequence[Portion], refused: str | None) -> None:
        if self._link is None:
            raise SinkAway("no connection")
        async with self._link.transaction():
            known = await self._fence({(portion.topic, portion.partition) for portion in batches})
            fresh = [p for p in batches if p.offset >= known[p.topic, p.partition]]
            if not fresh:
                return
            staged: set[str] = set()
            if refused is None:
                staged = await self._insert(fresh)
            else:
                await self._refuse(fresh, refused)
            await self._advance(fresh)
        self._staged |= staged

    async def _fence(self, partitions: set[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Lock the places that are still ours; next offset of each."""
        assert self._link is not None
        mine = sorted(
            (self._places[tp].topic_id, tp[1], self._places[tp].generation, tp[0]) for tp in partitions
        )
        ids, parts, generations, _ = (list(column) for column in zip(*mine, strict=True))
        cursor = await self._link.execute(
            "SELECT p.topic_id, p.partition, p.next_offset FROM aos_data.place p "
            "JOIN unnest(%s::text[], %s::int[], %s::bigint[]) AS w (topic_id, partition, generation) "
            "USING (topic_id, partition, generation) ORDER BY p.topic_id, p.partition FOR UPDATE OF p",
            (ids, parts, generations),
        )
        rows = await cursor.fetchall()
        if len(rows) != len(mine):
            raise Fenced(f"{len(mine) - len(rows)} of {len(mine)} partitions were taken over")
        names = {(row[0], row[1]): row[3] for row in mine}
        return {(names[id, partition], partition): offset for id, partition, offset in rows}

    async def _insert(self, batches: Sequence[Portion]) -> set[str]:
        """Write the rows; the tables that have a temporary one if this is committed."""
        assert self._link is not None
        # FOR SHARE: retention moves kept_from and drops chunks in one transaction; we run before or after it.
        cursor = await self._link.execute("SELECT table_name, kept_from FROM aos_data.kept FOR SHARE")
        kept = dict(await cursor.fetchall())
        tables, late = await asyncio.to_thread(prepared, batches, kept, payloads=self._payloads)
        for name, text in tables.items():
            if (
                name not in self._staged
            ):  # each costs every commit .3 ms of CPU, used or not: most have no rows, ever
                sql = f"CREATE TEMPORARY TABLE in_{name} (LIKE aos_data.{name}) ON COMMIT DELETE ROWS"
                await self._link.execute(sql.encode())
            copy = f"COPY pg_temp.in_{name} ({columns_of(TABLES[name])}) FROM STDIN (FORMAT binary)"
            async with self._link.cursor().copy(copy.encode()) as into:
                for start in range(0, len(text), COPY_BYTES):
                    await into.write(text[start : start + COPY_BYTES])
        for statement in write_sql(frozenset(tables), kept):
            # One plan for all bundles: temporary tables that nobody analyses look alike to the planner.
            await self._link.execute(statement.encode(), prepare=True)
        for name, count in sorted(late.items()):
            sql = "UPDATE aos_data.kept SET skipped = skipped + %s WHERE table_name = %s"
            await self._link.execute(sql, (count, name))
        return set(tables)

    async def _refuse(self, batches: Sequence[Portion], message: str) -> None:
        assert self._link is not None
        for p in batches:
            id = self._places[p.topic, p.partition].topic_id
            await self._link.execute(
                "INSERT INTO aos_data.unwritable VALUES "
                "(%s, %s, %s, %s, %s, %s, 'epoch'::timestamptz + %s * interval '1 microsecond') "
                "ON CONFLICT DO NOTHING",
                (id, p.partition, p.offset, p.topic, p.rows.num_rows, message, p.appended_at),
            )

    async def _advance(self, batches: Sequence[Portion]) -> None:
        assert self._link is not None
        ends: dict[tuple[str, int], int] = {}
        for p in batches:
            key = (self._places[p.topic, p.partition].topic_id, p.partition)
            ends[key] = max(ends.get(key, 0), p.offset + 1)
        keys = sorted(ends)
        await self._link.execute(
            "UPDATE aos_data.place p SET next_offset = w.next_offset "
            "FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS w (topic_id, partition, next_offset) "
            "WHERE p.topic_id = w.topic_id AND p.partition = w.partition",
            ([id for id, _ in keys], [partition for _, partition in keys], [ends[key] for key in keys]),
        )


def prepared(
    batches: Sequence[Portion], kept: Mapping[str, Any], *, payloads: bool
) -> tuple[dict[str, bytes], dict[str, int]]:
    """What COPY reads by table, and how many rows are older than what is kept. Pure; the sink runs it in a thread."""
    state = store.State(payloads=payloads)
    for portion in batches:
        if portion.rows.num_rows == 0:  # one that could not be read
            continue
        store.add(state, portion.topic, portion.partition, portion.offset, portion.rows)
    texts: dict[str, bytes] = {}
    late: dict[str, int] = {}
    for name, rows in store.take(state).items():
        young = _kept(name, rows, kept, late)
        if young.num_rows:
            texts[name] = copied(young)
    return texts, late


def _kept(name: str, rows: pa.Table, kept: Mapping[str, Any], late: dict[str, int]) -> pa.Table:
    """The rows that are young enough; those that are not are counted in `late`."""
    time = TABLES[name].time
    if time is None or name not in kept:
        return rows
    first = pa.scalar(kept[name], _TIME)
    times = rows.column(time)
    if not pc.less(pc.min(times), first).as_py():
        return rows
    old = pc.less(times, first)
    late[name] = pc.sum(old).as_py()
    if not TABLES[name].once:  # results are counted by id even when too old for a row
        rows = rows.filter(pc.invert(old))
    return rows


_TIME = pa.timestamp("us", tz="UTC")


def forget(url: str) -> None:
    """Empty every table and every place: the next sink that opens reads all topics from their beginning.

    It fences sinks that run. Horizons of retention go too: what the topics still hold comes back.
    """
    names = ", ".join(f"aos_data.{name}" for name in (*TABLES, "request_once", "result_once"))
    with link(url) as connection:
        connection.execute("TRUNCATE aos_data.place, aos_data.unwritable")
        connection.execute(f"TRUNCATE aos_data.rollup_minute, aos_data.rollup_hour, {names}".encode())
        connection.execute("UPDATE aos_data.kept SET kept_from = DEFAULT, skipped = 0")


def digests(url: str) -> dict[str, tuple[int, str]]:
    """Rows and checksum of every table; equal for equal content, whatever the order of writing.

    Of an agent, when it was last seen is left out: the sink writes it at most every ten seconds.
    """
    found = {}
    ignored = {"agent": ("seen_at", "version", "log_offset")}
    names = [*TABLES, "request_once", "result_once", "rollup_minute", "rollup_hour"]
    with link(url) as connection:
        for name in names:
            row = "to_jsonb(t)" + "".join(f" - '{column}'" for column in ignored.get(name, ()))
            sql = f"SELECT count(*), md5(string_agg(md5(({row})::text), '' ORDER BY md5(({row})::text)))"
            found[name] = connection.execute(f"{sql} FROM aos_data.{name} t".encode()).fetchall()[0]
    return found
