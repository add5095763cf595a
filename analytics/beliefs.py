"""The view of what is believed of agents: what match asks for every step.

Each row of `aos.beliefs` is one agent on one kind of work (agent empty: any agent nobody knows, kind empty: work
without a kind, or of a kind nobody has seen). A score is linear in the scaled surface features:
``score = w0 + sum(w[j] * (x[j] - mean[j]) / scale[j])``, its variance is diagonal over the same terms. The prior
where nothing was learned is that of a score spread evenly over 0..1: mean .5, deviation .29.

An agent without a row for the kind is believed to differ from "any agent on this kind" as it differs from "any agent
on all kinds". Nothing here learns: `analytics.posterior` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TERMS = SURFACE_SIZE + 1  # the intercept, then the surface features
PRIOR_SCORE, PRIOR_DEVIATION = 0.5, 0.29
PRIOR_LATENCY_US, PRIOR_COST_USD_MICROS = 1_000_000.0, 0.0
REMEMBERED_MAX = (
    32_768  # agents in all lists whose beliefs are kept at hand, 1.2 KB each; match asks for few lists
)
REMEMBERED_LIST_MAX = 1_024  # longer lists are not remembered
LIMIT = 4.0  # scales a feature may lie from its mean: what lies further must not decide by itself

ALL_KINDS = ""
ANY_AGENT = ""


def key_of(domain: str, kind: str) -> bytes:
    """The key of one kind's beliefs on the topic: ``<domain>/<kind>``, the domain percent-encoded."""
    return f"{quote(domain, safe='')}/{kind}".encode()


def centres_key(domain: str) -> bytes:
    """The key of a domain's mean embeddings: 1 KB an agent, so they travel apart and less often."""
    return f"{quote(domain, safe='')}#centres".encode()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect of n agents on r tasks. `deviation` is that of the mean, not of one outcome."""

    score: Floats  # [r, n] 0..1
    deviation: Floats  # [r, n]
    similarity: Floats  # [r, n] cosine of task and mean of past successes, 0 when unknown
    latency_us: Doubles  # [n]
    cost_usd_micros: Doubles  # [n]
    count: Doubles  # [n] outcomes, after discounts; 0 for an agent never seen on this kind


@dataclass(frozen=True, slots=True)
class Standing:
    """The known agents on a typical task of one kind."""

    kind: str
    score: Floats  # [n]
    deviation: Floats  # [n]
    count: Doubles  # [n]
    drift_count: int  # changes detected so far, over all agents


@dataclass(slots=True)
class Table:
    """One kind of work: arrays by row, row 0 is any agent. `slot_rows` maps an agent's slot to its row, -1: none."""

    weights: Floats  # [rows, TERMS]
    variances: Floats  # [rows, TERMS]
    latency_us: Doubles
    cost_usd_micros: Doubles
    count: Doubles
    means: Floats  # [SURFACE_SIZE]
    scales: Floats  # [SURFACE_SIZE]
    slot_rows: Ints
    version: int
    drifts: Ints


@dataclass(frozen=True, slots=True)
class Basis:
    """What a prediction of n agents on one kind of work rests on, as long as these tables are the newest.

    `weights` and `variances` are None where nothing was taught. `whole` is None when no agent needed it.
    """

    table: Table | None
    whole: Table | None
    weights: Floats | None  # [n, TERMS]
    variances: Floats | None  # [n, TERMS]
    latency_us: Doubles  # [n]
    cost_usd_micros: Doubles  # [n]
    count: Doubles  # [n]
    means: Floats  # [SURFACE_SIZE]
    scales: Floats  # [SURFACE_SIZE]


@dataclass(frozen=True, slots=True)
class Nearness:
    """Mean embeddings of some of n agents: `vectors` [k, EMBEDDING_SIZE] are those at `places`, of all when None."""

    of: Centres | None
    places: Ints | None
    vectors: Floats


Centres = tuple[dict[str, int], Floats]  # row of each agent that has a mean embedding, and the embeddings


