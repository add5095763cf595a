"""encode: raw requests become one ledger row a request and one task row a step.

Decides what a request is: its id, time, home, domain, steps and tensors; all later processors take them as given.

in: aos.requests[.tenant], raw: Arrow streams of many rows or JSON objects.
out: aos.ledger, kind requested (with texts, payloads, steps) or rejected (readable but wrong: code and sentence);
     aos.tasks, one row a step, those of a request together; aos.dead-letters, bytes that never became a request.
key: request_id -> home = its partition, computed here and never again. state: none; the quotas in force are written
     into each row.
order: rows keep their order; a message read twice gives the same rows. Repeated client ids pass: supervise answers.
errors: AOS10xx dead letters; AOS2001-2012, AOS1005 (tensor), AOS1010 on rejected rows; good rows beside them go on.
cost: 45 us a request of 1,100 characters at 512 a round, 20 of them for the text; 140 us at 64 a round of one row a
      message, 40 of them to read the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.agents import encoding, identity, quotas, requests
from aos.agents.requests import Refusal, Steps
from aos.codecs import rows as make
from aos.codecs.columns import array, ints, list_of, valid
from aos.codecs.errors import CODES, RecordError
from aos.codecs.fields import I8, I16, I32, I64, TIME
from aos.codecs.records_edge import REQUEST
from aos.codecs.records_flow import LEDGER
from aos.streams.dead_letters import DeadLetters
from aos.streams.gather import Gathered, gather, tenants_of
from aos.streams.live import by_tenant
from aos.streams.origins import at_origin
from aos.streams.processor import Batch, Output, Raw, Step, Views

TASKS_A_MESSAGE = (
    640  # about 1 KB each: the shell splits larger outputs, and a request's tasks must stay together
)
# what a bad value of a readable row means for its request; other codes are dead letters
_ANSWERED = {"AOS1005": "AOS1005", "AOS1014": "AOS2010"}


def initial(partition: int) -> None:
    """encode remembers nothing."""


def step(state: None, batch: Batch, now: int, views: Views, seed: int) -> Step[None]:
    """Turn the raw messages of one fetch into ledger rows, tasks and dead letters."""
    tenants = views.settings.tenants
    dead = DeadLetters("encode", tenants)
    raws = at_origin(batch.raws, dead)
    gathered = gather(raws, REQUEST, tenants, dead)
    unread = {row: error for row, error in gathered.bad.items() if error.code not in _ANSWERED}
    gathered = gathered.drop(unread, raws, dead)
    if gathered.rows.num_rows == 0:
        return Step(state, dead.outputs())
    appended = np.array([raw.appended_at for raw in raws], np.int64)[gathered.message]
    checked = requests.check(gathered.rows, appended, views.settings)
    refused = {row: _refusal(error) for row, error in gathered.bad.items()} | checked.refused
    common = _common(gathered, raws, appended, views)
    if not refused:
        outputs = _accepted(gathered.rows, common, checked.graphs, views)
    else:
        good = np.setdiff1d(np.arange(gathered.rows.num_rows), list(refused))
        graphs = {new: checked.graphs[old] for new, old in enumerate(good.tolist()) if old in checked.graphs}
        outputs = _rejected(gathered.rows, common, appended, refused, views)
        if len(good):
            taken = pa.array(good)
            kept = {name: column.take(taken) for name, column in common.items()}
            outputs += _accepted(gathered.rows.take(taken), kept, graphs, views)
    return Step(state, [*dead.outputs(), *outputs])


def _refusal(error: RecordError) -> Refusal:
    late = error.code == "AOS1014" and error.detail.startswith("requested_at")
    return Refusal("AOS2012" if late else _ANSWERED[error.code], error.detail)


def _common(
    gathered: Gathered, raws: Sequence[Raw], appended: np.ndarray, views: Views
) -> dict[str, pa.Array]:
    """The columns every later row of a request carries."""
    rows, count = gathered.rows, gathered.rows.num_rows
    tenants = tenants_of(gathered, raws, views.settings.tenants)
    ids = [
        identity.request_id(tenant, client)
        if client
        else identity.request_id_at(raws[message].topic, raws[message].partition, raws[message].offset, row)
        for tenant, client, message, row in zip(
            tenants, rows["id"].to_pylist(), gathered.message.tolist(), gathered.row.tolist(), strict=True
        )
    ]
    partitions = views.partitions["aos.tasks"]
    requested = np.minimum(ints(rows["requested_at"], np.iinfo(np.int64).max), appended)
    if rows["domain"].null_count == count:
        domains = tenants
    else:
        names = rows["domain"].to_pylist()
        domains = [identity.domain(tenant, name) for tenant, name in zip(tenants, names, strict=True)]
    return {
        "tenant": pa.array(tenants, pa.string()),
        "traceparent": rows["traceparent"],
        "request_id": pa.array(ids, pa.binary(16)),
        "requested_at": array(requested, TIME),
        "home": pa.array([identity.home(one, partitions) for one in ids], I32),
        "domain": pa.array(domains, pa.string()),
        "round": array(np.zeros(count, np.int16), I16),
    }


def _rejected(
    rows: pa.RecordBatch,
    common: dict[str, pa.Array],
    appended: np.ndarray,
    refused: dict[int, Refusal],
    views: Views,
) -> list[Output]:
    """One ledger row a refused request; only what is sure to be short and right is kept of it."""
    order = sorted(refused)
    taken = pa.array(order, pa.int64())
    found = [refused[row] for row in order]
    ids = rows["id"].take(taken)
    columns: dict[str, Any] = {name: column.take(taken) for name, column in common.items()}
    columns["traceparent"] = pa.nulls(len(order), pa.string())
    columns["domain"] = columns["tenant"]
    columns["requested_at"] = array(appended[order], TIME)
    columns |= {
        "kind": pa.repeat("rejected", len(order)),
        "id": pc.utf8_slice_codeunits(ids, 0, requests.ID_BYTES_MAX),
        "code": [one.code for one in found],
        "message": [f"{CODES[one.code].message}: {one.message}"[:500] for one in found],
    }
    ledger = make.from_columns("entry", len(order), columns)
    return _by_home("aos.ledger", ledger, ledger["home"], views)


def _accepted(
    rows: pa.RecordBatch, common: dict[str, pa.Array], graphs: dict[int, requests.Graph], views: Views
) -> list[Output]:
    """The ledger rows and tasks of good requests."""
    steps = requests.explode(rows, graphs)
    limits = _limits(rows, common)
    found = requests.readings(rows, steps)
    priority = limits["priority"].to_numpy()[steps.owner]
    budget = ints(rows["budget_cpu_us"], 0)[steps.owner]
    surface = encoding.surface(found.features, steps.columns["payload"], priority, budget)
    ledger = make.from_columns(
        "entry",
        rows.num_rows,
        common
        | limits
        | _quotas(common["tenant"].to_pylist(), views)
        | {
            "kind": pa.repeat("requested", rows.num_rows),
            "id": rows["id"],
            "task_kind": rows["task_kind"],
            "steps": _ledger_steps(steps, found.vectors, surface),
        },
    )
    tasks = _tasks(common | limits, steps, found.vectors, surface)
    return [
        *_by_home("aos.ledger", ledger, ledger["home"], views),
        *_by_home("aos.tasks", tasks, tasks["home"], views, TASKS_A_MESSAGE),
    ]


def _limits(rows: pa.RecordBatch, common: dict[str, pa.Array]) -> dict[str, pa.Array]:
    deadline = ints(common["requested_at"], 0) + ints(rows["deadline_ms"], 0) * 1000
    policy = rows["policy"]
    if policy.null_count < len(policy):
        policy = pc.if_else(pc.equal(policy, "learned"), None, policy)
    return {
        "priority": array(ints(rows["priority"], requests.PRIORITY_DEFAULT), I8),
        "deadline_at": array(deadline, TIME, ~valid(rows["deadline_ms"])),
        "budget_usd_micros": rows["budget_usd_micros"],
        "budget_cpu_us": rows["budget_cpu_us"],
        "policy": policy,
    }


def _quotas(tenants: list[str], views: Views) -> dict[str, Any]:
    """The limits in force for requests of these tenants: written down here, so that supervise needs no settings."""
    settings, count = views.settings, len(tenants)
    found: dict[str, Any] = {"waiting_max": array(np.full(count, settings.waiting_max), I64)}
    limits = {
        "quota_requests": settings.quota_requests_per_s,
        "quota_bytes": settings.quota_bytes_per_s,
        "quota_in_flight": settings.quota_in_flight,
    }
    if not any(limits.values()):
        return found
    found |= {name: [quotas.limits_of(tenant, each) for tenant in tenants] for name, each in limits.items()}
    found["quota_burst_s"] = by_tenant(views, "quota_burst_s", tenants)
    found["quota_shares"] = array(np.full(count, views.partitions["aos.tasks"]), I32)
    return found


_LEDGER_STEPS = LEDGER.schema.field("steps").type


def _ledger_steps(steps: Steps, vectors: np.ndarray, surface: np.ndarray) -> pa.Array:
    """The ledger's list of steps of each request."""
    type = _LEDGER_STEPS.value_type
    columns = dict(steps.columns)
    for name, values in (("embedding", vectors), ("surface", surface)):
        flat = pa.array(values.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=type.field(name).type)
    arrays = [columns[field.name] for field in type]
    structs = pa.StructArray.from_arrays(arrays, fields=list(type))
    return list_of(steps.counts, structs, _LEDGER_STEPS)


