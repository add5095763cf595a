"""Programs of different age: any minor version is read, of another major version nothing is believed."""

from __future__ import annotations

import json

import pytest

from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.streams.dead_letters import BODY_BYTES_MAX, PARKED_BYTES_MAX, DeadLetters, kept
from aos.streams.gather import gather
from aos.streams.processor import Raw

REQUEST = RECORDS["request"]
KNOWN = [b"1", b"2", b"999999999", b"1.0", b"1.7"]
UNKNOWN = [b"2.0", b"0.1", b"10.1", b"", b"1.", b".1", b"v1", b"1.1.1", b"-1", b"1" * 10, b"\xff", b"1\n"]


def message(version: bytes) -> tuple[bytes, dict[str, bytes]]:
    rows = make.from_dicts("request", [{"id": "a", "text": "hello"}])
    value, headers = wire.encode(rows, REQUEST)
    return value, {**headers, wire.HEADER_VERSION: version}


@pytest.mark.parametrize("version", KNOWN)
def test_any_minor_version_is_read(version: bytes) -> None:
    value, headers = message(version)
    assert wire.decode(value, headers, REQUEST).column("id").to_pylist() == ["a"]
    together = wire.decode_together([(value, headers)] * 2, REQUEST)
    assert together is not None
    assert together[1] == [1, 1]


@pytest.mark.parametrize("version", UNKNOWN)
def test_an_unknown_major_version_is_refused_however_well_its_columns_fit(version: bytes) -> None:
    value, headers = message(version)
    for read in (wire.decode, wire.decode_rows):
        with pytest.raises(RecordError, match="AOS1011"):
            read(value, headers, REQUEST)
    assert wire.decode_together([(value, headers)] * 2, REQUEST) is None


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_at_the_edge_an_unknown_major_version_is_a_dead_letter_with_its_bytes_and_the_rest_goes_on(
    form: str,
) -> None:
    value, headers = message(b"2.0")
    good, said = message(b"3")
    if form == "json":
        value = json.dumps({"id": "a", "text": "hello"}).encode()
        headers = {"content-type": b"application/json", wire.HEADER_VERSION: b"2.0"}
    raws = [
        Raw("aos.requests", 0, n, 0, None, *one) for n, one in enumerate([(value, headers), (good, said)])
    ]
    dead = DeadLetters("encode", ("default",))
    found = gather(raws, REQUEST, ("default",), dead)
    assert found.message.tolist() == [1]
    (letter,) = dead.outputs()[0].rows.to_pylist()
    assert (letter["code"], letter["offset"], letter["body"]) == ("AOS1011", 0, value)


@pytest.mark.parametrize(("code", "whole"), [("AOS1011", True), ("AOS1001", False)])
def test_what_only_a_later_release_can_read_is_kept_whole(code: str, whole: bool) -> None:
    """A message of the ledger with 58 requests had 158 KiB: cut at 64 KiB nobody could ever have sent it back."""
    value = bytes(BODY_BYTES_MAX + 1)
    letters = DeadLetters("supervise", ("default",))
    raw = Raw("aos.ledger", 0, 1, 0, None, value, {})
    letters.refused(raw, code, "why")
    letters.message(raw, code, "why")
    bodies = [row["body"] for row in letters.outputs()[0].rows.to_pylist()]
    assert bodies == [value if whole else value[:-1]] * 2
    assert kept(bytes(PARKED_BYTES_MAX + 1), "AOS1011") == bytes(PARKED_BYTES_MAX)