@dataclass(slots=True)
class Beliefs:
    """Everything believed, by domain and kind; `apply` is the only one that changes it.

    `bases` and `near` remember what was asked; forgetting them changes no answer.
    """

    tables: dict[tuple[str, str], Table] = field(default_factory=dict)
    keys: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    centres: dict[str, Centres] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    bases: dict[tuple[str, str, tuple[str, ...]], Basis] = field(default_factory=dict)
    near: dict[tuple[str, tuple[str, ...]], Nearness] = field(default_factory=dict)
    remembered: int = 0  # agents in `bases` and `near`

    def version(self, domain: str) -> int:
        """Next offset of the experiences that the domain's newest belief rests on, 0 before any."""
        return self.versions.get(domain, 0)

    def predict(
        self,
        domain: str,
        task_kind: str | None,
        agents: Sequence[str],
        surfaces: Floats,
        embeddings: Floats | None,
    ) -> Prediction:
        """What to expect of `agents` on tasks with these surfaces [r, 16] and embeddings [r, 256]; None: whatever
        they are like."""
        names, count = tuple(agents), len(surfaces)
        basis = self.basis(domain, task_kind, names)
        near = NOWHERE if embeddings is None else self.nearness(domain, names)
        score, deviation, similarity = (np.zeros((count, len(names)), np.float32) for _ in range(3))
        tasks = surfaces if embeddings is None else embeddings
        predict_into([(basis, near)], [len(names)], [count], surfaces, tasks, score, deviation, similarity)
        return Prediction(score, deviation, similarity, basis.latency_us, basis.cost_usd_micros, basis.count)

    def basis(self, domain: str, task_kind: str | None, agents: tuple[str, ...]) -> Basis:
        """What a prediction of these agents on this kind of work rests on."""
        kind = task_kind or ALL_KINDS
        whole = self.tables.get((domain, ALL_KINDS))
        table = self.tables.get((domain, kind)) or whole
        key = (domain, kind, agents)
        known = self.bases.get(key)
        if known is not None and known.table is table and (known.whole is None or known.whole is whole):
            return known
        made = _untaught(len(agents)) if table is None else _basis(table, whole, self._slots(agents))
        if self._remembers(len(agents), known is None):
            self.bases[key] = made
        return made

    def nearness(self, domain: str, agents: tuple[str, ...]) -> Nearness:
        """The mean embeddings of these agents."""
        of = self.centres.get(domain)
        if of is None:
            return NOWHERE
        known = self.near.get((domain, agents))
        if known is not None and known.of is of:
            return known
        rows = [(place, of[0][name]) for place, name in enumerate(agents) if name in of[0]]
        places, found = np.array(rows, np.int64).reshape(-1, 2).T
        made = Nearness(of, places if len(places) < len(agents) else None, of[1][found])
        if self._remembers(len(agents), known is None):
            self.near[domain, agents] = made
        return made

    def typical(self, domain: str, task_kind: str | None) -> Floats:
        """The surface [16] of a typical task of the kind: the mean of what was learned from, zeros before."""
        kind = task_kind or ALL_KINDS
        table = self.tables.get((domain, kind)) or self.tables.get((domain, ALL_KINDS))
        return np.zeros(SURFACE_SIZE, np.float32) if table is None else table.means

    def outcomes(self, agents: Sequence[str]) -> Doubles:
        """Outcomes learned of each agent over all domains and kinds, after discounts: [n]; what register asks."""
        slots = self._slots(agents)
        total = np.zeros(len(slots))
        for (_, kind), table in self.tables.items():
            if kind == ALL_KINDS:
                rows = _rows(table, slots)
                total += np.where(rows > 0, table.count[rows], 0.0)
        return total

    def standings(self, domain: str) -> list[Standing]:
        """How the agents stand on each kind of the domain's work, by kind; what optimise asks."""
        return [
            Standing(
                kind,
                table.weights[1:, 0],
                np.sqrt(table.variances[1:, 0]),
                table.count[1:],
                int(table.drifts[0]),
            )
            for (name, kind), table in sorted(self.tables.items(), key=lambda item: item[0])
            if name == domain
        ]

    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> Beliefs:
        """Replace the value of a key (None or no rows: forget it); return this view."""
        if rows is None or rows.num_rows == 0:
            gone = self.keys.pop(key, None)
            if gone is not None and key == centres_key(gone[0]):
                self.centres.pop(gone[0], None)
            elif gone is not None:
                self.tables.pop(gone, None)
            return self
        domain, kind = rows.column("domain")[0].as_py(), rows.column("task_kind")[0].as_py()
        self.keys[key] = (domain, kind)
        if key == centres_key(domain):
            self.centres[domain] = _centres(rows)
            return self
        table = self._table(rows)
        self.tables[domain, kind] = table
        self.versions[domain] = max(self.versions.get(domain, 0), table.version)
        return self

    def _slots(self, agents: Sequence[str]) -> Ints:
        return np.array([self.slots.setdefault(name, len(self.slots)) for name in agents], np.int64)

    def _remembers(self, count: int, new: bool) -> bool:
        """Whether a list of `count` agents may be kept at hand; the others go when it is too much."""
        if count > REMEMBERED_LIST_MAX:
            return False
        self.remembered += count * new
        if self.remembered > REMEMBERED_MAX:
            self.bases.clear()
            self.near.clear()
            self.remembered = count
        return True

    def _table(self, rows: pa.RecordBatch) -> Table:
        names = rows.column("agent").to_pylist()
        order = sorted(range(len(names)), key=lambda index: names[index])  # any agent ("") comes first
        if names[order[0]] != ANY_AGENT:
            raise ValueError(f"beliefs of {rows.column('task_kind')[0]} lack the row of any agent")
        slots = [self.slots.setdefault(names[index], len(self.slots)) for index in order[1:]]
        slot_rows = np.full(len(self.slots), -1, np.int64)
        slot_rows[slots] = np.arange(1, len(order))
        first = order[0]
        table = Table(
            _matrix(rows.column("weights"), TERMS)[order],
            _matrix(rows.column("variances"), TERMS)[order],
            rows.column("latency_us").to_numpy()[order],
            rows.column("cost_usd_micros").to_numpy()[order],
            rows.column("count").to_numpy()[order],
            np.array(rows.column("means")[first].as_py(), np.float32),
            np.array(rows.column("scales")[first].as_py(), np.float32),
            slot_rows,
            int(rows.column("model_version")[first].as_py()),
            rows.column("drift_count").to_numpy()[order].astype(np.int64),
        )
        # what is below these predicts no number, and one agent's NaN spoils the order of all
        for name in ("variances", "latency_us", "cost_usd_micros", "count"):
            if (getattr(table, name) < 0).any():
                raise ValueError(f"a belief's {name} is negative")
        if not (table.scales > 0).all():
            raise ValueError("a feature is divided by nothing")
        return table


