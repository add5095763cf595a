"""A worker of another release, for tests: its records have a column more, or are of a major version nobody knows.

    python -m tests.chaos.other_release --as newer|unknown --processors … (as `aos worker`)

newer: writes a column more under the next minor version, and reads with that column, so that it meets rows of the older
release as they meet its own. unknown: writes what looks as always under a major version of its own, and reads its own.
It ends with a line in its log of how many messages it read and wrote.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.fields import Record, may
from aos.codecs.finite import finite
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import record_of
from aos.streams.shell.codec import Headers, WireCodec

ADDED = "added_in_the_next_release"
MAJOR = b"2.0"
COUNTS: Counter[str] = Counter()
log = logging.getLogger("aos.chaos")


@cache
def next_release(name: str) -> Record:
    """A record as the next release declares it."""
    record = RECORDS[name]
    added = may(ADDED, pa.int64(), "What nobody knows yet")
    return replace(record, version=record.version + 1, fields=(*record.fields, added))


def newer_encode(codec: WireCodec, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
    """With the column, a number in each row."""
    record = next_release(record_of(topic).name)
    values = pa.array(range(rows.num_rows), pa.int64())
    COUNTS["written"] += 1
    return wire.encode(pa.RecordBatch.from_arrays([*rows.columns, values], schema=record.schema), record)


def newer_decode(codec: WireCodec, topic: str, value: bytes, headers: Headers) -> pa.RecordBatch:
    """As the next release reads: an older row has a null there. The step, which is today's, gets today's columns."""
    name = record_of(topic).name
    rows = wire.decode(value, headers, next_release(name))
    older = rows.num_rows > 0 and rows.column(ADDED).null_count == rows.num_rows
    COUNTS["read of the older release" if older else "read of its own"] += 1
    rows = rows.select(RECORDS[name].schema.names)
    if bad := finite(rows, RECORDS[name]):
        raise RecordError("AOS1005", f"row {min(bad)}: column {bad[min(bad)]}")
    return rows


def unknown_encode(codec: WireCodec, topic: str, rows: pa.RecordBatch) -> tuple[bytes, dict[str, bytes]]:
    value, headers = wire.encode(rows, record_of(topic))
    COUNTS["written"] += 1
    return value, {**headers, wire.HEADER_VERSION: MAJOR}


def unknown_decode(codec: WireCodec, topic: str, value: bytes, headers: Headers) -> pa.RecordBatch:
    return wire.decode_by_name(value, known(headers), record_of(topic).name)


def known(headers: Headers) -> Mapping[str, bytes]:
    """Its own major version is no news to it."""
    if headers.get(wire.HEADER_VERSION) != MAJOR:
        return headers
    return {name: value for name, value in headers.items() if name != wire.HEADER_VERSION}


RELEASES = {"newer": (newer_encode, newer_decode), "unknown": (unknown_encode, unknown_decode)}


def tell() -> None:
    """The last line of its log."""
    log.warning("release %s", ", ".join(f"{name}: {count}" for name, count in sorted(COUNTS.items())))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.other_release")
    parser.add_argument("--as", dest="release", required=True, choices=sorted(RELEASES))
    parser.add_argument("--ordinal", type=int, default=0)
    parser.add_argument("--processors", required=True)
    parser.add_argument("--status-file", type=Path)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from aos.infra.runtime import work
    from aos.infra.settings import load

    encode, decode = RELEASES[chosen.release]
    setattr(WireCodec, "encode", encode)  # noqa: B010  (mypy knows no other way)
    setattr(WireCodec, "decode", decode)  # noqa: B010
    atexit.register(tell)
    return work(load(), chosen.processors.split(","), chosen.ordinal, chosen.status_file)


if __name__ == "__main__":
    sys.exit(main())
