"""Whether what an agent says counts: the right token, of the attempt that runs. What does not is evidence, no more."""

from __future__ import annotations

from aos.agents import identity
from aos.agents.ledger_emit import Turn, say_ignored
from aos.agents.ledger_intake import Spoken
from aos.agents.ledger_state import BACKING_OFF, DONE, FAILED, RUNNING, Common, Request, Step
from aos.agents.ledger_values import values


def last_round(turn: Turn, request_id: bytes) -> int | None:
    """The last round that ended, of a request that is remembered."""
    if request_id in turn.ended:
        return turn.ended[request_id].common.round
    return turn.state.memory.round(request_id)


def step_of(request: Request, number: int) -> Step | None:
    """The step of that number, None when there is none."""
    return request.steps[number] if 0 <= number < len(request.steps) else None


def doubt(turn: Turn, request: Request | None, step: Step | None, row: Spoken) -> str | None:
    """Why what was said does not count: forged, late, a duplicate, or of an unknown request; None when it does."""
    round = request.common.round if request else last_round(turn, row.request_id)
    if round is None:
        return "AOS3011"
    same = step is not None and (step.attempt, step.agent, step.epoch) == (row.attempt, row.agent, row.epoch)
    known = step.token if step is not None and same else None
    if not (identity.token_is(known, row.token) if known else _has_token(turn, row, round)):
        return "AOS3005" if any(_has_token(turn, row, earlier) for earlier in range(round)) else "AOS3007"
    if request is None or step is None:
        return "AOS3005"
    if not same:
        return "AOS3005"
    if step.state == RUNNING:
        return None
    timed_out = step.state == BACKING_OFF and step.code == "AOS3002"
    return "AOS3006" if step.state in (DONE, FAILED, BACKING_OFF) and not timed_out else "AOS3005"


def _has_token(turn: Turn, row: Spoken, round: int) -> bool:
    expected = identity.token(turn.secret, row.request_id, round, row.step, row.attempt, row.agent, row.epoch)
    return identity.token_is(expected, row.token)


def ignore(turn: Turn, request: Request | None, row: Spoken, code: str) -> None:
    """Record what was said and does not count."""
    common = row.heads[row.head]
    if request is not None:
        request.ignored += 1
        common = request.common
    elif row.request_id in turn.ended:
        common = turn.ended[row.request_id].common
    else:
        kept = turn.state.memory.find(row.request_id)
        if kept is not None:
            common = Common._make(values(kept.column(name))[0] for name in Common._fields)
    say_ignored(turn, common, request, row, code)
