"""Whatever allocate, agents, clients and the clock do, in whatever order and however often: the ledger's promises hold.

The machine plays all of them. Two ledgers fold the same log; one is written and read back now and then. Held:
one result a request and round; every slot that was taken is freed once; no work for what has ended; an attempt and a
request leave one trail each; both ledgers say the same and end in the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aos.codecs.rows import from_dicts
from tests.unit.given_calls import delegated, shared
from tests.unit.given_ledger import (
    SECOND,
    Row,
    World,
    asked,
    assigned,
    candidate,
    id_of,
    outcome,
    planned,
    refused,
    requested,
    row,
)

SHAPES: list[list[Row]] = [
    [asked()],
    [asked("a"), asked("b", after=[0])],
    [asked("a"), asked("b", after=[0], judges=0)],
    [asked("a"), asked("b"), asked("c", after=[0, 1]), asked("d", after=[2], judges=0)],
]
AGENTS = [candidate("x", "a"), candidate("y", "b"), candidate("z", "a")]
SETTINGS: dict[str, Any] = {"attempts_max": 2, "match_waits_ms": (500, 1000), "request_timeout_ms": 60_000}
STATUSES = ["ok", "ok", "ok", "failed", "progress"]
ORDERS = ["cancel", "redrive", "rejected", "forged"]
INDEX = st.integers(0, 10_000)
Attempt = tuple[bytes, int, int, int]  # request, round, step, attempt


def number_of(found: Row) -> int:
    return int.from_bytes(found["request_id"], "big")


def attempt_of(found: Row) -> Attempt:
    return (found["request_id"], found["round"], found["step"], found["attempt"])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(**SETTINGS)
        self.twin = World(**SETTINGS)
        self.pending: list[Row] = []
        self.log: list[Row] = []
        self.numbers = 0
        self.said = 0
        self.waiting: list[Row] = []  # tasks that match and compose have not answered
        self.lanes: list[Row] = []  # ready rows
        self.works: list[Row] = []  # inbox rows
        self.load: dict[tuple[Attempt, str, int], int] = {}  # what allocate thinks is taken
        self.worked: Counter[Attempt] = Counter()
        self.freed: Counter[Attempt] = Counter()
        self.trailed: Counter[Attempt] = Counter()
        self.results: Counter[tuple[bytes, int]] = Counter()
        self.request_trails: Counter[tuple[bytes, int]] = Counter()
        self.begun: set[tuple[bytes, int]] = set()
        self.redrives: Counter[bytes] = Counter()  # orders, however often they were read
        self.offered: set[Attempt] = set()

    def _say(self, *rows: Row) -> None:
        """Most rows come alone; some wait for others to be of one message with them."""
        self.pending += rows
        self.said += 1
        if self.said % 4:
            self.fold(0.01)

    # what the others do

    @precondition(lambda self: len(self.world.state.requests) < 3)
    @rule(shape=st.sampled_from(SHAPES), budget=st.sampled_from([None, None, 20]))
    def request(self, shape: list[Row], budget: int | None) -> None:
        self.numbers += 1
        said = requested(self.numbers, *shape, budget_usd_micros=budget)
        self.begun.add((said["request_id"], 0))
        self._say(said)
        for number in range(len(shape)):
            self.waiting.append(
                {"request_id": said["request_id"], "round": 0, "step": number, "match_round": 0}
            )

    @precondition(lambda self: self.waiting)
    @rule(index=INDEX, count=st.sampled_from([0, 1, 2, 3, 3, 3]), team=st.integers(0, 5))
    def plan(self, index: int, count: int, team: int) -> None:
        task = self.waiting.pop(index % len(self.waiting))
        said = {"round": task["round"], "match_round": task["match_round"]}
        if count and team == 0 and task["step"] == 0:
            parts = [
                planned(number_of(task), part, AGENTS[:count], parent=0, step_name=f"p{part}", require=["r"],
                        after=after, **said)
                for part, after in ((10, []), (11, [10]))
            ]  # fmt: skip
            self._say(*parts)
        else:
            self._say(planned(number_of(task), task["step"], AGENTS[:count], **said))

    @precondition(lambda self: self.lanes)
    @rule(index=INDEX, choice=INDEX, times=st.sampled_from([1, 1, 2, 3]))
    def assign(self, index: int, choice: int, times: int) -> None:
        """`times` above 1: a new owner of the cell decided as well, before the first one's choice was known."""
        ready = self.lanes.pop(index % len(self.lanes))
        for turn in range(choice, choice + times):
            agent = ready["alternatives"][turn % len(ready["alternatives"])]
            self.load[attempt_of(ready), agent["agent"], 5] = agent["cell_partition"]
            self._say(
                assigned(
                    number_of(ready), ready["step"], ready["attempt"], agent["agent"], round=ready["round"],
                    cell=agent["cell"], cell_partition=agent["cell_partition"],
                )
            )  # fmt: skip

    @precondition(lambda self: self.lanes)
    @rule(index=INDEX)
    def refuse(self, index: int) -> None:
        ready = self.lanes.pop(index % len(self.lanes))
        cell = ready["alternatives"][0]["cell"]
        said = refused(number_of(ready), ready["step"], ready["attempt"], round=ready["round"], cell=cell)
        self._say(said)

    @precondition(lambda self: self.works)
    @rule(
        index=INDEX,
        status=st.sampled_from(STATUSES),
        score=st.sampled_from([None, 0.25]),
    )
    def answer(self, index: int, status: str, score: float | None) -> None:
        work = self.works[-1 - index % min(4, len(self.works))]
        self._say(
            outcome(number_of(work), work["step"], work["attempt"], work["agent"], status, score=score,
                    token_round=work["round"])
        )  # fmt: skip

    @precondition(lambda self: self.works)
    @rule(index=INDEX)
    def lose(self, index: int) -> None:
        work = self.works[-1 - index % min(4, len(self.works))]
        said = {"round": work["round"], "agent": work["agent"], "code": "AOS3009"}
        self._say(refused(number_of(work), work["step"], work["attempt"], **said))

    @precondition(lambda self: self.works)
    @rule(
        index=INDEX, call=st.sampled_from(["a", "b"]), budget=st.sampled_from([None, 5]), share=st.booleans()
    )
    def call(self, index: int, call: str, budget: int | None, share: bool) -> None:
        """Somebody at work, or long done, hands out a part or changes the context."""
        work = self.works[-1 - index % min(4, len(self.works))]
        echo = {n: work[n] for n in ("step", "attempt", "agent")} | {"token_round": work["round"]}
        if share:
            self._say(shared(b'{"k": 1}', work["context_version"] or 0, call, work["request_id"], **echo))
        else:
            said = {"text": f"do {call}", "budget_usd_micros": budget}
            self._say(delegated(call, work["request_id"], **said, **echo))

    @rule(score=st.sampled_from([None, 0.25]))
    def serve(self, score: float | None) -> None:
        """All others do what they should, once: everything waiting goes one stage on."""
        for _ in range(len(self.waiting)):
            self.plan(0, 3, 1)
        for _ in range(len(self.lanes)):
            if self.lanes:  # an assignment may end others: their places are given up
                self.assign(0, 0, 1)
        for work in self.works[-4:]:
            if attempt_of(work) not in self.freed:
                self.answer(self.works[::-1].index(work), "ok", score)

    @precondition(lambda self: self.numbers)
    @rule(index=INDEX, kind=st.sampled_from(ORDERS))
    def order(self, index: int, kind: str) -> None:
        number = self.numbers - index % min(3, self.numbers)
        if kind == "forged":
            self._say(outcome(number, token=bytes(16)))
        elif kind == "rejected":
            self._say(row("rejected", number, code="AOS2007", match_round=index % 3))
        else:
            self._say(row(kind, number, requested_at=self.world.now))
            self.redrives[id_of(number)] += kind == "redrive"

    @precondition(lambda self: self.log)
    @rule(index=INDEX, count=st.integers(1, 6))
    def repeat(self, index: int, count: int) -> None:
        """Some processor wrote again what it had written."""
        start = index % len(self.log)
        self._say(*self.log[start : start + count])

    @precondition(lambda self: self.pending)
    @rule(after=st.sampled_from([0.0, 0.01, 1.0, 3.0, 31.0]))
    def fold(self, after: float) -> None:
        rows, self.pending = self.pending, []
        if rows:
            self.log += rows
            self._fold(from_dicts("entry", rows), after)

    @rule()
    def due(self) -> None:
        """Time passes until something is due."""
        if self.world.next_due is not None:
            self._tick(max(0.0, (self.world.next_due - self.world.now) / SECOND))

    @rule()
    def snapshot(self) -> None:
        self.twin.reload()

    # what is held

    def _tick(self, after: float) -> None:
        self._fold(from_dicts("entry", [row("tick", 0)]), after)

    def _fold(self, rows: Any, after: float) -> None:
        said = self.world.fold_rows(rows, after)
        assert self.twin.fold_rows(rows, after) == said
        assert self.twin.next_due == self.world.next_due
        ended = Counter({key: self.results[key] for key in self.results})
        for topic, found in said.items():
            if topic.startswith("aos.inbox."):
                self._inbox(found, ended)
            elif topic.startswith("aos.ready."):
                for ready in found:
                    assert attempt_of(ready) not in self.offered, "each offer has a number of its own"
                    self.offered.add(attempt_of(ready))
                    assert {a["cell"] for a in ready["alternatives"]} == {ready["alternatives"][0]["cell"]}
                    assert ready["_partition"] == ready["alternatives"][0]["cell_partition"]
                self.lanes += found
        for release in said.get("aos.releases", ()):
            self._release(release)
        for result in said.get("aos.results", ()):
            if not result["repeated"]:
                self.results[result["request_id"], result["round"]] += 1
        for trail in said.get("aos.trails", ()):
            if trail["kind"] == "attempt":
                self.trailed[attempt_of(trail)] += 1
            elif trail["kind"] == "request":
                self.request_trails[trail["request_id"], trail["round"]] += 1
        self.waiting += said.get("aos.tasks", [])
        for again in said.get("aos.ledger", ()):
            self._again(again)

    def _inbox(self, found: list[Row], ended: Counter[tuple[bytes, int]]) -> None:
        for work in found:
            if work["kind"] == "work":
                assert not ended[work["request_id"], work["round"]], "work for what has ended"
                self.worked[attempt_of(work)] += 1
                self.works.append(work)
            else:
                assert self.worked[attempt_of(work)] == 1, "a cancel of what was never sent"

    def _release(self, release: Row) -> None:
        key = attempt_of(release)
        partition = self.load.pop((key, release["agent"], release["epoch"]), None)
        assert partition in (None, release["_partition"]), "the release went to another cell"
        if release["agent"] and release["reason"] != "ignored":
            self.freed[key] += 1
        if not release["agent"]:
            self.lanes = [ready for ready in self.lanes if attempt_of(ready) != key]

    def _again(self, again: Row) -> None:
        """A redriven request, as it comes back through the log."""
        again.pop("_partition")
        for name in ("requested_at", "deadline_at"):
            if again[name] is not None:
                again[name] = round(again[name].timestamp() * SECOND)
        self.pending.append(again)
        if again["kind"] == "requested":
            self.begun.add((again["request_id"], again["round"]))

    @invariant()
    def nothing_happens_twice(self) -> None:
        for counted in (self.worked, self.freed, self.trailed, self.results, self.request_trails):
            assert not counted or max(counted.values()) == 1
        assert self.request_trails == self.results
        assert set(self.freed) <= set(self.worked)
        assert set(self.results) <= self.begun
        assert all(round <= self.redrives[request_id] for request_id, round in self.begun)

    @invariant()
    def what_was_written_and_read_is_the_same(self) -> None:
        assert self.twin.bytes() == self.world.bytes()

    def teardown(self) -> None:
        """Nobody does anything any more: time alone ends every request and frees every slot."""
        for _ in range(8):
            self.fold(0.0)
            self._tick(3600.0)
        assert not self.world.state.requests
        assert self.world.next_due is None
        assert set(self.results) == self.begun
        assert set(self.worked) == set(self.freed) == set(self.trailed)
        assert not self.load, "a slot is held for ever"


