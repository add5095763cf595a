"""What faults of agents do beside the load: start rogues, send them requests in a journal, read what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from aos.codecs.topics import TOPICS
from tests.chaos.journal import ACKNOWLEDGED, Journal
from tests.chaos.judge_read import rows_of
from tests.chaos.looks import ends_of, send_plain
from tests.chaos.stand import Stand

ROGUE = Path(__file__).with_name("rogue.py")
KNOWN_S = 30.0
STOP_S = 20.0
LEDGER = ("kind", "id", "request_id", "step", "attempt", "agent", "service", "status", "code")
RESULT = ("id", "request_id", "status", "code", "payload", "attempts", "agents")
Row = dict[str, Any]
Failed = list[tuple[str, str]]
END_S = 300.0


def agent(name: str, manner: str, capability: str, **more: Any) -> Row:
    """A registration with a manner."""
    return {"agent": name, "manner": manner, "capabilities": [capability], "capacity": 64, **more}


class Tail:
    """Rows of a topic that were appended from a moment on; `_at` is the append time in seconds."""

    def __init__(self, stand: Stand, topic: str, columns: Sequence[str], since: float) -> None:
        self.topic, self.columns = stand.settings.prefix + topic, columns
        self.rows: list[Row] = []
        self._consumer = Consumer({"bootstrap.servers": stand.settings.bootstrap, "group.id": "chaos-tail"})
        self._count = stand.settings.partitions if TOPICS[topic].spread else 1
        asked = [TopicPartition(self.topic, number, int(since * 1000)) for number in range(self._count)]
        places = self._consumer.offsets_for_times(asked, timeout=20)
        for place in places:
            if place.offset < 0:
                place.offset = OFFSET_END
        self._next = {place.partition: place.offset for place in places}
        self._consumer.assign(places)

    def read(self) -> list[Row]:
        """All rows until now."""
        for number, offset in self._next.items():
            if offset == OFFSET_END:
                self._next[number] = ends_of(self._consumer, self.topic, number)[1]
                self._consumer.seek(TopicPartition(self.topic, number, self._next[number]))
        ends = {number: ends_of(self._consumer, self.topic, number)[1] for number in range(self._count)}
        until = time.monotonic() + STOP_S
        while any(self._next[number] < end for number, end in ends.items()):
            found = self._consumer.consume(500, 0.2)
            if found:
                until = time.monotonic() + STOP_S
            elif time.monotonic() > until:
                raise TimeoutError(f"{self.topic} cannot be read to its end: {self._next} of {ends}")
            for message in found:
                if message.error():
                    raise OSError(f"{self.topic}: {message.error()}")
                self._next[message.partition()] = message.offset() + 1
                at = message.timestamp()[1] / 1000
                if message.value():
                    self.rows += [{**row, "_at": at} for row in rows_of(message.value(), self.columns)]
        return self.rows

    def until(self, holds: Callable[[list[Row]], bool], limit_s: float) -> bool:
        """Read until it holds; False when it does not in time."""
        ends = time.monotonic() + limit_s
        while not holds(self.read()):
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        return True

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def tails(stand: Stand, since: float, **columns: Sequence[str]) -> Iterator[dict[str, Tail]]:
    """Tails of `aos.<name>` topics by name (underscores stand for hyphens)."""
    found: dict[str, Tail] = {}
    try:
        for name, wanted in columns.items():
            found[name] = Tail(stand, f"aos.{name.replace('_', '-')}", wanted, since)
        yield found
    finally:
        for tail in found.values():
            tail.close()


@contextmanager
def rogue(stand: Stand, name: str, agents: list[Row], *, waits: bool = True, **order: Any) -> Iterator[None]:
    """A rogue process `service-<name>` (its service: `name`, unless the order says another) until the end.

    With `waits` it is known to the fleet from the beginning; TimeoutError when it never is.
    """
    began = time.time()
    path = stand.folder / f"order-{name}.json"
    path.write_text(json.dumps({"service": name, **order, "agents": agents}))
    stand.start_service(name, ROGUE, str(path))
    service = order.get("service", name)
    try:
        if waits:
            known(stand, began, {(service, row["agent"]) for row in agents})
        yield
    finally:
        stand.up.stack.children.stop(f"service-{name}", STOP_S)
        withdraw(stand, service, agents)


def known(stand: Stand, since: float, wanted: Collection[tuple[str, str]]) -> None:
    """Wait until the fleet's view has these (service, agent)."""
    with tails(stand, since, agent_states=("service", "agent")) as tail:
        states = tail["agent_states"]
        if not states.until(lambda rows: set(wanted) <= {(r["service"], r["agent"]) for r in rows}, KNOWN_S):
            raise TimeoutError(f"{sorted(wanted)} are not known to the fleet")


