"""Processors that stand still by order on the real broker: nothing lost, nothing twice, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Feeder, Process, Stand, check_fold
from toys import SLOW

pytestmark = pytest.mark.stack
REST_S = 1.5


@pytest.fixture
async def stand(bootstrap: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stand]:
    found = Stand(bootstrap, topic_prefix, tmp_path, ["toy-fold"])
    await found.topics(2)
    yield found
    await found.close()


async def rests(stand: Stand, processor: str, topic: str | None) -> None:
    """For a while nothing is committed and nothing is written, although more and more waits."""
    before = await stand.commits(processor), len(await stand.records(topic)) if topic else 0
    await asyncio.sleep(REST_S)
    assert (await stand.commits(processor), len(await stand.records(topic)) if topic else 0) == before


async def test_a_paused_fold_rests_between_two_messages_over_a_kill_and_a_stop_and_loses_nothing(
    stand: Stand, measured: Callable[[str], None]
) -> None:
    """Without the look at orders in `Loop._work` it goes on; without the view read before the start the restarted
    worker takes some in."""
    worker = await stand.worker()
    async with Feeder(stand, "toy.in", 2) as feeder:
        feeder.begin()
        await asyncio.sleep(1.0)
        await stand.order("toy-fold", "pause")
        await rests(stand, "toy-fold", "toy.out")
        outputs = {row[0] for row in await stand.rows("toy.out")}
        done = await stand.committed("toy-fold")
        below = [r for r in await stand.records("toy.in") if r.offset < done["toy.in", r.partition]]
        taken = {id for r in below for id in stand_ids(r)}
        assert taken == outputs, "what is committed is done, and nothing above it was"
        await worker.end(signal.SIGKILL)
        worker = await stand.worker()
        await rests(stand, "toy-fold", "toy.out")
        assert await worker.end() == 0, worker.tail()
        worker = await stand.worker()
        await rests(stand, "toy-fold", "toy.out")
        await stand.order("toy-fold", "resume")
        await asyncio.sleep(1.0)
        await stand.order("toy-fold", "pause")
        await stand.order("toy-fold", "resume")
        await feeder.finish()
        await stand.caught_up("toy-fold", "toy.in")
        assert await worker.end() == 0, worker.tail()
    verdict = await check_fold(stand, 2)
    measured(f"fold paused twice, killed and stopped while it stood: {verdict}")
    assert verdict.good, verdict
    assert verdict.duplicates == 0


def stand_ids(record: object) -> list[int]:
    from harness import CODEC

    ids: list[int] = CODEC.decode("toy.in", record.value, {}).column(0).to_pylist()  # type: ignore[attr-defined]
    return [id for id in ids if id >= 0]  # without the fold's own ticks


async def test_a_paused_sink_rests_and_writes_each_row_once_although_its_store_goes_away(
    stand: Stand,
) -> None:
    """Paused while the store is away, and the store is away while it is paused: it rests when the store is back."""
    stand.processors = ["toy-store"]
    stand.settings["bundle_s"] = 0.1
    flag = stand.folder / "away"
    worker = await stand.worker()
    async with Feeder(stand, "toy.in", 2) as feeder:
        feeder.begin()
        await asyncio.sleep(0.7)
        flag.touch()
        await asyncio.sleep(0.3)
        await stand.order("toy-store", "pause")
        flag.unlink()
        await asyncio.sleep(1.0)
        await rests(stand, "toy-store", None)
        await worker.end(signal.SIGKILL)
        worker = await stand.worker()
        await rests(stand, "toy-store", None)
        await stand.order("toy-store", "resume")
        await asyncio.sleep(0.5)
        await stand.order("toy-store", "pause")
        await stand.order("toy-store", "resume")
        await feeder.finish()
        await stand.caught_up("toy-store", "toy.in")
        assert await worker.end() == 0, worker.tail()
        stored = json.loads((stand.folder / "sink.json").read_text())["rows"]
        assert sorted(stored) == list(range(1, feeder.sent + 1))


async def test_a_paused_journal_decides_each_once(stand: Stand) -> None:
    """A journal ticks after its start, before anything else; while it rests it does not."""
    stand.processors = ["toy-journal"]
    worker = await stand.worker()
    async with Feeder(stand, "toy.fast", 2) as feeder:
        for id in range(1, 7):
            await feeder.rows([id], 0)
        await feeder.producer.flush()
        await stand.caught_up("toy-journal", "toy.fast")
        await stand.order("toy-journal", "pause")
        await worker.end(signal.SIGKILL)
        for id in range(7, 9):
            await feeder.rows([id], 0)
        await feeder.producer.flush()
        worker = await stand.worker()
        await rests(stand, "toy-journal", "toy.acts")
        await stand.order("toy-journal", "resume")
        await stand.caught_up("toy-journal", "toy.fast")
        assert await worker.end() == 0, worker.tail()
    chosen = [row[0] for row in await stand.rows("toy.journal")]
    assert sorted(chosen) == list(range(1, 9)), "each was decided once"
    assert {row[0] for row in await stand.rows("toy.acts")} == set(range(1, 9))


async def test_a_watchdog_does_not_take_rest_for_a_wedge(stand: Stand) -> None:
    """Work waits for longer than the watchdog's patience: the worker stays, and goes on when it may."""
    stand.settings["watchdog_s"] = 1.0
    worker = await stand.worker()
    async with Feeder(stand, "toy.in", 2) as feeder:
        feeder.begin()
        await asyncio.sleep(0.5)
        await stand.order("toy-fold", "pause")
        await asyncio.sleep(4.0)
        assert worker.process.returncode is None, worker.tail()
        await stand.order("toy-fold", "resume")
        await feeder.finish()
        await stand.caught_up("toy-fold", "toy.in")
        assert await worker.end() == 0, worker.tail()
    assert (await check_fold(stand, 2)).good


