"""AOS from the outside: everything a producer, an agent and a consumer need, in plain pyarrow and confluent-kafka.

Nothing here imports AOS. The contract is in docs/contract.md, every column in docs/schemas.md.

    pip install pyarrow confluent-kafka
    python plain_client.py all                      # an agent, three requests, their results
    python plain_client.py agent                    # answers until Ctrl-C
    python plain_client.py submit "hello" "world"   # one Arrow message with two rows
    python plain_client.py submit --json "hello"    # one JSON object a message
    python plain_client.py results --count 3
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, Producer

TEXT, TEXTS = pa.string(), pa.list_(pa.string())
# Columns that are left out are null; docs/schemas.md says which ones must be there.
REQUEST = pa.schema([("id", TEXT), ("text", TEXT), ("require", TEXTS)])
REGISTRATION = pa.schema([("service", TEXT), ("agent", TEXT), ("capabilities", TEXTS)])
# What an answer repeats from the assignment: who it is for, and the secret that proves it was asked for.
ECHO = ["request_id", "home", "step", "attempt", "agent", "epoch", "token"]
CAPABILITY = "plain-uppercase"
WAIT_S = 60  # how long results are waited for


def to_bytes(table: pa.Table) -> bytes:
    """A message's value: one Arrow IPC stream, its body not compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Aos:
    """One Kafka producer, and consumers as they are needed. Partitions are random: AOS re-keys what it reads."""

    def __init__(self, bootstrap: str, prefix: str, tenant: str) -> None:
        self.bootstrap, self.prefix = bootstrap, prefix
        self.suffix = "" if tenant == "default" else f".{tenant}"
        self.refused: list[str] = []
        self.producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "partitioner": "random"})

    def send(self, topic: str, rows: pa.Table | dict[str, Any]) -> None:
        """A table goes as one Arrow stream, a dict as one JSON object. `settle` waits for the broker."""
        if isinstance(rows, dict):
            value, kind = json.dumps(rows).encode(), "application/json"
        else:
            value, kind = to_bytes(rows), "application/vnd.apache.arrow.stream"
        headers = {"content-type": kind}
        self.producer.produce(self.prefix + topic, value, headers=headers, on_delivery=self._delivered)
        self.producer.poll(0)

    def _delivered(self, error: object, _: object) -> None:
        if error:
            self.refused.append(str(error))

    def settle(self) -> None:
        """Wait until the broker has everything."""
        if self.producer.flush(30) or self.refused:
            raise RuntimeError(f"not acknowledged: {self.refused or 'no answer'}")

    def read(self, topic: str, group: str, until: Callable[[], bool]) -> Iterator[pa.Table]:
        """Messages from where the group has committed; a message is committed when the next one is asked for."""
        how = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        consumer = Consumer({"bootstrap.servers": self.bootstrap, **how})
        consumer.subscribe([self.prefix + topic])
        try:
            while not until():
                message = consumer.poll(0.2)
                if message is not None and message.error():
                    print(message.error(), file=sys.stderr)
                elif message is not None:
                    yield pa.ipc.open_stream(message.value()).read_all()
                    consumer.commit(message, asynchronous=False)
        finally:
            consumer.close()

    def submit(self, texts: list[str], as_json: bool = False) -> list[str]:
        """Requests as rows of one Arrow message, or each as JSON. A repeated id is answered again, not done again."""
        rows = [{"id": str(uuid.uuid4()), "text": text, "require": [CAPABILITY]} for text in texts]
        for message in rows if as_json else [pa.Table.from_pylist(rows, REQUEST)]:
            self.send(f"aos.requests{self.suffix}", message)
        self.settle()
        return [str(row["id"]) for row in rows]

    def results(self) -> Iterator[dict[str, Any]]:
        """Results from the topic's beginning, each once: they come at least once, with one id and round."""
        seen = set()
        ends, group = time.monotonic() + WAIT_S, f"plain-results-{uuid.uuid4()}"
        for table in self.read(f"aos.results{self.suffix}", group, lambda: time.monotonic() > ends):
            for row in table.to_pylist():
                if (row["request_id"], row["round"]) not in seen:
                    seen.add((row["request_id"], row["round"]))
                    yield row

    def serve(self, service: str, stop: threading.Event) -> None:
        """Register, say every second that it lives, answer what comes to the inbox, say goodbye."""
        agent = {"service": service, "agent": f"{service}-1", "capabilities": [CAPABILITY]}
        self.send("aos.agents", pa.Table.from_pylist([agent], REGISTRATION))
        (beating := threading.Thread(target=self._beat, args=(service, stop))).start()
        try:
            inbox = f"aos.inbox.{service}"  # AOS makes it when it has seen the registration
            while self.prefix + inbox not in self.producer.list_topics(timeout=10).topics:
                if stop.wait(0.1):
                    return
            for assignments in self.read(inbox, f"{self.prefix}plain.{service}", stop.is_set):
                self._answer(assignments)
        finally:
            stop.set()
            beating.join()
            self.settle()

    def _beat(self, service: str, stop: threading.Event) -> None:
        beat = {"service": service, "replica": f"plain-{os.getpid()}"}
        while not stop.wait(1.0):
            self.send("aos.heartbeats", beat)
        self.send("aos.heartbeats", {**beat, "stopping": True})

    def _answer(self, assignments: pa.Table) -> None:
        """One outcome for each piece of work; a row of kind cancel withdraws an earlier one and wants no answer."""
        work = assignments.filter(pc.equal(assignments["kind"], "work"))
        if not len(work):
            return
        outputs = pc.utf8_upper(pc.fill_null(work["text"], "")).cast(pa.binary())
        answers = work.select(ECHO).append_column("status", pa.array(["ok"] * len(work)))
        self.send("aos.outcomes", answers.append_column("payload", outputs))
        self.settle()  # the inbox is committed only after this: a crash before it brings the work again


def show(row: dict[str, Any]) -> None:
    """One result, one line."""
    said = row["payload"].decode() if row["payload"] else row["message"]
    print(row["id"], row["status"], said, f"{row['latency_us'] / 1000:.0f} ms", flush=True)


def everything(aos: Aos, service: str) -> int:
    """The agent in a thread, two requests as Arrow, one as JSON; 0 when all three have their results."""
    stop = threading.Event()
    (agent := threading.Thread(target=aos.serve, args=(service, stop))).start()
    try:
        waiting = {*aos.submit(["hello", "world"]), *aos.submit(["from a small program"], as_json=True)}
        for row in aos.results():
            if row["id"] in waiting:
                waiting.discard(row["id"])
                show(row)
            if not waiting:
                return 0
        print(f"no results within {WAIT_S} s for {waiting}", file=sys.stderr)
        return 1
    finally:
        stop.set()
        agent.join()


def main() -> int:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--bootstrap", default=os.environ.get("AOS_BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("AOS_PREFIX", ""), help="of every topic")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--service", default="plain", help="name of the agent's service and inbox")
    parser.add_argument("--count", type=int, help="results to read")
    parser.add_argument("--json", action="store_true", help="submit as JSON")
    parser.add_argument("command", choices=["all", "agent", "submit", "results"])
    parser.add_argument("texts", nargs="*")
    given = parser.parse_args()
    aos = Aos(given.bootstrap, given.prefix, given.tenant)
    if given.command == "all":
        return everything(aos, given.service)
    if given.command == "agent":
        with contextlib.suppress(KeyboardInterrupt):
            aos.serve(given.service, threading.Event())
    elif given.command == "submit":
        print("\n".join(aos.submit(given.texts, given.json)))
    else:
        for row in itertools.islice(aos.results(), given.count):
            show(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
