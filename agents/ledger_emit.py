"""What the ledger says while it folds one message: plain rows, gathered in a `Turn`, made from requests and steps.

Nothing here changes a request or step; `ledger_life` decides, this puts into words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aos.agents import identity
from aos.agents.ledger_intake import Outcome, Spoken
from aos.agents.ledger_plans import Plans, Share
from aos.agents.ledger_rows import (
    InboxRow,
    ReadyRow,
    ReleaseRow,
    ResultRow,
    Said,
    StepEnd,
    TaskRow,
    TrailRow,
)
from aos.agents.ledger_state import (
    DONE,
    FAILED,
    READY,
    RUNNING,
    SPLIT,
    Common,
    Request,
    State,
    Step,
)
from aos.codecs.errors import CODES
from aos.codecs.settings import Settings


@dataclass(slots=True)
class Turn:
    """One message being folded: what is known beside the state, and what is to be said afterwards."""

    state: State
    now: int
    offset: int
    settings: Settings
    secret: bytes
    ready: list[ReadyRow] = field(default_factory=list)
    releases: list[ReleaseRow] = field(default_factory=list)
    inbox: list[InboxRow] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    trails: list[TrailRow] = field(default_factory=list)
    ended: dict[bytes, ResultRow] = field(default_factory=dict)  # in this turn: not yet in the memory
    repeats: list[bytes] = field(default_factory=list)  # requests to answer again
    redrives: list[bytes] = field(default_factory=list)  # requests to run again
    entries: list[dict[str, Any]] = field(default_factory=list)  # for the ledger itself
    alerts: list[dict[str, Any]] = field(default_factory=list)
    teams: dict[tuple[bytes, int], dict[int, int]] = field(
        default_factory=dict
    )  # split now: part -> its step


def token(turn: Turn, request: Request, step: Step) -> bytes:
    """The secret of the step's last attempt."""
    common = request.common
    return identity.token(
        turn.secret, common.request_id, common.round, step.number, step.attempt, step.agent or "", step.epoch
    )


def say_ready(turn: Turn, request: Request, step: Step, plan: Plans, share: Share) -> None:
    """An attempt to its lane."""
    turn.ready.append(
        ReadyRow(
            request.common, share, plan, step.plan_row, step.number, step.name, step.attempt, step.task_kind,
            step.ready_at, request.started, request.priority, request.deadline_at, request.budget_usd_micros,
            request.budget_cpu_us, request.policy, step.filtered_count, len(step.refused_cells),
            step.model_version, step.settings_version, step.degraded, step.rung,
        )
    )  # fmt: skip


def say_release(turn: Turn, request: Request, step: Step, reason: str) -> None:
    """The slot of a running attempt, or the place of a ready one, is free."""
    running = step.state == RUNNING
    agent = step.agent or "" if running else ""
    epoch = step.epoch if running else 0
    turn.releases.append(
        ReleaseRow(
            request.common, step.cell_partition, step.number, step.attempt, agent, step.cell, reason, epoch
        )
    )


