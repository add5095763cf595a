"""The ladder: on each rung decisions go on, by what is left, and say on which rung they were made."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from aos.agents import ladder
from aos.agents.matching import Wish
from aos.analytics.beliefs import TERMS, Beliefs, key_of
from aos.codecs.rows import from_dicts
from aos.streams import match
from aos.streams.processor import Views
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.downstream import Downstream
from aos.streams.shell.kit import Kit
from aos.streams.shell.options import Options
from aos.streams.shell.views import ViewService
from aos.streams.topology import PROCESSORS
from aos.streams.views import REFUSED_MAX, VIEWS, Refused
from tests.unit.given_fleet import NOW, batch_of, beliefs_of, fleet_of, task_rows, teach, views_of

SKILLED = {"good": {"score": 0.9, "deviation": 0.01}, "poor": {"score": 0.1, "deviation": 0.01}}
CODEC = WireCodec()


def matched(views: Views, *rows: dict[str, Any], first: int = 0) -> list[dict[str, Any]]:
    tasks = task_rows(rows or [{"task_kind": "k"}])
    (output,) = match.step(match.initial(1), batch_of(tasks, "aos.tasks"), NOW, views, 1).outputs
    found: list[dict[str, Any]] = output.rows.to_pylist()
    return found


def refusing(views: Views, *keys: bytes) -> Views:
    """The same, with the newest records of these keys of the beliefs refused."""
    refused = Refused()
    for key in keys:
        refused.add(key)
    return replace(views, refused={"aos.beliefs": refused})


def taught(*kinds: str) -> Views:
    beliefs = Beliefs()
    for kind in kinds:
        teach(beliefs, SKILLED, kind=kind)
    return views_of(fleet_of({"good": {}, "poor": {}}), beliefs)


def said(rows: list[dict[str, Any]]) -> list[tuple[bool, str | None]]:
    return [(row["degraded"], row["rung"]) for row in rows]


def test_what_was_learned_as_of_now_is_no_rung() -> None:
    assert said(matched(taught("", "k"))) == [(False, None)]


def test_a_kind_of_work_that_nobody_was_taught_yet_is_no_rung() -> None:
    assert said(matched(taught(), {"task_kind": "new"})) == [(False, None)]
    assert said(matched(taught(""), {"task_kind": "new"})) == [(False, None)]


def test_each_rung_is_taken_when_the_ones_above_it_are_not_to_be_had() -> None:
    steps = [(("", "k"), "last-beliefs"), (("",), "prior"), ((), "round-robin")]
    for kinds, rung in steps:
        views = taught(*kinds)
        assert said(matched(replace(views, stale=True))) == [(True, rung)]
        for key in (key_of("default", "k"), key_of("default", "")):
            assert said(matched(refusing(views, key))) == [(True, rung)]


def test_only_the_kind_of_work_whose_beliefs_were_refused_is_degraded() -> None:
    views = refusing(taught("", "k", "other"), key_of("default", "k"))
    rows = matched(
        views, {"task_kind": "k"}, {"task_kind": "other"}, {"task_kind": "k", "domain": "elsewhere"}
    )
    assert [row["rung"] for row in rows] == ["last-beliefs", None, None]


def test_last_beliefs_and_prior_still_name_the_better_agent_first() -> None:
    for kinds in (("", "k"), ("",)):
        rows = matched(replace(taught(*kinds), stale=True), *[{"task_kind": "k"}] * 20)
        assert {row["candidates"][0]["agent"] for row in rows} == {"good"}


def test_on_round_robin_all_agents_are_alike_and_the_order_is_by_hash_not_by_price() -> None:
    fleet = fleet_of({f"a{n}": {"price_usd_micros": 10**n} for n in range(4)})
    rows = matched(replace(views_of(fleet), stale=True), *[{"task_kind": "k"}] * 400)
    firsts = [row["candidates"][0]["agent"] for row in rows]
    for agent in ("a0", "a1", "a2", "a3"):
        assert 60 < firsts.count(agent) < 140, "an even share is 100"
    ones = [one for row in rows for one in row["candidates"]]
    assert {(one["score"], one["trial"]) for one in ones} == {(0.5, True)}
    assert len({one["deviation"] for one in ones}) == 1, "allocate takes them in turn: they are one arm"


def test_a_prediction_that_is_no_number_is_round_robin_and_spoils_no_other_row() -> None:
    views = taught("k", "fine")
    table = views["aos.beliefs"].tables["default", "k"]
    table.weights[1, 1:3] = (
        np.float32(3e38),
        np.float32(-3e38),
    )  # finite, and infinity less infinity when summed
    tasks = [{"task_kind": kind, "surface": np.full(16, 9.0, np.float32)} for kind in ("k", "fine")]
    with np.errstate(all="ignore"):
        rows = matched(views, *tasks)
    assert said(rows) == [(True, "round-robin"), (False, None)]
    assert {one["score"] for one in rows[0]["candidates"]} == {0.5}
    assert [one["agent"] for one in rows[1]["candidates"]] == ["good", "poor"]


def test_a_row_that_is_no_number_is_ranked_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = match.rank
    seen = []

    def broken(fleet: Any, beliefs: Beliefs, asks: Any, tasks: Any, limits: Any) -> Any:
        found = rank(fleet, beliefs, asks, tasks, limits)
        seen.append(beliefs)
        if len(seen) == 1:
            found.score[found.rows == 1] = np.nan
            found.best[1] = np.nan
        return found

    monkeypatch.setattr(match, "rank", broken)
    rows = matched(taught("", "k"), *[{"task_kind": "k"}] * 3)
    assert [row["rung"] for row in rows] == [None, "round-robin", None]
    assert [row["degraded"] for row in rows] == [False, True, False]
    assert {one["score"] for one in rows[1]["candidates"]} == {0.5}
    assert len(rows[1]["candidates"]) == 2


def test_the_fallback_is_the_lowest_rung() -> None:
    fleet = fleet_of({"good": {}, "stand-in": {"fallback": True, "capabilities": ["other"]}})
    views = views_of(fleet, confidence_min=0.9)
    assert said(matched(views)) == [(True, "fallback")]
    assert said(matched(replace(views, stale=True))) == [(True, "fallback")]


def test_the_lower_of_two_rungs_is_what_a_request_says() -> None:
    order = [None, *ladder.LADDER, "a rung of a later release"]
    for upper, under in pairwise(order):
        assert ladder.lower(upper, under) == ladder.lower(under, upper) == under
        assert ladder.lower(under, under) == under
    assert ladder.lower(None, None) is None


def test_nothing_is_looked_at_when_nothing_is_impaired() -> None:
    """The price of a feature that is not used: not even the domain is asked for."""
    wishes: list[Any] = [SimpleNamespace()] * 3
    assert ladder.rungs(wishes, Beliefs(), False, ()) == [None, None, None]


# what was refused


def test_a_refused_key_is_mended_by_a_good_record_and_others_are_untouched() -> None:
    refused = Refused()
    refused.add(b"a")
    refused.add(b"b")
    assert (b"a" in refused, b"c" in refused, len(refused)) == (True, False, 2)
    refused.mend(b"a")
    assert (b"a" in refused, b"b" in refused) == (False, True)


def test_more_refused_keys_than_can_be_remembered_are_all_keys() -> None:
    refused = Refused()
    for number in range(REFUSED_MAX + 1):
        refused.add(b"%d" % number)
    assert len(refused) == REFUSED_MAX
    assert b"never refused" in refused


def record(key: bytes, value: bytes | None) -> Any:
    return SimpleNamespace(
        topic="aos.beliefs", partition=0, offset=0, timestamp=0, key=key, value=value, headers=[]
    )


def beliefs_message(**change: Any) -> bytes:
    """The beliefs of kind k of one agent, with something changed in the row of any agent."""
    weights, variances = [0.0] * TERMS, [0.01] * TERMS
    row = {
        "domain": "default", "task_kind": "k", "agent": "", "count": 5.0, "score": 0.5, "deviation": 0.1,
        "latency_us": 1e5, "cost_usd_micros": 0.0, "cpu_us": 0.0, "drift_count": 0, "weights": weights,
        "variances": variances, "model_version": 3, "updated_at": NOW, "means": [0.0] * 16, "scales": [1.0] * 16,
    }  # fmt: skip
    rows = from_dicts("belief", [row | change, row | {"agent": "good", "means": None, "scales": None}])
    return CODEC.encode("aos.beliefs", rows)[0]


BAD = {
    "bytes": b"no record batch",
    "without the row of any agent": beliefs_message(agent="somebody"),
    "a negative variance": beliefs_message(variances=[-1.0] * TERMS),
    "a feature divided by zero": beliefs_message(scales=[0.0] * 16),
    "a negative time": beliefs_message(latency_us=-5.0),
}


@pytest.mark.parametrize("what", BAD)
def test_beliefs_that_cannot_be_keep_the_last_good_ones_and_are_mended_by_the_next(what: str) -> None:
    service, key = ViewService(Options("nowhere:0"), CODEC, list(VIEWS.values())), key_of("default", "k")
    service._apply(record(key, beliefs_message()))
    good = service.values["aos.beliefs"].tables["default", "k"]
    assert not service.refused, "in peace a step is given nothing to look at"
    service._apply(record(key, BAD[what]))
    assert service.values["aos.beliefs"].tables["default", "k"] is good
    assert key in service.refused["aos.beliefs"]
    views = replace(views_of(fleet_of({"good": {}}), service.values["aos.beliefs"]), refused=service.refused)
    assert said(matched(views)) == [(True, "last-beliefs")]
    service._apply(record(key, beliefs_message(model_version=4)))
    assert not service.refused
    assert said(matched(views)) == [(False, None)]


def test_a_tombstone_mends_too() -> None:
    service, key = ViewService(Options("nowhere:0"), CODEC, list(VIEWS.values())), key_of("default", "k")
    service._apply(record(key, BAD["bytes"]))
    service._apply(record(key, None))
    assert not service.refused


def test_the_wishes_of_a_message_are_looked_at_one_by_one() -> None:
    wishes = [Wish("t", "default", kind, (), (), (), False) for kind in ("k", None)]
    beliefs = beliefs_of(SKILLED)
    refused = Refused()
    refused.add(key_of("default", "k"))
    assert ladder.rungs(wishes, beliefs, False, refused) == ["prior", None]


def test_a_later_column_is_null_where_nothing_is_said() -> None:
    rows = pa.RecordBatch.from_pylist(matched(taught("", "k")))
    assert rows.column("rung").null_count == len(rows)


# when the models are not to be had


def test_a_teacher_that_leaves_its_lessons_undone_makes_views_stale_until_half_of_that() -> None:
    options, nobody = Options("nowhere:0"), cast(Any, None)
    watched = Downstream(options, nobody, nobody, "learn", "aos.experiences", 1, options.learned_s)
    seen = []
    for age in (5.1, 14.9, 15.1, 8.0, 7.4):
        watched.judge(age)
        kit: Any = SimpleNamespace(
            processor=PROCESSORS["match"], options=options, staleness_s=lambda: 0.0, given=Views(),
            outdated=lambda: watched.behind, in_force=lambda processor, views: views,
        )  # fmt: skip
        views: Any = Kit.views
        seen.append(views.fget(kit).stale)
    assert seen == [False, False, True, True, False]


def test_only_what_decides_by_beliefs_rests_on_who_teaches_them() -> None:
    resting = {name for name, processor in PROCESSORS.items() if processor.rests_on is not None}
    assert resting == {"match"}
    name, topic = PROCESSORS["match"].rests_on or ("", "")
    assert "aos.beliefs" in PROCESSORS[name].writes
    assert topic in PROCESSORS[name].reads
