"""The workload: rows of 1 KB, and the Arrow work that every system does with a message."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs import wire
from aos.codecs.fields import I8, ID, TEXT, Record, need

VECTOR_SIZE = 480
# 16 + 1 + 5 + 960 bytes of values and the offsets of the text: a row of 1 KB with its share of the stream's head
ROW = Record(
    "bench-row",
    1,
    "A row of 1 KB: what the benchmark's processor reads and writes",
    (
        need("id", ID, "Number of the row"),
        need("priority", I8, "Sorted by this"),
        need("kind", TEXT, "Kind of work"),
        need("vector", pa.fixed_shape_tensor(pa.float16(), [VECTOR_SIZE]), "Values"),
    ),
)


def batch(first: int, count: int, random: np.random.Generator) -> pa.RecordBatch:
    """Rows `first` to `first + count`."""
    ids = [number.to_bytes(16, "big") for number in range(first, first + count)]
    flat = pa.array(random.standard_normal(count * VECTOR_SIZE).astype(np.float16))
    storage = pa.FixedSizeListArray.from_arrays(flat, VECTOR_SIZE)
    columns = [
        pa.array(ids, ID),
        pa.array(random.integers(0, 4, count), I8),
        pa.array(["infer"] * count, TEXT),
        pa.ExtensionArray.from_storage(ROW.schema.field("vector").type, storage),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROW.schema)


def messages(total: int, rows: int, seed: int = 1) -> list[tuple[bytes, dict[str, bytes]]]:
    """Values and headers of messages of `rows` rows each, `total` rows in all."""
    random = np.random.default_rng(seed)
    return [wire.encode(batch(first, rows, random), ROW) for first in range(0, total, rows)]


def in_order(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The processor's work: the rows by priority."""
    return rows.take(pc.sort_indices(rows.column(1)))


def transform(value: bytes) -> bytes:
    """What every other system does with a message: decode, validate in full, sort, encode."""
    with pa.ipc.open_stream(value) as reader:
        rows = reader.read_next_batch()
    rows.validate(full=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ROW.schema) as writer:
        writer.write_batch(in_order(rows))
    done: bytes = sink.getvalue().to_pybytes()
    return done


def numbers(value: bytes) -> np.ndarray:
    """The row numbers of an output message."""
    with pa.ipc.open_stream(value) as reader:
        ids = [ids for rows in reader for ids in rows.column(0).to_pylist()]
    return np.array([int.from_bytes(id, "big") for id in ids])
