"""A recorded table of scores is replayed honestly: only the chosen agent's score is ever revealed.

With one request in flight at a time, changing scores that were not chosen changes no decision, crashes or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from aos.agents.sdk.work import ECHOED
from aos.codecs.settings import Settings
from aos.codecs.topics import inbox
from aos.streams.simulate import Simulation
from aos.streams.simulated_log import CALM, Chances, World
from aos.streams.topology import GROUPS, PROCESSORS, VIEWS
from tests.simulation.agents import Agent, Service, encoded
from tests.simulation.scene import SETTINGS

AGENTS = ("ada", "bob", "cyd")
Table = list[dict[str, float]]
ROUGH = Chances(kill=0.01, move=0.02, rewind=0.01)


class Replayers(Service):
    """Agents that look their score up: only the one that was chosen opens the table, at its own place."""

    def __init__(self, table: Table) -> None:
        super().__init__("replay", [Agent(name, ["replay"], capacity=1) for name in AGENTS], replicas=1)
        self.habits = type(self.habits)(away=0, delegates=0, shares=0)
        self.table = table

    def _plan(self, world: World, row: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        score = self.table[int(row["text"].removeprefix("row "))][row["agent"]]
        return [
            (world.clock + 5_000, {name: row[name] for name in ECHOED} | {"status": "ok", "score": score})
        ]


@dataclass
class OneAtATime:
    """A client that sends the next row when the last one's result is there, and some time has passed."""

    rows: int
    sent: int = 0
    chosen: list[str] = field(default_factory=list)
    next_at: int = 0

    def alarm(self) -> int | None:
        return self.next_at if self.sent < self.rows else None

    def act(self, world: World) -> bool:
        if not self.sent and not self.next_at:
            self.next_at = world.clock + 1_000_000
        results = {row["id"]: row for row in world.rows("aos.results")} if self.sent else {}
        if len(results) < self.sent or self.sent == self.rows or world.clock < self.next_at:
            return False
        row = {
            "id": f"r{self.sent}",
            "text": f"row {self.sent}",
            "require": ["replay"],
            "task_kind": "replay",
        }
        world.send("aos.requests", *encoded("aos.requests", [row]))
        self.sent += 1
        self.next_at = world.clock + 300_000  # what was learned has arrived
        return True


def decisions(table: Table, seed: int, chances: Chances) -> list[tuple[int, str, float]]:
    """Who was chosen for each row of the table, with what probability."""
    service, client = Replayers(table), OneAtATime(len(table))
    settings = Settings(**{**SETTINGS, "tenants": ("default",), "partitions": 1})
    sim = Simulation(
        PROCESSORS, GROUPS, VIEWS, seed=seed, settings=settings, chances=chances, actors=[service, client]
    )
    sim.run(until=lambda: len({row["id"] for row in sim.world.rows("aos.results")}) == len(table))
    asked = {row["request_id"]: row["text"] for row in sim.world.rows(inbox("replay"))}
    found = {
        (int(asked[row["request_id"]].removeprefix("row ")), row["agent"], row["probability"])
        for row in sim.world.rows("aos.decisions")
    }
    return sorted(found)


def table_of(seed: int, rows: int) -> Table:
    """Random scores."""
    random = Random(seed)
    return [{agent: round(random.random(), 2) for agent in AGENTS} for _ in range(rows)]


@pytest.mark.parametrize("chances", [CALM, ROUGH], ids=["calm", "rough"])
def test_a_score_that_was_not_chosen_changes_no_decision(chances: Chances) -> None:
    table = table_of(7, 12)
    first = decisions(table, 3, chances)
    assert [row for row, _, _ in first] == list(range(len(table)))
    assert len({agent for _, agent, _ in first}) > 1
    chosen = {(row, agent) for row, agent, _ in first}
    changed = [
        {agent: score if (row, agent) in chosen else 1.0 - score for agent, score in scores.items()}
        for row, scores in enumerate(table)
    ]
    assert changed != table
    assert decisions(changed, 3, chances) == first


def test_a_score_that_was_chosen_changes_what_comes_after_it() -> None:
    """Else the test above could not fail."""
    table = table_of(7, 12)
    first = decisions(table, 3, CALM)
    row, agent, _ = first[0]
    changed = [dict(scores) for scores in table]
    changed[row][agent] = 1.0 - changed[row][agent]
    again = decisions(changed, 3, CALM)
    assert again[:1] == first[:1]
    assert again != first
