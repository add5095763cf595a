"""register on a virtual clock: say what the log says, let time pass, look at what the fleet was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from aos.agents.fleet import STATES, Fleet
from aos.analytics.beliefs import Beliefs
from aos.codecs.rows import empty, from_dicts
from aos.streams import register
from aos.streams.processor import Batch, Views
from tests.unit.given_fleet import NOW, PARTITIONS, views_of

SECOND = 1_000_000


class Register:
    """One register, called as the shell does: a step a message, a tick when one is due."""

    def __init__(self, beliefs: Beliefs | None = None, **settings: Any) -> None:
        self.views: Views = views_of(beliefs=beliefs, **settings)
        self.state = register.initial(0)
        self.now = NOW
        self.offset = 0
        self.due: int | None = None
        self.published: list[tuple[int, str, pa.RecordBatch]] = []  # (when, key, rows)
        self.fleet = Fleet()

    def say(self, *rows: Mapping[str, Any]) -> None:
        """One message of aos.fleet."""
        batch = Batch("aos.fleet", 0, self.offset, from_dicts("fleet-entry", rows))
        self._step(batch)
        self.offset += 1

    def wait(self, seconds: float, beats: Sequence[Mapping[str, Any]] = ()) -> None:
        """Let time pass; `beats` are said every second."""
        end = self.now + round(seconds * SECOND)
        next_beat = self.now + SECOND if beats else end + 1
        while True:
            due = max(self.due if self.due is not None else end + 1, self.now)
            if min(due, next_beat) > end:
                break
            self.now = min(due, next_beat)
            if next_beat <= due:
                self.say(*beats)
                next_beat += SECOND
            else:
                self.tick()
        self.now = end

    def tick(self) -> None:
        """Nothing came, but something is due."""
        self._step(Batch("aos.fleet", 0, -1, empty("fleet-entry"), tick=True))

    def restart(self, away_s: float) -> None:
        """Down for a while; the state is that of a snapshot."""
        self.state = register.load(0, register.dump(self.state))
        self.now += round(away_s * SECOND)
        self.due = self.now

    def state_of(self, agent: str) -> str | None:
        """What the fleet was told last; None when it is not known."""
        slot = self.fleet.index(agent)
        return None if slot < 0 else STATES[self.fleet.state[slot]]

    def capacity_of(self, agent: str) -> int:
        """What the fleet was told last."""
        return int(self.fleet.capacity[self.fleet.index(agent)])

    def _step(self, batch: Batch) -> None:
        result = register.step(self.state, batch, self.now, self.views, 1)
        self.state, self.due = result.state, result.next_due
        for output in result.outputs:
            assert output.key is not None
            assert output.topic == "aos.agent-states"
            self.published.append((self.now, output.key.decode(), output.rows))
            self.fleet.apply(output.key, output.rows)


def registered(agent: str, service: str = "crew", **said: Any) -> dict[str, Any]:
    """A registration."""
    return {"kind": "registered", "service": service, "agent": agent, "capabilities": ["work"]} | said


def beat(replica: str = "one", service: str = "crew", **said: Any) -> dict[str, Any]:
    """A heartbeat."""
    return {"kind": "beat", "service": service, "replica": replica} | said


def order(action: str, agent: str | None = None, service: str = "") -> dict[str, Any]:
    """A control."""
    return {"kind": "control", "service": service, "agent": agent, "action": action}


__all__ = ["NOW", "PARTITIONS", "SECOND", "Register", "beat", "order", "registered"]
