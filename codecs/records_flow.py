"""What flows between the processors on a task's way: tasks, matches, ledger, ready, decisions, releases, trails."""

from __future__ import annotations

import pyarrow as pa

from aos.codecs.fields import (
    BOOL,
    BYTES,
    COMMON,
    EMBEDDING,
    EMBEDDING_SIZE,
    F32,
    F64,
    I8,
    I16,
    I16S,
    I32,
    I64,
    ID,
    RUNG,
    SURFACE,
    SURFACE_SIZE,
    TEXT,
    TEXTS,
    TIME,
    Field,
    Record,
    may,
    need,
    structs,
)

CANDIDATE: tuple[Field, ...] = (
    need("agent", TEXT, "The agent"),
    need("service", TEXT, "Its service"),
    need("cell", TEXT, "Its cell"),
    need("cell_partition", I32, "Partition of the cell's lanes"),
    need("score", F32, "Posterior mean of its score on such a task, 0 to 1"),
    need("deviation", F32, "Posterior standard deviation of that mean"),
    need("similarity", F32, "Cosine of the task and the mean of its past successes, -1 to 1; 0 when unknown"),
    need("cost_usd_micros", I64, "Predicted cost", "millionths of a US dollar"),
    need("latency_us", I64, "Predicted time from assignment to answer", "us"),
    need("timeout_ms", I64, "Its own limit of one attempt, 0 when it has none", "ms"),
    need("covers", I64, "Bit i is set when it has the i-th required capability"),
    need("trial", BOOL, "Whether it is on trial: too few outcomes to be trusted"),
)
FILTERED: tuple[Field, ...] = (
    need("agent", TEXT, "Who was not considered"),
    need("reason", TEXT, "capability, tenant, health, pin, excluded or budget"),
)
_MODEL: tuple[Field, ...] = (
    need("model_version", I64, "Next offset of the experiences the beliefs had learned from; 0 before any"),
    need(
        "settings_version",
        I64,
        "Version of the settings in force: equal settings, equal number (docs/settings.md)",
    ),
    need("degraded", BOOL, "Whether a view was stale or a fallback was used"),
    RUNG,
)
_LIMITS: tuple[Field, ...] = (
    need("priority", I8, "0 (first) to 3 (last)"),
    may("deadline_at", TIME, "When the request expires", "UTC"),
    may("budget_usd_micros", I64, "What the whole request may cost", "millionths of a US dollar"),
    may("budget_cpu_us", I64, "CPU time an attempt may take", "us"),
    may("policy", TEXT, "learned (null) or round-robin"),
)

TASK = Record(
    "task",
    1,
    "One step that needs agents; all steps of a request stand in one message, a step matched anew stands alone",
    (
        *COMMON,
        need("step", I16, "Number of the step"),
        need("step_name", TEXT, "Name of the step"),
        need("steps_count", I16, "Steps of the request", "steps"),
        need("match_round", I16, "0 at first, one more each time the step is matched anew"),
        may("task_kind", TEXT, "Kind of work"),
        need("require", TEXTS, "Capabilities that are needed"),
        need("after", I16S, "Numbers of the steps it comes after"),
        need("pin", TEXTS, "Only these agents; anybody when empty"),
        need("exclude", TEXTS, "Never these agents"),
        *_LIMITS,
        need("embedding", EMBEDDING, "The task as a unit vector", "half floats"),
        need("surface", SURFACE, "Cheap features: lengths, shares, budget (agents/encoding.py)"),
    ),
)

MATCH = Record(
    "match",
    1,
    "The ranked candidates of one step",
    (
        *COMMON,
        need("step", I16, "Number of the step"),
        need("step_name", TEXT, "Name of the step"),
        need("steps_count", I16, "Steps of the request", "steps"),
        need("match_round", I16, "Which matching of the step this is"),
        may("task_kind", TEXT, "Kind of work"),
        need("require", TEXTS, "Capabilities that are needed"),
        need("after", I16S, "Numbers of the steps it comes after"),
        *_LIMITS,
        need("candidates", structs(*CANDIDATE), "Best first"),
        need("filtered", structs(*FILTERED), "Some of those not considered, with the reason (at most 8)"),
        need("filtered_count", I32, "How many were not considered", "agents"),
        need("shortfall", I32, "How many candidates fewer than wanted", "agents"),
        may("widened", TEXT, "Which filter was loosened to find enough"),
        *_MODEL,
    ),
    (("candidates", CANDIDATE), ("filtered", FILTERED)),
)

