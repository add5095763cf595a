"""The invariants I1 to I11 as pure functions: evidence in, violations in words out. Nothing of AOS is imported."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from tests.chaos.journal import ACKNOWLEDGED, REFUSED
from tests.chaos.judge_answers import answers_count_once
from tests.chaos.judge_read import Evidence, Row, rows_of, tenant_of
from tests.chaos.judge_recovery import recoveries
from tests.chaos.judge_versions import parked, settings_existed

SAID = ("status", "code", "payload", "agents", "attempts", "cost_usd_micros", "finished_at", "latency_us")
STORED = ("aos.ledger", "aos.decisions", "aos.experiences")  # what the store reads in every run
OVER_QUOTA = "AOS2101"
SLOW = (
    "AOS3002",
    "AOS3003",
)  # an attempt's time, the request's deadline: an end, and counted, but no wrong answer
WORDS = re.compile(rb"[\w.:-]+")
RSS_MAX = {"worker": 1 << 30, "service": 512 << 20, "kafka": 2 << 30, "postgres": 2 << 30, "load": 512 << 20}
DISK_MAX = 16 << 30

Place = tuple[str, str]  # tenant, client's id
Law = Callable[[Evidence], Iterator[str]]


def finals(evidence: Evidence) -> dict[tuple[str, str, int], set[tuple[Any, ...]]]:
    """What each round's results say, by tenant of the topic, id and round."""
    found: defaultdict[tuple[str, str, int], set[tuple[Any, ...]]] = defaultdict(set)
    for row in evidence.rows("aos.results"):
        place = (tenant_of(row["_topic"], "aos.results"), row["id"] or "", row["round"])
        found[place].add((row["request_id"], *(str(row[name]) for name in SAID)))
    return found


def dead(evidence: Evidence) -> set[Place]:
    """Requests that are dead letters, by tenant and the id in their bytes."""
    found: set[Place] = set()
    for letter in evidence.rows("aos.dead-letters"):
        if (letter["topic"] or "").startswith("aos.requests"):
            poison = evidence.poison_in(letter)
            ids = ids_in(letter) if poison is None else {poison["id"]}
            found |= {(letter["tenant"], id) for id in ids}
    return found & set(evidence.sent)


def ids_in(letter: Row) -> set[str]:
    """The client's ids in a dead letter: of its row where one is named, of all that can be read else."""
    body, row = letter["body"] or b"", letter.get("row", -1)
    try:
        rows = rows_of(body, ("id",))
    except (pa.ArrowException, ValueError, OSError):
        return {word.decode() for word in WORDS.findall(body)}
    return {str(one["id"]) for number, one in enumerate(rows) if row in (-1, number)}


def lost(evidence: Evidence) -> list[Place]:
    """Acknowledged, and neither a result nor a dead letter."""
    ended = {(tenant, id) for tenant, id, _ in finals(evidence)} | dead(evidence) | parked(evidence)
    return [
        place for place, sent in evidence.sent.items() if sent.state == ACKNOWLEDGED and place not in ended
    ]


def duplicated(evidence: Evidence) -> list[str]:
    """Rounds of a request that ended twice: results that differ, or two final rows in SQL."""
    found = [f"{place} has {len(said)} results" for place, said in finals(evidence).items() if len(said) > 1]
    rows = Counter((row["request_id"], row["round"]) for row in evidence.sql.get("results", ()))
    return found + [f"{place} has {count} rows in SQL" for place, count in rows.items() if count > 1]


def ghosts(evidence: Evidence) -> list[str]:
    """Rows for ids that nobody sent to that tenant."""
    sources: list[tuple[str, Any]] = [
        ("result", (place[:2] for place in finals(evidence))),
        (
            "ledger",
            ((r["tenant"], r["id"] or "") for r in evidence.rows("aos.ledger") if r["kind"] == "requested"),
        ),
        ("SQL request", ((row["tenant"], row["id"] or "") for row in evidence.sql.get("requests", ()))),
        ("SQL result", ((row["result_tenant"], row["id"] or "") for row in evidence.sql.get("results", ()))),
    ]
    known = {place for place, sent in evidence.sent.items() if sent.state != REFUSED}
    return [f"{where} of {place}, never sent" for where, rows in sources for place in set(rows) - known]


