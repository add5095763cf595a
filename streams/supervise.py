"""supervise: owns the life of every task; it says when a step starts, is tried again, is done, how a request ends.

in: `aos.ledger` (record entry). out: ready rows to the lanes, releases, inbox rows, results, trails, tasks, alerts; to
    the ledger itself: what agents handed out, versions of the context of their members, a request that runs again.
key: request_id; partition = home. state: `agents.ledger_state.State`: requests in flight, memory of ended ones.
order: the log's; what is first counts (`agents.ledger`). duplicates: change nothing, outputs repeat their ids.
errors: AOS2004 … AOS2006, AOS2101 … AOS2104, AOS2201 … AOS2203, AOS3001 … AOS3015 in results, trails and inboxes.
cost: 68 us a request of 1.2 steps (4.6 rows) in waves of 512 requests, 86 of 128, 244 of 16 (8 messages a wave).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from aos.agents import ledger_rows
from aos.agents.ledger import fold
from aos.agents.ledger_dump import dump as dump_state
from aos.agents.ledger_dump import load as load_state
from aos.agents.ledger_emit import Turn
from aos.agents.ledger_intake import entries
from aos.agents.ledger_state import State
from aos.codecs.rows import from_dicts, record
from aos.codecs.topics import tenant_topic
from aos.streams.processor import Batch, Output, Recall, Step, Views

ROUND_NEXT = "round_next"
"""Column of a recall that asks to run the request again; without it the recall answers again."""


def initial(partition: int) -> State:
    """No requests."""
    return State(partition)


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Fold one message; the seed is not needed: waits vary by the hash of the attempt."""
    turn = Turn(state, now, batch.offset, views.settings, views.secret)
    fold(turn, entries(batch.rows))
    outputs = list(_outputs(turn, batch.rows))
    answers, recalls = _repeats(turn)
    return Step(state, [*outputs, *answers], state.next_due(), recalls=[*recalls, *_redrives(turn)])


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """Tables requests, steps, ended."""
    return dump_state(state)


def load(partition: int, tables: Mapping[str, pa.RecordBatch]) -> State:
    """The state of which `tables` is the dump."""
    return load_state(partition, tables)


def tick(partition: int, now: int) -> pa.RecordBatch:
    """The row that says only that time has passed."""
    row = {
        "tenant": "", "request_id": bytes(16), "requested_at": now, "home": partition, "domain": "", "round": 0,
        "kind": "tick",
    }  # fmt: skip
    return from_dicts("entry", [row])


def recall(asked: Recall, batches: Sequence[Batch], views: Views) -> Sequence[Output]:
    """Answer a repeated request with the payload of its first answer, or write a request to the ledger again.

    Where the log no longer has it, the answer says so (AOS3012) without payload, and a redrive is rejected.
    """
    kept = asked.rows
    if ROUND_NEXT in kept.schema.names:
        return [Output("aos.ledger", _again(kept, batches), asked.partition)]
    outcome = _row(batches, kept, "output_offset", "output_row")
    payload = None if outcome is None else outcome.column("payload")
    return [_answer(kept, asked.partition, payload)]


def _outputs(turn: Turn, rows: pa.RecordBatch) -> Iterable[Output]:
    """The turn's rows as record batches, each where it belongs; `rows` are those it folded."""
    home = turn.state.partition
    if turn.ready:
        for (topic, partition), said in ledger_rows.by_lane(turn.ready):
            yield Output(topic, said, partition)
    if turn.inbox:
        for (topic, partition), said in ledger_rows.by_service(turn.inbox):
            yield Output(topic, said, partition)
    if turn.releases:
        for (topic, partition), said in ledger_rows.by_cell(turn.releases):
            yield Output(topic, said, partition)
    if turn.results:
        results, kept = ledger_rows.by_tenant(turn.results)
        turn.state.memory.add(kept)
        for topic, said in results:
            yield Output(topic, said, home)
    if turn.trails:
        yield Output("aos.trails", ledger_rows.trail_rows(turn.trails), home)
    if turn.tasks:
        yield Output("aos.tasks", ledger_rows.task_rows(turn.tasks), home)
    if turn.entries:
        yield Output("aos.ledger", _entries(turn.entries, rows), home)
    if turn.alerts:
        yield Output("aos.alerts", from_dicts("alert", turn.alerts))


def _entries(said: Sequence[dict[str, Any]], rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows for the ledger itself; `steps` is the number of the row whose steps they take over."""
    taken = pa.array([entry.get("steps") for entry in said], pa.int64())
    made = from_dicts("entry", [{name: one[name] for name in one if name != "steps"} for one in said])
    place = made.schema.get_field_index("steps")
    return made.set_column(place, made.schema.field(place), rows.column("steps").take(taken))


def _repeats(turn: Turn) -> tuple[list[Output], list[Recall]]:
    """Repeated requests: those with a payload need the ledger read again, the others are answered at once."""
    outputs, recalls = [], []
    for request_id in dict.fromkeys(turn.repeats):
        kept = turn.state.memory.find(request_id)
        if kept is None:  # repeat_rows or repeat_window_s is 0: nothing is remembered
            continue
        offset = kept.column("output_offset")[0].as_py()
        if offset < 0:
            outputs.append(_answer(kept, turn.state.partition, pa.nulls(1, pa.binary())))
        else:
            recalls.append(Recall(turn.state.partition, (offset,), kept))
    return outputs, recalls


def _redrives(turn: Turn) -> Iterable[Recall]:
    """Ended requests that are to run again in their next round."""
    for request_id in dict.fromkeys(turn.redrives):
        kept = turn.state.memory.find(request_id)
        if kept is not None:
            following = pa.array([kept.column("round")[0].as_py() + 1], pa.int16())
            asked = kept.append_column(ROUND_NEXT, following)
            yield Recall(turn.state.partition, (kept.column("offset")[0].as_py(),), asked)


def _answer(kept: pa.RecordBatch, partition: int, payload: pa.Array | None) -> Output:
    """The result of a remembered request, marked as repeated."""
    schema = record("result").schema
    columns = {name: kept.column(name) for name in kept.schema.names}
    columns["repeated"] = pa.array([True])
    columns["payload"] = pa.nulls(1, pa.binary()) if payload is None else payload
    if payload is None:
        columns["code"] = pa.array(["AOS3012"])
    rows = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    return Output(tenant_topic("aos.results", kept.column("tenant")[0].as_py()), rows, partition)


def _again(kept: pa.RecordBatch, batches: Sequence[Batch]) -> pa.RecordBatch:
    """The request's first row with the next round's number; a rejection when the log no longer has it."""
    following = kept.column(ROUND_NEXT)
    found = _row(batches, kept, "offset", "row")
    if found is not None:
        return found.set_column(found.schema.get_field_index("round"), found.schema.field("round"), following)
    names = [f.name for f in record("entry").fields[:7]] + ["id", "task_kind"]
    row = {name: kept.column(name)[0].as_py() for name in names}
    gone = {"kind": "rejected", "round": following[0].as_py(), "code": "AOS3012"}
    return from_dicts("entry", [{**row, **gone}])


def _row(batches: Sequence[Batch], kept: pa.RecordBatch, offset: str, row: str) -> pa.RecordBatch | None:
    """The ledger row a remembered request points to, None when it was not read."""
    at, index = kept.column(offset)[0].as_py(), kept.column(row)[0].as_py()
    for batch in batches:
        if batch.offset == at and 0 <= index < batch.rows.num_rows:
            return batch.rows.slice(index, 1)
    return None
