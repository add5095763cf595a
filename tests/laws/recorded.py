"""The logs of one simulated run, crashes and all, as inputs for the laws: what every processor really reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa

from aos.streams.processor import Batch, Processor, Raw, Views
from aos.streams.simulated_log import NO_ROWS, World
from aos.streams.simulated_loop import SECRET
from aos.streams.topology import PROCESSORS, VIEWS
from tests.simulation.scene import QUOTAS, scene

SEED, REQUESTS = 11, 50
FETCH = 8  # raw records of one fetch of an edge


class Input(NamedTuple):
    """One call of a step."""

    batch: Batch
    now: int


class Recording(NamedTuple):
    """A world that was played, and the views in the middle of it: the fleet at its largest."""

    world: World
    views: Mapping[str, Any]

    def views_of(self, processor: Processor) -> Views:
        """What its step may look at."""
        found = {topic: self.views[topic] for topic in processor.views}
        return Views(self.world.settings, self.world.partitions, found, SECRET)

    def topics(self, processor: Processor) -> list[str]:
        """Its input topics, those of tenants too, on which something was said."""
        there = self.world.topics()
        return [t for name in processor.reads for t in there if t == name or t.startswith(name + ".")]

    def partitions(self, processor: Processor) -> range:
        """The partitions of its inputs."""
        return range(max(self.world.count(topic) for topic in self.topics(processor)))

    def inputs(self, processor: Processor, partition: int) -> list[Input]:
        """Its calls in one partition: topics merged by append time, each in the order of its log."""
        found = [
            (batch.raws[-1].appended_at if batch.raws else at, order, batch)
            for order, topic in enumerate(self.topics(processor))
            if partition < self.world.count(topic)
            for at, batch in self._batches(processor, topic, partition)
        ]
        found.sort(key=lambda item: (item[0], item[1], item[2].offset))
        now, calls = 0, []
        for at, _, batch in found:
            now = max(now, at)
            calls.append(Input(batch, now))
        return calls

    def all_inputs(self, processor: Processor) -> Iterator[Input]:
        """Those of all partitions."""
        for partition in self.partitions(processor):
            yield from self.inputs(processor, partition)

    def _batches(self, processor: Processor, topic: str, partition: int) -> Iterator[tuple[int, Batch]]:
        log = self.world.read(topic, partition)
        if not processor.edge:
            for offset, entry in enumerate(log):
                yield entry.appended_at, Batch(topic, partition, offset, entry.rows)
            return
        for first in range(0, len(log), FETCH):
            raws = [
                Raw(topic, partition, first + i, e.appended_at, e.key, e.value, e.headers)
                for i, e in enumerate(log[first : first + FETCH])
            ]
            yield raws[-1].appended_at, Batch(topic, partition, first, NO_ROWS, raws)


@cache
def recording() -> Recording:
    """Played once for all laws."""
    played = scene(SEED, REQUESTS, **QUOTAS)
    played.play()
    world = played.simulation.world
    views = {topic: view.empty() for topic, view in VIEWS.items()}
    for topic, view in VIEWS.items():
        for entry in world.read(topic, 0):
            views[topic] = view.apply(views[topic], entry.key or b"", entry.rows)
            if topic == "aos.agent-states" and views[topic].alive.sum() == _agents(played):
                break  # later they are stopped
    return Recording(world, views)


def _agents(played: Any) -> int:
    return sum(len(service.agents) for service in played.services)


def content(rows: pa.RecordBatch, without: frozenset[str] = frozenset()) -> list[tuple[Any, ...]]:
    """Rows as comparable tuples of (column, value)."""
    kept = [name for name in rows.schema.names if name not in without]
    columns = [[_plain(value) for value in rows.column(name).to_pylist()] for name in kept]
    return [tuple(zip(kept, values, strict=True)) for values in zip(*columns, strict=True)] if kept else []


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((name, _plain(part)) for name, part in value.items())
    return value.tobytes() if hasattr(value, "tobytes") else value


__all__ = ["PROCESSORS", "Input", "Recording", "content", "recording"]
