"""store: logs become the rows of SQL tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS
from aos.streams import store, store_values
from aos.streams.processor import Batch, Views
from aos.streams.store_tables import TABLES
from tests.unit.given_store import (
    START,
    common,
    decision,
    experience,
    ledger_step,
    messages,
    request_id,
    requested,
    world,
)


def taken(*given: tuple[str, list[dict[str, Any]]], payloads: bool = False) -> dict[str, pa.Table]:
    """The rows of some messages, each (topic, rows), in this order."""
    state = store.initial(0)
    views = Views(settings=Settings(store_payloads=payloads))
    for offset, (topic, dicts) in enumerate(given):
        rows = codec.from_dicts(TOPICS[topic].record, dicts)
        state = store.step(state, Batch(topic, 0, offset, rows), START, views, 0).state
    return store.take(state)


def test_store_reads_only_topics_that_exist() -> None:
    assert set(store.READS) <= set(TOPICS)


def test_a_task_becomes_one_request_one_decision_one_attempt_and_one_result() -> None:
    ends = [experience(1), experience(1, "request")]
    found = taken(("aos.ledger", [requested(1)]), ("aos.decisions", [decision(1)]), ("aos.experiences", ends))
    assert {name: rows.num_rows for name, rows in found.items()} == {
        "request": 1, "decision": 1, "attempt": 1, "result": 1,
    }  # fmt: skip
    assert found["request"].column("step_names").to_pylist() == [["only"]]
    assert found["decision"].column("candidate_agents").to_pylist() == [["ann", "bob", "cid", "dee"]]
    assert found["result"].column("attempts").to_pylist() == [1]


def test_ledger_rows_of_other_kinds_are_left_out() -> None:
    other = [
        common(2) | {"kind": kind} for kind in ("planned", "assigned", "refused", "outcome", "cancel", "tick")
    ]
    assert taken(("aos.ledger", other)) == {}


def test_a_refused_request_has_a_row_although_it_has_no_steps() -> None:
    rows = taken(("aos.ledger", [common(3) | {"kind": "rejected", "code": "AOS2001", "message": "a cycle"}]))
    assert rows["request"].select(["kind", "steps_count", "step_names", "text", "code"]).to_pylist() == [
        {"kind": "rejected", "steps_count": 0, "step_names": [], "text": None, "code": "AOS2001"}
    ]


def test_the_first_of_a_repeated_request_id_stays_whatever_time_it_brings() -> None:
    later = requested(1, requested_at=START + 99)
    rows = taken(("aos.ledger", [requested(1), later]), ("aos.ledger", [later]))["request"]
    assert rows.num_rows == 1
    assert rows.column("requested_at").cast(pa.int64()).to_pylist() == [START + 700_000]


def test_steps_of_many_requests_keep_to_their_requests() -> None:
    two = [ledger_step("a", "read"), ledger_step("b", None, text=None)]
    refused = common(5) | {"kind": "rejected"}
    rows = taken(("aos.ledger", [requested(4, steps=two), refused, requested(6)]))["request"]
    assert rows.column("step_names").to_pylist() == [["a", "b"], [], ["only"]]
    assert rows.column("step_kinds").to_pylist() == [["read", ""], [], ["read"]]
    assert rows.column("text").to_pylist() == ["please read", None, "please read"]


def test_corrections_foreign_events_and_ignored_answers_are_notes() -> None:
    kinds = [experience(n, kind, agent=None) for n, kind in enumerate(("correction", "foreign", "ignored"))]
    rows = taken(("aos.experiences", kinds))
    assert set(rows) == {"note"}
    assert rows["note"].column("kind").to_pylist() == ["correction", "foreign", "ignored"]
    assert rows["note"].column("agent_key").to_pylist() == ["", "", ""]


def test_a_nul_byte_becomes_a_replacement_character_in_texts_and_arrays() -> None:
    rows = taken(("aos.experiences", [experience(1, message="a\x00b", team=["x\x00", "y"])]))["attempt"]
    assert rows.column("message").to_pylist() == ["a\ufffdb"]
    assert rows.column("team").to_pylist() == [["x\ufffd", "y"]]


def test_long_names_and_texts_are_cut_to_what_an_index_and_a_reader_can_hold() -> None:
    long = experience(1, agent="ä" * 5000, message="m" * 20_000, team=["t" * 500] * 2000)
    rows = taken(("aos.experiences", [long]))["attempt"].to_pylist()[0]
    assert rows["agent"] == "ä" * store_values.NAME_CHARS_MAX
    assert len(rows["message"]) == store_values.TEXT_CHARS_MAX
    assert len(rows["team"]) == store_values.ITEMS_MAX
    assert {len(name) for name in rows["team"]} == {store_values.NAME_CHARS_MAX}


@pytest.mark.parametrize(
    ("given_us", "kept_us"), [(-(2**62), 0), (2**62, store_values.TIME_US_MAX), (START, START)]
)
def test_times_that_would_make_odd_chunks_are_clamped(given_us: int, kept_us: int) -> None:
    rows = taken(("aos.experiences", [experience(1, requested_at=given_us)]))["attempt"]
    assert rows.column("requested_at").cast(pa.int64()).to_pylist() == [kept_us]


def test_payloads_and_whole_texts_come_only_when_asked_for() -> None:
    long = "w" * 900
    asked = requested(1, steps=[ledger_step(text=long), ledger_step("b", payload=b"in", text=long)])
    answer = common(1) | {"kind": "outcome", "step": 1, "attempt": 1, "agent": "ann", "payload": b"out"}
    without = taken(("aos.ledger", [asked, answer]))
    assert set(without) == {"request"}
    assert without["request"].column("text").to_pylist() == [long[: store.ASKED_CHARS_MAX]]
    rows = taken(("aos.ledger", [asked, answer]), payloads=True)
    assert rows["request"].column("text").to_pylist() == [long]
    assert [(r["direction"], r["step"], r["attempt"], r["body"]) for r in rows["payload"].to_pylist()] == [
        ("in", 1, 0, b"in"),
        ("out", 1, 1, b"out"),
    ]


def test_answers_alone_are_payloads_without_requests() -> None:
    answer = common(1) | {"kind": "outcome", "step": 0, "attempt": 1, "agent": "ann", "payload": b"out"}
    assert set(taken(("aos.ledger", [answer]), payloads=True)) == {"payload"}


def test_dead_letters_keep_their_size_but_not_their_bytes() -> None:
    letter = {
        "tenant": "default", "processor": "encode", "code": "AOS1001", "message": "no", "topic": "aos.requests",
        "partition": 0, "offset": 7, "row": -1, "body": b"secret", "body_size": 6, "appended_at": START,
    }  # fmt: skip
    kept = taken(("aos.dead-letters", [letter]))["dead_letter"].to_pylist()[0]
    assert (kept["body"], kept["body_size"]) == (None, 6)
    assert (
        taken(("aos.dead-letters", [letter]), payloads=True)["dead_letter"].to_pylist()[0]["body"]
        == b"secret"
    )


def pattern(name: str, version: int, domain: str = "d") -> dict[str, Any]:
    return {
        "domain": domain, "pattern": name, "kind": "pair", "members": ["a", "b"], "support": 3, "score": 0.5,
        "baseline": 0.4, "effect": 0.1, "error": 0.1, "persistence": 0.0, "window_from": START, "window_to": START,
        "version": version,
    }  # fmt: skip


def test_the_last_message_of_a_view_replaces_all_rows_of_its_key() -> None:
    old, new, other = [pattern("x", 1), pattern("y", 1)], [pattern("y", 2)], [pattern("x", 1, "e")]
    rows = taken(("aos.patterns", old), ("aos.patterns", other), ("aos.patterns", new))["pattern"]
    got = sorted((r["domain"], r["pattern"], r["version"], r["log_offset"]) for r in rows.to_pylist())
    assert got == [("d", "y", 2, 2), ("e", "x", 1, 1)]


def test_take_empties_the_state() -> None:
    state = store.initial(0)
    store.add(state, "aos.ledger", 0, 0, codec.from_dicts("entry", [requested(1)]))
    assert store.take(state)
    assert store.take(state) == {}


def test_no_message_makes_no_table() -> None:
    assert store.take(store.initial(0)) == {}
    state = store.initial(0)
    store.add(state, "aos.experiences", 0, 0, codec.empty("experience"))
    assert store.take(state) == {}


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 60), again=st.lists(st.integers(0, 10), max_size=6))
def test_any_split_into_messages_and_any_repetition_give_the_same_rows(size: int, again: list[int]) -> None:
    logs = world(20)
    whole, parts = store.initial(0), store.initial(0)
    for topic, offset, rows in messages(logs, 10_000):
        store.add(whole, topic, 0, offset, rows)
    given_messages = messages(logs, size)
    for topic, offset, rows in [*given_messages, *(given_messages[i % len(given_messages)] for i in again)]:
        store.add(parts, topic, 0, offset, rows)
    expected, found = store.take(whole), store.take(parts)
    assert {name: rows.to_pylist() for name, rows in found.items()} == {
        name: rows.to_pylist() for name, rows in expected.items()
    }


def test_every_key_and_time_is_a_column_of_its_table() -> None:
    for table in TABLES.values():
        names = {column.name for column in table.columns}
        assert {*table.key, *table.once, *table.replaced_by} <= names, table.name
        assert table.time is None or table.key[0] == table.time, f"{table.name}: keys are time first"
        assert all(column.doc for column in table.columns), table.name


def test_request_ids_stay_sixteen_bytes() -> None:
    rows = taken(("aos.experiences", [experience(9)]))["attempt"]
    assert rows.column("request_id").to_pylist() == [request_id(9)]


def test_keys_that_differ_only_in_their_texts_are_told_apart() -> None:
    cells = [decision(1, cell="a"), decision(1, cell="b"), decision(1, cell="a", epoch=7), decision(2)]
    rows = taken(("aos.decisions", cells))["decision"]
    assert rows.column("cell").to_pylist() == ["a", "b", decision(2)["cell"]]
