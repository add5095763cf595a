"""What the fleet is told of a block of agents: rows of aos.agent-states from agents and replicas.

Decides an agent's state and capacity as said in `agents.registry`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from aos.agents.registry_state import Agent, Replica, Service
from aos.codecs.rows import from_columns

CAPACITY_MAX = 2**31 - 1


def block_rows(
    service_name: str,
    service: Service,
    agents: Mapping[str, Agent],
    learning: Sequence[bool],
    lanes: int,
    version: int,
) -> pa.RecordBatch:
    """The rows of `agents`, in their order. `learning`: which have too few outcomes; `lanes`: partitions of the
    lanes; `version`: next offset of the log."""
    names, values = list(agents), list(agents.values())
    lives = _lives(service, names)
    partitions = {cell: zlib.crc32(cell.encode()) % lanes for cell in {agent.cell for agent in values}}
    pairs = list(zip(values, lives, strict=True))
    return from_columns(
        "agent-state",
        len(names),
        {
            "service": [service_name] * len(names),
            "agent": names,
            "state": [_state(*item) for item in zip(values, lives, learning, strict=True)],
            "capabilities": [agent.capabilities for agent in values],
            "description": [agent.description for agent in values],
            "cell": [agent.cell for agent in values],
            "cell_partition": [partitions[agent.cell] for agent in values],
            "capacity": [min(agent.capacity * life.slots(agent), CAPACITY_MAX) for agent, life in pairs],
            "replicas": [life.fresh for life in lives],
            "price_usd_micros": [agent.price for agent in values],
            "timeout_ms": [agent.timeout for agent in values],
            "tenants": [agent.tenants for agent in values],
            "fallback": [agent.fallback for agent in values],
            "registered_at": [agent.registered_at for agent in values],
            "seen_at": [max(agent.seen_at, life.seen_at) for agent, life in pairs],
            "version": [version] * len(names),
        },
    )


@dataclass(slots=True)
class _Life:
    """Replicas that play an agent."""

    fresh: int = 0
    suspected: int = 0
    stopping: int = 0
    busy: int = 0
    seen_at: int = 0

    def add(self, replica: Replica) -> None:
        self.seen_at = max(self.seen_at, replica.seen_at)
        if replica.stopping:
            self.stopping += 1
        elif replica.suspected:
            self.suspected += 1
        else:
            self.fresh += 1
            self.busy += replica.busy

    def slots(self, agent: Agent) -> int:
        """By how much the registered capacity is multiplied."""
        return self.fresh or self.suspected or int(agent.grace_until > 0)


def _lives(service: Service, names: Sequence[str]) -> list[_Life]:
    everybody = _Life()
    listed: list[tuple[frozenset[str], Replica]] = []
    for replica in service.replicas.values():
        if replica.names is None:
            everybody.add(replica)
        else:
            listed.append((replica.names, replica))
    if not listed:
        return [everybody] * len(names)
    lives = []
    for name in names:
        life = replace(everybody)
        for played, replica in listed:
            if name in played:
                life.add(replica)
        lives.append(life)
    return lives


def _state(agent: Agent, life: _Life, learning: bool) -> str:
    if not life.slots(agent):
        return "draining" if life.stopping else "gone"
    if agent.hold:
        return agent.hold
    if life.suspected:
        return "degraded" if life.fresh else "suspected"
    if learning:
        return "learning"
    return "running" if life.busy else "idle"
