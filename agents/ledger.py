"""The life of every task as a fold over one log: **what is first counts**, all else is recorded and ignored.

in: one message of `aos.ledger` (record entry). out: rows for lanes, releases, inboxes, results, trails, tasks.
key: request_id; all rows of a request stand in one partition, in the order in which they count.
state: `ledger_state.State`; every transition is in `ledger_life`; this module says which entry causes which.
duplicates: a row that came before changes nothing but the count of ignored answers, and says only what was said.
errors: AOS2004 … AOS2006, AOS2101 … AOS2104 and AOS3001 … AOS3011 stand in results and trails; nothing is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aos.agents import ledger_calls
from aos.agents.ladder import lower
from aos.agents.ledger_doubt import doubt, ignore, last_round, step_of
from aos.agents.ledger_emit import Turn, say_task, score_of
from aos.agents.ledger_intake import (
    Assigned,
    Cancel,
    Entry,
    Outcome,
    Planned,
    Redrive,
    Refused,
    Rejected,
    Requested,
)
from aos.agents.ledger_life import (
    agent_gone,
    assign,
    attempt_failed,
    begin,
    close_attempt,
    end,
    expect_plan,
    finish,
    may_begin,
    nobody,
    offer,
    pass_due,
    wake,
)
from aos.agents.ledger_rows import ReleaseRow
from aos.agents.ledger_state import (
    MATCHING,
    READY,
    RUNNING,
    SPLIT,
    WAITING,
    Common,
    Request,
    Step,
)
from aos.agents.ledger_values import values
from aos.agents.quotas import Incoming, Refusal

PRIORITY = 2
"""Of a request that names none."""


def fold(turn: Turn, entries: list[Entry]) -> None:
    """Fold what became due, then the entries of one message, into `turn.state`."""
    state = turn.state
    settings = turn.settings
    state.memory.forget(turn.now - settings.repeat_window_s * 1_000_000, settings.repeat_rows)
    pass_due(turn)
    for entry in entries:
        _HANDLERS[type(entry)](turn, entry)


def _is_repeat(turn: Turn, common: Common) -> bool:
    """Whether this round of the request is known; if it has ended it is to be answered again."""
    if common.request_id in turn.state.requests:
        return True
    last = last_round(turn, common.request_id)
    if last is None or common.round > last:
        return False
    turn.repeats.append(common.request_id)
    return True


def _requested(turn: Turn, row: Requested) -> None:
    if _is_repeat(turn, row.common):
        return
    request = Request(
        row.common, row.id, PRIORITY if row.priority is None else row.priority, _deadline(turn, row), None,
        row.budget_usd_micros, row.budget_cpu_us, row.policy, row.task_kind, turn.offset, row.row,
        len(row.steps), len(row.steps),
    )  # fmt: skip
    if row.deadline_at is not None:
        request.deadline_at = request.deadline
    request.steps = row.steps
    gone = None if row.parent is None else ledger_calls.adopt(turn, request, row.parent)
    complete = _complete(request)
    sound = bool(row.steps) and complete and request.deadline > turn.now
    refusal = _refusal(turn, request, row) if sound else None
    turn.state.enter(request)
    if not row.steps:
        end(turn, request, "rejected", row.code or "AOS2009", row.message)
    elif not complete:
        end(turn, request, "rejected", "AOS2002", None)
    elif request.deadline <= turn.now:
        end(turn, request, "expired", "AOS3003", None)
    elif refusal is not None:
        end(turn, request, "rejected", refusal.code, refusal.message, refusal.retry_after_ms)
    elif gone is not None:
        end(turn, request, "cancelled" if gone.code == "AOS3004" else "rejected", gone.code, gone.message)
    else:
        if row.parent is not None:
            ledger_calls.began(turn, request)
        turn.state.wake(request.deadline, row.common.request_id, -1)
        for step in row.steps:
            if not step.after:
                step.state = MATCHING
            if row.common.round > 0 or row.parent is not None:  # the edge asked for the first round
                say_task(turn, request, step)
            expect_plan(turn, request, step)


def _refusal(turn: Turn, request: Request, row: Requested) -> Refusal | None:
    """Whether a quota or overload keeps the request out; no agent has heard of it then, and it teaches nothing."""
    size = 0
    if row.limits.bytes is not None:
        size = sum(len((step.text or "").encode()) + len(step.payload or b"") for step in row.steps)
    asked = Incoming(request.common.tenant, request.priority, request.size, size)
    return turn.state.accounts.take(asked, row.limits, turn.now)


def _deadline(turn: Turn, row: Requested) -> int:
    """When the request expires. A round that is run again gets as long as the first one had."""
    if row.deadline_at is None:
        return turn.now + turn.settings.request_timeout_ms * 1000
    return row.deadline_at if row.common.round == 0 else turn.now + row.deadline_at - row.common.requested_at


def _complete(request: Request) -> bool:
    """Let judges come after what they judge; False when a step names one that is not there."""
    for step in request.steps:
        if step.judges >= 0 and step.judges not in step.after:
            step.after = [*step.after, step.judges]
        if step.after and any(not 0 <= number < request.size for number in step.after):
            return False
    return True


def _rejected(turn: Turn, row: Rejected) -> None:
    request = turn.state.requests.get(row.common.request_id)
    if row.match_round is None:  # by the edge: there are no other rows of this request
        if _is_repeat(turn, row.common):
            return
        priority = PRIORITY if row.priority is None else row.priority
        request = Request(row.common, row.id, priority, policy=row.policy, task_kind=row.task_kind)
        request.offset, request.row = turn.offset, row.row
        turn.state.enter(request)
    elif request is None or request.common.round != row.common.round or not _awaits(request, row):
        return
    end(turn, request, "rejected", row.code or "AOS2005", row.message)


def _awaits(request: Request, row: Rejected) -> bool:
    """Whether the matching that compose refuses is one that was not answered yet."""
    return any(
        step.match_round == row.match_round and not step.answered
        for step in request.steps
        if row.step is None or row.step == step.number
    )


def _planned(turn: Turn, row: Planned) -> None:
    request = turn.state.requests.get(row.request_id)
    if request is None or request.common.round != row.round:
        return
    step = _part(turn, request, row) if row.parent is not None else step_of(request, row.step)
    if step is None or step.match_round != (row.match_round or 0) or step.answered:
        return
    step.answered = True
    step.due = 0
    step.filtered_count = row.filtered_count or 0
    step.model_version = request.model_version = row.model_version or 0
    step.settings_version = request.settings_version = row.settings_version or 0
    step.degraded, step.rung = bool(row.degraded), row.rung
    request.degraded = request.degraded or step.degraded
    request.rung = lower(request.rung, row.rung)
    if request.topology is None:
        request.topology, request.quality_predicted = row.topology, row.quality_predicted
        request.duration_predicted_us = row.duration_predicted_us
    if not row.plans.size(row.plan_row):
        nobody(turn, request, step)
        return
    step.found = True
    step.plan, step.plan_row = row.plans, row.plan_row
    if step.state == MATCHING or (step.state == WAITING and may_begin(request, step)):
        begin(turn, request, step)


def _part(turn: Turn, request: Request, row: Planned) -> Step | None:
    """The new step for a part of a team; None when the parent's matching was answered otherwise.

    All parts of a team stand in one message: what a later message says of it is a repeat. compose counts parts from
    the last step on; here they are counted on, because another step may have been split before.
    """
    parent = step_of(request, row.parent or 0)
    if parent is None or parent.parent >= 0 or parent.match_round != (row.match_round or 0):
        return None
    team = turn.teams.get((row.request_id, parent.number))
    if team is None:
        if parent.answered or parent.state not in (WAITING, MATCHING):
            return None
        team = turn.teams[row.request_id, parent.number] = {}
        parent.answered, parent.state, parent.due = True, SPLIT, 0
    if row.step in team:
        return None
    number = team[row.step] = len(request.steps)
    try:
        after = [n if n < request.size else team[n] for n in row.after or parent.after]
    except KeyError:
        end(
            turn, request, "rejected", "AOS2002", f"part {row.step_name} comes after a part that is not there"
        )
        return None
    part = Step(
        number, row.step_name or "", parent.task_kind, row.require or (), after,
        -1 if parent.judges == -1 else -2, parent.pin, parent.exclude, parent.timeout_ms, parent.text,
        parent.payload, parent.content_type, parent.embedding, parent.surface, parent.number,
    )  # fmt: skip
    part.match_round = parent.match_round
    request.steps.append(part)
    return part


def _assigned(turn: Turn, row: Assigned) -> None:
    request = turn.state.requests.get(row.request_id)
    step = step_of(request, row.step) if request else None
    if request is not None and step is not None and request.common.round == row.round:
        if step.attempt == row.attempt and step.state == READY:
            assign(turn, request, step, row)
            return
        same = (step.attempt, step.agent, step.epoch) == (row.attempt, row.agent, row.epoch)
        if same and step.state == RUNNING:
            return  # said again: to release it would free the slot of work in progress
    turn.releases.append(
        ReleaseRow(
            row.heads[row.head],
            row.cell_partition,
            row.step,
            row.attempt,
            row.agent,
            row.cell,
            "ignored",
            row.epoch,
        )
    )


def _refused(turn: Turn, row: Refused) -> None:
    request = turn.state.requests.get(row.request_id)
    step = step_of(request, row.step) if request else None
    if request is None or step is None or request.common.round != row.round or step.attempt != row.attempt:
        return
    if row.agent is not None:
        if step.state == RUNNING and step.agent == row.agent:
            agent_gone(turn, request, step, row.code or "AOS3009", row.message)
    elif step.state == READY:
        step.code, step.message = row.code or "AOS3010", row.message
        step.refused_cells = (*step.refused_cells, step.cell)
        if not offer(turn, request, step):
            nobody(turn, request, step)


def _outcome(turn: Turn, row: Outcome) -> None:
    request = turn.state.requests.get(row.request_id)
    step = step_of(request, row.step) if request else None
    code = doubt(turn, request, step, row)
    if code is not None or request is None or step is None:
        # progress that comes late is no evidence of anything
        if code is not None and (row.status != "progress" or code == "AOS3007"):
            ignore(turn, request, row, code)
    elif row.status == "progress":
        wake(turn, request, step, min(turn.now + step.limit_us, request.deadline))
    else:
        _answer(turn, request, step, row)


def _answer(turn: Turn, request: Request, step: Step, row: Outcome) -> None:
    """The first valid answer of the running attempt."""
    cost = row.cost_usd_micros
    if cost is None:
        cost = step.plan.cost_of(step.plan_row, step.agent) if step.plan else 0
    step.cost_usd_micros, step.cpu_us = cost, row.cpu_us or 0
    step.tokens = (row.tokens_in or 0) + (row.tokens_out or 0)
    request.cost_usd_micros += cost
    request.cpu_us += step.cpu_us
    request.tokens += step.tokens
    step.score = row.score
    if row.status == "ok":
        step.output, step.output_type = row.payload, row.content_type
        if row.payload is not None:
            step.output_offset, step.output_row = turn.offset, row.row
        close_attempt(turn, request, step, "ok", score_of(step))
        finish(turn, request, step)
    else:
        code, retryable = row.code or "AOS3001", row.retryable is not False
        attempt_failed(
            turn, request, step, status="failed", code=code, message=row.message, retryable=retryable
        )


def _cancel(turn: Turn, row: Cancel) -> None:
    request = turn.state.requests.get(row.request_id)
    if request is not None and not _is_old(turn, row):
        end(turn, request, "cancelled", "AOS3004", row.message)


def _redrive(turn: Turn, row: Redrive) -> None:
    known = last_round(turn, row.request_id) is not None
    if known and row.request_id not in turn.state.requests and not _is_old(turn, row):
        turn.redrives.append(row.request_id)


def _is_old(turn: Turn, order: Cancel | Redrive) -> bool:
    """Whether a round of the request ended after the order was given: then it was about that round or an earlier one,
    and is repeated or late."""
    if order.request_id in turn.ended:
        return order.requested_at < turn.ended[order.request_id].finished_at
    kept = turn.state.memory.find(order.request_id)
    return kept is not None and order.requested_at < int(values(kept.column("finished_at"))[0])


_HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    Requested: _requested,
    Rejected: _rejected,
    Planned: _planned,
    Assigned: _assigned,
    Refused: _refused,
    Outcome: _outcome,
    Cancel: _cancel,
    Redrive: _redrive,
    **ledger_calls.HANDLERS,
}
