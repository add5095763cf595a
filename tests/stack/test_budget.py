"""The budget of design.md, counted on the running topology: the message is the unit of cost, not the row.

At 300 requests/s from ten tenants, one row a message: what each topic-partition takes, and how many messages a batch of
encode causes on its way (streams/describe.py lists them). An edge reads all records of a fetch as one.

A hop is one message written and made durable, however many read it: that is what a task waits for and what the
broker keeps (ARCHITECTURE.md, "The budget"), and it must keep within `HOPS_MAX`. Messages *read* by all processors are
told beside it and are more (about 24 where 15 are written): store alone reads every log that becomes a table, off the
task's way. Fan-out is no hop more: a batch that holds rows of several tenants and for several services goes to several
results and inbox topics at once; of those the busiest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from aos.codecs.topics import TOPICS, base_of
from aos.infra.up import Up
from aos.streams.describe import HOPS_MAX, WAY
from aos.streams.topology import PROCESSORS
from benchmarks.pipeline.stand import Outcome, Stand
from benchmarks.pipeline.verdict import judge
from benchmarks.pipeline.workload import TENANTS, Load
from tests.stack.loopkit import running, settings_for

MESSAGES_MAX = 40  # a second and topic-partition
LOAD = Load("budget", rate=300, seconds=10)  # which slow machines hold: a backlog counts batches of before
DRAIN_S = 60.0

Ends = dict[tuple[str, int], int]


@pytest.fixture
def up(bootstrap: str, database_url: str, topic_prefix: str) -> Iterator[Up]:
    with running(settings_for(bootstrap, database_url, topic_prefix, tenants=TENANTS), services=0) as up:
        yield up


def ends(up: Up) -> Ends:
    """The next offset of every topic-partition, by name without prefix."""
    admin = AdminClient({"bootstrap.servers": up.settings.bootstrap})
    prefix = up.settings.prefix
    places = [
        TopicPartition(name, number)
        for name, topic in admin.list_topics(timeout=10).topics.items()
        if name.startswith(prefix)
        for number in topic.partitions
    ]
    asked = admin.list_offsets({place: OffsetSpec.latest() for place in places})
    return {
        (place.topic[len(prefix) :], place.partition): found.result(10).offset
        for place, found in asked.items()
    }


def written_by_aos(topic: str) -> bool:
    """Whether processors write it; the others hold what outsiders send, one row a message if they like."""
    base = base_of(topic)
    outside = base in TOPICS and TOPICS[base].edge and not any(base in p.writes for p in PROCESSORS.values())
    return not outside


def rates(outcome: Outcome) -> dict[tuple[str, int], float]:
    """Messages a second of every topic-partition while the load ran."""
    (began, before), (ended, after) = outcome.probed
    return {place: (end - before.get(place, end)) / (ended - began) for place, end in after.items()}


def hops_a_batch(outcome: Outcome, by_place: dict[tuple[str, int], float]) -> dict[str, float]:
    """Hops: messages written to each topic on the way that one batch causes. Its sum is what the budget bounds."""
    found = {}
    for topic in dict.fromkeys(topic for _, topic in WAY):
        own = [rate for (name, _), rate in by_place.items() if base_of(name) == topic]
        reader = next((name for name, p in PROCESSORS.items() if p.edge and topic in p.reads), None)
        fans_out = topic in ("aos.results", "aos.inbox")
        found[topic] = (
            outcome.processors[reader]["rounds_s"] if reader else max(own) if fans_out else sum(own)
        )
    return {topic: rate / found["aos.tasks"] for topic, rate in found.items()}


def read_a_batch(outcome: Outcome, batches_s: float) -> dict[str, float]:
    """Messages that each processor reads for one batch, those of views and controls too: told, not bounded."""
    found = {}
    for name, did in outcome.processors.items():
        found[name] = (did["rounds_s"] if PROCESSORS[name].edge else did["messages_in_s"]) / batches_s
    return found


def test_messages_of_a_partition_and_hops_of_a_batch_keep_within_the_budget(
    up: Up, measured: Callable[[str], None]
) -> None:
    stand = Stand(up)
    stand.start_services()
    stand.run(Load("warm", 100, 3, seed=2), DRAIN_S)
    outcome = stand.run(LOAD, DRAIN_S, probe=lambda: (time.monotonic(), ends(up)))
    verdict = judge(outcome)
    assert (verdict.lost, outcome.refused) == (0, 0)
    by_place = rates(outcome)
    inner = {place: rate for place, rate in by_place.items() if written_by_aos(place[0])}
    outside = {place: rate for place, rate in by_place.items() if not written_by_aos(place[0])}
    batches_s = sum(rate for (topic, _), rate in inner.items() if topic == "aos.tasks")
    hops, read = hops_a_batch(outcome, by_place), read_a_batch(outcome, batches_s)
    busiest = sorted(inner.items(), key=lambda item: -item[1])
    held = "held" if verdict.held else "NOT HELD"
    measured(
        f"at {LOAD.rate:g}/s one row a message ({held}, p95 {verdict.arrival['p95']:.0f} ms), "
        f"messages/s a topic-partition: {_told(dict(busiest[:12]))}"
    )
    measured(f"written by outsiders (no budget): {_told(outside)}")
    measured(
        f"messages on a batch's way ({batches_s:.1f} batches/s of {LOAD.rate / batches_s:.1f} requests): "
        f"{sum(hops.values()):.1f} = {_listed(hops)}; read by processors: {sum(read.values()):.1f} = {_listed(read)}"
    )
    over = {place: rate for place, rate in inner.items() if rate > MESSAGES_MAX}
    assert not over
    assert sum(hops.values()) <= HOPS_MAX


def _told(rates: dict[tuple[str, int], float]) -> str:
    return ", ".join(f"{topic}/{number} {rate:.1f}" for (topic, number), rate in rates.items() if rate >= 1)


def _listed(counts: dict[str, float]) -> str:
    return ", ".join(f"{name} {count:.1f}" for name, count in counts.items())
