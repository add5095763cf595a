"""What is learned and watched: fleet, agent states, experiences, beliefs, patterns, strategies, dead letters."""

from __future__ import annotations

import pyarrow as pa

from aos.codecs.fields import (
    BOOL,
    BYTES,
    COMMON,
    EMBEDDING,
    F32,
    F32S,
    F64,
    I8,
    I16,
    I32,
    I64,
    ID,
    RUNG,
    SURFACE,
    TEXT,
    TEXTS,
    TIME,
    Record,
    may,
    need,
)
from aos.codecs.records_edge import REGISTRATION

F64S = pa.list_(pa.field("item", F64, nullable=False))

FLEET = Record(
    "fleet-entry",
    1,
    "What the registry is told, as one log",
    (
        need("kind", TEXT, "registered, beat or control"),
        need("service", TEXT, "The deployable; empty for a control that names only an agent"),
        may("agent", TEXT, "registered, control: the agent"),
        *(may(f.name, f.type, f"registered: {f.doc}", f.unit) for f in REGISTRATION.fields[2:]),
        may("replica", TEXT, "beat: which copy"),
        may("agents", TEXTS, "beat: the agents it plays; all of the service's when null"),
        may("stopping", BOOL, "beat: whether it will answer no further work"),
        may("busy", I32, "beat: attempts it is at work on", "attempts"),
        may("action", TEXT, "control: pause, drain, resume or remove"),
        may("reason", TEXT, "control: in words"),
    ),
)

AGENT_STATE = Record(
    "agent-state",
    1,
    "What the fleet knows of an agent; view, key <service>/<block> of at most 1,000 agents",
    (
        need("service", TEXT, "Its service"),
        need("agent", TEXT, "The agent"),
        need("state", TEXT, "idle, running, degraded, learning, suspected, paused, draining or gone"),
        need("capabilities", TEXTS, "What it can do"),
        may("description", TEXT, "In words"),
        need("cell", TEXT, "Its cell"),
        need("cell_partition", I32, "Partition of the cell's lanes"),
        need("capacity", I32, "Attempts at once, summed over live replicas", "attempts"),
        need("replicas", I32, "Live replicas", "replicas"),
        need("price_usd_micros", I64, "Price of an attempt", "millionths of a US dollar"),
        need("timeout_ms", I64, "Its own limit of one attempt, 0 when it has none", "ms"),
        may("tenants", TEXTS, "Tenants it may work for; all when null"),
        need("fallback", BOOL, "Whether it answers what nobody else is trusted with"),
        need("registered_at", TIME, "Log time of its registration", "UTC"),
        need("seen_at", TIME, "Log time of the last sign of life", "UTC"),
        need("version", I64, "Next offset of the fleet log at publication"),
    ),
)

CORRECTION = Record(
    "correction",
    1,
    "A caller's verdict, validated (topic aos.corrections)",
    (
        *COMMON,
        may("id", TEXT, "The client's own id"),
        may("step_name", TEXT, "The step it is about; the last one when null"),
        need("score", F32, "0 to 1"),
        may("comment", TEXT, "In words"),
        need("given_at", TIME, "Append time of the feedback", "UTC"),
    ),
)

SIGHTING = Record(
    "sighting",
    1,
    "A foreign log's event, validated (topic aos.sightings)",
    (
        need("tenant", TEXT, "Whose log"),
        need("event_id", ID, "blake2b of topic, partition, offset and row"),
        need("case", TEXT, "What the event belongs to"),
        need("activity", TEXT, "What was done"),
        may("resource", TEXT, "Who did it"),
        need("time", TIME, "When, clamped", "UTC"),
        may("score", F32, "How well; descriptive only"),
    ),
)

