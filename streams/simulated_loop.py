"""The played shell: what `shell.loop` and `shell.runner` do with one partition of a processor, and its process.

A round: a tick if one is due, some steps, their outputs in three phases (dead letters, the journal, the rest), then
the inputs count as finished. Only what was finished is ever committed, only between rounds a snapshot is taken. A
process dies at any place of a round; what it had in the air of one phase may land in part, or late. Restored is as the
runner restores: rows from the commit; a fold from its snapshot, muted below the commit; journals and views from their
snapshot, said again, the journal adopted first, one tick before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aos.streams.dead_letters import DEAD_LETTERS
from aos.streams.live import in_force
from aos.streams.processor import Batch, Law, Output, Processor, Raw, Recall, Step, View, Views
from aos.streams.simulated_log import NO_ROWS, World, joined
from aos.streams.views import Refused

TICK_US_MIN = 5_000  # the shell's bounds: a state that is always due must not spin
MESSAGES_MAX = 6  # of one topic in one round
RAWS_MAX = 8  # of one topic in a round of an edge
LATE_US_MAX = 200_000  # how late what a dead process sent may land
DEATHS = ("before", "dead", "first", "rest", "after")


class Died(Exception):
    """The process was killed in the middle of a round."""


@dataclass(slots=True)
class Saved:
    """A snapshot: the state's batches as bytes (a dump may share memory with the state) and what they are of."""

    state: dict[str, bytes]
    positions: dict[str, int]
    journal: int
    now: int
    due: int | None

    def batches(self) -> dict[str, pa.RecordBatch]:
        """The state's batches."""
        found = {}
        for name, value in self.state.items():
            with pa.ipc.open_stream(value) as reader:
                found[name] = reader.read_next_batch()
        return found


def stored(state: Mapping[str, pa.RecordBatch]) -> dict[str, bytes]:
    """A dump as bytes."""
    found = {}
    for name, batch in state.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        found[name] = sink.getvalue().to_pybytes()
    return found


@dataclass
class Place:
    """What of one partition of a processor outlives its owners: committed offsets and the last snapshot."""

    processor: Processor
    partition: int
    commits: dict[str, int]
    saved: Saved | None = None


@dataclass
class _Said:
    """What a round wants to send."""

    dead: list[Output] = field(default_factory=list)
    first: list[Output] = field(default_factory=list)
    rest: list[Output] = field(default_factory=list)
    recalls: list[Recall] = field(default_factory=list)

    def add(self, step: Step[Any]) -> None:
        self.first += step.first
        self.recalls += step.recalls
        for output in step.outputs:
            (self.dead if output.topic == DEAD_LETTERS else self.rest).append(output)


