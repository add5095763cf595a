"""What the ledger says to others, as plain rows, and how they become record batches, column by column.

The names of a row's fields are the columns of its record; the columns of every task row come from `common`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aos.agents.ledger_memory import PLACES, SCHEMA
from aos.agents.ledger_plans import ALTERNATIVES, FILTERED, Plans, Share, gather
from aos.agents.ledger_state import Common
from aos.codecs.fields import EMBEDDING, EMBEDDING_SIZE, SURFACE, SURFACE_SIZE
from aos.codecs.rows import from_columns
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import inbox, tenant_topic

_STEPS = RECORDS["result"].schema.field("steps").type
_INPUTS = RECORDS["assignment"].schema.field("inputs").type

Target = tuple[str, int]  # topic, partition


class ReadyRow(NamedTuple):
    """An attempt for a lane."""

    common: Common
    share: Share
    plan: Plans
    plan_row: int
    step: int
    step_name: str
    attempt: int
    task_kind: str | None
    ready_at: int
    running: bool
    priority: int
    deadline_at: int | None
    budget_usd_micros: int | None
    budget_cpu_us: int | None
    policy: str | None
    filtered_count: int
    refusals: int
    model_version: int
    settings_version: int
    degraded: bool


class ReleaseRow(NamedTuple):
    """A slot that is free again, or a place in a lane that is given up."""

    common: Common
    cell_partition: int
    step: int
    attempt: int
    agent: str
    cell: str
    reason: str
    epoch: int


class InboxRow(NamedTuple):
    """Work for an agent, or its withdrawal. `inputs`: (name, payload, content type) of predecessors."""

    common: Common
    partition: int
    inputs: list[tuple[str, bytes | None, str | None]]
    kind: str
    step: int
    step_name: str
    attempt: int
    service: str
    agent: str
    epoch: int
    token: bytes
    task_kind: str | None
    text: str | None
    payload: bytes | None
    content_type: str | None
    deadline_at: int | None
    timeout_ms: int
    budget_usd_micros: int | None
    budget_cpu_us: int | None


class StepEnd(NamedTuple):
    """How a step ended, for a result."""

    name: str
    agent: str | None
    status: str
    score: float | None
    attempts: int


class ResultRow(NamedTuple):
    """How a request ended, and where in the ledger what is needed to answer again stands."""

    common: Common
    steps: list[StepEnd]
    id: str | None
    status: str
    code: str | None
    message: str | None
    task_kind: str | None
    payload: bytes | None
    content_type: str | None
    score: float | None
    agents: list[str]
    attempts: int
    cost_usd_micros: int
    cpu_us: int
    finished_at: int
    latency_us: int
    degraded: bool
    offset: int
    row: int
    output_offset: int
    output_row: int


class TaskRow(NamedTuple):
    """A step to be matched."""

    common: Common
    embedding: bytes
    surface: bytes
    step: int
    step_name: str
    steps_count: int
    match_round: int
    task_kind: str | None
    require: Sequence[str]
    after: Sequence[int]
    pin: Sequence[str]
    exclude: Sequence[str]
    priority: int
    deadline_at: int | None
    budget_usd_micros: int | None
    budget_cpu_us: int | None
    policy: str | None


class TrailRow(NamedTuple):
    """A finished attempt or request, or an answer that was ignored."""

    common: Common
    embedding: bytes
    surface: bytes
    kind: str
    id: str | None
    step: int
    step_name: str
    attempt: int
    task_kind: str | None
    priority: int
    policy: str | None
    agent: str | None
    service: str | None
    cell: str | None
    status: str
    code: str | None
    message: str | None
    score: float | None
    judged: bool
    probability: float | None
    score_predicted: float | None
    topology: str | None
    quality_predicted: float | None
    duration_predicted_us: int | None
    budget_cpu_us: int | None
    cost_usd_micros: int
    cpu_us: int
    tokens: int
    ready_at: int | None
    assigned_at: int | None
    finished_at: int
    latency_us: int
    team: list[str]
    ignored: int
    model_version: int
    settings_version: int
    degraded: bool


def ready_rows(rows: Sequence[ReadyRow]) -> pa.RecordBatch:
    """Rows of record ready."""
    columns = _columns(rows)
    shares = columns.pop("share")
    plans = zip(columns.pop("plan"), columns.pop("plan_row"), strict=True)
    columns["alternatives"] = gather([(share.alternatives, share.row) for share in shares], ALTERNATIVES)
    columns["filtered"] = gather([(plan.filtered, row) for plan, row in plans], FILTERED)
    return from_columns("ready", len(rows), columns)


def release_rows(rows: Sequence[ReleaseRow]) -> pa.RecordBatch:
    """Rows of record release."""
    columns = _columns(rows)
    del columns["cell_partition"]
    return from_columns("release", len(rows), columns)


def inbox_rows(rows: Sequence[InboxRow]) -> pa.RecordBatch:
    """Rows of record assignment."""
    columns = _columns(rows)
    del columns["partition"]
    columns["inputs"] = _structs(columns["inputs"], _INPUTS)
    return from_columns("assignment", len(rows), columns)


def task_rows(rows: Sequence[TaskRow]) -> pa.RecordBatch:
    """Rows of record task."""
    columns = _columns(rows)
    _tensors(columns)
    return from_columns("task", len(rows), columns)


def trail_rows(rows: Sequence[TrailRow]) -> pa.RecordBatch:
    """Rows of record trail; those without an embedding have null there."""
    columns = _columns(rows)
    _tensors(columns)
    return from_columns("trail", len(rows), columns)


def result_rows(rows: Sequence[ResultRow]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows of record result, and the same rows as the memory of ended requests keeps them."""
    columns = _columns(rows)
    columns["steps"] = _structs(columns["steps"], _STEPS)
    places = {name: pa.array(columns.pop(name), type) for name, type in PLACES}
    results = from_columns("result", len(rows), {**columns, "repeated": (False,) * len(rows)})
    kept = [places[f.name] if f.name in places else results.column(f.name) for f in SCHEMA]
    return results, pa.RecordBatch.from_arrays(kept, schema=SCHEMA)


