"""How a bug is planted: a registry, and ways to change what a processor is given and puts out. For tests only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from aos.streams import topology
from aos.streams.processor import Output, Step

Rows = Any  # pa.RecordBatch


@dataclass(frozen=True)
class Bug:
    """`where`: a processor or the shell. `laws`: any of these must report it. `faults`: what it needs to show."""

    name: str
    where: str
    laws: frozenset[str]
    plant: Callable[[], None]
    faults: str = ""


BUGS: dict[str, Bug] = {}


def bug(where: str, *laws: str, faults: str = "") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a bug under its function's name."""

    def add(plant: Callable[[], None]) -> Callable[[], None]:
        name = plant.__name__.replace("_", "-")
        BUGS[name] = Bug(name, where, frozenset(laws), plant, faults)
        return plant

    return add


class Every:
    """True at each n-th call."""

    def __init__(self, count: int) -> None:
        self._count, self._calls = count, 0

    def __call__(self) -> bool:
        self._calls += 1
        return self._calls % self._count == 0


def outputs_by(processor: str, change: Callable[[Output], Sequence[Output]]) -> None:
    """Change what a processor's step puts out."""

    def changed(result: Step[Any]) -> Step[Any]:
        return result._replace(outputs=[one for output in result.outputs for one in change(output)])

    result_by(processor, changed)


def result_by(processor: str, change: Callable[[Step[Any]], Step[Any]]) -> None:
    """Change what a processor's step returns."""
    real = topology.PROCESSORS[processor]
    topology.PROCESSORS[processor] = replace(real, step=lambda *given: change(real.step(*given)))


def rows_by(processor: str, topic: str, change: Callable[[Rows], Rows]) -> None:
    """Change the rows a processor writes to a topic (a tenant's instances too)."""

    def changed(output: Output) -> list[Output]:
        hit = output.topic == topic or output.topic.startswith(f"{topic}.")
        return [replace(output, rows=change(output.rows))] if hit and output.rows.num_rows else [output]

    outputs_by(processor, changed)


def without_some(every: int, kind: str | None = None) -> Callable[[Rows], Rows]:
    """Rows less each n-th (of a kind)."""
    turn = Every(every)

    def change(rows: Rows) -> Rows:
        kinds = rows.column("kind").to_pylist() if kind else [None] * rows.num_rows
        return rows.filter(pa.array([one != kind or not turn() for one in kinds], pa.bool_()))

    return change


def put(rows: Rows, name: str, values: Any) -> Rows:
    """Rows with another column of the same type."""
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))


def some(rows: Rows, name: str, turn: Every, value: Any) -> Rows:
    """Another value in each n-th row."""
    return put(rows, name, [value if turn() else old for old in rows.column(name).to_pylist()])
