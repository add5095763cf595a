"""The laws of design.md, section 4, over every processor by its class, on what a simulated run gave them to read.

New processors are found here by themselves: `PROCESSORS` is the only list.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from math import isclose
from random import Random
from typing import Any

import pytest

from aos.streams import store
from aos.streams.processor import Batch, Law, Output, Processor, Step
from aos.streams.simulated_loop import Saved, stored
from aos.streams.store_tables import TABLES
from aos.streams.topology import PROCESSORS, VIEWS
from tests.laws.recorded import Input, Recording, content, recording

ALL = [pytest.param(processor, id=name) for name, processor in PROCESSORS.items()]
EMPTY: frozenset[str] = frozenset()


IDENTITY = (
    "request_id",
    "round",
    "kind",
    "step",
    "match_round",
    "attempt",
    "agent",
    "offset",
    "row",
    "event_id",
    "finished_at",
)


def of(*laws: Law) -> list[Any]:
    """Parameters: the processors of these laws."""
    return [pytest.param(p, id=name) for name, p in PROCESSORS.items() if p.law in laws]


STATEFUL = of(Law.FOLD, Law.JOURNAL, Law.VIEW)
ROWS = of(Law.ROW)
FOLDS = of(Law.FOLD)

# what a duplicate may change, and why: nobody decides by these
COUNTED: dict[str, frozenset[str]] = {
    "supervise": frozenset({"ignored"}),  # how many answers came that count for nothing
}
# columns of a row's output that depend on the message it stood in, and why
OF_THE_MESSAGE: dict[str, frozenset[str]] = {
    "collect": frozenset({"sampled", "sample_share"}),  # the share follows the rate, and a message has one
    "encode": EMPTY,
}
# what stands together in one message, because it is decided together: rows equal in these columns
TOGETHER: dict[str, tuple[str, ...]] = {
    "compose": ("request_id", "round", "match_round"),  # a plan is for all steps of a request
    "match": ("request_id", "round", "match_round"),  # compose gets its message as match wrote it
}


def run(
    given: Recording,
    processor: Processor,
    inputs: Iterable[Input],
    state: Any,
    said: Callable[[Step[Any]], None],
) -> Any:
    """Step through inputs; what each step says goes to `said`; return the state."""
    views = given.views_of(processor)
    for batch, now in inputs:
        step = processor.step(state, batch, now, views, given.world.seed)
        state = step.state
        said(step)
    return state


def every(step: Step[Any]) -> list[Output]:
    """All outputs of a step, in the order in which they must be acknowledged."""
    return [*step.first, *step.outputs]


def saying(found: list[Any]) -> Callable[[Step[Any]], None]:
    """Write down all that a step says, as comparable values (of rows what they hold, not how Arrow keeps it)."""

    def listen(step: Step[Any]) -> None:
        outputs = [(o.topic, o.partition, o.key, content(o.rows)) for o in every(step)]
        found.append((outputs, step.next_due, step.paused))

    return listen


def row_set(outputs: Iterable[Output], without: frozenset[str] = EMPTY) -> list[Any]:
    """Rows with where they go, however they stand together: in the order of what they are about, repeats left out."""
    found: dict[str, Any] = {}
    for output in outputs:
        target = (output.topic, output.partition, output.key)
        for row in content(output.rows, without):
            about = [pair for pair in row if pair[0] in IDENTITY]
            found.setdefault(repr((target, about)), (target, row))
    return [row for _, row in sorted(found.items())]


def alike(one: Any, other: Any) -> bool:
    """Equal, but for the last bits of sums that a processor made in another order (matrix products)."""
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def bytes_of(processor: Processor, state: Any) -> dict[str, bytes]:
    assert processor.dump is not None
    return stored(processor.dump(state))


def reloaded(processor: Processor, partition: int, state: Any) -> Any:
    """The state as it comes back from a snapshot."""
    assert processor.load is not None
    return processor.load(partition, Saved(bytes_of(processor, state), {}, 0, 0, None).batches())


def cuts(count: int) -> list[int]:
    """Some places to cut a list at."""
    return sorted({1, count // 3, count // 2, count - 2} & set(range(1, count)))


# every processor


@pytest.mark.parametrize("processor", ALL)
def test_the_same_input_gives_the_same_output(processor: Processor) -> None:
    given = recording()
    for partition in given.partitions(processor):
        inputs = given.inputs(processor, partition)
        runs: list[list[Any]] = [[], []]
        for found in runs:
            run(given, processor, inputs, processor.initial(partition), saying(found))
        assert runs[0] == runs[1]
        assert runs[0], "nothing was recorded for this processor"


@pytest.mark.parametrize("processor", ALL)
def test_an_input_is_never_changed(processor: Processor) -> None:
    given = recording()
    for partition in given.partitions(processor):
        inputs = given.inputs(processor, partition)
        before = [stored({"rows": batch.rows}) for batch, _ in inputs]
        run(given, processor, inputs, processor.initial(partition), lambda step: None)
        assert [stored({"rows": batch.rows}) for batch, _ in inputs] == before


@pytest.mark.parametrize("processor", ALL)
def test_only_declared_topics_are_written_within_their_partitions(processor: Processor) -> None:
    given = recording()

    def check(step: Step[Any]) -> None:
        for output in every(step):
            allowed = processor.writes
            assert output.topic in allowed or output.topic.startswith(tuple(f"{name}." for name in allowed))
            assert 0 <= output.partition < given.world.count(output.topic)

    for partition in given.partitions(processor):
        run(given, processor, given.inputs(processor, partition), processor.initial(partition), check)


def test_no_processor_brings_in_a_client_of_the_broker_or_the_database() -> None:
    program = (
        "import sys; import aos.streams.topology; "
        "print(sorted({'faust', 'mode', 'aiokafka', 'psycopg'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# rows


@pytest.mark.parametrize("processor", ROWS)
def test_rows_do_not_depend_on_how_they_are_split_into_messages(processor: Processor) -> None:
    given = recording()
    without = OF_THE_MESSAGE.get(processor.name, EMPTY)
    random = Random(1)
    split = 0
    for batch, now in given.all_inputs(processor):
        whole = _rows_of(given, processor, [Input(batch, now)], without)
        parts = _raw_parts(batch, random) if processor.edge else _row_parts(processor, batch, random)
        split += len(parts) > 1
        split_rows = _rows_of(given, processor, [Input(part, now) for part in parts], without)
        assert alike(split_rows, whole)
    assert split > 3, "too little was split to prove anything"


def _rows_of(
    given: Recording, processor: Processor, inputs: list[Input], without: frozenset[str]
) -> list[Any]:
    found: list[Output] = []
    run(given, processor, inputs, processor.initial(0), lambda step: found.extend(every(step)))
    return row_set(found, without)


def _row_parts(processor: Processor, batch: Batch, random: Random) -> list[Batch]:
    """The rows of a message as several messages."""
    rows = batch.rows
    names = TOGETHER.get(processor.name)
    keys = list(zip(*(rows.column(n).to_pylist() for n in names), strict=True)) if names else []
    places = [at for at in range(1, rows.num_rows) if not keys or keys[at] != keys[at - 1]]
    ends = [0, *(at for at in places if random.random() < 0.5), rows.num_rows]
    return [
        Batch(batch.topic, batch.partition, batch.offset, rows.slice(start, end - start))
        for start, end in pairwise(ends)
    ]


def _raw_parts(batch: Batch, random: Random) -> list[Batch]:
    raws = list(batch.raws)
    ends = [0, *(at for at in range(1, len(raws)) if random.random() < 0.5), len(raws)]
    return [
        Batch(batch.topic, batch.partition, raws[start].offset, batch.rows, raws[start:end])
        for start, end in pairwise(ends)
    ]


# folds


@pytest.mark.parametrize("processor", FOLDS)
def test_the_same_log_gives_the_same_bytes(processor: Processor) -> None:
    given = recording()
    for partition in given.partitions(processor):
        inputs = given.inputs(processor, partition)
        ends = [
            run(given, processor, inputs, processor.initial(partition), lambda step: None) for _ in range(2)
        ]
        assert bytes_of(processor, ends[0]) == bytes_of(processor, ends[1])


@pytest.mark.parametrize("processor", FOLDS)
def test_a_message_that_comes_again_changes_no_state_and_says_only_what_was_said(
    processor: Processor,
) -> None:
    """The second time under the same offset: places in the log are part of the state, what is decided is not."""
    given = recording()
    views = given.views_of(processor)
    counted = COUNTED.get(processor.name, EMPTY)
    for partition in given.partitions(processor):
        once, twice = processor.initial(partition), processor.initial(partition)
        said: set[Any] = set()
        for batch, now in given.inputs(processor, partition):
            first = processor.step(once, batch, now, views, given.world.seed)
            again = [processor.step(twice, batch, now, views, given.world.seed) for _ in range(2)]
            once, twice = first.state, again[-1].state
            said |= _ids(every(first))
            assert _ids([output for step in again for output in every(step)]) <= said
            assert _state_rows(processor, twice, counted) == _state_rows(processor, once, counted)


def _ids(outputs: Iterable[Output]) -> set[Any]:
    """What outputs are about, without what they say of it; evidence of ignored answers is about nothing."""
    names = ("request_id", "round", "kind", "step", "attempt", "match_round", "agent", "epoch", "domain")
    found = set()
    for output in outputs:
        rows = output.rows
        columns = [rows.column(n).to_pylist() for n in names if n in rows.schema.names]
        for row in zip(*columns, strict=True):
            if "ignored" not in row:
                found.add((output.topic, output.key, row))
    return found


def _state_rows(processor: Processor, state: Any, without: frozenset[str]) -> dict[str, Any]:
    assert processor.dump is not None
    return {name: content(batch, without) for name, batch in processor.dump(state).items()}


# whatever has a state


@pytest.mark.parametrize("processor", of(Law.FOLD, Law.VIEW))
def test_a_snapshot_and_the_rest_of_the_log_are_the_whole(processor: Processor) -> None:
    given = recording()
    for partition in given.partitions(processor):
        inputs = given.inputs(processor, partition)
        whole: list[Any] = []
        end = run(given, processor, inputs, processor.initial(partition), saying(whole))
        for cut in cuts(len(inputs)):
            parts: list[Any] = []
            half = run(given, processor, inputs[:cut], processor.initial(partition), saying(parts))
            last = run(given, processor, inputs[cut:], reloaded(processor, partition, half), saying(parts))
            assert parts == whole
            assert bytes_of(processor, last) == bytes_of(processor, end)


@pytest.mark.parametrize("processor", STATEFUL)
def test_what_was_loaded_is_dumped_as_the_same_bytes(processor: Processor) -> None:
    given = recording()
    for partition in given.partitions(processor):
        inputs = given.inputs(processor, partition)
        for cut in cuts(len(inputs)):
            state = run(given, processor, inputs[:cut], processor.initial(partition), lambda step: None)
            again = bytes_of(processor, reloaded(processor, partition, state))
            assert again == bytes_of(processor, state)


# views


@pytest.mark.parametrize("topic", sorted(VIEWS))
def test_of_a_view_only_the_last_version_of_each_key_matters(topic: str) -> None:
    given = recording()
    log = given.world.read(topic, 0)
    view = VIEWS[topic]
    last = {entry.key: entry for entry in log}
    compacted = [entry for entry in log if last[entry.key] is entry]
    assert len(log) == 0 or all(entry.key for entry in log)

    def seen(entries: Iterable[Any], twice: bool = False) -> Any:
        value = view.empty()
        for entry in entries:
            for _ in range(1 + twice):
                value = view.apply(value, entry.key, entry.rows)
        return LOOKED_AT[topic](value)

    whole = seen(log)
    assert seen(compacted) == whole
    assert seen(log, twice=True) == whole
    assert seen([*log, *compacted]) == whole


def _fleet(fleet: Any) -> Any:
    names = (
        "services",
        "cells",
        "capacity",
        "replicas",
        "state",
        "alive",
        "gone",
        "cell_partition",
    )
    columns = [getattr(fleet, name).tolist() for name in names]
    rows = zip(fleet.agents.tolist(), fleet.known.tolist(), *columns, strict=True)
    return {row[0]: row[2:] for row in rows if row[1]}


def _beliefs(beliefs: Any) -> Any:
    tables = {
        key: (table.version, table.weights.tolist(), table.variances.tolist(), table.count.tolist())
        for key, table in beliefs.tables.items()
    }
    return tables, beliefs.versions, sorted(beliefs.centres)


LOOKED_AT: Mapping[str, Callable[[Any], Any]] = {
    "aos.agent-states": _fleet,
    "aos.beliefs": _beliefs,
    "aos.patterns": lambda patterns: (patterns.pairs, patterns.counts),
    "aos.strategies": lambda strategies: strategies,
    "aos.settings": lambda settings: (settings.values, settings.version),
    "aos.processors": lambda orders: orders.last,
}


# the sink


@pytest.mark.parametrize("processor", of(Law.SINK))
def test_a_replay_gives_the_sink_the_same_rows(processor: Processor) -> None:
    """Read once; read twice; read in bundles of any size: the same keys, and of each key the same row."""
    given = recording()
    inputs = list(given.all_inputs(processor))

    def tables(fed: list[Input]) -> dict[str, list[Any]]:
        state = run(given, processor, fed, processor.initial(0), lambda step: None)
        return {
            name: content(rows.combine_chunks().to_batches()[0]) for name, rows in store.take(state).items()
        }

    whole = tables(inputs)
    assert len(whole) > 5
    assert tables([*inputs, *inputs]) == whole
    for name, rows in whole.items():
        key = TABLES[name].key
        keys = [tuple(value for column, value in row if column in key) for row in rows]
        assert len(set(keys)) == len(keys), f"{name}: one key twice in a bundle"
    for cut in cuts(len(inputs)):
        first, second = tables(inputs[:cut]), tables(inputs[cut:])
        for name, rows in whole.items():
            assert set(rows) <= set(first.get(name, [])) | set(second.get(name, []))
