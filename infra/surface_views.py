"""The SELECT of every view of schema `aos`, and the meanings of what it adds.

Order matters: a view stands after those it reads. Tables are left-joined: topics arrive independently, so a row may
be there before the row it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a view is. `columns`: in order, an empty meaning is taken from `tables` (the first that has it); no
    columns at all: those of `tables`, less `without`."""

    doc: str
    sql: str
    tables: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def _plain(doc: str, table: str, *without: str) -> Meaning:
    return Meaning(doc, f"SELECT {{columns}} FROM aos_data.{table}", (table,), without=without)


def _named(*names: str, **meanings: str) -> dict[str, str]:
    return dict.fromkeys(names, "") | meanings


TASKS = Meaning(
    "Each request with its end, one row a round: the request and its result in one",
    """
SELECT r.requested_at, r.request_id, r.round, r.tenant, r.domain, r.id, r.task_kind,
    r.priority, coalesce(r.policy, e.policy, 'learned') AS policy, r.steps_count, r.text, r.traceparent, r.deadline_at,
    r.budget_usd_micros, r.budget_cpu_us, coalesce(e.status, 'open') AS status,
    coalesce(e.code, r.code) AS code, coalesce(e.message, r.message) AS message, e.score, e.judged,
    e.team AS agents, e.attempts, e.topology, e.quality_predicted, e.duration_predicted_us, e.cost_usd_micros,
    e.cpu_us, e.tokens, e.latency_us, e.finished_at, e.model_version, e.settings_version, e.degraded, e.rung,
    r.parent_id, r.depth
FROM aos_data.request r
LEFT JOIN aos_data.result e
    ON e.requested_at = r.requested_at AND e.request_id = r.request_id AND e.round = r.round
""",
    ("request", "result"),
    _named(
        "requested_at", "request_id", "round", "tenant", "domain", "id", "task_kind", "priority",
        policy="learned or round-robin (a control arm)",
    )
    | _named("steps_count", "text", "traceparent", "deadline_at", "budget_usd_micros", "budget_cpu_us")
    | _named(
        status="ok, failed, rejected, expired, cancelled; open while there is no result",
        code="Error code when the status is not ok (docs/errors.md)",
        message="Error in words",
        score="Mean score of the scored steps, 0 to 1",
        judged="",
        agents="Who took part, over all steps",
    )
    | _named("attempts", "topology", "quality_predicted", "duration_predicted_us")
    | _named(
        cost_usd_micros="What its own attempts cost; what it delegated has rows of its own [millionths of a US dollar]",
        cpu_us="CPU time of its own attempts [us]",
    )
    | _named("tokens", latency_us="From requested_at to the end [us]", finished_at="Log time at which it ended [UTC]")
    | _named("model_version", "settings_version", "degraded", "rung", "parent_id", "depth"),
)  # fmt: skip

STEPS = Meaning(
    "Each step of a request with its last attempt; steps that were never tried have no attempt",
    """
SELECT requested_at, request_id, round, step, step_name, task_kind, tenant, domain, agent,
    status, code, score, attempts, cost_usd_micros, cpu_us, waited_us, latency_us, finished_at
FROM (
    SELECT DISTINCT ON (requested_at, request_id, round, step)
        requested_at, request_id, round, step, step_name, task_kind, tenant, domain, agent, status, code, score,
        count(*) OVER every AS attempts, sum(cost_usd_micros) OVER every AS cost_usd_micros,
        sum(cpu_us) OVER every AS cpu_us, sum(waited_us) OVER every AS waited_us, latency_us, finished_at
    FROM aos_data.attempt
    WINDOW every AS (PARTITION BY requested_at, request_id, round, step)
    ORDER BY requested_at, request_id, round, step, attempt DESC
) tried
UNION ALL
SELECT r.requested_at, r.request_id, r.round, (s.number - 1)::smallint, s.name,
    coalesce(nullif(s.kind, ''), r.task_kind), r.tenant, r.domain, NULL, 'waiting', NULL, NULL, 0, 0, 0, 0, NULL, NULL
FROM aos_data.request r
CROSS JOIN LATERAL unnest(r.step_names, r.step_kinds) WITH ORDINALITY AS s (name, kind, number)
WHERE NOT EXISTS (
    SELECT FROM aos_data.attempt a
    WHERE a.requested_at = r.requested_at AND a.request_id = r.request_id AND a.round = r.round
        AND a.step = s.number - 1
)
""",
    ("attempt",),
    _named(
        "requested_at", "request_id", "round", "step", "step_name", "task_kind", "tenant", "domain",
        agent="Who made the last attempt",
        status="Of the last attempt: ok, failed, timeout, cancelled, expired; waiting when there was none",
        code="Error code of the last attempt",
        score="Score of the last attempt, 0 to 1",
        attempts="Finished attempts [attempts]",
        cost_usd_micros="What all attempts cost [millionths of a US dollar]",
        cpu_us="CPU time of all attempts [us]",
        waited_us="Ready to assigned, over all attempts [us]",
        latency_us="Assignment to answer of the last attempt [us]",
        finished_at="Log time at which the last attempt ended [UTC]",
    ),
)  # fmt: skip

