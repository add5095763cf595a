"""Says of an input that was accepted whether it should have been: plain pyarrow and json, nothing of AOS.

All it is told is a record's declared schema. Each function returns sentences of what is wrong; none for what is right.
The limits stand here a second time on purpose: who loosens them in AOS has to loosen them here.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

MESSAGE_BYTES, EDGE_BYTES = 8 << 20, 1 << 20
ROWS, EDGE_ROWS, BATCHES, COLUMNS, DEPTH = 65_536, 16_384, 256, 128, 4
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)
ID = re.compile(r"[0-9a-fA-F]*\Z")


def headers(value: bytes, said: Mapping[str, bytes], record: str, *, edge: bool) -> list[str]:
    """Size, checksum and name of a message."""
    wrong = []
    if len(value) > (EDGE_BYTES if edge else MESSAGE_BYTES):
        wrong.append(f"{len(value)} bytes")
    if "crc32c" in said and said["crc32c"] != f"{google_crc32c.value(value):08x}".encode():
        wrong.append("the checksum does not match")
    if "aos-record" in said and said["aos-record"] != record.encode():
        wrong.append(f"the message says that it is {said['aos-record']!r}")
    return wrong


def arrow(
    value: bytes, rows: pa.RecordBatch, bad: Mapping[int, Any], schema: pa.Schema, *, edge: bool
) -> list[str]:
    """Whether `rows`, but those in `bad`, are what stands in the stream `value` and fit `schema`."""
    found, parts, wrong = stream(value, edge=edge)
    if found is None:
        return wrong
    count = sum(part.num_rows for part in parts)
    if count != rows.num_rows:
        wrong.append(f"{rows.num_rows} rows instead of {count}")
    elif not wrong:
        wrong += _same(found, parts, rows, bad)
    return wrong + fits(rows, schema, bad)


def stream(value: bytes, *, edge: bool) -> tuple[pa.Schema | None, list[pa.RecordBatch], list[str]]:
    """Schema and batches of a stream as plain pyarrow reads it, and which limits it breaks."""
    buffer = pa.py_buffer(value)
    try:
        with pa.ipc.open_stream(buffer) as reader:
            found, parts = reader.schema, list(reader)
        for part in parts:
            part.validate(full=True)
    except UNREADABLE as error:
        return None, [], [f"pyarrow cannot read it: {str(error)[:100]}"]
    return found, parts, list(_limits(found, parts, buffer, edge))


def _limits(
    schema: pa.Schema, parts: Sequence[pa.RecordBatch], buffer: pa.Buffer, edge: bool
) -> Iterator[str]:
    if len(schema) > COLUMNS:
        yield f"{len(schema)} columns"
    if len(parts) > BATCHES:
        yield f"{len(parts)} batches"
    if sum(part.num_rows for part in parts) > (EDGE_ROWS if edge else ROWS):
        yield "too many rows"
    if len(set(schema.names)) < len(schema.names):
        yield "a column stands twice"
    yield from (f"type {field.type}" for field in schema if not plain(field.type))
    low, high = buffer.address, buffer.address + buffer.size
    for part in parts:
        for column in part.columns:
            for one in column.buffers() if plain(column.type) else ():
                if one is not None and one.size and not low <= one.address <= one.address + one.size <= high:
                    yield "a buffer lies outside the message: the body was compressed"
                    return


@lru_cache(4_096)  # types are few, inputs are many
def plain(type: pa.DataType, depth: int = 0) -> bool:
    """Whether what a column of this type takes is bounded by the message's bytes and rows."""
    if isinstance(type, pa.FixedShapeTensorType):
        return plain(type.storage_type, depth)
    banned = (
        pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_union, pa.types.is_map,
        pa.types.is_list_view, pa.types.is_large_list_view, pa.types.is_string_view, pa.types.is_binary_view,
    )  # fmt: skip
    if isinstance(type, pa.BaseExtensionType) or any(test(type) for test in banned) or depth > DEPTH:
        return False
    return all(plain(type.field(i).type, depth + 1) for i in range(type.num_fields))


def _same(
    found: pa.Schema, parts: Sequence[pa.RecordBatch], rows: pa.RecordBatch, bad: Mapping[int, Any]
) -> list[str]:
    """Columns that both have in one type must be equal, those that the message lacks null."""
    table = pa.Table.from_batches(parts, found)
    good = [row for row in range(rows.num_rows) if row not in bad]
    wrong = []
    for field in rows.schema:
        here = rows.column(field.name)
        if field.name not in found.names:
            wrong += [f"{field.name} was made up"] if here.null_count < len(here) else []
            continue
        there = table.column(field.name)
        if there.type != here.type:
            continue
        if bad:
            there, here = there.take(pa.array(good, pa.int64())), here.take(pa.array(good, pa.int64()))
        if not _equal(there.combine_chunks(), here):
            wrong.append(f"{field.name} was changed")
    return wrong


def _equal(a: Any, b: pa.Array) -> bool:
    """Equality that takes NaN for equal to itself."""
    whole = pa.chunked_array([a], b.type) if not isinstance(a, pa.ChunkedArray) else a
    return bool(whole.equals(pa.chunked_array([b], b.type))) or str(whole.to_pylist()) == str(b.to_pylist())


