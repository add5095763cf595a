"""The contract is public: a stranger's program runs, and every topic is read and written with plain pyarrow.

Nothing here encodes or decodes with AOS: messages are made by pyarrow or json and sent to random partitions, and what
every message holds is compared with what docs/schemas.md and docs/topics.md say about its topic.
"""

from __future__ import annotations

import ast
import asyncio
import datetime
import json
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from aos.codecs.topics import TOPICS, base_of
from aos.infra.changes import change, parsed, setting
from aos.infra.local import LocalStack
from aos.infra.up import Up
from aos.streams.topology import PROCESSORS
from tests.conftest import delete_topics
from tests.stack.loopkit import running, settings_for

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "plain_client.py"
UNWRITTEN = {topic.name for topic in TOPICS.values() if topic.reserved}  # docs/topics.md says so
ORDERS = "aos.processors"  # every worker reads it, no processor does: tests/stack/test_control.py
ALARMS = "aos.alerts"  # empty while all is well: tests/stack/test_delegation.py reads some
NOW = datetime.datetime.now(datetime.UTC)
TEXTS = pa.list_(pa.string())
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def up(stack: LocalStack, database_url: str) -> Iterator[Up]:
    """AOS with two partitions, so that a wrong one would be noticed, and two tenants; it learns after few outcomes."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    settings = settings_for(
        stack.bootstrap, database_url, prefix, partitions=2, tenants=("default", "acme"), snapshot_s=1.0,
        mine_every=10, mine_window=50, optimise_every=10,
    )  # fmt: skip
    try:
        with running(settings) as up:
            yield up
    finally:
        asyncio.run(delete_topics(stack.bootstrap, prefix))


# the worked example


def test_the_example_imports_nothing_of_aos_and_is_short() -> None:
    text = EXAMPLE.read_text()
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - sys.stdlib_module_names == {"pyarrow", "confluent_kafka"}
    assert len(text.splitlines()) < 200


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "contract.md").read_text()
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    blocks = [
        block for block in blocks if "aos.agents" not in block
    ]  # what needs the SDK is run by tests/test_docs.py
    assert len(blocks) == 4
    for block in blocks:
        assert textwrap.dedent(block) in textwrap.dedent(EXAMPLE.read_text()) or block in EXAMPLE.read_text()


@pytest.mark.parametrize("tenant", ["default", "acme"])
def test_the_example_submits_answers_and_reads_results(up: Up, tenant: str) -> None:
    argv = [
        sys.executable,
        str(EXAMPLE),
        "--bootstrap",
        up.settings.bootstrap,
        "--prefix",
        up.settings.prefix,
    ]
    argv += ["--tenant", tenant, "--service", f"plain-{tenant}", "all"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    said = {line.split(" ", 1)[1].rsplit(" ", 2)[0] for line in done.stdout.splitlines()}
    assert said == {"ok HELLO", "ok WORLD", "ok FROM A SMALL PROGRAM"}


# writing every input topic


def arrow(row: dict[str, Any], types: dict[str, pa.DataType]) -> bytes:
    """One row as an IPC stream of just these columns."""
    schema = pa.schema([(name, types.get(name, pa.string())) for name in row])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], schema))
    return bytes(sink.getvalue())


def as_json(row: dict[str, Any]) -> bytes:
    """The same row as one JSON object."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            return value.isoformat()
        return value.hex() if isinstance(value, bytes) else value

    return json.dumps({name: plain(value) for name, value in row.items()}).encode()


@dataclass(frozen=True)
class Sample:
    """A row for an input topic, marked with the form it is written in, and where the mark must turn up."""

    topic: str
    row: Callable[[str], dict[str, Any]]
    seen_in: str
    seen_as: str
    types: dict[str, pa.DataType]


ID, I16, I32, I64 = pa.binary(16), pa.int16(), pa.int32(), pa.int64()
SAMPLES = [
    Sample("aos.requests", lambda form: {"id": form, "text": "hi", "require": ["shout"]}, "aos.results", "id",
           {"require": TEXTS}),
    Sample("aos.agents", lambda form: {"service": "probe", "agent": form, "capabilities": ["nothing"]}, "aos.fleet",
           "agent", {"capabilities": TEXTS}),
    Sample("aos.heartbeats", lambda form: {"service": "probe", "replica": form, "sent_at": NOW}, "aos.fleet",
           "replica", {"sent_at": pa.timestamp("us", "UTC")}),
    Sample("aos.outcomes", lambda form: {
        "request_id": bytes(16), "home": 1, "step": 0, "attempt": 1, "agent": form, "epoch": 0, "token": bytes(16),
        "status": "ok"}, "aos.ledger", "agent",
        {"request_id": ID, "home": I32, "step": I16, "attempt": I16, "epoch": I64, "token": ID}),
    Sample("aos.calls", lambda form: {
        "action": "delegate", "call": form, "request_id": bytes(16), "home": 1, "step": 0, "attempt": 1, "agent": "a",
        "epoch": 0, "token": bytes(16), "text": "a part"}, "aos.ledger", "id",
        {"request_id": ID, "home": I32, "step": I16, "attempt": I16, "epoch": I64, "token": ID}),
    Sample("aos.feedback", lambda form: {"id": form, "score": 0.5}, "aos.corrections", "id", {"score": pa.float32()}),
    Sample("aos.controls", lambda form: {"action": "pause", "agent": form}, "aos.fleet", "agent", {}),
    Sample("aos.observations", lambda form: {"case": form, "activity": "looked", "time": NOW}, "aos.sightings",
           "case", {"time": pa.timestamp("ms", "UTC")}),
]  # fmt: skip


