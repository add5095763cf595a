"""Suite poison: bytes that are no records, tensors that lie, bombs, every codec of the broker, oversize messages.

All of it goes to the running stand beside the load, among good requests in the same partitions. What became of each is
the judge's to say (judge_poison.py); here only whether it was read in time and whether work goes on.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest

from tests.chaos import faults_poison_bytes as catalogue
from tests.chaos.faults import Injected, inject_by
from tests.chaos.faults_poison_kit import (
    ANSWERED,
    ENDED,
    JSON,
    LETTER,
    MUST_REFUSE,
    Poison,
    Poisoner,
    Watch,
    most,
    request_topic,
    stream,
)
from tests.chaos.journal import ACKNOWLEDGED, REFUSED
from tests.chaos.stand import Stand

MUTATED = 12  # a topic
READY_S = 60.0  # all workers at once, on states of poisoned logs
CODECS = ("gzip", "snappy", "lz4", "zstd")
A_CODEC = 24  # requests, by each of two clients
LIMIT = 1 << 20  # bytes of a message on a topic that outsiders write
PAYLOAD = 32_768  # bytes of text and payload together


def done(poisoner: Poisoner, watch: Watch, began: float, last: Sequence[Poison] = ()) -> Injected:
    """Wait until all of it is read; what was seen. `last`: what is sent before all workers are killed at once."""
    unread = poisoner.unread()
    if not poisoner.stand.wait_work():
        unread.append("no result within 60 s of the poison")
    rise = watch.note()
    failed = [("I10", what) for what in unread]
    if last:
        poisoner.send(last)
        failed += restarted(poisoner.stand)
        failed += [("I10", what) for what in poisoner.unread()]
    healed = time.time()
    count = sum(poisoner.counts.values())
    detail = f"{count} messages of {len(poisoner.counts)} kinds; {most(rise)}"
    return Injected(began, healed, "all inputs", failed=tuple(failed), detail=detail)


def restarted(stand: Stand) -> Iterator[tuple[str, str]]:
    """The poison is in the logs that states are rebuilt from: SIGKILL before a snapshot is beyond it, and up again."""
    at = time.time()
    for name in stand.workers():
        stand.up.stack.children.kill(name)
    if not stand.wait_ready(at, READY_S):
        late = [name for name in stand.workers() if not stand.ready(name, at)]
        yield "I10", f"{', '.join(late)}: not ready {READY_S:.0f} s after a restart on poisoned logs"


def no_records(stand: Stand, random: Random) -> Injected:
    """Fault 20: cut off behind every byte, mutated, of other records and columns; to every topic that is read."""
    began, all_of = time.time(), catalogue.corpus()
    watch = Watch(stand, 20)
    with Poisoner(stand, 20) as poisoner:
        tenants = stand.settings.tenants
        topics = [*(request_topic(tenant) for tenant in tenants), *catalogue.EDGES, *catalogue.INNER]
        bad = [*catalogue.cut_off(poisoner.name, tenants), *catalogue.among_good_rows(poisoner.name, tenants)]
        for topic in topics:
            bad += catalogue.handmade(all_of, topic)
            bad += catalogue.bent(random, all_of, topic, MUTATED)
        random.shuffle(bad)
        poisoner.among_neighbours(bad)
        # what allocate reads again when it starts, as supervise does the ledger
        last = [
            poison
            for topic in ("aos.ledger", "aos.decisions")
            for poison in catalogue.handmade(all_of, topic)
        ]
        return done(poisoner, watch, began, last)


def tensors(stand: Stand, random: Random) -> Injected:
    """Fault 21: values, shapes, types and extension metadata that lie, in requests and on inner topics."""
    began, all_of = time.time(), catalogue.corpus()
    watch = Watch(stand, 21)
    with Poisoner(stand, 21) as poisoner:
        tenants = stand.settings.tenants
        bad = [
            *catalogue.tensors(poisoner.name, tenants),
            *catalogue.lying_tensors(tenants),
            *catalogue.other_sizes(all_of),
            *(
                catalogue.not_finite(random, all_of, topic)
                for topic in catalogue.NOT_FINITE
                for _ in range(5)
            ),
        ]
        poisoner.among_neighbours(bad)
        return done(poisoner, watch, began)


def bombs(stand: Stand, random: Random) -> Injected:
    """Fault 22: every bomb of the fuzz room, as messages and as record batches of the broker."""
    began = time.time()
    with Poisoner(stand, 22) as poisoner:
        tenants = stand.settings.tenants
        bad = list(catalogue.small_bombs(poisoner.name, tenants))
        batches = []
        for number, (name, codec, value, count) in enumerate(catalogue.BATCHES):
            poison = Poison(name, request_topic(tenants[number % len(tenants)]), b"")
            batches.append((poison, catalogue.record_batch(codec, value, count), count))
        watch = Watch(stand, 22)
        poisoner.among_neighbours(bad)
        for poison, packed, count in batches:
            asyncio.run(produce_raw(poisoner, poison, packed, count))
            poisoner.send([poisoner.neighbour(10_000 + sum(poisoner.counts.values()), "default")])
        return done(poisoner, watch, began)


async def produce_raw(poisoner: Poisoner, poison: Poison, packed: bytes, count: int) -> None:
    """Send a record batch as it is, past all client libraries."""
    line = poisoner.line(poison, packed=True)
    poisoner.counts[poison.what] = poisoner.counts.get(poison.what, 0) + 1
    poisoner.told([line])
    topic = poisoner.prefix + poison.topic
    client = AIOKafkaClient(bootstrap_servers=poisoner.stand.settings.bootstrap)
    await client.bootstrap()
    try:
        await client._wait_on_metadata(topic)
        (node,) = {broker.nodeId for broker in client.cluster.brokers()}
        answer = await client.send(node, ProduceRequest(None, -1, 30_000, [(topic, [(0, packed)])]))
        _, ((_, code, offset, *_),) = answer.topics[0]
    finally:
        await client.close()
    if code:
        poisoner.told([{"n": line["n"], "state": "refused", "error": for_code(code).__name__}])
        return
    last = offset + count - 1  # the whole batch is one dead letter, at its last offset
    poisoner.told([{"n": line["n"], "state": "acknowledged", "partition": 0, "offset": last}])
    place = (poison.topic, 0)
    poisoner.places[place] = max(last, poisoner.places.get(place, -1))


def codecs(stand: Stand, random: Random) -> Injected:
    """Fault 23: good requests in batches of each codec, by librdkafka and by aiokafka (which frames snappy as Java)."""
    began, failed = time.time(), []
    watch = Watch(stand, 23)
    for codec in CODECS:
        with Poisoner(stand, 23, **{"compression.type": codec, "linger.ms": 200}) as poisoner:
            poisoner.send(good(poisoner, f"{codec} by librdkafka"))
            asyncio.run(send_by_aiokafka(poisoner, good(poisoner, f"{codec} by aiokafka"), codec))
            failed += [("I10", what) for what in poisoner.unread()]
    if not stand.wait_work():
        failed.append(("I10", "no result within 60 s"))
    rise = watch.note()
    there = codecs_in(stand)
    failed += [("I1", f"no batch of {codec} is in the log") for codec in CODECS if codec not in there]
    detail = f"{2 * A_CODEC} requests of each codec; in the log: {', '.join(sorted(there))}; {most(rise)}"
    return Injected(began, time.time(), "aos.requests", failed=tuple(failed), detail=detail)


def good(poisoner: Poisoner, what: str) -> list[Poison]:
    """Requests that must be answered, as JSON and as Arrow, for all tenants."""
    found, tenants = [], poisoner.tenants
    for number in range(A_CODEC):
        id = f"{poisoner.name}-{what.replace(' ', '-')}-{number}"
        row, topic = catalogue.asked(id), request_topic(tenants[number % len(tenants)])
        if number % 2:
            value, headers = stream([row], catalogue.REQUEST), catalogue.ARROW
        else:
            value, headers = json.dumps(row).encode(), JSON
        found.append(
            Poison(what, topic, value, ANSWERED, headers, id, plain=True, expect=f"task {id}".upper())
        )
    return found


async def send_by_aiokafka(poisoner: Poisoner, all_of: Sequence[Poison], codec: str) -> None:
    """Send by the other client, and write down as `Poisoner.send` does."""
    lines, entries = [], []
    for poison in all_of:
        lines.append(poisoner.line(poison))
        poisoner.counts[poison.what] = poisoner.counts.get(poison.what, 0) + 1
        assert poison.id is not None
        tenant = lines[-1]["tenant"]
        entries.append(poisoner.entry(tenant, poison.id, poison.expect))
    poisoner.told(lines)
    poisoner.journal.sent(entries)
    bootstrap = poisoner.stand.settings.bootstrap
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type=codec, acks="all", linger_ms=200
    ) as producer:
        sends = [
            await producer.send(
                poisoner.prefix + poison.topic, poison.value, key=poisoner.name.encode(),
                headers=list(poison.headers.items()),
            )
            for poison in all_of
        ]  # fmt: skip
        ends: list[Any] = await asyncio.gather(*sends, return_exceptions=True)
    for poison, line, entry, end in zip(all_of, lines, entries, ends, strict=True):
        if isinstance(end, KafkaError):
            poisoner.journal.settled(entry, REFUSED)
            poisoner.told([{"n": line["n"], "state": "refused", "error": repr(end)}])
            continue
        if isinstance(end, BaseException):
            raise end
        poisoner.journal.settled(entry, ACKNOWLEDGED)
        said = {"state": "acknowledged", "partition": end.partition, "offset": end.offset}
        poisoner.told([{"n": line["n"], **said}])
        place = (poison.topic, end.partition)
        poisoner.places[place] = max(end.offset, poisoner.places.get(place, -1))
    poisoner.journal.sync()


def codecs_in(stand: Stand) -> set[str]:
    """The codecs of the batches in the logs of requests, by the broker's own files: it may have packed them anew."""
    found: set[str] = set()
    for path in sorted(Path(stand.broker.folder).rglob(f"{stand.settings.prefix}aos.requests*/*.log")):
        data, at = path.read_bytes(), 0
        while at + 23 <= len(data):
            (length,) = struct.unpack_from(">i", data, at + 8)
            (attributes,) = struct.unpack_from(">h", data, at + 21)
            if length <= 0:
                break  # reserved by the broker, not written yet
            found.add(("none", *CODECS)[attributes & 7])
            at += 12 + length
    return found


