"""Strategies: who governs a domain, and what the guard lets pass."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from aos.analytics.strategies import BOUNDS, DEFAULT, WEIGHTS, Strategies, Strategy, guard
from aos.codecs import rows as codec


def row(name: str, strategy: Strategy = DEFAULT, status: str = "active", **more: Any) -> dict[str, Any]:
    base = {"name": name, "status": status, "reason": "because", "evidence_count": 1, "changed_at": 0}
    return {**base, **asdict(strategy), **more}


def applied(view: Strategies, name: str, *found: dict[str, Any]) -> Strategies:
    return view.apply(name.encode(), codec.from_dicts("strategy", list(found)))


def test_the_domains_own_then_that_for_all_then_the_built_in_one() -> None:
    view = Strategies()
    assert view.of("d") == DEFAULT
    applied(view, "*", row("*", version=3))
    assert view.of("d").version == 3
    applied(view, "d", row("d", version=7))
    assert (view.of("d").version, view.of("e").version) == (7, 3)
    view.apply(b"d", None)
    assert view.of("d").version == 3


def test_only_active_rows_govern() -> None:
    view = applied(Strategies(), "d", row("d", version=1), row("d", version=2, status="proposed"))
    assert view.of("d").version == 1
    applied(view, "d", row("d", version=3, status="rejected"))
    assert view.of("d") == DEFAULT


def test_a_row_that_breaks_a_bound_changes_nothing() -> None:
    view = applied(Strategies(), "d", row("d", version=1))
    applied(view, "d", row("d", replace(DEFAULT, exploration=2.5), version=2))
    assert view.of("d").version == 1


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_guard_names_each_bound(name: str) -> None:
    low, high = BOUNDS[name]
    for wrong in (low - 0.001, high + 0.001, float("nan")):
        broken = guard(replace(DEFAULT, **{name: wrong}))
        assert any(name in sentence for sentence in broken)


def test_weights_must_sum_to_one() -> None:
    assert guard(DEFAULT) == []
    assert sum(getattr(DEFAULT, name) for name in WEIGHTS) == 1.0
    assert any("sum" in sentence for sentence in guard(replace(DEFAULT, weight_success=0.45)))
