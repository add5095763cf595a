"""The soak's plan is the seed's, and its verdict finds what is lost, twice, never sent and never ended."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import polars as pl

from tests.chaos.journal import ACKNOWLEDGED, Journal
from tests.chaos.soak import journal_frames, plan, verdict

IDS = pl.Series("id", ["c0-0", "c0-1", "c1-0"])


def answers(*rows: tuple[str, str, bytes]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"id": pl.String, "status": pl.String, "payload": pl.Binary}, orient="row"
    )


def in_sql(*ids: str, status: str = "ok") -> pl.DataFrame:
    return pl.DataFrame({"id": ids, "status": [status] * len(ids)})


GOOD = answers(*((id, "ok", b"X") for id in IDS))


def test_the_same_seed_gives_the_same_kills_and_another_gives_others() -> None:
    first = list(islice(plan(1), 40))
    assert first == list(islice(plan(1), 40)) != list(islice(plan(2), 40))
    assert {kill.broker for kill in first} == {True, False}


def test_a_message_in_the_journal_stands_for_all_its_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.ndjson")
    lines = [{"tenant": "default", "id": f"c0-{seq}", "key": "c0", "seq": seq, "rows": 2} for seq in (0, 2)]
    journal.sent(lines)
    journal.settled(lines[1], ACKNOWLEDGED)
    journal.close()
    sent, heard = journal_frames(tmp_path / "j.ndjson")
    assert list(sent) == ["c0-0", "c0-1", "c0-2", "c0-3"]
    assert list(heard) == ["c0-2", "c0-3"]


def test_the_same_result_said_twice_is_no_duplicate() -> None:
    said = verdict(IDS, IDS, pl.concat([GOOD, GOOD]), in_sql(*IDS))
    assert (said["lost"], said["duplicated"], said["ghost"], said["unfinished"]) == (0, 0, 0, 0)
    assert said["repeated_results"] == 3


def test_what_went_wrong_is_counted() -> None:
    assert verdict(IDS, IDS, GOOD[1:], in_sql(*IDS))["lost"] == 1
    assert verdict(IDS, IDS, GOOD, in_sql(*IDS[1:]))["lost"] == 1
    assert verdict(IDS, IDS[1:], GOOD[1:], in_sql(*IDS[1:]))["lost"] == 0  # never acknowledged, never arrived
    differs = pl.concat([GOOD, answers(("c0-0", "ok", b"Y"))])
    assert verdict(IDS, IDS, differs, in_sql(*IDS))["duplicated"] == 1
    assert verdict(IDS, IDS, GOOD, in_sql(*IDS, "c0-0"))["duplicated"] == 1
    assert verdict(IDS[1:], IDS[1:], GOOD, in_sql(*IDS))["ghost"] == 1
    assert verdict(IDS, IDS, GOOD, in_sql(*IDS, status="open"))["unfinished"] == 3
