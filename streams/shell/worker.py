"""A worker process: any set of processors on one event loop, one Faust app each.

`run(deployment, options)` is what a command calls; it returns the exit code. Exit codes: 0 stopped on a signal,
70 broken, 75 stuck at a stop, 78 refused to start.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop
from aiokafka.errors import KafkaError

from aos.agents.sdk.refusals import refusal
from aos.codecs.errors import AosError, SettingsError
from aos.streams.dead_letters import DEAD_LETTERS
from aos.streams.processor import Law, Processor, View, Views
from aos.streams.shell.app import App, make_app
from aos.streams.shell.background import Admins
from aos.streams.shell.codec import ORDERS, SNAPSHOTS, Codec
from aos.streams.shell.consumer import SafeConsumer
from aos.streams.shell.crumbs import Crumbs
from aos.streams.shell.downstream import Downstream
from aos.streams.shell.fatal import BROKEN, REFUSED, STUCK, die, log
from aos.streams.shell.halt import ALERTS, Alert, TopicWatch, open_alerts
from aos.streams.shell.kit import Kit
from aos.streams.shell.metrics import Metrics
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Producer
from aos.streams.shell.reader import Reader
from aos.streams.shell.runner import Runner
from aos.streams.shell.seldom import SELDOM, Seldom
from aos.streams.shell.sinks import Sink, SinkRunner
from aos.streams.shell.snapshots import Snapshots
from aos.streams.shell.topics import Admin, TopicSpec, missing
from aos.streams.shell.views import ViewService
from aos.streams.shell.watchdog import Fetched, Moving, Place, Watchdog


@dataclass(frozen=True)
class Deployment:
    """What a worker runs. Topic names are without prefix everywhere.

    `reads` overrides a processor's input topics (tenants' own edge topics); `spec_of` tells how to make a topic
    that an output goes to for the first time (inboxes), None if it must exist. `in_force` puts the settings of the
    moment into what a step may look at. `counted` makes of the partitions that topics have those that steps see;
    partitions that are added while a worker runs are seen of the topics in `grows` alone.
    """

    processors: Sequence[Processor]
    codec: Codec
    views: Sequence[View] = ()
    sinks: Mapping[str, Sink] = field(default_factory=dict)
    settings: Any = None
    secret: bytes = b""
    seed: int = 0
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spec_of: Callable[[str], TopicSpec | None] = lambda name: None
    replication: int = 1
    in_force: Callable[[Processor, Views], Views] = lambda processor, views: views
    counted: Callable[[Mapping[str, int]], Mapping[str, int]] = lambda counts: counts
    grows: frozenset[str] = frozenset()

    def inputs(self, processor: Processor) -> tuple[str, ...]:
        return self.reads.get(processor.name, processor.reads)


class Worker:
    """The parts of one process; `start` returns when every processor is joining its group."""

    def __init__(self, deployment: Deployment, options: Options) -> None:
        self.deployment = deployment
        self.options = options
        self.views = ViewService(options, deployment.codec, deployment.views)
        self.reader = Reader(options)
        self.producer = Producer(options, self.ensure_topic)
        self.snapshots = Snapshots(deployment.codec, self.producer, self.reader)
        self.crumbs = Crumbs(Path(options.crumbs) if options.crumbs else None)
        self.metrics: dict[str, Metrics] = {}
        self.apps: list[App] = []
        self.ports: list[Runner | SinkRunner] = []
        self.downstream: list[Downstream] = []
        self.admins = Admins(options)
        self._alerts: dict[str, Alert] = {}
        self._topic_watch: TopicWatch | None = None
        self.partitions: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._counts: dict[str, int] = {}  # at the start
        self._sizes: dict[str, int] = {}
        self.stopping = False
        self._watchdog = Watchdog(options.watchdog_s, self._watched)
        self._fetched = Fetched(options.watchdog_s, self.reader, self._wanted)

    async def start(self) -> None:
        for prepare in filter(None, (processor.prepare for processor in self.deployment.processors)):
            # beside the start: a first message that comes sooner waits for what it needs of it
            threading.Thread(target=prepare, name="prepare", daemon=True).start()
        await self._learn_topics()
        await asyncio.gather(self.producer.start(), self.reader.start(), self.views.start())
        if ALERTS in self.partitions:
            self._alerts = await open_alerts(self.reader)
        for processor in self.deployment.processors:
            self._add(processor)
        self.views.heard[ORDERS] = self._wake
        await asyncio.gather(*(app.start() for app in self.apps))
        for watched in self.downstream:
            watched.start()
        self._topic_watch = TopicWatch(
            self.admins,
            self._ids,
            [(port.kit.halt, self.deployment.inputs(port.kit.processor)) for port in self.ports],
            self._counted,
        )
        self._topic_watch.start()
        self._watchdog.start()
        self._fetched.start()

    def stop_soon(self) -> None:
        """A stop was asked for; `stop` follows, or the watchdog ends the process."""
        self.stopping = True
        self._watchdog.leave_within(self.options.stop_s + self.options.snapshot_stop_s + self.options.leave_s)

    async def stop(self) -> None:
        """Settle all, commit, leave."""
        watches = [one for one in (*self.downstream, self._topic_watch, self._fetched) if one is not None]
        await asyncio.gather(*(app.stop() for app in self.apps), *(one.stop() for one in watches))
        await asyncio.gather(self.views.stop(), self.reader.stop(), self.producer.stop(), self.admins.drop())
        self._watchdog.stop()

    async def failed(self) -> BaseException | None:
        """Return when an app has crashed or stopped by itself."""
        while True:
            for app in self.apps:
                if app.crashed or app.should_stop:
                    return app.crash_reason
            await asyncio.sleep(0.2)

    async def ready(self) -> None:
        """Return when every processor has joined its group and restored what it was given."""
        await asyncio.gather(*(cast(SafeConsumer, app.consumer).once_restored.wait() for app in self.apps))

    def _add(self, processor: Processor) -> None:
        topics = self.deployment.inputs(processor)
        app = make_app(processor, {topic: self._counts[topic] for topic in topics}, self.options)
        metrics = self.metrics[processor.name] = Metrics()
        deployment = self.deployment
        kit = Kit(
            processor=processor,
            options=self.options,
            codec=deployment.codec,
            producer=self.producer,
            reader=self.reader,
            given=Views(
                deployment.settings,
                self.partitions,
                self.views.values,
                deployment.secret,
                refused=self.views.refused,
            ),
            seed=deployment.seed,
            find_consumer=lambda: cast(SafeConsumer, app.consumer),
            metrics=metrics,
            limit=lambda topic: self._sizes.get(topic, self.options.message_bytes),
            staleness_s=self.views.staleness_s,
            in_force=deployment.in_force,
            crumbs=self.crumbs,
        )
        if processor.yields_to is not None:
            name, topic = processor.yields_to
            watched = Downstream(self.options, self.reader, self.admins, name, topic, self.partitions[topic])
            kit.held_back = lambda: watched.behind
            kit.crowded = lambda: watched.late
            self.downstream.append(watched)
        if processor.rests_on is not None:
            kit.outdated = self._watch_teacher(*processor.rests_on)
        kit.halt.open = {id: row for id, row in self._alerts.items() if row["source"] == processor.name}
        if ORDERS in self.views.values:
            orders = self.views.values[ORDERS]
            kit.ordered = lambda: orders.mark(processor.name)
        if processor.law is Law.SINK:
            app.port = SinkRunner(kit, deployment.sinks[processor.name])
        else:
            app.port = Runner(kit, topics, self.snapshots, self._ids)
        self.ports.append(app.port)
        self.apps.append(app)

    def _watch_teacher(self, name: str, topic: str) -> Callable[[], bool]:
        """Whether `name` left so old messages of `topic` undone that what it taught is only the last that is known."""
        most_s, said = self.options.learned_s, ("its last word decides", "it teaches again")
        count = self.partitions[topic]
        watched = Downstream(self.options, self.reader, self.admins, name, topic, count, most_s, said)
        self.downstream.append(watched)
        return lambda: watched.behind

    async def _learn_topics(self) -> None:
        """Ids, partitions and message sizes of all topics; refuse to start when an input is missing."""
        async with Admin(self.options) as admin:
            there = await admin.ids()
            wanted = {DEAD_LETTERS, *(view.topic for view in self.deployment.views)}
            for processor in self.deployment.processors:
                wanted |= {*self.deployment.inputs(processor), *processor.counts}
                wanted |= {name for name in processor.writes if self.deployment.spec_of(name) is None}
                wanted |= {SNAPSHOTS} if processor.dump is not None else set()
                wanted |= {processor.journal} if processor.journal is not None else set()
            gone = missing(there, wanted)
            if gone:
                raise SettingsError("AOS5004", f"missing: {', '.join(gone)}")
            for name in wanted:
                self._sizes[name] = await self._size(admin, name)
        self._ids.update({name: id for name, (id, _) in there.items()})
        self._counts = {name: count for name, (_, count) in there.items()}
        self.partitions.update(self.deployment.counted(self._counts))

    async def _size(self, admin: Admin, name: str) -> int:
        """Bytes of a value that fits the topic with its record batch header and our message headers."""
        return int((await admin.config(name)).get("max.message.bytes", self.options.message_bytes)) - 1024

    async def ensure_topic(self, name: str) -> None:
        """Make a topic that an output goes to for the first time (a service's inbox)."""
        if name in self.partitions:
            return
        spec = self.deployment.spec_of(name)
        async with Admin(self.options) as admin:
            if spec is not None:
                await admin.create([spec], self.deployment.replication)
                self.partitions[name] = spec.partitions
                self._sizes[name] = spec.max_bytes - 1024
            else:
                there = {topic: count for topic, (_, count) in (await admin.ids()).items()}
                self.partitions.update(
                    {topic: count for topic, count in there.items() if topic not in self.partitions}
                )

    def _counted(self, counts: Mapping[str, int]) -> None:
        self.partitions.update({name: counts[name] for name in self.deployment.grows if name in counts})

    def _wake(self) -> None:
        for port in self.ports:
            port.wake()

    def _wanted(self) -> dict[Place, int]:
        """The next offset of every partition that would take more now."""
        cut, found = len(self.options.prefix), dict[Place, int]()
        for port in self.ports:
            for tp, flight in port.kit.consumer.flights.items():
                if flight.next is not None and port.wants(tp):
                    found[port.kit.processor.name, tp.topic[cut:], tp.partition] = flight.next
        return found

    def _watched(self) -> Sequence[Moving]:
        found: list[Moving] = []
        for port in list(self.ports):
            found += list(port.loops.values()) if isinstance(port, Runner) else [port]
        return found


async def serve(
    deployment: Deployment,
    options: Options,
    started: Callable[[Worker], Awaitable[None]] | None,
    make: Callable[[Deployment, Options], Worker],
) -> int:
    """Run until SIGTERM or SIGINT (0) or a crash (70). A second signal leaves at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    worker = make(deployment, options)

    def on_signal(*_: object) -> None:
        if worker.stopping:
            die(STUCK, "second signal: leaving without a commit")
        worker.stop_soon()
        loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, on_signal
        )  # not the loop's handler: it would wait for a step that blocks the loop
    await worker.start()
    tasks = [asyncio.create_task(stop.wait()), asyncio.create_task(worker.failed())]
    if started is not None:
        tasks.append(asyncio.create_task(_never_ends(started(worker))))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        reason = next((task.exception() or task.result() for task in tasks[1:] if task.done()), None)
        die(BROKEN, f"a Faust app stopped by itself: {reason!r}")
    for task in tasks:
        task.cancel()
    await worker.stop()
    return 0


async def _never_ends(work: Awaitable[None]) -> None:
    await work
    await asyncio.Event().wait()


def quiet() -> None:
    """Set log levels by name: `-l warn` leaves DEBUG records being built (11 % of the CPU)."""
    for name in ("aiokafka", "faust", "mode", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiokafka.consumer.group_coordinator").setLevel(logging.ERROR)
    for name in SELDOM:
        logging.getLogger(name).addFilter(Seldom())


def tune() -> None:
    """Interpreter settings of a worker: a step's rows live for milliseconds, so the collector need not look often; the
    consumers' threads wait for the interpreter lock at every fetch, so it changes hands sooner."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.001)


def run(
    deployment: Deployment,
    options: Options,
    started: Callable[[Worker], Awaitable[None]] | None = None,
    make: Callable[[Deployment, Options], Worker] = Worker,
) -> int:
    """Run a worker (or what `make` makes instead) to its end and return the exit code; the caller exits with it."""
    quiet()
    tune()
    uvloop.install()  # also for the loops of Faust's consumer threads
    try:
        return asyncio.run(serve(deployment, options, started, make))
    except (AosError, KafkaError) as error:
        alone = isinstance(error, KafkaError) and not options.security.users  # else `crew` knows who it was
        log.critical("%s", (alone and refusal(error, options.clients())) or error)
        return REFUSED
