"""docs/chaos-report.md, made by the runs: what is promised, what is not, each fault's last run, how to repeat it.

``python -m tests.chaos … --report docs/chaos-report.md`` adds a run; ``python -m tests.chaos.page --report PAGE
RUN.json …`` adds runs that were kept with ``--json``, and without files renders the page anew. What the page says of
runs stands beside it, one JSON line a run (`.ndjson`), and nowhere else: nobody writes figures by hand. A fault's row
is its latest run; a fault that never ran says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import faults

PROMISE = """# Chaos report

<!-- made by `python -m tests.chaos … --report docs/chaos-report.md`; do not edit -->

How the runs are made, what the judge looks at and what it cannot see is in [chaos.md](chaos.md).

## The promise
Once the broker has acknowledged your request, AOS owes you exactly one answer, whatever is killed, stopped,
filled up or cut off meanwhile:

- **Nothing is lost.** Every acknowledged request ends in one final row in SQL: ok, failed, rejected, expired or
  cancelled.
- **Nothing counts twice.** The row is there once. On the result topic an answer may be said again, under the same
  id: drop what you have seen. An agent may be asked for the same attempt again, with the same key.
- **Nobody gets in.** No row crosses from one tenant to another, and nothing appears that nobody sent.
- **It comes back by itself.** No person has to help: what was killed is started again and goes on where it stood.

## What is not promised
- **Loss of the only disk.** On one machine the log is on one disk. If it is gone, so is what only it held.
- **Power loss without replication.** The broker acknowledges when the record is in its page cache; with a single
  broker a power cut may take the last moments with it.
- **Requests that were not acknowledged.** If your producer heard an error or nothing, the request may be there or
  not: send it again under the same id, it counts once.
- **Side effects of agents.** They happen at least once; (task, step, attempt) is the key to make yours idempotent.
- **Any order between requests, and any speed.** The times below are of a machine that ran broker, database, load,
  agents and judge at once: upper bounds.
"""
RULES = """*Held*: the fault's own checks and every invariant of its run. An invariant that was violated in a run with
several faults counts against all of them. Recovery: seconds from the end of the fault (of a kill: from the kill) to
the first new work that was done. The command of a run repeats it."""
FAULTS_HEAD = "| # | fault | verdict | injected | kills | recovery p50 / p95 / max, s | seed | run |"
RUNS_HEAD = (
    "| run | when | requests | acknowledged | faults | kills | lost | twice | ghost "
    "| recovery p50 / p95 / max, s | invariants |"
)
FIGURES = ("tasks", "acknowledged", "kills", "lost", "duplicated", "ghost")
RECOVERY = ("recovery_p50_s", "recovery_p95_s", "recovery_max_s")


def kept(run: dict[str, Any]) -> dict[str, Any]:
    """What the report keeps of a run: figures, verdicts and rows, not the journal of it."""
    rows = [
        {name: row[name] for name in ("number", "times", "kills", "failed", "not_run", "waits", *RECOVERY)}
        for row in run["table"]
        if row["times"] or row["not_run"] != "not in this suite"
    ]
    violated = {
        name: {"violations": item["violations"], "examples": item["examples"][:1]}
        for name, item in run["invariants"].items()
        if not item["held"]
    }
    named = {name: run[name] for name in ("at", "command", "seed", "faults", *FIGURES, *RECOVERY)}
    return {**named, "invariants": len(run["invariants"]), "violated": violated, "rows": rows}


def read(log: Path) -> list[dict[str, Any]]:
    """The runs that are kept, oldest first."""
    lines = log.read_text().splitlines() if log.exists() else []
    return sorted((json.loads(line) for line in lines), key=lambda run: str(run["at"]))


def merged(runs: Iterable[dict[str, Any]], more: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All runs by time; one that is added again is there once."""
    found = {(run["at"], run["command"]): run for run in (*runs, *more)}
    return [found[key] for key in sorted(found)]


