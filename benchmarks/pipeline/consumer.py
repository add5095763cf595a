"""The consumer as a program: reads all tenants' results, notes when each came, writes them to an Arrow file.

    python -m benchmarks.pipeline.consumer '{"bootstrap": …, "prefix": …, "folder": …, "total": …, "limit_s": …}'

It ends `LINGER_S` after the last result that was expected (so that a duplicate is seen), or at the limit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, TopicPartition

from aos.codecs.topics import tenant_topic
from benchmarks.pipeline.signals import report, say_ready, wait_go
from benchmarks.pipeline.workload import TENANTS

LINGER_S = 2.0
SETTINGS = {"enable.auto.commit": False, "fetch.min.bytes": 1, "fetch.wait.max.ms": 100}
KEPT = ("id", "request_id", "requested_at", "latency_us", "status", "attempts", "repeated")


def main(given: dict[str, Any]) -> None:
    folder = Path(given["folder"])
    reader = Reader(given["bootstrap"], given["prefix"])
    say_ready(folder, "consumer")
    ends = wait_go(folder) + given["limit_s"]
    while time.time() < ends:
        reader.read()
        if reader.rows >= given["total"]:
            ends = min(ends, time.time() + LINGER_S)
    reader.write(folder / "results.arrow")
    report(folder, "consumer", {"rows": reader.rows, "messages": reader.messages})


class Reader:
    """From the ends of all result topics on."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{prefix}bench", **SETTINGS})
        self._consumer.assign([place for tenant in TENANTS for place in self._ends(prefix, tenant)])
        self._consumer.consume(1, 0.5)  # connects and begins to fetch; nothing can be there yet
        self._found: list[pa.RecordBatch] = []
        self.rows = 0
        self.messages = 0

    def _ends(self, prefix: str, tenant: str) -> list[Any]:
        topic = prefix + tenant_topic("aos.results", tenant)
        partitions = self._consumer.list_topics(topic, 10).topics[topic].partitions
        places = [TopicPartition(topic, number) for number in partitions]
        for place in places:
            place.offset = self._consumer.get_watermark_offsets(place, 10, cached=False)[1]
        return places

    def read(self) -> None:
        """Take in what has come; the moment is the one at which librdkafka handed it over."""
        for message in self._consumer.consume(500, 0.05):
            if message.error():
                raise RuntimeError(message.error())
            now = int(time.time() * 1e6)
            with pa.ipc.open_stream(message.value()) as stream:
                rows = stream.read_all().select(KEPT).combine_chunks()
            arrived = pa.array([now] * len(rows), pa.int64())
            self._found += rows.append_column("arrived_us", arrived).to_batches()
            self.rows += len(rows)
            self.messages += 1

    def write(self, path: Path) -> None:
        """All rows, with the number of each request out of its id."""
        table = pa.Table.from_batches(self._found) if self._found else _none()
        number = pc.cast(pc.utf8_slice_codeunits(table.column("id"), -8), pa.int64())
        table = table.append_column("number", number)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


def _none() -> pa.Table:
    from aos.codecs.schemas import RECORDS

    fields = [RECORDS["result"].schema.field(name) for name in KEPT]
    return pa.schema([*fields, pa.field("arrived_us", pa.int64())]).empty_table()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
