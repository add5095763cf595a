"""What goes wrong around a worker: refused outputs, slow steps, missing topics, a store that goes away.

What breaking the code showed is said in each docstring.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

sys.path.insert(0, str(Path(__file__).parent))

from harness import CODEC, Feeder, Process, Stand
from toys import DEADLY, SLOW

from aos.codecs.schemas import RECORDS
from aos.codecs.wire import decode
from aos.streams.shell.topics import Admin, TopicSpec, provision

pytestmark = pytest.mark.stack


@pytest.fixture
async def stand(bootstrap: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stand]:
    found = Stand(bootstrap, topic_prefix, tmp_path, ["toy-row"])
    await found.topics(1)
    yield found
    await found.close()


async def limit(stand: Stand, topic: str, size: int) -> None:
    """Change what the broker accepts behind the worker's back."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stand.bootstrap)
    await admin.start()
    kind, real = ConfigResourceType.TOPIC, stand.prefix + topic
    configs = {"max.message.bytes": str(size), "message.timestamp.type": "LogAppendTime"}
    await admin.alter_configs([ConfigResource(kind, real, configs)])
    await admin.close()


async def test_shell_crashes_before_the_ack_when_an_output_is_refused(stand: Stand) -> None:
    """The broker refuses an output: exit 70, the input is not committed and comes again.

    With the exception of `Producer.deliver` swallowed, the input is committed and the output is lost.
    """
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows(range(1, 6))
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
        await limit(stand, "toy.small", 100)
        await feeder.rows(range(6, 400))
        await feeder.producer.flush()
        assert await worker.end(signal.SIGCONT, timeout=20) == 70, worker.tail()
        assert (await stand.committed("toy-row"))[("toy.rows", 0)] == 1
        (said,) = await alerts(stand)
        assert (said["kind"], said["subject"]) == ("opened", "toy-row")
        assert said["message"] == "outputs were not accepted"
        await limit(stand, "toy.small", 1 << 20)
        again = await stand.worker()
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0
        opened, cleared = await alerts(stand)
        assert (cleared["kind"], cleared["alert"]) == ("cleared", opened["alert"])
    assert {row[0] for row in await stand.rows("toy.small")} == set(range(1, 400))


async def alerts(stand: Stand) -> list[dict[str, Any]]:
    """Rows of the topic of alerts, oldest first."""
    found = await stand.records("aos.alerts")
    return [decode(one.value, dict(one.headers), RECORDS["alert"]).to_pylist()[0] for one in found]


async def says(worker: Process, words: str, within_s: float = 30.0) -> None:
    ends = time.monotonic() + within_s
    while words not in worker.log.read_text():
        assert time.monotonic() < ends, worker.tail()
        await asyncio.sleep(0.1)


async def overtaken(stand: Stand, feeder: Feeder) -> None:
    """A worker reads rows 1 to 5 and ends in good order; rows 6 to 8 come and are removed before anybody reads them."""
    worker = await stand.worker()
    await feeder.rows(range(1, 6))
    await feeder.producer.flush()
    await stand.caught_up("toy-row", "toy.rows")
    assert await worker.end() == 0
    await feeder.rows(range(6, 9))
    await feeder.producer.flush()
    admin = AIOKafkaAdminClient(bootstrap_servers=stand.bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(f"{stand.prefix}toy.rows", 0): RecordsToDelete(-1)})
    await admin.close()


async def test_shell_stands_still_when_messages_went_before_they_were_read(stand: Stand) -> None:
    """Retention overtook a reader that was away: it says so and reads nothing, until an operator accepts the loss.

    With `at_start` always False the rows behind the loss are read as if nothing had happened.
    """
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await overtaken(stand, feeder)
        before = await stand.committed("toy-row")
        worker = await stand.worker()
        await says(worker, "AOS9003: toy-row stands still: toy.rows: messages were removed")
        await feeder.rows(range(9, 12))
        await feeder.producer.flush()
        await asyncio.sleep(2)
        assert await stand.committed("toy-row") == before
        assert await worker.end() == 0
        assert [one["kind"] for one in await alerts(stand)] == ["opened"], "who stands still clears nothing"
        again = await stand.worker(accept_loss=["toy.rows"])
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0
        opened, cleared = await alerts(stand)
        assert (cleared["kind"], cleared["alert"]) == ("cleared", "toy-row/toy.rows/gone")
        assert cleared["seen_at"] > opened["seen_at"]
    found = {row[0] for row in await stand.rows("toy.small")}
    assert found >= {*range(1, 6), *range(9, 12)}
    assert not found & {6, 7, 8}


