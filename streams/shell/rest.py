"""Standing still by order: between two rounds, so that nothing is in the air but what waits unread; that comes again.

The owner of a partition says so in its group's commit: what is below is done, nothing above was taken. A commit's own
words (metadata) need no topic and no state: they stand where the offset stands, survive restarts, and go with the next
commit of work. Whoever gave the order finds them there (infra/orders.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP

from aos.streams.shell.consumer import SafeConsumer
from aos.streams.shell.fatal import log
from aos.streams.shell.kit import Input, Kit

AGAIN_S = 0.5  # after a broker did not take it


class Resting(Protocol):
    """What can stand still: `heeded` is the mark of the order it stands under, empty for none."""

    kit: Kit
    stopping: bool
    heeded: str

    @property
    def inputs(self) -> Mapping[Any, Input]: ...

    async def hold(self, all_of_them: bool) -> None:
        """Read no input, or again all that may be read."""


async def heed(port: Resting) -> None:
    """Stand still, or go on, as is ordered now; the last look is made without waiting."""
    while not port.stopping and (ordered := port.kit.ordered()) != port.heeded:
        await port.hold(all_of_them=bool(ordered))
        places = {item.tp: item.position for item in port.inputs.values()}
        if await mark(port.kit.consumer, places, ordered):
            port.heeded = ordered
        else:
            await asyncio.sleep(AGAIN_S)


async def mark(consumer: SafeConsumer, positions: Mapping[TP, int], word: str) -> bool:
    """Commit where each partition is (never less than is committed), with `word`; False when it was not taken."""
    async with consumer._committing:
        wanted = {}
        for tp, position in positions.items():
            flight = consumer.flights.get(tp)
            if flight is None:  # revoked meanwhile: its next owner says it
                continue
            if flight.committed is None and flight.position() is None and position > 0:
                continue  # nothing was ever done: a commit would claim that what is gone from the log was
            wanted[tp] = max(position, flight.committed or 0)
        offsets = {TopicPartition(*tp): OffsetAndMetadata(offset, word) for tp, offset in wanted.items()}
        if not offsets:
            return True
        thread = consumer.thread
        try:
            await thread.here(thread._ensure_consumer().commit(offsets))
        except (KafkaError, IllegalStateError) as error:
            log.warning("the commit that says %r was not taken: %r", word, error)
            return False
        for tp, offset in wanted.items():
            consumer.flights[tp].committed = offset
    return True
