"""What agents at work ask for, on a ledger to play with: a world whose supervise reads what it wrote to its own log."""

from __future__ import annotations

from typing import Any

from aos.agents import identity
from aos.codecs.rows import from_dicts
from tests.unit.given_ledger import (
    SECRET,
    Row,
    World,
    asked,
    assigned,
    candidate,
    id_of,
    outcome,
    planned,
    requested,
    row,
)


def call_row(kind: str, call: str, request_id: bytes, said: dict[str, Any]) -> Row:
    """A row of an agent's call, with the token of its attempt."""
    step, attempt = said.pop("step", 0), said.pop("attempt", 1)
    agent, epoch, round = said.pop("agent", "x"), said.pop("epoch", 5), said.pop("token_round", 0)
    token = identity.token(SECRET, request_id, round, step, attempt, agent, epoch)
    plain = {
        "request_id": request_id, "id": call, "step": step, "attempt": attempt, "agent": agent, "epoch": epoch,
        "token": token, "tenant": "", "domain": "",
    }  # fmt: skip
    return row(kind) | plain | said


def delegated(call: str = "0", of: bytes = id_of(1), text: str = "a part", **said: Any) -> Row:
    """The call by which an agent hands out `text`."""
    step = asked("main", text=text, **{k: said.pop(k) for k in ("pin", "payload", "require") if k in said})
    return call_row("delegated", call, of, {"steps": [step]} | said)


def shared(changes: bytes, version: int = 0, call: str = "s", of: bytes = id_of(1), **said: Any) -> Row:
    """The call by which an agent changes the context."""
    return call_row("shared", call, of, {"payload": changes, "context_version": version} | said)


class Family(World):
    """A world in which what supervise writes to the ledger is read at once, in a message of its own."""

    def say(self, *rows: Row, after: float = 0.0) -> dict[str, list[Row]]:
        """Fold the rows, then what came of them for the ledger, until nothing more comes."""
        said = self.fold(*rows, after=after)
        found = dict(said)
        while said.get("aos.ledger"):
            again = [{k: v for k, v in one.items() if k != "_partition"} for one in said["aos.ledger"]]
            said = self.fold_rows(from_dicts("entry", again))
            for topic, more in said.items():
                found[topic] = [*found.get(topic, []), *more]
        return found

    def work(self, request_id: bytes = id_of(1), agent: str = "x", **said: Any) -> dict[str, list[Row]]:
        """Plan the request's only step for the agent, and assign it."""
        self.say(at(request_id, planned(agents=[candidate(agent)], **said)))
        return self.say(at(request_id, assigned(agent=agent)))

    def child(self, call: str = "0", of: bytes = id_of(1), step: int = 0, attempt: int = 1) -> bytes:
        """The id of what an attempt handed out."""
        return identity.child_id(of, 0, step, attempt, call)

    def answer(self, request_id: bytes, agent: str, **said: Any) -> dict[str, list[Row]]:
        """The agent answers the request's only step."""
        token = identity.token(SECRET, request_id, 0, 0, 1, agent, 5)
        return self.say(at(request_id, outcome(agent=agent, **said)) | {"token": token})


def at(request_id: bytes, given: Row) -> Row:
    """The row, but of that request."""
    return given | {"request_id": request_id}


def family(**said: Any) -> Family:
    """A request whose only step is with agent x."""
    world = Family()
    world.say(requested(**said))
    world.work()
    return world
