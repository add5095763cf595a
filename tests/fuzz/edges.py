"""The whole step of encode and admit, with their gather: what a fetch of hostile messages becomes.

Nothing may raise; each row is accounted for: it is in an inner log or named in a dead letter, and not in both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from aos.codecs import rows as make
from aos.codecs.settings import Settings
from aos.codecs.topics import base_of, record_of
from aos.streams import admit, encode
from aos.streams.processor import Batch, Output, Raw, Step, Views
from tests.fuzz import mutate, oracle

if TYPE_CHECKING:
    from tests.fuzz.targets import Corpus, Message, Verdict

AT = 1_790_000_000_000_000  # append time of all messages, microseconds
TENANTS = ("default", "acme")
INNER = ("aos.tasks", "aos.ledger", "aos.corrections", "aos.sightings", "aos.fleet", "aos.dead-letters")
VIEWS = Views(settings=Settings(tenants=TENANTS), partitions=dict.fromkeys(INNER, 1))
NO_ROWS = make.empty("dead-letter")
REQUESTS = ("aos.requests", "aos.requests.acme", "aos.requests.nobody")
SAID = (
    "aos.agents", "aos.heartbeats", "aos.outcomes", "aos.calls", "aos.feedback", "aos.feedback.acme",
    "aos.feedback.nobody", "aos.controls", "aos.observations", "aos.observations.acme",
)  # fmt: skip
# where the rows of a topic end
GOES = {
    "aos.requests": "aos.ledger", "aos.agents": "aos.fleet", "aos.heartbeats": "aos.fleet",
    "aos.outcomes": "aos.ledger", "aos.calls": "aos.ledger", "aos.controls": "aos.ledger",
    "aos.feedback": "aos.corrections", "aos.observations": "aos.sightings",
}  # fmt: skip
FURTHER = re.compile(r"; (\d+) further rows of this message are bad too")
RANGES = {"priority": (0, 3), "score": (0, 1), "progress": (0, 1), "home": (0, 0), "capacity": (1, 100_000)}
PAYLOAD_BYTES = 32_768


def _make(topics: Sequence[str]) -> Callable[[Random, Corpus], list[Message]]:
    def made(rng: Random, corpus: Corpus) -> list[Message]:
        found: list[Message] = []
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            topic = rng.choice(topics)
            name = record_of(topic).name
            if rng.random() < 0.5:
                value = corpus.text(rng, name)
                found.append(
                    (topic, value, mutate.headers_of(rng, value, name, value) if rng.random() < 0.2 else {})
                )
            else:
                value, before = corpus.stream(rng, name)
                found.append((topic, value, mutate.headers_of(rng, value, name, before)))
        return found

    return made


def _run(step: Callable[..., Step[Any]]) -> Callable[[Sequence[Message]], Verdict]:
    def run(messages: Sequence[Message]) -> Verdict:
        raws = [
            Raw(topic, 0, n, AT, None, value, headers) for n, (topic, value, headers) in enumerate(messages)
        ]
        batch = Batch(raws[0].topic, 0, 0, NO_ROWS, raws)
        outputs = step(None, batch, AT, VIEWS, 0).outputs
        wrong = [f"{o.topic}: {w}" for o in outputs for w in oracle.fits(o.rows, record_of(o.topic).schema)]
        return wrong + _ranges(outputs) + _accounts(messages, outputs)

    return run


def _ranges(outputs: Sequence[Output]) -> list[str]:
    wrong = []
    for output in outputs:
        columns = dict(zip(output.rows.schema.names, output.rows.columns, strict=True))
        if output.topic == "aos.dead-letters":
            continue
        for name, (low, high) in RANGES.items():
            found = pc.min_max(columns[name]).as_py() if name in columns else {"min": None, "max": None}
            if found["min"] is not None and not low <= found["min"] <= found["max"] <= high:
                wrong.append(f"{output.topic}.{name} goes from {found['min']} to {found['max']}")
        if (
            "payload" in columns
            and (pc.max(pc.binary_length(columns["payload"])).as_py() or 0) > PAYLOAD_BYTES
        ):
            wrong.append(f"{output.topic}.payload is larger than {PAYLOAD_BYTES}")
    return wrong


def _accounts(messages: Sequence[Message], outputs: Sequence[Output]) -> list[str]:
    """Whether each row went one way; a message that must not be read has a dead letter of its own."""
    dead = [row for o in outputs if o.topic == "aos.dead-letters" for row in o.rows.to_pylist()]
    unread = {row["offset"] for row in dead if row["row"] < 0}
    named: Counter[int] = Counter()
    for row in dead:
        if row["row"] >= 0:
            named[row["offset"]] += 1 + sum(map(int, FURTHER.findall(row["message"])))
    wanted, wrong = Counter[str](), []
    for place, (topic, value, headers) in enumerate(messages):
        if place in unread:
            wrong += [f"message {place} is dead and alive"] if named[place] else []
            continue
        count, why = _judge(topic, value, headers)
        wrong += [f"message {place} was read: {one}" for one in why]
        wanted[base_of(topic)] += count - named[place]
    got: Counter[str] = Counter()
    for output in outputs:
        if output.topic in GOES.values():
            got[output.topic] += output.rows.num_rows
    for inner in set(GOES.values()):
        expected = sum(wanted[base] for base, goes in GOES.items() if goes == inner)
        controls = wanted["aos.controls"] if inner in ("aos.ledger", "aos.fleet") else 0
        low, high = (
            (expected - controls, expected) if inner == "aos.ledger" else (expected, expected + controls)
        )
        if not low <= got[inner] <= high:
            wrong.append(f"{inner}: {got[inner]} rows, not {low} to {high}")
    if sum(got.values()) != sum(wanted.values()):
        wrong.append(f"{sum(got.values())} rows of {sum(wanted.values())} arrived")
    return wrong


def _judge(topic: str, value: bytes, headers: dict[str, bytes]) -> tuple[int, list[str]]:
    """How many rows a message has, and why it should not have been read."""
    record = record_of(topic)
    wrong = ["the topic is nobody's"] if topic.endswith(".nobody") else []
    named = headers.get("content-type")
    if named is not None:
        json = named.strip().lower().startswith(b"application/json")
    else:
        json = value[:64].lstrip()[:1] == b"{"
    if json:
        # what is out of range in a column that may be null is answered, so values are not looked at here
        return 1, wrong + oracle.json_object(value, record.schema)[1]
    _, parts, limits = oracle.stream(value, edge=True)
    count = sum(part.num_rows for part in parts)
    return count, wrong + limits + oracle.headers(value, headers, record.name, edge=True)


def targets() -> list[Any]:
    """Both edges."""
    from tests.fuzz.targets import Target

    return [
        Target("encode", 5, _make(REQUESTS), _run(encode.step)),
        Target("admit", 5, _make(SAID), _run(admit.step)),
    ]
