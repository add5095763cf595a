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
KNOWN_LISTS_MAX = 512  # lists of agents whose slots are remembered; match asks for few different lists
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


@dataclass(slots=True)
class Beliefs:
    """Everything believed, by domain and kind; `apply` is the only one that changes it."""

    tables: dict[tuple[str, str], Table] = field(default_factory=dict)
    keys: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    centres: dict[str, tuple[dict[str, int], Floats]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    lists: dict[tuple[str, ...], Ints] = field(default_factory=dict)

    def version(self, domain: str) -> int:
        """Next offset of the experiences that the domain's newest belief rests on, 0 before any."""
        return self.versions.get(domain, 0)

    def predict(
        self,
        domain: str,
        task_kind: str | None,
        agents: Sequence[str],
        surfaces: np.ndarray,
        embeddings: np.ndarray,
    ) -> Prediction:
        """What to expect of `agents` on tasks with these surfaces [r, 16] and embeddings [r, 256]."""
        slots = self._slots(agents)
        similarity = self._similarity(domain, agents, embeddings)
        whole = self.tables.get((domain, ALL_KINDS))
        table = self.tables.get((domain, task_kind or ALL_KINDS)) or whole
        if table is None:
            return _untaught(len(surfaces), len(agents), similarity)
        rows = _rows(table, slots)
        weights, variances = table.weights[rows], table.variances[rows]
        latency, cost = table.latency_us[rows], table.cost_usd_micros[rows]
        count = np.where(rows > 0, table.count[rows], 0.0)
        if whole is not None and whole is not table:
            _borrow(whole, slots, rows, weights, variances, latency, cost)
        terms = np.empty((len(surfaces), TERMS), np.float32)
        terms[:, 0] = 1.0
        np.subtract(surfaces, table.means, out=terms[:, 1:])
        terms[:, 1:] /= table.scales
        np.clip(terms, -LIMIT, LIMIT, out=terms)
        score = np.clip(terms @ weights.T, 0.0, 1.0)
        np.square(terms, out=terms)
        deviation = np.minimum(np.sqrt(terms @ variances.T), np.float32(PRIOR_DEVIATION))
        return Prediction(score, deviation, similarity, latency, cost, count)

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
        """Slots of the agents; the list is remembered, because match asks for the same few."""
        names = tuple(agents)
        found = self.lists.get(names)
        if found is None:
            found = np.array([self.slots.setdefault(name, len(self.slots)) for name in names], np.int64)
            if len(self.lists) >= KNOWN_LISTS_MAX:
                self.lists.clear()
            self.lists[names] = found
        return found

    def _similarity(self, domain: str, agents: Sequence[str], embeddings: np.ndarray) -> Floats:
        where, centres = self.centres.get(domain, ({}, None))
        similarity = np.zeros((len(embeddings), len(agents)), np.float32)
        if centres is None:
            return similarity
        known = [(place, where[name]) for place, name in enumerate(agents) if name in where]
        if known:
            places, rows = np.array(known).T
            tasks = np.asarray(embeddings, np.float32)
            similarity[:, places] = np.clip(tasks @ centres[rows].T, -1.0, 1.0)
        return similarity

    def _table(self, rows: pa.RecordBatch) -> Table:
        names = rows.column("agent").to_pylist()
        order = sorted(range(len(names)), key=lambda index: names[index])  # any agent ("") comes first
        if names[order[0]] != ANY_AGENT:
            raise ValueError(f"beliefs of {rows.column('task_kind')[0]} lack the row of any agent")
        slots = [self.slots.setdefault(names[index], len(self.slots)) for index in order[1:]]
        slot_rows = np.full(len(self.slots), -1, np.int64)
        slot_rows[slots] = np.arange(1, len(order))
        first = order[0]
        return Table(
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


def _untaught(tasks: int, agents: int, similarity: Floats) -> Prediction:
    """The prior, where a domain has taught nothing."""
    return Prediction(
        np.full((tasks, agents), PRIOR_SCORE, np.float32),
        np.full((tasks, agents), PRIOR_DEVIATION, np.float32),
        similarity,
        np.full(agents, PRIOR_LATENCY_US),
        np.full(agents, PRIOR_COST_USD_MICROS),
        np.zeros(agents),
    )


def _centres(rows: pa.RecordBatch) -> tuple[dict[str, int], Floats]:
    """Row of each agent that has a mean embedding, and the embeddings."""
    names = rows.column("agent").to_pylist()
    return {name: row for row, name in enumerate(names)}, _matrix(rows.column("centre"), EMBEDDING_SIZE)


def _matrix(column: pa.Array, size: int) -> Floats:
    """A list column without nulls, all of `size`, as [rows, size]."""
    values: Floats = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), size)
    return values