def by_tenant(rows: Sequence[ResultRow]) -> tuple[list[tuple[str, pa.RecordBatch]], pa.RecordBatch]:
    """Result rows by topic, and all of them for the memory."""
    ordered, spans = _grouped(rows, [tenant_topic("aos.results", row.common.tenant) for row in rows])
    results, kept = result_rows(ordered)
    return [(topic, results.slice(start, count)) for topic, start, count in spans], kept


def by_lane(rows: Sequence[ReadyRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Ready rows by lane and partition of the cell."""
    keys = [(f"aos.ready.p{row.priority}", row.share.cell_partition) for row in rows]
    return _split(ready_rows, rows, keys)


def by_cell(rows: Sequence[ReleaseRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Releases by partition of the cell."""
    return _split(release_rows, rows, [("aos.releases", row.cell_partition) for row in rows])


def by_service(rows: Sequence[InboxRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Inbox rows by topic and partition."""
    return _split(inbox_rows, rows, [(inbox(row.service), row.partition) for row in rows])


def _split(
    build: Callable[[Sequence[Any]], pa.RecordBatch], rows: Sequence[Any], keys: list[Any]
) -> list[tuple[Any, pa.RecordBatch]]:
    """Rows apart by key; built once and sliced, because cutting columns by index costs more than building them."""
    ordered, spans = _grouped(rows, keys)
    built = build(ordered)
    return [(key, built.slice(start, count)) for key, start, count in spans]


def _grouped(rows: Sequence[Any], keys: list[Any]) -> tuple[list[Any], list[tuple[Any, int, int]]]:
    """Rows of equal keys together, in order of the keys' first rows, and each key's (key, start, count)."""
    groups: dict[Any, list[Any]] = {}
    for key, row in zip(keys, rows, strict=True):
        groups.setdefault(key, []).append(row)
    ordered: list[Any] = []
    spans = []
    for key, group in groups.items():
        spans.append((key, len(ordered), len(group)))
        ordered += group
    return ordered, spans


def _columns(rows: Sequence[Any]) -> dict[str, Any]:
    """Rows turned into columns; `common` becomes its own columns."""
    columns: dict[str, Any] = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
    common = columns.pop("common")
    return {**dict(zip(Common._fields, zip(*common, strict=True), strict=True)), **columns}


def _structs(lists: Sequence[Sequence[Any]], type: pa.ListType) -> pa.ListArray:
    """A list column of structs from lists of plain tuples in the order of the struct's fields."""
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(found) for found in lists], out=offsets[1:])
    fields = list(type.value_type)
    flat = [item for found in lists for item in found]
    parts = list(zip(*flat, strict=True)) if flat else [()] * len(fields)
    arrays = [pa.array(part, field.type) for part, field in zip(parts, fields, strict=True)]
    items = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=type)


def _tensors(columns: dict[str, Any]) -> None:
    """Tensor columns from the rows' bytes; no bytes: null."""
    columns["embedding"] = _tensor(columns["embedding"], EMBEDDING, EMBEDDING_SIZE * 2)
    columns["surface"] = _tensor(columns["surface"], SURFACE, SURFACE_SIZE * 4)


def _tensor(cells: Sequence[bytes], type: pa.FixedShapeTensorType, width: int) -> pa.ExtensionArray:
    null = bytes(width)
    body = b"".join([cell or null for cell in cells])
    flat = pa.Array.from_buffers(
        type.value_type, len(body) // (width // type.storage_type.list_size), [None, pa.py_buffer(body)]
    )
    mask = pa.array([not cell for cell in cells]) if b"" in cells else None
    storage = pa.FixedSizeListArray.from_arrays(flat, type.storage_type.list_size, mask=mask)
    return pa.ExtensionArray.from_storage(type, storage.cast(type.storage_type))
