"""The SQL tables as data: columns with their meaning, keys, times. DDL, copy, views and docs come from here.

A column that a record has takes type and meaning from `codecs`; only what SQL adds is described here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from aos.codecs.fields import BOOL, BYTES, F32, I16, I32, I64, TEXT, TEXTS
from aos.codecs.schemas import RECORDS

F32S = pa.list_(pa.field("item", F32, nullable=False))
BOOLS = pa.list_(pa.field("item", BOOL, nullable=False))

LONG = frozenset({"text", "message", "reason", "evidence", "description", "violated", "comment", "headers"})

# what stands before a meaning in a record of many kinds
KINDS = frozenset(
    {
        "requested",
        "cancel",
        "redrive",
        "planned",
        "rejected",
        "refused",
        "outcome",
        "request",
        "assigned",
        "delegated",
        "shared",
        "context",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `long`: free text, never in an index."""

    name: str
    type: pa.DataType
    doc: str
    unit: str = ""
    long: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table. `key`: unique, time first. `time`: partitions a hypertable, None for a plain table.

    `once`: what is unique whatever the time (kept in a plain table of ids). `replaced_by`: the key of the
    view message whose rows replace all earlier rows of that key; empty where the first row stays.
    """

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    time: str | None = None
    once: tuple[str, ...] = ()
    replaced_by: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def of(record: str, names: Sequence[str], **docs: str) -> tuple[Column, ...]:
    """Columns as a record has them; `docs` says what a column means in this table, where that is less."""
    fields = RECORDS[record]
    return tuple(
        Column(n, fields[n].type, docs.get(n) or _said(fields[n].doc), fields[n].unit, n in LONG)
        for n in names
    )


def _said(doc: str) -> str:
    """A meaning without the kinds it is for ("requested: when it expires"): a table holds one kind."""
    kinds, colon, meaning = doc.partition(": ")
    if not colon or not set(kinds.split(", ")) <= KINDS:
        return doc
    return meaning[0].upper() + meaning[1:]


def all_of(record: str, *but: str) -> tuple[Column, ...]:
    """All of a record's columns but some."""
    return of(record, [f.name for f in RECORDS[record].fields if f.name not in but])


_TASK = ("requested_at", "request_id", "round")
_WHOSE = ("tenant", "domain", "home")
_STATUS = "ok, failed, rejected, expired or cancelled"
_POLICY = "round-robin (a control arm), or learned (null)"
_MODEL = ("model_version", "settings_version", "degraded", "rung")

REQUEST = Table(
    "request",
    "Requests as the ledger first saw them, accepted or refused at the edge",
    (
        *of(
            "entry",
            [*_TASK, "kind", *_WHOSE, "id", "traceparent", "task_kind", "priority", "policy", "deadline_at"],
        ),
        *of("entry", ["budget_usd_micros", "budget_cpu_us"]),
        Column("steps_count", I16, "Steps of the request as it was given", "steps"),
        Column("step_names", TEXTS, "Names of the steps, in order"),
        Column("step_kinds", TEXTS, "Kinds of work of the steps, in order; empty where none was said"),
        Column(
            "text",
            TEXT,
            "What the first step asks, cut at 200 characters unless store_payloads is on",
            long=True,
        ),
        *of("entry", ["code", "message", "parent_id", "depth"]),
    ),
    _TASK,
    time="requested_at",
    once=("request_id", "round"),
)

CONTEXT = Table(
    "context",
    "What the members of a request shared: each version",
    (
        *of("entry", [*_TASK, "context_version", *_WHOSE]),
        *of(
            "entry",
            ["step", "attempt", "agent", "id"],
            step="Number of the step whose agent changed it",
            attempt="Number of its attempt",
            agent="Who changed it",
            id="The agent's name of the call",
        ),
        Column("context", TEXT, "All of it, as JSON", long=True),
    ),
    (*_TASK, "context_version"),
    time="requested_at",
)

DECISION = Table(
    "decision",
    "Why each attempt went where it went",
    (
        *of("decision", [*_TASK, "step", "attempt", "kind", "cell", *_WHOSE, "step_name", "task_kind"]),
        *of(
            "decision",
            ["cell_partition", "epoch", "agent", "service", "policy", "probability", "score_predicted"],
        ),
        *of("decision", ["latency_predicted_us", "timeout_ms", "draw", "overridden", "trial"]),
        Column(
            "candidate_agents", TEXTS, "The alternatives; the other candidate_ columns are in the same order"
        ),
        Column("candidate_scores", F32S, "Posterior mean of each alternative"),
        Column("candidate_deviations", F32S, "Posterior standard deviation of each alternative"),
        Column("candidate_chances", F32S, "Probability of each alternative before the mask"),
        Column("candidate_maskeds", BOOLS, "Whether each alternative had no free slot"),
        Column("filtered_agents", TEXTS, "Some of those not considered"),
        Column("filtered_reasons", TEXTS, "Why each of them was not considered, in the same order"),
        *of("decision", ["filtered_count", "violated", "waited_us", "decided_at", *_MODEL]),
    ),
    (*_TASK, "step", "attempt", "kind", "cell"),
    time="requested_at",
)

