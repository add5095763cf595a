"""Plays tables of agents x tasks through learn and its view in memory, under bandit feedback.

A table is a score of every agent on every task; only the chosen agent's is revealed. Each task is decided by one
normal Thompson draw from `Beliefs.predict`; outcomes come back in messages of a few rows, late, and beliefs are seen
when learn publishes them. Run as a program it prints the figures: python tests/unit/learning_world.py --help.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from aos.agents import encoding
from aos.analytics.beliefs import Beliefs
from aos.analytics.strategies import DEFAULT
from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams import learn
from aos.streams.processor import Batch, Views

TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "routing_llmrouter.parquet"
START_US = 1_700_000_000_000_000


@dataclass(frozen=True)
class Table:
    """`scores` [n, m] 0..1; `kinds` [n] names or None; `surfaces` [n, 16]; `embeddings` [n, 256]."""

    scores: np.ndarray
    kinds: Sequence[str | None]
    surfaces: np.ndarray
    agents: tuple[str, ...]
    alive_from: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [m] task at which an agent appears

    @property
    def best_single(self) -> float:
        return float(self.scores.mean(0).max())

    @property
    def oracle(self) -> float:
        return float(self.scores.max(1).mean())


def real_table(path: Path = TABLE, with_kinds: bool = True) -> Table:
    """The routing table of shared/data."""
    frame = pl.read_parquet(path)
    names = [name for name in frame.columns if name.startswith("score__")]
    texts = pa.array(frame["query"].to_list(), pa.string())
    zeros = np.zeros(len(frame))
    surfaces = encoding.surface(
        encoding.read(texts).features, pa.nulls(len(frame), pa.binary()), zeros, zeros
    )
    kinds = frame["task_name"].to_list() if with_kinds else [None] * len(frame)
    scores = np.clip(frame.select(names).to_numpy().astype(float), 0, 1)
    return Table(scores, kinds, surfaces, tuple(name[7:] for name in names))


def planted_table(seed: int, tasks: int = 2500, agents: int = 10, kinds: int = 5) -> Table:
    """A world whose structure is planted: skill by agent, by agent and kind, and by features; noisy 0/1 outcomes."""
    rng = np.random.default_rng([7, seed])
    surfaces = np.zeros((tasks, 16), np.float32)
    surfaces[:, :4] = rng.random((tasks, 4)) * (1, 1, 0.3, 3)
    surfaces[:, 4:8] = rng.random((tasks, 4)) < (0.5, 0.2, 0.1, 0.8)
    kind = rng.integers(0, kinds, tasks)
    z = (surfaces - surfaces.mean(0)) / (surfaces.std(0) + 1e-9)
    z[:, 8:] = 0
    ease = rng.normal(0.55, 0.15, kinds)
    skill = rng.normal(0, 0.1, agents)
    special = rng.normal(0, 0.1, (kinds, agents))
    slope = rng.normal(0, 0.04, (agents, 16))
    chance = np.clip(ease[kind][:, None] + skill + special[kind] + z @ slope.T, 0.02, 0.98)
    scores = (rng.random(chance.shape) < chance).astype(float)
    return Table(scores, [f"kind{k}" for k in kind], surfaces, tuple(f"agent{a}" for a in range(agents)))


def experiences(
    table: Table, tasks: np.ndarray, chosen: np.ndarray, scores: np.ndarray, serials: np.ndarray, **more: Any
) -> Any:
    """One message of attempt experiences."""
    count = len(tasks)
    ids = [int(serial).to_bytes(8, "little") * 2 for serial in serials]
    zeros = np.zeros(count, np.int64)
    columns = {
        "tenant": ["default"] * count, "request_id": ids, "requested_at": zeros, "home": zeros.astype(np.int32),
        "domain": ["world"] * count, "round": zeros.astype(np.int16), "kind": ["attempt"] * count,
        "step": zeros.astype(np.int16), "step_name": ["only"] * count, "attempt": (zeros + 1).astype(np.int16),
        "task_kind": [table.kinds[task] for task in tasks], "agent": [table.agents[agent] for agent in chosen],
        "status": ["ok"] * count, "score": scores.astype(np.float32), "judged": [False] * count,
        "priority": zeros.astype(np.int8), "cost_usd_micros": zeros + 100, "cpu_us": zeros + 10, "tokens": zeros,
        "waited_us": zeros, "latency_us": 1000 * (chosen.astype(np.int64) + 1), "finished_at": zeros,
        "team": [[]] * count, "sampled": np.ones(count, bool), "sample_share": np.ones(count, np.float32),
        "surface": table.surfaces[tasks], "model_version": zeros, "settings_version": zeros,
        "degraded": [False] * count,
    }  # fmt: skip
    return codec.from_columns("experience", count, {**columns, **more})


@dataclass
class Play:
    """What was chosen and scored, in order of play."""

    chosen: np.ndarray
    scores: np.ndarray
    state: learn.State
    beliefs: Beliefs
    messages: int


def play(
    table: Table, seed: int, exploration: float = DEFAULT.exploration, message: int = 8, task_us: int = 10_000,
    lag: int = 16,
    settings: Settings | None = None, change: Callable[[int, np.ndarray], np.ndarray] | None = None,
    order: np.ndarray | None = None, river: bool = True,
) -> Play:  # fmt: skip
    """Play the table once: `lag` tasks are in flight, outcomes come `message` at a time, a task every `task_us`.

    `change(position, scores)` may replace a task's scores (a drift planted by position).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.scores)) if order is None else order
    views = Views(settings=settings or Settings())
    state, beliefs = learn.initial(0), Beliefs()
    pending: list[tuple[int, int, float, int]] = []
    chosen, got, messages = [], [], 0
    nothing = np.zeros((1, 256), np.float16)
    for position, task in enumerate(order.tolist()):
        believed = beliefs.predict(
            "world", table.kinds[task], table.agents, table.surfaces[task : task + 1], nothing
        )
        draw = believed.score[0] + exploration * believed.deviation[0] * rng.standard_normal(
            len(table.agents)
        )
        if len(table.alive_from):
            draw = np.where(table.alive_from <= position, draw, -9.0)
        agent = int(draw.argmax())
        scores = table.scores[task] if change is None else change(position, table.scores[task])
        chosen.append(agent)
        got.append(float(scores[agent]))
        pending.append((task, agent, float(scores[agent]), position))
        if len(pending) >= lag + message:
            part, pending = pending[:message], pending[message:]
            tasks, agents, values, serials = (np.array(column) for column in zip(*part, strict=True))
            rows = experiences(table, tasks, agents, values, serials, sampled=np.full(len(part), river))
            now = START_US + position * task_us
            result = learn.step(state, Batch("aos.experiences", 0, messages, rows), now, views, seed)
            state, messages = result.state, messages + 1
            for output in result.outputs:
                beliefs = beliefs.apply(output.key or b"", output.rows)
    return Play(np.array(chosen), np.array(got), state, beliefs, messages)


