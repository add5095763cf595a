"""What the public contract promises of sizes and of plain programs."""

from __future__ import annotations

import json as standard
from typing import Any

import pyarrow as pa
import pytest

from aos.agents import identity
from aos.codecs import json, wire
from aos.codecs import rows as make
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import INBOX, TOPICS

ROWS = 128  # a message at 1,000 rows/s and the edges' gathering time
IDS = [identity.request_id("default", f"order-{n}") for n in range(ROWS)]
AT = 1_790_000_000_000_000

COMMON: dict[str, Any] = {
    "tenant": ["default"] * ROWS, "request_id": IDS, "requested_at": [AT + 997 * n for n in range(ROWS)],
    "home": [0] * ROWS, "domain": ["default"] * ROWS, "round": [0] * ROWS,
}  # fmt: skip
ATTEMPT: dict[str, Any] = {
    "request_id": IDS, "home": [0] * ROWS, "step": [0] * ROWS, "attempt": [1] * ROWS,
    "agent": [f"zip-{n % 12}" for n in range(ROWS)], "epoch": [7] * ROWS,
}  # fmt: skip
CONTROLS: dict[str, dict[str, Any]] = {
    "heartbeat": {
        "service": ["compressors"] * ROWS, "replica": [f"host-{n}.4711" for n in range(ROWS)],
        "busy": [n % 3 for n in range(ROWS)], "stopping": [False] * ROWS,
        "sent_at": [AT + 997 * n for n in range(ROWS)],
    },
    "outcome": ATTEMPT | {
        "token": [identity.token(b"key", one, 0, 0, 1, "zip", 7) for one in IDS], "status": ["ok"] * ROWS,
        "score": [0.5 + n / 1000 for n in range(ROWS)], "cpu_us": [1000 + 37 * n for n in range(ROWS)],
        "cost_usd_micros": [12] * ROWS, "started_at": [AT + 997 * n for n in range(ROWS)],
        "finished_at": [AT + 1997 * n for n in range(ROWS)],
    },
    "release": COMMON | {
        "step": [0] * ROWS, "attempt": [1] * ROWS, "agent": [f"zip-{n % 12}" for n in range(ROWS)],
        "cell": ["default"] * ROWS, "reason": ["ok"] * ROWS, "epoch": [7] * ROWS,
    },
    "control": {"action": ["cancel"] * ROWS, "request_id": IDS, "home": [0] * ROWS,
                "reason": ["the caller went away"] * ROWS},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_a_control_record_is_at_most_two_fifths_of_its_json(name: str) -> None:
    """Values and headers of one Arrow message against the same rows as JSON messages (`json.dumps`, with every key).

    Against JSON that leaves nulls and blanks out (`lean`) it is .41 to .62, and .47 to .78 without the headers: there
    two fifths do not hold. One row alone is larger than its JSON. The table: ARCHITECTURE.md, "The size of a record".
    """
    batch = make.from_columns(name, ROWS, CONTROLS[name])
    value, headers = wire.encode(batch, RECORDS[name])
    arrow = len(value) + sum(len(key) + len(text) for key, text in headers.items())
    named = len("content-type") + len(json.CONTENT_TYPE)
    rows = [{key: row.get(key) for key in batch.schema.names} for row in json.objects(batch)]
    text = sum(len(standard.dumps(row)) + named for row in rows)
    lean = sum(len(row) + named for row in json.dumps(batch))
    shown = f"{name}: {arrow / ROWS:.0f} bytes a row, JSON {text / ROWS:.0f}, lean JSON {lean / ROWS:.0f}"
    assert arrow <= 0.4 * text, shown
    assert arrow <= 0.65 * lean, shown


def test_field_meanings_stay_out_of_messages() -> None:
    for record in RECORDS.values():
        assert record.schema.metadata is None
        assert all(field.metadata is None for field in record.schema)
        assert all(field.metadata[b"doc"] for field in record.documented)


@pytest.mark.parametrize("topic", [*TOPICS.values(), INBOX], ids=lambda topic: topic.name)
def test_a_plain_pyarrow_program_reads_and_writes_every_topic(topic: Any) -> None:
    record = topic.schema
    batch = make.empty(record.name)
    value, _ = wire.encode(batch, record)
    read = pa.ipc.open_stream(value).read_all()
    assert read.schema.names == [field.name for field in record.fields]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, read.schema) as writer:
        writer.write_table(read)
    assert wire.decode(sink.getvalue().to_pybytes(), {}, record).schema == record.schema


def test_names_are_unique_and_topics_have_their_records() -> None:
    for record in RECORDS.values():
        names = [field.name for field in record.fields]
        assert len(set(names)) == len(names), record.name
        for column, fields in record.parts:
            item = record[column].type.value_type
            assert [item.field(i).name for i in range(item.num_fields)] == [field.name for field in fields]
    assert all(topic.record in RECORDS for topic in TOPICS.values())
    assert all("_" not in name for name in TOPICS)
