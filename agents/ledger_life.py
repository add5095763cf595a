"""How steps and requests go from state to state: when they start, wait, run out of time, fail, end.

Each function is one transition. It leaves `request.ended` set when the request ended on the way, and then nobody
may touch its steps again.
"""

from __future__ import annotations

from hashlib import blake2b

from aos.agents.ladder import lower
from aos.agents.ledger_emit import (
    Turn,
    say_attempt,
    say_cancel,
    say_end,
    say_ready,
    say_release,
    say_task,
    say_work,
    score_of,
    token,
)
from aos.agents.ledger_family import child_ended, waited_for
from aos.agents.ledger_intake import Assigned
from aos.agents.ledger_state import (
    BACKING_OFF,
    DONE,
    FAILED,
    MATCHING,
    READY,
    RUNNING,
    WAITING,
    Request,
    Step,
)
from aos.agents.ledger_teams import is_judged, take_over, team_done, worker_of
from aos.agents.ledger_waits import leave, look, watch

INPUT_BYTES_MAX = 256 * 1024
"""Outputs of predecessors one step may receive; with the payload an inbox row stays well under 1 MiB."""

SILENCE_US = 5_000_000
"""Wait for the first answer of match and compose; doubled each time it is asked again."""

SILENCES_MAX = 3
"""Times a step is asked again for want of any answer: a plan is late under overload, never lost, so asking more
often would only add to the load."""


def wake(turn: Turn, request: Request, step: Step, due: int) -> None:
    """Set when the step wants to be looked at again."""
    step.due = due
    turn.state.wake(due, request.common.request_id, step.number)


# matching


def expect_plan(turn: Turn, request: Request, step: Step) -> None:
    """The step was asked for in this round of matching; ask again when no answer comes."""
    if step.silences < SILENCES_MAX:
        wake(turn, request, step, turn.now + SILENCE_US * 2**step.silences)
    else:
        step.due = 0


def match_anew(turn: Turn, request: Request, step: Step) -> None:
    """Ask for another plan, without the agents that failed."""
    step.match_round += 1
    step.answered = False
    step.silences = 0
    step.plan = None
    step.refused_cells = ()
    if step.state != WAITING:
        step.state = MATCHING
    say_task(turn, request, step)
    expect_plan(turn, request, step)


def nobody(turn: Turn, request: Request, step: Step) -> None:
    """Nobody can do it now: wait and ask again, within a bound."""
    waits = turn.settings.match_waits_ms
    if step.shortages < len(waits):
        step.plan = None
        if step.state != WAITING:
            step.state = MATCHING
        wake(turn, request, step, turn.now + waits[step.shortages] * 1000)
        step.shortages += 1
    elif step.found:
        fail(turn, request, step, step.code or "AOS3010", step.message)
    else:
        end(turn, request, "rejected", "AOS2005", f"step {step.name}: nobody is eligible")


# attempts


def begin(turn: Turn, request: Request, step: Step) -> None:
    """All its predecessors are done."""
    if step.after and sum(len(request.steps[n].output or b"") for n in step.after) > INPUT_BYTES_MAX:
        fail(turn, request, step, "AOS2004", f"inputs of step {step.name} exceed {INPUT_BYTES_MAX} bytes")
    elif step.plan is None:
        step.state = MATCHING
    elif not offer(turn, request, step):
        nobody(turn, request, step)


def offer(turn: Turn, request: Request, step: Step) -> bool:
    """The next attempt to its lane; False when the plan has nobody left.

    Each offer has a number of its own, so that (step, attempt) is answered by exactly one cell.
    """
    plan = step.plan
    share = plan.share(step.plan_row, step.failed_agents, step.refused_cells) if plan else None
    if plan is None or share is None:
        return False
    step.due = 0
    step.attempt += 1
    step.token = None
    step.state = READY
    step.cell, step.cell_partition = share.cell, share.cell_partition
    if not step.refused_cells:
        step.ready_at = turn.now
    if request.parent_id is not None:
        watch(turn, request, step)
    say_ready(turn, request, step, plan, share)
    return True