def test_there_is_a_sample_for_every_topic_that_takes_input() -> None:
    assert {sample.topic for sample in SAMPLES} | {ORDERS} == {
        t.name for t in TOPICS.values() if t.wants_json
    }
    assert {sample.topic for sample in SAMPLES} == {
        topic for processor in PROCESSORS.values() if processor.edge for topic in processor.reads
    }


@pytest.mark.parametrize("tenant", ["default", "acme"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.topic)
def test_an_input_topic_takes_plain_arrow_and_json(up: Up, sample: Sample, tenant: str) -> None:
    own = sample.topic if tenant == "default" else f"{sample.topic}.{tenant}"
    if up.settings.prefix + own not in topics_of(up):
        assert not TOPICS[sample.topic].per_tenant
        return
    marks = {f"{form}-{tenant}-{uuid.uuid4().hex[:6]}" for form in ("arrow", "json")}
    for mark in marks:
        row = sample.row(mark)
        value = arrow(row, sample.types) if mark.startswith("arrow") else as_json(row)
        send(up, own, value)
    seen_in = sample.seen_in
    if sample.topic == "aos.requests" and tenant != "default":
        seen_in += f".{tenant}"
    found: list[dict[str, Any]] = []
    ends = time.monotonic() + LIMIT_S
    while len(found) < 2 and time.monotonic() < ends:
        rows = [row for message in read(up, seen_in) for row in message.rows.to_pylist()]
        found = [row for row in rows if row[sample.seen_as] in marks]
    assert {row[sample.seen_as] for row in found} == marks
    if TOPICS[sample.topic].per_tenant:
        assert {row["tenant"] for row in found} == {tenant}


# reading every topic


def test_every_topic_is_what_the_pages_say(up: Up) -> None:
    fill(up)
    documented, records = pages()
    missing: set[str] = set(TOPICS)
    ends = time.monotonic() + LIMIT_S
    while missing - UNWRITTEN - {ALARMS} and time.monotonic() < ends:
        names = [topic[len(up.settings.prefix) :] for topic in topics_of(up)]
        missing -= {base_of(name) for name in names if base_of(name) in missing and read(up, name)}
        time.sleep(0.5)
    assert missing - {ALARMS} == UNWRITTEN
    written = {topic for processor in PROCESSORS.values() for topic in processor.writes}
    assert not UNWRITTEN & written
    inboxes = 0
    for topic in topics_of(up):
        name = topic[len(up.settings.prefix) :]
        inboxes += name.startswith("aos.inbox.")
        for message in read(up, name):
            check(message, records[documented[base_of(name)]], documented[base_of(name)])
    assert inboxes


def fill(up: Up) -> None:
    """Enough of everything: all samples, all priorities, workflows, a judge, failures, bytes that are nothing."""
    for sample in SAMPLES:
        send(up, sample.topic, arrow(sample.row("filled"), sample.types))
    for number in range(60):
        kind = ("shout", "moody", "join", "judge")[number % 4]
        request: dict[str, Any] = {"id": f"fill-{number}", "text": f"text {number}", "priority": number % 4}
        if number % 3 == 0:
            request["steps"] = [
                {"name": "first", "require": ["shout"]},
                {"name": "then", "require": ["join"], "after": ["first"]},
                {"name": "verdict", "require": ["judge"], "after": ["then"], "judges": "then"},
            ]
        else:
            request["require"] = [kind]
        send(up, "aos.requests", as_json(request))
    for number in range(40):  # failures move the policy: without them aos.strategies may stay empty
        fails = {"id": f"fail-{number}", "text": "fail for good", "require": ["moody"]}
        send(up, "aos.requests", as_json(fails))
    send(up, "aos.requests", b"\xff\xfe neither Arrow nor JSON")
    send(up, "aos.feedback", as_json({"id": "fill-1", "score": 1.0}))
    send(up, ORDERS, arrow({"processor": "mine", "action": "resume"}, {}), key="mine")
    # what aos config does
    asyncio.run(change(up.settings, setting(parsed(up.settings, "candidates_max", "12"))))


COLUMN = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*) \|")


@dataclass
class Page:
    """A record as docs/schemas.md describes it: column -> (type in words, required), and those of its structs."""

    columns: dict[str, tuple[str, bool]]
    parts: dict[str, dict[str, tuple[str, bool]]]