SKILL = Meaning(
    "How good each agent was at each kind of work, by minute, with the running mean so far",
    """
SELECT bucket, domain, task_kind, agent, attempts, ok, scored, score, latency_us, cost_usd_micros,
    sum(attempts) OVER so_far AS attempts_so_far,
    sum(score_sum) OVER so_far / nullif(sum(scored) OVER so_far, 0) AS score_so_far
FROM (
    SELECT time_bucket(INTERVAL '1 minute', finished_at) AS bucket, domain, coalesce(task_kind, '') AS task_kind,
        agent, count(*) AS attempts, count(*) FILTER (WHERE status = 'ok') AS ok, count(score) AS scored,
        avg(score::double precision) AS score, sum(score::double precision) AS score_sum,
        avg(latency_us)::double precision AS latency_us, avg(cost_usd_micros)::double precision AS cost_usd_micros
    FROM aos_data.attempt
    WHERE agent IS NOT NULL
    GROUP BY 1, 2, 3, 4
) minutes
WINDOW so_far AS (PARTITION BY domain, task_kind, agent ORDER BY bucket)
""",
    ("attempt",),
    _named(
        bucket="Minute of the log in which the attempts ended [UTC]",
        domain="",
        task_kind="Kind of work; empty where none was said",
        agent="",
        attempts="Attempts that ended in this minute [attempts]",
        ok="Of these, ended ok [attempts]",
        scored="Of these, with a score [attempts]",
        score="Mean score, 0 to 1",
        latency_us="Mean time from assignment to answer [us]",
        cost_usd_micros="Mean cost of an attempt [millionths of a US dollar]",
        attempts_so_far="Attempts up to this minute [attempts]",
        score_so_far="Mean score up to this minute, 0 to 1",
    ),
)

EDGES = Meaning(
    "Who worked after whom, and how well: one row a pair of agents and kind of the later one's work",
    """
WITH edge AS (
    SELECT a.domain, coalesce(a.task_kind, '') AS task_kind, before.agent AS source, a.agent AS target, a.status,
        a.score, a.latency_us, a.finished_at
    FROM aos_data.attempt a
    CROSS JOIN LATERAL (SELECT DISTINCT unnest(a.team) AS agent) before
    WHERE cardinality(a.team) > 1 AND a.agent IS NOT NULL AND before.agent <> a.agent
), alone AS (
    SELECT domain, coalesce(task_kind, '') AS task_kind, agent, avg(score::double precision) AS score
    FROM aos_data.attempt WHERE agent IS NOT NULL GROUP BY 1, 2, 3
)
SELECT e.domain, e.task_kind, e.source, e.target, count(*) AS collaborations,
    count(*) FILTER (WHERE e.status = 'ok') AS ok, avg(e.score::double precision) AS score,
    avg(e.score::double precision) - max(alone.score) AS effect, avg(e.latency_us)::double precision AS latency_us,
    min(e.finished_at) AS first_at, max(e.finished_at) AS last_at
FROM edge e
LEFT JOIN alone ON alone.domain = e.domain AND alone.task_kind = e.task_kind AND alone.agent = e.target
GROUP BY 1, 2, 3, 4
""",
    ("attempt",),
    _named(
        domain="",
        task_kind="Kind of work of the later agent; empty where none was said",
        source="The agent whose output went in",
        target="The agent that worked on it",
        collaborations="Attempts of target on an output of source [attempts]",
        ok="Of these, ended ok [attempts]",
        score="Mean score of these attempts, 0 to 1",
        effect="That less target's mean score over all its attempts of this kind",
        latency_us="Mean time from assignment to answer [us]",
        first_at="Log time of the first one [UTC]",
        last_at="Log time of the last one [UTC]",
    ),
)