def _rows(table: Table, slots: Ints) -> Ints:
    """Rows of the slots, 0 (any agent) where the table does not know the agent."""
    known = slots < len(table.slot_rows)
    rows = np.zeros(len(slots), np.int64)
    rows[known] = np.maximum(table.slot_rows[slots[known]], 0)
    return rows


def _borrow(
    whole: Table, slots: Ints, rows: Ints, weights: Floats, variances: Floats, latency: Doubles, cost: Doubles
) -> None:
    """For agents unknown on this kind but known on others: their difference from any agent there, in place."""
    other = _rows(whole, slots)
    lend = (rows == 0) & (other > 0)
    if lend.any():
        lenders = other[lend]
        weights[lend] += whole.weights[lenders] - whole.weights[0]
        variances[lend] = whole.variances[lenders]
        latency[lend] *= whole.latency_us[lenders] / max(whole.latency_us[0], 1.0)
        cost[lend] = np.maximum(cost[lend] + whole.cost_usd_micros[lenders] - whole.cost_usd_micros[0], 0.0)


def _untaught(count: int) -> Basis:
    """The prior, where a domain has taught nothing."""
    return Basis(
        None, None, None, None,
        np.full(count, PRIOR_LATENCY_US), np.full(count, PRIOR_COST_USD_MICROS), np.zeros(count),
        np.zeros(SURFACE_SIZE, np.float32), np.ones(SURFACE_SIZE, np.float32),
    )  # fmt: skip


