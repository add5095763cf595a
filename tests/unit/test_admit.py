"""admit: what outsiders say goes where it belongs, in range and under the topic's tenant."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.agents import admission, identity
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import record_of
from aos.streams import admit
from aos.streams.processor import Raw, Step
from tests.unit import strategies
from tests.unit.given_edges import AT, DAY, arrow, outputs_of, plain, raw, rows_of, run, shown, views

TOPICS = (
    "aos.agents", "aos.heartbeats", "aos.outcomes", "aos.feedback", "aos.controls", "aos.observations", "aos.calls",
)  # fmt: skip
REGISTRATION: dict[str, Any] = {"service": "zip", "agent": "zip-1", "capabilities": ["zip"]}
HEARTBEAT: dict[str, Any] = {"service": "zip", "replica": "host-1"}
OUTCOME: dict[str, Any] = {"request_id": "00" * 16, "home": 0, "step": 0, "attempt": 1, "agent": "zip-1", "epoch": 3,
           "token": "11" * 16, "status": "ok", "payload": "done", "score": 0.5}  # fmt: skip
FEEDBACK: dict[str, Any] = {"id": "order-1", "score": 0.5}
CONTROL: dict[str, Any] = {"action": "cancel", "id": "order-1"}
OBSERVATION: dict[str, Any] = {"case": "c", "activity": "a", "time": AT // 1000 - 5}
CALL: dict[str, Any] = {"action": "delegate", "call": "0", "request_id": "00" * 16, "home": 0, "step": 0, "attempt": 1,
        "agent": "zip-1", "epoch": 3, "token": "11" * 16, "text": "a part"}  # fmt: skip
SHARE: dict[str, Any] = CALL | {
    "action": "share",
    "text": None,
    "context": '{"goal":"short"}',
    "context_version": 2,
}
GOOD: dict[str, dict[str, Any]] = dict(
    zip(TOPICS, (REGISTRATION, HEARTBEAT, OUTCOME, FEEDBACK, CONTROL, OBSERVATION, CALL), strict=True)
)


def said(topic: str, *found: dict[str, Any] | bytes) -> Step[Any]:
    return run(admit.step, [raw(one, topic, offset) for offset, one in enumerate(found)], views(4))


def dead(step: Step[Any]) -> list[dict[str, Any]]:
    return rows_of(step, "aos.dead-letters")


def micros(time: Any) -> int:
    return int(time.timestamp() * 1_000_000 + 0.5)


def test_registrations_heartbeats_and_fleet_controls_are_one_log() -> None:
    (agent,) = rows_of(said("aos.agents", REGISTRATION | {"capacity": 4}), "aos.fleet")
    assert (agent["kind"], agent["service"], agent["agent"], agent["capabilities"], agent["capacity"]) == (
        "registered", "zip", "zip-1", ["zip"], 4,
    )  # fmt: skip
    (beat,) = rows_of(
        said("aos.heartbeats", HEARTBEAT | {"agents": ["zip-1"], "busy": 2, "stopping": True}), "aos.fleet"
    )
    assert (beat["kind"], beat["replica"], beat["agents"], beat["busy"], beat["stopping"]) == (
        "beat", "host-1", ["zip-1"], 2, True,
    )  # fmt: skip
    (control,) = rows_of(
        said("aos.controls", {"action": "pause", "agent": "zip-1", "reason": "r"}), "aos.fleet"
    )
    assert (control["kind"], control["service"], control["agent"], control["action"], control["reason"]) == (
        "control", "", "zip-1", "pause", "r",
    )  # fmt: skip


def test_ten_thousand_agents_register_in_one_message() -> None:
    rows = [REGISTRATION | {"agent": f"a{n}"} for n in range(10_000)]
    step = run(admit.step, [raw(arrow("registration", rows), "aos.agents")])
    assert len(rows_of(step, "aos.fleet")) == 10_000


def test_outcomes_go_to_the_home_their_agent_echoes() -> None:
    step = said(
        "aos.outcomes", *(OUTCOME | {"home": home, "attempt": n + 1} for n, home in enumerate((3, 1, 3)))
    )
    found = {o.partition: o.rows["attempt"].to_pylist() for o in outputs_of(step, "aos.ledger")}
    assert found == {1: [2], 3: [1, 3]}
    entry = rows_of(step, "aos.ledger")[0]
    assert (entry["kind"], entry["token"], entry["payload"], entry["score"]) == (
        "outcome",
        b"\x11" * 16,
        b"done",
        0.5,
    )
    assert (entry["tenant"], entry["domain"], entry["round"], micros(entry["requested_at"])) == ("", "", 0, 0)


def test_an_output_that_is_too_large_is_a_failed_outcome() -> None:
    step = said("aos.outcomes", OUTCOME | {"payload": "x" * 32_769}, OUTCOME | {"payload": "x" * 32_768})
    large, fits = rows_of(step, "aos.ledger")
    assert (large["status"], large["code"], large["payload"], large["score"], large["retryable"]) == (
        "failed", "AOS2004", None, None, False,
    )  # fmt: skip
    assert (fits["status"], fits["code"], len(fits["payload"])) == ("ok", None, 32_768)
    assert not dead(step)


def test_an_agents_long_message_is_cut() -> None:
    (entry,) = rows_of(said("aos.outcomes", OUTCOME | {"message": "é" * 90_000}), "aos.ledger")
    assert 0 < len(entry["message"].encode()) <= admission.WORDS_BYTES_MAX


def test_feedback_is_a_correction_of_the_topics_tenant() -> None:
    step = said("aos.feedback.acme", FEEDBACK | {"step": "s", "domain": "d", "comment": "c"})
    (row,) = rows_of(step, "aos.corrections")
    one = identity.request_id("acme", "order-1")
    assert (row["tenant"], row["domain"], row["request_id"], row["id"], row["step_name"]) == (
        "acme", "acme/d", one, "order-1", "s",
    )  # fmt: skip
    assert micros(row["given_at"]) == micros(row["requested_at"]) == AT
    assert row["home"] == outputs_of(step, "aos.corrections")[0].partition == identity.home(one, 4)
    (named,) = rows_of(
        said("aos.feedback", {"request_id": "ab" * 16, "id": "x", "score": 1}), "aos.corrections"
    )
    assert named["request_id"] == b"\xab" * 16


def test_a_cancel_without_home_is_told_to_every_partition() -> None:
    step = said(
        "aos.controls", CONTROL, CONTROL | {"home": 2, "id": "order-2", "tenant": "acme", "reason": "r"}
    )
    by_partition = {o.partition: o.rows["id"].to_pylist() for o in outputs_of(step, "aos.ledger")}
    assert by_partition == {0: ["order-1"], 1: ["order-1"], 2: ["order-1", "order-2"], 3: ["order-1"]}
    assert all(
        row["home"] == o.partition for o in outputs_of(step, "aos.ledger") for row in o.rows.to_pylist()
    )
    last = rows_of(step, "aos.ledger")[3]
    assert (last["kind"], last["tenant"], last["request_id"], last["message"]) == (
        "cancel", "acme", identity.request_id("acme", "order-2"), "r",
    )  # fmt: skip


def test_controls_of_requests_and_of_the_fleet_mix() -> None:
    step = said(
        "aos.controls", {"action": "drain", "service": "zip"}, {"action": "redrive", "id": "x", "home": 0}
    )
    assert [row["action"] for row in rows_of(step, "aos.fleet")] == ["drain"]
    (order,) = rows_of(step, "aos.ledger")
    assert (order["kind"], order["requested_at"].timestamp()) == ("redrive", AT / 1e6)


def test_observations_keep_a_case_in_one_partition() -> None:
    step = said("aos.observations", *(OBSERVATION | {"case": str(n % 5)} for n in range(20)))
    where: dict[str, set[int]] = {}
    for output in outputs_of(step, "aos.sightings"):
        for case in output.rows["case"].to_pylist():
            where.setdefault(case, set()).add(output.partition)
    assert len(where) == 5
    assert all(len(partitions) == 1 for partitions in where.values())
    assert len({row["event_id"] for row in rows_of(step, "aos.sightings")}) == 20


@pytest.mark.parametrize(("given", "kept"), [(-DAY, -DAY), (5000, 0), (-20_000 * DAY, -20_000 * DAY)])
def test_times_of_observations_are_clamped(given: int, kept: int) -> None:
    (row,) = rows_of(said("aos.observations", OBSERVATION | {"time": (AT + given) // 1000}), "aos.sightings")
    assert micros(row["time"]) == AT + kept


@pytest.mark.parametrize(
    ("topic", "change", "code"),
    [
        ("aos.agents", {"service": "with space"}, "AOS1014"),
        ("aos.agents", {"service": ""}, "AOS1014"),
        ("aos.agents", {"service": "s" * 129}, "AOS1014"),
        ("aos.agents", {"agent": ""}, "AOS1014"),
        ("aos.agents", {"agent": "a" * 129}, "AOS1014"),
        ("aos.agents", {"cell": ""}, "AOS1014"),
        ("aos.agents", {"capabilities": [""]}, "AOS1014"),
        ("aos.agents", {"capabilities": ["c"] * 65}, "AOS1014"),
        ("aos.agents", {"capacity": 0}, "AOS1014"),
        ("aos.agents", {"price_usd_micros": -1}, "AOS1014"),
        ("aos.agents", {"timeout_ms": 1}, "AOS1014"),
        ("aos.agents", {"description": "d" * 5000}, "AOS1014"),
        ("aos.heartbeats", {"service": "é"}, "AOS1014"),
        ("aos.heartbeats", {"replica": ""}, "AOS1014"),
        ("aos.heartbeats", {"busy": -1}, "AOS1014"),
        ("aos.outcomes", {"home": 4}, "AOS1014"),
        ("aos.outcomes", {"home": -1}, "AOS1014"),
        ("aos.outcomes", {"step": -1}, "AOS1014"),
        ("aos.outcomes", {"attempt": 0}, "AOS1014"),
        ("aos.outcomes", {"status": "done"}, "AOS1014"),
        ("aos.outcomes", {"score": 1.5}, "AOS1014"),
        ("aos.outcomes", {"score": -0.1}, "AOS1014"),
        ("aos.outcomes", {"progress": 2}, "AOS1014"),
        ("aos.outcomes", {"cost_usd_micros": -1}, "AOS1014"),
        ("aos.outcomes", {"cpu_us": 2**62}, "AOS1014"),
        ("aos.outcomes", {"code": "c" * 129}, "AOS1014"),
        ("aos.outcomes", {"token": "11"}, "AOS1014"),
        ("aos.outcomes", {"token": None}, "AOS1004"),
        ("aos.feedback", {"id": ""}, "AOS1004"),
        ("aos.feedback", {"id": None}, "AOS1004"),
        ("aos.feedback", {"score": 1.01}, "AOS1014"),
        ("aos.feedback", {"score": None}, "AOS1004"),
        ("aos.feedback", {"unknown": 1}, "AOS1008"),
        ("aos.controls", {"action": "explode"}, "AOS1014"),
        ("aos.controls", {"id": None}, "AOS1004"),
        ("aos.controls", {"home": 4}, "AOS1014"),
        ("aos.controls", {"tenant": "evil"}, "AOS1014"),
        ("aos.controls", {"action": "pause"}, "AOS1004"),
        ("aos.controls", {"action": "approve", "strategy": "s"}, "AOS1014"),
        ("aos.controls", {"action": "reject", "strategy": "s"}, "AOS1014"),
        ("aos.observations", {"case": ""}, "AOS1014"),
        ("aos.observations", {"time": "9999-01-01T00:00:00Z"}, "AOS1012"),
        ("aos.observations", {"time": -1}, "AOS1012"),
        ("aos.observations", {"score": 3}, "AOS1014"),
        ("aos.calls", {"action": "hope"}, "AOS1014"),
        ("aos.calls", {"call": ""}, "AOS1014"),
        ("aos.calls", {"call": "c" * 65}, "AOS1014"),
        ("aos.calls", {"home": 4}, "AOS1014"),
        ("aos.calls", {"attempt": 0}, "AOS1014"),
        ("aos.calls", {"token": None}, "AOS1004"),
        ("aos.calls", {"action": "share"}, "AOS1014"),
        ("aos.calls", SHARE | {"context": "[1]"}, "AOS1014"),
        ("aos.calls", SHARE | {"context": '{"a": NaN}'}, "AOS1014"),
        ("aos.calls", SHARE | {"context": "{"}, "AOS1014"),
        ("aos.calls", SHARE | {"context": '{"a": 1e999}'}, "AOS1014"),
        ("aos.calls", SHARE | {"context": '{"a":' + "[" * 40 + "]" * 40 + "}"}, "AOS1014"),
        ("aos.calls", SHARE | {"context": '{"a":' + "[" * 8000}, "AOS1014"),
        ("aos.calls", SHARE | {"context": '{"a":"' + "x" * 8192 + '"}'}, "AOS1014"),
        ("aos.calls", SHARE | {"context_version": -1}, "AOS1014"),
    ],
)
def test_what_is_out_of_range_is_a_dead_letter_and_its_neighbours_go_on(
    topic: str, change: dict[str, Any], code: str
) -> None:
    good = GOOD[topic] | ({"home": 0} if topic == "aos.controls" else {})
    step = said(topic, good, GOOD[topic] | change, good)
    (letter,) = dead(step)
    assert (letter["code"], letter["topic"], letter["offset"], letter["processor"]) == (
        code,
        topic,
        1,
        "admit",
    )
    assert letter["body"]
    assert sum(o.rows.num_rows for o in step.outputs if o.topic != "aos.dead-letters") == 2


@pytest.mark.parametrize(
    ("topic", "columns"),
    [
        ("aos.outcomes", {"score": [0.5, float("nan"), 1.0]}),
        ("aos.outcomes", {"progress": [0.5, float("inf"), 1.0]}),
        ("aos.feedback", {"score": [0.5, float("nan"), 1.0]}),
        ("aos.observations", {"score": [0.5, float("-inf"), 1.0]}),
    ],
)
def test_a_number_that_is_not_finite_is_named_by_its_row(topic: str, columns: dict[str, Any]) -> None:
    row = {key: value for key, value in GOOD[topic].items() if key not in columns}
    if topic == "aos.outcomes":
        row |= {"request_id": bytes(16), "token": bytes(16), "payload": b"p"}
    table = {key: [value] * 3 for key, value in row.items()} | columns
    if topic == "aos.observations":
        table["time"] = pa.array([AT] * 3, pa.timestamp("us"))
    step = said(topic, plain(table))
    (letter,) = dead(step)
    assert (letter["code"], letter["row"]) == ("AOS1005", 1)
    assert sum(o.rows.num_rows for o in step.outputs if o.topic != "aos.dead-letters") == 2


@pytest.mark.parametrize("topic", [t for t in TOPICS if t in ("aos.feedback", "aos.observations")])
def test_an_unknown_tenants_topic_is_dead(topic: str) -> None:
    (letter,) = dead(said(f"{topic}.evil", GOOD[topic]))
    assert (letter["code"], letter["tenant"]) == ("AOS1013", "")


@pytest.mark.parametrize("topic", TOPICS)
def test_broken_bytes_are_dead_letters_on_every_topic(topic: str) -> None:
    step = said(topic, b"broken", b"{", b'{"no_such_key":1}', GOOD[topic])
    assert [letter["code"] for letter in dead(step)] == ["AOS1001", "AOS1007", "AOS1008"]
    assert any(output.topic != "aos.dead-letters" for output in step.outputs)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_row_is_admitted_or_named(data: st.DataObject) -> None:
    topic = data.draw(st.sampled_from(TOPICS))
    batch = data.draw(strategies.batches(record_of(topic), 5))
    step = run(admit.step, [raw(arrow(record_of(topic).name, batch.to_pylist()), topic)], views(1))
    admitted = sum(o.rows.num_rows for o in step.outputs if o.topic != "aos.dead-letters")
    assert admitted + len(dead(step)) == batch.num_rows
    for topic_written in ("aos.fleet", "aos.ledger", "aos.corrections", "aos.sightings"):
        rows_of(step, topic_written)


@pytest.mark.parametrize("topic", TOPICS)
def test_any_split_of_a_fetch_gives_the_same_rows(topic: str) -> None:
    messages: list[dict[str, Any] | bytes] = [GOOD[topic], b"broken", GOOD[topic], b"{}"]
    raws: list[Raw] = [raw(one, topic, n) for n, one in enumerate(messages)]
    whole = run(admit.step, raws, views(1))
    parts = [run(admit.step, [one], views(1)) for one in raws]
    for written in ("aos.fleet", "aos.ledger", "aos.corrections", "aos.sightings", "aos.dead-letters"):
        assert rows_of(whole, written) == [row for part in parts for row in rows_of(part, written)]
    assert shown(whole) == shown(run(admit.step, raws, views(1)))


def test_every_column_of_a_registration_reaches_the_fleet() -> None:
    fleet = {field.name for field in RECORDS["fleet-entry"].fields}
    assert {field.name for field in RECORDS["registration"].fields} <= fleet


def test_a_child_that_is_asked_for_goes_to_its_parents_home_as_one_step_with_all_that_match_needs() -> None:
    columns = {
        "home": 2,
        "require": ["sum"],
        "task_kind": "adding",
        "deadline_ms": 5_000,
        "budget_usd_micros": 9,
    }
    (row,) = rows_of(said("aos.calls", CALL | columns), "aos.ledger")
    assert (row["kind"], row["home"], row["id"], row["attempt"], row["token"]) == (
        "delegated", 2, "0", 1, bytes.fromhex("11" * 16),
    )  # fmt: skip
    assert (micros(row["deadline_at"]), row["budget_usd_micros"], row["task_kind"]) == (
        AT + 5_000_000,
        9,
        "adding",
    )
    (step,) = row["steps"]
    assert (step["text"], step["require"], step["after"], step["judges"]) == ("a part", ["sum"], [], -1)
    assert sum(value * value for value in step["embedding"]) == pytest.approx(1, abs=1e-2)
    assert (row["code"], row["tenant"]) == (None, "")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"text": None}, "AOS2009"),
        ({"text": "x" * 40_000}, "AOS2004"),
        ({"deadline_ms": 0}, "AOS2010"),
        ({"budget_usd_micros": -1}, "AOS2010"),
        ({"require": ["c"] * 63}, "AOS2010"),
    ],
)
def test_a_child_that_cannot_be_is_no_dead_letter_because_its_agent_waits(
    change: dict[str, Any], code: str
) -> None:
    (row,) = rows_of(said("aos.calls", CALL | change), "aos.ledger")
    assert (row["kind"], row["code"], row["steps"]) == ("delegated", code, None)
    assert row["message"]


def test_calls_of_both_kinds_keep_their_order() -> None:
    found = rows_of(
        said("aos.calls", SHARE, CALL, SHARE | {"call": "1"}, CALL | {"text": None}), "aos.ledger"
    )
    assert [row["kind"] for row in found] == ["shared", "delegated", "shared", "delegated"]
    assert [(row["payload"], row["context_version"]) for row in found[::2]] == [(b'{"goal":"short"}', 2)] * 2
    assert [row["code"] for row in found[1::2]] == [None, "AOS2009"]
