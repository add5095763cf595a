"""Composing: a plan for one request from the candidates of its steps, or why there is none.

Decides the alternatives of each step, the parts of a step no single agent can do, and whether the plan is feasible:
acyclic (AOS2001), the cheapest alternatives within the budget (AOS2006), the critical path of the fastest within the
deadline (AOS2007), the expected quality not below the least that is accepted (AOS2011), in this order. A step without
candidates is planned without alternatives: supervise waits for somebody.

What is predicted of agents on trial is a prior, no evidence. A step whose first alternative is on trial therefore
counts no time against the deadline, and a request with such a step is not refused for its quality; prices are known
and always count.

quality: mean over the steps of the first alternative's expected score (over its parts for a team): a result's score is
    a mean too.
duration: longest chain of the first alternatives' predicted latencies; a team's parts work one after the other.
pairs: what mining found of two agents (effect, -1 to 1) times the strategy's `pair_bonus` is added to the expected
    score of an alternative, for the first alternative of each step it comes after; then they are ordered anew.
ties: by hash of the plan's seed and the agent: the same seed and candidates give the same plan.
source: greedy set cover, Chvatal 1979: at most ln n + 1 times the smallest team.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PARTS_MAX = 16  # agents of one team
COVERS_MAX = 62  # as in agents.matching

Effect = Callable[[str, str], float]


@dataclass(slots=True)
class Option:
    """One candidate. `index` is its place in the message's flat candidates."""

    index: int
    agent: str
    score: float
    cost: int
    latency: int
    covers: int
    trial: bool


@dataclass(slots=True)
class Need:
    """One step with its candidates, best first. `row` is its row in the message; `able`: each of them can do all of it
    (False: perhaps)."""

    row: int
    number: int
    name: str
    require: Sequence[str]
    after: Sequence[int]
    options: Sequence[Option]
    able: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan must keep to. `slack_us`: deadline less now, None when there is none; `count`: steps of the
    request; `whole`: all its steps are here, so that the whole can be judged."""

    budget: int | None
    slack_us: int | None
    quality_min: float
    pair_bonus: float
    effect: Effect | None
    seed: int
    count: int
    whole: bool


@dataclass(slots=True)
class Planned:
    """One row of the plan. `parent` is the number of the step this is a part of, else -1."""

    row: int
    number: int
    parent: int
    name: str
    require: Sequence[str]
    after: Sequence[int]
    options: Sequence[Option]


@dataclass(slots=True)
class Plan:
    """A plan; quality and duration are None while a step has nobody."""

    planned: list[Planned] = field(default_factory=list)
    topology: str | None = None
    quality: float | None = None
    duration_us: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan."""

    code: str
    message: str


def compose(needs: Sequence[Need], terms: Terms) -> Plan | Refusal:
    """The plan for these steps: all of a request (`terms.whole`), or one that is matched anew."""
    order = _in_order(needs)
    if order is None:
        return Refusal("AOS2001", "the steps come after each other in a circle")
    plan = Plan(topology=shape(needs, terms))
    chains: dict[int, list[Planned]] = {}  # step -> its row, or its parts in order
    part = terms.count
    for need in order:
        before = [chains[number][-1] for number in need.after if chains.get(number)]
        able = _able(need)
        if able:
            chains[need.number] = [_row(need, _ordered(able, before, terms))]
        else:
            team = _team(need, before, part, terms) if need.number < terms.count else []
            part += len(team)
            chains[need.number] = team or [_row(need, [])]
            if team:
                plan.topology = "team"
    refusal = _judge(plan, order, chains, terms)
    if refusal is not None:
        return refusal
    plan.planned = [planned for need in needs for planned in chains[need.number]]
    return plan


def shape(needs: Sequence[Need], terms: Terms) -> str | None:
    """single, chain (each comes after the one before), parallel (none comes after another) or dag; None when only
    a part of the request is here."""
    if terms.count == 1:
        return "single"
    if not terms.whole:
        return None
    if not any(need.after for need in needs):
        return "parallel"
    followers = [number for need in needs for number in need.after]
    starts = sum(not need.after for need in needs)
    line = (
        starts == 1 and all(len(need.after) <= 1 for need in needs) and len(set(followers)) == len(followers)
    )
    return "chain" if line else "dag"


def _full(need: Need) -> int:
    return (1 << min(len(need.require), COVERS_MAX)) - 1


def _able(need: Need) -> Sequence[Option]:
    """Those who can do all of it alone."""
    if need.able:
        return need.options
    full = _full(need)
    return [option for option in need.options if option.covers == full]


def _row(need: Need, options: Sequence[Option]) -> Planned:
    return Planned(need.row, need.number, -1, need.name, need.require, need.after, options)


def _in_order(needs: Sequence[Need]) -> list[Need] | None:
    """Steps after those they come after; None for a circle. Steps that are not here count as done."""
    here = {need.number for need in needs}
    if all(number < need.number for need in needs for number in need.after):
        return sorted(needs, key=lambda need: need.number)
    waiting = {need.number: need for need in sorted(needs, key=lambda need: need.number)}
    order: list[Need] = []
    while waiting:
        ready = [
            need
            for need in waiting.values()
            if not any(number in waiting for number in need.after if number in here)
        ]
        if not ready:
            return None
        order += ready
        for need in ready:
            del waiting[need.number]
    return order


