"""What agents at work ask for: a child request (`delegated`), a change of what its members share (`shared`).

Both carry the token of the attempt, so nobody asks in another's name. A child is asked for twice before it exists: the
agent's call is a row of the parent's log, and what comes of it is a `requested` row that supervise writes behind it, so
that a child is read, kept, repeated and redriven as any request is. Its id follows from the call, and a call that is
said again says nothing new.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from aos.agents import identity
from aos.agents.ledger_doubt import doubt, ignore, step_of
from aos.agents.ledger_emit import Turn, say_to, shared
from aos.agents.ledger_family import DEPTH_MAX, child_id_text, left, line, wait_for, waiting
from aos.agents.ledger_intake import Delegated, Parent, Shared
from aos.agents.ledger_rows import Said
from aos.agents.ledger_state import RUNNING, Request, Step
from aos.agents.quotas import Refusal

CALLS_MAX = 64
"""Children one attempt may ask for: an agent in a loop must not fill the log."""

CONTEXT_BYTES_MAX = 8_192
"""Of the whole context, as JSON: it travels with every piece of work of the request."""


def delegated(turn: Turn, row: Delegated) -> None:
    """An agent hands something out: write the child's own row behind this one, or its refusal."""
    found = _caller(turn, row)
    if found is None:
        return
    request, step = found
    if row.call in step.calls:
        return
    head = request.common
    child = identity.child_id(head.request_id, head.round, step.number, step.attempt, row.call)
    refusal = _refusal(turn, request, step, row)
    if len(step.calls) < CALLS_MAX:
        step.calls = (*step.calls, row.call)
    wanted = turn.now + step.limit_us if row.deadline_at is None else row.deadline_at
    turn.entries.append(
        {
            **head._replace(request_id=child, requested_at=turn.now, round=0)._asdict(),
            "kind": "requested", "id": child_id_text(request, step, row.call), "priority": request.priority,
            "deadline_at": min(wanted, request.deadline), "budget_usd_micros": row.budget_usd_micros,
            "budget_cpu_us": row.budget_cpu_us or request.budget_cpu_us, "policy": request.policy,
            "task_kind": row.task_kind, "code": refusal[0] if refusal else None,
            "message": refusal[1] if refusal else None, "steps": None if refusal else row.row,
            "step": step.number, "attempt": step.attempt, "agent": row.agent, "parent_id": head.request_id,
            "depth": request.depth + 1,
        }
    )  # fmt: skip


def adopt(turn: Turn, request: Request, parent: Parent) -> Refusal | None:
    """A child's own row: put it under its parent; a refusal without code when nobody waits for it any more."""
    request.parent_id, request.depth, request.giver = parent.request_id, parent.depth, parent.agent
    request.parent_step, request.parent_attempt = parent.step, parent.attempt
    request.started = True  # it is part of a workflow that runs, and goes before those that do not
    found = waiting(turn.state, request)
    if found is None:
        request.parent_attempt = 0
        return Refusal("AOS3004", "the attempt that delegated it has ended", 0)
    if request.steps:
        asked = request.steps[0]
        request.digest = _digest(asked)
        asked.exclude = [*asked.exclude, *_gave_away(turn, found, request.digest)]
    rest = left(turn.state, found[0])
    if rest is not None:
        if rest == 0:
            return Refusal("AOS2006", "its parent's budget is spent, or promised to other children", 0)
        wanted = request.budget_usd_micros
        request.budget_usd_micros = rest if wanted is None else min(wanted, rest)
    return None


def began(turn: Turn, request: Request) -> None:
    """The child is in flight: its parent's attempt waits."""
    found = waiting(turn.state, request)
    if found is not None:
        wait_for(turn, *found)


def _caller(turn: Turn, row: Delegated | Shared) -> tuple[Request, Step] | None:
    """The request and the step whose running attempt says this; None, and evidence, when it is not."""
    request = turn.state.requests.get(row.request_id)
    step = step_of(request, row.step) if request else None
    code = doubt(turn, request, step, row)
    if code is not None or request is None or step is None:
        ignore(turn, request, row, code or "AOS3011")
        return None
    return request, step


