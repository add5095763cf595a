"""A simulated world as the tests use it: a fleet of three services, two tenants, one client, time that is short."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from aos.codecs.settings import Settings
from aos.streams.simulate import Simulation
from aos.streams.simulated_log import Chances
from aos.streams.topology import GROUPS, PROCESSORS, VIEWS
from tests.simulation.agents import Agent, Habits, Service
from tests.simulation.clients import Client

TENANTS = ("default", "acme")
SETTINGS: dict[str, Any] = {
    "partitions": 2, "tenants": TENANTS, "inbox_partitions": 2, "timeout_ms": 3_000, "retry_waits_ms": (200, 400),
    "match_waits_ms": (200, 400, 800), "attempts_max": 3, "heartbeat_ms": 700, "suspect_after_ms": 1_500,
    "gone_after_ms": 2_500, "request_timeout_ms": 60_000, "repeat_window_s": 100_000, "trial_outcomes": 2,
    "mine_every": 10, "mine_window": 60, "optimise_every": 12,
}  # fmt: skip
QUOTAS: dict[str, Any] = {
    "quota_requests_per_s": {"acme": 20.0}, "quota_bytes_per_s": {"acme": 400.0}, "quota_in_flight": {"acme": 3},
    "quota_burst_s": 0.3, "waiting_max": 40,
}  # fmt: skip
"""Limits that a world's callers run into, `default` only when the fleet cannot keep up."""
AFTERWARDS_US = 8_000_000  # agents live on so long after the last result: late answers, releases, health
SILENCE_US = 60_000_000  # then they fall silent, and all of them are gone
QUIET_US = 150_000_000  # nothing may hold a request longer than its own limit and all waits


def fleet(habits: Habits) -> list[Service]:
    """Three services: one that is there; one whose agents stand in two cells, one of them for one tenant only; one of a
    single replica that is often away."""
    studio = [
        Agent("draw-1", ["draw"], skill=0.9), Agent("draw-2", ["draw"], skill=0.6, capacity=1),
        Agent("write-1", ["write"], skill=0.7), Agent("both-1", ["draw", "write"], skill=0.5),
        Agent("judge-1", ["judge"], skill=0.6),
    ]  # fmt: skip
    office = [
        Agent("count-1", ["count"], "east", skill=0.8), Agent("count-2", ["count", "write"], "west", skill=0.4),
        Agent("draw-3", ["draw"], "west", tenants=["acme"]), Agent("judge-2", ["judge"], "east", capacity=1),
    ]  # fmt: skip
    annex = [Agent("draw-4", ["draw"], capacity=4), Agent("count-3", ["count", "draw"], "west", capacity=4)]
    away = replace(habits, away=5 * habits.away)
    return [
        Service("studio", studio, habits), Service("office", office, habits), Service("annex", annex, away, 1),
    ]  # fmt: skip


@dataclass
class Scene:
    """A world with its people."""

    simulation: Simulation
    client: Client
    services: list[Service]

    def play(self) -> None:
        """Until every request has ended, a while longer, then until nobody has anything to do."""
        world, sim = self.simulation.world, self.simulation
        deadline = world.clock + QUIET_US

        def answered() -> bool:
            if not self.client.done:
                return False
            waiting = sum(
                len(sim.loop("supervise", p).state.requests) for p in range(world.count("aos.ledger"))
            )
            assert world.clock < deadline + self.client.count * 1_000_000, f"{waiting} requests never ended"
            return waiting == 0

        sim.run(until=answered)
        sim.run(for_us=AFTERWARDS_US)
        for service in self.services:
            service.until = world.clock
        sim.run(for_us=SILENCE_US)


def scene(
    seed: int,
    requests: int = 40,
    chances: Chances | None = None,
    habits: Habits | None = None,
    **changed: Any,
) -> Scene:
    """The world of a seed, not yet played; `changed`: settings that are not those of every world."""
    client = Client(requests, TENANTS)
    services = fleet(habits or Habits())
    settings = Settings(**{**SETTINGS, **changed})
    simulation = Simulation(
        PROCESSORS, GROUPS, VIEWS, seed=seed, settings=settings, chances=chances, actors=[*services, client]
    )
    return Scene(simulation, client, services)
