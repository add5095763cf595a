"""Messages that come again from a dead letter: they keep the place of the first one, and so its identity.

`aos dead-letters redrive` sends a letter's bytes back to where they were read, with one header more:

    aos-origin: <topic>/<partition>/<offset>            all rows of the message
    aos-origin: <topic>/<partition>/<offset>:<row>,…    only these; the others went on the first time

in: raw records of an edge. out: the same, those with the header standing at their origin: ids that are made of the
place a row stands at are those of the first message, and so is the place that a further dead letter names.
key, state: none. order: as read. duplicates: the same ids as the first time.
errors: AOS1014, a dead letter, for a header that does not fit: to pass over it would give the message another identity.

**Forgery.** Whoever may write a topic can also write the header. It is taken only when it names the very topic and
partition the message stands in, and an offset before its own: a tenant can name nothing but an older message of its own
topic, whose request it could repeat by its id anyway, and never one that is still to come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aos.streams.dead_letters import DeadLetters
from aos.streams.processor import Raw

ORIGIN = "aos-origin"
_FORM = re.compile(rb"([A-Za-z0-9._-]{1,249})/(\d{1,10})/(\d{1,18})(?::(\d{1,9}(?:,\d{1,9}){0,1023}))?")


class Origin(NamedTuple):
    """Where a message stood first; `rows`: those that are meant, all when there are none."""

    topic: str
    partition: int
    offset: int
    rows: tuple[int, ...] = ()

    def header(self) -> bytes:
        """The header's value."""
        rows = ":" + ",".join(map(str, self.rows)) if self.rows else ""
        return f"{self.topic}/{self.partition}/{self.offset}{rows}".encode()


def parse(header: bytes) -> Origin | None:
    """What a header says; None when it has not the form."""
    found = _FORM.fullmatch(header)
    if found is None:
        return None
    topic, partition, offset, rows = found.groups()
    wanted = tuple(int(row) for row in rows.split(b",")) if rows else ()
    return Origin(topic.decode(), int(partition), int(offset), wanted)


def at_origin(raws: Sequence[Raw], dead: DeadLetters) -> Sequence[Raw]:
    """The raws as `gather` is to see them; those whose header does not fit are dead."""
    if not any(ORIGIN in raw.headers for raw in raws):
        return raws
    found = []
    for raw in raws:
        if ORIGIN not in raw.headers:
            found.append(raw)
            continue
        origin = parse(raw.headers[ORIGIN] or b"")
        if origin is None:
            dead.message(raw, "AOS1014", f"the header {ORIGIN} is no <topic>/<partition>/<offset>[:<row>,…]")
        elif (origin.topic, origin.partition) != (raw.topic, raw.partition) or origin.offset >= raw.offset:
            dead.message(raw, "AOS1014", f"the header {ORIGIN} names no earlier message of this partition")
        else:
            found.append(raw._replace(offset=origin.offset))
    return found


def meant(raws: Sequence[Raw], message: np.ndarray, row: np.ndarray, dead: DeadLetters) -> np.ndarray | None:
    """Which gathered rows are meant (`message`, `row`: where each stood), bool; None for all of them.

    A message that has not all the rows its header names is dead as a whole.
    """
    keep = None
    for index, raw in enumerate(raws):
        origin = parse(raw.headers[ORIGIN] or b"") if ORIGIN in raw.headers else None
        here = message == index
        if (
            origin is None or not origin.rows or not here.any()
        ):  # without rows it could not be read: dead already
            continue
        keep = np.ones(len(message), bool) if keep is None else keep
        gone = set(origin.rows) - set(row[here].tolist())
        keep[here] = False if gone else np.isin(row[here], origin.rows)
        if gone:
            dead.message(raw, "AOS1014", f"the header {ORIGIN} names row {min(gone)}, which is not there")
    return keep
