"""``aos why``: the story of one task out of SQL: decisions with candidates and chances, attempts, the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aos.codecs.errors import StackError
from aos.infra.database import query
from aos.streams.views import RUNTIME_VERSIONS

TASK = """SELECT * FROM aos.tasks WHERE id = %s OR request_id::text = %s OR replace(request_id::text, '-', '') = %s
ORDER BY requested_at DESC, round DESC LIMIT 1"""
CHILDREN = """SELECT request_id, id, status, code, text, agents, cost_usd_micros, latency_us FROM aos.tasks
WHERE parent_id = %s AND requested_at >= %s ORDER BY requested_at, request_id LIMIT 100"""
CONTEXTS = """SELECT context_version, step, attempt, agent, context FROM aos.contexts
WHERE requested_at = %s AND request_id = %s AND round = %s ORDER BY context_version"""
OF_TASK = "WHERE requested_at = %s AND request_id = %s AND round = %s ORDER BY step, attempt"


def explain(url: str, id: str) -> dict[str, Any]:
    """The task with its decisions, attempts, what was handed out and shared; StackError when nobody knows the id."""
    tasks = _ask(url, TASK, id, id, id)
    if not tasks:
        raise StackError(
            f"no request {id} in SQL", "`aos tasks list` has the last ones; a new one takes a second"
        )
    task = tasks[0]
    key = (task["requested_at"], task["request_id"], task["round"])
    return {
        "task": task,
        "decisions": _ask(url, f"SELECT * FROM aos.decisions {OF_TASK}", *key),
        "attempts": _ask(url, f"SELECT * FROM aos.attempts {OF_TASK}", *key),
        "children": _ask(url, CHILDREN, task["request_id"], task["requested_at"]),
        "contexts": _ask(url, CONTEXTS, *key),
        "sql": f"SELECT * FROM aos.decisions WHERE request_id = '{task['request_id']}'",
    }


def _ask(url: str, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    names, rows = query(url, sql, parameters)
    return [dict(zip(names, row, strict=True)) for row in rows]


def tell(found: Mapping[str, Any]) -> str:
    """The same in words."""
    task = found["task"]
    lines = [
        f"{task['id'] or task['request_id']}: {task['status']}"
        + (f" ({task['code']})" if task["code"] else "")
    ]
    facts = [("score", task["score"]), ("attempts", task["attempts"]), ("plan", task["topology"])]
    lines.append("  " + ", ".join(f"{name} {_short(value)}" for name, value in facts if value is not None))
    if task["message"]:
        lines.append(f"  {task['message']}")
    if task["parent_id"] is not None:
        lines.append(f"  delegated from {task['parent_id']}, depth {task['depth']}")
    for decision in found["decisions"]:
        lines += _decision(decision, found["attempts"])
    lines += [_child(child) for child in found["children"]]
    lines += [
        f"context {one['context_version']} by {one['agent']} (step {one['step']}): {one['context'][:200]}"
        for one in found["contexts"]
    ]
    lines.append(f"SQL: {found['sql']}")
    return "\n".join(lines)


def _decision(decision: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    name = f"step {decision['step_name']}, attempt {decision['attempt']}"
    if decision["kind"] == "refused":
        return [f"{name}: refused in cell {decision['cell']}: {decision['violated']}"]
    how = f"{decision['policy']}, probability {_short(decision['probability'])}, draw {_short(decision['draw'])}"
    possible = (("overridden", "capacity overrode the best"), ("trial", "on trial"))
    marks = [text for column, text in possible if decision[column]]
    if decision["degraded"]:
        marks.append(f"degraded: {decision['rung'] or 'stale view or fallback'}")
    lines = [f"{name}: {decision['agent']} ({'; '.join([how, *marks])})"]
    kind, waited = decision["task_kind"] or "-", decision["waited_us"] / 1000
    versions = (
        f"model {decision['model_version']}, settings {decision['settings_version'] % RUNTIME_VERSIONS}"
    )
    lines.append(f"  kind {kind}, {versions}, waited {waited:.1f} ms")
    columns = (
        "candidate_agents",
        "candidate_scores",
        "candidate_deviations",
        "candidate_chances",
        "candidate_maskeds",
    )
    for agent, score, deviation, chance, masked in zip(*(decision[c] or () for c in columns), strict=True):
        mark = "→" if agent == decision["agent"] else " "
        busy = "  no free slot" if masked else ""
        lines.append(f"  {mark} {agent:<18} score {score:.3f} ± {deviation:.3f}  chance {chance:.3f}{busy}")
    filtered = list(zip(decision["filtered_agents"] or (), decision["filtered_reasons"] or (), strict=True))
    if filtered:
        shown = ", ".join(f"{agent} ({reason})" for agent, reason in filtered)
        lines.append(f"    not considered: {shown}" + _more(decision["filtered_count"] - len(filtered)))
    return lines + [
        _attempt(a) for a in attempts if (a["step"], a["attempt"]) == (decision["step"], decision["attempt"])
    ]


def _child(child: Mapping[str, Any]) -> str:
    """A request that an attempt of this one handed out."""
    step, attempt, call = (*(child["id"] or "").split("/", 3)[1:], "", "", "")[:3]
    by = f" by {', '.join(child['agents'])}" if child["agents"] else ""
    code = f" ({child['code']})" if child["code"] else ""
    cost = f", cost {child['cost_usd_micros']}" if child["cost_usd_micros"] else ""
    return (
        f"delegated in step {step}, attempt {attempt}, call {call}: {child['status']}{code}{by}{cost}, "
        f"`aos why {child['request_id']}`"
    )


def _attempt(attempt: Mapping[str, Any]) -> str:
    expected = (
        f", expected {attempt['score_predicted']:.3f}" if attempt["score_predicted"] is not None else ""
    )
    judged = " by its judge" if attempt["judged"] else ""
    code = f" {attempt['code']}: {attempt['message']}" if attempt["code"] else ""
    score = "none" if attempt["score"] is None else f"{attempt['score']:.3f}{judged}{expected}"
    return f"    ended {attempt['status']}{code}, score {score}, {attempt['latency_us'] / 1000:.1f} ms"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
