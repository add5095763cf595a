"""The chaos room's poison: the product refuses all of it offline too, and the judge's laws on it can be broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aos.codecs.errors import RecordError
from aos.streams import admit, encode
from aos.streams.processor import Batch, Raw
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.loop import NO_ROWS
from tests.chaos import faults, judge, judge_poison
from tests.chaos import faults_poison_bytes as catalogue
from tests.chaos.faults_poison_kit import ENDED, LETTER, MUST_REFUSE, Poison, readers
from tests.chaos.judge_read import Evidence, Row
from tests.fuzz.edges import AT, VIEWS
from tests.fuzz.targets import Corpus
from tests.unit.test_chaos_judge import T0, good, request_id

TENANTS = ("default", "acme")


@pytest.fixture(scope="module")
def all_of() -> Corpus:
    return catalogue.corpus()


def read(poison: Poison) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What an edge makes of a message: (dead letters, rows of the ledger)."""
    raw = Raw(poison.topic, 0, 7, AT, None, poison.value or b"", poison.headers)
    batch = Batch(poison.topic, 0, 7, NO_ROWS, [raw])
    step = encode.step if readers(poison.topic) == ["encode"] else admit.step
    outputs = step(None, batch, AT, VIEWS, 0).outputs
    rows = {topic: [row for o in outputs if o.topic == topic for row in o.rows.to_pylist()]
            for topic in {o.topic for o in outputs}}  # fmt: skip
    return rows.pop("aos.dead-letters", []), rows.get("aos.ledger", [])


def ends_as_said(poison: Poison) -> None:
    if readers(poison.topic)[0] not in ("encode", "admit"):
        assert poison.must == LETTER
        with pytest.raises(RecordError):
            WireCodec().decode(poison.topic, poison.value or b"", poison.headers)
        return
    letters, ledger = read(poison)
    for letter in letters:
        assert (letter["topic"], letter["offset"], letter["code"][:3]) == (poison.topic, 7, "AOS"), (
            poison.what
        )
    answered = [row for row in ledger if row["kind"] == "rejected" and row["id"] == poison.id]
    if poison.must == LETTER:
        assert letters, poison.what
        assert not answered, poison.what
    elif poison.must == MUST_REFUSE:
        assert bool(letters) != bool(answered), poison.what
    else:
        assert poison.must == ENDED, poison.what
        assert bool(letters) != bool([row for row in ledger if row["id"] == poison.id]), poison.what


def test_each_message_of_fault_20_ends_as_it_must(all_of: Corpus) -> None:
    random, made = Random(5), [*catalogue.cut_off("t", TENANTS), *catalogue.among_good_rows("t", TENANTS)]
    for topic in ("aos.requests", "aos.requests.acme", *catalogue.EDGES, *catalogue.INNER):
        made += catalogue.handmade(all_of, topic)
        made += catalogue.bent(random, all_of, topic, 8)
    assert len(made) > 1_000
    for poison in made:
        ends_as_said(poison)


def test_good_rows_beside_a_bad_one_go_on() -> None:
    for poison in catalogue.among_good_rows("t", TENANTS):
        letters, ledger = read(poison)
        assert [letter["row"] for letter in letters] == [1]
        assert [row["id"] for row in ledger] == list(poison.rows)


def test_each_tensor_of_fault_21_ends_as_it_must(all_of: Corpus) -> None:
    random = Random(5)
    made = [
        *catalogue.tensors("t", TENANTS),
        *catalogue.lying_tensors(TENANTS),
        *catalogue.other_sizes(all_of),
    ]
    made += [catalogue.not_finite(random, all_of, topic) for topic in catalogue.NOT_FINITE for _ in range(5)]
    assert len(made) > 60
    for poison in made:
        ends_as_said(poison)


def test_each_bomb_of_fault_22_ends_as_it_must() -> None:
    made = list(catalogue.small_bombs("t", TENANTS))
    assert len({poison.what for poison in made}) >= 30
    for poison in made:
        ends_as_said(poison)


def test_the_faults_of_the_suite_are_built() -> None:
    registry = faults.load_all()
    for number in (18, 20, 21, 22, 23, 24):
        assert registry[number].missing() is None


# the judge


def line(**more: Any) -> Row:
    return {
        "n": "p/0", "state": "acknowledged", "fault": 20, "what": "x", "topic": "aos.ledger", "partition": 0,
        "offset": 5, "must": "letter", "size": 3, "digest": hashlib.sha256(b"bad").hexdigest(), "plain": False,
        "readers": ["supervise", "store"], "id": None, "tenant": "default", "packed": False, **more,
    }  # fmt: skip


def letter(**more: Any) -> Row:
    return {"tenant": "default", "processor": "supervise", "code": "AOS1001", "topic": "aos.ledger", "partition": 0,
            "offset": 5, "row": -1, "request_id": None, "body": b"bad", "body_size": 3, **more}  # fmt: skip


