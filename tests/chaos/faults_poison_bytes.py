"""What is poison: messages made from the corpus and the mutations of tests/fuzz, with what must become of each.

Whether a mutated message is bad says tests/fuzz/oracle.py, which knows nothing of AOS but the schemas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS, base_of, record_of
from tests.chaos.faults_poison_kit import ENDED, JSON, LETTER, MUST_REFUSE, Poison, request_topic, stream
from tests.fuzz import bombs, mutate, oracle, seeds
from tests.fuzz.targets import Corpus

ARROW = {"content-type": b"application/vnd.apache.arrow.stream"}
EDGES = (
    "aos.agents", "aos.heartbeats", "aos.outcomes", "aos.calls", "aos.feedback", "aos.feedback.acme",
    "aos.controls", "aos.observations",
)  # fmt: skip
INNER = (
    "aos.ledger", "aos.tasks", "aos.matches", "aos.ready.p2", "aos.releases", "aos.trails", "aos.fleet",
    "aos.corrections", "aos.sightings", "aos.experiences", "aos.decisions", "aos.beliefs", "aos.agent-states",
)  # fmt: skip
NOT_FINITE = (
    "aos.tasks",
    "aos.ledger",
    "aos.outcomes",
    "aos.feedback",
    "aos.feedback.acme",
    "aos.experiences",
    "aos.beliefs",
)
BYTES_MAX = 500_000  # of a mutated message: size is fault 24
DRAWS = 2_000
WORDS = pa.list_(pa.string())
REQUEST = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("task_kind", pa.string()), ("require", WORDS)]
)


def corpus() -> Corpus:
    return Corpus(seeds.load())


def asked(id: str) -> dict[str, Any]:
    """A request that somebody answers."""
    return {"id": id, "text": f"task {id}", "task_kind": "shout", "require": ["shout"]}


# fault 20


def cut_off(name: str, tenants: Sequence[str]) -> Iterator[Poison]:
    """A request cut off behind every byte, as Arrow and as JSON; where it can be read all the same, it is a request."""
    size = len(stream([asked(f"{name}-cut-0000")], REQUEST))
    for cut in range(size):
        id, topic = f"{name}-cut-{cut:04d}", request_topic(tenants[cut % len(tenants)])
        value = stream([asked(id)], REQUEST)[:cut]
        found, parts, wrong = oracle.stream(value, edge=True)
        if found is None or wrong:
            yield Poison("arrow cut off", topic, value, LETTER, ARROW)
        elif any(part.num_rows for part in parts):
            yield Poison("arrow cut behind its rows", topic, value, ENDED, ARROW, id=id)
    text = json.dumps(asked(f"{name}-cut-json")).encode()
    for cut in range(1, len(text)):
        topic = request_topic(tenants[cut % len(tenants)])
        yield Poison("json cut off", topic, text[:cut], LETTER, JSON)


def bent(random: Random, all_of: Corpus, topic: str, count: int) -> Iterator[Poison]:
    """`count` mutated messages of a topic's record, each of them bad by the oracle."""
    record, edge = record_of(topic), TOPICS[base_of(topic)].edge
    for _ in range(DRAWS):
        if not count:
            return
        if edge and random.random() < 0.4:
            value, headers = all_of.text(random, record.name), JSON
            wrong = oracle.json_object(value, record.schema)[1]
        else:
            value, before = all_of.stream(random, record.name)
            headers = ARROW if edge else mutate.headers_of(random, value, record.name, before)
            wrong = unreadable(value, edge) + oracle.headers(value, headers, record.name, edge=edge)
        if wrong and len(value) <= BYTES_MAX:
            count -= 1
            yield Poison("mutated", topic, value, LETTER, headers)
    raise RuntimeError(f"{count} of the mutations for {topic} were never bad in {DRAWS} draws")


