"""Columns of allocate: ready rows taken apart, decisions and ledger rows put together.

Decides nothing. A `Block` is one message of ready rows: Python lists where the choice looks at single rows, Arrow
columns where whole rows are handed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.agents.allocating import Drawn, Draws, arms, chances, drawn_of, with_floor
from aos.agents.lanes import Waiting
from aos.agents.load import Slot, Told, keys_of
from aos.codecs.columns import fixed
from aos.codecs.errors import RecordError
from aos.codecs.fields import ID, TIME
from aos.codecs.rows import empty, from_columns, record
from aos.streams.processor import Output

DECISIONS = "aos.decisions"
LEDGER = "aos.ledger"
LEARNED = "learned"
REST_ROWS = 32  # a call for one row costs 100 us, for 32 rows 300
_COPIED = [
    "tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round", "step", "step_name", "attempt",
    "task_kind", "filtered", "filtered_count", "model_version", "settings_version", "degraded", "rung",
]  # fmt: skip
_CANDIDATES = record("decision")["candidates"].type
_CANDIDATE = list(_CANDIDATES.value_type)
_AT = {part.name: at for at, part in enumerate(record("ready")["alternatives"].type.value_type)}
_CHOSEN = {  # column of a decision <- field of the chosen alternative
    "agent": "agent", "service": "service", "timeout_ms": "timeout_ms", "score_predicted": "score",
    "latency_predicted_us": "latency_us", "trial": "trial", "cell": "cell",
}  # fmt: skip
_JOURNAL_ONLY = ("step_name", "task_kind", "policy")
_TOLD = tuple(name for name in Told._fields if name not in ("code", "message"))
_SAID = tuple(name for name in _TOLD if name not in _JOURNAL_ONLY)


class Decided(NamedTuple):
    """What became of row `row` of a block: the alternative `choice` (-1: refused, for `violated`); `masked` marks
    alternatives without a free slot, None when there are none."""

    row: int
    choice: int
    probability: float
    draw: float
    overridden: bool
    masked: list[bool] | None
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
        self.fields: list[pa.Array] = (
            alternatives.flatten().flatten()
        )  # of all alternatives, in the order of `_AT`
        counts = alternatives.value_lengths().to_numpy().astype(np.int64)
        self.ends = np.concatenate([[0], np.cumsum(counts)])
        self.start: list[int] = self.ends.tolist()
        present = np.arange(counts.max(initial=0)) < counts[:, None]
        mean, deviation = self._matrix("score", present), self._matrix("deviation", present)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            raise RecordError("AOS1005", "an alternative's score or deviation")
        self._present, self._mean, self._wide = present, mean, deviation * exploration[:, None]
        self._trial = self._matrix("trial", present) > 0
        first, of = _distinct(mean, deviation, exploration, counts)
        chance = chances(mean[first], self._wide[first], present[first])[of]
        self._chance = with_floor(chance, self._trial, present, floor)
        self._arm = arms(mean[first], deviation[first], present[first])[of]
        names = self.fields[_AT["agent"]].dictionary_encode()
        self.agents: list[str] = names.dictionary.to_pylist()  # each once
        self._names = names.indices.to_numpy()  # of the flat alternatives, in `agents`
        self._rest: dict[int, tuple[list[int], list[float]]] = {}  # row -> (free ones, their chances)
        self._drawn: tuple[int, list[Drawn]] | None = None  # the salt, and what was drawn with it
        self.slots: list[Slot] = []  # of the flat alternatives; see `give`
        self.tenants: list[str] = rows.column("tenant").to_pylist()
        self.domains: list[str] = rows.column("domain").to_pylist()
        self.kinds: list[str | None] = rows.column("task_kind").to_pylist()
        self.policies: list[str | None] = rows.column("policy").to_pylist()
        self.running: list[bool] = rows.column("running").to_pylist()
        self.ready_at: list[int] = _list(rows.column("ready_at"))
        self.keys = keys_of_rows(rows)
        self.wants = self._wants(present)

    def __len__(self) -> int:
        return len(self.keys)

    def give(self, slots: Sequence[Slot]) -> None:
        """Say which slots those of `agents` are."""
        several = np.empty(len(slots), object)
        several[:] = slots
        self.slots = several[self._names].tolist()

    def chance(self, index: int) -> list[float]:
        """The chances of row `index`."""
        return self._chance[index, : self.start[index + 1] - self.start[index]].tolist()  # type: ignore[no-any-return]

    def hopes(self, index: int) -> tuple[list[float], list[float]]:
        """The expected scores of row `index`, and those with a deviation (times the exploration) on top."""
        part = slice(0, self.start[index + 1] - self.start[index])
        mean = self._mean[index, part]
        return mean.tolist(), (mean + self._wide[index, part]).tolist()

    def flat_chance(self) -> np.ndarray:
        """The chances of the flat alternatives: float32."""
        flat: np.ndarray = self._chance[self._present].astype(np.float32)
        return flat

    def arm(self, index: int) -> list[int]:
        """The arms of row `index`."""
        return self._arm[index, : self.start[index + 1] - self.start[index]].tolist()  # type: ignore[no-any-return]

    def drawn(self, salt: int) -> list[Drawn]:
        """What each row draws when all its alternatives are free."""
        if self._drawn is None or self._drawn[0] != salt:
            u = Draws(salt).of_all(self.keys)
            self._drawn = salt, drawn_of(self._chance, self._arm, self._present, u)
        return self._drawn[1]

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

    def _wants(self, present: np.ndarray) -> list[tuple[frozenset[str], str | None, str | None]]:
        """Of each row who may do it, its kind and its policy: rows that agree in these are blocked together.

        A row can also be kept waiting by what is expected of those that are free; of rows of one kind that is much
        the same, and the first of them speaks for the others."""
        places = np.full(present.shape, -1, np.int32)
        places[present] = self._names
        places.sort(axis=1)
        known: dict[bytes, frozenset[str]] = {}
        wants = []
        for index, row in enumerate(places):
            agents = known.get(at := row.tobytes())
            if agents is None:
                agents = known[at] = frozenset(self.agents[place] for place in row if place >= 0)
            wants.append((agents, self.kinds[index], self.policies[index]))
        return wants

    def _matrix(self, name: str, present: np.ndarray) -> np.ndarray:
        """A column of the alternatives as [rows, alternatives], zeros where there is none."""
        matrix = np.zeros(present.shape)
        matrix[present] = self.fields[_AT[name]].to_numpy(zero_copy_only=False)
        return matrix


def _distinct(*columns: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The first of each kind of equal rows, and of each row which of those it equals: what is asked of new agents, or
    of agents that learned nothing about this task, is mostly the same for many rows."""
    rows = np.column_stack([column.astype(np.float64, copy=False) for column in columns])
    seen: dict[bytes, int] = {}
    values = rows.view(f"V{rows.shape[1] * 8}")[:, 0].tolist()
    like = [seen.setdefault(value, index) for index, value in enumerate(values)]
    first = list(seen.values())
    return first, np.searchsorted(first, like)


