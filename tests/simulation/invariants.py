"""What must hold of the logs and states of a world that has become quiet, whatever died on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from aos.agents import identity
from aos.codecs.topics import base_of, record_of, tenant_topic
from aos.streams.processor import Batch, Law, Processor, Views
from aos.streams.simulate import Simulation
from aos.streams.simulated_log import World
from aos.streams.simulated_loop import SECRET, stored
from tests.simulation import families
from tests.simulation.agents import FORGED
from tests.simulation.logs import LARGE, children, frozen, grouped, key_of, results, said
from tests.simulation.scene import Scene

STATUSES = ("ok", "failed", "rejected", "expired", "cancelled")


def check(scene: Scene) -> None:
    """All of them; AssertionError with the seed for the first that does not hold."""
    world = scene.simulation.world
    for law in LAWS:
        try:
            law(scene)
        except Exception as error:
            error.add_note(f"seed {world.seed}: {law.__doc__}")
            raise


def one_result_a_round(scene: Scene) -> None:
    """every request has exactly one distinct result a round, on its tenant's topic, and nobody else has one"""
    world, sent = scene.simulation.world, scene.client.sent
    ends = results(world)
    first = grouped((row for row in ends if not row["repeated"]), "request_id", "round")
    handed_out = children(world)
    for (request_id, round), rows in first.items():
        if request_id in handed_out:
            (row,) = rows.values()
            assert row["topic"] == tenant_topic("aos.results", handed_out[request_id]["tenant"])
            assert (row["status"], round) in {(status, 0) for status in STATUSES}
            continue
        assert request_id in sent, f"a result for nobody: {rows}"
        assert len(rows) == 1, (
            f"{len(rows)} results of {request_id.hex()} round {round}: {list(rows.values())}"
        )
        (row,) = rows.values()
        assert row["status"] in STATUSES
        assert row["topic"] == tenant_topic("aos.results", sent[request_id].tenant)
        assert (row["status"] == "rejected") or not sent[request_id].wrong
        assert row["status"] != "cancelled" or sent[request_id].cancelled
    rounds: dict[bytes, list[int]] = defaultdict(list)
    for request_id, round in first:
        rounds[request_id].append(round)
    missing = [request_id.hex() for request_id in sent if request_id not in rounds]
    assert not missing, f"no result of {missing}"
    unanswered = [request_id.hex() for request_id in handed_out if request_id not in rounds]
    assert not unanswered, f"no result of the children {unanswered}"
    for request_id, numbers in rounds.items():
        if request_id in handed_out:
            continue
        assert sorted(numbers) == list(range(len(numbers)))
        assert len(numbers) <= 1 + sent[request_id].redriven
    for row in ends:
        if row["repeated"]:
            (before,) = first[row["request_id"], row["round"]].values()
            changed = {name for name in row if row[name] != before[name]}
            assert changed == {"repeated"}, f"a repeat says something else: {changed}"


def assignments_balance_releases(scene: Scene) -> None:
    """each assignment in the ledger is released, and nothing that was not assigned is"""
    world = scene.simulation.world
    names = ("request_id", "round", "step", "attempt", "agent", "epoch")
    assigned = {
        tuple(row[name] for name in names) for row in said(world, "aos.ledger") if row["kind"] == "assigned"
    }
    released = {tuple(row[name] for name in names) for row in said(world, "aos.releases") if row["agent"]}
    assert not assigned - released, f"never released: {assigned - released}"
    assert not released - assigned, f"released, never assigned: {released - assigned}"


def no_slot_is_leaked(scene: Scene) -> None:
    """nobody holds a slot or waits in allocate's state, or in one made anew from snapshot and journal"""
    for loop in _loops(scene.simulation, "allocate"):
        load, lanes = loop.state.load, loop.state.lanes
        assert not load.attempts, f"still at work: {[a.slot.agent for a in load.attempts.values()]}"
        assert not lanes.rows, "still waiting"
        assert all(slot.load == 0 for slot in load.slots.values())
        assert load.free == sum(max(0, slot.limit - slot.load) for slot in load.slots.values())


