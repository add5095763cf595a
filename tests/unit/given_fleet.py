"""Fleets, beliefs, tasks and matches as tests want them: short calls, real records."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aos.agents.fleet import Fleet
from aos.analytics.beliefs import TERMS, Beliefs, centres_key
from aos.analytics.patterns import Patterns
from aos.analytics.strategies import Strategies
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE
from aos.codecs.rows import from_columns, from_dicts
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Views

NOW = 1_700_000_000_000_000
PARTITIONS = {"aos.ready.p0": 4, "aos.ledger": 2}


def state_rows(agents: Mapping[str, Mapping[str, Any]], service: str = "crew") -> pa.RecordBatch:
    """Rows of aos.agent-states; what is not said is that of an idle agent."""
    rows = []
    for name, said in agents.items():
        row = {
            "service": service,
            "agent": name,
            "state": "idle",
            "capabilities": ["work"],
            "cell": "default",
            "cell_partition": zlib.crc32(b"default") % 4,
            "capacity": 1,
            "replicas": 1,
            "price_usd_micros": 0,
            "timeout_ms": 0,
            "fallback": False,
            "registered_at": NOW,
            "seen_at": NOW,
            "version": 1,
        }
        rows.append(row | dict(said))
    return from_dicts("agent-state", rows)


def fleet_of(agents: Mapping[str, Mapping[str, Any]], service: str = "crew") -> Fleet:
    """A fleet of one block."""
    fleet = Fleet()
    fleet.apply(f"{service}/0".encode(), state_rows(agents, service))
    return fleet


def beliefs_of(
    agents: Mapping[str, Mapping[str, Any]], domain: str = "default", kind: str = "", version: int = 7
) -> Beliefs:
    """Beliefs of one kind: score, deviation, count, latency_us, cost_usd_micros by agent."""
    beliefs = Beliefs()
    teach(beliefs, agents, domain, kind, version)
    return beliefs


def teach(
    beliefs: Beliefs,
    agents: Mapping[str, Mapping[str, Any]],
    domain: str = "default",
    kind: str = "",
    version: int = 7,
) -> None:
    """Put the beliefs of one kind into the view."""
    rows = []
    for name, said in {"": {}, **agents}.items():
        row = {"score": 0.5, "deviation": 0.1, "count": 50.0, "latency_us": 1e5, "cost_usd_micros": 0.0}
        row |= dict(said)
        weights, variances = [0.0] * TERMS, [0.0] * TERMS
        weights[0], variances[0] = row["score"], row["deviation"] ** 2
        rows.append(
            {
                "domain": domain,
                "task_kind": kind,
                "agent": name,
                "cpu_us": 0.0,
                "drift_count": 0,
                "weights": weights,
                "variances": variances,
                "model_version": version,
                "updated_at": NOW,
            }
            | row
            | ({"means": [0.0] * SURFACE_SIZE, "scales": [1.0] * SURFACE_SIZE} if not name else {})
        )
    beliefs.apply(f"{domain}/{kind}".encode(), from_dicts("belief", rows))
    centres = [row for row in rows if "centre" in row]
    if centres:
        beliefs.apply(centres_key(domain), from_dicts("belief", centres))


def views_of(
    fleet: Fleet | None = None,
    beliefs: Beliefs | None = None,
    patterns: Patterns | None = None,
    strategies: Strategies | None = None,
    **settings: Any,
) -> Views:
    """Views with these settings."""
    return Views(
        Settings(**settings),
        PARTITIONS,
        {
            "aos.agent-states": fleet or Fleet(),
            "aos.beliefs": beliefs or Beliefs(),
            "aos.patterns": patterns or Patterns(),
            "aos.strategies": strategies or Strategies(),
        },
    )


def common(count: int, first: int = 0, **said: Any) -> dict[str, list[Any]]:
    """The columns every task row carries, one request a row."""
    values = {
        "tenant": "default",
        "requested_at": NOW,
        "home": 1,
        "domain": "default",
        "round": 0,
    } | said
    columns = {name: [value] * count for name, value in values.items()}
    columns["request_id"] = [(first + row).to_bytes(16, "big") for row in range(count)]
    return columns


def task_rows(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows of aos.tasks; what is not said is that of a request of one step."""
    count = len(rows)
    base: dict[str, Any] = common(count)
    standard = {
        "step": 0,
        "step_name": "main",
        "steps_count": 1,
        "match_round": 0,
        "require": ["work"],
        "after": [],
        "pin": [],
        "exclude": [],
        "priority": 2,
    }
    names = set(standard) | {name for row in rows for name in row}
    for name in names:
        base[name] = [
            row.get(name, standard.get(name, base.get(name, [None] * count)[at]))
            for at, row in enumerate(rows)
        ]
    base.setdefault("embedding", np.zeros((count, EMBEDDING_SIZE), np.float16))
    base.setdefault("surface", np.zeros((count, SURFACE_SIZE), np.float32))
    return from_columns("task", count, base)


def batch_of(rows: pa.RecordBatch, topic: str, offset: int = 0) -> Batch:
    """One log message."""
    return Batch(topic, 1, offset, rows)


def candidate(agent: str, **said: Any) -> dict[str, Any]:
    """A candidate that can do all of one required capability."""
    return {
        "agent": agent,
        "service": "crew",
        "cell": "default",
        "cell_partition": 0,
        "score": 0.5,
        "deviation": 0.125,
        "similarity": 0.0,
        "cost_usd_micros": 0,
        "latency_us": 1000,
        "timeout_ms": 0,
        "covers": 1,
        "trial": False,
    } | said


def match_rows(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows of aos.matches; what is not said is that of a request of one step with nobody."""
    count = len(rows)
    base: dict[str, Any] = common(count)
    standard: dict[str, Any] = {
        "step": 0,
        "step_name": "main",
        "steps_count": 1,
        "match_round": 0,
        "require": ["work"],
        "after": [],
        "priority": 2,
        "candidates": [],
        "filtered": [],
        "filtered_count": 0,
        "shortfall": 0,
        "model_version": 7,
        "settings_version": 0,
        "degraded": False,
    }
    names = set(standard) | {name for row in rows for name in row}
    for name in names:
        base[name] = [
            row.get(name, standard.get(name, base.get(name, [None] * count)[at]))
            for at, row in enumerate(rows)
        ]
    return from_columns("match", count, base)
