"""Columns as somebody wrote them, made into the columns of a record; what does not fit is named by row.

Readers and writers of different ages understand each other: columns and struct fields that the reader does not know
are dropped, nullable ones that the writer does not have are null. `lenient` (the edges) also casts what fits without
loss: large strings, other integer widths, other time units, no time zone (taken as UTC), bytes for text and back.
Nulls where the record allows none are refused, inside lists and structs too: Arrow itself does not check that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from aos.codecs.errors import RecordError
from aos.codecs.fields import Record

BAD_ROWS_MAX = 256  # more rows that do not fit make the whole message bad: finding them costs a cast each


def fit(
    rows: pa.RecordBatch, record: Record, *, lenient: bool = False, same: bool = False
) -> tuple[pa.RecordBatch, dict[int, RecordError]]:
    """The record's columns out of `rows`, in its order, and what is wrong with which row.

    Strict: anything wrong is raised. Lenient: rows that do not fit are reported and hold nulls. `same`: the schema
    is known to be the record's (comparing costs 30 us).
    """
    if same or rows.schema == record.schema:
        try:
            _check(rows, record)
        except RecordError:
            if not lenient:
                raise
        else:
            return rows, {}
    names = rows.schema.names
    if len(set(names)) != len(names):
        raise RecordError("AOS1003", "a column stands twice")
    bad: dict[int, RecordError] = {}
    columns = []
    for field in record.schema:
        if field.name in names:
            column = rows.column(names.index(field.name))
            columns.append(_column(column, field, lenient, bad))
        elif field.nullable:
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            raise RecordError("AOS1003", f"{record.name}: column {field.name} is missing")
    return pa.RecordBatch.from_arrays(columns, schema=record.schema), bad


def check_empty(rows: pa.RecordBatch) -> None:
    """Refuse lists and texts without elements that begin somewhere behind their values.

    Full validation does not look at the offsets of an empty array, and pyarrow aborts the process when it flattens
    such a list. `rows` has rows, so only what stands below a list can be empty.
    """
    for column, type in zip(rows.columns, rows.schema.types, strict=True):
        if type.num_fields and not _shallow(type):
            _check_below(column)


def _shallow(type: pa.DataType) -> bool:
    """A list of numbers: nothing below it has offsets."""
    return type.num_fields == 1 and bool(pa.types.is_primitive(type.field(0).type))


def _check_below(array: pa.Array) -> None:
    type = array.type
    if isinstance(array, pa.ExtensionArray):
        _check_below(array.storage)
    elif pa.types.is_struct(type):
        for index in range(type.num_fields):
            _check_below(array.field(index))
    elif type.num_fields:
        _check_start(array, len(array.values))
        _check_below(array.values)
    elif len(array) == 0 and (held := array.buffers())[1:] and not pa.types.is_primitive(type):
        _check_start(array, held[2].size if len(held) > 2 and held[2] is not None else 0)


def _check_start(array: pa.Array, most: int) -> None:
    type = array.type
    if len(array) or pa.types.is_fixed_size_list(type) or pa.types.is_fixed_size_binary(type):
        return  # looked at by pyarrow, or without offsets
    large = pa.types.is_large_list(type) or pa.types.is_large_string(type) or pa.types.is_large_binary(type)
    width = 8 if large else 4
    held = array.buffers()[1]
    if held is None or held.size < (array.offset + 1) * width:
        return
    first = int(np.frombuffer(held, f"i{width}", 1, array.offset * width)[0])
    if not 0 <= first <= most:
        raise RecordError("AOS1001", f"an empty {str(type)[:64]} begins at {first} of {most}")


def _check(rows: pa.RecordBatch, record: Record) -> None:
    """What Arrow does not check of rows that have the record's schema already: nulls where none may be."""
    for index in record.required:
        if rows.column(index).null_count:
            raise RecordError("AOS1004", f"{record.name}.{record.fields[index].name}")
    for index in record.nested:
        column, field = rows.column(index), record.schema.field(index)
        if not _solid(column, field.type):
            _conform(column, field, False, field.name)


def _solid(array: pa.Array, type: pa.DataType) -> bool:
    """Whether no forbidden null stands in memory below `array`, in use or not: quick, and a No is looked at again."""
    if isinstance(array, pa.ExtensionArray):
        array, type = array.storage, type.storage_type
    if pa.types.is_struct(type):
        for index in range(type.num_fields):
            field, part = type.field(index), array.field(index)
            if (part.null_count and not field.nullable) or not (
                field.type.num_fields == 0 or _solid(part, field.type)
            ):
                return False
        return True
    if type.num_fields == 0:
        return True
    items, field = array.values, type.field(0)
    forbidden = not field.nullable or pa.types.is_fixed_size_list(type)
    return not (forbidden and items.null_count) and _solid(items, field.type)


def _column(column: pa.Array, field: pa.Field, lenient: bool, bad: dict[int, RecordError]) -> pa.Array:
    try:
        return _conform(column, field, lenient, field.name)
    except RecordError as error:
        if not lenient or len(column) == 0:
            raise
        _conform(column.slice(0, 0), field, True, field.name)  # raises when no row can fit
        errors: dict[int, RecordError] = {}
        _search(column, field, 0, error, errors)
    good = [row for row in range(len(column)) if row not in errors]
    fitted = _conform(column.take(pa.array(good, pa.int64())), field, True, field.name)
    places: list[int | None] = [None] * len(column)
    for place, row in enumerate(good):
        places[row] = place
    for row, wrong in errors.items():
        bad.setdefault(row, wrong)
    return fitted.take(pa.array(places, pa.int64()))