ROLLUP_COLUMNS = _named(
    bucket="Beginning of the {unit} [UTC]; requests stand at requested_at, attempts and results at their end",
    tenant="Whose requests",
    task_kind="Kind of work; empty where none was said",
    requests="Requests that came [requests]",
    results="Requests that ended [requests]",
    ok="Of these, ok [requests]",
    failed="Of these, failed [requests]",
    rejected="Of these, rejected [requests]",
    expired="Of these, expired [requests]",
    cancelled="Of these, cancelled [requests]",
    attempts="Attempts that ended [attempts]",
    attempts_failed="Of these, not ok [attempts]",
    retries="Of these, not the first of their step [attempts]",
    scored="Ended requests with a score [requests]",
    score_micros="Sum of their scores [millionths]",
    cost_usd_micros="What the ended requests cost [millionths of a US dollar]",
    cpu_us="CPU time of the ended requests [us]",
    tokens="Model tokens of the ended requests [tokens]",
    waited_us="Sum over attempts, ready to assigned [us]",
    latency_us="Sum over ended requests, requested to result [us]",
    latency_us_max="The largest of these [us]",
)


def _rollup(unit: str) -> Meaning:
    columns = {name: doc.replace("{unit}", unit) for name, doc in ROLLUP_COLUMNS.items()}
    sql = f"SELECT {{columns}} FROM aos_data.rollup_{unit}"
    return Meaning(
        f"Counts and sums by {unit}, tenant and kind of work, kept when rows are dropped", sql, (), columns
    )


UNFINISHED = Meaning(
    "Requests without a final result, one row a round (a redriven request's next round has its own once it has "
    "begun): none at rest; filter by requested_at for those that are old",
    """
SELECT r.requested_at, r.request_id, r.round, r.tenant, r.domain, r.id, r.task_kind, r.priority, r.deadline_at
FROM aos_data.request r
WHERE NOT EXISTS (SELECT FROM aos_data.result_once e WHERE e.request_id = r.request_id AND e.round = r.round)
""",
    ("request",),
    _named(
        "requested_at",
        "request_id",
        "round",
        "tenant",
        "domain",
        "id",
        "task_kind",
        "priority",
        "deadline_at",
    ),
)

DOUBLED = Meaning(
    "Requests with more than one final row in a round: none, ever",
    """
SELECT request_id, round, count(*) AS results, min(finished_at) AS first_at, max(finished_at) AS last_at
FROM aos_data.result GROUP BY request_id, round HAVING count(*) > 1
""",
    ("result",),
    _named(
        "request_id", "round",
        results="Final rows [rows]",
        first_at="Log time of the first one [UTC]",
        last_at="Log time of the last one [UTC]",
    ),
)  # fmt: skip

PLACES = Meaning(
    "How far the store has read each partition",
    "SELECT topic, topic_id, partition, next_offset, generation FROM aos_data.place",
    (),
    _named(
        topic="Topic, without prefix",
        topic_id="The topic's creation id: a topic made anew begins at 0 again",
        partition="Its partition",
        next_offset="Offset of the first message that is not in SQL yet",
        generation="One more each time a sink opened the partition; older sinks cannot write",
    ),
)