ATTEMPT = Table(
    "attempt",
    "Finished attempts",
    (
        *of(
            "experience",
            [*_TASK, "step", "attempt", *_WHOSE, "id", "step_name", "task_kind", "agent", "service"],
        ),
        *of("experience", ["policy", "status", "code", "message", "score", "judged", "probability"]),
        *of(
            "experience",
            ["score_predicted", "topology", "priority", "budget_cpu_us", "cost_usd_micros", "cpu_us"],
        ),
        *of(
            "experience",
            ["tokens", "waited_us", "latency_us", "assigned_at", "finished_at", "team", "sampled"],
        ),
        *of("experience", ["sample_share", "quarantined", *_MODEL]),
    ),
    (*_TASK, "step", "attempt"),
    time="requested_at",
)

RESULT = Table(
    "result",
    "Ends of requests: exactly one a round",
    (
        *of(
            "experience", [*_TASK, *_WHOSE, "id", "task_kind", "policy", "status", "code", "message", "score"]
        ),
        *of("experience", ["judged", "topology", "quality_predicted", "duration_predicted_us", "priority"]),
        *of("experience", ["cost_usd_micros", "cpu_us", "tokens"]),
        Column("attempts", I16, "Attempts over all steps", "attempts"),
        *of("experience", ["latency_us", "finished_at", "team", *_MODEL], latency_us="Requested to result"),
    ),
    _TASK,
    time="requested_at",
    once=("request_id", "round"),
)

NOTE = Table(
    "note",
    "All other experience: corrections, foreign events, ignored answers",
    (
        *of("experience", [*_TASK, "step", "attempt", "kind", "step_name"]),
        Column("agent_key", TEXT, "The agent, empty when there is none: the key cannot hold null"),
        *of(
            "experience",
            ["finished_at", *_WHOSE, "id", "task_kind", "agent", "policy", "status", "code", "message"],
        ),
        *of("experience", ["score", "judged", "latency_us", "team", "quarantined"]),
    ),
    (*_TASK, "step", "attempt", "kind", "step_name", "agent_key", "finished_at"),
    time="requested_at",
)

PAYLOAD = Table(
    "payload",
    "Input and output bytes, only with the setting store_payloads",
    (
        *of("entry", _TASK),
        Column(
            "direction", TEXT, "in (of the request) or out (an answer as it came, also one that was ignored)"
        ),
        Column("step", I16, "Number of the step"),
        Column("attempt", I16, "Number of the attempt; 0 for in"),
        Column("log_offset", I64, "Offset of the ledger's message"),
        Column("log_row", I32, "Row in the message"),
        *of("entry", ["tenant", "agent", "content_type"]),
        Column("body", BYTES, "The bytes"),
    ),
    (*_TASK, "direction", "step", "attempt", "log_offset", "log_row"),
    time="requested_at",
)

_LOG = Column("log_offset", I64, "Offset of the view's message that said so")

AGENT = Table(
    "agent",
    "The fleet as it is",
    (*all_of("agent-state"), _LOG),
    ("service", "agent"),
    replaced_by=("service", "agent"),
)
BELIEF = Table(
    "belief",
    "What is believed of agents now",
    (*all_of("belief", "weights", "variances", "centre"), _LOG),
    ("domain", "task_kind", "agent"),
    replaced_by=("domain", "task_kind"),
)
PATTERN = Table(
    "pattern",
    "Collaborations that were mined, as last said",
    (*all_of("pattern", "centre"), _LOG),
    ("domain", "pattern"),
    replaced_by=("domain",),
)
STRATEGY = Table(
    "strategy",
    "Policies, each version once",
    (*all_of("strategy"), _LOG),
    ("name", "version"),
    replaced_by=("name", "version"),
)
SETTING = Table(
    "setting",
    "Settings changed at run time, all that was written; the view aos.settings has those that count",
    (*all_of("setting"), _LOG),
    ("version", "change", "name", "tenant"),
)
DEAD_LETTER = Table(
    "dead_letter",
    "Bytes that never became a request",
    all_of("dead-letter"),
    ("appended_at", "topic", "partition", "offset", "row", "processor", "code"),
    time="appended_at",
)
ALERT = Table(
    "alert", "What an operator should know", all_of("alert"), ("seen_at", "alert", "kind"), time="seen_at"
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        REQUEST, DECISION, ATTEMPT, RESULT, NOTE, PAYLOAD, AGENT, BELIEF, PATTERN, STRATEGY, DEAD_LETTER, ALERT,
        SETTING, CONTEXT,
    )
}  # fmt: skip

# tables that are hypertables, in the order in which chunks are dropped
HYPERTABLES = tuple(table for table in TABLES.values() if table.time)