def _ordered(options: Sequence[Option], before: Sequence[Planned], terms: Terms) -> Sequence[Option]:
    """Alternatives in their order; with pairs known, their expected scores and order take these in."""
    heads = [planned.options[0].agent for planned in before if planned.options]
    if terms.effect is None or not heads:
        return options
    moved = False
    adjusted = []
    for option in options:
        bonus = terms.pair_bonus * sum(terms.effect(head, option.agent) for head in heads) / len(heads)
        if bonus:
            moved = True
            score = min(max(option.score + bonus, 0.0), 1.0)
            option = Option(
                option.index, option.agent, score, option.cost, option.latency, option.covers, option.trial
            )
        adjusted.append(option)
    if not moved:
        return options
    return sorted(adjusted, key=lambda option: (-option.score, _tie(terms.seed, option.agent)))


def _tie(seed: int, agent: str) -> int:
    return zlib.crc32(agent.encode(), seed & 0xFFFFFFFF)


def _team(need: Need, before: Sequence[Planned], first: int, terms: Terms) -> list[Planned]:
    """A chain of parts, one agent each, in the order of `require`; empty when the candidates do not cover it."""
    shares = _shares(need, terms.seed)
    if not 2 <= len(shares) <= PARTS_MAX:
        return []
    team: list[Planned] = []
    for place, share in enumerate(sorted(shares, key=lambda share: share & -share)):
        able = [option for option in need.options if option.covers & share == share]
        options = _ordered(able, team[-1:] or before, terms)
        require = [name for bit, name in enumerate(need.require) if share >> bit & 1]
        after = need.after if place == 0 else [first + place - 1]
        name = f"{need.name}.{place + 1}"
        team.append(Planned(need.row, first + place, need.number, name, require, after, options))
    return team


def _shares(need: Need, seed: int) -> list[int]:
    """Greedy cover: who covers most of what is left takes all of it; of equals the better, then by hash."""
    left, shares = _full(need), []
    while left:
        best = max(
            need.options,
            key=lambda option: (
                (option.covers & left).bit_count(),
                option.score,
                _tie(seed, option.agent),
            ),
            default=None,
        )
        share = best.covers & left if best is not None else 0
        if not share:
            return []
        shares.append(share)
        left &= ~share
    return shares


def _judge(
    plan: Plan, order: Sequence[Need], chains: dict[int, list[Planned]], terms: Terms
) -> Refusal | None:
    """Predict the plan, drop alternatives the budget cannot pay, and say what is infeasible."""
    rows = [planned for need in order for planned in chains[need.number] if planned.options]
    if terms.budget is not None:
        cheapest = {planned.number: min(option.cost for option in planned.options) for planned in rows}
        total = sum(cheapest.values())
        if terms.whole and total > terms.budget:
            return over_budget(total, terms.budget)
        for planned in rows:
            room = terms.budget - (total - cheapest[planned.number]) if terms.whole else terms.budget
            planned.options = [option for option in planned.options if option.cost <= room] or planned.options
    if terms.slack_us is not None:
        fastest = _longest(order, chains, lambda planned: surely(planned.options))
        if fastest > terms.slack_us:
            return too_late(fastest, terms.slack_us)
    if len(rows) == sum(map(len, chains.values())):
        plan.quality = _quality(chains)
        plan.duration_us = _longest(order, chains, lambda planned: planned.options[0].latency)
        tried = not any(planned.options[0].trial for planned in rows)
        if terms.whole and tried and plan.quality < terms.quality_min:
            return too_poor(plan.quality, terms.quality_min)
    return None


def over_budget(cost: int, budget: int) -> Refusal:
    """AOS2006 with its figures."""
    return Refusal(
        "AOS2006", f"the cheapest plan costs {cost} millionths of a US dollar, the budget is {budget}"
    )


def too_late(duration_us: int, slack_us: int) -> Refusal:
    """AOS2007 with its figures."""
    return Refusal("AOS2007", f"the fastest plan takes {duration_us} us, the deadline is {slack_us} us away")


def too_poor(quality: float, quality_min: float) -> Refusal:
    """AOS2011 with its figures."""
    return Refusal(
        "AOS2011", f"the expected quality is {quality:.3f}, at least {quality_min:.3f} is asked for"
    )


def surely(options: Sequence[Option]) -> int:
    """Time at least needed, as far as there is evidence: the fastest of those that were tried, 0 for a trial."""
    if not options or options[0].trial:
        return 0
    return min(option.latency for option in options if not option.trial)


def _quality(chains: dict[int, list[Planned]]) -> float:
    means = [sum(part.options[0].score for part in parts) / len(parts) for parts in chains.values()]
    return sum(means) / len(means)


def _longest(order: Sequence[Need], chains: dict[int, list[Planned]], time: Callable[[Planned], int]) -> int:
    """The critical path; nobody's time is 0."""
    ends: dict[int, int] = {}
    for need in order:
        start = max((ends.get(number, 0) for number in need.after), default=0)
        ends[need.number] = start + sum(time(planned) for planned in chains[need.number] if planned.options)
    return max(ends.values(), default=0)
