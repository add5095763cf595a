"""Bytes and rows: identity, limits, hostile bytes, and readers and writers of different ages."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.codecs import json as objects
from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.fields import F32, I64, TEXT, Record, may, need, structs
from aos.codecs.schemas import RECORDS
from tests.unit import strategies

NAMES = sorted(RECORDS)
TASK = RECORDS["task"]
RELAXED = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def tasks(count: int = 3) -> pa.RecordBatch:
    """Some tasks with finite tensors."""
    generator = np.random.default_rng(7)
    return make.from_columns(
        "task",
        count,
        {
            "tenant": ["default"] * count, "request_id": [bytes([n] * 16) for n in range(count)],
            "requested_at": list(range(count)), "home": [0] * count, "domain": ["d"] * count,
            "round": [0] * count, "step": [0] * count, "step_name": ["main"] * count, "steps_count": [1] * count,
            "match_round": [0] * count, "require": [["zip"]] * count, "after": [[]] * count, "pin": [[]] * count,
            "exclude": [[]] * count, "priority": [2] * count,
            "embedding": generator.normal(size=(count, 256)).astype(np.float16),
            "surface": generator.normal(size=(count, 16)).astype(np.float32),
        },
    )  # fmt: skip


def stream(table: pa.Table | pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    """What a plain pyarrow program writes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write(table)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def code_of(value: bytes, record: Record = TASK, headers: dict[str, bytes] | None = None) -> str:
    with pytest.raises(RecordError) as caught:
        wire.decode(value, headers or {}, record)
    return caught.value.code


@RELAXED
@given(st.data())
def test_decoding_what_was_encoded_gives_the_same_rows(data: st.DataObject) -> None:
    record = RECORDS[data.draw(st.sampled_from(NAMES))]
    batch = data.draw(strategies.batches(record))
    value, headers = wire.encode(batch, record)
    assert wire.decode(value, headers, record).equals(batch)
    rows, bad = wire.decode_rows(value, headers, record)
    assert rows.equals(batch)
    assert not bad


def test_a_decoded_tensor_column_shares_memory_with_the_message() -> None:
    value, headers = wire.encode(tasks(), TASK)
    tensor = make.tensor(wire.decode(value, headers, TASK)["embedding"])
    start = pa.py_buffer(value).address
    assert start <= tensor.ctypes.data < start + len(value)


def test_several_batches_of_one_stream_are_one() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TASK.schema) as writer:
        writer.write_batch(tasks(2))
        writer.write_batch(tasks(3))
    assert wire.decode(sink.getvalue().to_pybytes(), {}, TASK).num_rows == 5


# ages of readers and writers

OLD = Record("thing", 1, "", (need("name", TEXT, ""), may("parts", structs(need("a", I64, "")), "")))
NEW = Record(
    "thing", 2, "",
    (need("name", TEXT, ""), may("parts", structs(need("a", I64, ""), may("b", TEXT, "")), ""), may("score", F32, "")),
)  # fmt: skip


def thing(record: Record, row: dict[str, object]) -> bytes:
    arrays = [pa.array([row.get(field.name)], field.type) for field in record.schema]
    return wire.encode(pa.RecordBatch.from_arrays(arrays, schema=record.schema), record)[0]


def test_an_older_reader_reads_a_newer_writer() -> None:
    value = thing(NEW, {"name": "x", "parts": [{"a": 1, "b": "new"}, {"a": 2, "b": None}], "score": 0.5})
    found = wire.decode(value, {}, OLD)
    assert found.schema == OLD.schema
    assert found.to_pylist() == [{"name": "x", "parts": [{"a": 1}, {"a": 2}]}]


def test_a_newer_reader_reads_an_older_writer() -> None:
    value = thing(OLD, {"name": "x", "parts": [{"a": 1}]})
    found = wire.decode(value, {}, NEW)
    assert found.schema == NEW.schema
    assert found.to_pylist() == [{"name": "x", "parts": [{"a": 1, "b": None}], "score": None}]


