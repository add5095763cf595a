"""Decides which rows of SQL the logs become: whole messages in, one Arrow table a SQL table out.

in: `READS`, whole messages in log order. out: nothing on Kafka; `take` hands over the rows by table.
key: each table's `key`; the database keeps the first row of a key (`kept` FIRST) or the last one (LAST).
state: the rows since the last `take`, bounded by the sink's bundle.
order: within a partition; between topics none: no table refers to another. Duplicates change nothing.
errors: none of its own; what SQL could not hold is made holdable here (NUL, times out of range, long names).
cost: with COPY's bytes (infra/copying.py) 7 ms a bundle, and 10 us a task with 16 candidates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.columns import ends, lengths
from aos.codecs.fields import I16, I32, I64, ID, TEXT, TIME
from aos.codecs.schemas import RECORDS
from aos.streams.processor import Batch, Step, Views
from aos.streams.store_tables import TABLES, Table
from aos.streams.store_values import Columns, holdable, lists_of, longest, typed

READS = (
    "aos.ledger",
    "aos.decisions",
    "aos.experiences",
    "aos.agent-states",
    "aos.beliefs",
    "aos.patterns",
    "aos.strategies",
    "aos.dead-letters",
    "aos.alerts",
    "aos.settings",
)

ASKED_CHARS_MAX = 200  # of a request's text, unless payloads are stored


@dataclass(slots=True)
class State:
    """Rows since the last `take`: by topic, in log order, with the offset of their message."""

    waiting: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    places: dict[str, list[tuple[int, int]]] = field(
        default_factory=dict
    )  # (partition, offset) of each batch
    payloads: bool = False


def initial(partition: int) -> State:
    return State()


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Keep what SQL wants of a message; nothing is sent."""
    state.payloads = bool(views.settings is not None and views.settings.store_payloads)
    add(state, batch.topic, batch.partition, batch.offset, batch.rows)
    return Step(state)


def add(state: State, topic: str, partition: int, offset: int, rows: pa.RecordBatch) -> None:
    """The same without the ceremony, for the sink."""
    if topic == "aos.ledger":
        rows = _ledger(rows, state.payloads)
    elif topic in _USED:
        rows = rows.select(_USED[topic])
    if rows.num_rows:
        state.waiting.setdefault(topic, []).append(rows)
        state.places.setdefault(topic, []).append((partition, offset))


def take(state: State) -> dict[str, pa.Table]:
    """The rows by table, ready for SQL, without duplicates of a key; the state is empty afterwards."""
    found: dict[str, pa.Table] = {}
    for topic, batches in state.waiting.items():
        rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        sizes = [batch.num_rows for batch in batches]
        for table, columns in _PARTS[topic](rows, _places(state.places[topic], sizes), state.payloads):
            if columns is not None:
                found[table.name] = _distinct(table, holdable(table, columns))
    state.waiting, state.places = {}, {}
    return {name: rows for name, rows in found.items() if rows.num_rows}


Parts = list[tuple[Table, Columns | None]]
Places = Mapping[str, np.ndarray]


def _places(places: list[tuple[int, int]], sizes: list[int]) -> Places:
    """Log offset and row in the message of every row."""
    offsets = np.repeat(np.array([offset for _, offset in places], np.int64), sizes)
    rows = np.concatenate([np.arange(length, dtype=np.int32) for length in sizes])
    return {"log_offset": offsets, "log_row": rows}


def _ledger(rows: pa.RecordBatch, payloads: bool) -> pa.RecordBatch:
    """Requested, rejected and context entries (and answers with a payload, if asked for): one row in four."""
    kind = rows.column("kind")
    wanted = pc.is_in(kind, options=_ASKED)
    if payloads:
        answered = pc.and_(pc.equal(kind, "outcome"), pc.is_valid(rows.column("payload")))
        wanted = pc.or_(wanted, answered)
    rows = rows.select(_LEDGER_COLUMNS)
    count = wanted.true_count
    if count == rows.num_rows:
        return rows
    return rows.filter(wanted) if count else rows.slice(0, 0)  # most messages have none or only such rows


_ASKED = pc.SetLookupOptions(pa.array(["requested", "rejected", "context"]))
_LEDGER_COLUMNS = [
    "tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round", "kind", "id", "priority",
    "deadline_at", "budget_usd_micros", "budget_cpu_us", "policy", "task_kind", "steps", "step", "attempt", "agent",
    "payload", "content_type", "code", "message", "parent_id", "depth", "context_version",
]  # fmt: skip


def _made_of(record: str, tables: Sequence[str], *more: str) -> list[str]:
    """The columns of a record that some tables have or are made of; embeddings need not be copied."""
    wanted = {column.name for name in tables for column in TABLES[name].columns}.union(more)
    return [field.name for field in RECORDS[record].fields if field.name in wanted]


