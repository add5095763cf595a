"""What is written: the very bytes of a stream writer, nulls where nothing was given, none where none may be."""

from __future__ import annotations

import random
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from tests.unit import strategies
from tests.unit.test_wire import NAMES, RELAXED, TASK, stream, tasks


@RELAXED
@given(st.data())
def test_a_message_is_byte_for_byte_what_a_stream_writer_writes(data: st.DataObject) -> None:
    record = RECORDS[data.draw(st.sampled_from(NAMES))]
    rows = data.draw(strategies.batches(record))
    for part in (rows, rows.slice(1), rows.slice(0, 1)):
        assert wire.encode(part, record)[0] == stream(part)


@given(st.integers(0, 2**32), st.sampled_from([-1, 0, 1, 2, 3]))
def test_nulls_that_the_metadata_lies_about_are_found_or_are_none(seed: int, told: int) -> None:
    """Each array's number of nulls is set to another one: what is read holds no null where the record allows none."""
    value, _ = wire.encode(tasks(), TASK)
    (place, *_), _ = wire._walk(value)
    (count,) = struct.unpack_from("<I", value, place.nodes)
    offset = place.nodes + 4 + 16 * random.Random(seed).randrange(count) + 8
    lie = value[:offset] + struct.pack("<q", told) + value[offset + 8 :]
    try:
        rows = wire.decode(lie, {}, TASK)
    except RecordError:
        return
    for index in TASK.required:
        assert rows.column(index).null_count == 0
        assert all(item is not None for item in rows.column(index).to_pylist())


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_are_not_given_are_null_however_many_rows(name: str) -> None:
    for count in (0, 3, 1, 2_000, 5):
        rows = make.from_columns(name, count, {})
        assert [column.null_count for column in rows.columns] == [count] * rows.num_columns
        assert rows.num_rows == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 16, 128])
def test_columns_that_are_not_given_take_no_more_bytes_than_nulls_made_for_them(
    name: str, count: int
) -> None:
    """Nulls cut from a longer column once took all of its parts along: a ledger row had 80 KB instead of 7."""
    schema = RECORDS[name].schema
    made = pa.RecordBatch.from_arrays([pa.nulls(count, field.type) for field in schema], schema=schema)
    assert len(make.from_columns(name, count, {}).serialize()) == len(made.serialize())


@pytest.mark.parametrize(("first", "count"), [(0, 5), (1, 3), (4, 1), (2, 0)])
def test_a_tensor_column_that_was_cut_is_read_where_it_was_cut(first: int, count: int) -> None:
    values = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    column = make.from_columns("task", 5, {"surface": values})["surface"]
    assert np.array_equal(make.tensor(column.slice(first, count)), values[first : first + count])
    with pytest.raises(ValueError, match="rows of 16"):
        make.from_columns("task", 5, {"surface": values.reshape(-1)[:-1]})
