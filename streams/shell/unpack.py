"""Unpacks Kafka's record batches within bounds: a batch is what a client compressed, and may be a bomb.

aiokafka unpacks a whole batch in memory, whatever comes out (1 MiB of gzip: 1 GiB, of zstd: 30 GiB), and what it cannot
parse (a header's name that is no UTF-8) ends the consumer, again after each restart. Importing this module replaces
what it unpacks with. A batch that is too large or cannot be read becomes one record at the batch's last offset, which
says so in the header `wire.HEADER_REFUSED`: a dead letter, and the log goes on. A wrong CRC of a batch still ends the
consumer: that is the broker's damage, not a client's bytes.

bounds: `BATCH_BYTES_MAX` of one batch unpacked, `FETCH_BYTES_MAX` of what one partition hands over at once.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cramjam
from aiokafka.consumer import fetcher
from aiokafka.record import default_records, legacy_records

from aos.codecs.wire import HEADER_REFUSED
from aos.streams.shell.options import MIB

BATCH_BYTES_MAX = 16 * MIB  # twice the largest message; clients make batches of 16 KiB to 1 MiB
FETCH_BYTES_MAX = 16 * MIB
SNAPPY_BLOCKS = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"  # how the Java client frames snappy
CONTENT_TYPE = b"application/vnd.aos.refused"  # so that nobody takes it for JSON


class Refused(Exception):
    """A batch that is not handed over; the text begins with a code."""


def _too_large() -> Refused:
    return Refused(f"AOS1002 a record batch unpacks to more than {BATCH_BYTES_MAX} bytes")


def gzip(data: Any) -> bytes:
    """All members of a gzip file."""
    rest, pieces, room = bytes(data), [], BATCH_BYTES_MAX
    while rest.strip(b"\0"):
        member = zlib.decompressobj(31)
        try:
            pieces.append(member.decompress(rest, room + 1))
        except zlib.error as error:
            raise Refused(f"AOS1001 gzip: {error}") from error
        room -= len(pieces[-1])
        if room < 0:
            raise _too_large()
        if not member.eof:
            raise Refused("AOS1001 gzip: cut off")
        rest = member.unused_data
    return b"".join(pieces)


def _into(name: str, decompress: Callable[[Any, bytearray], int]) -> Callable[[Any], bytes]:
    def unpack(data: Any) -> bytes:
        room = bytearray(BATCH_BYTES_MAX)  # only what is written becomes memory
        try:
            size = decompress(bytes(data), room)
        except cramjam.DecompressionError as error:
            raise (
                _too_large() if "whole buffer" in str(error) else Refused(f"AOS1001 {name}: {error}")
            ) from error
        return bytes(memoryview(room)[:size])

    return unpack


lz4 = _into("lz4", cramjam.lz4.decompress_into)
zstd = _into("zstd", cramjam.zstd.decompress_into)


def snappy(data: Any) -> bytes:
    """One raw block, or the Java client's frames."""
    whole = bytes(data)
    if not whole.startswith(SNAPPY_BLOCKS):
        return _snappy_block(whole, BATCH_BYTES_MAX)
    pieces, room, at = [], BATCH_BYTES_MAX, len(SNAPPY_BLOCKS)
    while at < len(whole):
        size = int.from_bytes(whole[at : at + 4], "big", signed=True)
        if not 0 < size <= len(whole) - at - 4:
            raise Refused(f"AOS1001 snappy: a block of {size} bytes")
        pieces.append(_snappy_block(whole[at + 4 : at + 4 + size], room))
        room -= len(pieces[-1])
        at += 4 + size
    return b"".join(pieces)


def _snappy_block(data: bytes, room: int) -> bytes:
    try:
        if (
            cramjam.snappy.decompress_raw_len(data) > room
        ):  # declared, and reserved before anything is unpacked
            raise _too_large()
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise Refused(f"AOS1001 snappy: {error}") from error


class _Notice(NamedTuple):
    """The record that stands for a refused batch."""

    offset: int
    timestamp: int | None
    timestamp_type: int | None
    headers: list[tuple[str, bytes]]
    key: None = None
    value: bytes = b""
    checksum: None = None


class _Batch:
    """A batch that is read to its end, or to a notice."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        try:
            yield from batch
        except Exception as error:  # whatever a client packed must not end the consumer
            said = str(error) if isinstance(error, Refused) else f"AOS1001 a record batch: {error!r}"
            headers = [(HEADER_REFUSED, said[:300].encode()), ("content-type", CONTENT_TYPE)]
            last = getattr(batch, "next_offset", batch.base_offset + 1) - 1
            yield _Notice(last, _time_of(batch), batch.timestamp_type, headers)


def _time_of(batch: Any) -> int | None:
    found: int | None = getattr(batch, "max_timestamp", None)
    return found


class _Batches:
    """What `MemoryRecords` is to aiokafka's fetcher."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> _Batch:
        return _Batch(self._records.next_batch())


class BoundedRecords(fetcher.PartitionRecords):  # type: ignore[misc, unused-ignore]
    """Records of one fetch and partition; bad batches are notices among them."""

    def __init__(self, tp: Any, records: Any, *rest: Any) -> None:
        super().__init__(tp, _Batches(records), *rest)


class BoundedResult(fetcher.FetchResult):  # type: ignore[misc, unused-ignore]
    """The same, handed over in portions."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        found: list[Any] = []
        size = 0
        for record in self._partition_records:
            found.append(record)
            size += len(record.value or b"") + len(record.key or b"")
            if size >= FETCH_BYTES_MAX or (max_records is not None and len(found) >= max_records):
                self._update_position()
                break
        else:
            self._update_position()
            self._partition_records = None
        return found


def install() -> None:
    """Replace aiokafka's own, in whichever of its two implementations is in use."""
    bounded: dict[str, Callable[[Any], bytes]] = {
        "gzip_decode": gzip,
        "snappy_decode": snappy,
        "lz4_decode": lz4,
        "zstd_decode": zstd,
    }
    for kind in (default_records.DefaultRecordBatch, legacy_records.LegacyRecordBatch):
        module = sys.modules[kind.__module__]
        for name, unpack in bounded.items():
            if hasattr(module, name):
                setattr(module, name, unpack)
            elif not (name == "zstd_decode" and kind is legacy_records.LegacyRecordBatch):
                raise AttributeError(f"{kind.__module__} has no {name}: the pins changed")
    for name, bound in (("PartitionRecords", BoundedRecords), ("FetchResult", BoundedResult)):
        if not hasattr(fetcher, name):
            raise AttributeError(f"aiokafka's fetcher has no {name}: the pins changed")
        setattr(fetcher, name, bound)


install()