def pages() -> tuple[dict[str, str], dict[str, Page]]:
    """From the generated pages: the record of every topic, and every record."""
    records: dict[str, Page] = {}
    columns: dict[str, tuple[str, bool]] = {}
    for line in (ROOT / "docs" / "schemas.md").read_text().splitlines():
        if line.startswith("### "):
            columns = {}
            page = records[line[4:].strip()] = Page(columns, {})
        elif line.startswith("Each of `"):
            columns = page.parts[line.split("`")[1]] = {}
        elif found := COLUMN.match(line):
            columns[found[1]] = (found[2].strip(), found[3].strip() == "required")
    table = (ROOT / "docs" / "topics.md").read_text()
    named = re.findall(r"^\| (aos\.[^ ]+) \| \[([^\]]+)\]", table, re.MULTILINE)
    return {name.replace(".&lt;service&gt;", ""): record for name, record in named}, records


def words(type: pa.DataType) -> str:
    """A type as the pages name it."""
    if isinstance(type, pa.FixedShapeTensorType):
        return f"tensor of {' x '.join(map(str, type.shape))} {words(type.value_type)}"
    if pa.types.is_fixed_size_list(type):
        return f"{type.list_size} {words(type.value_type)}"
    if pa.types.is_list(type):
        return f"list of {words(type.value_type)}"
    if pa.types.is_struct(type):
        return "struct"
    if pa.types.is_fixed_size_binary(type):
        return f"{type.byte_width} bytes"
    names = {pa.string(): "text", pa.binary(): "bytes", pa.timestamp("us", "UTC"): "time (us, UTC)"}
    return names.get(type, str(type))


@dataclass(frozen=True)
class Message:
    """One message as plain pyarrow reads it; `outside`: whether a test or the example wrote it."""

    topic: str
    headers: dict[str, bytes]
    value: bytes
    rows: pa.Table

    @property
    def outside(self) -> bool:
        return "aos-record" not in self.headers


def check(message: Message, page: Page, record: str) -> None:
    """Columns, types and required values as documented; headers too when AOS wrote it."""
    where = f"{message.topic}: {record}"
    schema = message.rows.schema
    found = {field.name: (words(field.type), not field.nullable) for field in schema}
    if message.outside:  # a stranger may leave columns out and has no need to mark the required ones
        assert set(found) <= set(page.columns), where
        assert {name for name, (_, required) in page.columns.items() if required} <= set(found), where
    else:
        assert list(found.items()) == list(page.columns.items()), where
        assert message.headers["aos-record"] == record.encode(), where
        assert int(message.headers["aos-version"]) >= 1
        assert message.headers["crc32c"] == b"%08x" % google_crc32c.value(message.value), where
        for column, parts in page.parts.items():
            inside = schema.field(column).type.value_type
            assert {part.name: (words(part.type), not part.nullable) for part in inside} == parts, where
    for name, (_, required) in page.columns.items():
        assert not (required and message.rows.column(name).null_count), f"{where}.{name}"
    message.rows.validate(full=True)


# plain Kafka


def send(up: Up, topic: str, value: bytes, key: str | None = None) -> None:
    """One message to a random partition, acknowledged."""
    refused: list[Any] = []
    producer = Producer({"bootstrap.servers": up.settings.bootstrap, "acks": "all", "partitioner": "random"})
    producer.produce(
        up.settings.prefix + topic, value, key, on_delivery=lambda error, _: refused.append(error)
    )
    assert producer.flush(30) == 0
    assert refused == [None]


def topics_of(up: Up) -> list[str]:
    """All topics under the prefix, with it."""
    found = Producer({"bootstrap.servers": up.settings.bootstrap}).list_topics(timeout=10).topics
    return sorted(name for name in found if name.startswith(up.settings.prefix))


def read(up: Up, name: str) -> list[Message]:
    """All Arrow messages of a topic as it stands; tombstones and what is no Arrow are left out."""
    topic = up.settings.prefix + name
    consumer = Consumer({"bootstrap.servers": up.settings.bootstrap, "group.id": uuid.uuid4().hex,
                         "enable.auto.commit": False})  # fmt: skip
    try:
        numbers = consumer.list_topics(topic, 10).topics[topic].partitions
        places = [TopicPartition(topic, number, 0) for number in numbers]
        ends = {p.partition: consumer.get_watermark_offsets(p, 10, cached=False)[1] for p in places}
        consumer.assign(places)
        found: list[Message] = []
        limit = time.monotonic() + LIMIT_S
        while any(position.offset < ends[position.partition] for position in _positions(consumer, places)):
            assert time.monotonic() < limit, f"{topic} cannot be read to its end"
            for message in consumer.consume(500, 0.1):
                assert message.error() is None, message.error()
                value = message.value()
                if not value or not value.startswith(b"\xff\xff\xff\xff"):
                    continue
                with pa.ipc.open_stream(value) as reader:
                    found.append(Message(name, dict(message.headers() or ()), value, reader.read_all()))
        return found
    finally:
        consumer.close()


def _positions(consumer: Any, places: list[Any]) -> list[Any]:
    """Where the consumer is in each partition; 0 before the first record."""
    return [TopicPartition(p.topic, p.partition, max(p.offset, 0)) for p in consumer.position(places)]
