"""Mutations, all from one seeded generator: bytes, Arrow streams by their structure, JSON by its structure, headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

Headers = dict[str, bytes]
EDGES_OF_INTEGERS = (
    0, 1, -1, 2, 7, 8, 16, 64, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16, 2**20, 2**31 - 1, -(2**31), 2**31, 2**32,
    2**40, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
NUMBERS = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-0",
    "1" * 400,
    "0.1e-400",
    "9223372036854775808",
    "-1",
    "1.5",
    "65536",
)
WORDS = ("", "\0", "a" * 5_000, "\U0001f600" * 40, "..", "ok", "default", "acme", "-", "\ud800")
EXTENSION, PARAMETERS = "ARROW:extension:name", "ARROW:extension:metadata"


def bytes_of(rng: Random, value: bytes, first: int = 0, other: bytes = b"") -> bytes:
    """`value` with some bytes changed, taken out, put in, repeated or exchanged, at `first` or later."""
    found = bytearray(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 40))):
        if len(found) <= first:
            return bytes(found)
        at, way = rng.randrange(first, len(found)), rng.randrange(10)
        if way < 3:
            found[at] = rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif way == 3:
            found[at] ^= 1 << rng.randrange(8)
        elif way < 7:  # metadata and offsets are aligned numbers
            width = rng.choice((1, 2, 4, 8))
            at -= at % width
            number = rng.choice(EDGES_OF_INTEGERS) if rng.random() < 0.7 else rng.randrange(-40, 4_000)
            found[at : at + width] = struct.pack("<q", number)[:width]
        elif way == 7:
            del found[at : at + rng.choice((1, 2, 8, 64, rng.randrange(1, len(found) + 1)))]
        elif way == 8:
            size = rng.choice((1, 4, 8, 64, 512))
            found[at:at] = found[at : at + size] if rng.random() < 0.5 else rng.randbytes(size)
        else:
            source = other or value
            start = rng.randrange(len(source)) if source else 0
            piece = source[start : start + rng.choice((4, 16, 200, 4_000))]
            found[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
    return bytes(found)


def headers_of(rng: Random, value: bytes, record: str, before: bytes) -> Headers:
    """Headers as inner messages have them: none, right ones, those of the bytes before the mutation, wrong ones."""
    way = rng.randrange(8)
    if way < 4:
        return {}
    right = {
        "aos-record": record.encode(),
        "aos-version": b"1",
        "crc32c": b"%08x" % google_crc32c.value(value),
    }
    if way == 4:
        return right
    if way == 5:
        return right | {"crc32c": b"%08x" % google_crc32c.value(before)}
    name = rng.choice(sorted(right))
    wrong = rng.choice((b"", b"\xff\xfe", b"0" * 8, right[name].upper() + b" ", rng.randbytes(8), b"request"))
    return (
        right | {name: wrong}
        if way == 6
        else right | {"content-type": rng.choice((b"application/json", b"\xff", b""))}
    )


def arrow(rng: Random, batch: pa.RecordBatch) -> bytes:
    """A stream of `batch` after one to three changes of its columns, written one of several ways."""
    schema_metadata = None
    columns = list(batch.columns)
    fields = list(batch.schema)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not fields:
            break
        place, change = rng.randrange(len(fields)), rng.choice(CHANGES)
        change(rng, fields, columns, place)
    if rng.random() < 0.03:
        schema_metadata = {"x" * rng.choice((1, 4_000)): "y" * rng.choice((0, 100, 100, 300_000))}
    rows = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=schema_metadata))
    return _written(rng, rows)


def _written(rng: Random, rows: pa.RecordBatch) -> bytes:
    options = pa.ipc.IpcWriteOptions(
        compression=rng.choice((None,) * 12 + ("zstd", "lz4")), emit_dictionary_deltas=rng.random() < 0.5
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        for _ in range(rng.choice((1,) * 150 + (0, 2, 3) * 16 + (300,))):
            writer.write_batch(rows)
    value: bytes = sink.getvalue().to_pybytes()
    way = rng.randrange(16)
    if way == 0:
        return value[:-8]  # no end mark
    if way == 1:
        return value + value  # a second stream behind the first
    if way == 2:
        return value + rng.randbytes(24)
    return value


def _drop(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    del fields[place], columns[place]


def _rename(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    name = rng.choice((fields[rng.randrange(len(fields))].name, "", "x", "n" * 3_000))
    fields[place] = fields[place].with_name(name)


def _twice(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    fields.append(fields[place])
    columns.append(columns[place])


def _swap(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    other = rng.randrange(len(fields))
    fields[place], fields[other] = fields[other], fields[place]
    columns[place], columns[other] = columns[other], columns[place]


def _nulls(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    column = columns[place]
    if rng.random() < 0.5 or len(column) < 2 or isinstance(column, pa.ExtensionArray):
        columns[place] = pa.nulls(len(column), column.type)
    else:
        hole = rng.randrange(len(column))
        columns[place] = column.take(pa.array([None if row == hole else row for row in range(len(column))]))


def _not_finite(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    """Not finite numbers straight into the buffer of some column of floats."""
    places = [n for n, field in enumerate(fields) if _floats(field.type)]
    if not places:
        return
    place = rng.choice(places)
    column = columns[place]
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    if len(storage) == 0 or storage.null_count:
        return
    flat = storage.flatten() if storage.type.num_fields else storage
    if not len(flat) or not pa.types.is_floating(flat.type):
        return
    values = flat.fill_null(0).to_numpy(zero_copy_only=False).copy()
    values[rng.randrange(len(values))] = rng.choice((np.nan, np.inf, -np.inf))
    made = pa.array(values, flat.type)
    if pa.types.is_fixed_size_list(storage.type):
        made = pa.FixedSizeListArray.from_arrays(made, type=storage.type)
    elif pa.types.is_list(storage.type):
        made = pa.ListArray.from_arrays(storage.offsets, made, type=storage.type)
    columns[place] = pa.ExtensionArray.from_storage(column.type, made) if storage is not column else made


def _floats(type: pa.DataType) -> bool:
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    if pa.types.is_list(type) or pa.types.is_fixed_size_list(type):
        type = type.value_type
    return bool(pa.types.is_floating(type))


def _retype(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    made = _another(rng, len(columns[place]))
    columns[place] = made
    fields[place] = pa.field(fields[place].name, made.type, nullable=rng.random() < 0.7)


def _another(rng: Random, count: int) -> pa.Array:
    """A column of `count` rows of a type that no record has there."""
    numbers = pa.array([rng.choice((0, 1, 5, 2**31, 2**62)) for _ in range(count)], pa.int64())
    words = pa.array([rng.choice(WORDS[:-1]) for _ in range(count)], pa.string())
    makers: tuple[Callable[[], pa.Array], ...] = (
        lambda: numbers,
        lambda: numbers.cast(pa.float64()),
        lambda: words,
        lambda: words.cast(pa.large_string()),
        lambda: words.cast(pa.binary()),
        lambda: words.cast(pa.string_view()),
        lambda: words.dictionary_encode(),
        lambda: pa.array([[1]] * count, pa.large_list(pa.int64())),
        lambda: pa.array([[1]] * count, pa.list_view(pa.int64())),
        lambda: pa.array([1] * count, pa.int64()).cast(pa.run_end_encoded(pa.int32(), pa.int64())),
        lambda: pa.nulls(count),
        lambda: pa.array([{"name": "a", "after": ["b"]}] * count),
        lambda: pa.array(
            [[{"name": "a"}, {"name": None}]] * count, pa.list_(pa.struct([("name", pa.string())]))
        ),
        lambda: pa.array([[[[[[0]]]]]] * count),
        lambda: pa.array([1] * count, pa.timestamp("s")),
        lambda: pa.array([2**62] * count, pa.timestamp("ms", "Europe/Rome")),
        lambda: pa.array([b"x" * 16] * count, pa.binary(16)),
        lambda: pa.array([None] * count, pa.list_(pa.float16(), 256)),
        lambda: pa.array([[0.0] * 8] * count, pa.list_(pa.float32(), 8)),
        lambda: pa.array([1] * count, pa.decimal128(20, 2)),
        lambda: pa.array([1] * count, pa.duration("s")),
        lambda: pa.UnionArray.from_sparse(pa.array([0] * count, pa.int8()), [numbers, words]),
        lambda: pa.array([1] * count, pa.uint64()),
        lambda: pa.array([True] * count),
        lambda: pa.array([[]] * count, pa.list_(pa.null())),
    )
    return rng.choice(makers)()


def _extend(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    """An extension type, known or not, whose metadata need not fit."""
    shapes = (
        "[256]",
        "[0]",
        "[-1]",
        "[16,16]",
        "[9223372036854775807,2]",
        "[]",
        "{",
        "[1e9]",
        '[256],"permutation":[0,0]',
    )
    names = (
        "arrow.fixed_shape_tensor",
        "arrow.json",
        "arrow.uuid",
        "arrow.bool8",
        "arrow.opaque",
        "pandas.period",
        "\xff",
    )
    name = names[0] if rng.random() < 0.7 else rng.choice(names)
    column = columns[place]
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    columns[place] = column
    parameters = '{"shape":' + rng.choice(shapes) + "}"
    fields[place] = pa.field(
        fields[place].name, column.type, nullable=True, metadata={EXTENSION: name, PARAMETERS: parameters}
    )


def _more(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    made = _another(rng, len(columns[0]))
    for number in range(rng.choice((1,) * 20 + (150,))):
        fields.append(pa.field(f"added{number}", made.type))
        columns.append(made)


def _repeat(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    """Rows over and over: up to what a message may have, and one more."""
    if not len(columns[0]):
        return
    width = sum(column.nbytes for column in columns) // len(columns[0]) + 1
    most = max(1, 1_200_000 // width) if rng.random() < 0.01 else 40
    count = min(most, rng.choice((2, 17, 300, 16_385)))
    taken = pa.array(np.arange(count) % len(columns[0]))
    columns[:] = [column.take(taken) for column in columns]


def _none(rng: Random, fields: list[Any], columns: list[Any], place: int) -> None:
    columns[:] = [column.slice(0, 0) for column in columns]


CHANGES: tuple[Callable[[Random, list[Any], list[Any], int], None], ...] = (
    _drop, _rename, _twice, _swap, _nulls, _nulls, _not_finite, _not_finite, _retype, _retype, _extend,
    _more, _repeat, _none,
)  # fmt: skip


def json_text(rng: Random, value: bytes) -> bytes:
    """A JSON object with one to three changes of what it says or how it is written."""
    found = json.loads(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _say(rng, found)
    text = json.dumps(found)
    for marker in _MARKS:
        while marker in text:
            text = text.replace(marker, rng.choice(_RAW), 1)
    if rng.random() < 0.1 and found:
        key = json.dumps(rng.choice(sorted(found)))
        text = text[:-1] + f", {key}: {rng.choice(('null', '1', '[]', chr(34) * 2))}" + "}"
    if rng.random() < 0.05:
        text = (
            rng.choice(("\ufeff", " ", "\n", "[", "//x\n", ""))
            + text
            + rng.choice(("", "}", text, "\0", ",", " "))
        )
    return text.encode("utf-8", "surrogatepass")


_MARKS = ('"@raw@"',)
_RAW = (
    *NUMBERS,
    "[" * 200 + "]" * 200,
    '{"a":' * 60 + "1" + "}" * 60,
    "nul",
    "'x'",
    '"\\ud800"',
    "1e5",
    "[1,]",
    "1" * 5_000,
)


def _say(rng: Random, found: Any) -> None:
    place: Any = found
    while True:
        if isinstance(place, dict) and place:
            key: Any = rng.choice(sorted(place))
        elif isinstance(place, list) and place:
            key = rng.randrange(len(place))
        else:
            found["x"] = 1
            return
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.4:
            break
        place = place[key]
    way = rng.randrange(8)
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place["unknown" + str(rng.randrange(3))] = rng.choice((None, 1, {}, []))
    elif way < 4:
        place[key] = "@raw@"
    elif way == 4:
        place[key] = rng.choice(WORDS)
    elif way == 5:
        place[key] = rng.choice(
            (None, True, [], {}, 0, -1, 1.5, 2**63, [None], [[]], {"base64": "!"}, {"base64": "AA=="})
        )
    elif way == 6:
        place[key] = [place[key]] * rng.choice((2, 3, 300))
    else:
        place[key] = rng.choice(
            ("2026-11-21T10:47:00Z", "9999-12-31T23:59:59+23:59", "0001-01-01T00:00:00-23:59", "f" * 32)
        )