TestLedger = Machine.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, print_blob=True)


def walk(machine: Machine, random: Random, steps: int) -> None:
    """The same rules by weight: a walk goes deeper than examples that are drawn to be small."""
    index = partial(random.randrange, 10_000)
    rules: list[tuple[int, str, Callable[[], None]]] = [
        (4, "", lambda: machine.request(random.choice(SHAPES), random.choice([None, None, 20]))),
        (6, "waiting", lambda: machine.plan(index(), random.choice([0, 2, 3, 3, 3]), index() % 6)),
        (6, "lanes", lambda: machine.assign(index(), index(), random.choice([1, 1, 1, 2]))),
        (2, "lanes", lambda: machine.refuse(index())),
        (6, "works", lambda: machine.answer(index(), random.choice(STATUSES), random.choice([None, 0.25]))),
        (1, "works", lambda: machine.lose(index())),
        (
            2,
            "works",
            lambda: machine.call(index(), random.choice("ab"), random.choice([None, 5]), index() % 3 == 0),
        ),
        (2, "", lambda: machine.serve(0.5)),
        (2, "numbers", lambda: machine.order(index(), random.choice(ORDERS))),
        (2, "log", lambda: machine.repeat(index(), 1 + index() % 6)),
        (3, "pending", lambda: machine.fold(random.choice([0.0, 0.01, 1.0, 3.0, 31.0]))),
        (1, "", machine.due),
        (1, "", machine.snapshot),
    ]
    for _ in range(steps):
        possible = [(weight, does) for weight, need, does in rules if not need or getattr(machine, need)]
        random.choices([does for _, does in possible], [weight for weight, _ in possible])[0]()
        machine.nothing_happens_twice()
        machine.what_was_written_and_read_is_the_same()
    machine.teardown()


def test_long_walks_of_everybody_keep_the_ledgers_promises_and_miss_no_way_to_end() -> None:
    ends, trails, reasons, answers = set(), set(), set(), set()
    for seed in range(3):
        machine = Machine()
        walk(machine, Random(seed), 400)
        said = machine.world.said
        ends |= {result["status"] for result in said["aos.results"]}
        trails |= {(trail["kind"], trail["status"]) for trail in said["aos.trails"]}
        reasons |= {release["reason"] for release in said["aos.releases"]}
        inboxes = [row for topic, rows in said.items() if topic.startswith("aos.inbox.") for row in rows]
        answers |= {(row["kind"], row["status"]) for row in inboxes if row["call"] is not None}
    assert ends == {"ok", "failed", "rejected", "expired", "cancelled"}
    assert {("attempt", status) for status in ("ok", "failed", "timeout", "cancelled", "expired")} <= trails
    assert reasons == {"ok", "failed", "timeout", "cancelled", "expired", "ignored"}
    assert {("result", "ok"), ("context", "ok")} <= answers