def decisions_come_first(scene: Scene) -> None:
    """what the ledger is told of an attempt stands in the journal, and an attempt has one decision

    What a replaced owner writes may land after its successor has read the journal: only then an attempt has two.
    """
    world = scene.simulation.world
    names = ("request_id", "round", "step", "attempt", "kind", "agent", "epoch", "cell_partition")
    journal = {tuple(row[name] for name in names) for row in said(world, "aos.decisions")}
    told = {
        tuple(row[name] for name in names)
        for row in said(world, "aos.ledger")
        if row["kind"] in ("assigned", "refused")
    }
    assert not told - journal, f"told, never decided: {told - journal}"
    chosen = Counter(row[:4] for row in journal if row[4] == "assigned")
    twice = {attempt for attempt, count in chosen.items() if count > 1}
    late = {
        key_of(row)
        for output in world.landed
        if output.topic == "aos.decisions"
        for row in output.rows.to_pylist()
    }
    assert twice <= late, f"decided twice: {twice - late}"
    silent = [row for row in journal - told if row[:4] not in twice]
    assert not silent, f"decided, never told: {silent}"


def work_is_what_counts(scene: Scene) -> None:
    """inboxes hold exactly the assignments that count, each once, with the right token; each has one trail"""
    world = scene.simulation.world
    inboxes = [row for topic in world.topics() if base_of(topic) == "aos.inbox" for row in said(world, topic)]
    key = ("request_id", "round", "step", "attempt")
    work = grouped((row for row in inboxes if row["kind"] == "work"), *key)
    trails = grouped((row for row in said(world, "aos.trails") if row["kind"] == "attempt"), *key)
    assert set(work) == set(trails), f"work without trail or the other way: {set(work) ^ set(trails)}"
    for attempt, rows in work.items():
        assert len(rows) == 1, f"{attempt} was given out as {list(rows.values())}"
        (row,), (trail, *others) = rows.values(), trails[attempt].values()
        assert not others, f"{attempt} has trails {[trail, *others]}"
        assert trail["agent"] == row["agent"]
        assert row["token"] == identity.token(SECRET, *key_of(row), row["agent"], row["epoch"])
        assert all(item["payload"] != FORGED for item in row["inputs"])
    for row in inboxes:
        if row["kind"] == "cancel":
            (given,) = work[tuple(row[name] for name in key)].values()
            assert (row["agent"], row["token"]) == (given["agent"], given["token"])


def requests_leave_one_trail(scene: Scene) -> None:
    """each round of a request has one trail of its own, with its result's status"""
    world = scene.simulation.world
    trails = grouped(
        (row for row in said(world, "aos.trails") if row["kind"] == "request"), "request_id", "round"
    )
    ends = {(r["request_id"], r["round"]): r for r in results(world) if not r["repeated"]}
    assert set(trails) == set(ends)
    for key, rows in trails.items():
        (row,) = rows.values()
        assert (row["status"], row["code"]) == (ends[key]["status"], ends[key]["code"])
        assert row["attempt"] == ends[key]["attempts"]


def forged_answers_count_for_nothing(scene: Scene) -> None:
    """no forged payload is a result, and what was ignored says why"""
    world = scene.simulation.world
    assert all(row["payload"] != FORGED for row in results(world))
    ignored = [row for row in said(world, "aos.trails") if row["kind"] == "ignored"]
    assert {row["code"] for row in ignored} <= {"AOS3005", "AOS3006", "AOS3007", "AOS3011"}


def nothing_is_left_in_flight(scene: Scene) -> None:
    """supervise has no request in flight and remembers the last round of each"""
    simulation = scene.simulation
    last: dict[bytes, int] = {}
    for row in results(simulation.world):
        last[row["request_id"]] = max(row["round"], last.get(row["request_id"], 0))
    remembered = {}
    for loop in _loops(simulation, "supervise"):
        assert not loop.state.requests
        for request_id in last:
            found = loop.state.memory.find(request_id)
            if found is not None:
                remembered[request_id] = found.column("round")[0].as_py()
    assert remembered == last


