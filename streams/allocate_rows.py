"""Columns of allocate: ready rows taken apart, decisions and ledger rows put together.

Decides nothing. A `Block` is one message of ready rows: Python lists where the choice looks at single rows, Arrow
columns where whole rows are handed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.agents.allocating import arms, chances, with_floor
from aos.agents.lanes import Waiting
from aos.agents.load import Slot, Told, key_of
from aos.codecs.errors import RecordError
from aos.codecs.fields import TIME
from aos.codecs.rows import empty, from_columns, record
from aos.streams.processor import Output

DECISIONS = "aos.decisions"
LEDGER = "aos.ledger"
LEARNED = "learned"
REST_ROWS = 32  # a call for one row costs 100 us, for 32 rows 300
_COPIED = (
    "tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round", "step", "step_name", "attempt",
    "task_kind", "filtered", "filtered_count", "model_version", "settings_version", "degraded",
)  # fmt: skip
_CANDIDATES = record("decision")["candidates"].type
_JOURNAL_ONLY = ("step_name", "task_kind", "policy")
_SAID = tuple(name for name in Told._fields if name not in (*_JOURNAL_ONLY, "probability", "code", "message"))


class Decided(NamedTuple):
    """What became of row `row` of a block: the alternative `choice` (-1: refused, for `violated`)."""

    row: int
    choice: int
    probability: float
    draw: float
    overridden: bool
    masked: list[bool]
    violated: str | None


class Block:
    """Ready rows with the chances of their alternatives; row i has the flat alternatives start[i] to start[i + 1].

    `exploration` and `floor`, one number a row, are those of the strategy in force when the rows came: kept, so that
    a row has the same chances before and after a restart.
    """

    def __init__(self, rows: pa.RecordBatch, exploration: np.ndarray, floor: np.ndarray) -> None:
        self.rows = rows
        self.exploration = exploration
        self.floor = floor
        alternatives = rows.column("alternatives")
        self.flat: pa.StructArray = alternatives.flatten()
        counts = alternatives.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(counts)])
        self.start: list[int] = ends.tolist()
        self._ends = ends
        present = np.arange(counts.max(initial=0)) < counts[:, None]
        mean, deviation = self._matrix("score", present), self._matrix("deviation", present)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            raise RecordError("AOS1005", "an alternative's score or deviation")
        self._present, self._mean, self._wide = present, mean, deviation * exploration[:, None]
        self._trial = self._matrix("trial", present) > 0
        chance = with_floor(chances(mean, self._wide, present), self._trial, present, floor)
        self.chance: list[float] = chance[present].tolist()
        self.arm: list[int] = arms(mean, deviation, present)[present].tolist()
        self.agents: list[str] = self.flat.field("agent").to_pylist()
        self._rest: dict[int, tuple[list[int], list[float]]] = {}  # row -> (free ones, their chances)
        self.slots: list[Slot] = []  # of the flat alternatives; filled by whoever has the load
        self.tenants: list[str] = rows.column("tenant").to_pylist()
        self.domains: list[str] = rows.column("domain").to_pylist()
        self.kinds: list[str | None] = rows.column("task_kind").to_pylist()
        self.policies: list[str | None] = rows.column("policy").to_pylist()
        self.running: list[bool] = rows.column("running").to_pylist()
        self.ready_at: list[int] = rows.column("ready_at").cast(pa.int64()).to_pylist()
        self.keys = keys_of(rows)

    def __len__(self) -> int:
        return len(self.keys)

    def rest(self, index: int, free: Sequence[int]) -> list[float]:
        """Chances of row `index` when only the alternatives `free` are there; zeros for the others.

        The rows behind it are computed with it, for the slots as they are now: mostly they will ask the same.
        """
        known = self._rest.get(index)
        if known is None or known[0] != free:
            part = slice(index, index + REST_ROWS)
            taken = np.zeros(self._present[part].shape, bool)
            first = self.start[index]
            slots = self.slots[first : self.start[min(index + REST_ROWS, len(self))]]
            taken[self._present[part]] = [slot.load >= slot.limit for slot in slots]
            here, trial = self._present[part] & ~taken, self._trial[part] & ~taken
            found = chances(self._mean[part], self._wide[part], here)
            found = with_floor(found, trial, here, self.floor[part])
            for row, (chance, yes) in enumerate(zip(found.tolist(), here, strict=True), index):
                self._rest[row] = (np.nonzero(yes)[0].tolist(), chance)
        return self._rest[index][1]

    def _matrix(self, name: str, present: np.ndarray) -> np.ndarray:
        """A column of the alternatives as [rows, alternatives], zeros where there is none."""
        matrix = np.zeros(present.shape)
        matrix[present] = self.flat.field(name).to_numpy(zero_copy_only=False)
        return matrix


def keys_of(rows: pa.RecordBatch) -> list[bytes]:
    """The attempts' keys of ready, release or decision rows."""
    columns = (rows.column(name).to_pylist() for name in ("request_id", "round", "step", "attempt"))
    return list(map(key_of, *columns))


