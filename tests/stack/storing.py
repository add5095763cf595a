"""What the store's tests share: a migrated database, a sink on it, messages as the shell hands them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pytest

from aos.codecs.settings import Settings
from aos.infra.store import TimescaleSink
from aos.streams import store
from aos.streams.shell.sinks import Portion, SinkAway
from tests.unit.given_store import messages

PARTITIONS = [(topic, 0) for topic in store.READS]


def sink_on(url: str, born: str = "1", **settings: Any) -> TimescaleSink:
    """A sink whose topics were created as `born`."""

    async def ids() -> Mapping[str, str]:
        return {topic: f"{topic}:{born}" for topic in store.READS}

    return TimescaleSink(url, ids, Settings(**settings))


def portions(found: Iterable[tuple[str, int, pa.RecordBatch]]) -> list[Portion]:
    return [Portion(topic, 0, offset, rows, 1_763_640_000_000_000) for topic, offset, rows in found]


def bundles_of(logs: Mapping[str, list[dict[str, Any]]], size: int, each: int) -> list[list[Portion]]:
    """Messages of `size` rows, `each` messages a bundle, the topics one after the other."""
    whole = portions(messages(dict(logs), size))
    return [whole[index : index + each] for index in range(0, len(whole), each)]


async def write_all(url: str, bundles: Iterable[list[Portion]], **settings: Any) -> None:
    """Open, write, close."""
    sink = sink_on(url, **settings)
    try:
        await sink.open(PARTITIONS)
        for bundle in bundles:
            await sink.write(bundle)
    finally:
        await sink.close()


async def places(url: str) -> dict[tuple[str, int], int]:
    """What a new sink would read on from."""
    sink = sink_on(url)
    known = await sink.open(PARTITIONS)
    await sink.close()
    return known


async def write_as_the_runner_does(url: str, log: list[Portion], each: int, stop_after: int = 200) -> int:
    """Write a log to its end like the shell's runner: when the store is away drop the bundle, open again, read on
    from its offsets. How often it was away."""
    sink, away = sink_on(url), 0
    for _ in range(stop_after):
        try:
            known = await sink.open(PARTITIONS)
            while rest := [p for p in log if p.offset >= known[p.topic, p.partition]]:
                await sink.write(rest[:each])
                for p in rest[:each]:
                    known[p.topic, p.partition] = max(known[p.topic, p.partition], p.offset + 1)
            await sink.close()
            return away
        except SinkAway:
            away += 1
    pytest.fail("the log was not written to its end")