class Loop:
    """One owner's life with a partition."""

    def __init__(
        self, world: World, place: Place, views: Mapping[str, Any], refused: Mapping[str, Refused]
    ) -> None:
        self.world = world
        self.place = place
        self.processor = place.processor
        self.partition = place.partition
        self._views, self._refused = views, refused
        self.finished = dict(place.commits)
        self.held: frozenset[str] = frozenset()
        self.due: int | None = None
        self.now = 0
        self._ticked_at = 0
        self._journal = 0
        self._restore()

    def _restore(self) -> None:
        processor, saved = self.processor, self.place.saved
        self.positions = dict(self.place.commits)
        self.greet = processor.law in (Law.JOURNAL, Law.VIEW)
        if processor.law is Law.ROW:
            self.state = processor.initial(self.partition)
        elif saved is None:
            self.state = processor.initial(self.partition)
            self.positions = dict.fromkeys(self.positions, 0)
        else:
            assert processor.load is not None, f"{processor.name} has dump but no load"
            self.state = processor.load(self.partition, saved.batches())
            self.positions = dict(saved.positions)
            self.now, self.due, self._journal = saved.now, saved.due, saved.journal
        # below this the outputs of a fold are muted
        fold = processor.law is Law.FOLD
        self.committed = {
            t: max(at, self.positions[t]) if fold else 0 for t, at in self.place.commits.items()
        }
        self.finished = {t: max(at, self.positions[t]) for t, at in self.place.commits.items()}
        if processor.journal and processor.adopt:
            log = self.world.read(processor.journal, self.partition)
            for offset in range(self._journal, len(log)):
                batch = Batch(processor.journal, self.partition, offset, log[offset].rows)
                self.state = processor.adopt(self.state, batch)
            self._journal = len(log)

    # what there is to do

    def waiting(self) -> list[str]:
        """Topics with something to read, in the order of `reads`."""
        read, partition = self.world.read, self.partition
        return [
            topic
            for topic, position in self.positions.items()
            if position < len(read(topic, partition)) and topic not in self.held
        ]

    def wants(self) -> bool:
        """Whether a round would do anything now."""
        return self._tick_due() or bool(self.waiting())

    def alarm(self) -> int | None:
        """When it wants to be called although nothing comes; None for never."""
        if self.greet:
            return self.world.clock
        return None if self.due is None else max(self.due, self._ticked_at + TICK_US_MIN)

    def _tick_due(self) -> bool:
        if any(at < self.committed[topic] for topic, at in self.positions.items()):
            return False
        at = self.alarm()
        return at is not None and at <= self.world.clock

    # a round

    def round(self, death: str | None = None) -> None:
        """Tick, steps, outputs, end; `Died` at the place `death` says."""
        said = _Said()
        topics = self.waiting()
        if self._tick_due() and not (topics and self.processor.law is Law.FOLD):
            self._tick(said)
        if self.processor.edge and topics:
            self._take_raws(topics, said)
        for topic in () if self.processor.edge else topics:
            self._take(topic, said)
        if death == "before":
            raise Died
        for recall in said.recalls:
            said.rest += self._recall(recall)
        for phase in ("dead", "first", "rest"):
            outputs = joined(getattr(said, phase))
            if death == phase:
                self._die_sending(outputs)
            for output in outputs:
                self.world.append(output)
            if phase == "first" and outputs and self.processor.journal:
                self._journal = len(self.world.read(self.processor.journal, self.partition))
        if death == "after":
            raise Died
        self.finished = {t: max(at, self.positions[t]) for t, at in self.finished.items()}

    def _die_sending(self, outputs: Sequence[Output]) -> None:
        """Of each target a part lands, in order; the rest is lost or comes late."""
        random = self.world.random
        late = self.world.chance(self.world.chances.late)
        at = self.world.clock + random.randint(1, LATE_US_MAX)
        targets: dict[tuple[str, int], list[Output]] = {}
        for output in outputs:
            targets.setdefault((output.topic, output.partition), []).append(output)
        for group in targets.values():
            landed = random.randint(0, len(group))
            for output in group[:landed]:
                self.world.append(output)
            if late:
                self.world.later += [(at, output) for output in group[landed:]]
        raise Died

    def _take(self, topic: str, said: _Said) -> None:
        log = self.world.read(topic, self.partition)
        for _ in range(self.world.random.randint(1, MESSAGES_MAX)):
            offset = self.positions[topic]
            if offset >= len(log) or topic in self.held:
                return
            entry = log[offset]
            self.now = max(self.now, entry.appended_at)
            batch = Batch(topic, self.partition, offset, entry.rows)
            self._step(batch, said, muted=offset < self.committed[topic])
            self.positions[topic] = offset + 1

    def _take_raws(self, topics: Sequence[str], said: _Said) -> None:
        raws: list[Raw] = []
        for topic in topics:
            log, first = self.world.read(topic, self.partition), self.positions[topic]
            entries = log[first : first + self.world.random.randint(1, RAWS_MAX)]
            raws += [
                Raw(topic, self.partition, first + i, e.appended_at, e.key, e.value, e.headers)
                for i, e in enumerate(entries)
            ]
            self.positions[topic] = first + len(entries)
        self.now = max(self.now, *(raw.appended_at for raw in raws))
        self._step(Batch(raws[0].topic, self.partition, raws[0].offset, NO_ROWS, raws), said)

    def _step(self, batch: Batch, said: _Said, muted: bool = False) -> None:
        result = self.processor.step(self.state, batch, self.now, self.views(), self.world.seed)
        self.state, self.due, self.held = result.state, result.next_due, result.paused
        if not muted:
            said.add(result)

    def _tick(self, said: _Said) -> None:
        """A fold's tick is a row of its own log, all others' is a call."""
        self._ticked_at, self.greet = self.world.clock, False
        topic = next(iter(self.positions))
        if self.processor.law is Law.FOLD:
            assert self.processor.tick is not None, f"{self.processor.name} is due but has no tick"
            said.rest.append(Output(topic, self.processor.tick(self.partition, self.now), self.partition))
            return
        self.now = max(self.now, self.world.clock)
        self._step(Batch(topic, self.partition, -1, NO_ROWS, tick=True), said)

    def _recall(self, recall: Recall) -> Sequence[Output]:
        assert self.processor.recall is not None
        topic = next(iter(self.positions))
        log = self.world.read(topic, recall.partition)
        found = [Batch(topic, recall.partition, offset, log[offset].rows) for offset in recall.offsets]
        return self.processor.recall(recall, found, self.views())

    def views(self) -> Views:
        """What a step may look at now."""
        found = {topic: self._views[topic] for topic in self.processor.views}
        given = Views(self.world.settings, self.world.partitions, found, SECRET, refused=self._refused)
        return in_force(self.processor, given)

    # between rounds

    def commit(self) -> None:
        """What was finished is committed."""
        self.place.commits = dict(self.finished)

    def save(self) -> None:
        """Take a snapshot, but not in the middle of a replay."""
        if self.processor.dump is None or any(
            at < self.committed[topic] for topic, at in self.positions.items()
        ):
            return
        state = stored(self.processor.dump(self.state))
        self.place.saved = Saved(state, dict(self.positions), self._journal, self.now, self.due)


