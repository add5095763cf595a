"""Patterns: the effect of a pair, shrunk by its error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.analytics.patterns import Patterns, shrunk
from aos.codecs import rows as codec


def row(kind: str, members: list[str], effect: float, error: float) -> dict[str, Any]:
    return {
        "domain": "d", "pattern": "p", "kind": kind, "members": members, "support": 9, "score": 0.5,
        "baseline": 0.5, "effect": effect, "error": error, "persistence": 0.0, "window_from": 0, "window_to": 1,
        "version": 1,
    }  # fmt: skip


def test_effect_is_of_the_ordered_pair_and_of_nothing_else() -> None:
    rows = [
        row("pair", ["a", "b"], 0.2, 0.1),
        row("cluster", ["b", "a"], 0.9, 0.1),
        row("pair", ["c", "d"], 0.1, 0.2),
    ]
    view = Patterns().apply(b"d", codec.from_dicts("pattern", rows))
    assert view.effect("d", "a", "b") == pytest.approx(0.15)
    assert view.effect("d", "b", "a") == view.effect("d", "c", "d") == view.effect("e", "a", "b") == 0.0
    assert view.count("d") == 3
    assert sorted(view.effects("d")) == [0.0, pytest.approx(0.15)]


def test_a_domains_value_is_replaced_as_a_whole() -> None:
    view = Patterns().apply(b"d", codec.from_dicts("pattern", [row("pair", ["a", "b"], 0.2, 0.0)]))
    view.apply(b"d", codec.from_dicts("pattern", [row("pair", ["b", "a"], -0.3, 0.0)]))
    assert (view.effect("d", "a", "b"), view.effect("d", "b", "a")) == (0.0, pytest.approx(-0.3))
    view.apply(b"d", None)
    assert (view.effect("d", "b", "a"), view.count("d")) == (0.0, 0)


@given(st.floats(-1, 1), st.floats(0, 1))
def test_shrinking_never_turns_or_grows_an_effect(effect: float, error: float) -> None:
    found = shrunk(effect, error)
    assert abs(found) <= abs(effect)
    assert found * effect >= 0
    assert abs(effect) > error or found == 0
