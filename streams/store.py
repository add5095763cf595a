"""Decides which rows of SQL the logs become: whole messages in, one Arrow table a SQL table out.

in: `READS`, whole messages in log order. out: nothing on Kafka; `take` hands over the rows by table.
key: each table's `key`; the database keeps the first row of a key (`kept` FIRST) or the last one (LAST).
state: the rows since the last `take`, bounded by the sink's bundle.
order: within a partition; between topics none: no table refers to another. Duplicates change nothing.
errors: none of its own; what SQL could not hold is made holdable here (NUL, times out of range, long names).
cost: about 4 us a task at 3,000 tasks a bundle, 15 at 500, 60 at 100
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.fields import TEXT, TEXTS
from aos.streams.processor import Batch, Step, Views
from aos.streams.store_tables import TABLES, Table

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
)

# Names stand in B-tree keys, whose rows may have 2,704 bytes; texts are for reading.
NAME_CHARS_MAX = 120
TEXT_CHARS_MAX = 8_192
ASKED_CHARS_MAX = 200  # of a request's text, unless payloads are stored
ITEMS_MAX = 1_024  # of an array

# What a time may be: PostgreSQL's text form beyond year 9999 differs, and each odd time makes a chunk.
TIME_US_MIN, TIME_US_MAX = 0, 4_102_444_800_000_000  # 1970 to 2100

_NUL = "\x00"


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
    if rows.num_rows:
        state.waiting.setdefault(topic, []).append(rows)
        state.places.setdefault(topic, []).append((partition, offset))


def take(state: State) -> dict[str, pa.Table]:
    """The rows by table, ready for SQL, without duplicates of a key; the state is empty afterwards."""
    found: dict[str, pa.Table] = {}
    for topic, batches in state.waiting.items():
        rows = pa.Table.from_batches(batches).combine_chunks()
        lengths = [batch.num_rows for batch in batches]
        for table, columns in _PARTS[topic](rows, _places(state.places[topic], lengths), state.payloads):
            if columns is not None:
                found[table.name] = _distinct(table, _holdable(table, columns))
    state.waiting, state.places = {}, {}
    return {name: rows for name, rows in found.items() if rows.num_rows}


Columns = Mapping[str, pa.Array | pa.ChunkedArray]
Parts = list[tuple[Table, Columns | None]]
Places = Mapping[str, np.ndarray]


def _places(places: list[tuple[int, int]], lengths: list[int]) -> Places:
    """Log offset and row in the message of every row."""
    offsets = np.repeat(np.array([offset for _, offset in places], np.int64), lengths)
    rows = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return {"log_offset": offsets, "log_row": rows}


def _ledger(rows: pa.RecordBatch, payloads: bool) -> pa.RecordBatch:
    """Requested and rejected entries (and answers with a payload, if asked for): one row in four."""
    kind = rows.column("kind")
    wanted = pc.or_(pc.equal(kind, "requested"), pc.equal(kind, "rejected"))
    if payloads:
        answered = pc.and_(pc.equal(kind, "outcome"), pc.is_valid(rows.column("payload")))
        wanted = pc.or_(wanted, answered)
    return rows.select(_LEDGER_COLUMNS).filter(wanted)


_LEDGER_COLUMNS = [
    "tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round", "kind", "id", "priority",
    "deadline_at", "budget_usd_micros", "budget_cpu_us", "policy", "task_kind", "steps", "step", "attempt", "agent",
    "payload", "content_type", "code", "message",
]  # fmt: skip


def _requests(rows: pa.Table, places: Places, payloads: bool) -> Parts:
    kinds = rows.column("kind")
    found: Parts = []
    if payloads:
        found.append((TABLES["payload"], _payloads(rows, places)))
        keep = pc.not_equal(kinds, "outcome")
        rows = rows.filter(keep)
    steps = rows.column("steps").combine_chunks() if rows.num_rows else None
    if steps is None:
        return found
    counts = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(counts)
    flat = steps.flatten()
    names, kinds_of, texts = (
        flat.field(flat.type.get_field_index(name)) for name in ("name", "task_kind", "text")
    )
    first = pa.array(np.where(counts > 0, ends - counts, 0), mask=counts == 0)
    asked = pc.take(texts, first)
    columns = _same(rows)
    columns |= {
        "steps_count": pa.array(counts.astype(np.int16)),
        "step_names": _lists(names, counts),
        "step_kinds": _lists(pc.fill_null(kinds_of, ""), counts),
        "text": asked if payloads else pc.utf8_slice_codeunits(asked, 0, ASKED_CHARS_MAX),
    }
    return [*found, (TABLES["request"], columns)]


def _payloads(rows: pa.Table, places: Places) -> Columns | None:
    """Input bytes of every step and output bytes of every answer that has some."""
    steps = rows.column("steps").combine_chunks()
    parents = pc.list_parent_indices(steps)
    flat = steps.flatten()
    body = flat.field(flat.type.get_field_index("payload"))
    counts = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False).astype(np.int64)
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
            "log_offset": offsets.filter(answered.combine_chunks()),
            "log_row": ordinals.filter(answered.combine_chunks()),
        }
    )
    table = TABLES["payload"]
    joined = pa.concat_tables([_typed(table, part) for part in parts])
    return _same(joined) if joined.num_rows else None


def _decisions(rows: pa.Table, places: Places, payloads: bool) -> Parts:
    columns = _same(rows)
    for column, prefix in (("candidates", "candidate_"), ("filtered", "filtered_")):
        lists = rows.column(column).combine_chunks()
        counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = lists.flatten()
        for index, part in enumerate(flat.type):
            columns[f"{prefix}{part.name}s"] = _lists(flat.field(index), counts)
    return [(TABLES["decision"], columns)]


def _experiences(rows: pa.Table, places: Places, payloads: bool) -> Parts:
    """Attempts, ends of requests, and all else (corrections, foreign events, ignored answers) as notes."""
    kind = rows.column("kind")
    attempt, request = pc.equal(kind, "attempt"), pc.equal(kind, "request")
    other = pc.invert(pc.is_in(kind, pa.array(["attempt", "request", "tick"])))  # ticks are learn's clock
    found: Parts = []
    for table, mask in (
        ("attempt", attempt),
        ("result", request),
        ("note", other),
    ):
        part = rows.filter(mask)
        if part.num_rows:
            columns = _same(part)
            columns["attempts"] = part.column("attempt")
            columns["step_name"] = pc.fill_null(part.column("step_name"), "")
            columns["agent_key"] = pc.fill_null(part.column("agent"), "")
            found.append((TABLES[table], columns))
    return found


def _whole(name: str) -> Callable[[pa.Table, Places, bool], Parts]:
    """Tables that have the record's own columns."""

    def part(rows: pa.Table, places: Places, payloads: bool) -> Parts:
        columns = _same(rows)
        if name == "dead_letter" and not payloads:
            columns["body"] = pa.nulls(rows.num_rows, pa.binary())
        if TABLES[name].replaced_by:
            columns["log_offset"] = pa.array(places["log_offset"])
        return [(TABLES[name], columns)]

    return part


