"""compose: the candidates of a request's steps become a plan.

Decides the alternatives of each step, makes a team where one agent is not enough, and refuses what cannot be done; the
policy is `agents.composing`. Alternatives are named here and chosen by allocate.

in: aos.matches: all steps of a request in one message; a step matched anew (`match_round` above 0) alone.
out: aos.ledger at partition `home`: kind planned, one row a step; kind rejected, one row a request that is refused.
    A step that is split has no row of its own: its parts (with `parent`, numbered from the last step on) answer for it
    and stand in one message. A step with nobody is planned with no alternatives.
key: home; all rows of a message share it.
state: none.
order: none assumed. Law of a row: the first plan of a matching round counts; a step that is twice in a message, too.
errors: AOS2001, AOS2006, AOS2007, AOS2011 as rejected rows.
cost: at 128 rows with 16 candidates 6 us a request of one step, 50 us a step of a workflow, 60 us a team.

Requests of one step with agents that can do all of it, most of what comes, are planned as whole columns; the others
one by one. Both give the same plans (a test compares them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aos.agents.composing import (
    COVERS_MAX,
    Need,
    Option,
    Plan,
    Planned,
    Refusal,
    Terms,
    compose,
    too_late,
    too_poor,
)
from aos.agents.ranking import salts
from aos.codecs.rows import from_columns, micros, record, take_common
from aos.streams.processor import Batch, Output, Step, Views

_ALTERNATIVES = record("entry").schema.field("alternatives").type
_PASSED = (
    "match_round",
    "filtered",
    "filtered_count",
    "shortfall",
    "model_version",
    "settings_version",
    "degraded",
)


def initial(partition: int) -> None:
    """Nothing is remembered."""


def step(state: None, batch: Batch, now: int, views: Views, seed: int) -> Step[None]:
    """Plan every request of a message."""
    matches = batch.rows
    if batch.tick or not len(matches):
        return Step(None)
    sheet = _Sheet(matches, now, seed)
    plain = sheet.plain()
    home = matches.column("home")[0].as_py()
    found = [*_columns(sheet, plain, views), *_one_by_one(sheet, ~plain, views)]
    return Step(None, [Output("aos.ledger", rows, home) for rows in found if len(rows)])


class _Sheet:
    """Columns of a message as arrays. Candidates are flat; those of row r stand at starts[r] to ends[r]."""

    def __init__(self, matches: pa.RecordBatch, now: int, seed: int) -> None:
        self.matches = matches
        lists = matches.column("candidates")
        offsets = lists.offsets.to_numpy()
        self.flat: pa.StructArray = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets = offsets - offsets[0]
        self.starts, self.ends = offsets[:-1], offsets[1:]
        self.counts = self.ends - self.starts
        self.score = self._field("score")
        self.cost = self._field("cost_usd_micros")
        self.latency = self._field("latency_us")
        self.covers = self._field("covers")
        self.trial = self._field("trial")
        self.steps_count = matches.column("steps_count").to_numpy()
        self.match_round = matches.column("match_round").to_numpy()
        required = np.diff(matches.column("require").offsets.to_numpy())
        self.full = (np.int64(1) << np.minimum(required, COVERS_MAX)) - 1
        budget = matches.column("budget_usd_micros")
        self.unlimited = budget.is_null().to_numpy(zero_copy_only=False)
        self.budget = budget.fill_null(0).to_numpy(zero_copy_only=False)
        deadline = matches.column("deadline_at")
        self.timeless = deadline.is_null().to_numpy(zero_copy_only=False)
        self.slack = micros(deadline.fill_null(0)) - now
        self.seeds = salts(matches, seed, ("round", "match_round")).astype(np.int64)

    def _field(self, name: str) -> np.ndarray:
        values: np.ndarray = self.flat.field(name).to_numpy(zero_copy_only=False)
        return values

    def per_row(self, ufunc: np.ufunc, values: np.ndarray, nobody: Any) -> np.ndarray:
        """`ufunc` over the candidates of each row; `nobody` for a row without."""
        found = np.full(len(self.counts), nobody, values.dtype)
        some = self.counts > 0
        if some.any():
            found[some] = ufunc.reduceat(values, self.starts[some])
        return found

    def plain(self) -> np.ndarray:
        """Rows that stand alone, have no candidate with a part of what is required, and none too costly."""
        alone = (self.steps_count == 1) | (self.match_round > 0)
        partial = self.covers != np.repeat(self.full, self.counts)
        costly = self.cost > np.repeat(
            np.where(self.unlimited, np.iinfo(np.int64).max, self.budget), self.counts
        )
        marked = self.per_row(np.logical_or, partial | costly, False)
        plain: np.ndarray = alone & ~marked
        return plain


def _columns(sheet: _Sheet, plain: np.ndarray, views: Views) -> list[pa.RecordBatch]:
    """Plans of the plain rows, as whole columns."""
    some = sheet.counts > 0
    first = np.minimum(sheet.starts, max(len(sheet.score) - 1, 0))
    nothing = len(sheet.score) == 0
    quality = np.zeros(len(plain), np.float32) if nothing else sheet.score[first]
    duration = np.zeros(len(plain), np.int64) if nothing else sheet.latency[first]
    tried = some & (np.zeros(len(plain), bool) if nothing else ~sheet.trial[first])
    most = np.iinfo(np.int64).max
    fastest = sheet.per_row(np.minimum, np.where(sheet.trial, most, sheet.latency), 0)
    late = ~sheet.timeless & (np.where(tried, fastest, 0) > sheet.slack)
    whole = sheet.match_round == 0
    poor = whole & tried & (quality.astype(np.float64) < views.settings.quality_min)
    refused = plain & (late | poor)
    refusals = [
        (row, too_late(int(fastest[row]) if tried[row] else 0, int(sheet.slack[row])))
        if late[row]
        else (row, too_poor(float(quality[row]), views.settings.quality_min))
        for row in np.flatnonzero(refused).tolist()
    ]
    kept = plain & ~refused
    batches = [_rejections(sheet, refusals)] if refusals else []
    if not kept.any():
        return batches
    matches = sheet.matches if kept.all() else sheet.matches.filter(pa.array(kept))
    single = ["single" if count == 1 else None for count in sheet.steps_count[kept].tolist()]
    columns = take_common(matches) | {name: matches.column(name) for name in ("step", *_PASSED)}
    columns |= {
        "kind": ["planned"] * len(matches),
        "alternatives": matches.column("candidates"),
        "topology": single,
        "quality_predicted": pa.array(quality[kept], pa.float32(), mask=~some[kept]),
        "duration_predicted_us": pa.array(duration[kept], pa.int64(), mask=~some[kept]),
        "plan_seed": sheet.seeds[kept],
    }
    return [*batches, from_columns("entry", len(matches), columns)]


def _one_by_one(sheet: _Sheet, other: np.ndarray, views: Views) -> list[pa.RecordBatch]:
    """Plans of workflows, teams and rows with alternatives to drop."""
    if not other.any():
        return []
    plans: list[tuple[Plan, int]] = []
    refusals: list[tuple[int, Refusal]] = []
    for needs in _requests(sheet, np.flatnonzero(other).tolist()):
        row = needs[0].row
        found = compose(needs, _terms(sheet, needs, views))
        if isinstance(found, Refusal):
            refusals.append((row, found))
        else:
            plans.append((found, int(sheet.seeds[row])))
    batches = [_rejections(sheet, refusals)] if refusals else []
    return [*batches, _plans(sheet, plans)] if plans else batches


def _requests(sheet: _Sheet, rows: Sequence[int]) -> list[list[Need]]:
    """Steps by request, round and matching, in the order in which they came; one that comes again counts once."""
    matches = sheet.matches.take(pa.array(rows, pa.int64()))
    names = ("request_id", "round", "match_round", "step", "step_name", "require", "after")
    columns = (matches.column(name).to_pylist() for name in names)
    agents = sheet.flat.field("agent")
    requests: dict[tuple[bytes, int, int], dict[int, Need]] = {}
    for row, request, round, again, number, name, require, after in zip(rows, *columns, strict=True):
        start, end = int(sheet.starts[row]), int(sheet.ends[row])
        options = [
            Option(*values)
            for values in zip(
                range(start, end),
                agents.slice(start, end - start).to_pylist(),
                sheet.score[start:end].tolist(),
                sheet.cost[start:end].tolist(),
                sheet.latency[start:end].tolist(),
                sheet.covers[start:end].tolist(),
                sheet.trial[start:end].tolist(),
                strict=True,
            )
        ]
        need = Need(row, number, name, require, after, options)
        # what was written twice may be joined into one message: two halves of a plan would be no plan
        requests.setdefault((request, round, again), {}).setdefault(number, need)
    return [list(needs.values()) for needs in requests.values()]


def _terms(sheet: _Sheet, needs: Sequence[Need], views: Views) -> Terms:
    row = needs[0].row
    domain = sheet.matches.column("domain")[row].as_py()
    patterns = views["aos.patterns"]

    def effect(first: str, second: str) -> float:
        return float(patterns.effect(domain, first, second))

    count = int(sheet.steps_count[row])
    return Terms(
        None if sheet.unlimited[row] else int(sheet.budget[row]),
        None if sheet.timeless[row] else int(sheet.slack[row]),
        views.settings.quality_min,
        views["aos.strategies"].of(domain).pair_bonus,
        effect if patterns.count(domain) else None,
        int(sheet.seeds[row]),
        count,
        bool(sheet.match_round[row] == 0 and len(needs) == count),
    )


def _plans(sheet: _Sheet, plans: Sequence[tuple[Plan, int]]) -> pa.RecordBatch:
    """Rows of kind planned, request by request."""
    rows: list[Planned] = [planned for plan, _ in plans for planned in plan.planned]
    heights = [len(plan.planned) for plan, _ in plans]

    def spread(values: Sequence[Any]) -> list[Any]:
        return [value for value, height in zip(values, heights, strict=True) for _ in range(height)]

    part = [planned.parent >= 0 for planned in rows]
    matches = sheet.matches.take(pa.array([planned.row for planned in rows], pa.int64()))
    columns = take_common(matches) | {name: matches.column(name) for name in _PASSED}
    columns |= {
        "kind": ["planned"] * len(rows),
        "step": [planned.number for planned in rows],
        "parent": [planned.parent if is_part else None for planned, is_part in zip(rows, part, strict=True)],
        "step_name": [planned.name if is_part else None for planned, is_part in zip(rows, part, strict=True)],
        "require": [
            planned.require if is_part else None for planned, is_part in zip(rows, part, strict=True)
        ],
        "after": [planned.after if is_part else None for planned, is_part in zip(rows, part, strict=True)],
        "alternatives": _alternatives(sheet, rows),
        "topology": spread([plan.topology for plan, _ in plans]),
        "quality_predicted": spread([plan.quality for plan, _ in plans]),
        "duration_predicted_us": spread([plan.duration_us for plan, _ in plans]),
        "plan_seed": spread([seed for _, seed in plans]),
    }
    return from_columns("entry", len(rows), columns)


def _alternatives(sheet: _Sheet, rows: Sequence[Planned]) -> pa.Array:
    options = [option for planned in rows for option in planned.options]
    taken = sheet.flat.take(pa.array([option.index for option in options], pa.int64()))
    fields = list(_ALTERNATIVES.value_type)
    arrays = [
        pa.array([option.score for option in options], field.type)
        if field.name == "score"
        else taken.field(field.name)
        for field in fields
    ]
    offsets = np.concatenate([[0], np.cumsum([len(planned.options) for planned in rows])])
    values = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=_ALTERNATIVES)


def _rejections(sheet: _Sheet, refusals: Sequence[tuple[int, Refusal]]) -> pa.RecordBatch:
    """Rows of kind rejected. `step` is named for a step matched anew: supervise asks whether that was answered."""
    rows = [row for row, _ in refusals]
    matches = sheet.matches.take(pa.array(rows, pa.int64()))
    again = sheet.match_round[rows] > 0
    numbers = matches.column("step").to_numpy()
    columns = take_common(matches) | {
        "kind": ["rejected"] * len(rows),
        "match_round": matches.column("match_round"),
        "step": pa.array(numbers, pa.int16(), mask=~again),
        "code": [refusal.code for _, refusal in refusals],
        "message": [refusal.message for _, refusal in refusals],
    }
    return from_columns("entry", len(rows), columns)
