"""The topic of snapshots as a shelf: what stands where, ways to damage it, and whether a fold's log makes it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import google_crc32c
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS, inbox, record_of
from aos.streams.processor import Batch, Processor, Views
from aos.streams.shell.snapshots import CHUNK_BYTES, MANIFEST, pack
from tests.chaos.looks import ends_of
from tests.chaos.stand import Stand

TOPIC = "aos.snapshots"
RECORD = RECORDS["snapshot-chunk"]
Key = tuple[str, int, int]  # processor, partition, slot


@dataclass(frozen=True)
class Saved:
    """One whole snapshot: what its manifest says, and its bytes in chunks."""

    manifest: Mapping[str, Any]
    chunks: tuple[bytes, ...]

    @property
    def rank(self) -> tuple[int, int]:
        return self.manifest["generation"], sum(self.manifest["offsets"].values())

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


@dataclass(frozen=True)
class Item:
    """One message for the topic."""

    key: bytes
    value: bytes
    headers: Mapping[str, bytes]


Damage = Callable[
    [Key, list[Saved], Saved, Random], list[Item]
]  # (place, its versions, another's newest, random)


def log_of(stand: Stand, topic: str, partition: int = 0, first: int = OFFSET_BEGINNING) -> Iterator[Any]:
    """Every message of a partition there is now, from `first` on."""
    real = stand.settings.prefix + topic
    consumer = Consumer({
        "bootstrap.servers": stand.settings.bootstrap, "group.id": "chaos-shelf", "enable.auto.commit": False,
    })  # fmt: skip
    try:
        low, high = ends_of(consumer, real, partition)
        low = max(low, first)
        consumer.assign([TopicPartition(real, partition, low)])
        while low < high:
            message = consumer.poll(10)
            if message is None:
                return  # the rest of the log is gone: compacted, or markers of transactions
            if message.error():
                raise OSError(str(message.error()))
            low = message.offset() + 1
            if message.offset() < high:
                yield message
    finally:
        consumer.close()


def end_of(stand: Stand, topic: str, partition: int = 0) -> int:
    """The next offset of a partition."""
    consumer = Consumer({"bootstrap.servers": stand.settings.bootstrap, "group.id": "chaos-shelf"})
    try:
        return ends_of(consumer, stand.settings.prefix + topic, partition)[1]
    finally:
        consumer.close()


def shelf(stand: Stand) -> dict[Key, list[Saved]]:
    """All versions of each slot whose bytes are those its manifest is about, the oldest first."""
    found: dict[Key, list[Saved]] = {}
    parts: dict[Key, dict[int, bytes]] = {}
    for message in log_of(stand, TOPIC):
        processor, partition, slot, chunk = json.loads(message.key())
        place = (processor, partition, slot)
        body = body_of(message.value())
        if chunk != MANIFEST:
            parts.setdefault(place, {})[chunk] = body
            continue
        manifest = json.loads(body)
        saved = Saved(manifest, _chunks(parts.get(place, {}), manifest["size"]))
        if google_crc32c.value(saved.body) == manifest["crc32c"]:
            found.setdefault(place, []).append(saved)
    return found


def _chunks(parts: Mapping[int, bytes], size: int) -> tuple[bytes, ...]:
    """The chunks a state of `size` bytes takes; of a larger one before it more may stand there."""
    taken: list[bytes] = []
    for number in sorted(parts):
        if sum(map(len, taken)) < size:
            taken.append(parts[number])
    return tuple(taken)


def body_of(value: bytes) -> bytes:
    body: bytes = wire.decode(value, {}, RECORD).column("body")[0].as_py()
    return body


def item(place: Key, chunk: int, body: bytes) -> Item:
    """A message as a worker would write it: all its checksums are right."""
    row = [*place, chunk, body]
    columns = [pa.array([value], field.type) for value, field in zip(row, RECORD.schema, strict=True)]
    value, headers = wire.encode(pa.RecordBatch.from_arrays(columns, schema=RECORD.schema), RECORD)
    return Item(json.dumps(row[:4]).encode(), value, headers)


def items(place: Key, saved: Saved) -> list[Item]:
    """A whole snapshot as messages."""
    chunks = [item(place, number, chunk) for number, chunk in enumerate(saved.chunks)]
    return [*chunks, item(place, MANIFEST, json.dumps(dict(saved.manifest)).encode())]


# ways to damage a slot: all but `old` must be refused; of those that say so, for that reason


def flip_on_the_disk(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """A bit of a message flips; the checksum in its headers tells."""
    good = items(place, versions[-1])[0]
    return [replace(good, value=flipped(good.value, random))]


def flip_in_memory(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """A bit of the state flips before it is written: only the manifest's checksum tells."""
    return [item(place, 0, flipped(versions[-1].chunks[0], random))]


