"""Allocate chooses, and nobody else: which agent does an attempt, by chance and capacity; in which order they start.

in: aos.ready.p0 to p3 (attempts that may start), aos.releases (slots that are free again), a call without rows now
    and then (the fleet may have changed); views: fleet, strategies.
out: first aos.decisions (the journal, at this partition), then aos.ledger (assigned or refused, at the row's home).
key: attempt = (request_id, round, step, attempt); each has one decision, whatever is repeated.
state: who holds slots, who waits, tenants' clocks, the rotation of the control arm: agents/load.py, lanes.py,
    allocating.py.
order: any order of the input topics. A repeated ready row gets the journaled decision again; a release of an
    attempt that waits drops it; a release that comes before its ready row keeps that row from being decided.
restart: `adopt` takes in what the journal holds beyond the snapshot; those decisions go to the ledger again at the
    first step, because nobody knows whether they did. Steps are not muted below the commit (the shell's law for
    a journal): with another order of the topics or another fleet a row may be decided now that waited then.
refused: nobody among the alternatives will start it here (AOS3010); the agent went away after the decision (AOS3009).
errors: AOS1005 for a posterior that is no number.
cost: 512 rows of 8 alternatives that all differ in 15 ms, 128 in 6 ms, one row in 1.6 ms (CPU time on a busy machine);
    of 16 alternatives 50 us a row where half of the rows are like others; a release 3 us, and 1 us for each row
    that waits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from aos.agents import allocating
from aos.agents.fleet import Fleet
from aos.agents.lanes import Lanes, Verdict, Waiting
from aos.agents.load import Attempt, Load, Slot, Told
from aos.analytics.strategies import Strategies
from aos.codecs.settings import Settings
from aos.codecs.topics import LANES
from aos.streams import live
from aos.streams.allocate_rows import (
    DECISIONS,
    Block,
    Decided,
    decision_rows,
    gather,
    gone_rows,
    keys_of_rows,
    ledger_entries,
    ledger_outputs,
    told_of,
)
from aos.streams.allocate_state import State, as_gone, batches_of, state_of, waiting_row
from aos.streams.processor import Batch, Output, Step, Views
from aos.streams.views import settings_version

FLEET, STRATEGIES, RELEASES = "aos.agent-states", "aos.strategies", "aos.releases"
ROUND_ROBIN = "round-robin"
WATCH_US = 500_000  # how often the fleet is looked at while somebody waits or works and nothing else comes
SPARE_ROWS = 1_024  # rows that left blocks still in memory before the blocks are packed anew


def initial(partition: int) -> State:
    """Nobody works, nobody waits."""
    return State(partition)


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Take in one message, then let start what can."""
    turn = Turn(state, now, views, seed)
    if batch.topic in LANES and len(batch.rows):
        block = turn.open(batch.rows)  # whatever is wrong with the rows is said here: nothing is changed yet
        turn.begin()
        turn.arrive(block, LANES.index(batch.topic))
    else:
        turn.begin()
        if batch.topic == RELEASES and len(batch.rows):
            turn.release(batch.rows)
    turn.start()
    return turn.end()


def adopt(state: State, batch: Batch) -> State:
    """Take in decisions that the journal holds beyond the snapshot."""
    for told in told_of(batch.rows):
        state.epoch_seen = max(state.epoch_seen, told.epoch)
        state.epoch = state.epoch_seen + 1
        if told.kind == "assigned":
            _adopt_assigned(state, told)
        elif told.agent is None:
            _adopt_refused(state, told)
        else:
            attempt = state.load.attempts.get(told.key)
            if attempt is not None and len(attempt.answers) == 1:
                attempt.answers.append(told)
                state.unsent[told.key] = None
    return state


def _adopt_assigned(state: State, told: Told) -> None:
    key, load = told.key, state.load
    if key in load.attempts or key in load.ended:
        return
    assert told.agent is not None
    attempt = Attempt(load.slot(told.agent), told.epoch, [told], adopted=True)
    load.take(key, attempt)
    if told.policy == ROUND_ROBIN:
        state.rotation.took((told.domain, told.task_kind or ""), told.agent)
    row = state.lanes.drop(key)
    if row is not None:
        state.uncharged.append((row.lane, row.tenant))
        attempt.adopted = False
    state.unsent[key] = None


def _adopt_refused(state: State, told: Told) -> None:
    key, load = told.key, state.load
    if key not in load.attempts and key not in load.ended:
        load.end(key, told)
        state.lanes.drop(key)
        state.unsent[key] = None


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """The state as Arrow, the same bytes for the same state."""
    return batches_of(state)


def load(partition: int, batches: Mapping[str, pa.RecordBatch]) -> State:
    """The state that `dump` gave; its owner is a new one, with an epoch of its own."""
    return state_of(partition, batches)


