"""One JSON object, one row: what people and small programs write and read instead of Arrow.

In: `parse` checks an object against the record's declaration (types, ranges, unknown keys) and `rows` makes a batch of
many. Out: `objects` gives plain values, `dumps` bytes; what was written reads back as the same row.

| column | in JSON |
|---|---|
| text, booleans, numbers | as they are; a number must be within its column's range |
| bytes | a string (its UTF-8 bytes), or `{"base64": "..."}` |
| ids and tokens | 32 hexadecimal digits |
| times | ISO 8601 (`2026-11-21T10:47:00Z`; without zone: UTC), or milliseconds since 1970 |
| lists, structs, tensors | arrays and objects |

errors: AOS1002 too large, AOS1003 wrong type, AOS1004 missing, AOS1007 no JSON, AOS1008 unknown key, AOS1014 range.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta

from aos.codecs.errors import RecordError
from aos.codecs.fields import Record
from aos.codecs.schemas import RECORDS
from aos.codecs.wire import EDGE_BYTES_MAX

CONTENT_TYPE = "application/json"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_TIME_MS_MAX = (2**63 - 1) // 1000
_YEAR_1_US, _YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000


class Base64(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes that are no text."""

    base64: bytes


def is_json(value: bytes, headers: dict[str, bytes] | Any) -> bool:
    """Whether a message says that it is JSON, or looks like an object."""
    named = headers.get("content-type")
    if named is not None:
        return bool(named.strip().lower().startswith(CONTENT_TYPE.encode()))
    return value[:64].lstrip()[:1] == b"{"


def parse(value: bytes, record: Record) -> msgspec.Struct:
    """The object in `value` as a struct with the record's columns as attributes, or RecordError."""
    if len(value) > EDGE_BYTES_MAX:
        raise RecordError("AOS1002", f"{len(value)} bytes, at most {EDGE_BYTES_MAX}")
    try:
        found: msgspec.Struct = _decoder(record.name).decode(value)
    except msgspec.ValidationError as error:
        raise RecordError(_code(str(error)), str(error)[:300]) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("AOS1007", str(error)[:300]) from error
    _check_keys(value)
    return found


def parse_row(value: bytes, record: Record) -> tuple[msgspec.Struct, RecordError | None]:
    """`parse`, but a number out of range in a column that may be null leaves a row to answer, and its error."""
    try:
        return parse(value, record), None
    except RecordError as error:
        column = error.detail.rpartition(" - at `$.")[2].partition(".")[0].partition("[")[0].rstrip("`")
        if error.code != "AOS1014" or column not in record.schema.names or not record[column].nullable:
            raise
        try:
            rest = msgspec.json.decode(value)  # the first wrong value ended the first look: there may be more
        except (msgspec.DecodeError, UnicodeError, RecursionError) as worse:
            raise RecordError("AOS1007", str(worse)[:300]) from worse
        _check_keys(value)
        del rest[column]
        return parse(msgspec.json.encode(rest), record), RecordError(error.code, f"{column}: {error.detail}")


def rows(found: Sequence[msgspec.Struct], record: Record) -> pa.RecordBatch:
    """A batch of what `parse` gave, in order."""
    arrays = []
    for field in record.schema:
        values = [getattr(row, field.name) for row in found]
        if values.count(None) == len(values):
            arrays.append(pa.nulls(len(values), field.type))
            continue
        change = _change(record.name, field.name)
        if change is not None:
            values = [None if value is None else change(value) for value in values]
        arrays.append(_array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=record.schema)


def read(value: bytes, record: Record) -> pa.RecordBatch:
    """The one row in `value`."""
    return rows([parse(value, record)], record)


def objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Each row as a dict of JSON values; columns that are null are left out."""
    names = batch.schema.names
    columns = [_plain(column) for column in batch.columns]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*columns, strict=True)
    ]


def dumps(batch: pa.RecordBatch) -> list[bytes]:
    """Each row as one JSON object."""
    return [msgspec.json.encode(row) for row in objects(batch)]


_KEYS = re.compile(rb'"([^"\\]*)"\s*:')


def _check_keys(value: bytes) -> None:
    """Refuse an object that names a key twice: readers differ in which one counts. `value` is JSON."""
    keys = _KEYS.findall(value)  # and some texts that look like keys
    if len(set(keys)) < len(keys) or b"\\" in value:
        try:
            json.loads(value, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise RecordError("AOS1007", str(error)[:300]) from error


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:64]!r} stands twice")


def _array(values: list[Any], type: pa.DataType) -> pa.Array:
    if isinstance(type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type, pa.array(values, type.storage_type))
    return pa.array(values, type)


def _code(text: str) -> str:
    if "unknown field" in text:
        return "AOS1008"
    if "missing required field" in text or text.endswith("got `null`") or "got `null` -" in text:
        return "AOS1004"
    in_range = (" <= ", " >= ", "out of range", "of length", "matching regex")
    return "AOS1014" if any(mark in text for mark in in_range) else "AOS1003"


@cache
def _decoder(name: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_struct(RECORDS[name].schema, name))


def _struct(fields: Any, name: str) -> type[msgspec.Struct]:
    """A msgspec struct of Arrow fields: required ones first, as Python's defaults demand."""
    needed = [(field.name, _type(field.type, name)) for field in fields if not field.nullable]
    free = [(field.name, _type(field.type, name) | None, None) for field in fields if field.nullable]
    return msgspec.defstruct(name.replace("-", "_"), [*needed, *free], forbid_unknown_fields=True)


