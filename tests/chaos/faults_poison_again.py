"""Fault 18: input three times, reordered within a window, and whole input topics read again from their beginning."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from random import Random

import psycopg
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from aos.codecs.topics import tenant_topic
from tests.chaos.faults import Injected, inject_by
from tests.chaos.faults_poison_kit import AGAIN, JSON, READ_S, Poison, Poisoner, Watch
from tests.chaos.looks import written
from tests.chaos.stand import BACK_S, Stand

WINDOW = 20  # requests that are shuffled among each other, each three times
WINDOWS = 3
EDGE = "worker-edge-0"
STOP_S = 30.0
ANSWER_S = 60.0
# what of a request must not change when it comes again, by the ids of the first wave
DIGEST = (
    "SELECT r.id, r.round, e.status, e.code, e.finished_at, e.attempts, e.cost_usd_micros, e.latency_us, "
    "(SELECT count(*) FROM aos_data.attempt a WHERE a.request_id = r.request_id), "
    "(SELECT count(*) FROM aos_data.decision d WHERE d.request_id = r.request_id) "
    "FROM aos_data.request r JOIN aos_data.result e USING (requested_at, request_id, round) "
    "WHERE r.id = ANY(%s) ORDER BY 1, 2"
)


def again(stand: Stand, random: Random) -> Injected:
    """Each of some requests three times in any order; once more when all are answered; then whole topics once more."""
    began, failed = time.time(), []
    watch = Watch(stand, 18)
    with Poisoner(stand, 18) as poisoner:
        first = [
            poisoner.neighbour(number, random.choice(poisoner.tenants)) for number in range(WINDOW * WINDOWS)
        ]
        for start in range(0, len(first), WINDOW):
            window = first[start : start + WINDOW] * 3
            random.shuffle(window)
            poisoner.send(window)
        ids = [poison.id for poison in first if poison.id is not None]
        before = stored(stand, ids)
        if before is None:
            failed.append(("I1", f"not all of {len(ids)} requests were stored within {ANSWER_S:.0f} s"))
        answers = written(stand, "aos.results", stand.settings.tenants)
        poisoner.send(
            [
                Poison("asked again", one.topic, one.value, AGAIN, JSON, one.id, True, (), one.expect)
                for one in first
            ]
        )
        failed += [("I10", what) for what in poisoner.unread()]
        watch.note()
        replayed = replay(stand)
        poisoner.send([poisoner.neighbour(len(first), tenant) for tenant in poisoner.tenants])
        failed += [("I10", what) for what in poisoner.unread()]
        stand.wait_work()
        after = stored(stand, ids)
        if before is not None and after != before:
            failed.append(("I2", f"SQL says other things of {len(ids)} requests that were only asked again"))
    said = written(stand, "aos.results", stand.settings.tenants) - answers
    detail = f"{len(ids)} requests 4 times, {replayed} messages read again, {said} messages of results since"
    return Injected(began, time.time(), EDGE, failed=tuple(failed), detail=detail)


def stored(stand: Stand, ids: Sequence[str]) -> str | None:
    """A digest of what SQL has of these requests once all of them ended; None when they do not in time."""
    ends = time.monotonic() + ANSWER_S
    with psycopg.connect(stand.settings.database_url, autocommit=True) as link:
        before: str | None = None
        while time.monotonic() < ends:
            rows = link.execute(DIGEST, [list(ids)]).fetchall()
            now = hashlib.sha256(repr(rows).encode()).hexdigest() if len(rows) == len(ids) else None
            if now is not None and now == before:
                return now  # twice the same: decisions and attempts are written by other bundles than results
            before = now
            time.sleep(1.0)
    return None


def replay(stand: Stand) -> int:
    """Set the edges back to the beginning of requests, outcomes and feedback; how many offsets they read again."""
    prefix, tenants = stand.settings.prefix, stand.settings.tenants
    groups = {
        "encode": [tenant_topic("aos.requests", tenant) for tenant in tenants],
        "admit": ["aos.outcomes", *(tenant_topic("aos.feedback", tenant) for tenant in tenants)],
    }
    stand.up.stack.children.stop(EDGE, STOP_S)
    count = 0
    for processor, topics in groups.items():
        group = f"{prefix}aos.{processor}"
        places = [
            TopicPartition(prefix + topic, number)
            for topic in topics
            for number in range(stand.settings.partitions)
        ]
        consumer = Consumer({"bootstrap.servers": stand.settings.bootstrap, "group.id": group})
        count += sum(max(0, place.offset) for place in consumer.committed(places, timeout=10))
        consumer.close()
        set_back(stand, group, [TopicPartition(place.topic, place.partition, 0) for place in places])
    at = time.time()
    stand.up.start_worker("edge")
    while not stand.ready(EDGE, at):
        if time.time() > at + BACK_S:
            raise RuntimeError(f"{EDGE} did not start again")
        time.sleep(0.1)
    return count


def set_back(stand: Stand, group: str, places: list[TopicPartition]) -> None:
    """Change a group's offsets; the broker refuses while it still counts a member."""
    admin = AdminClient({"bootstrap.servers": stand.settings.bootstrap})
    ends = time.monotonic() + READ_S
    while True:
        try:
            request = [ConsumerGroupTopicPartitions(group, places)]
            admin.alter_consumer_group_offsets(request)[group].result(10)
            return
        except KafkaException:
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)


inject_by(18, again)