EXPERIENCE = Record(
    "experience",
    1,
    "What an outcome teaches; one partition a learning domain",
    (
        *COMMON,
        need(
            "kind",
            TEXT,
            "attempt, request, correction, foreign, ignored (an answer that counted for nothing) or tick",
        ),
        need("step", I16, "Number of the step; -1 for a request, -2 when the correction names it"),
        may("step_name", TEXT, "Name of the step, or activity of a foreign event"),
        need("attempt", I16, "Number of the attempt"),
        may("id", TEXT, "The client's own id, or the case of a foreign event"),
        may("task_kind", TEXT, "Kind of work"),
        may("agent", TEXT, "Who did it"),
        may("service", TEXT, "Its service"),
        may("policy", TEXT, "learned (null) or round-robin"),
        need("status", TEXT, "As in the trail; corrected or seen for the other kinds"),
        may("code", TEXT, "Error code"),
        may("message", TEXT, "Error in words"),
        may("score", F32, "0 to 1; null teaches nothing about quality"),
        need("judged", BOOL, "Whether the score is a verdict or the caller's"),
        may("probability", F32, "Probability of the choice"),
        may("score_predicted", F32, "What was expected"),
        may("topology", TEXT, "Shape of the plan"),
        may("quality_predicted", F32, "request: expected score"),
        may("duration_predicted_us", I64, "request: expected time", "us"),
        need("priority", I8, "0 to 3"),
        may("budget_cpu_us", I64, "CPU time it might take", "us"),
        need("cost_usd_micros", I64, "What it cost", "millionths of a US dollar"),
        need("cpu_us", I64, "CPU time reported", "us"),
        need("tokens", I64, "Model tokens", "tokens"),
        need("waited_us", I64, "Ready to assigned", "us"),
        need("latency_us", I64, "Assignment to answer; for a request, requested to result", "us"),
        may("assigned_at", TIME, "Log time: assigned", "UTC"),
        need("finished_at", TIME, "Log time: ended", "UTC"),
        need("team", TEXTS, "Who took part"),
        need("sampled", BOOL, "Whether it is kept for the costly learners"),
        need("sample_share", F32, "Probability with which such a row is sampled"),
        may("quarantined", TEXT, "Why it must not teach (reason), null when it may"),
        may("embedding", EMBEDDING, "The task as a unit vector"),
        may("surface", SURFACE, "Cheap features"),
        need("model_version", I64, "Version of the beliefs that decided"),
        need("settings_version", I64, "Version of the settings that decided"),
        need("degraded", BOOL, "Whether the decision was degraded"),
        RUNG,
    ),
)

BELIEF = Record(
    "belief",
    1,
    "What is believed of an agent on a kind of task; view, key <domain>/<task kind> (empty kind: all kinds)",
    (
        need("domain", TEXT, "Learning domain"),
        need("task_kind", TEXT, "Kind of work; empty for all kinds together"),
        need("agent", TEXT, "The agent; empty for all agents together"),
        need("count", F64, "Outcomes it rests on, after discounts", "outcomes"),
        need("score", F32, "Posterior mean, 0 to 1"),
        need("deviation", F32, "Posterior standard deviation of the mean"),
        need("latency_us", F64, "Expected time from assignment to answer", "us"),
        need("cost_usd_micros", F64, "Expected cost", "millionths of a US dollar"),
        need("cpu_us", F64, "Expected CPU time", "us"),
        need("drift_count", I32, "Changes detected so far", "changes"),
        may("drifted_at", TIME, "Log time of the last one", "UTC"),
        may("weights", F32S, "Contextual model: intercept, then a weight for each scaled surface feature"),
        may("variances", F32S, "Contextual model: variance of the intercept and of each weight"),
        may("centre", F32S, "Mean embedding of its successes, in rows of all kinds", "unit vector"),
        need("model_version", I64, "Next offset of the experiences it has learned from"),
        need("updated_at", TIME, "Log time", "UTC"),
        may("means", F32S, "All agents together: mean of each surface feature"),
        may("scales", F32S, "All agents together: what a centred surface feature is divided by"),
    ),
)

PATTERN = Record(
    "pattern",
    1,
    "A collaboration that was mined; view, key <domain>",
    (
        need("domain", TEXT, "Learning domain"),
        need("pattern", TEXT, "Id that stays from run to run"),
        need("kind", TEXT, "cluster (HDBSCAN) or pair"),
        need("members", TEXTS, "Agents, in order of work for a pair"),
        may("task_kind", TEXT, "Most frequent kind of work"),
        need("support", I64, "Collaborations it rests on", "collaborations"),
        need("score", F32, "Their mean score"),
        need(
            "baseline",
            F32,
            "Expected without it: mean of all (cluster), from both agents' other pairs (pair)",
        ),
        need("effect", F32, "score less baseline"),
        need("error", F32, "Standard error of the effect"),
        need("persistence", F32, "Cluster stability, 0 to 1; 0 for a pair"),
        may("centre", F32S, "Cluster centre in feature space"),
        need("window_from", TIME, "First collaboration", "UTC"),
        need("window_to", TIME, "Last collaboration", "UTC"),
        need("version", I64, "Next offset of the experiences mined"),
    ),
)

