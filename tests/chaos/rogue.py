"""A service of agents that misbehaves by order, in plain pyarrow and confluent-kafka: nothing of AOS is imported.

`rogue.py <name> <order.json>`; broker and prefix come from AOS_BOOTSTRAP and AOS_PREFIX. The order: `service`,
`agents`: rows of a registration, each with a `manner` besides; `refused`: registrations to send as they are;
`beat`: what each heartbeat says beside service and replica; `replica`; `group`: of the inbox's consumers; `tag`: is
put behind what an agent makes. Each answer that the broker has is one JSON line on stdout: label, request_id, step,
attempt, agent, as the answer said them.
"""

from __future__ import annotations

import heapq
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
from confluent_kafka import Consumer, Producer

Row = dict[str, Any]
BEAT_S = 1.0
SOON_S, LONG_AFTER_S = 0.3, 6.0  # after an attempt's time: while AOS waits, and when somebody else was asked
BEFORE_S = 0.5  # forged answers come so long before the right one
ANSWER = pa.schema([
    ("request_id", pa.binary(16)), ("home", pa.int32()), ("step", pa.int16()), ("attempt", pa.int16()),
    ("agent", pa.string()), ("epoch", pa.int64()), ("token", pa.binary(16)), ("status", pa.string()),
    ("replica", pa.string()), ("payload", pa.binary()), ("message", pa.string()), ("retryable", pa.bool_()),
])  # fmt: skip
ECHO = ("request_id", "home", "step", "attempt", "agent", "epoch", "token")


class Said(NamedTuple):
    """One answer: when (seconds from now), what is wrong with it (`right`: nothing), its row."""

    delay_s: float
    label: str
    row: Row


Manner = Callable[[Row, "Past"], list[Said]]


class Past:
    """What a liar needs: other requests it has seen, names of others, numbers that are nobody's."""

    def __init__(self, names: list[str], tag: str, seed: str) -> None:
        self.names, self.tag, self.random = names, tag, Random(seed)
        self.seen: list[bytes] = []

    def another(self, request_id: bytes) -> bytes:
        """Another task's id: one that was asked of this service, else one that was never sent."""
        others = [one for one in self.seen[-50:] if one != request_id]
        return self.random.choice(others) if others else self.random.randbytes(16)


def right(work: Row, past: Past) -> Row:
    made = f"{(work['text'] or '').upper()}{past.tag}".encode()
    return {**{name: work[name] for name in ECHO}, "status": "ok", "payload": made}


def good(work: Row, past: Past) -> list[Said]:
    return [Said(0.0, "right", right(work, past))]


def mute(work: Row, past: Past) -> list[Said]:
    return []


def fail(work: Row, past: Past) -> list[Said]:
    row = {
        **right(work, past),
        "status": "failed",
        "payload": None,
        "message": "I will not",
        "retryable": True,
    }
    return [Said(0.0, "right", row)]


def twice(work: Row, past: Past) -> list[Said]:
    """The right answer, then others to the same attempt, at once and a second later."""
    row = right(work, past)
    wrong = {**row, "payload": b"SECOND"}
    return [Said(0.0, "right", row), Said(0.0, "double", wrong), Said(1.0, "double", wrong)]


def late(work: Row, past: Past) -> list[Said]:
    """Answers when the attempt's time is over: while AOS waits to ask another, and after it has."""
    row, limit_s = {**right(work, past), "payload": b"LATE"}, work["timeout_ms"] / 1000
    return [Said(limit_s + SOON_S, "late", row), Said(limit_s + LONG_AFTER_S, "late", row)]


def forge(work: Row, past: Past) -> list[Said]:
    """Answers that claim what they may not, each wrong in one thing; then the right one."""
    row = right(work, past)
    lies = {
        "token": past.random.randbytes(16), "step": work["step"] + 1, "attempt": work["attempt"] + 1,
        "epoch": work["epoch"] + 1, "agent": past.random.choice([n for n in past.names if n != work["agent"]]),
        "request_id": past.another(work["request_id"]),
    }  # fmt: skip
    forged = [
        Said(0.0, f"forged {name}", {**row, name: lie, "payload": b"FORGED"}) for name, lie in lies.items()
    ]
    unknown = {**row, "request_id": past.random.randbytes(16), "payload": b"FORGED"}
    return [*forged, Said(0.0, "forged request", unknown), Said(BEFORE_S, "right", row)]


