"""Dead letters are chosen by what they are and sent back once, whole, to where they stood, or a sentence says why."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from aos.codecs.errors import RecordError, SettingsError
from aos.codecs.rows import from_dicts
from aos.infra.letters import at_places, chosen, headers_of, place_of, redrives, since
from aos.streams import encode
from aos.streams.dead_letters import BODY_BYTES_MAX, DeadLetters
from aos.streams.origins import ORIGIN, Origin
from aos.streams.processor import Raw
from tests.unit.given_edges import AT, arrow, plain, raw, rows_of, run

TOPIC = "aos.requests"
UTC = datetime.UTC


def letters_of(*raws: Raw) -> list[dict[str, Any]]:
    """What encode makes of messages, as the command reads it."""
    return placed(rows_of(run(encode.step, raws), "aos.dead-letters"))


def placed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"place": place_of(row)} for row in rows]


def refused_by(processor: str, found: Raw) -> list[dict[str, Any]]:
    """A letter of the shell, for a message that a step gave up on."""
    letters = DeadLetters(processor, ("default", "acme"))
    letters.refused(found, "AOS9001", "it fell")
    (output,) = letters.outputs()
    return placed(output.rows.to_pylist())


def test_filters_choose_by_processor_code_topic_tenant_and_time() -> None:
    letters = [*letters_of(raw(b"{", TOPIC, 1), raw(b"\xff", "aos.requests.acme", 2), raw({"a": 1}, TOPIC, 3)),
               *refused_by("admit", raw(b"x", "aos.outcomes", 4))]  # fmt: skip
    assert len(chosen(letters, {})) == 4
    for wanted, offsets in (
        ({"code": "AOS1007"}, [1]),
        ({"topic": "aos.requests.acme"}, [2]),
        ({"tenant": "acme"}, [2]),
        ({"processor": "admit"}, [4]),
        ({"processor": "encode", "topic": TOPIC}, [1, 3]),
        ({"since": datetime.datetime.fromtimestamp(AT / 1e6, UTC)}, [1, 2, 3, 4]),
        ({"since": datetime.datetime.fromtimestamp(AT / 1e6 + 1, UTC)}, []),
    ):
        assert sorted(letter["offset"] for letter in chosen(letters, wanted)) == offsets


def test_since_is_so_long_ago_or_a_time() -> None:
    now = datetime.datetime(2026, 1, 2, tzinfo=UTC)
    assert since("90m", now) == now - datetime.timedelta(minutes=90)
    assert since("1d", now) == datetime.datetime(2026, 1, 1, tzinfo=UTC)
    assert since("2026-01-01T10:00", now) == datetime.datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert since("2026-01-01T10:00+02:00", now) == datetime.datetime(2026, 1, 1, 8, tzinfo=UTC)
    with pytest.raises(SettingsError, match="AOS5002"):
        since("yesterday", now)


def test_what_is_sent_back_has_the_original_bytes_and_headers_and_its_place() -> None:
    letters = letters_of(
        raw(b"{no json", TOPIC, 17, {"mine": b"\x00\xff", "content-type": b"application/json"})
    )
    (back,) = redrives(letters, letters, {})
    assert (back.body, back.refused, back.rows) == (b"{no json", "", ())
    assert back.headers == {"mine": b"\x00\xff", "content-type": b"application/json"}
    assert back.origin == Origin(TOPIC, 0, 17)


def test_of_a_message_with_good_rows_only_the_bad_ones_are_sent_and_come_to_the_ids_they_would_have_had() -> (
    None
):
    body = plain({"text": ["a", None, "c", None], "priority": [1, 2, 1, 2], "id": ["x", "é", None, None]})
    letters = letters_of(raw(body, TOPIC, 17))
    assert letters == []  # readable: they are answered
    rows = [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    value = arrow("request", rows)
    dead = DeadLetters("encode", ("default",))
    found = raw(value, TOPIC, 17)
    dead.rows(found, {0: RecordError("AOS1005", "x"), 2: RecordError("AOS1004", "y")})
    letters = placed(dead.outputs()[0].rows.to_pylist())
    assert [letter["place"] for letter in letters] == [f"{TOPIC}/0/17:0", f"{TOPIC}/0/17:2"]
    (back,) = redrives(letters, letters, {})
    assert (back.rows, back.body) == ((0, 2), value)
    (one,) = redrives(
        letters, chosen(letters, {"code": "AOS1004"}), {}
    )  # the bytes are with the other letter
    assert (one.rows, one.body) == ((2,), value)
    again = run(encode.step, [raw(one.body, TOPIC, 90, {ORIGIN: one.origin.header()})])
    first = run(encode.step, [found])
    assert [e["request_id"] for e in rows_of(again, "aos.ledger")] == [
        rows_of(first, "aos.ledger")[2]["request_id"]
    ]


def test_what_was_sent_back_and_failed_again_stays_the_first_message() -> None:
    again = raw(b"x", TOPIC, 90, {ORIGIN: f"{TOPIC}/0/17:3".encode()})
    letters = refused_by("encode", again)
    (back,) = redrives(letters, letters, {})
    assert back.origin == Origin(TOPIC, 0, 17, (3,))
    assert back.headers == {}
    forged = refused_by("encode", raw(b"x", TOPIC, 90, {ORIGIN: b"aos.requests.acme/0/17"}))
    assert redrives(forged, forged, {})[0].origin == Origin(TOPIC, 0, 90)


def test_what_was_sent_back_before_is_not_sent_again_unless_other_rows_are_meant() -> None:
    letters = refused_by("encode", raw(b"x", TOPIC, 17))
    (back,) = redrives(letters, letters, {Origin(TOPIC, 0, 17): 95})
    assert "aos.requests/0/95" in back.refused
    rows = [letters[0] | {"row": row} for row in (1, 2)]
    assert redrives(rows, rows[:1], {Origin(TOPIC, 0, 17, (1,)): 95})[0].refused
    assert not redrives(rows, rows[1:], {Origin(TOPIC, 0, 17, (1,)): 95})[0].refused
    assert not redrives(letters, letters, {Origin(TOPIC, 1, 17): 95, Origin(TOPIC, 0, 18): 96})[0].refused


def test_what_cannot_be_sent_back_says_why() -> None:
    cases = [
        (raw(bytes(BODY_BYTES_MAX + 1), TOPIC), f"{BODY_BYTES_MAX} of {BODY_BYTES_MAX + 1} bytes"),
        (raw(b"x", TOPIC, headers={"a": bytes(5_000)}), "headers were cut"),
        (raw(b"x", "aos.tasks"), "written by AOS alone"),
        (raw(b"x", "aos.results"), "written by AOS alone"),
        (raw(b"x", "aos.heartbeats"), "sign of life"),
    ]
    for found, words in cases:
        letters = refused_by("encode", found)
        (back,) = redrives(letters, letters, {})
        assert words in back.refused
    whole = refused_by("encode", raw(bytes(BODY_BYTES_MAX), TOPIC))
    assert not redrives(whole, whole, {})[0].refused
    lost = [whole[0] | {"body": b"", "row": 3}]
    assert "no longer there" in redrives(lost, lost, {})[0].refused


def test_letters_are_found_by_place_with_or_without_the_row() -> None:
    (letter,) = refused_by("encode", raw(b"x", TOPIC, 17))
    rows = [letter | {"row": row, "place": f"{TOPIC}/0/17:{row}"} for row in (1, 2)]
    assert at_places(rows, [f"{TOPIC}/0/17"]) == rows
    assert at_places(rows, [f"{TOPIC}/0/17:2"]) == rows[1:]
    with pytest.raises(LookupError, match="18"):
        at_places(rows, [f"{TOPIC}/0/18"])


def test_a_letter_is_read_as_it_was_written() -> None:
    (letter,) = refused_by("encode", raw(b"\x00", TOPIC, 5, {"h": b"\x01"}))
    row = {name: value for name, value in letter.items() if name != "place"}
    (again,) = from_dicts("dead-letter", [row]).to_pylist()
    assert again == row
    assert headers_of(letter) == {"h": b"\x01"}
