"""Raw records and the state of the world for tests of the edges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from aos.codecs import json as objects
from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Output, Raw, Step, Views

AT = 1_790_000_000_000_000  # append time of every message, microseconds
DAY = 86_400_000_000
TENANTS = ("default", "acme")


def views(partitions: int = 1, **changes: Any) -> Views:
    """What a step may look at."""
    spread = ("aos.tasks", "aos.ledger", "aos.corrections", "aos.sightings")
    return Views(
        settings=Settings(tenants=TENANTS, **changes),
        partitions=dict.fromkeys(spread, partitions) | {"aos.fleet": 1, "aos.dead-letters": 1},
    )


def raw(
    value: bytes | dict[str, Any], topic: str, offset: int = 0, headers: dict[str, bytes] | None = None
) -> Raw:
    """A message: bytes as they are, a dict as JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Raw(topic, 0, offset, AT, None, body, headers or {})


def arrow(record: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as a writer of the declared schema sends them."""
    return wire.encode(make.from_dicts(record, rows), RECORDS[record])[0]


def plain(columns: dict[str, Any]) -> bytes:
    """Columns as a plain pyarrow program sends them."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def run(step: Any, raws: Sequence[Raw], given: Views | None = None) -> Step[Any]:
    """One step over one fetch."""
    topic = raws[0].topic if raws else "aos.requests"
    batch = Batch(topic, 0, raws[0].offset if raws else 0, make.empty("dead-letter"), raws)
    found: Step[Any] = step(None, batch, AT, given or views(), 0)
    return found


def rows_of(step: Step[Any], topic: str) -> list[dict[str, Any]]:
    """All rows a step writes to a topic, in order; every output must be fit for the wire."""
    found: list[dict[str, Any]] = []
    for output in step.outputs:
        record = RECORDS[{"aos.ledger": "entry", "aos.tasks": "task", "aos.fleet": "fleet-entry",
                          "aos.corrections": "correction", "aos.sightings": "sighting",
                          "aos.dead-letters": "dead-letter"}[output.topic]]  # fmt: skip
        value, headers = wire.encode(output.rows, record)
        assert wire.decode_by_name(value, headers, record.name).equals(output.rows)
        if output.topic == topic:
            found += output.rows.to_pylist()
    return found


def outputs_of(step: Step[Any], topic: str) -> list[Output]:
    return [output for output in step.outputs if output.topic == topic]


def shown(step: Step[Any]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Outputs in a form that can be compared."""
    return [(output.topic, output.partition, objects.objects(output.rows)) for output in step.outputs]
