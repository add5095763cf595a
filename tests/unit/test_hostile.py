"""What `make fuzz` found and what was mended: each a case of its own."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aos.codecs import json as objects
from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.streams import views
from aos.streams.dead_letters import DeadLetters
from aos.streams.processor import Raw
from aos.streams.shell.options import Options
from aos.streams.shell.snapshots import Snapshots
from aos.streams.shell.views import ViewService
from tests.fuzz.insides import CODEC, IDS, Log, _saved, drive
from tests.fuzz.seeds import load

REQUEST = RECORDS["request"]


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "a", "text": "x", "id": "b"}',
        b'{"id": "a", "i\\u0064": "b"}',
        b'{"text": "x", "steps": [{"name": "a", "text": "y", "name": "b"}]}',
        b'{"priority": 1000, "id": "a", "id": "b"}',
    ],
)
def test_a_key_that_stands_twice_is_refused(text: bytes) -> None:
    with pytest.raises(RecordError, match=r"AOS1007.*twice"):
        objects.parse_row(text, REQUEST)


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "a", "text": "\\"id\\": \\"id\\":"}',
        b'{"text": ":", "id": ":", "domain": "text"}',
        b'{"text": "x", "steps": [{"name": "a"}, {"name": "b"}]}',
    ],
)
def test_what_only_looks_like_a_repeated_key_is_read(text: bytes) -> None:
    assert objects.parse_row(text, REQUEST)[1] is None


@pytest.mark.parametrize(
    "end", [b', "id": "a"', b', "tensor": [1e400]}', b"} x", b', "x": 99999999999999999999999}']
)
def test_json_that_is_wrong_behind_a_number_out_of_range_is_refused(end: bytes) -> None:
    with pytest.raises(RecordError):
        objects.parse_row(b'{"priority": 1000' + end, REQUEST)


def test_an_inner_topic_takes_no_number_that_is_not_finite() -> None:
    rows = make.from_columns("pattern", 0, {})
    value, headers = wire.encode(rows, RECORDS["pattern"])
    assert CODEC.decode("aos.patterns", value, headers).num_rows == 0
    task = RECORDS["task"]
    columns: dict[str, Any] = {
        "tenant": ["t"], "request_id": [b"x" * 16], "requested_at": [0], "home": [0], "domain": ["d"], "round": [0],
        "step": [0], "step_name": ["m"], "steps_count": [1], "match_round": [0], "require": [[]], "after": [[]],
        "pin": [[]], "exclude": [[]], "priority": [2], "surface": np.zeros((1, 16), np.float32),
        "embedding": np.full((1, 256), np.nan, np.float16),
    }  # fmt: skip
    value, headers = wire.encode(make.from_columns("task", 1, columns), task)
    with pytest.raises(RecordError, match="AOS1005"):
        CODEC.decode("aos.tasks", value, headers)


def test_a_view_leaves_out_what_it_cannot_take_in_and_goes_on() -> None:
    """An error of `apply` ended the worker, and again after each restart: the topic is compacted."""
    service = ViewService(Options("nowhere:0"), CODEC, list(views.VIEWS.values()))
    data, headers = wire.encode(
        wire.decode(load()["pattern"][0].value, {}, RECORDS["pattern"]), RECORDS["pattern"]
    )
    for key in (b"\xff", b"a", b"\xff"):
        record = SimpleNamespace(
            topic="aos.patterns", partition=0, offset=0, timestamp=0, key=key, value=data,
            headers=list(headers.items()),
        )  # fmt: skip
        service._apply(record)
    assert service.applied == 1


def test_a_dead_letter_keeps_a_header_without_value() -> None:
    headers: Any = {"empty": None, "full": b"x"}
    raw = Raw("aos.tasks", 0, 5, 0, None, b"bytes", headers)
    letters = DeadLetters("match", ())
    letters.refused(raw, "AOS1001", "why")
    row = letters.outputs()[0].rows.to_pylist()[0]
    assert json.loads(row["headers"]) == {"empty": "", "full": "eA=="}


def log_of(*slots: int) -> Log:
    """A log of two parts a slot, the later slot the newer."""
    log = Log()
    writer: Any = Snapshots(CODEC, log, log)  # type: ignore[arg-type]
    for slot in slots:
        drive(writer.save(_saved({"a": make.empty("release")}, slot, 10 + slot)))
    return log


def restored(log: Log) -> int | None:
    found = drive(Snapshots(CODEC, log, log).load("learn", 0, IDS))  # type: ignore[arg-type]
    return None if found is None else int(found.manifest.offsets["aos.ledger"])


def forge(log: Log, place: int, **changes: Any) -> None:
    """Change a manifest, with checksums that are right."""
    record = log.records[place]
    rows = wire.decode(record.value, {}, RECORDS["snapshot-chunk"])
    said = json.loads(rows.column("body")[0].as_py()) | changes
    columns = dict(zip(rows.schema.names, rows.columns, strict=True)) | {"body": [json.dumps(said).encode()]}
    record.value, headers = wire.encode(
        make.from_columns("snapshot-chunk", 1, columns), RECORDS["snapshot-chunk"]
    )
    record.headers = list(headers.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": "20"}, {"offsets": 5}, {"generation": "9"}, {"size": 10**15}, {"size": -1}, {"size": 1.5},
        {"parts": [["a", -5]]}, {"parts": [["a", 3]]}, {"parts": [["a", 3], ["b", 10**9]]}, {"ids": None},
        {"processor": ["x"]}, {"crc32c": "0"},
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_passed_over(changes: dict[str, Any]) -> None:
    """It ended the restore, and with it the worker, again after each restart."""
    log = log_of(0, 1)
    assert restored(log) == 11
    forge(log, 3, **changes)
    assert restored(log) == 10


def test_a_snapshot_whose_own_checksum_fails_is_passed_over() -> None:
    log = log_of(0, 1)
    log.records[3].value = log.records[3].value.replace(b'"aos.ledger": 11', b'"aos.ledger": 31')
    assert restored(log) == 10


def test_an_empty_list_that_begins_behind_its_values_is_harmless() -> None:
    """pyarrow validates it and aborts the process when it flattens it."""
    batch = pa.record_batch({"require": [["x"]]})
    one, none = (1).to_bytes(8, "little"), bytes(8)
    value = stream(batch, 0, 1).replace(one, none)  # the lengths of all arrays
    broken = pa.ipc.open_stream(value).read_next_batch()
    broken.validate(full=True)
    assert (len(broken), broken.column(0).offset, len(broken.column(0).values)) == (0, 0, 0)
    rows, bad = wire.decode_rows(value, {}, REQUEST)
    assert (rows.num_rows, bad) == (0, {})


def test_an_empty_list_below_a_list_that_begins_behind_its_values_is_refused() -> None:
    step = pa.struct(
        [pa.field("name", pa.string(), nullable=False), pa.field("after", pa.list_(pa.string()))]
    )
    batch = pa.record_batch({"id": ["a"], "steps": pa.array([[]], pa.list_(step))})
    with pytest.raises(RecordError, match="AOS1001"):
        wire.decode_rows(stream(batch, 1, 7), {}, REQUEST)


def stream(batch: pa.RecordBatch, column: int, buffer: int) -> bytes:
    """A stream of `batch` in which the offsets at `buffer` of a column begin at 16."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    value = sink.getvalue()
    offsets = pa.ipc.open_stream(value).read_next_batch().column(column).buffers()[buffer]
    at = offsets.address - value.address
    return value[:at].to_pybytes() + (16).to_bytes(4, "little") + value[at + 4 :].to_pybytes()


