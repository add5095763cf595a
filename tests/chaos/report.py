"""The table of forty rows and the one JSON object of a run."""

from __future__ import annotations

from typing import Any

from tests.chaos.faults import REGISTRY
from tests.chaos.judge import percentiles

HELD = "held"


def rows(said: dict[str, Any], ran: list[dict[str, Any]], not_run: dict[int, str]) -> list[dict[str, Any]]:
    """One row a fault, always forty: how often it ran, its recovery, or why it did not run."""
    found = []
    for number, fault in REGISTRY.items():
        mine = [
            item for item in said["recoveries"] if item["number"] == number and item["seconds"] is not None
        ]
        times = sum(1 for one in ran if one["number"] == number)
        failed = [what for one in ran if one["number"] == number for _, what in one["failed"]]
        found.append({
            "number": number, "fault": fault.name, "suite": fault.suite, "times": times,
            "kills": sum(one["kills"] for one in ran if one["number"] == number),
            **percentiles([item["seconds"] for item in mine]),
            "not_run": None if times else not_run.get(number, "not in this suite"), "failed": failed,
            "waits": fault.waits,
        })  # fmt: skip
    return found


def whole(
    said: dict[str, Any], seed: int, ran: list[dict[str, Any]], not_run: dict[int, str]
) -> dict[str, Any]:
    """The run as one object."""
    first = {"seed": seed, "tasks": said["tasks"], "faults": len(ran)}
    return {**first, **{name: value for name, value in said.items() if name != "tasks"}, "ran": ran,
            "table": rows(said, ran, not_run)}  # fmt: skip


def text(report: dict[str, Any]) -> str:
    """For a reader: forty rows, then the figures and what was violated."""
    lines = [
        f"{'#':>2} {'fault':<48} {'suite':<9} {'times':>5} {'kills':>5} {'p50 s':>6} {'p95 s':>6} {'max s':>6}"
    ]
    for row in report["table"]:
        figures = " ".join(
            f"{'' if row[name] is None else format(row[name], '.2f'):>6}"
            for name in ("recovery_p50_s", "recovery_p95_s", "recovery_max_s")
        )
        note = "".join(f"  FAILED: {what}" for what in row["failed"])
        if row["not_run"]:
            note = f"  not run: {row['not_run']}"
        elif row["waits"]:
            note += f"  not tried: {row['waits']}"
        head = f"{row['number']:>2} {row['fault'][:48]:<48} {row['suite']:<9} {row['times']:>5} {row['kills']:>5}"
        lines.append(f"{head} {figures}{note}")
    lines += ["", *figures_of(report), ""]
    for name, item in report["invariants"].items():
        lines.append(f"{name:<4}{HELD if item['held'] else 'VIOLATED ' + str(item['violations']) + ' times'}")
        lines += [f"      {example}" for example in item["examples"]]
    return "\n".join(lines)


def figures_of(report: dict[str, Any]) -> list[str]:
    """The run in two lines."""
    recovery = ", ".join(f"{name} {report[f'recovery_{name}_s']}" for name in ("p50", "p95", "max"))
    return [
        f"seed {report['seed']}: {report['tasks']} tasks, {report['acknowledged']} acknowledged, "
        f"{report['faults']} faults, {report['kills']} kills",
        f"lost {report['lost']}, duplicated {report['duplicated']}, ghost {report['ghost']}, "
        f"results said again {report['repeated_results']}, "
        f"failed for being slow {report['too_slow']}; recovery s: {recovery}",
    ]
