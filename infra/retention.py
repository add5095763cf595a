"""Drops old chunks, by age and by bytes, under a clock that is passed in.

Chunks go whole. What was dropped stays dropped: `kept_from` of each table is the end of the youngest dropped chunk,
and the sink inserts nothing older, so that a replay of the topics brings nothing back. Ids of requests and results
outlive their rows by `IDS_DAYS`, longer than the topics keep their logs: one final row stays one.
A late row (an event time of days ago) that is older than `kept_from` has no row either; its result still has its id,
so the request counts as finished, and aos_data.kept says how many rows were skipped.
order: `kept_from` moves and chunks go in one transaction that waits for the sink's and makes the next one wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from aos.codecs.settings import Settings
from aos.infra.database import link
from aos.streams.store_tables import HYPERTABLES

IDS_DAYS = 7  # the topics keep a day
CHUNK_MIN = timedelta(minutes=10)
CHUNKS_WANTED = 8  # by bytes: a chunk larger than an eighth of all makes later chunks half as long


class Chunk(NamedTuple):
    """One chunk of a hypertable."""

    table: str
    name: str
    start: datetime
    end: datetime
    size: int


@dataclass(frozen=True, slots=True)
class Retained:
    """What a run did: names of dropped chunks, bytes that are left, deleted ids."""

    dropped: tuple[str, ...]
    bytes_left: int
    ids_deleted: int


def retain(url: str, settings: Settings, now: datetime) -> Retained:
    """Drop what is older than `keep_days`, then the oldest until `keep_bytes` are left; `now` must be aware."""
    if now.tzinfo is None:
        raise ValueError("now must be aware")
    with link(url) as connection:
        connection.execute("SELECT FROM aos_data.kept FOR UPDATE")
        chunks = _chunks(connection)
        gone = _by_age(chunks, now - timedelta(days=settings.keep_days))
        rest = [chunk for chunk in chunks if chunk not in gone]
        fixed = _fixed_bytes(connection)
        gone += _by_bytes(rest, settings.keep_bytes - fixed, now)
        _drop(connection, gone)
        left = sum(chunk.size for chunk in chunks if chunk not in gone) + fixed
        _shorten(connection, chunks, settings.keep_bytes, now)
        ids = _forget_ids(connection, now, settings)
    return Retained(tuple(chunk.name for chunk in gone), left, ids)


def _chunks(connection: psycopg.Connection[Any]) -> list[Chunk]:
    """All chunks, the oldest end first."""
    rows = connection.execute(
        "SELECT hypertable_name, format('%I.%I', chunk_schema, chunk_name), range_start, range_end, "
        "pg_total_relation_size(format('%I.%I', chunk_schema, chunk_name)::regclass) "
        "FROM timescaledb_information.chunks WHERE hypertable_schema = 'aos_data'"
    ).fetchall()
    return sorted((Chunk(*row) for row in rows), key=lambda chunk: (chunk.end, chunk.table, chunk.name))


def _fixed_bytes(connection: psycopg.Connection[Any]) -> int:
    """Bytes of the plain tables: ids, rollups, views."""
    rows = connection.execute(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'aos_data' AND c.relkind = 'r'"
    ).fetchall()
    return int(rows[0][0])


def _by_age(chunks: list[Chunk], horizon: datetime) -> list[Chunk]:
    return [chunk for chunk in chunks if chunk.end <= horizon]


def _by_bytes(chunks: list[Chunk], budget: int, now: datetime) -> list[Chunk]:
    """The oldest chunks over all tables until the rest fits; never one that may still be written."""
    total = sum(chunk.size for chunk in chunks)
    gone = []
    for chunk in chunks:
        if total <= budget:
            break
        if chunk.end <= now:
            gone.append(chunk)
            total -= chunk.size
    return gone


def _drop(connection: psycopg.Connection[Any], chunks: list[Chunk]) -> None:
    ends: dict[str, datetime] = {}
    for chunk in chunks:
        ends[chunk.table] = max(ends.get(chunk.table, chunk.end), chunk.end)
    for table, end in sorted(ends.items()):
        connection.execute(
            "UPDATE aos_data.kept SET kept_from = greatest(kept_from, %s) WHERE table_name = %s", (end, table)
        )
        connection.execute("SELECT aos_data.drop_before(%s, %s)", (table, end))


def _shorten(
    connection: psycopg.Connection[Any], chunks: list[Chunk], keep_bytes: int, now: datetime
) -> None:
    """Halve the length of chunks to come when one chunk takes too much: only whole chunks can be dropped."""
    for table in HYPERTABLES:
        last = [chunk for chunk in chunks if chunk.table == table.name and chunk.start <= now]
        if not last or last[-1].size <= keep_bytes // CHUNKS_WANTED:
            continue
        length = max((last[-1].end - last[-1].start) / 2, CHUNK_MIN)
        connection.execute("SELECT aos_data.chunks_of(%s, %s)", (table.name, length))


def _forget_ids(connection: psycopg.Connection[Any], now: datetime, settings: Settings) -> int:
    """Ids that no log can bring again, and minutes that are as old as the rows they count."""
    old = now - timedelta(days=IDS_DAYS)
    deleted = connection.execute("DELETE FROM aos_data.result_once WHERE finished_at < %s", (old,)).rowcount
    deleted += connection.execute(
        "DELETE FROM aos_data.request_once WHERE requested_at < %s",
        (old - timedelta(days=settings.past_days),),
    ).rowcount
    connection.execute(
        "DELETE FROM aos_data.rollup_minute WHERE bucket < %s", (now - timedelta(days=settings.keep_days),)
    )
    return deleted


def run_now(url: str, settings: Settings) -> Retained:
    """`retain` by the machine's clock, for whoever schedules it."""
    return retain(url, settings, datetime.now(UTC))
