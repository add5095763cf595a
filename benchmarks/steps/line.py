"""The whole topology as a plain loop in memory: no broker, no shell, no threads; only what rows cost.

Every message is encoded and decoded as on the wire; CPU time of the thread is added up by processor and by what was
done (step, decode, encode). One partition; agents answer at once. Rounds are as large as what waits: the figures
are those of a loaded system, where the cost of a row counts, not that of a message.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa

from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, tenant_topic
from aos.streams.processor import Batch, Law, Output, Processor, Raw, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.outgoing import messages_of
from aos.streams.simulated_log import NO_ROWS
from aos.streams.topology import PROCESSORS, VIEWS

START_US = 1_700_000_000_000_000
BYTES_MAX = 8 * 1024 * 1024
ANSWERED = ("request_id", "home", "step", "attempt", "agent", "epoch", "token")


class Message(NamedTuple):
    """One record of a log."""

    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]
    appended_at: int
    offset: int


class Line:
    """Logs, processors and agents; `spent[processor, what]` is CPU time in seconds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = START_US
        self.spent: dict[tuple[str, str], float] = defaultdict(float)
        self.rows: dict[str, int] = defaultdict(int)
        self.results = 0
        self._codec = WireCodec()
        self._waiting: dict[tuple[str, str], deque[Message]] = defaultdict(deque)  # by processor and topic
        self._offsets: dict[str, int] = defaultdict(int)
        self._views = {topic: view.empty() for topic, view in VIEWS.items()}
        self._states = {p.name: p.initial(0) for p in PROCESSORS.values() if p.law is not Law.SINK}
        self._readers: dict[str, list[str]] = defaultdict(list)
        others = [tenant for tenant in settings.tenants if tenant != "default"]
        for processor in PROCESSORS.values():
            for name in processor.reads:
                tenants = others if TOPICS[name].per_tenant else []
                for topic in (name, *(tenant_topic(name, tenant) for tenant in tenants)):
                    self._readers[topic].append(processor.name)

    def send(self, topic: str, value: bytes, headers: Mapping[str, bytes], key: bytes | None = None) -> None:
        """Append a message."""
        message = Message(key, value, headers, self.now, self._offsets[topic])
        self._offsets[topic] += 1
        if topic in self._views:
            rows = self._codec.decode(topic, value, headers)
            with self._timed("views", "apply"):
                self._views[topic] = VIEWS[topic].apply(self._views[topic], key or b"", rows)
        for name in self._readers.get(topic, ()):
            self._waiting[name, topic].append(message)
        if topic.startswith("aos.inbox."):
            self._agents(value)
        elif topic.startswith("aos.results"):
            self.results += self._codec.decode(topic, value, headers).num_rows

    def run(self) -> None:
        """Until nothing waits; store's log is left alone, see `stored`."""
        busy = True
        while busy:
            busy = False
            for processor in PROCESSORS.values():
                if processor.law is not Law.SINK and any(self._queues(processor.name)):
                    self._round(processor)
                    busy = True

    def tick(self, name: str) -> None:
        """Tell a journal or view that time has passed."""
        processor = PROCESSORS[name]
        outputs: list[Output] = []
        self._step(processor, Batch(processor.reads[0], 0, -1, NO_ROWS, tick=True), outputs)
        self._send_all(processor, outputs)

    def stored(self) -> Iterator[tuple[str, int, pa.RecordBatch, int]]:
        """What store has to write since the last call: topic, offset, rows, append time."""
        for (name, topic), queue in self._waiting.items():
            while name == "store" and queue:
                message = queue.popleft()
                with self._timed("store", "decode"):
                    rows = self._codec.decode(topic, message.value, message.headers)
                yield topic, message.offset, rows, message.appended_at

    def timed(self, name: str, what: str) -> Any:
        """Count what is done within as spent by a processor."""
        return self._timed(name, what)

    @contextmanager
    def _timed(self, name: str, what: str) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self.spent[name, what] += time.thread_time() - began

    def _queues(self, name: str) -> list[deque[Message]]:
        return [queue for (reader, _), queue in self._waiting.items() if reader == name]

    def _round(self, processor: Processor) -> None:
        outputs: list[Output] = []
        waiting = [
            (topic, queue) for (reader, topic), queue in self._waiting.items() if reader == processor.name
        ]
        if processor.edge:
            raws = [
                Raw(topic, 0, m.offset, m.appended_at, m.key, m.value, m.headers)
                for topic, queue in waiting
                for m in queue
            ]
            for _, queue in waiting:
                queue.clear()
            self._step(processor, Batch(raws[0].topic, 0, raws[0].offset, NO_ROWS, raws), outputs)
        else:
            for topic, queue in waiting:
                while queue:
                    message = queue.popleft()
                    with self._timed(processor.name, "decode"):
                        rows = self._codec.decode(topic, message.value, message.headers)
                    self.rows[processor.name] += rows.num_rows
                    self._step(processor, Batch(topic, 0, message.offset, rows), outputs)
        self._send_all(processor, outputs)

    def _send_all(self, processor: Processor, outputs: Sequence[Output]) -> None:
        with self._timed(processor.name, "encode"):
            messages = messages_of(outputs, self._codec, lambda _: BYTES_MAX)
        for sent in messages:
            self.send(sent.topic, sent.value, sent.headers, sent.key)

    def _step(self, processor: Processor, batch: Batch, outputs: list[Output]) -> None:
        views = Views(
            self.settings,
            dict.fromkeys(TOPICS, 1),
            {t: self._views[t] for t in processor.views},
            b"secret",
        )
        with self._timed(processor.name, "step"):
            found = processor.step(self._states[processor.name], batch, self.now, views, 1)
        self._states[processor.name] = found.state
        outputs += [*found.first, *found.outputs]

    def _agents(self, value: bytes) -> None:
        """Every assignment of an inbox message is answered at once with nothing."""
        with pa.ipc.open_stream(value) as stream:
            rows = stream.read_all().combine_chunks().to_batches()[0]
        outcome = make.record("outcome")
        columns: dict[str, Any] = {name: rows.column(name) for name in ANSWERED}
        columns["status"] = ["ok"] * len(rows)
        self.send("aos.outcomes", *wire.encode(make.from_columns("outcome", len(rows), columns), outcome))


def register(line: Line, agents: Sequence[Mapping[str, Any]]) -> None:
    """Agents (columns of a registration) with one replica a service, running."""
    for start in range(0, len(agents), 250):
        rows = make.from_dicts("registration", agents[start : start + 250])
        line.send("aos.agents", *wire.encode(rows, make.record("registration")))
    beat(line, {agent["service"] for agent in agents})
    line.run()
    for _ in range(20):  # blocks of agents are published one after the other
        line.now += 100_000
        line.tick("register")


def beat(line: Line, services: Iterable[str]) -> None:
    """One replica of each service says that it lives."""
    beats = [{"service": name, "replica": "r0"} for name in sorted(services)]
    line.send("aos.heartbeats", *wire.encode(make.from_dicts("heartbeat", beats), make.record("heartbeat")))