def unreadable(value: bytes, edge: bool) -> list[str]:
    """What the oracle finds wrong with a stream's bytes."""
    try:
        return oracle.stream(value, edge=edge)[2]
    except UnicodeDecodeError:
        return ["the name of a column is no UTF-8"]


def handmade(all_of: Corpus, topic: str) -> Iterator[Poison]:
    """The classics: no record at all, another record, other columns, damaged columns, a wrong checksum."""
    record = record_of(topic)
    base = TOPICS[base_of(topic)]
    good = next(batch for batch in all_of.batches[record.name] if batch.num_rows)
    value, right = wire.encode(good, record)
    other = "heartbeat" if record.name != "heartbeat" else "outcome"
    kind = ARROW if base.edge else {}
    plain: list[tuple[str, bytes | None, dict[str, bytes]]] = [
        ("nothing", b"", kind),
        ("0xff", b"\xff" * 64, kind),
        ("the file format's magic", b"ARROW1\0\0" + value, kind),
        ("half a JSON object", b'{"id":', JSON),
        ("another record", all_of.streams[other][0], {"aos-record": other.encode()}),
        ("a checksum of other bytes", value, right | {"crc32c": b"00000000"}),
        ("text that is no UTF-8", texts(3).replace(b"xxx", b"\xff\xfe\xfd"), kind),
        ("offsets behind the buffer", shifted(texts(12_345), [0, 12_345], [0, 1_000_000]), kind),
        ("offsets that fall", shifted(texts(12_345, 100), [0, 12_345, 12_445], [0, 12_345, 2]), kind),
        ("nested 64 deep", bombs._deep(64), kind),
        ("a column of another type", retyped(good, 0), kind),
    ]
    if not base.compacted:
        plain.append(("no value", None, kind))  # on a view that is a deletion
    required = [field.name for field in record.schema if not field.nullable]
    if required:
        plain.append(("a required column is missing", raw_stream(good.drop_columns([required[0]])), kind))
        names = ["x" if name == required[0] else name for name in good.schema.names]
        plain.append(("a required column is renamed", raw_stream(good.rename_columns(names)), kind))
    for what, bad, headers in plain:
        yield Poison(what, topic, bad, LETTER, headers)


def among_good_rows(name: str, tenants: Sequence[str]) -> Iterator[Poison]:
    """One bad row between two good ones of the same message."""
    steps = pa.list_(pa.struct([("name", pa.string()), ("text", pa.string())]))
    schema = REQUEST.append(pa.field("steps", steps))
    for number, tenant in enumerate(tenants):
        ids = [f"{name}-row{number}-{row}" for row in range(3)]
        rows = [
            {**asked(id), "steps": [{"name": None, "text": "x"}] if row == 1 else None}
            for row, id in enumerate(ids)
        ]
        yield Poison(
            "a bad row between good ones", request_topic(tenant), stream(rows, schema), LETTER, ARROW, plain=True,
            rows=(ids[0], ids[2]),
        )  # fmt: skip


def raw_stream(batch: pa.RecordBatch) -> bytes:
    """An IPC stream of a batch as it is."""
    return bombs.stream(pa.Table.from_batches([batch]))


def texts(*sizes: int) -> bytes:
    """A stream with a column of texts of these sizes."""
    return raw_stream(pa.record_batch({"id": ["x" * size for size in sizes]}))


def shifted(value: bytes, old: list[int], new: list[int]) -> bytes:
    """A stream whose offsets (the last place where they stand) are other ones."""
    there, instead = (np.array(offsets, np.int32).tobytes() for offsets in (old, new))
    at = value.rindex(there)
    return value[:at] + instead + value[at + len(instead) :]


def retyped(batch: pa.RecordBatch, place: int) -> bytes:
    """A column as lists of lists of numbers, which no record has."""
    columns = list(batch.columns)
    columns[place] = pa.array([[[1]]] * batch.num_rows)
    return raw_stream(pa.RecordBatch.from_arrays(columns, names=batch.schema.names))


# fault 21

