"""What an attempt asks of AOS while it runs, and what comes back: children it hands out, the context it shares.

Answers come by the inbox, behind the work itself: a service that starts again reads both again, and a handler that asks
for the same in the same order finds the answers there before it has asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refuse(Exception):
    """Raised by an agent that cannot do it: `retryable` says whether another attempt may succeed."""

    def __init__(self, message: str, *, code: str = "AOS3001", retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class DelegationFailed(Refuse):
    """A child did not end ok. Whoever does not catch it fails with the child's code.

    `status`: failed, rejected, expired or cancelled.
    """

    def __init__(self, status: str, code: str, message: str) -> None:
        super().__init__(f"the delegated work was {status}: {message}", code=code)
        self.status = status


class ContextConflict(Refuse):
    """Somebody changed the context first (AOS3014), or it would grow too large (AOS3015).

    `context`, `version`: what it is now, to try again from.
    """

    def __init__(self, code: str, message: str, context: dict[str, Any], version: int) -> None:
        super().__init__(message, code=code)
        self.context = context
        self.version = version


@dataclass(frozen=True)
class Delegated:
    """What a child found."""

    payload: bytes | None
    content_type: str | None

    @property
    def text(self) -> str:
        """The payload as text; empty when there is none."""
        return (self.payload or b"").decode()

    def json(self) -> Any:
        """The payload read as JSON."""
        return json.loads(self.payload or b"null")


class Note(NamedTuple):
    """A row of the inbox that answers or informs who is at work; `token` names the attempt."""

    token: bytes
    kind: str
    call: str | None
    status: str | None
    code: str | None
    message: str | None
    payload: bytes | None
    content_type: str | None
    context: bytes | None
    context_version: int | None


def notes(batch: pa.RecordBatch) -> list[Note]:
    """The rows of an inbox message that are neither work nor its withdrawal."""
    kinds = batch.column("kind").to_pylist()
    if not any(kind in ("result", "context") for kind in kinds):
        return []
    rows = zip(*(batch.column(name).to_pylist() for name in Note._fields), strict=True)
    return [note for note in map(Note._make, rows) if note.kind in ("result", "context")]


class Desk:
    """One attempt's calls and answers; `seconds`: the time of one attempt. One owner, one event loop."""

    def __init__(
        self, send: Send, seconds: float, ends: float | None, context: bytes | None, version: int
    ) -> None:
        self._send = send
        self._seconds = seconds
        self._ends = ends  # of the request, local clock
        self._context = context
        self.version = version
        self._made = 0
        self._open = 0
        self._came: dict[tuple[str, str], Note] = {}
        self._waiting: dict[tuple[str, str], asyncio.Future[Note]] = {}
        self._clock: asyncio.Timeout | None = None

    def start(self, clock: asyncio.Timeout) -> None:
        """The handler begins; `clock` ends it."""
        self._clock = clock

    def again(self) -> None:
        """The attempt has its whole time again, as supervise counts it."""
        ends = None if self._open else self._seconds
        if self._ends is not None:
            ends = self._ends - time.time() if ends is None else min(ends, self._ends - time.time())
        if self._clock is not None and not self._clock.expired():
            now = asyncio.get_running_loop().time()
            self._clock.reschedule(None if ends is None else now + max(ends, 0.001))

    @property
    def context(self) -> dict[str, Any]:
        """What the members of the request share, as last heard; a copy."""
        found: dict[str, Any] = json.loads(self._context or b"{}")
        return found

    def take(self, note: Note) -> None:
        """Something came for this attempt."""
        if note.context is not None and (note.context_version or 0) >= self.version:
            self._context, self.version = note.context, note.context_version or 0
        if note.call is None:
            return
        key = (note.kind, note.call)
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            self._came[key] = note
        elif not waiting.done():
            waiting.set_result(note)

    def withdraw(self) -> None:
        """Nothing more will come: the attempt is somebody else's, or nobody's."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(DelegationFailed("cancelled", "AOS3004", "the attempt was withdrawn"))

    async def delegate(
        self, echo: Mapping[str, Any], name: str | None, columns: Mapping[str, Any]
    ) -> Delegated:
        """Hand out a child and wait for its end; meanwhile the attempt's time stands still."""
        row = {**echo, "action": "delegate", "call": self._name(name), **columns}
        self._open += 1
        self.again()
        try:
            note = await self._ask("result", row)
        finally:
            self._open -= 1
            self.again()
        if note.status != "ok":
            raise DelegationFailed(note.status or "failed", note.code or "AOS3001", note.message or "")
        return Delegated(note.payload, note.content_type)

    async def share(
        self, echo: Mapping[str, Any], changes: Mapping[str, Any], version: int | None, name: str | None
    ) -> int:
        """Change the context from a version; the new one's number."""
        row = {
            **echo, "action": "share", "call": self._name(name), "context": json.dumps(changes).encode(),
            "context_version": self.version if version is None else version,
        }  # fmt: skip
        note = await self._ask("context", row)
        if note.status != "ok":
            raise ContextConflict(note.code or "AOS3014", note.message or "", self.context, self.version)
        return note.context_version or 0

    def _name(self, name: str | None) -> str:
        """Calls without a name are numbered: the same handler numbers them alike when it runs again."""
        self._made += 1
        return str(self._made - 1) if name is None else name

    async def _ask(self, kind: str, row: dict[str, Any]) -> Note:
        key = (kind, row["call"])
        found = self._came.pop(key, None)
        if found is not None:
            return found
        if key in self._waiting:
            raise ValueError(f"two calls of one attempt are named {row['call']!r}")
        waiting: asyncio.Future[Note] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiting
        try:
            await self._send(row)
            return await waiting
        finally:
            self._waiting.pop(key, None)