STRATEGY = Record(
    "strategy",
    1,
    "A policy in force; view, key <name>",
    (
        need("name", TEXT, "The learning domain it governs, or * for all"),
        need("version", I64, "Next offset of the experiences it rests on; grows with each change"),
        need("status", TEXT, "active, proposed or rejected"),
        need("exploration", F32, "Factor on the posterior's deviation, .25 to 2"),
        need("floor", F32, "Least chance of an agent on trial, 0 to .05"),
        need("weight_success", F32, "Share of success in the utility; the four sum to 1"),
        need("weight_latency", F32, "Share of latency"),
        need("weight_stability", F32, "Share of stability"),
        need("weight_resource", F32, "Share of cost"),
        need("pair_bonus", F32, "Factor on a pattern's effect when a team is composed"),
        need("reason", TEXT, "Why it changed, with the figures"),
        need("evidence_count", I64, "Experiences it rests on", "experiences"),
        need("changed_at", TIME, "Log time", "UTC"),
    ),
)

ALERT = Record(
    "alert",
    1,
    "Something an operator should know (topic aos.alerts)",
    (
        need("alert", TEXT, "Id of the alert, the same when it opens and clears"),
        need("kind", TEXT, "opened or cleared"),
        need("source", TEXT, "The processor that saw it"),
        need("subject", TEXT, "What it is about: an agent, topic or domain"),
        need("message", TEXT, "One sentence"),
        need("evidence", TEXT, "Figures, as JSON"),
        need("seen_at", TIME, "Log time", "UTC"),
    ),
)

SETTING = Record(
    "setting",
    1,
    "A setting changed at run time; view, key <version>/<change>; the rows of a message are one change",
    (
        need("name", TEXT, "Name of the setting"),
        need("tenant", TEXT, "Whose; empty: for all"),
        need("value", TEXT, "As JSON; null: the value of the start again"),
        need("version", I64, "One more than the version it was made from; else the change does not count"),
        need("change", ID, "Random id of the change: tells two changes of one version apart"),
        need("changed_at", TIME, "When, by the clock of who changed it", "UTC"),
        may("changed_by", TEXT, "Who"),
        may("reason", TEXT, "Why, in words"),
    ),
)

ORDER = Record(
    "processor-order",
    1,
    "An order to a processor (topic aos.processors); view, the processor's name is the key: the last one holds",
    (
        need("processor", TEXT, "Name of the processor; the same as the message's key"),
        need("action", TEXT, "pause, drain (of encode only) or resume"),
        may("ordered_at", TIME, "When, by the clock of who ordered it; data only", "UTC"),
        may("ordered_by", TEXT, "Who"),
        may("reason", TEXT, "Why, in words"),
    ),
)

SNAPSHOT = Record(
    "snapshot-chunk",
    1,
    "A piece of a processor's state, or its manifest; key (processor, partition, slot, chunk)",
    (
        need("processor", TEXT, "Whose state"),
        need("partition", I32, "Of which partition"),
        need("slot", I8, "0 or 1, in turn"),
        need("chunk", I32, "Number of the chunk; -1 for the manifest, which is written last"),
        need("body", BYTES, "Bytes of the state, or the manifest as JSON"),
    ),
)

DEAD_LETTER = Record(
    "dead-letter",
    1,
    "Bytes that never became a request, or evidence beside a failed one",
    (
        need("tenant", TEXT, "Tenant of the topic it came by"),
        need("processor", TEXT, "Who refused it"),
        need("code", TEXT, "Error code (docs/errors.md)"),
        need("message", TEXT, "What was wrong, where, and what to do"),
        need("topic", TEXT, "Where it was read"),
        need("partition", I32, "Its partition"),
        need("offset", I64, "Its offset"),
        need("row", I32, "Row in the message; -1 for the whole message"),
        may("request_id", ID, "The request it belongs to, if it became one"),
        may("headers", TEXT, "Its headers, as JSON (values base64)"),
        need(
            "body",
            BYTES,
            "The original bytes, cut at 64 KiB (at 4 MiB when only a later release can read them)",
        ),
        need("body_size", I64, "Size of the original", "bytes"),
        need("appended_at", TIME, "Append time of the original", "UTC"),
    ),
)
