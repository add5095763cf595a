"""Ranking: of the eligible agents the candidates of a step, best first.

Decides by utility: the strategy's weights over success, speed, stability and cost, each brought to 0..1 among the
eligible agents of the row. Success is the posterior mean with a bonus for what is not known yet::

    success = score + exploration * deviation * (1 + noise)        noise: mean 0, variance 1, by hash
    utility = weight_success * success' + weight_latency * (1 - log latency')
              + weight_stability * (1 - deviation') + weight_resource * (1 - log cost')

The noise, a hash of row and agent, lets agents that are about equal take turns, so that load spreads and allocate gets
to try each of them. A quarter of the places is kept for those on trial that were tried least.

Rows are ranked together, as one padded matrix [rows, agents] for eligible sets of similar size; nothing of a row
depends on the others.
cost: as in streams.match.
source: Auer et al. 2002 (upper confidence bound), Thompson 1933 (the noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from aos.agents.fleet import Fleet
from aos.agents.matching import FILTERED_MAX, Eligible
from aos.analytics.beliefs import Beliefs, predict_into
from aos.analytics.strategies import Strategy

# The least range that counts as a difference: below it a difference weighs in proportion, so that noise among equal
# agents is not blown up to the full weight.
SCORE_RANGE_MIN = 0.1
DEVIATION_RANGE_MIN = 0.1
RATIO_RANGE_MIN = float(np.log(2.0))  # latency and cost: a factor of two
TRIAL_SHARE = 4  # one place in four is kept for agents on trial
WIDE = 1_024  # more eligible agents than this are cut to SHORT by one prediction for the kind's typical task
SHORT = 512
NARROW = 16  # sets up to this size are ranked as one matrix
TURN_US = 1_000_000  # how long a wide set is cut the same way
_NOISE = float(np.sqrt(3.0))  # a uniform number in -1..1 times this has variance 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings that rank: `count` candidates at most, `wanted` before a filter is loosened, `trial` outcomes."""

    count: int
    wanted: int
    trial: int


@dataclass(slots=True)
class Ask:
    """Rows (numbers into the arrays of `Tasks`) that share one eligible set."""

    eligible: Eligible
    rows: np.ndarray
    domain: str
    task_kind: str | None
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class Tasks:
    """What ranking needs of all rows of a message. `budgets`: infinite when there is none."""

    surfaces: np.ndarray  # float32 [rows, 16]
    embeddings: np.ndarray  # float32 [rows, 256]
    budgets: np.ndarray  # float64 [rows] millionths of a US dollar
    salts: np.ndarray  # uint32 [rows] a hash of the row's id
    turn: int  # number of the second, for cutting wide sets


@dataclass(slots=True)
class Ranked:
    """Candidates of some rows, flat: row by row in ascending row number, best first within a row."""

    rows: np.ndarray  # int64 [m] whose candidate
    slots: np.ndarray  # int64 [m]
    score: np.ndarray  # float32 [m]
    deviation: np.ndarray
    similarity: np.ndarray
    latency: np.ndarray  # float64 [m] us
    cost: np.ndarray  # float64 [m]
    covers: np.ndarray  # int64 [m]
    trial: np.ndarray  # bool [m]
    best: np.ndarray  # float32 [all rows] best score among the eligible, -1 for nobody
    health: np.ndarray  # bool [all rows] suspected agents were let in
    budget: np.ndarray  # bool [all rows] agents over budget were let in
    over: np.ndarray  # int64 [all rows] agents left out for the budget
    over_slots: dict[int, list[int]]  # some of these, by row; rows without are absent