_PARTS: dict[str, Callable[[pa.Table, Places, bool], Parts]] = {
    "aos.ledger": _requests,
    "aos.decisions": _decisions,
    "aos.experiences": _experiences,
    "aos.agent-states": _whole("agent"),
    "aos.beliefs": _whole("belief"),
    "aos.patterns": _whole("pattern"),
    "aos.strategies": _whole("strategy"),
    "aos.dead-letters": _whole("dead_letter"),
    "aos.alerts": _whole("alert"),
}


def _same(rows: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
    return dict(zip(rows.schema.names, rows.columns, strict=True))


def _lists(values: pa.Array, counts: np.ndarray) -> pa.ListArray:
    """Lists of `counts` values each; at most ITEMS_MAX values go to SQL, the rest is cut by `_holdable`."""
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(counts)).astype(np.int32)), values)


def _typed(table: Table, columns: Columns) -> pa.Table:
    """The table's columns in its order; absent ones are null."""
    count = len(next(iter(columns.values())))
    arrays = [columns[c.name] if c.name in columns else pa.nulls(count, c.type) for c in table.columns]
    return pa.Table.from_arrays(
        [
            array if array.type == c.type else array.cast(c.type)
            for array, c in zip(arrays, table.columns, strict=True)
        ],
        names=[c.name for c in table.columns],
    )


