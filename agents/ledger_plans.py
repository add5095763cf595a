"""The alternatives of many steps as Arrow columns, and how to hand one cell's share of them on.

A ready row carries alternatives of one cell only. For all rows of a message these shares are cut at once, by
columns; after a failure or a refusal the one row is looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.schemas import RECORDS

_LEDGER = RECORDS["entry"].schema
ALTERNATIVES = _LEDGER.field("alternatives").type
FILTERED = _LEDGER.field("filtered").type


class Share(NamedTuple):
    """The alternatives of one cell: row `row` of `alternatives`."""

    alternatives: pa.ListArray
    row: int
    cell: str
    cell_partition: int


class Plans:
    """Columns `alternatives` and `filtered` of planned rows; null lists count as empty."""

    def __init__(self, alternatives: pa.ListArray, filtered: pa.ListArray) -> None:
        self.alternatives = _without_nulls(alternatives)
        self.filtered = _without_nulls(filtered)
        self.offsets: list[int] = self.alternatives.offsets.to_pylist()

    def size(self, row: int) -> int:
        """How many alternatives a row has."""
        return self.offsets[row + 1] - self.offsets[row]

    @cached_property
    def agents(self) -> list[str]:
        return self._flat("agent")

    @cached_property
    def cells(self) -> list[str]:
        return self._flat("cell")

    @cached_property
    def cell_partitions(self) -> list[int]:
        return self._flat("cell_partition")

    @cached_property
    def costs(self) -> list[int]:
        return self._flat("cost_usd_micros")

    @cached_property
    def free(self) -> bool:
        """Whether no alternative costs anything."""
        return not any(self.costs)

    @cached_property
    def cell(self) -> str | None:
        """The cell of all alternatives, None when there are several."""
        found = self.alternatives.values.field("cell").unique()
        return found[0].as_py() if len(found) == 1 else None

    def cost_of(self, row: int, agent: str | None) -> int:
        """Predicted cost of an alternative, 0 when it is none."""
        if self.free:
            return 0
        for index in range(self.offsets[row], self.offsets[row + 1]):
            if self.agents[index] == agent:
                return self.costs[index]
        return 0

    def share(self, row: int, without: Sequence[str], not_in: Sequence[str]) -> Share | None:
        """The share of the best alternative that is not `without` and not in the cells `not_in`."""
        start, end = self.offsets[row], self.offsets[row + 1]
        if start == end:
            return None
        if not without and not not_in:
            return Share(self._first_shares, row, self.cell or self.cells[start], self.cell_partitions[start])
        kept = [i for i in range(start, end) if self.agents[i] not in without and self.cells[i] not in not_in]
        if not kept:
            return None
        cell = self.cells[kept[0]]
        indices = pa.array([i for i in kept if self.cells[i] == cell], pa.int64())
        taken = self.alternatives.values.take(indices)
        lists = pa.ListArray.from_arrays(pa.array([0, len(taken)], pa.int32()), taken, type=ALTERNATIVES)
        return Share(lists, 0, cell, self.cell_partitions[kept[0]])

    @cached_property
    def _first_shares(self) -> pa.ListArray:
        """Each row's alternatives that are in the cell of its first."""
        if self.cell is not None:
            return self.alternatives
        offsets = np.asarray(self.offsets)
        counts = np.diff(offsets)
        start, end = self.offsets[0], self.offsets[-1]
        flat = self.alternatives.values.slice(start, end - start)
        cells = flat.field("cell")
        firsts = cells.take(pa.array(np.repeat(offsets[:-1] - start, counts)))
        same = pc.equal(cells, firsts)
        if pc.all(same, min_count=0).as_py():
            return self.alternatives
        kept = np.concatenate([[0], np.cumsum(same.to_numpy(zero_copy_only=False))])
        new = pa.array(kept[offsets - start].astype(np.int32))
        return pa.ListArray.from_arrays(new, flat.filter(same), type=ALTERNATIVES)

    def _flat(self, name: str) -> list:  # type: ignore[type-arg]
        # the child's values stand at the list's offsets, also where the list column is a slice
        values: list = self.alternatives.values.field(name).to_pylist()  # type: ignore[type-arg]
        return values


RUNS_MAX = 24
"""Slices of rows that are joined; of more, taking each row by its number is cheaper (a slice costs 4 us)."""


def gather(places: Sequence[tuple[pa.ListArray, int]], type: pa.DataType) -> pa.ListArray:
    """A list column made of rows that stand in few different columns."""
    runs = _runs(places)
    if not runs:
        return pa.array([], type)
    if len(runs) == 1:
        array, first, count = runs[0]
        return array.slice(first, count)
    if len(runs) <= RUNS_MAX:
        return pa.concat_arrays([array.slice(first, count) for array, first, count in runs])
    sources: dict[int, tuple[pa.ListArray, list[int], list[int]]] = {}
    for position, (array, row) in enumerate(places):
        _, rows, positions = sources.setdefault(id(array), (array, [], []))
        rows.append(row)
        positions.append(position)
    taken = [array.take(pa.array(rows, pa.int64())) for array, rows, _ in sources.values()]
    if len(taken) == 1:
        return taken[0]
    order = np.empty(len(places), np.int64)
    order[[position for _, _, positions in sources.values() for position in positions]] = np.arange(
        len(places)
    )
    return pa.concat_arrays(taken).take(pa.array(order))


def _runs(places: Sequence[tuple[pa.ListArray, int]]) -> list[tuple[pa.ListArray, int, int]]:
    """The places as slices (column, first row, rows), in order."""
    runs: list[tuple[pa.ListArray, int, int]] = []
    column, first, end = None, 0, 0
    for array, row in places:
        if row != end or array is not column:
            if column is not None:
                runs.append((column, first, end - first))
            column, first = array, row
        end = row + 1
    if column is not None:
        runs.append((column, first, end - first))
    return runs


def _without_nulls(lists: pa.ListArray) -> pa.ListArray:
    if not lists.null_count:
        return lists
    return pa.array([found or [] for found in lists.to_pylist()], lists.type)