def _refusal(turn: Turn, request: Request, step: Step, row: Delegated) -> tuple[str, str | None] | None:
    """Why a child is not to be: code and sentence."""
    if row.code is not None or not row.steps:
        return row.code or "AOS2009", row.message
    if request.depth >= DEPTH_MAX:
        return "AOS2201", f"at most {DEPTH_MAX} delegations may follow one another"
    if len(step.calls) >= CALLS_MAX:
        return "AOS2202", f"an attempt may delegate {CALLS_MAX} times"
    asked = row.steps[0]
    digest = _digest(asked)
    gave = [one for one in line(turn.state, request) if one.digest == digest]
    if any(one.giver == row.agent for one in gave):
        return "AOS2203", f"{row.agent} has handed this very work out before, and it came back"
    away = {*(one.giver for one in gave), row.agent}
    if gave and asked.pin and away.issuperset(asked.pin):
        return "AOS2203", f"{', '.join(asked.pin)} handed this very work out"
    return None


def _gave_away(turn: Turn, found: tuple[Request, Step], digest: bytes) -> list[str]:
    """Who has handed on this very work, and must not get it back."""
    parent, step = found
    givers = [one.giver for one in line(turn.state, parent) if one.digest == digest]
    if _digest(step) == digest:
        givers.append(step.agent)
    return [giver for giver in givers if giver is not None]


def _digest(step: Step) -> bytes:
    """What is asked, as 8 bytes: equal text and payload, equal work."""
    text = (step.text or "").encode()
    return blake2b(b"%d/" % len(text) + text + (step.payload or b""), digest_size=8).digest()


def share(turn: Turn, row: Shared) -> None:
    """A member changes the context, if it knew the newest version; all who are at work on the request hear of it."""
    found = _caller(turn, row)
    if found is None:
        return
    request, step = found
    name = (
        b"%d/%d/%d/" % (step.number, step.attempt, row.version or 0)
        + row.call.encode()
        + (row.payload or b"")
    )
    author = blake2b(name, digest_size=16).digest()
    if author == request.context_by and request.context_version == (row.version or 0) + 1:
        _answer(turn, request, step, row.call)  # said again
        return
    if (row.version or 0) != request.context_version:
        words = f"it is at version {request.context_version}, not {row.version or 0}"
        _answer(turn, request, step, row.call, "AOS3014", words)
        return
    changed = _merged(request.context, row.payload)
    if len(changed) > CONTEXT_BYTES_MAX:
        words = f"{len(changed)} bytes, at most {CONTEXT_BYTES_MAX}"
        _answer(turn, request, step, row.call, "AOS3015", words)
        return
    request.context, request.context_by = changed, author
    request.context_version += 1
    turn.entries.append(
        {
            **request.common._asdict(), "kind": "context", "id": row.call, "step": step.number,
            "attempt": step.attempt, "agent": row.agent, "payload": changed,
            "context_version": request.context_version,
        }
    )  # fmt: skip
    for other in request.steps:
        if other is step:
            _answer(turn, request, step, row.call)
        elif other.state == RUNNING:
            say_to(turn, request, other, "context", shared(request) or Said())


def _answer(
    turn: Turn, request: Request, step: Step, call: str, code: str | None = None, message: str | None = None
) -> None:
    """What became of a change, with the context as it is now."""
    status = "ok" if code is None else "failed"
    said = Said(call, status, code, message, request.context, request.context_version)
    say_to(turn, request, step, "context", said)


def _merged(context: bytes | None, changes: bytes | None) -> bytes:
    """The context with these keys set, or taken away where the value is null; the edge has checked what it reads."""
    found: dict[str, Any] = json.loads(context or b"{}")
    for key, value in json.loads(changes or b"{}").items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


HANDLERS: dict[type, Callable[[Turn, Any], None]] = {Delegated: delegated, Shared: share}