@pytest.mark.parametrize("name", NAMES)
def test_every_record_may_grow_at_the_end(name: str) -> None:
    old = RECORDS[name]
    new = replace(old, version=2, fields=(*old.fields, may("added_later", TEXT, "")))
    batch = make.empty(name)
    grown = pa.RecordBatch.from_arrays([*batch.columns, pa.array([], TEXT)], schema=new.schema)
    assert wire.decode(wire.encode(grown, new)[0], {}, old).schema == old.schema
    assert wire.decode(wire.encode(batch, old)[0], {}, new).schema == new.schema


def test_a_required_column_that_the_writer_does_not_have_is_said() -> None:
    assert code_of(stream(pa.table({"tenant": ["x"]}))) == "AOS1003"


# what plain programs write


def test_an_edge_reads_what_pyarrow_makes_of_dicts() -> None:
    table = pa.table(
        {
            "id": pa.array(["a"], pa.large_string()),
            "text": ["hello"],
            "payload": ["text for bytes"],
            "priority": pa.array([1], pa.int64()),
            "deadline_ms": pa.array([5], pa.int32()),
            "requested_at": pa.array([1], pa.timestamp("ms")),
            "require": [["zip"]],
            "tensor": pa.array([[1.5]], pa.large_list(pa.float64())),
            "domain": pa.nulls(1),
            "pin": [[]],
            "steps": [[{"name": "one"}, {"name": "two", "after": ["one"]}]],
            "unknown_column": [1],
        }
    )
    found, bad = wire.decode_rows(stream(table), {}, RECORDS["request"])
    assert not bad
    row = found.to_pylist()[0]
    assert (row["id"], row["payload"], row["priority"], row["tensor"]) == ("a", b"text for bytes", 1, [1.5])
    assert row["requested_at"].timestamp() == 0.001
    assert [step["after"] for step in row["steps"]] == [None, ["one"]]


@pytest.mark.parametrize(
    ("column", "values", "code"),
    [
        ("priority", pa.array([1, 1000, 2]), "AOS1014"),
        ("requested_at", pa.array([1, 2**62, 2], pa.timestamp("s")), "AOS1014"),
        ("text", pa.array([b"a", b"\xff", b"c"]), "AOS1003"),
        ("require", pa.array([["a"], ["b", None], None]), "AOS1004"),
        ("steps", pa.array([[{"name": "a"}], [{"name": None}], None]), "AOS1004"),
        ("tensor", pa.array([[1.0], [float("nan")], None]), "AOS1005"),
        ("tensor", pa.array([[1.0], [1.0, float("-inf")], None]), "AOS1005"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_the_others_are_read(
    column: str, values: pa.Array, code: str
) -> None:
    table = pa.table({"id": ["a", "b", "c"], column: values})
    found, bad = wire.decode_rows(stream(table), {}, RECORDS["request"])
    assert {row: error.code for row, error in bad.items()} == {1: code}
    assert found["id"].to_pylist() == ["a", "b", "c"]
    assert found[column].slice(0, 1).is_valid().to_pylist() == [True]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("priority", pa.array(["first"])),
        ("text", pa.array([5])),
        ("steps", pa.array([["a"]])),
        ("requested_at", pa.array([5])),
        ("tensor", pa.array([["1.5"]])),
    ],
)
def test_a_column_of_another_kind_is_not_guessed_at(column: str, values: pa.Array) -> None:
    with pytest.raises(RecordError, match="AOS1003"):
        wire.decode_rows(stream(pa.table({column: values})), {}, RECORDS["request"])


def test_more_bad_rows_than_are_worth_finding_make_the_message_bad() -> None:
    table = pa.table({"priority": pa.array([1000] * 300)})
    with pytest.raises(RecordError, match="AOS1014"):
        wire.decode_rows(stream(table), {}, RECORDS["request"])


def test_a_tensor_without_its_extension_type_is_read() -> None:
    batch = tasks()
    plain = [c.storage if isinstance(c, pa.ExtensionArray) else c for c in batch.columns]
    table = pa.table(plain, names=batch.schema.names)
    assert wire.decode(stream(table), {}, TASK).equals(batch)


@pytest.mark.parametrize(
    ("storage", "code"),
    [
        (pa.array([[0.0] * 255], pa.list_(pa.float16(), 255)), "AOS1010"),
        (pa.array([[None] + [0.0] * 255], pa.list_(pa.float16(), 256)), "AOS1004"),
        (pa.array([[0.0] * 256], pa.list_(pa.float64(), 256)), "AOS1003"),
        (pa.array([None], pa.list_(pa.float16(), 256)), "AOS1004"),
    ],
)
def test_a_tensor_must_have_the_declared_shape_and_no_holes(storage: pa.Array, code: str) -> None:
    batch = tasks(1)
    columns = {
        n: storage if n == "embedding" else c for n, c in zip(batch.schema.names, batch.columns, strict=True)
    }
    columns["surface"] = columns["surface"].storage
    assert code_of(stream(pa.table(columns))) == code


# finiteness


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 255])
def test_each_row_with_a_number_that_is_not_finite_is_found(value: float, place: int) -> None:
    vectors = np.zeros((4, 256), np.float16)
    vectors[2, place] = value
    vectors[1] = np.finfo(np.float16).max
    batch = tasks(4)
    index = batch.schema.get_field_index("embedding")
    bad = batch.set_column(index, batch.schema.field(index), make.from_columns("task", 4, {
        "embedding": vectors})["embedding"])  # fmt: skip
    assert wire.finite(bad, TASK) == {2: "embedding"}
    assert wire.finite(bad.slice(2, 1), TASK) == {0: "embedding"}
    assert wire.finite(bad.slice(0, 2), TASK) == {}


