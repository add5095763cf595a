"""What the ledger says to others, as plain rows, and how they become record batches.

A row is `common`, which becomes the columns of every task row, then what is no column, then the other columns in the
order of the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aos.agents.ledger_memory import PLACES, SCHEMA
from aos.agents.ledger_plans import ALTERNATIVES, FILTERED, Plans, Share, gather
from aos.agents.ledger_state import Common
from aos.codecs.fields import EMBEDDING, EMBEDDING_SIZE, SURFACE, SURFACE_SIZE
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import inbox, tenant_topic

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
    rung: str | None


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


class Said(NamedTuple):
    """What an inbox row says beside the work: the columns that most rows leave null."""

    call: str | None = None
    status: str | None = None
    code: str | None = None
    message: str | None = None
    context: bytes | None = None
    context_version: int | None = None


class InboxRow(NamedTuple):
    """Work for an agent, its withdrawal, or an answer. `inputs`: (name, payload, content type) of predecessors."""

    common: Common
    partition: int
    said: Said | None
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
    inputs: list[tuple[str, bytes | None, str | None]]
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
    id: str | None
    status: str
    code: str | None
    message: str | None
    task_kind: str | None
    payload: bytes | None
    content_type: str | None
    score: float | None
    agents: list[str]
    steps: list[StepEnd]
    attempts: int
    cost_usd_micros: int
    cpu_us: int
    finished_at: int
    latency_us: int
    degraded: bool
    repeated: bool
    retry_after_ms: int | None
    rung: str | None
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
    rung: str | None


class _Form:
    """How rows of one kind become a record batch: all cells at once, as one array of structs.

    An array a column would cost three times as much: of a few rows, most of it is the price of asking.
    `others`: fields after `common` that are no columns; `added`: columns that are handed in as arrays.
    """

    def __init__(self, schema: pa.Schema, row: Any, others: int = 0, added: Sequence[str] = ()) -> None:
        plain = [field for field in schema if field.name not in added]
        self._first = 1 + others
        names = [*Common._fields, *row._fields[self._first :]]
        if names != [field.name for field in plain]:
            raise TypeError(f"the columns of {row.__name__} must stand in the record's order, not {names}")
        self._type = pa.struct(plain)
        self._added = [(schema.get_field_index(name), schema.field(name)) for name in added]

    def batch(self, rows: Sequence[Any], **added: pa.Array) -> pa.RecordBatch:
        """Rows of the record."""
        first = self._first
        cells = pa.array([row[0] + row[first:] for row in rows], self._type)
        batch = pa.RecordBatch.from_struct_array(cells)
        for (
            place,
            field,
        ) in self._added:  # 5 us each; to take all columns out and put them together anew costs 60
            batch = batch.add_column(place, field, added[field.name])
        return batch


_TENSORS = ("embedding", "surface")
_RESULT = RECORDS["result"].schema
_ENDED = pa.schema([*_RESULT, *(SCHEMA.field(name) for name, _ in PLACES)])
_KEPT = [_ENDED.get_field_index(name) for name in SCHEMA.names]

_READY_FORM = _Form(RECORDS["ready"].schema, ReadyRow, 3, ("alternatives", "filtered"))
_RELEASE_FORM = _Form(RECORDS["release"].schema, ReleaseRow, 1)
_INBOX = RECORDS["assignment"].schema
_INBOX_FORM = _Form(_INBOX, InboxRow, 2, Said._fields)
_TASK_FORM = _Form(RECORDS["task"].schema, TaskRow, 2, _TENSORS)
_TRAIL_FORM = _Form(RECORDS["trail"].schema, TrailRow, 2, _TENSORS)
_ENDED_FORM = _Form(_ENDED, ResultRow)


def ready_rows(rows: Sequence[ReadyRow]) -> pa.RecordBatch:
    """Rows of record ready."""
    alternatives = gather([(row.share.alternatives, row.share.row) for row in rows], ALTERNATIVES)
    filtered = gather([(row.plan.filtered, row.plan_row) for row in rows], FILTERED)
    return _READY_FORM.batch(rows, alternatives=alternatives, filtered=filtered)


def task_rows(rows: Sequence[TaskRow]) -> pa.RecordBatch:
    """Rows of record task."""
    return _TASK_FORM.batch(rows, **_tensors(rows))


def trail_rows(rows: Sequence[TrailRow]) -> pa.RecordBatch:
    """Rows of record trail; those without an embedding have null there."""
    return _TRAIL_FORM.batch(rows, **_tensors(rows))


def result_rows(rows: Sequence[ResultRow]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows of record result, and the same rows as the memory of ended requests keeps them."""
    both = _ENDED_FORM.batch(rows)
    return both.select(range(len(_RESULT))), both.select(_KEPT)


