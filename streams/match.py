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
the fallback agents are named instead ("fallback"), if there are any. Where what was learned is not to be had, rows are
ranked by what is left, and say so (`degraded`, `rung`): agents/ladder.py.
cost: over 1,000 agents in 20 capabilities, rows of 10 domains: 1.8 ms a message of 20 rows, 3 ms of 150, 7 ms of 600,
    most of it the prediction and the ranking of 50 agents a row; 7 ms for 64 rows over 10,000 agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from aos.agents import ladder, matching
from aos.agents.fleet import Fleet
from aos.agents.matching import FILTERED_MAX, Eligible, Memory, Wish
from aos.agents.ranking import TURN_US, Ask, Limits, Ranked, Tasks, rank, salts
from aos.analytics.beliefs import Beliefs
from aos.codecs import columns as arrays
from aos.codecs.rows import from_columns, record, take_common, tensor
from aos.streams import live
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
_CANDIDATES, _OTHERS = (record("match").schema.field(name).type for name in ("candidates", "filtered"))
_CANDIDATE, _OTHER = list(_CANDIDATES.value_type), list(_OTHERS.value_type)


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
    wishes, of_row, groups = _wishes(tasks)
    policies = [strategies.of(wish.domain) for wish in wishes]
    factors = live.by_tenant(views, "exploration", [wish.tenant for wish in wishes])
    if (factors != 1).any():
        pairs = zip(policies, factors.tolist(), strict=True)
        policies = [replace(policy, exploration=policy.exploration * factor) for policy, factor in pairs]
    found = [memory.eligible(fleet, wish, limits.wanted) for wish in wishes]
    wanted = _tasks(tasks, now, seed)
    rungs = ladder.rungs(wishes, beliefs, views.stale, views.refused.get("aos.beliefs", ()))
    asks = [
        Ask(
            one,
            rows,
            wish.domain,
            wish.task_kind,
            ladder.alike(policy) if on == ladder.ROUND_ROBIN else policy,
        )
        for one, rows, wish, policy, on in zip(found, groups, wishes, policies, rungs, strict=True)
    ]
    ranked = rank(fleet, beliefs, asks, wanted, limits)
    unsound = ladder.unsound(ranked)
    if unsound is not None:
        in_turn = rank(fleet, Beliefs(), ladder.of_rows(asks, unsound), wanted, limits)
        ranked = _replaced(ranked, in_turn, unsound)
    fallen = np.zeros(len(tasks), bool)
    least = live.by_tenant(views, "confidence_min", [wish.tenant for wish in wishes])
    doubted = _doubted(ranked, least[of_row])
    if doubted.any() and (settings.fallback_service or fleet.fallback.any()):
        lost = []
        for ask, wish in zip(asks, wishes, strict=True):
            others = matching.fallback(fleet, wish, settings.fallback_service)
            lost.append(replace(ask, eligible=others, rows=ask.rows[doubted[ask.rows] & bool(len(others))]))
        lost = [ask for ask in lost if len(ask.rows)]
        for ask in lost:
            fallen[ask.rows] = True
        ranked = _replaced(ranked, rank(fleet, beliefs, lost, wanted, limits), fallen)
    return from_columns(
        "match",
        len(tasks),
        take_common(tasks)
        | {name: tasks.column(name) for name in _SAME}
        | _filtered(fleet, ranked, found, of_row)
        | _widened(ranked, fallen)
        | {
            "candidates": _candidates(memory, fleet, ranked, len(tasks)),
            "shortfall": np.maximum(limits.wanted - np.bincount(ranked.rows, minlength=len(tasks)), 0),
            "model_version": np.array([beliefs.version(wish.domain) for wish in wishes])[of_row],
            "settings_version": np.full(len(tasks), settings_version(views)),
        }
        | _rungs(rungs, of_row, unsound, fallen),
    )


def _rungs(
    rungs: Sequence[str | None], of_row: np.ndarray, unsound: np.ndarray | None, fallen: np.ndarray
) -> dict[str, Any]:
    """Columns `degraded` and `rung`; the latter is absent where all of it would be null."""
    if unsound is None and not any(rungs) and not fallen.any():
        return {"degraded": fallen}
    named = np.array(rungs, object)[of_row]
    if unsound is not None:
        named[unsound] = ladder.ROUND_ROBIN
    named[fallen] = ladder.FALLBACK
    return {"degraded": [rung is not None for rung in named], "rung": pa.array(named, pa.string())}