_KEYED = ("attempt", "step_name", "agent")  # what `_experiences` makes more columns of
_WANTED = {name: _made_of("experience", [name], *_KEYED) for name in ("attempt", "result", "note")}
_USED = {
    "aos.decisions": _made_of("decision", ["decision"], "candidates", "filtered"),
    "aos.experiences": _made_of("experience", list(_WANTED), "kind", *_KEYED),
}


def _requests(rows: pa.RecordBatch, places: Places, payloads: bool) -> Parts:
    kinds = rows.column("kind")
    found: Parts = []
    if payloads:
        found.append((TABLES["payload"], _payloads(rows, places)))
        keep = pc.not_equal(kinds, "outcome")
        rows = rows.filter(keep)
    if rows.column("context_version").null_count < rows.num_rows:  # nobody else has one by now
        changed = pc.is_valid(rows.column("context_version"))
        found.append((TABLES["context"], _contexts(rows.filter(changed))))
        rows = rows.filter(pc.invert(changed))
    if not rows.num_rows:
        return found
    steps = rows.column("steps")
    counts = lengths(steps)
    offsets = ends(counts)
    flat = steps.flatten()
    names, kinds_of, texts = (
        flat.field(flat.type.get_field_index(name)) for name in ("name", "task_kind", "text")
    )
    if (counts == 1).all():
        asked = texts
    else:
        asked = pc.take(texts, pa.array(np.where(counts > 0, offsets[:-1], 0), mask=counts == 0))
    if not payloads and longest(asked) > ASKED_CHARS_MAX:
        asked = pc.utf8_slice_codeunits(asked, 0, ASKED_CHARS_MAX)
    if kinds_of.null_count:
        kinds_of = pc.fill_null(kinds_of, "")
    columns = _same(rows)
    columns |= {
        "steps_count": pa.array(counts.astype(np.int16)),
        "step_names": lists_of(names, offsets),
        "step_kinds": lists_of(kinds_of, offsets),
        "text": asked,
    }
    return [*found, (TABLES["request"], columns)]


def _contexts(rows: pa.RecordBatch) -> Columns:
    """Versions of contexts; what is no text cannot be one, and the edge lets only JSON in."""
    return {**_same(rows), "context": rows.column("payload").cast(TEXT)}


def _payloads(rows: pa.RecordBatch, places: Places) -> Columns | None:
    """Input bytes of every step and output bytes of every answer that has some."""
    steps = rows.column("steps")
    parents = pc.list_parent_indices(steps)
    flat = steps.flatten()
    body = flat.field(flat.type.get_field_index("payload"))
    counts = lengths(steps)
    number = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    given = pc.is_valid(body)
    asked = rows.take(parents).filter(given)
    offsets, ordinals = pa.array(places["log_offset"]), pa.array(places["log_row"])
    parts = [
        {
            **_same(asked),
            "direction": pa.array(["in"] * asked.num_rows, TEXT),
            "step": pa.array(number.astype(np.int16)).filter(given),
            "attempt": pa.array(np.zeros(asked.num_rows, np.int16)),
            "body": body.filter(given),
            "content_type": flat.field(flat.type.get_field_index("content_type")).filter(given),
            "log_offset": offsets.take(parents).filter(given),
            "log_row": ordinals.take(parents).filter(given),
        }
    ]
    answered = pc.equal(rows.column("kind"), "outcome")
    answers = rows.filter(answered)
    parts.append(
        {
            **_same(answers),
            "direction": pa.array(["out"] * answers.num_rows, TEXT),
            "body": answers.column("payload"),
            "log_offset": offsets.filter(answered),
            "log_row": ordinals.filter(answered),
        }
    )
    table = TABLES["payload"]
    joined = pa.concat_batches([typed(table, part) for part in parts])
    return _same(joined) if joined.num_rows else None


def _decisions(rows: pa.RecordBatch, places: Places, payloads: bool) -> Parts:
    columns = _same(rows)
    for column, prefix in (("candidates", "candidate_"), ("filtered", "filtered_")):
        lists = rows.column(column)
        offsets = ends(lengths(lists))
        flat = lists.flatten()
        for index, part in enumerate(flat.type):
            columns[f"{prefix}{part.name}s"] = lists_of(flat.field(index), offsets)
    return [(TABLES["decision"], columns)]


ATTEMPT, RESULT, TICK, NOTE = range(4)  # ticks are learn's clock
_KINDS = pc.SetLookupOptions(pa.array(["attempt", "request", "tick"]))


