"""Toy processors that show a broken shell: a fold whose state depends on order and clock, a journal that draws.

Run as a program it is a worker: ``python toys.py '<json>'`` (see `harness.Workers`).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from aos.streams.processor import Batch, Law, Output, Processor, Raw, Step, Views
from aos.streams.shell.codec import WireCodec

IN = pa.schema([("id", pa.int64()), ("value", pa.int64())])
OUT = pa.schema([("id", pa.int64()), ("total", pa.int64()), ("chain", pa.int64())])
ROW = pa.schema([("id", pa.int64()), ("slot", pa.int64())])
SCHEMAS = {
    "toy.in": IN, "toy.out": OUT,
    "toy.fast": IN, "toy.slow": IN, "toy.releases": IN, "toy.journal": ROW, "toy.acts": ROW,
    "toy.edge": IN, "toy.rows": IN, "toy.small": OUT,
}  # fmt: skip
SLOTS = 8
HEAP_MAX = 24
TICK = -1
CRASH = -666  # a row id on which the fold breaks half-way
SLOW = -777  # a row id on which the row processor takes long
DEADLY = -888  # a row id that ends the process, as a crash in native code does


class BadBytes(Exception):
    code = "AOS1001"


class ToyCodec(WireCodec):
    """Own schemas for toy topics, the real codec for what the shell itself writes."""

    def encode(self, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
        if topic not in SCHEMAS:
            return super().encode(topic, rows)
        assert rows.schema == SCHEMAS[topic], topic
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        return sink.getvalue().to_pybytes(), {}

    def decode(self, topic: str, value: bytes, headers: Mapping[str, bytes]) -> pa.RecordBatch:
        if topic not in SCHEMAS:
            return super().decode(topic, value, headers)
        try:
            with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
                rows = reader.read_next_batch()
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise BadBytes(str(error)) from error
        if rows.schema != SCHEMAS[topic]:
            raise BadBytes("wrong columns")
        return rows


def batch(schema: pa.Schema, *columns: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(c, pa.int64()) for c in columns], schema=schema)


# the fold: total, and a chain over ids, values and clock that any lost, repeated or reordered row changes


def fold_initial(partition: int) -> dict[str, Any]:
    return {"total": 0, "chain": partition + 1, "count": 0, "ticks": 0, "seen": {}}


def fold_step(state: dict[str, Any], given: Batch, now: int, views: Views, seed: int) -> Step[dict[str, Any]]:
    ids, totals, chains = [], [], []
    for id, value in zip(given.rows.column(0).to_pylist(), given.rows.column(1).to_pylist(), strict=True):
        if id == TICK:
            state["ticks"] += 1
            continue
        state["total"] += value
        if id == CRASH:
            raise ValueError("half-way")
        state["chain"] = (state["chain"] * 31 + id * 7 + value + now) % (2**61)
        state["count"] += 1
        state["seen"][id % 64] = value
        ids.append(id)
        totals.append(state["total"])
        chains.append(state["chain"])
    due = now + 150_000 if ids else None
    outputs = [Output("toy.out", batch(OUT, ids, totals, chains), given.partition)] if ids else []
    return Step(state, outputs, due)


def fold_dump(state: dict[str, Any]) -> dict[str, pa.RecordBatch]:
    numbers = [state[name] for name in ("total", "chain", "count", "ticks")]
    return {
        "numbers": pa.record_batch({"n": pa.array(numbers, pa.int64())}),
        "seen": pa.record_batch(
            {
                "key": pa.array(sorted(state["seen"]), pa.int64()),
                "value": pa.array([state["seen"][k] for k in sorted(state["seen"])], pa.int64()),
            }
        ),
    }


def fold_load(partition: int, batches: Mapping[str, pa.RecordBatch]) -> dict[str, Any]:
    total, chain, count, ticks = batches["numbers"].column(0).to_pylist()
    keys, values = (column.to_pylist() for column in batches["seen"].columns)
    return {
        "total": total, "chain": chain, "count": count, "ticks": ticks,
        "seen": dict(zip(keys, values, strict=True)),
    }  # fmt: skip


def fold_tick(partition: int, now: int) -> pa.RecordBatch:
    return batch(IN, [TICK], [0])


FOLD = Processor(
    "toy-fold", Law.FOLD, ("toy.in",), ("toy.out",), fold_initial, fold_step,
    dump=fold_dump, load=fold_load, tick=fold_tick,
)  # fmt: skip


# the journal: gives waiting ids one of a few slots by a draw that no replay can repeat


def journal_initial(partition: int) -> dict[str, Any]:
    return {"waiting": [], "active": {}, "done": {}, "unsent": []}


def journal_step(
    state: dict[str, Any], given: Batch, now: int, views: Views, seed: int
) -> Step[dict[str, Any]]:
    acts = []
    if given.tick:  # never muted, and the shell gives one after a replay before anything else
        acts = [(id, state["active"][id]) for id in state["unsent"] if id in state["active"]]
        state["unsent"] = []
    rows = given.rows.column(0).to_pylist() if given.rows.num_columns else []
    for id in rows:
        if given.topic == "toy.releases":
            state["done"][id] = state["active"].pop(id, state["done"].get(id, 0))
        elif id in state["active"]:
            acts.append((id, state["active"][id]))
        elif id not in state["done"] and (id // 10**6, id) not in state["waiting"]:
            heapq.heappush(state["waiting"], (id // 10**6, id))
    chosen = []
    while state["waiting"] and len(state["active"]) < SLOTS:
        _, id = heapq.heappop(state["waiting"])
        if id in state["active"] or id in state["done"]:
            continue
        free = sorted(set(range(SLOTS)) - set(state["active"].values()))
        state["active"][id] = free[os.urandom(1)[0] % len(free)]
        chosen.append((id, state["active"][id]))
    acts += chosen
    full = len(state["waiting"]) > HEAP_MAX
    return Step(
        state,
        [Output("toy.acts", batch(ROW, *map(list, zip(*acts, strict=True))), given.partition)]
        if acts
        else [],
        None,
        [Output("toy.journal", batch(ROW, *map(list, zip(*chosen, strict=True))), given.partition)]
        if chosen
        else [],
        paused=frozenset({"toy.fast", "toy.slow"} if full else ()),
    )


def journal_adopt(state: dict[str, Any], given: Batch) -> dict[str, Any]:
    for id, slot in zip(*(column.to_pylist() for column in given.rows.columns), strict=True):
        if id not in state["done"]:
            state["active"][id] = slot
            state["unsent"].append(id)
    return state


def journal_dump(state: dict[str, Any]) -> dict[str, pa.RecordBatch]:
    def pairs(items: Any) -> pa.RecordBatch:
        found = list(items)
        return batch(ROW, [a for a, _ in found], [b for _, b in found])

    return {
        "waiting": pairs((id, rank) for rank, id in sorted(state["waiting"])),
        "active": pairs(sorted(state["active"].items())),
        "done": pairs(sorted(state["done"].items())),
    }


def journal_load(partition: int, batches: Mapping[str, pa.RecordBatch]) -> dict[str, Any]:
    def pairs(name: str) -> list[tuple[int, int]]:
        return list(zip(*(column.to_pylist() for column in batches[name].columns), strict=True))

    waiting = [(rank, id) for id, rank in pairs("waiting")]
    heapq.heapify(waiting)
    return {"waiting": waiting, "active": dict(pairs("active")), "done": dict(pairs("done")), "unsent": []}


JOURNAL = Processor(
    "toy-journal", Law.JOURNAL, ("toy.fast", "toy.slow", "toy.releases"), ("toy.acts",),
    journal_initial, journal_step, dump=journal_dump, load=journal_load,
    journal="toy.journal", adopt=journal_adopt,
)  # fmt: skip


# the edge: gathers; the row processor: passes on to a topic that takes only small messages


def edge_step(state: None, given: Batch, now: int, views: Views, seed: int) -> Step[None]:
    rows = [_decode(raw) for raw in given.raws]
    return Step(None, [Output("toy.rows", pa.concat_batches(rows), given.partition)])


def _decode(raw: Raw) -> pa.RecordBatch:
    with pa.ipc.open_stream(raw.value) as reader:
        return reader.read_next_batch()


EDGE = Processor("toy-edge", Law.ROW, ("toy.edge",), ("toy.rows",), lambda p: None, edge_step, edge=True)


def row_step(state: None, given: Batch, now: int, views: Views, seed: int) -> Step[None]:
    ids = given.rows.column(0).to_pylist()
    return Step(None, [Output("toy.small", batch(OUT, ids, ids, ids), given.partition)])


ROWS = Processor("toy-row", Law.ROW, ("toy.rows",), ("toy.small",), lambda p: None, row_step)

STORE = Processor("toy-store", Law.SINK, ("toy.in", "toy.rows"), (), lambda p: None, row_step)

PROCESSORS = {p.name: p for p in (FOLD, JOURNAL, EDGE, ROWS, STORE)}
