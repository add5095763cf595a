"""All that a partition of experiences has taught: cells, last lessons, river models, detectors, mean embeddings.

`teach` takes outcomes in the order of the log, `correct` replaces scores, `beliefs` says what is believed of every
agent on one kind of work. Everything is a function of the log: no clock, no chance. `dump` and `load` are in
`analytics.learner_state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aos.analytics.beliefs import ALL_KINDS, PRIOR_COST_USD_MICROS, PRIOR_LATENCY_US, TERMS
from aos.analytics.lessons import Lessons
from aos.analytics.posterior import Cells, Solved, Strengths, solve
from aos.analytics.river_models import Detector, OnlineModels
from aos.codecs.fields import EMBEDDING_SIZE

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CENTRE_DISCOUNT = 0.99  # weight a success keeps in its agent's mean embedding with each later one
CPU_PRIOR_US = 0.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Attempts that teach, in log order. `sampled`: rows the river models learn from."""

    keys: list[bytes]
    steps: list[str]
    domains: list[str]
    kinds: list[str | None]
    agents: list[str]
    scores: Doubles  # [n] 0..1
    spent: Doubles  # [n, 3] latency us, cost USD micros, CPU us
    surfaces: Floats  # [n, 16]
    embeddings: npt.NDArray[np.float16] | None  # [n, 256]
    sampled: npt.NDArray[np.bool_]

    def take(self, positions: Sequence[int]) -> Outcomes:
        """These rows only."""
        if len(positions) == len(self.keys):
            return self
        lists = [
            [column[at] for at in positions]
            for column in (self.keys, self.steps, self.domains, self.kinds, self.agents)
        ]
        rest = (self.scores, self.spent, self.surfaces, self.embeddings, self.sampled)
        index = np.array(positions, np.int64)
        return Outcomes(*lists, *(None if part is None else part[index] for part in rest))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Believed:
    """What is believed on one kind of work, a row an agent; row 0 is any agent."""

    agents: list[str]
    weights: Floats  # [rows, TERMS]
    variances: Floats
    count: Doubles
    latency_us: Doubles
    cost_usd_micros: Doubles
    cpu_us: Doubles
    drift_count: Ints
    drifted_at: Ints  # 0: never
    means: Floats
    scales: Floats


