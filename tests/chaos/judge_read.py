"""What the judge reads: journals, topics from offset 0, SQL, and what the stand noted. Nothing of AOS is imported."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from tests.chaos.journal import Sent, read

Row = dict[str, Any]

REQUEST = ("tenant", "domain", "request_id", "round")
# topic -> the columns that a law is about; of all others only the bytes are looked at
COLUMNS: dict[str, tuple[str, ...]] = {
    "aos.results": (
        *REQUEST, "id", "status", "code", "payload", "score", "agents", "attempts", "cost_usd_micros", "finished_at",
        "latency_us", "repeated",
    ),
    "aos.ledger": (
        *REQUEST, "kind", "id", "step", "attempt", "agent", "epoch", "status", "token", "payload",
    ),
    "aos.inbox": (
        "request_id", "round", "kind", "step", "attempt", "service", "agent", "epoch", "token", "timeout_ms",
    ),
    "aos.dead-letters": (
        "tenant", "processor", "code", "topic", "partition", "offset", "row", "request_id", "body", "body_size",
    ),
    "aos.decisions": (
        *REQUEST, "kind", "step", "attempt", "agent", "epoch", "cell_partition", "settings_version",
    ),
    "aos.settings": ("version", "name", "tenant"),
    "aos.outcomes": ("request_id", "step", "attempt", "agent", "status"),
    "aos.tasks": (*REQUEST, "step"),
    "aos.experiences": (
        *REQUEST, "kind", "step", "attempt", "agent", "task_kind", "score", "quarantined", "status", "code",
    ),
    "aos.patterns": ("domain", "kind", "members", "support"),
    "aos.strategies": ("name", "version", "evidence_count", "changed_at", "reason"),
    "aos.beliefs": ("domain", "task_kind", "agent", "count", "drift_count"),
}  # fmt: skip
NAMED = ("aos.results", "aos.inbox")  # one topic a tenant, one a service


@dataclass
class Evidence:
    """Everything a law may look at. A row of a topic has `_topic`, `_partition`, `_offset` and `_at` (s) besides."""

    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)
    topics: dict[str, list[Row]] = field(
        default_factory=dict
    )  # by base name, in the order of partition and offset
    sql: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[Row] = field(default_factory=list)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    reached: dict[tuple[str, int], int] = field(default_factory=dict)  # where the store stood at last
    secrets_seen: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    poison: list[Row] = field(default_factory=list)  # what faults sent to do harm (judge_poison)
    hostile: dict[tuple[str, int, int], Row] = field(default_factory=dict)  # by its place; not to be read

    def rows(self, topic: str) -> list[Row]:
        return self.topics.get(topic, [])

    def poison_in(self, letter: Row) -> Row | None:
        """What a fault sent to do harm, if a dead letter's bytes are that: pyarrow may not survive reading it."""
        return self.hostile.get((letter["topic"], letter.get("partition", 0), letter.get("offset", 0)))

    def noted(self, event: str) -> list[Row]:
        return [note for note in self.notes if note["event"] == event]


def tenant_of(topic: str, base: str) -> str:
    """Whose instance of a topic it is, by its name alone."""
    return topic[len(base) + 1 :] or "default"


def base_of(topic: str) -> str:
    """`aos.results.acme` -> `aos.results`, for the topics that laws are about."""
    return next((base for base in NAMED if topic.startswith(base + ".")), topic)


def rows_of(value: bytes, columns: Iterable[str]) -> list[Row]:
    """Rows of one Arrow stream, the wanted columns; one JSON object is one row."""
    if value[:1] == b"{":
        whole = json.loads(value)
        return [{name: whole.get(name) for name in columns}]
    with pa.ipc.open_stream(value) as reader:
        table = reader.read_all()
    table.validate(full=True)  # of bytes that lie pyarrow ends the process else
    names = [name for name in columns if name in table.column_names]
    twice = [name for name in names if table.column_names.count(name) > 1]
    if twice:
        raise ValueError(f"columns that stand there twice: {twice}")
    empty = {name: None for name in columns if name not in names}
    return [{**row, **empty} for row in table.select(names).to_pylist()]


