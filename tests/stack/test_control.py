"""Processors that stand still by order on the real broker: nothing lost, nothing twice, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Feeder, Stand, check_fold

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
