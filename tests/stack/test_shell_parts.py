"""The shell's parts on the real broker: topics, snapshots, views.

What breaking the code showed is said where it is not in the test's name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toys import IN, ToyCodec, batch

from aos.codecs.errors import SettingsError
from aos.streams.processor import View
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Message, Producer, Undeliverable
from aos.streams.shell.reader import Reader
from aos.streams.shell.snapshots import CHUNK_BYTES, Manifest, Snapshot, Snapshots, pack
from aos.streams.shell.topics import Admin, TopicSpec, provision
from aos.streams.shell.views import ViewService

pytestmark = pytest.mark.stack
CODEC = ToyCodec()
SPECS = [
    TopicSpec("aos.snapshots", compacted=True),
    TopicSpec("toy.in", compacted=True, partitions=2),
    TopicSpec("toy.out", max_bytes=2000),
]


@pytest.fixture
async def options(bootstrap: str, topic_prefix: str) -> Options:
    found = Options(bootstrap, topic_prefix)
    await provision(found, SPECS)
    return found


@pytest.fixture
async def producer(options: Options) -> AsyncIterator[Producer]:
    found = Producer(options)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def reader(options: Options) -> AsyncIterator[Reader]:
    found = Reader(options)
    await found.start()
    yield found
    await found.stop()


async def test_topics_are_made_once_and_verified(options: Options) -> None:
    await provision(options, SPECS)  # again: nothing to do
    async with Admin(options) as admin:
        config = await admin.config("toy.in")
        ids = await admin.ids()
    assert (config["cleanup.policy"], config["message.timestamp.type"]) == ("compact", "LogAppendTime")
    assert ids["toy.in"][1] == 2
    assert len({id for id, _ in ids.values()}) == len(SPECS)
    wrong = [
        dataclasses.replace(SPECS[1], partitions=3),
        dataclasses.replace(SPECS[2], compacted=True, max_bytes=9000),
    ]
    with pytest.raises(SettingsError) as error:
        await provision(options, wrong)
    assert "3" in str(error.value)
    assert "cleanup.policy" in str(error.value)
    assert "max.message.bytes" in str(error.value)


async def test_topics_made_anew_have_another_id(options: Options) -> None:
    async with Admin(options) as admin:
        before = (await admin.ids())["toy.out"][0]
        await admin.delete(["toy.out"])
        for _ in range(50):
            if "toy.out" not in await admin.ids():
                break
            await asyncio.sleep(0.1)
    await provision(options, SPECS)
    async with Admin(options) as admin:
        assert (await admin.ids())["toy.out"][0] != before


async def test_producer_says_what_the_broker_refuses(options: Options, producer: Producer) -> None:
    def message(size: int) -> Message:
        return Message("toy.out", 0, None, b"x" * size, {})

    assert await producer.deliver([message(10), message(20)]) == [0, 1]
    with pytest.raises(Undeliverable, match=r"toy\.out"):
        await producer.deliver([message(10), message(5000)])
    with pytest.raises(Undeliverable):
        await producer.deliver([Message("toy.out", 7, None, b"no such partition", {})])


def snapshot(slot: int, generation: int, offset: int, size: int = 100, id: str = "a") -> Snapshot:
    rows = pa.record_batch({"s": [bytes([generation, offset % 256]) * (size // 2)]})
    body, parts = pack({"s": rows})
    manifest = Manifest(
        "toy", 3, slot, generation, {"toy.in": offset}, {"toy.in": id}, 5, None, 0, parts, len(body),
        google_crc32c.value(body),
    )  # fmt: skip
    return Snapshot(manifest, body)


def _size(found: Snapshot) -> int:
    return len(found.batches()["s"].column(0)[0].as_py())


async def test_snapshots_restore_the_newest_valid_one(
    options: Options, producer: Producer, reader: Reader
) -> None:
    """Without the checksum the damaged one is restored; without the generation the fenced owner's is."""

    async def load(id: str = "a") -> Any:
        found = await Snapshots(CODEC, producer, reader).load("toy", 3, {"toy.in": id})
        return found and (found.manifest.generation, found.manifest.offsets["toy.in"], _size(found))

    writer = Snapshots(CODEC, producer, reader)
    assert await load() is None
    large = 2 * CHUNK_BYTES + 50
    await writer.save(snapshot(0, 4, 10, large))
    assert await load() == (4, 10, large)
    await writer.save(snapshot(1, 4, 20))
    assert await load() == (4, 20, 100)
    await writer.save(snapshot(0, 3, 99))  # a fenced owner writes late
    assert await load() == (4, 20, 100)
    newest = snapshot(0, 5, 30)
    await writer.save(newest)
    assert await load() == (5, 30, 100)
    assert await load("b") is None  # the topic was made anew
    half = writer._message(newest.manifest, 0, b"overwritten and no manifest after it")
    await producer.deliver([half])
    assert await load() == (4, 20, 100)  # the other slot
    assert await Snapshots(CODEC, producer, reader).load("other", 3, {"toy.in": "a"}) is None


async def test_views_are_complete_at_the_start_and_follow(options: Options, producer: Producer) -> None:
    def apply(view: dict[bytes, int], key: bytes, rows: pa.RecordBatch | None) -> dict[bytes, int]:
        if rows is None:
            view.pop(key, None)
        else:
            view[key] = rows.column(0)[0].as_py()
        return view

    def message(key: bytes, id: int, partition: int = 0) -> Message:
        return Message("toy.in", partition, key, CODEC.encode("toy.in", batch(IN, [id], [0]))[0], {})

    await producer.deliver([message(b"%d" % n, n, n % 2) for n in range(500)])
    await producer.deliver([Message("toy.in", 0, b"bad", b"\xff\xff", {}), message(b"4", 44)])
    service = ViewService(options, CODEC, [View("toy.in", dict, apply)])
    await service.start()
    try:
        assert service.values["toy.in"] == {b"%d" % n: n if n != 4 else 44 for n in range(500)}
        await producer._producer.send_and_wait(options.prefix + "toy.in", None, key=b"4", partition=0)
        await producer.deliver([message(b"new", 1000, 1)])
        async with asyncio.timeout(10):
            while b"new" not in service.values["toy.in"] or b"4" in service.values["toy.in"]:
                await asyncio.sleep(0.02)
        assert service.staleness_s() < 5
    finally:
        await service.stop()


async def test_views_are_stale_when_the_broker_answers_no_more(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever believes the last known end of the log says for ever that nothing is missing."""
    service = ViewService(options, CODEC, [View("toy.in", dict, lambda view, key, rows: view)])
    await service.start()
    try:
        async with asyncio.timeout(10):
            while service.staleness_s() > 0.2:
                await asyncio.sleep(0.02)
        for _ in range(30):  # nothing is written: each answer says that this is all
            await asyncio.sleep(0.1)
            assert service.staleness_s() < 2
        client, asked = service._consumer._client, asyncio.Event()

        async def never(*_: Any, **__: Any) -> None:
            asked.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as away:
            away.setattr(client, "send", never)
            await asyncio.wait_for(asked.wait(), 10)
            await asyncio.sleep(2)
            assert service.staleness_s() > 1.8
    finally:
        await service.stop()
