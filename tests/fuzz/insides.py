"""What AOS reads of itself: snapshots (their log as somebody else left it) and views.

A snapshot is restored as it was saved or not at all; a view leaves out what it cannot read, and goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import google_crc32c
import pyarrow as pa

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import record_of
from aos.streams import views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.options import Options
from aos.streams.shell.snapshots import Manifest, Snapshot, Snapshots, pack
from aos.streams.shell.views import ViewService
from tests.fuzz import mutate, oracle

if TYPE_CHECKING:
    from tests.fuzz.targets import Corpus, Message, Verdict

CODEC = WireCodec()
IDS = {"aos.ledger": "a"}
VIEW_TOPICS = tuple(views.VIEWS)


def drive(made: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        made.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Log:
    """The snapshots' topic: what was delivered, and how a reader sees it."""

    def __init__(self, records: Iterable[Any] = ()) -> None:
        self.records = list(records)

    async def deliver(self, messages: Iterable[Any]) -> list[int]:
        for one in messages:
            headers = list((one.headers or {}).items())
            self.records.append(
                SimpleNamespace(offset=len(self.records), key=one.key, value=one.value, headers=headers)
            )
        return []

    async def bounds(self, tps: Iterable[Any]) -> dict[Any, tuple[int, int]]:
        return {tp: (0, len(self.records)) for tp in tps}

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Any]:
        for record in self.records[start:end]:
            yield record

    async def at(self, topic: str, partition: int, offsets: Iterable[int]) -> list[Any]:
        return [self.records[offset] for offset in offsets]


def _saved(parts: dict[str, pa.RecordBatch], slot: int, offset: int) -> Snapshot:
    body, sizes = pack(parts)
    crc = google_crc32c.value(body)
    return Snapshot(
        Manifest("learn", 0, slot, 3, {"aos.ledger": offset}, IDS, 5, None, 0, sizes, len(body), crc), body
    )


def _snapshots(rng: Random, corpus: Corpus) -> list[Message]:
    """Two saved slots, one record of which was changed; the last message says what is right."""
    log = Log()
    writer: Any = Snapshots(CODEC, log, log)  # type: ignore[arg-type]
    good = []
    for slot, offset in ((0, 10), (1, 20)):
        name = rng.choice(sorted(corpus.batches))
        snapshot = _saved({"a": corpus.batches[name][0], "b": corpus.batches["release"][0]}, slot, offset)
        drive(writer.save(snapshot))
        good.append({"body": google_crc32c.value(snapshot.body), **dataclasses.asdict(snapshot.manifest)})
    messages = [(json.dumps(json.loads(one.key)), one.value, dict(one.headers)) for one in log.records]
    for place in rng.sample(range(len(messages)), rng.choice((1, 1, 2))):
        messages[place] = _changed(rng, *messages[place])
    return [*messages, ("good", json.dumps(good).encode(), {})]


def _changed(rng: Random, key: str, value: bytes, headers: dict[str, bytes]) -> Message:
    way = rng.randrange(6)
    if way == 0:
        return mutate.bytes_of(rng, key.encode()).decode("utf-8", "replace"), value, headers
    if way < 3:  # a bit flips on the way to or from the disk
        return key, mutate.bytes_of(rng, value), headers
    rows = wire.decode(value, {}, RECORDS["snapshot-chunk"])
    body = rows.column("body")[0].as_py()
    broken = (
        mutate.json_text(rng, body) if rng.random() < 0.7 and body[:1] == b"{" else mutate.bytes_of(rng, body)
    )
    rows = rows.set_column(4, rows.schema.field(4), pa.array([broken], rows.schema.field(4).type))
    value, headers = wire.encode(rows, RECORDS["snapshot-chunk"])
    return key, value, headers | {"forged": b"1"}


def _load(messages: Sequence[Message]) -> Verdict:
    good = json.loads(messages[-1][1])
    log = Log(
        SimpleNamespace(offset=offset, key=key.encode(), value=value, headers=list(headers.items()))
        for offset, (key, value, headers) in enumerate(messages[:-1])
    )
    found = drive(Snapshots(CODEC, log, log).load("learn", 0, IDS))  # type: ignore[arg-type]
    if found is None:
        return None
    batches = found.batches()
    wrong = [w for rows in batches.values() for w in _valid(rows)]
    if any("forged" in headers for _, _, headers in messages):
        return wrong  # who can write a snapshot's topic and its checksums says what is in it
    said = json.loads(
        json.dumps({"body": google_crc32c.value(found.body), **dataclasses.asdict(found.manifest)})
    )
    return wrong if said in good else [*wrong, "what was restored was never saved"]


def _valid(rows: pa.RecordBatch) -> list[str]:
    try:
        rows.validate(full=True)
    except oracle.UNREADABLE as error:
        return [str(error)[:100]]
    return []


def _view(rng: Random, corpus: Corpus) -> list[Message]:
    topic = rng.choice(VIEW_TOPICS)
    name = record_of(topic).name
    value, before = corpus.stream(rng, name)
    key = rng.choice(
        (b"", b"a", b"\xff", rng.randbytes(5), b'["a", 1]', b"a/b", "\u00e9".encode(), b"x" * 3_000)
    )
    return [
        (topic, value, mutate.headers_of(rng, value, name, before)),
        ("tombstone" if rng.random() < 0.1 else "key", key, {}),
    ]


def _apply(messages: Sequence[Message]) -> Verdict:
    (topic, value, headers), (kind, key, _) = messages
    service = ViewService(Options("nowhere:0"), CODEC, list(views.VIEWS.values()))
    record = SimpleNamespace(
        topic=topic, partition=0, offset=0, timestamp=0, key=key, value=None if kind == "tombstone" else value,
        headers=list(headers.items()),
    )  # fmt: skip
    service._apply(record)
    if not service.applied or kind == "tombstone":
        return None
    schema = record_of(topic).schema
    rows = CODEC.decode(topic, value, headers)
    wrong = oracle.headers(value, headers, record_of(topic).name, edge=False)
    return wrong + oracle.arrow(value, rows, {}, schema, edge=False)


def targets() -> list[Any]:
    """Snapshots and views."""
    from tests.fuzz.targets import Target

    return [Target("snapshots", 3, _snapshots, _load), Target("views", 3, _view, _apply)]
