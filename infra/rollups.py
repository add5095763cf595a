"""The statement that turns a bundle's temporary tables into rows, ids and rollups, all by what is really new.

Increments come from INSERT ... ON CONFLICT DO NOTHING RETURNING: a row that was there already adds nothing. Rows
are inserted in key order, so that two sinks meet their locks in one order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache

from aos.infra.copying import columns_of
from aos.streams.store_tables import TABLES

# rollup column -> how a new row of request, attempt and result adds to it (absent: nothing)
MEASURES: dict[str, dict[str, str]] = {
    "requests": {"request": "1"},
    "results": {"result": "1"},
    "ok": {"result": "(status = 'ok')::int"},
    "failed": {"result": "(status = 'failed')::int"},
    "rejected": {"result": "(status = 'rejected')::int"},
    "expired": {"result": "(status = 'expired')::int"},
    "cancelled": {"result": "(status = 'cancelled')::int"},
    "attempts": {"attempt": "1"},
    "attempts_failed": {"attempt": "(status <> 'ok')::int"},
    "retries": {"attempt": "(attempt > 1)::int"},
    "scored": {"result": "(score IS NOT NULL)::int"},
    "score_micros": {"result": "coalesce(round(score * 1e6), 0)::bigint"},
    "cost_usd_micros": {"result": "cost_usd_micros"},
    "cpu_us": {"result": "cpu_us"},
    "tokens": {"result": "tokens"},
    "waited_us": {"attempt": "waited_us"},
    "latency_us": {"result": "latency_us"},
    "latency_us_max": {"result": "latency_us"},
}
LARGEST = {"latency_us_max"}  # combined by greatest, not by sum
BUCKETED_BY = {"request": "requested_at", "attempt": "finished_at", "result": "finished_at"}
RETURNED = {
    "request": "requested_at, tenant, task_kind",
    "attempt": "finished_at, tenant, task_kind, status, attempt, waited_us",
    "result": "finished_at, tenant, task_kind, status, score, cost_usd_micros, cpu_us, tokens, latency_us",
}
# How often an agent's row is written for nothing but a sign of life: at most every ten seconds.
ALIVE_EVERY_S = 10


def write_sql(present: frozenset[str], kept: Mapping[str, datetime]) -> list[str]:
    """The statements for the tables that a bundle has rows for."""
    statements = []
    counted = present & set(RETURNED)
    if counted:
        horizons = tuple((name, kept[name].isoformat()) for name in ("request", "result"))
        statements.append(_counted_sql(counted, horizons))
    for name in sorted(present - counted):
        statements += _replaced_sql(name) if TABLES[name].replaced_by else [_insert_sql(name, "true")]
    return statements


@lru_cache(maxsize=64)
def _counted_sql(present: frozenset[str], horizons: tuple[tuple[str, str], ...]) -> str:
    """Requests, attempts and results with their rollups, as one statement."""
    parts = []
    horizon = dict(horizons)
    if "request" in present:
        parts += _once_sql(
            "request", "id IS NOT NULL OR kind = 'rejected'", "requested_at", horizon["request"]
        )
    if "result" in present:
        parts += _once_sql("result", "true", "requested_at, finished_at, status", horizon["result"])
    if "attempt" in present:
        parts.append(f"new_attempt AS ({_insert_sql('attempt', 'true')} RETURNING {RETURNED['attempt']})")
    parts.append(f"part AS ({' UNION ALL '.join(_part_sql(name) for name in sorted(present))})")
    upserts = [_upsert_sql("rollup_minute", "minute"), _upsert_sql("rollup_hour", "hour")]
    parts.append(f"minutes AS ({upserts[0]})")
    return f"WITH {', '.join(parts)} {upserts[1]}"


def _once_sql(name: str, checked: str, columns: str, horizon: str) -> list[str]:
    """Rows whose ids are new whatever their time, and of these the ones that are young enough to be kept."""
    once = (
        f"once_{name} AS (INSERT INTO aos_data.{name}_once (request_id, round, {columns}) "
        f"SELECT request_id, round, {columns} FROM in_{name} WHERE {checked} ORDER BY request_id, round "
        f"ON CONFLICT DO NOTHING RETURNING request_id, round)"
    )
    new = f"EXISTS (SELECT FROM once_{name} o WHERE o.request_id = i.request_id AND o.round = i.round)"
    if checked != "true":
        new = f"(NOT ({checked}) OR {new})"
    where = f"{new} AND requested_at >= '{horizon}'"
    return [once, f"new_{name} AS ({_insert_sql(name, where)} RETURNING {RETURNED[name]})"]


def _insert_sql(name: str, where: str) -> str:
    columns = columns_of(TABLES[name])
    order = ", ".join(f'"{column}"' for column in TABLES[name].key)
    return (
        f"INSERT INTO aos_data.{name} ({columns}) SELECT {columns} FROM in_{name} i WHERE {where} "
        f"ORDER BY {order} ON CONFLICT DO NOTHING"
    )


def _part_sql(name: str) -> str:
    """What the new rows of one table add, by tenant and kind, still at their own times."""
    sums = [f"{by.get(name, '0')}::bigint AS {column}" for column, by in MEASURES.items()]
    whose = "tenant, coalesce(task_kind, '') AS task_kind"
    return f"SELECT {BUCKETED_BY[name]} AS at, {whose}, {', '.join(sums)} FROM new_{name}"


def _upsert_sql(rollup: str, unit: str) -> str:
    sums = ", ".join(f"{'max' if c in LARGEST else 'sum'}({c})" for c in MEASURES)
    raised = ", ".join(
        f"{c} = greatest(r.{c}, EXCLUDED.{c})" if c in LARGEST else f"{c} = r.{c} + EXCLUDED.{c}"
        for c in MEASURES
    )
    return (
        f"INSERT INTO aos_data.{rollup} AS r (bucket, tenant, task_kind, {', '.join(MEASURES)}) "
        f"SELECT date_trunc('{unit}', at), tenant, task_kind, {sums} FROM part GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 "
        f"ON CONFLICT (bucket, tenant, task_kind) DO UPDATE SET {raised}"
    )


@lru_cache(maxsize=16)
def _replaced_sql(name: str) -> list[str]:
    """A view's message is the whole value of its key: rows that it no longer holds go."""
    table = TABLES[name]
    columns = columns_of(table)
    key = ", ".join(f'"{column}"' for column in table.key)
    rest = [column.name for column in table.columns if column.name not in table.key]
    raised = ", ".join(f'"{column}" = EXCLUDED."{column}"' for column in rest)
    upsert = (
        f"INSERT INTO aos_data.{name} AS t ({columns}) SELECT {columns} FROM in_{name} ORDER BY {key} "
        f"ON CONFLICT ({key}) DO UPDATE SET {raised}"
    )
    if name == "agent":
        telling = [column for column in rest if column not in ("seen_at", "version", "log_offset")]
        old, new = (", ".join(f'{side}."{column}"' for column in telling) for side in ("t", "EXCLUDED"))
        upsert += f" WHERE ({old}) IS DISTINCT FROM ({new})"
        upsert += f" OR EXCLUDED.seen_at >= t.seen_at + interval '{ALIVE_EVERY_S} s'"
    if set(table.replaced_by) == set(table.key):
        return [upsert]
    same = " AND ".join(f't."{column}" = i."{column}"' for column in table.replaced_by)
    gone = (
        f"DELETE FROM aos_data.{name} t USING (SELECT DISTINCT {', '.join(table.replaced_by)}, log_offset "
        f"FROM in_{name}) i WHERE {same} AND t.log_offset < i.log_offset"
    )
    return [upsert, gone]
