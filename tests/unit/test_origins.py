"""A message that is sent back from a dead letter stays the request it was, and nobody can pretend to be another's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents import identity
from aos.streams import admit, encode
from aos.streams.origins import ORIGIN, Origin, parse
from aos.streams.processor import Raw, Step
from tests.unit.given_edges import arrow, raw, rows_of, run, shown, views

TOPIC = "aos.requests"


def came_again(value: Any, header: str | bytes, topic: str = TOPIC, offset: int = 90) -> Raw:
    said = header.encode() if isinstance(header, str) else header
    return raw(value, topic, offset, {ORIGIN: said})


def ids(step: Step[Any]) -> list[bytes]:
    return [entry["request_id"] for entry in rows_of(step, "aos.ledger")]


def dead(step: Step[Any]) -> list[dict[str, Any]]:
    return rows_of(step, "aos.dead-letters")


@given(st.builds(Origin, st.just(TOPIC), st.integers(0, 255), st.integers(0, 10**18 - 1),
                 st.lists(st.integers(0, 16_383), max_size=64).map(tuple)))  # fmt: skip
def test_what_a_header_says_is_read_again(origin: Origin) -> None:
    assert parse(origin.header()) == origin


@given(st.binary(max_size=60))
def test_what_has_not_the_form_is_no_origin_and_nothing_is_raised(header: bytes) -> None:
    found = parse(header)
    assert found is None or parse(found.header()) == found


def test_a_request_that_comes_again_is_what_it_would_have_been_at_its_first_place() -> None:
    rows = arrow("request", [{"text": "one"}, {"text": "two"}, {"id": "own", "text": "three"}])
    first = run(encode.step, [raw(rows, TOPIC, 17)])
    again = run(encode.step, [came_again(rows, f"{TOPIC}/0/17")])
    assert shown(again) == shown(first)
    assert ids(again)[0] == identity.request_id_at(TOPIC, 0, 17, 0)
    assert ids(run(encode.step, [raw(rows, TOPIC, 90)]))[0] != ids(again)[0]


def test_only_the_rows_that_are_named_come_again_with_their_own_numbers() -> None:
    rows = arrow("request", [{"text": str(n)} for n in range(4)])
    other = raw({"text": "other"}, TOPIC, 91)
    again = run(encode.step, [came_again(rows, f"{TOPIC}/0/17:1,3"), other])
    assert ids(again) == [
        *(identity.request_id_at(TOPIC, 0, 17, row) for row in (1, 3)), identity.request_id_at(TOPIC, 0, 91, 0),
    ]  # fmt: skip
    assert not dead(again)


def test_what_is_still_wrong_is_a_dead_letter_of_the_first_place() -> None:
    (letter,) = dead(run(encode.step, [came_again(b"{", f"{TOPIC}/0/17")]))
    assert (letter["code"], letter["offset"]) == ("AOS1007", 17)


@pytest.mark.parametrize(
    "header",
    [
        "aos.requests.acme/0/17",  # another's topic
        "aos.requests/1/17",  # another partition
        "aos.requests/0/90",  # itself
        "aos.requests/0/91",  # what is still to come
        "aos.requests/0/-1",
        "aos.requests/0/17:",
        "aos.requests/0/17:1,",
        "aos.requests/0/17 ",
        "17",
        b"",
        b"\xff" * 2_000,
        "aos.requests/0/17:5",  # a row that is not there
        "aos.requests/0/17:0,5",  # nor is one of two
    ],
)
def test_a_header_that_does_not_fit_makes_no_request_and_harms_no_neighbour(header: str | bytes) -> None:
    good = raw({"text": "good"}, TOPIC, 91)
    step = run(encode.step, [came_again({"text": "x"}, header), good])
    assert ids(step) == [identity.request_id_at(TOPIC, 0, 91, 0)]
    (letter,) = dead(step)
    assert letter["code"] == "AOS1014"
    assert ORIGIN in letter["message"]


def test_a_tenant_names_messages_of_its_own_topic_only() -> None:
    mine = "aos.requests.acme"
    assert ids(run(encode.step, [came_again({"text": "x"}, f"{mine}/0/17", mine)])) == [
        identity.request_id_at(mine, 0, 17, 0)
    ]
    forged = run(encode.step, [came_again({"text": "x"}, f"{TOPIC}/0/17", mine)])
    assert ids(forged) == []
    assert [letter["tenant"] for letter in dead(forged)] == ["acme"]


def test_an_observation_that_comes_again_keeps_its_event_id() -> None:
    topic, said = "aos.observations", {"case": "a", "activity": "b", "time": 1_000}
    first = run(admit.step, [raw(said, topic, 17)])
    again = run(admit.step, [came_again(said, f"{topic}/0/17", topic)], views())
    assert rows_of(first, "aos.sightings") == rows_of(again, "aos.sightings") != []
