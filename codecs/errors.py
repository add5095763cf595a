"""Error codes and the four kinds of error, by what happens next. Codes are permanent, names may change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table: what it means and what to do about it."""

    code: str
    kind: str  # record, request, attempt, transient, settings, stack or invariant
    message: str
    hint: str


def _table(*rows: tuple[str, str, str, str]) -> dict[str, Code]:
    return {row[0]: Code(*row) for row in rows}


CODES: dict[str, Code] = _table(
    # 1: bytes that are no record
    ("AOS1001", "record", "the bytes are not an Arrow IPC stream", "write one IPC stream a message, or JSON"),
    ("AOS1002", "record", "the message is larger than its limits", "send fewer rows or smaller payloads"),
    ("AOS1003", "record", "the columns do not fit the record", "see the record's page in docs/schemas.md"),
    ("AOS1004", "record", "a required column is null", "fill it"),
    ("AOS1005", "record", "a number is not finite", "remove NaN and infinite values"),
    ("AOS1006", "record", "the checksum does not match the bytes", "send it again"),
    ("AOS1007", "record", "the JSON does not parse", "send one JSON object a message"),
    ("AOS1008", "record", "an unknown key", "remove it; known keys are in docs/schemas.md"),
    ("AOS1009", "record", "the Arrow body is compressed", "compress the topic, not the body"),
    (
        "AOS1010",
        "record",
        "a tensor's shape does not fit its values",
        "make the product of the shape their number",
    ),
    (
        "AOS1011",
        "record",
        "the message is of another major version",
        "its bytes are kept: send it again once AOS knows that version",
    ),
    ("AOS1012", "record", "a time is outside the accepted range", "use a time within the retention"),
    ("AOS1013", "record", "the topic belongs to no known tenant", "name the tenant in the settings"),
    ("AOS1014", "record", "a value is outside its range", "see the column's meaning in docs/schemas.md"),
    # 2: requests that are refused
    ("AOS2001", "request", "the workflow has a cycle", "remove it: steps form a DAG"),
    ("AOS2002", "request", "a step names a step that is not there", "correct `after` or `judges`"),
    ("AOS2003", "request", "the workflow has too many steps", "split it"),
    ("AOS2004", "request", "text and payload are too large", "send at most 32 KiB"),
    ("AOS2005", "request", "nobody is eligible", "register an agent with these capabilities"),
    ("AOS2006", "request", "the budget cannot be met", "raise it or ask for less"),
    ("AOS2007", "request", "the deadline cannot be met", "allow more time"),
    ("AOS2008", "request", "two steps have one name", "name each step once"),
    ("AOS2009", "request", "the request asks for nothing", "give text, payload, tensor or steps"),
    ("AOS2010", "request", "a value is outside its range", "see the column's meaning in docs/schemas.md"),
    (
        "AOS2011",
        "request",
        "the predicted quality is too low",
        "lower the threshold or register better agents",
    ),
    (
        "AOS2012",
        "request",
        "the client's time is outside the accepted range",
        "use a time within the retention",
    ),
    (
        "AOS2101",
        "request",
        "the tenant's requests a second are used up",
        "wait retry_after_ms, then send it under another id",
    ),
    (
        "AOS2102",
        "request",
        "the tenant has as many requests in flight as it may",
        "wait until one ends, then send it under another id",
    ),
    (
        "AOS2103",
        "request",
        "the tenant's payload bytes a second are used up",
        "wait retry_after_ms, then send it under another id",
    ),
    (
        "AOS2104",
        "request",
        "the fleet cannot keep up: work of this priority is shed",
        "wait retry_after_ms, add capacity, or ask with a higher priority",
    ),
    (
        "AOS2201",
        "request",
        "delegated too deep",
        "do it yourself: of a caller's request at most four delegations follow one another",
    ),
    ("AOS2202", "request", "the attempt has delegated as often as it may", "ask for more in one child"),
    (
        "AOS2203",
        "request",
        "the same work goes back and forth between agents",
        "do it, fail, or delegate something smaller",
    ),
    # 3: attempts and requests that fail
    ("AOS3001", "attempt", "the agent reported a failure", "see message; the attempts are in aos.attempts"),
    ("AOS3002", "attempt", "the attempt timed out", "allow more time, or report progress"),
    ("AOS3003", "attempt", "the deadline passed", "allow more time"),
    ("AOS3004", "attempt", "the request was cancelled", "none"),
    ("AOS3005", "attempt", "a late answer was ignored", "answer within the attempt's time"),
    ("AOS3006", "attempt", "a duplicate answer was ignored", "answer once"),
    ("AOS3007", "attempt", "a forged answer was ignored", "echo the token of the assignment"),
    ("AOS3009", "attempt", "the agent is gone", "none: another one is asked"),
    ("AOS3010", "attempt", "no alternative had a free slot", "add capacity"),
    ("AOS3011", "attempt", "an answer for an unknown request was ignored", "echo request_id and home"),
    ("AOS3012", "attempt", "the kept result is no longer there", "query aos.requests in SQL"),
    (
        "AOS3013",
        "attempt",
        "agents waited for each other until the time was up",
        "give them more capacity, or delegate to agents that do not delegate",
    ),
    (
        "AOS3014",
        "attempt",
        "somebody else changed the shared context first",
        "read the version that came with this answer, then try again from it",
    ),
    ("AOS3015", "attempt", "the shared context would be larger than 8 KiB", "keep payloads out of it"),
    # 4: what passes by itself
    ("AOS4002", "transient", "the database does not answer", "none: it is asked again"),
    # 5: settings
    ("AOS5001", "settings", "an unknown setting", "see docs/settings.md"),
    ("AOS5002", "settings", "a setting is outside its range", "see docs/settings.md"),
    ("AOS5003", "settings", "two settings contradict each other", "see docs/settings.md"),
    (
        "AOS5004",
        "settings",
        "a topic is missing or has other properties",
        "`aos migrate` makes it, or says what differs",
    ),
    ("AOS5005", "settings", "the database schema is of another version", "run `aos migrate`"),
    (
        "AOS5006",
        "settings",
        "the setting does not change at run time",
        "set it in the environment or aos.toml and restart; `aos config list` has those that do",
    ),
    ("AOS5007", "settings", "no such version of the settings", "`aos config history` has them"),
    ("AOS5008", "settings", "others changed the settings each time", "nothing was changed: try again"),
    (
        "AOS5009",
        "settings",
        "nothing goes in the clear to a server that is not on loopback",
        "set AOS_SECURITY_PROTOCOL=SASL_SSL and a user; docs/security.md says how",
    ),
    ("AOS5010", "settings", "the settings of a connection do not fit together", "see docs/security.md"),
    (
        "AOS5011",
        "settings",
        "the server's certificate or our proof of who we are was not accepted",
        "see the sentence; docs/security.md says how certificates and passwords are changed",
    ),
    (
        "AOS5012",
        "settings",
        "a role in the database has another right than its plan says",
        "take the right back, or name an administrator of the database; docs/security.md has the plan",
    ),
    ("AOS5015", "settings", "the user has no right to that", "`aos topics acls` says who may do what"),
    # 6: the local stack
    ("AOS6001", "stack", "the local stack cannot start", "see the sentence; `aos doctor` tells more"),
    ("AOS6002", "stack", "no running stack was found", "run `aos up` in another terminal"),
    # 9: bugs
    ("AOS9001", "invariant", "a processor broke its own law", "report it with the log line"),
    ("AOS9002", "invariant", "a snapshot is damaged", "none: the previous one or the log is used"),
    (
        "AOS9003",
        "invariant",
        "what a processor has to read is gone: a topic was deleted, or retention was faster",
        "find out why; to go on without it, name the topic in the setting accept_loss and start again",
    ),
)


class AosError(Exception):
    """An error with a permanent code. `detail` says what and where; `hint` what to do."""

    kinds: tuple[str, ...] = ()

    def __init__(self, code: str, detail: str = "", hint: str = "") -> None:
        entry = CODES[code]
        self.code = code
        self.detail = detail
        self.hint = hint or entry.hint
        super().__init__(f"{code}: {entry.message}" + (f": {detail}" if detail else ""))


class RecordError(AosError):
    """Bad bytes or a bad row: dead-letter, go on."""


class TransientError(AosError):
    """Retry with backoff within a bound, then stop the worker."""


class SettingsError(AosError):
    """Refuse to start."""


class StackError(AosError):
    """The local stack cannot start or was not found; a sentence for the user."""

    def __init__(self, detail: str, hint: str = "", code: str = "AOS6001") -> None:
        super().__init__(code, detail, hint)


class InvariantError(AosError):
    """A bug: crash."""