def keys_of_rows(rows: pa.RecordBatch) -> list[bytes]:
    """The attempts' keys of ready, release or decision rows."""
    numbers = [rows.column(name).to_pylist() for name in ("round", "step", "attempt")]
    return keys_of(fixed(rows.column("request_id")), *numbers)


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
    numbers, choices, probabilities, draws, overridden, masked, violated = zip(*decided, strict=True)
    indices = np.array(numbers)
    all_in_order = count == len(block) and bool((indices == np.arange(count)).all())
    taken = block.rows if all_in_order else block.rows.select(_COPIED).take(pa.array(indices))
    columns: dict[str, object] = {name: taken.column(name) for name in _COPIED}
    columns |= _chosen(block, indices, np.array(choices))
    columns["cell_partition"] = np.full(count, partition, np.int32)
    columns["epoch"] = np.full(count, epoch, np.int64)
    columns["policy"] = [block.policies[number] or LEARNED for number in numbers]
    columns["probability"] = probabilities
    columns["draw"] = draws
    columns["overridden"] = overridden
    if any(violated):
        columns["violated"] = violated
    columns["candidates"] = _candidates(block, indices, masked, all_in_order)
    columns["waited_us"] = [max(0, now - block.ready_at[number]) for number in numbers]
    columns["decided_at"] = np.full(count, now, np.int64)
    rows = from_columns("decision", count, columns)
    return rows, told_of(rows)


