"""One object, one row: both ways, and what is refused with which code."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.codecs import json, wire
from aos.codecs import rows as make
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from tests.unit import strategies

REQUEST, OUTCOME = RECORDS["request"], RECORDS["outcome"]
OUTCOME_TEXT = (
    b'"request_id":"000102030405060708090a0b0c0d0e0f","home":0,"step":0,"attempt":1,"agent":"a","epoch":0,'
    b'"token":"FFffFFffFFffFFffFFffFFffFFffFFff","status":"ok"'
)


def one(text: bytes, name: str = "request") -> dict[str, object]:
    found: dict[str, object] = json.read(text, RECORDS[name]).to_pylist()[0]
    return {key: value for key, value in found.items() if value is not None}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_is_written_reads_back_as_the_same_row(data: st.DataObject) -> None:
    record = RECORDS[data.draw(st.sampled_from(sorted(RECORDS)))]
    batch = data.draw(strategies.batches(record))
    found = [json.parse(text, record) for text in json.dumps(batch)]
    assert json.rows(found, record).equals(batch)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_row_or_a_record_error(value: bytes) -> None:
    for text in (value, b'{"text":"' + value + b'"}', b'{"steps":[{"name":' + value + b"}]}"):
        try:
            row, _ = json.parse_row(text, REQUEST)
        except RecordError:
            continue
        assert json.rows([row], REQUEST).num_rows == 1


def test_bytes_are_text_or_base64() -> None:
    assert one(b'{"payload":"\xc3\xa9"}')["payload"] == "é".encode()
    assert one(b'{"payload":{"base64":"AP8="}}')["payload"] == b"\x00\xff"
    batch = make.from_dicts("request", [{"payload": b"plain"}, {"payload": b"\xff"}])
    assert json.objects(batch) == [{"payload": "plain"}, {"payload": {"base64": b"\xff"}}]
    assert json.dumps(batch)[1] == b'{"payload":{"base64":"/w=="}}'


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        (b'"1970-01-01T00:00:01Z"', 1_000_000),
        (b'"1970-01-01T00:00:01.5"', 1_500_000),
        (b'"1970-01-01T01:00:00+01:00"', 0),
        (b"1500", 1_500_000),
        (b"-1", -1000),
        (b'"9999-12-31T23:59:59Z"', 253_402_300_799_000_000),
    ],
)
def test_times_are_iso_or_milliseconds(text: bytes, micros: int) -> None:
    assert (
        json.read(b'{"requested_at":' + text + b"}", REQUEST)["requested_at"].cast(pa.int64())[0].as_py()
        == micros
    )


def test_times_are_shown_as_iso_as_far_as_the_calendar_goes() -> None:
    shown = json.objects(make.from_dicts("request", [{"requested_at": 1_500_000}, {"requested_at": 2**60}]))
    assert shown == [{"requested_at": "1970-01-01T00:00:01.500000Z"}, {"requested_at": 2**60 // 1000}]


def test_ids_are_hexadecimal() -> None:
    row = one(b"{" + OUTCOME_TEXT + b"}", "outcome")
    assert (row["request_id"], row["token"]) == (bytes(range(16)), b"\xff" * 16)
    assert (
        b'"request_id":"000102030405060708090a0b0c0d0e0f"'
        in json.dumps(json.read(b"{" + OUTCOME_TEXT + b"}", OUTCOME))[0]
    )


def test_short_floats_stay_short() -> None:
    assert json.dumps(make.from_dicts("request", [{"tensor": [0.1, 2.0]}])) == [b'{"tensor":[0.1,2.0]}']


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (b"", "AOS1007", ""),
        (b"{", "AOS1007", ""),
        (b"{} {}", "AOS1007", "trailing"),
        (b'{"text":"\xff"}', "AOS1007", ""),
        (b'{"text":"\\ud800"}', "AOS1007", ""),
        (b'{"tensor":[NaN]}', "AOS1007", ""),
        (b"[]", "AOS1003", "array"),
        (b'{"txet":"x"}', "AOS1008", "txet"),
        (b'{"steps":[{"name":"a","aftre":[]}]}', "AOS1008", "aftre"),
        (b'{"payload":{"base64":"AA==","x":1}}', "AOS1008", "x"),
        (b'{"text":5}', "AOS1003", "$.text"),
        (b'{"steps":[{"name":"a","after":"b"}]}', "AOS1003", "$.steps[0].after"),
        (b'{"payload":{"base64":"@"}}', "AOS1003", "base64"),
        (b'{"requested_at":"yesterday"}', "AOS1003", "requested_at"),
        (b'{"priority":1.5}', "AOS1003", "priority"),
        (b'{"steps":[{}]}', "AOS1004", "name"),
        (b'{"require":[null]}', "AOS1004", "require"),
        (b'{"priority":128}', "AOS1014", "priority"),
        (b'{"deadline_ms":9223372036854775808}', "AOS1014", "deadline_ms"),
        (b'{"deadline_ms":' + b"9" * 400 + b"}", "AOS1014", "deadline_ms"),
        (b'{"tensor":[1e39]}', "AOS1014", "tensor"),
        (b'{"tensor":[1e400]}', "AOS1014", "tensor"),
        (b'{"requested_at":9300000000000000}', "AOS1014", "requested_at"),
        (b'{"tensor":' + b"[" * 50_000 + b"}", "AOS1003", "tensor"),
        (b'{"x":' + b"[" * 50_000 + b"}", "AOS1008", "x"),
        (b'{"text":"' + b"x" * wire.EDGE_BYTES_MAX + b'"}', "AOS1002", "bytes"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_and_where(text: bytes, code: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        json.parse(text, REQUEST)
    assert caught.value.code == code
    assert says in caught.value.detail


@pytest.mark.parametrize("missing", [b'"home":0,', b'"token":"FFffFFffFFffFFffFFffFFffFFffFFff",'])
def test_a_missing_required_key_is_said(missing: bytes) -> None:
    with pytest.raises(RecordError, match="AOS1004"):
        json.parse(b"{" + OUTCOME_TEXT.replace(missing, b"") + b"}", OUTCOME)


def test_a_short_id_is_refused() -> None:
    with pytest.raises(RecordError, match="AOS1014"):
        json.parse(b"{" + OUTCOME_TEXT.replace(b"000102", b"") + b"}", OUTCOME)


def test_a_number_out_of_range_leaves_a_row_to_answer() -> None:
    row, error = json.parse_row(b'{"id":"x","priority":1000}', REQUEST)
    assert error is not None
    assert error.code == "AOS1014"
    assert json.rows([row], REQUEST).to_pylist()[0]["id"] == "x"
    with pytest.raises(RecordError, match="AOS1014"):  # two such numbers: no row
        json.parse_row(b'{"id":"x","priority":1000,"deadline_ms":1e99}'.replace(b"1e99", b"9" * 30), REQUEST)


@pytest.mark.parametrize(
    ("value", "headers", "is_json"),
    [
        (b'{"a":1}', {}, True),
        (b' \n{"a":1}', {}, True),
        (b"\xff\xff\xff\xff", {}, False),
        (b"\xff\xff\xff\xff", {"content-type": b"application/json"}, True),
        (b"x", {"content-type": b"Application/JSON; charset=utf-8"}, True),
        (b"{", {"content-type": b"application/vnd.apache.arrow.stream"}, False),
        (b"", {}, False),
    ],
)
def test_json_is_known_by_its_header_else_by_its_first_byte(
    value: bytes, headers: dict[str, bytes], is_json: bool
) -> None:
    assert json.is_json(value, headers) is is_json
