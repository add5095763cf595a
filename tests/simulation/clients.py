"""Callers in the simulated world: requests of every shape, repeats, cancels, redrives, verdicts, and rubbish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aos.agents import identity
from aos.codecs.topics import tenant_topic
from aos.streams.simulated_log import World
from tests.simulation.agents import encoded

KINDS = ("draw", "write", "count")
RUBBISH = (b"", b"{", b'{"nonsense": 1}', b"\xff" * 40, b'{"text": 5}')
WRONG: tuple[dict[str, Any], ...] = (
    {"text": "x", "priority": 9},
    {"id": "n"},
    {"steps": [{"name": "a", "text": "x", "after": ["b"]}, {"name": "b", "text": "x", "after": ["a"]}]},
    {"steps": [{"name": "a", "text": "x", "after": ["nowhere"]}]},
    {"steps": [{"name": "a", "text": "x"}, {"name": "a", "text": "y"}]},
    {"text": "x", "policy": "by mood"},
)


def shapes(world: World) -> dict[str, Any]:
    """One request of some shape, without id."""
    random = world.random
    kind = random.choice(KINDS)
    row: dict[str, Any] = {"task_kind": kind, "text": f"do {random.randrange(10**6)}", "require": [kind]}
    shape = random.choices(
        ("single", "chain", "diamond", "judged", "team", "impossible", "hurried", "poor", "any"),
        (40, 10, 8, 12, 12, 2, 4, 4, 8),
    )[0]
    if shape == "chain":
        row["steps"] = [{"name": "a"}, {"name": "b", "after": ["a"]}, {"name": "c", "after": ["b"]}]
    elif shape == "diamond":
        row["steps"] = [
            {"name": "a"}, {"name": "b", "after": ["a"]}, {"name": "c", "after": ["a"]},
            {"name": "d", "after": ["b", "c"]},
        ]  # fmt: skip
    elif shape == "judged":
        row["steps"] = [{"name": "a"}, {"name": "j", "after": ["a"], "judges": "a", "require": ["judge"]}]
        if random.random() < 0.3:
            row["steps"].append({"name": "j2", "judges": "a", "require": ["judge"]})
        if random.random() < 0.3:
            row["steps"][0]["require"] = ["draw", "judge"]
    elif shape == "team":
        row["require"] = random.choice([["draw", "write"], ["draw", "write", "count"], ["count", "judge"]])
        if random.random() < 0.4:
            row["steps"] = [{"name": "a"}, {"name": "b", "after": ["a"], "require": ["draw"]}]
    elif shape == "impossible":
        row["require"] = ["magic"]
    elif shape == "hurried":
        row["deadline_ms"] = random.choice([1, 300, 3_000])
    elif shape == "poor":
        row["budget_usd_micros"] = random.choice([0, 5, 12, 30])
    elif shape == "any":
        del row["require"]
        row["policy"] = random.choice(["round-robin", "learned"])
    row["priority"] = random.randrange(4)
    if random.random() < 0.1:
        row["domain"] = "side"
    if random.random() < 0.1:
        row["exclude"] = ["draw-1"]
    if random.random() < 0.1:
        row["payload"] = random.randbytes(20)
    return row


@dataclass
class Sent:
    """A request that was sent with an id of its own."""

    tenant: str
    row: dict[str, Any]
    wrong: bool = False
    cancelled: bool = False
    redriven: int = 0


@dataclass
class Client:
    """Sends `count` requests over a while, then does what callers do to them; an actor."""

    count: int
    tenants: Sequence[str] = ("default",)
    pause_us: tuple[int, int] = (500, 60_000)
    trouble: float = 0.1  # share of repeats, cancels, redrives, verdicts, rubbish: each

    sent: dict[bytes, Sent] = field(default_factory=dict)
    rubbish: int = 0
    verdicts: int = 0
    first_at: int | None = None

    def __post_init__(self) -> None:
        self._next = 0
        self._made = 0
        self._plans: list[tuple[int, str, bytes]] = []

    def alarm(self) -> int | None:
        times = [at for at, _, _ in self._plans]
        if self._made < self.count:
            times.append(self._next)
        return min(times, default=None)

    @property
    def done(self) -> bool:
        return self._made >= self.count and not self._plans

    def act(self, world: World) -> bool:
        if self.first_at is None:
            self.first_at = self._next = world.clock + 1_000_000  # the fleet first
        due = [plan for plan in self._plans if plan[0] <= world.clock]
        self._plans = [plan for plan in self._plans if plan[0] > world.clock]
        for _, action, request_id in due:
            self._do(world, action, request_id)
        acted = bool(due)
        if self._made < self.count and world.clock >= self._next:
            self._submit(world)
            self._next = world.clock + world.random.randint(*self.pause_us)
            acted = True
        return acted

    def _submit(self, world: World) -> None:
        """One message of some requests, as Arrow or JSON; now and then one that is wrong, or rubbish."""
        random = world.random
        tenant = random.choice(list(self.tenants))
        topic = tenant_topic("aos.requests", tenant)
        if world.chance(self.trouble / 2):
            self.rubbish += 1
            world.send(topic, random.choice(RUBBISH), {})
        rows = [self._request(world, tenant) for _ in range(random.choice([1, 1, 1, 2, 4]))]
        if world.chance(0.3):
            for row in rows:
                world.send(topic, json.dumps(_plain(row)).encode(), {})
        else:
            world.send(topic, *encoded("aos.requests", rows))

    def _request(self, world: World, tenant: str) -> dict[str, Any]:
        wrong = world.chance(self.trouble / 2)
        row = dict(world.random.choice(WRONG)) if wrong else shapes(world)
        row["id"] = f"q{self._made}"
        self._made += 1
        request_id = identity.request_id(tenant, row["id"])
        self.sent[request_id] = Sent(tenant, row, wrong)
        for action in ("repeat", "cancel", "redrive", "verdict"):
            if world.chance(self.trouble):
                at = world.clock + int(10 ** world.random.uniform(2, 7))
                self._plans.append((at, action, request_id))
        return row

    def _do(self, world: World, action: str, request_id: bytes) -> None:
        sent = self.sent[request_id]
        if action == "repeat":
            topic = tenant_topic("aos.requests", sent.tenant)
            world.send(topic, *encoded("aos.requests", [sent.row]))
        elif action == "verdict":
            self.verdicts += 1
            row = {"id": sent.row["id"], "score": world.random.random(), "domain": sent.row.get("domain")}
            topic = tenant_topic("aos.feedback", sent.tenant)
            world.send(topic, *encoded("aos.feedback", [row]))
        else:
            sent.cancelled = sent.cancelled or action == "cancel"
            sent.redriven += action == "redrive"
            order = {"action": action, "tenant": sent.tenant, "id": sent.row["id"]}
            if world.chance(0.5):
                order["home"] = identity.home(request_id, world.partitions["aos.tasks"])
            world.send("aos.controls", *encoded("aos.controls", [order]))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A request as JSON has it: bytes as base64 objects are left out."""
    return {name: value for name, value in row.items() if not isinstance(value, bytes)}