SECRET = b"the secret of the simulation"


class Process:
    """A worker: its partitions and its own eyes on the views."""

    def __init__(self, world: World, places: Sequence[Place], views: Mapping[str, View]) -> None:
        self.world = world
        self.places = places
        wanted = {topic for place in places for topic in place.processor.views}
        self._views = {topic: view for topic, view in views.items() if topic in wanted}
        self.start()

    def start(self) -> None:
        """Read the views to their end, then take the partitions. A dead process comes back like this."""
        self.values = {topic: view.empty() for topic, view in self._views.items()}
        self.refused: dict[str, Refused] = {}
        self._seen = dict.fromkeys(self._views, 0)
        for topic in self._views:
            log = self.world.read(topic, 0)
            last = {entry.key: offset for offset, entry in enumerate(log)}
            for offset, entry in enumerate(log):  # compacted
                if last[entry.key] == offset:
                    self._apply(topic, entry.key, entry.rows)
            self._seen[topic] = len(log)
        self.loops = [Loop(self.world, place, self.values, self.refused) for place in self.places]

    def follow(self) -> bool:
        """Take in some of what is new in the views; whether there was any left."""
        behind = False
        for topic, seen in self._seen.items():
            log = self.world.read(topic, 0)
            while seen < len(log):
                behind = True
                if self.world.chance(self.world.chances.view_lag):
                    break
                self._apply(topic, log[seen].key, log[seen].rows)
                seen += 1
            self._seen[topic] = seen
        return behind

    def _apply(self, topic: str, key: bytes | None, rows: pa.RecordBatch) -> None:
        """As the view service: what a view does not take in is left out, and its key counts as refused."""
        refused = self.refused.setdefault(topic, Refused())
        try:
            self.values[topic] = self._views[topic].apply(self.values[topic], key or b"", rows)
        except ValueError:
            refused.add(key or b"")
        else:
            refused.mend(key or b"")

    def replace(self, loop: Loop, *, settled: bool) -> None:
        """A partition is taken away and given back; `settled`: after its round, with commit and snapshot."""
        if settled:
            loop.save()
            loop.commit()
        self.loops[self.loops.index(loop)] = Loop(self.world, loop.place, self.values, self.refused)