LEDGER_STEP: tuple[Field, ...] = (
    need("name", TEXT, "Name of the step"),
    may("task_kind", TEXT, "Kind of work"),
    need("require", TEXTS, "Capabilities that are needed"),
    need("after", I16S, "Numbers of the steps it comes after"),
    need("judges", I16, "Number of the step it judges, -1 for none"),
    need("pin", TEXTS, "Only these agents"),
    need("exclude", TEXTS, "Never these agents"),
    may("timeout_ms", I64, "How long one attempt may take", "ms"),
    may("text", TEXT, "What is asked"),
    may("payload", BYTES, "Input bytes"),
    may("content_type", TEXT, "Media type of the payload"),
    # Arrow cannot nest the tensor type in a list of structs everywhere: the plain storage is the same bytes.
    need("embedding", pa.list_(pa.field("item", pa.float16()), EMBEDDING_SIZE), "The step as a unit vector"),
    need("surface", pa.list_(pa.field("item", pa.float32()), SURFACE_SIZE), "Cheap features"),
)

LEDGER = Record(
    "entry",
    1,
    "The life of a task as one log: what is first counts. Columns not named for a kind are null",
    (
        *COMMON,
        need(
            "kind",
            TEXT,
            "requested, planned, rejected, assigned, refused, outcome, delegated, shared, context, cancel, redrive or "
            "tick",
        ),
        # kind=requested (encode)
        may(
            "id", TEXT, "requested, cancel, redrive: the client's own id; delegated, shared: the call's name"
        ),
        may("priority", I8, "requested: 0 to 3"),
        may("deadline_at", TIME, "requested, delegated: when it expires", "UTC"),
        may("budget_usd_micros", I64, "requested, delegated: what it may cost", "millionths of a US dollar"),
        may("budget_cpu_us", I64, "requested, delegated: CPU time of an attempt", "us"),
        may("policy", TEXT, "requested: learned (null) or round-robin"),
        may("task_kind", TEXT, "requested, delegated: kind of work"),
        may(
            "steps", structs(*LEDGER_STEP), "requested, delegated: all steps; null when it is refused already"
        ),
        # kind=planned, rejected (compose); rejected also by encode
        may("step", I16, "planned, assigned, refused, outcome, delegated, shared: number of the step"),
        may("match_round", I16, "planned, rejected: which matching it answers"),
        may("parent", I16, "planned: the step this one is a part of, when compose split it among a team"),
        may("step_name", TEXT, "planned with parent: name of the part"),
        may("require", TEXTS, "planned with parent: the capabilities of the part"),
        may("after", I16S, "planned with parent: numbers of the steps the part comes after"),
        may("alternatives", structs(*CANDIDATE), "planned: who may do it, best first; empty: nobody now"),
        may("filtered", structs(*FILTERED), "planned: some of those not considered"),
        may("filtered_count", I32, "planned: how many were not considered", "agents"),
        may("shortfall", I32, "planned: how many candidates fewer than wanted", "agents"),
        may("topology", TEXT, "planned: single, chain, parallel, dag or team"),
        may("quality_predicted", F32, "planned: expected score of the request, 0 to 1"),
        may("duration_predicted_us", I64, "planned: expected time from plan to result", "us"),
        may("plan_seed", I64, "planned: seed of the plan"),
        may("model_version", I64, "planned, assigned: version of the beliefs"),
        may("settings_version", I64, "planned, assigned: version of the settings"),
        may("degraded", BOOL, "planned, assigned: stale view or fallback"),
        # kind=assigned, refused (allocate), outcome (admit)
        may("attempt", I16, "assigned, refused, outcome, delegated, shared: number of the attempt"),
        may("agent", TEXT, "assigned, outcome, delegated, shared: the agent; requested: who delegated it"),
        may("service", TEXT, "assigned: its service"),
        may("cell", TEXT, "assigned, refused: the cell"),
        may("cell_partition", I32, "assigned, refused: partition of the cell's lanes"),
        may("epoch", I64, "assigned, outcome, delegated, shared: epoch of the cell's owner"),
        may("probability", F32, "assigned: probability of the whole choice"),
        may("score_predicted", F32, "assigned: posterior mean of the chosen agent"),
        may("timeout_ms", I64, "assigned: the agent's own limit of one attempt, 0 for none", "ms"),
        may("token", ID, "outcome, delegated, shared: the secret the agent echoed"),
        may("status", TEXT, "outcome: ok, failed or progress"),
        may("replica", TEXT, "outcome: which copy did it"),
        may("payload", BYTES, "outcome: output bytes; shared: what changes; context: all of it, as JSON"),
        may("content_type", TEXT, "outcome: media type of the output"),
        may("score", F32, "outcome: own report or verdict"),
        may("code", TEXT, "rejected, refused, outcome, delegated: error code"),
        may("message", TEXT, "rejected, refused, outcome, delegated, cancel: in words"),
        may("retryable", BOOL, "outcome: whether another attempt may succeed"),
        may("cost_usd_micros", I64, "outcome: what it cost", "millionths of a US dollar"),
        may("cpu_us", I64, "outcome: CPU time it took", "us"),
        may("tokens_in", I64, "outcome: model tokens read", "tokens"),
        may("tokens_out", I64, "outcome: model tokens written", "tokens"),
        may("progress", F32, "outcome: share done"),
        # kind=requested (encode): the limits in force when it came in, so that the fold needs no settings for them
        may(
            "quota_requests",
            F64,
            "requested: requests a second its tenant may send; no limit when null",
            "1/s",
        ),
        may(
            "quota_bytes", F64, "requested: bytes of text and payload a second; no limit when null", "bytes/s"
        ),
        may("quota_in_flight", I64, "requested: requests in flight at once; no limit when null", "requests"),
        may("quota_burst_s", F64, "requested: how many seconds' worth of a rate may come at once", "s"),
        may("quota_shares", I32, "requested: partitions that share these quotas evenly", "partitions"),
        may("waiting_max", I64, "requested: steps that may wait here before work is shed", "steps"),
        may("rung", TEXT, "planned, assigned: how it was degraded, as in a match; null when it was not"),
        # what agents ask for while at work (admit, then supervise)
        may(
            "parent_id",
            ID,
            "requested: the request it was delegated from, at step and attempt; null for a caller's",
        ),
        may(
            "depth", I16, "requested: how many delegations it is away from a caller's request; null for none"
        ),
        may("context_version", I64, "shared: the version it was made from; context: the version it makes"),
    ),
    (("steps", LEDGER_STEP), ("alternatives", CANDIDATE), ("filtered", FILTERED)),
)

