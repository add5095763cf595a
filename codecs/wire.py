"""Rows to bytes and back: one Arrow IPC stream a message, limits before decode, validation after.

`decode` never trusts: it walks the stream's flatbuffers for sizes, compression and dictionaries first, then lets
pyarrow read, then validates in full (mutated streams crash pyarrow otherwise: 6.6 % of inputs), then checks
columns, nulls and finiteness.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import google_crc32c
import pyarrow as pa

from aos.codecs.errors import RecordError
from aos.codecs.fields import Record
from aos.codecs.finite import finite
from aos.codecs.fit import check_empty, fit
from aos.codecs.layout import Declared, Place
from aos.codecs.schemas import RECORDS

MESSAGE_BYTES_MAX = 8 * 1024 * 1024  # the broker's message.max.bytes; edge topics are smaller (topics.py)
EDGE_BYTES_MAX = 1024 * 1024  # of a message that an outsider wrote
ROWS_MAX = 65_536
EDGE_ROWS_MAX = (
    16_384  # 10,000 agents register in one message; more rows than that are cheap to send, not to handle
)
BATCHES_MAX = 256
COLUMNS_MAX = 128
METADATA_BYTES_MAX = 256 * 1024
DEPTH_MAX = 4

HEADER_RECORD = "aos-record"
HEADER_VERSION = "aos-version"  # <minor>, of major version 1, or <major>.<minor>
HEADER_CRC = "crc32c"
HEADER_REFUSED = "aos-refused"  # in place of a message that could not be unpacked: a code and why

MAJOR = 1  # grows when an old reader would misunderstand; a new column is no such thing

_CONTINUATION = 0xFFFFFFFF
_END = struct.pack("<Ii", _CONTINUATION, 0)
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_LITTLE_ENDIAN = 0  # what pyarrow turns into its own order it copies, value by value


def encode(rows: pa.RecordBatch, record: Record) -> tuple[bytes, dict[str, bytes]]:
    """Return the message value and headers of `rows`, which must have exactly the record's schema."""
    if rows.schema != record.schema:
        raise RecordError("AOS1003", f"{record.name}: {_difference(rows.schema, record.schema)}")
    # what a stream writer writes, byte for byte, in a fifth of the time (a test compares)
    batch = rows.serialize()
    if not record.layout.filled(batch, _nodes(batch)):
        _check_nulls(rows, record)
    value = b"".join((record.schema_bytes, batch, _END))
    return value, headers(record, value)


def headers(record: Record, value: bytes) -> dict[str, bytes]:
    """The headers every message inside AOS carries."""
    return {
        HEADER_RECORD: record.name.encode(),
        HEADER_VERSION: str(record.version).encode(),
        HEADER_CRC: b"%08x" % google_crc32c.value(value),
    }


def decode(value: bytes, message_headers: Mapping[str, bytes], record: Record) -> pa.RecordBatch:
    """Return the rows of a message, zero-copy, or raise RecordError.

    Columns the reader does not know are dropped, nullable ones the writer does not have are null. Finiteness is
    checked by `finite`, because an edge refuses rows, not messages.
    """
    return _decoded(value, message_headers, record)[0]


def _decoded(
    value: bytes, message_headers: Mapping[str, bytes], record: Record
) -> tuple[pa.RecordBatch, Declared | None]:
    """The record's columns, and what the metadata says of them where that is known."""
    rows, declared, same = _read(value, message_headers, record)
    if declared is None or not declared.solid():
        rows = fit(rows, record, same=same)[0]
    return rows, declared


def decode_rows(
    value: bytes, message_headers: Mapping[str, bytes], record: Record
) -> tuple[pa.RecordBatch, dict[int, RecordError]]:
    """What the edges read with: rows and what is wrong with which row; RecordError when nothing can be read.

    Also casts what fits without loss (codecs/fit.py). A bad row holds nulls where it does not fit.
    """
    if len(value) > EDGE_BYTES_MAX:
        raise RecordError("AOS1002", f"{len(value)} bytes, at most {EDGE_BYTES_MAX}")
    rows, declared, same = _read(value, message_headers, record)
    if rows.num_rows > EDGE_ROWS_MAX:
        raise RecordError("AOS1002", f"{rows.num_rows} rows, at most {EDGE_ROWS_MAX}")
    solid = declared is not None and declared.solid()
    fitted, bad = (rows, {}) if solid else fit(rows, record, lenient=True, same=same)
    if declared is None or not declared.finite():
        for row, column in finite(fitted, record).items():
            bad.setdefault(row, RecordError("AOS1005", column))
    return fitted, bad


