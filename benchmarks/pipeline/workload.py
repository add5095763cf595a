"""The workload: who asks for what and when. Seeded: the same load is the same requests, byte for byte but for the time.

20 capabilities, 10 tenants, one request in ten a workflow of three steps one after the other, all texts distinct,
200 to 2,000 characters. Message k of a load is due at start + k * rows / rate, whatever happened to those before it
(an open loop); all rows of a message share that moment, which travels as `requested_at`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from aos.codecs import rows, wire
from aos.codecs.topics import tenant_topic

CAPABILITIES = 20
TENANTS = ("default", *(f"tenant-{number}" for number in range(1, 10)))
TEXT_LENGTH = (200, 2_000)  # characters
WORDS = 4_000
KIND_WORDS = 200  # of which each kind of work uses more than the rest
STEPS_OF_WORKFLOW = 3
STEPS_A_REQUEST = 1 + (STEPS_OF_WORKFLOW - 1) / 10
MARK = 0x0123456789ABCDEF  # stands for requested_at until the message is due
_MARK = struct.pack("<q", MARK)


@dataclass(frozen=True)
class Load:
    """`rate` requests/s for `seconds`, in messages of `rows` rows, by `producers` processes in turn."""

    label: str
    rate: float
    seconds: float
    rows: int = 1
    producers: int = 4
    seed: int = 1

    @property
    def messages(self) -> int:
        """Whole messages that are due within the time."""
        return max(1, int(self.rate * self.seconds / self.rows))

    @property
    def total(self) -> int:
        return self.messages * self.rows

    def due_s(self, message: int) -> float:
        """Seconds after the start."""
        return message * self.rows / self.rate

    def due_us(self, numbers: np.ndarray, start: float) -> np.ndarray:
        """When the requests of these numbers are due, microseconds since the epoch."""
        moments = start + (numbers // self.rows) * (self.rows / self.rate)
        return np.floor(moments * 1e6).astype(np.int64)

    def of(self, producer: int) -> range:
        """Numbers of the messages that a producer sends."""
        return range(producer, self.messages, self.producers)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def capability(number: int) -> str:
    """Name of a capability; tasks that need it are of the kind of the same number."""
    return f"capability-{number:02d}"


def is_workflow(number: int) -> bool:
    """One request of every ten, in each ten another one, so that every tenant has some."""
    return (7 * number + number // 10) % 10 == 0


def requests(load: Load, message: int) -> list[dict[str, Any]]:
    """The rows of a message as columns of the request record."""
    random = np.random.default_rng([load.seed, message, *load.label.encode()])
    first = message * load.rows
    return [_request(load.label, number, random) for number in range(first, first + load.rows)]


def _request(label: str, number: int, random: np.random.Generator) -> dict[str, Any]:
    kinds = random.integers(0, CAPABILITIES, STEPS_OF_WORKFLOW)
    row: dict[str, Any] = {
        "id": f"{label}-{number:08d}",
        "requested_at": MARK,
        "task_kind": f"kind-{kinds[0]:02d}",
        "text": text(int(kinds[0]), random),
        "require": [capability(int(kinds[0]))],
    }
    if is_workflow(number):
        row["steps"] = [
            {
                "name": f"step-{place}",
                "task_kind": f"kind-{kind:02d}",
                "require": [capability(int(kind))],
                "after": [f"step-{place - 1}"] if place else [],
            }
            for place, kind in enumerate(kinds)
        ]
    return row


def text(kind: int, random: np.random.Generator) -> str:
    """Words of a kind of work, half of them its own."""
    length = int(random.integers(TEXT_LENGTH[0], TEXT_LENGTH[1] + 1))
    count = length // 4 + 1
    own = random.integers(kind * KIND_WORDS, (kind + 1) * KIND_WORDS, count) % WORDS
    picks = np.where(random.random(count) < 0.5, own, random.integers(0, WORDS, count))
    return " ".join(_vocabulary()[picks].tolist())[:length]


@cache
def _vocabulary() -> np.ndarray:
    """Words of three to nine letters that are not all alike."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]
    random = np.random.default_rng(7)
    words: set[str] = set()
    for size in itertools.cycle((2, 2, 3, 4)):
        words.add("".join(random.choice(syllables, size))[: int(random.integers(3, 10))])
        if len(words) == WORDS:
            break
    return np.array(sorted(words))


@dataclass(frozen=True)
class Ready:
    """A message to be sent `due_s` after the start; `at` gives its bytes with the moment in them."""

    due_s: float
    topic: str
    value: bytes

    def at(self, start: float) -> tuple[bytes, dict[str, bytes]]:
        moment = struct.pack("<q", int((start + self.due_s) * 1e6))
        value = self.value.replace(_MARK, moment)
        return value, wire.headers(rows.record("request"), value)


def messages(load: Load, producer: int) -> Iterator[Ready]:
    """What a producer sends, in order; tenants in turn."""
    for number in load.of(producer):
        value, _ = wire.encode(rows.from_dicts("request", requests(load, number)), rows.record("request"))
        topic = tenant_topic("aos.requests", TENANTS[number % len(TENANTS)])
        yield Ready(load.due_s(number), topic, value)
