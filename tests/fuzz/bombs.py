"""Bombs: small inputs that declare or unpack to much. Each must be refused, with little memory.

A bomb is built in a process of its own and handed over as a file, so that what is measured is the product's memory: the
highest resident set of a fresh process while it reads, less what it had before.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aos.codecs import json as objects
from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.streams import encode
from aos.streams.processor import Batch, Raw
from aos.streams.shell import unpack
from tests.fuzz.edges import AT, VIEWS

MANY = 64 << 20
RISE_MIB = 256
REQUEST = RECORDS["request"]


class Bomb(NamedTuple):
    """How it is made, and how it is read: arrow, json or kafka."""

    name: str
    kind: str
    make: Callable[[], bytes]


class Found(NamedTuple):
    """What happened to one."""

    name: str
    bytes: int
    refused_with: str
    rss_mib: float

    @property
    def good(self) -> bool:
        return self.refused_with.startswith("AOS") and self.rss_mib < RISE_MIB


def stream(table: Any, compression: str | None = None, **options: Any) -> bytes:
    """An IPC stream of a table or batch."""
    sink = pa.BufferOutputStream()
    chosen = pa.ipc.IpcWriteOptions(compression=compression, **options)
    with pa.ipc.new_stream(sink, table.schema, options=chosen) as writer:
        writer.write(table)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def _column(made: pa.Array, compression: str | None = None) -> bytes:
    return stream(pa.table({"payload": made}), compression)


def _patched(value: bytes, number: int, instead: int) -> bytes:
    """Replace a 64-bit number wherever it stands in the metadata."""
    old, new = struct.pack("<q", number), struct.pack("<q", instead)
    assert old in value
    return value.replace(old, new)


def _deltas() -> bytes:
    """Dictionaries that grow with each batch."""
    sink = pa.BufferOutputStream()
    schema = pa.schema([("id", pa.dictionary(pa.int32(), pa.string()))])
    with pa.ipc.new_stream(
        sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    ) as writer:
        for count in range(1, 60):
            words = pa.array(["x" * 100 + str(n) for n in range(count)])
            writer.write_batch(
                pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), words)], schema)
            )
    value: bytes = sink.getvalue().to_pybytes()
    return value


def _dictionary() -> bytes:
    places, words = pa.array(np.zeros(60_000, np.int8)), pa.array(["x" * 100_000])
    return _column(pa.DictionaryArray.from_arrays(places, words))


def _dictionary_in_list() -> bytes:
    return _column(pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))))


def _schema_metadata() -> bytes:
    return stream(pa.table({"id": ["a"]}).replace_schema_metadata({"k": "v" * 1_000_000}))


def _union() -> bytes:
    return _column(pa.UnionArray.from_sparse(pa.array([0] * 9, pa.int8()), [pa.nulls(9), pa.nulls(9)]))


def _runs() -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int32()), pa.array([1], pa.int64()))


def _list_view() -> pa.Array:
    items = pa.array(np.zeros(100, np.int8))
    views = pa.array(np.zeros(5_000, np.int32)), pa.array(np.full(5_000, 100, np.int32))
    return pa.ListViewArray.from_arrays(*views, items)


def _deep(depth: int) -> bytes:
    type: pa.DataType = pa.int8()
    for _ in range(depth):
        type = pa.list_(type)
    schema = pa.schema([("payload", type)])  # a writer of rows would refuse so deep a type
    return bytes(schema.serialize()) + struct.pack("<Ii", 0xFFFFFFFF, 0)


def _wide(count: int) -> bytes:
    return stream(pa.table({f"c{n}": [1] for n in range(count)}))


def _batches(count: int) -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.record_batch({"id": pa.nulls(100)})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        for _ in range(count):
            writer.write_batch(rows)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def _tensor(shape: str) -> bytes:
    """Metadata of a tensor that does not fit its storage."""
    storage = pa.array([[0.0] * 4], pa.list_(pa.float32(), 4))
    said = {
        "ARROW:extension:name": "arrow.fixed_shape_tensor",
        "ARROW:extension:metadata": '{"shape":' + shape + "}",
    }
    schema = pa.schema([pa.field("tensor", storage.type, metadata=said)])
    return stream(pa.Table.from_arrays([storage], schema=schema))


def _rows(declared: int) -> bytes:
    return _patched(stream(pa.table({"id": pa.nulls(777_777 % 60_000)})), 777_777 % 60_000, declared)


def _huge_buffer() -> bytes:
    good = _column(pa.array([b"x" * 4_096]))
    return _patched(good, 4_096, 2**40)


def _body(length: int) -> bytes:
    good = bytearray(_column(pa.array([b"x" * 4_096])))
    at = good.index(struct.pack("<q", 4_096 + 64)) if struct.pack("<q", 4_096 + 64) in good else None
    return _patched(bytes(good), 4_096 + 64, length) if at is not None else _cut(bytes(good))


def _cut(value: bytes) -> bytes:
    return value[: len(value) // 2]


def _metadata_prefix(size: int) -> bytes:
    return struct.pack("<Ii", 0xFFFFFFFF, size) + bytes(64)


def _vector(size: int) -> bytes:
    """A fixed-size list whose size is patched after writing; no rows, so no bytes are needed."""
    schema = pa.schema([("tensor", pa.list_(pa.int8(), size))])
    return stream(pa.RecordBatch.from_arrays([pa.nulls(0, schema.field(0).type)], schema=schema))


def _nulls_struct() -> bytes:
    type = pa.struct([(f"f{n}", pa.null()) for n in range(200)])
    return _column(pa.nulls(60_000, type))


def _kafka(compression: int, value: bytes, count: int) -> bytes:
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=0, batch_size=1 << 31,
    )  # fmt: skip
    for number in range(count):
        builder.append(number, timestamp=5, key=None, value=value, headers=[])
    return bytes(builder.build())


def _twice(count: int) -> bytes:
    return b"{" + b",".join(b'"id":"a"' for _ in range(count)) + b"}"


BOMBS: tuple[Bomb, ...] = (
    Bomb("ipc-body-zstd", "arrow", lambda: _column(pa.array([bytes(MANY)]), "zstd")),
    Bomb("ipc-body-lz4", "arrow", lambda: _column(pa.array([bytes(MANY)]), "lz4")),
    Bomb("dictionary", "arrow", _dictionary),
    Bomb("dictionary-deltas", "arrow", _deltas),
    Bomb("dictionary-in-list", "arrow", _dictionary_in_list),
    Bomb("run-end-2-billion-rows", "arrow", lambda: _column(_runs())),
    Bomb("list-view", "arrow", lambda: _column(_list_view())),
    Bomb("string-view", "arrow", lambda: _column(pa.array(["x" * 100] * 100, pa.string_view()))),
    Bomb("null-column-1-million-rows", "arrow", lambda: stream(pa.table({"id": pa.nulls(1_000_000)}))),
    Bomb("null-columns-in-struct", "arrow", _nulls_struct),
    Bomb("rows-declared-2^62", "arrow", lambda: _rows(2**62)),
    Bomb("rows-declared-negative", "arrow", lambda: _rows(-1)),
    Bomb("buffer-declared-1-tib", "arrow", _huge_buffer),
    Bomb("body-declared-2^62", "arrow", lambda: _body(2**62)),
    Bomb("metadata-declared-2-gib", "arrow", lambda: _metadata_prefix(2**31 - 1)),
    Bomb("metadata-declared-negative", "arrow", lambda: _metadata_prefix(-(2**31))),
    Bomb("schema-metadata-1-mib", "arrow", _schema_metadata),
    Bomb("column-name-1-mib", "arrow", lambda: stream(pa.table({"n" * 1_000_000: ["a"]}))),
    Bomb("columns-5000", "arrow", lambda: _wide(5_000)),
    Bomb("depth-40", "arrow", lambda: _deep(40)),
    Bomb("depth-300", "arrow", lambda: _deep(300)),
    Bomb("batches-2000", "arrow", lambda: _batches(2_000)),
    Bomb("vector-of-2-billion", "arrow", lambda: _vector(2**31 - 1)),
    Bomb("vector-of-none", "arrow", lambda: _column(pa.nulls(60_000, pa.list_(pa.int8(), 0)))),
    Bomb("fixed-binary-of-none", "arrow", lambda: _column(pa.nulls(60_000, pa.binary(0)))),
    Bomb("tensor-shape-overflows", "arrow", lambda: _tensor("[4294967296,4294967296]")),
    Bomb("tensor-shape-too-large", "arrow", lambda: _tensor("[1000000000]")),
    Bomb("tensor-shape-negative", "arrow", lambda: _tensor("[-4]")),
    Bomb("union", "arrow", _union),
    Bomb("map", "arrow", lambda: _column(pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))),
    Bomb("message-of-2-mib", "arrow", lambda: _column(pa.array([bytes(2 << 20)]))),
    Bomb("json-depth-100000", "json", lambda: b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    Bomb("json-objects-depth-50000", "json", lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    Bomb("json-number-of-500000-digits", "json", lambda: b'{"priority":' + b"9" * 500_000 + b"}"),
    Bomb("json-exponent", "json", lambda: b'{"tensor":[1e999999999]}'),
    Bomb("json-string-of-2-mib", "json", lambda: b'{"text":"' + b"x" * (2 << 20) + b'"}'),
    Bomb("json-escapes", "json", lambda: b'{"text":"' + b"\\u0000" * 200_000 + b'"}'),
    Bomb("json-key-twice", "json", lambda: _twice(2)),
    Bomb("json-key-100000-times", "json", lambda: _twice(100_000)),
    Bomb("json-million-keys", "json", lambda: json.dumps({f"{n}": 0 for n in range(95_000)}).encode()),
    Bomb("json-unknown-key-of-1-mib", "json", lambda: b'{"' + b"k" * 1_000_000 + b'":1}'),
    Bomb("json-base64", "json", lambda: b'{"payload":{"base64":"' + b"!" * 900_000 + b'"}}'),
    Bomb("kafka-gzip", "kafka", lambda: _kafka(1, bytes(1 << 20), 300)),
    Bomb("kafka-snappy", "kafka", lambda: _kafka(2, bytes(1 << 20), 300)),
    Bomb("kafka-lz4", "kafka", lambda: _kafka(3, bytes(1 << 20), 300)),
    Bomb("kafka-zstd", "kafka", lambda: _kafka(4, bytes(1 << 20), 600)),
    Bomb("kafka-zstd-million-records", "kafka", lambda: _kafka(4, b"", 2_600_000)),
)  # fmt: skip


def read(kind: str, value: bytes) -> str:
    """Read as the product does; the code it is refused with, or what became of it."""
    try:
        if kind == "arrow":
            rows, bad = wire.decode_rows(value, {}, REQUEST)
            return f"accepted, {rows.num_rows} rows, {len(bad)} bad"
        if kind == "json":
            row = objects.parse_row(value, REQUEST)[0]
            return _escaped(row)
        return _batch(value)
    except RecordError as error:
        return error.code


def _escaped(row: Any) -> str:
    """A text that is larger than what may travel is answered by encode."""
    text = wire.encode(objects.rows([row], REQUEST), REQUEST)[0]
    batch = Batch(
        "aos.requests", 0, 0, make.empty("dead-letter"), [Raw("aos.requests", 0, 0, AT, None, text, {})]
    )
    (output,) = encode.step(None, batch, AT, VIEWS, 0).outputs
    return str(output.rows.column("code")[0].as_py())


def _batch(value: bytes) -> str:
    from aiokafka.consumer import fetcher
    from aiokafka.record.memory_records import MemoryRecords
    from aiokafka.structs import TopicPartition

    assert fetcher.PartitionRecords is unpack.BoundedRecords
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), MemoryRecords(value), [], 0, None, None, True, fetcher.READ_UNCOMMITTED
    )
    codes = {_code(record) for record in records}
    return codes.pop() if len(codes) == 1 else f"accepted: {sorted(codes)}"


def _code(record: Any) -> str:
    try:
        wire.decode(record.value, dict(record.headers), REQUEST)
    except RecordError as error:
        return error.code
    return "accepted"


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


def _measure(path: str, kind: str, answer: Any) -> None:
    value = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    code = read(kind, value)
    answer.send((code, max(0, _status("VmHWM") - before) / 1024))


def _build(place: int, path: str) -> None:
    Path(path).write_bytes(BOMBS[place].make())


def run(folder: Path) -> list[Found]:
    """Build and read each, in processes of their own."""
    context, found = get_context("fork"), []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bomb-{os.getpid()}"
    for place, bomb in enumerate(BOMBS):
        builder = context.Process(target=_build, args=(place, str(path)))
        builder.start()
        builder.join()
        if builder.exitcode != 0:
            raise RuntimeError(f"{bomb.name} could not be built")
        mine, theirs = context.Pipe(False)
        reader = context.Process(target=_measure, args=(str(path), bomb.kind, theirs))
        reader.start()
        theirs.close()
        try:
            code, rise = mine.recv()
        except EOFError:
            code, rise = "died", 0.0
        reader.join()
        found.append(Found(bomb.name, path.stat().st_size, code, round(rise, 1)))
        path.unlink()
    return found