def of_unknown_release(headers: Iterable[tuple[str, bytes | None]] | None) -> bool:
    """Whether a message says that it is of a major version other than 1: such a row is nobody's until it is known."""
    major, point, _ = (dict(headers or ()).get("aos-version") or b"").partition(b".")
    return bool(point) and major != b"1"


def read_topics(
    bootstrap: str, prefix: str, secrets: list[bytes], hostile: dict[tuple[str, int, int], Row] | None = None
) -> Evidence:
    """Every topic from its first offset to the end it has now; of `hostile` messages only the bytes."""
    found = Evidence(hostile=hostile or {})
    topics: defaultdict[str, list[Row]] = defaultdict(list)
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "chaos-judge", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "enable.partition.eof": False, "fetch.max.bytes": 64 << 20,
        "receive.message.max.bytes": 1 << 30,  # what a batch may unpack to: bombs are in the logs
    })  # fmt: skip
    try:
        for topic, partition, message in messages(consumer, prefix, found):
            value, base = message.value() or b"", base_of(topic)
            whole = [value, message.key() or b"", *(part or b"" for _, part in message.headers() or ())]
            if any(secret in part for secret in secrets for part in whole):
                found.secrets_seen.append(f"{topic}/{partition}@{message.offset()}")
            if base not in COLUMNS or not value or (topic, partition, message.offset()) in found.hostile:
                continue
            if of_unknown_release(message.headers()):
                continue
            place = {"_topic": topic, "_partition": partition, "_offset": message.offset()}
            place["_at"] = message.timestamp()[1] / 1000
            place["_key"] = message.key()
            try:
                topics[base] += [{**row, **place} for row in rows_of(value, COLUMNS[base])]
            except (pa.ArrowException, ValueError, OSError) as error:
                if base != "aos.outcomes":  # what outsiders write may be anything
                    found.unreadable.append(f"{topic}/{partition}@{message.offset()}: {error}")
    finally:
        consumer.close()
    found.topics = {
        base: sorted(rows, key=lambda row: (row["_topic"], row["_partition"], row["_offset"]))
        for base, rows in topics.items()
    }
    return found


def messages(consumer: Consumer, prefix: str, found: Evidence) -> Iterator[tuple[str, int, Any]]:
    """(topic without prefix, partition, message) of everything there is now; notes the ends in `found`."""
    places = []
    for real, topic in consumer.list_topics(timeout=20).topics.items():
        name = real.removeprefix(prefix)
        if not real.startswith(prefix) or not name.startswith("aos."):
            continue
        for number in topic.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(real, number), timeout=20)
            found.ends[name, number] = high
            if high > low:
                places.append(TopicPartition(real, number, low))
    left = {(place.topic, place.partition) for place in places}
    consumer.assign(places)
    while left:
        for message in consumer.consume(500, 1.0):
            if message.error():
                raise RuntimeError(f"the judge cannot read {message.topic()}: {message.error()}")
            name = message.topic().removeprefix(prefix)
            if message.offset() < found.ends[name, message.partition()]:
                yield name, message.partition(), message
        for place in consumer.position([TopicPartition(topic, number) for topic, number in left]):
            if place.offset >= found.ends[place.topic.removeprefix(prefix), place.partition]:
                left.discard((place.topic, place.partition))


