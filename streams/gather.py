"""Single messages of a fetch gathered into rows, and what cannot be read into dead letters: for both edges.

in: raw records, each one Arrow stream (many rows) or one JSON object, tenant by topic. out: one batch with where each
row stood; rows that do not fit are named, those of the same message that do go on. order: as read. A dead letter holds
the message's bytes once: the first bad row of a message carries them, the others point to it.
errors: AOS1001-1014 as dead letters; nothing is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aos.codecs import json as objects
from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.fields import Record
from aos.codecs.topics import tenant_of
from aos.streams.dead_letters import DeadLetters
from aos.streams.origins import ORIGIN, meant
from aos.streams.processor import Raw


class Gathered(NamedTuple):
    """Rows of many messages. `message` is each row's index into the raws, `row` its number in its message."""

    rows: pa.RecordBatch
    message: np.ndarray
    row: np.ndarray
    bad: dict[int, RecordError]  # by index into `rows`

    def without_bad(self, raws: Sequence[Raw], dead: DeadLetters) -> Gathered:
        """The good rows; the bad ones become dead letters."""
        return self.drop(self.bad, raws, dead)

    def drop(self, bad: dict[int, RecordError], raws: Sequence[Raw], dead: DeadLetters) -> Gathered:
        """All rows but `bad`, which become dead letters."""
        if not bad:
            return self
        by_message: dict[int, dict[int, RecordError]] = {}
        for index, error in bad.items():
            by_message.setdefault(int(self.message[index]), {})[int(self.row[index])] = error
        for message in sorted(by_message):
            dead.rows(raws[message], by_message[message])
        return self.keep(np.setdiff1d(np.arange(self.rows.num_rows), list(bad)))

    def keep(self, indices: np.ndarray) -> Gathered:
        """The rows at `indices`, which must ascend."""
        places = {int(old): new for new, old in enumerate(indices)} if self.bad else {}
        bad = {places[index]: error for index, error in self.bad.items() if index in places}
        return Gathered(self.rows.take(pa.array(indices)), self.message[indices], self.row[indices], bad)


def gather(raws: Sequence[Raw], record: Record, tenants: Sequence[str], dead: DeadLetters) -> Gathered:
    """All readable rows of `raws`, in order; messages of unknown tenants or that cannot be read are dead."""
    batches: list[pa.RecordBatch] = []
    sizes: list[int] = []
    places: list[int] = []
    found: list[Any] = []  # parsed objects
    found_places: list[int] = []
    errors: dict[tuple[int, int], RecordError] = {}
    in_json = [objects.is_json(raw.value, raw.headers) for raw in raws]
    streams = [index for index, json in enumerate(in_json) if not json]
    unknown = {topic for topic in _topics(raws) if tenant_of(topic, tenants) is None}
    together = None if unknown else _together([raws[index] for index in streams], record)
    if together is not None:
        batches, sizes, places = [together[0]], together[1], streams
    for index in range(len(raws)) if together is None else np.flatnonzero(in_json).tolist():
        raw = raws[index]
        try:
            if raw.topic in unknown:
                raise RecordError("AOS1013", raw.topic)
            if in_json[index]:
                wire.check_version(raw.headers)
                row, error = objects.parse_row(raw.value, record)
                found.append(row)
                found_places.append(index)
                if error is not None:
                    errors[index, 0] = error
                continue
            rows, bad = wire.decode_rows(raw.value, raw.headers, record)
            batches.append(rows)
            sizes.append(rows.num_rows)
            places.append(index)
            errors |= {(index, row): wrong for row, wrong in bad.items()}
        except RecordError as error:
            dead.message(raw, error.code, error.detail)
    joined = _joined(record, batches, sizes, places, found, found_places, errors)
    kept = (
        meant(raws, joined.message, joined.row, dead) if any(ORIGIN in raw.headers for raw in raws) else None
    )
    return joined if kept is None else joined.keep(np.flatnonzero(kept))


def _topics(raws: Sequence[Raw]) -> list[str]:
    return list(dict.fromkeys(raw.topic for raw in raws))


def tenants_of(gathered: Gathered, raws: Sequence[Raw], known: Sequence[str]) -> list[str]:
    """Each row's tenant."""
    of_topic = {topic: tenant_of(topic, known) or "" for topic in _topics(raws)}
    of_raw = [of_topic[raw.topic] for raw in raws]
    return [of_raw[message] for message in gathered.message.tolist()]


def _together(raws: Sequence[Raw], record: Record) -> tuple[pa.RecordBatch, list[int]] | None:
    """The quick way for many messages; None when one of them needs a look of its own, or there is just one."""
    if len(raws) < 2:
        return None
    return wire.decode_together([(raw.value, raw.headers) for raw in raws], record)


def _joined(
    record: Record,
    batches: list[pa.RecordBatch],
    sizes: list[int],
    places: list[int],
    found: list[Any],
    found_places: list[int],
    errors: dict[tuple[int, int], RecordError],
) -> Gathered:
    counts = np.array(sizes + [1] * len(found), np.int64)
    message = np.repeat(np.array(places + found_places, np.int64), counts)
    row = np.arange(len(message)) - np.repeat(np.cumsum(counts) - counts, counts)
    if found:
        batches = [*batches, objects.rows(found, record)]
    batches = batches or [make.empty(record.name)]
    rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    if sizes and found:
        order = np.argsort(message, kind="stable")
        rows, message, row = rows.take(pa.array(order)), message[order], row[order]
    bad: dict[int, RecordError] = {}
    for (index, number), error in errors.items():
        bad[int(np.searchsorted(message, index)) + number] = error
    return Gathered(rows, message, row, bad)
