"""A step that was split among a team: its parts are steps too, numbered after those of the request."""

from __future__ import annotations

from aos.agents.ledger_state import DONE, Request, Step


def is_judged(request: Request, step: Step) -> bool:
    """Whether a judge will speak about this work (that of a team's last part, for a step that was split)."""
    number = step.number
    if step.parent >= 0:
        number = step.parent
        if worker_of(request, request.steps[number]) is not step:
            return False
    return request.size > 1 and any(other.judges == number for other in request.steps[: request.size])


def _is_last(request: Request, part: Step) -> bool:
    """Whether no other part of its team comes after it."""
    return not any(p.parent == part.parent and part.number in p.after for p in request.steps[request.size :])


def _last_parts(request: Request, number: int) -> list[Step]:
    """The parts of a step's team that no other part comes after."""
    return [p for p in request.steps[request.size :] if p.parent == number and _is_last(request, p)]


def team_done(request: Request, number: int) -> bool:
    """Whether all parts are done that nothing comes after."""
    return all(part.state == DONE for part in _last_parts(request, number))


def worker_of(request: Request, step: Step) -> Step:
    """Whose work a step's output is: its own, or that of its team's last part (of several, the last in number)."""
    parts = _last_parts(request, step.number)
    return parts[-1] if parts else step


def take_over(request: Request, parent: Step, part: Step) -> None:
    """A team's step gets what its last part made."""
    parent.agent, parent.score = part.agent, part.score
    parent.output, parent.output_type = part.output, part.output_type
    parent.output_offset, parent.output_row = part.output_offset, part.output_row
    parent.attempts = sum(p.attempts for p in request.steps[request.size :] if p.parent == parent.number)
