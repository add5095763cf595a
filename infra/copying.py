"""Arrow tables as the CSV text that COPY reads, column by column, without a loop over rows.

Measured against psycopg's `write_row` and pgpq on these tables: see docs/sql.md.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

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


def sql_type(type: pa.DataType) -> str:
    """The SQL type of a column."""
    if pa.types.is_list(type):
        return f"{SQL_TYPES[type.value_type]}[]"
    return SQL_TYPES[type]


def columns_of(table: Table) -> str:
    """The table's columns, quoted, for INSERT and COPY."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def csv_of(rows: pa.Table) -> bytes:
    """COPY's CSV: an unquoted empty field is null, times are UTC without zone."""
    columns = {name: _plain(rows.column(name).combine_chunks()) for name in rows.schema.names}
    frame = pl.DataFrame({name: pl.Series(name, pl.from_arrow(column)) for name, column in columns.items()})
    return frame.write_csv(include_header=False, quote_style="necessary").encode()


def _plain(values: pa.Array) -> pa.Array:
    """The column as polars writes it the way PostgreSQL reads it."""
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_timestamp(values.type):
        return pc.cast(values.cast(pa.timestamp("us")), pa.string())
    if pa.types.is_fixed_size_binary(values.type):
        return _hex(values, "")
    if pa.types.is_binary(values.type):
        return _hex(values, "\\x")
    if pa.types.is_list(values.type):
        return _array_text(values)
    return values


def _hex(values: pa.Array, prefix: str) -> pa.Array:
    text = pl.Series(pl.from_arrow(values.cast(pa.binary()))).bin.encode("hex").to_arrow().cast(pa.string())
    return pc.binary_join_element_wise(prefix, text, "") if prefix else text


def _array_text(lists: pa.ListArray) -> pa.Array:
    """PostgreSQL's array text: {a,b}, texts in quotes."""
    flat = lists.flatten()
    if pa.types.is_string(flat.type):
        escaped = pc.replace_substring(pc.replace_substring(flat, "\\", "\\\\"), '"', '\\"')
        items = pc.binary_join_element_wise('"', escaped, '"', "")
    else:
        items = flat.cast(pa.string())
    counts = pc.list_value_length(lists)
    ends = np.cumsum(pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), items), ",")
    text = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.is_valid(counts), text, pa.scalar(None, pa.string())) if counts.null_count else text
