"""The registry: which agents there are, whether they live, and what of that the fleet is told.

Decides each agent's state and capacity from registrations, replicas' heartbeats, silence and orders.

in: what aos.fleet says, one method a kind (`register`, `beat`, `control`), and the passing of time (`watch`).
out: whole blocks of aos.agent-states (`publish`), key `<service>/<block>`, at most 1,000 agents each; an agent stays
    in its block as long as it fits there.
state: agents by name, replicas by service, blocks. `dump` and `load` turn it into record batches and back, byte for
    byte.
order: that of aos.fleet. The same row twice changes nothing but the time of the last sign of life; of two services
    that register one agent the last wins.
errors: none; what names nobody is ignored.

A replica is fresh, suspected after `suspect_after_ms` of silence, dropped after `gone_after_ms`. An agent's capacity
is its registered one times its fresh replicas (times the suspected ones when none is fresh). Its state is the first of
these that holds: gone (no replica), draining (all replicas are stopping), paused or draining (by order), suspected (no
replica fresh), degraded (some replica suspected), learning (too few outcomes), running (a replica is at work), idle.
An agent nobody has sent a heartbeat for counts as one fresh replica for `gone_after_ms` from its registration.

Silence is counted from `watch_from` at the earliest: when the registry itself was away (a restart, a broken
connection), the heartbeats it has not read yet must not look like dead replicas.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aos.codecs.rows import from_columns

BLOCK_AGENTS_MAX = 1_000  # a block is published whole: one agent's change costs the block
BLOCK_BYTES_MAX = 4 * 1024 * 1024  # half of what a message may have, for long descriptions
PACE_US = 100_000  # at most 10 messages a second
SOFT_US = 2_000_000  # busy or idle again, learned enough: worth a message, not at once
REFRESH_US = 10_000_000  # the last sign of life, and states that beliefs change, get this old at most
FORGET_US = 24 * 3600 * 1_000_000  # an agent that is gone this long is forgotten
CAPACITY_MAX = 2**31 - 1
HOLDS = {"pause": "paused", "drain": "draining", "resume": ""}


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
class Registry:
    """All that is known of the fleet. `offset`: next offset of the log; `called_at`: when time last passed."""

    agents: dict[str, Agent] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    offset: int = 0
    called_at: int = 0
    watch_from: int = 0
    check_at: int = 0  # no replica and no grace ends before
    forget_at: int = 0
    sent_at: int = 0
    turns: int = 0

    # what the log says

    def register(self, name: str, now: int, limits: Limits, removed: bool, **told: Any) -> None:
        """Take in a registration; `told` are the fields of `Agent` that a service says."""
        former = self.agents.get(name)
        if removed:
            if former is not None and former.service == told["service"]:
                self.remove(name)
            return
        service = self.services.setdefault(told["service"], Service())
        covered = any(
            _covers(replica, name) and not replica.stopping for replica in service.replicas.values()
        )
        grace = 0 if covered else now + limits.gone_us
        if former is not None and former.service == told["service"]:
            self._renew(name, former, told, grace, now)
        else:
            agent = Agent(
                **told, registered_at=now, seen_at=now, grace_until=grace, hold=service.hold, block=-1
            )
            self.agents[name] = agent
            self._join(name, agent)
            if former is not None:  # after the new place, so that it is published there first
                self._leave(name, former)
        if grace:
            self.check_at = min(self.check_at, grace)

    def _renew(self, name: str, agent: Agent, told: Mapping[str, Any], grace: int, now: int) -> None:
        """A known agent registers again."""
        changed = bool(grace) != bool(agent.grace_until)
        before = agent.size
        for key, value in told.items():
            if getattr(agent, key) != value:
                setattr(agent, key, value)
                changed = True
        agent.seen_at, agent.grace_until = now, grace
        block = self.services[agent.service].blocks[agent.block]
        block.size += agent.size - before
        if block.size > BLOCK_BYTES_MAX and len(block.names) > 1:
            block.size -= agent.size - before
            self._move(name, agent, before)
        elif changed:
            self._urge(block)

    def beat(
        self,
        service_name: str,
        replica_name: str,
        names: Sequence[str] | None,
        stopping: bool,
        busy: int,
        now: int,
        limits: Limits,
    ) -> None:
        """A replica says that it lives."""
        service = self.services.setdefault(service_name, Service())
        plays = None if names is None else frozenset(names)
        replica = service.replicas.get(replica_name)
        if replica is None:
            service.replicas[replica_name] = replica = Replica(plays, stopping, busy, now)
            self._meet(service_name, service, plays)
        elif replica.stopping != stopping or replica.suspected or replica.names != plays:
            self._mark(service_name, service, replica.names)
            if replica.names != plays:
                self._meet(service_name, service, plays)
        elif (replica.busy > 0) != (busy > 0):
            for block in self._blocks_of(service_name, service, plays):
                block.soft = True
        replica.names, replica.stopping, replica.busy = plays, stopping, busy
        replica.seen_at, replica.suspected = now, False
        self.check_at = min(self.check_at, now + limits.suspect_us)

    def _meet(self, service_name: str, service: Service, plays: frozenset[str] | None) -> None:
        """A replica says for the first time what it plays: from now on its heartbeats count, not the grace."""
        for name in self._played(service_name, service, plays):
            self.agents[name].grace_until = 0
        self._mark(service_name, service, plays)

    def control(self, action: str, agent_name: str | None, service_name: str) -> None:
        """Pause, drain, resume or remove an agent, or all agents of a service and those that register later."""
        service = self.services.get(service_name)
        if agent_name is not None:
            names = [agent_name] if agent_name in self.agents else []
        elif service is not None:
            names = self._played(service_name, service, None)
        else:
            return
        if action == "remove":
            for name in names:
                self.remove(name)
            if agent_name is None and service is not None:
                service.replicas.clear()
            return
        hold = HOLDS.get(action)
        if hold is None:
            return
        if agent_name is None and service is not None:
            service.hold = hold
        for name in names:
            agent = self.agents[name]
            if agent.hold != hold:
                agent.hold = hold
                self._urge(self.services[agent.service].blocks[agent.block])

    def remove(self, name: str) -> None:
        """Forget an agent."""
        self._leave(name, self.agents.pop(name))

    # what time says

    def watch(self, now: int, limits: Limits) -> None:
        """Let time pass up to `now`: suspect, drop and forget."""
        away = max(limits.suspect_us // 2, (limits.gone_us - limits.suspect_us) // 2)
        if now - self.called_at > away:
            self.watch_from = now
        self.called_at = now
        if now >= self.check_at:
            self.check_at = now + limits.gone_us
            for service_name, service in list(self.services.items()):
                self._watch_service(service_name, service, now, limits)
            self._watch_graces(now)
        if now >= self.forget_at:
            self.forget_at = now + FORGET_US // 1440
            self._forget(now)

    def _watch_service(self, name: str, service: Service, now: int, limits: Limits) -> None:
        for replica_name, replica in list(service.replicas.items()):
            since = max(replica.seen_at, self.watch_from)
            if now - since >= limits.gone_us:
                del service.replicas[replica_name]
                for agent_name in self._played(name, service, replica.names):
                    agent = self.agents[agent_name]
                    agent.seen_at = max(agent.seen_at, replica.seen_at)
                self._mark(name, service, replica.names)
                continue
            if now - since >= limits.suspect_us and not replica.suspected:
                replica.suspected = True
                self._mark(name, service, replica.names)
            due = since + (limits.gone_us if replica.suspected else limits.suspect_us)
            self.check_at = min(self.check_at, due)
        if not service.replicas and not service.blocks and not service.hold:
            del self.services[name]

    def _watch_graces(self, now: int) -> None:
        for agent in self.agents.values():
            if not agent.grace_until:
                continue
            if now >= agent.grace_until:
                agent.grace_until = 0
                self._urge(self.services[agent.service].blocks[agent.block])
            else:
                self.check_at = min(self.check_at, agent.grace_until)

    def _forget(self, now: int) -> None:
        old = [name for name, agent in self.agents.items() if agent.seen_at < now - FORGET_US]
        for name in old:
            agent = self.agents[name]
            replicas = self.services[agent.service].replicas.values()
            if not agent.grace_until and not any(_covers(replica, name) for replica in replicas):
                self.remove(name)

    # what the fleet is told

    def due(self, limits: Limits) -> int:
        """When to call again: a block waits, or time must pass (every quarter of the suspicion, see `watch`)."""
        when = self.called_at + limits.suspect_us // 4
        for service in self.services.values():
            for block in service.blocks.values():
                wanted = self._wanted_at(service, block)
                if wanted is not None:
                    when = min(when, max(wanted, self.sent_at + PACE_US))
        return when

    def publish(
        self, now: int, lanes: int, outcomes: Callable[[Sequence[str]], Sequence[float]], trial: int
    ) -> tuple[bytes, pa.RecordBatch] | None:
        """The block whose turn it is, as key and rows; None when none waits or the last one was just sent.

        `lanes`: partitions of the lanes; `outcomes(agents)`: outcomes learned of each; an agent with fewer than
        `trial` is learning. A block that has become empty is published once without rows.
        """
        if now < self.sent_at + PACE_US:
            return None
        waiting = [
            (block.urgent == 0, block.urgent or block.published_at, service_name, number)
            for service_name, service in self.services.items()
            for number, block in service.blocks.items()
            if (wanted := self._wanted_at(service, block)) is not None and wanted <= now
        ]
        if not waiting:
            return None
        _, _, service_name, number = min(waiting)
        service = self.services[service_name]
        block = service.blocks[number]
        block.urgent, block.soft, block.published_at = 0, False, now
        self.sent_at = now
        rows = self._rows(service_name, service, block, lanes, outcomes, trial)
        if not block.names:
            del service.blocks[number]
        return f"{service_name}/{number}".encode(), rows

    def _wanted_at(self, service: Service, block: Block) -> int | None:
        if block.urgent:
            return 0
        if block.soft:
            return block.published_at + SOFT_US
        return block.published_at + REFRESH_US if service.replicas else None

    def _rows(
        self,
        service_name: str,
        service: Service,
        block: Block,
        lanes: int,
        outcomes: Callable[[Sequence[str]], Sequence[float]],
        trial: int,
    ) -> pa.RecordBatch:
        names = sorted(block.names)
        agents = [self.agents[name] for name in names]
        lives = _lives(service, names, agents)
        learning = [count < trial for count in outcomes(names)] if trial and names else [False] * len(names)
        partitions = {cell: zlib.crc32(cell.encode()) % lanes for cell in {agent.cell for agent in agents}}
        return from_columns(
            "agent-state",
            len(names),
            {
                "service": [service_name] * len(names),
                "agent": names,
                "state": [_state(*item) for item in zip(agents, lives, learning, strict=True)],
                "capabilities": [agent.capabilities for agent in agents],
                "description": [agent.description for agent in agents],
                "cell": [agent.cell for agent in agents],
                "cell_partition": [partitions[agent.cell] for agent in agents],
                "capacity": [
                    min(agent.capacity * life.slots(agent), CAPACITY_MAX)
                    for agent, life in zip(agents, lives, strict=True)
                ],
                "replicas": [life.fresh for life in lives],
                "price_usd_micros": [agent.price for agent in agents],
                "timeout_ms": [agent.timeout for agent in agents],
                "tenants": [agent.tenants for agent in agents],
                "fallback": [agent.fallback for agent in agents],
                "registered_at": [agent.registered_at for agent in agents],
                "seen_at": [
                    max(agent.seen_at, life.seen_at) for agent, life in zip(agents, lives, strict=True)
                ],
                "version": [self.offset] * len(names),
            },
        )

    # blocks

    def _join(self, name: str, agent: Agent) -> None:
        blocks = self.services[agent.service].blocks
        number = 0
        while (block := blocks.get(number)) is not None and (
            len(block.names) >= BLOCK_AGENTS_MAX
            or (block.names and block.size + agent.size > BLOCK_BYTES_MAX)
        ):
            number += 1
        if block is None:
            block = blocks[number] = Block()
        block.names.add(name)
        block.size += agent.size
        agent.block = number
        self._urge(block)

    def _leave(self, name: str, agent: Agent) -> None:
        block = self.services[agent.service].blocks[agent.block]
        block.names.discard(name)
        block.size -= agent.size
        self._urge(block)

    def _move(self, name: str, agent: Agent, size: int) -> None:
        """To a block with room; it is published there before it is missing here."""
        block = self.services[agent.service].blocks[agent.block]
        block.names.discard(name)
        block.size -= size
        self._join(name, agent)
        self._urge(block)

    def _urge(self, block: Block) -> None:
        if not block.urgent:
            self.turns += 1
            block.urgent = self.turns

    def _mark(self, service_name: str, service: Service, names: frozenset[str] | None) -> None:
        for block in self._blocks_of(service_name, service, names):
            self._urge(block)

    def _blocks_of(
        self, service_name: str, service: Service, names: frozenset[str] | None
    ) -> Iterable[Block]:
        if names is None:
            return service.blocks.values()
        agents = (self.agents.get(name) for name in names)
        numbers = sorted({agent.block for agent in agents if agent and agent.service == service_name})
        return [service.blocks[number] for number in numbers]

    def _played(self, service_name: str, service: Service, names: frozenset[str] | None) -> list[str]:
        """The service's agents among `names` (None: all)."""
        if names is None:
            return [name for block in service.blocks.values() for name in block.names]
        return [name for name in names if name in self.agents and self.agents[name].service == service_name]


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


