"""What SQL can hold: values without NUL, names and texts not too long, times within bounds; nearly always as they are.

in: columns by name, as a record has them. out: the columns of a table in its order. Nulls stay null.
cost: 1 ms for a bundle of five tables, whatever its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.columns import ends, lengths, offsets
from aos.codecs.fields import BOOL, F32, TEXT, TEXTS, TIME
from aos.streams.store_tables import BOOLS, F32S, Table

# Names stand in B-tree keys, whose rows may have 2,704 bytes; texts are for reading.
NAME_CHARS_MAX = 120
TEXT_CHARS_MAX = 8_192
ITEMS_MAX = 1_024  # of an array

# What a time may be: PostgreSQL's text form beyond year 9999 differs, and each odd time makes a chunk.
TIME_US_MIN, TIME_US_MAX = 0, 4_102_444_800_000_000  # 1970 to 2100

_NUL = "\x00"

Columns = Mapping[str, pa.Array]


def lists_of(values: pa.Array, bounds: np.ndarray) -> pa.ListArray:
    """Lists by their ends; at most ITEMS_MAX values go to SQL, the rest is cut by `holdable`."""
    return pa.ListArray.from_arrays(pa.array(bounds), values, type=_LISTS[values.type])


_LISTS: dict[pa.DataType, pa.DataType] = {TEXT: TEXTS, F32: F32S, BOOL: BOOLS}


def typed(table: Table, columns: Columns) -> pa.RecordBatch:
    """The table's columns in its order; absent ones are null."""
    count = len(next(iter(columns.values())))
    arrays = [columns[c.name] if c.name in columns else pa.nulls(count, c.type) for c in table.columns]
    return pa.RecordBatch.from_arrays(
        [
            array if array.type == c.type else array.cast(c.type)
            for array, c in zip(arrays, table.columns, strict=True)
        ],
        names=[c.name for c in table.columns],
    )


def holdable(table: Table, columns: Columns) -> pa.Table:
    """The rows with nothing in them that PostgreSQL refuses or an index cannot hold."""
    rows = typed(table, columns)
    arrays = rows.columns
    for index, (column, values) in enumerate(zip(table.columns, arrays, strict=True)):
        if values.null_count == len(values):
            continue
        clean = None
        if column.type == TEXT:
            clean = _text(values, TEXT_CHARS_MAX if column.long else NAME_CHARS_MAX)
        elif column.type == TIME:
            clean = _time(values)
        elif column.type == TEXTS:
            clean = _texts(values)
        if clean is not None:
            arrays[index] = clean
    return pa.Table.from_arrays(arrays, names=rows.schema.names)


def _text(values: pa.Array, chars_max: int) -> pa.Array | None:
    """Without NUL and not too long; None when nothing changes, which is nearly always."""
    clean = values
    if _has_nul(values):
        clean = pc.replace_substring(clean, _NUL, "\ufffd")
    if longest(clean) > chars_max:
        clean = pc.utf8_slice_codeunits(clean, 0, chars_max)
    return None if clean is values else clean


def _has_nul(values: pa.Array) -> bool:
    """Looks at the text bytes once, over all rows."""
    data = values.buffers()[2]
    return data is not None and b"\x00" in memoryview(data).tobytes()


def longest(values: pa.Array) -> int:
    """Bytes of the longest text; what a null hides counts too, which is harmless."""
    bounds = offsets(values)
    return int((bounds[1:] - bounds[:-1]).max(initial=0))


def _texts(lists: pa.ListArray) -> pa.Array | None:
    flat = lists.flatten()
    clean = _text(flat, NAME_CHARS_MAX) if len(flat) else None
    counts = lengths(lists)
    if counts.max(initial=0) > ITEMS_MAX:
        places = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        clean = (flat if clean is None else clean).filter(pa.array(places < ITEMS_MAX))
        counts = np.minimum(counts, ITEMS_MAX)
    return None if clean is None else lists_of(clean, ends(counts))


def _time(values: pa.Array) -> pa.Array | None:
    """Within what is allowed; what a null hides may bring work, but no change."""
    whole = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)]
    if whole.min() >= TIME_US_MIN and whole.max() <= TIME_US_MAX:
        return None
    clamped = pc.max_element_wise(
        pc.min_element_wise(values.cast(pa.int64()), TIME_US_MAX, skip_nulls=False),
        TIME_US_MIN,
        skip_nulls=False,
    )
    return clamped.cast(values.type)
