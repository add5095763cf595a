"""What the registry remembers: agents, replicas, blocks; as record batches for a snapshot, byte for byte.

Decides nothing; `agents.registry` does. All times are log times in microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(slots=True)
class Agent:
    """One agent as registered. Times are log times in microseconds; `grace_until` is 0 once a replica was seen."""

    service: str
    capabilities: tuple[str, ...]
    description: str | None
    cell: str
    capacity: int
    price: int
    timeout: int
    tenants: tuple[str, ...] | None
    fallback: bool
    registered_at: int
    seen_at: int
    grace_until: int
    hold: str
    block: int

    @property
    def size(self) -> int:
        """About how many bytes it takes in a block."""
        return 200 + len(self.description or "") + sum(map(len, self.capabilities + (self.tenants or ())))


@dataclass(slots=True)
class Replica:
    """One copy of a service. `names` is None when it plays all agents of the service."""

    names: frozenset[str] | None
    stopping: bool
    busy: int
    seen_at: int
    suspected: bool = False


@dataclass(slots=True)
class Block:
    """Agents that are published together. `urgent` is the turn in which it waits, 0 when it does not."""

    names: set[str] = field(default_factory=set)
    size: int = 0
    urgent: int = 0
    soft: bool = False
    published_at: int = 0


@dataclass(slots=True)
class Service:
    """What shares an inbox. `hold` is for agents that register later."""

    hold: str = ""
    replicas: dict[str, Replica] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)


@dataclass(slots=True)
class Limits:
    """Silence in microseconds after which a replica is suspected, and gone."""

    suspect_us: int
    gone_us: int


@dataclass(slots=True)
class Memory:
    """All that is known of the fleet. `offset`: next offset of the log; `called_at`: when time last passed;
    `check_at`: no replica and no grace ends before; `graces`: agents whose grace runs (also in `agents`)."""

    agents: dict[str, Agent] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    graces: set[str] = field(default_factory=set)
    offset: int = 0
    called_at: int = 0
    watch_from: int = 0
    check_at: int = 0
    forget_at: int = 0
    sent_at: int = 0
    turns: int = 0


def covers(replica: Replica, name: str) -> bool:
    return replica.names is None or name in replica.names


_TEXTS = pa.list_(pa.string())
AGENTS_SCHEMA = pa.schema(
    [
        ("agent", pa.string()),
        ("service", pa.string()),
        ("capabilities", _TEXTS),
        ("description", pa.string()),
        ("cell", pa.string()),
        ("capacity", pa.int64()),
        ("price", pa.int64()),
        ("timeout", pa.int64()),
        ("tenants", _TEXTS),
        ("fallback", pa.bool_()),
        ("registered_at", pa.int64()),
        ("seen_at", pa.int64()),
        ("grace_until", pa.int64()),
        ("hold", pa.string()),
        ("block", pa.int64()),
    ]
)
REPLICAS_SCHEMA = pa.schema(
    [
        ("service", pa.string()),
        ("replica", pa.string()),
        ("names", _TEXTS),
        ("stopping", pa.bool_()),
        ("busy", pa.int64()),
        ("seen_at", pa.int64()),
        ("suspected", pa.bool_()),
    ]
)
BLOCKS_SCHEMA = pa.schema(
    [
        ("service", pa.string()),
        ("block", pa.int64()),
        ("urgent", pa.int64()),
        ("soft", pa.bool_()),
        ("published_at", pa.int64()),
    ]
)
SERVICES_SCHEMA = pa.schema([("service", pa.string()), ("hold", pa.string())])
_TIMES = ("offset", "called_at", "watch_from", "check_at", "forget_at", "sent_at", "turns")
TIMES_SCHEMA = pa.schema([(name, pa.int64()) for name in _TIMES])


def dump(memory: Memory) -> dict[str, pa.RecordBatch]:
    """The memory as record batches by name, sorted by key."""
    services = sorted(memory.services.items())
    agents = [
        {"agent": name} | {key: getattr(agent, key) for key in AGENTS_SCHEMA.names[1:]}
        for name, agent in sorted(memory.agents.items())
    ]
    replicas = [
        {"service": service_name, "replica": name}
        | {key: getattr(replica, key) for key in REPLICAS_SCHEMA.names[3:]}
        | {"names": None if replica.names is None else sorted(replica.names)}
        for service_name, service in services
        for name, replica in sorted(service.replicas.items())
    ]
    blocks = [
        {"service": service_name, "block": number}
        | {key: getattr(block, key) for key in BLOCKS_SCHEMA.names[2:]}
        for service_name, service in services
        for number, block in sorted(service.blocks.items())
    ]
    holds = [{"service": name, "hold": service.hold} for name, service in services]
    times = [{name: getattr(memory, name) for name in _TIMES}]
    return {
        "agents": pa.RecordBatch.from_pylist(agents, AGENTS_SCHEMA),
        "replicas": pa.RecordBatch.from_pylist(replicas, REPLICAS_SCHEMA),
        "blocks": pa.RecordBatch.from_pylist(blocks, BLOCKS_SCHEMA),
        "services": pa.RecordBatch.from_pylist(holds, SERVICES_SCHEMA),
        "times": pa.RecordBatch.from_pylist(times, TIMES_SCHEMA),
    }


def fill(memory: Memory, batches: Mapping[str, pa.RecordBatch]) -> None:
    """Put what was dumped into an empty memory."""
    for name, value in batches["times"].to_pylist()[0].items():
        setattr(memory, name, value)
    for row in batches["services"].to_pylist():
        memory.services[row["service"]] = Service(hold=row["hold"])
    for row in batches["blocks"].to_pylist():
        service = memory.services[row.pop("service")]
        number = row.pop("block")
        service.blocks[number] = Block(**row)
    for row in batches["replicas"].to_pylist():
        service = memory.services[row.pop("service")]
        name, names = row.pop("replica"), row.pop("names")
        service.replicas[name] = Replica(None if names is None else frozenset(names), **row)
    for row in batches["agents"].to_pylist():
        name = row.pop("agent")
        row["capabilities"] = tuple(row["capabilities"])
        row["tenants"] = None if row["tenants"] is None else tuple(row["tenants"])
        agent = memory.agents[name] = Agent(**row)
        block = memory.services[agent.service].blocks[agent.block]
        block.names.add(name)
        block.size += agent.size
        if agent.grace_until:
            memory.graces.add(name)
