"""Queries that answer the questions people ask first, each named, each tested against the topics.

`python -m aos.infra.cookbook > docs/sql.md` renders the page of views and queries.
"""

from __future__ import annotations

from dataclasses import dataclass

from aos.infra.surface import VIEWS


@dataclass(frozen=True, slots=True)
class Query:
    """One entry: its permanent name, the question, how to read the answer, the statement."""

    name: str
    question: str
    reading: str
    sql: str


BEST_AGENTS = Query(
    "best_agents",
    "Which agent is best at what?",
    "Rank 1 is the agent with the best mean score at a kind of work; error is the standard error of that mean.",
    """
SELECT domain, task_kind, agent, attempts, score, error,
    rank() OVER (PARTITION BY domain, task_kind ORDER BY score DESC, agent) AS rank
FROM (
    SELECT domain, task_kind, agent, count(score) AS attempts, avg(score::double precision) AS score,
        stddev_samp(score::double precision) / sqrt(count(score)) AS error
    FROM aos.attempts
    WHERE agent IS NOT NULL AND score IS NOT NULL
    GROUP BY domain, task_kind, agent
) agents
ORDER BY domain, task_kind, rank
""",
)

LEARNED_GAIN = Query(
    "learned_gain",
    "How much better is the learned choice than the control arm (round robin)?",
    "gain is the difference of the mean scores, error its standard error: twice the error is the noise.",
    """
SELECT count(*) FILTER (WHERE arm = 'learned') AS learned_tasks, avg(score) FILTER (WHERE arm = 'learned') AS learned,
    count(*) FILTER (WHERE arm = 'round-robin') AS control_tasks,
    avg(score) FILTER (WHERE arm = 'round-robin') AS control,
    avg(score) FILTER (WHERE arm = 'learned') - avg(score) FILTER (WHERE arm = 'round-robin') AS gain,
    sqrt(var_samp(score) FILTER (WHERE arm = 'learned') / nullif(count(*) FILTER (WHERE arm = 'learned'), 0)
        + var_samp(score) FILTER (WHERE arm = 'round-robin') / nullif(count(*) FILTER (WHERE arm = 'round-robin'), 0)
    ) AS error
FROM (SELECT policy AS arm, score::double precision AS score FROM aos.tasks WHERE score IS NOT NULL) arms
""",
)

WAITS = Query(
    "waits",
    "Where do tasks wait?",
    "planning: requested to ready for the first attempt of the first step (clients' clocks count); queue: ready to "
    "assigned; work: assigned to answered; request: requested to result.",
    """
SELECT stage, count(*) AS tasks, percentile_cont(0.5) WITHIN GROUP (ORDER BY us) AS p50_us,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY us) AS p95_us
FROM (
    SELECT '1 planning' AS stage,
        (extract(epoch FROM assigned_at - requested_at) * 1000000 - waited_us)::double precision AS us
    FROM aos.attempts WHERE step = 0 AND attempt = 1 AND assigned_at IS NOT NULL
    UNION ALL SELECT '2 queue', waited_us FROM aos.attempts WHERE assigned_at IS NOT NULL
    UNION ALL SELECT '3 work', latency_us FROM aos.attempts WHERE assigned_at IS NOT NULL
    UNION ALL SELECT '4 request', latency_us FROM aos.tasks WHERE status <> 'open'
) stages
GROUP BY stage
ORDER BY stage
""",
)

GOOD_PAIRS = Query(
    "good_pairs",
    "Which pairs of agents work well together?",
    "effect: the later agent's mean score after the earlier one, less its own mean over everything of that kind.",
    """
SELECT domain, task_kind, source, target, collaborations, score, effect
FROM aos.collaboration_edges
WHERE score IS NOT NULL
ORDER BY effect DESC, domain, task_kind, source, target
LIMIT 50
""",
)

SPEND = Query(
    "spend",
    "Who spends what, on which work, with whom?",
    "Costs of all attempts, also of those that failed.",
    """
SELECT tenant, task_kind, agent, count(*) AS attempts, sum(cost_usd_micros)::bigint AS cost_usd_micros,
    sum(cpu_us)::bigint AS cpu_us
FROM aos.attempts
GROUP BY tenant, task_kind, agent
ORDER BY cost_usd_micros DESC, tenant, task_kind, agent
""",
)

FAILURES = Query(
    "failures",
    "Which agents fail, and whose work had to be done again?",
    "retries: attempts by this agent that followed another one's (or its own) failure.",
    """
SELECT agent, count(*) AS attempts, count(*) FILTER (WHERE status <> 'ok') AS failures,
    count(*) FILTER (WHERE status = 'timeout') AS timeouts, count(*) FILTER (WHERE attempt > 1) AS retries,
    count(*) FILTER (WHERE status <> 'ok')::double precision / count(*) AS failure_share
FROM aos.attempts
WHERE agent IS NOT NULL
GROUP BY agent
ORDER BY failure_share DESC, agent
""",
)

