"""The check that the check can fail: two usual ways to write such a worker do not pass the fold's checker."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Feeder, Stand, check_fold

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("kind", ["naive", "timer"])
async def test_shell_checker_refuses(
    kind: str, bootstrap: str, topic_prefix: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """SIGKILLs of a plain Faust app, and of one whose snapshots are taken by a timer."""
    stand = Stand(bootstrap, topic_prefix, tmp_path, [kind], program="controls.py")
    await stand.topics(1)
    draw = random.Random(5)
    try:
        async with Feeder(stand, "toy.in", 1, rate=15) as feeder:
            feeder.begin()
            worker = await stand.worker()
            for _ in range(4 if kind == "timer" else 2):
                spare = await stand.spare()
                await spare.says("warm")
                await asyncio.sleep(draw.uniform(0.5, 0.9))
                await worker.end(signal.SIGKILL)
                worker = spare
                await worker.go()
            await asyncio.sleep(1.0)
            await feeder.finish()
            await stand.caught_up("toy-fold", "toy.in")
            await worker.end()
        verdict = await check_fold(stand, 1)
    finally:
        await stand.close()
    measured(f"control {kind}: {verdict}")
    assert not verdict.good, verdict
    if kind == "timer":
        assert verdict.lost > 0, verdict
    else:
        assert not verdict.state_equal
        assert verdict.different > 0
