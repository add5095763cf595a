"""Which snapshot a partition begins with: the newest that is a state of it, whatever else stands in the topic."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import google_crc32c
import pyarrow as pa
import pytest
from faust.types import TP

from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.streams.processor import Processor, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.kit import Kit
from aos.streams.shell.metrics import Metrics
from aos.streams.shell.options import Options
from aos.streams.shell.runner import Runner
from aos.streams.shell.snapshots import Manifest, Snapshot, Snapshots, pack
from aos.streams.topology import PROCESSORS
from tests.fuzz.insides import Log, drive
from tests.laws.recorded import SEED, recording

CODEC = WireCodec()
END = 100  # of every input topic
STATEFUL = [processor for processor in PROCESSORS.values() if processor.dump is not None]
Batches = dict[str, pa.RecordBatch]


class Topics(Log):
    """The snapshots' topic, beside inputs that end at `END`."""

    async def bounds(self, tps: Any) -> dict[Any, tuple[int, int]]:
        return {
            tp: (0, len(self.records) if tp[0] == "aos.snapshots" else END if tp[0] in self.inputs else 0)
            for tp in tps
        }

    inputs: tuple[str, ...] = ()

    async def has(self, topic: str, partition: int) -> bool:
        return True


class Journal(Topics):
    """The records are allocate's journal; there is no snapshot."""

    async def bounds(self, tps: Any) -> dict[Any, tuple[int, int]]:
        ends = {"aos.decisions": len(self.records), "aos.snapshots": 0}
        return {tp: (0, ends.get(tp[0], END)) for tp in tps}


def save(log: Log, processor: Processor, slot: int, at: int, parts: Batches, partition: int = 0) -> None:
    body, sizes = pack(parts)
    offsets = dict.fromkeys(processor.reads, at)
    ids = {topic: f"id of {topic}" for topic in processor.reads}
    manifest = Manifest(
        processor.name, partition, slot, 3, offsets, ids, 5, None, 0, sizes, len(body), google_crc32c.value(body)
    )  # fmt: skip
    drive(Snapshots(CODEC, log, log).save(Snapshot(manifest, body)))  # type: ignore[arg-type]


def began_at(log: Topics, processor: Processor) -> int:
    """Where the runner begins to read the processor's first topic: 0 is the log from its beginning."""
    log.inputs = processor.reads
    options = Options("nowhere:0")
    kit = Kit(
        processor, options, CODEC, mock.Mock(), log, Views(), 7, mock.Mock(), Metrics(), lambda topic: 1 << 20
    )  # type: ignore[arg-type]  # fmt: skip
    ids = {topic: f"id of {topic}" for topic in processor.reads}
    runner = Runner(kit, processor.reads, Snapshots(CODEC, log, log), ids)  # type: ignore[arg-type]
    tps = [TP(topic, 0) for topic in processor.reads]
    loop = drive(runner._load(0, tps, dict.fromkeys(tps, END), 1))
    state = processor.dump(loop.state) if processor.dump is not None else {}
    assert {name: rows.schema for name, rows in state.items()} == schemas(processor, loop.state)
    return int(loop.inputs[processor.reads[0]].position)


def test_bytes_in_the_journal_that_are_no_decision_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """They ended allocate's worker, and again after each restart: whoever may write the journal could stop AOS."""
    decision = RECORDS["decision"]
    value, headers = wire.encode(make.empty("decision"), decision)
    log, adopted = Journal(), []
    for bad in (b"", b"\xff" * 64, value[:-20], value):
        log.records.append(
            SimpleNamespace(
                topic="aos.decisions", partition=0, offset=len(log.records), timestamp=5, key=None, value=bad,
                headers=list(headers.items()),
            )
        )  # fmt: skip
    processor = dataclasses.replace(
        PROCESSORS["allocate"], adopt=lambda state, batch: (adopted.append(batch.offset), state)[1]
    )
    began_at(log, processor)
    assert adopted == [3]
    assert caplog.text.count("is no decision") == 3


def schemas(processor: Processor, state: Any) -> Mapping[str, pa.Schema]:
    assert processor.dump is not None
    return {name: rows.schema for name, rows in processor.dump(state).items()}


def dumped(processor: Processor) -> Batches:
    assert processor.dump is not None
    return processor.dump(processor.initial(0))