def one_end(evidence: Evidence) -> Iterator[str]:
    """I1: every acknowledged id ends exactly once, with one result or one dead letter, and says what was asked."""
    for place in lost(evidence):
        yield f"{place} was acknowledged and never ended"
    ends = finals(evidence)
    for (tenant, id, round), said in ends.items():
        if len(said) > 1:
            yield f"{(tenant, id)} round {round} has {len(said)} different results"
    buried = dead(evidence)
    for place in buried & {(tenant, id) for tenant, id, _ in ends}:
        yield f"{place} has a result and a dead letter"
    for place in parked(evidence) & {(tenant, id) for tenant, id, _ in ends}:
        if evidence.sent[place].sends == 1:  # else it was parked once and answered once
            yield f"{place} has a result and is parked"
    rounds: defaultdict[Place, set[int]] = defaultdict(set)
    limited = {note["tenant"] for note in evidence.noted("quota")}
    for row in evidence.rows("aos.results"):
        place = (tenant_of(row["_topic"], "aos.results"), row["id"] or "")
        rounds[place].add(row["round"])
        sent = evidence.sent.get(place)
        if sent is not None and sent.expect is not None:
            payload = (row["payload"] or b"").decode("utf-8", "replace")
            if row["code"] == OVER_QUOTA and row["status"] == "rejected" and place[0] in limited:
                continue
            if row["code"] not in SLOW and (row["status"] != "ok" or payload != sent.expect):
                yield f"{place} ended {row['status']} ({row['code']}) with {payload[:60]!r}, not {sent.expect[:60]!r}"
    for place, numbers in rounds.items():
        if sorted(numbers) != list(range(len(numbers))):
            yield f"{place} has results of rounds {sorted(numbers)}"


def counts_agree(evidence: Evidence) -> Iterator[str]:
    """I2: per tenant, final rows in SQL are the acknowledged and those unknown that appeared, each once."""
    rows = Counter((row["result_tenant"], row["id"], row["round"]) for row in evidence.sql.get("results", ()))
    in_sql = {place[:2] for place in rows}
    buried = dead(evidence) | parked(evidence)
    for place, sent in evidence.sent.items():
        if sent.state == ACKNOWLEDGED and place not in in_sql and place not in buried:
            yield f"{place} was acknowledged and has no final row"
    for row_place, count in rows.items():
        if count > 1:
            yield f"{row_place} has {count} final rows"
    for place in {place[:2] for place in finals(evidence)} - in_sql:
        yield f"{place} has a result on the topic and no final row"
    for row in evidence.sql.get("unwritable", ()):
        yield f"SQL refused {row['topic']}/{row['partition']}@{row['offset']}: {row['message']}"


def nobody_unsent(evidence: Evidence) -> Iterator[str]:
    """I3: no row that was never sent."""
    yield from ghosts(evidence)


def rollups_agree(evidence: Evidence) -> Iterator[str]:
    """I4: each rollup is what its raw rows add up to."""
    for unit in ("minute", "hour"):
        for row in evidence.sql.get(f"rollup_{unit}", ()):
            yield f"rollup_{unit} {row}"


def order_is_kept(evidence: Evidence) -> Iterator[str]:
    """I5: each sender's requests stand in the ledger as it sent them, and each request's life is in a legal order."""
    last: dict[tuple[Any, ...], tuple[int, str]] = {}
    seen: set[Place] = set()
    for row in evidence.rows("aos.ledger"):
        place = (row["tenant"], row["id"] or "")
        sent = evidence.sent.get(place)
        if row["kind"] != "requested" or place in seen or sent is None or sent.sends > 1:
            continue
        seen.add(place)
        lane = (sent.key, sent.tenant, row["_partition"])
        seq, before = last.get(lane, (-1, ""))
        if sent.seq < seq:
            yield f"{lane}: {sent.id} came after {before}"
        last[lane] = max(last.get(lane, (-1, "")), (sent.seq, sent.id))
    yield from legal_lives(evidence)
    yield from answers_count_once(evidence)
    yield from settings_existed(evidence)


