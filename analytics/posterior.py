"""Hierarchical contextual posteriors: what each agent is worth on each kind of work, from every outcome.

A *cell* is one agent on one kind of work in one learning domain. It holds discounted sufficient statistics of the
linear model ``score = theta . z`` with ``z = (1, surface)``: the Gram matrix of z, z times score, score squared.
From the cells alone, at publication, come four levels, each the prior mean of the next:

    all work (prior: river's model) -> kind of work -> agent -> agent on this kind

so an agent nobody has tried on a kind starts from what it did elsewhere and from what others did here. Means are
exact ridge solutions given the level above; variances are diagonal. An outcome teaches by addition, so a corrected
score replaces the old one exactly, a cell forgets by a factor, and no level ever holds a stale residual.

Source: Lindley and Smith 1972 (hierarchical linear model); Agrawal and Goyal 2013 (linear Thompson sampling).
Cost: see `Cells.teach`; `solve` inverts one 17 x 17 matrix a cell of the domain, at most ten times a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aos.analytics.beliefs import ALL_KINDS, PRIOR_DEVIATION, PRIOR_SCORE, TERMS

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CELLS_MAX = 8_192  # a partition; 2.9 kB each, half of that in a snapshot: 12 MB
CELLS_KEPT = 0.9  # share that stays, most lately taught first, when they are full
KINDS_MAX = 256  # of a domain; work of further kinds teaches what holds for all kinds

NOISE_PRIOR, NOISE_PRIOR_COUNT = 0.15, 8.0  # variance of one outcome before any, and what that is worth
SPREAD_PRIOR, SPREAD_PRIOR_COUNT = 0.25, 8.0  # the same for a surface feature: most are shares, 0 to 1
NOISE_MIN = 0.01  # of a variance: a run of equal scores must not make anybody sure

SLOPE_MAX = 0.2  # of river's prior, per scale of a feature: scores are between 0 and 1
SUMS = ("weight", "latency_us", "cost_usd_micros", "cpu_us")


@dataclass(slots=True)
class Cells:
    """All cells of one partition; row i of every array is cell i. Grows by doubling."""

    keys: list[tuple[str, str, str]] = field(default_factory=list)  # (domain, kind, agent)
    rows: dict[tuple[str, str, str], int] = field(default_factory=dict)
    grams: Doubles = field(default_factory=lambda: np.zeros((16, TERMS, TERMS)))
    moments: Doubles = field(default_factory=lambda: np.zeros((16, TERMS)))
    squares: Doubles = field(default_factory=lambda: np.zeros(16))
    sums: Doubles = field(default_factory=lambda: np.zeros((16, len(SUMS))))
    lessons: Ints = field(default_factory=lambda: np.zeros(16, np.int64))  # lessons ever, not discounted
    touched: Ints = field(default_factory=lambda: np.zeros(16, np.int64))  # log time of the last one
    drift_count: Ints = field(default_factory=lambda: np.zeros(16, np.int64))
    drifted_at: Ints = field(default_factory=lambda: np.zeros(16, np.int64))
    kinds: dict[str, set[str]] = field(default_factory=dict)  # by domain

    def place(self, keys: Sequence[tuple[str, str, str]]) -> Ints:
        """Rows of (domain, kind, agent), made where they are new."""
        return np.fromiter(
            (self.rows.get(key) if key in self.rows else self._add(key) for key in keys), np.int64
        )

    def of(self, domain: str) -> Ints:
        """Rows of a domain, in order of their making."""
        return np.array([row for row, key in enumerate(self.keys) if key[0] == domain], np.int64)

    def kind(self, domain: str, kind: str | None) -> str:
        """The kind under which work teaches: its own while the domain has room for more kinds."""
        if not kind:
            return ALL_KINDS
        known = self.kinds.setdefault(domain, set())
        return kind if kind in known or len(known) < KINDS_MAX else ALL_KINDS

    def teach(self, cells: Ints, terms: Doubles, scores: Doubles, spent: Doubles, discount: float) -> Ints:
        """Add lessons in their order; return each lesson's number in its cell.

        `terms` [n, TERMS], `scores` [n], `spent` [n, 3]: latency us, cost USD micros, CPU us. Every lesson discounts
        all earlier ones of its cell. Grouped by cell: no Python work a lesson.
        """
        order = np.argsort(cells, kind="stable")
        grouped = cells[order]
        first = np.ones(len(cells), bool)
        np.not_equal(grouped[1:], grouped[:-1], out=first[1:])
        starts = np.flatnonzero(first)
        found, counts = grouped[starts], np.diff(starts, append=len(cells))
        rank = np.arange(len(cells)) - np.repeat(starts, counts)
        weights = discount ** (np.repeat(counts, counts) - 1.0 - rank)
        faded = discount ** counts.astype(np.float64)
        z, y = terms[order], scores[order]
        # half a weight on either side keeps the product symmetric to the bit
        halves = z * np.sqrt(weights)[:, None]
        self._add_grams(halves, found, starts, counts, faded)
        products = np.add.reduceat(z * (weights * y)[:, None], starts, axis=0)
        self.moments[found] = faded[:, None] * self.moments[found] + products
        self.squares[found] = faded * self.squares[found] + np.add.reduceat(weights * y * y, starts)
        amounts = np.column_stack((np.ones(len(cells)), spent[order])) * weights[:, None]
        self.sums[found] = faded[:, None] * self.sums[found] + np.add.reduceat(amounts, starts, axis=0)
        numbers = np.empty(len(cells), np.int64)
        numbers[order] = np.repeat(self.lessons[found], counts) + rank + 1
        self.lessons[found] += counts
        return numbers

    def _add_grams(self, halves: Doubles, found: Ints, starts: Ints, counts: Ints, faded: Doubles) -> None:
        """Fade the Gram matrices of the cells `found` and add those of their lessons."""
        alone = counts == 1  # most cells: together, which is the same to the bit
        z = halves[starts[alone]]
        grams = self.grams[found[alone]]
        grams *= faded[alone][:, None, None]
        grams += z[:, :, None] * z[:, None, :]
        self.grams[found[alone]] = grams
        rest = (column[~alone].tolist() for column in (found, starts, starts + counts, faded))
        for row, start, end, keep in zip(*rest, strict=True):
            gram = self.grams[row]
            gram *= keep
            gram += halves[start:end].T @ halves[start:end]

    def correct(
        self, cell: int, number: int, terms: Doubles, old: float, new: float, discount: float
    ) -> None:
        """Replace one lesson's score, at the weight that lesson has left."""
        weight = discount ** float(self.lessons[cell] - number)
        self.moments[cell] += weight * (new - old) * terms
        self.squares[cell] += weight * (new * new - old * old)

    def reset(self, cell: int, terms: Doubles, scores: Doubles, discount: float) -> None:
        """Forget all of a cell's lessons but these, its newest [n] (after a drift); costs and times stay."""
        weights = discount ** np.arange(len(scores) - 1.0, -1.0, -1.0)
        weighted = terms * weights[:, None]
        halves = terms * np.sqrt(weights)[:, None]
        self.grams[cell] = halves.T @ halves
        self.moments[cell] = scores @ weighted
        self.squares[cell] = float(weights @ (scores * scores))
        self.sums[cell] *= min(1.0, len(scores) / max(self.sums[cell, 0], 1.0))

    def evict(self) -> Ints | None:
        """When full, forget the cells taught longest ago; return where each old row went (-1: forgotten)."""
        if len(self.keys) <= CELLS_MAX:
            return None
        count = len(self.keys)
        order = np.lexsort((np.arange(count), -self.touched[:count]))
        keep = np.sort(order[: int(CELLS_MAX * CELLS_KEPT)])
        moved = np.full(count, -1, np.int64)
        moved[keep] = np.arange(len(keep))
        for name in ARRAYS:
            old = getattr(self, name)
            new = np.zeros_like(old)
            new[: len(keep)] = old[keep]
            setattr(self, name, new)
        self.keys = [self.keys[row] for row in keep]
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.kinds = {}
        for domain, kind, _ in self.keys:
            self.kinds.setdefault(domain, set()).add(kind)
        return moved

    def _add(self, key: tuple[str, str, str]) -> int:
        row = self.rows[key] = len(self.keys)
        self.keys.append(key)
        self.kinds.setdefault(key[0], set()).add(key[1])
        if row >= len(self.squares):
            for name in ARRAYS:
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros_like(old))))
        return row


