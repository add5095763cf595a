"""Which of the eligible are named, and in what order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aos.agents.fleet import Fleet
from aos.agents.matching import eligible
from aos.agents.ranking import Ask, Limits, Ranked, Tasks, rank, salts
from aos.analytics.beliefs import Beliefs
from aos.analytics.strategies import Strategy
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE
from tests.unit.given_fleet import beliefs_of, fleet_of, state_rows, task_rows
from tests.unit.test_matching import wish

LIMITS = Limits(16, 1, 5)
PLAIN = Strategy(
    exploration=0.25, weight_success=0.7, weight_latency=0.1, weight_stability=0.1, weight_resource=0.1
)


def ranked(
    agents: dict[str, dict[str, Any]],
    said: dict[str, dict[str, Any]],
    rows: int = 1,
    strategy: Strategy = PLAIN,
    limits: Limits = LIMITS,
    asked: dict[str, Any] | None = None,
    budget: float = np.inf,
    turn: int = 0,
) -> tuple[list[list[str]], Ranked]:
    """Names by row, and all that was found."""
    fleet = fleet_of(agents)
    beliefs = beliefs_of(said) if said else Beliefs()
    wanted = wish(**(asked or {}), budgeted=np.isfinite(budget))
    ask = Ask(eligible(fleet, wanted, limits.wanted), np.arange(rows), "default", None, strategy)
    tasks = Tasks(
        np.zeros((rows, SURFACE_SIZE), np.float32),
        np.zeros((rows, EMBEDDING_SIZE), np.float32),
        np.full(rows, budget),
        np.arange(rows, dtype=np.uint32) * 7919,
        turn,
    )
    found = rank(fleet, beliefs, [ask], tasks, limits)
    return [fleet.agents[found.slots[found.rows == row]].tolist() for row in range(rows)], found


TRIED = {"deviation": 0.01, "count": 50.0}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"score": 0.9}, {"score": 0.5}),
        ({"latency_us": 1e4}, {"latency_us": 1e6}),
        ({"cost_usd_micros": 10.0}, {"cost_usd_micros": 1000.0}),
        ({"deviation": 0.001}, {"deviation": 0.2}),
    ],
)
def test_the_better_agent_comes_first_when_the_rest_is_equal(
    better: dict[str, Any], worse: dict[str, Any]
) -> None:
    strategy = Strategy(
        exploration=0.0, weight_success=0.25, weight_latency=0.25, weight_stability=0.25, weight_resource=0.25
    )
    names, _ = ranked(
        {"worse": {}, "better": {}}, {"better": TRIED | better, "worse": TRIED | worse}, 20, strategy
    )
    assert names == [["better", "worse"]] * 20


def test_without_outcomes_the_registered_price_is_the_cost() -> None:
    _, found = ranked({"dear": {"price_usd_micros": 900}, "cheap": {"price_usd_micros": 3}}, {})
    assert sorted(found.cost.tolist()) == [3.0, 900.0]
    _, found = ranked({"a": {"price_usd_micros": 900}}, {"a": TRIED | {"cost_usd_micros": 7.0}})
    assert found.cost.tolist() == [7.0]


def test_agents_that_are_equal_take_turns() -> None:
    agents: dict[str, dict[str, Any]] = {f"agent-{number}": {} for number in range(40)}
    names, _ = ranked(agents, {name: {"deviation": 0.05, "count": 50.0} for name in agents}, rows=400)
    firsts = [row[0] for row in names]
    assert len(set(firsts)) == 40
    assert all(len(set(row)) == 16 for row in names)


def test_a_clearly_better_agent_is_first_nearly_always_in_spite_of_turns() -> None:
    agents: dict[str, dict[str, Any]] = {f"agent-{number}": {} for number in range(40)}
    said = {name: {"score": 0.4, "deviation": 0.05, "count": 50.0} for name in agents}
    said["agent-7"]["score"] = 0.8
    names, _ = ranked(agents, said, rows=200)
    assert sum(row[0] == "agent-7" for row in names) >= 195


def test_a_quarter_of_the_places_is_kept_for_those_on_trial_that_were_tried_least() -> None:
    agents: dict[str, dict[str, Any]] = {f"agent-{number:02}": {} for number in range(40)}
    said = {name: {"score": 0.9} | TRIED for name in agents}
    for number in range(10):  # poor as far as one knows, but hardly tried; the first five not at all
        said[f"agent-{number:02}"] = {"score": 0.1, "deviation": 0.01, "count": float(number >= 5)}
    names, found = ranked(agents, said, rows=50, strategy=PLAIN)
    assert all(len(row) == 16 for row in names)
    trials = [[name for name in row if name < "agent-10"] for row in names]
    assert all(len(row) == 4 for row in trials)
    assert {name for row in trials for name in row} == {f"agent-{number:02}" for number in range(5)}
    assert found.trial.sum() == 4 * 50


def test_an_uncertain_agent_is_named_before_a_sure_one_of_the_same_mean() -> None:
    agents: dict[str, dict[str, Any]] = {f"agent-{number}": {} for number in range(64)}
    said = {name: {"score": 0.5, "deviation": 0.01, "count": 50.0} for name in agents}
    said["agent-3"]["deviation"] = 0.25
    strategy = Strategy(
        exploration=1.0, weight_success=0.7, weight_latency=0.1, weight_stability=0.1, weight_resource=0.1
    )
    names, _ = ranked(agents, said, rows=100, strategy=strategy)
    assert sum("agent-3" in row for row in names) >= 70


def test_over_budget_agents_are_left_out_unless_too_few_remain() -> None:
    agents: dict[str, dict[str, Any]] = {name: {} for name in "abcd"}
    said = {name: TRIED | {"cost_usd_micros": 10.0 * place} for place, name in enumerate("abcd")}
    names, found = ranked(agents, said, budget=15, limits=Limits(16, 2, 5))
    assert (sorted(names[0]), found.over.tolist(), found.budget.tolist()) == (["a", "b"], [2], [False])
    assert sorted(found.over_slots[0]) == [2, 3]
    names, found = ranked(agents, said, budget=15, limits=Limits(16, 3, 5))
    assert (sorted(names[0]), found.over.tolist(), found.budget.tolist()) == (list("abcd"), [0], [True])


def test_suspected_agents_are_let_in_before_the_budget_is_ignored() -> None:
    agents: dict[str, dict[str, Any]] = {"a": {}, "s": {"state": "suspected"}, "dear": {}}
    said = {"a": TRIED, "s": TRIED, "dear": TRIED | {"cost_usd_micros": 100.0}}
    names, found = ranked(agents, said, budget=15, limits=Limits(16, 2, 5))
    assert (sorted(names[0]), found.health.tolist(), found.budget.tolist()) == (["a", "s"], [True], [False])
    names, found = ranked(agents, said, budget=15, limits=Limits(16, 3, 5))
    assert sorted(names[0]) == ["a", "dear", "s"]
    assert (found.health.tolist(), found.budget.tolist()) == ([True], [True])
    names, found = ranked(agents, said, budget=15, limits=Limits(16, 1, 5))
    assert (names, found.health.tolist()) == ([["a"]], [False])


def test_every_capability_of_a_team_is_represented() -> None:
    agents: dict[str, dict[str, Any]] = {f"x-{number}": {"capabilities": ["x"]} for number in range(50)}
    agents["y"] = {"capabilities": ["y"]}
    said = {name: {"score": 0.9} | TRIED for name in agents} | {"y": {"score": 0.1} | TRIED}
    names, _ = ranked(agents, said, asked={"require": ("x", "y")})
    assert "y" in names[0]
    assert 2 <= len(names[0]) <= 17


def test_a_wide_fleet_is_cut_the_same_for_all_rows_and_keeps_the_best_and_the_untried() -> None:
    fleet = Fleet()
    names = [f"agent-{number:04}" for number in range(3_000)]
    for block in range(3):
        part = names[block * 1000 : block * 1000 + 1000]
        fleet.apply(f"crew/{block}".encode(), state_rows({name: {} for name in part}))
    said = {name: {"score": 0.3} | TRIED for name in names[:2_900]}
    said[names[5]]["score"] = 0.9
    beliefs = beliefs_of(said)
    limits = Limits(16, 1, 5)

    def first(rows: list[int]) -> dict[int, list[str]]:
        ask = Ask(eligible(fleet, wish(), 1), np.array(rows), "default", None, PLAIN)
        tasks = Tasks(
            np.zeros((8, SURFACE_SIZE), np.float32),
            np.zeros((8, EMBEDDING_SIZE), np.float32),
            np.full(8, np.inf),
            np.arange(8, dtype=np.uint32),
            3,
        )
        found = rank(fleet, beliefs, [ask], tasks, limits)
        return {row: fleet.agents[found.slots[found.rows == row]].tolist() for row in rows}

    whole = first(list(range(8)))
    assert all(names[5] in row for row in whole.values())
    assert all(sum(name >= names[2_900] for name in row) >= 4 for row in whole.values())
    assert {row: first([row])[row] for row in range(8)} == whole


def test_salts_differ_by_request_and_column_and_repeat() -> None:
    rows = task_rows([{}, {"step": 1}, {"match_round": 1}])
    names = ("round", "step", "match_round")
    assert len(set(salts(rows, 1, names).tolist())) == 3
    assert salts(rows, 1, names).tolist() == salts(rows, 1, names).tolist()
    assert salts(rows, 1, names).tolist() != salts(rows, 2, names).tolist()
    assert salts(rows.slice(1), 1, names).tolist() == salts(rows, 1, names).tolist()[1:]