SQL = {
    "results": "SELECT r.tenant, r.id, encode(uuid_send(e.request_id), 'hex') AS request_id, e.round, e.status, "
    "e.tenant AS result_tenant FROM aos_data.result e "
    "LEFT JOIN aos_data.request r USING (requested_at, request_id, round)",
    "requests": "SELECT tenant, id, encode(uuid_send(request_id), 'hex') AS request_id, round FROM aos_data.request",
    "kept": "SELECT table_name, skipped FROM aos_data.kept",
    "unwritable": 'SELECT topic, partition, "offset", message FROM aos_data.unwritable',
    "beliefs": "SELECT domain, task_kind, agent, count FROM aos_data.belief",
}
# column of a rollup -> the same, counted anew from (requests r, attempts a, results e)
COUNTED = {
    "requests": ("r", "count(*)"), "results": ("e", "count(*)"),
    **{name: ("e", f"count(*) FILTER (WHERE status = '{name}')")
       for name in ("ok", "failed", "rejected", "expired", "cancelled")},
    "attempts": ("a", "count(*)"), "attempts_failed": ("a", "count(*) FILTER (WHERE status <> 'ok')"),
    "retries": ("a", "count(*) FILTER (WHERE attempt > 1)"), "scored": ("e", "count(score)"),
    "score_micros": ("e", "coalesce(sum(round(score * 1e6)::bigint), 0)"),
    **{name: ("e", f"coalesce(sum({name}), 0)") for name in ("cost_usd_micros", "cpu_us", "tokens", "latency_us")},
    "waited_us": ("a", "coalesce(sum(waited_us), 0)"), "latency_us_max": ("e", "coalesce(max(latency_us), 0)"),
}  # fmt: skip
SOURCES = {"r": ("request", "requested_at"), "a": ("attempt", "finished_at"), "e": ("result", "finished_at")}


def rollup_sql(unit: str) -> str:
    """The rows in which a rollup and its recomputation from raw rows differ."""
    parts = []
    for source, (table, at) in SOURCES.items():
        sums = [f"{sql if whose == source else '0'} AS {name}" for name, (whose, sql) in COUNTED.items()]
        parts.append(
            f"SELECT date_trunc('{unit}', {at}) AS bucket, tenant, coalesce(task_kind, '') AS task_kind, "
            f"{', '.join(sums)} FROM aos_data.{table} GROUP BY 1, 2, 3"
        )
    whole = ", ".join(
        f"{'max' if name.endswith('_max') else 'sum'}({name})::bigint AS {name}" for name in COUNTED
    )
    names = ", ".join(("bucket", "tenant", "task_kind", *COUNTED))
    anew = f"SELECT bucket, tenant, task_kind, {whole} FROM ({' UNION ALL '.join(parts)}) p GROUP BY 1, 2, 3"
    stored = f"SELECT {names} FROM aos_data.rollup_{unit}"
    return (
        f"SELECT 'stored' AS side, * FROM ({stored} EXCEPT {anew}) s "
        f"UNION ALL SELECT 'anew', * FROM ({anew} EXCEPT {stored}) t"
    )


def read_sql(url: str) -> dict[str, list[Row]]:
    """All the judge asks of SQL, in one transaction: one moment."""
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as link:
        link.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found = {name: link.execute(query.encode()).fetchall() for name, query in SQL.items()}
        for unit in ("minute", "hour"):
            found[f"rollup_{unit}"] = link.execute(rollup_sql(unit).encode()).fetchall()
    return found


def read_places(url: str) -> dict[tuple[str, int], int]:
    """Where the store stands."""
    with psycopg.connect(url) as link:
        rows = link.execute(
            "SELECT topic, partition, max(next_offset) FROM aos_data.place GROUP BY 1, 2"
        ).fetchall()
    return {(topic, partition): next_offset for topic, partition, next_offset in rows}


def read_folder(folder: Path, secrets: list[bytes], into: Evidence) -> None:
    """Journals, notes and log files of a run."""
    into.sent = read(sorted(folder.glob("journal*.ndjson")))
    for line in (folder / "observations.ndjson").read_text().splitlines():
        into.notes.append(json.loads(line))
    for path in folder.rglob("*.log"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            into.secrets_seen.append(str(path))
    texts = [secret.decode() for secret in secrets]
    for note in into.noted("processes"):
        into.secrets_seen += [line[:100] for line in note["lines"] if any(text in line for text in texts)]