def by_tenant(rows: Sequence[ResultRow]) -> tuple[list[tuple[str, pa.RecordBatch]], pa.RecordBatch]:
    """Result rows by topic, and all of them for the memory."""
    ordered, spans = _grouped(rows, [row.common.tenant for row in rows])
    results, kept = result_rows(ordered)
    found = [
        (tenant_topic("aos.results", tenant), results.slice(start, count)) for tenant, start, count in spans
    ]
    return found, kept


def by_lane(rows: Sequence[ReadyRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Ready rows by lane and partition of the cell."""
    ordered, spans = _grouped(rows, [(row.priority, row.share.cell_partition) for row in rows])
    built = ready_rows(ordered)
    return [((f"aos.ready.p{p}", cell), built.slice(at, count)) for (p, cell), at, count in spans]


def by_cell(rows: Sequence[ReleaseRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Releases by partition of the cell."""
    ordered, spans = _grouped(rows, [row.cell_partition for row in rows])
    built = _RELEASE_FORM.batch(ordered)
    return [(("aos.releases", cell), built.slice(at, count)) for cell, at, count in spans]


def by_service(rows: Sequence[InboxRow]) -> list[tuple[Target, pa.RecordBatch]]:
    """Inbox rows by topic and partition."""
    ordered, spans = _grouped(rows, [(row.service, row.partition) for row in rows])
    built = _INBOX_FORM.batch(ordered, **_said([row.said for row in ordered]))
    return [((inbox(service), to), built.slice(at, count)) for (service, to), at, count in spans]


def _said(cells: Sequence[Said | None]) -> dict[str, pa.Array]:
    """The columns of what is said beside the work; nearly always nulls, which are cheaper as whole columns."""
    fields = [_INBOX.field(name) for name in Said._fields]
    if not any(cells):
        return {field.name: pa.nulls(len(cells), field.type) for field in fields}
    columns = zip(*(cell or Said() for cell in cells), strict=True)
    return {field.name: pa.array(column, field.type) for field, column in zip(fields, columns, strict=True)}


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


def _tensors(rows: Sequence[TaskRow | TrailRow]) -> dict[str, pa.ExtensionArray]:
    """Tensor columns from the rows' bytes; no bytes: null."""
    return {
        "embedding": _tensor([row.embedding for row in rows], EMBEDDING, EMBEDDING_SIZE * 2),
        "surface": _tensor([row.surface for row in rows], SURFACE, SURFACE_SIZE * 4),
    }


def _tensor(cells: Sequence[bytes], type: pa.FixedShapeTensorType, width: int) -> pa.ExtensionArray:
    null = bytes(width)
    body = b"".join([cell or null for cell in cells])
    storage = type.storage_type
    flat = pa.Array.from_buffers(
        storage.value_type, len(cells) * storage.list_size, [None, pa.py_buffer(body)]
    )
    solid = None
    if b"" in cells:
        solid = pa.py_buffer(np.packbits([cell != b"" for cell in cells], bitorder="little").tobytes())
    lists = pa.Array.from_buffers(storage, len(cells), [solid], children=[flat])
    return pa.ExtensionArray.from_storage(type, lists)
