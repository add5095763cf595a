"""The judge's laws on small made-up evidence: what is right holds, and each wrong is reported by the law it breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import judge, judge_laws
from tests.chaos.journal import ACKNOWLEDGED, REFUSED, UNKNOWN, Journal, Sent, read
from tests.chaos.judge_read import Evidence, Row
from tests.chaos.judge_recovery import recoveries

T0 = 1_000_000.0
AGENT = "one-1"


def request_id(tenant: str, id: str) -> bytes:
    return blake2b(f"{tenant}/{id}".encode(), digest_size=16).digest()


def ledger(request: bytes, tenant: str, id: str, offset: int) -> list[Row]:
    """The life of one request that goes well."""
    common = {"request_id": request, "round": 0, "tenant": tenant, "domain": tenant, "_partition": 0,
              "step": 0, "attempt": 1, "agent": AGENT, "epoch": 1, "id": None, "status": None}  # fmt: skip
    rows: list[Row] = [
        {"kind": "requested", "id": id},
        {"kind": "planned"},
        {"kind": "assigned"},
        {"kind": "outcome", "status": "ok"},
    ]
    return [{**common, **row, "_offset": offset + n, "_at": T0 + offset / 10} for n, row in enumerate(rows)]


def good() -> Evidence:
    """Four requests of two tenants by one sender, all done, all stored, one kill survived."""
    found = Evidence(
        topics={name: [] for name in ("aos.results", "aos.ledger", "aos.decisions", "aos.experiences")}
    )
    found.sql = {
        name: [] for name in ("results", "requests", "beliefs", "rollup_minute", "rollup_hour", "unwritable")
    }
    for number in range(4):
        tenant = "default" if number % 2 else "acme"
        id, seq = f"r{number}", number // 2
        request = request_id(tenant, id)
        found.sent[tenant, id] = Sent(tenant, id, "p0", seq, T0 + number, ACKNOWLEDGED, id.upper())
        found.topics["aos.ledger"] += ledger(request, tenant, id, 10 * number)
        topic = "aos.results" if tenant == "default" else f"aos.results.{tenant}"
        common = {"request_id": request, "round": 0, "tenant": tenant, "domain": tenant, "_partition": 0}
        found.topics["aos.results"].append({
            **common, "id": id, "status": "ok", "code": None, "payload": id.upper().encode(), "agents": [AGENT],
            "attempts": 1, "cost_usd_micros": 0, "finished_at": 5, "latency_us": 7, "repeated": False,
            "_topic": topic, "_offset": number, "_at": T0 + number + 0.5,
        })  # fmt: skip
        common["_topic"] = "-"
        attempt = {**common, "step": 0, "attempt": 1, "agent": AGENT, "_offset": number, "_at": T0 + number}
        found.topics["aos.decisions"].append({**attempt, "kind": "assigned", "settings_version": 0})
        found.topics["aos.experiences"].append(
            {**attempt, "kind": "attempt", "task_kind": "shout", "score": 1.0, "quarantined": None}
        )
        found.sql["results"].append({"tenant": tenant, "result_tenant": tenant, "id": id, "round": 0,
                                     "request_id": request.hex(), "status": "ok"})  # fmt: skip
        found.sql["requests"].append({"tenant": tenant, "id": id, "request_id": request.hex(), "round": 0})
    found.topics["aos.beliefs"] = [
        {"domain": domain, "task_kind": "shout", "agent": AGENT, "count": 2.0, "drift_count": 0, "_offset": 1,
         "_at": T0, "_key": f"{domain}/shout".encode()} for domain in ("acme", "default")
    ]  # fmt: skip
    found.sql["beliefs"] = [dict(row) for row in found.topics["aos.beliefs"]]
    found.ends = {(topic, 0): 4 for topic in judge_laws.STORED}
    found.reached = dict(found.ends)
    found.notes = [
        {"event": "places", "at": T0, "places": [["aos.ledger", "t", 0, 2]]},
        {"event": "places", "at": T0, "places": [["aos.ledger", "t", 0, 4]]},
        {"event": "rss", "at": T0, "bytes": {"worker-core-0": 200 << 20}},
        {"event": "disk", "at": T0, "bytes": 1 << 30},
        fault(healed=T0 + 1.0),
    ]
    return found


def fault(**what: Any) -> Row:
    return {
        "event": "fault",
        "number": 1,
        "target": "x",
        "outage": 0.0,
        "recovery_limit_s": 30.0,
        "failed": [],
        **what,
    }


def broken(found: Evidence) -> set[str]:
    return {name for name, item in judge.verdict(found)["invariants"].items() if not item["held"]}


def first(found: Evidence, topic: str) -> Row:
    return found.topics[topic][0]


def test_what_went_well_breaks_no_law_and_counts_nothing() -> None:
    said = judge.verdict(good())
    assert broken(good()) == set()
    assert (said["tasks"], said["lost"], said["duplicated"], said["ghost"]) == (4, 0, 0, 0)
    assert said["recovery_max_s"] == pytest.approx(0.5)


def lose(e: Evidence) -> None:
    e.topics["aos.results"].pop()
    e.sql["results"].pop()


def end_twice(e: Evidence) -> None:
    e.topics["aos.results"].append({**first(e, "aos.results"), "status": "failed", "_offset": 9})


def end_and_bury(e: Evidence) -> None:
    row = first(e, "aos.results")
    e.topics["aos.dead-letters"] = [
        {"topic": "aos.requests", "tenant": "acme", "body": b'{"id":"%s"}' % row["id"].encode()}
    ]


def answer_wrongly(e: Evidence) -> None:
    first(e, "aos.results")["payload"] = b"something else"


def skip_a_round(e: Evidence) -> None:
    e.topics["aos.results"].append({**first(e, "aos.results"), "round": 2, "_offset": 9})
    e.sql["results"].append({**e.sql["results"][0], "round": 2})


def store_twice(e: Evidence) -> None:
    e.sql["results"].append(dict(e.sql["results"][0]))


def store_never(e: Evidence) -> None:
    e.sql["results"].pop()


def refuse_in_sql(e: Evidence) -> None:
    e.sql["unwritable"].append({"topic": "aos.ledger", "partition": 0, "offset": 3, "message": "no"})


def make_up(e: Evidence) -> None:
    e.sql["requests"].append({"tenant": "acme", "id": "nobody", "request_id": "00" * 16, "round": 0})


def deliver_refused(e: Evidence) -> None:
    e.sent["acme", "r0"].state = REFUSED


def count_wrongly(e: Evidence) -> None:
    e.sql["rollup_minute"].append({"side": "stored", "requests": 5})


def overtake(e: Evidence) -> None:
    rows = e.topics["aos.ledger"]
    e.topics["aos.ledger"] = rows[8:12] + rows[:8] + rows[12:]


def assign_unplanned(e: Evidence) -> None:
    e.topics["aos.ledger"] = [
        r for r in e.topics["aos.ledger"] if not (r["kind"] == "planned" and r["_offset"] < 10)
    ]


def assign_undecided(e: Evidence) -> None:
    e.topics["aos.decisions"].pop()


def end_unanswered(e: Evidence) -> None:
    e.topics["aos.ledger"] = [
        r for r in e.topics["aos.ledger"] if not (r["kind"] == "outcome" and r["_offset"] < 10)
    ]


def lag(e: Evidence) -> None:
    e.reached["aos.ledger", 0] = 3


def fall_back(e: Evidence) -> None:
    e.notes.append({"event": "places", "at": T0, "places": [["aos.ledger", "t", 0, 1]]})


def never_open(e: Evidence) -> None:
    del e.reached["aos.decisions", 0]


def cross_on_the_topic(e: Evidence) -> None:
    first(e, "aos.results")["tenant"] = "umbra"


def cross_in_the_ledger(e: Evidence) -> None:
    e.topics["aos.ledger"][1]["tenant"] = "default"


def cross_in_sql(e: Evidence) -> None:
    e.sql["results"][0]["result_tenant"] = "default"


def recover_late(e: Evidence) -> None:
    e.notes[-1]["recovery_limit_s"] = 0.1


def never_recover(e: Evidence) -> None:
    e.notes.append(fault(healed=T0 + 50))
    e.sent["acme", "late"] = Sent("acme", "late", "p0", 9, T0 + 60, UNKNOWN)


def drain_slowly(e: Evidence) -> None:
    e.notes.append(fault(healed=T0 - 10, outage=1.0))
    e.sent["acme", "r0"].at = T0 - 20
    first(e, "aos.results")["_at"] = T0 + 20


def teach_twice(e: Evidence) -> None:
    e.topics["aos.beliefs"][0]["count"] = e.sql["beliefs"][0]["count"] = 3.0


def forget(e: Evidence) -> None:
    e.topics["aos.beliefs"][0]["count"] = e.sql["beliefs"][0]["count"] = 1.0


def believe_nothing(e: Evidence) -> None:
    e.topics["aos.beliefs"].pop()


def store_other_beliefs(e: Evidence) -> None:
    e.sql["beliefs"][0]["count"] = 1.0


def grow(e: Evidence) -> None:
    e.notes.append({"event": "rss", "at": T0, "bytes": {"worker-core-0": 3 << 30}})


def fill_the_disk(e: Evidence) -> None:
    e.notes.append({"event": "disk", "at": T0, "bytes": 1 << 40})


def write_rubbish(e: Evidence) -> None:
    e.unreadable.append("aos.ledger/0@3: bad magic")


def tell(e: Evidence) -> None:
    e.secrets_seen.append("worker.log")


def fail_in_the_fault(e: Evidence) -> None:
    e.notes.append(fault(healed=T0, failed=[["I10", "it needed a human"]]))


@pytest.mark.parametrize(
    ("wrong", "laws"),
    [
        (lose, {"I1", "I2"}),
        (end_twice, {"I1"}),
        (end_and_bury, {"I1"}),
        (answer_wrongly, {"I1"}),
        (skip_a_round, {"I1", "I5"}),
        (store_twice, {"I2"}),
        (store_never, {"I2"}),
        (refuse_in_sql, {"I2"}),
        (make_up, {"I3"}),
        (deliver_refused, {"I3"}),
        (count_wrongly, {"I4"}),
        (overtake, {"I5"}),
        (assign_unplanned, {"I5"}),
        (assign_undecided, {"I5"}),
        (end_unanswered, {"I5"}),
        (lag, {"I6"}),
        (fall_back, {"I6"}),
        (never_open, {"I6"}),
        (cross_on_the_topic, {"I7"}),
        (cross_in_the_ledger, {"I7"}),
        (cross_in_sql, {"I2", "I3", "I7"}),
        (recover_late, {"I8"}),
        (never_recover, {"I8"}),
        (drain_slowly, {"I8"}),
        (teach_twice, {"I9"}),
        (forget, {"I9"}),
        (believe_nothing, {"I9"}),
        (store_other_beliefs, {"I9"}),
        (grow, {"I10"}),
        (fill_the_disk, {"I10"}),
        (write_rubbish, {"I10"}),
        (tell, {"I11"}),
        (fail_in_the_fault, {"I10"}),
    ],
)
def test_each_wrong_is_reported_by_its_law(wrong: Callable[[Evidence], None], laws: set[str]) -> None:
    found = good()
    wrong(found)
    assert broken(found) == laws


def test_a_result_said_again_in_the_same_words_is_no_duplicate() -> None:
    found = good()
    found.topics["aos.results"].append({**first(found, "aos.results"), "repeated": True, "_offset": 9})
    assert broken(found) == set()
    assert judge.verdict(found)["repeated_results"] == 1


def test_a_send_of_unknown_end_may_appear_once_or_not_at_all() -> None:
    found = good()
    found.sent["acme", "r0"].state = UNKNOWN
    found.sent["acme", "never"] = Sent("acme", "never", "p0", 7, T0, UNKNOWN)
    assert broken(found) == set()


def test_a_refusal_for_a_quota_is_right_only_of_a_tenant_that_has_one() -> None:
    found = good()
    row = next(row for row in found.topics["aos.results"] if row["tenant"] == "acme")
    row |= {"status": "rejected", "code": "AOS2101", "payload": None, "agents": [], "attempts": 0}
    assert "I1" in broken(found)
    found.notes.append({"event": "quota", "at": T0, "tenant": "default"})
    assert "I1" in broken(found)
    found.notes.append({"event": "quota", "at": T0, "tenant": "acme"})
    assert "I1" not in broken(found)


def test_fewer_lessons_are_right_only_where_a_change_was_detected() -> None:
    found = good()
    row = found.topics["aos.beliefs"][0]
    row["count"] = found.sql["beliefs"][0]["count"] = 1.0
    row["drift_count"] = 1
    assert broken(found) == set()


def test_a_killed_process_has_recovered_when_it_makes_something_again() -> None:
    found = good()
    found.notes.append({"event": "kill", "at": T0 + 0.1, "name": "worker-core-0", "busy": True})
    (kill,) = [item for item in recoveries(found) if item.what == "kill of worker-core-0"]
    assert kill.seconds == pytest.approx(1.4)  # its next result, of a request sent after the kill
    assert judge.verdict(found)["kills"] == 1


def test_the_journal_has_a_send_before_its_end_and_knows_what_is_unknown(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal-a.ndjson")
    rows = [{"id": f"r{n}", "tenant": "default", "key": "p0", "seq": n, "expect": None} for n in range(3)]
    journal.sent(rows)
    on_disk = [json.loads(line)["state"] for line in (tmp_path / "journal-a.ndjson").read_text().splitlines()]
    assert on_disk == ["sent"] * 3
    journal.settled(rows[0], ACKNOWLEDGED)
    journal.settled(rows[1], REFUSED)
    journal.sent([{**rows[0], "seq": 3}])
    journal.close()
    with (tmp_path / "journal-a.ndjson").open("a") as file:
        file.write('{"id": "cut sh')
    found = read([tmp_path / "journal-a.ndjson"])
    states = {id: sent.state for (_, id), sent in found.items()}
    assert states == {"r0": ACKNOWLEDGED, "r1": REFUSED, "r2": UNKNOWN}
    assert (found["default", "r0"].sends, found["default", "r0"].seq) == (2, 0)