UNWRITABLE = Meaning(
    "Messages that SQL refused although every value was made holdable: none; each one is a bug",
    'SELECT topic, topic_id, partition, "offset", rows_count, message, appended_at FROM aos_data.unwritable',
    (),
    _named(
        topic="Topic, without prefix",
        topic_id="The topic's creation id",
        partition="Its partition",
        offset="Its offset",
        rows_count="Rows of the message [rows]",
        message="What the database said",
        appended_at="Append time of the message [UTC]",
    ),
)

SETTINGS = Meaning(
    "Settings changed at run time, every change that counts: version is settings_version modulo 1048576 of what was "
    "decided under it",
    """
WITH RECURSIVE counted AS (
    SELECT 0::bigint AS version, -1::bigint AS log_offset
    UNION ALL
    SELECT next.version, next.log_offset
    FROM counted c
    CROSS JOIN LATERAL (
        SELECT s.version, s.log_offset FROM aos_data.setting s
        WHERE s.version = c.version + 1 AND s.log_offset > c.log_offset ORDER BY s.log_offset LIMIT 1
    ) next
)
SELECT s.version, s.name, s.tenant, s.value, s.changed_at, s.changed_by, s.reason, s.change
FROM counted c JOIN aos_data.setting s ON s.version = c.version AND s.log_offset = c.log_offset
""",
    ("setting",),
    {
        "version": "Number of the change, from 1; of two with one number the first in the log counts",
        **_named("name", "tenant", "value", "changed_at", "changed_by", "reason", "change"),
    },
)

OPEN_ALERTS = Meaning(
    "Alerts that are opened and not cleared, as last said: none at rest",
    """
SELECT alert, source, subject, message, evidence, opened_at, seen_at
FROM (
    SELECT DISTINCT ON (alert) alert, kind, source, subject, message, evidence, seen_at,
        (SELECT min(first.seen_at) FROM aos_data.alert first WHERE first.alert = a.alert AND first.kind = 'opened'
            AND first.seen_at > coalesce((SELECT max(done.seen_at) FROM aos_data.alert done
                WHERE done.alert = a.alert AND done.kind = 'cleared'), '-infinity')) AS opened_at
    FROM aos_data.alert a ORDER BY alert, seen_at DESC, kind
) last
WHERE kind = 'opened'
""",
    ("alert",),
    _named(
        "alert", "source", "subject", "message", "evidence",
        opened_at="When it was opened [UTC]",
        seen_at="When it was said last [UTC]",
    ),
)  # fmt: skip

SQL: dict[str, Meaning] = {
    "requests": _plain("Requests as the ledger first saw them, accepted or refused at the edge", "request"),
    "tasks": TASKS,
    "steps": STEPS,
    "attempts": _plain("Every finished attempt: who did it, how it ended, what it cost", "attempt"),
    "decisions": _plain("Why each attempt went where it went: candidates, chances, the draw", "decision"),
    "notes": _plain(
        "All other experience: corrections, foreign events, ignored answers", "note", "agent_key"
    ),
    "agents": _plain("The fleet as it is", "agent", "log_offset"),
    "beliefs": _plain("What is believed of each agent on each kind of work, now", "belief", "log_offset"),
    "skill_over_time": SKILL,
    "collaboration_edges": EDGES,
    "patterns": _plain("Collaborations that were mined, as last said", "pattern", "log_offset"),
    "strategies": _plain("Policies, every version", "strategy", "log_offset"),
    "settings": SETTINGS,
    "rollup_minute": _rollup("minute"),
    "rollup_hour": _rollup("hour"),
    "dead_letters": _plain(
        "Bytes that never became a request, and evidence (body only with store_payloads)", "dead_letter"
    ),
    "alerts": _plain("What an operator should know: opened, said again, cleared", "alert"),
    "open_alerts": OPEN_ALERTS,
    "payloads": _plain("Input and output bytes, only with the setting store_payloads", "payload"),
    "contexts": _plain("What the members of a request shared: each version of it", "context"),
    "unfinished": UNFINISHED,
    "doubled": DOUBLED,
    "places": PLACES,
    "unwritable": UNWRITABLE,
}
