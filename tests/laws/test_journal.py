"""The law of a journal: whatever dies, a decision that was written is adopted, and no agent has more than its slots.

A small world around allocate, the only journal: ready rows of a simulated run come in, agents finish after a while,
the owner dies anywhere, also between the journal and the ledger, and comes back from any snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from aos.codecs.rows import from_dicts
from aos.codecs.topics import LANES
from aos.streams.processor import Batch, Law, Processor, Step
from aos.streams.simulated_loop import stored
from aos.streams.topology import PROCESSORS
from tests.laws.recorded import Recording, recording

Row = dict[str, Any]
Key = tuple[bytes, int, int, int]
JOURNALS = [pytest.param(p, id=name) for name, p in PROCESSORS.items() if p.law is Law.JOURNAL]


def key_of(row: Mapping[str, Any]) -> Key:
    """The attempt a row is about."""
    return row["request_id"], row["round"], row["step"], row["attempt"]


class Owner:
    """A journal's log and inputs, what the ledger was told, and the owner that dies again and again."""

    def __init__(self, given: Recording, processor: Processor, partition: int, seed: int) -> None:
        self.given, self.processor, self.partition = given, processor, partition
        self.random = Random(seed)
        self.views = given.views_of(processor)
        self.log: list[Batch] = []  # the inputs in the order in which they are read
        self.journal: list[pa.RecordBatch] = []
        self.decided: dict[Key, Row] = {}
        self.told: dict[Key, Row] = {}
        self.free: list[Row] = []  # assigned and not yet finished
        self.at_work: Counter[str] = Counter()
        fleet = self.views["aos.agent-states"]
        self.limits = dict(zip(fleet.agents.tolist(), fleet.capacity.tolist(), strict=True))
        self.state = processor.initial(partition)
        self.position = 0
        self.saved: tuple[dict[str, pa.RecordBatch] | None, int, int] = (None, 0, 0)
        self.now = 1

    def read(self, batch: Batch) -> None:
        """One more message, at once."""
        self.log.append(batch)
        self.catch_up()

    def catch_up(self) -> None:
        """Read what is not read yet; the owner may die at any of it."""
        while self.position < len(self.log):
            batch = self.log[self.position]
            step = self._step(batch)
            if self.random.random() < 0.15:
                self._write(step, dying=True)
                self._restart()
                continue
            self._write(step)
            self.position += 1
            if self.random.random() < 0.2:
                assert self.processor.dump is not None
                parts = stored(self.processor.dump(self.state))
                self.saved = (_batches(parts), self.position, len(self.journal))

    def tick(self) -> None:
        """A call without rows: what was adopted is told again."""
        empty = self.log[0].rows.slice(0, 0)
        self._write(self._step(Batch(LANES[0], self.partition, -1, empty, tick=True)))

    def _step(self, batch: Batch) -> Step[Any]:
        self.now += 1000
        step = self.processor.step(self.state, batch, self.now, self.views, self.given.world.seed)
        self.state = step.state
        return step

    def _write(self, step: Step[Any], dying: bool = False) -> None:
        """The journal, then the ledger; who dies may do so before or between."""
        if dying and self.random.random() < 0.3:
            return
        for output in step.first:
            self.journal.append(output.rows)
            for row in output.rows.to_pylist():
                self._decide(row)
        if dying and self.random.random() < 0.6:
            return
        for output in step.outputs:
            for row in output.rows.to_pylist():
                decided = self.decided[key_of(row)]  # it stands in the journal before it is told
                assert (row["agent"], row["epoch"]) == (decided["agent"], decided["epoch"])
                if key_of(row) not in self.told:
                    self.told[key_of(row)] = row
                    self.free += [row] if row["kind"] == "assigned" else []

    def _decide(self, row: Row) -> None:
        """A decision stands in the journal: the only one of its attempt, and its agent had a free slot."""
        before = self.decided.setdefault(key_of(row), row)
        assert before["agent"] == row["agent"], "an attempt was decided twice"
        if before is row and row["kind"] == "assigned":
            self.at_work[row["agent"]] += 1
            limit = self.limits[row["agent"]]
            assert self.at_work[row["agent"]] <= limit, f"{row['agent']} has more than {limit}"

    def finish(self, row: Row) -> None:
        """An agent is done with what it was assigned."""
        self.at_work[row["agent"]] -= 1
        names = (
            "tenant",
            "request_id",
            "requested_at",
            "home",
            "domain",
            "round",
            "step",
            "attempt",
            "agent",
        )
        release = {name: row[name] for name in (*names, "cell", "epoch")} | {"reason": "ok"}
        self.read(Batch("aos.releases", self.partition, len(self.log), from_dicts("release", [release])))

    def _restart(self) -> None:
        parts, self.position, adopted = self.saved
        assert self.processor.load is not None
        assert self.processor.adopt is not None
        if parts is None:
            self.state = self.processor.initial(self.partition)
        else:
            self.state = self.processor.load(self.partition, parts)
        for offset in range(adopted, len(self.journal)):
            batch = Batch("aos.decisions", self.partition, offset, self.journal[offset])
            self.state = self.processor.adopt(self.state, batch)
        self.tick()


def _batches(parts: Mapping[str, bytes]) -> dict[str, pa.RecordBatch]:
    found = {}
    for name, value in parts.items():
        with pa.ipc.open_stream(value) as reader:
            found[name] = reader.read_next_batch()
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("processor", JOURNALS)
def test_whatever_dies_decisions_are_adopted_and_slots_hold(processor: Processor, seed: int) -> None:
    given = recording()
    for partition in given.partitions(processor):
        owner = Owner(given, processor, partition, seed)
        ready = [b for b, _ in given.inputs(processor, partition) if b.topic in LANES]
        wanted = {key_of(row) for batch in ready for row in batch.rows.to_pylist()}
        for batch in ready:
            owner.read(batch)
            while owner.free and owner.random.random() < 0.4:
                owner.finish(owner.free.pop(owner.random.randrange(len(owner.free))))
        for _ in range(4 * len(wanted)):
            owner.tick()
            if owner.free:
                owner.finish(owner.free.pop())
        assert set(owner.decided) == set(owner.told) == wanted, "an attempt waits for ever"
        assert not owner.state.load.attempts
        assert not any(slot.load for slot in owner.state.load.slots.values())