def measure(
    name: str, tables: Callable[[int], Table], seeds: Sequence[int], **how: Any
) -> tuple[float, float]:
    """Mean score over whole streams and over their last 1,000; printed beside the references."""
    whole, last, best, oracle = [], [], [], []
    for seed in seeds:
        table = tables(seed)
        scores = play(table, seed, **how).scores
        whole.append(scores.mean())
        last.append(scores[-1000:].mean())
        best.append(table.best_single)
        oracle.append(table.oracle)
    error = np.std(whole) / max(len(seeds) - 1, 1) ** 0.5
    print(
        f"{name:44s} whole {np.mean(whole):.4f} +- {error:.4f}  last 1,000 {np.mean(last):.4f}"
        f"  best single {np.mean(best):.4f}  oracle {np.mean(oracle):.4f}", flush=True,
    )  # fmt: skip
    return float(np.mean(whole)), float(np.mean(last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--exploration", type=float, default=DEFAULT.exploration)
    parser.add_argument("--discount", type=float, default=Settings().discount)
    parser.add_argument("--strength", type=float, default=Settings().prior_strength)
    parser.add_argument("--world", choices=("real", "planted", "both"), default="both")
    options = parser.parse_args()
    settings = replace(Settings(), discount=options.discount, prior_strength=options.strength)
    how = {"exploration": options.exploration, "settings": settings}
    seeds = range(options.seeds)
    if options.world != "planted":
        table, text = real_table(), real_table(with_kinds=False)
        measure("routing table, kinds given", lambda seed: table, seeds, **how)
        measure("routing table, text alone", lambda seed: text, seeds, **how)
    if options.world != "real":
        measure("planted world", planted_table, seeds, **how)


if __name__ == "__main__":
    main()
