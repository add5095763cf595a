"""The judge's laws about releases and settings of different age, each broken by hand; how the other releases write."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from aos.codecs import rows as make
from aos.codecs import wire
from aos.codecs.errors import RecordError
from aos.codecs.schemas import RECORDS
from aos.streams.shell.codec import WireCodec
from tests.chaos import other_release
from tests.chaos.judge_read import Evidence, of_unknown_release
from tests.unit.test_chaos_judge import T0, broken, good

CODEC = WireCodec()


def decided_under(e: Evidence, number: int | None) -> None:
    e.topics["aos.decisions"][-1]["settings_version"] = number


def changed(e: Evidence, version: int, at: float, offset: int = 0) -> None:
    row = {"version": version, "name": "exploration", "tenant": "", "_at": at, "_offset": offset}
    e.topics.setdefault("aos.settings", []).append({**row, "_topic": "aos.settings", "_partition": 0})


def name_a_version(e: Evidence) -> None:
    changed(e, 1, T0 - 5)
    decided_under(e, 1 + (7 << 20))


def name_none(e: Evidence) -> None:
    decided_under(e, None)


def name_one_that_never_was(e: Evidence) -> None:
    changed(e, 1, T0 - 5)
    decided_under(e, 2 + (7 << 20))


def name_one_that_came_later(e: Evidence) -> None:
    changed(e, 1, T0 + 500)
    decided_under(e, 1)


def name_one_that_came_second(e: Evidence) -> None:
    """Two changes from one version: the later one counts nowhere, so there is no version 3."""
    changed(e, 1, T0 - 9, 0)
    changed(e, 2, T0 - 8, 1)
    changed(e, 2, T0 - 7, 2)
    decided_under(e, 3)


def body(tenant: str, id: str, kind: str = "requested") -> bytes:
    table = pa.table({"tenant": [tenant], "id": [id], "kind": [kind]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def letter(e: Evidence, content: bytes, processor: str = "supervise") -> None:
    e.topics["aos.dead-letters"] = [
        {"topic": "aos.ledger", "processor": processor, "tenant": "", "body": content, "code": "AOS1011", "row": -1}
    ]  # fmt: skip


def lose_last(e: Evidence) -> tuple[str, str]:
    """The last result is gone from topic and SQL; whose it was."""
    e.sql["results"].pop()
    row = e.topics["aos.results"].pop()
    return row["tenant"], row["id"]


def park(e: Evidence) -> None:
    letter(e, body(*lose_last(e)))


def park_at_another_reader(e: Evidence) -> None:
    letter(e, body(*lose_last(e)), "store")


def park_something_else_of_it(e: Evidence) -> None:
    letter(e, body(*lose_last(e), "outcome"))


def park_what_was_answered(e: Evidence) -> None:
    row = e.topics["aos.results"][0]
    letter(e, body(row["tenant"], row["id"]))


def park_a_repeat(e: Evidence) -> None:
    park_what_was_answered(e)
    row = e.topics["aos.results"][0]
    e.sent[row["tenant"], row["id"]].sends = 2


@pytest.mark.parametrize(
    ("change", "laws"),
    [
        (name_a_version, set()),
        (name_none, {"I5"}),
        (name_one_that_never_was, {"I5"}),
        (name_one_that_came_later, {"I5"}),
        (name_one_that_came_second, {"I5"}),
        (park, set()),
        (park_at_another_reader, {"I1", "I2"}),
        (park_something_else_of_it, {"I1", "I2"}),
        (park_what_was_answered, {"I1"}),
        (park_a_repeat, set()),
    ],
)
def test_each_wrong_is_reported_by_its_law(change: Callable[[Evidence], None], laws: set[str]) -> None:
    found = good()
    change(found)
    assert broken(found) == laws


def test_the_judge_takes_rows_of_an_unknown_release_for_nobodys() -> None:
    assert of_unknown_release([("aos-version", b"2.0")])
    for known in (None, [], [("aos-version", b"1")], [("aos-version", b"7")], [("aos-version", b"1.9")]):
        assert not of_unknown_release(known)


@pytest.fixture
def batch() -> pa.RecordBatch:
    columns = {"processor": ["learn"], "partition": [0], "slot": [1], "chunk": [0], "body": [b"x"]}
    return make.from_columns("snapshot-chunk", 1, columns)


def test_todays_release_reads_the_newer_without_its_column_and_the_newer_reads_todays(
    batch: pa.RecordBatch,
) -> None:
    value, headers = other_release.newer_encode(CODEC, "aos.snapshots", batch)
    assert int(headers[wire.HEADER_VERSION]) == RECORDS["snapshot-chunk"].version + 1
    assert CODEC.decode("aos.snapshots", value, headers).equals(batch)
    other_release.COUNTS.clear()
    assert other_release.newer_decode(CODEC, "aos.snapshots", value, headers).equals(batch)
    value, headers = CODEC.encode("aos.snapshots", batch)
    assert other_release.newer_decode(CODEC, "aos.snapshots", value, headers).equals(batch)
    assert other_release.COUNTS == {"read of its own": 1, "read of the older release": 1}


def test_of_a_release_that_nobody_knows_today_reads_nothing_and_it_reads_itself(
    batch: pa.RecordBatch,
) -> None:
    value, headers = other_release.unknown_encode(CODEC, "aos.snapshots", batch)
    with pytest.raises(RecordError, match="AOS1011"):
        CODEC.decode("aos.snapshots", value, headers)
    assert other_release.unknown_decode(CODEC, "aos.snapshots", value, headers).equals(batch)