def in_another_byte_order(value: bytes) -> bytes:
    """The stream with a schema that says that its numbers stand the other way round."""
    size = struct.unpack_from("<i", value, 4)[0]
    header = wire._slots(value, 8 + struct.unpack_from("<I", value, 8)[0], 8, size)[2]
    table = header + struct.unpack_from("<I", value, header)[0]
    fields = table - struct.unpack_from("<i", value, table)[0] + 4
    found = bytearray(value)
    found[fields : fields + 2] = found[
        fields + 2 : fields + 4
    ]  # the byte order stands where the columns stand: not 0
    return bytes(found)


def test_another_byte_order_is_refused_whoever_reads_it() -> None:
    """Found by following coverage: pyarrow turns each value round, into memory of its own, and says nothing."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"home": pa.array([1], pa.int32())})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    bad = in_another_byte_order(sink.getvalue().to_pybytes())
    with pa.ipc.open_stream(bad) as reader:
        assert reader.read_all().column("home").to_pylist() == [1 << 24]
    for read in (wire.decode, wire.decode_rows):
        with pytest.raises(RecordError, match=r"AOS1003.*byte order"):
            read(bad, {}, RECORDS["release"])
    whole = in_another_byte_order(load()["release"][0].value)
    with pytest.raises(RecordError, match=r"AOS1003.*byte order"):
        wire.decode(whole, {}, RECORDS["release"])
    assert wire.decode_together([(whole, {})], RECORDS["release"]) is None