async def test_shell_is_told_once_that_a_loss_is_accepted_also_if_nothing_came_after_it(stand: Stand) -> None:
    """With `Flight` beginning empty the next start stands still again at the same loss."""
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await overtaken(stand, feeder)
        accepting = await stand.worker(accept_loss=["toy.rows"])
        assert await accepting.end() == 0
        worker = await stand.worker()
        await feeder.rows(range(9, 12))
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
        assert await worker.end() == 0
    assert await alerts(stand) == []
    assert {row[0] for row in await stand.rows("toy.small")} >= {9, 10, 11}


async def test_shell_notices_that_a_topic_was_made_anew_under_it(stand: Stand) -> None:
    """The reader's offsets mean nothing any more: without the watch it would wait for offsets that never come."""
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows(range(1, 6))
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
    async with Admin(stand.options) as admin:
        await admin.delete(["toy.rows"])
    await asyncio.sleep(1)
    await provision(stand.options, [TopicSpec("toy.rows", 1)])
    await says(worker, "AOS9003: toy-row stands still: toy.rows: it was deleted and made anew")
    assert await worker.end() == 0


async def test_shell_keeps_poison_with_its_origin_before_it_goes_on(stand: Stand) -> None:
    """Bad bytes: the dead letter has code, origin and original bytes, and is acknowledged before the offset moves.

    With the dead letters sent without waiting, the offset is committed although the broker refused them.
    """
    poison = b"\xff\xff\xff\xff\x10\x00\x00\x00 not arrow"
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([1])
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
        await limit(stand, "aos.dead-letters", 100)
        await feeder.raw(poison)
        await feeder.rows([2])
        await feeder.producer.flush()
        assert await worker.end(signal.SIGCONT, timeout=20) == 70, worker.tail()
        assert (await stand.committed("toy-row"))[("toy.rows", 0)] == 1
        await limit(stand, "aos.dead-letters", 1 << 20)
        again = await stand.worker()
        await stand.caught_up("toy-row", "toy.rows")
        assert await again.end() == 0
    letters = [decode(r.value, {}, RECORDS["dead-letter"]) for r in await stand.records("aos.dead-letters")]
    row = letters[0].to_pylist()[0]
    assert (row["processor"], row["code"], row["topic"], row["partition"], row["offset"]) == (
        "toy-row", "AOS1001", "toy.rows", 0, 1,
    )  # fmt: skip
    assert row["body"] == poison
    assert {row[0] for row in await stand.rows("toy.small")} == {1, 2}


@pytest.mark.parametrize(("processor", "topic", "goes_to"), [
    ("toy-fold", "toy.in", "toy.out"), ("toy-edge", "toy.edge", "toy.rows"),
])  # fmt: skip
async def test_shell_isolates_a_message_that_ends_the_process_each_time(
    stand: Stand, processor: str, topic: str, goes_to: str
) -> None:
    """What is at work is on disk: after three deaths at one message it is a dead letter, and its neighbours are done.

    Without crumbs the worker dies at every start.
    """
    stand.processors = [processor]
    crumbs = str(stand.folder / "worker.crumbs")
    async with Feeder(stand, topic, 1) as feeder:
        worker = await stand.worker()
        await feeder.rows([1], 0)
        await feeder.producer.flush()
        await stand.caught_up(processor, topic)
        assert await worker.end() == 0
        for ids in ([2], [3, DEADLY], [4], [5, 6]):
            await feeder.rows(ids, 0)
        await feeder.producer.flush()
        deaths = 0
        while deaths < 8:
            worker = await stand.spare(crumbs=crumbs)
            await worker.go(ready=False)
            while worker.process.returncode is None:
                if (await stand.committed(processor)).get((topic, 0), 0) >= 5:
                    break
                await asyncio.sleep(0.1)
            if worker.process.returncode is None:
                break
            assert worker.process.returncode == -signal.SIGKILL, worker.tail()
            deaths += 1
        assert deaths == (3 if processor == "toy-fold" else 4)
        assert await worker.end() == 0
    (letter,) = await stand.records("aos.dead-letters")
    (row,) = decode(letter.value, dict(letter.headers), RECORDS["dead-letter"]).to_pylist()
    (deadly,) = [r for r in await stand.records(topic) if r.value == row["body"]]
    assert DEADLY in CODEC.decode(topic, deadly.value, {}).column(0).to_pylist()
    assert (row["processor"], row["code"], row["topic"]) == (processor, "AOS9001", topic)
    assert row["offset"] == deadly.offset
    assert {row[0] for row in await stand.rows(goes_to)} >= {1, 2, 4, 5, 6}


