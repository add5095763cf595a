"""How poison is sent and written down: each message is on disk before it leaves, then how its sending ended.

The list `poison.ndjson`, for the judge, two lines a message: `{"n", "state": "sent", "fault", "what", "topic", "must",
"size", "digest" (sha256 of the first 64 KiB), "readers", …}`, then `{"n", "state": "acknowledged", "partition",
"offset"}` or `{"n", "state": "refused", "error"}`. `must` is how it has to end:

letter    a dead letter of every reader, with code, place and bytes
refused   a dead letter, or a result of its `id` that is not ok and has a code
answered  a result of its `id` that is ok
again     more than one result row of its `id`: who asks again is answered again
Requests that can be read stand in a journal too (`journal-poison-*.ndjson`), under the laws of all others.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from aos.codecs.topics import base_of, tenant_of, tenant_topic
from aos.streams.topology import PROCESSORS
from tests.chaos.journal import ACKNOWLEDGED, REFUSED, Journal
from tests.chaos.observe import rss_bytes
from tests.chaos.stand import Stand

KEPT = 65_536  # bytes of the original that a dead letter keeps
READ_S = 120.0
SETTLE_S = 60.0
NEIGHBOURS = 8  # one good request behind so many bad messages
JSON = {"content-type": b"application/json"}
LETTER, MUST_REFUSE, ANSWERED, AGAIN, ENDED = "letter", "refused", "answered", "again", "ended"


@dataclass(frozen=True)
class Poison:
    """One message. `id`: of the request in it that can be read; `plain`: harmless to read for the judge too.

    `rows`: ids of the good requests beside the bad one in the same message, which must be answered.
    """

    what: str
    topic: str  # without prefix
    value: bytes | None
    must: str = LETTER
    headers: dict[str, bytes] = field(default_factory=dict)
    id: str | None = None
    plain: bool = False
    rows: tuple[str, ...] = ()
    expect: str | None = None


def readers(topic: str) -> list[str]:
    """Processors that read a topic message by message."""
    return [name for name, processor in PROCESSORS.items() if base_of(topic) in processor.reads]


def request_topic(tenant: str) -> str:
    return tenant_topic("aos.requests", tenant)


def stream(rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    """An IPC stream of rows."""
    batch = pa.RecordBatch.from_pylist(list(rows), schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value


class Poisoner:
    """Sends poison and good neighbours from one producer; use as a context manager."""

    def __init__(self, stand: Stand, fault: int, **config: Any) -> None:
        self.stand, self.fault = stand, fault
        self.prefix = stand.settings.prefix
        self.tenants = stand.settings.tenants
        self.name = f"poison{fault}-{time.time_ns() // 1_000_000 % 10**9}"  # a fault may run more than once
        self.journal = Journal(stand.folder / f"journal-{self.name}.ndjson")
        self._list = os.open(stand.folder / "poison.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._producer = Producer(self.config(**config))
        self._seqs: dict[str, int] = {}
        self.places: dict[tuple[str, int], int] = {}  # the last offset of ours in each partition
        self.counts: dict[str, int] = {}

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.stand.settings.bootstrap, "acks": "all", "enable.idempotence": True,
            "message.max.bytes": 100_000_000, "linger.ms": 5, "message.timeout.ms": int(SETTLE_S * 1000), **more,
        }  # fmt: skip

    def __enter__(self) -> Poisoner:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        os.close(self._list)

    # writing down

    def entry(self, tenant: str, id: str, expect: str | None) -> dict[str, Any]:
        """The journal's row of a request, numbered in the order of sending to its tenant."""
        seq = self._seqs[tenant] = self._seqs.get(tenant, -1) + 1
        return {"tenant": tenant, "key": self.name, "seq": seq, "id": id, "expect": expect}

    def told(self, lines: Iterable[dict[str, Any]]) -> None:
        """Write lines of the list, and wait for the disk."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        while text:
            text = text[os.write(self._list, text) :]
        os.fsync(self._list)

    def line(self, poison: Poison, **more: Any) -> dict[str, Any]:
        """The first line of a message."""
        value = poison.value or b""
        return {
            "n": f"{self.name}/{sum(self.counts.values())}", "state": "sent", "fault": self.fault, "what": poison.what,
            "topic": poison.topic, "must": poison.must, "size": len(value), "readers": readers(poison.topic),
            "digest": hashlib.sha256(value[:KEPT]).hexdigest(), "id": poison.id, "plain": poison.plain,
            "tenant": tenant_of(poison.topic, self.tenants), "packed": False, **more,
        }  # fmt: skip

    # sending

    def send(self, all_of: Sequence[Poison]) -> None:
        """Send in order; all on disk first; returns when each is acknowledged or refused (or said nothing)."""
        pairs: list[tuple[Poison, dict[str, Any] | None, list[dict[str, Any]]]] = []
        for poison in all_of:
            line = None
            if poison.must != ENDED:
                line = self.line(poison)
                self.counts[poison.what] = self.counts.get(poison.what, 0) + 1
            tenant = tenant_of(poison.topic, self.tenants) or ""
            ids = [(poison.id, poison.expect)] if poison.id is not None else []
            ids += [(id, f"TASK {id}".upper()) for id in poison.rows]
            pairs.append((poison, line, [self.entry(tenant, id, expect) for id, expect in ids]))
        self.told(line for _, line, _ in pairs if line is not None)
        self.journal.sent(entry for _, _, entries in pairs for entry in entries)
        for poison, line, entries in pairs:
            self._hand_over(poison, line, entries)
            self._producer.poll(0)
        self.flush()

    def neighbour(self, number: int, tenant: str) -> Poison:
        """A good request, which must be answered."""
        id = f"{self.name}-good-{number}"
        body = {"id": id, "text": f"task {id}", "require": ["shout"], "task_kind": "shout"}
        return Poison(
            "good", request_topic(tenant), json.dumps(body).encode(), ENDED, JSON, id,
            expect=f"task {id}".upper(),
        )  # fmt: skip

    def among_neighbours(self, all_of: Sequence[Poison], tenants: Sequence[str] | None = None) -> None:
        """Send with a good request in the same partition behind every few bad ones, and one behind the last."""
        mixed: list[Poison] = []
        for number, poison in enumerate(all_of):
            mixed.append(poison)
            if number % NEIGHBOURS == NEIGHBOURS - 1:
                tenant = tenant_of(poison.topic, self.tenants) or "default"
                mixed.append(self.neighbour(number, tenant))
        mixed += [self.neighbour(len(all_of) + n, tenant) for n, tenant in enumerate(self.tenants)]
        for first in range(0, len(mixed), 100):
            self.send(mixed[first : first + 100])

    def flush(self) -> None:
        """Wait for the ends of all sends and write them down."""
        self._producer.flush(SETTLE_S)
        self.journal.sync()

    def _hand_over(self, poison: Poison, line: dict[str, Any] | None, entries: list[dict[str, Any]]) -> None:
        def settled(error: Any, message: Any) -> None:
            for entry in entries:
                self.journal.settled(entry, REFUSED if error else ACKNOWLEDGED)
            if error is None:
                place = (poison.topic, message.partition())
                self.places[place] = max(message.offset(), self.places.get(place, -1))
            if line is not None:
                self.told([end_of(line, error, message)])

        try:
            self._producer.produce(
                self.prefix + poison.topic, poison.value, key=self.name, headers=poison.headers,
                on_delivery=settled,
            )  # fmt: skip
        except KafkaException as error:  # the library itself refuses: it never leaves
            settled(error.args[0], None)

    # looking

    def unread(self, limit_s: float = READ_S) -> list[str]:
        """Wait until every reader has committed past our messages; those that have not in time."""
        left = {
            (reader, topic, partition): offset
            for (topic, partition), offset in self.places.items()
            for reader in readers(topic)
        }
        consumers: dict[str, Consumer] = {}
        ends = time.monotonic() + limit_s
        try:
            while left and time.monotonic() < ends:
                for reader, topic, partition in list(left):
                    config = {
                        "bootstrap.servers": self.stand.settings.bootstrap,
                        "group.id": f"{self.prefix}aos.{reader}",
                    }
                    consumer = consumers.setdefault(reader, Consumer(config))
                    (said,) = consumer.committed([TopicPartition(self.prefix + topic, partition)], timeout=10)
                    if said.offset > left[reader, topic, partition]:
                        del left[reader, topic, partition]
                time.sleep(0.2)
        finally:
            for consumer in consumers.values():
                consumer.close()
        return [
            f"{reader} has not read {topic}/{partition} to {offset}"
            for (reader, topic, partition), offset in left.items()
        ]


def end_of(line: dict[str, Any], error: Any, message: Any) -> dict[str, Any]:
    """The second line of a message."""
    if error is not None:
        return {"n": line["n"], "state": "refused", "error": str(error)}
    return {
        "n": line["n"], "state": "acknowledged", "partition": message.partition(), "offset": message.offset()
    }  # fmt: skip


class Watch:
    """Memory and lives of all of AOS's processes while a fault holds; noted as `poisoned` for the judge."""

    def __init__(self, stand: Stand, fault: int) -> None:
        self._stand, self._fault = stand, fault
        self._pids = {name: pid for name in stand.processes() if (pid := stand.pid(name)) is not None}
        self._before = {}
        for name, pid in self._pids.items():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
            self._before[name] = rss_bytes(pid)
        self._restarts = self._lives()

    def _lives(self) -> dict[str, int]:
        return {name: self._stand.up.stack.children.restarts(name) for name in self._pids}

    def note(self) -> dict[str, int]:
        """Write what was seen; the rise of each process's memory in bytes."""
        rise = {name: peak(pid) - self._before[name] for name, pid in self._pids.items()}
        after = self._lives()
        died = {name: after[name] - before for name, before in self._restarts.items()}
        self._stand.note("poisoned", number=self._fault, rise=rise, restarts=died)
        return rise


def peak(pid: int) -> int:
    """The highest resident set since the last `clear_refs`, bytes; 0 when the process is gone (its death is noted)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def most(rise: dict[str, int]) -> str:
    """The largest rise in words."""
    name = max(rise, key=lambda one: rise[one])
    return f"memory rose by {max(0, rise[name]) >> 20} MiB at most ({name})"
