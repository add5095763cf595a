"""What the figures of a load are: latency from the moment each request was due, what was lost, whether it was held.

Coordinated omission: latency counts from the moment a request was due by the plan, not from when the producer came to
send it, so a stall of the system or of the generator makes every request behind it late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Figure, percentiles
from benchmarks.pipeline.stand import Outcome, steps_of

HELD_S = 2.0  # all results are there so long after the last request was due
CLAMPED_US = 1_000  # the log's clock counts milliseconds: the edge may set a request's time back by so much


@dataclass(frozen=True)
class Verdict:
    """Milliseconds: `arrival` due to seen by a consumer; `own` the result's latency_us (due to ended, by the log)."""

    held: bool
    arrival: dict[str, float]
    own: dict[str, float]
    lost: int
    duplicated: int
    unmatched: int
    last_after_s: float
    backlog: tuple[int, ...]  # requests due but not answered at each tenth of the time
    p95_by_fifth: tuple[float, ...]
    statuses: dict[str, int]
    clamped: int


def judge(outcome: Outcome) -> Verdict:
    """Look at all results of a load."""
    load, table = outcome.load, outcome.results
    number, first = np.unique(_ints(table, "number"), return_index=True)
    arrived, own = _ints(table, "arrived_us")[first], _ints(table, "latency_us")[first]
    requested = table.column("requested_at").cast(pa.int64()).to_numpy()[first]
    due = load.due_us(number, outcome.start)
    end = (outcome.start + load.seconds) * 1e6
    last = (float(arrived.max()) - end) / 1e6 if len(arrived) else float("inf")
    lost = outcome.sent - outcome.refused - len(number)
    arrival_ms = (arrived - due) / 1e3
    fifths = np.array_split(arrival_ms[np.argsort(due, kind="stable")], 5)
    return Verdict(
        held=lost <= 0 and last <= HELD_S and outcome.refused == 0,
        arrival=percentiles(arrival_ms),
        own=percentiles(own / 1e3),
        lost=lost,
        duplicated=len(table) - len(number),
        unmatched=len(number) - outcome.sql_matched,
        last_after_s=last,
        backlog=backlog(load.due_us(np.arange(load.total), outcome.start), arrived, outcome.start * 1e6, end),
        p95_by_fifth=tuple(round(percentiles(part)["p95"], 1) for part in fifths),
        statuses=dict(Counter(table.column("status").to_pylist())),
        clamped=int((np.abs(requested - due) > CLAMPED_US).sum()),
    )


def backlog(due: np.ndarray, arrived: np.ndarray, start: float, end: float) -> tuple[int, ...]:
    """Requests due and not answered, at each tenth of the time from start to end."""
    moments = np.linspace(start, end, 11)[1:]
    asked = np.searchsorted(np.sort(due), moments, side="right")
    answered = np.searchsorted(np.sort(arrived), moments, side="right")
    return tuple(int(left) for left in asked - answered)


def figures(outcome: Outcome, verdict: Verdict, partitions: int) -> Iterator[Figure]:
    """The lines of one rate; what is needed to judge them stands in the first."""
    load = outcome.load
    workload = f"pipeline/{load.rate:g}-a-second"
    bare = {"held": verdict.held, "seconds": load.seconds}

    def figure(metric: str, unit: str, value: float, detail: dict[str, Any]) -> Figure:
        return Figure(workload, metric, unit, [value], load.rows, partitions, detail)

    yield figure("throughput", "results/s", answered(outcome), {**bare, **outcome_detail(outcome, verdict)})
    for name in ("p50", "p95", "p99"):
        yield figure(f"due to arrival {name}", "ms", verdict.arrival[name], bare)
    for name in ("p50", "p95", "p99"):
        yield figure(f"due to ended {name}", "ms", verdict.own[name], bare)


def answered(outcome: Outcome) -> float:
    """Results a second from the start to the last one, or to the end of the load if that was later."""
    table, load = outcome.results, outcome.load
    distinct = len(table.column("number").unique())
    if not distinct:
        return 0.0
    last = float(_ints(table, "arrived_us").max()) / 1e6
    return distinct / max(load.seconds, last - outcome.start)


def outcome_detail(outcome: Outcome, verdict: Verdict) -> dict[str, Any]:
    """Everything that is needed to judge a rate."""
    return {
        "requests": outcome.sent, "steps": steps_of(outcome.load), "refused": outcome.refused,
        "lost": verdict.lost, "duplicated": verdict.duplicated, "statuses": verdict.statuses,
        "sql_results": outcome.sql_results, "sql_matched": outcome.sql_matched,
        "sql_unmatched": verdict.unmatched, "sql_query_ms": round(outcome.sql_ms),
        "last_after_end_s": round(verdict.last_after_s, 3), "backlog_by_tenth": verdict.backlog,
        "p95_by_fifth_ms": verdict.p95_by_fifth, "arrival_max_ms": round(verdict.arrival["max"], 1),
        "clamped": verdict.clamped, "producers_late_p99_ms": round(outcome.late_ms_p99, 2),
        "result_rows_a_message": round(len(outcome.results) / max(outcome.messages, 1), 1),
        "worker_restarts": outcome.restarts, "processors": outcome.processors, **outcome.cores.detail(),
    }  # fmt: skip


def told(outcome: Outcome, verdict: Verdict) -> list[str]:
    """For a reader at a terminal."""
    a, o = verdict.arrival, verdict.own
    bad = [
        f"{name.upper()} {value}"
        for name, value in (
            ("lost", verdict.lost), ("duplicated", verdict.duplicated), ("not matched in sql", verdict.unmatched),
            ("refused", outcome.refused), ("worker restarts", outcome.restarts), ("clamped", verdict.clamped),
        )
        if value
    ]  # fmt: skip
    if set(verdict.statuses) - {"ok"}:
        bad.append(f"STATUSES {verdict.statuses}")
    cores = "  ".join(
        f"{name} {used:.2f}" for name, used in _together(outcome.cores.process).items() if used >= 0.005
    )
    return [
        f"{outcome.load.rate:7,.0f}/s  {'held    ' if verdict.held else 'NOT HELD'}  {answered(outcome):7,.0f} "
        f"results/s  due to arrival p50 {a['p50']:.0f} p95 {a['p95']:.0f} p99 {a['p99']:.0f} ms  (to ended "
        f"{o['p50']:.0f} {o['p95']:.0f} {o['p99']:.0f})  backlog {verdict.backlog[-1]}"
        + "".join(f"  {word}" for word in bad),
        f"           cores: {cores}  others {outcome.cores.others:.2f}",
        f"           full: {outcome.cores.says()}",
    ]


def _together(process: Any) -> dict[str, float]:
    """The four producers as one, the services as one."""
    found: Counter[str] = Counter()
    for name, used in process.items():
        kind = (
            "producers" if name.startswith("producer") else "agents" if name.startswith("service") else name
        )
        found[kind] += used
    return dict(found)


def _ints(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)