def _type(type: pa.DataType, name: str) -> Any:
    """What JSON value a column of this type takes."""
    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return _type(type.storage_type, name)
    if types.is_struct(type):
        return _struct(type, name)
    if types.is_fixed_size_list(type):
        size = type.list_size
        return Annotated[list[_type(type.value_type, name)], Meta(min_length=size, max_length=size)]  # type: ignore[misc]
    if types.is_list(type):
        return list[_type(type.value_type, name)]  # type: ignore[misc]
    if types.is_fixed_size_binary(type):
        return Annotated[str, Meta(pattern=f"^[0-9a-fA-F]{{{2 * type.byte_width}}}$")]
    if types.is_binary(type):
        return str | Base64
    if types.is_timestamp(type):
        return Annotated[int, Meta(ge=-_TIME_MS_MAX, le=_TIME_MS_MAX)] | datetime.datetime
    if types.is_boolean(type):
        return bool
    if types.is_string(type):
        return str
    if types.is_integer(type):
        most = 2 ** (type.bit_width - 1) - 1
        return Annotated[int, Meta(ge=-most - 1, le=most)]
    if types.is_floating(type):
        largest = np.finfo(type.to_pandas_dtype()).max
        most = max(float(largest), float(str(largest)))  # the shortest way to write it may round up
        return Annotated[float, Meta(ge=-most, le=most)]
    raise TypeError(f"{name}: no JSON for {type}")


@cache
def _change(record: str, column: str) -> Callable[[Any], Any] | None:
    return _changer(RECORDS[record].schema.field(column).type)


def _changer(type: pa.DataType) -> Callable[[Any], Any] | None:
    """How a parsed value becomes what pa.array takes; None when it is that already."""
    types = pa.types
    if types.is_fixed_size_binary(type):
        return bytes.fromhex
    if types.is_binary(type):
        return lambda value: value.encode() if isinstance(value, str) else value.base64
    if types.is_timestamp(type):
        return _micros
    if types.is_struct(type):
        parts = [(field.name, _changer(field.type)) for field in type]
        return lambda value: {name: _changed(getattr(value, name), change) for name, change in parts}
    if types.is_list(type):
        change = _changer(type.value_type)
        return None if change is None else lambda value: [change(item) for item in value]
    return None


def _changed(value: Any, change: Callable[[Any], Any] | None) -> Any:
    return value if change is None or value is None else change(value)


def _micros(value: int | datetime.datetime) -> int:
    if isinstance(value, int):
        return value * 1000
    return ((value if value.tzinfo else value.replace(tzinfo=datetime.UTC)) - _EPOCH) // _MICROSECOND


def _plain(array: pa.Array) -> list[Any]:
    """An array's elements as JSON values."""
    types = pa.types
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    type = array.type
    if types.is_struct(type):
        names = [field.name for field in type]
        parts = [_plain(part) for part in array.flatten()]
        valid = array.is_valid().to_pylist()
        return [
            {n: v for n, v in zip(names, values, strict=True) if v is not None} if ok else None
            for ok, *values in zip(valid, *parts, strict=True)
        ]
    if type.num_fields:
        items, lengths = _plain(array.flatten()), array.value_lengths().to_pylist()
        lists, at = [], 0
        for length in lengths:
            lists.append(None if length is None else items[at : at + length])
            at += length or 0
        return lists
    values = array.cast(pa.int64()).to_pylist() if types.is_timestamp(type) else array.to_pylist()
    show = _shower(type)
    return values if show is None else [None if value is None else show(value) for value in values]


def _shower(type: pa.DataType) -> Callable[[Any], Any] | None:
    types = pa.types
    if types.is_timestamp(type):
        return _iso
    if types.is_fixed_size_binary(type):
        return bytes.hex
    if types.is_binary(type):
        return _text
    if types.is_float32(type) or types.is_float16(type):
        # the shortest number that reads back as the same float: .1, not .10000000149011612
        scalar = type.to_pandas_dtype()
        return lambda value: float(str(scalar(value)))
    return None


def _text(value: bytes) -> str | dict[str, bytes]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": value}


def _iso(micros: int) -> str | int:
    """ISO 8601 in UTC; milliseconds where the calendar ends."""
    if not _YEAR_1_US <= micros < _YEAR_10000_US:
        return micros // 1000
    moment = (_EPOCH + datetime.timedelta(microseconds=micros)).replace(tzinfo=None)
    return moment.isoformat() + "Z"
