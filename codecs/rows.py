"""Rows made from columns or dicts, and tensors in and out of columns without copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from aos.codecs.fields import Record
from aos.codecs.schemas import RECORDS


def record(name: str) -> Record:
    """The record of that name."""
    return RECORDS[name]


def empty(name: str) -> pa.RecordBatch:
    """No rows of a record."""
    schema = RECORDS[name].schema
    return pa.RecordBatch.from_arrays([_array([], field.type) for field in schema], schema=schema)


def from_columns(name: str, count: int, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Rows from whole columns (arrays, sequences or numpy); absent nullable columns are null.

    A name the record does not have is a KeyError: a typing slip must not lose a column.
    """
    record = RECORDS[name]
    if not columns.keys() <= record.names:
        raise KeyError(f"{name} has no {sorted(columns.keys() - record.names)}")
    absent = _absent(name, count)
    arrays = [
        _array(columns[field.name], field.type) if field.name in columns else nulls
        for field, nulls in zip(record.fields, absent, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=record.schema)


@lru_cache(128)
def _absent(name: str, count: int) -> list[pa.Array]:
    """So many nulls for each column; kept, because most columns of a wide record are absent in most rows.

    A column with parts is not cut from a longer one: its parts would go on the wire in their whole length.
    """
    if count > ABSENT_ROWS_MAX:
        return [pa.nulls(count, field.type) for field in RECORDS[name].fields]
    return [
        pa.nulls(count, field.type) if kept is None else kept.slice(0, count)
        for field, kept in zip(RECORDS[name].fields, _kept_nulls(name), strict=True)
    ]


@cache
def _kept_nulls(name: str) -> list[pa.Array | None]:
    """Nulls for the columns without parts."""
    record = RECORDS[name]
    return [
        None if place in record.nested else pa.nulls(ABSENT_ROWS_MAX, field.type)
        for place, field in enumerate(record.fields)
    ]


ABSENT_ROWS_MAX = 1_024


def from_dicts(name: str, dicts: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows from dicts; absent keys are null. For the edges and tests, not for the hot path."""
    names = {key for row in dicts for key in row}
    return from_columns(name, len(dicts), {key: [row.get(key) for row in dicts] for key in names})


def _array(values: Any, type: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == type else values.cast(type)
    if isinstance(type, pa.FixedShapeTensorType):
        return _tensor_array(values, type)
    return pa.array(values, type)


def _tensor_array(values: Any, type: pa.FixedShapeTensorType) -> pa.Array:
    """A tensor column from an ndarray (rows, *shape), or from a sequence of arrays and None."""
    storage = type.storage_type
    if isinstance(values, np.ndarray):
        flat = np.ascontiguousarray(values, dtype=_scalar(type))
        if flat.size % storage.list_size:
            raise ValueError(f"{flat.size} numbers are no rows of {storage.list_size}")
        item = pa.Array.from_buffers(storage.value_type, flat.size, [None, pa.py_buffer(flat)])
        lists = pa.Array.from_buffers(storage, flat.size // storage.list_size, [None], children=[item])
        return pa.ExtensionArray.from_storage(type, lists)
    cells = [
        None if value is None else np.asarray(value, dtype=_scalar(type)).reshape(-1) for value in values
    ]
    return pa.ExtensionArray.from_storage(type, pa.array(cells, storage))


@cache
def _scalar(type: pa.FixedShapeTensorType) -> Any:
    """What numpy calls the numbers of a tensor."""
    return type.value_type.to_pandas_dtype()


def tensor(column: pa.Array) -> np.ndarray:
    """A tensor or fixed-size-list column without nulls as an ndarray (rows, size) over the same memory."""
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    size = storage.type.list_size
    values: np.ndarray = storage.values.to_numpy(
        zero_copy_only=True
    )  # of all it was cut from; flatten() costs a kernel
    first = storage.offset * size
    return values[first : first + len(storage) * size].reshape(len(storage), size)


def take_common(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns every task row carries, to hand on to an output row for row."""
    names = ("tenant", "traceparent", "request_id", "requested_at", "home", "domain", "round")
    return {name: rows.column(name) for name in names}


def micros(column: pa.Array) -> np.ndarray:
    """A time column without nulls as int64 microseconds since the epoch."""
    values: np.ndarray = column.cast(pa.int64()).to_numpy(zero_copy_only=True)
    return values
