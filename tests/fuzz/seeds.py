"""The seed corpus: messages of every record, made by the tests' own strategies; no data of others.

`python -m tests.fuzz.seeds` adds to tests/fuzz/corpus what a new record lacks; the same program gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from hypothesis import HealthCheck, given, settings

from aos.codecs import json as objects
from aos.codecs import wire
from aos.codecs.fields import Record
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS
from tests.unit import strategies

CORPUS = Path(__file__).parent / "corpus"
EDGES = {
    topic.record for topic in TOPICS.values() if topic.wants_json
}  # records that outsiders may write in JSON
EXAMPLES, KEPT, BYTES_MAX = 30, 3, 6_000


class Seed(NamedTuple):
    """One good message."""

    record: str
    value: bytes
    json: bool


def load() -> dict[str, list[Seed]]:
    """The corpus by record, streams with the columns that a record has today."""
    found: dict[str, list[Seed]] = {name: [] for name in sorted(RECORDS)}
    for path in sorted(CORPUS.glob("*/*")):
        name, value = path.parent.name, path.read_bytes()
        if path.suffix == ".arrow":
            value = wire.encode(wire.decode(value, {}, RECORDS[name]), RECORDS[name])[0]
        found[name].append(Seed(name, value, path.suffix == ".json"))
    return found


def batches(record: Record) -> list[pa.RecordBatch]:
    """Some batches that the strategies draw, small and different ones: few, middle, many bytes."""
    drawn: list[pa.RecordBatch] = []

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategies.batches(record, max_size=3))
    def draw(batch: pa.RecordBatch) -> None:
        drawn.append(batch)

    draw()
    fit = [one for one in drawn if one.num_rows and len(wire.encode(one, record)[0]) <= BYTES_MAX]
    fit = sorted(fit or drawn, key=lambda one: (one.num_rows, one.nbytes))
    places = dict.fromkeys(round(part * (len(fit) - 1) / (KEPT - 1)) for part in range(KEPT))
    return [fit[place] for place in places]


def files() -> dict[str, bytes]:
    """What the corpus holds, by path below it."""
    made: dict[str, bytes] = {}
    for name, record in sorted(RECORDS.items()):
        for number, batch in enumerate(batches(record)):
            made[f"{name}/{number}.arrow"] = wire.encode(batch, record)[0]
            if name in EDGES:
                made |= {f"{name}/{number}.json": text for text in objects.dumps(batch)[:1]}
    return made


def add() -> list[str]:
    """Write what the records have no seed for yet; the others stay as they are, because runs are repeated by them."""
    missing = {name for name, found in load().items() if not found}
    made = {path: value for path, value in files().items() if path.split("/")[0] in missing}
    for path, value in made.items():
        (CORPUS / path).parent.mkdir(parents=True, exist_ok=True)
        (CORPUS / path).write_bytes(value)
    return sorted(made)


if __name__ == "__main__":
    print("\n".join(add()) or "every record has seeds")
