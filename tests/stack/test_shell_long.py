"""What takes over a minute: the broker away for half a minute, large messages under a ceiling of memory."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Feeder, Stand, check_fold

from aos.infra.local import LocalStack

pytestmark = [pytest.mark.stack, pytest.mark.long]

CEILING_MB = (
    330  # 130 of a bare worker, 16 + 16 of fetches, 4 of waiting, the running one; all 48 would be 192
)


async def test_shell_goes_on_after_the_broker_was_away(
    own_stack: LocalStack, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """SIGKILL of the broker under load, 30 s of nothing, start: the same worker goes on, nothing is lost."""
    stand = Stand(
        own_stack.bootstrap, "away.", tmp_path, ["toy-fold"], {"snapshot_max_s": 1.0, "ack_delay_s": 0.02}
    )
    await stand.topics(2)
    try:
        worker = await stand.worker()
        async with Feeder(stand, "toy.in", 2, rate=100) as feeder:
            await feeder.some(3)
            await feeder.producer.flush()
            await feeder.rows(range(10**6, 10**6 + 500))
            await asyncio.to_thread(own_stack.kill_broker)
            await asyncio.sleep(30)
            await asyncio.to_thread(own_stack.start_broker)
            await feeder.some(3)
            await feeder.producer.flush()
            seconds = await stand.caught_up("toy-fold", "toy.in", 90)
            await asyncio.sleep(0.5)
            assert await worker.end() == 0, worker.tail()
        verdict = await check_fold(stand, 2)
    finally:
        await stand.close()
    measured(f"broker away 30 s: {verdict}, caught up {seconds:.1f} s after it was fed again")
    assert verdict.good, verdict


async def test_shell_memory_is_bounded_by_bytes(
    bootstrap: str, topic_prefix: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """48 messages of 4 MiB before a slow processor: bounded in bytes, not in messages as in Faust."""
    stand = Stand(bootstrap, topic_prefix, tmp_path, ["toy-row"], {"ack_delay_s": 0.2})
    await stand.topics(1)
    try:
        worker = await stand.worker()
        async with Feeder(stand, "toy.rows", 1) as feeder:
            feeder.producer._max_request_size = 8 << 20
            for _ in range(48):
                await feeder.raw(b"\xff" * (4 << 20))
                await feeder.producer.flush()
            await stand.caught_up("toy-row", "toy.rows", 90)
        status = Path(f"/proc/{worker.process.pid}/status").read_text()  # noqa: ASYNC240
        peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
        assert await worker.end() == 0
        letters = await stand.records("aos.dead-letters")
    finally:
        await stand.close()
    measured(f"48 x 4 MiB: peak {peak:.0f} MiB")
    assert len(letters) == 48
    assert peak < CEILING_MB
