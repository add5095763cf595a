"""The load, a program of its own: requests at a steady rate from several producers, each send in the journal first.

Of a hundred requests about ten are workflows of three steps, five are slow, one is refused at its first attempt, three
repeat an earlier id word by word; every third message is Arrow with several rows, the others are JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from confluent_kafka import KafkaException, Producer

from tests.chaos.journal import ACKNOWLEDGED, REFUSED, Journal

TICK_S = 0.02
PRODUCERS = 3
REPEATS, WORKFLOWS, SLOW, MOODY = 0.03, 0.10, 0.05, 0.01
SETTLE_S = 180.0  # how long the last sends may wait for a broker
TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))
ARROW = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("task_kind", pa.string()),
        ("require", TEXTS),
        ("priority", pa.int8()),
    ]
)


def request(id: str, random: Random) -> tuple[dict[str, Any], str]:
    """A request as a producer writes it, and the payload of its result."""
    text, share = f"task {id}", random.random()
    row: dict[str, Any] = {"id": id, "text": text, "priority": random.choice((0, 1, 2, 2, 2, 3))}
    if share < WORKFLOWS:
        steps: list[dict[str, Any]] = [
            {"name": "a", "text": f"{text} a", "require": ["shout"], "task_kind": "shout"},
            {"name": "b", "text": f"{text} b", "require": ["shout"], "task_kind": "shout"},
            {"name": "c", "require": ["join"], "after": ["a", "b"], "task_kind": "join"},
        ]
        return {**row, "steps": steps, "task_kind": "flow"}, f"{text} a+{text} b".upper()
    share -= WORKFLOWS
    what = "slow" if share < SLOW else "moody" if share < SLOW + MOODY else "shout"
    return {**row, "require": [what], "task_kind": what}, text.upper()


@dataclass
class Sender:
    """One producer: its requests to each tenant are numbered in the order of sending."""

    name: str
    producer: Any
    prefix: str
    journal: Journal
    random: Random
    seqs: dict[str, int] = field(default_factory=dict)
    old: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)

    def draw(self, tenant: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next request to a tenant: (its row in the journal, the request)."""
        seq = self.seqs[tenant] = self.seqs.get(tenant, -1) + 1
        entry = {"tenant": tenant, "key": self.name, "seq": seq}
        if self.old and self.random.random() < REPEATS:
            whose, body, expect = self.random.choice(self.old)
            if whose == tenant:
                return {**entry, "id": body["id"], "expect": expect}, body
        id = f"{self.name}-{tenant}-{seq}"
        body, expect = request(id, self.random)
        if len(self.old) < 500:
            self.old.append((tenant, body, expect))
        return {**entry, "id": id, "expect": expect}, body

    def send(self, tenant: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Hand drawn requests, which the journal has, to the library: as one Arrow message if they are several."""
        topic = self.prefix + ("aos.requests" if tenant == "default" else f"aos.requests.{tenant}")
        entries = [entry for entry, _ in pairs]
        if len(pairs) > 1:
            value, kind = encoded([body for _, body in pairs]), "application/vnd.apache.arrow.stream"
        else:
            value, kind = json.dumps(pairs[0][1]).encode(), "application/json"

        def settled(error: Any, _: Any) -> None:
            if error is None:
                for entry in entries:
                    self.journal.settled(entry, ACKNOWLEDGED)

        headers = {"content-type": kind} if len(pairs) == 1 else {}
        while True:
            try:
                self.producer.produce(topic, value, key=self.name, headers=headers, on_delivery=settled)
                return
            except BufferError:
                self.producer.poll(0.1)  # full of what the broker has not taken: wait, as a client would
            except KafkaException:
                for entry in entries:  # refused by the library itself: it never left
                    self.journal.settled(entry, REFUSED)
                return


def encoded(rows: list[dict[str, Any]]) -> bytes:
    """Requests as one Arrow message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ARROW) as writer:
        writer.write_table(pa.Table.from_pylist(rows, ARROW))
    return bytes(sink.getvalue())


def groups(count: int, random: Random) -> list[int]:
    """How many requests each of the next messages holds."""
    sizes = []
    while count > 0:
        size = min(count, random.randint(2, 5) if random.random() < 1 / 3 else 1)
        sizes.append(size)
        count -= size
    return sizes


def senders(chosen: argparse.Namespace, journal: Journal) -> list[Sender]:
    """The producers, idempotent, each with a sequence of draws of its own."""
    config = {
        "bootstrap.servers": chosen.bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 2,
        "message.timeout.ms": int(SETTLE_S * 1000), "reconnect.backoff.max.ms": 1000,
    }  # fmt: skip
    return [
        Sender(
            f"{chosen.name}{number}",
            Producer(config),
            chosen.prefix,
            journal,
            Random(f"{chosen.seed}/{number}"),
        )
        for number in range(PRODUCERS)
    ]


def play(chosen: argparse.Namespace) -> int:
    """Send until there were enough and the file `until` is there (if one is named)."""
    random, tenants = Random(f"{chosen.seed}/load"), chosen.tenants.split(",")
    journal = Journal(Path(chosen.journal))
    everybody = senders(chosen, journal)
    until = Path(chosen.until) if chosen.until else None
    sent, began = 0, time.monotonic()
    while sent < chosen.tasks or (until is not None and not until.exists()):
        due = int((time.monotonic() - began) * chosen.rate) + 1 - sent
        if until is None:
            due = min(due, chosen.tasks - sent)
        drawn = []
        for size in groups(min(due, 200), random):
            sender, tenant = random.choice(everybody), random.choice(tenants)
            pairs = [sender.draw(tenant) for _ in range(size)]
            plain = all("steps" not in body for _, body in pairs)
            drawn += [(sender, tenant, pairs)] if plain else [(sender, tenant, [pair]) for pair in pairs]
            sent += size
        journal.sent(entry for _, _, pairs in drawn for entry, _ in pairs)
        for sender, tenant, pairs in drawn:
            sender.send(tenant, pairs)
        for sender in everybody:
            sender.producer.poll(0)
        time.sleep(TICK_S)
    left = sum(sender.producer.flush(SETTLE_S) for sender in everybody)
    journal.close()
    print(json.dumps({"sent": sent, "unsettled": left, "seconds": round(time.monotonic() - began, 1)}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--tenants", default="default")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="p", help="stands before the producers' numbers and in every id")
    parser.add_argument("--journal", required=True)
    parser.add_argument("--until", default="", help="go on until this file is there")
    return play(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