def decode_together(
    messages: Sequence[tuple[bytes, Mapping[str, bytes]]], record: Record
) -> tuple[pa.RecordBatch, list[int]] | None:
    """Rows of many messages of exactly the record's schema and how many each has; None unless all of all are good.

    What `decode_rows` does one by one, as one stream: a message of one row costs a fifth. Whoever gets None asks
    `decode_rows` for each and learns what is wrong where.
    """
    parts, counts, stand, size = [record.schema_bytes], [], list[Place](), len(record.schema_bytes)
    try:
        for value, message_headers in messages:
            if len(value) > EDGE_BYTES_MAX or not value.startswith(record.schema_bytes):
                return None
            _check_headers(value, message_headers, record)
            places, rows = _walk(value, len(record.schema_bytes))
            if rows > EDGE_ROWS_MAX:
                return None
            for place in places:
                parts.append(value[place.start : place.start + place.size])
                stand.append(place.shifted(size - place.start))
                size += place.size
            counts.append(rows)
        # as batches, not as one table of as many chunks, and without threads: half the time
        joined = b"".join(parts)
        with pa.ipc.open_stream(pa.py_buffer(joined), options=_ALONE) as reader:
            found = list(reader)
        declared = record.layout.declared(joined, stand)
        batch = _one(_valid(found, declared), record.schema)
        if declared is None or not declared.solid():
            fit(batch, record, same=True)
        if (declared is None or not declared.finite()) and finite(batch, record):
            return None
        return None if batch.num_rows != sum(counts) else (batch, counts)
    except (RecordError, *_UNREADABLE):
        return None


_ALONE = pa.ipc.IpcReadOptions(use_threads=False)
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)


def _read(
    value: bytes, message_headers: Mapping[str, bytes], record: Record
) -> tuple[pa.RecordBatch, Declared | None, bool]:
    """The rows as they were written, validated in full.

    Also what their metadata says, if their schema is surely the record's, and whether it is.
    """
    _check_headers(value, message_headers, record)
    same = value.startswith(record.schema_bytes)
    places, _ = _walk(value, len(record.schema_bytes) if same else 0)
    buffer = pa.py_buffer(value)
    declared = None
    try:
        if same:
            # half the time of a stream reader, whose schema would have to be compared
            found = [
                pa.ipc.read_record_batch(buffer.slice(place.start, place.size), record.schema)
                for place in places
            ]
            schema = record.schema
            declared = record.layout.declared(value, places)
        else:
            with pa.ipc.open_stream(buffer) as reader:
                schema = reader.schema
                _check_types(schema)
                found = list(reader)
        found = _valid(found, declared)
    except _UNREADABLE as error:
        raise RecordError("AOS1001", _first_line(error)) from error
    return _one(found, schema), declared, same


def _valid(found: list[pa.RecordBatch], declared: Declared | None) -> list[pa.RecordBatch]:
    """Those that have rows, validated in full, also where pyarrow does not look."""
    for batch in found:
        batch.validate(full=True)
    found = [batch for batch in found if batch.num_rows]
    if declared is None or not declared.started():
        for batch in found:
            check_empty(batch)
    return found


def decode_by_name(value: bytes, message_headers: Mapping[str, bytes], name: str) -> pa.RecordBatch:
    """`decode` strictly for the record of that name, with finiteness: what inner topics need."""
    record = RECORDS[name]
    rows, declared = _decoded(value, message_headers, record)
    bad = {} if declared is not None and declared.finite() else finite(rows, record)
    if bad:
        raise RecordError("AOS1005", f"row {min(bad)}: column {bad[min(bad)]}")
    return rows