def cut_short(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """The end of a chunk is missing."""
    chunk = versions[-1].chunks[0]
    return [item(place, 0, chunk[: random.randrange(len(chunk))])]


def half_written(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """A newer state was begun, and its manifest never written: the bytes are not those of the manifest there is."""
    return [item(place, 0, other.chunks[0])]


def of_another(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """Another's snapshot, whole, byte for byte, under the keys of this place."""
    theirs = (other.manifest["processor"], other.manifest["partition"], other.manifest["slot"])
    found = []
    for one in items(theirs, other):
        chunk = json.loads(one.key)[3]
        found.append(replace(one, key=json.dumps([*place, chunk]).encode()))
    return found


def of_another_release(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """Every checksum is right, and the state is none that this release can load: a column has another name."""
    saved = versions[-1]
    parts = batches_of(saved)
    name = random.choice(sorted(parts))
    parts[name] = parts[name].rename_columns([f"{one}_" for one in parts[name].schema.names])
    body, sizes = pack(parts)
    manifest = {**saved.manifest, "parts": sizes, "size": len(body), "crc32c": google_crc32c.value(body)}
    chunks = tuple(body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES))
    return items(place, Saved(manifest, chunks))


def old(place: Key, versions: list[Saved], other: Saved, random: Random) -> list[Item]:
    """What stood there long ago, whole: nothing is wrong with it, it is only less."""
    return items(place, versions[0])


DAMAGES: tuple[Damage, ...] = (
    flip_on_the_disk, flip_in_memory, cut_short, half_written, of_another, of_another_release, old,
)  # fmt: skip


def flipped(value: bytes, random: Random) -> bytes:
    """One bit is another."""
    place = random.randrange(len(value))
    return value[:place] + bytes([value[place] ^ 1 << random.randrange(8)]) + value[place + 1 :]


def batches_of(saved: Saved) -> dict[str, pa.RecordBatch]:
    found, at = {}, 0
    for name, size in saved.manifest["parts"]:
        with pa.ipc.open_stream(saved.body[at : at + size]) as reader:
            found[name] = reader.read_next_batch()
        at += size
    return found


def put(stand: Stand, written: list[Item]) -> None:
    """Write to the topic; OSError when the broker does not take all of it."""
    refused: list[Any] = []
    producer = Producer({
        "bootstrap.servers": stand.settings.bootstrap, "acks": "all", "message.max.bytes": 8 << 20,
    })  # fmt: skip
    for one in written:
        producer.produce(
            stand.settings.prefix + TOPIC, one.value, one.key, 0, headers=dict(one.headers),
            on_delivery=lambda error, _: refused.append(error) if error else None,
        )  # fmt: skip
    if producer.flush(30) or refused:
        raise OSError(f"{TOPIC} did not take the damage: {refused}")


def made_again(stand: Stand, processor: Processor, partition: int, before: Saved, saved: Saved) -> bool:
    """Whether a fold's state and what its log has from there on make the very bytes of a later snapshot."""
    (topic,) = processor.reads
    assert processor.load is not None
    assert processor.dump is not None
    state, now = processor.load(partition, batches_of(before)), before.manifest["now"]
    counts = dict.fromkeys(TOPICS, stand.settings.partitions)
    counts |= {name: 1 for name, one in TOPICS.items() if not one.spread}
    counts |= {inbox(name): stand.settings.inbox_partitions for name in stand.services}
    views = Views(stand.settings, counts, {}, stand.settings.secret.encode())
    for message in log_of(stand, topic, partition, before.manifest["offsets"][topic]):
        if message.offset() >= saved.manifest["offsets"][topic]:
            break
        now = max(now, message.timestamp()[1] * 1000)
        headers = dict(message.headers() or ())
        try:
            rows = wire.decode_by_name(message.value(), headers, record_of(topic).name)
        except RecordError:
            continue  # a dead letter, which no state has seen
        state = processor.step(state, Batch(topic, partition, message.offset(), rows), now, views, 0).state
    return pack(processor.dump(state))[0] == saved.body
