"""What outsiders send and receive: requests, results, registrations, heartbeats, inbox, outcomes, feedback."""

from __future__ import annotations

from aos.codecs.fields import (
    BOOL,
    BYTES,
    COMMON,
    ECHO,
    F32,
    F32S,
    I8,
    I16,
    I32,
    I64,
    I64S,
    ID,
    RUNG,
    TEXT,
    TEXTS,
    TIME,
    Field,
    Record,
    may,
    need,
    structs,
)

STEP_SPEC: tuple[Field, ...] = (
    need("name", TEXT, "Name of the step, unique in its request"),
    may("task_kind", TEXT, "What kind of work it is; the request's when null"),
    may("text", TEXT, "What is asked; the request's when null"),
    may("payload", BYTES, "Input bytes; the request's when null"),
    may("require", TEXTS, "Capabilities the agent must have; the request's when null"),
    may("after", TEXTS, "Names of the steps whose outputs this one receives"),
    may("judges", TEXT, "Name of the step this one's score is the verdict on"),
    may("pin", TEXTS, "Only these agents"),
    may("exclude", TEXTS, "Never these agents"),
    may("timeout_ms", I64, "How long one attempt may take", "ms"),
)

REQUEST = Record(
    "request",
    1,
    "A request for work, as a producer writes it",
    (
        may("id", TEXT, "The client's own id: a repeated id inside the window gets the same result again"),
        may(
            "requested_at", TIME, "When it happened at the client; clamped; the append time when null", "UTC"
        ),
        may("traceparent", TEXT, "W3C trace context"),
        may("domain", TEXT, "Learning sub-domain (default: the tenant)"),
        may("task_kind", TEXT, "What kind of work it is"),
        may("text", TEXT, "What is asked, in words"),
        may("payload", BYTES, "Input bytes, at most 32 KiB with the text"),
        may("content_type", TEXT, "Media type of the payload"),
        may(
            "tensor",
            F32S,
            "Row-major values: the embedding (projected to 256); payload too when there is none",
        ),
        may("tensor_shape", I64S, "Shape of the tensor; one dimension when null", "elements"),
        may("require", TEXTS, "Capabilities that are needed"),
        may("steps", structs(*STEP_SPEC), "A workflow: a DAG of steps; one step when null"),
        may("pin", TEXTS, "Only these agents"),
        may("exclude", TEXTS, "Never these agents"),
        may("priority", I8, "0 (first) to 3 (last); 2 when null"),
        may("deadline_ms", I64, "No attempt may start or end later than this after requested_at", "ms"),
        may("budget_usd_micros", I64, "What the whole request may cost", "millionths of a US dollar"),
        may("budget_cpu_us", I64, "CPU time an agent may spend on an attempt", "us"),
        may("policy", TEXT, "How allocate chooses: learned (default) or round-robin (a control arm)"),
    ),
    (("steps", STEP_SPEC),),
)

STEP_RESULT: tuple[Field, ...] = (
    need("name", TEXT, "Name of the step"),
    may("agent", TEXT, "Who did it"),
    need("status", TEXT, "ok, failed, expired, cancelled, waiting or rejected"),
    may("score", F32, "Its score, 0 to 1"),
    need("attempts", I16, "How many attempts were made"),
)

RESULT = Record(
    "result",
    1,
    "How a request ended: exactly one row a round in SQL, at least once with one id on the topic",
    (
        *COMMON,
        may("id", TEXT, "The client's own id"),
        need("status", TEXT, "ok, failed, rejected, expired or cancelled"),
        may("code", TEXT, "Error code when the status is not ok (docs/errors.md)"),
        may("message", TEXT, "One sentence for a reader"),
        may("task_kind", TEXT, "The request's kind of work"),
        may("payload", BYTES, "Output of the last step (the first of several, in step order)"),
        may("content_type", TEXT, "Media type of the payload"),
        may("score", F32, "Mean score of the scored steps, 0 to 1"),
        need("agents", TEXTS, "Who took part, in step order"),
        need("steps", structs(*STEP_RESULT), "Each step's end"),
        need("attempts", I16, "Attempts over all steps"),
        need(
            "cost_usd_micros",
            I64,
            "What the agents charged, also for what was delegated below it",
            "millionths of a US dollar",
        ),
        need("cpu_us", I64, "CPU time the agents reported, also for what was delegated below it", "us"),
        need("finished_at", TIME, "Log time at which the request ended", "UTC"),
        need("latency_us", I64, "finished_at less requested_at", "us"),
        need("degraded", BOOL, "Whether a decision was made on stale views or by a fallback"),
        need("repeated", BOOL, "Whether this answers a repeated request id"),
        may(
            "retry_after_ms",
            I64,
            "Refused for a quota or overload: how long to wait before trying again",
            "ms",
        ),
        RUNG,
    ),
    (("steps", STEP_RESULT),),
)

REGISTRATION = Record(
    "registration",
    1,
    "An agent a service offers (topic aos.agents)",
    (
        need("service", TEXT, "The deployable that plays the agent; names the inbox aos.inbox.<service>"),
        need("agent", TEXT, "Id of the agent, unique in the fleet"),
        need("capabilities", TEXTS, "What it can do"),
        may("description", TEXT, "In words; only filters, never decides"),
        may("cell", TEXT, "The set of agents it shares capacity decisions with; default when null"),
        may("capacity", I32, "Attempts one replica runs at once; 1 when null", "attempts"),
        may("price_usd_micros", I64, "Price of one attempt", "millionths of a US dollar"),
        may("timeout_ms", I64, "How long one attempt may take; the setting's when null", "ms"),
        may("tenants", TEXTS, "Tenants it may work for; all when null"),
        may("fallback", BOOL, "Whether it answers what nobody else is trusted with"),
        may("removed", BOOL, "Whether the agent is withdrawn for good"),
    ),
)