def say_work(turn: Turn, request: Request, step: Step, secret: bytes) -> None:
    """The work to the inbox of the agent's service, with the token to answer it."""
    left = request.budget_usd_micros
    inputs = []
    if step.after:
        inputs = [(s.name, s.output, s.output_type) for s in (request.steps[number] for number in step.after)]
    turn.inbox.append(
        InboxRow(
            request.common, step.inbox_partition, shared(request), "work", step.number, step.name, step.attempt,
            step.service, step.agent or "", step.epoch, secret, step.task_kind, step.text,
            step.payload, step.content_type, inputs, request.deadline_at,
            max(1, (step.due - turn.now) // 1000),
            None if left is None else max(0, left - request.cost_usd_micros), request.budget_cpu_us,
        )
    )  # fmt: skip


def say_cancel(turn: Turn, request: Request, step: Step) -> None:
    """The running attempt is withdrawn from the agent's inbox."""
    turn.inbox.append(
        InboxRow(
            request.common, step.inbox_partition, None, "cancel", step.number, step.name, step.attempt,
            step.service, step.agent or "", step.epoch, token(turn, request, step), step.task_kind,
            None, None, None, [], request.deadline_at, 0, None, None,
        )
    )  # fmt: skip


def shared(request: Request) -> Said | None:
    """The context of the request for who begins to work on it; None while there is none."""
    if not request.context_version:
        return None
    return Said(context=request.context, context_version=request.context_version)


def say_to(
    turn: Turn, request: Request, step: Step, kind: str, said: Said, result: ResultRow | None = None
) -> None:
    """An answer to who works on the step: how a child ended (`result`), or what the context is now."""
    left = request.budget_usd_micros
    turn.inbox.append(
        InboxRow(
            request.common, step.inbox_partition, said, kind, step.number, step.name, step.attempt,
            step.service, step.agent or "", step.epoch, token(turn, request, step), step.task_kind, None,
            result.payload if result else None, result.content_type if result else None, [],
            request.deadline_at, max(1, (step.due - turn.now) // 1000),
            None if left is None else max(0, left - request.cost_usd_micros), request.budget_cpu_us,
        )
    )  # fmt: skip


def say_task(turn: Turn, request: Request, step: Step) -> None:
    """The step is to be matched (anew), without the agents that failed."""
    turn.tasks.append(
        TaskRow(
            request.common, step.embedding, step.surface, step.number, step.name, request.size,
            step.match_round, step.task_kind, step.require, step.after, step.pin,
            [*step.exclude, *step.failed_agents], request.priority, request.deadline_at,
            request.budget_usd_micros, request.budget_cpu_us, request.policy,
        )
    )  # fmt: skip


def say_attempt(turn: Turn, request: Request, step: Step, status: str, score: float | None) -> None:
    """The trail of the step's last attempt; a verdict goes before the score."""
    judged = status == "ok" and step.verdict is not None
    team = [] if step.agent is None else [step.agent]
    if step.after:
        team = [*(a for a in (request.steps[number].agent for number in step.after) if a is not None), *team]
    turn.trails.append(
        TrailRow(
            request.common, step.embedding, step.surface, "attempt", request.id, step.number, step.name,
            step.attempt, step.task_kind, request.priority, request.policy, step.agent, step.service, step.cell,
            status, step.code, step.message, step.verdict if judged else score, judged, step.probability,
            step.score_predicted, request.topology, None, None, request.budget_cpu_us, step.cost_usd_micros,
            step.cpu_us, step.tokens, step.ready_at, step.assigned_at, step.finished_at,
            step.finished_at - step.assigned_at, team,
            request.ignored, step.model_version, step.settings_version, step.degraded, step.rung,
        )
    )  # fmt: skip


def say_ignored(turn: Turn, common: Common, request: Request | None, said: Spoken, code: str) -> None:
    """What counted for nothing, as evidence."""
    answer = said if isinstance(said, Outcome) else None
    turn.trails.append(
        TrailRow(
            common, b"", b"", "ignored", request.id if request else None, said.step, "", said.attempt,
            None, request.priority if request else 2, None, said.agent, None, None, "ignored", code,
            answer.message if answer else None, answer.score if answer else None, False, None, None, None, None, None,
            None, (answer.cost_usd_micros if answer else None) or 0, (answer.cpu_us if answer else None) or 0, 0, None,
            None, turn.now, 0, [], request.ignored if request else 1, 0, 0, False, None,
        )
    )  # fmt: skip


def say_end(
    turn: Turn,
    request: Request,
    status: str,
    code: str | None,
    message: str | None,
    retry_after_ms: int | None,
) -> ResultRow:
    """The one result and the trail of a request."""
    common, steps = request.common, request.steps
    if message is None and code in CODES:
        message = CODES[code].message
    agents = list(dict.fromkeys([step.agent for step in steps if step.agent and step.state == DONE]))
    score = _score(request, status)
    last = _output(request) if status == "ok" else None
    latency = max(0, turn.now - common.requested_at)
    result = ResultRow(
        common, request.id, status, code, message, request.task_kind, last.output if last else None,
        last.output_type if last else None, score, agents, [_step_end(step, status) for step in steps],
        request.attempts, request.cost_usd_micros, request.cpu_us, turn.now, latency, request.degraded, False,
        retry_after_ms, request.rung, request.offset, request.row,
        last.output_offset if last else -1, last.output_row if last else -1,
    )  # fmt: skip
    turn.results.append(result)
    turn.ended[common.request_id] = result
    turn.trails.append(
        TrailRow(
            common, b"", b"", "request", request.id, -1, "", request.attempts, request.task_kind,
            request.priority, request.policy, None, None, None, status, code, message, score,
            any(step.verdict is not None for step in steps), None, None, request.topology,
            request.quality_predicted, request.duration_predicted_us, request.budget_cpu_us,
            # its own: sums over the rows of a family must not count a child twice
            request.cost_usd_micros - request.below_usd_micros, request.cpu_us - request.below_cpu_us,
            request.tokens - request.below_tokens, None, None, turn.now, latency, agents,
            request.ignored, request.model_version, request.settings_version, request.degraded,
            request.rung,
        )
    )  # fmt: skip
    return result


def score_of(step: Step) -> float:
    """Score of an ok step: the verdict, else its own report (a judge's is about another step), else 1."""
    if step.verdict is not None:
        return step.verdict
    return 1.0 if step.score is None or step.judges != -1 else step.score


def _score(request: Request, status: str) -> float | None:
    """Mean over the steps that were scored: a verdict, or a report of their own; else 1 for ok, 0 for failed."""
    if status != "ok":
        return 0.0 if status in ("failed", "expired") else None
    scored = [
        score_of(step)
        for step in request.steps[: request.size]
        if step.verdict is not None or (step.judges == -1 and step.score is not None)
    ]
    return sum(scored) / len(scored) if scored else 1.0


def _output(request: Request) -> Step:
    """The step whose output is the request's: the first that nobody comes after.

    Where that is a judge without an output of its own, what it judged is meant.
    """
    if request.size == 1:
        return request.steps[0]
    steps = request.steps[: request.size]
    followed = {number for step in steps for number in step.after}
    last = next(step for step in steps if step.number not in followed)
    return steps[last.judges] if last.output is None and last.judges >= 0 else last


def _step_end(step: Step, status: str) -> StepEnd:
    if step.state == DONE:
        return StepEnd(step.name, step.agent, "ok", score_of(step), step.attempts)
    if step.state == FAILED:
        return StepEnd(step.name, step.agent, "failed", 0.0, step.attempts)
    if status == "rejected":
        return StepEnd(step.name, None, "rejected", None, step.attempts)
    begun = step.state in (READY, RUNNING) or step.attempts > 0 or step.state == SPLIT
    ended = status if status in ("expired", "cancelled") else "cancelled"
    return StepEnd(step.name, step.agent, ended if begun else "waiting", None, step.attempts)
