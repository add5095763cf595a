"""Records for the store's tests: requests with steps, attempts, answers and ends that hang together, by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aos.codecs import rows as codec
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE

START = 1_763_640_000_000_000  # 2025-11-20 12:00 UTC
LOGS = ("aos.ledger", "aos.decisions", "aos.experiences")
KINDS = ("read", "write", "check")
AGENTS = ("ann", "bob", "cid", "dee")
TENANTS = ("default", "acme")


def request_id(serial: int) -> bytes:
    return hashlib.blake2b(serial.to_bytes(8, "little"), digest_size=16).digest()


def common(serial: int, requested_at: int | None = None, round: int = 0) -> dict[str, Any]:
    tenant = TENANTS[serial % len(TENANTS)]
    return {
        "tenant": tenant, "request_id": request_id(serial), "home": 0, "domain": tenant, "round": round,
        "requested_at": START + serial * 700_000 if requested_at is None else requested_at,
    }  # fmt: skip


def ledger_step(name: str = "only", kind: str = "read", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "task_kind": kind, "require": [], "after": [], "judges": -1, "pin": [], "exclude": [],
        "timeout_ms": None, "text": f"please {kind}", "payload": None, "content_type": None,
        "embedding": np.zeros(EMBEDDING_SIZE, np.float16), "surface": np.zeros(SURFACE_SIZE, np.float32).tolist(),
    } | more  # fmt: skip


def requested(serial: int, **more: Any) -> dict[str, Any]:
    return common(serial) | {
        "kind": "requested", "id": f"client-{serial}", "priority": 2, "task_kind": KINDS[serial % 3],
        "steps": [ledger_step(kind=KINDS[serial % 3])],
    } | more  # fmt: skip


def decision(serial: int, **more: Any) -> dict[str, Any]:
    at = common(serial)["requested_at"]
    return common(serial) | {
        "kind": "assigned", "step": 0, "step_name": "only", "attempt": 1, "task_kind": KINDS[serial % 3],
        "cell": "default", "cell_partition": 0, "epoch": 1, "agent": "ann", "service": "s", "policy": "learned",
        "probability": 0.5, "score_predicted": 0.4, "latency_predicted_us": 10, "timeout_ms": 0, "draw": 0.25,
        "overridden": False, "trial": False, "filtered_count": 1, "waited_us": 100, "decided_at": at + 2000,
        "candidates": [
            {"agent": agent, "score": 0.5, "deviation": 0.1, "chance": 0.25, "masked": False} for agent in AGENTS
        ],
        "filtered": [{"agent": "eve", "reason": "capability"}],
        "model_version": 1, "settings_version": 0, "degraded": False,
    } | more  # fmt: skip


def experience(serial: int, kind: str = "attempt", **more: Any) -> dict[str, Any]:
    at = common(serial)["requested_at"]
    return common(serial) | {
        "kind": kind, "step": 0 if kind == "attempt" else -1, "step_name": "only", "attempt": 1,
        "id": f"client-{serial}", "task_kind": KINDS[serial % 3], "agent": "ann", "service": "s", "status": "ok",
        "score": 0.5, "judged": False, "probability": 0.5, "score_predicted": 0.4, "priority": 2,
        "cost_usd_micros": 7, "cpu_us": 11, "tokens": 0, "waited_us": 100, "latency_us": 5000,
        "assigned_at": at + 3000, "finished_at": at + 8000, "team": ["ann"], "sampled": True, "sample_share": 1.0,
        "model_version": 1, "settings_version": 0, "degraded": False,
    } | more  # fmt: skip


def world(count: int, seed: int = 1, start: int = 0) -> dict[str, list[dict[str, Any]]]:
    """`count` requests as they go through the logs: retries, two arms, workflows of two agents, some failures."""
    rng = np.random.default_rng(seed)
    logs: dict[str, list[dict[str, Any]]] = {topic: [] for topic in LOGS}
    skill = {(agent, kind): rng.uniform(0.2, 0.9) for agent in AGENTS for kind in KINDS}
    for serial in range(start, start + count):
        names = ("first", "second") if rng.random() < 0.3 else ("only",)
        policy = "round-robin" if rng.random() < 0.3 else None
        steps = [ledger_step(name, KINDS[int(rng.integers(3))]) for name in names]
        logs["aos.ledger"].append(requested(serial, policy=policy, steps=steps))
        _life(logs, rng, skill, serial, policy, steps)
    return logs


def _life(
    logs: dict[str, list[dict[str, Any]]],
    rng: np.random.Generator,
    skill: dict[tuple[str, str], float],
    serial: int,
    policy: str | None,
    steps: Sequence[dict[str, Any]],
) -> None:
    """Attempts of every step, then the request's end."""
    at, team, total = common(serial)["requested_at"], [], {"cost_usd_micros": 0, "cpu_us": 0}
    began, tries, scores, status = at, 0, [], "ok"
    for number, step in enumerate(steps):
        for attempt in (1, 2, 3):
            agent = AGENTS[int(rng.integers(4))]
            status = "ok" if rng.random() < 0.8 else ("timeout", "failed")[int(rng.integers(2))]
            planned, waited, latency = (int(x) for x in rng.integers(500, 90_000, 3))
            score = float(np.float32(np.clip(skill[agent, step["task_kind"]] + rng.normal(0, 0.1), 0, 1)))
            row = {
                "step": number, "step_name": step["name"], "attempt": attempt, "task_kind": step["task_kind"],
                "agent": agent, "policy": policy, "status": status, "score": score if status == "ok" else 0.0,
                "cost_usd_micros": int(rng.integers(1, 50)), "cpu_us": int(rng.integers(1, 9000)),
                "waited_us": waited, "latency_us": latency, "assigned_at": began + planned + waited,
                "finished_at": began + planned + waited + latency, "team": [*team, agent],
            }  # fmt: skip
            decided = {
                name: row[name]
                for name in ("step", "step_name", "attempt", "task_kind", "agent", "waited_us")
            }
            logs["aos.decisions"].append(decision(serial, policy=policy or "learned", **decided))
            logs["aos.experiences"].append(experience(serial, **row))
            began, tries = row["finished_at"], tries + 1
            total = {name: value + row[name] for name, value in total.items()}
            if status == "ok":
                scores.append(score)
                team.append(agent)
                break
        if status != "ok":
            break
    end = {"status": "ok" if status == "ok" else "failed", "attempt": tries, "team": team, "policy": policy}
    end |= {
        "score": float(np.mean(scores)) if status == "ok" else 0.0,
        "agent": None,
        "step_name": None,
        **total,
    }
    end |= {"finished_at": began + 100, "latency_us": began + 100 - at, "assigned_at": None, "waited_us": 0}
    logs["aos.experiences"].append(experience(serial, "request", **end))


RECORD_OF = {"aos.ledger": "entry", "aos.decisions": "decision", "aos.experiences": "experience"}


def messages(logs: dict[str, list[dict[str, Any]]], size: int) -> list[tuple[str, int, pa.RecordBatch]]:
    """The logs as messages of `size` rows: (topic, offset, rows), offsets with gaps as transactions leave them."""
    found = []
    for topic, dicts in logs.items():
        for index in range(0, len(dicts), size):
            rows = codec.from_dicts(RECORD_OF[topic], dicts[index : index + size])
            found.append((topic, index // size * 2, rows))
    return found