def _wishes(tasks: pa.RecordBatch) -> tuple[list[Wish], np.ndarray, list[np.ndarray]]:
    """The different wishes; the number of each row's; the rows of each."""
    columns = (
        *(tasks.column(name).to_numpy(zero_copy_only=False).tolist() for name in _WISH_TEXTS),
        *(_tuples(tasks.column(name)) for name in _WISH_LISTS),
        arrays.valid(tasks.column("budget_usd_micros")).tolist(),
    )
    numbers: dict[tuple[Any, ...], int] = {}
    of_row = np.array([numbers.setdefault(key, len(numbers)) for key in zip(*columns, strict=True)])
    order = np.argsort(of_row, kind="stable")
    ends = np.cumsum(np.bincount(of_row)).tolist()
    groups = [order[start:end] for start, end in pairwise((0, *ends))]
    return [Wish._make(key) for key in numbers], of_row, groups


_WISH_TEXTS, _WISH_LISTS = Wish._fields[:3], Wish._fields[3:6]


def _tuples(lists: pa.ListArray) -> list[tuple[str, ...]]:
    offsets = arrays.offsets(lists)
    first, last = offsets[0], offsets[-1]
    if first == last:
        return [()] * len(lists)
    texts = lists.values.slice(first, last - first).to_numpy(zero_copy_only=False).tolist()
    return [tuple(texts[start:end]) for start, end in pairwise((offsets - first).tolist())]


def _tasks(tasks: pa.RecordBatch, now: int, seed: int) -> Tasks:
    column = tasks.column("budget_usd_micros")
    budgets = np.where(arrays.valid(column), arrays.ints(column, 0), np.inf)
    return Tasks(
        np.ascontiguousarray(tensor(tasks.column("surface")), np.float32),
        tensor(tasks.column("embedding")).astype(np.float32),
        budgets,
        salts(tasks, seed, ("round", "step", "match_round")),
        now // TURN_US,
    )


def _doubted(ranked: Ranked, confidence_min: np.ndarray) -> np.ndarray:
    """Rows whose best score is too low; nobody eligible counts as -1."""
    doubted: np.ndarray = ranked.best < confidence_min.astype(np.float32)
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
    made = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in _CANDIDATE
    ]
    values = pa.StructArray.from_arrays(made, fields=_CANDIDATE)
    return arrays.list_of(np.bincount(ranked.rows, minlength=count), values, _CANDIDATES)


def _whole(values: np.ndarray) -> np.ndarray:
    whole: np.ndarray = np.clip(np.rint(values), 0, _COST_MAX).astype(np.int64)
    return whole


def _widened(ranked: Ranked, fallen: np.ndarray) -> dict[str, Any]:
    """Column `widened`, absent where all of it would be null."""
    if not (fallen.any() or ranked.health.any() or ranked.budget.any()):
        return {}
    words = {(True, True): "health,budget", (True, False): "health", (False, True): "budget"}
    pairs = zip(ranked.health.tolist(), ranked.budget.tolist(), strict=True)
    named = zip(fallen.tolist(), pairs, strict=True)
    return {"widened": ["fallback" if fell else words.get(pair) for fell, pair in named]}


def _filtered(fleet: Fleet, ranked: Ranked, found: Sequence[Eligible], of_row: np.ndarray) -> dict[str, Any]:
    """Columns `filtered` and `filtered_count`."""
    counts = np.array([one.filtered_count for one in found])[of_row] + ranked.over
    if not ranked.over.any():  # the rows of a wish are alike
        lists = _named([(one.filtered, one.reasons) for one in found])
        rows = lists if len(lists) == len(of_row) else lists.take(pa.array(of_row))
        return {"filtered": rows, "filtered_count": counts}
    named = []
    over = ranked.over.tolist()
    for row, number in enumerate(of_row.tolist()):
        agents, reasons = found[number].filtered, found[number].reasons
        if over[row]:  # agents over the budget come first: they were the nearest
            costly = tuple(fleet.agents[ranked.over_slots[row]].tolist())
            room = FILTERED_MAX - len(costly)
            agents, reasons = costly + agents[:room], ("budget",) * len(costly) + reasons[:room]
        named.append((agents, reasons))
    return {"filtered": _named(named), "filtered_count": counts}


def _named(lists: Sequence[tuple[Sequence[str], Sequence[str]]]) -> pa.ListArray:
    """Lists of agents and reasons as a column."""
    agents = pa.array([agent for agents, _ in lists for agent in agents], pa.string())
    reasons = pa.array([reason for _, reasons in lists for reason in reasons], pa.string())
    values = pa.StructArray.from_arrays([agents, reasons], fields=_OTHER)
    return arrays.list_of(np.array([len(agents) for agents, _ in lists]), values, _OTHERS)