def gather(rows: Iterable[Waiting[Block]]) -> tuple[pa.RecordBatch, np.ndarray, np.ndarray]:
    """Waiting rows of any blocks in their order, with exploration and floor, as arguments of one new `Block`."""
    order: dict[int, list[tuple[int, Waiting[Block]]]] = {}
    for position, row in enumerate(rows):
        order.setdefault(id(row.block), []).append((position, row))
    if not order:
        return empty("ready"), np.zeros(0), np.zeros(0)
    parts, exploration, floor, positions = [], [], [], []
    for group in order.values():
        block = group[0][1].block
        indices = np.array([row.index for _, row in group])
        parts.append(block.rows.take(pa.array(indices)))
        exploration.append(block.exploration[indices])
        floor.append(block.floor[indices])
        positions += [position for position, _ in group]
    back = np.argsort(np.array(positions))
    together = pa.concat_batches(parts).take(pa.array(back))
    return together, np.concatenate(exploration)[back], np.concatenate(floor)[back]


def decision_rows(
    block: Block, decided: Sequence[Decided], partition: int, epoch: int, now: int
) -> tuple[pa.RecordBatch, list[Told]]:
    """The journal's rows of what was decided of one block, and what the ledger is told of each."""
    count = len(decided)
    indices = np.array([item.row for item in decided])
    all_in_order = count == len(block) and bool((indices == np.arange(count)).all())
    taken = block.rows if all_in_order else block.rows.select(list(_COPIED)).take(pa.array(indices))
    columns: dict[str, object] = {name: taken.column(name) for name in _COPIED}
    assigned = [item.choice >= 0 for item in decided]
    last = (
        len(block.agents) - 1
    )  # a refused row may have no alternatives: any one stands for it, masked below
    chosen = [min(block.start[item.row] + max(item.choice, 0), last) for item in decided]
    at = pa.array([position if position >= 0 else None for position in chosen], pa.int64())
    mask = None if all(assigned) else pa.array(assigned)

    def of_chosen(name: str) -> pa.Array:
        values = block.flat.field(name).take(at)
        return values if mask is None else pc.if_else(mask, values, pa.scalar(None, values.type))

    columns |= {name: of_chosen(name) for name in ("agent", "service", "timeout_ms")}
    columns["kind"] = ["assigned" if yes else "refused" for yes in assigned]
    columns["score_predicted"] = of_chosen("score")
    columns["latency_predicted_us"] = of_chosen("latency_us")
    columns["trial"] = of_chosen("trial").fill_null(False)
    columns["cell"] = _cells(block, decided, at) if mask is not None else of_chosen("cell")
    columns["cell_partition"] = np.full(count, partition, np.int32)
    columns["epoch"] = np.full(count, epoch, np.int64)
    columns["policy"] = [block.policies[item.row] or LEARNED for item in decided]
    columns["probability"] = [item.probability for item in decided]
    columns["draw"] = [item.draw for item in decided]
    columns["overridden"] = [item.overridden for item in decided]
    columns["violated"] = [item.violated for item in decided]
    columns["candidates"] = _candidates(block, decided, indices, all_in_order)
    columns["waited_us"] = [max(0, now - block.ready_at[item.row]) for item in decided]
    columns["decided_at"] = np.full(count, now, np.int64)
    rows = from_columns("decision", count, columns)
    return rows, told_of(rows)


