"""match: the eligible agents of every step, ranked.

Decides who may do a step and in what order they are named; it chooses nobody. Policies: `agents.matching` (sets),
`agents.ranking` (what was learned).

in: aos.tasks: one row a step, all steps of a request in one message, a step matched anew alone.
out: aos.matches: the same rows in the same order with candidates, at partition `home`.
key: home; all rows of a message share it.
state: eligible agents by wish for the fleet's version; only a memory, forgetting it changes nothing.
order: none assumed. Law of a row: a task read twice may be answered otherwise when the views have moved; compose's
    first plan of a matching round counts.
errors: none. Nobody eligible is an answer: no candidates.

Filters: pin, exclusion, tenant, capability, health, budget (predicted cost above the whole request's budget). With
fewer candidates than `candidates_wanted`, suspected agents are let in (`widened` says "health"), then agents over the
budget ("budget"); the other filters are never loosened. When no agent has all required capabilities, agents that have
them together are named, with what each covers. When the best score is below `confidence_min`, or nobody is eligible,
the fallback agents are named instead ("fallback", degraded), if there are any. On stale views every row is degraded.
cost: at 128 rows 16 us a row over 12 agents, 30 over 1,000 agents in 20 capabilities, 80 when these rows are of 10
    domains (a prediction each); 7 ms for 64 rows over 10,000 agents in 20 capabilities. Most of it is the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aos.agents import matching
from aos.agents.fleet import Fleet
from aos.agents.matching import FILTERED_MAX, Eligible, Memory, Wish
from aos.agents.ranking import TURN_US, Ask, Limits, Ranked, Tasks, rank, salts
from aos.codecs.rows import from_columns, record, take_common, tensor
from aos.streams.processor import Batch, Output, Step, Views
from aos.streams.views import settings_version

_SAME = (
    "step",
    "step_name",
    "steps_count",
    "match_round",
    "task_kind",
    "require",
    "after",
    "priority",
    "deadline_at",
    "budget_usd_micros",
    "budget_cpu_us",
    "policy",
)
_COST_MAX = float(2**53)


def initial(partition: int) -> Memory:
    """Nothing remembered."""
    return Memory()


def step(state: Memory, batch: Batch, now: int, views: Views, seed: int) -> Step[Memory]:
    """Match every row of a message."""
    tasks = batch.rows
    if batch.tick or not len(tasks):
        return Step(state)
    home = tasks.column("home")[0].as_py()
    return Step(state, [Output("aos.matches", _matches(state, tasks, now, views, seed), home)])


def _matches(memory: Memory, tasks: pa.RecordBatch, now: int, views: Views, seed: int) -> pa.RecordBatch:
    fleet: Fleet = views["aos.agent-states"]
    beliefs, strategies, settings = views["aos.beliefs"], views["aos.strategies"], views.settings
    limits = Limits(settings.candidates_max, settings.candidates_wanted, settings.trial_outcomes)
    wishes = _wishes(tasks)
    groups: dict[Wish, list[int]] = {}
    for row, wish in enumerate(wishes):
        groups.setdefault(wish, []).append(row)
    policies = {domain: strategies.of(domain) for domain in {wish.domain for wish in groups}}

    def asks(found: Mapping[Wish, Eligible], rows: Mapping[Wish, Sequence[int]]) -> list[Ask]:
        return [
            Ask(found[wish], np.array(rows[wish]), wish.domain, wish.task_kind, policies[wish.domain])
            for wish in rows
        ]

    wanted = _tasks(tasks, now, seed)
    found = {wish: memory.eligible(fleet, wish, limits.wanted) for wish in groups}
    ranked = rank(fleet, beliefs, asks(found, groups), wanted, limits)
    fallen = np.zeros(len(tasks), bool)
    doubted = _doubted(ranked, settings.confidence_min)
    if doubted.any() and (settings.fallback_service or fleet.fallback.any()):
        lost = {
            wish: kept for wish, rows in groups.items() if (kept := [row for row in rows if doubted[row]])
        }
        others = {wish: matching.fallback(fleet, wish, settings.fallback_service) for wish in lost}
        lost = {wish: rows for wish, rows in lost.items() if len(others[wish])}
        fallen[[row for rows in lost.values() for row in rows]] = True
        ranked = _replaced(ranked, rank(fleet, beliefs, asks(others, lost), wanted, limits), fallen)
    versions = {domain: beliefs.version(domain) for domain in policies}
    return from_columns(
        "match",
        len(tasks),
        take_common(tasks)
        | {name: tasks.column(name) for name in _SAME}
        | _filtered(fleet, ranked, wishes, found)
        | {
            "candidates": _candidates(memory, fleet, ranked, len(tasks)),
            "shortfall": np.maximum(limits.wanted - np.bincount(ranked.rows, minlength=len(tasks)), 0),
            "widened": _widened(ranked, fallen),
            "model_version": [versions[wish.domain] for wish in wishes],
            "settings_version": np.full(len(tasks), settings_version(views)),
            "degraded": fallen | views.stale,
        },
    )


def _wishes(tasks: pa.RecordBatch) -> list[Wish]:
    names = ("tenant", "domain", "task_kind", "require", "pin", "exclude", "budget_usd_micros")
    columns = (tasks.column(name).to_pylist() for name in names)
    return [
        Wish(tenant, domain, kind, tuple(require), tuple(pin), tuple(exclude), budget is not None)
        for tenant, domain, kind, require, pin, exclude, budget in zip(*columns, strict=True)
    ]


def _tasks(tasks: pa.RecordBatch, now: int, seed: int) -> Tasks:
    budgets = tasks.column("budget_usd_micros")
    return Tasks(
        np.ascontiguousarray(tensor(tasks.column("surface")), np.float32),
        tensor(tasks.column("embedding")).astype(np.float32),
        np.where(budgets.is_null(), np.inf, budgets.fill_null(0).to_numpy(zero_copy_only=False)),
        salts(tasks, seed, ("round", "step", "match_round")),
        now // TURN_US,
    )


def _doubted(ranked: Ranked, confidence_min: float) -> np.ndarray:
    """Rows whose best score is too low; nobody eligible counts as -1."""
    doubted: np.ndarray = ranked.best < np.float32(confidence_min)
    return doubted


def _replaced(ranked: Ranked, others: Ranked, fallen: np.ndarray) -> Ranked:
    """The candidates of `others` for the rows that fell back, those of `ranked` for the rest."""
    stay = ~fallen[ranked.rows]
    names = ("rows", "slots", "score", "deviation", "similarity", "latency", "cost", "covers", "trial")
    flat = {name: np.concatenate([getattr(ranked, name)[stay], getattr(others, name)]) for name in names}
    order = np.argsort(flat["rows"], kind="stable")
    whole: dict[str, Any] = {name: column[order] for name, column in flat.items()}
    for name in ("best", "health", "budget", "over"):
        whole[name] = np.where(fallen, getattr(others, name), getattr(ranked, name))
    return Ranked(**whole, over_slots=ranked.over_slots | others.over_slots)


def _candidates(memory: Memory, fleet: Fleet, ranked: Ranked, count: int) -> pa.Array:
    type = record("match").schema.field("candidates").type
    slots = ranked.slots
    taken = pa.array(slots)
    columns: dict[str, Any] = {
        "agent": memory.texts(fleet, "agents").take(taken),
        "service": memory.texts(fleet, "services").take(taken),
        "cell": memory.texts(fleet, "cells").take(taken),
        "cell_partition": fleet.cell_partition[slots],
        "score": ranked.score,
        "deviation": ranked.deviation,
        "similarity": ranked.similarity,
        "cost_usd_micros": _whole(ranked.cost),
        "latency_us": _whole(ranked.latency),
        "timeout_ms": fleet.timeout[slots],
        "covers": ranked.covers,
        "trial": ranked.trial,
    }
    fields = list(type.value_type)
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in fields
    ]
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.bincount(ranked.rows, minlength=count), out=offsets[1:])
    values = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=type)


def _whole(values: np.ndarray) -> np.ndarray:
    whole: np.ndarray = np.clip(np.rint(values), 0, _COST_MAX).astype(np.int64)
    return whole


def _widened(ranked: Ranked, fallen: np.ndarray) -> list[str | None]:
    if not (fallen.any() or ranked.health.any() or ranked.budget.any()):
        return [None] * len(fallen)
    words = {(True, True): "health,budget", (True, False): "health", (False, True): "budget"}
    pairs = zip(ranked.health.tolist(), ranked.budget.tolist(), strict=True)
    return [
        "fallback" if fell else words.get(pair) for fell, pair in zip(fallen.tolist(), pairs, strict=True)
    ]


def _filtered(
    fleet: Fleet, ranked: Ranked, wishes: Sequence[Wish], found: Mapping[Wish, Eligible]
) -> dict[str, Any]:
    """Columns `filtered` and `filtered_count`. Agents over the budget come first: they were the nearest."""
    type = record("match").schema.field("filtered").type
    agents: list[str] = []
    reasons: list[str] = []
    offsets, counts = [0], []
    over = ranked.over.tolist()
    for row, wish in enumerate(wishes):
        one = found[wish]
        room = FILTERED_MAX
        if over[row]:
            costly = fleet.agents[ranked.over_slots[row]].tolist()
            agents += costly
            reasons += ["budget"] * len(costly)
            room -= len(costly)
        agents += one.filtered[:room]
        reasons += one.reasons[:room]
        offsets.append(len(agents))
        counts.append(one.filtered_count + over[row])
    values = pa.StructArray.from_arrays(
        [pa.array(agents, pa.string()), pa.array(reasons, pa.string())], fields=list(type.value_type)
    )
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=type)
    return {"filtered": lists, "filtered_count": counts}