def folds_are_their_logs(scene: Scene) -> None:
    """the state of a fold is that of its log read from the beginning, byte for byte"""
    for loop in _loops(scene.simulation):
        if loop.processor.law is Law.FOLD:
            again = refold(scene.simulation.world, loop.processor, loop.partition)
            assert bytes_of(loop.processor, loop.state) == bytes_of(loop.processor, again), (
                loop.processor.name
            )


def an_attempt_teaches_once(scene: Scene) -> None:
    """the learner has one lesson of each attempt that may teach, however often it was written"""
    experiences = said(scene.simulation.world, "aos.experiences")
    may_teach = {
        key_of(row)
        for row in experiences
        if row["kind"] == "attempt"
        and row["quarantined"] is None
        and row["score"] is not None
        and row["agent"]
    }
    lessons = [len(loop.state.learner.lessons.keys) for loop in _loops(scene.simulation, "learn")]
    assert sum(lessons) == len(may_teach)


def experience_is_every_trail(scene: Scene) -> None:
    """each trail and verdict is an experience, with what the trail says"""
    world = scene.simulation.world
    names = set(record_of("aos.trails").schema.names) & set(record_of("aos.experiences").schema.names)
    names -= {"score", *LARGE}  # a score is settled where the attempt has none
    trails = {frozen({name: row[name] for name in sorted(names)}) for row in said(world, "aos.trails")}
    rows = [row for row in said(world, "aos.experiences") if row["kind"] not in ("tick", "correction")]
    made = {frozen({name: row[name] for name in sorted(names)}) for row in rows}
    assert made == trails
    verdicts = [row for row in said(world, "aos.experiences") if row["kind"] == "correction"]
    assert len(grouped(verdicts, "request_id", "finished_at", "score")) == scene.client.verdicts


def what_is_no_request_is_a_dead_letter(scene: Scene) -> None:
    """rubbish is a dead letter with its bytes, and nothing else is"""
    world = scene.simulation.world
    letters = grouped(said(world, "aos.dead-letters"), "topic", "partition", "offset", "row")
    assert len(letters) == scene.client.rubbish, list(letters)
    for (topic, partition, offset, _), rows in letters.items():
        (row,) = rows.values()
        assert row["body"] == world.read(topic, partition)[offset].value
        assert row["code"].startswith("AOS10")


def views_agree(scene: Scene) -> None:
    """every process sees the same views in the end, those of the log read from the beginning"""
    by_topic: dict[str, list[Any]] = defaultdict(list)
    for process in scene.simulation.processes:
        for topic, value in process.values.items():
            by_topic[topic].append(value)
    for fleet in by_topic["aos.agent-states"]:
        known = {name for name, is_known in zip(fleet.agents, fleet.known, strict=True) if is_known}
        assert known == {agent.name for service in scene.services for agent in service.agents}
        assert not fleet.alive.any(), "somebody seems alive whose replicas have long been silent"


LAWS = (
    one_result_a_round,
    *families.LAWS,
    assignments_balance_releases,
    no_slot_is_leaked,
    decisions_come_first,
    work_is_what_counts,
    requests_leave_one_trail,
    forged_answers_count_for_nothing,
    nothing_is_left_in_flight,
    folds_are_their_logs,
    an_attempt_teaches_once,
    experience_is_every_trail,
    what_is_no_request_is_a_dead_letter,
    views_agree,
)


def _loops(simulation: Simulation, name: str | None = None) -> list[Any]:
    return [
        loop
        for process in simulation.processes
        for loop in process.loops
        if name is None or loop.processor.name == name
    ]


def views_for(world: World, views: Mapping[str, Any]) -> Views:
    """Views for a step outside of the simulation."""
    return Views(world.settings, world.partitions, views, SECRET)


def refold(world: World, processor: Processor, partition: int) -> Any:
    """The state of a fold from its whole log."""
    (topic,) = processor.reads
    state, now = processor.initial(partition), 0
    for offset, entry in enumerate(world.read(topic, partition)):
        now = max(now, entry.appended_at)
        batch = Batch(topic, partition, offset, entry.rows)
        state = processor.step(state, batch, now, views_for(world, {}), world.seed).state
    return state


def bytes_of(processor: Processor, state: Any) -> dict[str, bytes]:
    """A state's dump, as bytes by name."""
    assert processor.dump is not None
    return stored(processor.dump(state))