# a worker that stands still without an order ends, and the next one goes on


async def ended_by_the_watchdog(worker: Process, why: str) -> float:
    """Seconds until it ends by itself, for that reason."""
    began = time.monotonic()
    async with asyncio.timeout(60):
        assert await worker.process.wait() == 70, worker.tail()
    assert why in worker.tail()
    return time.monotonic() - began


async def test_a_step_that_blocks_the_event_loop_ends_the_process(stand: Stand) -> None:
    """Half an hour in one step: without the watchdog's thread nobody would know."""
    stand.processors, stand.extra["slow_s"] = ["toy-row"], 1800.0
    stand.settings["watchdog_s"] = 2.0
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([1])
        await feeder.rows([SLOW])
        await feeder.producer.flush()
        await ended_by_the_watchdog(worker, "the event loop did not turn")
        stand.extra["slow_s"] = 0.0
        again = await stand.worker()
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0, again.tail()
    assert {row[0] for row in await stand.rows("toy.small")} == {1, SLOW}


async def test_work_in_hand_that_does_not_move_ends_the_process(stand: Stand) -> None:
    """Its outputs are never acknowledged, the event loop turns, and nothing fails."""
    stand.processors = ["toy-row"]
    worker = await stand.worker(watchdog_s=1.0, ack_delay_s=1800.0)
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([1])
        await feeder.producer.flush()
        await ended_by_the_watchdog(worker, "has work and did not move")
        again = await stand.worker()
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0, again.tail()
    assert {row[0] for row in await stand.rows("toy.small")} == {1}


async def test_a_lag_of_which_nothing_comes_ends_the_process_and_a_long_rest_does_not(stand: Stand) -> None:
    """The consumer is silently dead. Before that it rests for longer than the watchdog's patience, and gets a message:
    that is no reason. Without `Fetched` it stays for ever, with everything in good order."""
    stand.processors = ["toy-row"]
    stand.extra["deaf_after_s"] = 8.0
    worker = await stand.worker(watchdog_s=1.0)
    stand.extra.clear()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await asyncio.sleep(5.0)
        await feeder.rows([1])
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
        await asyncio.sleep(4.0)
        assert worker.process.returncode is None, worker.tail()
        await feeder.rows([2])
        await feeder.producer.flush()
        await ended_by_the_watchdog(
            worker, "nothing comes of what is there: [(('toy-row', 'toy.rows', 0), 1)]"
        )
        again = await stand.worker()
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0, again.tail()
    assert {row[0] for row in await stand.rows("toy.small")} == {1, 2}
