"""States of processors in a compacted topic: chunks, then a manifest that makes them count.

A state is written to slot 0 and 1 in turn. The manifest comes last, so a half-written slot never matches its
checksum and the other slot is used. Restore takes the valid manifest with the highest (generation, offset): a
fenced owner that still writes has a lower generation.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c
import msgspec
import pyarrow as pa

from aos.codecs.schemas import RECORDS
from aos.streams.shell.codec import SNAPSHOTS, Codec
from aos.streams.shell.fatal import log
from aos.streams.shell.producer import Message, Producer
from aos.streams.shell.reader import Reader

FORMAT = 1
CHUNK_BYTES = 512 * 1024
MANIFEST = -1
PARTITION = 0  # aos.snapshots has one partition: one scan finds everybody's manifests

Key = tuple[str, int, int]  # processor, partition, slot
Verdict = Callable[["Snapshot"], str | None]  # why a snapshot cannot be used, None when it was


def unjudged(snapshot: Snapshot) -> None:
    """For whoever wants the bytes alone."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a slot holds. `offsets`: next offset by input topic; `ids`: the topics they are offsets of;
    `now`: the state's clock; `due`: when it wants to be called; `journal`: next offset of its journal."""

    processor: str
    partition: int
    slot: int
    generation: int
    offsets: dict[str, int]
    ids: dict[str, str]
    now: int
    due: int | None
    journal: int
    parts: list[tuple[str, int]]
    size: int
    crc32c: int
    format: int = FORMAT

    @property
    def rank(self) -> tuple[int, int]:
        return self.generation, sum(self.offsets.values())


@dataclass(slots=True)
class Snapshot:
    """A state at rest: its bytes and what they are the state of."""

    manifest: Manifest
    body: bytes = field(repr=False)

    def batches(self) -> dict[str, pa.RecordBatch]:
        """The state's record batches by name, zero-copy."""
        found, position = {}, 0
        whole = pa.py_buffer(self.body)
        for name, size in self.manifest.parts:
            with pa.ipc.open_stream(whole.slice(position, size)) as reader:
                found[name] = reader.read_next_batch()
            position += size
        return found


def pack(batches: Mapping[str, pa.RecordBatch]) -> tuple[bytes, list[tuple[str, int]]]:
    """The bytes of a dumped state, and name and size of each part; the same batches give the same bytes."""
    parts: list[tuple[str, int]] = []
    sink, begun = io.BytesIO(), 0
    for name in sorted(batches):
        with pa.ipc.new_stream(sink, batches[name].schema) as writer:
            writer.write_batch(batches[name])
        parts.append((name, sink.tell() - begun))
        begun = sink.tell()
    return sink.getvalue(), parts


