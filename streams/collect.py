"""collect: makes an experience of everything that happened, once it is known how it ended.

in: aos.trails (attempts, requests, ignored answers), aos.corrections (callers' verdicts), aos.sightings (foreign logs)
out: aos.experiences, partition crc32(domain) modulo its partitions: whole learning domains stay together
key: the row's request (event, for a foreign one)
state: none
order: a row by itself; a message read again gives the same rows, sampled alike
errors: none: a row that must not teach is kept, with the reason in `quarantined`
cost: .4 ms a message, whatever its rows up to 1,000
source: analytics/sampling.py
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from aos.analytics.sampling import draws, quarantine, settled, share_of
from aos.codecs import rows as codec
from aos.codecs.columns import array, ints, valid
from aos.codecs.fields import COMMON, I64, SURFACE
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Output, Step, Views

TARGET = "aos.experiences"
STEP_NAMED = -2  # the correction names its step, or means the last one
_SAME = (
    "kind", "step", "step_name", "attempt", "id", "task_kind", "agent", "service", "policy", "status", "code",
    "message", "judged", "probability", "score_predicted", "topology", "quality_predicted", "duration_predicted_us",
    "priority", "budget_cpu_us", "cost_usd_micros", "cpu_us", "tokens", "latency_us", "assigned_at", "finished_at",
    "team", "embedding", "surface", "model_version", "settings_version", "degraded", "rung",
)  # fmt: skip

_COMMON = tuple(field.name for field in COMMON)


def initial(partition: int) -> None:
    """Nothing is remembered."""


def step(state: None, batch: Batch, now: int, views: Views, seed: int) -> Step[None]:
    """One message of trails, corrections or sightings to experiences."""
    if batch.rows.num_rows == 0:
        return Step(None)
    make = {"aos.trails": _trails, "aos.corrections": _corrections, "aos.sightings": _sightings}[batch.topic]
    columns = make(batch.rows, views.settings)
    columns["quarantined"] = quarantine(columns)
    rows = codec.from_columns("experience", batch.rows.num_rows, columns)
    return Step(None, _by_domain(rows, views.partitions.get(TARGET, 1)))


def partition_of(domain: str, partitions: int) -> int:
    """Where a learning domain's experiences go."""
    return zlib.crc32(domain.encode()) % partitions


def _by_domain(rows: pa.RecordBatch, partitions: int) -> list[Output]:
    if partitions == 1:
        return [Output(TARGET, rows)]
    domains = rows.column("domain").dictionary_encode()
    places = np.array([partition_of(name, partitions) for name in domains.dictionary.to_pylist()])
    place = places[domains.indices.to_numpy()]
    return [
        Output(TARGET, rows.take(pa.array(np.flatnonzero(place == one))), int(one))
        for one in np.unique(place)
    ]


def _trails(rows: pa.RecordBatch, settings: Settings) -> dict[str, Any]:
    given = dict(zip(rows.schema.names, rows.columns, strict=True))
    times = ints(given["finished_at"], 0)
    share = share_of(rows.num_rows, int(times.max() - times.min()), settings.sample_rows_per_s)
    assigned, ready = given["assigned_at"], given["ready_at"]
    known = valid(assigned) & valid(ready)
    drawn = draws(given["request_id"], given["step"].to_numpy(), given["attempt"].to_numpy())
    return {
        **{name: given[name] for name in _COMMON},
        **{name: given[name] for name in _SAME},
        "score": settled(given["score"], given["status"]),
        "waited_us": array(np.where(known, ints(assigned, 0) - ints(ready, 0), 0), I64),
        "sampled": drawn < share,
        "sample_share": np.full(rows.num_rows, share, np.float32),
    }


def _corrections(rows: pa.RecordBatch, settings: Settings) -> dict[str, Any]:
    count = rows.num_rows
    return {
        **codec.take_common(rows),
        **_nothing(count, kind="correction", step=STEP_NAMED, status="corrected"),
        "step_name": rows.column("step_name"),
        "id": rows.column("id"),
        "message": rows.column("comment"),
        "score": rows.column("score"),
        "judged": pa.array(np.ones(count, bool)),
        "finished_at": rows.column("given_at"),
    }


def _sightings(rows: pa.RecordBatch, settings: Settings) -> dict[str, Any]:
    count = rows.num_rows
    return {
        **_nothing(count, kind="foreign", step=0, status="seen"),
        "tenant": rows.column("tenant"),
        "request_id": rows.column("event_id"),
        "requested_at": rows.column("time"),
        "home": pa.array(np.zeros(count, np.int32)),
        "domain": rows.column("tenant"),
        "round": pa.array(np.zeros(count, np.int16)),
        "step_name": rows.column("activity"),
        "id": rows.column("case"),
        "agent": rows.column("resource"),
        "score": rows.column("score"),
        "finished_at": rows.column("time"),
    }


def _nothing(count: int, kind: str, step: int, status: str) -> dict[str, Any]:
    """The columns that only trails fill."""
    zeros, no = pa.array(np.zeros(count, np.int64)), pa.array(np.zeros(count, bool))
    amounts = (
        "cost_usd_micros",
        "cpu_us",
        "tokens",
        "waited_us",
        "latency_us",
        "model_version",
        "settings_version",
    )
    return {
        **dict.fromkeys(amounts, zeros),
        "kind": pa.array([kind] * count),
        "step": np.full(count, step, np.int16),
        "attempt": np.zeros(count, np.int16),
        "status": pa.array([status] * count),
        "judged": no,
        "priority": np.zeros(count, np.int8),
        "team": pa.array([[]] * count, pa.list_(pa.field("item", pa.string(), nullable=False))),
        "sampled": no,
        "sample_share": np.zeros(count, np.float32),
        "degraded": no,
        "agent": pa.nulls(count, pa.string()),
        "surface": pa.nulls(count, SURFACE),
    }