def _tasks(
    shared: dict[str, pa.Array], steps: Steps, vectors: np.ndarray, surface: np.ndarray
) -> pa.RecordBatch:
    """One row a step: `shared` are columns of the requests."""
    count = len(steps.owner)
    if count > len(steps.counts):
        shared = {name: requests.taken(column, steps.owner) for name, column in shared.items()}
    columns: dict[str, Any] = {
        "step": array(steps.number, I16),
        "step_name": steps.columns["name"],
        "steps_count": array(steps.counts[steps.owner], I16),
        "match_round": array(np.zeros(count), I16),
        "embedding": vectors,
        "surface": surface,
    }
    columns |= {name: steps.columns[name] for name in ("task_kind", "require", "after", "pin", "exclude")}
    return make.from_columns("task", count, shared | columns)


def _by_home(
    topic: str, rows: pa.RecordBatch, homes: pa.Array, views: Views, rows_max: int = 0
) -> list[Output]:
    """`rows` by home partition; cut at about `rows_max`, never inside a request."""
    if views.partitions["aos.tasks"] == 1:
        parts = [(0, rows)]
    else:
        where = homes.to_numpy()
        parts = [(int(home), rows.take(pa.array(np.flatnonzero(where == home)))) for home in np.unique(where)]
    return [Output(topic, piece, home) for home, part in parts for piece in _cut(part, rows_max)]


def _cut(tasks: pa.RecordBatch, rows_max: int) -> list[pa.RecordBatch]:
    if not rows_max or tasks.num_rows <= rows_max:
        return [tasks]
    starts = np.flatnonzero(tasks["step"].to_numpy() == 0)
    pieces, first = [], 0
    while first < tasks.num_rows:
        later = starts[starts > first]
        fitting = later[later <= first + rows_max]
        if tasks.num_rows - first <= rows_max:
            last = tasks.num_rows
        else:
            last = int(fitting[-1] if len(fitting) else later[0] if len(later) else tasks.num_rows)
        pieces.append(tasks.slice(first, last - first))
        first = last
    return pieces
