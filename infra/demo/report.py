"""What the demo says at its end: figures out of SQL, the disturbance, three queries, one decision explained."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aos.infra.database import query
from aos.infra.demo.figures import HERE, figures
from aos.infra.why import explain, tell

if TYPE_CHECKING:
    from aos.infra.demo.run import Course, Options

AFTER = 150  # tasks of its kind within which a degraded agent must be found out
LOOKED_AT = 100  # tasks of its kind, from there on, over which its share is counted

QUERIES = (
    (
        "Which compressor is best at what?",
        "SELECT task_kind, agent, count(*) AS tasks, round(avg(score)::numeric, 3) AS score FROM aos.attempts "
        f"WHERE {HERE} AND step_name = 'compress' AND agent IS NOT NULL GROUP BY 1, 2 ORDER BY 1, score DESC",
        9,
    ),
    (
        "What did learning gain over round robin, by kind of task?",
        "SELECT task_kind, round(avg(score) FILTER (WHERE policy = 'learned')::numeric, 3) AS learned, "
        "round(avg(score) FILTER (WHERE policy = 'round-robin')::numeric, 3) AS round_robin "
        f"FROM aos.tasks WHERE {HERE} GROUP BY 1 ORDER BY 1",
        9,
    ),
    (
        "Where do tasks wait?",
        "SELECT step_name, count(*) AS attempts, round(avg(waited_us) / 1000.0, 1) AS waited_ms, "
        f"round(avg(latency_us) / 1000.0, 1) AS working_ms FROM aos.attempts WHERE {HERE} GROUP BY 1 ORDER BY 1",
        9,
    ),
)


@dataclass(frozen=True)
class Report:
    """The text for people and the figures for programs."""

    text: str
    figures: dict[str, Any]


def report(url: str, course: Course, options: Options) -> Report:
    """Build both from SQL and from what the demo saw."""
    wait_for_sql(url, course.sent)
    found: dict[str, Any] = figures(url)
    found["lost"] += course.sent - found["tasks"]  # acknowledged, but never reached SQL
    found |= {
        "seed": options.seed,
        "learning": options.learn,
        "recovery_s": None if course.recovered_s is None else round(course.recovered_s, 2),
        "score_learned_before": _mean(url, "<", course.disturbed_at),
        "score_learned_after": _mean(url, ">=", course.disturbed_at),
        "disturbed": [
            _disturbed(url, agent, how, course.disturbed_at) for agent, how in course.faults.items()
        ],
    }
    return Report(_text(url, found), found)


def wait_for_sql(url: str, sent: int, limit_s: float = 30.0) -> None:
    """Until SQL has every end, or the time is up: what is missing then is reported as lost."""
    import time

    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        _, rows = query(url, f"SELECT count(*) FROM aos.tasks WHERE {HERE} AND status <> 'open'")
        if rows[0][0] >= sent:
            return
        time.sleep(0.2)


def _mean(url: str, side: str, at: float) -> float | None:
    """Mean score of the learned arm before or after a time (seconds since the epoch)."""
    learned = f"FROM aos.tasks WHERE {HERE} AND policy = 'learned'"
    sql = f"SELECT avg(coalesce(score, 0)) {learned} AND requested_at {side} %s"
    value = query(url, sql, (_time(at),))[1][0][0]
    return None if value is None else round(float(value), 4)


def _disturbed(url: str, agent: str, how: str, at: float) -> dict[str, Any]:
    """An agent's share of the learned arm's choices for the kind it was chosen for most, before and after."""
    sql = f"""SELECT task_kind, agent, assigned_at >= %s AS after FROM aos.attempts
        WHERE {HERE} AND step_name = 'compress' AND coalesce(policy, 'learned') = 'learned' AND attempt = 1
        ORDER BY assigned_at"""
    rows = query(url, sql, (_time(at),))[1]
    before = [row[0] for row in rows if row[1] == agent and not row[2]]
    kind = max(set(before), key=before.count) if before else None
    chosen_before = [row[1] == agent for row in rows if row[0] == kind and not row[2]]
    chosen_after = [row[1] == agent for row in rows if row[0] == kind and row[2]]
    later = chosen_after[AFTER : AFTER + LOOKED_AT]
    return {
        "agent": agent,
        "how": how,
        "task_kind": kind,
        "share_before": _share(chosen_before),
        "share_first_50": _share(chosen_after[:50]),
        "share_after_150": _share(later),
        "tasks_after": len(chosen_after),
    }


def _share(chosen: list[bool]) -> float | None:
    return round(sum(chosen) / len(chosen), 4) if chosen else None


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _text(url: str, found: dict[str, Any]) -> str:
    lines = ["", "── what came of it " + "─" * 60, *_counts(found), *_scores(found)]
    for question, sql, most in QUERIES:
        lines += ["", f"-- {question}", sql + ";", *_table(*query(url, sql), most)]
    lines += ["", "── why one task went where it went " + "─" * 44, _why(url)]
    lines += [
        "",
        "Next: .venv/bin/aos up    .venv/bin/aos demo --seed 2    .venv/bin/aos replay outcomes FILE",
    ]
    return "\n".join(lines)


def _counts(found: dict[str, Any]) -> list[str]:
    return [
        "tasks {tasks}, results {results}, lost {lost}, duplicated {duplicated}, rows in SQL {sql_rows}".format(
            **found
        ),
        "request to result p50 {p50_ms:.0f} ms, p95 {p95_ms:.0f} ms, p99 {p99_ms:.0f} ms; {tasks_per_s:.0f} tasks/s; "
        "back {recovery_s} s after the kill".format(**found),
    ]


def _scores(found: dict[str, Any]) -> list[str]:
    lines = ["mean score (share of bytes saved within the CPU budget, restored exactly):"]
    for name, what in (
        ("score_learned", "learned arm"),
        ("score_round_robin", "round robin, the control arm"),
        ("score_sample_mean", "any compressor, on a sample that all of them really ran"),
        ("score_best_single", "best single compressor in hindsight, same sample"),
        ("score_oracle_sample", "oracle, same sample"),
    ):
        lines.append(f"  {found[name]:.3f}  {what}")
    before, after = _shown(found["score_learned_before"]), _shown(found["score_learned_after"])
    lines.append(f"learned arm before the disturbance {before}, after {after}")
    for one in found["disturbed"]:
        shares = [_shown(one[name]) for name in ("share_before", "share_first_50", "share_after_150")]
        lines.append(
            f"  {one['agent']} ({one['how']} inside), {one['task_kind']}: share {shares[0]} before, "
            f"{shares[1]} in the first 50 after, {shares[2]} after {AFTER}"
        )
    return lines


def _why(url: str) -> str:
    """The last task of the learned arm, compress step only."""
    ended_ok = f"{HERE} AND status = 'ok' AND policy = 'learned'"
    sql = f"SELECT id FROM aos.tasks WHERE {ended_ok} ORDER BY requested_at DESC LIMIT 1"
    rows = query(url, sql)[1]
    if not rows:
        return "no task ended ok"
    found = explain(url, rows[0][0])
    found["decisions"] = [d for d in found["decisions"] if d["step_name"] == "compress"]
    return f"$ aos why {rows[0][0]}\n{tell(found)}"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _table(names: list[str], rows: list[tuple[Any, ...]], most: int) -> list[str]:
    cells = [names] + [["" if v is None else str(v) for v in row] for row in rows[:most]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [
        "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    return lines + ([f"  … {len(rows) - most} more"] if len(rows) > most else [])