def _check_headers(value: bytes, message_headers: Mapping[str, bytes], record: Record) -> None:
    if len(value) > MESSAGE_BYTES_MAX:
        raise RecordError("AOS1002", f"{len(value)} bytes, at most {MESSAGE_BYTES_MAX}")
    refused = message_headers.get(HEADER_REFUSED)
    if refused is not None:
        code = "AOS1002" if refused.startswith(b"AOS1002") else "AOS1001"
        raise RecordError(code, refused[8:300].decode(errors="replace"))
    named = message_headers.get(HEADER_RECORD)
    if named is not None and named != record.name.encode():
        raise RecordError("AOS1003", f"a {named[:64]!r} on a topic of {record.name}")
    check_version(message_headers)
    crc = message_headers.get(HEADER_CRC)
    if crc is not None and crc != b"%08x" % google_crc32c.value(value):
        raise RecordError("AOS1006", f"{len(value)} bytes")


def check_version(message_headers: Mapping[str, bytes]) -> None:
    """Refuse what says that it is of a major version this release does not know, whatever its bytes look like."""
    version = message_headers.get(HEADER_VERSION)
    if version is not None and _major(version) != MAJOR:
        raise RecordError("AOS1011", f"{version[:32]!r}, known is {MAJOR}")


@lru_cache(64)
def _major(version: bytes) -> int | None:
    """The major version; None for what is no version."""
    found = _VERSION.fullmatch(version)
    return None if found is None else int(found[1] or MAJOR)


_VERSION = re.compile(rb"(?:([0-9]{1,9})\.)?[0-9]{1,9}")


def _walk(value: bytes, first: int = 0) -> tuple[list[Place], int]:
    """Check the stream's messages by their flatbuffer metadata, before pyarrow allocates anything.

    `first`: where to begin, behind a schema that is known.

    Returns where each record batch stands in `value`, and how many rows they declare.
    """
    position, total = first, 0
    places: list[Place] = []
    try:
        while position < len(value):
            mark, size = _PREFIX.unpack_from(value, position)
            if mark != _CONTINUATION:
                raise RecordError("AOS1001", f"no message at byte {position}")
            if size == 0:
                break
            if not 0 < size <= METADATA_BYTES_MAX:
                raise RecordError("AOS1002", f"{size} bytes of metadata at byte {position}")
            body, rows, nodes, buffers = _message(value, position + 8, size, _BATCH if position else _SCHEMA)
            total += rows
            if total > ROWS_MAX:
                raise RecordError("AOS1002", f"more than {ROWS_MAX} rows")
            if position:
                places.append(Place(position, 8 + size + body, position + 8 + size, nodes, buffers))
            if len(places) > BATCHES_MAX:
                raise RecordError("AOS1002", f"more than {BATCHES_MAX} batches")
            position += 8 + size + body
        if position > len(value):
            raise RecordError("AOS1001", "the last message is cut off")
    except struct.error as error:
        raise RecordError("AOS1001", f"cut off at byte {position}") from error
    if position == 0:
        raise RecordError("AOS1001", "no message at all")
    return places, total


def _message(value: bytes, start: int, size: int, wanted: int) -> tuple[int, int, int, int]:
    """Check one message's metadata; return the length of its body, its rows, and where the vectors of its nodes and
    buffers begin (0: nowhere)."""
    _, kind_at, header_at, body_at = _slots(value, start + _U32.unpack_from(value, start)[0], start, size)
    kind = _U8.unpack_from(value, kind_at)[0] if kind_at else 0
    body = _I64.unpack_from(value, body_at)[0] if body_at else 0
    if kind == _DICTIONARY:
        raise RecordError("AOS1003", "dictionary-encoded columns are not read: send plain ones")
    if kind != wanted or not 0 <= body <= len(value):
        raise RecordError("AOS1001", f"message kind {kind}, body {body}")
    if not header_at:
        raise RecordError("AOS1001", "a message without header")
    table = header_at + _U32.unpack_from(value, header_at)[0]
    if kind == _SCHEMA:
        order_at = _slots(value, table, start, size)[0]
        if order_at and _U16.unpack_from(value, order_at)[0] != _LITTLE_ENDIAN:
            raise RecordError("AOS1003", "another byte order: send little-endian")
        return body, 0, 0, 0
    rows_at, nodes_at, buffers_at, compression_at = _slots(value, table, start, size)
    if compression_at:
        raise RecordError("AOS1009")
    rows = _I64.unpack_from(value, rows_at)[0] if rows_at else 0
    if not 0 <= rows <= ROWS_MAX:
        raise RecordError("AOS1002", f"{rows} rows, at most {ROWS_MAX}")
    nodes, buffers = (at + _U32.unpack_from(value, at)[0] if at else 0 for at in (nodes_at, buffers_at))
    return body, rows, nodes, buffers


