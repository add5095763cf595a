"""What may be committed: in order, never past what is in the air, whatever is skipped, sought or revoked."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest
from faust.types import TP

from aos.streams.shell.consumer import SafeConsumer
from aos.streams.shell.flight import Flight, NoOffsets

HERE = TP("topic", 0)


class Record:
    def __init__(self, offset: int) -> None:
        self.offset, self.timestamp, self.value = offset, 1000 + offset, b"x"


def records(*offsets: int) -> list[Any]:
    return [Record(offset) for offset in offsets]


@pytest.mark.parametrize(
    ("committed", "took", "finished", "position"),
    [
        (None, [], [], None),  # nothing was read
        (None, [(0, 5)], [], None),  # read, not finished: faust commits past it when there is no commit yet
        (0, [(0, 1), (1, 20)], [(1, 20)], None),  # the head is in the air: faust commits 20
        (5, [(5, 6), (6, 20)], [(6, 20)], None),  # a gap of one at the head: faust takes it for compaction
        (5, [(5, 6), (6, 20)], [(5, 6), (6, 20)], 20),
        (0, [(0, 10), (10, 20), (20, 30)], [(0, 10), (20, 30)], 10),  # a bundle in the middle was dropped
        (0, [(0, 10)], [(0, 4)], 4),  # part of a bundle
        (0, [(3, 10)], [(3, 10)], 10),  # offsets 0 to 2 were compacted away
        (0, [(0, 2), (7, 9)], [(0, 2), (7, 9)], 9),  # 2 to 6 were compacted away
        (20, [(0, 10)], [(0, 10)], None),  # a replay below the commit
        (20, [(0, 30)], [(0, 30)], 30),  # … that goes beyond it
    ],
)
def test_flight_commits_up_to_what_is_in_the_air(
    committed: int | None, took: list[tuple[int, int]], finished: list[tuple[int, int]], position: int | None
) -> None:
    flight = Flight(committed)
    for span in took:
        flight.took(*span)
    for span in finished:
        flight.finished(*span)
    assert flight.position() == position


def test_flight_in_any_order_of_finishing_ends_at_the_same_position() -> None:
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        flight = Flight(0)
        spans = [(0, 3), (3, 4), (4, 9)]
        for span in spans:
            flight.took(*span)
        seen = []
        for index in order:
            flight.finished(*spans[index])
            seen.append(flight.position() or 0)
        assert seen == sorted(seen)
        assert seen[-1] == 9
        assert not flight.in_air


def test_flight_keeps_what_is_done_when_sought_elsewhere() -> None:
    flight = Flight(0)
    flight.took(0, 5)
    flight.took(5, 9)
    flight.finished(0, 5)
    flight.reset(0)
    assert (flight.position(), flight.in_air) == (5, False)
    flight.took(5, 7)
    assert flight.position() == 5
    flight.finished(5, 7)
    assert flight.position() == 7


def test_flight_does_not_pass_a_dropped_span_by_a_seek() -> None:
    flight = Flight(0)
    for span in ((0, 5), (5, 6), (6, 9)):
        flight.took(*span)
    flight.finished(0, 5)
    flight.finished(6, 9)
    flight.reset(0)
    assert flight.position() == 5


class Thread:
    """The consumer's thread as the consumer sees it: what is fetched, committed, sought."""

    def __init__(self) -> None:
        self.fetched: dict[TP, list[Any]] = {}
        self.stored: dict[TP, int | None] = {}
        self.commits: list[dict[TP, int]] = []
        self.sought: list[dict[TP, int]] = []
        self.while_fetching: Any = None
        self.rules: list[tuple[int, int]] = []

    async def here(self, call: Any) -> Any:
        return await call

    async def getmany(self, tps: set[TP], timeout: float) -> dict[TP, list[Any]]:
        if self.while_fetching is not None:
            await self.while_fetching()
        return {tp: found for tp, found in self.fetched.items() if tp in tps}

    async def committed(self, tps: set[TP]) -> dict[TP, int | None]:
        return {tp: self.stored.get(tp) for tp in tps}

    async def go(self, positions: dict[TP, int]) -> None:
        self.sought.append(dict(positions))

    async def hold(self, tp: TP, offset: int) -> None: ...

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        self.commits.append(dict(offsets))
        return True

    def fetch_rule(self, wait_ms: int, least_bytes: int) -> None:
        self.rules.append((wait_ms, least_bytes))