def rank(fleet: Fleet, beliefs: Beliefs, asks: Sequence[Ask], tasks: Tasks, limits: Limits) -> Ranked:
    """The candidates of all rows of `asks`; rows with nobody eligible have none."""
    count = len(tasks.salts)
    best = np.full(count, -1.0, np.float32)
    health, budget, over = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.int64)
    over_slots: dict[int, list[int]] = {}
    parts = []
    limited = bool(np.isfinite(tasks.budgets).any())
    for asked in _by_size(asks).values():
        sheet = _sheet(fleet, beliefs, asked, tasks, limits)
        if limited or sheet.suspected.any():
            ok = _widen(sheet, tasks, limits, health, budget)
            _leave_out(sheet, ok, tasks, over, over_slots)
        else:
            ok = sheet.real
        best[sheet.rows] = np.where(ok, sheet.score, np.float32(-1.0)).max(axis=1)
        utility = _utility(sheet, ok, asked, tasks.salts[sheet.rows], fleet.salt)
        places, kept = _places(sheet, utility, ok, limits)
        parts.append(_pick(sheet, places, kept, limits))
    rows, slots, score, deviation, similarity, latency, cost, covers, trial = _join(parts)
    return Ranked(
        rows, slots, score, deviation, similarity, latency, cost, covers, trial,
        best, health, budget, over, over_slots,
    )  # fmt: skip


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter uint32 values (the finaliser of MurmurHash3)."""
    values = values.astype(np.uint32)
    values ^= values >> np.uint32(16)
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values


def salts(rows: pa.RecordBatch, seed: int, names: Sequence[str]) -> np.ndarray:
    """A hash of the request and the columns `names` for each row: uint32 [rows]."""
    ids = rows.column("request_id")
    words = np.frombuffer(ids.buffers()[1], np.uint32)[ids.offset * 4 : (ids.offset + len(ids)) * 4]
    folded: np.ndarray = np.bitwise_xor.reduce(words.reshape(-1, 4), axis=1)
    salt = mix(folded ^ np.uint32(seed & 0xFFFFFFFF))
    for name in names:
        salt = mix(salt ^ (rows.column(name).to_numpy().astype(np.uint32) + np.uint32(0x9E3779B9)))
    return salt


@dataclass(slots=True)
class _Sheet:
    """Rows and their agents. Of an eligible set (one an ask) an array [agents of all sets]; of a row and an agent a
    padded matrix [rows, agents]: `agents` leads to the place in the arrays, `real` says which cells are agents."""

    rows: np.ndarray
    heights: np.ndarray  # int64 [asks] rows of each ask
    real: np.ndarray
    agents: np.ndarray
    score: np.ndarray
    deviation: np.ndarray
    similarity: np.ndarray
    slots: np.ndarray
    suspected: np.ndarray
    covers: np.ndarray
    latency: np.ndarray
    cost: np.ndarray
    count: np.ndarray
    partial: np.ndarray  # bool [asks]


def _by_size(asks: Sequence[Ask]) -> dict[int, list[Ask]]:
    """Asks by the power of two that holds their eligible agents: padding at most doubles the work."""
    sizes: dict[int, list[Ask]] = {}
    for ask in asks:
        count = len(ask.eligible)
        if count:
            size = min(count, SHORT) if count > WIDE else count
            sizes.setdefault(max((size - 1).bit_length(), NARROW.bit_length() - 1), []).append(ask)
    return sizes


def _sheet(fleet: Fleet, beliefs: Beliefs, asks: Sequence[Ask], tasks: Tasks, limits: Limits) -> _Sheet:
    sets = [
        _short(fleet, beliefs, ask, tasks, limits) if len(ask.eligible) > WIDE else ask.eligible
        for ask in asks
    ]
    found = [
        (beliefs.basis(ask.domain, ask.task_kind, one.names), beliefs.nearness(ask.domain, one.names))
        for ask, one in zip(asks, sets, strict=True)
    ]
    widths, heights = np.array([len(one) for one in sets]), np.array([len(ask.rows) for ask in asks])
    rows = np.concatenate([ask.rows for ask in asks])
    places = np.arange(widths.max())
    starts = np.cumsum(widths) - widths
    shape = (len(rows), len(places))
    score, deviation, similarity = (np.zeros(shape, np.float32) for _ in range(3))
    predict_into(
        found, widths.tolist(), heights.tolist(), tasks.surfaces[rows], tasks.embeddings[rows],
        score, deviation, similarity,
    )  # fmt: skip
    slots = np.concatenate([one.slots for one in sets])
    count = np.concatenate([basis.count for basis, _ in found])
    cost = np.concatenate([basis.cost_usd_micros for basis, _ in found])
    return _Sheet(
        rows,
        heights,
        np.repeat(places < widths[:, None], heights, axis=0),
        # what pads a row is an agent, too, of this set or another: nobody looks at it
        np.repeat(np.minimum(starts[:, None] + places, len(slots) - 1), heights, axis=0),
        score,
        deviation,
        similarity,
        slots,
        np.concatenate([one.suspected for one in sets]),
        np.concatenate([one.covers for one in sets]),
        np.concatenate([basis.latency_us for basis, _ in found]),
        # before an outcome the registered price is the better guess
        np.where(count > 0, cost, fleet.price[slots]),
        count,
        np.array([one.partial for one in sets]),
    )


def _short(fleet: Fleet, beliefs: Beliefs, ask: Ask, tasks: Tasks, limits: Limits) -> Eligible:
    """The best of a wide set for a typical task of the kind, and the least tried: the same for every row of a turn.

    Healthy agents come before suspected ones. Without this a row would cost some milliseconds with 10,000 agents.
    """
    one = ask.eligible
    surface = beliefs.typical(ask.domain, ask.task_kind)[None]
    part = beliefs.predict(ask.domain, ask.task_kind, one.names, surface, None)
    noise = _noise(np.array([tasks.turn & 0xFFFFFFFF], np.uint32), fleet.salt[one.slots][None])[0]
    success = part.score[0] + ask.strategy.exploration * part.deviation[0] * (1 + noise)
    success = success - 2.0 * one.suspected
    least = np.argsort(part.count + noise * 0.01, kind="stable")[: SHORT // TRIAL_SHARE]
    success[least[part.count[least] < limits.trial]] += 1.0
    kept = np.sort(np.argpartition(-success, SHORT - 1)[:SHORT])
    names = tuple(one.names[place] for place in kept)
    return replace(
        one, slots=one.slots[kept], names=names, suspected=one.suspected[kept], covers=one.covers[kept]
    )


def _widen(sheet: _Sheet, tasks: Tasks, limits: Limits, health: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Which cells are candidates: healthy and within budget; with too few also suspected; then also over budget."""
    fits = sheet.real & (sheet.cost[sheet.agents] <= tasks.budgets[sheet.rows][:, None])
    suspected = sheet.suspected[sheet.agents]
    ok: np.ndarray = fits & ~suspected
    few = ok.sum(axis=1) < limits.wanted
    if few.any():
        more = few & ((fits & suspected).any(axis=1))
        ok |= fits & more[:, None]
        health[sheet.rows] = more
        few &= ok.sum(axis=1) < limits.wanted
        more = few & (sheet.real & ~fits).any(axis=1)
        ok |= sheet.real & more[:, None]
        budget[sheet.rows] = more
    return ok