def _nodes(batch: pa.Buffer) -> int:
    """Where the vector of nodes of a batch begins that pyarrow has just written."""
    size = _I32.unpack_from(batch, 4)[0]
    header = _slots(batch, 8 + _U32.unpack_from(batch, 8)[0], 8, size)[2]
    nodes = _slots(batch, header + _U32.unpack_from(batch, header)[0], 8, size)[1]
    return int(nodes + _U32.unpack_from(batch, nodes)[0])


def _slots(value: bytes | pa.Buffer, table: int, start: int, size: int) -> Sequence[int]:
    """Positions of a flatbuffer table's first four fields, 0 where one is absent."""
    if not start <= table <= start + size - 4:
        raise RecordError("AOS1001", "metadata points outside itself")
    vtable = table - _I32.unpack_from(value, table)[0]
    if not start <= vtable <= start + size - 4:
        raise RecordError("AOS1001", "metadata points outside itself")
    length = _U16.unpack_from(value, vtable)[0]
    if length < 4 + _OFFSETS.size:
        few = max(length - 4, 0) // 2
        offsets = (*struct.unpack_from(f"<{few}H", value, vtable + 4), *[0] * (4 - few))
    else:
        offsets = _OFFSETS.unpack_from(value, vtable + 4)
    return [table + offset if offset else 0 for offset in offsets]


_PREFIX, _OFFSETS = struct.Struct("<Ii"), struct.Struct("<4H")
_U8, _U16, _U32, _I32, _I64 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<i", "<q"))


def _check_types(schema: pa.Schema) -> None:
    if len(schema) > COLUMNS_MAX:
        raise RecordError("AOS1002", f"{len(schema)} columns, at most {COLUMNS_MAX}")
    # names and zones are read here, inside the caller's `try`: mutated ones are no UTF-8
    for name, type in zip(schema.names, schema.types, strict=True):
        if not _allowed(type, 0):
            raise RecordError("AOS1003", f"column {name[:64]!r} has type {str(type)[:64]}")


def _allowed(type: pa.DataType, depth: int) -> bool:
    """Types whose decoded size is bounded by their bytes and rows: no runs, unions, views or dictionaries."""
    types = pa.types
    if depth > DEPTH_MAX:
        return False
    if isinstance(type, pa.FixedShapeTensorType):
        return _allowed(type.storage_type, depth)
    if isinstance(type, pa.BaseExtensionType):
        return False
    if types.is_list(type) or types.is_large_list(type):
        return _allowed(type.value_type, depth + 1)
    if types.is_fixed_size_list(type):
        return bool(type.list_size > 0) and _allowed(type.value_type, depth + 1)
    if types.is_struct(type):
        parts = [(part.name, part.type) for part in type]
        return bool(parts) and all(_allowed(part, depth + 1) for _, part in parts)
    if types.is_timestamp(type):
        return type.tz is None or bool(type.tz)
    if types.is_fixed_size_binary(type):
        return bool(type.byte_width > 0)
    plain = types.is_string(type) or types.is_large_string(type) or types.is_binary(type)
    return bool(plain or types.is_large_binary(type) or types.is_primitive(type) or types.is_null(type))


def _one(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else _none(schema)


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _check_nulls(rows: pa.RecordBatch, record: Record) -> None:
    for index in record.required:
        if rows.column(index).null_count:
            raise RecordError("AOS1004", f"{record.name}.{record.fields[index].name}")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    for a, b in zip(found, wanted, strict=False):
        if a != b:
            return f"{a} instead of {b}"
    return f"{len(found)} columns instead of {len(wanted)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