ARRAYS = ("grams", "moments", "squares", "sums", "lessons", "touched", "drift_count", "drifted_at")


@dataclass(frozen=True, slots=True)
class Strengths:
    """Prior precisions of each level, in outcomes: of the intercept, and of the weight of a scaled feature."""

    top: tuple[float, float]
    kind: tuple[float, float]
    agent: tuple[float, float]
    cell: tuple[float, float]

    @staticmethod
    def of(prior_strength: float) -> Strengths:
        """From the one setting, the intercept's strength of an agent and of an agent on a kind.

        That a feature tells agents apart is believed slowly. Ratios and exploration were chosen on planted worlds of
        tests/unit/learning_world.py, where 4 to 32 outcomes make no difference beyond the error over 16 worlds.
        """
        p = prior_strength
        return Strengths((p / 4, p), (p, 2 * p), (p, 16 * p), (p, 16 * p))


@dataclass(frozen=True, slots=True)
class Solved:
    """The posteriors of one domain, over scaled features. `cells`: rows of `Cells` that the last axis 0 are of."""

    means: Doubles  # [TERMS - 1] of the surface features
    scales: Doubles
    noise: float  # variance of one outcome
    kinds: list[str]
    agents: list[str]
    top: Doubles  # [TERMS] all work
    any_agent: Doubles  # [kinds, TERMS]
    any_variance: Doubles  # [TERMS] of an agent nobody knows
    agent: Doubles  # [agents, TERMS] difference from any agent, over all kinds
    agent_variance: Doubles  # [agents, TERMS] of an agent on a kind it was never seen on
    cells: Ints  # [c]
    cell_kind: Ints  # [c] index into kinds
    cell_agent: Ints  # [c] index into agents
    cell: Doubles  # [c, TERMS] weights of that agent on that kind, all levels summed
    cell_variance: Doubles  # [c, TERMS]


