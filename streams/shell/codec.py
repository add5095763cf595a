"""Bytes and rows by topic name: the shell's only idea of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pyarrow as pa

from aos.codecs import json, wire
from aos.codecs.topics import record_of

SNAPSHOTS = "aos.snapshots"
ORDERS = "aos.processors"

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
        # of what the shell reads, people write this alone
        if topic == ORDERS and json.is_json(value, headers):
            return json.read(value, record_of(topic))
        return wire.decode_by_name(value, headers, record_of(topic).name)
