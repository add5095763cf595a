"""What a processor is: a pure step over record batches, and the law its class promises.

Nothing here knows Kafka or Faust. `streams.shell` runs a `Processor` on the broker, `streams.simulate`
runs it in memory, tests call `step` directly; all three see exactly the types of this module.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

S = TypeVar("S")


class Law(enum.StrEnum):
    """What holds for a processor whatever is killed (design.md, section 4)."""

    ROW = "row"  # ids repeat, content may differ, the first in the log counts; any split gives the same rows
    FOLD = "fold"  # one input log, byte-equal state from the same log
    JOURNAL = "journal"  # decisions are journaled before they act, and adopted on replay
    VIEW = "view"  # the last version of a key wins
    SINK = "sink"  # replay changes nothing


class Raw(NamedTuple):
    """One Kafka record as it came off the broker; only the edges (encode, admit) see it.

    `appended_at` is the broker's append time in microseconds since the epoch.
    """

    topic: str
    partition: int
    offset: int
    appended_at: int
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one `step`: one log message, decoded and validated.

    For an edge processor (`Processor.edge`) `rows` is empty and `raws` holds all records that waited, of all its
    topics in one partition; `topic` and `offset` are those of the first. For all others `raws` is empty.
    `tick` marks a call that no record caused: folds never get one (their ticks are rows of their own log),
    journals and views do, with `rows` empty.
    `topic` is the name without prefix (``aos.tasks``); `offset` is that of the (first) record.
    """

    topic: str
    partition: int
    offset: int
    rows: pa.RecordBatch
    raws: Sequence[Raw] = ()
    tick: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """Rows to append to one partition of a topic; the shell joins outputs of equal target and schema.

    `key` is set for compacted topics only; such an output is never joined: the message is the whole value
    of its key. `partition` is taken modulo nothing: the step knows the number of partitions from
    `views.partitions`. `dead` outputs are sent before all others and must be acknowledged first.
    """

    topic: str
    rows: pa.RecordBatch
    partition: int = 0
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask the shell to read log records again and hand them to `Processor.recall` (repeated request ids).

    `offsets` are offsets of this processor's own input topic in `partition`; `rows` is what the processor
    wants back beside the records.
    """

    partition: int
    offsets: tuple[int, ...]
    rows: pa.RecordBatch


class Step(NamedTuple, Generic[S]):
    """What one step returns.

    `next_due`: microseconds (the clock of `now`) at which this state wants to be called again although
    nothing came, None for never. For a fold the shell then appends one empty tick row to its log; for a
    journal or view it calls `step` with a `tick` batch.
    `first`: outputs that must be acknowledged before `outputs` are sent (allocate's journal).
    """

    state: S
    outputs: Sequence[Output] = ()
    next_due: int | None = None
    first: Sequence[Output] = ()
    recalls: Sequence[Recall] = ()
    paused: frozenset[str] = frozenset()  # input topics of this partition's state that must not be read on


@dataclass(frozen=True, slots=True)
class Views:
    """All that a step may look at beside its state and batch: read-only, handed in by whoever runs it.

    `settings` is the frozen settings object; `partitions` the number of partitions by topic name;
    `views` maps a view topic (``aos.agent-states``) to what its `View.fold` made of it so far;
    `secret` is the key for assignment tokens; `stale` says that the views were not known to be complete for longer
    than the shell's bound (5 s), or that what the processor rests on is behind: what is decided now is marked degraded.
    `refused` maps a view topic to keys whose newest record the view could not take in; it has a topic only while
    there are such keys.
    """

    settings: Any = None
    partitions: Mapping[str, int] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    secret: bytes = b""
    stale: bool = False
    refused: Mapping[str, Collection[bytes]] = field(default_factory=dict)

    def __getitem__(self, topic: str) -> Any:
        return self.views[topic]


@dataclass(frozen=True, slots=True)
class View:
    """How a compacted topic becomes something a step can ask. `apply` may update in place; it is called
    by one owner (the view service), never while a step runs."""

    topic: str
    empty: Callable[[], Any]
    apply: Callable[[Any, bytes, pa.RecordBatch | None], Any]  # (view, key, rows or None for a tombstone)


@dataclass(frozen=True, slots=True)
class Processor:
    """One processor as data. `name` is permanent: it names the consumer group and the snapshots.

    `initial(partition)` makes the state of one partition, `step(state, batch, now, views, seed)` is the
    pure transition (it may update `state` in place and return it), `dump`/`load` turn a state into Arrow
    record batches by name and back, byte for byte. A journal has `journal`, the topic of its own decisions,
    and `adopt(state, batch)`, which takes in decisions made since the snapshot. Partition `p` of every topic in
    `reads` belongs to the same state: the topics are co-partitioned. While messages flow, the broker may collect them
    for `patience_s` before they are handed over: fewer, larger fetches for what is in no hurry. An edge with
    `yields_to` takes nothing in while that processor is seconds behind on that topic. What decides by `rests_on` says
    so when that processor is (`Views.stale`).
    """

    name: str
    law: Law
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    initial: Callable[[int], Any]
    step: Callable[[Any, Batch, int, Views, int], Step[Any]]
    views: tuple[str, ...] = ()
    edge: bool = False
    patience_s: float = 0.0
    yields_to: tuple[str, str] | None = None  # (processor, topic)
    rests_on: tuple[str, str] | None = None  # (processor, topic)
    dump: Callable[[Any], dict[str, pa.RecordBatch]] | None = None
    load: Callable[[int, Mapping[str, pa.RecordBatch]], Any] | None = None
    journal: str | None = None
    adopt: Callable[[Any, Batch], Any] | None = None
    recall: Callable[[Recall, Sequence[Batch], Views], Sequence[Output]] | None = None
    prepare: Callable[[], None] | None = None  # imports that take seconds; called once beside the start
    # topics whose number of partitions it asks for, beside those it reads and writes
    counts: tuple[str, ...] = ()
    tick: Callable[[int, int], pa.RecordBatch] | None = None  # (partition, now) -> the row a fold's tick is
