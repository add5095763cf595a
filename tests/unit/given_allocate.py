"""What the tests of allocate are given: a fleet, ready and release rows, a step in one call, what it said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from aos.agents.fleet import Fleet
from aos.analytics.strategies import Strategies
from aos.codecs.rows import empty, from_dicts
from aos.codecs.settings import Settings
from aos.streams import allocate
from aos.streams.allocate_state import State
from aos.streams.processor import Batch, Step, Views

NOW = 1_700_000_000_000_000
HOMES = 3


def fleet_of(*agents: dict[str, Any]) -> Fleet:
    fleet = Fleet()
    tell(fleet, *agents)
    return fleet


def tell(fleet: Fleet, *agents: dict[str, Any]) -> None:
    plain = {
        "service": "s", "state": "idle", "capabilities": [], "cell": "default", "cell_partition": 0, "capacity": 2,
        "replicas": 1, "price_usd_micros": 0, "timeout_ms": 500, "fallback": False, "registered_at": 0, "seen_at": 0,
        "version": 1,
    }  # fmt: skip
    fleet.apply(b"s/0", from_dicts("agent-state", [plain | agent for agent in agents]))


def views_of(fleet: Fleet, **changes: Any) -> Views:
    return Views(
        replace(Settings(), **changes), {}, {"aos.agent-states": fleet, "aos.strategies": Strategies()}
    )


def alternative(agent: str, score: float = 0.5, deviation: float = 0.1, **more: Any) -> dict[str, Any]:
    return {
        "agent": agent, "service": "s", "cell": "default", "cell_partition": 0, "score": score,
        "deviation": deviation, "similarity": 0.0, "cost_usd_micros": 0, "latency_us": 1000, "timeout_ms": 500,
        "covers": 0, "trial": False,
    } | more  # fmt: skip


def common(number: int, **more: Any) -> dict[str, Any]:
    return {
        "tenant": "default", "traceparent": None, "request_id": number.to_bytes(16, "big"), "requested_at": NOW,
        "home": number % HOMES, "domain": "default", "round": 0, "step": 0, "attempt": 1,
    } | more  # fmt: skip


def ready(number: int, *alternatives: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    found = [alternative(item) if isinstance(item, str) else item for item in alternatives]
    return common(number) | {
        "step_name": "main", "task_kind": "kind", "ready_at": NOW, "running": False, "priority": 2,
        "alternatives": found, "filtered": [{"agent": "z", "reason": "tenant"}], "filtered_count": 1, "refusals": 0,
        "model_version": 7, "settings_version": 3, "degraded": False,
    } | more  # fmt: skip


def release(number: int, agent: str = "", epoch: int = 0, **more: Any) -> dict[str, Any]:
    extra = {"agent": agent, "cell": "default", "reason": "ok", "epoch": epoch}
    return common(number) | extra | more


def run(
    state: State, views: Views, topic: str, rows: list[dict[str, Any]], now: int = NOW, seed: int = 1
) -> Step[State]:
    name = "release" if topic == "aos.releases" else "ready"
    batch = from_dicts(name, rows) if rows else empty(name)
    return allocate.step(state, Batch(topic, 0, 0, batch, tick=not rows), now, views, seed)


def lane(state: State, views: Views, *rows: dict[str, Any], priority: int = 2, **more: Any) -> Step[State]:
    return run(state, views, f"aos.ready.p{priority}", list(rows), **more)


def free(state: State, views: Views, *rows: dict[str, Any], **more: Any) -> Step[State]:
    return run(state, views, "aos.releases", list(rows), **more)


def tick(state: State, views: Views, now: int = NOW) -> Step[State]:
    return run(state, views, "aos.ready.p0", [], now)


def journal(step: Step[State]) -> list[dict[str, Any]]:
    return [row for output in step.first for row in output.rows.to_pylist()]


def ledger(step: Step[State]) -> list[dict[str, Any]]:
    for output in step.outputs:
        assert output.topic == "aos.ledger"
        assert set(output.rows.column("home").to_pylist()) == {output.partition}
    return [row for output in step.outputs for row in output.rows.to_pylist()]


def number_of(row: dict[str, Any]) -> int:
    return int.from_bytes(row["request_id"], "big")


def said(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = (
        "kind",
        "agent",
        "epoch",
        "probability",
        "code",
        "message",
        "model_version",
        "cell",
        "timeout_ms",
    )
    return sorted((number_of(row), row["step"], row["attempt"], *(row[n] for n in names)) for row in rows)


def adopted(state: State, *steps: Step[State]) -> State:
    for step in steps:
        for output in step.first:
            assert (output.topic, output.partition) == ("aos.decisions", 0)
            state = allocate.adopt(state, Batch("aos.decisions", 0, 0, output.rows))
    return state


def restarted(state: State) -> State:
    return allocate.load(0, allocate.dump(state))


def bytes_of(state: State) -> dict[str, bytes]:
    found = {}
    for name, rows in allocate.dump(state).items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        found[name] = sink.getvalue().to_pybytes()
    return found