def fits(rows: pa.RecordBatch, schema: pa.Schema, bad: Mapping[int, Any] = {}) -> list[str]:
    """Whether rows, but those in `bad`, are of the schema, valid, without forbidden nulls, and finite."""
    if not rows.schema.equals(schema):
        return ["another schema"]
    try:
        rows.validate(full=True)
    except UNREADABLE as error:
        return [f"invalid: {str(error)[:100]}"]
    good = pa.array([row for row in range(rows.num_rows) if row not in bad], pa.int64()) if bad else None
    wrong: list[str] = []
    for place, field in _bounded(schema):
        column = rows.column(place)
        wrong += _fits(column if good is None else column.take(good), field, field.name)
    return wrong


@cache
def _bounded(schema: pa.Schema) -> list[tuple[int, pa.Field]]:
    """The columns of which not every valid value is right: a part of them must not be null, or must be finite."""
    return [(place, field) for place, field in enumerate(schema) if _bound(field)]


def _bound(field: pa.Field) -> bool:
    type = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if not field.nullable or pa.types.is_floating(type) or pa.types.is_fixed_size_list(type):
        return True
    return any(_bound(type.field(i)) for i in range(type.num_fields))


def _fits(column: pa.Array, field: pa.Field, path: str) -> Iterator[str]:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    type = column.type
    if column.null_count and not field.nullable:
        yield f"{path} is null"
    if pa.types.is_floating(type):
        if column.null_count < len(column) and not pc.all(pc.is_finite(column)).as_py():
            yield f"{path} is not finite"
    elif pa.types.is_struct(type):
        there = column.filter(column.is_valid()) if column.null_count else column
        for part, values in zip(type, there.flatten(), strict=True):
            yield from _fits(values, part, f"{path}.{part.name}")
    elif type.num_fields:
        item = type.field(0).with_nullable(type.field(0).nullable and not pa.types.is_fixed_size_list(type))
        yield from _fits(column.flatten(), item, f"{path}[]")


class _Twice(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise _Twice("a key stands twice")
    return dict(pairs)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def json_object(value: bytes, schema: pa.Schema) -> tuple[dict[str, Any], list[str]]:
    """The object in `value`, and whether it is one, small enough, without unknown or repeated keys."""
    if len(value) > EDGE_BYTES:
        return {}, [f"{len(value)} bytes"]
    try:
        found = json.loads(value.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        return {}, [f"json cannot read it: {str(error)[:100]}"]
    if not isinstance(found, dict):
        return {}, ["no object"]
    return found, [f"unknown key {key[:20]!r}" for key in found if key not in schema.names]


def json_row(value: bytes, row: Mapping[str, Any], schema: pa.Schema, lost: str | None = None) -> list[str]:
    """Whether `row` is what the JSON object `value` says, and allowed; `lost`: a column that was named as bad."""
    found, wrong = json_object(value, schema)
    if wrong:
        return wrong
    for field in schema:
        if field.name == lost:
            continue
        said = found.get(field.name)
        if said is None:
            wrong += [] if field.nullable else [f"{field.name} is missing"]
            wrong += [] if row[field.name] is None else [f"{field.name} was made up"]
        else:
            wrong += _says(said, row[field.name], field.type, field.name)
    return wrong


def _says(said: Any, got: Any, type: pa.DataType, path: str) -> list[str]:
    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    if got is None:
        return [f"{path} was lost"]
    if types.is_struct(type):
        if not isinstance(said, dict):
            return [f"{path} is no object"]
        wrong = [f"{path}: unknown key" for key in said if type.get_field_index(key) < 0]
        for part in type:
            value = said.get(part.name)
            if value is None:
                wrong += (
                    [] if part.nullable and got[part.name] is None else [f"{path}.{part.name} is missing"]
                )
            else:
                wrong += _says(value, got[part.name], part.type, f"{path}.{part.name}")
        return wrong
    if type.num_fields:
        size = type.list_size if types.is_fixed_size_list(type) else None
        if not isinstance(said, list) or len(said) != len(got) or size not in (None, len(said)):
            return [f"{path} is another list"]
        return [w for a, b in zip(said, got, strict=True) for w in _says(a, b, type.value_type, f"{path}[]")]
    return [] if _value(said, got, type) else [f"{path}: {str(said)[:40]!r} became {str(got)[:40]!r}"]


def _value(said: Any, got: Any, type: pa.DataType) -> bool:
    types = pa.types
    if types.is_boolean(type):
        return isinstance(said, bool) and said == got
    if isinstance(said, bool):
        return False
    if types.is_integer(type):
        whole = isinstance(said, int) or (isinstance(said, float) and said.is_integer())
        return whole and int(said) == got and -(2 ** (type.bit_width - 1)) <= got < 2 ** (type.bit_width - 1)
    if types.is_floating(type):
        close = {16: 1e-3, 32: 1e-6, 64: 1e-15}[type.bit_width]
        return math.isfinite(got) and math.isclose(float(said), got, rel_tol=close, abs_tol=6e-8)
    if types.is_fixed_size_binary(type):
        good = isinstance(said, str) and ID.match(said) and len(said) == 2 * type.byte_width
        return bool(good) and bytes.fromhex(said) == got
    if types.is_binary(type):
        return isinstance(said, dict) or (isinstance(said, str) and said.encode() == got)
    if types.is_timestamp(type):
        if isinstance(said, str):
            return bool(re.match(r"\d{4}-", said))
        return isinstance(got, datetime.datetime) or int(said) * 1000 == got
    return isinstance(said, str) and said == got