@dataclass(slots=True)
class Learner:
    """One partition's learning domains."""

    cells: Cells = field(default_factory=Cells)
    lessons: Lessons = field(default_factory=Lessons)
    models: dict[str, OnlineModels] = field(default_factory=dict)
    detectors: dict[tuple[str, str, str], Detector] = field(default_factory=dict)
    centres: dict[tuple[str, str], Floats] = field(default_factory=dict)  # (domain, agent) -> [256] sum

    def teach(self, outcomes: Outcomes, now: int, discount: float) -> list[tuple[str, str]]:
        """Teach outcomes that were not taught before; return (domain, kind) of each that was."""
        outcomes = outcomes.take(self.lessons.fresh(outcomes.keys))
        if not outcomes.keys:
            return []
        touched = [
            (domain, self.cells.kind(domain, kind))
            for domain, kind in zip(outcomes.domains, outcomes.kinds, strict=True)
        ]
        keys = [(*pair, agent) for pair, agent in zip(touched, outcomes.agents, strict=True)]
        rows = self.cells.place(keys)
        numbers = self.cells.teach(
            rows, terms_of(outcomes.surfaces), outcomes.scores, outcomes.spent, discount
        )
        self.cells.touched[rows] = now
        self.lessons.add(outcomes.keys, outcomes.steps, rows, numbers, outcomes.scores, outcomes.surfaces)
        self._watch(keys, outcomes.scores.tolist(), now, discount)
        self._gather(outcomes)
        self._model(outcomes, touched)
        self._evict()
        return touched

    def correct(
        self, tenant: str, request: bytes, step_name: str | None, score: float, discount: float
    ) -> tuple[str, str] | None:
        """Replace the score of the attempt a correction is about; return (domain, kind), None when it is unknown.

        Anybody may name any request's id: only a domain of the `tenant` who speaks (its own, or a part of it) changes.
        """
        slot = self.lessons.about(request, step_name)
        if slot is None or self.lessons.cells[slot] < 0:
            return None
        cell, old = int(self.lessons.cells[slot]), float(self.lessons.scores[slot])
        if old == score or self.cells.keys[cell][0].partition("/")[0] != tenant:
            return None
        terms = terms_of(self.lessons.surfaces[slot : slot + 1])[0]
        self.cells.correct(cell, int(self.lessons.numbers[slot]), terms, old, score, discount)
        self.lessons.scores[slot] = score
        return self.cells.keys[cell][:2]

    def solve(self, domain: str, prior_strength: float) -> Solved:
        """The posteriors of a domain that has taught something."""
        models = self.models.get(domain)
        prior = models.prior(sorted(self.cells.kinds[domain])) if models else None
        return solve(self.cells, domain, Strengths.of(prior_strength), prior)

    def beliefs(self, domain: str, kind: str, solved: Solved, prior_strength: float) -> Believed:
        """What is believed on a kind of work; on `ALL_KINDS` for work without a kind or of an unknown one."""
        own = solved.kinds.index(kind) if kind in solved.kinds else -1
        mine = np.flatnonzero(solved.cell_kind == own)
        base = solved.any_agent[own] if own >= 0 else solved.top
        if (
            kind == ALL_KINDS
        ):  # every agent of the domain; those with cells of this kind get their own rows below
            agents = np.arange(len(solved.agents))
            weights, variances = base + solved.agent, solved.agent_variance.copy()
            weights[solved.cell_agent[mine]] = solved.cell[mine]
            variances[solved.cell_agent[mine]] = solved.cell_variance[mine]
            member = np.arange(len(solved.cells))
        else:
            agents = solved.cell_agent[mine]
            weights, variances = solved.cell[mine], solved.cell_variance[mine]
            member = mine
        place = np.full(len(solved.agents), -1, np.int64)
        place[agents] = np.arange(len(agents))
        at, rows = place[solved.cell_agent[member]], solved.cells[member]
        sums = np.zeros((len(agents), 4))
        np.add.at(sums, at, self.cells.sums[rows])
        count, drifts = np.zeros(len(agents)), np.zeros(len(agents), np.int64)
        np.add.at(count, at, self.cells.grams[rows, 0, 0])
        np.add.at(drifts, at, self.cells.drift_count[rows])
        drifted_at = np.zeros(len(agents), np.int64)
        np.maximum.at(drifted_at, at, self.cells.drifted_at[rows])
        names = [solved.agents[index] for index in agents]
        spent = self._spent(domain, kind, names, sums, prior_strength)
        latency, cost, cpu = spent[:, 0], spent[:, 1], spent[:, 2]
        return Believed(
            ["", *names],
            np.vstack((base, weights)).astype(np.float32),
            np.vstack((solved.any_variance, variances)).astype(np.float32),
            np.r_[count.sum(), count],
            latency,
            cost,
            cpu,
            np.r_[drifts.sum(), drifts],
            np.r_[drifted_at.max(initial=0), drifted_at],
            solved.means.astype(np.float32),
            solved.scales.astype(np.float32),
        )

    def centres_of(self, domain: str) -> tuple[list[str], Floats]:
        """Agents of a domain and the unit mean embeddings of their successes."""
        found = [(key[1], vector) for key, vector in self.centres.items() if key[0] == domain]
        lengths = np.sqrt(np.array([vector.dot(vector) for _, vector in found], np.float32))
        kept = np.flatnonzero(lengths > 0).tolist()
        vectors = np.array([found[at][1] for at in kept], np.float32).reshape(len(kept), EMBEDDING_SIZE)
        vectors /= lengths[kept, None]
        return [found[at][0] for at in kept], vectors

    def _spent(self, domain: str, kind: str, agents: list[str], sums: Doubles, strength: float) -> Doubles:
        """Latency, cost and CPU time [agents + 1, 3]: means of outcomes, held by river's or the pooled mean."""
        total = sums.sum(0)
        defaults = np.array((PRIOR_LATENCY_US, PRIOR_COST_USD_MICROS, CPU_PRIOR_US))
        pooled = (total[1:] + defaults) / (total[0] + 1.0)
        prior = np.tile(pooled, (len(agents), 1))
        models = self.models.get(domain)
        for column, name in enumerate(("latency", "cost")):
            expected = models.expected(name, kind, agents) if models else None
            if expected is not None:
                prior[:, column] = expected
        own = (sums[:, 1:] + strength * prior) / (sums[:, :1] + strength)
        spent: Doubles = np.vstack((pooled, own))
        return spent

    def _watch(
        self, keys: list[tuple[str, str, str]], scores: list[float], now: int, discount: float
    ) -> None:
        """Let each cell's detector see its scores; teach a cell that changed anew from what came since."""
        by_cell: dict[tuple[str, str, str], list[float]] = {}
        for key, score in zip(keys, scores, strict=True):
            by_cell.setdefault(key, []).append(score)
        changed = []
        for key, values in by_cell.items():
            detector = self.detectors.get(key)
            if detector is None:
                detector = self.detectors[key] = Detector()
            if detector.update(values):
                changed.append(key)
        for key in changed:
            row = self.cells.rows[key]
            slots = self.lessons.newest(row, len(self.detectors[key].values))
            self.cells.reset(
                row, terms_of(self.lessons.surfaces[slots]), self.lessons.scores[slots], discount
            )
            self.cells.drift_count[row] += 1
            self.cells.drifted_at[row] = now

    def _gather(self, outcomes: Outcomes) -> None:
        """Add embeddings, by their scores, to the mean of their agent's successes."""
        if outcomes.embeddings is None:
            return
        places: dict[tuple[str, str], int] = {}
        keys = zip(outcomes.domains, outcomes.agents, strict=True)
        place = np.array([places.setdefault(key, len(places)) for key in keys])
        counts = np.bincount(place)
        weighted = outcomes.embeddings.astype(np.float32)
        weighted *= outcomes.scores.astype(np.float32)[:, None]
        if len(counts) < len(place):
            order, starts = np.argsort(place, kind="stable"), np.cumsum(counts) - counts
            weighted = np.add.reduceat(weighted[order], starts, axis=0)
        keeps = (CENTRE_DISCOUNT**counts).astype(np.float32).tolist()
        for (key, at), keep in zip(places.items(), keeps, strict=True):
            old = self.centres.get(key)
            if old is None:
                self.centres[key] = weighted[at].copy()
            else:
                old *= np.float32(keep)
                old += weighted[at]

    def _model(self, outcomes: Outcomes, touched: list[tuple[str, str]]) -> None:
        for at in np.flatnonzero(outcomes.sampled).tolist():
            domain, kind = touched[at]
            models = self.models.get(domain)
            if models is None:
                models = self.models[domain] = OnlineModels()
            latency, cost, _ = outcomes.spent[at].tolist()
            surface = outcomes.surfaces[at].astype(np.float64).tolist()
            models.learn(kind, outcomes.agents[at], surface, float(outcomes.scores[at]), latency, cost)

    def _evict(self) -> None:
        moved = self.cells.evict()
        if moved is None:
            return
        self.lessons.move(moved)
        kept = self.cells.rows
        self.detectors = {key: value for key, value in self.detectors.items() if key in kept}
        pairs = {(domain, agent) for domain, _, agent in kept}
        self.centres = {key: value for key, value in self.centres.items() if key in pairs}
        self.models = {domain: value for domain, value in self.models.items() if domain in self.cells.kinds}


def terms_of(surfaces: np.ndarray) -> Doubles:
    """(1, surface) [n, TERMS] of surfaces [n, 16]."""
    terms: Doubles = np.ones((len(surfaces), TERMS))
    terms[:, 1:] = surfaces
    return terms
