"""Planted bugs: there is one at least for each processor and the shell, and the product knows nothing of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from aos.streams import topology
from aos.streams.processor import Batch, Output, Processor, Step, Views
from tests.chaos import bugs
from tests.chaos.judge_laws import LAWS
from tests.chaos.planting import BUGS, Every, put, rows_by, some, without_some

ROOT = Path(__file__).resolve().parents[2]
ROWS = pa.RecordBatch.from_pydict({"kind": ["a", "b", "a"], "tenant": ["x", "y", "z"]})
SPEAK_OF_BUGS = re.compile(r"buggy_worker|tests\.chaos|planting")


@pytest.fixture
def encode() -> Iterator[Processor]:
    """The processor of that name, as it was, whatever a test plants."""
    kept = topology.PROCESSORS["encode"]
    outputs = [Output("aos.ledger", ROWS), Output("aos.tasks", ROWS)]
    topology.PROCESSORS["encode"] = replace(kept, step=lambda *_: Step(None, outputs))
    yield kept
    topology.PROCESSORS["encode"] = kept


def test_every_processor_and_the_shell_have_a_bug() -> None:
    assert len(BUGS) >= 20
    assert {one.where for one in BUGS.values()} == {"shell", *topology.PROCESSORS}
    assert all(one.laws and one.laws <= set(LAWS) for one in BUGS.values())
    assert bugs.CATALOGUE


def test_the_product_knows_nothing_of_planted_bugs() -> None:
    for folder in ("agents", "analytics", "codecs", "infra", "streams", "src/aos"):
        for path in (ROOT / folder).glob("**/*.py"):
            assert not SPEAK_OF_BUGS.search(path.read_text()), path


def test_a_planted_change_touches_one_topic_of_one_processor(encode: Processor) -> None:
    rows_by("encode", "aos.ledger", without_some(1, "a"))
    result = topology.PROCESSORS["encode"].step(None, Batch("aos.requests", 0, 0, ROWS), 0, Views(), 0)
    assert [output.rows.num_rows for output in result.outputs] == [1, 3]


def test_every_nth_row_is_changed_and_the_schema_stays() -> None:
    changed = some(ROWS, "tenant", Every(2), "other")
    assert changed.column("tenant").to_pylist() == ["x", "other", "z"]
    assert changed.schema == ROWS.schema
    assert put(ROWS, "kind", ["c"] * 3).column("kind").to_pylist() == ["c"] * 3
