"""Which rows hold a number that is not finite: a NaN or an infinity spoils every sum it comes into."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from aos.codecs.fields import Record


def finite(rows: pa.RecordBatch, record: Record) -> dict[int, str]:
    """Rows of `record` that hold a NaN or an infinity, with the column's name."""
    bad: dict[int, str] = {}
    for index in record.floating:
        column = rows.column(index)
        if len(column) and not _all_finite(column):
            for row in np.flatnonzero(_infinite(column)):
                bad.setdefault(int(row), record.fields[index].name)
    return bad


def _all_finite(array: pa.Array) -> bool:
    """Whether every number in memory is finite, those under nulls too: quick, and a No is looked at again."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_struct(array.type):
        return all(_all_finite(array.field(i)) for i in range(array.type.num_fields))
    if array.type.num_fields:
        return _all_finite(array.values)
    if not pa.types.is_floating(array.type):
        return True
    values = _numbers(array)
    if array.type.bit_width == 16 and len(values) % 4 == 0 and values.ctypes.data % 8 == 0:
        # an infinite half float has all exponent bits set: one more carries into the top bit; four at once
        lanes = (values.view(np.uint64) & _HALF_EXPONENTS) + _HALF_ONES
        return not int(np.bitwise_or.reduce(lanes, initial=0)) & _HALF_TOPS
    return bool(np.isfinite(values).all())


_HALF_EXPONENTS = np.uint64(0x7C007C007C007C00)
_HALF_ONES = np.uint64(0x0400040004000400)
_HALF_TOPS = 0x8000800080008000


def _numbers(array: pa.Array) -> np.ndarray:
    """A float array's memory, whatever stands under its nulls."""
    width = array.type.bit_width // 8
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(0, f"f{width}")
    found: np.ndarray = np.frombuffer(buffer, f"f{width}", len(array), array.offset * width)
    return found


def _infinite(array: pa.Array) -> np.ndarray:
    """For each element whether it holds a NaN or an infinity that is not under a null."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_struct(array.type):
        flags: np.ndarray = np.zeros(len(array), bool)
        for index in range(array.type.num_fields):
            flags |= _infinite(array.field(index))
        return np.asarray(flags & valid)
    if array.type.num_fields:
        items = np.concatenate([[0], np.cumsum(_infinite(array.flatten()))])
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return np.asarray(items[ends[1:]] > items[ends[:-1]])
    if not pa.types.is_floating(array.type):
        return np.zeros(len(array), bool)
    return np.asarray(~np.isfinite(_numbers(array)) & valid)
