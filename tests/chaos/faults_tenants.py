"""Suite tenants: who says that they are somebody else, and who sends more than all others."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa
from confluent_kafka import Producer

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import tenant_topic
from aos.infra.runtime import options
from aos.streams.shell.topics import Admin, TopicSpec
from tests.chaos.faults import Injected, inject_by
from tests.chaos.faults_config import changed
from tests.chaos.journal import ACKNOWLEDGED, Journal, read
from tests.chaos.shelf import log_of
from tests.chaos.stand import ROOT, Stand

PROBES = 240
PROBES_PER_S = 60.0
STRANGERS = (
    "mallory",
    "acme.umbra",
    "ACME",
    "default",
)  # no tenants: their topics are made, and nobody reads them
STILL_S = 3.0
SECURITY = "JWT, GraphQL and Flight (gateway); users and rights: tests/stack/test_secure_kafka.py, test_secure_sql.py"

CALM_S, CALM_LIMIT_S = 5.0, 120.0
QUIET_S, NOISY_S = 15.0, 15.0
TIMES = 20  # the noisy tenant's rate, in rates of the others
WORSE = 2.0  # the others' p99, in times of what it was
IN_FORCE_S = 1.0  # a change of the settings is a view's message
DONE_S = 60.0  # for the others' last requests
DRAIN_S = 300.0  # for the noise itself


@dataclass
class Probe:
    """One message of `tenant` that says it is of `victim`, and what its request must end with (None: dead letter)."""

    tenant: str
    victim: str
    id: str
    value: bytes
    expect: str | None
    key: bytes | None = None
    headers: dict[str, bytes] = field(default_factory=dict)


Forge = Callable[[str, str, str], Probe]  # (tenant, victim, id)
IN_JSON = {"content-type": b"application/json"}


def request(id: str, **more: Any) -> bytes:
    row = {"id": id, "text": f"task {id}", "require": ["shout"], "task_kind": "shout", **more}
    return json.dumps(row).encode()


def in_headers(tenant: str, victim: str, id: str) -> Probe:
    """Headers that name another tenant."""
    names = ("tenant", "aos-tenant", "x-tenant", "principal", "topic")
    headers = {**IN_JSON, **{name: victim.encode() for name in names}}
    return Probe(tenant, victim, id, request(id), f"TASK {id}".upper(), headers=headers)


def in_the_key(tenant: str, victim: str, id: str) -> Probe:
    """A key of another's."""
    key = tenant_topic("aos.requests", victim).encode()
    return Probe(tenant, victim, id, request(id), f"TASK {id}".upper(), key=key, headers=IN_JSON)


def in_json(tenant: str, victim: str, id: str) -> Probe:
    """A key of the object that names another tenant: no such key, so the message is refused."""
    return Probe(tenant, victim, id, request(id, tenant=victim), None, headers=IN_JSON)