def withdraw(stand: Stand, service: str, agents: Iterable[Row]) -> None:
    """Take agents out of the fleet for good."""
    for row in agents:
        gone = {"service": service, "agent": row["agent"], "capabilities": [], "removed": True}
        send_plain(stand, "aos.agents", gone)


def said(stand: Stand, name: str) -> list[Row]:
    """What a rogue has answered, as far as the broker had it."""
    lines = stand.log_of(f"service-{name}").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"label"')]


def ask(stand: Stand, name: str, wanted: Sequence[tuple[Row, str | None]]) -> list[str]:
    """Send requests of the tenant default, each with the payload of its result where that is foretold; their ids.

    They stand in a journal of their own, so that the judge holds AOS to them as to the load's.
    """
    journal = Journal(stand.folder / f"journal-{name}.ndjson")
    producer = Producer({
        "bootstrap.servers": stand.settings.bootstrap, "acks": "all", "enable.idempotence": True,
    })  # fmt: skip
    entries = [
        {"tenant": "default", "key": name, "seq": seq, "id": f"{name}-{seq}", "expect": expect}
        for seq, (_, expect) in enumerate(wanted)
    ]
    journal.sent(entries)

    def settled(entry: Row, error: Any) -> None:
        if error is None:
            journal.settled(entry, ACKNOWLEDGED)

    for entry, (body, _) in zip(entries, wanted, strict=True):
        value = json.dumps({"text": entry["id"], **body, "id": entry["id"]}).encode()
        producer.produce(
            f"{stand.settings.prefix}aos.requests", value, headers={"content-type": "application/json"},
            on_delivery=lambda error, _, entry=entry: settled(entry, error),
        )  # fmt: skip
    left = producer.flush(60)
    journal.close()
    if left:
        raise OSError(f"{left} requests of {name} were not acknowledged")
    return [str(entry["id"]) for entry in entries]


def shouted(name: str, count: int, first: int, **body: Any) -> list[tuple[Row, str]]:
    """`count` requests of `name` whose result is their own id in capitals; `first` is the number of the first."""
    return [(body, f"{name}-{seq}".upper()) for seq in range(first, first + count)]


def named(number: int, random: Random) -> str:
    """A name for this injection alone."""
    return f"r{number}x{random.randrange(16**6):06x}"


def not_ended(results: Tail, ids: Sequence[str]) -> Failed:
    """Wait for the results of these ids; those that never came."""
    results.until(lambda rows: set(ids) <= {row["id"] for row in rows}, END_S)
    missing = set(ids) - {row["id"] for row in results.rows}
    return [("I1", f"{id} has no result after {END_S:.0f} s") for id in sorted(missing)]


def request_of(ledger: Iterable[Row], id: str) -> bytes | None:
    """AOS's id of a request."""
    return next((row["request_id"] for row in ledger if row["kind"] == "requested" and row["id"] == id), None)


def assigned(ledger: Sequence[Row], id: str) -> tuple[list[float], list[str]]:
    """When each attempt of a request of one step was first assigned, and to whom, in the order of attempts."""
    request, first = request_of(ledger, id), dict[int, Row]()
    for row in ledger:
        if row["kind"] == "assigned" and row["request_id"] == request:
            first.setdefault(row["attempt"], row)
    rows = [first[number] for number in sorted(first)]
    return [row["_at"] for row in rows], [row["agent"] for row in rows]


def wrong_ends(results: Sequence[Row], id: str, code: str, attempts: int) -> list[str]:
    """What is wrong with how a request ended."""
    ends = [row for row in results if row["id"] == id]
    return [
        f"ended {row['status']} {row['code']} after {row['attempts']} attempts, not failed {code} after {attempts}"
        for row in ends
        if (row["status"], row["code"], row["attempts"]) != ("failed", code, attempts)
    ]
