"""What a reader knows of partitions that were added after it began."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import UnknownTopicOrPartitionError

from aos.streams.shell.options import Options
from aos.streams.shell.reader import Reader


class Client:
    """Knows `known` partitions of a topic, and asks the broker, which has `there`, when it is told to."""

    def __init__(self, known: set[int] | None, there: set[int] | None) -> None:
        self.known, self.there, self.asked = known, there, 0

    async def _wait_on_metadata(self, topic: str) -> set[int]:
        assert topic == "p.t"
        if self.known is None:
            raise UnknownTopicOrPartitionError
        return self.known

    async def force_metadata_update(self) -> None:
        self.asked += 1
        self.known = self.there


def reader_of(client: Any) -> Reader:
    found = Reader(Options("", prefix="p."))
    found._consumer = SimpleNamespace(_client=client)
    return found


async def test_the_broker_is_asked_again_only_for_a_partition_that_is_not_known() -> None:
    client = Client({0}, {0, 1})
    reader = reader_of(client)
    assert await reader.has("t", 0)
    assert client.asked == 0
    assert await reader.has("t", 1)
    assert not await reader.has("t", 2)
    assert client.asked == 2


async def test_a_topic_of_which_the_broker_says_nothing_is_no_topic_without_the_partition() -> None:
    """To take a journal for absent that is only not listed yet would forget decisions."""
    with pytest.raises(UnknownTopicOrPartitionError):
        await reader_of(Client({0}, None)).has("t", 1)