def assign(turn: Turn, request: Request, step: Step, row: Assigned) -> None:
    """The attempt has its agent: send the work, watch the time."""
    step.state = RUNNING
    step.shortages, step.calls = 0, ()
    if request.circle:
        leave(turn, request)
    step.attempts += 1
    request.attempts += 1
    turn.state.start(request)
    step.agent, step.service = row.agent, row.service
    step.cell, step.cell_partition, step.epoch = row.cell, row.cell_partition, row.epoch
    step.probability, step.score_predicted = row.probability, row.score_predicted
    if row.model_version is not None:
        step.model_version = request.model_version = row.model_version
    if row.settings_version is not None:
        step.settings_version = request.settings_version = row.settings_version
    if row.degraded:
        step.degraded = request.degraded = True
        step.rung = row.rung
        request.rung = lower(request.rung, row.rung)
    step.code = step.message = step.score = step.output = step.output_type = None
    step.cost_usd_micros = step.cpu_us = step.tokens = 0
    step.inbox_partition = turn.state.deal(row.service, turn.settings.inbox_partitions)
    step.assigned_at = turn.now
    step.limit_us = 1000 * min(turn.settings.timeout_ms, step.timeout_ms or 2**40, row.timeout_ms or 2**40)
    wake(turn, request, step, min(turn.now + step.limit_us, request.deadline))
    step.token = secret = token(turn, request, step)
    say_work(turn, request, step, secret)


def close_attempt(turn: Turn, request: Request, step: Step, status: str, score: float | None) -> None:
    """End the running attempt: free its slot and leave its trail, unless a judge has yet to speak."""
    say_release(turn, request, step, status)
    for child in waited_for(turn.state, request, step):  # nobody will read what they find
        child.parent_attempt = 0
        end(turn, child, "cancelled", "AOS3004", "the attempt that delegated it has ended")
    step.due = 0
    step.finished_at = turn.now
    step.held = status == "ok" and is_judged(request, step)
    if not step.held:
        say_attempt(turn, request, step, status, score)


def attempt_failed(
    turn: Turn, request: Request, step: Step, *, status: str, code: str, message: str | None, retryable: bool
) -> None:
    """An attempt failed for a reason that is its agent's: the next goes to another, after a wait."""
    step.code, step.message = code, message
    if status == "timeout":
        say_cancel(turn, request, step)
    close_attempt(turn, request, step, status, 0.0 if step.score is None else step.score)
    step.tries += 1
    if step.agent is not None and step.agent not in step.failed_agents:
        step.failed_agents = (*step.failed_agents, step.agent)
    if overspent(request):
        over_budget(turn, request, step)
    elif not retryable or step.tries >= turn.settings.attempts_max:
        fail(turn, request, step, code, message)
    else:
        step.state = BACKING_OFF
        wake(turn, request, step, turn.now + retry_wait_us(turn, request, step))


def agent_gone(turn: Turn, request: Request, step: Step, code: str, message: str | None) -> None:
    """The agent at work is gone: somebody else at once; it does not count as a try but is bounded."""
    step.code, step.message = code, message
    say_cancel(turn, request, step)
    close_attempt(turn, request, step, "failed", 0.0)
    step.losses += 1
    if step.losses > 2 * turn.settings.attempts_max:
        fail(turn, request, step, code, message)
        return
    step.state = MATCHING
    if not offer(turn, request, step):
        match_anew(turn, request, step)


def retry_wait_us(turn: Turn, request: Request, step: Step) -> int:
    """Wait before the next attempt: the settings' for this try, varied by a hash so that waves spread."""
    waits = turn.settings.retry_waits_ms
    if not waits:
        return 0
    common = request.common
    name = common.request_id + b"%d/%d/%d" % (common.round, step.number, step.attempt)
    share = int.from_bytes(blake2b(name, digest_size=8).digest(), "big") / 2**64
    return int(
        waits[min(step.tries, len(waits)) - 1] * 1000 * (1 + turn.settings.retry_jitter * (2 * share - 1))
    )


def overspent(request: Request) -> bool:
    """Whether more was spent than the budget allows."""
    return request.budget_usd_micros is not None and request.cost_usd_micros > request.budget_usd_micros


