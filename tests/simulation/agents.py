"""Services in the simulated world: replicas that beat, agents that answer well, badly, late, twice, forged or never."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aos.agents.sdk.work import ECHOED
from aos.codecs import wire
from aos.codecs.rows import from_dicts
from aos.codecs.topics import inbox, record_of
from aos.streams.simulated_log import World

Attempt = tuple[bytes, int, int, int]  # request id, round, step, attempt

FORGED = b"forged"
"""The payload of every answer that must not count."""


@dataclass(frozen=True)
class Agent:
    """What an agent registers, and how well it does (its mean score)."""

    name: str
    capabilities: Sequence[str]
    cell: str | None = None
    capacity: int = 2
    skill: float = 0.7
    tenants: Sequence[str] | None = None


@dataclass(frozen=True)
class Habits:
    """How often an agent does not simply answer; shares of all assignments."""

    fails: float = 0.08
    fails_for_good: float = 0.02
    never: float = 0.04
    late: float = 0.04
    twice: float = 0.05
    forged: float = 0.05
    progress: float = 0.05
    delegates: float = 0.08
    shares: float = 0.06
    deaf_to_cancel: float = 0.5
    away: float = 0.15  # tenfold chance a beat that the replica is stuck for so long that it counts as gone
    work_us: tuple[int, int] = (1_000, 400_000)


GOOD = Habits(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)


def encoded(topic: str, rows: Sequence[Mapping[str, Any]]) -> tuple[bytes, dict[str, bytes]]:
    """Rows as bytes and headers for a topic."""
    record = record_of(topic)
    return wire.encode(from_dicts(record.name, rows), record)


@dataclass
class Service:
    """One deployable with replicas; an actor."""

    name: str
    agents: Sequence[Agent]
    habits: Habits = field(default_factory=Habits)
    replicas: int = 2
    until: int | None = None  # it falls silent at this time

    def __post_init__(self) -> None:
        self._positions: dict[int, int] = {}
        self._waiting: list[tuple[int, int, Attempt, dict[str, Any]]] = []
        self._held: dict[Attempt, list[tuple[int, dict[str, Any]]]] = {}  # answers that wait for a child
        self._number = 0
        self._beats: dict[int, int] = {}
        self._registered = False
        self._back = 0  # until then all replicas are stuck
        self.worked: dict[Attempt, int] = {}  # inbox rows

    def alarm(self) -> int | None:
        times = [max(item[0], self._back) for item in self._waiting[:1]]
        if self.until is None:
            times += self._beats.values()
        return min(times, default=None)

    def act(self, world: World) -> bool:
        found = self._register(world) or self._beat(world)
        if world.clock < self._back:
            return found  # stuck: nobody reads, nobody answers
        return self._read(world) or self._answer(world) or found

    def _register(self, world: World) -> bool:
        if self._registered:
            return False
        self._registered = True
        for agent in self.agents:
            row = {
                "service": self.name, "agent": agent.name, "capabilities": list(agent.capabilities),
                "cell": agent.cell, "capacity": agent.capacity, "tenants": agent.tenants,
                "price_usd_micros": len(agent.name),
            }  # fmt: skip
            world.send("aos.agents", *encoded("aos.agents", [row]))
        self._beats = dict.fromkeys(range(self.replicas), world.clock)
        return True

    def _beat(self, world: World) -> bool:
        if self.until is not None and world.clock >= self.until:
            self._back = 0
            return False
        due = [replica for replica, at in self._beats.items() if at <= world.clock]
        for replica in due:
            row: dict[str, Any] = {"service": self.name, "replica": f"r{replica}"}
            if world.chance(0.02):
                row["stopping"] = True
            world.send("aos.heartbeats", *encoded("aos.heartbeats", [row]))
            pause = world.settings.heartbeat_ms * 1000
            if world.chance(self.habits.away / 10):
                pause = world.settings.gone_after_ms * 1500
            self._beats[replica] = world.clock + pause
            usual = world.clock + world.settings.heartbeat_ms * 1000
            self._back = min(self._beats.values()) if min(self._beats.values()) > usual else 0
        return bool(due)

    def _read(self, world: World) -> bool:
        topic = inbox(self.name)
        found = False
        for partition in range(world.count(topic)):
            log = world.read(topic, partition)
            for entry in log[self._positions.get(partition, 0) :]:
                found = True
                for row in entry.rows.to_pylist():
                    self._take(world, row)
            self._positions[partition] = len(log)
        return found

    def _take(self, world: World, row: dict[str, Any]) -> None:
        key = (row["request_id"], row["round"], row["step"], row["attempt"])
        if row["kind"] == "cancel":
            self._held.pop(key, None)
            if not world.chance(self.habits.deaf_to_cancel):
                self._waiting = [item for item in self._waiting if item[2] != key]
                heapq.heapify(self._waiting)
            return
        if row["kind"] == "result":
            self._wait(key, [(world.clock + 1, answer) for _, answer in self._held.pop(key, [])])
        if row["kind"] != "work":
            return
        self.worked[key] = self.worked.get(key, 0) + 1
        answers = self._plan(world, row)
        calls = self._calls(world, row)
        if any(call["action"] == "delegate" and call["token"] == row["token"] for call in calls):
            self._held[key], answers = answers, []
        self._wait(key, [*((world.clock + 1, call) for call in calls), *answers])

    def _wait(self, key: Attempt, answers: Sequence[tuple[int, dict[str, Any]]]) -> None:
        for at, answer in answers:
            self._number += 1
            heapq.heappush(self._waiting, (at, self._number, key, answer))

    def _calls(self, world: World, row: dict[str, Any]) -> list[dict[str, Any]]:
        """What the agent asks for while it is at work: a child, a change of the context; some of it forged or twice."""
        chance, random = world.chance, world.random
        echo = {n: row[n] for n in ECHOED}
        calls = []
        if chance(self.habits.delegates):
            calls.append(echo | {
                "action": "delegate", "call": "part", "require": [random.choice(("draw", "write", "count", "magic"))],
                "text": row["text"] if chance(0.2) else f"part {random.randrange(1000)} of it",
                "budget_usd_micros": 10 if chance(0.3) else None, "deadline_ms": 5_000 if chance(0.5) else None,
            })  # fmt: skip
        if chance(self.habits.shares):
            version = (row["context_version"] or 0) - chance(0.2)
            calls.append(echo | {
                "action": "share", "call": "note", "context": f'{{"{row["agent"]}": {row["attempt"]}}}'.encode(),
                "context_version": max(0, version),
            })  # fmt: skip
        if calls and chance(self.habits.twice):
            calls.append(calls[0])
        if calls and chance(self.habits.forged):
            calls.append(calls[0] | {"token": bytes(16), "call": "forged"})
        return calls

    def _plan(self, world: World, row: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """What will be answered to an assignment, and when."""
        habits, chance, random = self.habits, world.chance, world.random
        at = world.clock + random.randint(*habits.work_us)
        skill = next(agent.skill for agent in self.agents if agent.name == row["agent"])
        answer = {name: row[name] for name in ECHOED} | {
            "status": "ok",
            "payload": said_by(row),
            "score": min(1.0, skill * random.uniform(0.8, 1.2)),
        }
        answers = []
        if chance(habits.forged):
            bad = dict(answer, payload=FORGED)
            spoiled = random.choice(["token", "epoch", "agent", "request_id", "attempt"])
            bad[spoiled] = {
                "token": bytes(16), "epoch": row["epoch"] + 1, "agent": "nobody",
                "request_id": random.randbytes(16), "attempt": row["attempt"] + 1,
            }[spoiled]  # fmt: skip
            answers.append((world.clock + 1, bad))
        if chance(habits.progress):
            answers.append((world.clock + 1, dict(answer, status="progress", payload=None, progress=0.5)))
        if chance(habits.never):
            return answers
        if chance(habits.late):
            at += world.settings.timeout_ms * 2000
        if chance(habits.fails_for_good):
            answer |= {
                "status": "failed",
                "payload": None,
                "score": None,
                "retryable": False,
                "code": "BROKEN",
            }
        elif chance(habits.fails):
            answer |= {"status": "failed", "payload": None, "score": None, "message": "no luck"}
        answers.append((at, answer))
        if chance(habits.twice):
            answers.append((at + random.randint(0, 300_000), answer))  # either may come first
        return answers

    def _answer(self, world: World) -> bool:
        due = []
        while self._waiting and self._waiting[0][0] <= world.clock:
            due.append(heapq.heappop(self._waiting)[3])
        for topic, rows in (
            ("aos.calls", [row for row in due if "action" in row]),
            ("aos.outcomes", [row for row in due if "action" not in row]),
        ):
            if rows:
                world.send(topic, *encoded(topic, rows))
        return bool(due)


def said_by(row: Mapping[str, Any]) -> bytes:
    """What an agent makes of an assignment: who it was, and a hash of what it was given."""
    given = b"+".join(item["payload"] or b"" for item in row["inputs"])
    return f"{row['agent']}/{row['step']}/{row['attempt']}/".encode() + given[:40]