READY = Record(
    "ready",
    1,
    "An attempt that may start now, in the lane of its priority (aos.ready.p0 to p3), at its cell's partition",
    (
        *COMMON,
        need("step", I16, "Number of the step"),
        need("step_name", TEXT, "Name of the step"),
        need("attempt", I16, "Number of the attempt"),
        may("task_kind", TEXT, "Kind of work"),
        need("ready_at", TIME, "Log time at which it became ready", "UTC"),
        need("running", BOOL, "Whether its workflow has started: at equal priority it goes first"),
        *_LIMITS,
        need("alternatives", structs(*CANDIDATE), "Who may do it, best first"),
        need("filtered", structs(*FILTERED), "Some of those not considered"),
        need("filtered_count", I32, "How many were not considered", "agents"),
        need("refusals", I16, "Cells that refused this attempt so far"),
        *_MODEL,
    ),
    (("alternatives", CANDIDATE), ("filtered", FILTERED)),
)

RELEASE = Record(
    "release",
    1,
    "An attempt that no longer holds, or must not take, a slot (supervise to allocate)",
    (
        *COMMON,
        need("step", I16, "Number of the step"),
        need("attempt", I16, "Number of the attempt"),
        need("agent", TEXT, "Who held the slot; empty when it was never assigned"),
        need("cell", TEXT, "The cell"),
        need("reason", TEXT, "ok, failed, timeout, cancelled, expired or ignored (a later assignment)"),
        need("epoch", I64, "Epoch of the assignment it ends; 0 when there was none"),
    ),
)

CHOICE: tuple[Field, ...] = (
    need("agent", TEXT, "The alternative"),
    need("score", F32, "Posterior mean"),
    need("deviation", F32, "Posterior standard deviation"),
    need("chance", F32, "Probability with which it would be chosen, before the mask"),
    need("masked", BOOL, "Whether it had no free slot"),
)