def _lives(service: Service, names: Sequence[str], agents: Sequence[Agent]) -> list[_Life]:
    everybody = _Life()
    listed = []
    for replica in service.replicas.values():
        if replica.names is None:
            everybody.add(replica)
        else:
            listed.append(replica)
    if not listed:
        return [everybody] * len(names)
    lives = []
    for name in names:
        life = _Life(
            everybody.fresh, everybody.suspected, everybody.stopping, everybody.busy, everybody.seen_at
        )
        for replica in listed:
            if name in replica.names:  # type: ignore[operator]
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


def _covers(replica: Replica, name: str) -> bool:
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


def dump(registry: Registry) -> dict[str, pa.RecordBatch]:
    """The registry as record batches by name, sorted by key."""
    services = sorted(registry.services.items())
    agents = [
        {"agent": name} | {key: getattr(agent, key) for key in AGENTS_SCHEMA.names[1:]}
        for name, agent in sorted(registry.agents.items())
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
    times = [{name: getattr(registry, name) for name in _TIMES}]
    return {
        "agents": pa.RecordBatch.from_pylist(agents, AGENTS_SCHEMA),
        "replicas": pa.RecordBatch.from_pylist(replicas, REPLICAS_SCHEMA),
        "blocks": pa.RecordBatch.from_pylist(blocks, BLOCKS_SCHEMA),
        "services": pa.RecordBatch.from_pylist(holds, SERVICES_SCHEMA),
        "times": pa.RecordBatch.from_pylist(times, TIMES_SCHEMA),
    }


def load(batches: Mapping[str, pa.RecordBatch]) -> Registry:
    """The registry that was dumped."""
    registry = Registry(**batches["times"].to_pylist()[0])
    for row in batches["services"].to_pylist():
        registry.services[row["service"]] = Service(hold=row["hold"])
    for row in batches["blocks"].to_pylist():
        service = registry.services[row.pop("service")]
        service.blocks[row.pop("block")] = Block(**row)
    for row in batches["replicas"].to_pylist():
        service = registry.services[row.pop("service")]
        names = row.pop("names")
        service.replicas[row.pop("replica")] = Replica(None if names is None else frozenset(names), **row)
    for row in batches["agents"].to_pylist():
        name = row.pop("agent")
        row["capabilities"] = tuple(row["capabilities"])
        row["tenants"] = None if row["tenants"] is None else tuple(row["tenants"])
        agent = registry.agents[name] = Agent(**row)
        block = registry.services[agent.service].blocks[agent.block]
        block.names.add(name)
        block.size += agent.size
    return registry
