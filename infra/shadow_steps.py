"""Steps a stretch of a processor's log beside the processor: same step, same state, no broker behind it.

What the real one had besides its log is given as it was, as far as the topics still know: views are followed by append
time (a compacted topic has lost what was replaced since), `now` is the log's, ticks come by it. A fold's outputs below
the stretch are muted, as after a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aos.codecs.errors import RecordError
from aos.streams.dead_letters import DeadLetters
from aos.streams.live import in_force
from aos.streams.processor import Batch, Law, Output, Processor, Raw, Recall, Step, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.views import VIEWS

NO_ROWS = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
RAWS_MAX = 256  # of an edge in one step

Recalled = Callable[[Recall], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step may look at: `views` is every message of the view topics, oldest first."""

    settings: Any
    secret: bytes
    partitions: Mapping[str, int]
    views: Sequence[Raw] = ()


@dataclass(slots=True)
class Played:
    """What one partition's stretch came to."""

    messages: int = 0
    rows: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)  # a step that raised: where, and what
    left_out: int = 0  # messages of views that could not be taken in, as in the real one


class Player:
    """One partition of a processor. Outputs go to `said`, with the input that caused them, and nowhere else."""

    def __init__(
        self, processor: Processor, partition: int, state: Any, now: int, seen: Seen,
        said: Callable[[Raw, Output], None],
    ) -> None:  # fmt: skip
        self._processor, self._partition, self._state = processor, partition, state
        self._now, self._seen, self._said = now, seen, said
        self._codec = WireCodec()
        self._values = {topic: VIEWS[topic].empty() for topic in processor.views}
        self._followed = 0
        self._due: int | None = None
        self.played = Played()

    async def play(
        self, log: AsyncIterator[Raw], mute_below: Mapping[str, int], recalled: Recalled
    ) -> Played:
        """Step all of the log; outputs of what is below `mute_below` (by topic) are not said."""
        waiting: list[Raw] = []
        async for raw in log:
            if self._processor.edge:
                waiting.append(raw)
                if len(waiting) >= RAWS_MAX:
                    await self._edge(waiting, recalled)
                    waiting = []
            else:
                await self._message(raw, raw.offset < mute_below.get(raw.topic, 0), recalled)
            if self._stopped:
                return self.played
        if waiting:
            await self._edge(waiting, recalled)
        return self.played

    @property
    def _stopped(self) -> bool:
        """A state that a step has left half-way is none; what has no state goes on, as the shell does."""
        return bool(self.played.failed) and self._processor.law is not Law.ROW

    async def _edge(self, raws: list[Raw], recalled: Recalled) -> None:
        self._count(len(raws), len(raws))
        first = raws[0]
        self._now = max(self._now, *(raw.appended_at for raw in raws))
        await self._step(
            Batch(first.topic, self._partition, first.offset, NO_ROWS, raws), first, False, recalled
        )

    async def _message(self, raw: Raw, muted: bool, recalled: Recalled) -> None:
        await self._ticks(raw, muted, recalled)
        self._now = max(self._now, raw.appended_at)
        try:
            rows = self._codec.decode(raw.topic, raw.value, raw.headers)
        except RecordError as error:
            if not muted:
                self._count(1, 0)
                self._bury(raw, error.code, str(error))
            return
        if not muted:
            self._count(1, rows.num_rows)
        await self._step(Batch(raw.topic, self._partition, raw.offset, rows), raw, muted, recalled)

    async def _ticks(self, raw: Raw, muted: bool, recalled: Recalled) -> None:
        """A journal or view that was due before this message: by the log's clock, the machine's then is not known."""
        if (
            self._processor.law not in (Law.JOURNAL, Law.VIEW)
            or self._due is None
            or self._due > raw.appended_at
        ):
            return
        self._now = max(self._now, self._due)
        batch = Batch(raw.topic, self._partition, -1, NO_ROWS, tick=True)
        await self._step(batch, raw, muted, recalled)

    async def _step(self, batch: Batch, raw: Raw, muted: bool, recalled: Recalled) -> None:
        views = self._views()
        try:
            step: Step[Any] = self._processor.step(self._state, batch, self._now, views, 0)
        except RecordError as error:
            if not muted:
                self._bury(raw, error.code, str(error))
            return
        except Exception as error:  # told in the report: to find such a message is what a replay is for
            place = {"topic": raw.topic, "partition": raw.partition, "offset": raw.offset}
            self.played.failed.append({**place, "error": repr(error)[:500]})
            return
        self._state, self._due = step.state, step.next_due
        if muted:
            return
        for output in (*step.first, *step.outputs):
            self._said(raw, output)
        for recall in step.recalls:
            await self._recall(recall, raw, views, recalled)

    async def _recall(self, recall: Recall, raw: Raw, views: Views, recalled: Recalled) -> None:
        assert self._processor.recall is not None
        found = [
            Batch(one.topic, one.partition, one.offset, self._codec.decode(one.topic, one.value, one.headers))
            async for one in recalled(recall)
        ]
        for output in self._processor.recall(recall, found, views):
            self._said(raw, output)

    def _views(self) -> Views:
        """The views as they were by now, and the settings that were in force."""
        messages = self._seen.views
        while self._followed < len(messages) and messages[self._followed].appended_at <= self._now:
            self._apply(messages[self._followed])
            self._followed += 1
        given = Views(self._seen.settings, self._seen.partitions, self._values, self._seen.secret)
        return in_force(self._processor, given)

    def _apply(self, raw: Raw) -> None:
        try:
            rows = self._codec.decode(raw.topic, raw.value, raw.headers) if raw.value else None
            self._values[raw.topic] = VIEWS[raw.topic].apply(self._values[raw.topic], raw.key or b"", rows)
        except Exception:  # one bad message takes the view from nobody; counted
            self.played.left_out += 1

    def _bury(self, raw: Raw, code: str, message: str) -> None:
        letters = DeadLetters(self._processor.name, getattr(self._seen.settings, "tenants", ()))
        letters.refused(raw, code, message)
        for output in letters.outputs():
            self._said(raw, output)

    def _count(self, messages: int, rows: int) -> None:
        self.played.messages += messages
        self.played.rows += rows


def is_promised(processor: Processor, exact: bool) -> bool:
    """Whether the law says that these very rows were written: a fold from a state that is its own, and a row processor
    that looks at nothing but its rows and the settings."""
    if processor.law is Law.FOLD:
        return exact
    return processor.law is Law.ROW and not set(processor.views) - {"aos.settings"}