def without_a_part(parts: Batches) -> Batches:
    return {name: parts[name] for name in sorted(parts)[1:]}


def without_a_column(parts: Batches) -> Batches:
    name = sorted(parts)[-1]
    return {**parts, name: parts[name].drop_columns(parts[name].schema.names[:1])}


def with_other_names(parts: Batches) -> Batches:
    return {
        name: rows.rename_columns([f"{one}_" for one in rows.schema.names]) for name, rows in parts.items()
    }


@pytest.mark.parametrize("processor", STATEFUL, ids=lambda one: one.name)
@pytest.mark.parametrize("spoil", [without_a_part, without_a_column, with_other_names])
def test_a_state_that_is_none_is_refused_for_the_one_before_it_or_the_log(
    processor: Processor, spoil: Callable[[Batches], Batches], caplog: pytest.LogCaptureFixture
) -> None:
    """Its checksums are right; it ended the worker, and again after each restart, or began with half a state."""
    log = Topics()
    save(log, processor, 0, 10, dumped(processor))
    save(log, processor, 1, 20, dumped(processor))
    assert began_at(log, processor) == 20
    save(log, processor, 1, 30, spoil(dumped(processor)))
    with caplog.at_level(logging.WARNING):
        assert began_at(log, processor) == 10
    assert f"AOS9002: snapshot of {processor.name}/0, slot 1 is refused: " in caplog.text
    save(log, processor, 0, 31, spoil(dumped(processor)))
    assert began_at(log, processor) == 0


def test_a_state_whose_load_raises_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The columns are right, what stands in them is not."""
    processor = PROCESSORS["allocate"]
    good = dumped(processor)
    clocks = good["clocks"].slice(0, 0)  # one a priority, always
    log = Topics()
    save(log, processor, 0, 10, good)
    save(log, processor, 1, 20, {**good, "meta": good["meta"].slice(0, 0), "clocks": clocks})
    with caplog.at_level(logging.WARNING):
        assert began_at(log, processor) == 10
    assert "slot 1 is refused: its state does not load: " in caplog.text


def test_a_snapshot_of_a_longer_log_is_refused_for_the_one_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log was all that was left then, although the one before it may be of this very log."""
    processor = PROCESSORS["learn"]
    log = Topics()
    save(log, processor, 0, 10, dumped(processor))
    save(log, processor, 1, END + 1, dumped(processor))
    with caplog.at_level(logging.WARNING):
        assert began_at(log, processor) == 10
    assert "it is of a longer log" in caplog.text


@pytest.mark.parametrize("deep", [False, True], ids=["by its key", "by key and row"])
def test_the_snapshot_of_another_partition_is_not_taken_for_this_ones(deep: bool) -> None:
    """A whole snapshot of partition 1, in which every checksum is right, under the keys of partition 0."""
    processor = PROCESSORS["learn"]
    log, other = Topics(), Log()
    save(log, processor, 0, 10, dumped(processor))
    save(other, processor, 1, 20, dumped(processor), partition=1)
    save(log, processor, 1, 20, dumped(processor), partition=1)  # it is there, where it belongs
    for record in other.records:
        key = json.loads(record.key)
        value, headers = record.value, record.headers
        if deep:
            rows = wire.decode(value, dict(headers), RECORDS["snapshot-chunk"])
            columns = dict(zip(rows.schema.names, rows.columns, strict=True)) | {"partition": [0]}
            value, said = wire.encode(
                make.from_columns("snapshot-chunk", 1, columns), RECORDS["snapshot-chunk"]
            )
            headers = list(said.items())
        name = json.dumps([key[0], 0, *key[2:]]).encode()
        log.records.append(SimpleNamespace(offset=len(log.records), key=name, value=value, headers=headers))
    assert began_at(log, processor) == 10


@pytest.mark.parametrize("processor", STATEFUL, ids=lambda one: one.name)
def test_all_states_of_a_processor_have_the_parts_and_columns_of_the_empty_one(processor: Processor) -> None:
    """A state at rest is known by them."""
    given = recording()
    for partition in given.partitions(processor):
        state = processor.initial(partition)
        for batch, now in given.inputs(processor, partition):
            state = processor.step(state, batch, now, given.views_of(processor), SEED).state
        assert schemas(processor, state) == schemas(processor, processor.initial(partition))
