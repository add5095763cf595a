"""Rows to bytes and back: one Arrow IPC stream a message, limits before decode, validation after.

`decode` never trusts: it walks the stream's flatbuffers for sizes, compression and dictionaries first, then lets
pyarrow read, then validates in full (mutated streams crash pyarrow otherwise: 6.6 % of inputs), then checks
columns, nulls and finiteness.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.errors import RecordError
from aos.codecs.fields import Record
from aos.codecs.schemas import RECORDS

MESSAGE_BYTES_MAX = 8 * 1024 * 1024  # the broker's message.max.bytes; edge topics are smaller (topics.py)
ROWS_MAX = 65_536
BATCHES_MAX = 256
COLUMNS_MAX = 128
METADATA_BYTES_MAX = 256 * 1024
DEPTH_MAX = 4

HEADER_RECORD = "aos-record"
HEADER_VERSION = "aos-version"
HEADER_CRC = "crc32c"

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3


def encode(rows: pa.RecordBatch, record: Record) -> tuple[bytes, dict[str, bytes]]:
    """Return the message value and headers of `rows`, which must have exactly the record's schema."""
    if rows.schema != record.schema:
        raise RecordError("AOS1003", f"{record.name}: {_difference(rows.schema, record.schema)}")
    _check_nulls(rows, record)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(rows)
    value: bytes = sink.getvalue().to_pybytes()
    return value, headers(record, value)


def headers(record: Record, value: bytes) -> dict[str, bytes]:
    """The headers every message inside AOS carries."""
    return {
        HEADER_RECORD: record.name.encode(),
        HEADER_VERSION: str(record.version).encode(),
        HEADER_CRC: b"%08x" % google_crc32c.value(value),
    }


def decode(
    value: bytes, message_headers: Mapping[str, bytes], record: Record, *, lenient: bool = False
) -> pa.RecordBatch:
    """Return the rows of a message, zero-copy, or raise RecordError.

    Columns the reader does not know are dropped, nullable ones the writer does not have are null. `lenient`
    (the edges) also casts what fits without loss: large strings, wider integers, other time units. Finiteness is
    checked by `finite`, because an edge refuses rows, not messages.
    """
    _check_headers(value, message_headers, record)
    _walk(value)
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
            _check_types(reader.schema)
            batches = []
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
            schema = reader.schema
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
        raise RecordError("AOS1001", _first_line(error)) from error
    rows = _one(batches, schema)
    fitted = _fit(rows, record, lenient)
    _check_nulls(fitted, record)
    return fitted


def decode_by_name(value: bytes, message_headers: Mapping[str, bytes], name: str) -> pa.RecordBatch:
    """`decode` strictly for the record of that name, with finiteness: what inner topics need."""
    rows = decode(value, message_headers, RECORDS[name])
    bad = finite(rows)
    if bad:
        raise RecordError("AOS1005", f"row {min(bad)}: column {bad[min(bad)]}")
    return rows


def finite(rows: pa.RecordBatch) -> dict[int, str]:
    """Rows that hold a NaN or an infinity, with the column's name."""
    bad: dict[int, str] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        values = _floats(column)
        if values is None or len(values) == 0:
            continue
        good = pc.all(pc.is_finite(values), skip_nulls=True, min_count=0).as_py()
        if not good:
            for index in range(rows.num_rows):
                part = _floats(column.slice(index, 1))
                if part is not None and not pc.all(pc.is_finite(part), min_count=0).as_py():
                    bad.setdefault(index, name)
    return bad


def _floats(column: pa.Array) -> pa.Array | None:
    """The float values under a column (lists and tensors flattened), None when it has none."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    if pa.types.is_struct(column.type):
        floats = [_floats(part) for part in column.flatten()]
        found = [pc.cast(part, pa.float64()) for part in floats if part is not None]
        return pa.concat_arrays(found) if found else None
    if pa.types.is_float16(column.type):
        return pc.cast(column, pa.float32())
    return column if pa.types.is_floating(column.type) else None


def _check_headers(value: bytes, message_headers: Mapping[str, bytes], record: Record) -> None:
    if len(value) > MESSAGE_BYTES_MAX:
        raise RecordError("AOS1002", f"{len(value)} bytes, at most {MESSAGE_BYTES_MAX}")
    named = message_headers.get(HEADER_RECORD)
    if named is not None and named != record.name.encode():
        raise RecordError("AOS1003", f"a {named[:64]!r} on a topic of {record.name}")
    crc = message_headers.get(HEADER_CRC)
    if crc is not None and crc != b"%08x" % google_crc32c.value(value):
        raise RecordError("AOS1006", f"{len(value)} bytes")


def _walk(value: bytes) -> None:
    """Check the stream's messages by their flatbuffer metadata, before pyarrow allocates anything."""
    position, batches = 0, 0
    try:
        while position < len(value):
            mark, size = struct.unpack_from("<Ii", value, position)
            if mark != _CONTINUATION:
                raise RecordError("AOS1001", f"no message at byte {position}")
            if size == 0:
                return
            if not 0 < size <= METADATA_BYTES_MAX:
                raise RecordError("AOS1002", f"{size} bytes of metadata at byte {position}")
            body = _message(value, position + 8, size)
            batches += 1
            if batches > BATCHES_MAX + 1:
                raise RecordError("AOS1002", f"more than {BATCHES_MAX} batches")
            position += 8 + size + body
        if position != len(value):
            raise RecordError("AOS1001", "the last message is cut off")
    except struct.error as error:
        raise RecordError("AOS1001", f"cut off at byte {position}") from error
    if batches == 0:
        raise RecordError("AOS1001", "no message at all")


