"""Bytes and rows by topic name: the shell's only idea of a schema."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import DEFAULT_TENANT, record_of, tenant_of
from aos.streams.processor import Output, Raw

SNAPSHOTS = "aos.snapshots"
DEAD_LETTERS = "aos.dead-letters"
BODY_BYTES_MAX = 64 * 1024  # of the original that a dead letter keeps
HEADERS_BYTES_MAX = 4 * 1024

Headers = Mapping[str, bytes]


class Codec(Protocol):
    """What a worker is given to read and write its topics (names without prefix).

    `decode` raises an error with a `code` for whatever is not a valid message; it must be pure.
    """

    def encode(self, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]: ...

    def decode(self, topic: str, value: bytes, headers: Headers) -> pa.RecordBatch: ...


class WireCodec:
    """The real one: each topic carries the record that `codecs.topics` names."""

    def encode(self, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
        return wire.encode(rows, record_of(topic))

    def decode(self, topic: str, value: bytes, headers: Headers) -> pa.RecordBatch:
        return wire.decode_by_name(value, headers, record_of(topic).name)


def dead_letter(processor: str, raw: Raw, code: str, message: str, tenants: tuple[str, ...] = ()) -> Output:
    """The row that keeps what could not be read, with where it stood and why it was refused."""
    headers = json.dumps({k: base64.b64encode(v or b"").decode() for k, v in raw.headers.items()})
    row: dict[str, Any] = {
        "tenant": tenant_of(raw.topic, tenants) or DEFAULT_TENANT,
        "processor": processor,
        "code": code,
        "message": message[:1000],
        "topic": raw.topic,
        "partition": raw.partition,
        "offset": raw.offset,
        "row": -1,
        "request_id": None,
        "headers": headers[:HEADERS_BYTES_MAX],
        "body": raw.value[:BODY_BYTES_MAX],
        "body_size": len(raw.value),
        "appended_at": raw.appended_at,
    }
    schema = RECORDS["dead-letter"].schema
    columns = [pa.array([row[field.name]], field.type) for field in schema]
    return Output(DEAD_LETTERS, pa.RecordBatch.from_arrays(columns, schema=schema))
