"""copying: tables as the bytes that COPY BINARY reads, taken apart here as PostgreSQL's documentation says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.codecs.fields import TEXTS, TIME
from aos.infra.copying import copied
from aos.streams.store_tables import BOOLS, F32S

YEAR_2000_US = 946_684_800_000_000
FORMATS = {pa.int8(): ">h", pa.int16(): ">h", pa.int32(): ">i", pa.int64(): ">q", pa.float32(): ">f",
           pa.float64(): ">d", pa.bool_(): ">?"}  # fmt: skip
OIDS = {25: bytes.decode, 700: lambda raw: struct.unpack(">f", raw)[0], 16: lambda raw: raw == b"\x01"}


def read(type: pa.DataType, raw: bytes) -> Any:
    """One value."""
    if type in FORMATS:
        return struct.unpack(FORMATS[type], raw)[0]
    if pa.types.is_timestamp(type):
        return struct.unpack(">q", raw)[0] + YEAR_2000_US
    if pa.types.is_list(type):
        dimensions, nulls, oid, count, lower = struct.unpack(">5i", raw[:20])
        assert (dimensions, nulls, lower) == (1, 0, 1)
        items, at = [], 20
        for _ in range(count):
            (length,) = struct.unpack(">i", raw[at : at + 4])
            items.append(OIDS[oid](raw[at + 4 : at + 4 + length]))
            at += 4 + length
        assert at == len(raw)
        return items
    return raw.decode() if pa.types.is_string(type) else raw


def rows_of(text: bytes, types: list[pa.DataType]) -> list[list[Any]]:
    """All rows."""
    assert text[:19] == b"PGCOPY\n\xff\r\n\x00" + bytes(8)
    rows, at = [], 19
    while (count := struct.unpack(">h", text[at : at + 2])[0]) != -1:
        assert count == len(types)
        row, at = [], at + 2
        for type in types:
            (length,) = struct.unpack(">i", text[at : at + 4])
            at += 4
            row.append(None if length < 0 else read(type, text[at : at + length]))
            at += max(length, 0)
        rows.append(row)
    assert at + 2 == len(text)
    return rows


def ints(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(width=32, allow_nan=False)
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int8(): ints(8), pa.int16(): ints(16), pa.int32(): ints(32), pa.int64(): ints(64), pa.float32(): floats,
    pa.float64(): st.floats(allow_nan=False), pa.bool_(): st.booleans(), pa.string(): texts,
    pa.binary(): st.binary(max_size=8), pa.binary(16): st.binary(min_size=16, max_size=16),
    TIME: st.integers(0, 2**52), TEXTS: st.lists(texts, max_size=3), F32S: st.lists(floats, max_size=3),
    BOOLS: st.lists(st.booleans(), max_size=3),
}  # fmt: skip


@given(st.data())
def test_every_value_of_every_type_is_read_back_nulls_included(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=6))
    rows = data.draw(
        st.lists(st.tuples(*(st.none() | VALUES[type] for type in types)), min_size=1, max_size=6)
    )
    skipped = data.draw(st.integers(0, len(rows) - 1))
    columns = [pa.array(column, type) for column, type in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.Table.from_arrays(columns, names=[str(index) for index in range(len(types))])
    assert rows_of(copied(table.slice(skipped)), types) == [list(row) for row in rows[skipped:]]


@pytest.mark.parametrize("hidden", [pa.string(), pa.binary()])
def test_bytes_that_a_null_hides_are_not_sent(hidden: pa.DataType) -> None:
    whole: Callable[..., pa.Array] = pa.Array.from_buffers
    offsets, data = pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"abc")
    column = whole(hidden, 2, [pa.py_buffer(b"\x01"), offsets, data])
    assert column.null_count == 1
    assert rows_of(copied(pa.table({"a": column})), [hidden]) == [[column[0].as_py()], [None]]