def test_what_stands_under_a_null_is_not_looked_at() -> None:
    trails = make.from_columns(
        "trail", 2, {"score": pa.array([float("nan"), 1.0], mask=np.array([True, False]))}
    )
    assert wire.finite(trails, RECORDS["trail"]) == {}
    trails = make.from_columns("trail", 2, {"score": [1.0, float("nan")]})
    assert wire.finite(trails, RECORDS["trail"]) == {1: "score"}


def test_numbers_inside_lists_of_structs_are_looked_at() -> None:
    matches = make.empty("match")
    inner = matches.schema.field("candidates").type.value_type
    row = {f.name: None for f in inner} | {"score": float("inf")}
    candidates = pa.array(
        [[], [row | {"score": 0.5}], [row | {"score": 0.5}, row]], matches.schema.field("candidates").type
    )
    found = make.from_columns("match", 3, {"candidates": candidates})
    assert wire.finite(found, RECORDS["match"]) == {2: "candidates"}


# hostile bytes

GOOD = wire.encode(tasks(3), TASK)[0]
PLAIN = stream(pa.table({"id": ["a", "b"], "require": [["x"], None], "tensor": [[1.0, 2.0], None],
                         "steps": [[{"name": "s", "after": ["t"]}], None]}))  # fmt: skip


def read_safely(value: bytes) -> None:
    """Decode both ways; anything but a RecordError fails the test, a crash of the process too."""
    for record in (TASK, RECORDS["request"]):
        for read in (wire.decode, wire.decode_rows):
            try:
                found = read(value, {}, record)
            except RecordError:
                continue
            rows = found[0] if isinstance(found, tuple) else found
            rows.validate(full=True)
            objects.dumps(rows)  # every value can be shown


@pytest.mark.parametrize("good", [GOOD, PLAIN], ids=["declared", "plain"])
def test_bytes_cut_off_anywhere_are_refused_or_read(good: bytes) -> None:
    # less than the end mark is left: the stream is whole without it
    for size in {*range(0, len(good), 7), *range(len(good) - 40, len(good))}:
        read_safely(good[:size])


@pytest.mark.parametrize("good", [GOOD, PLAIN], ids=["declared", "plain"])
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_never_crash(good: bytes, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(400):
        broken = bytearray(good)
        for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
            broken[chance.randrange(len(broken))] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
        read_safely(bytes(broken))


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=256), st.integers(0, len(PLAIN)), st.integers(0, 64))
def test_spliced_bytes_never_crash(junk: bytes, place: int, lost: int) -> None:
    read_safely(junk)
    read_safely(PLAIN[:place] + junk + PLAIN[place + lost :])


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_messages_read_together_are_those_read_one_by_one_or_none_is(seed: int, count: int) -> None:
    chance = random.Random(seed)
    messages = []
    for _ in range(count):
        value = bytearray(wire.encode(tasks(chance.randrange(4)), TASK)[0])
        for _ in range(chance.choice((0, 0, 0, 1, 3))):
            value[chance.randrange(len(value))] = chance.choice((0, 0x7C, 0x7F, 0xFF, chance.randrange(256)))
        messages.append((bytes(value), {}))
    found = wire.decode_together(messages, TASK)
    alone = [read_row_wise(value) for value, _ in messages]
    if found is None:
        assert any(one is None for one in alone)
    else:
        rows, counts = found
        assert counts == [one.num_rows for one in alone if one is not None]
        assert rows.equals(pa.concat_batches([one for one in alone if one is not None]))