def poisoned() -> Evidence:
    found = good()
    found.poison = [
        line(),
        line(n="p/1", topic="aos.requests", offset=1, must="refused", readers=["encode"], id="bad"),
        line(
            n="p/2", topic="aos.requests", offset=2, must="answered", readers=["encode"], id="r1", plain=True
        ),
        line(n="p/3", topic="aos.requests", offset=3, must="again", readers=["encode"], id="r3", plain=True),
        line(n="p/4", topic="aos.requests", state="refused", error="too large"),
        line(n="p/5", topic="aos.requests", offset=9, readers=["encode"], packed=True),
    ]
    result = next(row for row in found.topics["aos.results"] if row["id"] == "r3")
    found.topics["aos.results"] += [
        {**result, "repeated": True, "_offset": 8},
    ]
    found.topics["aos.dead-letters"] = [
        letter(),
        letter(processor="store"),
        letter(topic="aos.requests", offset=1, processor="encode"),
        letter(topic="aos.requests", offset=9, processor="encode", body=b"", body_size=0),
    ]
    found.notes.append({"event": "poisoned", "number": 20, "at": T0, "restarts": {"worker-core-0": 0},
                        "rise": {"worker-core-0": 90 << 20}})  # fmt: skip
    return found


def broken(found: Evidence) -> set[str]:
    return {name for name, item in judge.verdict(found)["invariants"].items() if not item["held"]}


def test_poison_that_ended_as_it_must_breaks_no_law() -> None:
    assert broken(poisoned()) == set()
    assert judge.verdict(poisoned())["poison"]["20"]["acknowledged"] == 5


def letters_of(e: Evidence) -> list[Row]:
    return e.topics["aos.dead-letters"]


def vanish(e: Evidence) -> None:
    letters_of(e).clear()


def bury_once(e: Evidence) -> None:
    del letters_of(e)[1]


def forget_bytes(e: Evidence) -> None:
    letters_of(e)[0]["body"] = b"ba"


def forget_size(e: Evidence) -> None:
    letters_of(e)[0]["body_size"] = 2


def forget_place(e: Evidence) -> None:
    letters_of(e)[0]["offset"] = 4


def forget_code(e: Evidence) -> None:
    letters_of(e)[0]["code"] = None


def drop_what_must_be_refused(e: Evidence) -> None:
    del letters_of(e)[2]


def drop_a_batch(e: Evidence) -> None:
    del letters_of(e)[3]


def fail_what_is_good(e: Evidence) -> None:
    for row in e.topics["aos.results"]:
        if row["id"] == "r1":
            row["status"], row["code"] = "failed", "AOS3002"  # being slow breaks no other law


def answer_no_repeat(e: Evidence) -> None:
    e.topics["aos.results"].pop()


def refuse_without_a_word(e: Evidence) -> None:
    e.poison[4]["error"] = ""


def say_nothing(e: Evidence) -> None:
    e.poison[4]["state"] = "sent"


def refuse_what_is_good(e: Evidence) -> None:
    e.poison[2].update(state="refused", error="no")


def work_again(e: Evidence) -> None:
    old = next(row for row in e.topics["aos.ledger"] if row["kind"] == "assigned")
    again = {**old, "attempt": 2, "_at": T0 + 60, "_offset": 99}
    e.topics["aos.ledger"].append(again)
    e.topics["aos.decisions"].append(
        {**e.topics["aos.decisions"][0], "request_id": old["request_id"], "attempt": 2}
    )
    assert old["request_id"] == request_id("acme", "r0")


def die(e: Evidence) -> None:
    e.notes[-1]["restarts"]["worker-core-0"] = 1


def swell(e: Evidence) -> None:
    e.notes[-1]["rise"]["worker-core-0"] = 300 << 20


@pytest.mark.parametrize(
    ("breaks", "law"),
    [
        (vanish, "I1"), (bury_once, "I1"), (forget_bytes, "I1"), (forget_size, "I1"), (forget_place, "I1"),
        (forget_code, "I1"), (drop_what_must_be_refused, "I1"), (drop_a_batch, "I1"), (fail_what_is_good, "I1"),
        (answer_no_repeat, "I1"), (refuse_without_a_word, "I1"), (say_nothing, "I1"), (refuse_what_is_good, "I1"),
        (work_again, "I1"), (die, "I10"), (swell, "I10"),
    ],
)  # fmt: skip
def test_each_wrong_is_reported_by_its_law(breaks: Callable[[Evidence], None], law: str) -> None:
    found = poisoned()
    breaks(found)
    assert broken(found) == {law}


def test_poison_that_is_processed_as_if_it_were_good_is_reported() -> None:
    found = poisoned()
    del letters_of(found)[2]
    result = {**found.topics["aos.results"][1], "id": "bad", "request_id": request_id("default", "bad")}
    found.topics["aos.results"].append(result)
    assert "I1" in broken(found)


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines = [
        {"n": "a/0", "state": "sent", "topic": "aos.tasks", "must": "letter", "plain": False},
        {"n": "a/1", "state": "sent", "topic": "aos.tasks", "must": "letter", "plain": False},
        {"n": "a/0", "state": "acknowledged", "partition": 0, "offset": 4},
    ]
    text = "".join(json.dumps(one) + "\n" for one in lines) + '{"n": "a/1", "state": "ack'
    (tmp_path / "poison.ndjson").write_text(text)
    found = judge_poison.read_poison(tmp_path)
    assert [row["state"] for row in found] == ["acknowledged", "sent"]
    assert list(judge_poison.hostile(found)) == [("aos.tasks", 0, 4)]
    assert judge_poison.read_poison(tmp_path / "nowhere") == []
