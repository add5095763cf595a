"""collect: trails, corrections and sightings become experiences."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams import collect
from aos.streams.processor import Batch, Views

START = 1_700_000_000_000_000


def views(partitions: int = 1, **settings: Any) -> Views:
    return Views(settings=Settings(**settings), partitions={"aos.experiences": partitions})


def trail(serial: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "tenant": "default", "request_id": serial.to_bytes(8, "little") * 2, "requested_at": START, "home": 0,
        "domain": "default", "round": 0, "kind": "attempt", "step": 0, "step_name": "only", "attempt": 1,
        "priority": 2, "agent": "a", "status": "ok", "score": 0.5, "judged": False, "cost_usd_micros": 7,
        "cpu_us": 8, "tokens": 9, "ready_at": START, "assigned_at": START + 10, "finished_at": START + 30,
        "latency_us": 20, "team": ["a"], "ignored": 0, "embedding": np.zeros(256), "surface": np.zeros(16),
        "model_version": 3, "settings_version": 0, "degraded": False, **more,
    }  # fmt: skip


def collected(
    rows: list[dict[str, Any]], topic: str = "aos.trails", record: str = "trail", **how: Any
) -> list[dict[str, Any]]:
    batch = Batch(topic, 0, 5, codec.from_dicts(record, rows))
    outputs = collect.step(None, batch, START, views(**how), 1).outputs
    for output in outputs:
        assert output.topic == "aos.experiences"
        assert output.rows.schema == codec.record("experience").schema
    return [{**row, "partition": output.partition} for output in outputs for row in output.rows.to_pylist()]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"degraded": True}, None),
        ({"status": "failed", "score": None}, None),
        ({"kind": "request", "agent": None, "surface": None, "embedding": None}, None),
        ({"kind": "ignored", "status": "ignored", "agent": None}, "ignored-answer"),
        ({"agent": None}, "agent-missing"),
        ({"surface": None, "embedding": None}, "features-missing"),
        ({"score": 1.5}, "score-out-of-range"),
        ({"score": -0.1}, "score-out-of-range"),
        ({"score": float("nan")}, "score-out-of-range"),
        ({"score": None}, "score-missing"),
        ({"latency_us": -1}, "negative-amount"),
        ({"ready_at": START + 11}, "negative-amount"),
        ({"cost_usd_micros": -1}, "negative-amount"),
    ],
)
def test_what_must_not_teach_is_kept_with_the_reason(change: dict[str, Any], reason: str | None) -> None:
    (row,) = collected([trail(**change)])
    assert row["quarantined"] == reason
    assert row["degraded"] == change.get("degraded", False)


@pytest.mark.parametrize(("status", "score"), [("failed", 0.0), ("timeout", 0.0), ("cancelled", None)])
def test_who_fails_scores_nothing_and_who_is_stopped_is_not_scored(status: str, score: float | None) -> None:
    assert collected([trail(status=status, score=None)])[0]["score"] == score


def test_waiting_is_from_ready_to_assigned() -> None:
    assert collected([trail()])[0]["waited_us"] == 10


def test_a_domain_stays_in_one_partition() -> None:
    rows = [trail(serial, domain=f"default/{serial % 5}") for serial in range(20)]
    found = collected(rows, partitions=3)
    assert len(found) == 20
    for row in found:
        assert row["partition"] == zlib.crc32(row["domain"].encode()) % 3
    assert len({row["partition"] for row in found}) > 1


def test_sampling_is_a_function_of_the_message() -> None:
    rows = [trail(serial) for serial in range(1000)]
    first = collected(rows, sample_rows_per_s=10_000)
    assert first == collected(rows, sample_rows_per_s=10_000)
    assert {row["sample_share"] for row in first} == {0.25}  # 1,000 rows in 25 ms are 40,000 a second
    assert 0.2 < np.mean([row["sampled"] for row in first]) < 0.3
    assert all(row["sampled"] for row in collected(rows[:16], sample_rows_per_s=2_000))


def test_another_attempt_is_drawn_anew() -> None:
    rows = [trail(7, attempt=attempt) for attempt in range(1, 401)]
    assert 0.35 < np.mean([row["sampled"] for row in collected(rows, sample_rows_per_s=8_000)]) < 0.65


def test_a_correction_names_its_step_and_teaches_when_in_range() -> None:
    given = {key: value for key, value in trail().items() if key in codec.record("correction").schema.names}
    rows = [{**given, "step_name": "check", "score": score, "given_at": START} for score in (0.3, 1.3)]
    right, wrong = collected(rows, "aos.corrections", "correction")
    assert (right["kind"], right["step"], right["step_name"], right["status"]) == (
        "correction",
        -2,
        "check",
        "corrected",
    )
    assert right["score"] == pytest.approx(0.3)
    assert right["quarantined"] is None
    assert right["judged"]
    assert wrong["quarantined"] == "score-out-of-range"


def test_a_foreign_event_is_experience_but_nobodys_reward() -> None:
    event = {
        "tenant": "t",
        "event_id": bytes(16),
        "case": "c",
        "activity": "ship",
        "time": START,
        "score": 0.2,
    }
    (row,) = collected([event], "aos.sightings", "sighting")
    assert (row["kind"], row["domain"], row["id"], row["step_name"], row["agent"]) == (
        "foreign",
        "t",
        "c",
        "ship",
        None,
    )
    assert row["quarantined"] is None


def test_nothing_in_nothing_out() -> None:
    batch = Batch("aos.trails", 0, 5, codec.empty("trail"))
    assert collect.step(None, batch, START, views(), 1).outputs == ()


def test_split_gives_the_same_rows_when_all_are_sampled() -> None:
    rows = [trail(serial) for serial in range(10)]
    assert collected(rows[:4]) + collected(rows[4:]) == collected(rows)


def test_input_is_not_changed() -> None:
    rows = codec.from_dicts("trail", [trail()])
    before = pa.RecordBatch.from_pydict(rows.to_pydict(), schema=rows.schema)
    collect.step(None, Batch("aos.trails", 0, 0, rows), START, views(), 1)
    assert rows.equals(before)