HEARTBEAT = Record(
    "heartbeat",
    1,
    "A replica of a service says that it lives (topic aos.heartbeats)",
    (
        need("service", TEXT, "The deployable"),
        need("replica", TEXT, "Which copy of it"),
        may("agents", TEXTS, "The agents it plays; all of the service's when null"),
        may("stopping", BOOL, "Whether it will answer no further work"),
        may("busy", I32, "Attempts it is at work on", "attempts"),
        may("sent_at", TIME, "The replica's clock; data only", "UTC"),
    ),
)

INPUT: tuple[Field, ...] = (
    need("name", TEXT, "Name of the step that made it"),
    may("payload", BYTES, "Its output"),
    may("content_type", TEXT, "Media type of the output"),
)

INBOX = Record(
    "assignment",
    1,
    "Work for an agent (topic aos.inbox.<service>), and what there is to say to who is at work on it",
    (
        *COMMON,
        need(
            "kind",
            TEXT,
            "work, cancel (withdraws it), result (of a child it delegated) or context (changed); ignore others",
        ),
        need("step", I16, "Number of the step"),
        need("step_name", TEXT, "Name of the step"),
        need("attempt", I16, "1 at first; with request and step the idempotency key of side effects"),
        need("service", TEXT, "The service whose inbox this is"),
        need("agent", TEXT, "Which agent of the service is to do it"),
        need("epoch", I64, "Epoch of the cell's owner; to be echoed"),
        need("token", ID, "Secret of this attempt; an answer without it is recorded and ignored"),
        may("task_kind", TEXT, "Kind of work"),
        may("text", TEXT, "What is asked, in words"),
        may("payload", BYTES, "Input bytes; result: the child's output"),
        may("content_type", TEXT, "Media type of the payload"),
        need("inputs", structs(*INPUT), "Outputs of the steps this one comes after"),
        may("deadline_at", TIME, "When the request expires", "UTC"),
        need("timeout_ms", I64, "How long this attempt may take", "ms"),
        may("budget_usd_micros", I64, "What is left to spend", "millionths of a US dollar"),
        may("budget_cpu_us", I64, "CPU time the attempt may take", "us"),
        may("call", TEXT, "result, context: the agent's name of the call this answers"),
        may("status", TEXT, "result: the child's; context: ok or failed, when it answers a call"),
        may("code", TEXT, "result, context: error code when the status is not ok"),
        may("message", TEXT, "result, context: one sentence for a reader"),
        may("context", BYTES, "work, context: what the members of the request share, a JSON object"),
        may("context_version", I64, "work, context: its version, one more with every change"),
    ),
    (("inputs", INPUT),),
)

OUTCOME = Record(
    "outcome",
    1,
    "What an agent answers (topic aos.outcomes)",
    (
        *ECHO,
        need("status", TEXT, "ok, failed, or progress (still at work: extends the attempt's time)"),
        may("replica", TEXT, "Which copy of the service did it"),
        may("payload", BYTES, "Output bytes, at most 32 KiB"),
        may("content_type", TEXT, "Media type of the output"),
        may("score", F32, "The agent's own report, or a judge's verdict on the step it judges, 0 to 1"),
        may("code", TEXT, "The agent's error code"),
        may("message", TEXT, "The agent's error in words; never an input of another step"),
        may("retryable", BOOL, "Whether another attempt may succeed; true when null"),
        may(
            "cost_usd_micros",
            I64,
            "What it cost; the registered price when null",
            "millionths of a US dollar",
        ),
        may("cpu_us", I64, "CPU time it took", "us"),
        may("tokens_in", I64, "Model tokens read", "tokens"),
        may("tokens_out", I64, "Model tokens written", "tokens"),
        may("progress", F32, "Share done, 0 to 1"),
        may("started_at", TIME, "The agent's clock; data only", "UTC"),
        may("finished_at", TIME, "The agent's clock; data only", "UTC"),
    ),
)

FEEDBACK = Record(
    "feedback",
    1,
    "The caller's verdict on a result (topic aos.feedback[.tenant]); a later one replaces an earlier one",
    (
        may("id", TEXT, "The client's own id of the request (or request_id)"),
        may("request_id", ID, "The request's id from the result (or id)"),
        may("domain", TEXT, "The request's learning sub-domain, if it named one"),
        may("step", TEXT, "Name of the step it is about; the last one when null"),
        need("score", F32, "0 to 1"),
        may("comment", TEXT, "In words"),
    ),
)

CONTROL = Record(
    "control",
    1,
    "An order (topic aos.controls)",
    (
        need(
            "action",
            TEXT,
            "cancel, redrive, pause, drain, resume or remove; approve and reject are refused as yet",
        ),
        may("tenant", TEXT, "Tenant of the request; default when null"),
        may("id", TEXT, "Client's own id of the request to cancel or redrive (or request_id)"),
        may("request_id", ID, "Request to cancel or redrive (or id)"),
        may("home", I32, "The request's home, if known; else every partition is told"),
        may("agent", TEXT, "Agent to pause, drain, resume or remove"),
        may("service", TEXT, "Service to pause, drain, resume or remove"),
        may("strategy", TEXT, "Strategy to approve or reject; nobody reads it as yet"),
        may("reason", TEXT, "In words"),
    ),
)

OBSERVATION = Record(
    "observation",
    1,
    "An event of somebody else's log (topic aos.observations): mined, never a reward",
    (
        need("case", TEXT, "What the event belongs to"),
        need("activity", TEXT, "What was done"),
        may("resource", TEXT, "Who did it"),
        need("time", TIME, "When", "UTC"),
        may("score", F32, "How well, 0 to 1; descriptive only"),
    ),
)