def latest(runs: Sequence[dict[str, Any]]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """The last run in which each fault was injected, with its row; else the last that said why it was not."""
    found: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for run in runs:
        for row in run["rows"]:
            before = found.get(row["number"])
            if row["times"] or before is None or not before[1]["times"]:
                found[row["number"]] = run, row
    return found


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    lines = [PROMISE, "## The faults"]
    last = latest(runs)
    rows = {number: last[number] for number in faults.REGISTRY if number in last}
    ran = sum(1 for _, row in rows.values() if row["times"])
    held = sum(1 for run, row in rows.values() if row["times"] and _verdict(run, row) == "held")
    lines += [f"{ran} of {len(faults.REGISTRY)} have run, {held} of them held.", "", RULES, ""]
    lines += [FAULTS_HEAD, "|---" * 8 + "|"]
    numbers = {run["at"]: place for place, run in enumerate(runs, 1)}
    for number, fault in faults.REGISTRY.items():
        lines.append(_row(number, fault, rows.get(number), numbers))
    lines += ["", "## The runs", "", *_runs(runs), "", *_violations(runs)]
    return "\n".join(lines).rstrip() + "\n"


def _row(
    number: int, fault: Any, found: tuple[dict[str, Any], dict[str, Any]] | None, numbers: dict[Any, int]
) -> str:
    if found is None:
        return _cells(number, fault.name, "not run", "", "", "", "", "")
    run, row = found
    verdict = _verdict(run, row)
    if not row["times"]:
        return _cells(number, fault.name, verdict, "", "", "", "", numbers[run["at"]])
    if row["waits"]:
        verdict += f"; not tried: {row['waits']}"
    times = " / ".join(_seconds(row[name]) for name in RECOVERY)
    return _cells(
        number, fault.name, verdict, row["times"], row["kills"], times, run["seed"], numbers[run["at"]]
    )


def _verdict(run: dict[str, Any], row: dict[str, Any]) -> str:
    if not row["times"]:
        return f"not run: {row['not_run']}"
    if row["failed"]:
        return "**failed**: " + "; ".join(row["failed"])
    if run["violated"]:
        return "**its run violated " + ", ".join(run["violated"]) + "**"
    return "held"


def _runs(runs: Sequence[dict[str, Any]]) -> list[str]:
    if not runs:
        return ["None yet."]
    lines = [RUNS_HEAD, "|---" * 11 + "|"]
    for place, run in enumerate(runs, 1):
        laws = f"{run['invariants'] - len(run['violated'])} of {run['invariants']} held"
        times = " / ".join(_seconds(run[name]) for name in RECOVERY)
        figures = [run[name] for name in ("tasks", "acknowledged", "faults", *FIGURES[2:])]
        lines.append(_cells(place, run["at"], *figures, times, laws))
    lines += [
        "",
        "To repeat one (the same seed gives the same schedule of faults, on every machine):",
        "",
        "```",
    ]
    lines += [f"{run['command']}    # run {place}" for place, run in enumerate(runs, 1)]
    return [*lines, "```"]


def _violations(runs: Sequence[dict[str, Any]]) -> list[str]:
    told = [
        f"- Run {place}, {name}: {item['violations']} times, such as: {'; '.join(item['examples'])}"
        for place, run in enumerate(runs, 1)
        for name, item in run["violated"].items()
    ]
    return ["## What was violated", "", *told] if told else []


def _cells(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def add(report: Path, runs: Iterable[dict[str, Any]]) -> None:
    """Keep these runs beside the page, and write the page anew."""
    log = report.with_suffix(".ndjson")
    every = merged(read(log), map(kept, runs))
    log.write_text("".join(json.dumps(run, default=str) + "\n" for run in every))
    report.write_text(page(every))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.page", description=__doc__)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("runs", type=Path, nargs="*", help="what `python -m tests.chaos --json` printed")
    chosen = parser.parse_args()
    faults.load_all()
    add(chosen.report, [json.loads(path.read_text()) for path in chosen.runs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