def _cells(block: Block, decided: Sequence[Decided], at: pa.Array) -> list[str]:
    """Each row's cell: that of its alternatives, empty when it has none."""
    cells = block.flat.field("cell").take(at).to_pylist()
    has_one = [block.start[item.row + 1] > block.start[item.row] for item in decided]
    return [cell if yes else "" for cell, yes in zip(cells, has_one, strict=True)]


def _candidates(
    block: Block, decided: Sequence[Decided], indices: np.ndarray, all_in_order: bool
) -> pa.ListArray:
    starts, ends = block._ends[indices], block._ends[indices + 1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    masked = [flag for item in decided for flag in item.masked]
    names = ("agent", "score", "deviation")
    fields = [block.flat.field(name) for name in names]
    chance = np.array(block.chance, np.float32)
    if not all_in_order:
        flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        fields = [field.take(pa.array(flat)) for field in fields]
        chance = chance[flat]
    values = [*fields, pa.array(chance), pa.array(masked, pa.bool_())]
    items = pa.StructArray.from_arrays(values, fields=list(_CANDIDATES.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items, type=_CANDIDATES)


def told_of(decisions: pa.RecordBatch) -> list[Told]:
    """What the ledger is told of each decision row."""
    lists = {
        name: _plain(decisions.column(name)).to_pylist()
        for name in Told._fields
        if name not in ("code", "message")
    }
    lists["message"] = decisions.column("violated").to_pylist()
    refused = [kind == "refused" for kind in lists["kind"]]
    lists["code"] = [
        None if not no else "AOS3010" if agent is None else "AOS3009"
        for no, agent in zip(refused, lists["agent"], strict=True)
    ]
    lists["probability"] = [
        None if no else value for no, value in zip(refused, lists["probability"], strict=True)
    ]
    return list(map(Told, *(lists[name] for name in Told._fields)))


def gone_rows(told: Sequence[Told], now: int) -> pa.RecordBatch:
    """Journal rows of attempts whose agent went away after it was assigned."""
    count = len(told)
    columns: dict[str, object] = {
        name: [getattr(item, name) for item in told]
        for name in Told._fields
        if name not in ("code", "message", "probability")
    }
    columns["violated"] = [item.message for item in told]
    for name, value in (("probability", 0.0), ("draw", 0.0), ("overridden", False), ("trial", False)):
        columns[name] = [value] * count
    columns["candidates"] = columns["filtered"] = [[]] * count
    columns["filtered_count"] = columns["waited_us"] = [0] * count
    columns["decided_at"] = [now] * count
    return from_columns("decision", count, columns)


def ledger_outputs(told: Sequence[Told]) -> list[Output]:
    """Rows of the ledger, each at its request's home."""
    homes: dict[int, list[Told]] = {}
    for item in told:
        homes.setdefault(item.home, []).append(item)
    outputs = []
    for home, items in homes.items():
        columns = dict(zip(Told._fields, map(list, zip(*items, strict=True)), strict=True))
        for name in _JOURNAL_ONLY:
            del columns[name]
        outputs.append(Output(LEDGER, from_columns("entry", len(items), columns), home))
    return outputs


def ledger_entries(decisions: Sequence[pa.RecordBatch]) -> list[Output]:
    """The same for whole batches of fresh decisions, by columns."""
    outputs = []
    for rows in decisions:
        homes = pc.unique(rows.column("home")).to_pylist()
        for home in homes:
            part = rows if len(homes) == 1 else rows.filter(pc.equal(rows.column("home"), home))
            refused = pc.equal(part.column("kind"), "refused")
            columns = {name: part.column(name) for name in _SAID}
            columns["message"] = part.column("violated")
            columns["code"] = pc.if_else(refused, "AOS3010", pa.scalar(None, pa.string()))
            nothing = pa.scalar(None, pa.float32())
            columns["probability"] = pc.if_else(refused, nothing, part.column("probability"))
            outputs.append(Output(LEDGER, from_columns("entry", len(part), columns), home))
    return outputs


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(pa.int64()) if column.type == TIME else column