def _holdable(table: Table, columns: Columns) -> pa.Table:
    """The rows with nothing in them that PostgreSQL refuses or an index cannot hold."""
    rows = _typed(table, columns).combine_chunks()
    for index, column in enumerate(table.columns):
        values = rows.column(index)
        if pa.types.is_string(column.type):
            clean = _text(values.combine_chunks(), TEXT_CHARS_MAX if column.long else NAME_CHARS_MAX)
        elif pa.types.is_timestamp(column.type):
            clean = _time(values.combine_chunks())
        elif column.type == TEXTS:
            clean = _texts(values.combine_chunks())
        else:
            continue
        if clean is not None:
            rows = rows.set_column(index, column.name, clean)
    return rows


def _text(values: pa.Array, chars_max: int) -> pa.Array | None:
    """Without NUL and not too long; None when nothing changes, which is nearly always."""
    clean = values
    if _has_nul(values):
        clean = pc.replace_substring(clean, _NUL, "\ufffd")
    longest = pc.max(pc.binary_length(clean)).as_py()
    if longest is not None and longest > chars_max:
        clean = pc.utf8_slice_codeunits(clean, 0, chars_max)
    return None if clean is values else clean


def _has_nul(values: pa.Array) -> bool:
    """Looks at the text bytes once, over all rows."""
    data = values.buffers()[2]
    return data is not None and b"\x00" in memoryview(data).tobytes()


def _texts(lists: pa.ListArray) -> pa.Array | None:
    flat = lists.flatten()
    clean = _text(flat, NAME_CHARS_MAX) if len(flat) else None
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(counts) and counts.max() > ITEMS_MAX:
        places = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        clean = (flat if clean is None else clean).filter(pa.array(places < ITEMS_MAX))
        counts = np.minimum(counts, ITEMS_MAX)
    return None if clean is None else _lists(clean, counts)


def _time(values: pa.Array) -> pa.Array | None:
    whole = values.cast(pa.int64())
    bounds = pc.min_max(whole).as_py()
    if bounds["min"] is None or (bounds["min"] >= TIME_US_MIN and bounds["max"] <= TIME_US_MAX):
        return None
    clamped = pc.max_element_wise(
        pc.min_element_wise(whole, TIME_US_MAX, skip_nulls=False), TIME_US_MIN, skip_nulls=False
    )
    return clamped.cast(values.type)


def _distinct(table: Table, rows: pa.Table) -> pa.Table:
    """One row a key: the first in the log; of a view the last message of its key, whole."""
    if rows.num_rows < 2:
        return rows
    if not table.replaced_by:
        return _one_of(rows, table.once or table.key, "min")
    keys = list(table.replaced_by)
    placed = rows.select([*keys, "log_offset"]).append_column("__place", pa.array(np.arange(rows.num_rows)))
    newest = placed.group_by(keys, use_threads=False).aggregate([("log_offset", "max")])
    joined = placed.join(newest, keys, join_type="inner", use_threads=False)
    last = joined.filter(pc.equal(joined.column("log_offset"), joined.column("log_offset_max")))
    return _one_of(rows.take(pa.array(np.sort(last.column("__place").to_numpy()))), table.key, "max")


def _one_of(rows: pa.Table, key: tuple[str, ...], choose: str) -> pa.Table:
    """The first (`min`) or last (`max`) row of each key, in log order."""
    numbered = rows.select(list(key)).append_column("__place", pa.array(np.arange(rows.num_rows)))
    kept = numbered.group_by(list(key), use_threads=False).aggregate([("__place", choose)])
    if kept.num_rows == rows.num_rows:
        return rows
    return rows.take(pa.array(np.sort(kept.column(f"__place_{choose}").to_numpy())))