async def test_shell_commits_nothing_before_a_slow_step_is_done(stand: Stand) -> None:
    """SIGTERM in a step of 1.5 s: it ends, its output is acknowledged, then the commit, then exit 0.

    With the offsets finished before the send, the commit passes the running step.
    """
    stand.extra["slow_s"] = 1.5
    stand.settings["ack_delay_s"] = 0.5
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([1])
        await feeder.producer.flush()
        await stand.caught_up("toy-row", "toy.rows")
        await feeder.rows([SLOW])
        for id in range(2, 50):
            await feeder.rows([id])
        await feeder.producer.flush()
        await asyncio.sleep(0.4)
        began = time.monotonic()
        ending = asyncio.create_task(worker.end())
        while not ending.done():
            done = (await stand.committed("toy-row"))[("toy.rows", 0)]
            assert done <= len(await stand.records("toy.small"))
            await asyncio.sleep(0.1)
        assert await ending == 0, worker.tail()
        assert time.monotonic() - began < 10
        outputs = len(await stand.records("toy.small"))
        assert (await stand.committed("toy-row"))[("toy.rows", 0)] <= 50
        assert outputs >= 1


async def test_shell_leaves_without_a_commit_when_a_stop_waits_too_long(stand: Stand) -> None:
    """Outputs that are not acknowledged within the time of a stop: exit 75, nothing committed.

    With the bound of `Runner.settle` removed it stays until the watchdog ends it, 16 s later.
    """
    stand.settings.update(ack_delay_s=60.0, stop_s=1.0, snapshot_stop_s=10.0)
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([1])
        await feeder.producer.flush()
        await asyncio.sleep(0.7)
        assert await worker.end(timeout=10) == 75, worker.tail()
    assert (await stand.committed("toy-row")).get(("toy.rows", 0), -1) <= 0


async def test_shell_leaves_when_a_step_blocks_the_process(stand: Stand) -> None:
    """A step that does not return holds a stop up for a bounded time: exit 75, nothing committed.

    With the loop's own signal handler, or without the watchdog's thread, it stays until the step ends.
    """
    stand.extra["slow_s"] = 60.0
    stand.settings.update(stop_s=1.0, snapshot_stop_s=0.0, leave_s=0.5)
    worker = await stand.worker()
    async with Feeder(stand, "toy.rows", 1) as feeder:
        await feeder.rows([SLOW])
        await feeder.producer.flush()
        await asyncio.sleep(0.7)
        assert await worker.end(timeout=15) == 75, worker.tail()
    assert (await stand.committed("toy-row")).get(("toy.rows", 0), -1) <= 0


async def test_shell_refuses_to_start_without_its_topics(bootstrap: str, tmp_path: Path) -> None:
    """Faust alone reports ready and sits idle."""
    stand = Stand(bootstrap, "no-such-prefix.", tmp_path, ["toy-row"])
    worker = await stand.spare()
    await worker.go(ready=False)
    async with asyncio.timeout(20):
        assert await worker.process.wait() == 78
    assert "toy.rows" in worker.tail()


async def test_shell_sink_writes_each_row_once_although_it_goes_away(
    stand: Stand, measured: Callable[[str], None]
) -> None:
    """The store is away twice in mid-stream and the worker is killed twice: each row is there once, in order.

    Without the seek to the store's offsets rows are missing (a kill before the return hid that at first). What is
    in hand is dropped twice, in `_leave` and `_open`: without both, rows are there twice.
    """
    stand.processors = ["toy-store"]
    stand.settings["bundle_s"] = 0.1
    flag = stand.folder / "away"
    worker, spare = await stand.worker(), await stand.spare()
    async with Feeder(stand, "toy.in", 1) as feeder, Feeder(stand, "toy.rows", 1) as other:
        other.sent = 10**6
        feeder.begin()
        other.begin()
        for after in (1.5, 0.1):  # it has come back when it is killed, and it has not
            await asyncio.sleep(0.7)
            flag.touch()
            await asyncio.sleep(0.7)
            flag.unlink()
            await asyncio.sleep(after)
            await worker.end(signal.SIGKILL)
            worker, spare = spare, await stand.spare()
            await worker.go()
        await asyncio.sleep(0.3)
        await feeder.finish()
        await other.finish()
        seconds = await stand.caught_up("toy-store", "toy.in") + await stand.caught_up(
            "toy-store", "toy.rows"
        )
        assert await worker.end() == 0, worker.tail()
        expected = [*range(1, feeder.sent + 1), *range(10**6 + 1, other.sent + 1)]
    stored = json.loads((stand.folder / "sink.json").read_text())["rows"]
    measured(f"sink away twice, killed twice: {len(stored)} rows once each, caught up in {seconds:.1f} s")
    assert sorted(stored) == expected
    assert [id for id in stored if id < 10**6] == expected[: feeder.sent]