class Snapshots:
    """Writes and finds snapshots; one index a process, read on from where it ended last time."""

    def __init__(self, codec: Codec, producer: Producer, reader: Reader) -> None:
        self._codec = codec
        self._producer = producer
        self._reader = reader
        self._lock = asyncio.Lock()
        self._scanned = 0
        self._manifests: dict[Key, Manifest] = {}
        self._chunks: dict[tuple[str, int, int, int], int] = {}

    async def save(self, snapshot: Snapshot) -> None:
        """Write chunks, wait for their acks, then the manifest."""
        manifest, body = snapshot.manifest, snapshot.body
        pieces = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
        await self._producer.deliver([self._message(manifest, n, piece) for n, piece in enumerate(pieces)])
        text = json.dumps(asdict(manifest)).encode()
        await self._producer.deliver([self._message(manifest, MANIFEST, text)])

    async def load(
        self,
        processor: str,
        partition: int,
        ids: Mapping[str, str],
        refused: Verdict = unjudged,
        wanted: Callable[[Manifest], bool] = lambda manifest: True,
    ) -> Snapshot | None:
        """The newest valid one of the snapshots of these very topics that are `wanted` and that `refused` finds
        nothing against, or None."""
        async with self._lock:
            await self._scan()
            slots = self._slots(processor, partition)
            usable = [m for m in slots if m.format == FORMAT and _same(m.ids, ids) and wanted(m)]
            for manifest in sorted(usable, key=lambda m: m.rank, reverse=True):
                body = await self._body(manifest)
                if body is None or not _readable(found := Snapshot(manifest, body)):
                    why: str | None = "it is damaged"
                elif (why := refused(found)) is None:
                    return found
                place = f"{processor}/{partition}, slot {manifest.slot}"
                log.warning("AOS9002: snapshot of %s is refused: %s", place, why)
        return None

    def of_other_topics(self, processor: str, partition: int, ids: Mapping[str, str]) -> dict[str, str]:
        """Topics that were made anew since the newest snapshot, and their ids then; after a `load`."""
        newest = max(self._slots(processor, partition), key=lambda m: m.rank, default=None)
        if newest is None:
            return {}
        return {topic: id for topic, id in newest.ids.items() if id != ids.get(topic, id)}

    def _slots(self, processor: str, partition: int) -> list[Manifest]:
        """The manifests there are of a state."""
        found = [self._manifests.get((processor, partition, slot)) for slot in (0, 1)]
        return [manifest for manifest in found if manifest is not None]

    async def _body(self, manifest: Manifest) -> bytes | None:
        count = -(-manifest.size // CHUNK_BYTES)
        if count > len(self._chunks):
            return None
        keys = [(manifest.processor, manifest.partition, manifest.slot, n) for n in range(count)]
        offsets = [self._chunks.get(key) for key in keys]
        records = await self._reader.at(SNAPSHOTS, PARTITION, [o for o in offsets if o is not None])
        by_offset = {record.offset: record for record in records}
        try:
            body = b"".join(
                _body_of(self._codec, by_offset[offset], key)
                for key, offset in zip(keys, offsets, strict=True)
                if offset is not None
            )
        except Exception as error:  # any damage has the same answer: this slot does not count
            log.warning("AOS9002: %s", error)
            return None
        good = len(body) == manifest.size and google_crc32c.value(body) == manifest.crc32c
        return body if good else None

    async def _scan(self) -> None:
        end = (await self._reader.bounds([(SNAPSHOTS, PARTITION)]))[(SNAPSHOTS, PARTITION)][1]
        async for record in self._reader.read(SNAPSHOTS, PARTITION, self._scanned, end):
            try:
                processor, partition, slot, chunk = json.loads(record.key)
                if chunk != MANIFEST:
                    self._chunks[(processor, partition, slot, chunk)] = record.offset
                elif record.value is not None:
                    place = (processor, partition, slot)
                    text = _body_of(self._codec, record, (*place, MANIFEST))
                    self._manifests[place] = _manifest(text, place)
            except Exception as error:  # a foreign record must not stop a restore
                log.warning("AOS9002: offset %d of %s: %s", record.offset, SNAPSHOTS, error)
        self._scanned = max(self._scanned, end)

    def _message(self, manifest: Manifest, chunk: int, body: bytes) -> Message:
        schema = RECORDS["snapshot-chunk"].schema
        row = [manifest.processor, manifest.partition, manifest.slot, chunk, body]
        columns = [pa.array([value], item.type) for value, item in zip(row, schema, strict=True)]
        value, headers = self._codec.encode(SNAPSHOTS, pa.RecordBatch.from_arrays(columns, schema=schema))
        return Message(SNAPSHOTS, PARTITION, json.dumps(row[:4]).encode(), value, headers)


def _body_of(codec: Codec, record: Any, place: tuple[str, int, int, int]) -> bytes:
    """The bytes of one record; ValueError when they are those of another place than its key says."""
    (row,) = codec.decode(SNAPSHOTS, record.value, dict(record.headers)).to_pylist()
    if (row["processor"], row["partition"], row["slot"], row["chunk"]) != place:
        raise ValueError(f"the record of {place} is that of {row['processor']}/{row['partition']}")
    body: bytes = row["body"]
    return body


def _manifest(text: bytes, place: Key) -> Manifest:
    """The manifest in `text`; what is none, or another place's, raises, so that its slot keeps the one it had."""
    found = msgspec.json.decode(text, type=Manifest)
    if (found.processor, found.partition, found.slot) != place:
        raise ValueError(f"the manifest of {place} is that of {found.processor}/{found.partition}")
    sizes = [size for _, size in found.parts]
    if min(found.size, *sizes, 0) < 0 or sum(sizes) != found.size:
        raise ValueError(f"parts of {sum(sizes)} bytes in a state of {found.size}")
    return found


def _readable(snapshot: Snapshot) -> bool:
    """Whether its parts are what a dump writes: a checksum says only that they are what somebody wrote."""
    try:
        for rows in snapshot.batches().values():
            rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        log.warning("AOS9002: %r", error)
        return False
    return True


def _same(saved: Mapping[str, str], current: Mapping[str, str]) -> bool:
    """Whether the offsets still mean something: a topic that was made anew has another id."""
    return all(saved.get(topic) == id for topic, id in current.items())