def _leave_out(
    sheet: _Sheet, ok: np.ndarray, tasks: Tasks, over: np.ndarray, over_slots: dict[int, list[int]]
) -> None:
    """Note who is left out for the budget."""
    budgets = tasks.budgets[sheet.rows][:, None]
    left = sheet.real & ~ok & (sheet.cost[sheet.agents] > budgets)
    over[sheet.rows] = left.sum(axis=1)
    for place in np.flatnonzero(left.any(axis=1)).tolist():
        row = int(sheet.rows[place])
        over_slots[row] = sheet.slots[sheet.agents[place][left[place]][:FILTERED_MAX]].tolist()


def _noise(rows: np.ndarray, agents: np.ndarray) -> np.ndarray:
    """Uniform in -sqrt 3..sqrt 3, by hash of row [r] and agent [r or 1, n]: float32 [r, n]."""
    mixed = mix(agents ^ rows[:, None])
    scattered: np.ndarray = mixed.astype(np.float32) * np.float32(2 * _NOISE / 2**32) - np.float32(_NOISE)
    return scattered


def _utility(
    sheet: _Sheet, ok: np.ndarray, asks: Sequence[Ask], salts: np.ndarray, agent_salts: np.ndarray
) -> np.ndarray:
    weights = np.array([_weights(ask.strategy) for ask in asks], np.float32).repeat(sheet.heights, axis=0)
    exploration, on_success, on_latency, on_stability, on_resource = weights.T[:, :, None]
    noise = _noise(salts, agent_salts[sheet.slots][sheet.agents])
    success = sheet.score + exploration * sheet.deviation * (1 + noise)
    utility = on_success * _within(success, ok, SCORE_RANGE_MIN)
    utility -= on_latency * _within(_log(sheet.latency)[sheet.agents], ok, RATIO_RANGE_MIN)
    utility -= on_stability * _within(sheet.deviation, ok, DEVIATION_RANGE_MIN)
    utility -= on_resource * _within(_log(sheet.cost)[sheet.agents], ok, RATIO_RANGE_MIN)
    utility += noise * np.float32(1e-6)
    return np.where(ok, utility, np.float32(-np.inf))


