"""Hypothesis strategies made from the declared schemas: any row that a record allows, and hostile bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from aos.codecs.fields import Record

TIME_MAX_US = 4_102_444_800_000_000  # the year 2100


def values(type: pa.DataType, *, nullable: bool = False) -> st.SearchStrategy[Any]:
    """Python values that `pa.array` takes for a column of this type."""
    made = _values(type)
    return st.none() | made if nullable else made


def _values(type: pa.DataType) -> st.SearchStrategy[Any]:
    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return _values(type.storage_type)
    if types.is_struct(type):
        return st.fixed_dictionaries({f.name: values(f.type, nullable=f.nullable) for f in type})
    if types.is_fixed_size_list(type):
        # one drawn number a vector: 256 drawn ones would be all that hypothesis does
        item = _values(type.value_type)
        return st.builds(lambda first, rest: [first] + [rest] * (type.list_size - 1), item, item)
    if types.is_list(type):
        return st.lists(values(type.value_type), max_size=3)
    if types.is_fixed_size_binary(type):
        return st.binary(min_size=type.byte_width, max_size=type.byte_width)
    if types.is_binary(type):
        return st.binary(max_size=24)
    if types.is_string(type):
        return st.text(st.characters(codec="utf-8"), max_size=12)
    if types.is_boolean(type):
        return st.booleans()
    if types.is_timestamp(type):
        return st.integers(0, TIME_MAX_US)
    if types.is_integer(type):
        return st.integers(-(2 ** (type.bit_width - 1)), 2 ** (type.bit_width - 1) - 1)
    if types.is_floating(type):
        most = float(np.finfo(type.to_pandas_dtype()).max)
        width: Any = type.bit_width
        return st.floats(-most, most, width=width)
    raise TypeError(f"no strategy for {type}")


def dicts(record: Record) -> st.SearchStrategy[dict[str, Any]]:
    """Rows of a record as dicts."""
    return st.fixed_dictionaries({f.name: values(f.type, nullable=f.nullable) for f in record.fields})


def array(found: list[Any], type: pa.DataType) -> pa.Array:
    """A column of drawn values."""
    if isinstance(type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type, array(found, type.storage_type))
    return pa.array(found, type)


def batch(record: Record, found: list[dict[str, Any]]) -> pa.RecordBatch:
    """A batch of drawn rows."""
    columns = [array([row[field.name] for row in found], field.type) for field in record.schema]
    return pa.RecordBatch.from_arrays(columns, schema=record.schema)


def batches(record: Record, max_size: int = 4) -> st.SearchStrategy[pa.RecordBatch]:
    """Batches of a record, none to `max_size` rows."""
    return st.lists(dicts(record), max_size=max_size).map(lambda found: batch(record, found))
