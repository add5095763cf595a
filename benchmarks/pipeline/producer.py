"""A producer as a program: makes its messages beforehand, then sends each when it is due, late or not.

python -m benchmarks.pipeline.producer '{"bootstrap": …, "prefix": …, "folder": …, "number": 0, "load": {…}}'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from benchmarks.harness import percentiles
from benchmarks.pipeline.signals import report, say_ready, wait_go
from benchmarks.pipeline.workload import Load, Ready, messages

SETTINGS = {"acks": "all", "linger.ms": 0, "partitioner": "random", "message.max.bytes": 1 << 20}
FLUSH_S = 60.0


def main(given: dict[str, Any]) -> None:
    folder, name = Path(given["folder"]), f"producer-{given['number']}"
    load = Load(**given["load"])
    prepared = list(messages(load, given["number"]))
    sender = Sender(given["bootstrap"], given["prefix"])
    sender.know({ready.topic for ready in prepared})
    say_ready(folder, name)
    start = wait_go(folder)
    late = [sender.send(ready, start) for ready in prepared]
    refused = sender.finish()
    late_ms = percentiles(np.array(late) * 1e3)
    report(
        folder, name, {"sent": len(prepared) * load.rows, "refused": refused * load.rows, "late_ms": late_ms}
    )


class Sender:
    """One librdkafka producer and what was refused."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._prefix = prefix
        self._refused = 0
        self._producer = Producer({"bootstrap.servers": bootstrap, **SETTINGS})

    def know(self, topics: set[str]) -> None:
        """Fetch what must be known of the topics before the first message."""
        for topic in topics:
            self._producer.list_topics(self._prefix + topic, 10)

    def send(self, ready: Ready, start: float) -> float:
        """Wait until the message is due, hand it to librdkafka; return how late it was, in seconds."""
        due = start + ready.due_s
        while (left := due - time.time()) > 0:
            self._producer.poll(0)
            time.sleep(min(left, 0.05))
        value, headers = ready.at(start)
        while True:
            try:
                self._producer.produce(
                    self._prefix + ready.topic, value, headers=list(headers.items()), on_delivery=self._done
                )
                break
            except BufferError:  # the broker is far behind; the message's latency counts from when it was due
                self._producer.poll(0.05)
        self._producer.poll(0)
        return time.time() - due

    def finish(self) -> int:
        """Wait for all acknowledgements; return how many messages were not accepted."""
        return int(self._producer.flush(FLUSH_S)) + self._refused

    def _done(self, error: Any, _: Any) -> None:
        if error:
            self._refused += 1


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
