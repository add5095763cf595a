"""What allocate remembers of one partition, and that as Arrow.

Bounded by: slots of the cell (attempts), `lanes.ROWS_MAX` a lane and one message (waiting), `load.ENDED_MAX` (ended),
agents seen, tenants, `allocating.ROTATIONS_MAX`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from aos.agents.allocating import Rotation
from aos.agents.lanes import Lanes, Waiting
from aos.agents.load import KEY_BYTES, Attempt, Load, Told
from aos.codecs.fields import BOOL, F64, I8, I64, TEXT
from aos.codecs.rows import record
from aos.streams.allocate_rows import Block, gather

KEY = pa.binary(KEY_BYTES)
_TOLD = [
    pa.field(name, record("decision" if name in ("step_name", "policy") else "entry")[name].type)
    for name in Told._fields
]
_READY = record("ready").schema
_WAITING = pa.schema([*_READY, pa.field("lane", I8), pa.field("exploration", F64), pa.field("floor", F64)])
_META = pa.schema([("epoch_seen", I64), ("sequence", I64), ("turns", I64), ("full", pa.list_(I8))])
_ATTEMPTS = pa.schema([*_TOLD, pa.field("adopted", BOOL), pa.field("gone", TEXT)])
_ENDED = pa.schema([("key", KEY), ("refused", BOOL)])
_REFUSALS = pa.schema(_TOLD)
_AGENTS = pa.schema([("agent", TEXT), ("served", F64), ("turn", I64)])
_TENANTS = pa.schema([("lane", I8), ("tenant", TEXT), ("clock", F64)])
_CLOCKS = pa.schema([("lane", I8), ("clock", F64)])
_ROTATION = pa.schema([("domain", TEXT), ("task_kind", TEXT), ("last", TEXT)])
_UNSENT = pa.schema([("key", KEY)])
_UNCHARGED = pa.schema([("lane", I8), ("tenant", TEXT)])


class State:
    """One partition. `epoch` is this owner's, one above the largest that was ever decided with (`epoch_seen`)."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.load = Load(partition)
        self.lanes: Lanes[Block] = Lanes()
        self.rotation = Rotation()
        self.epoch_seen = 0
        self.epoch = 1
        self.turns = 0  # decisions so far
        self.block_rows = 0  # rows of the blocks that waiting rows stand in
        self.unsent: dict[bytes, None] = {}  # adopted: the ledger may not know
        self.uncharged: list[tuple[int, str]] = []  # adopted: lane and tenant whose clock must go on


def batches_of(state: State) -> dict[str, pa.RecordBatch]:
    """The state by name; rows stand in an order that the state itself has."""
    load, lanes = state.load, state.lanes
    waiting = list(lanes.rows.values())
    rows, exploration, floor = gather(waiting)
    full = [lane.number for lane in lanes.lanes if lane.full]
    agents = sorted(load.slots.values(), key=lambda slot: slot.agent)
    agents = [slot for slot in agents if slot.turn]
    tenants = [(lane.number, *item) for lane in lanes.lanes for item in sorted(lane.clocks.items())]
    return {
        "meta": _batch(_META, [(state.epoch_seen, lanes.sequence, state.turns, full)]),
        "waiting": pa.RecordBatch.from_arrays(
            [
                *rows.columns,
                pa.array([row.lane for row in waiting], I8),
                pa.array(exploration),
                pa.array(floor),
            ],
            schema=_WAITING,
        ),
        "attempts": _batch(_ATTEMPTS, [_attempt_row(attempt) for attempt in load.attempts.values()]),
        "ended": _batch(_ENDED, [(key, told is not None) for key, told in load.ended.items()]),
        "refusals": _batch(_REFUSALS, [told for told in load.ended.values() if told is not None]),
        "agents": _batch(_AGENTS, [(slot.agent, slot.served, slot.turn) for slot in agents]),
        "tenants": _batch(_TENANTS, tenants),
        "clocks": _batch(_CLOCKS, [(lane.number, lane.clock) for lane in lanes.lanes]),
        "rotation": _batch(_ROTATION, [(*subject, last) for subject, last in state.rotation.last.items()]),
        "unsent": _batch(_UNSENT, [(key,) for key in state.unsent]),
        "uncharged": _batch(_UNCHARGED, state.uncharged),
    }


def state_of(partition: int, batches: Mapping[str, pa.RecordBatch]) -> State:
    """The state that `batches_of` gave."""
    state = State(partition)
    load = state.load
    ((state.epoch_seen, state.lanes.sequence, state.turns, full),) = _rows(batches["meta"])
    state.epoch = state.epoch_seen + 1
    for agent, served, turn in _rows(batches["agents"]):
        slot = load.slot(agent)
        slot.served, slot.turn = served, turn
    for *values, adopted, gone in _rows(batches["attempts"]):
        told = Told(*values)
        assert told.agent is not None
        answers = [told] if gone is None else [told, as_gone(told, gone)]
        load.take(told.key, Attempt(load.slot(told.agent), told.epoch, answers, adopted))
    refusals = {told.key: told for told in (Told(*values) for values in _rows(batches["refusals"]))}
    load.ended = {key: refusals[key] if refused else None for key, refused in _rows(batches["ended"])}
    state.rotation.last = {(domain, kind): last for domain, kind, last in _rows(batches["rotation"])}
    state.unsent = {key: None for (key,) in _rows(batches["unsent"])}
    state.uncharged = [(lane, tenant) for lane, tenant in _rows(batches["uncharged"])]
    _load_lanes(state, batches, full)
    return state


def _load_lanes(state: State, batches: Mapping[str, pa.RecordBatch], full: list[int]) -> None:
    lanes = state.lanes
    rows = batches["waiting"]
    lanes.sequence -= len(rows)  # as many numbers as they are: those after them get higher ones
    if len(rows):
        ready = pa.RecordBatch.from_arrays(rows.columns[: len(_READY)], schema=_READY)
        block = Block(ready, rows.column("exploration").to_numpy(), rows.column("floor").to_numpy())
        state.block_rows = len(block)
        for index, lane in enumerate(rows.column("lane").to_pylist()):
            lanes.add(waiting_row(block, index, lane))
    for number, clock in _rows(batches["clocks"]):
        lanes.lanes[number].clock = clock
        lanes.lanes[number].full = number in full
        lanes.lanes[number].clocks.clear()
    for number, tenant, clock in _rows(batches["tenants"]):
        lanes.lanes[number].clocks[tenant] = clock


def waiting_row(block: Block, index: int, lane: int) -> Waiting[Block]:
    """Row `index` of a block as one that waits in a lane."""
    return Waiting(
        block.keys[index],
        lane,
        block.tenants[index],
        block.running[index],
        block.ready_at[index],
        block,
        index,
        block.wants[index],
    )


def as_gone(told: Told, reason: str) -> Told:
    """What the ledger is told when the agent of an assigned attempt went away."""
    return told._replace(
        kind="refused", probability=None, score_predicted=None, code="AOS3009", message=reason
    )


def _attempt_row(attempt: Attempt) -> tuple[Any, ...]:
    gone = attempt.answers[1].message if len(attempt.answers) > 1 else None
    return (*attempt.answers[0], attempt.adopted, gone)


def _batch(schema: pa.Schema, rows: list[Any]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rows(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """All rows as tuples; times as microseconds since the epoch."""
    columns = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    return list(zip(*columns, strict=True))
