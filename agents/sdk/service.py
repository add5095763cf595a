"""A service: one process that plays agents. This module is the declaration; `runner` does the work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """Agents with one handler, as declared. `capacity` is that of each agent in one replica."""

    agents: tuple[str, ...]
    capabilities: tuple[str, ...]
    handler: Any
    batch: bool
    process: bool
    capacity: int
    columns: dict[str, Any]

    @property
    def slots(self) -> int:
        """Attempts of all its agents at once."""
        return self.capacity * len(self.agents)


class Service:
    """Declare agents with `agent`, then `run()` (owns the process) or `await serve()`.

    `bootstrap` and `prefix` default to AOS_BOOTSTRAP and AOS_PREFIX, then to the running local stack's. Replicas of
    a service share its inbox: start the same program twice. Delivery is at least once: an attempt whose answer was
    not acknowledged comes again after a crash. `kafka`: further arguments for the aiokafka clients (TLS, SASL).
    `replica` (else AOS_REPLICA): a name that this copy has again after a restart and no other copy has. Killed and
    started again under it, it goes on at once; without, the group first waits 10 s for the one that is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        bootstrap: str | None = None,
        prefix: str | None = None,
        replica: str | None = None,
        heartbeat_s: float = 1.0,
        grace_s: float = 20.0,
        kafka: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.bootstrap = bootstrap
        self.prefix = os.environ.get("AOS_PREFIX", "") if prefix is None else prefix
        named = replica or os.environ.get("AOS_REPLICA", "")
        self.stays = bool(named)  # the same member of its group after a crash
        self.replica = named or f"{socket.gethostname()}-{os.getpid()}"
        self.heartbeat_s = heartbeat_s
        self.grace_s = grace_s
        self.kafka = kafka or {}
        self.groups: list[Group] = []
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()

    def agent(
        self,
        agent: str | Sequence[str],
        *,
        capabilities: Sequence[str],
        capacity: int = 1,
        batch: bool = False,
        process: bool = False,
        description: str | None = None,
        cell: str | None = None,
        price_usd_micros: int | None = None,
        timeout_ms: int | None = None,
        tenants: Sequence[str] | None = None,
        fallback: bool | None = None,
    ) -> Callable[[Any], Any]:
        """Declare an agent, or several that share a handler.

        `capacity`: attempts of each at once in one replica. `batch`: the handler takes a list of Work (of all these
        agents) and returns as many answers, exceptions among them. `process`: the handler is a plain function,
        importable by name, that runs in a process of its own; its CPU time is reported.
        """
        names = (agent,) if isinstance(agent, str) else tuple(agent)
        known = {name for group in self.groups for name in group.agents}
        for name in names:
            if name in known:
                raise ValueError(f"agent {name!r} is declared twice")
        if batch and process:
            raise ValueError("an agent is either a batch handler or runs in processes")
        columns = {
            "description": description,
            "cell": cell,
            "capacity": capacity,
            "price_usd_micros": price_usd_micros,
            "timeout_ms": timeout_ms,
            "tenants": list(tenants) if tenants is not None else None,
            "fallback": fallback,
        }

        def declare(handler: Any) -> Any:
            group = Group(names, tuple(capabilities), handler, batch, process, capacity, columns)
            self.groups.append(group)
            return handler

        return declare

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; running work is finished within `grace_s`."""
        import uvloop  # here and not before: declaring a service is to stay light

        uvloop.run(self._until_signal())

    def stop(self) -> None:
        """Ask `serve` to finish."""
        self._stopping.set()

    async def serve(self) -> None:
        """Register, read the inbox, answer, until `stop` is called."""
        from aos.agents.sdk.runner import Runner  # aiokafka is imported here and not before

        await Runner(self).run(self._stopping, self.ready)

    async def _until_signal(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()
