"""What supervise remembers of tasks in flight: requests, their steps, their plans, what is due.

Each slot is declared once, with the Arrow type under which `ledger_dump` writes it. Times are microseconds since
the epoch; `due` 0 means never. Plans stay Arrow columns, shared by all steps that were planned in one message:
only a retry looks into them row by row.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from aos.agents.ledger_memory import Memory
from aos.agents.ledger_plans import Plans
from aos.agents.quotas import Accounts
from aos.codecs.fields import BOOL, BYTES, F32, F64, I16, I16S, I32, I64, TEXT, TEXTS

WAITING, MATCHING, READY, RUNNING, BACKING_OFF, DONE, FAILED, SPLIT = range(8)
"""States of a step. WAITING: for predecessors; MATCHING: for a plan; SPLIT: for the parts of its team."""

HEAP_SLACK = 4096
"""Entries the heap may hold before stale ones are looked for; smaller looks often, larger costs memory."""


def column(type: pa.DataType, default: Any) -> Any:
    """A slot with its default and the Arrow type of its column in a snapshot."""
    return field(default=default, metadata={"type": type})


class Common(NamedTuple):
    """The columns every task row carries, in the record's order; `requested_at` in microseconds."""

    tenant: str
    traceparent: str | None
    request_id: bytes
    requested_at: int
    home: int
    domain: str
    round: int


@dataclass(slots=True, eq=False)
class Step:
    """One step of a request, or one part of the team a step was split among."""

    # what was asked
    number: int = column(I16, 0)
    name: str = column(TEXT, "")
    task_kind: str | None = column(TEXT, None)
    require: Sequence[str] = column(TEXTS, ())
    after: Sequence[int] = column(I16S, ())
    judges: int = column(I16, -1)  # -2: a part of a judge, whose score is a verdict too
    pin: Sequence[str] = column(TEXTS, ())
    exclude: Sequence[str] = column(TEXTS, ())
    timeout_ms: int | None = column(I64, None)
    text: str | None = column(TEXT, None)
    payload: bytes | None = column(BYTES, None)
    content_type: str | None = column(TEXT, None)
    embedding: bytes = column(BYTES, b"")
    surface: bytes = column(BYTES, b"")
    parent: int = column(I16, -1)  # the step it is a part of
    # where it stands
    state: int = column(I16, WAITING)
    due: int = column(I64, 0)
    # its matching
    match_round: int = column(I16, 0)
    answered: bool = column(BOOL, False)  # whether this round of matching was
    silences: int = column(I16, 0)  # times it was asked again for want of any answer
    shortages: int = column(I16, 0)  # answers in a row that there is nobody
    found: bool = column(BOOL, False)  # whether there ever was somebody
    filtered_count: int = column(I32, 0)
    model_version: int = column(I64, 0)
    settings_version: int = column(I64, 0)
    degraded: bool = column(BOOL, False)
    rung: str | None = column(TEXT, None)  # how it was degraded
    failed_agents: tuple[str, ...] = column(TEXTS, ())
    refused_cells: tuple[str, ...] = column(TEXTS, ())  # of the plan in force
    # its attempts; from `cell` on: those of the last one
    attempt: int = column(I16, 0)  # number of the last that was ready: not each gets an agent
    tries: int = column(I16, 0)  # failed and counted
    losses: int = column(I16, 0)  # ended because the agent was gone
    attempts: int = column(I16, 0)  # given to an agent
    calls: tuple[str, ...] = column(TEXTS, ())  # by which the last one asked for children
    cell: str = column(TEXT, "")
    cell_partition: int = column(I32, 0)
    agent: str | None = column(TEXT, None)
    service: str = column(TEXT, "")
    epoch: int = column(I64, 0)
    inbox_partition: int = column(I32, 0)
    probability: float | None = column(F32, None)
    score_predicted: float | None = column(F32, None)
    limit_us: int = column(I64, 0)
    ready_at: int = column(I64, 0)
    assigned_at: int = column(I64, 0)
    finished_at: int = column(I64, 0)
    code: str | None = column(TEXT, None)
    message: str | None = column(TEXT, None)
    score: float | None = column(F32, None)  # as reported
    verdict: float | None = column(F64, None)  # a mean: more exact than the reports
    held: bool = column(BOOL, False)  # whether its trail waits for the judge
    cost_usd_micros: int = column(I64, 0)
    cpu_us: int = column(I64, 0)
    tokens: int = column(I64, 0)
    output: bytes | None = column(BYTES, None)
    output_type: str | None = column(TEXT, None)
    output_offset: int = column(I64, -1)
    output_row: int = column(I32, -1)
    # not a column: a plan is a row of shared Arrow columns
    plan: Plans | None = None
    plan_row: int = 0
    # not a column: it follows from the others
    token: bytes | None = None  # of the last attempt, while it is known; not after a restart


