"""Planted bugs of the shell, the learners, the collector and the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aos.streams import topology
from aos.streams.processor import Step
from tests.chaos.planting import Every, Rows, bug, put, rows_by, some, without_some


@bug("shell", "I1", "I2", faults="3,3,3")
def shell_acks_before_it_sends() -> None:
    """The input is acknowledged first, the outputs are sent a moment later."""
    import asyncio

    from aos.streams.shell.loop import Loop

    send = Loop.send

    async def late(self: Loop, out: Any) -> None:
        for item in self.inputs.values():
            self.kit.consumer.finished(item.tp, 0, item.position)
        if not out.empty:
            await self.kit.consumer.commit()
            await asyncio.sleep(0.3)
        await send(self, out)

    Loop.send = late  # type: ignore[method-assign]


@bug("shell", "I1", "I2", "I5")
def shell_drops_messages() -> None:
    """Each hundredth message to the broker is taken for sent."""
    from aos.streams.shell.producer import Message, Producer

    deliver, turn = Producer.deliver, Every(100)

    async def drop(self: Producer, messages: Sequence[Message]) -> list[int]:
        return await deliver(self, [one for one in messages if one.topic == "aos.snapshots" or not turn()])

    Producer.deliver = drop  # type: ignore[method-assign]


@bug("shell", "I1", "I2")
def shell_swallows_errors() -> None:
    """What a step fails on is acknowledged, and no dead letter tells of it."""
    from aos.streams.shell.loop import Loop

    step, turn = Loop._step, Every(60)

    def swallow(self: Loop, batch: Any, raw: Any, out: Any, muted: bool) -> bool:
        return True if not batch.tick and turn() else step(self, batch, raw, out, muted)

    Loop._step = swallow  # type: ignore[method-assign]


@bug("shell", "I1", "I2", "I5", faults="3,3,3")
def shell_restores_nothing() -> None:
    """After a crash the fold begins at its snapshot's offset with an empty state."""
    real = topology.PROCESSORS["supervise"]
    topology.PROCESSORS["supervise"] = replace(real, load=lambda partition, parts: real.initial(partition))


@bug("shell", "I11")
def shell_logs_its_secret() -> None:
    """The key of the tokens in the log."""
    import os

    print(f"starting with {os.environ.get('AOS_SECRET')}", file=sys.stderr, flush=True)


@bug("collect", "I2", "I9")
def collect_drops() -> None:
    """Each thirtieth trail teaches nobody and reaches no table."""
    rows_by("collect", "aos.experiences", without_some(30))


@bug("collect", "I7")
def collect_crosses_tenants() -> None:
    """Each thirtieth experience is another tenant's."""
    turn = Every(30)
    rows_by("collect", "aos.experiences", lambda rows: some(rows, "tenant", turn, "umbra"))


def learn_from(change: Callable[[Rows], Rows]) -> None:
    """Change what the learner is given."""
    real = topology.PROCESSORS["learn"]

    def step(state: Any, batch: Any, *rest: Any) -> Step[Any]:
        return real.step(state, replace(batch, rows=change(batch.rows)), *rest)

    topology.PROCESSORS["learn"] = replace(real, step=step)


@bug("learn", "I9")
def learn_teaches_twice() -> None:
    """Every outcome is a lesson twice, under the number of an attempt that never was."""

    def twice(rows: Rows) -> Rows:
        again = put(rows, "attempt", [number + 50 for number in rows.column("attempt").to_pylist()])
        return pa.concat_batches([rows, again])

    learn_from(twice)


@bug("learn", "I9")
def learn_forgets() -> None:
    """Each tenth outcome teaches nothing."""
    turn = Every(10)
    learn_from(lambda rows: rows.filter(pa.array([not turn() for _ in range(rows.num_rows)], pa.bool_())))


@bug("mine", "I9")
def mine_exaggerates() -> None:
    """A pattern rests on a hundred times as many collaborations as there were."""
    rows_by(
        "mine", "aos.patterns", lambda rows: put(rows, "support", pc.multiply(rows.column("support"), 100))
    )


@bug("optimise", "I9")
def optimise_foretells() -> None:
    """A policy rests on experiences that are not there yet."""
    rows_by(
        "optimise",
        "aos.strategies",
        lambda rows: put(rows, "version", pc.add(rows.column("version"), 1_000_000)),
    )


@bug("store", "I4")
def store_counts_twice() -> None:
    """Each request counts two in the rollups."""
    from aos.infra import rollups

    rollups.MEASURES["requests"]["request"] = "2"


@bug("store", "I2", "I4")
def store_moves_on_without_rows() -> None:
    """Each tenth bundle moves the place and writes no row."""
    from aos.infra.store import TimescaleSink

    insert, turn = TimescaleSink._insert, Every(10)

    async def skip(self: TimescaleSink, batches: Any) -> set[str]:
        return set() if turn() else await insert(self, batches)

    TimescaleSink._insert = skip  # type: ignore[method-assign]


@bug("store", "I6")
def store_falls_back() -> None:
    """Each twentieth bundle sets the place back."""
    from aos.infra.store import TimescaleSink

    advance, turn = TimescaleSink._advance, Every(20)

    async def back(self: TimescaleSink, batches: Any) -> None:
        if turn():
            batches = [one._replace(offset=max(-1, one.offset - 10)) for one in batches]
        await advance(self, batches)

    TimescaleSink._advance = back  # type: ignore[method-assign]
