"""The whole topology in memory: partitions as lists, a virtual clock, a seeded scheduler that crashes, repeats, delays.

The processors are the real ones; only broker, clock and delivery are played. What a crash does is what the shell
does: rows are done again from the commit, a fold goes back to its snapshot and is muted below the commit, a journal
reads its decisions first. The same seed gives the same run; a failure prints the seed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aos.codecs import rows as codec_rows
from aos.codecs import wire
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, record_of
from aos.streams.processor import Batch, Law, Output, Processor, Raw, Recall, View, Views

TICK_US = 50_000  # how far the clock jumps when nothing is left to do before the next due time


@dataclass(slots=True)
class Entry:
    """One message of the log."""

    rows: pa.RecordBatch
    appended_at: int
    key: bytes | None = None
    value: bytes = b""
    headers: Mapping[str, bytes] = field(default_factory=dict)


class Logs:
    """All topics. `append` stamps the virtual clock, as the broker does."""

    def __init__(self, partitions: Mapping[str, int], clock: Callable[[], int]) -> None:
        self._partitions = partitions
        self._clock = clock
        self._logs: dict[tuple[str, int], list[Entry]] = defaultdict(list)

    def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 1)

    def read(self, topic: str, partition: int) -> list[Entry]:
        """The live list of a partition; callers keep their own positions."""
        return self._logs[topic, partition]

    def append(self, output: Output) -> None:
        entry = Entry(output.rows, self._clock(), output.key)
        self._logs[output.topic, output.partition].append(entry)

    def append_edge(self, topic: str, partition: int, rows: pa.RecordBatch) -> None:
        """A message as an outsider writes it: bytes."""
        value, headers = wire.encode(rows, record_of(topic))
        self._logs[topic, partition].append(Entry(rows, self._clock(), None, value, headers))

    def all(self, topic: str) -> list[dict[str, Any]]:
        """Every row of a topic, partition by partition."""
        found: list[dict[str, Any]] = []
        for partition in range(self.partitions(topic)):
            for entry in self._logs[topic, partition]:
                found += entry.rows.to_pylist()
        return found


@dataclass
class Saved:
    """A snapshot: the state's batches, the inputs' positions, the journal's position."""

    state: dict[str, pa.RecordBatch] | None
    positions: dict[str, int]
    journal: int
    now: int


