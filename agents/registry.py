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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aos.agents.registry_rows import block_rows
from aos.agents.registry_state import Agent, Block, Memory, Replica, Service, covers, fill

BLOCK_AGENTS_MAX = 1_000  # a block is published whole: one agent's change costs the block
BLOCK_BYTES_MAX = 4 * 1024 * 1024  # half of what a message may have, for long descriptions
PACE_US = 100_000  # at most 10 messages a second
SOFT_US = 2_000_000  # busy or idle again, learned enough: worth a message, not at once
REFRESH_US = 10_000_000  # the last sign of life, and states that beliefs change, get this old at most
FORGET_US = 24 * 3600 * 1_000_000  # an agent that is gone this long is forgotten
HOLDS = {"pause": "paused", "drain": "draining", "resume": ""}


@dataclass(frozen=True, slots=True)
class Limits:
    """Silence in microseconds after which a replica is suspected, and gone."""

    suspect_us: int
    gone_us: int


class Registry(Memory):
    """The policy over what it remembers."""

    # what the log says

    def register(self, name: str, now: int, limits: Limits, removed: bool, **told: Any) -> None:
        """Take in a registration; `told` are the fields of `Agent` that a service says."""
        former = self.agents.get(name)
        if removed:
            if former is not None and former.service == told["service"]:
                self.remove(name)
            return
        service = self.services.setdefault(told["service"], Service())
        covered = any(covers(replica, name) and not replica.stopping for replica in service.replicas.values())
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
        self.graces.discard(name)
        if grace:
            self.graces.add(name)
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
        for name in [name for name in self.graces if plays is None or name in plays]:
            if self.agents[name].service == service_name:
                self._end_grace(name)
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
        self.graces.discard(name)
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
            for service_name, service in sorted(self.services.items(), key=lambda item: item[0]):
                self._watch_service(service_name, service, now, limits)
            self._watch_graces(now)
        if now >= self.forget_at:
            self.forget_at = now + FORGET_US // 1440
            self._forget(now)

    def _watch_service(self, name: str, service: Service, now: int, limits: Limits) -> None:
        for replica_name, replica in sorted(service.replicas.items(), key=lambda item: item[0]):
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
        for name in sorted(self.graces):
            agent = self.agents[name]
            if now >= agent.grace_until:
                self._end_grace(name)
                self._urge(self.services[agent.service].blocks[agent.block])
            else:
                self.check_at = min(self.check_at, agent.grace_until)

    def _end_grace(self, name: str) -> None:
        self.agents[name].grace_until = 0
        self.graces.discard(name)

    def _forget(self, now: int) -> None:
        old = [
            name
            for name, agent in sorted(self.agents.items(), key=lambda item: item[0])
            if agent.seen_at < now - FORGET_US
        ]
        for name in old:
            agent = self.agents[name]
            replicas = self.services[agent.service].replicas.values()
            if not agent.grace_until and not any(covers(replica, name) for replica in replicas):
                self.remove(name)

    # what the fleet is told

    def due(self, limits: Limits) -> int | None:
        """When to call again: a block waits, time must pass (every quarter of the suspicion, see `watch`), or
        somebody gone is to be forgotten; None for an empty registry."""
        whens = [
            max(wanted, self.sent_at + PACE_US)
            for service in self.services.values()
            for block in service.blocks.values()
            if (wanted := self._wanted_at(service, block)) is not None
        ]
        if self.graces or any(service.replicas for service in self.services.values()):
            whens.append(self.called_at + limits.suspect_us // 4)
        elif self.agents:
            oldest = min(agent.seen_at for agent in self.agents.values())
            whens.append(max(oldest + FORGET_US + 1, self.forget_at))
        return min(whens, default=None)

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
        names = sorted(block.names)
        rows = block_rows(
            service_name,
            service,
            {name: self.agents[name] for name in names},
            [bool(count < trial) for count in outcomes(names)] if names else [],
            lanes,
            self.offset,
        )
        if not block.names:
            del service.blocks[number]
        return f"{service_name}/{number}".encode(), rows

    def _wanted_at(self, service: Service, block: Block) -> int | None:
        if block.urgent:
            return 0
        if block.soft:
            return block.published_at + SOFT_US
        return block.published_at + REFRESH_US if service.replicas else None

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
            return [block for _, block in sorted(service.blocks.items(), key=lambda item: item[0])]
        agents = (self.agents.get(name) for name in names)
        numbers = sorted({agent.block for agent in agents if agent and agent.service == service_name})
        return [service.blocks[number] for number in numbers]

    def _played(self, service_name: str, service: Service, names: frozenset[str] | None) -> list[str]:
        """The service's agents among `names` (None: all), sorted: what follows must not depend on a set's order."""
        if names is None:
            return sorted(name for block in service.blocks.values() for name in block.names)
        return sorted(
            name for name in names if name in self.agents and self.agents[name].service == service_name
        )


def load(batches: Mapping[str, pa.RecordBatch]) -> Registry:
    """The registry that was dumped."""
    registry = Registry()
    fill(registry, batches)
    return registry