def oversize(stand: Stand, random: Random) -> Injected:
    """Fault 24: one byte above each limit: the client library's, the broker's, the edge's, the request's."""
    began = time.time()
    watch = Watch(stand, 24)
    tenants = stand.settings.tenants
    topics = [*(request_topic(tenant) for tenant in tenants), *catalogue.EDGES]
    failed: list[tuple[str, str]] = []
    for name, config in (
        ("as clients are configured", {"message.max.bytes": 1_000_000}),  # librdkafka's default
        ("allowed by the library", {}),
        ("compressed below the broker's limit", {"compression.type": "zstd"}),
    ):  # fmt: skip
        with Poisoner(stand, 24, **config) as poisoner:
            large = [Poison(name, topic, filled(LIMIT + 1), LETTER, JSON) for topic in topics]
            poisoner.among_neighbours(large)
            failed += [("I10", what) for what in poisoner.unread()]
    with Poisoner(stand, 24, **{"compression.type": "zstd"}) as poisoner:
        poisoner.among_neighbours(list(requests_at_limits(poisoner.name, tenants)))
        ended = done(poisoner, watch, began)
    detail = f"{LIMIT + 1} bytes to {len(topics)} topics in three ways, and requests at their limits"
    return Injected(began, ended.healed, "all inputs", failed=(*failed, *ended.failed), detail=detail)