def solve(cells: Cells, domain: str, strengths: Strengths, prior: Doubles | None) -> Solved:
    """Solve every level of a domain from its cells. `prior` [TERMS]: river's weights over the raw features."""
    rows = cells.of(domain)
    kinds = sorted({cells.keys[row][1] for row in rows})
    agents = sorted({cells.keys[row][2] for row in rows})
    kind_at = {name: index for index, name in enumerate(kinds)}
    agent_at = {name: index for index, name in enumerate(agents)}
    kind_of = np.array([kind_at[cells.keys[row][1]] for row in rows], np.int64)
    agent_of = np.array([agent_at[cells.keys[row][2]] for row in rows], np.int64)
    raw = cells.grams[rows]
    means, scales = _moments(raw.sum(0))
    affine = _affine(means, scales)
    grams = _scaled(raw, means, scales)
    moments = cells.moments[rows] @ affine.T
    levels = _precisions(strengths)
    # an agent with many outcomes must not be the prior of all others: its weight saturates
    pooled = 1.0 / (1.0 / levels[2][0, 0] + 1.0 / levels[3][0, 0])
    share = pooled / (pooled + grams[:, 0, 0])
    kind_grams = _sum_by(kind_of, len(kinds), grams * share[:, None, None])
    kind_moments = _sum_by(kind_of, len(kinds), moments * share[:, None])
    start = _start(prior, affine)
    top = start + _ridge(levels[0], kind_grams.sum(0), kind_moments.sum(0), start)
    any_agent = top + _ridge(levels[1], kind_grams, kind_moments, np.broadcast_to(top, kind_moments.shape))
    left = moments - _times(grams, any_agent[kind_of])
    agent_grams = _sum_by(agent_of, len(agents), grams)
    agent = _ridge(levels[2], agent_grams, _sum_by(agent_of, len(agents), left), None)
    weights = any_agent[kind_of] + agent[agent_of]
    own = _ridge(levels[3], grams, left - _times(grams, agent[agent_of]), None)
    noise = _noise(cells.squares[rows], grams, moments, weights + own)
    # an agent's other kinds sharpen its prior on this one; its own cell sharpens the rest
    wide, narrow = levels[2].diagonal(), levels[3].diagonal()
    diagonal = np.diagonal(grams, axis1=1, axis2=2)
    elsewhere = np.diagonal(agent_grams, axis1=1, axis2=2)[agent_of] - diagonal
    cell_variance = noise / (diagonal + 1.0 / (1.0 / narrow + 1.0 / (wide + np.maximum(elsewhere, 0.0))))
    agent_variance = noise * (1.0 / narrow + 1.0 / (wide + np.diagonal(agent_grams, axis1=1, axis2=2)))
    any_variance = noise * (1.0 / narrow + 1.0 / wide)
    any_variance[0] = min(any_variance[0], PRIOR_DEVIATION**2)
    return Solved(
        means, scales, noise, kinds, agents, top, any_agent, any_variance, agent, agent_variance,
        rows, kind_of, agent_of, weights + own, cell_variance,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _precisions(strengths: Strengths) -> tuple[Doubles, ...]:
    """The prior precision of each level [TERMS, TERMS]; nobody may change them."""
    levels = (strengths.top, strengths.kind, strengths.agent, strengths.cell)
    return tuple(np.diag([low, *[high] * (TERMS - 1)]) for low, high in levels)


def _moments(gram: Doubles) -> tuple[Doubles, Doubles]:
    """Mean and scale of each surface feature over the domain; few outcomes are held by the prior spread."""
    count = gram[0, 0]
    means: Doubles = gram[0, 1:] / max(count, 1e-9)
    spread = np.maximum(gram.diagonal()[1:] - count * means**2, 0.0)
    scales: Doubles = np.sqrt((spread + SPREAD_PRIOR * SPREAD_PRIOR_COUNT) / (count + SPREAD_PRIOR_COUNT))
    return means, scales


def _affine(means: Doubles, scales: Doubles) -> Doubles:
    """The matrix that takes (1, x) to (1, (x - mean) / scale)."""
    affine = np.eye(TERMS)
    affine[1:, 0] = -means / scales
    affine[1:, 1:] = np.diag(1.0 / scales)
    return affine


def _scaled(raw: Doubles, means: Doubles, scales: Doubles) -> Doubles:
    """Gram matrices [c, TERMS, TERMS] over scaled features: ``affine @ raw @ affine.T``, elementwise and so cheaper."""
    grams = np.empty_like(raw)
    count, sums = raw[:, 0, 0], raw[:, 0, 1:]
    centred = sums - count[:, None] * means
    grams[:, 0, 0] = count
    grams[:, 0, 1:] = grams[:, 1:, 0] = centred / scales
    product = sums[:, :, None] * means
    inner = raw[:, 1:, 1:] - product
    inner -= np.multiply(means[:, None], centred[:, None, :], out=product)
    np.divide(inner, scales[:, None] * scales, out=grams[:, 1:, 1:])
    return grams


def _start(prior: Doubles | None, affine: Doubles) -> Doubles:
    """The top level's prior mean over scaled features."""
    if prior is None:
        start = np.zeros(TERMS)
        start[0] = PRIOR_SCORE
        return start
    start = np.asarray(np.linalg.solve(affine.T, prior), np.float64)
    start[0] = min(max(start[0], 0.0), 1.0)
    start[1:] = np.clip(start[1:], -SLOPE_MAX, SLOPE_MAX)
    return start


def _sum_by(groups: Ints, count: int, values: Doubles) -> Doubles:
    """Sum values [n, ...] by group: [count, ...]."""
    total = np.zeros((count, *values.shape[1:]))
    if not len(groups):
        return total
    order, heights = np.argsort(groups, kind="stable"), np.bincount(groups, minlength=count)
    starts = np.cumsum(heights) - heights
    if heights.max() > ADDED_ONE_BY_ONE:
        found = np.flatnonzero(heights)
        total[found] = np.add.reduceat(values[order], starts[found], axis=0)
        return total
    for place in range(int(heights.max())):
        found = np.flatnonzero(heights > place)
        added = values[order[starts[found] + place]]
        total[found] = total[found] + added if place else added
    return total


ADDED_ONE_BY_ONE = (
    4  # up to so many of a group, usual for agents, this is faster than reduceat; the sum is the same
)


def _times(grams: Doubles, weights: Doubles) -> Doubles:
    return (grams @ weights[..., None])[..., 0]


def _ridge(precision: Doubles, grams: Doubles, moments: Doubles, start: Doubles | None) -> Doubles:
    """The ridge solution's difference from `start` (from zero when None)."""
    if start is not None:
        moments = moments - _times(grams, start)
    return np.asarray(np.linalg.solve(precision + grams, moments[..., None])[..., 0], np.float64)


def _noise(squares: Doubles, grams: Doubles, moments: Doubles, weights: Doubles) -> float:
    """Variance of one outcome around what is expected of it."""
    residual = squares - 2.0 * (weights * moments).sum(1) + (weights * _times(grams, weights)).sum(1)
    count = float(grams[:, 0, 0].sum())
    noise = (max(float(residual.sum()), 0.0) + NOISE_PRIOR * NOISE_PRIOR_COUNT) / (count + NOISE_PRIOR_COUNT)
    return max(noise, NOISE_MIN)