class Node:
    """One partition of one processor, with what the shell would keep for it."""

    def __init__(self, simulation: Simulation, processor: Processor, partition: int) -> None:
        self._sim = simulation
        self.processor = processor
        self.partition = partition
        self.inputs = [t for name in processor.reads for t in simulation.instances(name)]
        self.commits = dict.fromkeys(self.inputs, 0)
        self._saved = Saved(None, dict.fromkeys(self.inputs, 0), 0, 0)
        self.due: int | None = None
        self.paused: frozenset[str] = frozenset()
        self.start()

    def start(self) -> None:
        """What the shell does on assignment."""
        processor, saved = self.processor, self._saved
        if processor.law is Law.ROW or saved.state is None or processor.load is None:
            self.state = processor.initial(self.partition)
        else:
            self.state = processor.load(self.partition, saved.state)
        stateless = processor.dump is None
        self.positions = dict(self.commits if stateless else saved.positions)
        self.now = saved.now
        self.due, self.paused = None, frozenset()
        if processor.journal and processor.adopt:
            log = self._sim.logs.read(processor.journal, self.partition)
            for offset in range(saved.journal, len(log)):
                batch = Batch(processor.journal, self.partition, offset, log[offset].rows)
                self.state = processor.adopt(self.state, batch)

    def save(self) -> None:
        """Take a snapshot between two messages."""
        if self.processor.dump is None:
            return
        journal = self.processor.journal
        at = len(self._sim.logs.read(journal, self.partition)) if journal else 0
        self._saved = Saved(self.processor.dump(self.state), dict(self.positions), at, self.now)

    def ready(self) -> list[str]:
        """Topics with something to read."""
        return [
            topic
            for topic in self.inputs
            if topic not in self.paused
            and self.positions[topic] < len(self._sim.logs.read(topic, self.partition))
        ]

    def advance(self, topic: str, crash: str | None) -> None:
        """Read one message (an edge: some); `crash` says where it dies: before, between or after the outputs."""
        offset = self.positions[topic]
        log = self._sim.logs.read(topic, self.partition)
        count = self._sim.random.randint(1, min(8, len(log) - offset)) if self.processor.edge else 1
        entries = log[offset : offset + count]
        muted = self.processor.law is Law.FOLD and offset < self.commits[topic]
        self.now = max(self.now, *(entry.appended_at for entry in entries))
        batch = Batch(topic, self.partition, offset, entries[0].rows)
        if self.processor.edge:
            raws = [
                Raw(topic, self.partition, offset + i, e.appended_at, e.key, e.value, e.headers)
                for i, e in enumerate(entries)
            ]
            batch = Batch(topic, self.partition, offset, pa.RecordBatch.from_pylist([]), raws)
        outputs = self._step(batch, crash)
        if outputs is None:
            return self.start()
        self.positions[topic] = offset + count
        if not muted:
            sent = outputs if crash != "between" else outputs[: self._sim.random.randint(0, len(outputs))]
            for output in sent:
                self._sim.logs.append(output)
        if crash in ("between", "after"):
            return self.start()
        self.commits[topic] = max(self.commits[topic], self.positions[topic])
        return None

    def _step(self, batch: Batch, crash: str | None) -> list[Output] | None:
        if crash == "before":
            return None
        views = self._sim.views(self.processor)
        result = self.processor.step(self.state, batch, self.now, views, self._sim.salt)
        self.state, self.due, self.paused = result.state, result.next_due, result.paused
        for output in result.first:
            self._sim.logs.append(output)
        outputs = list(result.outputs)
        for recall in result.recalls:
            outputs += self._recall(recall, views)
        return outputs

    def _recall(self, recall: Recall, views: Views) -> list[Output]:
        assert self.processor.recall is not None
        topic = self.inputs[0]
        log = self._sim.logs.read(topic, recall.partition)
        found = [Batch(topic, recall.partition, offset, log[offset].rows) for offset in recall.offsets]
        return list(self.processor.recall(recall, found, views))

    def tick(self) -> None:
        """Something is due: a fold gets a row in its own log, the others are called."""
        self.due = None
        if self.processor.law is Law.FOLD:
            if self.processor.tick is not None:
                rows = self.processor.tick(self.partition, self._sim.clock)
                self._sim.logs.append(Output(self.inputs[0], rows, self.partition))
            return
        self.now = max(self.now, self._sim.clock)
        empty = codec_rows.empty(record_of(self.inputs[0]).name)
        outputs = self._step(Batch(self.inputs[0], self.partition, -1, empty, tick=True), None)
        for output in outputs or ():
            self._sim.logs.append(output)


@dataclass(frozen=True, slots=True)
class Chances:
    """How often what goes wrong (probabilities a scheduling step)."""

    crash: float = 0.02
    snapshot: float = 0.05
    view_lag: float = 0.5  # that a view does not take in the next message this time
    delay_us: int = 3_000


