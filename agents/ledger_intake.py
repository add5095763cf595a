"""Ledger rows as plain entries in the order of the log. Each kind's columns, and no others, are read once.

A kind this release does not know is passed over: an older reader must survive a newer writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa

from aos.agents.ledger_plans import Plans
from aos.agents.ledger_state import Common, Step
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE


class Requested(NamedTuple):
    """A request with its steps; none when the edge already refused it."""

    common: Common
    id: str | None
    priority: int | None
    deadline_at: int | None
    budget_usd_micros: int | None
    budget_cpu_us: int | None
    policy: str | None
    task_kind: str | None
    code: str | None
    message: str | None
    row: int
    steps: list[Step]


class Rejected(NamedTuple):
    """A typed refusal; by the edge when `match_round` is None, else by compose."""

    common: Common
    id: str | None
    priority: int | None
    task_kind: str | None
    policy: str | None
    step: int | None
    match_round: int | None
    code: str | None
    message: str | None
    row: int


class Planned(NamedTuple):
    """Alternatives of one step in one round of matching: row `plan_row` of `plans`."""

    request_id: bytes
    round: int
    step: int
    match_round: int | None
    parent: int | None
    step_name: str | None
    require: list[str] | None
    after: list[int] | None
    filtered_count: int | None
    topology: str | None
    quality_predicted: float | None
    duration_predicted_us: int | None
    model_version: int | None
    settings_version: int | None
    degraded: bool | None
    plan_row: int
    plans: Plans


class Assigned(NamedTuple):
    """Who does an attempt."""

    common: Common
    step: int
    attempt: int
    agent: str
    service: str
    cell: str
    cell_partition: int
    epoch: int
    probability: float | None
    score_predicted: float | None
    timeout_ms: int | None
    model_version: int | None
    settings_version: int | None
    degraded: bool | None


class Refused(NamedTuple):
    """Nobody in this cell can start the attempt, or (`agent`) its agent is gone."""

    request_id: bytes
    round: int
    step: int
    attempt: int
    agent: str | None
    cell: str | None
    code: str | None
    message: str | None


class Outcome(NamedTuple):
    """What an agent answers; its round is in the token only."""

    common: Common
    step: int
    attempt: int
    agent: str
    epoch: int
    token: bytes | None
    status: str
    payload: bytes | None
    content_type: str | None
    score: float | None
    code: str | None
    message: str | None
    retryable: bool | None
    cost_usd_micros: int | None
    cpu_us: int | None
    tokens_in: int | None
    tokens_out: int | None
    row: int


class Cancel(NamedTuple):
    """End the request; `requested_at`: when that was ordered."""

    request_id: bytes
    requested_at: int
    message: str | None


class Redrive(NamedTuple):
    """Run an ended request again; `requested_at`: when that was ordered."""

    request_id: bytes
    requested_at: int


Entry = Requested | Rejected | Planned | Assigned | Refused | Outcome | Cancel | Redrive


def entries(rows: pa.RecordBatch) -> list[Entry]:
    """The entries of a message in order; ticks and unknown kinds are left out."""
    kinds: list[str] = rows.column("kind").to_pylist()
    places: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        places.setdefault(kind, []).append(index)
    sources: dict[str, Iterator[Entry]] = {}
    for kind, indices in places.items():
        if kind in _READERS:
            sources[kind] = _READERS[kind](_Part(rows, indices, whole=len(places) == 1))
    return [next(sources[kind]) for kind in kinds if kind in sources]


class _Part:
    """The rows of one kind; a column is cut out when it is asked for."""

    def __init__(self, rows: pa.RecordBatch, indices: list[int], whole: bool) -> None:
        self.places = indices
        self._rows = rows
        self._indices = None if whole else pa.array(indices, pa.int64())

    def column(self, name: str) -> pa.Array:
        column = self._rows.column(name)
        return column if self._indices is None else column.take(self._indices)

    def columns(self, *names: str) -> list[list[Any]]:
        return [values(self.column(name)) for name in names]

    def common(self) -> Iterator[Common]:
        return map(Common._make, zip(*self.columns(*Common._fields), strict=True))


def values(column: pa.Array) -> list[Any]:
    """A column as Python objects; times as microseconds since the epoch."""
    type = column.type
    if pa.types.is_timestamp(type):
        column = column.cast(pa.int64())
    elif pa.types.is_fixed_size_binary(type):
        found: list[Any] = column.to_numpy(zero_copy_only=False).tolist()  # 20 times as fast as to_pylist
        return found
    elif pa.types.is_list(type) and not column.null_count:
        return _lists(column)
    return column.to_pylist()  # type: ignore[no-any-return]


def _lists(column: pa.ListArray) -> list[Any]:
    offsets = column.offsets.to_pylist()
    if offsets[0] == offsets[-1]:
        return [()] * len(column)
    flat = column.values.to_pylist()
    return [flat[start:end] for start, end in pairwise(offsets)]


def _requested(part: _Part) -> Iterator[Entry]:
    plain = part.columns(
        "id", "priority", "deadline_at", "budget_usd_micros", "budget_cpu_us", "policy", "task_kind",
        "code", "message",
    )  # fmt: skip
    steps = _steps(part.column("steps"))
    return map(Requested, part.common(), *plain, part.places, steps)


def _steps(column: pa.ListArray) -> list[list[Step]]:
    """Each request's steps, new and untouched."""
    offsets = column.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    items = column.values.slice(first, last - first)
    names = (
        "name", "task_kind", "require", "after", "judges", "pin", "exclude", "timeout_ms", "text", "payload",
        "content_type",
    )  # fmt: skip
    columns: list[Any] = [values(items.field(name)) for name in names]
    columns.append(_bytes(items.field("embedding"), EMBEDDING_SIZE * 2))
    columns.append(_bytes(items.field("surface"), SURFACE_SIZE * 4))
    numbers = [number for start, end in pairwise(offsets) for number in range(end - start)]
    flat = list(map(Step, numbers, *columns))
    nulls = column.is_null().to_pylist() if column.null_count else None
    return [
        [] if nulls is not None and nulls[index] else flat[start - first : end - first]
        for index, (start, end) in enumerate(pairwise(offsets))
    ]


