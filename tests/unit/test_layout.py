"""What is asked of a message's metadata: a Yes is what the arrays themselves say, and good messages get one."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.fields import Record
from aos.codecs.finite import finite
from aos.codecs.fit import check_empty, fit
from aos.codecs.layout import Declared
from aos.codecs.schemas import RECORDS
from tests.unit import strategies
from tests.unit.test_wire import NAMES, RELAXED


def read(value: bytes, name: str) -> tuple[list[pa.RecordBatch], Declared | None]:
    """The batches of a message as pyarrow reads them, and what their metadata says."""
    record = RECORDS[name]
    places, _ = wire._walk(value, len(record.schema_bytes))
    body = pa.py_buffer(value)
    found = [pa.ipc.read_record_batch(body.slice(at.start, at.size), record.schema) for at in places]
    for batch in found:
        batch.validate(full=True)
    return [batch for batch in found if len(batch)], record.layout.declared(value, places)


def some(type: pa.DataType) -> Any:
    """A value of this type, with something in every part."""
    if isinstance(type, pa.BaseExtensionType):
        return some(type.storage_type)
    if pa.types.is_struct(type):
        return {part.name: some(part.type) for part in type}
    if pa.types.is_fixed_size_list(type):
        return [some(type.value_type)] * type.list_size
    if pa.types.is_list(type):
        return [some(type.value_type)] * 2
    if pa.types.is_fixed_size_binary(type):
        return bytes(type.byte_width)
    return {"string": "a", "binary": b"a", "bool": True}.get(str(type), 1)


def filled(record: Record, count: int) -> pa.RecordBatch:
    """Equal rows without a null."""
    return strategies.batch(record, [{one.name: some(one.type) for one in record.fields}] * count)


def pairs(value: bytes | bytearray, vector: int) -> np.ndarray:
    """A vector of a message's metadata: int64 [pairs, 2]."""
    (count,) = struct.unpack_from("<I", value, vector)
    return np.frombuffer(bytes(value), np.int64, 2 * count, vector + 4).reshape(count, 2)


def refused(asked: object, *given: object) -> bool:
    try:
        asked(*given)  # type: ignore[operator]
    except RecordError:
        return True
    return False


@RELAXED
@given(st.data())
def test_a_good_message_needs_no_look_at_its_arrays(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    rows = data.draw(strategies.batches(RECORDS[name]))
    value, _ = wire.encode(rows, RECORDS[name])
    _, declared = read(value, name)
    assert declared is not None
    assert declared.started()
    assert declared.finite()
    tensors = [column for column in rows.columns if isinstance(column, pa.ExtensionArray)]
    assert declared.solid() or any(
        column.null_count for column in tensors
    )  # numbers under a null may be null
    assert RECORDS[name].layout.filled(rows.serialize(), wire._nodes(rows.serialize()))


@RELAXED
@given(st.data(), st.integers(0, 2**32))
def test_what_the_metadata_denies_the_arrays_deny_too(data: st.DataObject, seed: int) -> None:
    """Bytes of a good message are changed: a Yes of the metadata must be what every array says."""
    name = data.draw(st.sampled_from(NAMES))
    record, chance = RECORDS[name], random.Random(seed)
    value = bytearray(wire.encode(data.draw(strategies.batches(record)), record)[0])
    for _ in range(chance.choice((1, 3, 30))):
        at = chance.randrange(len(record.schema_bytes), len(value))
        value[at] = chance.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    try:
        batches, declared = read(bytes(value), name)
    except (RecordError, pa.ArrowException, OSError, ValueError, OverflowError):
        return
    if declared is None:
        return
    for batch in batches:
        assert not (declared.started() and refused(check_empty, batch))
        if not refused(check_empty, batch):  # else pyarrow might abort
            assert not (declared.solid() and refused(fit, batch, record))
            assert not (declared.finite() and finite(batch, record))


@pytest.mark.parametrize("name", [name for name in NAMES if RECORDS[name].layout.floats])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_every_number_that_is_not_finite_is_seen(name: str, wrong: float) -> None:
    """In each place of a message where numbers of any width stand, the first and the last."""
    record = RECORDS[name]
    rows = filled(record, 3)
    value = bytearray(wire.encode(rows, record)[0])
    (place,), _ = wire._walk(bytes(value), len(record.schema_bytes))
    buffers = pairs(value, place.buffers)
    for width, _, _, memory in record.layout.floats:
        for first, size in buffers[memory].tolist():
            for at in {first, first + size - width} if size else ():
                broken = bytearray(value)
                broken[place.body + at : place.body + at + width] = np.array(wrong, f"<f{width}").tobytes()
                batches, declared = read(bytes(broken), name)
                assert declared is not None
                assert not declared.finite()
                assert finite(batches[0], record)


def test_many_batches_are_asked_as_one() -> None:
    record = RECORDS["task"]
    rows = filled(record, 2)
    value, _ = wire.encode(rows, record)
    body = value[len(record.schema_bytes) : -8]
    joined = record.schema_bytes + body * 3
    _, declared = read(joined, "task")
    assert declared is not None
    assert declared.finite()
    assert declared.solid()
    (place,), _ = wire._walk(value, len(record.schema_bytes))
    buffers = pairs(value, place.buffers)
    first, size = buffers[record.layout.floats[0][3][0]].tolist()
    last = len(joined) - len(body) + place.body - place.start + first + size
    broken = joined[: last - 2] + b"\xff\x7f" + joined[last:]
    _, declared = read(broken, "task")
    assert declared is not None
    assert not declared.finite()