class Simulation:
    """Build, feed edges with `send`, call `run` until quiet, look at `logs`."""

    def __init__(
        self,
        processors: Mapping[str, Processor],
        views: Mapping[str, View],
        *,
        seed: int,
        settings: Settings | None = None,
        chances: Chances | None = None,
        actors: tuple[Callable[[Simulation], bool], ...] = (),
    ) -> None:
        """`actors` play agents and clients: called now and then, they return whether they did something."""
        self.random = random.Random(seed)
        self.seed = seed
        self.salt = seed
        self.settings = settings or Settings()
        self.chances = chances or Chances()
        self.clock = 1_700_000_000_000_000
        spread = self.settings.partitions
        counts = {name: spread if topic.spread else 1 for name, topic in TOPICS.items()}
        counts["aos.inbox"] = self.settings.inbox_partitions
        self.partition_counts = counts
        self.logs = Logs(_Inboxes(counts), lambda: self.clock)
        self._views = views
        self._folded = {topic: view.empty() for topic, view in views.items()}
        self._seen = dict.fromkeys(views, 0)
        self.actors = actors
        self.crashes = 0
        self.steps = 0
        self.nodes = [
            Node(self, processor, partition)
            for processor in processors.values()
            if processor.law is not Law.SINK
            for partition in range(max(counts.get(name, 1) for name in processor.reads))
        ]

    def instances(self, name: str) -> list[str]:
        """A topic and its tenants' own."""
        if not TOPICS[name].per_tenant:
            return [name]
        return [name, *(f"{name}.{tenant}" for tenant in self.settings.tenants if tenant != "default")]

    def views(self, processor: Processor) -> Views:
        """What a step of `processor` may look at now."""
        found = {topic: self._folded[topic] for topic in processor.views}
        return Views(self.settings, self.partition_counts, found, b"secret of the simulation")

    def send(self, topic: str, rows: pa.RecordBatch, partition: int | None = None) -> None:
        """A message from outside, to a random partition unless one is given."""
        if partition is None:
            partition = self.random.randrange(self.logs.partitions(topic))
        self.logs.append_edge(topic, partition, rows)

    def run(self, *, steps_max: int = 200_000, until: Callable[[], bool] | None = None) -> None:
        """Schedule until nothing is left to do (or `until` holds)."""
        for _ in range(steps_max):
            self.steps += 1
            self.clock += self.random.randint(1, self.chances.delay_us)
            if until is not None and until():
                return
            self._follow_views()
            busy = any([actor(self) for actor in self.actors])
            busy = self._advance_one() or busy
            if not busy and not self._next_due(until is not None):
                return
        raise AssertionError(f"seed {self.seed}: still busy after {steps_max} steps")

    def _advance_one(self) -> bool:
        runnable = [(node, topic) for node in self.nodes for topic in node.ready()]
        for node in self.nodes:
            if node.due is not None and node.due <= self.clock:
                node.tick()
        if not runnable:
            return False
        node, topic = self.random.choice(runnable)
        crash = None
        if self.random.random() < self.chances.crash:
            crash = self.random.choice(["before", "between", "after"])
            self.crashes += 1
        node.advance(topic, crash)
        if self.random.random() < self.chances.snapshot:
            node.save()
        return True

    def _next_due(self, waiting: bool) -> bool:
        """Jump to the next due time; False when there is none."""
        dues = [node.due for node in self.nodes if node.due is not None]
        if dues or waiting:
            self.clock = max(self.clock + TICK_US, min(dues, default=0))
        return bool(dues) or waiting

    def _follow_views(self) -> None:
        for topic, view in self._views.items():
            log = self.logs.read(topic, 0)
            while self._seen[topic] < len(log) and self.random.random() >= self.chances.view_lag:
                entry = log[self._seen[topic]]
                rows = entry.rows if entry.rows.num_rows else None
                folded = view.apply(self._folded[topic], entry.key or b"", rows)
                if folded is not None:
                    self._folded[topic] = folded
                self._seen[topic] += 1


class _Inboxes(dict[str, int]):
    """Partition counts in which every service's inbox and every tenant's topic is known."""

    def get(self, name: str, default: int = 1) -> int:  # type: ignore[override]
        if name.startswith("aos.inbox."):
            return self["aos.inbox"]
        for base in ("aos.requests", "aos.results", "aos.feedback", "aos.observations"):
            if name.startswith(base + "."):
                return self[base]
        return super().get(name, default)