NAN, INF = float("nan"), float("inf")
TENSORS: tuple[tuple[str, Any, list[int | None] | None, pa.DataType, str], ...] = (
    ("NaN", [1.0, NAN, 2.0], None, pa.float32(), MUST_REFUSE),
    ("infinite", [INF], None, pa.float32(), MUST_REFUSE),
    ("minus infinite", [0.0, -INF], [2], pa.float32(), MUST_REFUSE),
    ("NaN in double precision", [NAN], None, pa.float64(), MUST_REFUSE),
    ("too large for single precision", [1e300], None, pa.float64(), MUST_REFUSE),
    ("a shape of more", [1.0, 2.0, 3.0, 4.0], [2, 3], pa.float32(), MUST_REFUSE),
    ("negative dimensions", [1.0, 2.0, 3.0, 4.0], [-2, -2], pa.float32(), MUST_REFUSE),
    ("no dimension", [1.0], [], pa.float32(), MUST_REFUSE),
    ("a dimension of zero", [1.0, 2.0], [0, 2], pa.float32(), MUST_REFUSE),
    ("a product that wraps to zero", [], [2**32, 2**32], pa.float32(), MUST_REFUSE),
    ("a product that wraps to its size", [1.0] * 4, [2**62 + 1, 4], pa.float32(), MUST_REFUSE),
    ("the largest dimension", [1.0], [2**63 - 1], pa.float32(), MUST_REFUSE),
    ("an unknown dimension", [1.0, 2.0], [2, None], pa.float32(), MUST_REFUSE),
    ("an unknown value", [1.0, None], None, pa.float32(), MUST_REFUSE),
    ("words", ["a"], None, pa.string(), MUST_REFUSE),
    ("lists", [[1.0]], None, pa.list_(pa.float32()), MUST_REFUSE),
    ("33 dimensions that fit", [1.0], [1] * 33, pa.float32(), ENDED),
    ("an empty tensor that fits", [], [0], pa.float32(), ENDED),
)  # fmt: skip


def tensors(name: str, tenants: Sequence[str]) -> Iterator[Poison]:
    """Requests whose tensor lies: each answered with a code, or a dead letter; what is odd and true is done."""
    for number, (what, values, shape, type, must) in enumerate(TENSORS):
        id = f"{name}-tensor-{number}"
        schema = REQUEST.append(pa.field("tensor", pa.list_(type)))
        schema = schema.append(pa.field("tensor_shape", pa.list_(pa.int64())))
        value = stream([{**asked(id), "tensor": values, "tensor_shape": shape}], schema)
        expect = f"TASK {id}".upper() if must == ENDED else None
        topic = request_topic(tenants[number % len(tenants)])
        yield Poison(f"tensor: {what}", topic, value, must, ARROW, id=id, expect=expect)


def lying_tensors(tenants: Sequence[str]) -> Iterator[Poison]:
    """Tensors whose metadata does not fit their bytes: extension types, IPC tensors, offsets behind the buffer."""
    made = [(bomb.name, bomb.make()) for bomb in bombs.BOMBS if bomb.name.startswith("tensor-")]
    extensions = ('[4],"permutation":[3]', "[2,2", '[4],"dim_names":["a","b"]', "[]", "[0]")
    made += [(f"extension {text}", bombs._tensor(text)) for text in extensions]
    sink = pa.BufferOutputStream()
    pa.ipc.write_tensor(pa.Tensor.from_numpy(np.arange(6.0).reshape(2, 3)), sink)
    tensor = sink.getvalue().to_pybytes()
    made += [("an IPC tensor", tensor), ("strides behind the buffer", bombs._patched(tensor, 24, 2**40))]
    lists = raw_stream(pa.record_batch({"tensor": pa.array([[1.0] * 12_345], pa.list_(pa.float32()))}))
    made.append(("values behind the buffer", shifted(lists, [0, 12_345], [0, 1_000_000])))
    for number, (what, value) in enumerate(made):
        yield Poison(f"tensor: {what}", request_topic(tenants[number % len(tenants)]), value, LETTER, ARROW)


