"""The played broker: partitions as lists, appends stamped with a virtual clock, what is late lands late.

`World` is what all that is simulated shares: logs, clock, chance. Outputs are joined by target as the shell joins
them, and their schemas and nulls are checked as its codec checks them; some pass through their bytes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from aos.codecs import wire
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, base_of, record_of, tenant_topic
from aos.streams.processor import Output

START_US = 1_700_000_000_000_000  # the virtual clock at first
INBOX = "aos.inbox"


@dataclass(frozen=True, slots=True)
class Chances:
    """How often what goes wrong: probabilities a scheduling step, unless said otherwise."""

    kill: float = 0.01  # a process dies without a word: all its states, at any place of a round
    move: float = 0.01  # a partition is revoked in good order and comes back
    rewind: float = 0.005  # a state is made anew from its snapshot, the process lives on
    stall: float = 0.005  # an owner that was given up goes on for some rounds beside its successor
    late: float = 0.3  # that what a killed process had on the wire still lands, a kill
    commit: float = 0.3  # that finished offsets are committed after a round
    snapshot: float = 0.1  # that a state is saved after a round
    view_lag: float = 0.5  # that a view does not take in the next message this time
    wire: float = 0.05  # that a message inside passes through its bytes
    delay_us: int = 3_000  # most time between two scheduling steps


CALM = Chances(kill=0, move=0, rewind=0, stall=0)
"""Nothing dies; order and lag are still drawn."""


class Entry(NamedTuple):
    """One message of a log. `value` is empty for one that has no bytes here (inside, between processors)."""

    rows: pa.RecordBatch
    appended_at: int
    key: bytes | None = None
    value: bytes = b""
    headers: Mapping[str, bytes] = {}


@dataclass
class World:
    """Logs, clock and chance. `partitions` is by topic; an inbox or tenant's topic has those of its base."""

    seed: int
    settings: Settings
    chances: Chances
    clock: int = START_US
    random: random.Random = field(init=False)
    partitions: dict[str, int] = field(init=False)
    later: list[tuple[int, Output]] = field(default_factory=list)
    landed: list[Output] = field(default_factory=list)  # what owners wrote that had already been replaced
    undead: bool = False  # whether such an owner is writing now
    _logs: dict[tuple[str, int], list[Entry]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        spread = self.settings.partitions
        self.partitions = {name: spread if topic.spread else 1 for name, topic in TOPICS.items()}
        for name, topic in TOPICS.items():
            if topic.per_tenant:
                for tenant in self.settings.tenants:
                    self.partitions[tenant_topic(name, tenant)] = self.partitions[name]

    def chance(self, share: float) -> bool:
        """Whether something happens that does so in `share` of all cases."""
        return share > 0 and self.random.random() < share

    def count(self, topic: str) -> int:
        """Partitions of a topic."""
        if base_of(topic) == INBOX:
            return self.settings.inbox_partitions
        return self.partitions[topic]

    def read(self, topic: str, partition: int) -> list[Entry]:
        """The live list of a partition; readers keep their own positions."""
        return self._logs[topic, partition]

    def append(self, output: Output) -> None:
        """A message from inside; it must fit its record."""
        assert 0 <= output.partition < self.count(output.topic), f"{output.topic} has no {output.partition}"
        record = record_of(output.topic)
        rows = output.rows
        if self.chance(self.chances.wire):
            value, headers = wire.encode(rows, record)
            decoded = wire.decode(value, headers, record)
            assert decoded.equals(rows), f"{output.topic}: the bytes say something else"
            rows = decoded
        else:
            assert rows.schema == record.schema, f"{output.topic}: the columns do not fit the record"
            for column, declared in zip(rows.columns, record.fields, strict=True):
                assert declared.nullable or not column.null_count, f"{output.topic}: null in {declared.name}"
        self._logs[output.topic, output.partition].append(Entry(rows, self.clock, output.key))
        if self.undead:
            self.landed.append(output)

    def send(self, topic: str, value: bytes, headers: Mapping[str, bytes] | None = None) -> None:
        """A message from outside, to any partition."""
        partition = self.random.randrange(self.count(topic))
        self._logs[topic, partition].append(Entry(NO_ROWS, self.clock, None, value, headers or {}))

    def land(self) -> bool:
        """Append what was late and is due now; whether there was any."""
        due = [output for at, output in self.later if at <= self.clock]
        self.later = [item for item in self.later if item[0] > self.clock]
        self.undead = True
        for output in due:
            self.append(output)
        self.undead = False
        return bool(due)

    def entries(self, topic: str) -> Iterable[Entry]:
        """Every message inside of a topic, partition by partition."""
        for partition in range(self.count(topic)):
            yield from self._logs[topic, partition]

    def rows(self, topic: str, without: Collection[str] = ()) -> list[dict[str, Any]]:
        """Every row of a topic inside, partition by partition, all columns or all but some."""
        kept = [name for name in record_of(topic).schema.names if name not in without]
        return [row for entry in self.entries(topic) for row in entry.rows.select(kept).to_pylist()]

    def topics(self) -> list[str]:
        """The topics on which there is something."""
        return sorted({topic for (topic, _), log in self._logs.items() if log})


NO_ROWS = pa.RecordBatch.from_arrays([], schema=pa.schema([]))


def joined(outputs: Iterable[Output]) -> list[Output]:
    """Outputs as messages: those of one target joined, keyed ones alone, empty ones left out."""
    found: list[Output] = []
    groups: dict[tuple[str, int], list[pa.RecordBatch]] = {}
    for output in outputs:
        if output.key is not None:
            found.append(output)
        elif output.rows.num_rows:
            groups.setdefault((output.topic, output.partition), []).append(output.rows)
    for (topic, partition), parts in groups.items():
        rows = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
        found.append(Output(topic, rows, partition))
    return found
