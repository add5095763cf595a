"""Partitions that are added: what counts for a home, for a cell, and for who sends there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aos.codecs.topics import LANES, SHARED, TOPICS, shared_counts
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Message, Producer
from aos.streams.shell.topics import TopicSpec, spec_of, verify

EVEN = {name: 1 for name, topic in TOPICS.items() if topic.spread}


def test_partitions_that_one_topic_alone_got_change_no_home_and_no_cell() -> None:
    assert shared_counts(EVEN) == EVEN
    for first, *others in SHARED:
        for name in (first, *others):
            assert shared_counts(EVEN | {name: 3})[first] == 1
        together = dict.fromkeys((first, *others), 3)
        assert shared_counts(EVEN | together)[first] == 3


def test_a_tenants_results_count_too() -> None:
    """A result goes to the home of its request, whoever's topic it is on."""
    homes = dict.fromkeys(SHARED[0], 3)
    assert shared_counts(EVEN | homes | {"aos.results.acme": 1})["aos.tasks"] == 1
    assert shared_counts(EVEN | homes | {"aos.results.acme": 3})["aos.tasks"] == 3


def test_what_decides_is_what_encode_and_register_ask() -> None:
    """They ask for the number of partitions of these very topics."""
    assert [names[0] for names in SHARED] == ["aos.tasks", LANES[0]]
    assert {name for names in SHARED for name in names} <= set(TOPICS)


class Broker:
    """One topic with so many partitions."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions

    async def ids(self) -> dict[str, tuple[str, int]]:
        return {"t": ("id", self.partitions)}

    async def config(self, name: str) -> dict[str, str]:
        return {"max.message.bytes": str(1 << 30), **TopicSpec("t").config()}


async def test_a_fixed_topic_may_have_fewer_partitions_than_the_setting_says_and_no_other() -> None:
    assert spec_of(TOPICS["aos.experiences"], 3).fixed
    assert not spec_of(TOPICS["aos.ledger"], 3).fixed
    await verify(Broker(1), [TopicSpec("t", 3, fixed=True)])  # type: ignore[arg-type]
    with pytest.raises(Exception, match="aos topics extend"):
        await verify(Broker(1), [TopicSpec("t", 3)])  # type: ignore[arg-type]


async def test_a_partition_that_is_not_known_is_asked_for_before_it_is_sent_to() -> None:
    """Without that the process ends: its client has an opinion of the topic that is up to 30 s old."""
    asked: list[str] = []
    known = {0}

    async def again() -> None:
        asked.append("again")
        known.add(1)

    cluster = SimpleNamespace(partitions_for_topic=lambda topic: known if topic == "p.t" else None)
    producer = Producer(Options("", prefix="p."))
    producer._producer = SimpleNamespace(client=SimpleNamespace(cluster=cluster, force_metadata_update=again))

    def to(topic: str, partition: int) -> Any:
        return Message(topic, partition, None, b"", {})

    for message in (to("t", 0), to("other", 9), to("t", 1), to("t", 1)):
        await producer._learn(message)
    assert asked == ["again"]