def _search(
    column: pa.Array, field: pa.Field, first: int, error: RecordError, errors: dict[int, RecordError]
) -> None:
    """Find the rows of `column` (starting at row `first`) that do not fit, by halving."""
    if len(column) == 1:
        if len(errors) == BAD_ROWS_MAX:
            raise error
        errors[first] = error
        return
    half = len(column) // 2
    for start, part in ((0, column.slice(0, half)), (half, column.slice(half))):
        try:
            _conform(part, field, True, field.name)
        except RecordError as found:
            _search(part, field, first + start, found, errors)


def _conform(array: pa.Array, field: pa.Field, lenient: bool, path: str) -> pa.Array:
    """`array` as the field's type, without nulls where the field has none."""
    if not field.nullable and array.null_count:
        raise RecordError("AOS1004", path)
    wanted, found = field.type, array.type
    if isinstance(wanted, pa.FixedShapeTensorType):
        return _tensor(array, wanted, path)
    if pa.types.is_struct(wanted) and pa.types.is_struct(found):
        return _struct(array, wanted, lenient, path)
    if pa.types.is_list(wanted) and (pa.types.is_list(found) or pa.types.is_large_list(found)):
        return _list(array, wanted, lenient, path)
    if pa.types.is_fixed_size_list(wanted):
        return _fixed(array, wanted, path)
    if found == wanted:
        return array
    if lenient and pa.types.is_null(found):  # what pyarrow makes of a column or list without any value
        return pa.nulls(len(array), wanted)
    if not lenient or not _akin(found, wanted):
        raise RecordError("AOS1003", f"{path} is {str(found)[:64]}, not {wanted}")
    try:
        return array.cast(wanted, safe=True)
    except (pa.ArrowException, ValueError) as error:
        # numbers and times fail for their size, texts for their bytes
        code = "AOS1014" if pa.types.is_primitive(wanted) else "AOS1003"
        raise RecordError(code, f"{path}: {str(error).splitlines()[0][:160]}") from error


def _list(array: pa.Array, wanted: pa.ListType, lenient: bool, path: str) -> pa.Array:
    items = _conform(array.flatten(), wanted.value_field, lenient, f"{path}[]")
    if array.type == wanted:
        return array
    # what stands under a null list is not in `items`: lengths make the offsets anew
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=wanted, mask=mask)


def _struct(array: pa.Array, wanted: pa.StructType, lenient: bool, path: str) -> pa.Array:
    found = array.type
    names = [found.field(i).name for i in range(found.num_fields)]
    if len(set(names)) != len(names):
        raise RecordError("AOS1003", f"{path}: a field stands twice")
    parts = array.flatten() if array.null_count else [array.field(i) for i in range(found.num_fields)]
    columns = []
    for field in wanted:
        if field.name in names:
            part = parts[names.index(field.name)]
            # under a null struct every field is null, whatever the field says
            checked = field.with_nullable(True) if array.null_count else field
            columns.append(_conform(part, checked, lenient, f"{path}.{field.name}"))
            if not field.nullable and array.null_count and part.null_count > array.null_count:
                raise RecordError("AOS1004", f"{path}.{field.name}")
        elif field.nullable:
            columns.append(pa.nulls(len(array), field.type))
        else:
            raise RecordError("AOS1003", f"{path}.{field.name} is missing")
    if found == wanted:
        return array
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(columns, fields=list(wanted), mask=mask)


def _fixed(array: pa.Array, wanted: pa.FixedSizeListType, path: str) -> pa.Array:
    """Vectors: the same length and numbers, no null among them (they are read as one block of memory)."""
    found = array.type
    if not pa.types.is_fixed_size_list(found) or found.value_type != wanted.value_type:
        raise RecordError("AOS1003", f"{path} is {str(found)[:64]}, not {wanted}")
    if found.list_size != wanted.list_size:
        raise RecordError("AOS1010", f"{path} has {found.list_size} values, not {wanted.list_size}")
    values = array.flatten()
    if values.null_count:
        raise RecordError("AOS1004", f"{path}[]")
    if found == wanted:
        return array
    if array.null_count:
        return array.cast(wanted)
    return pa.FixedSizeListArray.from_arrays(values, type=wanted)


def _tensor(array: pa.Array, wanted: pa.FixedShapeTensorType, path: str) -> pa.Array:
    """A tensor column: the canonical type, or (from writers that do not know it) its plain storage."""
    if isinstance(array, pa.ExtensionArray):
        found = array.type
        if found != wanted and (list(found.shape) != list(wanted.shape) or found.permutation):
            raise RecordError("AOS1010", f"{path} is {str(found)[:96]}, not {wanted}")
        array = array.storage
        if found == wanted:
            _fixed(array, array.type, path)
            return pa.ExtensionArray.from_storage(wanted, array)
    return pa.ExtensionArray.from_storage(wanted, _fixed(array, wanted.storage_type, path))


_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_timestamp,
)
_BYTES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
)


def _akin(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast keeps the meaning: the same family, or whole numbers where any number may stand."""
    if any(test(found) and test(wanted) for test in _FAMILIES):
        return True
    if pa.types.is_integer(found) and pa.types.is_floating(wanted):
        return True
    return any(test(found) for test in _BYTES) and any(test(wanted) for test in _BYTES)