def filled(size: int, start: bytes = b'{"text":"', end: bytes = b'"}') -> bytes:
    """A JSON object of exactly so many bytes."""
    return start + b"x" * (size - len(start) - len(end)) + end


def requests_at_limits(name: str, tenants: Sequence[str]) -> Iterator[Poison]:
    """Requests that are just allowed, which must be answered, and one byte above, which must be refused by id."""
    for number, tenant in enumerate(tenants):
        topic = request_topic(tenant)
        allowed, above, whole = (f"{name}-{kind}-{number}" for kind in ("allowed", "above", "whole"))
        text = "x" * PAYLOAD
        body = {**catalogue.asked(allowed), "text": text}
        yield Poison(
            "the largest text", topic, json.dumps(body).encode(), ENDED, JSON, allowed, expect=text.upper()
        )
        body = {**catalogue.asked(above), "text": text + "x"}
        yield Poison("a text above its limit", topic, json.dumps(body).encode(), MUST_REFUSE, JSON, id=above)
        start = json.dumps({"id": whole}).encode()[:-1] + b',"text":"'
        yield Poison("the largest message", topic, filled(LIMIT, start), MUST_REFUSE, JSON, id=whole)


inject_by(20, no_records)
inject_by(21, tensors)
inject_by(22, bombs)
inject_by(23, codecs)
inject_by(24, oversize)
