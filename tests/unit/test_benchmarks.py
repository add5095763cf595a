"""The benchmarks' own arithmetic: what is loaded, how latency and loss are counted, what the history holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aos.codecs import rows, wire
from aos.streams.topology import PROCESSORS
from benchmarks.harness import Figure, facts, percentiles, record
from benchmarks.pipeline.stand import Outcome, rates, steps_of
from benchmarks.pipeline.verdict import backlog, figures, judge
from benchmarks.pipeline.workload import (
    CAPABILITIES,
    TENANTS,
    TEXT_LENGTH,
    Load,
    is_workflow,
    messages,
    requests,
)
from benchmarks.processor import rows as one
from benchmarks.steps import run as steps
from benchmarks.usage import Cores, Sample, Used, between

START = 1_790_000_000.0


def test_a_load_is_the_same_bytes_every_time_and_others_for_another_seed() -> None:
    load = Load("same", 100, 1)
    assert list(messages(load, 1)) == list(messages(load, 1))
    assert list(messages(load, 1)) != list(messages(Load("same", 100, 1, seed=2), 1))


@pytest.mark.parametrize("size", [1, 7, 128])
def test_every_request_is_sent_once_whatever_the_rows_a_message(size: int) -> None:
    load = Load("all", 1_000, 2, rows=size)
    ids = [
        id
        for producer in range(load.producers)
        for ready in messages(load, producer)
        for id in wire.decode(*ready.at(START), rows.record("request")).column("id").to_pylist()
    ]
    assert sorted(ids) == [f"all-{number:08d}" for number in range(load.total)]


def test_one_request_in_ten_is_a_workflow_of_three_steps_and_every_tenant_has_some() -> None:
    load = Load("mix", 1_000, 2)
    found = dict.fromkeys(TENANTS, 0)
    for message in range(load.messages):
        (row,) = requests(load, message)
        assert is_workflow(message) == ("steps" in row)
        assert len(row.get("steps", [0, 0, 0])) == 3
        found[TENANTS[message % len(TENANTS)]] += "steps" in row
    assert sum(found.values()) == load.total / 10
    assert min(found.values()) > 0
    assert steps_of(load) == load.total * 1.2


def test_texts_are_distinct_within_their_lengths_and_all_capabilities_are_asked_for() -> None:
    asked = [row for message in range(500) for row in requests(Load("texts", 500, 1), message)]
    texts = [row["text"] for row in asked]
    assert len(set(texts)) == len(texts)
    assert TEXT_LENGTH[0] <= min(map(len, texts)) <= 250
    assert 1_900 <= max(map(len, texts)) <= TEXT_LENGTH[1]
    assert len({row["require"][0] for row in asked}) == CAPABILITIES


def test_a_message_carries_the_moment_it_is_due() -> None:
    load = Load("due", 50, 1, rows=5)
    ready = list(messages(load, 2))[1]
    batch = wire.decode(*ready.at(START), rows.record("request"))
    due = load.due_us(np.arange(30, 35), START)
    assert batch.column("requested_at").cast(pa.int64()).to_pylist() == due.tolist()
    assert ready.due_s == pytest.approx(30 / 50)


def outcome(load: Load, numbers: list[int], after_ms: list[float], **changes: Any) -> Outcome:
    """What a consumer that saw these results, so long after they were due, would leave."""
    due = load.due_us(np.array(numbers), START)
    arrived = due + (np.array(after_ms) * 1e3).astype(np.int64)
    table = pa.table(
        {
            "number": numbers,
            "requested_at": pa.array(due, pa.timestamp("us", "UTC")),
            "latency_us": (arrived - due) // 2,
            "arrived_us": arrived,
            "status": ["ok"] * len(numbers),
        }
    ).sort_by("arrived_us")
    cores = Cores({"worker way": 0.95}, {"worker way": 0.7}, 0.0, 2)
    fields = {
        "sent": load.total,
        "refused": 0,
        "late_ms_p99": 0.1,
        "sql_matched": len(set(numbers)),
        **changes,
    }
    fields |= {"results": table, "messages": 1, "cores": cores, "processors": {}, "sql_results": 0}
    return Outcome(load, START, sql_ms=1, restarts=0, **fields)


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    load = Load("late", 10, 1)
    verdict = judge(outcome(load, list(range(10)), [50.0] * 9 + [500.0]))
    assert verdict.arrival["p50"] == pytest.approx(50)
    assert verdict.arrival["max"] == pytest.approx(500)
    assert verdict.own["p50"] == pytest.approx(25)
    assert (verdict.held, verdict.lost, verdict.duplicated, verdict.unmatched) == (True, 0, 0, 0)


def test_a_duplicate_counts_once_with_its_first_arrival() -> None:
    load = Load("twice", 10, 1)
    verdict = judge(outcome(load, [*range(10), 3], [50.0] * 10 + [900.0]))
    assert (verdict.lost, verdict.duplicated) == (0, 1)
    assert verdict.arrival["max"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("numbers", "after_ms", "changes", "why"),
    [
        (range(9), 50.0, {}, "one is lost"),
        (range(10), 2_200.0, {}, "the last came too late"),
        (range(10), 50.0, {"refused": 1}, "the broker refused one"),
    ],
)
def test_a_rate_is_not_held(numbers: range, after_ms: float, changes: dict[str, Any], why: str) -> None:
    verdict = judge(outcome(Load("not", 10, 1), list(numbers), [after_ms] * len(numbers), **changes))
    assert not verdict.held, why


def test_a_result_without_its_decision_in_sql_is_told() -> None:
    verdict = judge(outcome(Load("sql", 10, 1), list(range(10)), [1.0] * 10, sql_matched=8))
    assert verdict.unmatched == 2


def test_backlog_is_what_is_due_and_not_answered() -> None:
    due = np.arange(100) * 1e4  # one each .01 s
    assert backlog(due, due + 1, 0.0, 1e6)[-1] == 0
    assert backlog(due, due + 200_001, 0.0, 1e6)[-1] == 20
    growing = backlog(due, due * 2, 0.0, 1e6)
    assert growing[-1] > growing[4] > growing[0]


def test_figures_of_a_rate_name_workload_rows_and_partitions() -> None:
    load = Load("r10", 10, 1)
    found = list(
        figures(
            outcome(load, list(range(10)), [50.0] * 10), judge(outcome(load, list(range(10)), [50.0] * 10)), 2
        )
    )
    assert {figure.workload for figure in found} == {"pipeline/10-a-second"}
    assert {(figure.rows_a_message, figure.partitions) for figure in found} == {(1, 2)}
    assert found[0].detail["saturates"].startswith("worker way uses 0.95 cores")


def test_a_line_of_the_history_has_all_that_is_needed_to_repeat_it(tmp_path: Any) -> None:
    figure = Figure("some/workload", "throughput", "rows/s", [3.0, 1.0, 2.0], 256, 1)
    (line,) = record([figure], facts("a note"), tmp_path / "history.ndjson")
    assert (line["value"], line["repeats"], line["spread"]) == (2.0, 3, 2.0)
    assert {"commit", "machine", "cores", "memory_bytes", "versions", "workload", "metric", "unit"} <= set(
        line
    )
    assert {"python", "kafka", "faust", "pyarrow"} <= set(line["versions"])
    assert len((tmp_path / "history.ndjson").read_text().splitlines()) == 1


def test_cores_are_differences_and_what_is_not_ours_is_told() -> None:
    def used(total: float, thread: float) -> dict[str, Used]:
        return {"worker": Used(total, {(1, "1"): thread})}

    cores = between(Sample(0.0, used(1.0, 1.0), 10.0), Sample(2.0, used(3.0, 2.0), 13.0))
    assert cores.process == {"worker": 1.0}
    assert cores.thread == {"worker": 0.5}
    assert cores.others == pytest.approx(0.5)
    assert "worker uses 1.00 cores" in cores.says()
    assert "other programs took 0.50 cores" in cores.says()


def test_processors_are_told_by_what_they_did_between_two_statuses() -> None:
    names = ("messages_in", "rows_in", "rounds", "messages_out", "step_s", "deliver_s")
    before = {"match": (10.0, dict.fromkeys(names, 0.0))}
    after = {"match": (12.0, dict(zip(names, (80, 800, 40, 80, 0.4, 1.0), strict=True)))}
    assert rates(before, after)["match"] == {
        "messages_in_s": 40, "rows_in_s": 400, "rounds_s": 20, "messages_out_s": 40, "rows_a_message": 10,
        "step_us_a_row": 500, "step_share": 0.2, "deliver_share": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 256])
def test_the_processor_s_work_is_the_same_through_aos_and_through_plain_pyarrow(size: int) -> None:
    ((value, headers),) = one.messages(size, size)
    through_aos, _ = wire.encode(one.in_order(wire.decode(value, headers, one.ROW)), one.ROW)
    assert one.transform(value) == through_aos
    assert sorted(one.numbers(through_aos)) == list(range(size))
    assert 950 < len(value) / size < (1_100 if size > 1 else 2_100)


def test_percentiles_of_nothing_are_not_numbers() -> None:
    assert np.isnan(percentiles(np.array([]))["p95"])


@pytest.mark.parametrize("size", [1, 8])
def test_every_request_of_a_wave_passes_every_processor(size: int) -> None:
    found = {figure.workload.rpartition("/")[2]: figure for figure in steps.measure(size, 16, 1, 40)}
    assert set(found) == {*PROCESSORS, "views"}
    assert all(found[name].value > 0 for name in PROCESSORS)
