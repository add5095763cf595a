"""Ledger rows as plain entries in the order of the log. Each kind's columns, and no others, are read once.

A kind this release does not know is passed over: an older reader must survive a newer writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from aos.agents.ledger_plans import Plans
from aos.agents.ledger_state import Common, Step
from aos.agents.ledger_values import values
from aos.agents.quotas import Limits
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE

E = TypeVar("E", bound=tuple[Any, ...])


class Parent(NamedTuple):
    """Which attempt handed a child out, and how deep the child stands."""

    request_id: bytes
    step: int
    attempt: int
    agent: str
    depth: int


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
    limits: Limits
    parent: Parent | None


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
    rung: str | None
    plan_row: int
    plans: Plans


class Heads:
    """The common columns of the rows of one kind; read only when somebody asks, because few rows need them all."""

    def __init__(self, part: _Part) -> None:
        self._part = part

    @cached_property
    def _rows(self) -> list[Common]:
        return list(self._part.common())

    def __getitem__(self, index: int) -> Common:
        return self._rows[index]


class Assigned(NamedTuple):
    """Who does an attempt; its common columns are row `head` of `heads`."""

    request_id: bytes
    round: int
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
    rung: str | None
    head: int
    heads: Heads


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
    """What an agent answers; its round is in the token only. Its common columns are row `head` of `heads`."""

    request_id: bytes
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
    head: int
    heads: Heads


class Delegated(NamedTuple):
    """A child an agent asks for; no steps when the edge refused it. Common columns: row `head` of `heads`."""

    request_id: bytes
    step: int
    attempt: int
    agent: str
    epoch: int
    token: bytes | None
    call: str
    deadline_at: int | None
    budget_usd_micros: int | None
    budget_cpu_us: int | None
    task_kind: str | None
    code: str | None
    message: str | None
    row: int
    steps: list[Step]
    head: int
    heads: Heads


class Shared(NamedTuple):
    """A change of the context, made from `version`. Common columns: row `head` of `heads`."""

    request_id: bytes
    step: int
    attempt: int
    agent: str
    epoch: int
    token: bytes | None
    call: str
    payload: bytes | None
    version: int | None
    row: int
    head: int
    heads: Heads


Spoken = Outcome | Delegated | Shared  # what an agent at work says, under the token of its attempt


class Cancel(NamedTuple):
    """End the request; `requested_at`: when that was ordered."""

    request_id: bytes
    requested_at: int
    message: str | None


class Redrive(NamedTuple):
    """Run an ended request again; `requested_at`: when that was ordered."""

    request_id: bytes
    requested_at: int


Entry = Requested | Rejected | Planned | Assigned | Refused | Outcome | Delegated | Shared | Cancel | Redrive


def entries(rows: pa.RecordBatch) -> list[Entry]:
    """The entries of a message in order; ticks and unknown kinds are left out."""
    kinds: list[str] = rows.column("kind").to_pylist()
    if kinds and kinds.count(kinds[0]) == len(kinds):  # the usual message
        read = _READERS.get(kinds[0])
        return list(read(_Part(rows, list(range(len(kinds)))))) if read else []
    places: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        places.setdefault(kind, []).append(index)
    sources = {kind: _READERS[kind](_Part(rows, found)) for kind, found in places.items() if kind in _READERS}
    return [next(sources[kind]) for kind in kinds if kind in sources]


class _Part:
    """The rows of one kind; a column is cut out when it is asked for."""

    def __init__(self, rows: pa.RecordBatch, places: list[int]) -> None:
        self.places = places
        first, count = places[0], len(places)
        together = places[-1] - first + 1 == count
        self._rows = rows.slice(first, count) if together and count < rows.num_rows else rows
        self._indices = None if together else pa.array(places, pa.int64())

    def column(self, name: str) -> pa.Array:
        column = self._rows.column(name)
        return column if self._indices is None else column.take(self._indices)

    def columns(self, *names: str) -> list[list[Any]]:
        return [values(self.column(name)) for name in names]

    def common(self) -> Iterator[Common]:
        return _made(Common, *self.columns(*Common._fields))

    def heads(self) -> tuple[Iterable[int], list[Heads]]:
        """`head` and `heads` of each row."""
        return range(len(self.places)), [Heads(self)] * len(self.places)


def _made(kind: type[E], *columns: Iterable[Any]) -> Iterator[E]:
    """Rows of one kind from their columns, without a Python call a row."""
    return map(partial(tuple.__new__, kind), zip(*columns, strict=True))


_LIMITS = (  # as `Limits` has them
    "quota_requests", "quota_bytes", "quota_in_flight", "quota_burst_s", "quota_shares", "waiting_max",
)  # fmt: skip


def _requested(part: _Part) -> Iterator[Entry]:
    plain = part.columns(
        "id", "priority", "deadline_at", "budget_usd_micros", "budget_cpu_us", "policy", "task_kind",
        "code", "message",
    )  # fmt: skip
    steps = _steps(part.column("steps"))
    limits = _made(Limits, *part.columns(*_LIMITS))
    return _made(Requested, part.common(), *plain, part.places, steps, limits, _parents(part))


def _parents(part: _Part) -> list[Parent | None]:
    """Of each request; nearly always none has any."""
    ids = part.column("parent_id")
    if ids.null_count == len(ids):
        return [None] * len(ids)
    rows = zip(ids.to_pylist(), *part.columns("step", "attempt", "agent", "depth"), strict=True)
    return [None if None in row else Parent._make(row) for row in rows]


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
    return _made(Rejected, part.common(), *part.columns(*names), part.places)


def _planned(part: _Part) -> Iterator[Entry]:
    plans = Plans(part.column("alternatives"), part.column("filtered"))
    count = len(part.places)
    return _made(Planned, *part.columns(*Planned._fields[:-2]), range(count), [plans] * count)


def _assigned(part: _Part) -> Iterator[Entry]:
    return _made(Assigned, *part.columns(*Assigned._fields[:-2]), *part.heads())


def _refused(part: _Part) -> Iterator[Entry]:
    return _made(Refused, *part.columns(*Refused._fields))


def _outcome(part: _Part) -> Iterator[Entry]:
    return _made(Outcome, *part.columns(*Outcome._fields[:-3]), part.places, *part.heads())


_CALL = ("request_id", "step", "attempt", "agent", "epoch", "token", "id")


def _delegated(part: _Part) -> Iterator[Entry]:
    plain = ("deadline_at", "budget_usd_micros", "budget_cpu_us", "task_kind", "code", "message")
    steps = _steps(part.column("steps"))
    return _made(Delegated, *part.columns(*_CALL, *plain), part.places, steps, *part.heads())


def _shared(part: _Part) -> Iterator[Entry]:
    return _made(Shared, *part.columns(*_CALL, "payload", "context_version"), part.places, *part.heads())


def _cancel(part: _Part) -> Iterator[Entry]:
    return _made(Cancel, *part.columns(*Cancel._fields))


def _redrive(part: _Part) -> Iterator[Entry]:
    return _made(Redrive, *part.columns(*Redrive._fields))


_READERS: dict[str, Callable[[_Part], Iterator[Entry]]] = {
    "requested": _requested,
    "rejected": _rejected,
    "planned": _planned,
    "assigned": _assigned,
    "refused": _refused,
    "outcome": _outcome,
    "delegated": _delegated,
    "shared": _shared,
    "cancel": _cancel,
    "redrive": _redrive,
}
