"""What an agent is given and what it gives back, and how both look on the wire."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from aos.agents.sdk.desk import Delegated, Desk, Refuse
from aos.codecs import rows
from aos.codecs.fields import ECHO

ECHOED = tuple(field.name for field in ECHO)


@dataclass(frozen=True)
class Input:
    """The output of a step this one comes after."""

    name: str
    payload: bytes | None
    content_type: str | None


@dataclass(frozen=True)
class Work:
    """One attempt at one step. Effects outside AOS should carry `idempotency_key`: an attempt may come again.

    `deadline` and `expires` are local clock seconds (`time.time()`): when the request and this attempt end.
    """

    request_id: bytes
    tenant: str
    traceparent: str | None
    step_name: str
    attempt: int
    agent: str
    task_kind: str | None
    text: str | None
    payload: bytes | None
    content_type: str | None
    inputs: tuple[Input, ...]
    deadline: float | None
    expires: float
    budget_usd_micros: int | None
    budget_cpu_us: int | None
    echo: Mapping[str, Any] = field(repr=False, default_factory=dict)
    report: Callable[[Work, float], Awaitable[None]] | None = field(repr=False, default=None)
    desk: Desk | None = field(repr=False, default=None)
    first_context: bytes | None = field(repr=False, default=None)
    first_version: int = 0

    @property
    def idempotency_key(self) -> str:
        """The same for every delivery of this attempt."""
        return f"{self.request_id.hex()}-{self.echo['step']}-{self.attempt}"

    def input(self, name: str) -> Input:
        """The output of the step of that name."""
        for one in self.inputs:
            if one.name == name:
                return one
        raise KeyError(f"step {self.step_name} does not come after {name!r}")

    @property
    def seconds_left(self) -> float:
        """Until this attempt's time is up."""
        return self.expires - time.time()

    async def progress(self, share: float) -> None:
        """Say that `share` (0 to 1) is done; this extends the attempt's time."""
        if self.report is None:
            raise RuntimeError("progress can only be reported from the service's own process")
        await self.report(self, share)

    async def delegate(
        self,
        text: str | None = None,
        *,
        payload: bytes | None = None,
        content_type: str | None = None,
        task_kind: str | None = None,
        require: Sequence[str] = (),
        pin: Sequence[str] = (),
        exclude: Sequence[str] = (),
        deadline: float | None = None,
        budget: int | None = None,
        name: str | None = None,
    ) -> Delegated:
        """Hand out a part of the work as a request of its own, and wait for what it finds.

        The child has this request's tenant, domain and priority, at most its deadline (`deadline`: local clock
        seconds; one attempt's time when None) and at most what is left of its budget (`budget`: millionths of a US
        dollar; all of it when None). Raises DelegationFailed when it does not end ok. Time spent waiting is not this
        attempt's.
        `name`: of the call, at most 64 bytes; calls are numbered in order when None, so that a handler that runs
        again after a crash gets the same children.
        """
        columns = {
            "text": text, "payload": payload, "content_type": content_type, "task_kind": task_kind,
            "require": list(require), "pin": list(pin), "exclude": list(exclude), "budget_usd_micros": budget,
            "deadline_ms": None if deadline is None else max(1, round((deadline - time.time()) * 1000)),
        }  # fmt: skip
        return await self._desk().delegate(self.echo, name, columns)

    @property
    def context(self) -> dict[str, Any]:
        """What the members of this request share, as last heard; a copy."""
        found: dict[str, Any] = (
            json.loads(self.first_context or b"{}") if self.desk is None else self.desk.context
        )
        return found

    @property
    def context_version(self) -> int:
        """Version of `context`; 0 before anybody changed it."""
        return self.first_version if self.desk is None else self.desk.version

    async def update_context(
        self, changes: Mapping[str, Any], version: int | None = None, *, name: str | None = None
    ) -> int:
        """Set keys of the shared context (None takes a key away) if it is at `version` (None: the last heard of);
        the new version. Raises ContextConflict when somebody changed it first, or it would be larger than 8 KiB."""
        return await self._desk().share(self.echo, changes, version, name)

    def _desk(self) -> Desk:
        if self.desk is None:
            raise RuntimeError("calls can only be made from the service's own process")
        return self.desk

    def plain(self) -> Work:
        """The same without the way back to the service, to be sent to a process."""
        return replace(self, report=None, desk=None)


@dataclass(frozen=True)
class Answer:
    """What an agent found. `score` (0 to 1) is its own report, or a judge's verdict on the step it judges."""

    payload: bytes | None = None
    content_type: str | None = None
    score: float | None = None
    cost_usd_micros: int | None = None
    cpu_us: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


def to_answer(value: Any) -> Answer:
    """What a handler returned as an Answer: text, bytes, None and anything JSON can say are taken."""
    if isinstance(value, Answer):
        return value
    if value is None:
        return Answer()
    if isinstance(value, str):
        return Answer(value.encode(), "text/plain; charset=utf-8")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Answer(bytes(value), "application/octet-stream")
    return Answer(json.dumps(value).encode(), "application/json")


def works(batch: pa.RecordBatch, appended_at: float) -> list[tuple[str, Work]]:
    """The rows of an inbox message as (kind, Work). `appended_at`: seconds, when the broker took the message."""
    found = []
    for row in batch.to_pylist():
        if row["kind"] not in ("work", "cancel"):
            continue  # see `desk.notes`
        deadline = row["deadline_at"].timestamp() if row["deadline_at"] else None
        work = Work(
            request_id=row["request_id"],
            tenant=row["tenant"],
            traceparent=row["traceparent"],
            step_name=row["step_name"],
            attempt=row["attempt"],
            agent=row["agent"],
            task_kind=row["task_kind"],
            text=row["text"],
            payload=row["payload"],
            content_type=row["content_type"],
            inputs=tuple(Input(i["name"], i["payload"], i["content_type"]) for i in row["inputs"]),
            deadline=deadline,
            expires=min(appended_at + row["timeout_ms"] / 1000, deadline or float("inf")),
            budget_usd_micros=row["budget_usd_micros"],
            budget_cpu_us=row["budget_cpu_us"],
            echo={name: row[name] for name in ECHOED},
            first_context=row["context"],
            first_version=row["context_version"] or 0,
        )
        found.append((row["kind"], work))
    return found


def outcome(work: Work, status: str, **columns: Any) -> dict[str, Any]:
    """One outcome row; what the assignment said is echoed."""
    return {**work.echo, "status": status, **columns}


def answered(work: Work, answer: Answer, replica: str) -> dict[str, Any]:
    """The outcome of a success."""
    return outcome(
        work,
        "ok",
        replica=replica,
        payload=answer.payload,
        content_type=answer.content_type,
        score=answer.score,
        cost_usd_micros=answer.cost_usd_micros,
        cpu_us=answer.cpu_us,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
    )


def failed(work: Work, error: BaseException, replica: str) -> dict[str, Any]:
    """The outcome of a failure; an error that is no Refuse may be tried again elsewhere."""
    if isinstance(error, Refuse):
        code, retryable = error.code, error.retryable
    else:
        code, retryable = (
            ("AOS3002" if isinstance(error, (asyncio.TimeoutError, TimeoutError)) else "AOS3001"),
            True,
        )
    text = str(error) or type(error).__name__
    return outcome(work, "failed", replica=replica, code=code, message=text[:1000], retryable=retryable)


def outcome_rows(outcomes: list[dict[str, Any]]) -> pa.RecordBatch:
    """Outcomes as a record batch."""
    return rows.from_dicts("outcome", outcomes)