def _experiences(rows: pa.RecordBatch, places: Places, payloads: bool) -> Parts:
    """Attempts, ends of requests, and all else (corrections, foreign events, ignored answers) as notes."""
    kinds = pc.index_in(rows.column("kind"), options=_KINDS).to_numpy(zero_copy_only=False)
    kinds = np.nan_to_num(kinds, nan=NOTE).astype(np.int8)
    found: Parts = []
    for table, number in (("attempt", ATTEMPT), ("result", RESULT), ("note", NOTE)):
        places_of = np.flatnonzero(kinds == number)
        if len(places_of):
            part = rows.select(_WANTED[table])
            columns = _same(part if len(places_of) == len(part) else part.take(pa.array(places_of)))
            columns["attempts"] = columns["attempt"]
            for name, key in (("step_name", "step_name"), ("agent", "agent_key")):
                columns[key] = pc.fill_null(columns[name], "") if columns[name].null_count else columns[name]
            found.append((TABLES[table], columns))
    return found


def _whole(name: str) -> Callable[[pa.RecordBatch, Places, bool], Parts]:
    """Tables that have the record's own columns."""

    def part(rows: pa.RecordBatch, places: Places, payloads: bool) -> Parts:
        columns = _same(rows)
        if name == "dead_letter" and not payloads:
            columns["body"] = pa.nulls(rows.num_rows, pa.binary())
        if TABLES[name].replaced_by or name == "setting":
            columns["log_offset"] = pa.array(places["log_offset"])
        return [(TABLES[name], columns)]

    return part


_PARTS: dict[str, Callable[[pa.RecordBatch, Places, bool], Parts]] = {
    "aos.ledger": _requests,
    "aos.decisions": _decisions,
    "aos.experiences": _experiences,
    "aos.agent-states": _whole("agent"),
    "aos.beliefs": _whole("belief"),
    "aos.patterns": _whole("pattern"),
    "aos.strategies": _whole("strategy"),
    "aos.dead-letters": _whole("dead_letter"),
    "aos.alerts": _whole("alert"),
    "aos.settings": _whole("setting"),
}


def _same(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(rows.schema.names, rows.columns, strict=True))


def _distinct(table: Table, rows: pa.Table) -> pa.Table:
    """One row a key: the first in the log; of a view the last message of its key, whole."""
    if rows.num_rows < 2 or _surely_distinct(rows, table.replaced_by or table.once or table.key):
        return rows
    if not table.replaced_by:
        return _first_of(rows, table.once or table.key)
    messages, rows_of = _tuples(rows, table.replaced_by), _tuples(rows, table.key)
    offsets = rows.column("log_offset").to_pylist()
    newest: dict[tuple[object, ...], int] = {}
    for message, offset in zip(messages, offsets, strict=True):
        newest[message] = max(offset, newest.get(message, offset))
    last: dict[tuple[object, ...], int] = {}
    for place, (message, row, offset) in enumerate(zip(messages, rows_of, offsets, strict=True)):
        if offset == newest[message]:
            last[row] = place
    return rows if len(last) == rows.num_rows else rows.take(pa.array(sorted(last.values())))


def _tuples(rows: pa.Table, names: tuple[str, ...]) -> list[tuple[object, ...]]:
    return list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))


def _first_of(rows: pa.Table, key: tuple[str, ...]) -> pa.Table:
    """The first row of each key, in log order."""
    numbered = rows.select(list(key)).append_column("__place", pa.array(np.arange(rows.num_rows)))
    kept = numbered.group_by(list(key), use_threads=False).aggregate([("__place", "min")])
    if kept.num_rows == rows.num_rows:
        return rows
    return rows.take(pa.array(np.sort(kept.column("__place_min").to_numpy())))


def _surely_distinct(rows: pa.Table, key: tuple[str, ...]) -> bool:
    """Whether all keys differ, told by a sum over their numbers alone: False may mean that it cannot tell."""
    sums = np.zeros(rows.num_rows, np.uint64)
    for name in key:
        values = rows.column(name).chunk(0)
        if values.null_count or values.type not in _WORDS:
            continue
        count, format = _WORDS[values.type]
        start, end = values.offset * count, (values.offset + len(values)) * count
        words = np.frombuffer(values.buffers()[1], format)[start:end].astype(np.uint64)
        for number in range(count):
            sums = sums * _FACTOR + words[number::count]
    return bool(len(np.unique(sums)) == rows.num_rows)


_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and without a pattern
_WORDS: dict[pa.DataType, tuple[int, str]] = {
    ID: (2, "<u8"),
    TIME: (1, "<i8"),
    I64: (1, "<i8"),
    I32: (1, "<i4"),
    I16: (1, "<i2"),
}