def _message(value: bytes, start: int, size: int) -> int:
    """Check one message's metadata; return the length of its body."""
    root = start + struct.unpack_from("<I", value, start)[0]
    kind = _scalar(value, root, 1, "<B", start, size)
    body = _scalar(value, root, 3, "<q", start, size)
    if kind == _DICTIONARY:
        raise RecordError("AOS1003", "dictionary-encoded columns are not read: send plain ones")
    if kind not in (_SCHEMA, _BATCH) or not 0 <= body <= len(value):
        raise RecordError("AOS1001", f"message kind {kind}, body {body}")
    if kind == _BATCH:
        at = _slot(value, root, 2, start, size)
        table = at + struct.unpack_from("<I", value, at)[0] if at else 0
        if not table:
            raise RecordError("AOS1001", "a batch without header")
        if _slot(value, table, 3, start, size):
            raise RecordError("AOS1009")
        rows = _scalar(value, table, 0, "<q", start, size)
        if not 0 <= rows <= ROWS_MAX:
            raise RecordError("AOS1002", f"{rows} rows, at most {ROWS_MAX}")
    return int(body)


def _slot(value: bytes, table: int, slot: int, start: int, size: int) -> int:
    """Position of a flatbuffer table's field, 0 when it is absent."""
    if not start <= table <= start + size - 4:
        raise RecordError("AOS1001", "metadata points outside itself")
    vtable = table - struct.unpack_from("<i", value, table)[0]
    if not start <= vtable <= start + size - 4:
        raise RecordError("AOS1001", "metadata points outside itself")
    length = struct.unpack_from("<H", value, vtable)[0]
    if 4 + 2 * slot + 2 > length:
        return 0
    offset = struct.unpack_from("<H", value, vtable + 4 + 2 * slot)[0]
    return table + offset if offset else 0


def _scalar(value: bytes, table: int, slot: int, form: str, start: int, size: int) -> int:
    at = _slot(value, table, slot, start, size)
    return int(struct.unpack_from(form, value, at)[0]) if at else 0


def _check_types(schema: pa.Schema) -> None:
    if len(schema) > COLUMNS_MAX:
        raise RecordError("AOS1002", f"{len(schema)} columns, at most {COLUMNS_MAX}")
    for field in schema:
        if not _allowed(field.type, 0):
            raise RecordError("AOS1003", f"column {field.name[:64]!r} has type {str(field.type)[:64]}")


def _allowed(type: pa.DataType, depth: int) -> bool:
    """Types whose decoded size is bounded by their bytes: no runs, unions, views, nulls or dictionaries."""
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
        return type.num_fields > 0 and all(_allowed(part.type, depth + 1) for part in type)
    if types.is_fixed_size_binary(type):
        return bool(type.byte_width > 0)
    plain = types.is_string(type) or types.is_large_string(type) or types.is_binary(type)
    return bool(plain or types.is_large_binary(type) or types.is_primitive(type))


def _one(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    if sum(batch.num_rows for batch in batches) > ROWS_MAX:
        raise RecordError("AOS1002", f"more than {ROWS_MAX} rows")
    if not batches:
        return schema.empty_table().to_batches()[0] if schema.empty_table().to_batches() else _none(schema)
    return pa.concat_batches(batches)


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _fit(rows: pa.RecordBatch, record: Record, lenient: bool) -> pa.RecordBatch:
    """The record's columns out of `rows`, in the record's order."""
    if rows.schema == record.schema:
        return rows
    names = rows.schema.names
    if len(set(names)) != len(names):
        raise RecordError("AOS1003", "a column stands twice")
    columns = []
    for field in record.schema:
        if field.name not in names:
            if not field.nullable:
                raise RecordError("AOS1003", f"column {field.name} is missing")
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        columns.append(_fit_column(rows.column(names.index(field.name)), field, lenient))
    return pa.RecordBatch.from_arrays(columns, schema=record.schema)


def _fit_column(column: pa.Array, field: pa.Field, lenient: bool) -> pa.Array:
    if column.type == field.type:
        return column
    if lenient or _same_but_names(column.type, field.type):
        try:
            return column.cast(field.type, safe=True)
        except (pa.ArrowException, ValueError) as error:
            raise RecordError("AOS1003", f"column {field.name}: {_first_line(error)}") from error
    raise RecordError("AOS1003", f"column {field.name} is {column.type}, not {field.type}")


def _same_but_names(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Nested types that differ only in fields added at the end of a struct, or in the list item's name."""
    nested = (pa.types.is_list, pa.types.is_struct, pa.types.is_fixed_size_list)
    return any(test(found) and test(wanted) for test in nested)


def _check_nulls(rows: pa.RecordBatch, record: Record) -> None:
    for field, column in zip(record.fields, rows.columns, strict=True):
        if not field.nullable and column.null_count:
            raise RecordError("AOS1004", f"{record.name}.{field.name}")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    for a, b in zip(found, wanted, strict=False):
        if a != b:
            return f"{a} instead of {b}"
    return f"{len(found)} columns instead of {len(wanted)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
