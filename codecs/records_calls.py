"""What an agent asks for while it is at work: a child request, a change of the context its request's members share."""

from __future__ import annotations

from aos.codecs.fields import BYTES, ECHO, I64, TEXT, TEXTS, Record, may, need

CALL = Record(
    "call",
    1,
    "What an agent at work on an attempt asks for (topic aos.calls); the answer comes by its inbox",
    (
        need("action", TEXT, "delegate (hand out a child request) or share (change the shared context)"),
        need(
            "call",
            TEXT,
            "The agent's own name of this call, unique in its attempt; said again: the same call",
        ),
        *ECHO,
        may("text", TEXT, "delegate: what is asked, in words"),
        may("payload", BYTES, "delegate: input bytes, at most 32 KiB with the text"),
        may("content_type", TEXT, "delegate: media type of the payload"),
        may("task_kind", TEXT, "delegate: what kind of work it is"),
        may("require", TEXTS, "delegate: capabilities that are needed"),
        may("pin", TEXTS, "delegate: only these agents"),
        may("exclude", TEXTS, "delegate: never these agents"),
        may("deadline_ms", I64, "delegate: how long it may take; one attempt's time when null", "ms"),
        may(
            "budget_usd_micros",
            I64,
            "delegate: what it may cost; all that is left of the parent's when null",
            "millionths of a US dollar",
        ),
        may("budget_cpu_us", I64, "delegate: CPU time an agent may spend on an attempt", "us"),
        may("context", BYTES, "share: a JSON object, at most 8 KiB: the keys to set; null takes a key away"),
        may("context_version", I64, "share: the version of the context it was made from; 0 before any"),
    ),
)