def not_finite(random: Random, all_of: Corpus, topic: str) -> Poison:
    """A row of an edge's or an inner topic with one number that is not finite."""
    record = record_of(topic)
    batches = [batch for batch in all_of.batches[record.name] if batch.num_rows]
    for _ in range(DRAWS):
        batch = random.choice(batches).slice(0, 1)
        fields, columns = list(batch.schema), list(batch.columns)
        mutate._not_finite(random, fields, columns, 0)
        bad = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
        if any("not finite" in one for one in oracle.fits(bad, record.schema)):
            kind = ARROW if TOPICS[base_of(topic)].edge else {}
            return Poison("not finite", topic, raw_stream(bad), LETTER, kind)
    raise RuntimeError(f"{record.name} has no number that could not be finite")


def other_sizes(all_of: Corpus) -> Iterator[Poison]:
    """Embeddings of another size, or of another type, on aos.tasks."""
    good = next(batch for batch in all_of.batches["task"] if batch.num_rows).slice(0, 1)
    place = good.schema.get_field_index("embedding")
    for type in (pa.list_(pa.float16(), 255), pa.list_(pa.float32(), 256), pa.list_(pa.float16())):
        columns = list(good.columns)
        size = type.list_size if pa.types.is_fixed_size_list(type) else 3
        columns[place] = pa.array([np.zeros(size, type.value_type.to_pandas_dtype())], type)
        bad = pa.RecordBatch.from_arrays(columns, names=good.schema.names)
        yield Poison(f"embedding as {type}", "aos.tasks", raw_stream(bad), LETTER)


# fault 22


def small_bombs(name: str, tenants: Sequence[str]) -> Iterator[Poison]:
    """Every bomb of the corpus that is one message, as a request; some of them to all other topics."""
    for number, bomb in enumerate(bombs.BOMBS):
        topic = request_topic(tenants[number % len(tenants)])
        if bomb.kind == "arrow":
            yield Poison(bomb.name, topic, bomb.make(), LETTER, ARROW)
        elif bomb.kind == "json":
            id = f"{name}-bomb-{number}"  # a text that unpacks to too much is answered, and by its id
            yield Poison(
                bomb.name, topic, b'{"id":"%s",' % id.encode() + bomb.make()[1:], MUST_REFUSE, JSON, id=id
            )
    chosen = (
        "ipc-body-zstd",
        "dictionary",
        "run-end-2-billion-rows",
        "list-view",
        "null-column-1-million-rows",
        "json-depth-100000",
    )
    for bomb in bombs.BOMBS:
        if bomb.name in chosen:
            value, kind = bomb.make(), JSON if bomb.kind == "json" else ARROW
            for topic in (
                *EDGES,
                *(("aos.ledger", "aos.tasks", "aos.experiences") if bomb.kind == "arrow" else ()),
            ):
                yield Poison(bomb.name, topic, value, LETTER, kind if topic in EDGES else {})


MIB = 1 << 20
# as bombs.BOMBS has them, but small enough for the topic's limit of 1 MiB where they are compressed badly
BATCHES: tuple[tuple[str, int, bytes, int], ...] = (
    ("kafka-gzip", 1, bytes(MIB), 40),
    ("kafka-snappy", 2, bytes(MIB), 18),
    ("kafka-lz4", 3, bytes(MIB), 40),
    ("kafka-zstd", 4, bytes(MIB), 40),
    ("kafka-zstd-many-records", 4, bytes(100), 200_000),
)  # fmt: skip


def record_batch(compression: int, value: bytes, count: int) -> bytes:
    """A Kafka record batch as a client would send it."""
    return bombs._kafka(compression, value, count)


assert set(RECORDS) >= {record_of(topic).name for topic in (*EDGES, *INNER)}