def legal_lives(evidence: Evidence) -> Iterator[str]:
    """An attempt is assigned after request and plan, an answer that counts comes after its assignment; a result of
    status ok has an answer to a decided assignment."""
    first: dict[tuple[Any, ...], int] = {}
    answers: set[tuple[Any, ...]] = set()
    assigned: defaultdict[bytes, list[Row]] = defaultdict(list)
    for place, row in enumerate(evidence.rows("aos.ledger")):
        request = (row["request_id"], row["round"])
        first.setdefault((*request, row["kind"]), place)
        if row["kind"] == "assigned":
            attempt = (*request, row["step"], row["attempt"])
            if (*attempt, "assigned") not in first:
                first[*attempt, "assigned"] = place
                assigned[row["request_id"]].append(row)
        if row["kind"] == "outcome" and row["status"] == "ok":
            attempt = (*request, row["step"], row["attempt"])
            if (*attempt, "assigned") in first:
                answers.add(attempt)
    for rows in assigned.values():
        for row in rows:
            request, at = (
                (row["request_id"], row["round"]),
                first[row["request_id"], row["round"], row["step"], row["attempt"], "assigned"],
            )
            for kind in ("requested", "planned"):
                if row["round"] == 0 and first.get((*request, kind), at + 1) > at:
                    yield f"{row['request_id'].hex()}: assigned before it was {kind}"
    decided = {
        (row["request_id"], row["round"], row["step"], row["attempt"], row["agent"])
        for row in evidence.rows("aos.decisions")
        if row["kind"] == "assigned"
    }
    for rows in assigned.values():
        for row in rows:
            attempt = (row["request_id"], row["round"], row["step"], row["attempt"])
            if (*attempt, row["agent"]) not in decided:
                yield f"{row['request_id'].hex()} {attempt[1:]} is assigned to {row['agent']}, which nobody decided"
    answered = {attempt[:2] for attempt in answers}
    for row in evidence.rows("aos.results"):
        if row["status"] == "ok" and (row["request_id"], row["round"]) not in answered:
            yield f"{row['id']} ended ok without an answer to an assignment"


def store_has_all(evidence: Evidence) -> Iterator[str]:
    """I6: the store reached the end of each log within 60 s of quiet, and its place never fell."""
    for topic in STORED:
        if not any(place[0] == topic for place in evidence.reached):
            yield f"the store has no place in {topic}"
    for place, reached in evidence.reached.items():
        if reached < evidence.ends.get(place, 0):
            yield f"{place} stands at {reached} of {evidence.ends[place]}"
    highest: dict[tuple[Any, ...], int] = {}
    for note in evidence.noted("places"):
        for topic, topic_id, partition, offset in note["places"]:
            key = (topic, topic_id, partition)
            if offset < highest.get(key, 0):
                yield f"{key} fell from {highest[key]} to {offset}"
            highest[key] = max(offset, highest.get(key, 0))


def tenants_are_apart(evidence: Evidence) -> Iterator[str]:
    """I7: topic, column and journal agree whose a row is, everywhere."""
    whose: dict[bytes, str] = {}
    for row in evidence.rows("aos.results"):
        tenant = tenant_of(row["_topic"], "aos.results")
        if row["tenant"] != tenant:
            yield f"a result of {row['tenant']} stands on {row['_topic']}"
        whose.setdefault(row["request_id"], tenant)
    for topic in ("aos.ledger", "aos.decisions", "aos.tasks", "aos.experiences"):
        for row in evidence.rows(topic):
            owner = whose.get(row["request_id"], row["tenant"])
            if row.get("kind") not in ("tick", "foreign") and row["tenant"] not in allowed(row, owner):
                yield f"{topic}: a row of {row['tenant']} for {row['request_id'].hex()}, of {owner}"
            if (
                row.get("kind") in ("requested", "attempt")
                and (row["domain"] or "").split("/")[0] != row["tenant"]
            ):
                yield f"{topic}: a row of {row['tenant']} teaches {row['domain']}"
    for row in evidence.sql.get("results", ()):
        owner = whose.get(bytes.fromhex(row["request_id"]), row["result_tenant"])
        if {row["result_tenant"], row["tenant"] or owner} != {owner}:
            yield f"SQL: {row['id']} of {row['result_tenant']}, its request of {row['tenant']}, its topic of {owner}"


def allowed(row: Row, owner: str | None) -> tuple[str | None, ...]:
    """What a row may call its tenant: an agent's answer, which knows no tenant, may leave it blank."""
    return (owner, "") if row.get("kind") == "outcome" else (owner,)


def back_in_time(evidence: Evidence) -> Iterator[str]:
    """I8: work goes on within the limit after each fault, and what waited is done within twice the outage."""
    for item in recoveries(evidence):
        if item.seconds is not None and item.seconds > item.limit:
            yield f"{item.what}: first new completion after {item.seconds:.1f} s, limit {item.limit:.0f}"
        if item.missing:
            yield f"{item.what}: no new completion, ever"
        if item.outage and item.drained is not None and item.drained > max(2 * item.outage, 10.0):
            yield f"{item.what}: drained after {item.drained:.1f} s, outage {item.outage:.1f} s"