class Port:
    """A processor that is at offset `at` of every partition."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.restores, self.settles = at, 0, 0
        self.patience = 0.0
        self.gone, self.asked = False, list[Any]()

    def patience_s(self) -> float:
        return self.patience

    def wants(self, tp: TP) -> bool:
        return True

    async def lost(self, tp: TP, expected: int) -> bool:
        self.asked.append((tp, expected))
        return self.gone

    async def restore(self, tps: Any, committed: Any, generation: int) -> dict[TP, int]:
        self.restores += 1
        return dict.fromkeys(tps, self.at)

    async def settle(self) -> None:
        self.settles += 1


@pytest.fixture
def consumer() -> Any:
    """A SafeConsumer over a played thread; only what Faust's base class would set is set by hand."""
    found = SafeConsumer.__new__(SafeConsumer)
    found.app = mock.Mock(port=Port(), consumer_generation_id=1, flow_active=True)
    found.app.topics.acks_enabled_for.return_value = True
    found._thread = Thread()  # type: ignore[assignment]
    found.flights, found._held, found._moving, found._restored = {}, set(), set(), None
    found._flowing = False
    found._epochs = {HERE: 0}
    found._restoring, found._committing = asyncio.Lock(), asyncio.Lock()
    found.once_restored = asyncio.Event()
    found._committed_offset, found._read_offset = {}, NoOffsets()  # type: ignore[assignment]
    found._unacked_messages = set()  # type: ignore[assignment]
    found.assignment = lambda: {HERE}  # type: ignore[method-assign]
    return found


async def test_consumer_hands_over_one_bundle_a_partition_and_fetch(consumer: Any) -> None:
    consumer._thread.fetched = {HERE: records(0, 1, 4)}
    found = await consumer._getmany({HERE}, 1.0)
    (bundle,) = found[HERE]
    assert (bundle.offset, bundle.end, [r.offset for r in bundle.value.records]) == (0, 5, [0, 1, 4])
    assert consumer._new_offset(HERE) is None
    consumer.finished(HERE, 0, 5)
    assert await consumer.commit()
    assert consumer._thread.commits == [{HERE: 5}]
    assert not await consumer.commit()  # nothing new


async def test_consumer_collects_while_records_flow_and_takes_the_first_one_after_a_rest_at_once(
    consumer: Any,
) -> None:
    consumer.app.port.patience = 0.1
    for found in ({}, {HERE: records(0)}, {HERE: records(1)}, {}, {}):
        consumer._thread.fetched = found
        await consumer._getmany({HERE}, 1.0)
    waits = [wait_ms for wait_ms, _ in consumer._thread.rules]
    assert waits == [500, 500, 100, 100, 500]
    assert [least == 1 for _, least in consumer._thread.rules] == [True, True, False, False, True]
    consumer._held.add(HERE)  # what is sought or released must not hide behind a long fetch
    await consumer._getmany({HERE}, 1.0)
    assert consumer._thread.rules[-1] == (20, 1)


async def test_consumer_restores_once_for_two_seeks_and_again_after_a_revocation(consumer: Any) -> None:
    consumer._thread.stored = {HERE: 7}
    consumer.app.port.at = 3
    for _ in range(2):
        await consumer.perform_seek()
        await consumer._getmany({HERE}, 1.0)
    assert (consumer.app.port.restores, consumer._thread.sought) == (1, [{HERE: 3}])
    await consumer.wait_empty()
    assert consumer.app.port.settles == 1
    await consumer._getmany({HERE}, 1.0)
    assert consumer.app.port.restores == 2


async def test_consumer_does_not_commit_a_replay_below_the_commit(consumer: Any) -> None:
    consumer._thread.stored = {HERE: 7}
    consumer._thread.fetched = {HERE: records(3, 4, 5)}
    await consumer._getmany({HERE}, 1.0)
    consumer.finished(HERE, 3, 6)
    assert not await consumer.commit()
    consumer._thread.fetched = {HERE: records(6, 7, 8)}
    await consumer._getmany({HERE}, 1.0)
    consumer.finished(HERE, 6, 9)
    await consumer.commit()
    assert consumer._thread.commits == [{HERE: 9}]


