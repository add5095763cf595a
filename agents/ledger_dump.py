"""The ledger's state as Arrow tables and back: `requests`, `steps` (with their plans), `services`, `buckets` (of
quotas), `ended`.

Rows stand in the order in which requests came; the heap is not written, it follows from what is due. Writing also
lets go of the messages that plans were taken from: afterwards all plans share the columns just written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa

from aos.agents.ledger_memory import SCHEMA
from aos.agents.ledger_plans import ALTERNATIVES, FILTERED, Plans, gather
from aos.agents.ledger_state import Common, Request, State, Step
from aos.agents.ledger_values import values
from aos.codecs.fields import COMMON, I32, I64, TEXT

_REQUEST = [(f.name, f.metadata["type"]) for f in fields(Request) if f.metadata]
_STEP = [(f.name, f.metadata["type"]) for f in fields(Step) if f.metadata]
_DEFAULTS = {kind: {f.name: f.default for f in fields(kind)} for kind in (Request, Step)}
_BUCKET = [("tenant", TEXT), ("requests_full_at", I64), ("bytes_full_at", I64)]
_COMMON = [(f.name, f.type) for f in COMMON]
_NONE: tuple[pa.ListArray, pa.ListArray] = (pa.array([[]], ALTERNATIVES), pa.array([[]], FILTERED))


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """Canonical tables: equal states give equal bytes."""
    requests = list(state.requests.values())
    steps = [step for request in requests for step in request.steps]
    parts = [step.plan for step in steps]
    alternatives = gather(
        [(p.alternatives, s.plan_row) if p else (_NONE[0], 0) for p, s in zip(parts, steps, strict=True)],
        ALTERNATIVES,
    )
    filtered = gather(
        [(p.filtered, s.plan_row) if p else (_NONE[1], 0) for p, s in zip(parts, steps, strict=True)],
        FILTERED,
    )
    _share(steps, Plans(alternatives, filtered))
    common = list(zip(*(request.common for request in requests), strict=True)) or [()] * len(_COMMON)
    counts = pa.array([len(request.steps) for request in requests], I32)
    return {
        "requests": _table(
            {
                **{
                    name: pa.array(column, type) for (name, type), column in zip(_COMMON, common, strict=True)
                },
                **_columns(requests, _REQUEST),
                "steps_count": counts,
            }
        ),
        "steps": _table(
            {
                **_columns(steps, _STEP),
                "planned": pa.array([step.plan is not None for step in steps], pa.bool_()),
                "alternatives": alternatives,
                "filtered": filtered,
            }
        ),
        "services": pa.RecordBatch.from_arrays(
            [pa.array(list(state.dealt), TEXT), pa.array(list(state.dealt.values()), I64)],
            ["service", "dealt"],
        ),
        "buckets": _table(
            {
                name: pa.array(column, type)
                for (name, type), column in zip(_BUCKET, _transposed(state.accounts.buckets()), strict=True)
            }
        ),
        "ended": state.memory.dump(),
    }


def load(partition: int, tables: Mapping[str, pa.RecordBatch]) -> State:
    """The state of which `tables` is the dump."""
    state = State(partition)
    steps = _steps(tables["steps"])
    rows = tables["requests"]
    common = zip(*(values(rows.column(name)) for name, _ in _COMMON), strict=True)
    plain = [_slot(rows, Request, name) for name, _ in _REQUEST]
    counts = values(rows.column("steps_count"))
    at = 0
    for head, count, cells in zip(common, counts, zip(*plain, strict=True), strict=True):
        request = Request(Common._make(head), *cells)
        request.steps = steps[at : at + count]
        at += count
        state.enter(request)
    services = tables["services"]
    state.dealt = dict(zip(values(services.column("service")), values(services.column("dealt")), strict=True))
    if "buckets" in tables:  # else written by a release that had no quotas
        for tenant, *full_at in zip(*map(values, tables["buckets"].columns), strict=True):
            account = state.accounts.of(tenant)
            account.requests_full_at, account.bytes_full_at = full_at
    state.memory.add(_ended(tables["ended"]))
    state.rebuild()
    return state


def _slot(rows: pa.RecordBatch, kind: type[Request | Step], name: str) -> list[Any]:
    """A column; of a slot that the release which wrote it did not have, its default."""
    if name in rows.schema.names:
        return values(rows.column(name))
    return [_DEFAULTS[kind][name]] * rows.num_rows


def _ended(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The memory's rows; columns that an older release did not have are null."""
    known = set(rows.schema.names)
    columns = [
        rows.column(field.name)
        if field.name in known or not field.nullable
        else pa.nulls(len(rows), field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _transposed(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return list(zip(*rows, strict=True)) or [()] * len(_BUCKET)


def _steps(rows: pa.RecordBatch) -> list[Step]:
    columns = []
    for name, type in _STEP:
        column = _slot(rows, Step, name)
        columns.append([tuple(cell) for cell in column] if pa.types.is_list(type) else column)
    steps = [Step(*cells) for cells in zip(*columns, strict=True)]
    plans = Plans(rows.column("alternatives"), rows.column("filtered"))
    planned = values(rows.column("planned"))
    for index, (step, has) in enumerate(zip(steps, planned, strict=True)):
        if has:
            step.plan, step.plan_row = plans, index
    return steps


def _share(steps: list[Step], plans: Plans) -> None:
    for index, step in enumerate(steps):
        if step.plan is not None:
            step.plan, step.plan_row = plans, index


def _columns(rows: list[Any], columns: list[tuple[str, pa.DataType]]) -> dict[str, pa.Array]:
    return {name: pa.array([getattr(row, name) for row in rows], type) for name, type in columns}


def _table(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