def _weights(s: Strategy) -> tuple[float, ...]:
    return s.exploration, s.weight_success, s.weight_latency, s.weight_stability, s.weight_resource


def _log(values: np.ndarray) -> np.ndarray:
    return np.log1p(values.astype(np.float32))


def _within(values: np.ndarray, ok: np.ndarray, range_min: float) -> np.ndarray:
    """Values brought to 0..1 among the cells of their row that are `ok`."""
    low = np.where(ok, values, np.float32(np.inf)).min(axis=1, keepdims=True)
    high = np.where(ok, values, np.float32(-np.inf)).max(axis=1, keepdims=True)
    nobody = ~np.isfinite(low)
    low[nobody] = high[nobody] = 0
    within: np.ndarray = (values - low) / np.maximum(high - low, np.float32(range_min))
    return within


def _places(
    sheet: _Sheet, utility: np.ndarray, ok: np.ndarray, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the candidates, best first [rows, k], and which of these places are taken."""
    width, count = utility.shape[1], limits.count
    if width <= count:
        places = np.argsort(-utility, axis=1)
        return places, _at(ok, places)
    wanted = utility
    reserved = count // TRIAL_SHARE
    new = sheet.count < limits.trial
    trial = ok & new[sheet.agents] if reserved and new.any() else None
    if trial is not None and trial.any():
        tried = np.where(trial, sheet.count[sheet.agents] - 1e-3 * utility, np.inf)
        least = np.argpartition(tried, reserved - 1, axis=1)[:, :reserved]
        bonus = np.where(np.isfinite(_at(tried, least)), np.float32(10), np.float32(0))
        wanted = utility.copy()
        np.put_along_axis(wanted, least, _at(utility, least) + bonus, axis=1)
    places = np.argpartition(-wanted, count - 1, axis=1)[:, :count]
    places = _at(places, np.argsort(-_at(utility, places), axis=1))
    kept = _at(ok, places)
    if sheet.partial.any():
        return _representing(sheet, utility, ok, places, kept, limits)
    return places, kept


def _at(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What stands at these columns of each row."""
    found: np.ndarray = matrix[np.arange(len(matrix))[:, None], places]
    return found


def _representing(
    sheet: _Sheet,
    utility: np.ndarray,
    ok: np.ndarray,
    places: np.ndarray,
    kept: np.ndarray,
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray]:
    """For rows without an agent that has everything: some of the best for each capability."""
    chosen = [row[taken].tolist() for row, taken in zip(places, kept, strict=True)]
    for row in np.flatnonzero(np.repeat(sheet.partial, sheet.heights)).tolist():
        order = [place for place in np.argsort(-utility[row]).tolist() if ok[row, place]]
        covers = sheet.covers[sheet.agents[row]]
        bits = int(np.bitwise_or.reduce(covers[order])).bit_length() if order else 0
        share = max(2, limits.count // max(bits, 1))
        wanted: set[int] = set()
        for bit in range(bits):
            able = [place for place in order if covers[place] >> bit & 1]
            wanted.update(able[:share])
        chosen[row] = [place for place in order if place in wanted]
    width = max(map(len, chosen), default=0)
    places = np.zeros((len(chosen), width), np.int64)
    kept = np.zeros((len(chosen), width), bool)
    for row, taken in enumerate(chosen):
        places[row, : len(taken)] = taken
        kept[row, : len(taken)] = True
    return places, kept


def _pick(sheet: _Sheet, places: np.ndarray, kept: np.ndarray, limits: Limits) -> tuple[np.ndarray, ...]:
    order = np.argsort(sheet.rows)
    kept = kept[order]
    lines = np.repeat(order, kept.sum(axis=1))
    cells = lines * sheet.real.shape[1] + places[order][kept]
    agents = sheet.agents.ravel()[cells]
    return (
        sheet.rows[lines],
        sheet.slots[agents],
        sheet.score.ravel()[cells],
        sheet.deviation.ravel()[cells],
        sheet.similarity.ravel()[cells],
        sheet.latency[agents],
        sheet.cost[agents],
        sheet.covers[agents],
        sheet.count[agents] < limits.trial,
    )


_TYPES = (np.int64, np.int64, *[np.float32] * 3, *[np.float64] * 2, np.int64, bool)


def _join(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """All parts as one, rows ascending."""
    if not parts:
        return [np.zeros(0, type) for type in _TYPES]
    if len(parts) == 1:
        return list(parts[0])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]
