"""register: the live registry of agents, published as the view aos.agent-states.

Decides who lives and what each agent can take; the policy is `agents.registry`.

in: aos.fleet: registered, beat, control.
out: aos.agent-states: whole blocks, key `<service>/<block>`, at most 10 messages a second.
key: none; the log has one partition.
state: agents, replicas, blocks (`agents.registry.Registry`).
order: that of the log. Law of a view: the last version of a key wins, duplicates change nothing.
errors: none; admit has validated the rows.
cost: 3 us a heartbeat, 10 us a registration, 3 ms a block of 1,000 agents that is published.

Only ticks publish. What a message causes is due at once and goes out with the tick that follows; a replay, whose
outputs are muted, has no ticks and so can never take a block for published that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from aos.agents import registry, registry_state
from aos.agents.registry import Limits, Registry
from aos.codecs.settings import Settings
from aos.codecs.topics import LANES
from aos.streams.processor import Batch, Output, Step, Views

DEFAULT_CELL = "default"
_REGISTERED = (
    "service",
    "agent",
    "capabilities",
    "description",
    "cell",
    "capacity",
    "price_usd_micros",
    "timeout_ms",
    "tenants",
    "fallback",
    "removed",
)
_BEAT = ("service", "replica", "agents", "stopping", "busy")
_CONTROL = ("action", "agent", "service")


def initial(partition: int) -> Registry:
    """No agents."""
    return Registry()


def dump(state: Registry) -> dict[str, pa.RecordBatch]:
    """The state as record batches."""
    return registry_state.dump(state)


def load(partition: int, batches: Mapping[str, pa.RecordBatch]) -> Registry:
    """The state from record batches."""
    return registry.load(batches)


def step(state: Registry, batch: Batch, now: int, views: Views, seed: int) -> Step[Registry]:
    """Take in what the log says and let time pass; a tick publishes the block whose turn it is."""
    settings = views.settings
    limits = Limits(settings.suspect_after_ms * 1000, settings.gone_after_ms * 1000)
    if not batch.tick:
        for kind, rows in _runs(batch.rows):
            _take(state, kind, rows, now, limits)
        state.offset = max(state.offset, batch.offset + 1)
    state.watch(now, limits)
    outputs = _publish(state, now, views, settings) if batch.tick else []
    return Step(state, outputs, state.due(limits))


def _runs(rows: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of one kind that follow each other, so that only the columns of the kind are taken apart."""
    kinds = rows.column("kind").to_pylist()
    first = 0
    for end in range(1, len(kinds) + 1):
        if end == len(kinds) or kinds[end] != kinds[first]:
            yield kinds[first], rows.slice(first, end - first)
            first = end


def _columns(rows: pa.RecordBatch, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows.column(name).to_pylist() for name in names), strict=True)


def _take(state: Registry, kind: str, rows: pa.RecordBatch, now: int, limits: Limits) -> None:
    if kind == "beat":
        for service, replica, names, stopping, busy in _columns(rows, _BEAT):
            state.beat(service, replica or "", names, bool(stopping), busy or 0, now, limits)
    elif kind == "control":
        for action, agent, service in _columns(rows, _CONTROL):
            state.control(action or "", agent, service)
    elif kind == "registered":
        for row in _columns(rows, _REGISTERED):
            _register(state, row, now, limits)


def _register(state: Registry, row: tuple[Any, ...], now: int, limits: Limits) -> None:
    (
        service,
        agent,
        capabilities,
        description,
        cell,
        capacity,
        price,
        timeout,
        tenants,
        fallback,
        removed,
    ) = row
    if agent is None:
        return
    state.register(
        agent,
        now,
        limits,
        bool(removed),
        service=service,
        capabilities=tuple(capabilities or ()),
        description=description,
        cell=cell or DEFAULT_CELL,
        capacity=1 if capacity is None else max(capacity, 0),
        price=price or 0,
        timeout=timeout or 0,
        tenants=None if tenants is None else tuple(tenants),
        fallback=bool(fallback),
    )


def _publish(state: Registry, now: int, views: Views, settings: Settings) -> list[Output]:
    published = state.publish(
        now, views.partitions[LANES[0]], views["aos.beliefs"].outcomes, settings.trial_outcomes
    )
    if published is None:
        return []
    key, rows = published
    return [Output("aos.agent-states", rows, 0, key)]