async def test_consumer_hands_nothing_over_behind_a_loss(consumer: Any) -> None:
    port = consumer.app.port
    consumer._thread.fetched = {HERE: records(0, 1, 2)}
    assert list(await consumer._getmany({HERE}, 1.0)) == [HERE]
    assert port.asked == []
    consumer._thread.fetched = {HERE: records(4, 5)}  # compaction's gap
    assert list(await consumer._getmany({HERE}, 1.0)) == [HERE]
    assert port.asked == [(HERE, 3)]
    port.gone = True
    consumer._thread.fetched = {HERE: records(9)}
    assert await consumer._getmany({HERE}, 1.0) == {}
    assert port.asked[1:] == [(HERE, 6)]
    consumer.finished(HERE, 0, 6)
    await consumer.commit()
    assert consumer._thread.commits == [{HERE: 6}]


@pytest.mark.parametrize("turn", ["hold", "release"])
async def test_consumer_drops_what_was_fetched_across_a_seek(consumer: Any, turn: str) -> None:
    await consumer._getmany({HERE}, 1.0)

    async def meanwhile() -> None:
        await getattr(consumer, turn)(HERE, 0)

    consumer._thread.while_fetching = meanwhile
    consumer._thread.fetched = {HERE: records(0, 1)}
    assert await consumer._getmany({HERE}, 1.0) == {}
    assert not consumer.in_air(HERE)


async def test_consumer_reads_again_what_a_fetch_found_that_outlived_a_hold_and_a_release(
    consumer: Any,
) -> None:
    """The fault it keeps out: both within one long fetch, and a whole fetch was skipped, with nobody told."""
    await consumer._getmany({HERE}, 1.0)

    async def meanwhile() -> None:
        await consumer.hold(HERE, 2)
        await consumer.release(HERE, 2)

    consumer._thread.while_fetching = meanwhile
    consumer._thread.fetched = {HERE: records(2, 3)}
    consumer._thread.sought.clear()
    assert await consumer._getmany({HERE}, 1.0) == {}
    assert consumer._thread.sought == [{HERE: 2}, {HERE: 2}]
    consumer._thread.while_fetching = None
    assert list(await consumer._getmany({HERE}, 1.0)) == [HERE]


async def test_consumer_asks_for_nothing_of_a_partition_that_is_being_sought(consumer: Any) -> None:
    """The fault it keeps out: records of the old place, fetched between two steps of a seek, hid what was lost."""
    consumer._thread.fetched = {HERE: records(5, 6)}
    await consumer._getmany({HERE}, 1.0)
    seen = []

    async def go(positions: dict[TP, int]) -> None:
        seen.append(await consumer._getmany({HERE}, 1.0))

    consumer._thread.go = go
    await consumer.release(HERE, 2)
    await consumer.reload({HERE})
    assert seen == [{}, {}]
    assert list(await consumer._getmany({HERE}, 1.0)) == [HERE]


async def test_consumer_forgets_a_bundle_that_was_delivered_before_a_hold(consumer: Any) -> None:
    consumer._thread.fetched = {HERE: records(0, 1, 2)}
    (bundle,) = (await consumer._getmany({HERE}, 1.0))[HERE]
    consumer.finished(HERE, 0, 1)
    await consumer.hold(HERE, 1)
    assert not consumer.is_current(bundle)
    await consumer.commit()
    assert consumer._thread.commits == [{HERE: 1}]


async def test_consumer_stalls_before_a_bundle_that_nobody_finished(consumer: Any) -> None:
    for offsets in ((0, 1), (2, 3), (4, 5)):
        consumer._thread.fetched = {HERE: records(*offsets)}
        await consumer._getmany({HERE}, 1.0)
    consumer.finished(HERE, 0, 2)
    consumer.finished(HERE, 4, 6)
    await consumer.commit()
    assert consumer._thread.commits == [{HERE: 2}]
    assert consumer.in_air(HERE)


def test_who_begins_behind_its_commit_commits_that() -> None:
    assert Flight(3, 7).position() == 7
    assert Flight(7, 3).position() is None
    assert Flight(None, 7).position() is None
    flight = Flight(3, 7)
    flight.took(7, 9)
    assert flight.position() == 7
    flight.finished(7, 9)
    assert flight.position() == 9
