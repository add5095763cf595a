"""Requests that an agent at work hands out: who waits for whom, what is left to spend, what an end means upwards.

A child lives in its parent's partition (`home` is handed on, not computed), so all of a family is in one state: to
find who waits is a look, not a message. A child's `id` names the call it answers: `<parent>/<step>/<attempt>/<call>`.
"""

from __future__ import annotations

from collections.abc import Iterator

from aos.agents import identity
from aos.agents.ledger_emit import Turn, say_to
from aos.agents.ledger_rows import ResultRow, Said
from aos.agents.ledger_state import RUNNING, Request, State, Step

DEPTH_MAX = 4
"""Delegations one after another of a caller's request. Deeper chains cost a matching each and are nearly always a
circle; a caller that wants more levels sends a workflow."""


def child_id_text(parent: Request, step: Step, call: str) -> str:
    """The `id` of a child: readable, unique, and naming its call."""
    return f"{parent.common.request_id.hex()}/{step.number}/{step.attempt}/{call}"


def call_of(child: Request) -> str:
    """The call that asked for the child, as its agent named it."""
    return (child.id or "").split("/", 3)[-1]


def waiting(state: State, child: Request) -> tuple[Request, Step] | None:
    """The parent and the step whose running attempt waits for the child; None when nobody does."""
    parent = state.requests.get(child.parent_id or b"")
    if parent is None or not 0 <= child.parent_step < len(parent.steps):
        return None
    step = parent.steps[child.parent_step]
    if step.state != RUNNING or step.attempt != child.parent_attempt:
        return None
    head = parent.common
    expected = identity.child_id(head.request_id, head.round, step.number, step.attempt, call_of(child))
    return (parent, step) if expected == child.common.request_id else None


def waited_for(state: State, request: Request, step: Step) -> list[Request]:
    """The children in flight that the step's running attempt waits for, in the order they came."""
    found = state.children.get(request.common.request_id)
    if not found:
        return []
    children = [state.requests[id] for id in found]
    return [c for c in children if (c.parent_step, c.parent_attempt) == (step.number, step.attempt)]


def line(state: State, request: Request) -> Iterator[Request]:
    """The request, its parent, and so on up to the caller's."""
    found: Request | None = request
    while found is not None:
        yield found
        found = state.requests.get(found.parent_id) if found.parent_id is not None else None


def left(state: State, request: Request) -> int | None:
    """What of its budget is neither spent nor promised to a child in flight; None without a budget."""
    if request.budget_usd_micros is None:
        return None
    promised = sum(
        state.requests[id].budget_usd_micros or 0 for id in state.children.get(request.common.request_id, ())
    )
    return max(0, request.budget_usd_micros - request.cost_usd_micros - promised)


def wait_for(turn: Turn, request: Request, step: Step) -> None:
    """While a child is in flight its time does not count; afterwards the attempt has its whole time again."""
    ends = [child.deadline for child in waited_for(turn.state, request, step)]
    step.due = min(max([turn.now, *ends]) + step.limit_us, request.deadline)
    turn.state.wake(step.due, request.common.request_id, step.number)


def child_ended(turn: Turn, child: Request, result: ResultRow) -> None:
    """The child has left the state: its parent bears the cost, and who waits hears of it."""
    parent = turn.state.requests.get(child.parent_id or b"")
    if parent is None:
        return
    parent.cost_usd_micros += child.cost_usd_micros
    parent.cpu_us += child.cpu_us
    parent.tokens += child.tokens
    parent.below_usd_micros += child.cost_usd_micros
    parent.below_cpu_us += child.cpu_us
    parent.below_tokens += child.tokens
    found = waiting(turn.state, child)
    if found is not None:
        parent, step = found
        wait_for(turn, parent, step)
        said = Said(call_of(child), result.status, result.code, result.message)
        say_to(turn, parent, step, "result", said, result)
