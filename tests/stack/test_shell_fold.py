"""The fold under kills: outputs lost 0, state byte-equal to a pure replay, whatever is killed.

What breaking the code showed: with the seek to the commit instead of the snapshot the state differs; with offsets
finished before the send, outputs are lost. (A snapshot before the acks loses outputs too, but a kill must hit a
window of some 20 ms: `test_shell_loop` checks that order without chance.)
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Feeder, Stand, check_fold
from toys import CRASH

pytestmark = pytest.mark.stack

PARTITIONS = 2


@pytest.fixture
async def stand(bootstrap: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stand]:
    settings = {"ack_delay_s": 0.05, "snapshot_min_s": 0.0, "snapshot_max_s": 0.1}
    found = Stand(bootstrap, topic_prefix, tmp_path, ["toy-fold"], settings)
    await found.topics(PARTITIONS)
    yield found
    await found.close()


async def kills(stand: Stand, feeder: Feeder, count: int, seed: int) -> tuple[int, list[float]]:
    """SIGKILL the worker `count` times while it works; how many counted, and seconds until the next was ready."""
    draw = random.Random(seed)
    worker, spare = await stand.worker(), await stand.spare()
    counted, recovery = 0, []
    for _ in range(count):
        await asyncio.sleep(draw.uniform(0.3, 0.8))
        await worker.end(signal.SIGKILL)
        counted += stand.read_past_commit(0, await stand.committed("toy-fold"))
        began = time.monotonic()
        worker, spare = spare, await stand.spare()
        await worker.go()
        recovery.append(time.monotonic() - began)
    await spare.end(signal.SIGKILL)
    return counted, recovery


async def scenario(stand: Stand, count: int, measured: Callable[[str], None]) -> None:
    async with Feeder(stand, "toy.in", PARTITIONS) as feeder:
        feeder.begin()
        counted, recovery = await kills(stand, feeder, count, seed=1)
        survivor = stand.started[-2]
        joined = await stand.worker(ordinal=1, leave=True)  # a join: each gets a partition
        await asyncio.sleep(1.0)
        await feeder.raw(b"\xff\xff\xff\xffno arrow at all", 0)
        await feeder.rows([CRASH], 1)  # the step breaks on it half-way
        await asyncio.sleep(1.0)
        await joined.end()  # a leave
        await asyncio.sleep(1.0)
        await feeder.finish()
        await stand.caught_up("toy-fold", "toy.in")
        await asyncio.sleep(0.5)  # the last tick
        await stand.caught_up("toy-fold", "toy.in")
        assert await survivor.end() == 0, survivor.tail()
    verdict = await check_fold(stand, PARTITIONS)
    measured(
        f"fold, {count} SIGKILLs ({counted} past the commit), join, leave: {verdict}, "
        f"recovery {sum(recovery) / len(recovery):.2f} s, worst {max(recovery):.2f} s"
    )
    assert counted >= count * 0.8
    assert verdict.good, verdict
    assert verdict.duplicates > 0, "no kill hit anything in the air"
    letters = [bytes(r.value) for r in await stand.records("aos.dead-letters")]
    assert len(letters) >= verdict.dead == 2


async def test_shell_fold_loses_nothing_when_killed(stand: Stand, measured: Callable[[str], None]) -> None:
    """Outputs slowed by 50 ms; then a join, a leave, bad bytes, a step that breaks half-way."""
    await scenario(stand, 5, measured)


@pytest.mark.long
async def test_shell_fold_loses_nothing_when_killed_twenty_times(
    stand: Stand, measured: Callable[[str], None]
) -> None:
    await scenario(stand, 20, measured)
