"""Faust's own aiokafka driver by subclass: commits only what is done, starts where the state is.

What the plain driver does wrong for us, and what is changed here (faust.md, sections 2, 4, 9):

- acks out of order or skipped events are committed past: `Flight` registers offsets when they are fetched
- one event a record costs 70 us and a record a commit entry: here one event a partition and fetch
- it seeks to the committed offset: a state must go on from *its* offset, which `Port.restore` says
- it waits without limit for unacknowledged events at a stop or rebalance: here `Port.settle`, bounded
- `pause_partitions` drops records that were fetched: `hold` and `release` pause in aiokafka, with a seek
- a commit flushes a producer that we do not use
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, cast

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError
from faust.tables import TableManager
from faust.transport.drivers import aiokafka as drv
from faust.types import TP

from aos.streams.shell import unpack  # noqa: F401 (bounds what aiokafka unpacks)
from aos.streams.shell.fatal import BROKEN, die
from aos.streams.shell.flight import Flight, NoOffsets
from aos.streams.shell.options import Options

R = TypeVar("R")

POLL_S = 1.0  # how long a fetch that finds nothing waits in the consumer
BUSY_POLL_S = 0.02  # while one partition is full, look after it again so soon
BUSY_FETCH_MS = 20  # a fetch in the air hides a partition that was just sought or released, for so long
IDLE_FETCH_MS = 500
PATIENT_BYTES = 4 * 1024 * 1024  # a patient fetch comes back before its time when so much is there


class Port(Protocol):
    """What a consumer feeds: the partitions of one processor."""

    def wants(self, tp: TP) -> bool: ...

    def patience_s(self) -> float: ...

    async def restore(
        self, tps: Iterable[TP], committed: Mapping[TP, int | None], generation: int
    ) -> dict[TP, int]: ...

    async def settle(self) -> None: ...

    async def lost(self, tp: TP, expected: int) -> bool:
        """A gap before what was fetched: whether it is a loss, so that nothing behind it may be handed over."""


class Bundle:
    """All records of one partition and fetch, in the shape of one record (Faust copies its fields)."""

    __slots__ = ("end", "epoch", "offset", "partition", "records", "timestamp", "topic", "tp")

    timestamp_type = 1
    headers = ()
    key = None
    checksum = None
    serialized_key_size = 0
    serialized_value_size = 0

    def __init__(self, tp: TP, records: list[Any], epoch: int) -> None:
        self.tp, self.records, self.epoch = tp, records, epoch
        self.topic, self.partition = tp
        self.offset, self.end = records[0].offset, records[-1].offset + 1
        self.timestamp = records[-1].timestamp

    @property
    def value(self) -> Bundle:
        return self


class SafeThread(drv.AIOKafkaConsumerThread):
    """The consumer's thread; our calls go there directly, not through Faust's queue of two workers."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        options: Options = self.app.options  # type: ignore[attr-defined]
        fetcher_setting = {
            "_fetch_max_wait_ms": BUSY_FETCH_MS,
            "_fetch_min_bytes": 1,
            "_fetch_max_bytes": options.fetch_bytes,
        }
        for name, value in fetcher_setting.items():
            if not hasattr(consumer, name):
                raise AttributeError(f"aiokafka's consumer has no {name}: the pins changed")
            setattr(consumer, name, value)
        return consumer

    async def on_thread_stop(self) -> None:
        options: Options = self.app.options  # type: ignore[attr-defined]
        if options.leave and self._consumer is not None:
            self._consumer._coordinator._group_instance_id = None  # else aiokafka never leaves
        await super().on_thread_stop()

    async def here(self, call: Coroutine[Any, Any, R]) -> R:
        """Await `call` in the consumer's loop, from the main loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self.thread_loop))

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:
        consumer = self._ensure_consumer()
        return await self.here(
            self._fetch_records(
                consumer, active_partitions, timeout=timeout, max_records=consumer._max_poll_records
            )
        )

    async def committed(self, tps: Iterable[TP]) -> dict[TP, int | None]:
        found = await self._ensure_consumer()._coordinator.fetch_committed_offsets(
            [TopicPartition(*tp) for tp in tps]
        )
        offsets = {tp: found[TopicPartition(*tp)].offset for tp in tps if TopicPartition(*tp) in found}
        return {tp: offset if offset >= 0 else None for tp, offset in offsets.items()}

    async def go(self, positions: Mapping[TP, int]) -> None:
        """Seek, and read on where it was held."""
        consumer = self._ensure_consumer()
        for tp, offset in positions.items():
            consumer.seek(TopicPartition(*tp), offset)
        consumer.resume(*[TopicPartition(*tp) for tp in positions])

    async def hold(self, tp: TP, offset: int) -> None:
        """Pause; the seek drops what is prefetched, which would keep aiokafka from fetching other partitions."""
        self._ensure_consumer().seek(TopicPartition(*tp), offset)
        self._ensure_consumer().pause(TopicPartition(*tp))

    def fetch_rule(self, wait_ms: int, least_bytes: int) -> None:
        """How long the broker may keep a fetch for which it has less; attributes read at each fetch."""
        fetcher = self._ensure_consumer()._fetcher
        fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes = wait_ms, least_bytes


class SafeConsumer(drv.Consumer):
    """Consumer of one processor's app."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = NoOffsets()
        self.flights: dict[TP, Flight] = {}
        self._epochs: dict[TP, int] = defaultdict(int)
        self._held: set[TP] = set()
        self._flowing = False  # whether the last fetch found something
        self._moving: set[TP] = set()  # being sought: whatever is fetched now is from the old place
        self._restored: tuple[int, frozenset[TP]] | None = None
        self._restoring = asyncio.Lock()
        self._committing = asyncio.Lock()
        self.once_restored = asyncio.Event()  # set at the first assignment

    def _new_consumer_thread(self) -> SafeThread:
        return SafeThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def port(self) -> Port:
        return cast(Port, self.app.port)  # type: ignore[attr-defined]

    @property
    def thread(self) -> SafeThread:
        return cast(SafeThread, self._thread)

    # reading

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's loop without what it does for single records (two tasks, offsets, a commit check, for each).

        What is handed over while the flow stops needs no care here: its epoch is over, so the port drops it.
        """
        try:
            while not (self.should_stop or fetcher.should_stop):
                found, _ = await self._wait_next_records(POLL_S)
                for tp, bundles in (found or {}).items():
                    for bundle in bundles:
                        await self.callback(self._to_message(tp, bundle))
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        await self._restore()
        active = {TP(*tp) for tp in active_partitions or ()}
        wanted = {tp for tp in active if tp not in self._moving and self.port.wants(tp)}
        if not wanted:
            await asyncio.sleep(BUSY_POLL_S)
            return {}
        epochs = {tp: self._epochs[tp] for tp in wanted}
        full = len(wanted) < len(active - self._held)
        found = await self.thread.getmany(wanted, min(self._fetch_rule(), BUSY_POLL_S if full else timeout))
        self._flowing = bool(found)
        await self._seek_back({TP(*real) for real, records in found.items() if records}, epochs)
        return {
            tp: [self._register(tp, records)]
            for tp, records in self._current(found, epochs)
            if await self._whole(tp, records[0].offset) and self._epochs[tp] == epochs[tp]
        }

    def _fetch_rule(self) -> float:
        """Say how the next fetches are made; how long to wait for one before looking again.

        The first record after a rest comes at once. While records flow, the broker collects for as long as the port
        has patience: a fetch costs the same whatever is in it.
        """
        patience = self.port.patience_s()
        if self._held or not (self._flowing and patience):
            self.thread.fetch_rule(BUSY_FETCH_MS if self._held else IDLE_FETCH_MS, 1)
            return POLL_S
        self.thread.fetch_rule(round(patience * 1e3), PATIENT_BYTES)
        return 2 * patience

    async def _whole(self, tp: TP, offset: int) -> bool:
        """Whether nothing is missing between what was handed out last and `offset`; a gap may be compaction's."""
        expected = self.flights[tp].next
        return expected is None or offset <= expected or not await self.port.lost(tp, expected)

    async def _seek_back(self, tps: set[TP], epochs: Mapping[TP, int]) -> None:
        """What a fetch from before a seek found after it is not handed over, but aiokafka counts it as read."""
        sought = {tp for tp in tps & set(self.flights) - self._held if self._epochs[tp] != epochs.get(tp)}
        places = {tp: at for tp in sought if (at := self.flights[tp].next) is not None}
        if places:
            with self._move(sought - self._moving):
                await self._go(places)

    def _current(
        self, found: Mapping[Any, list[Any]], epochs: Mapping[TP, int]
    ) -> Iterator[tuple[TP, list[Any]]]:
        """Leave out what was fetched before a seek, hold or revocation."""
        for real, records in found.items():
            tp = TP(*real)
            if records and tp in self.flights and self._epochs[tp] == epochs.get(tp):
                yield tp, records

    def _register(self, tp: TP, records: list[Any]) -> Bundle:
        bundle = Bundle(tp, records, self._epochs[tp])
        self.flights[tp].took(bundle.offset, bundle.end)
        return bundle

    def is_current(self, bundle: Bundle) -> bool:
        return self._epochs[bundle.tp] == bundle.epoch

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: `Flight` counts what was handed out, so gaps need no bookkeeping."""

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust only logs; our watchdog ends the process."""

    # committing

    def finished(self, tp: TP, first: int, end: int) -> None:
        """The outputs of these offsets are acknowledged (or there were none)."""
        flight = self.flights.get(tp)
        if flight is not None:
            flight.finished(first, end)

    def in_air(self, tp: TP) -> bool:
        """Whether records of this partition were handed out and are not finished."""
        flight = self.flights.get(tp)
        return flight is not None and flight.in_air

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit every partition's position; Faust's own way formats a table and flushes a producer each time."""
        async with self._committing:
            positions = {tp: self._new_offset(tp) for tp in self.flights if tp in self.assignment()}
            offsets = {tp: position for tp, position in positions.items() if position is not None}
            return await self._commit(offsets) if offsets else False

    def _new_offset(self, tp: TP) -> int | None:
        flight = self.flights.get(tp)
        return flight.position() if flight is not None else None

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        done = await self.thread.here(self.thread._commit(offsets))
        for tp, offset in offsets.items() if done else ():
            flight = self.flights.get(tp)
            if flight is not None and (flight.committed is None or flight.committed < offset):
                flight.committed = offset
        return done

    async def wait_empty(self) -> None:
        """Called by Faust at a stop and a revocation, after it stopped the flow: finish, then commit."""
        async with self._restoring:
            await self.port.settle()
            self._restored = None
        self._unacked_messages.clear()
        await self.commit()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self.flights.pop(TP(*tp), None)
            self._epochs[TP(*tp)] += 1

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super().on_partitions_assigned(assigned, generation_id)
        if not assigned:
            self.once_restored.set()

    # positions

    async def perform_seek(self) -> None:
        """Called twice by Faust, also while the flow is stopped; `_restore` does it once, before a fetch."""
        if self._restored != (self.app.consumer_generation_id, self._assigned()):
            self._restored = None

    async def _restore(self) -> None:
        if self._restored is not None:
            return
        async with self._restoring:
            key = (self.app.consumer_generation_id, self._assigned())
            await self.reload(key[1])
            self._restored = key
            self.once_restored.set()

    async def reload(self, tps: Iterable[TP]) -> None:
        """Load the states of these partitions and read on from where each is."""
        with self._move(set(tps)) as moving:
            await self._reload(moving)

    async def _reload(self, tps: set[TP]) -> None:
        committed = await self.thread.here(self.thread.committed(tps))
        try:
            positions = await self.port.restore(tps, committed, self.app.consumer_generation_id)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            die(BROKEN, "a state could not be restored", error)
        self._held.difference_update(tps)
        for tp, position in positions.items():
            self.flights[tp] = Flight(committed.get(tp), position)
            self._committed_offset[tp] = committed.get(tp)
        await self._go(positions)

    async def hold(self, tp: TP, offset: int) -> None:
        """Read no more of it; `offset` is the next one of the state: what was fetched beyond comes again."""
        self._held.add(tp)
        if tp in self.flights:
            self.flights[tp].reset(offset)
            with self._move({tp}), contextlib.suppress(IllegalStateError):  # revoked meanwhile
                await self.thread.here(self.thread.hold(tp, offset))

    async def release(self, tp: TP, offset: int) -> None:
        """Read on from `offset`, the next one of the state: without the seek fetched records would be lost."""
        self._held.discard(tp)
        if tp in self.flights:
            self.flights[tp].next = offset
            with self._move({tp}):
                await self._go({tp: offset})

    @contextlib.contextmanager
    def _move(self, tps: set[TP]) -> Iterator[set[TP]]:
        """Nothing that is fetched while this lasts, or was asked for before, is handed over."""
        for tp in tps:
            self._epochs[tp] += 1
        self._moving |= tps
        try:
            yield tps
        finally:
            self._moving -= tps

    async def _go(self, positions: Mapping[TP, int]) -> None:
        try:
            await self.thread.here(self.thread.go(positions))
        except IllegalStateError:
            self._restored = None  # revoked meanwhile: the next assignment restores again

    def _assigned(self) -> frozenset[TP]:
        acking = self.app.topics.acks_enabled_for
        return frozenset(TP(*tp) for tp in self.assignment() if acking(tp[0]))


class NoTables(TableManager):
    """There are none: the second that Faust waits for them at each start would only lengthen a recovery."""

    async def sleep(self, n: Any, *, loop: Any = None) -> None:
        await asyncio.sleep(0)


class SilentProducer(drv.Producer):
    """Faust makes a producer for each app; ours sends everything, so this one never connects."""

    async def on_start(self) -> None: ...

    async def on_stop(self) -> None: ...

    async def flush(self) -> None: ...


class SafeTransport(drv.Transport):
    Consumer = SafeConsumer
    Producer = SilentProducer
