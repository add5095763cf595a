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
cost: with 16 candidates 1.3 ms a message of 20 rows, 1.9 of 150, 4.2 of 600, every tenth request a workflow of three
    steps: 15 us a step of these; 60 us a team or a step whose alternatives are ordered anew.

Requests of one step with agents that can do all of it, most of what comes, are planned as whole columns; the others
one by one. Both give the same plans (a test compares them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from aos.agents.ledger_values import values
from aos.agents.ranking import salts
from aos.codecs import columns as arrays
from aos.codecs.rows import from_columns, record
from aos.streams import live
from aos.streams.processor import Batch, Output, Step, Views

_ALTERNATIVES = record("entry").schema.field("alternatives").type
_ALTERNATIVE = list(_ALTERNATIVES.value_type)
_COMMON = ("tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round", "match_round")
_PASSED = (
    *_COMMON,
    "filtered",
    "filtered_count",
    "shortfall",
    "model_version",
    "settings_version",
    "degraded",
    "rung",
)
_MOST = np.iinfo(np.int64).max


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
        self._tenants: list[str] | None = None
        lists = matches.column("candidates")
        offsets = arrays.offsets(lists)
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
        required = arrays.lengths(matches.column("require"))
        self.full = (np.int64(1) << np.minimum(required, COVERS_MAX)) - 1
        budget, deadline = matches.column("budget_usd_micros"), matches.column("deadline_at")
        self.unlimited, self.timeless = ~arrays.valid(budget), ~arrays.valid(deadline)
        self.budget, self.slack = arrays.ints(budget, 0), arrays.ints(deadline, 0) - now
        self.seeds = salts(matches, seed, ("round", "match_round")).astype(np.int64)
        self.partial = self.per_row(
            np.logical_or, self.covers != np.repeat(self.full, self.counts), nobody=False
        )

    def _field(self, name: str) -> np.ndarray:
        values: np.ndarray = self.flat.field(name).to_numpy(zero_copy_only=False)
        return values

    def per_row(self, ufunc: np.ufunc, values: np.ndarray, nobody: Any) -> np.ndarray:
        """`ufunc` over the candidates of each row; `nobody` for a row without."""
        found = np.full(len(self.counts), nobody, values.dtype)
        some = self.counts > 0
        if len(values):
            found[some] = ufunc.reduceat(values, self.starts[some])
        return found

    def plain(self) -> np.ndarray:
        """Rows that stand alone, have no candidate with a part of what is required, and none too costly."""
        alone = (self.steps_count == 1) | (self.match_round > 0)
        plain: np.ndarray = alone & ~self.partial
        if not self.unlimited.all():
            budget = np.where(self.unlimited, _MOST, self.budget)
            plain &= ~self.per_row(np.logical_or, self.cost > np.repeat(budget, self.counts), nobody=False)
        return plain

    def tenants(self) -> list[str]:
        """Whose each row is."""
        if self._tenants is None:
            self._tenants = self.matches.column("tenant").to_pylist()
        return self._tenants

    def firsts(self, rows: np.ndarray) -> list[Option | None]:
        """The first candidate of each of some rows, None where there is nobody."""
        some = rows[self.counts[rows] > 0]
        places = self.starts[some]
        names = self.flat.field("agent").take(pa.array(places)).to_numpy(zero_copy_only=False)
        numbers = (self.score, self.cost, self.latency, self.covers, self.trial)
        columns = (places, names, *(column[places] for column in numbers))
        options = map(Option, *(column.tolist() for column in columns))
        found: list[Option | None] = [
            next(options) if count else None for count in self.counts[rows].tolist()
        ]
        return found


class Lot(Sequence[Option]):
    """The candidates of a row as they came. Most plans look at the first only: the others are made when asked for."""

    def __init__(self, sheet: _Sheet, row: int, first: Option | None) -> None:
        self._sheet = sheet
        self._first = first
        self._made: list[Option] | None = None
        self.start, self.end = int(sheet.starts[row]), int(sheet.ends[row])

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, place: Any) -> Any:
        return self._first if place == 0 and self._first is not None else self._all()[place]

    def __iter__(self) -> Iterator[Option]:
        return iter(self._all())

    def _all(self) -> list[Option]:
        if self._made is None:
            sheet, start, end = self._sheet, self.start, self.end
            numbers = (sheet.score, sheet.cost, sheet.latency, sheet.covers, sheet.trial)
            names = sheet.flat.field("agent").slice(start, end - start).to_pylist()
            columns = (column[start:end].tolist() for column in numbers)
            self._made = list(map(Option, range(start, end), names, *columns))
        return self._made