MANNERS: dict[str, Manner] = {
    "good": good, "mute": mute, "fail": fail, "twice": twice, "late": late, "forge": forge,
}  # fmt: skip


def stream(rows: list[Row]) -> bytes:
    """Answers as one Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ANSWER) as writer:
        writer.write_table(pa.Table.from_pylist(rows, ANSWER))
    return bytes(sink.getvalue())


class Rogue:
    """The service: one thread that reads, beats and answers when it is time."""

    def __init__(self, service: str, order: Row, bootstrap: str, prefix: str) -> None:
        self.service, self.order, self.prefix = service, order, prefix
        self.replica = order.get("replica", f"{service}-{os.getpid()}")
        self.manners = {row["agent"]: MANNERS[row["manner"]] for row in order["agents"]}
        self.past = Past([*self.manners, "nobody"], order.get("tag", ""), f"{service}/{self.replica}")
        self.waiting: list[tuple[float, int, Said]] = []
        self.number = 0
        self.stopping = False
        # one partition, in order: what is to come second comes second
        self.producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True})
        self.consumer = Consumer({
            "bootstrap.servers": bootstrap, "group.id": order.get("group", f"{prefix}rogue.{service}"),
            "auto.offset.reset": "earliest", "topic.metadata.refresh.interval.ms": 500,
        })  # fmt: skip

    def run(self) -> None:
        for row in [*self.order["agents"], *self.order.get("refused", [])]:
            told = {name: value for name, value in row.items() if name != "manner"}
            self.say_plain("aos.agents", {"service": self.service, **told})
        self.consumer.subscribe([f"{self.prefix}aos.inbox.{self.service}"])
        beat_at = 0.0
        try:
            while not self.stopping:
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + BEAT_S
                    self.beat()
                self.read()
                self.answer()
                self.producer.poll(0)
        finally:
            self.beat(stopping=True)
            self.producer.flush(10)
            self.consumer.close()

    def stop(self, *_: object) -> None:
        self.stopping = True

    def beat(self, **more: Any) -> None:
        row = {"service": self.service, "replica": self.replica, **self.order.get("beat", {}), **more}
        self.say_plain("aos.heartbeats", row)

    def say_plain(self, topic: str, row: Row) -> None:
        self.producer.produce(
            self.prefix + topic, json.dumps(row).encode(), headers={"content-type": "application/json"}
        )

    def read(self) -> None:
        """Take what is in the inbox, and plan the answers to it."""
        for message in self.consumer.consume(50, 0.05):
            if message.error():
                print(json.dumps({"error": str(message.error())}), file=sys.stderr, flush=True)
                continue
            for work in works(message.value()):
                self.past.seen.append(work["request_id"])
                for said in self.manners[work["agent"]](work, self.past):
                    self.number += 1
                    heapq.heappush(self.waiting, (time.monotonic() + said.delay_s, self.number, said))

    def answer(self) -> None:
        """Say what is due; what one label says goes in one message, what is right before what is wrong."""
        due: dict[str, list[Row]] = {}
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            said = heapq.heappop(self.waiting)[2]
            due.setdefault(said.label, []).append({**said.row, "replica": self.replica})
        for label, rows in sorted(due.items(), key=lambda item: item[0] != "right"):
            topic, delivered = f"{self.prefix}aos.outcomes", partial(tell, label, rows)
            self.producer.produce(topic, stream(rows), key=self.service, on_delivery=delivered)


def works(value: bytes) -> Iterator[Row]:
    """The work in an inbox message; withdrawals are not listened to."""
    with pa.ipc.open_stream(value) as reader:
        rows = reader.read_all().to_pylist()
    yield from (row for row in rows if row["kind"] == "work")


def tell(label: str, rows: list[Row], error: Any, _: Any) -> None:
    """One line for each answer that the broker has acknowledged."""
    if error is not None:
        print(json.dumps({"error": str(error)}), file=sys.stderr, flush=True)
        return
    for row in rows:
        place = {name: row[name] for name in ("step", "attempt", "agent")}
        print(json.dumps({"label": label, "request_id": row["request_id"].hex(), **place}), flush=True)


def main() -> int:
    order = json.loads(Path(sys.argv[2]).read_text())
    rogue = Rogue(order["service"], order, os.environ["AOS_BOOTSTRAP"], os.environ.get("AOS_PREFIX", ""))
    signal.signal(signal.SIGTERM, rogue.stop)
    rogue.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