def _chosen(block: Block, indices: np.ndarray, choices: np.ndarray) -> dict[str, object]:
    """Columns about the chosen alternatives; -1 is none, a refused row, which has nothing but a cell."""
    at = block.ends[indices] + choices
    refused = choices < 0
    some = bool(refused.any())
    chosen = pa.array(at, mask=refused) if some else pa.array(at)
    found: dict[str, Any] = {name: block.fields[_AT[of]].take(chosen) for name, of in _CHOSEN.items()}
    found["kind"] = np.where(refused, "refused", "assigned").tolist() if some else ["assigned"] * len(at)
    if some:
        found["trial"] = found["trial"].fill_null(False)
        # an alternative of each row stands for its cell; a row without any has none
        none = block.ends[indices] == block.ends[indices + 1]
        first = pa.array(block.ends[indices] + np.maximum(choices, 0), mask=none)
        found["cell"] = block.fields[_AT["cell"]].take(first).fill_null("")
    return found


def _candidates(
    block: Block, indices: np.ndarray, masked: Sequence[list[bool] | None], all_in_order: bool
) -> pa.ListArray:
    starts, ends = block.ends[indices], block.ends[indices + 1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    fields = [block.fields[_AT[name]] for name in ("agent", "score", "deviation")]
    chance = block.flat_chance()
    if not all_in_order:
        flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        fields = [field.take(pa.array(flat)) for field in fields]
        chance = chance[flat]
    mask = np.zeros(offsets[-1], bool)
    for start, end, flags in zip(offsets.tolist(), offsets[1:].tolist(), masked, strict=False):
        if flags is not None:
            mask[start:end] = flags
    items = pa.StructArray.from_arrays([*fields, pa.array(chance), pa.array(mask)], fields=_CANDIDATE)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items, type=_CANDIDATES)


def told_of(decisions: pa.RecordBatch) -> list[Told]:
    """What the ledger is told of each decision row."""
    count = len(decisions)
    lists = {name: _list(decisions.column(name)) for name in _TOLD}
    lists["message"] = _list(decisions.column("violated"))
    lists["code"] = [None] * count
    if "refused" in lists["kind"]:
        refused = [kind == "refused" for kind in lists["kind"]]
        lists["code"] = [
            None if not no else "AOS3010" if agent is None else "AOS3009"
            for no, agent in zip(refused, lists["agent"], strict=True)
        ]
        lists["probability"] = [
            None if no else value for no, value in zip(refused, lists["probability"], strict=True)
        ]
    return list(map(Told._make, zip(*(lists[name] for name in Told._fields), strict=True)))


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
        homes = rows.column("home").to_pylist()
        for home in dict.fromkeys(homes):
            part = (
                rows if homes.count(home) == len(homes) else rows.filter(pc.equal(rows.column("home"), home))
            )
            columns = {name: part.column(name) for name in _SAID}
            columns["message"] = part.column("violated")
            if columns["message"].null_count < len(part):  # refused ones say why
                refused = pc.equal(part.column("kind"), "refused")
                columns["code"] = pc.if_else(refused, "AOS3010", pa.scalar(None, pa.string()))
                nothing = pa.scalar(None, pa.float32())
                columns["probability"] = pc.if_else(refused, nothing, part.column("probability"))
            outputs.append(Output(LEDGER, from_columns("entry", len(part), columns), home))
    return outputs


def _list(column: pa.Array) -> list[Any]:
    """A column as Python's values; times in us."""
    if column.type == ID:
        return fixed(column)
    found: list[Any] = (column.view(pa.int64()) if column.type == TIME else column).to_pylist()
    return found
