"""Plans: alternatives, teams, and what is infeasible."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents.composing import Need, Option, Plan, Planned, Refusal, Terms, compose, shape


def option(agent: str, **said: Any) -> Option:
    """A candidate that was tried and can do the one thing required."""
    standard: dict[str, Any] = {"score": 0.5, "cost": 0, "latency": 10, "covers": 1, "trial": False}
    return Option(0, agent, **(standard | said))


def need(number: int, options: list[Option], after: tuple[int, ...] = (), require: str = "x") -> Need:
    """A step that requires a capability a letter."""
    return Need(number, number, f"step-{number}", list(require), after, options)


def terms(**said: Any) -> Terms:
    """No limits."""
    standard: dict[str, Any] = {
        "budget": None,
        "slack_us": None,
        "quality_min": 0.0,
        "pair_bonus": 0.5,
        "effect": None,
        "seed": 1,
        "count": 1,
        "whole": True,
    }
    return Terms(**(standard | said))


def planned(needs: list[Need], **said: Any) -> Plan:
    """The plan, which must exist."""
    found = compose(needs, terms(**({"count": len(needs)} | said)))
    assert isinstance(found, Plan), found
    return found


def refused(needs: list[Need], **said: Any) -> str | None:
    """The code, None for a plan."""
    found = compose(needs, terms(**({"count": len(needs)} | said)))
    return found.code if isinstance(found, Refusal) else None


def agents(row: Planned) -> list[str]:
    """Names of the alternatives."""
    return [one.agent for one in row.options]


ANY = [option("a")]


@pytest.mark.parametrize(
    ("afters", "expected"),
    [
        ([()], "single"),
        ([(), (0,)], "chain"),
        ([(), (0,), (1,)], "chain"),
        ([(1,), (2,), ()], "chain"),
        ([(), ()], "parallel"),
        ([(), (), (1,)], "dag"),
        ([(), (0,), (0,)], "dag"),
        ([(), (0,), (0, 1)], "dag"),
    ],
)
def test_the_shape_of_a_plan(afters: list[tuple[int, ...]], expected: str) -> None:
    needs = [need(number, ANY, after) for number, after in enumerate(afters)]
    assert shape(needs, terms(count=len(needs))) == expected
    assert planned(needs).topology == expected


def test_alternatives_are_the_candidates_in_their_order() -> None:
    plan = planned([need(0, [option("b", score=0.2), option("a", score=0.9)])])
    (row,) = plan.planned
    assert (agents(row), row.parent, row.number) == (["b", "a"], -1, 0)
    assert (plan.quality, plan.duration_us) == (0.2, 10)


def test_a_circle_is_refused_before_anything_else() -> None:
    needs = [need(0, ANY, (2,)), need(1, ANY, (0,)), need(2, ANY, (1,))]
    assert refused(needs, slack_us=-1) == "AOS2001"
    assert refused([need(0, ANY, (0,))]) == "AOS2001"


def test_quality_is_the_mean_and_duration_the_longest_chain_of_the_first_alternatives() -> None:
    needs = [
        need(0, [option("a", score=1.0, latency=100), option("b", latency=1)]),
        need(1, [option("c", score=0.5, latency=50)], (0,)),
        need(2, [option("d", score=0.0, latency=20)], (0,)),
    ]
    plan = planned(needs)
    assert (plan.quality, plan.duration_us) == (0.5, 150)


def test_a_step_with_nobody_is_planned_empty_and_nothing_is_predicted() -> None:
    plan = planned([need(0, ANY), need(1, [], (0,))], quality_min=0.9)
    assert [agents(row) for row in plan.planned] == [["a"], []]
    assert (plan.quality, plan.duration_us) == (None, None)


@pytest.mark.parametrize(("budget", "code"), [(29, "AOS2006"), (30, None), (None, None)])
def test_the_cheapest_alternatives_must_fit_the_budget(budget: int | None, code: str | None) -> None:
    needs = [need(0, [option("a", cost=100), option("b", cost=10)]), need(1, [option("c", cost=20)])]
    assert refused(needs, budget=budget) == code


def test_alternatives_the_budget_cannot_pay_beside_the_cheapest_of_the_rest_are_dropped() -> None:
    needs = [
        need(0, [option("a", cost=31), option("b", cost=10), option("c", cost=30)]),
        need(1, [option("d", cost=20), option("e", cost=41)]),
    ]
    assert [agents(row) for row in planned(needs, budget=50).planned] == [["b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("slack", "first", "code"),
    [
        (30, {}, None),
        (29, {}, "AOS2007"),
        (29, {"trial": True}, None),
        (19, {"trial": True}, "AOS2007"),
        (-1, {"trial": True}, "AOS2007"),
    ],
)
def test_the_fastest_tried_alternatives_must_meet_the_deadline(
    slack: int, first: dict[str, Any], code: str | None
) -> None:
    needs = [
        need(0, [option("a", latency=500, **first), option("b", latency=10)]),
        need(1, [option("c", latency=20)], (0,)),
        need(2, [option("d", latency=5)]),
    ]
    assert refused(needs, slack_us=slack) == code


@pytest.mark.parametrize(
    ("score", "trial", "code"), [(0.7, False, None), (0.5, False, "AOS2011"), (0.5, True, None)]
)
def test_poor_quality_is_refused_when_there_is_evidence(score: float, trial: bool, code: str | None) -> None:
    needs = [need(0, [option("a", score=score, trial=trial)]), need(1, [option("b", score=0.6)])]
    assert refused(needs, quality_min=0.6) == code


def test_a_step_matched_anew_is_judged_by_its_deadline_alone() -> None:
    needs = [need(1, [option("a", score=0.1, cost=99)], (0,))]
    assert refused(needs, whole=False, count=3, budget=5, quality_min=0.9) is None
    assert refused(needs, whole=False, count=3, slack_us=5) == "AOS2007"
    assert planned(needs, whole=False, count=3).topology is None


def test_a_team_is_a_chain_in_the_order_of_the_requirements() -> None:
    options = [option("z", covers=0b100), option("xy", covers=0b011), option("y", covers=0b010)]
    plan = planned([need(0, ANY), need(1, options, (0,), "xyz"), need(2, ANY, (1,))])
    assert plan.topology == "team"
    parts = [row for row in plan.planned if row.parent >= 0]
    assert [(p.number, p.parent, p.name, p.require, p.after, agents(p)) for p in parts] == [
        (3, 1, "step-1.1", ["x", "y"], (0,), ["xy"]),
        (4, 1, "step-1.2", ["z"], [3], ["z"]),
    ]
    assert [row.number for row in plan.planned] == [0, 3, 4, 2]
    assert plan.duration_us == 40


def test_parts_of_two_teams_have_different_numbers() -> None:
    options = [option("a", covers=1), option("b", covers=2)]
    plan = planned([need(0, list(options), (), "xy"), need(1, list(options), (0,), "xy")])
    assert [(row.number, row.parent) for row in plan.planned] == [(2, 0), (3, 0), (4, 1), (5, 1)]
    assert plan.planned[2].after == (0,)


def test_a_part_of_a_team_is_never_split_again() -> None:
    options = [option("a", covers=1), option("b", covers=2)]
    plan = planned([need(3, options, (), "xy")], count=2, whole=False)
    assert [agents(row) for row in plan.planned] == [[]]


def test_candidates_that_do_not_cover_what_is_required_make_no_team() -> None:
    plan = planned([need(0, [option("a", covers=1), option("b", covers=1)], (), "xy")])
    assert [(row.parent, agents(row)) for row in plan.planned] == [(-1, [])]


def test_one_who_can_do_all_makes_a_team_needless() -> None:
    plan = planned(
        [need(0, [option("a", covers=1), option("all", covers=3), option("b", covers=2)], (), "xy")]
    )
    assert [agents(row) for row in plan.planned] == [["all"]]
    assert plan.topology == "single"


def test_members_that_work_well_together_come_first() -> None:
    def effect(first: str, second: str) -> float:
        return {("a", "c"): 0.4, ("b", "c"): -0.4}.get((first, second), 0.0)

    options = [option("a", covers=1), option("b", covers=2, score=0.6), option("c", covers=2)]
    one = [need(0, options, (), "xy")]
    assert agents(planned(one).planned[1]) == ["b", "c"]
    plan = planned(one, effect=effect)
    assert agents(plan.planned[1]) == ["c", "b"]
    assert plan.planned[1].options[0].score == pytest.approx(0.7)
    assert agents(planned(one, effect=effect, pair_bonus=0.0).planned[1]) == ["b", "c"]


def test_pairs_count_between_the_steps_of_a_workflow_too() -> None:
    needs = [need(0, [option("a")]), need(1, [option("b"), option("c")], (0,))]
    plan = planned(needs, effect=lambda first, second: float(second == "c"))
    assert agents(plan.planned[1]) == ["c", "b"]
    assert plan.planned[1].options[0].score == 1.0


_options = st.lists(
    st.builds(
        option,
        st.sampled_from([f"agent-{number}" for number in range(9)]),
        score=st.floats(0, 1, width=16),
        cost=st.integers(0, 20),
        latency=st.integers(0, 50),
        covers=st.integers(1, 15),
        trial=st.booleans(),
    ),
    max_size=7,
    unique_by=lambda one: one.agent,
)


@st.composite
def _requests(draw: st.DrawFn) -> list[Need]:
    count = draw(st.integers(1, 4))
    return [
        need(
            number,
            draw(_options),
            tuple(draw(st.lists(st.sampled_from(range(number)), unique=True))) if number else (),
            draw(st.sampled_from(["wxyz", "wx"])) if draw(st.booleans()) else "wxyz",
        )
        for number in range(count)
    ]


@given(_requests(), st.none() | st.integers(0, 60), st.none() | st.integers(0, 90))
def test_a_plan_is_staffed_covered_affordable_in_time_and_repeatable(
    needs: list[Need], budget: int | None, slack: int | None
) -> None:
    needs = [_fitting(one) for one in needs]
    said = terms(budget=budget, slack_us=slack, count=len(needs))
    found = compose(needs, said)
    assert found == compose(needs, said)
    if isinstance(found, Refusal):
        assert found.code in ("AOS2006", "AOS2007")
        return
    rows = {row.number: row for row in found.planned}
    assert len(rows) == len(found.planned)
    for one in needs:
        parts = [row for row in found.planned if row.parent == one.number]
        assert (one.number in rows) != bool(parts)
        if parts:
            assert sorted(name for part in parts for name in part.require) == sorted(one.require)
            assert all(part.options for part in parts)
            assert [list(part.after) for part in parts[1:]] == [[part.number] for part in parts[:-1]]
    for row in found.planned:
        required = {one.number: one for one in needs}[row.parent if row.parent >= 0 else row.number].require
        for each in row.options:
            has = {name for bit, name in enumerate(required) if each.covers >> bit & 1}
            assert set(row.require) <= has
    if budget is not None:
        cheapest = {row.number: min(one.cost for one in row.options) for row in found.planned if row.options}
        for row in found.planned:
            for each in row.options:
                assert sum(cheapest.values()) - cheapest[row.number] + each.cost <= budget


def _fitting(one: Need) -> Need:
    """Bits beyond what is required do not occur in matches."""
    full = (1 << len(one.require)) - 1
    for each in one.options:
        each.covers &= full
    return one
