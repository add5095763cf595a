"""encode: what a request becomes, what it does not become, and that neighbours go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.agents import encoding, identity, requests
from aos.codecs.schemas import RECORDS
from aos.codecs.wire import EDGE_BYTES_MAX
from aos.streams import encode
from aos.streams.dead_letters import BODY_BYTES_MAX, ROWS_NAMED_MAX
from aos.streams.processor import Raw, Step
from tests.unit import strategies
from tests.unit.given_edges import AT, DAY, arrow, outputs_of, plain, raw, rows_of, run, shown, views

TOPIC = "aos.requests"
FLOW = [
    {"name": "inspect", "require": ["look"]},
    {"name": "compress", "after": ["inspect"], "text": "own words"},
    {"name": "verify", "after": ["compress", "inspect"], "judges": "compress", "timeout_ms": 500},
]


def given_rows(*rows: dict[str, Any], topic: str = TOPIC) -> Step[Any]:
    return run(encode.step, [raw(arrow("request", rows), topic)])


def ledger(step: Step[Any]) -> list[dict[str, Any]]:
    return rows_of(step, "aos.ledger")


def tasks(step: Step[Any]) -> list[dict[str, Any]]:
    return rows_of(step, "aos.tasks")


def dead(step: Step[Any]) -> list[dict[str, Any]]:
    return rows_of(step, "aos.dead-letters")


def micros(time: Any) -> int:
    return int(time.timestamp() * 1_000_000 + 0.5)


# what a request becomes


def test_one_request_is_one_ledger_row_and_one_task() -> None:
    step = run(encode.step, [raw({"id": "a", "text": "Hello", "require": ["talk"], "deadline_ms": 5}, TOPIC)])
    (entry,), (task,) = ledger(step), tasks(step)
    assert entry["kind"] == "requested"
    assert entry["request_id"] == task["request_id"] == identity.request_id("default", "a")
    assert (entry["tenant"], entry["domain"], entry["round"], entry["home"]) == ("default", "default", 0, 0)
    assert micros(entry["requested_at"]) == AT
    assert micros(entry["deadline_at"]) == AT + 5000
    assert entry["priority"] == task["priority"] == 2
    (only,) = entry["steps"]
    assert (only["name"], only["text"], only["require"], only["after"], only["judges"]) == (
        "main", "Hello", ["talk"], [], -1,
    )  # fmt: skip
    assert (task["step"], task["step_name"], task["steps_count"], task["match_round"]) == (0, "main", 1, 0)
    assert task["require"] == ["talk"]
    vector = encoding.read(pa.array(["Hello"])).vectors[0].tolist()
    assert list(task["embedding"]) == only["embedding"] == vector


def test_arrow_and_json_say_the_same() -> None:
    row = {"id": "a", "text": "Hello", "payload": "x", "steps": FLOW, "priority": 1, "budget_cpu_us": 10}
    binary = row | {"payload": b"x"}
    assert shown(run(encode.step, [raw(row, TOPIC)])) == shown(given_rows(binary))


def test_a_workflow_becomes_numbered_steps_in_the_order_given() -> None:
    step = given_rows({"id": "a", "text": "file", "payload": b"bytes", "content_type": "x/y", "task_kind": "zip",
                       "require": ["any"], "pin": ["p"], "steps": FLOW})  # fmt: skip
    (entry,), found = ledger(step), tasks(step)
    inspect, compress, verify = entry["steps"]
    assert [one["name"] for one in entry["steps"]] == ["inspect", "compress", "verify"]
    assert [one["after"] for one in entry["steps"]] == [[], [0], [0, 1]]
    assert [one["judges"] for one in entry["steps"]] == [-1, -1, 1]
    assert [one["require"] for one in entry["steps"]] == [["look"], ["any"], ["any"]]
    assert [one["text"] for one in entry["steps"]] == ["file", "own words", "file"]
    assert all(
        (one["payload"], one["content_type"], one["pin"]) == (b"bytes", "x/y", ["p"])
        for one in entry["steps"]
    )
    assert [one["timeout_ms"] for one in entry["steps"]] == [None, None, 500]
    assert [(one["step"], one["step_name"], one["steps_count"]) for one in found] == [
        (0, "inspect", 3), (1, "compress", 3), (2, "verify", 3),
    ]  # fmt: skip
    assert inspect["embedding"] == verify["embedding"] != compress["embedding"]
    assert list(found[1]["embedding"]) == compress["embedding"]


def test_workflows_and_single_requests_mix() -> None:
    step = given_rows(
        {"text": "one"}, {"text": "two", "steps": FLOW}, {"payload": b"three"}, {"steps": FLOW[:2]}
    )
    assert [len(entry["steps"]) for entry in ledger(step)] == [1, 3, 1, 2]
    assert [one["text"] for entry in ledger(step) for one in entry["steps"]] == [
        "one", "two", "own words", "two", None, None, "own words",
    ]  # fmt: skip
    owners = [task["request_id"] for task in tasks(step)]
    assert owners == [
        e["request_id"] for e, n in zip(ledger(step), (1, 3, 1, 2), strict=True) for _ in range(n)
    ]


def test_an_own_payload_of_a_step_has_no_inherited_media_type() -> None:
    steps = [{"name": "a", "payload": b"own"}, {"name": "b"}]
    (entry,) = ledger(given_rows({"payload": b"x", "content_type": "x/y", "steps": steps}))
    assert [(one["payload"], one["content_type"]) for one in entry["steps"]] == [
        (b"own", None),
        (b"x", "x/y"),
    ]


def test_a_judge_comes_after_what_it_judges_without_saying_so() -> None:
    (entry,) = ledger(given_rows({"text": "t", "steps": [{"name": "b", "judges": "a"}, {"name": "a"}]}))
    assert [(one["after"], one["judges"]) for one in entry["steps"]] == [([1], 1), ([], -1)]


def test_a_tensor_is_the_embedding_and_the_payload_if_there_is_none() -> None:
    values = [float(n) for n in range(256)]
    step = given_rows(
        {"tensor": values, "tensor_shape": [16, 16]}, {"tensor": values, "payload": b"p", "text": "t"}
    )
    first, second = ledger(step)
    assert first["steps"][0]["payload"] == np.array(values, "<f4").tobytes()
    assert first["steps"][0]["content_type"] == f"{requests.TENSOR_TYPE}; dtype=float32; shape=16,16"
    assert second["steps"][0]["payload"] == b"p"
    for task in tasks(step):
        assert np.allclose(
            np.array(task["embedding"], float), np.array(values) / np.linalg.norm(values), atol=1e-3
        )


def test_a_tensor_of_another_size_is_projected() -> None:
    (task,) = tasks(given_rows({"tensor": [1.0] * 400}))
    assert np.linalg.norm(np.array(task["embedding"], float)) == pytest.approx(1, abs=0.02)


# identity, time, tenant, domain, home


def test_a_row_without_id_is_known_by_where_it_stood() -> None:
    value = arrow("request", [{"text": "a"}, {"text": "b", "id": ""}])
    step = run(encode.step, [raw(value, TOPIC, 7), raw({"text": "c"}, TOPIC, 8)])
    assert [entry["request_id"] for entry in ledger(step)] == [
        identity.request_id_at(TOPIC, 0, 7, 0), identity.request_id_at(TOPIC, 0, 7, 1),
        identity.request_id_at(TOPIC, 0, 8, 0),
    ]  # fmt: skip


def test_the_tenant_is_the_topics_and_a_domain_stays_inside_its_tenant() -> None:
    step = given_rows({"text": "a", "id": "x", "domain": "default"}, topic="aos.requests.acme")
    (entry,) = ledger(step)
    assert (entry["tenant"], entry["domain"]) == ("acme", "acme/default")
    assert entry["request_id"] == identity.request_id("acme", "x") != identity.request_id("default", "x")


@pytest.mark.parametrize(
    ("given", "fixed"), [(None, 0), (-DAY, -DAY), (5, 0), (DAY - 1, 0), (-7 * DAY, -7 * DAY)]
)
def test_clients_clocks_are_clamped(given: int | None, fixed: int) -> None:
    (entry,) = ledger(given_rows({"text": "a", "requested_at": None if given is None else AT + given}))
    assert micros(entry["requested_at"]) == AT + fixed
    assert entry["kind"] == "requested"


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_all_rows_of_a_request_go_to_its_home(partitions: int) -> None:
    rows = [{"id": str(n), "text": "t", "steps": FLOW if n % 3 else None} for n in range(40)]
    step = run(encode.step, [raw(arrow("request", [*rows, {"id": "bad"}]), TOPIC)], views(partitions))
    for topic in ("aos.ledger", "aos.tasks"):
        for output in outputs_of(step, topic):
            homes = [identity.home(one, partitions) for one in output.rows["request_id"].to_pylist()]
            assert homes == output.rows["home"].to_pylist() == [output.partition] * output.rows.num_rows
    assert len(tasks(step)) == sum(3 if n % 3 else 1 for n in range(40))
    assert len(ledger(step)) == 41


def test_tasks_of_a_request_stay_in_one_message() -> None:
    steps = [{"name": str(n)} for n in range(50)]
    step = given_rows(*({"id": str(n), "text": "t", "steps": steps} for n in range(40)))
    outputs = outputs_of(step, "aos.tasks")
    assert len(outputs) > 1
    assert sum(output.rows.num_rows for output in outputs) == 2000
    assert all(output.rows.num_rows <= encode.TASKS_A_MESSAGE for output in outputs)
    seen: set[bytes] = set()
    for output in outputs:
        ids = set(output.rows["request_id"].to_pylist())
        assert not ids & seen
        seen |= ids


# what is rejected: readable but wrong

NAMES = [f"name-{n:04}" for n in range(60)]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({}, "AOS2009"),
        ({"text": ""}, "AOS2009"),
        ({"require": ["a"], "tensor": [], "steps": []}, "AOS2009"),
        ({"text": "t", "priority": 4}, "AOS2010"),
        ({"text": "t", "priority": -1}, "AOS2010"),
        ({"text": "t", "budget_usd_micros": -1}, "AOS2010"),
        ({"text": "t", "budget_usd_micros": 2**62}, "AOS2010"),
        ({"text": "t", "budget_cpu_us": 0}, "AOS2010"),
        ({"text": "t", "deadline_ms": 0}, "AOS2010"),
        ({"text": "t", "deadline_ms": 2**62}, "AOS2010"),
        ({"text": "t", "policy": "best"}, "AOS2010"),
        ({"text": "t", "id": "i" * 257}, "AOS2010"),
        ({"text": "t", "domain": "d" * 129}, "AOS2010"),
        ({"text": "t", "traceparent": "d" * 129}, "AOS2010"),
        ({"text": "t", "pin": NAMES}, "AOS2010"),
        ({"text": "t", "require": ["c"] * 63}, "AOS2010"),
        ({"text": "t", "requested_at": AT + DAY + 1}, "AOS2012"),
        ({"text": "t", "requested_at": 253_370_764_800_000_000}, "AOS2012"),  # the year 9999
        ({"text": "t", "requested_at": AT - 7 * DAY - 1}, "AOS2012"),
        ({"text": "t", "requested_at": -(2**62)}, "AOS2012"),
        ({"text": "t" * 20_000, "payload": b"p" * 12_769}, "AOS2004"),
        ({"tensor": [0.5] * 8193}, "AOS2004"),
        ({"tensor": [1.0, 2.0], "tensor_shape": [3]}, "AOS1010"),
        ({"tensor": [1.0, 2.0], "tensor_shape": []}, "AOS1010"),
        ({"tensor": [1.0], "tensor_shape": [-1, -1]}, "AOS1010"),
        ({"tensor": [1.0], "tensor_shape": [2**40, 2**40]}, "AOS1010"),
        ({"text": "t", "tensor_shape": [2]}, "AOS1010"),
        ({"tensor": [1.0, float("nan")]}, "AOS1005"),
        ({"tensor": [1.0, float("inf")]}, "AOS1005"),
        ({"steps": [{"name": str(n)} for n in range(65)]}, "AOS2003"),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, "AOS2008"),
        ({"steps": [{"name": ""}]}, "AOS2010"),
        ({"steps": [{"name": "a", "after": ["b"]}]}, "AOS2002"),
        ({"steps": [{"name": "a", "judges": "b"}]}, "AOS2002"),
        ({"steps": [{"name": "a", "judges": "a"}]}, "AOS2001"),
        ({"steps": [{"name": "a", "judges": "b"}, {"name": "b", "after": ["a"]}]}, "AOS2001"),
        ({"steps": [{"name": "a", "after": ["a"]}]}, "AOS2001"),
        ({"steps": [{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}]}, "AOS2001"),
        ({"steps": [{"name": "a", "timeout_ms": 1}]}, "AOS2010"),
        ({"steps": [{"name": "a", "require": ["c"] * 63}]}, "AOS2010"),
        ({"steps": [{"name": "a", "pin": NAMES}]}, "AOS2010"),
        ({"text": "t" * 20_000, "steps": [{"name": "a", "payload": b"p" * 12_769}]}, "AOS2004"),
        ({"payload": b"p" * 32_000, "steps": [{"name": str(n)} for n in range(64)]}, "AOS2004"),
    ],
)
def test_a_request_that_is_readable_but_wrong_is_rejected_with_its_code(
    row: dict[str, Any], code: str
) -> None:
    step = given_rows({"text": "before", "id": "1"}, row, {"text": "after", "steps": FLOW, "id": "2"})
    first, last, *_ = sorted(
        (e for e in ledger(step) if e["kind"] == "requested"), key=lambda e: str(e["id"])
    )
    assert (first["id"], last["id"]) == ("1", "2")
    assert len(tasks(step)) == 4
    (rejected,) = (entry for entry in ledger(step) if entry["kind"] == "rejected")
    assert rejected["code"] == code
    assert rejected["message"]
    assert rejected["steps"] is None
    assert rejected["request_id"] == identity.request_id_at(TOPIC, 0, 0, 1) or row.get("id")
    assert micros(rejected["requested_at"]) == AT
    assert not dead(step)


@pytest.mark.parametrize("deadline", ["1000", "300"])
def test_a_json_number_out_of_range_is_answered_too(deadline: str) -> None:
    step = run(encode.step, [raw(b'{"id":"x","text":"t","priority":%s}' % deadline.encode(), TOPIC)])
    (rejected,) = ledger(step)
    assert (rejected["kind"], rejected["code"], rejected["id"]) == ("rejected", "AOS2010", "x")


def test_a_long_id_is_cut_in_the_rejection() -> None:
    (rejected,) = ledger(given_rows({"text": "t", "id": "i" * 100_000, "traceparent": "t" * 100_000}))
    assert len(rejected["id"]) == requests.ID_BYTES_MAX
    assert rejected["request_id"] == identity.request_id("default", "i" * 100_000)
    assert rejected["traceparent"] is None


def test_limits_are_settings() -> None:
    rows = [raw(arrow("request", [{"text": "t" * 20}, {"steps": FLOW}]), TOPIC)]
    found = ledger(run(encode.step, rows, views(payload_bytes_max=19, steps_max=2)))
    assert [entry["code"] for entry in found] == ["AOS2004", "AOS2003"]


# what never becomes a request


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "AOS1001"),
        (b"hello", "AOS1001"),
        (arrow("request", [{"text": "t"}])[:-300], "AOS1001"),
        (arrow("feedback", [{"id": "x", "score": 1.0}])[:100], "AOS1001"),
        (plain({"text": [5]}), "AOS1003"),
        (b'{"text": "t"', "AOS1007"),
        (b'{"txet": "t"}', "AOS1008"),
        (b'{"text": 5}', "AOS1003"),
        (b'{"tensor": [NaN]}', "AOS1007"),
        (b'{"text": "' + b"t" * EDGE_BYTES_MAX + b'"}', "AOS1002"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_request_are_a_dead_letter_with_origin_and_bytes(value: bytes, code: str) -> None:
    message = raw(value, TOPIC, 9, {"who": b"me"})
    step = run(
        encode.step,
        [raw({"text": "a"}, TOPIC, 8), message, raw(arrow("request", [{"text": "b"}]), TOPIC, 10)],
    )
    (letter,) = dead(step)
    assert letter["code"] == code
    assert (letter["topic"], letter["partition"], letter["offset"], letter["row"]) == (TOPIC, 0, 9, -1)
    assert letter["body"] == value[:BODY_BYTES_MAX]
    assert letter["body_size"] == len(value)
    assert letter["headers"] == '{"who": "bWU="}'
    assert (letter["tenant"], letter["processor"]) == ("default", "encode")
    assert len(tasks(step)) == 2


def test_rows_that_do_not_fit_are_dead_letters_beside_good_ones() -> None:
    value = plain({"id": ["a", "b", "c", "d"], "text": [b"good", b"\xff", b"fine", b"\xfe"]})
    step = run(encode.step, [raw(value, TOPIC, 3)])
    assert [(letter["row"], letter["code"], letter["body"]) for letter in dead(step)] == [
        (1, "AOS1003", value), (3, "AOS1003", b""),
    ]  # fmt: skip
    assert [entry["id"] for entry in ledger(step)] == ["a", "c"]


def test_many_bad_rows_do_not_make_as_many_dead_letters() -> None:
    step = run(encode.step, [raw(plain({"text": [b"\xff"] * 200}), TOPIC)])
    assert len(dead(step)) == ROWS_NAMED_MAX
    assert "136 further rows" in dead(step)[-1]["message"]


def test_the_topic_of_an_unknown_tenant_is_a_dead_letter_of_nobody() -> None:
    step = given_rows({"text": "t"}, topic="aos.requests.evil")
    (letter,) = dead(step)
    assert (letter["code"], letter["tenant"]) == ("AOS1013", "")
    assert not ledger(step)
    assert not tasks(step)


# the law of a row processor


def some_raws(count: int) -> list[Raw]:
    return [
        raw({"id": str(n), "text": f"text {n}"} if n % 3 == 0 else
            b"broken" if n % 3 == 1 else
            arrow("request", [{"text": f"a{n}", "steps": FLOW}, {}, {"id": f"b{n}", "payload": b"x"}]), TOPIC, n)
        for n in range(count)
    ]  # fmt: skip


@given(st.integers(0, 7))
@settings(deadline=None, max_examples=8)
def test_any_split_of_a_fetch_gives_the_same_rows(cut: int) -> None:
    raws = some_raws(7)
    whole = run(encode.step, raws)
    parts = [run(encode.step, part) for part in (raws[:cut], raws[cut:])]
    for topic in ("aos.tasks", "aos.ledger", "aos.dead-letters"):
        key = lambda row: (str(row.get("request_id")), str(row.get("step")), str(row.get("offset")))  # noqa: E731
        together = [row for part in parts for row in rows_of(part, topic)]
        assert sorted(together, key=key) == sorted(rows_of(whole, topic), key=key)


def test_the_same_messages_give_the_same_bytes() -> None:
    first, second = run(encode.step, some_raws(7)), run(encode.step, some_raws(7))
    assert all(a.rows.equals(b.rows) for a, b in zip(first.outputs, second.outputs, strict=True))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.batches(RECORDS["request"], 5))
def test_any_rows_a_request_allows_become_requests_or_rejections(batch: pa.RecordBatch) -> None:
    value = arrow("request", batch.to_pylist()) if batch.num_rows else arrow("request", [])
    step = run(encode.step, [raw(value, TOPIC)], views(4))
    assert len(ledger(step)) == batch.num_rows
    assert not dead(step)
    requested = {entry["request_id"] for entry in ledger(step) if entry["kind"] == "requested"}
    assert {task["request_id"] for task in tasks(step)} == requested


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6))
def test_a_graph_is_accepted_exactly_when_it_can_be_put_in_order(after: list[list[int]]) -> None:
    names = [str(n) for n in range(len(after))]
    wanted = [[str(n) for n in before] for before in after]
    found = requests.graph(names, list(wanted), [None] * len(names), 64)
    if any(n >= len(names) for before in after for n in before):
        assert found.code == "AOS2002"  # type: ignore[union-attr]
        return
    done: set[int] = set()
    for _ in names:
        done |= {n for n, before in enumerate(after) if set(before) <= done}
    assert isinstance(found, requests.Graph) == (len(done) == len(names))