def _columns(sheet: _Sheet, plain: np.ndarray, views: Views) -> list[pa.RecordBatch]:
    """Plans of the plain rows, as whole columns."""
    some = sheet.counts > 0
    first = np.minimum(sheet.starts, max(len(sheet.score) - 1, 0))
    nothing = len(sheet.score) == 0
    quality = np.zeros(len(plain), np.float32) if nothing else sheet.score[first]
    duration = np.zeros(len(plain), np.int64) if nothing else sheet.latency[first]
    tried = some & (np.zeros(len(plain), bool) if nothing else ~sheet.trial[first])
    fastest = sheet.per_row(np.minimum, np.where(sheet.trial, _MOST, sheet.latency), 0)
    late = ~sheet.timeless & (np.where(tried, fastest, 0) > sheet.slack)
    whole = sheet.match_round == 0
    least = live.by_tenant(views, "quality_min", sheet.tenants())
    poor = whole & tried & (quality.astype(np.float64) < least)
    refused = plain & (late | poor)
    refusals = [
        (row, too_late(int(fastest[row]) if tried[row] else 0, int(sheet.slack[row])))
        if late[row]
        else (row, too_poor(float(quality[row]), float(least[row])))
        for row in np.flatnonzero(refused).tolist()
    ]
    kept = plain & ~refused
    batches = [_rejections(sheet, refusals)] if refusals else []
    if not kept.any():
        return batches
    matches = sheet.matches.select([*_PASSED, "step", "candidates"])
    matches = matches if kept.all() else matches.filter(pa.array(kept))
    single = ["single" if count == 1 else None for count in sheet.steps_count[kept].tolist()]
    columns = {name: matches.column(name) for name in ("step", *_PASSED)}
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
    for needs, domain in _requests(sheet, np.flatnonzero(other)):
        row = needs[0].row
        found = compose(needs, _terms(sheet, needs, domain, views))
        if isinstance(found, Refusal):
            refusals.append((row, found))
        else:
            plans.append((found, int(sheet.seeds[row])))
    batches = [_rejections(sheet, refusals)] if refusals else []
    return [*batches, _plans(sheet, plans)] if plans else batches


def _requests(sheet: _Sheet, rows: np.ndarray) -> list[tuple[list[Need], str]]:
    """Steps by request, round and matching, in the order in which they came, and their domain; a step that comes again
    counts once."""
    names = ("request_id", "round", "match_round", "domain", "step", "step_name", "require", "after")
    matches = sheet.matches.select(names).take(pa.array(rows))
    columns = [values(matches.column(name)) for name in names]
    requests: dict[tuple[bytes, int, int], dict[int, Need]] = {}
    domains: list[str] = []
    steps = zip(rows.tolist(), sheet.firsts(rows), (~sheet.partial[rows]).tolist(), *columns, strict=True)
    for row, first, able, request, round, again, domain, number, name, require, after in steps:
        needs = requests.get((request, round, again))
        if needs is None:
            needs = requests[request, round, again] = {}
            domains.append(domain)
        # what was written twice may be joined into one message: two halves of a plan would be no plan
        if number not in needs:
            needs[number] = Need(row, number, name, require, after, Lot(sheet, row, first), able)
    return [(list(needs.values()), domain) for needs, domain in zip(requests.values(), domains, strict=True)]


def _terms(sheet: _Sheet, needs: Sequence[Need], domain: str, views: Views) -> Terms:
    row = needs[0].row
    patterns = views["aos.patterns"]

    def effect(first: str, second: str) -> float:
        return float(patterns.effect(domain, first, second))

    count = int(sheet.steps_count[row])
    return Terms(
        None if sheet.unlimited[row] else int(sheet.budget[row]),
        None if sheet.timeless[row] else int(sheet.slack[row]),
        float(live.by_tenant(views, "quality_min", sheet.tenants()[row : row + 1])[0]),
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

    as_came = all(isinstance(planned.options, Lot) for planned in rows)
    names = [*_PASSED, "candidates"] if as_came else list(_PASSED)
    matches = sheet.matches.select(names).take(pa.array([planned.row for planned in rows], pa.int64()))
    columns = {name: matches.column(name) for name in _PASSED}
    columns |= {
        "kind": ["planned"] * len(rows),
        "step": [planned.number for planned in rows],
        "alternatives": matches.column("candidates") if as_came else _alternatives(sheet, rows),
        "topology": spread([plan.topology for plan, _ in plans]),
        "quality_predicted": spread([plan.quality for plan, _ in plans]),
        "duration_predicted_us": spread([plan.duration_us for plan, _ in plans]),
        "plan_seed": spread([seed for _, seed in plans]),
    }
    if any(planned.parent >= 0 for planned in rows):
        columns |= _parts(rows)
    return from_columns("entry", len(rows), columns)


def _parts(rows: Sequence[Planned]) -> dict[str, Any]:
    """What is said of the parts of a team only."""
    parts = [planned if planned.parent >= 0 else None for planned in rows]
    return {
        "parent": [part and part.parent for part in parts],
        "step_name": [part and part.name for part in parts],
        "require": [part and part.require for part in parts],
        "after": [part and part.after for part in parts],
    }


def _alternatives(sheet: _Sheet, rows: Sequence[Planned]) -> pa.Array:
    options = [option for planned in rows for option in planned.options]
    taken = sheet.flat.take(pa.array([option.index for option in options], pa.int64()))
    columns = [
        pa.array([option.score for option in options], field.type)
        if field.name == "score"
        else taken.field(field.name)
        for field in _ALTERNATIVE
    ]
    values = pa.StructArray.from_arrays(columns, fields=_ALTERNATIVE)
    return arrays.list_of(np.array([len(planned.options) for planned in rows]), values, _ALTERNATIVES)


def _rejections(sheet: _Sheet, refusals: Sequence[tuple[int, Refusal]]) -> pa.RecordBatch:
    """Rows of kind rejected. `step` is named for a step matched anew: supervise asks whether that was answered."""
    rows = [row for row, _ in refusals]
    matches = sheet.matches.select([*_COMMON, "step"]).take(pa.array(rows, pa.int64()))
    again = sheet.match_round[rows] > 0
    numbers = matches.column("step").to_numpy()
    columns = {name: matches.column(name) for name in _COMMON} | {
        "kind": ["rejected"] * len(rows),
        "step": pa.array(numbers, pa.int16(), mask=~again),
        "code": [refusal.code for _, refusal in refusals],
        "message": [refusal.message for _, refusal in refusals],
    }
    return from_columns("entry", len(rows), columns)