class Turn:
    """One step: the state, what was decided, what the ledger is told."""

    def __init__(self, state: State, now: int, views: Views, seed: int) -> None:
        self._state = state
        self._load: Load = state.load
        self._lanes: Lanes[Block] = state.lanes
        self._now = now
        self._salt = seed
        self._fleet: Fleet = views[FLEET]
        self._strategies: Strategies = views[STRATEGIES]
        self._settings: Settings = views.settings
        self._views = views
        self._decided: dict[int, tuple[Block, list[Decided]]] = {}
        self._told: list[Told] = []
        self._first: list[Output] = []
        self._entries: list[pa.RecordBatch] = []  # decisions of this step, for the ledger

    def open(self, rows: pa.RecordBatch) -> Block:
        """Ready rows with the chances that strategies and settings in force give, and the version of those."""
        keys = list(zip(rows.column("domain").to_pylist(), rows.column("tenant").to_pylist(), strict=True))
        known = {key: self._policy(*key) for key in dict.fromkeys(keys)}
        policies = np.array([known[key] for key in keys])
        place = rows.schema.get_field_index("settings_version")
        version = pa.array(np.full(len(rows), settings_version(self._views)), rows.schema.field(place).type)
        rows = rows.set_column(place, rows.schema.field(place), version)
        return Block(rows, policies[:, 0].copy(), policies[:, 1].copy())

    def _policy(self, domain: str, tenant: str) -> tuple[float, float]:
        """Exploration and floor. What somebody set at run time beats what was learned."""
        strategy = self._strategies.of(domain)
        (factor,) = live.by_tenant(self._views, "exploration", [tenant]).tolist()
        floor = strategy.floor if strategy.version else self._settings.trial_floor
        set_floor = live.ordered(self._views, "trial_floor", tenant)
        return strategy.exploration * factor, floor if set_floor is None else set_floor

    def begin(self) -> None:
        """Look at the fleet; settle what an earlier owner left."""
        state = self._state
        changed = self._load.follow(self._fleet, self._settings.prefetch)
        for lane, tenant in state.uncharged:
            self._lanes.lanes[lane].charge(tenant, self._settings.tenant_weights.get(tenant, 1.0))
        state.uncharged.clear()
        for key in state.unsent:
            self._tell_again(key)
        state.unsent.clear()
        if not changed:
            return
        for row in self._lanes.rows.values():
            if not row.block.slots:  # loaded from a snapshot
                self._give_slots(row.block)
        for row in list(self._lanes.rows.values()):
            if self._is_lost(row.block, row.index):
                self._lanes.drop(row.key)
                self._refuse(row.block, row.index)
        self._strand()
        self._load.forget({slot.agent for row in self._lanes.rows.values() for slot in row.block.slots})

    def arrive(self, block: Block, lane: int) -> None:
        """Rows of a lane: decided ones are answered again, lost ones refused, the others wait."""
        self._give_slots(block)
        load, rows, add = self._load, self._lanes.rows, self._lanes.add
        attempts, ended = load.attempts, load.ended
        kept = 0
        for index, key in enumerate(block.keys):
            attempt = attempts.get(key)
            if attempt is not None:
                if attempt.adopted:
                    attempt.adopted = False
                    weight = self._settings.tenant_weights.get(block.tenants[index], 1.0)
                    self._lanes.lanes[lane].charge(block.tenants[index], weight)
                self._tell_again(key)
            elif key in ended:
                self._tell_again(key)
            elif key in rows:
                continue
            elif self._is_lost(block, index):
                self._refuse(block, index)
            else:
                kept += 1
                add(waiting_row(block, index, lane))
        self._state.block_rows += len(block) if kept else 0

    def release(self, rows: pa.RecordBatch) -> None:
        """Slots that are free again, and rows that need none any more."""
        agents, epochs = rows.column("agent").to_pylist(), rows.column("epoch").to_pylist()
        waiting, release = self._lanes.rows, self._load.release
        for key, agent, epoch in zip(keys_of_rows(rows), agents, epochs, strict=True):
            if key in waiting:
                self._lanes.drop(key)
            release(key, agent, epoch)

    def start(self) -> None:
        """Offer what is free to those who wait."""
        if self._load.free > 0 and self._lanes.rows:
            settings = self._settings
            age_us = settings.lane_age_ms * 1000
            self._lanes.offer(self._now, age_us, settings.tenant_weights, self._may, self._take)

    def end(self) -> Step[State]:
        """The journal's rows first, then the ledger's."""
        state = self._state
        for block, decided in self._decided.values():
            rows, told = decision_rows(block, decided, state.partition, state.epoch, self._now)
            self._first.append(Output(DECISIONS, rows, state.partition))
            for (row, *_), item in zip(decided, told, strict=True):
                attempt = self._load.attempts.get(block.keys[row])
                if attempt is not None:
                    attempt.answers.append(item)
                else:
                    self._load.end(block.keys[row], item)
            self._entries.append(rows)
        if self._first:
            state.epoch_seen = state.epoch
        self._pack()
        full = self._lanes.full()
        busy = bool(self._lanes.rows or self._load.attempts)
        return Step(
            state,
            outputs=[*ledger_outputs(self._told), *ledger_entries(self._entries)],
            first=self._first,
            next_due=self._now + WATCH_US if busy else None,
            paused=frozenset(LANES[number] for number in full),
        )

    # inside

    def _give_slots(self, block: Block) -> None:
        block.give(self._load.find(block.agents, self._fleet, self._settings.prefetch))

    def _may(self, row: Waiting[Block]) -> bool:
        """Whether any of the row's alternatives has a free slot."""
        block, index = row.block, row.index
        return any(slot.use < 1.0 for slot in block.slots[block.start[index] : block.start[index + 1]])

    def _take(self, row: Waiting[Block]) -> Verdict:
        if self._load.free <= 0:
            return Verdict.FULL
        block, index = row.block, row.index
        slots = block.slots[block.start[index] : block.start[index + 1]]
        drawn = block.drawn(self._salt)[index]
        if block.policies[index] == ROUND_ROBIN:
            return self._take_in_turn(row, slots, drawn.u)
        highest_use = max([slot.use for slot in slots])
        if highest_use >= 1.0:
            return self._take_of_free(row, slots, drawn.u)
        u, position, members, probability = drawn  # the usual case: all are free
        arm = slots if members is None else [slots[i] for i in members]
        served = [slot.served for slot in arm]
        slot = allocating.turn_of(arm, served, highest_use)
        if len(arm) > 1:
            position = slots.index(slot)
        decided = Decided(index, position, probability, u, False, None, None)
        self._assign(row, slot, max(served), decided)
        return Verdict.TAKEN

    def _take_in_turn(self, row: Waiting[Block], slots: list[Slot], u: float) -> Verdict:
        """The control arm: by rotation."""
        block, index = row.block, row.index
        subject = (block.domains[index], block.kinds[index] or "")
        choice = self._state.rotation.choose(subject, slots)
        if choice is None:
            return Verdict.BLOCKED
        self._state.rotation.took(subject, slots[choice.position].agent)
        self._assign_choice(row, slots, choice, u)
        return Verdict.TAKEN

    def _take_of_free(self, row: Waiting[Block], slots: list[Slot], u: float) -> Verdict:
        """By chance among those with a free slot, if there are any that are worth it."""
        if min([slot.use for slot in slots]) >= 1.0:
            return Verdict.BLOCKED
        block, index = row.block, row.index
        if allocating.better_to_wait(slots, *block.hopes(index)):
            return Verdict.BLOCKED
        choice = allocating.choose(
            slots, block.chance(index), block.arm(index), u, lambda free: block.rest(index, free)
        )
        assert choice is not None
        self._assign_choice(row, slots, choice, u)
        return Verdict.TAKEN

    def _assign_choice(
        self, row: Waiting[Block], slots: list[Slot], choice: allocating.Choice, u: float
    ) -> None:
        position, probability, overridden, free = choice
        masked = None
        if len(free) < len(slots):
            masked = [True] * len(slots)
            for i in free:
                masked[i] = False
        arms = row.block.arm(row.index)
        foremost = max([slot.served for slot, own in zip(slots, arms, strict=True) if own == arms[position]])
        decided = Decided(row.index, position, probability, u, overridden, masked, None)
        self._assign(row, slots[position], foremost, decided)

    def _assign(self, row: Waiting[Block], slot: Slot, foremost: float, decided: Decided) -> None:
        self._state.turns += 1
        allocating.charge(slot, foremost, self._state.turns)
        self._load.take(row.key, Attempt(slot, self._state.epoch, []))
        self._keep(row.block, decided)

    def _is_lost(self, block: Block, index: int) -> bool:
        """Whether nobody among the row's alternatives will start any more work here."""
        return all(slot.lost for slot in block.slots[block.start[index] : block.start[index + 1]])

    def _refuse(self, block: Block, index: int) -> None:
        count = block.start[index + 1] - block.start[index]
        violated = f"capacity: 0 of {count} alternatives alive"
        self._load.end(block.keys[index], None)
        self._keep(block, Decided(index, -1, 0.0, 0.0, False, [True] * count, violated))

    def _keep(self, block: Block, decided: Decided) -> None:
        kept = self._decided.get(id(block))
        if kept is None:
            self._decided[id(block)] = block, [decided]
        else:
            kept[1].append(decided)

    def _tell_again(self, key: bytes) -> None:
        attempt = self._load.attempts.get(key)
        refusal = self._load.ended.get(key)
        if attempt is not None:
            self._told += attempt.answers
        elif refusal is not None:
            self._told.append(refusal)

    def _strand(self) -> None:
        """Attempts whose agent is gone are tried elsewhere; the slot stays taken until the release."""
        told = []
        for _, attempt in self._load.stranded():
            refused = as_gone(attempt.answers[0], f"agent {attempt.slot.agent} is gone")
            attempt.answers.append(refused)
            told.append(refused)
        if told:
            self._first.append(Output(DECISIONS, gone_rows(told, self._now), self._state.partition))
            self._told += told

    def _pack(self) -> None:
        """Let go of blocks most of whose rows have left."""
        state, rows = self._state, self._lanes.rows
        if not rows:
            state.block_rows = 0
        elif state.block_rows > 2 * len(rows) + SPARE_ROWS:
            block = Block(*gather(rows.values()))
            self._give_slots(block)
            for index, row in enumerate(rows.values()):
                row.block, row.index = block, index
            state.block_rows = len(block)