DECISION = Record(
    "decision",
    1,
    "Why an attempt went where it went; allocate's journal, acknowledged before the assignment is sent",
    (
        *COMMON,
        need("kind", TEXT, "assigned or refused"),
        need("step", I16, "Number of the step"),
        need("step_name", TEXT, "Name of the step"),
        need("attempt", I16, "Number of the attempt"),
        may("task_kind", TEXT, "Kind of work"),
        need("cell", TEXT, "The cell that decided"),
        need("cell_partition", I32, "Its partition"),
        need("epoch", I64, "Epoch of the cell's owner"),
        may("agent", TEXT, "The chosen agent"),
        may("service", TEXT, "Its service"),
        need("policy", TEXT, "learned or round-robin"),
        need("probability", F32, "Probability of the whole choice, with the mask"),
        may("score_predicted", F32, "Posterior mean of the chosen agent"),
        may("latency_predicted_us", I64, "Predicted time of the chosen agent", "us"),
        may("timeout_ms", I64, "The chosen agent's own limit, 0 for none", "ms"),
        need("draw", F32, "The number in 0..1 the choice was made with: a hash of attempt and salt"),
        need("overridden", BOOL, "Whether capacity kept the best alternative out"),
        need("trial", BOOL, "Whether the chosen agent is on trial"),
        need("candidates", structs(*CHOICE), "All alternatives with their chances"),
        need("filtered", structs(*FILTERED), "Some of those not considered"),
        need("filtered_count", I32, "How many were not considered", "agents"),
        may("violated", TEXT, "refused: the constraint that could not be met"),
        need("waited_us", I64, "From ready to decided", "us"),
        need("decided_at", TIME, "Log time of the decision", "UTC"),
        *_MODEL,
    ),
    (("candidates", CHOICE), ("filtered", FILTERED)),
)

TRAIL = Record(
    "trail",
    1,
    "A finished attempt (kind attempt) or request (kind request) with all that led to it, or (kind ignored) an answer "
    "that counted for nothing, as evidence: late AOS3005, duplicate AOS3006, forged AOS3007, unknown AOS3011",
    (
        *COMMON,
        need("kind", TEXT, "attempt, request or ignored"),
        may("id", TEXT, "The client's own id"),
        need("step", I16, "Number of the step; -1 for a request"),
        need("step_name", TEXT, "Name of the step; empty for a request"),
        need("attempt", I16, "Number of the attempt; the number of attempts for a request"),
        may("task_kind", TEXT, "Kind of work"),
        need("priority", I8, "0 to 3"),
        may("policy", TEXT, "learned (null) or round-robin"),
        may("agent", TEXT, "Who did it"),
        may("service", TEXT, "Its service"),
        may("cell", TEXT, "Its cell"),
        need(
            "status",
            TEXT,
            "ok, failed, timeout, cancelled, expired; for a request that of its result; ignored",
        ),
        may("code", TEXT, "Error code"),
        may("message", TEXT, "Error in words"),
        may("score", F32, "Verdict if judged, else own report, else 1 for ok and 0 for failed"),
        need("judged", BOOL, "Whether the score is a judge's verdict"),
        may("probability", F32, "Probability of the choice"),
        may("score_predicted", F32, "What was expected of the agent"),
        may("topology", TEXT, "Shape of the plan"),
        may("quality_predicted", F32, "request: expected score"),
        may("duration_predicted_us", I64, "request: expected time", "us"),
        may("budget_cpu_us", I64, "CPU time an attempt might take", "us"),
        need("cost_usd_micros", I64, "What it cost", "millionths of a US dollar"),
        need("cpu_us", I64, "CPU time reported", "us"),
        need("tokens", I64, "Model tokens read and written", "tokens"),
        may("ready_at", TIME, "Log time: could start", "UTC"),
        may("assigned_at", TIME, "Log time: assigned", "UTC"),
        need("finished_at", TIME, "Log time: ended", "UTC"),
        need("latency_us", I64, "Assignment to answer; for a request, requested to result", "us"),
        need(
            "team", TEXTS, "Agents of this step's predecessors and itself (attempt), of all steps (request)"
        ),
        need("ignored", I16, "Late, duplicate or forged answers seen so far", "answers"),
        may("embedding", EMBEDDING, "attempt: the task as a unit vector"),
        may("surface", SURFACE, "attempt: cheap features"),
        *_MODEL,
    ),
)
