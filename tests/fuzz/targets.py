"""What is attacked: each target makes an input from a seed and runs the product on it.

`run` returns sentences of what was accepted wrongly, or None when the product refused the input; anything but the
product's own refusal (RecordError, a dead letter) is a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa

from aos.codecs import json as objects
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS, record_of
from tests.fuzz import mutate, oracle
from tests.fuzz.seeds import EDGES, Seed

Message = tuple[str, bytes, dict[str, bytes]]  # topic, value, headers
Verdict = list[str] | None
NAMES = sorted(RECORDS)
EDGE_NAMES = sorted(EDGES)


class Target(NamedTuple):
    """One way into AOS. `share`: how often it is drawn."""

    name: str
    share: int
    make: Callable[[Random, Corpus], list[Message]]
    run: Callable[[Sequence[Message]], Verdict]


class Corpus:
    """Seeds, with the batches that are bent by their structure."""

    def __init__(self, seeds: dict[str, list[Seed]]) -> None:
        self.streams = {name: [one.value for one in found if not one.json] for name, found in seeds.items()}
        self.texts = {name: [one.value for one in found if one.json] for name, found in seeds.items()}
        self.batches = {
            name: [wire.decode(value, {}, RECORDS[name]) for value in found]
            for name, found in self.streams.items()
        }

    def stream(self, rng: Random, name: str) -> tuple[bytes, bytes]:
        """A hostile stream of a record, and what it was made of."""
        good = rng.choice(self.streams[name])
        way = rng.randrange(10)
        if way == 0:
            return good, good
        if way < 5:  # behind the schema: the quick way is taken
            first = len(RECORDS[name].schema_bytes) if way < 4 else 0
            return mutate.bytes_of(rng, good, first, rng.choice(self.streams[rng.choice(NAMES)])), good
        try:
            bent = mutate.arrow(rng, rng.choice(self.batches[name]))
        except (
            pa.ArrowException,
            ValueError,
            TypeError,
            NotImplementedError,
        ):  # pyarrow would not write that
            return mutate.bytes_of(rng, good), good
        return (mutate.bytes_of(rng, bent) if way == 9 else bent), good

    def text(self, rng: Random, name: str) -> bytes:
        """A hostile JSON object of a record."""
        good = rng.choice(self.texts[name])
        way = rng.randrange(10)
        if way == 0:
            return good
        return mutate.bytes_of(rng, good) if way < 4 else mutate.json_text(rng, good)


def _stream_of(names: Sequence[str]) -> Callable[[Random, Corpus], list[Message]]:
    def make(rng: Random, corpus: Corpus) -> list[Message]:
        name = rng.choice(names)
        value, before = corpus.stream(rng, name)
        return [(name, value, mutate.headers_of(rng, value, name, before))]

    return make


def _decode(
    read: Callable[[bytes, dict[str, bytes], str], pa.RecordBatch],
) -> Callable[[Sequence[Message]], Verdict]:
    def run(messages: Sequence[Message]) -> Verdict:
        ((name, value, headers),) = messages
        try:
            rows = read(value, headers, name)
        except RecordError:
            return None
        schema = RECORDS[name].schema
        return oracle.headers(value, headers, name, edge=False) + oracle.arrow(
            value, rows, {}, schema, edge=False
        )

    return run


def _by_topic(value: bytes, headers: dict[str, bytes], name: str) -> pa.RecordBatch:
    """As the shell reads a topic of this record, with numbers that are not finite refused."""
    from aos.streams.shell.codec import WireCodec

    topic = TOPIC_OF.get(name, "aos.inbox.x")
    assert record_of(topic).name == name
    return WireCodec().decode(topic, value, headers)


TOPIC_OF = {topic.record: topic.name for topic in TOPICS.values()}


def _rows(messages: Sequence[Message]) -> Verdict:
    ((name, value, headers),) = messages
    try:
        rows, bad = wire.decode_rows(value, headers, RECORDS[name])
    except RecordError:
        return None
    schema = RECORDS[name].schema
    return oracle.headers(value, headers, name, edge=True) + oracle.arrow(value, rows, bad, schema, edge=True)


def _many(rng: Random, corpus: Corpus) -> list[Message]:
    """Messages of one record, most of them good."""
    name, found = rng.choice(EDGE_NAMES), []
    for _ in range(rng.randrange(1, 5)):
        value = good = rng.choice(corpus.streams[name])
        if rng.random() < 0.4:
            first = len(RECORDS[name].schema_bytes)
            value = mutate.bytes_of(rng, good, first, rng.choice(corpus.streams[name]))
        found.append((name, value, mutate.headers_of(rng, value, name, good) if rng.random() < 0.3 else {}))
    return found


def _together(messages: Sequence[Message]) -> Verdict:
    name = messages[0][0]
    found = wire.decode_together([(value, headers) for _, value, headers in messages], RECORDS[name])
    if found is None:
        return None
    (rows, counts), wrong, at = found, [], 0
    for (_, value, headers), count in zip(messages, counts, strict=True):
        wrong += oracle.headers(value, headers, name, edge=True)
        wrong += oracle.arrow(value, rows.slice(at, count), {}, RECORDS[name].schema, edge=True)
        at += count
    return wrong if at == rows.num_rows else [*wrong, "rows of nobody"]


def _text(rng: Random, corpus: Corpus) -> list[Message]:
    name = rng.choice(EDGE_NAMES)
    return [(name, corpus.text(rng, name), {})]


def _json(messages: Sequence[Message]) -> Verdict:
    ((name, value, _),) = messages
    record = RECORDS[name]
    try:
        parsed, error = objects.parse_row(value, record)
        rows = objects.rows([parsed], record)
    except RecordError:
        return None
    objects.dumps(rows)
    lost = error.detail.partition(":")[0] if error is not None else None
    row = {field: _micros(rows, field) for field in rows.schema.names}
    return oracle.json_row(value, row, record.schema, lost) + oracle.fits(rows, record.schema)


def _micros(rows: pa.RecordBatch, name: str) -> Any:
    """A value as Python has it, times as microseconds: not each fits into a datetime."""
    column = rows.column(name)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()[0]


def targets() -> list[Target]:
    """All of them, in the order in which they are drawn."""
    from tests.fuzz import edges, insides

    return [
        Target("wire.decode", 15, _stream_of(NAMES), _decode(lambda v, h, n: wire.decode_by_name(v, h, n))),
        Target("shell.codec", 10, _stream_of(NAMES), _decode(_by_topic)),
        Target("wire.decode_rows", 15, _stream_of(EDGE_NAMES), _rows),
        Target("wire.decode_together", 12, _many, _together),
        Target("json", 18, _text, _json),
        *edges.targets(),
        *insides.targets(),
    ]