@dataclass(slots=True, eq=False)
class Request:
    """One request in flight."""

    common: Common
    id: str | None = column(TEXT, None)
    priority: int = column(I16, 2)
    deadline: int = column(I64, 0)  # in force
    deadline_at: int | None = column(I64, None)  # as asked for
    budget_usd_micros: int | None = column(I64, None)
    budget_cpu_us: int | None = column(I64, None)
    policy: str | None = column(TEXT, None)
    task_kind: str | None = column(TEXT, None)
    offset: int = column(I64, -1)  # where its requested row stands
    row: int = column(I32, -1)
    size: int = column(I16, 0)  # steps it was asked with; parts of teams come after them
    remaining: int = column(I16, 0)  # of those, not done
    started: bool = column(BOOL, False)  # whether any agent has been at work
    attempts: int = column(I16, 0)
    ignored: int = column(I16, 0)
    cost_usd_micros: int = column(I64, 0)
    cpu_us: int = column(I64, 0)
    tokens: int = column(I64, 0)
    model_version: int = column(I64, 0)
    settings_version: int = column(I64, 0)
    degraded: bool = column(BOOL, False)
    rung: str | None = column(TEXT, None)  # how it was degraded
    topology: str | None = column(TEXT, None)
    quality_predicted: float | None = column(F32, None)
    duration_predicted_us: int | None = column(I64, None)
    # of a child: who waits for it (attempt 0: nobody any more), and what was handed out by whom
    parent_id: bytes | None = column(BYTES, None)
    parent_step: int = column(I16, -1)
    parent_attempt: int = column(I16, 0)
    depth: int = column(I16, 0)
    giver: str | None = column(TEXT, None)
    digest: bytes | None = column(BYTES, None)
    below_usd_micros: int = column(I64, 0)  # of its own costs: what children that ended have added
    below_cpu_us: int = column(I64, 0)
    below_tokens: int = column(I64, 0)
    circle: int = column(I16, 0)  # 1: one of those who wait for each other; 2: the one that was reported
    # what the members share
    context: bytes | None = column(BYTES, None)
    context_version: int = column(I64, 0)
    context_by: bytes | None = column(BYTES, None)  # the call that made this version
    steps: list[Step] = field(default_factory=list)
    ended: bool = False


class State:
    """All of one partition. The heap only says where to look: what is due stands in requests and steps."""

    __slots__ = (
        "_count", "_count_max", "_due", "_sorted", "_times", "accounts", "children", "dealt", "memory", "partition",
        "requests",
    )  # fmt: skip

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.requests: dict[bytes, Request] = {}
        self.children: dict[bytes, list[bytes]] = {}  # in flight, by parent; follows from the requests
        self.memory = Memory()
        self.dealt: dict[str, int] = {}  # by service: attempts sent to its inbox
        self.accounts = Accounts(partition)
        # what a message makes due is mostly due at the same moment: one entry of the heap for all of it
        self._times: list[int] = []  # a heap of the moments in `_due`
        self._due: dict[int, list[tuple[bytes, int]]] = {}  # by moment: where to look, (request_id, step)
        self._sorted: int | None = None  # the moment whose list is a heap too: it is being popped
        self._count = 0  # of all in `_due`, stale ones too
        self._count_max = HEAP_SLACK

    def enter(self, request: Request) -> None:
        """The request is in flight, with the steps it was asked with."""
        self.requests[request.common.request_id] = request
        if request.parent_id is not None:
            self.children.setdefault(request.parent_id, []).append(request.common.request_id)
        self.accounts.enter(request.common.tenant, request.priority, request.size)
        if request.started:
            self.accounts.begin(request.priority, request.size)

    def start(self, request: Request) -> None:
        """An agent is at work on it."""
        if not request.started:
            request.started = True
            self.accounts.begin(request.priority, request.size)

    def leave(self, request: Request) -> None:
        """The request has ended."""
        del self.requests[request.common.request_id]
        if request.parent_id is not None:
            siblings = self.children[request.parent_id]
            siblings.remove(request.common.request_id)
            if not siblings:
                del self.children[request.parent_id]
        self.accounts.leave(request.common.tenant, request.priority, request.size, request.started)

    def wake(self, due: int, request_id: bytes, number: int) -> None:
        """Look at step `number` (-1: at the request's deadline) when `due` has passed."""
        places = self._due.get(due)
        if places is None:
            self._due[due] = [(request_id, number)]
            heapq.heappush(self._times, due)
        elif due == self._sorted:
            heapq.heappush(places, (request_id, number))
        else:
            places.append((request_id, number))
        self._count += 1
        if self._count > self._count_max:
            self.rebuild()

    def deal(self, service: str, partitions: int) -> int:
        """The inbox partition of a service's next attempt: in turn, so that its replicas share the work evenly."""
        count = self.dealt.get(service, 0)
        self.dealt[service] = count + 1
        return count % partitions

    def rebuild(self) -> None:
        """Where to look from what is due, without stale entries."""
        self._due = {}
        for id, request in self.requests.items():
            self._due.setdefault(request.deadline, []).append((id, -1))
            for step in request.steps:
                if step.due:
                    self._due.setdefault(step.due, []).append((id, step.number))
        self._times = sorted(self._due)
        self._sorted = None
        self._count = sum(map(len, self._due.values()))
        self._count_max = max(HEAP_SLACK, 2 * self._count)

    def pop_due(self, now: int) -> tuple[Request, Step | None] | None:
        """The next one that is due: a step, or the whole request when its deadline has passed."""
        due = self.next_due()
        if due is None or due > now:
            return None
        self._count -= 1
        return self._find(due, *heapq.heappop(self._due[due]))

    def next_due(self) -> int | None:
        """When something is due next, None when nothing is. What is stale before it is dropped."""
        times = self._times
        while times:
            due = times[0]
            places = self._due[due]
            if due != self._sorted:
                self._count -= len(places)
                places[:] = [place for place in places if self._find(due, *place) is not None]
                self._count += len(places)
                heapq.heapify(places)
                self._sorted = due
            while places and self._find(due, *places[0]) is None:
                heapq.heappop(places)
                self._count -= 1
            if places:
                return due
            del self._due[heapq.heappop(times)]
            self._sorted = None
        return None

    def _find(self, due: int, request_id: bytes, number: int) -> tuple[Request, Step | None] | None:
        request = self.requests.get(request_id)
        if request is None:
            return None
        if number < 0:
            return (request, None) if request.deadline == due else None
        if number >= len(request.steps) or request.steps[number].due != due:
            return None
        return request, request.steps[number]