def _bytes(column: pa.FixedSizeListArray, width: int) -> list[bytes]:
    """The bytes of each fixed-size list of numbers."""
    body = column.flatten().to_numpy(zero_copy_only=False).tobytes()
    return [body[at : at + width] for at in range(0, len(body), width)]


def _rejected(part: _Part) -> Iterator[Entry]:
    names = ("id", "priority", "task_kind", "policy", "step", "match_round", "code", "message")
    return map(Rejected, part.common(), *part.columns(*names), part.places)


def _planned(part: _Part) -> Iterator[Entry]:
    names = (
        "request_id", "round", "step", "match_round", "parent", "step_name", "require", "after",
        "filtered_count", "topology", "quality_predicted", "duration_predicted_us", "model_version",
        "settings_version", "degraded",
    )  # fmt: skip
    plans = Plans(part.column("alternatives"), part.column("filtered"))
    count = len(part.places)
    return map(Planned, *part.columns(*names), range(count), [plans] * count)


def _assigned(part: _Part) -> Iterator[Entry]:
    return map(Assigned, part.common(), *part.columns(*Assigned._fields[1:]))


def _refused(part: _Part) -> Iterator[Entry]:
    return map(Refused, *part.columns(*Refused._fields))


def _outcome(part: _Part) -> Iterator[Entry]:
    return map(Outcome, part.common(), *part.columns(*Outcome._fields[1:-1]), part.places)


def _cancel(part: _Part) -> Iterator[Entry]:
    return map(Cancel, *part.columns(*Cancel._fields))


def _redrive(part: _Part) -> Iterator[Entry]:
    return map(Redrive, *part.columns(*Redrive._fields))


_READERS: dict[str, Callable[[_Part], Iterator[Entry]]] = {
    "requested": _requested,
    "rejected": _rejected,
    "planned": _planned,
    "assigned": _assigned,
    "refused": _refused,
    "outcome": _outcome,
    "cancel": _cancel,
    "redrive": _redrive,
}