def over_budget(turn: Turn, request: Request, step: Step) -> None:
    """The budget is spent and work remains."""
    if step.state != DONE:
        step.state = FAILED
    spent = f"{request.cost_usd_micros} of {request.budget_usd_micros} spent after step {step.name}"
    end(turn, request, "failed", "AOS2006", spent)


# steps


def finish(turn: Turn, request: Request, step: Step) -> None:
    """The step is done: settle what it judges, tell its parent, start what waited for it."""
    step.state = DONE
    step.due = 0
    if step.judges >= 0:
        settle(turn, request, request.steps[step.judges])
    if step.parent >= 0:
        if team_done(request, step.parent):
            parent = request.steps[step.parent]
            take_over(request, parent, worker_of(request, parent))
            finish(turn, request, parent)
            return
    else:
        request.remaining -= 1
        if request.remaining == 0:
            end(turn, request, "ok", None, None)
            return
    if overspent(request):
        over_budget(turn, request, step)
        return
    for other in request.steps:
        if other.state == WAITING and step.number in other.after and may_begin(request, other):
            begin(turn, request, other)
            if request.ended:
                return


def may_begin(request: Request, step: Step) -> bool:
    """Whether all its predecessors are done."""
    return not step.after or all(request.steps[number].state == DONE for number in step.after)


def settle(turn: Turn, request: Request, judged: Step) -> None:
    """When all judges of a step are done its verdict is their mean, and its trail may go."""
    judges = [step for step in request.steps[: request.size] if step.judges == judged.number]
    if any(step.state != DONE for step in judges):
        return
    judged.verdict = sum(1.0 if step.score is None else step.score for step in judges) / len(judges)
    worker = worker_of(request, judged)
    worker.verdict = judged.verdict
    let_go(turn, request, worker)


def let_go(turn: Turn, request: Request, step: Step) -> None:
    """Leave the trail that was held."""
    if step.held:
        step.held = False
        say_attempt(turn, request, step, "ok", score_of(step))


def fail(turn: Turn, request: Request, step: Step, code: str, message: str | None) -> None:
    """The step failed for good, and the request with it."""
    step.state = FAILED
    if step.parent >= 0:
        request.steps[step.parent].state = FAILED
    end(turn, request, "failed", code, message)


def end(
    turn: Turn,
    request: Request,
    status: str,
    code: str | None,
    message: str | None,
    retry_after_ms: int | None = None,
) -> None:
    """The request ends: whatever holds a slot or a place lets go, one result, one trail."""
    reason = "expired" if status == "expired" else "cancelled"
    for step in request.steps:
        if step.state == READY:
            say_release(turn, request, step, reason)
        elif step.state == RUNNING:
            step.code, step.message = "AOS3003" if reason == "expired" else "AOS3004", message
            say_cancel(turn, request, step)
            close_attempt(turn, request, step, reason, None)
        let_go(turn, request, step)
    result = say_end(turn, request, status, code, message, retry_after_ms)
    request.ended = True
    turn.state.leave(request)
    if request.parent_id is not None:
        leave(turn, request)
        child_ended(turn, request, result)


# what is due


def due_step(turn: Turn, request: Request, step: Step) -> None:
    """The step's due time has passed."""
    step.due = 0
    if step.state == RUNNING:
        waited = f"no answer within {step.limit_us // 1000} ms"
        attempt_failed(turn, request, step, status="timeout", code="AOS3002", message=waited, retryable=True)
    elif step.state == BACKING_OFF:
        if not offer(turn, request, step):
            match_anew(turn, request, step)
    elif step.state in (WAITING, MATCHING) and step.plan is None:
        if step.answered:
            match_anew(turn, request, step)
        else:
            step.silences += 1
            say_task(turn, request, step)
            expect_plan(turn, request, step)
    elif step.state == READY:
        look(turn, request, step)  # a child's
    # SPLIT, DONE and FAILED are never due


def pass_due(turn: Turn) -> None:
    """Handle all that became due, in order of time."""
    while (found := turn.state.pop_due(turn.now)) is not None:
        request, step = found
        if step is None:
            end(turn, request, "expired", "AOS3013" if request.circle else "AOS3003", None)
        else:
            due_step(turn, request, step)