def read_row_wise(value: bytes) -> pa.RecordBatch | None:
    """The rows of a message that an edge finds nothing wrong with, and that needs no cast."""
    try:
        rows, bad = wire.decode_rows(value, {}, TASK)
    except RecordError:
        return None
    return None if bad or not value.startswith(TASK.schema_bytes) else rows


def test_mutated_rows_are_caught_by_the_checksum() -> None:
    value, headers = wire.encode(tasks(), TASK)
    broken = value[:-100] + bytes([value[-100] ^ 1]) + value[-99:]
    assert code_of(broken, headers=headers) == "AOS1006"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "AOS1001"),
        (b"hello, world", "AOS1001"),
        (b"\xff\xff\xff\xff", "AOS1001"),
        (struct.pack("<Ii", 0xFFFFFFFF, 2**30) + bytes(64), "AOS1002"),
        (struct.pack("<Ii", 0xFFFFFFFF, -8) + bytes(64), "AOS1002"),
        (bytes(wire.MESSAGE_BYTES_MAX + 1), "AOS1002"),
        (stream(pa.table({"x": pa.array(["a"]).dictionary_encode()})), "AOS1003"),
        (stream(tasks(), pa.ipc.IpcWriteOptions(compression="zstd")), "AOS1009"),
        (stream(tasks(), pa.ipc.IpcWriteOptions(compression="lz4")), "AOS1009"),
        (stream(pa.table({f"c{n}": [1] for n in range(wire.COLUMNS_MAX + 1)})), "AOS1002"),
        (stream(pa.table({"x": pa.array([[[[[[1]]]]]])})), "AOS1003"),
        (stream(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])), "AOS1003"),
        (stream(pa.table({"x": pa.array([None], pa.run_end_encoded(pa.int32(), pa.int64()))})), "AOS1003"),
    ],
)  # fmt: skip
def test_what_is_no_message_has_a_code(value: bytes, code: str) -> None:
    assert code_of(value) == code


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    zeros = pa.table({"payload": [bytes(64 * 1024 * 1024)]})
    bomb = stream(zeros, pa.ipc.IpcWriteOptions(compression="zstd"))
    assert len(bomb) < 100_000
    before = pa.total_allocated_bytes()
    assert code_of(bomb, RECORDS["request"]) == "AOS1009"
    assert pa.total_allocated_bytes() <= before


def test_rows_that_cost_no_bytes_are_counted() -> None:
    many = pa.table({"id": pa.nulls(wire.ROWS_MAX + 1)})
    assert code_of(stream(many), RECORDS["request"]) == "AOS1002"
    with pytest.raises(RecordError, match="AOS1002"):
        wire.decode_rows(stream(pa.table({"id": pa.nulls(wire.EDGE_ROWS_MAX + 1)})), {}, RECORDS["request"])
    small = pa.record_batch({"id": pa.nulls(wire.ROWS_MAX // 2 + 1)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, small.schema) as writer:
        writer.write_batch(small)
        writer.write_batch(small)
    assert code_of(sink.getvalue().to_pybytes(), RECORDS["request"]) == "AOS1002"


def test_a_row_without_a_required_value_is_never_written() -> None:
    holes = make.from_columns("task", 1, {"tenant": ["x"]})
    with pytest.raises(RecordError, match="AOS1004"):
        wire.encode(holes, TASK)


def test_another_record_on_the_topic_is_said() -> None:
    value, headers = wire.encode(tasks(), TASK)
    assert code_of(value, RECORDS["request"], headers) == "AOS1003"
