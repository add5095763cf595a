"""Agents that wait for each other: who hands out work and waits holds a slot that the work may need.

A child that stands in a lane for CIRCLE_US is looked at: can anything it waits for still go on? It waits for its
candidates, these for the children of the attempts that fill them, and so on. All of it is "one of these is enough", so
nothing goes on when no place that can be reached is at work. That is told once, on aos.alerts; what breaks it is the
child's deadline, by default one attempt's time, and its result says so (AOS3013).

Seen is one partition, and no agent's number of slots: agents that wait for each other across partitions are not
told, only broken by time-out; where others keep a waiting agent busy from another partition it may be told in vain.
"""

from __future__ import annotations

import json

from aos.agents.ledger_emit import Turn
from aos.agents.ledger_family import waited_for
from aos.agents.ledger_state import BACKING_OFF, MATCHING, READY, RUNNING, Request, Step

CIRCLE_US = 2_000_000
"""How long a child stands in a lane before it is looked at: a free slot is taken within milliseconds."""

REACH_MAX = 500
"""Steps that one look may reach; beyond that it is load, not a circle."""

Node = tuple[Request, Step]


def watch(turn: Turn, request: Request, step: Step) -> None:
    """The child's step went to its lane: look again when it still stands there after a while."""
    step.due = turn.now + CIRCLE_US
    turn.state.wake(step.due, request.common.request_id, step.number)


def look(turn: Turn, request: Request, step: Step) -> None:
    """The child's step stands in its lane: report it when nothing that it waits for can go on."""
    found = _stuck(turn, request, step)
    if found is None:
        return
    children = [r for r in dict.fromkeys(r for r, _ in found) if r.parent_id is not None]
    told = any(child.circle for child in children)
    for child in children:
        child.circle = child.circle or 1
    if not told:
        request.circle = 2
        agents = sorted({s.agent for _, s in found if s.state == RUNNING and s.agent})
        waiting = sorted({r.common.request_id.hex() for r in children})
        message = f"{', '.join(agents)} wait for each other; time-outs of what they delegated will end it"
        _tell(turn, request, "opened", message, {"agents": agents, "children": waiting})


def leave(turn: Turn, request: Request) -> None:
    """The child goes on or has ended."""
    if request.circle == 2:
        _tell(turn, request, "cleared", "the wait is over", {})
    request.circle = 0


def _stuck(turn: Turn, request: Request, step: Step) -> list[Node] | None:
    """All that is waited for from here, when none of it can go on."""
    at_work = _at_work(turn)
    nodes: list[Node] = [(request, step)]
    seen = {id(step)}
    for current, place in nodes:  # grows
        following = _waits_for(turn, current, place, at_work)
        if following is None or len(nodes) > REACH_MAX:
            return None
        for node in following:
            if id(node[1]) not in seen:
                seen.add(id(node[1]))
                nodes.append(node)
    return nodes


def _waits_for(turn: Turn, request: Request, step: Step, at_work: dict[str, list[Node]]) -> list[Node] | None:
    """Whose going on would let the step go on; None when it goes on by itself."""
    if step.state == READY:
        agents = _candidates(step)
        if any(agent not in at_work for agent in agents):
            return None
        return [node for agent in agents for node in at_work[agent]]
    children = waited_for(turn.state, request, step)
    if not children:
        return None  # its agent works
    nodes = [(child, part) for child in children for part in child.steps]
    if any(part.state in (MATCHING, BACKING_OFF) for _, part in nodes):
        return None
    return [(child, part) for child, part in nodes if part.state in (READY, RUNNING)]


def _candidates(step: Step) -> list[str]:
    """Who may take the step from its lane."""
    plan, row = step.plan, step.plan_row
    if plan is None:
        return []
    places = range(plan.offsets[row], plan.offsets[row + 1])
    return [
        plan.agents[i]
        for i in places
        if plan.cells[i] == step.cell and plan.agents[i] not in step.failed_agents
    ]


def _at_work(turn: Turn) -> dict[str, list[Node]]:
    """The running attempts of each agent."""
    found: dict[str, list[Node]] = {}
    for request in turn.state.requests.values():
        for step in request.steps:
            if step.state == RUNNING:
                found.setdefault(step.agent or "", []).append((request, step))
    return found


def _tell(turn: Turn, child: Request, kind: str, message: str, evidence: dict[str, list[str]]) -> None:
    turn.alerts.append(
        {
            "alert": f"supervise/{child.common.request_id.hex()}/circle", "kind": kind, "source": "supervise",
            "subject": child.common.domain, "message": message, "evidence": json.dumps(evidence),
            "seen_at": turn.now,
        }
    )  # fmt: skip
