"""Kafka's record batches as clients pack them: all four codecs are read, bombs and damage become one notice."""

from __future__ import annotations

import struct
from typing import Any

import cramjam
import pytest
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.streams.shell import unpack

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MANY = unpack.BATCH_BYTES_MAX // 1000 + 10


def packed(compression: int, values: list[bytes], first: int = 0, headers: Any = ()) -> bytes:
    """A record batch as a producer sends it."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=0, batch_size=1 << 30,
    )  # fmt: skip
    for number, value in enumerate(values):
        builder.append(number, timestamp=5, key=b"k", value=value, headers=list(headers))
    return struct.pack(">q", first) + bytes(builder.build())[8:]


def read(data: bytes, start: int = 0) -> list[Any]:
    """What aiokafka's consumer hands over of a fetch."""
    return list(
        fetcher.PartitionRecords(
            TopicPartition("t", 0), MemoryRecords(data), [], start, None, None, True, fetcher.READ_UNCOMMITTED
        )
    )


@pytest.mark.parametrize("name", CODECS)
def test_each_codec_of_kafka_is_read(name: str) -> None:
    values = [b"", b"x" * 100_000, bytes(range(256)) * 40]
    found = read(packed(CODECS[name], values) + packed(0, [b"plain"], 3))
    assert [record.value for record in found] == [*values, b"plain"]
    assert [record.offset for record in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", CODECS)
def test_a_batch_that_is_a_bomb_is_one_notice_and_the_log_goes_on(name: str) -> None:
    bomb = packed(CODECS[name], [bytes(1000)] * MANY, 10)
    assert len(bomb) < 2_000_000
    notice, after = read(bomb + packed(0, [b"after"], 10 + MANY))
    assert (notice.offset, notice.value) == (10 + MANY - 1, b"")
    assert (after.offset, after.value) == (10 + MANY, b"after")
    with pytest.raises(RecordError, match="AOS1002"):
        wire.decode(notice.value, dict(notice.headers), RECORDS["request"])


def test_a_fetch_that_begins_inside_a_bomb_gets_its_notice_too() -> None:
    (notice,) = read(packed(4, [bytes(1000)] * MANY), start=500)
    assert notice.offset == MANY - 1


@pytest.mark.parametrize(
    "damaged",
    [
        lambda: unpack.gzip(b"\x1f\x8b\x08"),
        lambda: unpack.gzip(codec.gzip_encode(bytes(5000))[:-9]),
        lambda: unpack.gzip(b"no gzip"),
        lambda: unpack.lz4(b"\x04\x22\x4d\x18\xff\xff"),
        lambda: unpack.zstd(b"\x28\xb5\x2f\xfd\xff\xff\xff"),
        lambda: unpack.snappy(unpack.SNAPPY_BLOCKS + b"\xff\xff\xff\xff"),
        lambda: unpack.snappy(unpack.SNAPPY_BLOCKS + b"\x7f\xff\xff\xff"),
        lambda: unpack.snappy(b"\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_what_does_not_unpack_is_refused(damaged: Any) -> None:
    with pytest.raises(unpack.Refused):
        damaged()


def test_members_and_frames_that_follow_each_other_are_one() -> None:
    assert unpack.gzip(codec.gzip_encode(b"a") + codec.gzip_encode(b"b")) == b"ab"
    assert unpack.snappy(codec.snappy_encode(b"x" * 100_000)) == b"x" * 100_000
    assert unpack.snappy(bytes(cramjam.snappy.compress_raw(b"raw"))) == b"raw"


def test_a_snappy_block_that_declares_more_than_it_has_room_for_is_not_reserved() -> None:
    with pytest.raises(unpack.Refused, match="AOS1002"):
        unpack.snappy(b"\xff\xff\xff\xff\x0f" + b"x" * 8)


def test_a_header_whose_name_is_no_text_is_a_notice() -> None:
    """aiokafka's parser raises there; a worker would end, and again after each restart."""
    good = packed(0, [b"v"], headers=[("name", b"x")])
    batch = bytearray(good.replace(b"name", b"\xff\xff\xff\xff"))
    batch[17:21] = struct.pack(">I", _crc(bytes(batch[21:])))
    (notice,) = read(bytes(batch))
    with pytest.raises(RecordError, match="AOS1001"):
        wire.decode(notice.value, dict(notice.headers), RECORDS["request"])


def _crc(data: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(data))


def test_what_is_handed_over_at_once_is_bounded() -> None:
    data = b"".join(packed(4, [bytes(8_000_000)] * 2, 2 * n) for n in range(4))
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), MemoryRecords(data), [], 0, None, None, True, fetcher.READ_UNCOMMITTED
    )

    class State:
        paused, position = False, 0

        def consumed_to(self, offset: int) -> None:
            self.position = offset

    class Assignment:
        active, state = True, State()

        def state_value(self, tp: Any) -> State:
            return self.state

    result = fetcher.FetchResult(
        TopicPartition("t", 0), assignment=Assignment(), partition_records=records, backoff=0
    )
    portions = []
    while result.has_more():
        portions.append([record.offset for record in result.getall(500)])
    assert [offset for portion in portions for offset in portion] == list(range(8))
    assert max(map(len, portions)) == 3
