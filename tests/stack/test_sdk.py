"""The SDK on the real broker: assignments in, outcomes out, whatever handlers do."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from aos.agents import Answer, Refuse, Service, Work
from aos.codecs import rows, wire
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, inbox, record_of
from aos.infra.runtime import inbox_spec, options
from aos.streams.shell.topics import provision, spec_of

EDGES = ("aos.agents", "aos.heartbeats", "aos.outcomes")


def slow_square(work: Work) -> Answer:
    """A handler that computes, for a process of its own."""
    return Answer(str(int(work.text or "0") ** 2).encode(), "text/plain")


def echoed(work: Work) -> str:
    """What was asked."""
    return work.text or ""


class Bench:
    """Topics under the test's prefix, a producer of assignments, a reader of outcomes."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.settings = Settings(bootstrap=bootstrap, prefix=prefix, inbox_partitions=1)
        self.service = Service("lab", bootstrap=bootstrap, prefix=prefix, heartbeat_s=0.2, grace_s=5)

    @asynccontextmanager
    async def running(self, serve: bool = True) -> AsyncIterator[Bench]:
        specs = [spec_of(TOPICS[name], 1) for name in EDGES]
        inbox_topic = inbox_spec(inbox("lab"), self.settings)
        assert inbox_topic is not None
        await provision(options(self.settings), [*specs, inbox_topic])
        common = {"bootstrap_servers": self.settings.bootstrap}
        self.producer = AIOKafkaProducer(**common)
        self.consumer = AIOKafkaConsumer(
            *[self.settings.prefix + name for name in EDGES], auto_offset_reset="earliest", **common
        )
        await self.producer.start()
        await self.consumer.start()
        serving = asyncio.create_task(self.service.serve()) if serve else None
        try:
            yield self
        finally:
            if serving is not None:
                self.service.stop()
                await serving
            await self.consumer.stop()
            await self.producer.stop()

    async def assign(self, *works: dict[str, Any]) -> None:
        """Put rows into the inbox as supervise does."""
        base = {
            "tenant": "default", "request_id": b"r" * 16, "requested_at": 0, "home": 3, "domain": "default", "round": 0,
            "kind": "work", "step": 0, "step_name": "only", "attempt": 1, "service": "lab", "agent": "echo",
            "epoch": 7, "token": b"t" * 16, "inputs": [], "timeout_ms": 20_000,
        }  # fmt: skip
        value, headers = wire.encode(
            rows.from_dicts("assignment", [base | work for work in works]), record_of(inbox("lab"))
        )
        await self.producer.send_and_wait(
            self.settings.prefix + inbox("lab"), value, partition=0, headers=list(headers.items())
        )

    async def read(self, name: str, count: int) -> list[dict[str, Any]]:
        """The next `count` rows of a topic."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                message = await self.consumer.getone()
                if message.topic == self.settings.prefix + name:
                    found += wire.decode(message.value, dict(message.headers), record_of(name)).to_pylist()
        return found


@pytest.fixture
def bench(bootstrap: str, topic_prefix: str) -> Bench:
    return Bench(bootstrap, topic_prefix)


async def test_an_answer_echoes_the_assignment(bench: Bench) -> None:
    @bench.service.agent("echo", capabilities=["echo"], price_usd_micros=5)
    async def echo(work: Work) -> str:
        return f"{work.text} {work.input('before').payload!r}"

    async with bench.running():
        (registered,) = await bench.read("aos.agents", 1)
        assert (registered["agent"], registered["capabilities"], registered["price_usd_micros"]) == (
            "echo",
            ["echo"],
            5,
        )
        inputs = [{"name": "before", "payload": b"x", "content_type": None}]
        await bench.assign({"text": "hello", "inputs": inputs})
        (outcome,) = await bench.read("aos.outcomes", 1)
        assert outcome["status"] == "ok"
        assert outcome["payload"] == b"hello b'x'"
        echoed = {name: outcome[name] for name in ("request_id", "home", "step", "attempt", "epoch", "token")}
        assert echoed == {
            "request_id": b"r" * 16,
            "home": 3,
            "step": 0,
            "attempt": 1,
            "epoch": 7,
            "token": b"t" * 16,
        }


async def test_a_replica_with_a_name_that_was_killed_reads_on_at_once_and_one_that_stops_leaves(
    bootstrap: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    bench = Bench(bootstrap, topic_prefix)
    environment = {
        **os.environ,
        "AOS_BOOTSTRAP": bootstrap,
        "AOS_PREFIX": topic_prefix,
        "AOS_REPLICA": "first",
    }

    async def program() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, __file__, env=environment)

    async with bench.running(serve=False):
        killed = await program()
        await bench.assign({"text": "one"})
        assert [row["payload"] for row in await bench.read("aos.outcomes", 1)] == [b"one"]
        killed.kill()
        await killed.wait()
        await bench.assign({"text": "two", "attempt": 2})
        began = time.monotonic()
        again = await program()
        payloads: set[bytes] = set()  # an answer whose offset was not committed comes again
        while b"two" not in payloads:
            payloads |= {row["payload"] for row in await bench.read("aos.outcomes", 1)}
        took = time.monotonic() - began
        again.terminate()
        assert await again.wait() == 0
        environment["AOS_REPLICA"] = "second"
        began = time.monotonic()
        other = await program()
        await bench.assign({"text": "three", "attempt": 3})
        while b"three" not in payloads:
            payloads |= {row["payload"] for row in await bench.read("aos.outcomes", 1)}
        left = time.monotonic() - began
        other.terminate()
        await other.wait()
    measured(
        f"a killed replica answers {took:.1f} s after its start; another's turn after a stop: {left:.1f} s"
    )
    assert max(took, left) < 8  # a session is 10 s: nobody waited for one


async def test_every_failure_of_a_handler_is_a_failed_outcome(bench: Bench) -> None:
    @bench.service.agent(["echo", "late"], capabilities=["x"], capacity=4)
    async def handler(work: Work) -> str:
        if work.text == "refuse":
            raise Refuse("never", code="AOS3001", retryable=False)
        if work.text == "break":
            raise ZeroDivisionError("oops")
        await asyncio.sleep(30)
        return "too late"

    async with bench.running():
        await bench.assign(
            {"text": "refuse", "step": 1},
            {"text": "break", "step": 2},
            {"text": "wait", "step": 3, "agent": "late", "timeout_ms": 1500},
        )
        outcomes = {row["step"]: row for row in await bench.read("aos.outcomes", 3)}
        assert [outcomes[step]["status"] for step in (1, 2, 3)] == ["failed"] * 3
        assert [outcomes[step]["retryable"] for step in (1, 2, 3)] == [False, True, True]
        assert outcomes[3]["code"] == "AOS3002"
        assert outcomes[2]["message"] == "oops"


async def test_a_cancelled_attempt_stops_and_says_nothing(bench: Bench) -> None:
    stopped = asyncio.Event()

    @bench.service.agent("echo", capabilities=["x"], capacity=2)
    async def handler(work: Work) -> str:
        try:
            await asyncio.sleep(0 if work.text == "quick" else 30)
        except asyncio.CancelledError:
            stopped.set()
            raise
        return "done"

    async with bench.running():
        await bench.assign({"text": "long", "step": 1})
        await asyncio.sleep(0.5)
        await bench.assign({"text": "long", "step": 1, "kind": "cancel"})
        await asyncio.wait_for(stopped.wait(), 10)
        await bench.assign({"text": "quick", "step": 2})
        (outcome,) = await bench.read("aos.outcomes", 1)
        assert outcome["step"] == 2


async def test_progress_batches_and_processes(bench: Bench) -> None:
    sizes: list[int] = []

    @bench.service.agent(["echo", "other"], capabilities=["x"], batch=True, capacity=8)
    async def many(batch: list[Work]) -> list[Any]:
        sizes.append(len(batch))
        return [ValueError("this one") if work.text == "bad" else work.text for work in batch]

    @bench.service.agent("patient", capabilities=["y"])
    async def patient(work: Work) -> str:
        await work.progress(0.5)
        return "done"

    bench.service.agent("square", capabilities=["z"], process=True)(slow_square)
    async with bench.running():
        await bench.assign(
            {"text": "a", "step": 1},
            {"text": "bad", "step": 2, "agent": "other"},
            {"step": 3, "agent": "patient"},
            {"text": "12", "step": 4, "agent": "square"},
        )
        found = await bench.read("aos.outcomes", 5)
        by_step = {row["step"]: row for row in found if row["status"] != "progress"}
        assert [by_step[step]["status"] for step in (1, 2, 3, 4)] == ["ok", "failed", "ok", "ok"]
        assert [row["step"] for row in found if row["status"] == "progress"] == [3]
        assert by_step[4]["payload"] == b"144"
        assert by_step[4]["cpu_us"] is not None
        assert max(sizes) == 2


async def test_what_expired_in_the_inbox_is_not_done(bench: Bench) -> None:
    done: list[int] = []

    @bench.service.agent("echo", capabilities=["x"])
    async def handler(work: Work) -> None:
        done.append(work.attempt)

    past = int((time.time() - 60) * 1e6)
    async with bench.running():
        await bench.assign({"attempt": 1, "deadline_at": past}, {"attempt": 2})
        (outcome,) = await bench.read("aos.outcomes", 1)
        assert outcome["attempt"] == 2
        assert done == [2]


async def test_a_service_says_goodbye_when_it_stops(bench: Bench) -> None:
    @bench.service.agent("echo", capabilities=["x"])
    async def handler(work: Work) -> None: ...

    async with bench.running():
        await asyncio.wait_for(bench.service.ready.wait(), 20)
        bench.service.stop()
        beats = []
        while not beats or not beats[-1]["stopping"]:
            beats += await bench.read("aos.heartbeats", 1)
    assert [beat["stopping"] for beat in beats[-2:]] == [False, True]


if __name__ == "__main__":
    named = Service("lab")
    named.agent("echo", capabilities=["echo"])(echoed)
    named.run()