def _basis(table: Table, whole: Table | None, slots: Ints) -> Basis:
    rows = _rows(table, slots)
    weights, variances = table.weights[rows], table.variances[rows]
    latency, cost = table.latency_us[rows], table.cost_usd_micros[rows]
    lent = whole is not None and whole is not table and not rows.all()
    if whole is not None and lent:
        _borrow(whole, slots, rows, weights, variances, latency, cost)
    count = np.where(rows > 0, table.count[rows], 0.0)
    lender = whole if lent else None
    return Basis(table, lender, weights, variances, latency, cost, count, table.means, table.scales)


def predict_into(
    bases: Sequence[tuple[Basis, Nearness]],
    widths: Sequence[int],
    heights: Sequence[int],
    surfaces: Floats,
    embeddings: Floats,
    score: Floats,
    deviation: Floats,
    similarity: Floats,
) -> None:
    """Predict tasks that stand one group of `heights` after the other, each for the agents of its basis.

    `score`, `deviation` and `similarity` are zeros [tasks, at least the largest of widths] and are filled in place;
    cells beyond a group's width stay 0.
    """
    terms = _terms([basis for basis, _ in bases], heights, surfaces)
    squares = np.square(terms)
    end = 0
    for (basis, near), width, height in zip(bases, widths, heights, strict=True):
        start, end = end, end + height
        if basis.weights is None or basis.variances is None:
            score[start:end, :width] = PRIOR_SCORE
            deviation[start:end, :width] = 1.0  # cut to the prior's below
        else:
            np.matmul(terms[start:end], basis.weights.T, out=score[start:end, :width])
            np.matmul(squares[start:end], basis.variances.T, out=deviation[start:end, :width])
        if near.places is None:
            if len(near.vectors):
                np.matmul(embeddings[start:end], near.vectors.T, out=similarity[start:end, :width])
        elif len(near.places):
            similarity[start:end, near.places] = embeddings[start:end] @ near.vectors.T
    np.clip(score, 0.0, 1.0, out=score)
    np.minimum(np.sqrt(deviation, out=deviation), np.float32(PRIOR_DEVIATION), out=deviation)
    np.clip(similarity, -1.0, 1.0, out=similarity)


def _terms(bases: Sequence[Basis], heights: Sequence[int], surfaces: Floats) -> Floats:
    """The scaled terms [tasks, TERMS] of tasks that stand group after group."""
    group = np.repeat(np.arange(len(bases)), heights)
    terms = np.empty((len(surfaces), TERMS), np.float32)
    terms[:, 0] = 1.0
    np.subtract(surfaces, np.array([basis.means for basis in bases])[group], out=terms[:, 1:])
    terms[:, 1:] /= np.array([basis.scales for basis in bases])[group]
    return np.clip(terms, -LIMIT, LIMIT, out=terms)


NOWHERE = Nearness(None, None, np.zeros((0, EMBEDDING_SIZE), np.float32))


def _centres(rows: pa.RecordBatch) -> Centres:
    """Row of each agent that has a mean embedding, and the embeddings."""
    names = rows.column("agent").to_pylist()
    return {name: row for row, name in enumerate(names)}, _matrix(rows.column("centre"), EMBEDDING_SIZE)


def _matrix(column: pa.Array, size: int) -> Floats:
    """A list column without nulls, all of `size`, as [rows, size]."""
    values: Floats = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), size)
    return values