def in_a_column(tenant: str, victim: str, id: str) -> Probe:
    """Columns that only AOS fills: unknown here, and dropped."""
    table = pa.table({
        "id": [id], "text": [f"task {id}"], "require": [["shout"]], "task_kind": ["shout"], "tenant": [victim],
        "request_id": pa.array([b"\0" * 16], pa.binary(16)), "home": pa.array([0], pa.int32()),
        "round": pa.array([7], pa.int16()),
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Probe(tenant, victim, id, bytes(sink.getvalue()), f"TASK {id}".upper())


def in_the_domain(tenant: str, victim: str, id: str) -> Probe:
    """A learning domain of another's name: it is a part of one's own."""
    return Probe(tenant, victim, id, request(id, domain=victim), f"TASK {id}".upper(), headers=IN_JSON)


FORGERIES: tuple[Forge, ...] = (in_headers, in_the_key, in_json, in_a_column, in_the_domain)


def probes(tenants: tuple[str, ...], random: Random, count: int, name: str) -> list[Probe]:
    """Forgeries of every kind between all tenants; every tenth id is one that the victim uses as well."""
    found: list[Probe] = []
    for number in range(count):
        tenant, victim = random.sample(tenants, 2)
        forge = FORGERIES[(number + number // 10) % len(FORGERIES)]
        found.append(forge(tenant, victim, f"{name}-{number}"))
        if number % 10 == 0:  # the victim's own request of the same id: another request
            id = f"{name}-{number}"
            text = f"mine {id}"
            found.append(Probe(victim, tenant, id, request(id, text=text), text.upper(), headers=IN_JSON))
    return found


def forged(stand: Stand, random: Random) -> Injected:
    """Fault 29: messages that say they are of another tenant, and topics of tenants that do not exist.

    The judge knows from the journal whose each is, and finds what crossed (I7) or what nobody sent to a tenant (I3).
    """
    began, name = time.time(), f"forged{random.getrandbits(24):06x}"
    journal = Journal(stand.folder / f"journal-{name}.ndjson")
    made = probes(stand.settings.tenants, random, PROBES, name)
    producer = Producer({"bootstrap.servers": stand.settings.bootstrap, "acks": "all", "linger.ms": 5})
    for number, probe in enumerate(made):
        entry: dict[str, Any] = {
            "id": probe.id, "tenant": probe.tenant, "key": name, "seq": number, "expect": probe.expect,
        }  # fmt: skip
        journal.sent([entry])
        topic = stand.settings.prefix + tenant_topic("aos.requests", probe.tenant)
        producer.produce(
            topic, probe.value, probe.key, headers=dict(probe.headers), on_delivery=_settle(journal, entry)
        )
        producer.poll(0)
        time.sleep(1 / PROBES_PER_S)
    producer.flush(30)
    journal.close()
    lags, failed = strangers(stand, random, name)
    detail = f"{len(made)} forged messages, {lags} on topics of {len(STRANGERS)} tenants that do not exist"
    return Injected(began, time.time(), "aos.requests", failed=tuple(failed), detail=detail)


def _settle(journal: Journal, entry: dict[str, Any]) -> Callable[[Any, Any], None]:
    def settled(error: Any, _: Any) -> None:
        if error is None:
            journal.settled(entry, ACKNOWLEDGED)

    return settled


def strangers(stand: Stand, random: Random, name: str) -> tuple[int, list[tuple[str, str]]]:
    """Good requests on topics that look like a tenant's and are none: they stay there, and nothing comes of them.

    They stand in no journal: a row of one of them is one that nobody sent (I3).
    """
    topics = [f"aos.requests.{stranger}" for stranger in STRANGERS]

    async def make() -> None:
        async with Admin(options(stand.settings)) as admin:
            await admin.create([TopicSpec(topic, 1) for topic in topics], stand.settings.replication)

    asyncio.run(make())
    producer = Producer({"bootstrap.servers": stand.settings.bootstrap, "acks": "all"})
    count = 0
    for topic in topics:
        for number in range(5):
            body = request(f"{name}-{topic}-{number}", domain=random.choice(stand.settings.tenants))
            producer.produce(stand.settings.prefix + topic, body, headers=dict(IN_JSON))
            count += 1
    if producer.flush(30):
        raise OSError("the broker did not take the strangers' messages")
    time.sleep(STILL_S)
    letters = [
        row["topic"]
        for message in log_of(stand, "aos.dead-letters")
        for row in wire.decode(message.value(), {}, RECORDS["dead-letter"]).to_pylist()
        if row["topic"] in topics
    ]
    return count, [("I7", f"{topic} was read: it is no tenant's") for topic in set(letters)]


def noisy(stand: Stand, random: Random) -> Injected:
    """Fault 30: one tenant sends 20 times its quota, which is the others' rate, for a while; they must hardly feel it.

    Their p99, from sending by the journal to the append time of the first result, is compared with what it was just
    before, in the same run under the same load.
    """
    tenant = random.choice(stand.settings.tenants)
    others = [one for one in stand.settings.tenants if one != tenant]
    name = f"noise{random.getrandbits(24):06x}"
    if not calm(stand, others):
        said = (
            ("I10", f"no quiet to compare with: work was open {CALM_LIMIT_S:.0f} s after the fault before"),
        )
        return Injected(time.time(), time.time(), tenant, failed=said)
    quiet_from = time.time()
    time.sleep(QUIET_S)
    began = time.time()
    quota = mean_rate(stand, others, quiet_from, began)
    changed(stand, "set", "quota_requests_per_s", f"{quota:.1f}", "--tenant", tenant)
    stand.note("quota", tenant=tenant)  # from now on the judge bears that it is refused for that
    time.sleep(IN_FORCE_S)
    began = time.time()
    rate = TIMES * quota
    argv = [sys.executable, "-m", "tests.chaos.load", "--bootstrap", stand.settings.bootstrap, "--name", name]
    argv += ["--prefix", stand.settings.prefix, "--tenants", tenant, "--rate", f"{rate:.1f}"]
    argv += ["--tasks", str(int(rate * NOISY_S)), "--seed", str(random.getrandbits(16))]
    argv += ["--journal", str(stand.folder / f"journal-{name}.ndjson")]
    stand.children.spawn(name, argv, cwd=ROOT, log_path=stand.folder / f"{name}.log")
    time.sleep(NOISY_S)
    healed = time.time()
    failed = [("I10", what) for what in starved(stand, others, began, healed)]
    before, during = (p99(latencies(stand, others, *span)) for span in ((quiet_from, began), (began, healed)))
    own = p99(latencies(stand, [tenant], began, healed))
    if during > WORSE * before:
        failed.append(
            ("I10", f"the others' p99 was {during:.2f} s beside the noise, {before:.2f} s before it")
        )
    changed(stand, "unset", "quota_requests_per_s", "--tenant", tenant)
    if stand.children.wait(name, DRAIN_S) != 0:
        failed.append(("I10", f"the noise did not end: {stand.folder / name}.log"))
    detail = (
        f"{tenant} at {rate:.0f}/s, {TIMES} times its quota, for {NOISY_S:.0f} s; "
        f"p99 of the others {before:.2f} s before, {during:.2f} s beside it, "
        f"of {tenant} itself {own:.2f} s (of what is done)"
    )
    return Injected(began, healed, tenant, outage=NOISY_S, failed=tuple(failed), detail=detail)


def calm(stand: Stand, tenants: list[str]) -> bool:
    """Wait until nothing of these tenants is open that was sent a moment ago: what a fault before this one left behind
    would be taken for how it always is."""
    limit = time.monotonic() + CALM_LIMIT_S
    while time.monotonic() < limit:
        now = time.time()
        sent = read(sorted(stand.folder.glob("journal*.ndjson")))
        wanted = {place for place, one in sent.items() if one.tenant in tenants and one.at < now - CALM_S}
        if wanted <= set(ends(stand, tenants)):
            return True
        time.sleep(1.0)
    return False


def mean_rate(stand: Stand, tenants: list[str], since: float, until: float) -> float:
    """Requests a second that each of these tenants sent, by the journals."""
    sent = read(sorted(stand.folder.glob("journal*.ndjson"))).values()
    count = sum(1 for one in sent if one.tenant in tenants and since <= one.at < until)
    return count / len(tenants) / (until - since)


def ends(stand: Stand, tenants: list[str]) -> dict[tuple[str, str], float]:
    """When the first result of each id was appended."""
    found: dict[tuple[str, str], float] = {}
    for tenant in tenants:
        for partition in range(stand.settings.partitions):
            for message in log_of(stand, tenant_topic("aos.results", tenant), partition):
                at = message.timestamp()[1] / 1000
                for id in wire.decode(message.value(), {}, RECORDS["result"]).column("id").to_pylist():
                    found.setdefault((tenant, id), at)
    return found


def latencies(stand: Stand, tenants: list[str], since: float, until: float) -> list[float]:
    """Seconds from sending to the first result, of what was sent in that time and is done."""
    done = ends(stand, tenants)
    sent = read(sorted(stand.folder.glob("journal*.ndjson")))
    return [done[place] - one.at for place, one in sent.items() if place in done and since <= one.at < until]


def starved(stand: Stand, tenants: list[str], since: float, until: float) -> list[str]:
    """What these tenants sent in that time and is not done a minute later."""
    limit = time.monotonic() + DONE_S
    while True:
        sent = read(sorted(stand.folder.glob("journal*.ndjson")))
        wanted = {place for place, one in sent.items() if one.tenant in tenants and since <= one.at < until}
        open_still = wanted - set(ends(stand, tenants))
        if not open_still:
            return []
        if time.monotonic() > limit:
            return [
                f"{len(open_still)} requests of {', '.join(tenants)} are not done {DONE_S:.0f} s after the noise"
            ]
        time.sleep(1.0)


def p99(seconds: list[float]) -> float:
    """Nearest rank; 0 of nothing."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0


inject_by(29, forged, waits=SECURITY)
inject_by(30, noisy)