def lessons(evidence: Evidence) -> Counter[tuple[str, str, str]]:
    """What the log of experiences teaches, by domain, kind and agent: each attempt once."""
    seen, found = set(), Counter[tuple[str, str, str]]()
    for row in evidence.rows("aos.experiences"):
        attempt = (row["request_id"], row["round"], row["step"], row["attempt"])
        teaches = (
            row["kind"] == "attempt"
            and row["quarantined"] is None
            and row["score"] is not None
            and row["agent"]
        )
        if teaches and attempt not in seen:
            seen.add(attempt)
            found[row["domain"], row["task_kind"] or "", row["agent"]] += 1
    return found


def beliefs_are_earned(evidence: Evidence) -> Iterator[str]:
    """I9: what is believed rests on exactly the outcomes in the log (nothing is discounted in these runs; where a
    change was detected an agent may rest on fewer)."""
    newest: dict[bytes, list[Row]] = {}
    for row in evidence.rows("aos.beliefs"):
        key = row["_key"] or b""
        if key in newest and newest[key][0]["_offset"] == row["_offset"]:
            newest[key].append(row)
        else:
            newest[key] = [row]
    believed = {
        (row["domain"], row["task_kind"], row["agent"]): row
        for key, rows in newest.items() if not key.endswith(b"#centres")
        for row in rows if row["agent"] and row["task_kind"]
    }  # fmt: skip
    earned = lessons(evidence)
    for cell, count in earned.items():
        if cell[1] and cell not in believed:
            yield f"{cell}: {count} outcomes, nothing believed"
    for cell, row in believed.items():
        count, drifted = earned.get(cell, 0), row["drift_count"] > 0
        if row["count"] > count + 0.01 or (row["count"] < count - 0.01 and not drifted):
            yield f"{cell}: believed after {row['count']:.2f} outcomes, the log has {count}"
    in_sql = {(r["domain"], r["task_kind"], r["agent"]): r["count"] for r in evidence.sql.get("beliefs", ())}
    for cell, row in believed.items():
        if abs(in_sql.get(cell, -1.0) - row["count"]) > 0.01:
            yield f"{cell}: {row['count']:.2f} in the view, {in_sql.get(cell)} in SQL"


def patterns_are_earned(evidence: Evidence) -> Iterator[str]:
    """I9: no pattern rests on more than happened, no policy on what is not in the log or twice under one version."""
    attempts = Counter(row["domain"] for row in evidence.rows("aos.experiences") if row["kind"] == "attempt")
    for row in evidence.rows("aos.patterns"):
        most = attempts[row["domain"]]
        if row["support"] > most:
            yield f"pattern of {row['domain']} rests on {row['support']}, the log has {most} attempts"
    end = max((end for (topic, _), end in evidence.ends.items() if topic == "aos.experiences"), default=0)
    said: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for row in evidence.rows("aos.strategies"):
        said[row["name"], row["version"]].add(str(row["reason"]))
        if row["version"] > end:
            yield f"policy of {row['name']} rests on experiences before {row['version']}, the log ends at {end}"
    for place, reasons in said.items():
        if len(reasons) > 1:
            yield f"policy {place} was published as {len(reasons)} different ones"


def what_is_learned(evidence: Evidence) -> Iterator[str]:
    """I9, all of it."""
    yield from beliefs_are_earned(evidence)
    yield from patterns_are_earned(evidence)


def within_bounds(evidence: Evidence) -> Iterator[str]:
    """I10: memory and disk stay below their bounds."""
    most: dict[str, int] = {}
    for note in evidence.noted("rss"):
        for name, size in note["bytes"].items():
            most[name] = max(size, most.get(name, 0))
    for name, size in most.items():
        bound = RSS_MAX.get(name.split("-")[0])
        if bound is not None and size > bound:
            yield f"{name} took {size >> 20} MiB, at most {bound >> 20}"
    for note in evidence.noted("disk"):
        if note["bytes"] > DISK_MAX:
            yield f"the run took {note['bytes'] >> 20} MiB of disk"
    for text in evidence.unreadable:
        yield f"unreadable: {text}"


def secrets_are_kept(evidence: Evidence) -> Iterator[str]:
    """I11: planted secrets appear in no log, topic or process list."""
    for where in evidence.secrets_seen:
        yield f"a planted secret is in {where}"


LAWS: dict[str, Law] = {
    "I1": one_end,
    "I2": counts_agree,
    "I3": nobody_unsent,
    "I4": rollups_agree,
    "I5": order_is_kept,
    "I6": store_has_all,
    "I7": tenants_are_apart,
    "I8": back_in_time,
    "I9": what_is_learned,
    "I10": within_bounds,
    "I11": secrets_are_kept,
}