BY_MINUTE = Query(
    "by_minute",
    "How much was done, and how fast, minute by minute?",
    "Requests that ended in the minute; tasks_per_s is their number over sixty seconds.",
    """
SELECT date_trunc('minute', finished_at) AS minute, count(*) AS results,
    count(*) / 60.0::double precision AS tasks_per_s, count(*) FILTER (WHERE status = 'ok') AS ok,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_us) AS p50_us,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_us) AS p95_us, max(latency_us) AS max_us
FROM aos.tasks
WHERE status <> 'open'
GROUP BY 1
ORDER BY 1
""",
)

AT_REST = Query(
    "at_rest",
    "Is anything lost or done twice?",
    "Both counts are 0 when no request is in flight.",
    """
SELECT (SELECT count(*) FROM aos.unfinished) AS unfinished, (SELECT count(*) FROM aos.doubled) AS doubled
""",
)

COOKBOOK: dict[str, Query] = {
    query.name: query
    for query in (BEST_AGENTS, LEARNED_GAIN, WAITS, GOOD_PAIRS, SPEND, FAILURES, BY_MINUTE, AT_REST)
}

INTRODUCTION = """# SQL

Generated by `python -m aos.infra.cookbook > docs/sql.md`; do not edit.

Everything AOS knows is in the views of schema `aos`. `aos sql "SELECT ..."` asks them, or any PostgreSQL client.
Times are UTC. `request_id` is a `uuid` here, the same 16 bytes as on the topics: `WHERE request_id = '<hex>'` works.

What is promised: **one final row an acknowledged request and round, exactly once**. Rows, rollups and the offsets of
the logs are written in one transaction; a replay changes nothing. Topics arrive independently, so a row may be there
a moment before the row it belongs to.

What is kept: rows for `keep_days` and at most `keep_bytes`, dropped by whole chunks (six hours at first, shorter when
they grow large). What was dropped does not come back by a replay: rows older than `aos_data.kept.kept_from` are not
inserted, and `skipped` counts them. Ids of results are kept for seven days, whatever happens to the rows. Rollups by
minute are kept for `keep_days`, rollups by hour for ever. Payload bytes come here only with `store_payloads`; a
request's text is cut at 200 characters without it.

What cannot be held is made holdable: a NUL in a text becomes U+FFFD, names are cut at 120 and texts at 8,192
characters, arrays at 1,024 items, times lie between 1970 and 2100.

## Cost

Measured once on two shared cores under load 4, PostgreSQL 17.11, TimescaleDB 2.19.3 (Apache), fsync and
synchronous_commit on. A task is one request, 1.2 decisions of 16 candidates, as many attempts, one result: four to five
rows, two ids, two rollups.

| bundle | database us/task | sink us/task | database ms/bundle | sink ms/bundle |
|---|---|---|---|---|
| 16 tasks | 500 | 1,200 | 8 | 19 |
| 96 tasks | 190 | 230 | 18 | 22 |
| 256 tasks | 120 | 75 | 31 | 19 |
| 1,024 tasks | 106 | 37 | 108 | 38 |

Database and sink columns are CPU time of the server's backend and of the sink's process.
- *Decision and attempt are two tables*, not one row that is completed later: 18 us and 1,578 bytes of WAL a task
  against 36 us and 2,218 bytes for an upsert, which also could not tell new rows from old ones for the rollups.
- *COPY in binary form*, made of Arrow's columns by numpy: the server reads a decision of 16 candidates in 8 us instead
  of the 21 of CSV, other rows in 4 instead of 5 to 6. psycopg's `write_row`: 50 us a row in the sink.
- *A temporary table costs every commit .3 ms*, used or not: it is made when the first row for its table comes.
- *Plans are kept*: parsing and planning the statements anew costs 2 ms a bundle.
- Each secondary index costs 2 to 4 us a row: a result is therefore found by its request's time and id.
"""


def render() -> str:
    """The page: what is promised, every view with every column, every query."""
    parts = [INTRODUCTION, "## Cookbook\n"]
    for query in COOKBOOK.values():
        parts.append(
            f"### {query.question}\n\n`{query.name}`. {query.reading}\n\n```sql\n{query.sql.strip()}\n```\n"
        )
    parts.append("## Views\n")
    for view in VIEWS.values():
        parts.append(f"### aos.{view.name}\n\n{view.doc}.\n\n| column | meaning |\n|---|---|")
        parts += [f"| `{name}` | {doc.replace('|', '&#124;')} |" for name, doc in view.columns.items()]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(render(), end="")
