"""Arrow tables as the CSV text that COPY reads, column by column, without a loop over rows.

Measured against psycopg's `write_row` and pgpq on these tables: see docs/sql.md.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from aos.streams.store_tables import Table

SQL_TYPES: dict[pa.DataType, str] = {
    pa.string(): "text",
    pa.binary(): "bytea",
    pa.binary(16): "uuid",
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.timestamp("us", tz="UTC"): "timestamptz",
}


# What array text would read otherwise: separators, quotes, blanks, the word null, the empty text.
_NEEDS_QUOTES = r'[{},"\\\s]|^$|^(?i:null)$'


def sql_type(type: pa.DataType) -> str:
    """The SQL type of a column."""
    if pa.types.is_list(type):
        return f"{SQL_TYPES[type.value_type]}[]"
    return SQL_TYPES[type]


def columns_of(table: Table) -> str:
    """The table's columns, quoted, for INSERT and COPY."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def csv_of(rows: pa.Table) -> bytes:
    """COPY's CSV: an unquoted empty field is null, texts are quoted, times are UTC without zone."""
    columns = {
        name: _plain(column.combine_chunks())
        for name, column in zip(rows.schema.names, rows.columns, strict=True)
    }
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(pa.table(columns), sink, _OPTIONS)
    return bytes(sink.getvalue())


_OPTIONS = pa_csv.WriteOptions(include_header=False, quoting_style="needed")


def _plain(values: pa.Array) -> pa.Array:
    """The column as Arrow's CSV writer writes it the way PostgreSQL reads it."""
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_timestamp(values.type):
        return pc.cast(values.cast(pa.timestamp("us")), pa.string())
    if pa.types.is_fixed_size_binary(values.type):
        return _hex(values)
    if pa.types.is_binary(values.type):
        return _bytes_hex(values)
    if pa.types.is_list(values.type):
        return _array_text(values)
    return values


def _hex(values: pa.FixedSizeBinaryArray) -> pa.Array:
    """Ids as 32 hexadecimal digits: the bytes of the whole column at once."""
    count = len(values)
    start = values.offset * 16
    digits = values.buffers()[1].slice(start, count * 16).hex()
    offsets = pa.py_buffer((np.arange(count + 1, dtype=np.int32) * 32).tobytes())
    text = pa.StringArray.from_buffers(count, offsets, pa.py_buffer(digits))
    return pc.if_else(pc.is_valid(values), text, pa.scalar(None, pa.string())) if values.null_count else text


def _bytes_hex(values: pa.BinaryArray) -> pa.Array:
    """Bytes as \\x and hexadecimal digits. Rare: bodies, only with store_payloads."""
    return pa.array(
        [None if value is None else "\\x" + value.hex() for value in values.to_pylist()], pa.string()
    )


def _array_text(lists: pa.ListArray) -> pa.Array:
    """PostgreSQL's array text, {a,b}; texts in quotes only if one of them needs it, which is rare."""
    flat = lists.flatten()
    if pa.types.is_string(flat.type):
        items = _quoted(flat) if pc.any(pc.match_substring_regex(flat, _NEEDS_QUOTES)).as_py() else flat
    elif pa.types.is_floating(flat.type):
        items = (
            pl.Series(pl.from_arrow(flat)).cast(pl.String).to_arrow().cast(pa.string())
        )  # twice pyarrow's speed
    else:
        items = flat.cast(pa.string())
    counts = pc.list_value_length(lists)
    ends = np.cumsum(pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), items), ",")
    text = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.is_valid(counts), text, pa.scalar(None, pa.string())) if counts.null_count else text


def _quoted(values: pa.Array) -> pa.Array:
    escaped = pc.replace_substring(pc.replace_substring(values, "\\", "\\\\"), '"', '\\"')
    return pc.binary_join_element_wise('"', escaped, '"', "")
